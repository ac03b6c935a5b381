//! Seeded initialisation of layers.

use burn::module::Param;
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sat_core::{ActivationConfig, BatchNormAct, BatchNormActConfig, Conv2d, Conv2dConfig};
use serde::{Deserialize, Serialize};

/// How the weights of a network are drawn.
///
/// Both draw convolutions from He's normal distribution with fan-out, N(0, 2 / (k² · c_out)), and
/// start BatchNorm at γ = 1, β = 0 (He et al. 2015, arXiv 1502.01852).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialization {
    /// The recipe of smooth adversarial training (Xie et al. 2020, arXiv 2006.14536): γ = 0 in the
    /// last BatchNorm of each residual block, so that every block starts as its shortcut;
    /// classifier weights from N(0, 0.01²), that is a standard deviation of 0.01; bias 0.
    #[default]
    Paper,
    /// The defaults of torchvision's ResNets: γ = 1 everywhere; classifier weights and bias
    /// uniform in ±1/√(inputs).
    Torchvision,
}

/// Builds layers whose parameters come from one seeded stream.
///
/// Burn draws a parameter from a process-wide generator when it is first used. Here the values are
/// drawn on the host, in the order of construction, and the parameters exist at once: the same
/// seed gives the same bits on every machine and backend.
pub(crate) struct LayerBuilder<'a> {
    scheme: Initialization,
    rng: ChaCha8Rng,
    device: &'a Device,
}

impl<'a> LayerBuilder<'a> {
    pub(crate) fn new(scheme: Initialization, seed: u64, device: &'a Device) -> Self {
        Self { scheme, rng: ChaCha8Rng::seed_from_u64(seed), device }
    }

    /// A square convolution without bias, padded so that stride 1 keeps the size.
    pub(crate) fn conv(
        &mut self,
        [c_in, c_out]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Conv2d {
        let pad = kernel / 2;
        let mut conv = Conv2dConfig::new([c_in, c_out], [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(false)
            .init(self.device);
        let std = (2.0 / (kernel * kernel * c_out) as f64).sqrt();
        let values = self.normal(c_out * c_in * kernel * kernel, std);
        let data = TensorData::new(values, [c_out, c_in, kernel, kernel]);
        conv.weight = Param::from_data(data, self.device);
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
        if self.scheme == Initialization::Paper {
            norm.gamma = Param::from_tensor(Tensor::zeros([channels], self.device));
        }
        norm
    }

    /// The classifier.
    pub(crate) fn linear(&mut self, inputs: usize, outputs: usize) -> Linear {
        let (weight, bias) = match self.scheme {
            Initialization::Paper => (self.normal(inputs * outputs, 0.01), vec![0.0; outputs]),
            Initialization::Torchvision => {
                let bound = 1.0 / (inputs as f64).sqrt();
                (self.uniform(inputs * outputs, bound), self.uniform(outputs, bound))
            }
        };
        let mut linear = LinearConfig::new(inputs, outputs).init(self.device);
        linear.weight = Param::from_data(TensorData::new(weight, [inputs, outputs]), self.device);
        linear.bias = Some(Param::from_data(TensorData::new(bias, [outputs]), self.device));
        linear
    }

    /// Uniform in (0, 1], with 53 bits.
    fn unit(&mut self) -> f64 {
        ((self.rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
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
