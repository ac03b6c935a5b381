//! The operations on whole tensors, made of Burn's own primitives: right on every backend.

use super::{
    super::{
        ActivationBackend,
        composed::{narrow, parameter_slopes, widen},
    },
    NormActivation,
};
use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{Shape, Slice},
};

/// The rows of a tensor of channel vectors, shaped so that they broadcast over x.
fn rows<B: Backend, const N: usize>(
    vectors: FloatTensor<B>,
    x: &FloatTensor<B>,
) -> [FloatTensor<B>; N] {
    core::array::from_fn(|row| {
        B::float_reshape(row_of::<B>(vectors.clone(), row), channel_shape(&x.shape()))
    })
}

/// A row of a tensor of channel vectors, `[channels]`.
pub(super) fn row_of<B: Backend>(vectors: FloatTensor<B>, row: usize) -> FloatTensor<B> {
    let channels = vectors.shape()[1];
    let row = Slice::from(row..row + 1);
    B::float_reshape(B::float_slice(vectors, &[row, (0..channels).into()]), [channels].into())
}

/// `[rows, channels]` from vectors `[channels]`.
pub(super) fn stack<B: Backend, const N: usize>(vectors: [FloatTensor<B>; N]) -> FloatTensor<B> {
    let rows = vectors.map(|vector| {
        let channels = vector.shape().num_elements();
        B::float_reshape(vector, [1, channels].into())
    });
    B::float_cat(rows.into(), 0)
}

fn channel_shape(shape: &Shape) -> Shape {
    let mut of_channels = vec![1; shape.num_dims()];
    of_channels[1] = shape[1];
    of_channels.into()
}

/// A reduction of all axes but the second, `[channels]`.
fn reduce<B: Backend>(
    x: FloatTensor<B>,
    reduction: fn(FloatTensor<B>, usize) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = x.shape();
    let channels = shape[1];
    let per_channel = shape.num_elements() / channels.max(1);
    let by_channel = B::float_reshape(B::float_swap_dims(x, 0, 1), [channels, per_channel].into());
    B::float_reshape(reduction(by_channel, 1), [channels].into())
}

pub(super) fn statistics<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let x = widen::<B>(x);
    let mean = reduce::<B>(x.clone(), B::float_mean_dim);
    let shape = channel_shape(&x.shape());
    let centred = B::float_sub(x, B::float_reshape(mean.clone(), shape));
    let variance = reduce::<B>(B::float_mul(centred.clone(), centred), B::float_mean_dim);
    stack::<B, 2>([mean, variance])
}

/// 1/sqrt(variance + epsilon) from the statistics of the batch.
pub(super) fn inverse_deviation<B: Backend>(
    statistics: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let variance = row_of::<B>(statistics, 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(variance, epsilon.into())))
}

/// The rows m, s and b for the statistics of the batch.
pub(super) fn batch_affine<B: Backend>(
    statistics: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    epsilon: f64,
) -> FloatTensor<B> {
    let dtype = statistics.dtype();
    let mean = row_of::<B>(statistics.clone(), 0);
    let inverse = inverse_deviation::<B>(statistics, epsilon);
    let scale = B::float_mul(narrow::<B>(gamma, dtype), inverse);
    stack::<B, 3>([mean, scale, narrow::<B>(beta, dtype)])
}

fn preactivation<B: Backend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let x = widen::<B>(x);
    let [mean, scale, shift] = rows::<B, 3>(affine, &x);
    let z = B::float_add(B::float_mul(B::float_sub(x, mean), scale), shift);
    match residual {
        None => z,
        Some(residual) => B::float_add(z, widen::<B>(residual)),
    }
}

pub(super) fn forward<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    activation: NormActivation<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let z = preactivation::<B>(x, affine, residual);
    let y = match activation.into_parts() {
        None => z,
        Some((pair, None)) => B::activation(z, pair),
        Some((pair, Some(parameters))) => B::parametric_activation(z, parameters, pair),
    };
    narrow::<B>(y, dtype)
}

/// dz in the type of the arithmetic.
fn preactivation_gradient<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
    activation: NormActivation<B>,
) -> FloatTensor<B> {
    let grad = widen::<B>(grad);
    match activation.into_parts() {
        None => grad,
        Some((pair, parameters)) => {
            let z = preactivation::<B>(x, affine, residual);
            let curve = pair.slope();
            match parameters {
                None => B::activation_backward(z, grad, curve),
                Some(parameters) => B::parametric_activation_backward(z, parameters, grad, curve),
            }
        }
    }
}

pub(super) fn backward<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
    activation: NormActivation<B>,
    correction: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let dz = preactivation_gradient::<B>(x.clone(), affine.clone(), residual, grad, activation);
    let [mean, scale, _] = rows::<B, 3>(affine, &x);
    let dx = B::float_mul(dz, scale);
    let dx = match correction {
        None => dx,
        Some(correction) => {
            let [constant, linear] = rows::<B, 2>(correction, &x);
            let linear = B::float_mul(B::float_sub(widen::<B>(x), mean), linear);
            B::float_sub(B::float_sub(dx, constant), linear)
        }
    };
    narrow::<B>(dx, dtype)
}

pub(super) fn backward_both<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: FloatTensor<B>,
    grad: FloatTensor<B>,
    activation: NormActivation<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = x.dtype();
    let [_, scale, _] = rows::<B, 3>(affine.clone(), &x);
    let dz = preactivation_gradient::<B>(x, affine, Some(residual), grad, activation);
    let dx = B::float_mul(dz.clone(), scale);
    (narrow::<B>(dx, dtype), narrow::<B>(dz, dtype))
}

pub(super) fn sums<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
    activation: NormActivation<B>,
) -> FloatTensor<B> {
    gradient_and_sums::<B>(x, affine, residual, grad, activation).1
}

pub(super) fn gradient_and_sums<B: ActivationBackend>(
    x: FloatTensor<B>,
    affine: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
    activation: NormActivation<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dz = preactivation_gradient::<B>(
        x.clone(),
        affine.clone(),
        residual.clone(),
        grad.clone(),
        activation.clone(),
    );
    let wide = widen::<B>(x.clone());
    let [mean, _, _] = rows::<B, 3>(affine.clone(), &x);
    let product = B::float_mul(dz.clone(), B::float_sub(wide, mean));
    let of_channels = |terms| reduce::<B>(terms, B::float_sum_dim);
    let (first, second) = (of_channels(dz.clone()), of_channels(product));
    let dz = narrow::<B>(dz, x.dtype());
    let NormActivation::Learned(curve, parameters) = activation else {
        return (dz, stack::<B, 2>([first, second]));
    };
    let z = preactivation::<B>(x, affine, residual);
    let grad = widen::<B>(grad);
    let mut of_parameters = parameter_slopes::<B>(z, parameters, curve)
        .into_iter()
        .map(|slope| of_channels(B::float_mul(grad.clone(), slope)));
    let of_a = of_parameters.next().expect("a learned curve has parameters");
    let of_b = of_parameters
        .next()
        .unwrap_or_else(|| B::float_zeros(of_a.shape(), &of_a.device(), of_a.dtype().into()));
    (dz, stack::<B, 4>([first, second, of_a, of_b]))
}
