//! EfficientNets B0 to B8, L1, L2 and Lite0 to Lite4.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::Module;
use burn::nn::{Linear, PaddingConfig2d};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sat_core::{
    Activation, ActivationConfig, BatchNormAct, BatchNormActConfig, Curve, Gradient,
    SharedParameters, channel_means, replace_activations, scale_channels,
};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, check_range, check_size, common_setters};
use crate::cost::{Size, Tally};
use crate::init::{Conv2d, Family, Initialization, LayerBuilder, square};
use crate::resnet::{each_block, in_stage, stage_outputs};
use crate::weights::StateDict;

/// How convolutions are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// TensorFlow's SAME: as many zeros as an output of ⌈size / stride⌉ needs, an odd one at the bottom
    /// or right.
    Same,
    /// PyTorch's: k/2 zeros, rounded down, on every side of the image for a k × k kernel.
    Symmetric,
}

/// Which layers the factors of width and depth leave as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// None.
    Whole,
    /// The widths of the first and last convolution, and the depths of the first and last stage: the
    /// Lite networks.
    Body,
}

/// Squeeze-and-excitation (Hu et al. 2017, arXiv 1709.01507): each channel is multiplied by
/// sigmoid(W₂ f(W₁ m)), where m are the channels' means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqueezeExciteConfig {
    /// Size of the hidden layer as a share of the block's input channels, in (0, 1].
    pub ratio: f64,
    /// The activation f; the network's if `None`.
    #[serde(default)]
    pub activation: Option<ActivationConfig>,
}

/// The conventions of an implementation: they share architecture and weights' shapes but not results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conventions {
    /// SAME padding; BatchNorm with ε = 1e-3 and a share of 0.01 for the batch: the original, timm's
    /// `tf_efficientnet` and EfficientNet-Lite.
    TensorFlow,
    /// Symmetric padding; BatchNorm with ε = 1e-5 and a share of 0.1, torchvision's B0 to B4 and timm's
    /// `efficientnet`. torchvision's B5 to B7 have TensorFlow's BatchNorm: set it with
    /// [`with_norm`](EfficientNetConfig::with_norm).
    Torchvision,
    /// SAME padding; BatchNorm with ε = 1e-5 and a share of 0.1: the networks of smooth adversarial
    /// training (Xie et al. 2020, arXiv 2006.14536).
    Paper,
}

/// An EfficientNet as data (Tan and Le 2019, arXiv 1905.11946).
///
/// 3×3 convolution with stride 2 – seven stages of inverted residual blocks – 1×1 convolution – global
/// average pooling – dropout – linear classifier. Widths and depths are those of B0 times two factors;
/// the constructors give the usual ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficientNetConfig {
    /// Channels of the input image: 3 for RGB, 1 for grey.
    pub input_channels: usize,
    /// Number of classes, the width of the output.
    pub classes: usize,
    /// Factor of the channels, in (0, 100]; they are rounded to multiples of 8.
    pub width: f64,
    /// Factor of the blocks in each stage, in (0, 100]; they are rounded up.
    pub depth: f64,
    /// What the factors leave as it is.
    pub scaling: Scaling,
    /// Squeeze-and-excitation in every block, or none.
    pub squeeze_excite: Option<SqueezeExciteConfig>,
    /// Padding of the convolutions.
    pub padding: Padding,
    /// Added to BatchNorm's variance; finite and positive.
    pub norm_epsilon: f64,
    /// Share of the batch in BatchNorm's running statistics, in [0, 1].
    pub norm_momentum: f64,
    /// Stochastic depth (Huang et al. 2016, arXiv 1603.09382), in [0, 1): in training, block i of n
    /// becomes its shortcut with probability i/n times this, for each image on its own.
    pub stochastic_depth: f64,
    /// Share of the classifier's inputs that are 0 in training, in [0, 1).
    pub dropout: f64,
    /// The activation at every site. Each site owns its learnable parameter, if it has one.
    pub activation: ActivationConfig,
    /// How the weights are drawn.
    #[serde(default)]
    pub initialization: Initialization,
}

