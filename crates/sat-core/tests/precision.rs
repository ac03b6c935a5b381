//! Error bounds of values and derivatives, in units in the last place.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{
    devices,
    precision::{Subnormals, Worst, curves, measure, walk},
};
use proptest::prelude::*;
use sat_core::Curve;

/// What docs/precision.md promises, in ulp.
const PROMISED: f64 = 4.0;

/// What a device that is held to it does with small numbers. The composed form, which runs under fusion, is
/// held to an absolute error in `suite.rs`.
fn subnormals(device: &str) -> Option<Subnormals> {
    match device {
        _ if has_loops(device) => Some(Subnormals::Kept),
        _ if cfg!(feature = "fusion") => None,
        _ => Some(Subnormals::Flushed),
    }
}

/// Whether a device runs the loops of the CPU.
fn has_loops(device: &str) -> bool {
    matches!(device, "flex" | "ndarray")
}

/// Whether a device multiplies and adds in one rounding.
fn has_fused_multiply_add(device: &str) -> bool {
    if !has_loops(device) {
        return device == "cuda";
    }
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return cfg!(target_arch = "aarch64");
}

/// What is wrong, if anything.
fn check(device: &str, curve: Curve, worst: Worst) -> Option<String> {
    let bound = match curve {
        Curve::Gelu if !has_fused_multiply_add(device) => 5.0,
        _ => PROMISED,
    };
    let ok = worst.value.0 <= bound && worst.slope.0 <= bound && worst.tail.0 <= 1e-9;
    (!ok).then(|| format!("{device} {curve}: {worst:?}"))
}

fn check_all(stride: u32) {
    let mut broken = Vec::new();
    for (name, device) in devices() {
        let Some(subnormals) = subnormals(name) else { continue };
        for curve in curves() {
            broken.extend(check(name, curve, walk(curve, &device, subnormals, stride)));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn sampled_inputs_keep_the_promise() {
    check_all(20_011);
}

#[test]
#[ignore = "all four thousand million numbers: about an hour"]
fn all_inputs_keep_the_promise() {
    check_all(1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 50, ..ProptestConfig::default() })]
    #[test]
    fn random_inputs_keep_the_promise(x in prop::collection::vec(-60.0f32..60.0, 2000)) {
        for (name, device) in devices() {
            let Some(subnormals) = subnormals(name) else { continue };
            for curve in curves() {
                let broken = check(name, curve, measure(curve, &device, subnormals, &x));
                prop_assert!(broken.is_none(), "{broken:?}");
            }
        }
    }
}
