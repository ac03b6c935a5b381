//! Residual networks: ResNet and ResNeXt for ImageNet, and ResNets for small images.

use burn::module::Module;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, PaddingConfig2d};
use burn::tensor::{Device, Tensor};
use sat_core::{
    ActivationConfig, BatchNormAct, Gradient, SharedParameters, channel_means, replace_activations,
};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, check_size, common_setters};
use crate::cost::{Size, Tally};
use crate::init::{Conv2d, Family, Initialization, LayerBuilder, square};
use crate::weights::StateDict;

/// The first convolution, the BatchNorm and activation after it, and what follows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StemConfig {
    /// Output channels, at least 1.
    pub channels: usize,
    /// Stride of the convolution, at least 1: 1 keeps the image size, 2 halves it.
    pub stride: usize,
    /// Size of the square kernel, odd; padded so that stride 1 keeps the image size.
    #[serde(default = "three")]
    pub kernel: usize,
    /// What follows the activation.
    #[serde(default)]
    pub pool: Pool,
}

fn three() -> usize {
    3
}

impl StemConfig {
    /// A 3×3 convolution without pooling, for small images.
    pub const fn small(channels: usize, stride: usize) -> Self {
        Self { channels, stride, kernel: 3, pool: Pool::None }
    }

    /// A 7×7 convolution with 64 channels and stride 2, then max-pooling: 1/4 of the image's size.
    pub const fn imagenet() -> Self {
        Self { channels: 64, stride: 2, kernel: 7, pool: Pool::Max }
    }
}

/// The pooling that ends a stem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Nothing.
    #[default]
    None,
    /// The maximum over 3×3 with stride 2 and padding 1.
    Max,
}

/// A run of blocks with the same number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Channels of every block, at least 1: those of a basic block's output, a quarter of a
    /// [bottleneck](BlockConfig::Bottleneck)'s.
    pub channels: usize,
    /// Number of blocks, at least 1.
    pub blocks: usize,
    /// Stride of the first block, at least 1. The others have stride 1.
    pub stride: usize,
}

impl StageConfig {
    /// Four stages of 64, 128, 256 and 512 channels; all but the first halve the image.
    pub(crate) fn four(blocks: [usize; 4]) -> Vec<Self> {
        let stage = |(i, blocks): (usize, usize)| Self {
            channels: 64usize << i,
            blocks,
            stride: if i == 0 { 1 } else { 2 },
        };
        blocks.into_iter().enumerate().map(stage).collect()
    }

    pub(crate) fn check(stages: &[Self]) -> Result<(), ConfigError> {
        for (i, stage) in stages.iter().enumerate() {
            check_size(format!("stages[{i}].channels"), stage.channels)?;
            check_size(format!("stages[{i}].blocks"), stage.blocks)?;
            check_size(format!("stages[{i}].stride"), stage.stride)?;
        }
        if stages.is_empty() { Err(ConfigError::NoStages) } else { Ok(()) }
    }
}

/// The residual branch of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockConfig {
    /// Two 3×3 convolutions; the first has the stride.
    #[default]
    Basic,
    /// 1×1, 3×3 with the stride, and 1×1 to four times the stage's channels (He et al. 2015). The
    /// middle has channels · width_per_group / 64 channels in each of its groups: more than one
    /// group is ResNeXt (Xie et al. 2016, arXiv 1611.05431).
    Bottleneck {
        /// Groups of the 3×3 convolution, at least 1.
        groups: usize,
        /// Channels of a group in a stage of 64 channels, at least 1; 64 for ResNet.
        width_per_group: usize,
    },
}

impl BlockConfig {
    const RESNET: Self = Self::Bottleneck { groups: 1, width_per_group: 64 };

    /// Channels inside the branch and after it.
    fn channels(self, stage: &StageConfig) -> (usize, usize) {
        match self {
            Self::Basic => (stage.channels, stage.channels),
            Self::Bottleneck { groups, width_per_group } => {
                (stage.channels * width_per_group / 64 * groups, 4 * stage.channels)
            }
        }
    }
}

/// A residual network as data (He et al. 2015, arXiv 1512.03385).
///
/// Stem – stages of blocks – global average pooling – linear classifier. The constructors
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
    /// The residual branch of every block.
    #[serde(default)]
    pub block: BlockConfig,
    /// The activation at every site. Each site owns its learnable parameter, if it has one.
    #[serde(default)]
    pub activation: ActivationConfig,
    /// How the weights are drawn.
    #[serde(default)]
    pub initialization: Initialization,
}

