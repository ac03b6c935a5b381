//! Error of values and derivatives in units in the last place, against the `f64` reference.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{to_vec, vector};
use proptest::prelude::*;
use sat_core::{Curve, tensor::activate};

/// The distance between neighbouring `f32` numbers at |x|.
fn ulp(x: f64) -> f64 {
    let exponent = (x.abs().log2().floor()).max(-126.0);
    (exponent - 23.0).exp2()
}

/// The largest errors over some inputs, and where they are.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    /// In ulp of the value.
    value: (f64, f32),
    /// In ulp of max(1, |f'|).
    slope: (f64, f32),
    /// Absolute, where GELU's tail is allowed more than 4 ulp.
    tail: (f64, f32),
}

impl Worst {
    fn and(self, other: Self) -> Self {
        let larger = |a: (f64, f32), b: (f64, f32)| if b.0 > a.0 { b } else { a };
        Self {
            value: larger(self.value, other.value),
            slope: larger(self.slope, other.slope),
            tail: larger(self.tail, other.tail),
        }
    }
}

fn measure(curve: Curve, x: &[f32]) -> Worst {
    let leaf = vector(x, &Device::flex().autodiff()).require_grad();
    let y = activate(leaf.clone(), curve);
    let ones = Tensor::<1>::ones_like(&y);
    let grads = (y.clone() * ones).sum().backward();
    let (y, dx) = (to_vec(y.inner()), to_vec(leaf.grad(&grads).unwrap()));
    let mut worst = Worst::default();
    for ((&x, y), dx) in x.iter().zip(y).zip(dx) {
        let (value, slope) = (curve.value(x.into()), curve.derivative(x.into()));
        let far_tail = matches!(curve, Curve::Gelu | Curve::GeluTanh) && x < -5.0;
        let absolute = (f64::from(y) - value).abs();
        // Beyond the largest f32, infinity is right.
        let overflow =
            value.abs() > f32::MAX.into() && f64::from(y) == value.signum() * f64::INFINITY;
        // Next to its zero, shifted swish is as exact as what is subtracted there.
        let scale = match curve {
            Curve::ShiftedSwish(_, b) => value.abs().max(b * f64::from(x).abs()),
            _ => value,
        };
        let error = if overflow { 0.0 } else { absolute / ulp(scale) };
        let slope_error = (f64::from(dx) - slope).abs() / ulp(slope.abs().max(1.0));
        worst = worst.and(Worst {
            value: if far_tail { (0.0, x) } else { (error, x) },
            slope: (slope_error, x),
            tail: if far_tail { (absolute, x) } else { (0.0, x) },
        });
        assert!(error.is_finite() && slope_error.is_finite(), "{curve} at {x:e}: {y} {dx}");
    }
    worst
}

/// The default of every curve, and some other parameters.
fn curves() -> Vec<Curve> {
    let others = ["psoftplus:1", "psoftplus:40", "elu:0.5", "celu:2", "smooth-relu:3", "swish:2.5"];
    let others = others.iter().map(|name| name.parse().unwrap());
    Curve::ALL.iter().copied().chain(others).collect()
}

fn check(curve: Curve, worst: Worst) {
    let ok = worst.value.0 <= 4.0 && worst.slope.0 <= 4.0 && worst.tail.0 <= 1e-9;
    assert!(ok, "{curve}: {worst:?}");
}

/// Every stride-th finite number, both signs.
fn every(stride: u32) -> impl Iterator<Item = f32> {
    let finite = (0..0x7f80_0000u32).step_by(stride as usize);
    finite.flat_map(|bits| [f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)])
}

fn walk(stride: u32) {
    let mut failed = Vec::new();
    for curve in curves() {
        let mut worst = Worst::default();
        let mut numbers = every(stride).peekable();
        while numbers.peek().is_some() {
            let x: Vec<f32> = numbers.by_ref().take(1 << 20).collect();
            let parts: Vec<&[f32]> = x.chunks(1 << 17).collect();
            worst = std::thread::scope(|scope| {
                let parts = parts.iter().map(|x| scope.spawn(move || measure(curve, x)));
                let parts: Vec<_> = parts.collect();
                parts.into_iter().fold(worst, |worst, part| worst.and(part.join().unwrap()))
            });
        }
        println!(
            "{:<28} value {:.2} ulp at {:e}, slope {:.2} ulp at {:e}, tail {:.1e} at {:e}",
            curve.to_string(),
            worst.value.0,
            worst.value.1,
            worst.slope.0,
            worst.slope.1,
            worst.tail.0,
            worst.tail.1
        );
        if std::panic::catch_unwind(|| check(curve, worst)).is_err() {
            failed.push(curve.to_string());
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn sampled_inputs_are_within_four_ulp() {
    walk(20_011);
}

#[test]
#[ignore = "all four thousand million numbers: about an hour"]
fn all_inputs_are_within_four_ulp() {
    walk(1);
}

#[test]
#[ignore = "one number in 257"]
fn many_inputs_are_within_four_ulp() {
    walk(257);
}

proptest! {
    #[test]
    fn random_inputs_are_within_four_ulp(x in prop::collection::vec(-60.0f32..60.0, 500)) {
        for curve in curves() {
            check(curve, measure(curve, &x));
        }
    }
}
