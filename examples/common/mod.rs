//! What the examples share: the allocator, parsing of eps, a progress bar and pictures.

// Each example uses a part of it.
#![allow(dead_code, unused_imports)]

use sat::train::{Objective, Recipe, Select};
use std::process::ExitCode;

pub(crate) use sat::train::parse_eps as eps;

pub(crate) mod canvas;
pub(crate) mod grid;
pub(crate) mod output;
pub(crate) mod pages;
pub(crate) mod plot;
pub(crate) mod progress;
pub(crate) mod recorded;
pub(crate) mod sets;
pub(crate) mod spread;
pub(crate) mod stop;
pub(crate) mod surface;

/// Keeps the pages of freed tensors: with the system's allocator, every large tensor pays for fresh
/// pages again, which costs more than the arithmetic on it.
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// An eps in grey levels, most likely.
#[derive(Debug, thiserror::Error)]
#[error("an eps of {0} covers every image in [0, 1]; did you mean {0}/255?")]
pub(crate) struct EpsUnit(f64);

/// The size of an attack in Linf on images in [0, 1], or what is wrong with it.
pub(crate) fn linf_eps(eps: f64) -> Result<f64, EpsUnit> {
    if eps < 1.0 { Ok(eps) } else { Err(EpsUnit(eps)) }
}

/// `--eps` or `--step-size` where there is no attack that has them.
#[derive(Debug, thiserror::Error)]
#[error("the recipe has no [attack], which --eps, --attack-steps and --step-size change")]
pub(crate) struct NoAttack;

/// Puts the values of a command line in place of those of the recipe's attack. A step size stands for
/// one eps and number of steps: with others it is given, or follows from them. 0 steps train on all images,
/// as they are, by their cross-entropy.
pub(crate) fn replace_attack(
    recipe: &mut Recipe,
    eps: Option<f64>,
    steps: Option<usize>,
    step_size: Option<f64>,
) -> Result<(), NoAttack> {
    if steps == Some(0) {
        recipe.attack = None;
        // What needs one.
        recipe.objective = Objective::Adversarial;
        (recipe.hold_out, recipe.select) = (0, Select::Last);
    } else if eps.is_some() || steps.is_some() || step_size.is_some() {
        let attack = recipe.attack.as_mut().ok_or(NoAttack)?;
        attack.eps = eps.unwrap_or(attack.eps);
        attack.steps = steps.unwrap_or(attack.steps);
        attack.step_size = step_size;
    }
    Ok(())
}
