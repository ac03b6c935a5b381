//! Residual networks of basic blocks, for small images.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};
use sat_core::{
    ActivationConfig, ActivationError, BatchNormAct, Conv2d, Gradient, SharedParameters,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::init::{Initialization, LayerBuilder};
use crate::weights::StateDict;

/// The first convolution (3×3, padding 1) and the BatchNorm and activation after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StemConfig {
    /// Output channels, at least 1.
    pub channels: usize,
    /// Stride of the convolution, at least 1: 1 keeps the image size, 2 halves it.
    pub stride: usize,
}

/// A run of basic blocks with the same number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Output channels of every block, at least 1.
    pub channels: usize,
    /// Number of blocks, at least 1.
    pub blocks: usize,
    /// Stride of the first block, at least 1. The others have stride 1.
    pub stride: usize,
}

/// A residual network as data (He et al. 2015, arXiv 1512.03385).
///
/// Stem – stages of basic blocks – global average pooling – linear classifier. The constructors
/// give the usual networks; set the fields for any other size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels of the input image: 3 for RGB, 1 for grey.
    pub input_channels: usize,
    /// Number of classes, the width of the output.
    pub classes: usize,
    /// The layers before the first stage.
    pub stem: StemConfig,
    /// The stages, in order; at least one.
    pub stages: Vec<StageConfig>,
    /// The activation at every site. Each site owns its learnable parameter, if it has one.
    #[serde(default)]
    pub activation: ActivationConfig,
    /// How the weights are drawn.
    #[serde(default)]
    pub initialization: Initialization,
}

/// A field of a [`ResNetConfig`] that no network can have.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A size that must be at least 1 is 0.
    #[error("ResNetConfig: `{field}` is 0; it must be at least 1")]
    Zero {
        /// The field, such as `stages[1].stride`.
        field: String,
    },
    /// The activation has a parameter out of its range.
    #[error("ResNetConfig: `activation`: {0}")]
    Activation(#[from] ActivationError),
    /// The list of stages is empty.
    #[error("ResNetConfig: `stages` is empty; give at least one stage")]
    NoStages,
}

impl ResNetConfig {
    /// ResNet-20 for CIFAR: 3 blocks a stage; 272,474 parameters with 10 classes.
    pub fn resnet20() -> Self {
        Self::cifar(3)
    }

    /// ResNet-32 for CIFAR: 5 blocks a stage.
    pub fn resnet32() -> Self {
        Self::cifar(5)
    }

    /// ResNet-44 for CIFAR: 7 blocks a stage.
    pub fn resnet44() -> Self {
        Self::cifar(7)
    }

    /// ResNet-56 for CIFAR: 9 blocks a stage.
    pub fn resnet56() -> Self {
        Self::cifar(9)
    }

    /// ResNet-110 for CIFAR: 18 blocks a stage.
    pub fn resnet110() -> Self {
        Self::cifar(18)
    }

    /// torchvision's ResNet-18 with a 3×3 stem of stride 1 and no max-pooling, the usual network of
    /// adversarial training on CIFAR: 11,173,962 parameters with 10 classes.
    pub fn resnet18_cifar() -> Self {
        let stage = |channels, stride| StageConfig { channels, blocks: 2, stride };
        Self::rgb(64, vec![stage(64, 1), stage(128, 2), stage(256, 2), stage(512, 2)])
    }

    /// The CIFAR networks of He et al., section 4.2: 6n + 2 layers in three stages of n blocks with
    /// 16, 32 and 64 channels, and projection shortcuts (option B) where the shape changes.
    fn cifar(blocks: usize) -> Self {
        let stage = |channels, stride| StageConfig { channels, blocks, stride };
        Self::rgb(16, vec![stage(16, 1), stage(32, 2), stage(64, 2)])
    }

    fn rgb(stem: usize, stages: Vec<StageConfig>) -> Self {
        Self {
            input_channels: 3,
            classes: 10,
            stem: StemConfig { channels: stem, stride: 1 },
            stages,
            activation: ActivationConfig::default(),
            initialization: Initialization::default(),
        }
    }

