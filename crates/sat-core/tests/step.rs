//! The step of an attack, on every device of the build: against plain f32 arithmetic, bit for bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use common::{devices, to_vec};
use proptest::prelude::*;
use sat_core::sign_step;

/// Five inputs of one step, for samples of some values each.
#[derive(Clone, Debug)]
struct Case {
    shape: [usize; 4],
    x: Vec<f32>,
    gradient: Vec<f32>,
    size: Vec<f32>,
    lower: Vec<f32>,
    upper: Vec<f32>,
}

impl Case {
    fn tensors(&self, device: &Device, dtype: DType) -> [Tensor<4>; 5] {
        let tensor = |values: &Vec<f32>, shape| {
            Tensor::from_data(TensorData::new(values.clone(), shape), (device, dtype))
        };
        [
            tensor(&self.x, self.shape),
            tensor(&self.gradient, self.shape),
            tensor(&self.size, [self.shape[0], 1, 1, 1]),
            tensor(&self.lower, self.shape),
            tensor(&self.upper, self.shape),
        ]
    }

    fn want(&self) -> Vec<f32> {
        let values = self.x.len() / self.shape[0];
        (0..self.x.len())
            .map(|i| {
                let sign = match self.gradient[i] {
                    g if g > 0.0 => 1.0,
                    g if g < 0.0 => -1.0,
                    _ => 0.0,
                };
                let y = self.x[i] + sign * self.size[i / values];
                // Written so that NaN stays.
                let y = if y < self.lower[i] { self.lower[i] } else { y };
                if y > self.upper[i] { self.upper[i] } else { y }
            })
            .collect()
    }
}

fn step([x, gradient, size, lower, upper]: [Tensor<4>; 5]) -> Tensor<4> {
    sign_step(x, gradient, size, lower, upper)
}

