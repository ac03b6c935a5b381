//! Residual networks with normalisation and activation before each convolution: PreActResNet and
//! WideResNet.

use burn::module::Module;
use burn::nn::{Linear, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use sat_core::{
    ActivationConfig, BatchNormAct, Gradient, SharedParameters, channel_means, replace_activations,
};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, check_range, check_size, common_setters};
use crate::cost::{Size, Tally};
use crate::init::{Conv2d, Conv2dConfig, Family, Initialization, LayerBuilder, square};
use crate::resnet::{StageConfig, beside_norms, each_block, in_stage, stage_outputs};
use crate::weights::StateDict;

/// What stands behind the last stage, and whose names the weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreActStyle {
    /// The last sum goes to the pooling as it is. Names: `layer1.0.shortcut.0`, `linear`.
    PreAct,
    /// A last BatchNorm and activation. Names: those of [`PreAct`](Self::PreAct) and `bn`.
    PreActNorm,
    /// A last BatchNorm and activation. Names of WideResNets in TRADES and RobustBench:
    /// `block1.layer.0.convShortcut`, `fc`.
    Wide,
    /// DeepMind's WideResNets, `DMWideResNet` in RobustBench: a last BatchNorm and activation; 3×3
    /// convolutions of stride 2 are padded right and below alone; shortcuts are
    /// [`Activated`](PreActShortcut::Activated). Names: `init_conv`, `layer.0.block.0.batchnorm_0`, `logits`.
    DeepMindWide,
    /// DeepMind's PreActResNets, `DMPreActResNet` in RobustBench: padded as
    /// [`DeepMindWide`](Self::DeepMindWide); shortcuts are 3×3, of the [`Input`](PreActShortcut::Input). Names:
    /// `conv_2d`, `layer_0.0.conv_2d_1`, `logits`.
    DeepMindPreAct,
}

impl PreActStyle {
    fn is_deep_mind(self) -> bool {
        matches!(self, Self::DeepMindWide | Self::DeepMindPreAct)
    }

    /// The 3×3 convolution that may reduce the size.
    fn reducing(self, channels: [usize; 2], stride: usize) -> Conv2dConfig {
        let conv = square(channels, 3, stride);
        if self.is_deep_mind() && stride != 1 {
            return conv.with_padding(PaddingConfig2d::Explicit(0, 0, 1, 1));
        }
        conv
    }

    /// What shortcuts convolve, where the style leaves a choice the chosen one.
    fn shortcut_of(self, chosen: PreActShortcut) -> PreActShortcut {
        match self {
            Self::DeepMindWide => PreActShortcut::Activated,
            Self::DeepMindPreAct => PreActShortcut::Input,
            _ => chosen,
        }
    }

    /// The convolution of a shortcut.
    fn shortcut(self, channels: [usize; 2], stride: usize) -> Conv2dConfig {
        match self {
            Self::DeepMindPreAct => self.reducing(channels, stride),
            _ => square(channels, 1, stride),
        }
    }
}

/// What a shortcut convolves where a block changes the shape. The two have the same weights and give
/// other logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreActShortcut {
    /// What the block's first activation gives, as in He et al. 2016, WideResNets, and RobustBench's
    /// `PreActBlockV2` or `out_shortcut`.
    #[default]
    Activated,
    /// The block's input: RobustBench's `PreActBlock` and `DMPreActResNet`.
    Input,
}

/// Mean and standard deviation of a data set's pixels, a number of each for a channel: x becomes
/// (x - mean)/std.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelStatistics {
    /// The means.
    pub mean: Vec<f32>,
    /// The standard deviations, positive.
    pub std: Vec<f32>,
}

impl PixelStatistics {
    /// Those that RobustBench has for CIFAR-10.
    pub fn cifar10() -> Self {
        Self { mean: vec![0.4914, 0.4822, 0.4465], std: vec![0.2471, 0.2435, 0.2616] }
    }

    /// Those that RobustBench has for CIFAR-100.
    pub fn cifar100() -> Self {
        Self { mean: vec![0.5071, 0.4865, 0.4409], std: vec![0.2673, 0.2564, 0.2762] }
    }