/// The stages of B0: expansion, kernel, stride, channels, blocks.
const STAGES: [[usize; 5]; 7] = [
    [1, 3, 1, 16, 1],
    [6, 3, 2, 24, 2],
    [6, 5, 2, 40, 2],
    [6, 3, 2, 80, 3],
    [6, 5, 1, 112, 3],
    [6, 5, 2, 192, 4],
    [6, 3, 1, 320, 1],
];
const STEM: usize = 32;
const HEAD: usize = 1280;

impl EfficientNetConfig {
    /// B0, for images of 224 × 224: 5,288,548 parameters.
    pub fn b0() -> Self {
        Self::scaled(1.0, 1.0, 0.2)
    }

    /// B1, for images of 240 × 240: 7,794,184 parameters.
    pub fn b1() -> Self {
        Self::scaled(1.0, 1.1, 0.2)
    }

    /// B2, for images of 260 × 260: 9,109,994 parameters.
    pub fn b2() -> Self {
        Self::scaled(1.1, 1.2, 0.3)
    }

    /// B3, for images of 300 × 300: 12,233,232 parameters.
    pub fn b3() -> Self {
        Self::scaled(1.2, 1.4, 0.3)
    }

    /// B4, for images of 380 × 380: 19,341,616 parameters.
    pub fn b4() -> Self {
        Self::scaled(1.4, 1.8, 0.4)
    }

    /// B5, for images of 456 × 456: 30,389,784 parameters.
    pub fn b5() -> Self {
        Self::scaled(1.6, 2.2, 0.4)
    }

    /// B6, for images of 528 × 528: 43,040,704 parameters.
    pub fn b6() -> Self {
        Self::scaled(1.8, 2.6, 0.5)
    }

    /// B7, for images of 600 × 600: 66,347,960 parameters.
    pub fn b7() -> Self {
        Self::scaled(2.0, 3.1, 0.5)
    }

    /// B8, for images of 672 × 672: 87,413,142 parameters.
    pub fn b8() -> Self {
        Self::scaled(2.2, 3.6, 0.5)
    }

    /// L1, the largest network of smooth adversarial training: 3.9 times B0's width and 3.7 times its
    /// depth, for images of 600 × 600; 272,630,564 parameters.
    pub fn l1() -> Self {
        Self::scaled(3.9, 3.7, 0.5)
    }

    /// L2 (Xie et al. 2019, arXiv 1911.04252), for images of 800 × 800: 480,309,308 parameters.
    pub fn l2() -> Self {
        Self::scaled(4.3, 5.3, 0.5)
    }

    /// Lite0, for images of 224 × 224: 4,652,008 parameters. The Lite networks have ReLU6 and no
    /// squeeze-and-excitation.
    pub fn lite0() -> Self {
        Self::lite(1.0, 1.0, 0.2)
    }

    /// Lite1, for images of 240 × 240.
    pub fn lite1() -> Self {
        Self::lite(1.0, 1.1, 0.2)
    }

    /// Lite2, for images of 260 × 260.
    pub fn lite2() -> Self {
        Self::lite(1.1, 1.2, 0.3)
    }

    /// Lite3, for images of 280 × 280.
    pub fn lite3() -> Self {
        Self::lite(1.2, 1.4, 0.3)
    }

    /// Lite4, for images of 300 × 300.
    pub fn lite4() -> Self {
        Self::lite(1.4, 1.8, 0.3)
    }

    /// B0 with these factors, under TensorFlow's conventions, with SiLU.
    fn scaled(width: f64, depth: f64, dropout: f64) -> Self {
        Self {
            input_channels: 3,
            classes: 1000,
            width,
            depth,
            scaling: Scaling::Whole,
            squeeze_excite: Some(SqueezeExciteConfig { ratio: 0.25, activation: None }),
            padding: Padding::Same,
            norm_epsilon: 1e-3,
            norm_momentum: 0.01,
            stochastic_depth: 0.2,
            dropout,
            activation: Curve::Silu.into(),
            initialization: Initialization::default(),
        }
    }

