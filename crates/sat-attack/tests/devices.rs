//! The attacks on every device of the build, side by side: `cargo test -p sat-attack --test devices
//! --features flex,wgpu`.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use burn::tensor::activation::relu;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use sat_attack::{
    Adversarial, Apgd, Attack, AutoAttack, Fab, Fgsm, Goal, Norm, Pgd, Square, ThreatModel, Victim,
};

const COUNT: usize = 6;

/// Every device of the build, with its name.
fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", {
            #[allow(deprecated)]
            Device::ndarray()
        }),
        #[cfg(feature = "wgpu")]
        ("wgpu", Device::wgpu(Default::default())),
        #[cfg(feature = "cuda")]
        ("cuda", Device::cuda(0)),
        #[cfg(feature = "cpu")]
        ("cpu", Device::cpu()),
    ]
}

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
