//! What the examples share: the allocator, parsing of eps, a progress bar and pictures.

// Each example uses a part of it.
#![allow(dead_code, unused_imports)]

use std::process::ExitCode;

pub(crate) use sat::train::parse_eps as eps;

pub(crate) mod canvas;
pub(crate) mod grid;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod plot;
pub(crate) mod progress;
pub(crate) mod sets;
pub(crate) mod stop;

/// Keeps the pages of freed tensors: with the system's allocator, every large tensor pays for fresh
/// pages again, which costs more than the arithmetic on it.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
