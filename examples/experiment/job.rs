//! One training with one seed, and its tests. What is finished is kept and not done again.

use crate::{
    Failure,
    common::{
        output::write,
        progress::train_with_bar,
        recorded,
        stop::{self, Stopped},
    },
    plan::Setting,
};
use burn::{module::Module, tensor::Device};
use sat::{
    attack::{Attack, AutoAttack, Evaluation, FewClasses, Flag, Pgd, Report, Victim, evaluate},
    core::{Gradient, replace_gradients},
    models::{Model, load_safetensors, save_safetensors},
    train::{Checkpoints, HeldOut, LearnedParameters, Normalized, Start, data::ImageSet},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const TEST_BATCH: usize = 250;
/// Smaller: a state is kept after each.
const ATTACK_BATCH: usize = 50;

/// A row of the plan with one seed.
pub(crate) struct Job<'a> {
    pub(crate) row: &'a str,
    pub(crate) setting: Setting,
    pub(crate) folder: PathBuf,
    pub(crate) train_set: &'a ImageSet,
    pub(crate) test_set: &'a ImageSet,
    pub(crate) device: &'a Device,
}

/// A training and its test under PGD.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) setting: Setting,
    pub(crate) train_seconds: f64,
    /// The images that were held out, by the weights that are tested.
    pub(crate) held_out: Option<HeldOut>,
    /// The epochs after which the watch of the held-out images saw catastrophic overfitting.
    pub(crate) overfitted: Vec<usize>,
    pub(crate) learned: Vec<LearnedParameters>,
    /// Whether each test image is recognised.
    pub(crate) clean: Marks,
    /// Whether it withstands PGD too, under every gradient.
    pub(crate) robust: Marks,
}

/// The test under AutoAttack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Worst {
    setting: Setting,
    pub(crate) images: usize,
    /// Whether each of the first test images withstands AutoAttack and PGD.
    pub(crate) robust: Marks,
    pub(crate) seconds: f64,
    pub(crate) flags: Vec<Flag>,
}

/// Yes or no for each image, as a text of `1` and `0`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Marks(String);

impl Worst {
    pub(crate) fn seed(&self) -> u64 {
        self.setting.recipe.seed
    }
}

impl Marks {
    fn new(marks: impl Iterator<Item = bool>) -> Self {
        Self(marks.map(|mark| if mark { '1' } else { '0' }).collect())
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = bool> {
        self.0.bytes().map(|mark| mark == b'1')
    }

    /// The share of yes.
    pub(crate) fn mean(&self) -> f64 {
        self.iter().filter(|mark| *mark).count() as f64 / self.iter().len().max(1) as f64
    }

    fn and(&self, other: &Self) -> Self {
        Self::new(self.iter().zip(other.iter()).map(|(a, b)| a && b))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error("{} is of a run with other settings; choose another --out, or remove it", .0.display())]
    OtherSettings(PathBuf),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {source}; delete it to do it again", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// A file that an earlier run may have left.
fn finished<T: DeserializeOwned>(
    path: &Path,
    setting: &Setting,
    setting_of: impl Fn(&T) -> &Setting,
) -> Result<Option<T>, JobError> {
    let bytes = match fs::read(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| JobError::Read { path: path.to_owned(), source })?,
    };
    let result: T = serde_json::from_slice(&bytes)
        .map_err(|source| JobError::Damaged { path: path.to_owned(), source })?;
    if setting_of(&result) == setting {
        Ok(Some(result))
    } else {
        Err(JobError::OtherSettings(path.to_owned()))
    }
}

impl Job<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The outcome, if there is one.
    pub(crate) fn outcome(&self) -> Result<Option<Outcome>, JobError> {
        finished(&self.file("outcome.json"), &self.setting, |outcome: &Outcome| &outcome.setting)
    }

    /// The outcome under AutoAttack, if there is one.
    pub(crate) fn worst(&self, images: usize) -> Result<Option<Worst>, JobError> {
        let path = self.file("autoattack.json");
        let worst = finished(&path, &self.setting, |worst: &Worst| &worst.setting)?;
        match worst {
            Some(worst) if worst.images != images => Err(JobError::OtherSettings(path)),
            worst => Ok(worst),
        }
    }

