use crate::curve::Curve;

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
    /// The activation has no parameter.
    #[error("activation `{activation}` takes no parameter, but `{text}` gives one")]
    UnexpectedParameter {
        /// The activation's name.
        activation: &'static str,
        /// The text that was given.
        text: String,
    },
    /// The parameter is not a number.
    #[error(
        "`{text}` is not a number; activation `{activation}` takes one, as in `{activation}:2`"
    )]
    NotANumber {
        /// The activation's name.
        activation: &'static str,
        /// The text that was given.
        text: String,
    },
    /// The parameter is not in its range.
    #[error(
        "the parameter of activation `{activation}` is {value:e}; it must be between {:e} and {:e}",
        Curve::PARAMETERS.start(), Curve::PARAMETERS.end()
    )]
    Parameter {
        /// The activation's name.
        activation: &'static str,
        /// The value that was given.
        value: f64,
    },
    /// A learnable activation was named as a gradient curve.
    #[error("`{name}` cannot be the gradient of another activation: only a fixed curve can")]
    LearnableGradient {
        /// The name that was given.
        name: String,
    },
}

fn known() -> String {
    let mut names: Vec<_> = Curve::ALL.iter().map(|curve| curve.name()).collect();
    names.push(crate::activation::SMOOTH_RELU_LEARNABLE);
    names.join(", ")
}
