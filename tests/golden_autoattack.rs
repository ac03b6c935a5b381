//! APGD, FAB, Square and AutoAttack against numbers from the official implementation and
//! torchattacks.
//!
//! The data lie outside the repository; see `common::shared`.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;
#[path = "common/mnist.rs"]
mod mnist;

use burn::tensor::{Device, Tensor};
use sat::{
    attack::{
        Apgd, Attack, AutoAttack, Evaluation, Fab, Flag, Goal, Norm, RandomStart, Report,
        ThreatModel, Victim,
    },
    models::{ModelName, load_safetensors},
    train::data::cifar10_bin,
};
use std::{fs, ops::ControlFlow, path::Path};

fn run(
    victim: &Victim<'_>,
    attack: &dyn Attack,
    data: &(Tensor<4>, Vec<usize>),
    threat: &ThreatModel,
) -> Report {
    let batches = [data.clone()];
    Evaluation::new(victim, attack, threat).run(batches, |_| ControlFlow::Continue(())).unwrap()
}

fn from_clean(apgd: Apgd) -> Apgd {
    apgd.random_start(RandomStart::Never)
}

#[test]
fn attacks_on_the_tiny_mnist_network() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else { return };
    let device = Device::flex();
    let model = mnist::tiny(&golden, &device);
    let victim = Victim::new(&model);
    let data = mnist::read_images(&golden, &device);
    let threat = ThreatModel::linf(0.1);

    let ce = run(&victim, &from_clean(Apgd::ce()), &data, &threat);
    assert_eq!(ce.robust_correct, 3);
    assert!((ce.adv_ce - 2.687_909).abs() < 1e-3, "{}", ce.adv_ce);
    let dlr = run(&victim, &from_clean(Apgd::dlr()), &data, &threat);
    assert_eq!(dlr.robust_correct, 2);

    let goal = Goal::untargeted(data.1.clone());
    let fab =
        Fab::default().minimal(&victim, data.0.clone(), goal, Norm::Linf, (0.0, 1.0)).unwrap();
    let found: Vec<f64> = fab.distances.into_iter().filter(|&d| d > 0.0).collect();
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let largest = found.iter().copied().fold(0.0, f64::max);
    println!("FAB: {} found, mean {mean:.6}, largest {largest:.6}", found.len());
    assert_eq!(found.len(), 8);
    assert!((mean / 0.059_676 - 1.0).abs() < 0.02, "{mean}");
    assert!((largest / 0.125_144 - 1.0).abs() < 0.02, "{largest}");

    let report = run(&victim, &AutoAttack::standard(), &data, &threat);
    println!("{}", report.lines().join("\n"));
    assert_eq!(report.robust_correct, 1);
}

#[test]
fn the_mnist_cnn_masks_its_gradient_and_square_says_so() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else { return };
    let device = Device::flex();
    let model = mnist::cnn(&golden, &device);
    let victim = Victim::new(&model);
    let data = mnist::read_images(&golden, &device);
    let threat = ThreatModel::linf(0.3);

    let ce = run(&victim, &from_clean(Apgd::ce()), &data, &threat);
    println!("{} {:.6}", ce.robust_correct, ce.adv_ce);
    assert_eq!(ce.robust_correct, 19);
    assert!((ce.adv_ce - 0.733_296).abs() < 1e-3, "{}", ce.adv_ce);

    let report = run(&victim, &AutoAttack::standard(), &data, &threat);
    println!("{}", report.lines().join("\n"));
    assert_eq!(report.robust_correct, 18);
    assert!(report.flags.iter().any(|flag| matches!(flag, Flag::SquareGained { .. })));
}

/// The CIFAR ResNet-20 of the known answers, and what they are.
fn resnet20(shared: &Path) -> (sat::models::ResNet, serde_json::Value) {
    let expected = fs::read(shared.join("golden/resnet20_silu_expected.json")).unwrap();
    let config = ModelName::ResNet20.config().with_activation("silu".parse().unwrap());
    let weights = shared.join("golden/resnet20_silu_cifar10_linf.safetensors");
    let model = load_safetensors(config.init(0, &Device::flex()), weights).unwrap();
    (model, serde_json::from_slice(&expected).unwrap())
}

#[test]
fn apgd_on_the_cifar_resnet() {
    let Some(shared) = common::shared() else { return };
    let (model, expected) = resnet20(&shared);
    let victim = Victim::new(&model);
    let images = cifar10_bin(shared.join("data/cifar10/test_exact_1017.bin")).unwrap();
    // One sample in ten of the 500 would be too few for a count: take them all, but only here.
    let data = images.batch(&(0..500).collect::<Vec<_>>(), &Device::flex());
    let threat = ThreatModel::linf(8.0 / 255.0);
    let ce = run(&victim, &from_clean(Apgd::ce()), &data, &threat);
    let [count, loss] = ["0", "1"]
        .map(|i| expected["apgd_ce_from_x_500"][i.parse::<usize>().unwrap()].as_f64().unwrap());
    println!("CE: {} of {count}, {:.6} of {loss:.6}", ce.robust_correct, ce.adv_ce);
    assert!((ce.robust_correct as f64 - count).abs() <= 2.5);
    assert!((ce.adv_ce - loss).abs() < 1e-3);
}

#[test]
#[ignore = "takes about ten minutes on two cores"]
fn autoattack_on_the_cifar_resnet() {
    let Some(shared) = common::shared() else { return };
    let (model, expected) = resnet20(&shared);
    let victim = Victim::new(&model);
    let images = cifar10_bin(shared.join("data/cifar10/test_exact_1017.bin")).unwrap().take(200);
    let attack = AutoAttack::standard().log(|line| println!("{line}"));
    let batches = images.batches(200).map(|indices| images.batch(&indices, &Device::flex()));
    let threat = ThreatModel::linf(8.0 / 255.0);
    let report = Evaluation::new(&victim, &attack, &threat)
        .run(batches, |_| ControlFlow::Continue(()))
        .unwrap();
    println!("{}\n{:?}", report.lines().join("\n"), report.cost);
    let want = &expected["aa_standard"];
    let robust = want["robust"].as_f64().unwrap();
    assert!((report.robust_correct as f64 - robust).abs() <= 2.0);
    let same = report
        .per_sample
        .iter()
        .zip(want["per_sample"].as_array().unwrap())
        .filter(|(record, want)| u64::from(record.robust) == want.as_u64().unwrap())
        .count();
    println!("{same} of 200 samples agree");
    assert!(same >= 196);
}
