//! All families behind one configuration and one module.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sat_core::{ActivationConfig, Gradient};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::cost::{Cost, Tally};
use crate::efficientnet::{EfficientNet, EfficientNetConfig};
use crate::init::{Family, Initialization, LayerBuilder};
use crate::preact_resnet::{PreActResNet, PreActResNetConfig};
use crate::registry::{ModelName, UnknownModel};
use crate::resnet::{ResNet, ResNetConfig};
use crate::weights::{StateDict, WeightsError, load_weights};

/// A network of any family as data: what [`ModelName::config`] gives and weights files carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NetworkConfig {
    /// ResNet and ResNeXt.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
    /// PreActResNet and WideResNet.
    #[serde(rename = "preact_resnet")]
    PreActResNet(PreActResNetConfig),
    /// EfficientNet.
    #[serde(rename = "efficientnet")]
    EfficientNet(EfficientNetConfig),
}

/// Does the same to the configuration, or the network, of every family.
macro_rules! each {
    ($enum:ident, $value:expr, $inner:ident => $do:expr) => {
        match $value {
            $enum::ResNet($inner) => $do,
            $enum::PreActResNet($inner) => $do,
            $enum::EfficientNet($inner) => $do,
        }
    };
}

impl NetworkConfig {
    /// Sets the activation of every site.
    pub fn with_activation(self, activation: ActivationConfig) -> Self {
        each!(Self, self, config => config.with_activation(activation).into())
    }

    /// Sets the number of classes.
    pub fn with_classes(self, classes: usize) -> Self {
        each!(Self, self, config => config.with_classes(classes).into())
    }

    /// Sets the number of channels of the input image.
    pub fn with_input_channels(self, channels: usize) -> Self {
        each!(Self, self, config => config.with_input_channels(channels).into())
    }

    /// Sets how the weights are drawn.
    pub fn with_initialization(self, initialization: Initialization) -> Self {
        each!(Self, self, config => config.with_initialization(initialization).into())
    }

    /// The activation of every site.
    pub fn activation(&self) -> &ActivationConfig {
        each!(Self, self, config => &config.activation)
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        each!(Self, self, config => config.classes)
    }

    /// The number of channels of the input image.
    pub fn input_channels(&self) -> usize {
        each!(Self, self, config => config.input_channels)
    }

    /// Checks every field. Call it on a configuration that comes from outside the program.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first bad field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        each!(Self, self, config => config.validate())
    }

    /// Builds the network on `device` with weights drawn from `seed`.
    ///
    /// The same configuration and seed give bit-identical weights, whatever the backend and
    /// whatever else the program draws.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn init(&self, seed: u64, device: &Device) -> Model {
        each!(Self, self, config => config.init(seed, device).into())
    }

    /// Builds the network on `device` with the weights at `path`, which [`load_weights`] reads, without
    /// drawing any first. The stream of dropout and stochastic depth is that of seed 0.
    ///
    /// # Errors
    ///
    /// Any [`WeightsError`] about reading.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn load(&self, path: impl AsRef<Path>, device: &Device) -> Result<Model, WeightsError> {
        load_weights(self.without_values(device), path)
    }

    /// Parameters, multiplications and kept activations for one image of this height and width, counted
    /// from the layers. No weight is allocated and nothing runs; `device` only names where the network
    /// would be.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn cost(&self, size: [usize; 2], device: &Device) -> Cost {
        let model = self.without_values(device);
        let mut tally = Tally::default();
        each!(Model, &model, network => network.tally(&mut tally, size));
        let parameters = model.parameter_count() as u64;
        Cost { parameters, macs: tally.macs, activations: tally.activations }
    }

    fn without_values(&self, device: &Device) -> Model {
        let family = match self {
            Self::ResNet(_) | Self::PreActResNet(_) => Family::Residual,
            Self::EfficientNet(_) => Family::Efficient,
        };
        let layers = LayerBuilder::without_values(family, device);
        each!(Self, self, config => config.build(layers).into())
    }
}

/// A network of any family. Made by [`NetworkConfig::init`].
///
/// On a device with autodiff, BatchNorm uses the statistics of the batch and updates its running
/// ones. `model.valid()` gives the network for attacks and evaluation: constant weights, running
/// statistics, and its own copy of them. A `clone()` shares the running statistics.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one network, not many
pub enum Model {
    /// ResNet and ResNeXt.
    ResNet(ResNet),
    /// PreActResNet and WideResNet.
    PreActResNet(PreActResNet),
    /// EfficientNet.
    EfficientNet(EfficientNet),
}

impl Model {
    /// Builds the network of that name, as [`ModelName::config`] describes it, with weights drawn from
    /// `seed`.
    ///
    /// # Errors
    ///
    /// [`UnknownModel`] lists the names.
    pub fn from_name(name: &str, seed: u64, device: &Device) -> Result<Self, UnknownModel> {
        Ok(name.parse::<ModelName>()?.config().init(seed, device))
    }

    /// Logits of a batch of images.
    ///
    /// # Shapes
    ///
    /// - `images`: `[batch, input_channels, height, width]`; any height and width of at least 1.
    /// - output: `[batch, classes]`
    ///
    /// # Panics
    ///
    /// If the images do not have `input_channels` channels or are on another device.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        each!(Self, self, model => model.forward(images))
    }

    /// The output of each stage, `[batch, channels, height, width]`, from the first stage to the last.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        each!(Self, self, model => model.features(images))
    }

    /// The same weights with another activation at every site; learnable parameters start anew.
    ///
    /// # Panics
    ///
    /// If [`ActivationConfig::validate`] refuses the activation.
    pub fn with_activation(self, activation: &ActivationConfig) -> Self {
        each!(Self, self, model => model.with_activation(activation).into())
    }

    /// Sets the gradient curve of every activation and leaves their values as they are: the probe of
    /// gradient quality in Xie et al. 2020.
    ///
    /// # Panics
    ///
    /// If a parameter of the curve is not finite and positive.
    pub fn with_gradient(self, gradient: Gradient) -> Self {
        each!(Self, self, model => model.with_gradient(gradient).into())
    }

    /// Starts the stream of dropout and stochastic depth anew, in a network that has them; see
    /// [`EfficientNet::reseed`].
    pub fn reseed(&self, seed: u64) {
        match self {
            Self::ResNet(_) | Self::PreActResNet(_) => {}
            Self::EfficientNet(model) => model.reseed(seed),
        }
    }
}

#[cfg(feature = "attack")]
impl sat_attack::Classifier for Model {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }

    fn reseed(&self, seed: u64) {
        self.reseed(seed);
    }
}

/// The names of the network inside, as if there were no enum around it.
impl StateDict for Model {
    fn state_key(&self, path: &str) -> String {
        let path = path.split_once('.').map_or(path, |(_variant, rest)| rest);
        each!(Self, self, model => model.state_key(path))
    }

    fn aliases(&self) -> Vec<(String, String)> {
        each!(Self, self, model => model.aliases())
    }

    fn is_unused(&self, key: &str) -> bool {
        each!(Self, self, model => model.is_unused(key))
    }
}

macro_rules! from_family {
    ($($variant:ident, $config:ident, $model:ident;)*) => {$(
        impl From<$config> for NetworkConfig {
            fn from(config: $config) -> Self {
                Self::$variant(config)
            }
        }

        impl From<$model> for Model {
            fn from(model: $model) -> Self {
                Self::$variant(model)
            }
        }
    )*};
}

from_family! {
    ResNet, ResNetConfig, ResNet;
    PreActResNet, PreActResNetConfig, PreActResNet;
    EfficientNet, EfficientNetConfig, EfficientNet;
}
