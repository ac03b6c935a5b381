//! Normalisation fused with the residual sum and the activation behind it, as operations of a backend.
//!
//! All of them speak of the preactivation
//!
//! ```text
//! z = (x - m) s + b (+ r),    y = f(z)
//! ```
//!
//! where the channel is the second axis of x and r, and m, s and b are the three rows of `affine`,
//! `[3, channels]`. No activation means f(z) = z. Channel vectors (`affine`, statistics, sums) are in
//! the type arithmetic is done in: `f64` for `f64` tensors and `f32` for all others.

mod autodiff;
mod composed;
#[cfg(feature = "flex")]
mod flex;

#[cfg(feature = "flex")]
pub(super) use flex::Number;

use super::Pair;
use burn::backend::{Backend, ExtensionType, backend_extension, tensor::FloatTensor};

/// An argument that may be left out. Burn's dispatch takes no `Option` of a tensor.
#[derive(Clone, Debug, ExtensionType)]
pub enum Optional<B: Backend> {
    /// The tensor.
    Tensor(FloatTensor<B>),
    /// Left out.
    Absent,
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Optional<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::Absent, Self::Tensor)
    }
}

impl<B: Backend> Optional<B> {
    /// As an `Option`.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Absent => None,
        }
    }
}

/// The operations a backend offers for fused normalisation.
///
/// Every method has a body composed of Burn's own primitives, so an empty implementation is a
/// correct one. Users do not call this trait; they use [`BatchNormAct`](crate::BatchNormAct).
///
/// The forward operations are [`affine_activation`](Self::affine_activation) and
/// [`batch_norm_activation`](Self::batch_norm_activation); the others are what their gradients are
/// made of and have none themselves.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
)]
pub trait NormBackend: Backend {
    /// f(z), with gradients for x, affine and the residual.
    #[fusion(default)]
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, affine, residual.into_option(), activation)
    }

    /// f(z) with the statistics of the batch: m is its mean, s = gamma/sqrt(variance + epsilon), and
    /// b = beta. Returns f(z) and what [`channel_statistics`](Self::channel_statistics) returns, with
    /// gradients from f(z) alone to x, gamma, beta and the residual.
    #[fusion(default)]
    fn batch_norm_activation(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        activation: Option<Pair>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let statistics = Self::channel_statistics(x.clone());
        let affine = composed::batch_affine::<Self>(statistics.clone(), gamma, beta, epsilon);
        (Self::affine_activation(x, affine, residual, activation), statistics)
    }

    /// Mean and biased variance of each channel, `[2, channels]`.
    #[fusion(default)]
    fn channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::statistics::<Self>(x)
    }

    /// The gradient for x, with dz = grad f'(z): s dz where m and s are constants. With the statistics
    /// of the batch, they move with x, and it is s dz - d - e (x - m), with the two rows d and e of
    /// `correction`, `[2, channels]`.
    #[fusion(default)]
    fn affine_activation_backward(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: Option<Pair>,
        #[extension_type] correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        let (residual, correction) = (residual.into_option(), correction.into_option());
        composed::backward::<Self>(x, affine, residual, grad, activation, correction)
    }

    /// The gradients s dz for x and dz for the residual.
    #[fusion(default)]
    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::backward_both::<Self>(x, affine, residual, grad, activation)
    }

    /// The sums of dz and of dz (x - m) over each channel, `[2, channels]`.
    #[fusion(default)]
    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        #[extension_type] residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        composed::sums::<Self>(x, affine, residual.into_option(), grad, activation)
    }

    /// dz, which is the gradient for the residual, and the
    /// [sums](Self::affine_activation_sums) over it.
    #[fusion(default)]
    fn affine_activation_residual_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::residual_sums::<Self>(x, affine, residual, grad, activation)
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn keeps NdArray working; so do we.
impl NormBackend for burn::backend::NdArray {}

#[cfg(feature = "cube")]
impl NormBackend for burn_cubecl::CubeBackend {}
