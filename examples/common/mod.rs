//! What the examples share: the allocator, parsing of eps, a progress bar and pictures.

// Each example uses a part of it.
#![allow(dead_code, unused_imports)]

use sat::models::read_metadata;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

pub(crate) use sat::train::parse_eps as eps;

pub(crate) mod canvas;
pub(crate) mod grid;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod plot;
pub(crate) mod progress;
pub(crate) mod sets;
pub(crate) mod spread;
pub(crate) mod stop;
pub(crate) mod surface;

/// Keeps the pages of freed tensors: with the system's allocator, every large tensor pays for fresh
/// pages again, which costs more than the arithmetic on it.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Metadata of a weights file that says nothing usable.
#[derive(Debug, thiserror::Error)]
#[error("{}: metadata `{key}` is no list of numbers; give --mean and --std", path.display())]
pub(crate) struct BadMetadata {
    path: PathBuf,
    key: &'static str,
}

/// Mean and standard deviation of each channel.
pub(crate) type Statistics = (Vec<f64>, Vec<f64>);

/// The normalisation that a weights file asks for, if it does.
pub(crate) fn recorded_normalization(
    path: &Path,
) -> Result<Option<Statistics>, Box<dyn std::error::Error>> {
    let metadata = read_metadata(path)?;
    if !metadata.contains_key(MEAN) && !metadata.contains_key(STD) {
        return Ok(None);
    }
    let numbers = |key: &'static str| -> Result<Vec<f64>, BadMetadata> {
        let text = metadata.get(key);
        text.and_then(|text| text.split(',').map(|number| number.parse().ok()).collect())
            .ok_or_else(|| BadMetadata { path: path.to_owned(), key })
    };
    Ok(Some((numbers(MEAN)?, numbers(STD)?)))
}

/// A name without the characters that file systems dislike.
pub(crate) fn file_name(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.', "_")
}

/// Says what went wrong, if anything, and how the process ends.
pub(crate) fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The metadata keys, in a weights file, of the normalisation that the network expects.
pub(crate) const MEAN: &str = "sat.mean";
pub(crate) const STD: &str = "sat.std";

/// Metadata of a normalisation: one number a channel, with commas between.
pub(crate) fn normalization_metadata((mean, std): (&[f32], &[f32])) -> [(String, String); 2] {
    let text = |values: &[f32]| {
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        values.join(",")
    };
    [(MEAN.to_owned(), text(mean)), (STD.to_owned(), text(std))]
}
