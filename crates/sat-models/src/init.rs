//! Seeded initialisation of layers.

use burn::module::Param;
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sat_core::{ActivationConfig, BatchNormAct, BatchNormActConfig};
use serde::{Deserialize, Serialize};

// The one place that names the convolution all networks use.
pub(crate) use sat_core::{Conv2d, Conv2dConfig};

/// How the weights of a network are drawn.
///
/// Every scheme draws convolutions from He's normal distribution with fan-out, N(0, 2 / (k² · c_out))
/// for a k × k kernel (He et al. 2015, arXiv 1502.01852), and starts BatchNorm at γ = 1, β = 0. The
/// rest differs:
///
/// | | last γ of a residual block | classifier of ResNets | EfficientNet's grouped convolutions |
/// |---|---|---|---|
/// | `Paper` | 0 | N(0, 0.01²), bias 0 | c_out divided by the groups |
/// | `Torchvision` | 1 | weights and bias uniform in ±1/√inputs | c_out whole |
/// | `Timm` | 0 | weights and bias uniform in ±1/√inputs | c_out divided by the groups |
/// | `TensorFlow` | 0 | N(0, 0.01²), bias 0 | c_out divided by the groups |
///
/// EfficientNet's classifier is uniform in ±1/√classes with bias 0 in all four; its blocks have no γ
/// that starts at 0. Pre-activation networks have none either, since no BatchNorm ends their blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialization {
    /// The recipe of smooth adversarial training (Xie et al. 2020, arXiv 2006.14536), which begins
    /// with every residual block as its shortcut.
    #[default]
    Paper,
    /// torchvision's defaults.
    Torchvision,
    /// timm's defaults.
    Timm,
    /// TensorFlow's official models. The same as [`Paper`](Self::Paper), whose networks come from
    /// there.
    TensorFlow,
}

impl Initialization {
    fn zeroes_last_gamma(self) -> bool {
        self != Self::Torchvision
    }
}

/// What differs in how the schemes draw.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Family {
    Residual,
    Efficient,
}

/// A square convolution without bias, padded so that stride 1 keeps the size.
pub(crate) fn square(channels: [usize; 2], kernel: usize, stride: usize) -> Conv2dConfig {
    let pad = kernel / 2;
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .with_bias(false)
}

/// Builds layers whose parameters come from one seeded stream.
///
/// Burn draws a parameter from a process-wide generator when it is first used. Here the values are
/// drawn on the host, in the order of construction, and the parameters exist at once: the same
/// seed gives the same bits on every machine and backend.
pub(crate) struct LayerBuilder<'a> {
    scheme: Initialization,
    family: Family,
    /// `None` leaves the large tensors zeros that nobody allocates before they are used.
    rng: Option<ChaCha8Rng>,
    device: &'a Device,
}

impl<'a> LayerBuilder<'a> {
    pub(crate) fn new(
        scheme: Initialization,
        family: Family,
        seed: u64,
        device: &'a Device,
    ) -> Self {
        Self { scheme, family, rng: Some(ChaCha8Rng::seed_from_u64(seed)), device }
    }

    /// For networks whose weights come from a file, or whose shapes alone matter.
    pub(crate) fn without_values(family: Family, device: &'a Device) -> Self {
        Self { scheme: Initialization::default(), family, rng: None, device }
    }

    pub(crate) fn device(&self) -> &'a Device {
        self.device
    }

    /// A convolution; its bias, if it has one, is 0.
    pub(crate) fn conv(&mut self, config: Conv2dConfig) -> Conv2d {
        let config = config.with_initializer(Initializer::Zeros);
        let mut conv = config.init(self.device);
        if self.rng.is_none() {
            return conv;
        }
        let [c_in, c_out] = config.channels;
        let [height, width] = config.kernel_size;
        let divided =
            self.family == Family::Efficient && self.scheme != Initialization::Torchvision;
        let fan_out = height * width * c_out / if divided { config.groups } else { 1 };
        let shape = [c_out, c_in / config.groups, height, width];
        let values = self.normal(shape.iter().product(), (2.0 / fan_out as f64).sqrt());
        conv.weight = Param::from_data(TensorData::new(values, shape), self.device);
        if config.bias {
            conv.bias = Some(Param::from_tensor(Tensor::zeros([c_out], self.device)));
        }
        conv
    }

    /// BatchNorm with γ = 1 and the activation behind it.
    pub(crate) fn norm(&self, channels: usize, activation: &ActivationConfig) -> BatchNormAct {
        BatchNormActConfig::new(channels).with_activation(activation.clone()).init(self.device)
    }

    /// The BatchNorm of a shortcut: γ = 1 and no activation.
    pub(crate) fn shortcut_norm(&self, channels: usize) -> BatchNormAct {
        BatchNormActConfig::new(channels).init(self.device)
    }

    /// The BatchNorm that ends a residual branch, with the activation behind the sum.
    pub(crate) fn last_norm(&self, channels: usize, activation: &ActivationConfig) -> BatchNormAct {
        let mut norm = self.norm(channels, activation);
        if self.scheme.zeroes_last_gamma() {
            norm.gamma = Param::from_tensor(Tensor::zeros([channels], self.device));
        }
        norm
    }

    /// The classifier.
    pub(crate) fn linear(&mut self, inputs: usize, outputs: usize) -> Linear {
        let config = LinearConfig::new(inputs, outputs).with_initializer(Initializer::Zeros);
        let mut linear = config.init(self.device);
        if self.rng.is_none() {
            return linear;
        }
        let count = inputs * outputs;
        let (weight, bias) = match (self.family, self.scheme) {
            (Family::Efficient, _) => {
                (self.uniform(count, 1.0 / (outputs as f64).sqrt()), vec![0.0; outputs])
            }
            (_, Initialization::Paper | Initialization::TensorFlow) => {
                (self.normal(count, 0.01), vec![0.0; outputs])
            }
            (_, Initialization::Torchvision | Initialization::Timm) => {
                let bound = 1.0 / (inputs as f64).sqrt();
                (self.uniform(count, bound), self.uniform(outputs, bound))
            }
        };
        linear.weight = Param::from_data(TensorData::new(weight, [inputs, outputs]), self.device);
        linear.bias = Some(Param::from_data(TensorData::new(bias, [outputs]), self.device));
        linear
    }

    /// Uniform in (0, 1], with 53 bits.
    fn unit(&mut self) -> f64 {
        let rng = self.rng.as_mut().expect("values are drawn only where there is a stream");
        ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn uniform(&mut self, count: usize, bound: f64) -> Vec<f32> {
        (0..count).map(|_| ((2.0 * self.unit() - 1.0) * bound) as f32).collect()
    }

    /// Normal values by Box and Muller's method. `libm` rather than the platform's functions, which
    /// differ in the last bit from one system to the next.
    fn normal(&mut self, count: usize, std: f64) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = std * libm::sqrt(-2.0 * libm::log(self.unit()));
            let (sin, cos) = libm::sincos(std::f64::consts::TAU * self.unit());
            values.push((radius * cos) as f32);
            values.push((radius * sin) as f32);
        }
        values.truncate(count);
        values
    }
}