    fn lite(width: f64, depth: f64, dropout: f64) -> Self {
        Self {
            scaling: Scaling::Body,
            squeeze_excite: None,
            activation: Curve::Relu6.into(),
            ..Self::scaled(width, depth, dropout)
        }
    }

    /// Sets padding and BatchNorm to those of an implementation.
    pub fn with_conventions(self, conventions: Conventions) -> Self {
        match conventions {
            Conventions::TensorFlow => self.with_padding(Padding::Same).with_norm(1e-3, 0.01),
            Conventions::Torchvision => self.with_padding(Padding::Symmetric).with_norm(1e-5, 0.1),
            Conventions::Paper => self.with_padding(Padding::Same).with_norm(1e-5, 0.1),
        }
    }

    /// Sets the padding of the convolutions.
    pub fn with_padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Sets what BatchNorm adds to the variance, and the share of the batch in its running statistics.
    pub fn with_norm(mut self, epsilon: f64, momentum: f64) -> Self {
        self.norm_epsilon = epsilon;
        self.norm_momentum = momentum;
        self
    }

    /// Sets the squeeze-and-excitation of every block, or removes it.
    pub fn with_squeeze_excite(mut self, config: Option<SqueezeExciteConfig>) -> Self {
        self.squeeze_excite = config;
        self
    }

    /// Sets the largest probability of stochastic depth.
    pub fn with_stochastic_depth(mut self, probability: f64) -> Self {
        self.stochastic_depth = probability;
        self
    }

    /// Sets the dropout before the classifier.
    pub fn with_dropout(mut self, probability: f64) -> Self {
        self.dropout = probability;
        self
    }

    common_setters!(
        "Sets the activation of every site; squeeze-and-excitation with an activation of its own \
         keeps it."
    );

