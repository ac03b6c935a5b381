//! What squeeze-and-excitation is made of, as operations of a backend.
//!
//! x is `[n, channels, ...]`, of any rank from 2; means and gates are `[n, channels]`.

mod autodiff;
pub(crate) mod composed;
#[cfg(feature = "flex")]
mod flex;

use burn::backend::{Backend, backend_extension, tensor::FloatTensor};

/// The operations a backend offers for gates on channels.
///
/// Every method has a body composed of Burn's own primitives, so an empty implementation is a
/// correct one. Users do not call this trait; they use [`channel_means`](crate::channel_means) and
/// [`scale_channels`](crate::scale_channels).
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
)]
pub trait GateBackend: Backend {
    /// The mean of each channel, with a gradient for x.
    fn channel_means(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::means::<Self>(x)
    }

    /// Each channel of x times its gate, with gradients for both.
    fn scale_channels(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::scale::<Self>(x, gate)
    }

    /// The gradients for x, which is each channel of grad times its gate, and for the gate, the sum
    /// of grad x over each channel.
    fn scale_channels_backward(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        composed::backward::<Self>(x, gate, grad)
    }
}

#[cfg(feature = "ndarray")]
impl GateBackend for burn::backend::NdArray {}

/// Reductions and products, which Burn's kernels do at the speed of memory.
#[cfg(feature = "cube")]
impl GateBackend for burn_cubecl::CubeBackend {}

/// Burn's fusion engine merges the composed bodies with their neighbours.
#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend + GateBackend> GateBackend for burn_fusion::Fusion<B> {}
