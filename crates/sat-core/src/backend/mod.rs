//! The operations of this crate as traits of a backend, which the modules and functions of the crate
//! call.

// Without a backend the generated dispatch has nowhere to pass its arguments to.
#![cfg_attr(
    not(any(feature = "flex", feature = "ndarray", feature = "cube")),
    allow(unused_variables)
)]

mod autodiff;
#[cfg(any(feature = "flex", feature = "ndarray"))]
#[cfg_attr(not(feature = "flex"), allow(dead_code, unused_imports))] // NdArray needs a part.
mod block;
mod composed;
mod conv;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod elementwise;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod gate;
#[cfg(feature = "ndarray")]
mod ndarray;
mod norm;
#[cfg(any(feature = "flex", feature = "ndarray"))]
#[cfg_attr(not(feature = "flex"), allow(dead_code, unused_imports))] // NdArray needs a part.
mod number;
mod step;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod threads;

pub use conv::ConvBackend;
pub use gate::GateBackend;
pub use norm::{NormActivation, NormBackend, Optional};
pub use step::StepBackend;
pub(crate) use step::composed_sign_step;

use crate::{activation::Gradient, curve::Curve};
use burn::{
    backend::{Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor},
    tensor::{Device, Tensor},
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
)]
pub trait ActivationBackend: Backend {
    /// f(x)
    fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
        composed::value::<Self>(x, None, pair.value)
    }

    /// The gradient for x: grad * f'(x). Has no gradient itself.
    fn activation_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::backward::<Self>(x, None, grad, curve)
    }

    /// f(x) with the curve's parameters in a tensor of one axis.
    fn parametric_activation(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        composed::value::<Self>(x, Some(parameters), pair.value)
    }

    /// The gradient for x: grad * df/dx. Has no gradient itself.
    fn parametric_activation_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::backward::<Self>(x, Some(parameters), grad, curve)
    }

    /// The gradient for the parameters: the sums of grad * df/da and grad * df/db, in a tensor of
    /// the parameters' shape. Has no gradient itself.
    fn parametric_activation_parameter_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        composed::parameter_backward::<Self>(x, parameters, grad, curve)
    }
}

/// Burn's fusion engine merges the composed body with its neighbours, which a kernel of our own would
/// cut apart. By hand, not through the macro, so that the crate compiles beside an application with
/// fusion and beside one without.
#[cfg(feature = "cube")]
impl<B: burn_fusion::FusionBackend + ActivationBackend> ActivationBackend
    for burn_fusion::Fusion<B>
{
}

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

/// f(x) on a device without an implementation of [`ActivationBackend`].
///
/// Burn differentiates it, but not through the formula, whose pieces have kinks that cancel: through
/// y = f(x') + (x - x') s + (a - a') p, where x' and a' are cut from the graph and s and p are the
/// slopes at them. The differences are zero, so the value is f(x).
pub(crate) fn fallback<const D: usize>(
    x: Tensor<D>,
    parameters: Option<Tensor<1>>,
    pair: Pair,
) -> Tensor<D> {
    let tracked = parameters.as_ref().is_some_and(Tensor::is_autodiff);
    let x = if tracked && !x.is_autodiff() { x.autodiff() } else { x };
    let constant = x.clone().detach();
    let fixed = || constant.clone().into_dispatch();
    let fixed_parameters = || parameters.clone().map(|p| p.detach().into_dispatch());
    let value = composed::value::<Dispatch>(fixed(), fixed_parameters(), pair.value);
    let value = Tensor::from_dispatch(value);
    if !x.is_autodiff() {
        return value;
    }
    let slope = match pair.gradient {
        Gradient::Own => composed::slope::<Dispatch>(fixed(), fixed_parameters(), pair.value),
        Gradient::Of(curve) => composed::slope::<Dispatch>(fixed(), None, curve),
    };
    // Infinity minus itself is no number: there the output is cut from the graph.
    let zero = (x.clone() - constant.clone()).mask_fill(constant.clone().is_inf(), 0.0);
    let mut y = value + zero * Tensor::<D>::from_dispatch(slope).cast(x.dtype());
    if let (Some(parameters), Some(fixed_parameters)) = (&parameters, fixed_parameters()) {
        let zeros = parameters.clone() - parameters.clone().detach();
        let slopes = composed::parameter_slopes::<Dispatch>(fixed(), fixed_parameters, pair.value);
        for (i, slope) in slopes.into_iter().enumerate() {
            let zero = zeros.clone().narrow(0, i, 1).reshape([1; D]);
            let slope = Tensor::<D>::from_dispatch(slope).cast(x.dtype());
            y = y + slope * zero.cast(x.dtype());
        }
    }
    y
}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
mod tests {
    use super::*;
    use crate::tensor::{activate, activate_with_parameters};
    use burn::tensor::TensorData;