    /// Checks every size, probability and activation. Call it on a configuration that comes from
    /// outside the program.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] that names the first bad field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_size("input_channels", self.input_channels)?;
        check_size("classes", self.classes)?;
        let factor = |value| value > 0.0 && value <= 100.0;
        check_range("width", self.width, "above 0 and at most 100", factor)?;
        check_range("depth", self.depth, "above 0 and at most 100", factor)?;
        if let Some(SqueezeExciteConfig { ratio, activation }) = &self.squeeze_excite {
            let share = |value| value > 0.0 && value <= 1.0;
            check_range("squeeze_excite.ratio", *ratio, "above 0 and at most 1", share)?;
            if let Some(activation) = activation {
                activation.validate()?;
            }
        }
        let positive = |value: f64| value.is_finite() && value > 0.0;
        check_range("norm_epsilon", self.norm_epsilon, "finite and above 0", positive)?;
        let momentum = |value| (0.0..=1.0).contains(&value);
        check_range("norm_momentum", self.norm_momentum, "between 0 and 1", momentum)?;
        let probability = |value| (0.0..1.0).contains(&value);
        check_range(
            "stochastic_depth",
            self.stochastic_depth,
            "at least 0 and below 1",
            probability,
        )?;
        check_range("dropout", self.dropout, "at least 0 and below 1", probability)?;
        Ok(self.activation.validate()?)
    }

    /// Builds the network on `device` with weights drawn from `seed`, as
    /// [`ResNetConfig::init`](crate::ResNetConfig::init) does. Dropout and stochastic depth draw from
    /// another stream of the same seed: [`EfficientNet::reseed`] starts it anew.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn init(&self, seed: u64, device: &Device) -> EfficientNet {
        let model =
            self.build(LayerBuilder::new(self.initialization, Family::Efficient, seed, device));
        model.reseed(seed);
        model
    }

    pub(crate) fn build(&self, mut layers: LayerBuilder<'_>) -> EfficientNet {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let is_whole = self.scaling == Scaling::Whole;
        let outer = |channels| if is_whole { scale_width(channels, self.width) } else { channels };
        let activation = Some(&self.activation);

        let mut channels = outer(STEM);
        let stem =
            self.conv_norm(&mut layers, [self.input_channels, channels], 3, 2, 1, activation);
        let depths: Vec<usize> = (0..STAGES.len())
            .map(|stage| {
                let is_fixed = !is_whole && (stage == 0 || stage == STAGES.len() - 1);
                let blocks = STAGES[stage][4];
                if is_fixed { blocks } else { (blocks as f64 * self.depth).ceil() as usize }
            })
            .collect();
        let total: usize = depths.iter().sum();
        let mut index = 0;
        let mut stages = Vec::with_capacity(STAGES.len());
        for ([expansion, kernel, stride, c_out, _], depth) in STAGES.into_iter().zip(depths) {
            let c_out = scale_width(c_out, self.width);
            let mut blocks = Vec::with_capacity(depth);
            for i in 0..depth {
                let stride = if i == 0 { stride } else { 1 };
                let shape = [channels, c_out];
                let drop = self.stochastic_depth * index as f64 / total as f64;
                blocks.push(self.block(&mut layers, shape, expansion, kernel, stride, drop));
                channels = c_out;
                index += 1;
            }
            stages.push(blocks);
        }
        let head = self.conv_norm(&mut layers, [channels, outer(HEAD)], 1, 1, 1, activation);
        EfficientNet {
            stem,
            stages,
            classifier: layers.linear(outer(HEAD), self.classes),
            head,
            shared: self.activation.init_shared(layers.device()),
            dropout: self.dropout,
            noise: Noise::default(),
        }
    }

    fn conv_norm(
        &self,
        layers: &mut LayerBuilder<'_>,
        shape: [usize; 2],
        kernel: usize,
        stride: usize,
        groups: usize,
        activation: Option<&ActivationConfig>,
    ) -> ConvNorm {
        let mut config = square(shape, kernel, stride).with_groups(groups);
        // Where the stride is 1, SAME is symmetric for odd kernels.
        if self.padding == Padding::Same && stride > 1 {
            config = config.with_padding(PaddingConfig2d::Same);
        }
        let norm = BatchNormActConfig {
            activation: activation.cloned(),
            ..BatchNormActConfig::new(shape[1])
                .with_epsilon(self.norm_epsilon)
                .with_momentum(self.norm_momentum)
        };
        ConvNorm { conv: layers.conv(config), norm: norm.init(layers.device()) }
    }

    fn block(
        &self,
        layers: &mut LayerBuilder<'_>,
        [c_in, c_out]: [usize; 2],
        expansion: usize,
        kernel: usize,
        stride: usize,
        drop: f64,
    ) -> Block {
        let activation = Some(&self.activation);
        let inner = c_in * expansion;
        Block {
            expand: (expansion != 1)
                .then(|| self.conv_norm(layers, [c_in, inner], 1, 1, 1, activation)),
            depthwise: self.conv_norm(layers, [inner, inner], kernel, stride, inner, activation),
            squeeze: self.squeeze_excite.as_ref().map(|config| {
                let hidden = ((c_in as f64 * config.ratio) as usize).max(1);
                let activation = config.activation.as_ref().unwrap_or(&self.activation);
                SqueezeExcite {
                    fc1: layers.conv(square([inner, hidden], 1, 1).with_bias(true)),
                    activation: activation.init(layers.device()),
                    fc2: layers.conv(square([hidden, inner], 1, 1).with_bias(true)),
                }
            }),
            project: self.conv_norm(layers, [inner, c_out], 1, 1, 1, None),
            adds: stride == 1 && c_in == c_out,
            drop,
        }
    }
}

/// `channels` times `width`, to the nearest multiple of 8 that is not more than a tenth smaller.
fn scale_width(channels: usize, width: f64) -> usize {
    let scaled = channels as f64 * width;
    let rounded = (((scaled + 4.0) / 8.0) as usize * 8).max(8);
    if (rounded as f64) < 0.9 * scaled { rounded + 8 } else { rounded }
}

/// The stream of dropout and stochastic depth. Clones share it, as they share running statistics.
#[derive(Clone)]
struct Noise(Arc<Mutex<ChaCha8Rng>>);