    fn check(&self, channels: usize) -> Result<(), ConfigError> {
        for (field, values) in [("pixels.mean", &self.mean), ("pixels.std", &self.std)] {
            if values.len() != channels {
                let (field, values) = (field.to_owned(), values.len());
                return Err(ConfigError::Channels { field, values, channels });
            }
        }
        for mean in &self.mean {
            check_range("pixels.mean", (*mean).into(), "finite", f64::is_finite)?;
        }
        for std in &self.std {
            let is_inside = |std: f64| std.is_finite() && std > 0.0;
            check_range("pixels.std", (*std).into(), "finite and positive", is_inside)?;
        }
        Ok(())
    }

    /// (images - mean)/std, for images `[batch, channels, height, width]`. No gradient flows to the statistics.
    ///
    /// # Panics
    ///
    /// If there is not one mean and one standard deviation for each channel of the images.
    pub fn normalize(&self, images: Tensor<4>) -> Tensor<4> {
        let channels = images.dims()[1];
        for values in [&self.mean, &self.std] {
            assert_eq!(channels, values.len(), "channels of the images and of the normalisation");
        }
        let device = images.device().without_autodiff();
        let per_channel = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [1, values.len(), 1, 1]);
            Tensor::<4>::from_data(data, (&device, images.dtype()))
        };
        let (mean, std) = (per_channel(&self.mean), per_channel(&self.std));
        (images - mean) / std
    }
}

/// A residual network of pre-activation blocks, as data (He et al. 2016, arXiv 1603.05027; Zagoruyko
/// and Komodakis 2016, arXiv 1605.07146).
///
/// 3×3 convolution – stages of blocks – what the style puts here – global average pooling – linear
/// classifier. A block is norm, activation, 3×3 convolution, twice, and the shortcut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreActResNetConfig {
    /// Channels of the input image: 3 for RGB, 1 for grey.
    pub input_channels: usize,
    /// Number of classes, the width of the output.
    pub classes: usize,
    /// Output channels of the first convolution.
    pub stem_channels: usize,
    /// The stages, in order; at least one.
    pub stages: Vec<StageConfig>,
    /// The end of the network and the names of its weights.
    pub style: PreActStyle,
    /// What shortcuts convolve. DeepMind's styles have their own.
    #[serde(default)]
    pub shortcut: PreActShortcut,
    /// What images are normalised by before the first convolution. `None` leaves that to who calls the
    /// network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels: Option<PixelStatistics>,
    /// The activation at every site. Each site owns its learnable parameter, if it has one.
    #[serde(default)]
    pub activation: ActivationConfig,
    /// How the weights are drawn.
    #[serde(default)]
    pub initialization: Initialization,
}

impl PreActResNetConfig {
    /// PreActResNet-18 for CIFAR: 11,171,146 parameters with 10 classes. `docs/models.md` says which style
    /// and shortcut the published ones have.
    pub fn preact_resnet18() -> Self {
        Self::rgb(64, StageConfig::four([2; 4]), PreActStyle::PreAct)
    }

    /// WideResNet for CIFAR: 6n + 4 layers in three stages of n blocks with 16k, 32k and 64k channels,
    /// where k is `widen`. WideResNet-28-10 is `wide(4, 10)`, 36,479,194 parameters;
    /// WideResNet-34-10 is `wide(5, 10)`, 46,160,474.
    pub fn wide(blocks: usize, widen: usize) -> Self {
        let stage = |channels: usize, stride| StageConfig {
            channels: channels.saturating_mul(widen),
            blocks,
            stride,
        };
        Self::rgb(16, vec![stage(16, 1), stage(32, 2), stage(64, 2)], PreActStyle::Wide)
    }

    /// DeepMind's WideResNet, whose sizes are those of [`wide`](Self::wide): RobustBench's
    /// WideResNet-28-10 and WideResNet-70-16 with Swish, which is SiLU, are `deep_mind_wide(4, 10)` and
    /// `deep_mind_wide(11, 16)`. It takes images in \[0, 1\] and normalises them by CIFAR-10's statistics.
    pub fn deep_mind_wide(blocks: usize, widen: usize) -> Self {
        Self::deep_mind(PreActStyle::DeepMindWide, Self::wide(blocks, widen))
    }

    /// DeepMind's PreActResNet-18; it takes images as [`deep_mind_wide`](Self::deep_mind_wide) does.
    pub fn deep_mind_preact_resnet18() -> Self {
        Self::deep_mind(PreActStyle::DeepMindPreAct, Self::preact_resnet18())
    }

    fn deep_mind(style: PreActStyle, base: Self) -> Self {
        Self { style, pixels: Some(PixelStatistics::cifar10()), ..base }
    }