    /// Sets the activation of every site.
    pub fn with_activation(mut self, activation: ActivationConfig) -> Self {
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
    pub fn with_initialization(mut self, initialization: Initialization) -> Self {
        self.initialization = initialization;
        self
    }

    /// Checks that every size is at least 1, that there is a stage, and the activation. Call it on a configuration
    /// that comes from outside the program.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first bad field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = |field: String, value: usize| match value {
            0 => Err(ConfigError::Zero { field }),
            _ => Ok(()),
        };
        positive("input_channels".into(), self.input_channels)?;
        positive("classes".into(), self.classes)?;
        positive("stem.channels".into(), self.stem.channels)?;
        positive("stem.stride".into(), self.stem.stride)?;
        for (i, stage) in self.stages.iter().enumerate() {
            positive(format!("stages[{i}].channels"), stage.channels)?;
            positive(format!("stages[{i}].blocks"), stage.blocks)?;
            positive(format!("stages[{i}].stride"), stage.stride)?;
        }
        if self.stages.is_empty() {
            return Err(ConfigError::NoStages);
        }
        Ok(self.activation.validate()?)
    }

    /// Builds the network on `device` with weights drawn from `seed`.
    ///
    /// The same configuration and seed give bit-identical weights, whatever the backend and
    /// whatever else the program draws. The activation does not change the other weights.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn init(&self, seed: u64, device: &Device) -> ResNet {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let mut layers = LayerBuilder::new(self.initialization, seed, device);
        let conv1 = layers.conv([self.input_channels, self.stem.channels], 3, self.stem.stride);
        let bn1 = layers.norm(self.stem.channels, &self.activation);
        let mut channels = self.stem.channels;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let mut blocks = Vec::with_capacity(stage.blocks);
            for i in 0..stage.blocks {
                let stride = if i == 0 { stage.stride } else { 1 };
                let shape = [channels, stage.channels];
                blocks.push(BasicBlock::new(shape, stride, &self.activation, &mut layers));
                channels = stage.channels;
            }
            stages.push(blocks);
        }
        let fc = layers.linear(channels, self.classes);
        let shared = self.activation.init_shared(device);
        ResNet { conv1, bn1, stages, fc, shared }
    }
}

/// conv1 – bn1 with its activation – conv2 – bn2 with the sum of the shortcut and its activation.
///
/// The shortcut is the identity, or a strided 1×1 convolution and BatchNorm (`downsample`, as in
/// torchvision) where the shape changes.
#[derive(Module, Debug)]
struct BasicBlock {
    conv1: Conv2d,
    bn1: BatchNormAct,
    conv2: Conv2d,
    bn2: BatchNormAct,
    downsample: Option<(Conv2d, BatchNormAct)>,
}

impl BasicBlock {
    fn new(
        [c_in, c_out]: [usize; 2],
        stride: usize,
        activation: &ActivationConfig,
        layers: &mut LayerBuilder<'_>,
    ) -> Self {
        let reshapes = stride != 1 || c_in != c_out;
        Self {
            conv1: layers.conv([c_in, c_out], 3, stride),
            bn1: layers.norm(c_out, activation),
            conv2: layers.conv([c_out, c_out], 3, 1),
            bn2: layers.last_norm(c_out, activation),
            downsample: reshapes
                .then(|| (layers.conv([c_in, c_out], 1, stride), layers.shortcut_norm(c_out))),
        }
    }

    fn forward(&self, x: Tensor<4>, shared: Option<&SharedParameters>) -> Tensor<4> {
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.forward(conv.forward(x.clone())),
            None => x.clone(),
        };
        let x = self.bn1.forward_shared(self.conv1.forward(x), None, shared);
        self.bn2.forward_shared(self.conv2.forward(x), Some(shortcut), shared)
    }

    fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.bn1 = self.bn1.with_gradient(gradient);
        self.bn2 = self.bn2.with_gradient(gradient);
        self
    }
}

/// A residual network. Made by [`ResNetConfig::init`].
///
/// On a device with autodiff, BatchNorm uses the statistics of the batch and updates its running
/// ones. `model.valid()` gives the network for attacks and evaluation: constant weights, running
/// statistics, and its own copy of them. A `clone()` shares the running statistics.
#[derive(Module, Debug)]
pub struct ResNet {
    conv1: Conv2d,
    bn1: BatchNormAct,
    stages: Vec<Vec<BasicBlock>>,
    fc: Linear,
    shared: Option<SharedParameters>,
}

impl ResNet {
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
        let shared = self.shared.as_ref();
        let x = self.bn1.forward_shared(self.conv1.forward(images), None, shared);
        let x = self.stages.iter().flatten().fold(x, |x, block| block.forward(x, shared));
        let pooled: Tensor<2> = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2);
        self.fc.forward(pooled)
    }

    /// Sets the gradient curve of every activation and leaves their values as they are: the probe of
    /// gradient quality in Xie et al. 2020.
    ///
    /// # Panics
    ///
    /// If a parameter of the curve is not finite and positive.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.bn1 = self.bn1.with_gradient(gradient);
        self.stages = self
            .stages
            .into_iter()
            .map(|stage| stage.into_iter().map(|block| block.with_gradient(gradient)).collect())
            .collect();
        self
    }
}

#[cfg(feature = "attack")]
impl sat_attack::Classifier for ResNet {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }
}

impl StateDict for ResNet {
    /// torchvision counts its stages from `layer1`. The activation behind `bn1` is named `act1`, as if
    /// it stood beside it.
    fn state_key(path: &str) -> String {
        let staged = path.strip_prefix("stages.").and_then(|rest| rest.split_once('.'));
        let path = match staged.and_then(|(stage, rest)| Some((stage.parse::<usize>().ok()?, rest)))
        {
            Some((stage, rest)) => format!("layer{}.{rest}", stage + 1),
            None => path.to_owned(),
        };
        path.replace("bn1.activation.", "act1.").replace("bn2.activation.", "act2.")
    }
}
