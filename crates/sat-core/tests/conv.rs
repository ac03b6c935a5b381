//! Convolution, on every device of the build.
//!
//! The expected numbers come from Burn's own layer with the same parameters, which
//! `src/backend/conv/flex.rs` checks against the definition in f64, and from finite differences.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

#[cfg(feature = "flex")]
use burn::tensor::DType;
use burn::{
    module::{Module, Param},
    nn::{PaddingConfig2d, conv as burns},
    tensor::{Device, Tensor, TensorData},
};
use common::{devices, to_vec};
use proptest::prelude::*;
use sat_core::{Conv2d, Conv2dConfig};

fn noise(shape: [usize; 4], seed: usize, device: &Device) -> Tensor<4> {
    let n = shape.iter().product();
    let values: Vec<f32> =
        (0..n).map(|i: usize| ((i + seed) * 7919 % 2003) as f32 / 1000.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= 2e-5 * largest;
        assert!(close, "{what}: element {i} is {got}, not {want}");
    }
}

/// y and the gradients of the input, the weight and the bias, for a gradient of y that varies.
fn all_of(
    x: Tensor<4>,
    weight: &Param<Tensor<4>>,
    bias: Option<&Param<Tensor<1>>>,
    forward: impl Fn(Tensor<4>) -> Tensor<4>,
) -> Vec<Vec<f32>> {
    let x = x.autodiff().require_grad();
    let y = forward(x.clone());
    let upstream = noise(y.dims(), 5, &x.device());
    let mut grads = (y.clone() * upstream).sum().backward();
    let mut all = vec![to_vec(y.inner()), to_vec(x.grad_remove(&mut grads).unwrap())];
    all.push(to_vec(weight.val().grad_remove(&mut grads).unwrap()));
    all.extend(bias.map(|bias| to_vec(bias.val().grad_remove(&mut grads).unwrap())));
    all
}

fn assert_same_as_burns(conv: &burns::Conv2d, x: &Tensor<4>, what: &str) {
    let ours = Conv2d::from(conv.clone());
    let want = all_of(x.clone(), &conv.weight, conv.bias.as_ref(), |x| conv.forward(x));
    let got = all_of(x.clone(), &ours.weight, ours.bias.as_ref(), |x| ours.forward(x));
    for ((got, want), part) in got.iter().zip(&want).zip(["y", "dx", "dw", "db"]) {
        assert_close(got, want, &format!("{part}, {what}"));
    }
}

fn config(channels: [usize; 2], kernel: usize) -> burns::Conv2dConfig {
    burns::Conv2dConfig::new(channels, [kernel; 2])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn values_and_gradients_are_those_of_burns_layer(
        (images, groups) in (1usize..3, 1usize..4),
        (inputs, outputs) in (1usize..21, 1usize..21),
        (height, width) in (7usize..20, 7usize..20),
        kernel in prop_oneof![Just(1usize), Just(3), Just(5), Just(7)],
        stride in 1usize..4,
        padding in prop::array::uniform4(0usize..3),
        bias in any::<bool>(),
    ) {
        let [top, left, bottom, right] = padding;
        for (name, device) in devices() {
            let conv = config([inputs * groups, outputs * groups], kernel)
                .with_stride([stride; 2])
                .with_groups(groups)
                .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
                .with_bias(bias)
                .init(&device.clone().autodiff());
            let x = noise([images, inputs * groups, height, width], 1, &device);
            assert_same_as_burns(&conv, &x, name);
        }
    }
}

#[test]
fn same_padding_dilation_and_depthwise() {
    for (name, device) in devices() {
        let training = device.clone().autodiff();
        let x = noise([2, 12, 15, 18], 1, &device);
        let same = config([12, 24], 4).with_padding(PaddingConfig2d::Same);
        assert_same_as_burns(&same.with_stride([2, 3]).init(&training), &x, name);
        assert_same_as_burns(&config([12, 7], 3).with_dilation([2, 3]).init(&training), &x, name);
        assert_same_as_burns(&config([12, 12], 5).with_groups(12).init(&training), &x, name);
    }
}

#[test]
fn tensors_that_are_not_contiguous() {
    for (name, device) in devices() {
        let conv = config([9, 5], 3).init(&device.clone().autodiff());
        let x = noise([2, 14, 9, 11], 1, &device).permute([0, 2, 1, 3]);
        assert_same_as_burns(&conv, &x, name);
        let part = noise([3, 12, 14, 11], 1, &device).slice([1..3, 2..11, 1..12, 0..11]);
        assert_same_as_burns(&conv, &part, name);
    }
}

#[test]
fn no_images_give_no_outputs() {
    #[cfg(feature = "flex")]
    {
        let device = Device::flex();
        let conv = Conv2dConfig::new([3, 4], [3, 3]).init(&device);
        assert_eq!(conv.forward(Tensor::zeros([0, 3, 8, 8], &device)).dims(), [0, 4, 6, 6]);
    }
}