/// The step as Burn's operations on tensors.
fn by_burn([x, gradient, size, lower, upper]: [Tensor<4>; 5]) -> Tensor<4> {
    (x + gradient.sign() * size).max_pair(lower).min_pair(upper)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Images in [0, 1] off and on the bounds, gradients with zeros, infinities and NaN, radii with 0.
fn case(shape: [usize; 4]) -> impl Strategy<Value = Case> {
    let count = shape.iter().product::<usize>();
    let pixel = prop_oneof![0.0f32..=1.0, Just(0.0), Just(1.0)];
    let slope = prop_oneof![
        -2.0f32..2.0,
        Just(0.0),
        Just(-0.0),
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(-1e-30)
    ];
    let radius = || prop_oneof![0.0f32..0.6, Just(0.0)];
    (
        prop::collection::vec(pixel, count),
        prop::collection::vec(-0.1f32..0.1, count),
        prop::collection::vec(slope, count),
        prop::collection::vec(radius(), shape[0]),
        prop::collection::vec(radius(), shape[0]),
    )
        .prop_map(move |(clean, change, gradient, size, eps)| {
            let of = |i: usize| eps[i / (count / shape[0])];
            let lower = clean.iter().enumerate().map(|(i, x)| (x - of(i)).max(0.0)).collect();
            let upper = clean.iter().enumerate().map(|(i, x)| (x + of(i)).min(1.0)).collect();
            let x = clean.iter().zip(change).map(|(x, change)| x + change).collect();
            Case { shape, x, gradient, size, lower, upper }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_step_is_its_formula_to_the_bit(
        case in (1usize..5, 1usize..4, 1usize..6, 1usize..20)
            .prop_flat_map(|(n, c, h, w)| case([n, c, h, w]))
    ) {
        for (name, device) in devices() {
            let got = to_vec(step(case.tensors(&device, DType::F32)));
            prop_assert_eq!(bits(&got), bits(&case.want()), "{}", name);
            let burns = to_vec(by_burn(case.tensors(&device, DType::F32)));
            prop_assert_eq!(bits(&got), bits(&burns), "{}", name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// The first axis is then the last too: every number is a sample.
    #[test]
    fn one_axis_alone_has_a_size_for_each_number(
        case in (1usize..70).prop_flat_map(|n| case([n, 1, 1, 1]))
    ) {
        for (name, device) in devices() {
            let [x, gradient, size, lower, upper] =
                case.tensors(&device, DType::F32).map(|tensor| tensor.reshape([-1]));
            let got: Tensor<1> = sign_step(x, gradient, size, lower, upper);
            prop_assert_eq!(bits(&to_vec(got)), bits(&case.want()), "{}", name);
        }
    }
}

/// Repeatable, with every kind of gradient; larger than one block, one chunk and one thread's share.
fn large() -> Case {
    let shape = [70, 3, 29, 31];
    let count = shape.iter().product::<usize>();
    let number = |i: usize, salt: usize| ((i * 7919 + salt) % 1009) as f32 / 1008.0;
    let gradient = |i: usize| match i % 7 {
        0 => 0.0,
        1 => f32::NAN,
        _ => number(i, 3) - 0.5,
    };
    let x: Vec<f32> = (0..count).map(|i| number(i, 1)).collect();
    Case {
        shape,
        gradient: (0..count).map(gradient).collect(),
        size: (0..70).map(|i| i as f32 / 700.0).collect(),
        lower: x.iter().map(|x| (x - 0.03).max(0.0)).collect(),
        upper: x.iter().map(|x| (x + 0.03).min(1.0)).collect(),
        x,
    }
}

#[test]
fn large_batches_and_every_ownership_and_layout_give_the_same() {
    let case = large();
    let want = bits(&case.want());
    for (name, device) in devices() {
        let tensors = case.tensors(&device, DType::F32);
        // Held by the caller: nothing may be overwritten.
        let before = tensors.clone().map(to_vec);
        assert_eq!(bits(&to_vec(step(tensors.clone()))), want, "{name}, held");
        for (before, after) in before.iter().zip(tensors.clone().map(to_vec)) {
            assert_eq!(bits(before), bits(&after), "{name}: an input that the caller holds");
        }
        // Views, and tensors with another order of axes in memory.
        let view = |x: Tensor<4>| Tensor::cat(vec![x.clone(), x], 0).narrow(0, 70, 70);
        let turned = |x: Tensor<4>| x.permute([0, 2, 3, 1]).mul_scalar(1.0).permute([0, 3, 1, 2]);
        let [x, gradient, size, lower, upper] = tensors;
        let got = sign_step(view(x), turned(gradient), view(size), turned(lower), view(upper));
        assert_eq!(bits(&to_vec(got)), want, "{name}, views");
        assert_eq!(bits(&to_vec(step(case.tensors(&device, DType::F32)))), want, "{name}, owned");
    }
}

#[test]
fn other_types_agree_with_burns_operations() {
    let case = large();
    for (name, device) in devices() {
        for dtype in [FloatDType::F64, FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(dtype) {
                continue;
            }
            let got = step(case.tensors(&device, dtype.into()));
            assert_eq!(got.dtype(), dtype.into());
            let want = by_burn(case.tensors(&device, dtype.into()));
            assert_eq!(bits(&to_vec(got)), bits(&to_vec(want)), "{name}, {dtype:?}");
        }
    }
}

#[test]
fn a_tracked_input_goes_through_burns_differentiation() {
    for (name, device) in devices() {
        let row = |values: [f32; 3]| Tensor::<2>::from_data([values], &device).autodiff();
        let x = row([0.5, 0.9, 0.2]).require_grad();
        let size = Tensor::<2>::from_data([[0.2f32]], &device).autodiff();
        let bounds = (row([0.0; 3]), row([1.0; 3]));
        let y = sign_step(x.clone(), row([1.0, 2.0, -1.0]), size, bounds.0, bounds.1);
        assert_eq!(to_vec(y.clone().inner()), [0.7, 1.0, 0.0], "{name}");
        // Only the first value is inside the box; the last lands on its edge.
        let slope = to_vec(x.grad(&y.sum().backward()).unwrap());
        assert_eq!(slope[..2], [1.0, 0.0], "{name}");
    }
}

#[test]
#[should_panic(expected = "`size` has one number for each index")]
fn sizes_must_be_one_for_each_sample() {
    let (_, device) = devices().remove(0);
    let x = Tensor::<2>::zeros([2, 3], &device);
    sign_step(x.clone(), x.clone(), x.clone(), x.clone(), x);
}

#[test]
#[should_panic(expected = "`upper` has the shape of x")]
fn bounds_must_have_the_shape_of_the_images() {
    let (_, device) = devices().remove(0);
    let x = Tensor::<2>::zeros([2, 3], &device);
    let size = Tensor::zeros([2, 1], &device);
    sign_step(x.clone(), x.clone(), size.clone(), x, size);
}

#[test]
#[cfg(feature = "flex")] // Not every device has two types.
#[should_panic(expected = "`gradient` has the type of x")]
fn all_have_one_type() {
    let device = Device::flex();
    let x = Tensor::<2>::zeros([2, 3], &device);
    let gradient = Tensor::zeros([2, 3], (&device, DType::F64));
    sign_step(x.clone(), gradient, Tensor::zeros([2, 1], &device), x.clone(), x);
}
