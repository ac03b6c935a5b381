use crate::{recipe::Recipe, source::TrainingData, train::Progress, units::hex};
use burn::{
    module::{DisplaySettings, Module, ModuleDisplay},
    optim::ModuleOptimizer,
    store::RecordError,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A folder of checkpoints. Each is written beside the others under a temporary name, flushed, and
/// renamed into place, so that a checkpoint is there as a whole or not at all; older ones are removed
/// only then.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder or a file in it cannot be written.
    #[error("cannot write the checkpoint {}: {source}; check the disk and the permissions", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read the checkpoint {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is there, and is not what was written.
    #[error("the checkpoint {} is damaged: {reason}; delete its folder to go on from an earlier one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A training that is to be resumed was given a folder without checkpoints.
    #[error("there is no checkpoint in {} to resume from; check the folder, or start afresh", path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A training that is to start afresh was given a folder with checkpoints in it.
    #[error(
        "{} is there already; resume that training, clear the folder, or choose another",
        path.display()
    )]
    Occupied {
        /// The newest checkpoint.
        path: PathBuf,
    },
    /// The checkpoint belongs to a run with other settings.
    #[error(
        "the checkpoint {} was made with another recipe; \
         resume with the settings it names, or choose another folder", path.display()
    )]
    OtherRun {
        /// The file that says so.
        path: PathBuf,
    },
    /// The checkpoint belongs to a run on other images, labels or classes.
    #[error(
        "the checkpoint {} was made for other data ({found}); \
         resume with the same images in the same order, or choose another folder", path.display()
    )]
    OtherData {
        /// The file that says so.
        path: PathBuf,
        /// What differs: the number of images, or what is in them.
        found: String,
    },
    /// The checkpoint belongs to another network.
    #[error("the checkpoint {} does not fit the model: {reason}", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

const STATE: &str = "state.json";
const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const AVERAGED: &str = "averaged.bpk";
const BEST: &str = "best.bpk";
const PREFIX: &str = "checkpoint-";

/// What goes into a checkpoint.
pub(crate) struct Snapshot<'a, M> {
    pub(crate) model: &'a M,
    pub(crate) averaged: Option<&'a M>,
    pub(crate) best: Option<&'a M>,
    pub(crate) optimizer: &'a ModuleOptimizer,
    pub(crate) recipe: &'a Recipe,
    pub(crate) identity: &'a Identity,
    pub(crate) progress: &'a Progress,
}

/// What a run is of, besides its recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    data: DataIdentity,
    /// The network as Burn prints it: layers, sizes, and what has no tensor, such as activations and the
    /// normalisation of the images. Older checkpoints do not say.
    network: Option<String>,
}

/// Which data a run is on.
#[derive(Debug, PartialEq, Clone, Serialize, Deserialize)]
struct DataIdentity {
    samples: usize,
    sha256: String,
}

impl Identity {
    pub(crate) fn of(data: &impl TrainingData, model: &impl ModuleDisplay) -> Self {
        let data = DataIdentity { samples: data.len(), sha256: data.sha256() };
        Self { data, network: Some(model.format(DisplaySettings::default())) }
    }

    /// The first line in which the networks differ.
    fn other_network(&self, now: &Self) -> Option<String> {
        let (mut then, mut now) = (self.network.as_ref()?.lines(), now.network.as_ref()?.lines());
        loop {
            let (was, is) = match (then.next(), now.next()) {
                (None, None) => return None,
                (was, is) => (was.unwrap_or("nothing").trim(), is.unwrap_or("nothing").trim()),
            };
            if was != is {
                return Some(format!("it was made with `{was}`, here it is `{is}`"));
            }
        }
    }
}

/// What comes out of one.
pub(crate) struct Loaded<M> {
    pub(crate) model: M,
    pub(crate) averaged: Option<M>,
    pub(crate) best: Option<M>,
    pub(crate) optimizer: ModuleOptimizer,
    pub(crate) progress: Progress,
}

/// What a checkpoint holds beside the files of tensors.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    recipe: Recipe,
    #[serde(flatten)]
    identity: Identity,
    progress: Progress,
    model_sha256: String,
    optimizer_sha256: String,
    /// Of the averaged weights, if the recipe has them.
    averaged_sha256: Option<String>,
    /// Of the weights of the best epoch, if the recipe selects one and there is one.
    best_sha256: Option<String>,
}

