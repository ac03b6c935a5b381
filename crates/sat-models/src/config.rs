//! What the configurations of all families share.

use sat_core::ActivationError;
use thiserror::Error;

/// The largest size a configuration may ask for, far above any network that fits a machine and low
/// enough that no product of two sizes overflows.
const LARGEST: usize = 1 << 20;

/// The setters of the fields that every family's configuration has.
macro_rules! common_setters {
    ($of_activation:literal) => {
        #[doc = $of_activation]
        pub fn with_activation(mut self, activation: sat_core::ActivationConfig) -> Self {
            self.activation = activation;
            self
        }

        /// Sets the number of classes.
        pub fn with_classes(mut self, classes: usize) -> Self {
            self.classes = classes;
            self
        }

        /// Sets the number of channels of the input image.
        pub fn with_input_channels(mut self, channels: usize) -> Self {
            self.input_channels = channels;
            self
        }

        /// Sets how the weights are drawn.
        pub fn with_initialization(mut self, scheme: $crate::Initialization) -> Self {
            self.initialization = scheme;
            self
        }
    };
}
pub(crate) use common_setters;

/// A field of a network's configuration that no network can have.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size that must be at least 1 is 0.
    #[error("network configuration: `{field}` is 0; it must be at least 1")]
    Zero {
        /// The field, such as `stages[1].stride`.
        field: String,
    },
    /// A size is beyond any network.
    #[error("network configuration: `{field}` is {value}; it must be at most {LARGEST}")]
    TooLarge {
        /// The field.
        field: String,
        /// Its value.
        value: usize,
    },
    /// A kernel's size is even: nothing pads it equally on both sides.
    #[error("network configuration: `{field}` is {value}; a kernel's size must be odd")]
    EvenKernel {
        /// The field.
        field: String,
        /// Its value.
        value: usize,
    },
    /// A number is outside its range.
    #[error("network configuration: `{field}` is {value}; it must be {range}")]
    Range {
        /// The field.
        field: String,
        /// Its value.
        value: f64,
        /// Where it may lie, in words.
        range: &'static str,
    },
    /// A field does not have one number for each channel of the images.
    #[error("network configuration: `{field}` has {values} numbers for {channels} input channels")]
    Channels {
        /// The field.
        field: String,
        /// How many numbers it has.
        values: usize,
        /// The number of channels.
        channels: usize,
    },
    /// The activation has a parameter out of its range.
    #[error("network configuration: `activation`: {0}")]
    Activation(#[from] ActivationError),
    /// The list of stages is empty.
    #[error("network configuration: `stages` is empty; give at least one stage")]
    NoStages,
}

pub(crate) fn check_size(field: impl Into<String>, value: usize) -> Result<(), ConfigError> {
    match value {
        0 => Err(ConfigError::Zero { field: field.into() }),
        1..=LARGEST => Ok(()),
        _ => Err(ConfigError::TooLarge { field: field.into(), value }),
    }
}

pub(crate) fn check_range(
    field: &str,
    value: f64,
    range: &'static str,
    is_inside: impl Fn(f64) -> bool,
) -> Result<(), ConfigError> {
    match is_inside(value) {
        true => Ok(()),
        false => Err(ConfigError::Range { field: field.to_owned(), value, range }),
    }
}