    const X: [f32; 9] = [-1e30, -20.0, -1.5, -0.0, 0.0, 1e-3, 0.75, 30.0, 1e30];

    fn run(f: impl Fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> [Vec<f32>; 3] {
        let device = Device::flex().autodiff();
        let x = Tensor::<1>::from_data(X, &device).require_grad();
        let a = Tensor::<1>::from_data([2.5], &device).require_grad();
        let y = f(x.clone(), a.clone());
        let weights = Tensor::<1>::from_data(TensorData::from([0.5f32; 9]), &device);
        let grads = (y.clone() * weights).sum().backward();
        let to_vec = |t: Option<Tensor<1>>| -> Vec<f32> {
            t.map_or(vec![0.0], |t| t.into_data().try_into_vec().unwrap())
        };
        [to_vec(Some(y.inner())), to_vec(x.grad(&grads)), to_vec(a.grad(&grads))]
    }

    fn assert_close(got: [Vec<f32>; 3], want: [Vec<f32>; 3], what: &str) {
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            let close = (got - want).abs() <= 2e-6 * want.abs().max(1.0);
            assert!(close, "{what}: {got}, not {want}");
        }
    }

    #[test]
    fn the_fallback_has_the_values_and_gradients_of_the_kernels() {
        for &value in Curve::ALL {
            for gradient in [Gradient::Own, Gradient::Of(Curve::ParametricSoftplus(10.0))] {
                let pair = Pair { value, gradient };
                let want = run(|x, _| activate(x, pair));
                let got = run(|x, _| fallback(x, None, pair));
                assert_close(got, want, &format!("{pair:?}"));
                if value.parameters().len() == 1 {
                    let want = run(|x, a| activate_with_parameters(x, a, pair));
                    let got = run(|x, a| fallback(x, Some(a), pair));
                    assert_close(got, want, &format!("{pair:?} with a parameter"));
                }
            }
        }
    }

    #[test]
    fn the_fallback_tracks_two_parameters_even_of_a_plain_input() {
        let device = Device::flex();
        let x = Tensor::<1>::from_data(X, &device);
        let curve = Curve::ShiftedSwish(1.5, 0.2);
        let start = Tensor::<1>::from_data([1.5, 0.2], &device).autodiff().require_grad();
        let grads = fallback(x, Some(start.clone()), curve.into()).sum().backward();
        let got: Vec<f32> = start.grad(&grads).unwrap().into_data().try_into_vec().unwrap();
        for (i, got) in got.into_iter().enumerate() {
            let want: f64 = X.iter().map(|x| curve.parameter_derivatives((*x).into())[i]).sum();
            assert!((f64::from(got) / want - 1.0).abs() < 1e-5, "{got}, not {want}");
        }
    }

    #[test]
    fn the_fallback_works_without_autodiff_and_at_the_ends() {
        let x = Tensor::<1>::from_data([f32::NEG_INFINITY, f32::INFINITY], &Device::flex());
        let pair = Pair::from(Curve::Silu);
        let plain = fallback(x.clone(), None, pair);
        let tracked = fallback(x.autodiff().require_grad(), None, pair);
        for y in [plain, tracked] {
            let y: Vec<f32> = y.inner().into_data().try_into_vec().unwrap();
            assert_eq!(y, [0.0, f32::INFINITY]);
        }
    }
}
