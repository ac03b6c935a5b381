use crate::{
    activation::{Activation, ActivationConfig, Function, Gradient, SharedParameters},
    backend::{NormActivation, NormBackend, Optional, Pair, is_extended},
    error::ActivationError,
    module::module,
};
use burn::{
    backend::Dispatch,
    module::{Flag, Param, RunningState},
    nn::BatchNorm,
    tensor::{DType, Device, FloatDType, Tensor, module as burns},
};
use serde::{Deserialize, Serialize};

/// A [`BatchNormAct`] as data.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use sat_core::{BatchNormActConfig, Curve};
///
/// let device = Device::flex().autodiff();
/// let norm = BatchNormActConfig::new(16).with_activation(Curve::Silu).init(&device);
/// let y = norm.forward(Tensor::<4>::ones([2, 16, 8, 8], &device));
/// # let _ = y;
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNormActConfig {
    /// Number of channels, at least 1.
    pub channels: usize,
    /// Added to the variance; finite and positive. PyTorch's default, 1e-5.
    #[serde(default = "epsilon")]
    pub epsilon: f64,
    /// Share of the batch in the running statistics, in [0, 1]. PyTorch's default, 0.1.
    #[serde(default = "momentum")]
    pub momentum: f64,
    /// What follows the normalisation; nothing if `None`.
    #[serde(default)]
    pub activation: Option<ActivationConfig>,
}

fn epsilon() -> f64 {
    1e-5
}

fn momentum() -> f64 {
    0.1
}

/// A field of a [`BatchNormActConfig`] that no layer can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NormError {
    /// There is no channel.
    #[error("BatchNormActConfig: `channels` is 0; it must be at least 1")]
    NoChannels,
    /// Epsilon is not finite and positive.
    #[error("BatchNormActConfig: `epsilon` is {0}; it must be finite and above 0")]
    Epsilon(f64),
    /// The momentum is not in [0, 1].
    #[error("BatchNormActConfig: `momentum` is {0}; it must be between 0 and 1")]
    Momentum(f64),
    /// The activation has a parameter out of its range.
    #[error("BatchNormActConfig: `activation`: {0}")]
    Activation(#[from] ActivationError),
}

impl BatchNormActConfig {
    /// Normalisation alone, with PyTorch's defaults.
    pub fn new(channels: usize) -> Self {
        Self { channels, epsilon: epsilon(), momentum: momentum(), activation: None }
    }

    /// Sets the activation behind the normalisation.
    pub fn with_activation(mut self, activation: impl Into<ActivationConfig>) -> Self {
        self.activation = Some(activation.into());
        self
    }

    /// Sets what is added to the variance.
    pub fn with_epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets the share of the batch in the running statistics.
    pub fn with_momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// A [`NormError`] that names the first bad field.
    pub fn validate(&self) -> Result<(), NormError> {
        if self.channels == 0 {
            return Err(NormError::NoChannels);
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(NormError::Epsilon(self.epsilon));
        }
        if !(0.0..=1.0).contains(&self.momentum) {
            return Err(NormError::Momentum(self.momentum));
        }
        match &self.activation {
            None => Ok(()),
            Some(activation) => Ok(activation.validate()?),
        }
    }

    /// Builds the layer on a device: gamma 1, beta 0, running mean 0, running variance 1.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error.
    pub fn init(&self, device: &Device) -> BatchNormAct {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let zeros = || Tensor::zeros([self.channels], device);
        let ones = || Tensor::ones([self.channels], device);
        BatchNormAct {
            gamma: Param::from_tensor(ones()),
            beta: Param::from_tensor(zeros()),
            training: Param::from_bool(true),
            running_mean: RunningState::new(zeros()),
            running_var: RunningState::new(ones()),
            momentum: self.momentum,
            epsilon: self.epsilon,
            activation: self.activation.as_ref().map(|activation| activation.init(device)),
        }
    }
}

