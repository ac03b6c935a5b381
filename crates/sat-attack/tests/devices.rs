//! The attacks on every device of the build, side by side: `cargo test -p sat-attack --test devices
//! --features flex,wgpu`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "../../../tests/common/mod.rs"]
mod common;
#[path = "../../sat-core/tests/common/devices.rs"]
mod list;
#[path = "../../../tests/common/mnist.rs"]
mod mnist;

use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use list::devices;
use sat_attack::{
    Adversarial, Apgd, Attack, AutoAttack, Fab, Fgsm, Goal, Norm, Pgd, RandomStart, Square,
    ThreatModel, Victim,
};

const COUNT: usize = 6;

/// Values in [-1, 1), irregular and repeatable.
fn tensor<const D: usize>(seed: usize, shape: [usize; D], device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let value = |i: usize| ((i + 1) * 7919 + seed * 104_729) % 2003;
    let values: Vec<f32> = (0..count).map(|i| value(i) as f32 / 1001.5 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// One small convolution and a dense layer, for images of 1 x 6 x 6.
fn victim(device: &Device) -> Victim<'static> {
    let (kernel, dense) = (tensor(1, [2, 1, 3, 3], device), tensor(2, [32, 5], device));
    Victim::from_fn(move |x| {
        let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
        let x = relu(conv2d(x, kernel.clone(), None, options));
        x.flatten::<2>(1, 3).matmul(dense.clone())
    })
}

fn run(attack: &dyn Attack, norm: Norm, device: &Device) -> Adversarial {
    let victim = victim(device);
    let images = (tensor(3, [COUNT, 1, 6, 6], device) + 1.0) * 0.5;
    let labels = victim.predict(images.clone()).unwrap();
    let eps = match norm {
        Norm::Linf => 0.1,
        Norm::L2 => 0.4,
        _ => 1.5,
    };
    let threat = ThreatModel::new(norm, eps);
    let adv =
        attack.run(&victim, images.clone(), Goal::untargeted(labels.clone()), &threat).unwrap();
    let predictions = victim.predict(adv.images.clone()).unwrap();
    assert_eq!(adv.predictions, predictions);
    for ((success, prediction), label) in adv.success.iter().zip(predictions).zip(labels) {
        assert_eq!(*success, prediction != label);
    }
    let lengths = norm.lengths(&(adv.images.clone() - images)).unwrap();
    assert!(lengths.iter().all(|&length| length <= eps + 1e-5), "{norm}: {lengths:?}");
    adv
}

#[test]
fn attacks_do_the_same_on_every_device() {
    let attacks: [(&str, Box<dyn Attack>); 7] = [
        ("fgsm", Box::new(Fgsm::default())),
        ("pgd", Box::new(Pgd::default().steps(5))),
        ("apgd-ce", Box::new(Apgd::ce().steps(8))),
        ("apgd-t", Box::new(Apgd::targeted().steps(5).stop_when_fooled())),
        ("fab-t", Box::new(Fab::targeted().steps(5))),
        ("square", Box::new(Square::default().queries(30))),
        ("autoattack", Box::new(AutoAttack::standard().steps(4).queries(8))),
    ];
    for (name, attack) in &attacks {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let mut reference: Option<Adversarial> = None;
            for (device_name, device) in devices() {
                let adv = run(attack.as_ref(), norm, &device);
                let Some(reference) = &reference else {
                    assert!(adv.fooled() > 0, "{device_name}: {name}, {norm}");
                    reference = Some(adv);
                    continue;
                };
                assert_eq!(adv.success, reference.success, "{device_name}: {name}, {norm}");
                for (loss, want) in adv.loss.iter().zip(&reference.loss) {
                    let near = (loss - want).abs() < 1e-2 * want.abs().max(1.0);
                    assert!(near, "{device_name}: {name}, {norm}: {loss}, not {want}");
                }
            }
        }
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}

/// The known answers of `tests/golden_mnist.rs` and `tests/golden_autoattack.rs`.
#[test]
fn known_answers_on_the_tiny_mnist_network() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else { return };
    let threat = ThreatModel::linf(0.1);
    let pgd = Pgd::default().steps(10).step_size(0.025).random_start(RandomStart::Never);
    let apgd = Apgd::ce().random_start(RandomStart::Never);
    let attacks: [(&str, &dyn Attack, usize, f64); 3] = [
        ("fgsm", &Fgsm::default(), 4, 2.529_236),
        ("pgd", &pgd, 3, 2.650_857),
        ("apgd", &apgd, 3, 2.687_909),
    ];
    for (device_name, device) in devices() {
        let model = mnist::tiny(&golden, &device);
        let victim = Victim::new(&model);
        let (images, labels) = mnist::read_images(&golden, &device);
        for (name, attack, correct, loss) in attacks {
            let goal = Goal::untargeted(labels.clone());
            let adv = attack.run(&victim, images.clone(), goal, &threat).unwrap();
            assert_eq!(adv.robust(), correct, "{device_name}: {name}");
            let got = mean(&adv.loss);
            assert!((got - loss).abs() < 1e-3, "{device_name}: {name}: {got}, not {loss}");
        }
    }
}

/// On two images of the larger network: a software GPU takes its time over convolutions.
#[test]
fn every_device_attacks_the_mnist_cnn_alike() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else { return };
    let attacks: [(&str, Box<dyn Attack>); 4] = [
        ("fgsm", Box::new(Fgsm::default())),
        ("pgd", Box::new(Pgd::default().steps(3))),
        ("apgd", Box::new(Apgd::ce().steps(3))),
        ("square", Box::new(Square::default().queries(10))),
    ];
    let threat = ThreatModel::linf(0.3);
    let mut reference: Vec<Adversarial> = Vec::new();
    for (device_name, device) in devices() {
        let model = mnist::cnn(&golden, &device);
        let victim = Victim::new(&model);
        let (images, labels) = mnist::read_images(&golden, &device);
        let images = images.narrow(0, 0, 2);
        let results: Vec<Adversarial> = attacks
            .iter()
            .map(|(_, attack)| {
                let goal = Goal::untargeted(&labels[..2]);
                attack.run(&victim, images.clone(), goal, &threat).unwrap()
            })
            .collect();
        if reference.is_empty() {
            let clean = victim.logits(images).unwrap();
            assert_eq!(clean.dims(), [2, 10], "{device_name}");
            reference = results;
            continue;
        }
        for (((name, _), got), want) in attacks.iter().zip(&results).zip(&reference) {
            assert_eq!(got.success, want.success, "{device_name}: {name}");
            for (loss, want) in got.loss.iter().zip(&want.loss) {
                let near = (loss - want).abs() < 1e-2 * want.abs().max(1.0);
                assert!(near, "{device_name}: {name}: {loss}, not {want}");
            }
        }
    }
}
