//! The step of an Linf attack as an operation of a backend.

mod composed;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "flex")]
mod flex;

pub(crate) use composed::sign_step as composed_sign_step;

use burn::backend::{
    Autodiff, Backend, autodiff::checkpoint::strategy::CheckpointStrategy, backend_extension,
    tensor::FloatTensor,
};

/// The operation a backend offers for attacks in Linf.
///
/// It has a body composed of Burn's own primitives, so an empty implementation is a correct one.
/// Users do not call this trait; they use [`sign_step`](crate::sign_step).
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
)]
pub trait StepBackend: Backend {
    /// min(max(x + size sign(gradient), lower), upper), with one size for each index of the first
    /// axis. All have the shape of x, but for size: `[n, 1, ..]`.
    fn sign_step(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: FloatTensor<Self>,
        lower: FloatTensor<Self>,
        upper: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::sign_step::<Self>(x, gradient, size, lower, upper)
    }
}

/// Nobody differentiates an attack's step; who does gets Burn's own gradients.
impl<B: Backend, C: CheckpointStrategy> StepBackend for Autodiff<B, C> {}

#[cfg(feature = "ndarray")]
impl StepBackend for burn::backend::NdArray {}

/// Burn's fusion engine merges the composed body with its neighbours.
#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend + StepBackend> StepBackend for burn_fusion::Fusion<B> {}
