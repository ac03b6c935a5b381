//! A CIFAR ResNet-20 with SiLU from a PyTorch file: clean accuracy, FGSM, PGD and L2-PGD against the
//! numbers of independent software, on exact CIFAR-10 pixels, through the readers that users have.
#![cfg(feature = "flex")]

mod common;

use burn::tensor::Device;
use sat::{
    attack::{Attack, Fgsm, Pgd, RandomStart, ThreatModel, Victim, evaluate},
    models::{ModelName, load_safetensors},
    train::data::cifar10_bin,
};
use std::ops::ControlFlow;

#[test]
fn counts_and_cross_entropies_are_those_of_pytorch() {
    let Some(shared) = common::shared() else { return };
    let expected = std::fs::read(shared.join("golden/resnet20_silu_expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let device = Device::flex();
    let data = cifar10_bin(shared.join("data/cifar10/test_exact_1017.bin")).unwrap();
    assert_eq!(Some(data.len() as u64), expected["n"].as_u64());
    let config = ModelName::ResNet20.config().with_activation("silu".parse().unwrap());
    let weights = shared.join("golden/resnet20_silu_cifar10_linf.safetensors");
    let model = load_safetensors(config.init(0, &device), weights).unwrap();
    let victim = Victim::new(&model);

    let (first, _) = data.batch(&[0, 1, 2, 3], &device);
    let logits = model.forward(first).try_into_vec_as::<f32>().unwrap();
    let want = expected["logits0"].as_array().unwrap();
    let want = want.iter().flat_map(|row| row.as_array().unwrap());
    for (logit, want) in logits.iter().zip(want) {
        assert!((f64::from(*logit) - want.as_f64().unwrap()).abs() < 1e-4, "{logit}, not {want}");
    }

    let pgd =
        |steps, size| Pgd::default().steps(steps).step_size(size).random_start(RandomStart::Never);
    let linf = ThreatModel::linf(8.0 / 255.0);
    let attacks: [(&str, Box<dyn Attack>, ThreatModel, f64); 4] = [
        ("fgsm", Box::new(Fgsm::default()), linf.clone(), 1e-4),
        ("pgd10_a2", Box::new(pgd(10, 2.0 / 255.0)), linf.clone(), 1e-4),
        ("pgd20_a1", Box::new(pgd(20, 1.0 / 255.0)), linf, 1e-4),
        ("pgd_l2_eps0.5_a0.1_k10", Box::new(pgd(10, 0.1)), ThreatModel::l2(0.5), 1e-3),
    ];
    for (name, attack, threat, tolerance) in attacks {
        let batches = data.batches(113).map(|indices| data.batch(&indices, &device));
        let report =
            evaluate(&victim, attack.as_ref(), batches, &threat, |_| ControlFlow::Continue(()))
                .unwrap();
        let agree = |what: &str, count: usize, ce: f64, tolerance: f64| {
            let (want, want_ce) = (&expected[what][0], expected[what][1].as_f64().unwrap());
            assert_eq!(Some(count as u64), want.as_u64(), "{what}");
            assert!((ce - want_ce).abs() <= tolerance, "{what}: {ce}, not {want_ce}");
        };
        agree("clean", report.clean_correct, report.clean_ce, 1e-4);
        agree(name, report.robust_correct, report.adv_ce, tolerance);
    }
}
