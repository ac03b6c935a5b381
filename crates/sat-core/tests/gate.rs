//! Means of channels and gates on them, on every device of the build: against f64 sums.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use common::{devices, to_vec};
use sat_core::{channel_means, scale_channels};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Repeatable numbers in [-2, 2] that every type holds.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i: usize| ((i + seed) * 7919 % 129) as f32 / 32.0 - 2.0).collect()
}

fn tensor<const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &Device,
    dtype: FloatDType,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::from(dtype)))
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (f64::from(*got) - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(close, "{what}: element {i} is {got}, not {want}");
    }
}

/// How x, and the gradient that comes back, lie in memory.
#[derive(Clone, Copy, Debug)]
enum View {
    Contiguous,
    ChannelsLast,
    /// Every second column of a wider tensor.
    Strided,
}

/// What the operations give: output, gradients for x and the gate.
fn run(
    device: &Device,
    dtype: FloatDType,
    shape: [usize; 4],
    view: View,
    gated: bool,
) -> [Vec<f32>; 3] {
    let [n, c, h, w] = shape;
    let device = device.clone().autodiff();
    let count = n * c * h * w;
    let place = |seed: usize| {
        let values = numbers(count, seed);
        match view {
            View::Contiguous => tensor(&values, shape, &device, dtype),
            View::ChannelsLast => {
                let plain = tensor::<4>(&values, shape, &device, dtype).permute([0, 2, 3, 1]);
                tensor(&to_vec(plain), [n, h, w, c], &device, dtype).permute([0, 3, 1, 2])
            }
            View::Strided => {
                let twice: Vec<f32> = values.iter().flat_map(|v| [*v, 1e3]).collect();
                let wide = tensor(&twice, [n, c, h, 2 * w], &device, dtype);
                wide.reshape([n, c, h, w, 2]).narrow(4, 0, 1).squeeze_dim(4)
            }
        }
    };
    let leaf = |t: Tensor<4>| t.detach().require_grad();
    let x = leaf(place(1));
    let gate = tensor::<2>(&numbers(n * c, 3), [n, c], &device, dtype).require_grad();
    let grad = |t: Option<Tensor<4>>| t.map_or(Vec::new(), to_vec);
    if gated {
        let y = scale_channels(x.clone(), gate.clone());
        // What stands between y and the loss is what the gradient passes on its way back.
        let (seen, weights) = match view {
            View::Contiguous => (y.clone(), place(2)),
            View::ChannelsLast | View::Strided => {
                (y.clone().permute([3, 0, 2, 1]), place(2).permute([3, 0, 2, 1]))
            }
        };
        let grads = (seen * weights).sum().backward();
        [to_vec(y.inner()), grad(x.grad(&grads)), to_vec(gate.grad(&grads).unwrap())]
    } else {
        let means = channel_means(x.clone());
        let weights = tensor::<2>(&numbers(n * c, 3), [n, c], &device, dtype);
        let grads = (means.clone() * weights).sum().backward();
        [to_vec(means.inner()), grad(x.grad(&grads)), Vec::new()]
    }
}

/// The same as plain sums in f64.
fn reference(shape: [usize; 4], gated: bool) -> [Vec<f64>; 3] {
    let [n, c, h, w] = shape;
    let (rows, values) = (n * c, h * w);
    let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<_>>();
    let (x, grad) = (wide(numbers(rows * values, 1)), wide(numbers(rows * values, 2)));
    let gate = wide(numbers(rows, 3));
    let row = |of: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..rows).map(|r| (r * values..(r + 1) * values).map(of).sum()).collect()
    };
    let each = |of: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..rows * values).map(of).collect() };
    if gated {
        [
            each(&|i| x[i] * gate[i / values]),
            each(&|i| grad[i] * gate[i / values]),
            row(&|i| x[i] * grad[i]),
        ]
    } else {
        let share = values as f64;
        [row(&|i| x[i] / share), each(&|i| gate[i / values] / share), Vec::new()]
    }
}

/// One value a channel, rows shorter and longer than a vector, rows that cross the blocks and the
/// chunks that threads take.
const SHAPES: [[usize; 4]; 6] =
    [[3, 5, 1, 1], [2, 3, 2, 3], [2, 2, 3, 11], [2, 3, 37, 41], [1, 3, 150, 301], [65, 70, 7, 7]];