impl Checkpoints {
    /// Opens a folder, making it if it is not there.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`] if it cannot be made.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let folder = folder.into();
        match fs::create_dir_all(&folder) {
            Ok(()) => Ok(Self { folder }),
            Err(source) => Err(CheckpointError::Write { path: folder, source }),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest checkpoint, if there is one.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Read`] if the folder cannot be listed.
    pub fn latest(&self) -> Result<Option<PathBuf>, CheckpointError> {
        Ok(self.all()?.pop())
    }

    /// All checkpoints, oldest first.
    fn all(&self) -> Result<Vec<PathBuf>, CheckpointError> {
        let failed = |source| CheckpointError::Read { path: self.folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(step) = name.and_then(|name| name.strip_prefix(PREFIX))
                && let Ok(step) = step.parse::<u64>()
            {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Writes a checkpoint and removes all older ones but the one before it.
    pub(crate) fn save<M: Module>(&self, snapshot: Snapshot<'_, M>) -> Result<(), CheckpointError> {
        let Snapshot { model, averaged, best, optimizer, recipe, identity, progress } = snapshot;
        let path = self.folder.join(format!("{PREFIX}{:08}", progress.step));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| CheckpointError::Write { path, source }
        };
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |error: RecordError| CheckpointError::Write {
                path,
                source: io::Error::other(error.to_string()),
            }
        };
        let draft = tempfile::Builder::new()
            .prefix(".draft-")
            .tempdir_in(&self.folder)
            .map_err(failed(&self.folder))?;
        let write = |name: &str, bytes: &[u8]| -> Result<String, CheckpointError> {
            let file = draft.path().join(name);
            // One handle: Windows flushes none that is open for reading alone.
            File::create(&file)
                .and_then(|mut open| open.write_all(bytes).and_then(|()| open.sync_all()))
                .map_err(failed(&file))?;
            Ok(sha256(bytes))
        };
        // `valid` folds in updates of BatchNorm's statistics that a record would not see yet.
        let weights = model.valid().into_record().into_bytes().map_err(refused(&path))?;
        let momenta = optimizer.into_bytes().map_err(refused(&path))?;
        let keep = |name: &str, weights: &M| -> Result<String, CheckpointError> {
            let bytes = weights.clone().into_record().into_bytes().map_err(refused(&path))?;
            write(name, &bytes)
        };
        let state = State {
            recipe: recipe.clone(),
            identity: identity.clone(),
            progress: progress.clone(),
            model_sha256: write(MODEL, &weights)?,
            optimizer_sha256: write(OPTIMIZER, &momenta)?,
            averaged_sha256: averaged.map(|weights| keep(AVERAGED, weights)).transpose()?,
            best_sha256: best.map(|weights| keep(BEST, weights)).transpose()?,
        };
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|error| failed(&path)(io::Error::other(error)))?;
        write(STATE, &text)?;
        fs::rename(draft.path(), &path).map_err(failed(&path))?;
        let mut older = self.all()?;
        older.retain(|other| *other < path);
        older.pop();
        older.iter().try_for_each(|path| fs::remove_dir_all(path).map_err(failed(path)))
    }

    /// Reads the newest checkpoint into a model of the same network.
    pub(crate) fn load<M: Module>(
        &self,
        model: &M,
        recipe: &Recipe,
        identity: &Identity,
        optimizer: impl FnOnce(&M) -> ModuleOptimizer,
    ) -> Result<Option<Loaded<M>>, CheckpointError> {
        let Some(folder) = self.latest()? else {
            return Ok(None);
        };
        let read = |name: &str| -> Result<Vec<u8>, CheckpointError> {
            let path = folder.join(name);
            fs::read(&path).map_err(|source| CheckpointError::Read { path, source })
        };
        let state: State = serde_json::from_slice(&read(STATE)?).map_err(|error| {
            CheckpointError::Damaged { path: folder.join(STATE), reason: error.to_string() }
        })?;
        if state.recipe != *recipe {
            return Err(CheckpointError::OtherRun { path: folder.join(STATE) });
        }
        let (then, now) = (&state.identity.data, &identity.data);
        if then != now {
            let found = match (then.samples, now.samples) {
                (then, now) if then == now => format!("{now} images too, but not the same ones"),
                (then, now) => format!("{then} images, not {now}"),
            };
            return Err(CheckpointError::OtherData { path: folder.join(STATE), found });
        }
        if let Some(reason) = state.identity.other_network(identity) {
            return Err(CheckpointError::OtherModel { path: folder.join(STATE), reason });
        }
        let verified = |name: &str, sum: &str| -> Result<Vec<u8>, CheckpointError> {
            let bytes = read(name)?;
            if sha256(&bytes) == sum {
                return Ok(bytes);
            }
            let reason = "its SHA-256 is not the one it was written with".to_owned();
            Err(CheckpointError::Damaged { path: folder.join(name), reason })
        };
        let misfit = |name: &str| {
            let path = folder.join(name);
            move |error: RecordError| CheckpointError::OtherModel {
                path,
                reason: error.to_string(),
            }
        };
        let weights = |name: &str, sum: &str, model: M| -> Result<M, CheckpointError> {
            let bytes = burn::tensor::Bytes::from_bytes_vec(verified(name, sum)?);
            let record = burn::store::ModuleRecord::from_bytes(bytes).map_err(misfit(name))?;
            model.try_load_record(record).map_err(misfit(name))
        };
        // These first: `valid` has memory of its own, the clone below shares it.
        let kept = |name: &str, sum: &Option<String>| {
            sum.as_ref().map(|sum| weights(name, sum, model.valid())).transpose()
        };
        let averaged = kept(AVERAGED, &state.averaged_sha256)?;
        let best = kept(BEST, &state.best_sha256)?;
        let model = weights(MODEL, &state.model_sha256, model.clone().train())?;
        let momenta = verified(OPTIMIZER, &state.optimizer_sha256)?;
        let optimizer = optimizer(&model)
            .from_bytes(burn::tensor::Bytes::from_bytes_vec(momenta))
            .map_err(misfit(OPTIMIZER))?;
        Ok(Some(Loaded { model, averaged, best, optimizer, progress: state.progress }))
    }

    /// Removes all checkpoints, once their run has ended and its result is kept elsewhere.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Write`] if one cannot be removed.
    pub fn clear(&self) -> Result<(), CheckpointError> {
        self.all()?.into_iter().try_for_each(|path| {
            fs::remove_dir_all(&path).map_err(|source| CheckpointError::Write { path, source })
        })
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
