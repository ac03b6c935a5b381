//! Activations as operations of a backend.

// Without a backend the generated dispatch has nowhere to pass its arguments to.
#![cfg_attr(
    not(any(feature = "flex", feature = "ndarray", feature = "cube")),
    allow(unused_variables)
)]

mod autodiff;
mod composed;
#[cfg(feature = "flex")]
mod flex;

use crate::{activation::Gradient, curve::Curve};
use burn::{
    backend::{Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor},
    tensor::Device,
};

/// A value curve and the gradient its backward pass uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The curve of the forward pass.
    pub value: Curve,
    /// The curve of the backward pass.
    pub gradient: Gradient,
}

impl Pair {
    /// The curve whose derivative the backward pass uses.
    pub fn slope(&self) -> Curve {
        match self.gradient {
            Gradient::Own => self.value,
            Gradient::Of(curve) => curve,
        }
    }
}

impl From<Curve> for Pair {
    fn from(value: Curve) -> Self {
        Self { value, gradient: Gradient::Own }
    }
}

/// The operations a backend offers for activations.
///
/// Every method has a body composed of Burn's own primitives, so an empty implementation is a
/// correct one. Users do not call this trait; they use [`Activation`](crate::Activation) or the
/// functions in [`tensor`](crate::tensor).
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Fusion: cfg(feature = "cube"),
)]
pub trait ActivationBackend: Backend {
    /// f(x)
    #[fusion(default)]
    fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
        composed::value::<Self>(x, None, pair.value)
    }

    /// The gradient for x: grad * f'(x).
    #[fusion(default)]
    fn activation_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::backward::<Self>(x, None, grad, curve)
    }

    /// f(x; a) with the parameter in a one-element tensor.
    #[fusion(default)]
    fn parametric_activation(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        composed::value::<Self>(x, Some(a), pair.value)
    }

    /// The gradient for x: grad * df/dx.
    #[fusion(default)]
    fn parametric_activation_backward(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::backward::<Self>(x, Some(a), grad, curve)
    }

    /// The gradient for a: the sum of grad * df/da, in a tensor of a's shape.
    #[fusion(default)]
    fn parametric_activation_parameter_backward(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::parameter_backward::<Self>(x, a, grad, curve)
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn keeps NdArray working; so do we.
impl ActivationBackend for burn::backend::NdArray {}

#[cfg(feature = "cube")]
impl ActivationBackend for burn_cubecl::CubeBackend {}

/// Whether calls on this device reach an implementation of [`ActivationBackend`].
///
/// The application may have enabled a backend of Burn that this crate was not built for; there the
/// composed form runs, with Burn's own differentiation.
pub(crate) fn is_extended(device: &Device) -> bool {
    fn inner(device: &DispatchDevice) -> bool {
        match device {
            #[cfg(feature = "flex")]
            DispatchDevice::Flex(_) => true,
            #[cfg(feature = "ndarray")]
            DispatchDevice::NdArray(_) => true,
            #[cfg(feature = "cube")]
            DispatchDevice::Cube(_) => true,
            DispatchDevice::Autodiff(device) => inner(device),
            #[allow(unreachable_patterns)]
            // Which other variants exist is the application's choice.
            _ => false,
        }
    }
    inner(device.as_dispatch())
}

/// f(x) on a device without an implementation, differentiated by Burn.
///
/// A gradient of another curve g comes from y = f(x) + (g(x) - g(x)), where f and the second g are
/// cut from x. The difference is zero, so the value is f(x) to the bit.
pub(crate) fn fallback(
    x: FloatTensor<Dispatch>,
    a: Option<FloatTensor<Dispatch>>,
    pair: Pair,
) -> FloatTensor<Dispatch> {
    use burn::backend::ops::FloatTensorOps;

    match pair.gradient {
        Gradient::Own => composed::value::<Dispatch>(x, a, pair.value),
        Gradient::Of(curve) => {
            let value =
                composed::value::<Dispatch>(Dispatch::float_detach(x.clone()), a, pair.value);
            let guide = composed::value::<Dispatch>(x, None, curve);
            let zero = Dispatch::float_sub(guide.clone(), Dispatch::float_detach(guide));
            Dispatch::float_add(value, zero)
        }
    }
}