    fn rgb(stem_channels: usize, stages: Vec<StageConfig>, style: PreActStyle) -> Self {
        Self {
            input_channels: 3,
            classes: 10,
            stem_channels,
            stages,
            style,
            shortcut: PreActShortcut::default(),
            pixels: None,
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
        check_size("stem_channels", self.stem_channels)?;
        StageConfig::check(&self.stages)?;
        if let Some(pixels) = &self.pixels {
            pixels.check(self.input_channels)?;
        }
        Ok(self.activation.validate()?)
    }

    /// Builds the network on `device` with weights drawn from `seed`, as
    /// [`ResNetConfig::init`](crate::ResNetConfig::init) does.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn init(&self, seed: u64, device: &Device) -> PreActResNet {
        self.build(LayerBuilder::new(self.initialization, Family::Residual, seed, device))
    }

    pub(crate) fn build(&self, mut layers: LayerBuilder<'_>) -> PreActResNet {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let activation = &self.activation;
        let conv1 = layers.conv(square([self.input_channels, self.stem_channels], 3, 1));
        let mut channels = self.stem_channels;
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let mut blocks = Vec::with_capacity(stage.blocks);
            for i in 0..stage.blocks {
                let stride = if i == 0 { stage.stride } else { 1 };
                let shape = [channels, stage.channels];
                blocks.push(Block::new(shape, stride, self, &mut layers));
                channels = stage.channels;
            }
            stages.push(blocks);
        }
        let bn1 = match self.style {
            PreActStyle::PreAct => None,
            _ => Some(layers.norm(channels, activation)),
        };
        let fc = layers.linear(channels, self.classes);
        let shared = activation.init_shared(layers.device());
        PreActResNet {
            pixels: self.pixels.clone(),
            conv1,
            stages,
            bn1,
            fc,
            shared,
            style: self.style,
        }
    }
}

/// norm – activation – convolution, twice. Where the shape changes, the shortcut is a convolution;
/// elsewhere it is the block's input.
#[derive(Module, Debug)]
struct Block {
    bn1: BatchNormAct,
    conv1: Conv2d,
    bn2: BatchNormAct,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    #[module(skip)]
    shortcut_of: PreActShortcut,
}

impl Block {
    fn new(
        [c_in, c_out]: [usize; 2],
        stride: usize,
        config: &PreActResNetConfig,
        layers: &mut LayerBuilder<'_>,
    ) -> Self {
        let (style, activation) = (config.style, &config.activation);
        let reshapes = stride != 1 || c_in != c_out;
        Self {
            bn1: layers.norm(c_in, activation),
            conv1: layers.conv(style.reducing([c_in, c_out], stride)),
            bn2: layers.norm(c_out, activation),
            conv2: layers.conv(square([c_out, c_out], 3, 1)),
            shortcut: reshapes.then(|| layers.conv(style.shortcut([c_in, c_out], stride))),
            shortcut_of: style.shortcut_of(config.shortcut),
        }
    }

    fn forward(&self, x: Tensor<4>, shared: Option<&SharedParameters>) -> Tensor<4> {
        let activated = |x| self.bn1.forward_shared(x, None, shared);
        let (shortcut, x) = match (&self.shortcut, self.shortcut_of) {
            (Some(conv), PreActShortcut::Activated) => {
                let x = activated(x);
                (conv.forward(x.clone()), x)
            }
            (Some(conv), PreActShortcut::Input) => (conv.forward(x.clone()), activated(x)),
            (None, _) => (x.clone(), activated(x)),
        };
        let x = self.bn2.forward_shared(self.conv1.forward(x), None, shared);
        self.conv2.forward(x) + shortcut
    }

    fn tally(&self, tally: &mut Tally, size: Size) -> Size {
        tally.norm(&self.bn1, size);
        if let Some(conv) = &self.shortcut {
            tally.conv(conv, size);
        }
        let size = tally.conv_norm(&self.conv1, &self.bn2, size);
        tally.conv(&self.conv2, size)
    }

    fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.bn1 = self.bn1.with_gradient(gradient);
        self.bn2 = self.bn2.with_gradient(gradient);
        self
    }
}

