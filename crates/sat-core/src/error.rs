use crate::{activation::Learnable, curve::Curve};
use core::ops::RangeInclusive;

/// Why a text or a number does not describe an activation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// No activation has this name.
    #[error("unknown activation `{name}`; known are {}", known())]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The activation has another number of parameters.
    #[error("activation `{activation}` takes {}, not what `{text}` gives", count(*.takes))]
    ParameterCount {
        /// The activation's name.
        activation: &'static str,
        /// How many parameters it takes.
        takes: usize,
        /// The text that was given.
        text: String,
    },
    /// The parameter is not a number.
    #[error("`{text}` is not a number; activation `{activation}` takes {}", example(activation))]
    NotANumber {
        /// The activation's name.
        activation: &'static str,
        /// The text that was given.
        text: String,
    },
    /// The parameter is not in its range.
    #[error(
        "a parameter of activation `{activation}` is {value:e}; it must be between {:e} and {:e}",
        .allowed.start(), .allowed.end()
    )]
    Parameter {
        /// The activation's name.
        activation: &'static str,
        /// The value that was given.
        value: f64,
        /// The values it may have.
        allowed: RangeInclusive<f64>,
    },
    /// Something else than a fixed curve was named as a gradient.
    #[error("`{name}` cannot be the gradient of another activation: only a fixed curve can")]
    NotAGradient {
        /// The name that was given.
        name: String,
    },
    /// An activation of Burn's was given another gradient.
    #[error("`{name}` runs through Burn and cannot have another gradient")]
    BurnGradient {
        /// The activation's name.
        name: String,
    },
    /// What stands behind `burn:` is not a configuration of Burn's.
    #[error("`{text}` is no activation configuration of Burn's: {reason}")]
    BurnConfig {
        /// The text that was given.
        text: String,
        /// What the reader said.
        reason: String,
    },
    /// What stands behind `@` is not how parameters can be shared.
    #[error(
        "`{text}`: parameters can be `@layer` or `@network`, and only those of {}",
        learnable()
    )]
    Sharing {
        /// The text that was given.
        text: String,
    },
}

fn known() -> String {
    let mut names: Vec<_> = Curve::ALL.iter().map(|curve| curve.name()).collect();
    names.extend(Learnable::ALL.iter().map(|learnable| learnable.name()));
    names.join(", ")
}

fn learnable() -> String {
    let names: Vec<_> = Learnable::ALL.iter().map(|learnable| learnable.name()).collect();
    names.join(", ")
}

/// How many parameters, and the usual ones.
fn example(activation: &str) -> String {
    let curves = Curve::ALL.iter().map(|curve| (curve.name(), curve.parameters()));
    let learnable = Learnable::ALL.iter().map(|learnable| (learnable.name(), learnable.start()));
    let Some((name, usual)) = curves.chain(learnable).find(|(name, _)| *name == activation) else {
        return "numbers".into();
    };
    let text: Vec<_> = usual.iter().map(f64::to_string).collect();
    format!("{}, as in `{name}:{}`", count(usual.len()), text.join(","))
}

fn count(takes: usize) -> String {
    match takes {
        0 => "no parameter".into(),
        1 => "one parameter".into(),
        more => format!("{more} parameters"),
    }
}
