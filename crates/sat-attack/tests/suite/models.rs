//! Small models and images that tests share. Numbers come from a formula, not from Burn's global
//! generator, so that every test sees the same ones whatever runs beside it.

use burn::tensor::activation::{relu, silu};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Shape, Tensor, TensorData};
use sat_attack::Victim;

/// Values in [-1, 1), irregular and repeatable.
pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|index| {
            let mut state = (index + 1)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .wrapping_add(seed.wrapping_mul(0xD1B5_4A32_D192_ED03));
            state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            state ^= state >> 31;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let shape = Shape::new(shape);
    let data = TensorData::new(values(seed, shape.num_elements()), shape);
    Tensor::from_data(data, &Device::flex())
}

/// Images in [lower, upper].
pub(crate) fn images(seed: u64, shape: [usize; 4], lower: f64, upper: f64) -> Tensor<4> {
    let unit = (tensor(seed, shape) + 1.0) * 0.5;
    (unit * (upper - lower) + lower).clamp(lower, upper)
}

/// `flatten(x) W`, for images of 2 x 4 x 4.
pub(crate) fn linear(seed: u64, classes: usize) -> Victim<'static> {
    let weight = tensor(seed, [32, classes]);
    Victim::from_fn(move |x| x.flatten::<2>(1, 3).matmul(weight.clone()))
}

/// Convolution, SiLU, convolution, ReLU, dense; for images of 2 x 4 x 4.
pub(crate) fn convolutional(seed: u64, classes: usize) -> Victim<'static> {
    let first = tensor(seed, [6, 2, 3, 3]);
    let second = tensor(seed + 1, [4, 6, 3, 3]);
    let dense = tensor(seed + 2, [64, classes]);
    Victim::from_fn(move |x| {
        let same = || ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        let x = silu(conv2d(x, first.clone(), None, same()));
        let x = relu(conv2d(x, second.clone(), None, same()));
        x.flatten::<2>(1, 3).matmul(dense.clone())
    })
}

pub(crate) const SHAPE: [usize; 3] = [2, 4, 4];

pub(crate) fn batch(seed: u64, count: usize) -> Tensor<4> {
    let [c, h, w] = SHAPE;
    images(seed, [count, c, h, w], 0.0, 1.0)
}

/// The model's own predictions, so that an attack has something to break.
pub(crate) fn labels(victim: &Victim<'_>, images: &Tensor<4>) -> Vec<usize> {
    victim.predict(images.clone()).unwrap()
}

pub(crate) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().unwrap()
}

/// The bits of a tensor, for exact comparison.
pub(crate) fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    to_vec(tensor.clone()).iter().map(|v| v.to_bits()).collect()
}