impl ResNetConfig {
    /// ResNet-18 for ImageNet: 11,689,512 parameters.
    pub fn resnet18() -> Self {
        Self::imagenet([2, 2, 2, 2], BlockConfig::Basic)
    }

    /// ResNet-34 for ImageNet: 21,797,672 parameters.
    pub fn resnet34() -> Self {
        Self::imagenet([3, 4, 6, 3], BlockConfig::Basic)
    }

    /// ResNet-50 for ImageNet, with the stride on the 3×3 convolution: 25,557,032 parameters.
    pub fn resnet50() -> Self {
        Self::imagenet([3, 4, 6, 3], BlockConfig::RESNET)
    }

    /// ResNet-101 for ImageNet: 44,549,160 parameters.
    pub fn resnet101() -> Self {
        Self::imagenet([3, 4, 23, 3], BlockConfig::RESNET)
    }

    /// ResNet-152 for ImageNet: 60,192,808 parameters.
    pub fn resnet152() -> Self {
        Self::imagenet([3, 8, 36, 3], BlockConfig::RESNET)
    }

    /// ResNeXt-50 with 32 groups of 4 channels: 25,028,904 parameters.
    pub fn resnext50_32x4d() -> Self {
        Self::resnext([3, 4, 6, 3], 4)
    }

    /// ResNeXt-50 with 32 groups of 8 channels: 48,021,800 parameters.
    pub fn resnext50_32x8d() -> Self {
        Self::resnext([3, 4, 6, 3], 8)
    }

    /// ResNeXt-101 with 32 groups of 8 channels: 88,791,336 parameters.
    pub fn resnext101_32x8d() -> Self {
        Self::resnext([3, 4, 23, 3], 8)
    }

    /// ResNeXt-152 with 32 groups of 8 channels: 122,372,392 parameters.
    pub fn resnext152_32x8d() -> Self {
        Self::resnext([3, 8, 36, 3], 8)
    }

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
        Self::rgb(10, StemConfig::small(64, 1), StageConfig::four([2; 4]), BlockConfig::Basic)
    }

    /// The CIFAR networks of He et al., section 4.2: 6n + 2 layers in three stages of n blocks with
    /// 16, 32 and 64 channels, and projection shortcuts (option B) where the shape changes.
    fn cifar(blocks: usize) -> Self {
        let stage = |channels, stride| StageConfig { channels, blocks, stride };
        let stages = vec![stage(16, 1), stage(32, 2), stage(64, 2)];
        Self::rgb(10, StemConfig::small(16, 1), stages, BlockConfig::Basic)
    }

    fn imagenet(blocks: [usize; 4], block: BlockConfig) -> Self {
        Self::rgb(1000, StemConfig::imagenet(), StageConfig::four(blocks), block)
    }

    fn resnext(blocks: [usize; 4], width_per_group: usize) -> Self {
        Self::imagenet(blocks, BlockConfig::Bottleneck { groups: 32, width_per_group })
    }

    fn rgb(classes: usize, stem: StemConfig, stages: Vec<StageConfig>, block: BlockConfig) -> Self {
        Self {
            input_channels: 3,
            classes,
            stem,
            stages,
            block,
            activation: ActivationConfig::default(),
            initialization: Initialization::default(),
        }
    }

    common_setters!("Sets the activation of every site.");

    /// Checks every size and the activation. Call it on a configuration that comes from outside the
    /// program.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first bad field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_size("input_channels", self.input_channels)?;
        check_size("classes", self.classes)?;
        check_size("stem.channels", self.stem.channels)?;
        check_size("stem.stride", self.stem.stride)?;
        check_size("stem.kernel", self.stem.kernel)?;
        if self.stem.kernel.is_multiple_of(2) {
            let field = "stem.kernel".to_owned();
            return Err(ConfigError::EvenKernel { field, value: self.stem.kernel });
        }
        StageConfig::check(&self.stages)?;
        if let BlockConfig::Bottleneck { groups, width_per_group } = self.block {
            check_size("block.groups", groups)?;
            check_size("block.width_per_group", width_per_group)?;
            for (i, stage) in self.stages.iter().enumerate() {
                let (inner, _) = self.block.channels(stage);
                check_size(format!("the inner channels of stages[{i}]"), inner)?;
            }
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
        self.build(LayerBuilder::new(self.initialization, Family::Residual, seed, device))
    }

    pub(crate) fn build(&self, mut layers: LayerBuilder<'_>) -> ResNet {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let StemConfig { channels, stride, kernel, pool } = self.stem;
        let conv1 = layers.conv(square([self.input_channels, channels], kernel, stride));
        let bn1 = layers.norm(channels, &self.activation);
        let mut channels = channels;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let mut blocks = Vec::with_capacity(stage.blocks);
            for i in 0..stage.blocks {
                let stride = if i == 0 { stage.stride } else { 1 };
                let block =
                    Block::new(channels, self.block, stage, stride, &self.activation, &mut layers);
                blocks.push(block);
                (_, channels) = self.block.channels(stage);
            }
            stages.push(blocks);
        }
        let fc = layers.linear(channels, self.classes);
        let shared = self.activation.init_shared(layers.device());
        let maxpool = match pool {
            Pool::None => None,
            Pool::Max => Some(
                MaxPool2dConfig::new([3, 3])
                    .with_strides([2, 2])
                    .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                    .init(),
            ),
        };
        ResNet { conv1, bn1, maxpool, stages, fc, shared }
    }
}