#[test]
fn an_attack_on_a_valid_model_has_the_input_gradient_alone() {
    for (name, device) in devices() {
        let conv = Conv2dConfig::new([4, 6], [3, 3]).init(&device.clone().autodiff());
        let weight = conv.weight.val();
        let valid = conv.clone().valid();
        let x = noise([2, 4, 8, 8], 1, &device).autodiff().require_grad();
        let mut grads = valid.forward(x.clone()).sum().backward();
        assert!(weight.grad(&grads).is_none(), "{name}");
        // A constant gradient of y: dx sums the kernel's weights that meet the pixel.
        let dx = to_vec(x.grad_remove(&mut grads).unwrap());
        let sums = to_vec(weight.inner().sum_dim(0).sum_dim(2).sum_dim(3));
        let centre: Vec<f32> = (0..4).map(|c| dx[c * 64 + 3 * 8 + 3]).collect();
        assert_close(&centre, &sums, name);
    }
}

/// f64 goes through Burn's convolution and our differentiation rule.
#[cfg(feature = "flex")]
#[test]
fn gradients_are_the_differences_of_values_in_f64() {
    let device = Device::flex();
    let conv = Conv2dConfig::new([3, 4], [3, 3])
        .with_stride([2, 1])
        .with_padding(PaddingConfig2d::Explicit(1, 0, 1, 2))
        .init(&device.clone().autodiff());
    let conv = conv.map(&mut ToF64);
    let x = noise([2, 3, 6, 7], 1, &device).cast(DType::F64);
    let upstream = |y: &Tensor<4>| noise(y.dims(), 3, &device).cast(DType::F64);
    let value = |x: Tensor<4>| -> f64 {
        let y = conv.clone().valid().forward(x);
        let upstream = upstream(&y);
        (y * upstream).sum().into_data().try_into_vec::<f64>().unwrap()[0]
    };
    let leaf = x.clone().autodiff().require_grad();
    let y = conv.forward(leaf.clone());
    let weights = upstream(&y.clone().inner()).autodiff();
    let mut grads = (y * weights).sum().backward();
    let dx: Vec<f64> = leaf.grad_remove(&mut grads).unwrap().into_data().try_into_vec().unwrap();
    let values: Vec<f64> = x.into_data().try_into_vec().unwrap();
    for i in (0..values.len()).step_by(5) {
        let at = |step: f64| {
            let mut values = values.clone();
            values[i] += step;
            value(Tensor::from_data(TensorData::new(values, [2, 3, 6, 7]), (&device, DType::F64)))
        };
        let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
        assert!((difference - dx[i]).abs() < 1e-8, "element {i}: {}, not {difference}", dx[i]);
    }
}

#[cfg(feature = "flex")]
struct ToF64;

#[cfg(feature = "flex")]
impl burn::module::ModuleMapper for ToF64 {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(DType::F64).detach().require_grad())
    }
}

#[test]
fn results_repeat_bit_for_bit() {
    for (name, device) in devices() {
        let conv = Conv2dConfig::new([17, 33], [3, 3]).init(&device.clone().autodiff());
        let x = noise([5, 17, 20, 20], 1, &device);
        let run = || all_of(x.clone(), &conv.weight, conv.bias.as_ref(), |x| conv.forward(x));
        let first = run();
        // Burn's own convolution is slow without optimisation.
        let repeats = if name == "flex" { 5 } else { 1 };
        for _ in 0..repeats {
            assert_eq!(first, run(), "{name}");
        }
    }
}

#[test]
fn gradient_checkpointing_gives_the_same_gradients() {
    for (name, device) in devices() {
        let run = |device: Device| {
            let mut conv = Conv2dConfig::new([4, 4], [3, 3]).init(&device);
            conv.weight = Param::from_tensor(noise([4, 4, 3, 3], 2, &device));
            conv.bias = None;
            let x = noise([2, 4, 9, 9], 1, &device).require_grad();
            let y = conv.forward(conv.forward(x.clone()).tanh()).tanh();
            let grads = y.sum().backward();
            [to_vec(x.grad(&grads).unwrap()), to_vec(conv.weight.val().grad(&grads).unwrap())]
        };
        let plain = run(device.clone().autodiff());
        let recomputed = run(device.clone().autodiff().gradient_checkpointing());
        for (plain, recomputed) in plain.iter().zip(&recomputed) {
            assert_close(recomputed, plain, name);
        }
    }
}

#[test]
fn records_and_fields_are_burns() {
    let (_, device) = devices().swap_remove(0);
    let burns = config([3, 8], 3).with_bias(true).init(&device);
    let text = format!("{burns}");
    let ours = Conv2d::from(burns.clone());
    assert_eq!(format!("{ours}"), text);
    let back = burns::Conv2d::from(ours.clone());
    assert_eq!((back.weight.id, back.kernel_size), (burns.weight.id, burns.kernel_size));
    assert_eq!(ours.num_params(), burns.num_params());
}

#[test]
#[should_panic(expected = "the input has 4 channels, the convolution 5")]
fn another_number_of_channels_is_refused() {
    let (_, device) = devices().swap_remove(0);
    let conv = Conv2dConfig::new([5, 3], [3, 3]).init(&device);
    let _ = conv.forward(Tensor::zeros([1, 4, 8, 8], &device));
}

#[test]
#[should_panic(expected = "the input with its padding is 2 high, the kernel 3")]
fn an_input_smaller_than_the_kernel_is_refused() {
    let (_, device) = devices().swap_remove(0);
    let conv = Conv2dConfig::new([5, 3], [3, 3]).init(&device);
    let _ = conv.forward(Tensor::zeros([1, 5, 2, 8], &device));
}