/// Batch normalisation and the activation behind it as one operation, with the sum of a residual
/// block in between if there is one:
///
/// ```text
/// y = f(gamma (x - mean)/sqrt(variance + epsilon) + beta (+ residual))
/// ```
///
/// $$ y = f\left(\gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta \;(+\; r)\right) $$
///
/// Mean and variance are those of each channel, the second axis. On a device with autodiff, while the
/// layer is [training](Self::training), they are the batch's, with the biased variance, and move the
/// running statistics; elsewhere they are the running ones. As in PyTorch the running variance
/// takes up the *unbiased* variance of the batch, n/(n - 1) times the biased one for n values a
/// channel (Burn's own layer takes up the biased one). Ioffe and Szegedy 2015, arXiv 1502.03167.
///
/// `valid()` gives the layer for attacks and evaluation: it reads the running statistics, never moves
/// them, and shares no state with the original. A `clone()` shares the running statistics.
///
/// The backward pass keeps x and the residual, not the normalised values, and computes those again.
/// In inference mode it is one pass over the data for the gradients of x and the residual; in training
/// mode it is one for the sums of each channel, and for learned parameters of the activation, and one
/// that writes. A learnable activation whose backward pass uses [another curve](Gradient::Of) is an
/// operation of its own.
///
/// Stores see Burn's `BatchNorm`, so the adapters of `burn-store` for PyTorch find `weight` and `bias`
/// in gamma and beta.
#[derive(Clone, Debug)]
pub struct BatchNormAct {
    /// The gain of each channel, `[channels]`.
    pub gamma: Param<Tensor<1>>,
    /// The offset of each channel, `[channels]`.
    pub beta: Param<Tensor<1>>,
    /// Whether the layer trains on a device with autodiff; off in what `valid()` and `freeze()` give.
    pub training: Param<Flag>,
    /// The running mean, `[channels]`.
    pub running_mean: RunningState<Tensor<1>>,
    /// The running variance, unbiased, `[channels]`.
    pub running_var: RunningState<Tensor<1>>,
    /// What follows the normalisation; nothing if `None`.
    pub activation: Option<Activation>,
    momentum: f64,
    epsilon: f64,
}

module!(
    BatchNormAct in "Struct:BatchNorm";
    gamma, beta, training, running_mean, running_var, activation;
    momentum, epsilon
);

