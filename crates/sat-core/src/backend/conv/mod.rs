//! Convolution as operations of a backend.

mod autodiff;
mod composed;
#[cfg(feature = "flex")]
mod flex;

use burn::{
    backend::{Backend, backend_extension, tensor::FloatTensor},
    tensor::ops::ConvOptions,
};

/// The operations a backend offers for two-dimensional convolution, `[batch, channels, height, width]`
/// with weights `[channels_out, channels_in / groups, kernel_height, kernel_width]`.
///
/// Every method has a body that calls Burn's own operation, so an empty implementation is a correct
/// one. Users do not call this trait; they use [`Conv2d`](crate::Conv2d).
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
)]
pub trait ConvBackend: Backend {
    /// The convolution of x, with gradients for x and the weight.
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        composed::forward::<Self>(x, weight, options)
    }

    /// The gradient for an input of the given height and width. Has no gradient itself.
    fn convolution_input_gradient(
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        size: [usize; 2],
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        composed::input_gradient::<Self>(weight, grad, size, options)
    }

    /// The gradient for weights of the given height and width. Has no gradient itself.
    fn convolution_weight_gradient(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kernel: [usize; 2],
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        composed::weight_gradient::<Self>(x, grad, kernel, options)
    }
}

#[cfg(feature = "ndarray")]
impl ConvBackend for burn::backend::NdArray {}

#[cfg(feature = "cube")]
impl ConvBackend for burn_cubecl::CubeBackend {}

/// Burn's own convolutions, which its fusion engine knows.
#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend + ConvBackend> ConvBackend for burn_fusion::Fusion<B> {}
