//! The operations from Burn's primitives: right on every backend.

use super::super::composed::{narrow, widen};
use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::Shape,
};

pub(crate) fn means<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = x.dtype();
    narrow::<B>(reduce::<B>(widen::<B>(x), B::float_mean_dim), dtype)
}

pub(crate) fn scale<B: Backend>(x: FloatTensor<B>, gate: FloatTensor<B>) -> FloatTensor<B> {
    let gate = B::float_reshape(gate, of_channels(&x.shape()));
    B::float_mul(x, gate)
}

pub(super) fn backward<B: Backend>(
    x: FloatTensor<B>,
    gate: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let products = B::float_mul(widen::<B>(x), widen::<B>(grad.clone()));
    let of_gate = narrow::<B>(reduce::<B>(products, B::float_sum_dim), dtype);
    (scale::<B>(grad, gate), of_gate)
}

/// The gradient for x from that of the means, as a view.
pub(super) fn means_backward<B: Backend>(grad: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    let (dtype, values) = (grad.dtype(), shape[2..].iter().product::<usize>());
    // Half precision does not hold the number of values.
    let grad = B::float_mul_scalar(widen::<B>(grad), (1.0 / values as f64).into());
    let grad = narrow::<B>(grad, dtype);
    B::float_expand(B::float_reshape(grad, of_channels(&shape)), shape)
}

fn of_channels(shape: &Shape) -> Shape {
    let mut ones = vec![1; shape.num_dims()];
    ones[..2].copy_from_slice(&shape[..2]);
    ones.into()
}

/// A reduction of all axes behind the second.
fn reduce<B: Backend>(
    x: FloatTensor<B>,
    reduction: fn(FloatTensor<B>, usize) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = x.shape();
    let values = shape[2..].iter().product();
    let rows = B::float_reshape(x, [shape[0], shape[1], values].into());
    B::float_reshape(reduction(rows, 2), [shape[0], shape[1]].into())
}
