//! Normalisation and activation, ours and Burn's, for the benches that time them.

use burn::{
    module::Module,
    nn::BatchNormConfig,
    tensor::{Device, Tensor, TensorData, activation as burns},
};
use sat::core::{BatchNormActConfig, Curve};
use serde::Serialize;
use std::hint::black_box;

/// The activations behind the normalisation, and Burn's for each.
pub(crate) const ACTIVATIONS: [(Curve, Function); 2] =
    [(Curve::Relu, burns::relu), (Curve::Silu, burns::silu)];

type Function = fn(Tensor<4>) -> Tensor<4>;

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Forward, and backward to the input, gamma and beta, with the statistics of the batch.
    Training,
    /// Forward, and backward to the input, with the running statistics: a step of an attack.
    Attack,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sum {
    /// f(norm(x))
    None,
    /// f(norm(x) + residual)
    Residual,
}

impl Mode {
    /// How often an element is read or written at least, by the passes of one forward and backward.
    pub(crate) fn accesses(self, sum: Sum) -> usize {
        match (self, sum) {
            // Statistics x; forward x y; sums x dy; gradient x dy dx.
            (Mode::Training, Sum::None) => 1 + 2 + 2 + 3,
            // Statistics x; forward x r y; sums x r dy dz; gradient x dz dx.
            (Mode::Training, Sum::Residual) => 1 + 3 + 4 + 3,
            // Forward x y; gradient x dy dx.
            (Mode::Attack, Sum::None) => 2 + 3,
            // Forward x r y; gradient x r dy dx dr.
            (Mode::Attack, Sum::Residual) => 3 + 5,
        }
    }
}

pub(crate) fn our_pass(
    device: &Device,
    shape: [usize; 4],
    curve: Curve,
    mode: Mode,
    sum: Sum,
) -> impl FnMut() {
    let layer =
        BatchNormActConfig::new(shape[1]).with_activation(curve).init(&device.clone().autodiff());
    let layer = if mode == Mode::Training { layer } else { layer.valid() };
    pass(device, shape, sum, move |x, residual| match residual {
        None => layer.forward(x),
        Some(residual) => layer.forward_with_residual(x, residual),
    })
}

pub(crate) fn burn_pass(
    device: &Device,
    shape: [usize; 4],
    activation: Function,
    mode: Mode,
    sum: Sum,
) -> impl FnMut() {
    let layer = BatchNormConfig::new(shape[1]).init(&device.clone().autodiff());
    let layer = if mode == Mode::Training { layer } else { layer.valid() };
    pass(device, shape, sum, move |x, residual| {
        let z = layer.forward(x);
        activation(match residual {
            None => z,
            Some(residual) => z + residual,
        })
    })
}

/// Forward and backward, from an input that is held elsewhere as a convolution's output is. The
/// gradient of y is the tensor of ones that Burn starts from: made in the time of both sides, and not
/// counted in the floor.
fn pass(
    device: &Device,
    shape: [usize; 4],
    sum: Sum,
    forward: impl Fn(Tensor<4>, Option<Tensor<4>>) -> Tensor<4>,
) -> impl FnMut() {
    let device = device.clone();
    let values = |shift: usize| {
        let n = shape.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i: usize| ((i + shift) * 7919 % 10_007) as f32 / 1000.0 - 5.0).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), &device)
    };
    let x = values(0);
    let residual = (sum == Sum::Residual).then(|| values(1));
    move || {
        let leaf = |t: &Tensor<4>| t.clone().autodiff().require_grad();
        let (x, residual) = (leaf(&x), residual.as_ref().map(leaf));
        let y = forward(x.clone(), residual.clone());
        let mut grads = y.backward();
        let dx = x.grad_remove(&mut grads);
        let dr = residual.and_then(|residual| residual.grad_remove(&mut grads));
        // The results live until the device is done: else fusion could leave the work out.
        device.sync().expect("the device answers");
        black_box((dx, dr));
    }
}
