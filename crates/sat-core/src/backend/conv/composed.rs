//! Burn's own operations: right on every backend.

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{DType, FloatDType, Shape, ops::ConvOptions},
};

pub(super) fn forward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d(x, weight, None, options)
}

pub(super) fn input_gradient<B: Backend>(
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    [height, width]: [usize; 2],
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    let channels = weight.shape()[1] * options.groups;
    let x = like::<B>(&grad, [grad.shape()[0], channels, height, width]);
    B::conv2d_x_backward(x, weight, grad, options)
}

pub(super) fn weight_gradient<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    [height, width]: [usize; 2],
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    let channels = x.shape()[1] / options.groups;
    let weight = like::<B>(&grad, [grad.shape()[1], channels, height, width]);
    B::conv2d_weight_backward(x, weight, grad, options)
}

/// A tensor that Burn asks for its shape alone.
fn like<B: Backend>(tensor: &FloatTensor<B>, shape: [usize; 4]) -> FloatTensor<B> {
    let dtype = match tensor.dtype() {
        DType::F64 => FloatDType::F64,
        DType::F16 => FloatDType::F16,
        DType::BF16 => FloatDType::BF16,
        DType::Flex32 => FloatDType::Flex32,
        _ => FloatDType::F32,
    };
    B::float_empty(Shape::new(shape), &tensor.device(), dtype)
}
