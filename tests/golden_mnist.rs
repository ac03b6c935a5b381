//! FGSM, PGD, MI-FGSM and L2-PGD against numbers from torchattacks, on two small MNIST models.
//!
//! The data lie outside the repository; see `common::shared`.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
#![allow(clippy::single_range_in_vec_init, reason = "Burn's slice takes arrays of ranges")]

mod common;
#[path = "common/mnist.rs"]
mod mnist;

use std::fs;
use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use sat_attack::{Attack, Fgsm, Pgd, RandomStart, Report, ThreatModel, Victim, evaluate};
use serde_json::Value;

/// The attack that a key of the file describes: `fgsm_linf_E`, `pgd10_linf_E_step_eps/4`,
/// `mifgsm10_linf_E_step_eps/4_decay1`, `pgd10_l2_E_step_eps/4`.
fn attack_of(key: &str) -> (Box<dyn Attack>, ThreatModel, Pgd, f64) {
    let parts: Vec<&str> = key.split('_').collect();
    let eps: f64 = parts[2].parse().unwrap();
    let pgd = Pgd::default().steps(10).step_size(eps / 4.0).random_start(RandomStart::Never);
    let threat = ThreatModel::new(parts[1].parse().unwrap(), eps);
    let tolerance = if parts[1] == "l2" { 1e-3 } else { 1e-4 };
    match parts[0] {
        "fgsm" => (Box::new(Fgsm::default()), threat, pgd, tolerance),
        "pgd10" => (Box::new(pgd.clone()), threat, pgd, tolerance),
        "mifgsm10" => {
            let pgd = pgd.momentum(1.0);
            (Box::new(pgd.clone()), threat, pgd, tolerance)
        }
        other => panic!("unknown attack {other}"),
    }
}

fn compare(name: &str, victim: &Victim<'_>, expected: &Value, data: (Tensor<4>, Vec<usize>)) {
    let (images, labels) = data;
    let mut compared = 0;
    for (key, want) in expected.as_object().unwrap() {
        let (report, tolerance) = if key == "clean" {
            let logits = victim.logits(images.clone()).unwrap();
            let first: Vec<f32> = logits.slice([0..1]).try_into_vec_as().unwrap();
            for (logit, want) in first.iter().zip(want["logits_first"].as_array().unwrap()) {
                assert!((f64::from(*logit) - want.as_f64().unwrap()).abs() < 1e-5);
            }
            // An attack that may not move shows the clean figures.
            let none = ThreatModel::linf(0.0);
            (run(victim, &Fgsm::default(), &images, &labels, &none), 1e-4)
        } else {
            let (attack, threat, pgd, tolerance) = attack_of(key);
            let report = run(victim, attack.as_ref(), &images, &labels, &threat);
            // Stopping early can only fool more.
            if !key.starts_with("fgsm") {
                let early = pgd.stop_when_fooled();
                let early = run(victim, &early, &images, &labels, &threat);
                assert!(early.robust_correct <= report.robust_correct, "{name} {key}");
            }
            (report, tolerance)
        };
        // The file counts images that the model gets right after the attack, whatever it made of
        // the clean ones.
        let correct: Vec<usize> = report
            .per_sample
            .iter()
            .filter(|record| record.adv_prediction == record.label)
            .map(|record| record.index)
            .collect();
        println!("{name} {key}: {} correct, {:.6}", correct.len(), report.adv_ce);
        assert_eq!(correct.len() as u64, want["correct"].as_u64().unwrap(), "{name} {key}");
        if let Some(indices) = want.get("correct_idx") {
            assert_eq!(serde_json::to_value(&correct).unwrap(), *indices, "{key}");
        }
        let difference = (report.adv_ce - want["ce"].as_f64().unwrap()).abs();
        assert!(difference < tolerance, "{name} {key}: off by {difference}");
        compared += 1;
    }
    assert_eq!(compared, 13, "{name}");
}

fn run(
    victim: &Victim<'_>,
    attack: &dyn Attack,
    images: &Tensor<4>,
    labels: &[usize],
    threat: &ThreatModel,
) -> Report {
    let batches = [(images.clone(), labels.to_vec())];
    evaluate(victim, attack, batches, threat, |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn attacks_match_torchattacks_on_mnist() {
    let Some(golden) = common::shared().map(|shared| shared.join("golden")) else { return };
    let device = Device::flex();
    let expected: Value =
        serde_json::from_slice(&fs::read(golden.join("mnist_expected.json")).unwrap()).unwrap();

    let data = mnist::read_images(&golden, &device);
    let tiny = mnist::tiny(&golden, &device);
    compare("mnist_tiny", &Victim::new(&tiny), &expected["mnist_tiny"], data.clone());
    let cnn = mnist::cnn(&golden, &device);
    compare("mnist_cnn", &Victim::new(&cnn), &expected["mnist_cnn"], data);
}
