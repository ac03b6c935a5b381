//! Activations on the tensors of a CPU backend.
//!
//! One pass over the data each way, in parallel chunks, with the widest instruction set the machine
//! has, in place where nobody else holds the buffer. The formulas are those of [`crate::curve`].

use super::{
    block::{BLOCK, CHUNK, SERIAL},
    number::{Stored, Work},
    threads::share,
};
use crate::curve::{Curve, Formula, Visitor};

/// A tensor of a CPU backend. Parameters are those of a formula.
pub(super) trait Elementwise: Sized {
    /// f(x) of x = self
    fn map<F: Formula>(self, parameters: [f64; 2]) -> Self;
    /// self * f'(x)
    fn scale_by_slope<F: Formula>(self, x: Self, parameters: [f64; 2]) -> Self;
    /// The sums of self * df/da and self * df/db at x.
    fn parameter_sums<F: Formula>(self, x: Self, parameters: [f64; 2]) -> [f64; 2];
    /// The one or two numbers of a parameter tensor; NaN for the one that is not there.
    fn numbers(&self) -> [f64; 2];
    /// A tensor of the same length and type, with the first of these numbers.
    fn with_numbers(self, numbers: [f64; 2]) -> Self;
}

/// The operations for activations of a backend whose tensors are [`Elementwise`].
macro_rules! activations_of {
    ($backend:ty) => {
        impl ActivationBackend for $backend {
            fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
                elementwise::forward(x, None, pair.value)
            }

            fn activation_backward(
                x: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                curve: Curve,
            ) -> FloatTensor<Self> {
                elementwise::backward(x, None, grad, curve)
            }

            fn parametric_activation(
                x: FloatTensor<Self>,
                parameters: FloatTensor<Self>,
                pair: Pair,
            ) -> FloatTensor<Self> {
                elementwise::forward(x, Some(parameters), pair.value)
            }

            fn parametric_activation_backward(
                x: FloatTensor<Self>,
                parameters: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                curve: Curve,
            ) -> FloatTensor<Self> {
                elementwise::backward(x, Some(parameters), grad, curve)
            }

            fn parametric_activation_parameter_backward(
                x: FloatTensor<Self>,
                parameters: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                curve: Curve,
            ) -> FloatTensor<Self> {
                elementwise::parameter_backward(x, parameters, grad, curve)
            }
        }
    };
}
pub(super) use activations_of;

/// f(x), with the curve's own parameters or with those in a tensor.
pub(super) fn forward<T: Elementwise>(x: T, parameters: Option<T>, curve: Curve) -> T {
    struct Forward<T>(T, Option<[f64; 2]>);
    impl<T: Elementwise> Visitor for Forward<T> {
        type Output = T;
        fn visit<F: Formula>(self, fixed: [f64; 2]) -> T {
            self.0.map::<F>(self.1.unwrap_or(fixed))
        }
    }
    curve.visit(Forward(x, parameters.map(|parameters| parameters.numbers())))
}

/// grad * df/dx
pub(super) fn backward<T: Elementwise>(x: T, parameters: Option<T>, grad: T, curve: Curve) -> T {
    struct Backward<T>(T, T, Option<[f64; 2]>);
    impl<T: Elementwise> Visitor for Backward<T> {
        type Output = T;
        fn visit<F: Formula>(self, fixed: [f64; 2]) -> T {
            self.0.scale_by_slope::<F>(self.1, self.2.unwrap_or(fixed))
        }
    }
    curve.visit(Backward(grad, x, parameters.map(|parameters| parameters.numbers())))
}

/// The sums of grad * df/da and grad * df/db, in a tensor of the parameters' shape.
pub(super) fn parameter_backward<T: Elementwise>(x: T, parameters: T, grad: T, curve: Curve) -> T {
    struct Sums<T>(T, T, [f64; 2]);
    impl<T: Elementwise> Visitor for Sums<T> {
        type Output = [f64; 2];
        fn visit<F: Formula>(self, _: [f64; 2]) -> [f64; 2] {
            self.0.parameter_sums::<F>(self.1, self.2)
        }
    }
    let given = parameters.numbers();
    parameters.with_numbers(curve.visit(Sums(grad, x, given)))
}

/// The sums of grad * df/da and grad * df/db. Each block is summed in its number type, the blocks in
/// f64 and in order, so that the result does not depend on the number of threads.
pub(super) fn parameter_sums<E: Stored, F: Formula>(
    x: &[E],
    grad: &[E],
    parameters: [f64; 2],
) -> [f64; 2] {
    assert_eq!(x.len(), grad.len(), "a gradient has the shape of its input");
    let of_block = |(x, grad): (&[E], &[E])| {
        E::with_read(x, |x| {
            E::with_read(grad, |grad| E::Work::parameter_sums::<F>(x, grad, parameters))
        })
    };
    let add = |sums: [f64; 2], more: [f64; 2]| [sums[0] + more[0], sums[1] + more[1]];
    let of_chunk = |(x, grad): (&[E], &[E])| {
        x.chunks(BLOCK).zip(grad.chunks(BLOCK)).map(of_block).fold([0.0; 2], add)
    };
    let chunks = x.chunks(CHUNK).zip(grad.chunks(CHUNK));
    let sums =
        if x.len() <= SERIAL { chunks.map(of_chunk).collect() } else { share(chunks, of_chunk) };
    sums.into_iter().fold([0.0; 2], add)
}