/// Convolutions with a BatchNorm each: two in a basic block, three in a bottleneck. The last BatchNorm
/// takes the sum with the shortcut and its activation.
///
/// The shortcut is the identity, or a strided 1×1 convolution and BatchNorm (`downsample`, as in
/// torchvision) where the shape changes.
#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNormAct,
    conv2: Conv2d,
    bn2: BatchNormAct,
    conv3: Option<Conv2d>,
    bn3: Option<BatchNormAct>,
    downsample: Option<(Conv2d, BatchNormAct)>,
}

impl Block {
    fn new(
        c_in: usize,
        block: BlockConfig,
        stage: &StageConfig,
        stride: usize,
        activation: &ActivationConfig,
        layers: &mut LayerBuilder<'_>,
    ) -> Self {
        let (inner, c_out) = block.channels(stage);
        let (conv1, bn1, conv2, bn2, conv3, bn3) = match block {
            BlockConfig::Basic => (
                layers.conv(square([c_in, inner], 3, stride)),
                layers.norm(inner, activation),
                layers.conv(square([inner, c_out], 3, 1)),
                layers.last_norm(c_out, activation),
                None,
                None,
            ),
            BlockConfig::Bottleneck { groups, .. } => (
                layers.conv(square([c_in, inner], 1, 1)),
                layers.norm(inner, activation),
                layers.conv(square([inner, inner], 3, stride).with_groups(groups)),
                layers.norm(inner, activation),
                Some(layers.conv(square([inner, c_out], 1, 1))),
                Some(layers.last_norm(c_out, activation)),
            ),
        };
        let reshapes = stride != 1 || c_in != c_out;
        let downsample = reshapes
            .then(|| (layers.conv(square([c_in, c_out], 1, stride)), layers.shortcut_norm(c_out)));
        Self { conv1, bn1, conv2, bn2, conv3, bn3, downsample }
    }

    fn forward(&self, x: Tensor<4>, shared: Option<&SharedParameters>) -> Tensor<4> {
        let shortcut = match &self.downsample {
            Some((conv, norm)) => norm.forward(conv.forward(x.clone())),
            None => x.clone(),
        };
        let x = self.bn1.forward_shared(self.conv1.forward(x), None, shared);
        let x = self.conv2.forward(x);
        match (&self.conv3, &self.bn3) {
            (Some(conv3), Some(bn3)) => {
                let x = self.bn2.forward_shared(x, None, shared);
                bn3.forward_shared(conv3.forward(x), Some(shortcut), shared)
            }
            _ => self.bn2.forward_shared(x, Some(shortcut), shared),
        }
    }

    fn tally(&self, tally: &mut Tally, size: Size) -> Size {
        if let Some((conv, norm)) = &self.downsample {
            tally.conv_norm(conv, norm, size);
        }
        let mut size = tally.conv_norm(&self.conv1, &self.bn1, size);
        size = tally.conv_norm(&self.conv2, &self.bn2, size);
        if let (Some(conv3), Some(bn3)) = (&self.conv3, &self.bn3) {
            size = tally.conv_norm(conv3, bn3, size);
        }
        size
    }

    fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.bn1 = self.bn1.with_gradient(gradient);
        self.bn2 = self.bn2.with_gradient(gradient);
        self.bn3 = self.bn3.map(|norm| norm.with_gradient(gradient));
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
    maxpool: Option<MaxPool2d>,
    stages: Vec<Vec<Block>>,
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
        let x = self.stem(images);
        let x = self.stages.iter().flatten().fold(x, |x, block| block.forward(x, shared));
        self.fc.forward(channel_means(x))
    }

    /// The output of each stage, `[batch, channels, height, width]`, from the first stage to the last.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let shared = self.shared.as_ref();
        stage_outputs(self.stem(images), &self.stages, |block, x| block.forward(x, shared))
    }

    fn stem(&self, images: Tensor<4>) -> Tensor<4> {
        let x = self.bn1.forward_shared(self.conv1.forward(images), None, self.shared.as_ref());
        match &self.maxpool {
            Some(pool) => pool.forward(x),
            None => x,
        }
    }

    pub(crate) fn tally(&self, tally: &mut Tally, size: Size) {
        let mut size = tally.conv_norm(&self.conv1, &self.bn1, size);
        if self.maxpool.is_some() {
            size = size.map(|size| size.div_ceil(2));
            tally.keep(self.conv1.weight.lazy_shape()[0], size);
        }
        for block in self.stages.iter().flatten() {
            size = block.tally(tally, size);
        }
        tally.linear(&self.fc);
    }

    /// The same weights with another activation at every site; learnable parameters start anew.
    ///
    /// # Panics
    ///
    /// If [`ActivationConfig::validate`] refuses the activation.
    pub fn with_activation(self, activation: &ActivationConfig) -> Self {
        let device = self.fc.weight.lazy_device();
        let mut model = replace_activations(self, activation, &device);
        model.shared = activation.init_shared(&device);
        model
    }

    /// Sets the gradient curve of every activation and leaves their values as they are: the probe of
    /// gradient quality in Xie et al. 2020.
    ///
    /// # Panics
    ///
    /// If a parameter of the curve is not finite and positive.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.bn1 = self.bn1.with_gradient(gradient);
        self.stages = each_block(self.stages, |block| block.with_gradient(gradient));
        self
    }
}

pub(crate) fn stage_outputs<B>(
    mut x: Tensor<4>,
    stages: &[Vec<B>],
    forward: impl Fn(&B, Tensor<4>) -> Tensor<4>,
) -> Vec<Tensor<4>> {
    let mut outputs = Vec::with_capacity(stages.len());
    for stage in stages {
        x = stage.iter().fold(x, |x, block| forward(block, x));
        outputs.push(x.clone());
    }
    outputs
}

pub(crate) fn each_block<B>(stages: Vec<Vec<B>>, change: impl Fn(B) -> B) -> Vec<Vec<B>> {
    stages.into_iter().map(|stage| stage.into_iter().map(&change).collect()).collect()
}

/// Splits `stages.1.0.rest` into stage 1 and `0.rest`.
pub(crate) fn in_stage(path: &str) -> Option<(usize, &str)> {
    let (stage, rest) = path.strip_prefix("stages.")?.split_once('.')?;
    Some((stage.parse().ok()?, rest))
}

/// Parameters of the activation behind `bn1` are named `act1`, as if it stood beside it.
pub(crate) fn beside_norms(path: &str) -> String {
    ["1", "2", "3"].into_iter().fold(path.to_owned(), |path, n| {
        path.replace(&format!("bn{n}.activation."), &format!("act{n}."))
    })
}

#[cfg(feature = "attack")]
impl sat_attack::Classifier for ResNet {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }
}

impl StateDict for ResNet {
    /// torchvision's names, which timm shares; it counts stages from `layer1`.
    fn state_key(&self, path: &str) -> String {
        beside_norms(&match in_stage(path) {
            Some((stage, rest)) => format!("layer{}.{rest}", stage + 1),
            None => path.to_owned(),
        })
    }

    /// The names of the CIFAR networks that RobustBench uses: `linear` and `shortcut`.
    fn aliases(&self) -> Vec<(String, String)> {
        let mut aliases = vec![("linear".to_owned(), "fc".to_owned())];
        for (s, stage) in self.stages.iter().enumerate() {
            for (i, block) in stage.iter().enumerate() {
                if block.downsample.is_some() {
                    let block = format!("layer{}.{i}", s + 1);
                    aliases.extend([0, 1].map(|n| {
                        (format!("{block}.shortcut.{n}"), format!("{block}.downsample.{n}"))
                    }));
                }
            }
        }
        aliases
    }
}