    /// Trains and tests under PGD.
    pub(crate) fn train(&self) -> Result<(), Failure> {
        let (network, recipe) = (&self.setting.network, &self.setting.recipe);
        let device = self.device.clone().autodiff();
        let channels = self.train_set.channels();
        let model = network.init(recipe.seed, &device);
        let model = Normalized::to_plus_minus_one(model, channels);
        let checkpoints = Checkpoints::open(self.file("checkpoints"))?;
        let place = Some((&checkpoints, Start::ResumeOrFresh));
        let trained = train_with_bar(model, recipe, self.train_set, &device, place)?;
        let model = trained.result();
        let metadata = recorded::metadata(network, model.statistics(), None);
        save_safetensors(&model.model, self.file("model.safetensors"), &metadata)?;

        // The test is of the network itself, whatever gradient it was trained with.
        let under = |gradient| {
            let victim = Victim::new(&replace_gradients(model.clone(), gradient));
            let attack = Pgd::default().steps(self.setting.pgd_steps).stop_when_fooled();
            self.under(&victim, &attack, self.test_set)
        };
        let own = under(Gradient::Own)?;
        let records = own.per_sample.iter();
        let clean = Marks::new(records.map(|sample| sample.clean_prediction == sample.label));
        let mut robust = withstands(&own);
        for attacker in &self.setting.attackers {
            robust = robust.and(&withstands(&under(*attacker)?));
        }
        let (history, result) = (&trained.progress.history, trained.result_epoch());
        let watched = |epoch: &sat::train::EpochSummary| {
            epoch.held_out.is_some_and(|held_out| held_out.is_catastrophic_overfitting())
        };
        let outcome = Outcome {
            setting: self.setting.clone(),
            train_seconds: trained.progress.seconds,
            held_out: result.and_then(|epoch| epoch.held_out),
            overfitted: history.iter().filter(|e| watched(e)).map(|epoch| epoch.epoch).collect(),
            learned: result.map(|epoch| epoch.learned.clone()).unwrap_or_default(),
            clean,
            robust,
        };
        eprintln!(
            "test: clean {:.1} %, PGD-{} {:.1} %",
            100.0 * outcome.clean.mean(),
            self.setting.pgd_steps,
            100.0 * outcome.robust.mean()
        );
        write(&self.file("outcome.json"), &serde_json::to_vec_pretty(&outcome)?)?;
        checkpoints.clear()?;
        Ok(())
    }

    /// Tests the trained network on the first images under AutoAttack.
    pub(crate) fn attack(&self, outcome: &Outcome, images: usize) -> Result<(), Failure> {
        let model: Model = self.setting.network.init(0, self.device);
        let model = load_safetensors(model, self.file("model.safetensors"))?;
        let model = Normalized::to_plus_minus_one(model, self.test_set.channels()).valid();
        let victim = Victim::new(&replace_gradients(model, Gradient::Own));
        let attack = AutoAttack::standard().few_classes(FewClasses::Margin);
        let set = self.test_set.clone().take(images);
        let threat = &self.setting.threat;
        let name = format!("{} seed {}", self.row, self.setting.recipe.seed);
        let batches = set.batches(ATTACK_BATCH).map(|rows| set.batch(&rows, self.device));
        let state = self.file("autoattack.state");
        let report = Evaluation::new(&victim, &attack, threat)
            .model(name)
            .resume_from(&state)
            .run(batches, |_| stop::requested())?;
        if report.n < set.len() {
            return Err(Stopped.into());
        }
        let robust = withstands(&report);
        let worst = Worst {
            setting: self.setting.clone(),
            images,
            robust: robust.and(&outcome.robust),
            seconds: report.cost.seconds,
            flags: report.flags,
        };
        eprintln!("AutoAttack: {:.1} %", 100.0 * worst.robust.mean());
        write(&self.file("autoattack.json"), &serde_json::to_vec_pretty(&worst)?)?;
        // Of no use any more; one that stays does no harm.
        let _ = fs::remove_file(state);
        Ok(())
    }

    fn under(
        &self,
        victim: &Victim<'_>,
        attack: &dyn Attack,
        images: &ImageSet,
    ) -> Result<Report, Failure> {
        let batches = images.batches(TEST_BATCH).map(|rows| images.batch(&rows, self.device));
        let report =
            evaluate(victim, attack, batches, &self.setting.threat, |_| stop::requested())?;
        if report.n == images.len() { Ok(report) } else { Err(Stopped.into()) }
    }
}

/// Whether each image withstands the attack.
fn withstands(report: &Report) -> Marks {
    Marks::new(report.per_sample.iter().map(|sample| sample.robust))
}