/// Not where the stream stands: how a network is printed says what it is, and checkpoints go by that.
impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Noise")
    }
}

fn stream(seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Stream 0 draws the weights.
    rng.set_stream(1);
    rng
}

impl Default for Noise {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(stream(0))))
    }
}

impl Noise {
    fn reseed(&self, seed: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stream(seed);
    }

    /// 0 with probability `drop`, else 1 / (1 - drop).
    fn mask<const D: usize>(&self, shape: [usize; D], drop: f64, like: &Tensor<D>) -> Tensor<D> {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = (1.0 / (1.0 - drop)) as f32;
        let threshold = drop * (u32::MAX as f64 + 1.0);
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| if f64::from(rng.next_u32()) < threshold { 0.0 } else { kept })
            .collect();
        Tensor::from_data(TensorData::new(values, shape), (&like.device(), like.dtype()))
    }
}

/// A convolution and the BatchNorm behind it, with its activation if it has one.
#[derive(Module, Debug)]
struct ConvNorm {
    conv: Conv2d,
    norm: BatchNormAct,
}

impl ConvNorm {
    fn forward(&self, x: Tensor<4>, shared: Option<&SharedParameters>) -> Tensor<4> {
        self.norm.forward_shared(self.conv.forward(x), None, shared)
    }

    fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.norm = self.norm.with_gradient(gradient);
        self
    }
}

#[derive(Module, Debug)]
struct SqueezeExcite {
    fc1: Conv2d,
    activation: Activation,
    fc2: Conv2d,
}

impl SqueezeExcite {
    fn forward(&self, x: Tensor<4>, shared: Option<&SharedParameters>) -> Tensor<4> {
        let [batch, channels, _, _] = x.dims();
        let mean = channel_means(x.clone()).reshape([batch, channels, 1, 1]);
        let hidden = self.activation.forward_shared(self.fc1.forward(mean), shared);
        let gate = sigmoid(self.fc2.forward(hidden));
        scale_channels(x, gate.reshape([batch, channels]))
    }
}

/// An inverted residual block (Sandler et al. 2018, arXiv 1801.04381): expand – depthwise – squeeze –
/// project, and the block's input added where the shape stays.
#[derive(Module, Debug)]
struct Block {
    expand: Option<ConvNorm>,
    depthwise: ConvNorm,
    squeeze: Option<SqueezeExcite>,
    project: ConvNorm,
    adds: bool,
    drop: f64,
}

impl Block {
    fn forward(
        &self,
        x: Tensor<4>,
        shared: Option<&SharedParameters>,
        noise: Option<&Noise>,
    ) -> Tensor<4> {
        let shortcut = self.adds.then(|| x.clone());
        let x = match &self.expand {
            Some(expand) => expand.forward(x, shared),
            None => x,
        };
        let mut x = self.depthwise.forward(x, shared);
        if let Some(squeeze) = &self.squeeze {
            x = squeeze.forward(x, shared);
        }
        let x = self.project.conv.forward(x);
        match (shortcut, noise) {
            (Some(shortcut), Some(noise)) if self.drop > 0.0 => {
                let x = self.project.norm.forward(x);
                let mask = noise.mask([x.dims()[0], 1, 1, 1], self.drop, &x);
                x * mask + shortcut
            }
            (shortcut, _) => self.project.norm.forward_shared(x, shortcut, shared),
        }
    }

    fn tally(&self, tally: &mut Tally, size: Size) -> Size {
        let mut size = size;
        for layer in [self.expand.as_ref(), Some(&self.depthwise)].into_iter().flatten() {
            size = tally.conv_norm(&layer.conv, &layer.norm, size);
        }
        if let Some(squeeze) = &self.squeeze {
            for conv in [&squeeze.fc1, &squeeze.fc2] {
                tally.conv(conv, [1, 1]);
            }
            tally.keep(self.depthwise.conv.weight.lazy_shape()[0], size);
        }
        tally.conv_norm(&self.project.conv, &self.project.norm, size)
    }

    fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.expand = self.expand.map(|layer| layer.with_gradient(gradient));
        self.depthwise = self.depthwise.with_gradient(gradient);
        self.squeeze = self.squeeze.map(|mut squeeze| {
            squeeze.activation = squeeze.activation.with_gradient(gradient);
            squeeze
        });
        self
    }

    /// The place of each part in torchvision's sequence: expand, depthwise, squeeze, project.
    fn places(&self) -> [usize; 4] {
        let depthwise = usize::from(self.expand.is_some());
        let project = depthwise + 1 + usize::from(self.squeeze.is_some());
        [0, depthwise, depthwise + 1, project]
    }
}

/// An EfficientNet. Made by [`EfficientNetConfig::init`].
///
/// [`ResNet`](crate::ResNet) says how `valid()` and `clone()` behave. Dropout and stochastic depth are
/// at work where BatchNorm uses the batch's statistics, and nowhere else.
#[derive(Module, Debug)]
pub struct EfficientNet {
    stem: ConvNorm,
    stages: Vec<Vec<Block>>,
    head: ConvNorm,
    classifier: Linear,
    shared: Option<SharedParameters>,
    dropout: f64,
    #[module(skip)]
    noise: Noise,
}

impl EfficientNet {
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
        let noise = self.noise(&images);
        let x = self.stem.forward(images, shared);
        let x = self.stages.iter().flatten().fold(x, |x, block| block.forward(x, shared, noise));
        let mut x = channel_means(self.head.forward(x, shared));
        if let Some(noise) = noise
            && self.dropout > 0.0
        {
            let mask = noise.mask(x.dims(), self.dropout, &x);
            x = x * mask;
        }
        self.classifier.forward(x)
    }

    /// The output of each stage, `[batch, channels, height, width]`, from the first stage to the last.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn features(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let shared = self.shared.as_ref();
        let noise = self.noise(&images);
        let x = self.stem.forward(images, shared);
        stage_outputs(x, &self.stages, |block, x| block.forward(x, shared, noise))
    }

    /// Starts the stream of dropout and stochastic depth anew. A training run that gives each step a
    /// seed of its own goes on after an interruption as if there had been none.
    pub fn reseed(&self, seed: u64) {
        self.noise.reseed(seed);
    }

    /// The stream, where the network trains.
    fn noise(&self, images: &Tensor<4>) -> Option<&Noise> {
        let trains = images.device().is_autodiff() && self.stem.norm.training.is_enabled();
        trains.then_some(&self.noise)
    }

    pub(crate) fn tally(&self, tally: &mut Tally, size: Size) {
        let mut size = tally.conv_norm(&self.stem.conv, &self.stem.norm, size);
        for block in self.stages.iter().flatten() {
            size = block.tally(tally, size);
        }
        tally.conv_norm(&self.head.conv, &self.head.norm, size);
        tally.linear(&self.classifier);
    }

    /// The same weights with another activation at every site, those in squeeze-and-excitation too;
    /// learnable parameters start anew.
    ///
    /// # Panics
    ///
    /// If [`ActivationConfig::validate`] refuses the activation.
    pub fn with_activation(self, activation: &ActivationConfig) -> Self {
        let device = self.classifier.weight.lazy_device();
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
        self.stem = self.stem.with_gradient(gradient);
        self.stages = each_block(self.stages, |block| block.with_gradient(gradient));
        self.head = self.head.with_gradient(gradient);
        self
    }
}

#[cfg(feature = "attack")]
impl sat_attack::Classifier for EfficientNet {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }

    fn reseed(&self, seed: u64) {
        self.reseed(seed);
    }
}

/// `conv.weight` is `0.weight`, `norm.weight` `1.weight`, the activation's parameters stand at 2.
fn in_sequence(part: &str) -> String {
    part.replace("norm.activation.", "2.").replace("conv.", "0.").replace("norm.", "1.")
}