/// A residual network of pre-activation blocks. Made by [`PreActResNetConfig::init`].
///
/// [`ResNet`](crate::ResNet) says how `valid()` and `clone()` behave.
#[derive(Module, Debug)]
pub struct PreActResNet {
    #[module(skip)]
    pixels: Option<PixelStatistics>,
    conv1: Conv2d,
    stages: Vec<Vec<Block>>,
    bn1: Option<BatchNormAct>,
    fc: Linear,
    shared: Option<SharedParameters>,
    #[module(skip)]
    style: PreActStyle,
}

impl PreActResNet {
    /// Logits of a batch of images.
    ///
    /// # Shapes
    ///
    /// - `images`: `[batch, input_channels, height, width]`; any height and width of at least 1. DeepMind's
    ///   styles: such that each stride divides the size before it, as it does 32.
    /// - output: `[batch, classes]`
    ///
    /// # Panics
    ///
    /// If the images do not have `input_channels` channels or are on another device.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let shared = self.shared.as_ref();
        let x = self.stem(images);
        let x = self.stages.iter().flatten().fold(x, |x, block| block.forward(x, shared));
        let x = match &self.bn1 {
            Some(norm) => norm.forward_shared(x, None, shared),
            None => x,
        };
        self.fc.forward(channel_means(x))
    }

    fn stem(&self, images: Tensor<4>) -> Tensor<4> {
        self.conv1.forward(match &self.pixels {
            Some(pixels) => pixels.normalize(images),
            None => images,
        })
    }

    /// The output of each stage, `[batch, channels, height, width]`, from the first stage to the last:
    /// sums, before the normalisation that follows.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let shared = self.shared.as_ref();
        stage_outputs(self.stem(images), &self.stages, |block, x| block.forward(x, shared))
    }

    pub(crate) fn tally(&self, tally: &mut Tally, size: Size) {
        let mut size = tally.conv(&self.conv1, size);
        for block in self.stages.iter().flatten() {
            size = block.tally(tally, size);
        }
        if let Some(norm) = &self.bn1 {
            tally.norm(norm, size);
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

    /// Sets the gradient curve of every activation and leaves their values as they are.
    ///
    /// # Panics
    ///
    /// If a parameter of the curve is not finite and positive.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.stages = each_block(self.stages, |block| block.with_gradient(gradient));
        self.bn1 = self.bn1.map(|norm| norm.with_gradient(gradient));
        self
    }
}

impl PreActResNet {
    fn deep_mind_key(&self, path: &str) -> String {
        let is_wide = self.style == PreActStyle::DeepMindWide;
        let path = beside_norms(path);
        let Some((stage, rest)) = in_stage(&path) else {
            return path
                .replace("conv1.", if is_wide { "init_conv." } else { "conv_2d." })
                .replace("bn1.", "batchnorm.")
                .replace("fc.", "logits.");
        };
        let rest = rest.replace("bn1.", "batchnorm_0.").replace("bn2.", "batchnorm_1.");
        if is_wide {
            let rest = rest.replace("conv1.", "conv_0.").replace("conv2.", "conv_1.");
            format!("layer.{stage}.block.{rest}")
        } else {
            let rest = rest.replace("conv1.", "conv_2d_1.").replace("conv2.", "conv_2d_2.");
            format!("layer_{stage}.{rest}")
        }
    }
}

#[cfg(feature = "attack")]
impl sat_attack::Classifier for PreActResNet {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }
}

impl StateDict for PreActResNet {
    fn state_key(&self, path: &str) -> String {
        if self.style.is_deep_mind() {
            return self.deep_mind_key(path);
        }
        let is_wide = self.style == PreActStyle::Wide;
        beside_norms(&match in_stage(path) {
            Some((stage, rest)) if is_wide => {
                format!("block{}.layer.{}", stage + 1, rest.replace("shortcut.", "convShortcut."))
            }
            Some((stage, rest)) => {
                format!("layer{}.{}", stage + 1, rest.replace("shortcut.", "shortcut.0."))
            }
            None if is_wide => path.to_owned(),
            None => beside_norms(path).replace("fc.", "linear.").replace("bn1.", "bn."),
        })
    }

    /// TRADES saves a second first stage that its network never uses; some files of DeepMind's networks have
    /// the pixel statistics, which are the configuration's here.
    fn is_unused(&self, key: &str) -> bool {
        match self.style {
            PreActStyle::Wide => key.starts_with("sub_block1."),
            PreActStyle::DeepMindWide | PreActStyle::DeepMindPreAct => {
                matches!(key, "mean" | "std")
            }
            _ => false,
        }
    }
}
