//! The step from Burn's primitives: right on every backend.

use burn::backend::{Backend, TensorMetadata, get_device_settings, tensor::FloatTensor};

pub(crate) fn sign_step<B: Backend>(
    x: FloatTensor<B>,
    gradient: FloatTensor<B>,
    size: FloatTensor<B>,
    lower: FloatTensor<B>,
    upper: FloatTensor<B>,
) -> FloatTensor<B> {
    let moved = B::float_add(x, B::float_mul(B::float_sign(gradient), size));
    let flags = get_device_settings::<B>(&moved.device()).bool_dtype;
    let below = B::float_lower(moved.clone(), lower.clone(), flags);
    let moved = B::float_mask_where(moved, below, lower);
    let above = B::float_lower(upper.clone(), moved.clone(), flags);
    B::float_mask_where(moved, above, upper)
}