impl StateDict for EfficientNet {
    /// torchvision's names. A network without squeeze-and-excitation, which torchvision has not, is
    /// numbered as torchvision would.
    fn state_key(&self, path: &str) -> String {
        if let Some((stage, rest)) = in_stage(path) {
            let mut parts = rest.splitn(3, '.');
            let (Some(block), Some(part), Some(rest)) = (parts.next(), parts.next(), parts.next())
            else {
                return path.to_owned();
            };
            let places = block.parse().ok().and_then(|i: usize| self.stages.get(stage)?.get(i));
            let [expand, depthwise, squeeze, project] = places.map_or([0; 4], Block::places);
            let place = format!("features.{}.{block}.block", stage + 1);
            return match part {
                "expand" => format!("{place}.{expand}.{}", in_sequence(rest)),
                "depthwise" => format!("{place}.{depthwise}.{}", in_sequence(rest)),
                "squeeze" => format!("{place}.{squeeze}.{rest}"),
                _ => format!("{place}.{project}.{}", in_sequence(rest)),
            };
        }
        match path.split_once('.') {
            Some(("stem", rest)) => format!("features.0.{}", in_sequence(rest)),
            Some(("head", rest)) => {
                format!("features.{}.{}", self.stages.len() + 1, in_sequence(rest))
            }
            Some(("classifier", rest)) => format!("classifier.1.{rest}"),
            _ => path.to_owned(),
        }
    }

    /// The names of timm (`blocks.0.0.conv_dw`) and of EfficientNet-Lite and its kin in PyTorch
    /// (`_blocks.0._depthwise_conv`).
    fn aliases(&self) -> Vec<(String, String)> {
        let last = self.stages.len() + 1;
        let mut aliases: Vec<(String, String)> = [
            ("conv_stem", "features.0.0".to_owned()),
            ("bn1", "features.0.1".to_owned()),
            ("conv_head", format!("features.{last}.0")),
            ("bn2", format!("features.{last}.1")),
            ("classifier", "classifier.1".to_owned()),
            ("_conv_stem", "features.0.0".to_owned()),
            ("_bn0", "features.0.1".to_owned()),
            ("_conv_head", format!("features.{last}.0")),
            ("_bn1", format!("features.{last}.1")),
            ("_fc", "classifier.1".to_owned()),
        ]
        .map(|(theirs, ours)| (theirs.to_owned(), ours))
        .into();
        let mut index = 0;
        for (s, stage) in self.stages.iter().enumerate() {
            for (i, block) in stage.iter().enumerate() {
                let [expand, depthwise, squeeze, project] = block.places();
                let ours = format!("features.{}.{i}.block", s + 1);
                let timm = format!("blocks.{s}.{i}");
                let lite = format!("_blocks.{index}");
                let mut conv_norm = |place: usize, theirs: [(&str, &str, &str); 2]| {
                    for (prefix, conv, norm) in theirs {
                        aliases.push((format!("{prefix}.{conv}"), format!("{ours}.{place}.0")));
                        aliases.push((format!("{prefix}.{norm}"), format!("{ours}.{place}.1")));
                    }
                };
                // timm names a block without expansion by its own scheme.
                let (dw, pw) = match &block.expand {
                    Some(_) => {
                        let theirs = [(&*timm, "conv_pw", "bn1"), (&*lite, "_expand_conv", "_bn0")];
                        conv_norm(expand, theirs);
                        ("bn2", ("conv_pwl", "bn3"))
                    }
                    None => ("bn1", ("conv_pw", "bn2")),
                };
                conv_norm(
                    depthwise,
                    [(&*timm, "conv_dw", dw), (&*lite, "_depthwise_conv", "_bn1")],
                );
                conv_norm(project, [(&*timm, pw.0, pw.1), (&*lite, "_project_conv", "_bn2")]);
                for (theirs, fc) in [
                    (format!("{timm}.se.conv_reduce"), "fc1"),
                    (format!("{timm}.se.conv_expand"), "fc2"),
                    (format!("{lite}._se_reduce"), "fc1"),
                    (format!("{lite}._se_expand"), "fc2"),
                ] {
                    aliases.push((theirs, format!("{ours}.{squeeze}.{fc}")));
                }
                index += 1;
            }
        }
        aliases
    }
}
