//! Files of an evaluation: its state, and adversarial images.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AttackError, Goal, Pixels, Report, ThreatModel, Victim};

/// Changes whenever an older state can no longer be continued.
const VERSION: u32 = 2;

/// How far logits of the same model may differ from run to run, relative to their size.
const LOGIT_TOLERANCE: f32 = 1e-3;

/// What a stopped evaluation needs to go on.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    model: String,
    attack: Value,
    threat: ThreatModel,
    /// How adversarial images are kept; `None` if they are not.
    pixels: Option<Pixels>,
    /// Of the images and labels done.
    pub(crate) images: Checksum,
    /// Of the first image; `None` if the model does not repeat them.
    logits: Option<Vec<f32>>,
    pub(crate) report: Report,
}

impl State {
    pub(crate) fn new(
        model: &str,
        attack: Value,
        threat: ThreatModel,
        pixels: Option<Pixels>,
    ) -> Self {
        Self {
            version: VERSION,
            model: model.to_owned(),
            attack,
            threat,
            pixels,
            images: Checksum::new(),
            logits: None,
            report: Report::default(),
        }
    }

    /// The state in a file, or `None` if there is no file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, AttackError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(file_error("read", path, source)),
        };
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| {
            AttackError::StateFormat { path: path.to_owned(), reason: error.to_string() }
        })?;
        if state.report.n != state.report.per_sample.len() {
            let reason = "its counts do not fit its records".to_owned();
            return Err(AttackError::StateFormat { path: path.to_owned(), reason });
        }
        Ok(Some(state))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), AttackError> {
        let bytes = serde_json::to_vec(self).map_err(|error| AttackError::StateFormat {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        write(path, &bytes)
    }

    /// Refuses the state of another evaluation.
    pub(crate) fn same_run(&self, new: &Self, path: &Path) -> Result<(), AttackError> {
        let what = if self.version != new.version {
            "version"
        } else if self.model != new.model {
            "model"
        } else if self.attack != new.attack {
            "attack"
        } else if self.threat != new.threat {
            "threat"
        } else if self.pixels != new.pixels {
            "way of keeping images"
        } else {
            return Ok(());
        };
        Err(AttackError::StateOfAnother { path: path.to_owned(), what })
    }

    /// Compares the logits of the first image, or keeps them if there are none yet.
    pub(crate) fn check_logits(
        &mut self,
        victim: &Victim<'_>,
        images: &Tensor<4>,
        path: &Path,
    ) -> Result<(), AttackError> {
        let first = images.clone().narrow(0, 0, 1);
        let ask = || -> Result<Vec<f32>, AttackError> {
            Ok(victim.logits(first.clone())?.try_into_vec_as::<f32>()?)
        };
        let logits = ask()?;
        let near = |a: &[f32], b: &[f32]| {
            let size = a.iter().fold(1.0f32, |size, z| size.max(z.abs()));
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= LOGIT_TOLERANCE * size)
        };
        if self.report.n == 0 {
            self.logits = near(&logits, &ask()?).then_some(logits);
            return Ok(());
        }
        match &self.logits {
            Some(old) if !near(old, &logits) => {
                Err(AttackError::StateOfAnother { path: path.to_owned(), what: "model's output" })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn check_images(&self, images: Checksum, path: &Path) -> Result<(), AttackError> {
        if images == self.images {
            return Ok(());
        }
        Err(AttackError::StateOfAnother { path: path.to_owned(), what: "data set" })
    }
}

/// FNV-1a over labels and pixel bits: tells data sets apart by accident, not by malice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksum(u64);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(
        &mut self,
        images: &Tensor<4>,
        goal: &Goal,
        rows: Range<usize>,
    ) -> Result<(), AttackError> {
        if rows.is_empty() {
            return Ok(());
        }
        let part = images.clone().narrow(0, rows.start, rows.len());
        let pixels = part.try_into_vec_as::<f32>()?;
        let dimension = pixels.len() / rows.len();
        for (row, image) in rows.zip(pixels.chunks_exact(dimension.max(1))) {
            // A missing label is reported by the batch.
            self.word(goal.classes.get(row).map_or(0, |&class| class as u64));
            image.iter().for_each(|pixel| self.word(u64::from(pixel.to_bits())));
        }
        Ok(())
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// Writes beside the file, flushes, and renames: an older file survives a failure, and no reader
/// ever sees half a file.
fn write(path: &Path, bytes: &[u8]) -> Result<(), AttackError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".draft");
    let draft = PathBuf::from(name);
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // What is left of it; that it cannot be removed either would add nothing.
        let _ = fs::remove_file(&draft);
    }
    written.map_err(|source| file_error("write", path, source))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> AttackError {
    AttackError::StateFile { action, path: path.to_owned(), source }
}

/// Writes a batch of images as a NumPy array, format 1.0.
pub(crate) fn save_images(
    folder: &Path,
    first: usize,
    images: &Tensor<4>,
    pixels: Pixels,
    (lower, upper): (f64, f64),
) -> Result<(), AttackError> {
    let (kind, body) = match pixels {
        Pixels::Byte => {
            let scale = 255.0 / (upper - lower);
            let level = |v: f64| ((v - lower) * scale).round() as u8;
            ("|u1", images.try_to_vec_as::<f64>()?.into_iter().map(level).collect::<Vec<u8>>())
        }
        Pixels::Float if images.dtype() == DType::F64 => {
            let values = images.try_to_vec_as::<f64>()?;
            ("<f8", values.into_iter().flat_map(f64::to_le_bytes).collect())
        }
        Pixels::Float => {
            let values = images.try_to_vec_as::<f32>()?;
            ("<f4", values.into_iter().flat_map(f32::to_le_bytes).collect())
        }
    };
    let [n, c, h, w] = images.dims();
    let mut header =
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({n}, {c}, {h}, {w}), }}");
    // Magic, version and length take 10 bytes; the data start at a multiple of 64.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    // A few dozen characters, far below u16::MAX.
    let length = header.len() as u16;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(header.into_bytes());
    bytes.extend(body);
    let path = folder.join(format!("{first:06}.npy"));
    fs::create_dir_all(folder).map_err(|source| file_error("write", &path, source))?;
    write(&path, &bytes)
}
