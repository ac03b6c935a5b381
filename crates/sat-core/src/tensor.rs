//! The activations as functions of a tensor, and the extension trait that makes them methods.
//!
//! All are elementwise, keep shape and dtype, compute in `f32` or better, and can be differentiated
//! once. NaN gives NaN. Quantized tensors are dequantized first, as Burn's own functions do it.

use crate::{
    activation::Gradient,
    backend::{ActivationBackend, Pair, fallback, is_extended},
    curve::Curve,
};
use burn::{backend::Dispatch, tensor::Tensor};

/// Applies a curve, or a value/gradient pair of curves, elementwise.
///
/// # Panics
///
/// If [`Curve::validate`] refuses a curve.
pub fn activate<const D: usize>(x: Tensor<D>, pair: impl Into<Pair>) -> Tensor<D> {
    let pair = pair.into();
    for curve in [pair.value, pair.slope()] {
        check(curve);
    }
    let x = x.dequantize();
    if !is_extended(&x.device()) {
        return fallback(x, None, pair);
    }
    Tensor::from_dispatch(Dispatch::activation(x.into_dispatch(), pair))
}

/// Applies a curve whose parameters are in a tensor, \[a\] or \[a, b\], with gradients for input and
/// parameters.
///
/// The parameters that stand in the value curve are not used.
///
/// # Panics
///
/// If the value curve has no parameters, the tensor does not hold as many as it has, or
/// [`Curve::validate`] refuses another curve as the gradient.
pub fn activate_with_parameters<const D: usize>(
    x: Tensor<D>,
    parameters: Tensor<1>,
    pair: impl Into<Pair>,
) -> Tensor<D> {
    let pair = pair.into();
    if let Gradient::Of(curve) = pair.gradient {
        check(curve);
    }
    let count = pair.value.parameters().len();
    assert!(count > 0, "activation `{}` has no parameters", pair.value.name());
    assert_eq!(parameters.dims(), [count], "shape of the parameters of `{}`", pair.value.name());
    let (x, parameters) = (x.dequantize(), parameters.dequantize());
    if !is_extended(&x.device()) {
        return fallback(x, Some(parameters), pair);
    }
    let y = Dispatch::parametric_activation(x.into_dispatch(), parameters.into_dispatch(), pair);
    Tensor::from_dispatch(y)
}

fn check(curve: Curve) {
    if let Err(error) = curve.validate() {
        panic!("{error}");
    }
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident($($a:ident),*) = $curve:expr;)*) => {
        $(
            $(#[$doc])*
            pub fn $name<const D: usize>(x: Tensor<D> $(, $a: f64)*) -> Tensor<D> {
                activate(x, $curve)
            }
        )*

        /// The activations as methods: `x.silu()`.
        ///
        /// Burn's own tensors have no such methods, so nothing is shadowed.
        pub trait ActivationExt: Sized {
            $(
                $(#[$doc])*
                fn $name(self $(, $a: f64)*) -> Self;
            )*
        }

        impl<const D: usize> ActivationExt for Tensor<D> {
            $(
                fn $name(self $(, $a: f64)*) -> Self {
                    $name(self $(, $a)*)
                }
            )*
        }
    };
}

functions! {
    /// max(0, x); see [`Curve::Relu`].
    relu() = Curve::Relu;
    /// min(max(0, x), 6); see [`Curve::Relu6`].
    relu6() = Curve::Relu6;
    /// x for x > 0, else a x; see [`Curve::LeakyRelu`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    leaky_relu(a) = Curve::LeakyRelu(a);
    /// ln(1 + e^x); see [`Curve::Softplus`].
    softplus() = Curve::Softplus;
    /// ln(1 + e^(a x))/a; see [`Curve::ParametricSoftplus`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    parametric_softplus(a) = Curve::ParametricSoftplus(a);
    /// x s(x); see [`Curve::Silu`].
    silu() = Curve::Silu;
    /// x Phi(x); see [`Curve::Gelu`].
    gelu() = Curve::Gelu;
    /// GELU's tanh form; see [`Curve::GeluTanh`].
    gelu_tanh() = Curve::GeluTanh;
    /// x tanh(ln(1 + e^x)); see [`Curve::Mish`].
    mish() = Curve::Mish;
    /// x s(a x); see [`Curve::Swish`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    swish(a) = Curve::Swish(a);
    /// x (s(a x) - b)/(1 - b); see [`Curve::ShiftedSwish`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`], or b not between 1e-15 and 0.999.
    shifted_swish(a, b) = Curve::ShiftedSwish(a, b);
    /// (x + sqrt(x^2 + a))/2; see [`Curve::Squareplus`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    squareplus(a) = Curve::Squareplus(a);
    /// x for x > 0, else a (e^x - 1); see [`Curve::Elu`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    elu(a) = Curve::Elu(a);
    /// x for x > 0, else a (e^(x/a) - 1); see [`Curve::Celu`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    celu(a) = Curve::Celu(a);
    /// x - ln(1 + a x)/a for x > 0, else 0; see [`Curve::SmoothRelu`].
    ///
    /// # Panics
    ///
    /// If a is not in [`Curve::PARAMETERS`].
    smooth_relu(a) = Curve::SmoothRelu(a);
}