#[test]
fn values_and_gradients_are_plain_sums() {
    for shape in SHAPES {
        for gated in [false, true] {
            let want = reference(shape, gated);
            for (name, device) in devices() {
                for view in [View::Contiguous, View::ChannelsLast, View::Strided] {
                    let what = format!("{name}: {shape:?} {view:?}, gated: {gated}");
                    let got = run(&device, FloatDType::F32, shape, view, gated);
                    for (got, want) in got.iter().zip(&want) {
                        assert_close(got, want, 2e-5, &what);
                    }
                }
            }
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn every_type_of_number_is_computed_in_f32_or_better() {
    let shape = [2, 3, 37, 41];
    for gated in [false, true] {
        let want = reference(shape, gated);
        for (dtype, tolerance) in
            [(FloatDType::F64, 1e-6), (FloatDType::F16, 1e-3), (FloatDType::BF16, 8e-3)]
        {
            let got = run(&Device::flex(), dtype, shape, View::Contiguous, gated);
            for (got, want) in got.iter().zip(&want) {
                assert_close(got, want, tolerance, &format!("{dtype:?}, gated: {gated}"));
            }
        }
    }
}

#[test]
fn tensors_held_elsewhere_stay_as_they_are() {
    for (name, device) in devices() {
        let x = tensor::<4>(&numbers(24, 1), [2, 3, 2, 2], &device, FloatDType::F32);
        let gate = tensor::<2>(&numbers(6, 2), [2, 3], &device, FloatDType::F32);
        let (before_x, before_gate) = (to_vec(x.clone()), to_vec(gate.clone()));
        let first = to_vec(scale_channels(x.clone(), gate.clone()));
        let second = to_vec(scale_channels(x.clone(), gate.clone()));
        assert_eq!(first, second, "{name}");
        assert_eq!((to_vec(x.clone()), to_vec(gate.clone())), (before_x, before_gate), "{name}");
        // Where nobody holds x, its buffer may become the output.
        assert_eq!(to_vec(scale_channels(x * 1.0, gate)), first, "{name}: moved");
    }
}

#[test]
fn squeeze_and_excitation_has_burn_s_gradient() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let x = || {
            tensor::<4>(&numbers(2 * 3 * 35, 1), [2, 3, 5, 7], &device, FloatDType::F32)
                .require_grad()
        };
        let gradient = |of: &dyn Fn(Tensor<4>) -> Tensor<4>| {
            let x = x();
            let y = of(x.clone());
            to_vec(x.grad(&(y.clone() * y).sum().backward()).unwrap())
        };
        let ours = gradient(&|x| {
            let gate = burn::tensor::activation::sigmoid(channel_means(x.clone()));
            scale_channels(x, gate)
        });
        let burns = gradient(&|x| {
            let means = x.clone().mean_dim(3).mean_dim(2);
            x * burn::tensor::activation::sigmoid(means)
        });
        let burns: Vec<f64> = burns.into_iter().map(f64::from).collect();
        assert_close(&ours, &burns, 1e-5, name);
    }
}

/// A map of more values than f16 has numbers, whose mean's gradient is one over them.
#[test]
fn the_gradient_of_a_large_map_s_mean_does_not_vanish_in_f16() {
    for (name, device) in devices() {
        if !device.supports_dtype(FloatDType::F16) {
            continue;
        }
        let device = device.autodiff();
        let x = tensor::<4>(&numbers(1 << 17, 1), [1, 1, 256, 512], &device, FloatDType::F16);
        let x = x.require_grad();
        let grads = (channel_means(x.clone()) * 256.0).sum().backward();
        let gradient = to_vec(x.grad(&grads).unwrap());
        assert!(gradient.iter().all(|g| *g == 256.0 / 131_072.0), "{name}: {}", gradient[0]);
    }
}

#[test]
fn other_ranks_empty_tensors_and_wrong_shapes() {
    for (name, device) in devices() {
        let flat = tensor::<2>(&numbers(6, 1), [2, 3], &device, FloatDType::F32);
        assert_eq!(to_vec(channel_means(flat.clone())), numbers(6, 1), "{name}");
        let squares: Vec<f32> = numbers(6, 1).into_iter().map(|v| v * v).collect();
        assert_eq!(to_vec(scale_channels(flat.clone(), flat.clone())), squares, "{name}");
        let empty = Tensor::<4>::zeros([0, 3, 2, 2], &device);
        let none = Tensor::<2>::zeros([0, 3], &device);
        assert_eq!(scale_channels(empty.clone(), none).dims(), [0, 3, 2, 2], "{name}");
        assert_eq!(channel_means(empty).dims(), [0, 3], "{name}");
        let wrong = AssertUnwindSafe(|| scale_channels(flat.clone(), flat.clone().swap_dims(0, 1)));
        assert!(catch_unwind(wrong).is_err(), "{name}: a gate of another shape");
    }
}