impl BatchNormAct {
    /// f(norm(x)).
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, channels, ...]`, of any rank from 2
    /// - output: as `x`
    ///
    /// # Panics
    ///
    /// If x has another number of channels, or if the layer is training and x has fewer than two
    /// values a channel: their unbiased variance does not exist (PyTorch refuses it too).
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_shared(x, None, None)
    }

    /// f(norm(x) + residual): the end of a residual block.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, channels, ...]`, of any rank from 2
    /// - `residual` and output: as `x`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), or if the residual has another shape or type than x.
    pub fn forward_with_residual<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Tensor<D>,
    ) -> Tensor<D> {
        self.forward_shared(x, Some(residual), None)
    }

    /// f(norm(x)) or f(norm(x) + residual), with the activation parameters that the network shares, if
    /// it shares any.
    ///
    /// # Panics
    ///
    /// As [`forward_with_residual`](Self::forward_with_residual), or if the activation needs shared
    /// parameters and there are none.
    pub fn forward_shared<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Option<Tensor<D>>,
        shared: Option<&SharedParameters>,
    ) -> Tensor<D> {
        let (x, residual) = (x.dequantize(), residual.map(Tensor::dequantize));
        if let Some(residual) = &residual {
            assert_eq!(x.dims(), residual.dims(), "x and the residual have the same shape");
            assert_eq!(x.dtype(), residual.dtype(), "x and the residual have the same type");
        }
        self.normalize(x, residual, shared)
    }

    /// Share of the batch in the running statistics.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// What is added to the variance.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// The same layer with another activation behind it.
    pub fn with_activation(mut self, activation: Option<Activation>) -> Self {
        self.activation = activation;
        self
    }

    /// The same layer with another gradient in the backward pass of its activation.
    ///
    /// # Panics
    ///
    /// If [`Curve::validate`](crate::Curve::validate) refuses the curve.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.activation = self.activation.map(|activation| activation.with_gradient(gradient));
        self
    }

    /// Burn's layer with the parameters, statistics and settings of this one, and the activation.
    ///
    /// Parameter identities are kept. Burn's layer will take up biased variances if it is trained on.
    pub fn into_parts(self) -> (BatchNorm, Option<Activation>) {
        let norm = BatchNorm {
            gamma: self.gamma,
            beta: self.beta,
            training: self.training,
            running_mean: self.running_mean,
            running_var: self.running_var,
            momentum: self.momentum,
            epsilon: self.epsilon,
        };
        (norm, self.activation)
    }

    fn normalize<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Option<Tensor<D>>,
        shared: Option<&SharedParameters>,
    ) -> Tensor<D> {
        let [channels] = self.gamma.shape().dims();
        assert!(
            D >= 2 && x.dims()[1] == channels,
            "input {:?}, but the normalisation has {channels} channels",
            x.dims()
        );
        // What can be fused, and what must run on its own.
        let fusible = |activation: &&Activation| {
            let ActivationConfig { function, gradient } = activation.config();
            let learnable = matches!(function, Function::Learnable(..));
            is_extended(&x.device()) && !(learnable && *gradient != Gradient::Own)
        };
        let kernel = self.activation.as_ref().filter(fusible).and_then(|a| a.kernel(shared));
        let (fused, separate) = match kernel {
            Some((pair, None)) => (NormActivation::Fixed(pair), None),
            Some((Pair { value, .. }, Some(parameters))) => {
                let count = value.parameters().len();
                assert_eq!(parameters.dims(), [count], "shape of the parameters of {value}");
                (NormActivation::Learned(value, parameters.into_dispatch()), None)
            }
            None => (NormActivation::Identity, self.activation.as_ref()),
        };
        let y = if x.device().is_autodiff() && self.training.is_enabled() {
            self.forward_train(x, residual, fused)
        } else {
            self.forward_inference(x, residual, fused)
        };
        match separate {
            None => y,
            Some(activation) => activation.forward_shared(y, shared),
        }
    }

    fn forward_inference<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Option<Tensor<D>>,
        activation: NormActivation<Dispatch>,
    ) -> Tensor<D> {
        // Not every backend's operations take an empty tensor.
        if x.shape().num_elements() == 0 {
            return x;
        }
        let device = x.device();
        let mean = self.running_mean.value().to_device(&device).dequantize();
        let variance = self.running_var.value().to_device(&device).dequantize();
        let (gamma, beta) = self.gain_and_offset();
        if !is_extended(&device) {
            let z = burns::batch_norm(x, gamma, beta, mean, variance, self.epsilon);
            return match residual {
                None => z,
                Some(residual) => z + residual,
            };
        }
        let dtype = arithmetic(x.dtype());
        let scale = gamma.cast(dtype) / (variance.cast(dtype) + self.epsilon).sqrt();
        let affine = Tensor::<1>::stack::<2>(vec![mean.cast(dtype), scale, beta.cast(dtype)], 0);
        Tensor::from_dispatch(Dispatch::affine_activation(
            x.into_dispatch(),
            affine.into_dispatch(),
            Optional::from(residual.map(Tensor::into_dispatch)),
            activation,
        ))
    }

    /// Gamma and beta, also of a layer that was quantized.
    fn gain_and_offset(&self) -> (Tensor<1>, Tensor<1>) {
        (self.gamma.val().dequantize(), self.beta.val().dequantize())
    }

    fn forward_train<const D: usize>(
        &self,
        x: Tensor<D>,
        residual: Option<Tensor<D>>,
        activation: NormActivation<Dispatch>,
    ) -> Tensor<D> {
        let device = x.device();
        let (gamma, beta) = self.gain_and_offset();
        let values = x.shape().num_elements() / gamma.dims()[0];
        assert!(
            values >= 2,
            "training needs two values a channel, but the input is {:?}",
            x.dims()
        );
        let (y, mean, variance) = if is_extended(&device) {
            let (y, statistics) = Dispatch::batch_norm_activation(
                x.into_dispatch(),
                gamma.into_dispatch(),
                beta.into_dispatch(),
                Optional::from(residual.map(Tensor::into_dispatch)),
                activation,
                self.epsilon,
            );
            let [mean, variance] =
                Tensor::<2>::from_dispatch(statistics).chunk(2, 0).try_into().expect("two rows");
            (Tensor::from_dispatch(y), mean.squeeze_dim::<1>(0), variance.squeeze_dim::<1>(0))
        } else {
            let output = burns::batch_norm_train(x, gamma, beta, self.epsilon);
            let y = match residual {
                None => output.output,
                Some(residual) => output.output + residual,
            };
            (y, output.mean, output.variance)
        };
        let unbiased = values as f64 / (values - 1) as f64;
        for (running, batch) in
            [(&self.running_mean, mean), (&self.running_var, variance * unbiased)]
        {
            let old = running.value_sync().to_device(&device).dequantize();
            let batch = batch.detach().cast(old.dtype());
            let new = old * (1.0 - self.momentum) + batch * self.momentum;
            running.update(new.detach());
        }
        y
    }
}

/// Burn's layer, with no activation behind it: [`with_activation`](BatchNormAct::with_activation)
/// adds one. Parameters keep their identities. The running variance is taken as it is: Burn keeps it
/// biased, which no conversion can mend, and the batches to come replace it.
impl From<BatchNorm> for BatchNormAct {
    fn from(norm: BatchNorm) -> Self {
        Self {
            gamma: norm.gamma,
            beta: norm.beta,
            training: norm.training,
            running_mean: norm.running_mean,
            running_var: norm.running_var,
            activation: None,
            momentum: norm.momentum,
            epsilon: norm.epsilon,
        }
    }
}

/// The type the backends compute in.
fn arithmetic(dtype: DType) -> FloatDType {
    match dtype {
        DType::F64 => FloatDType::F64,
        _ => FloatDType::F32,
    }
}
