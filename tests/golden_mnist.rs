//! FGSM, PGD, MI-FGSM and L2-PGD against numbers from torchattacks, on two small MNIST models.
//!
//! The data lie outside the repository; see `common::shared`.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
#![allow(clippy::single_range_in_vec_init, reason = "Burn's slice takes arrays of ranges")]

mod common;

use std::fs;
use std::ops::ControlFlow;

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use sat_attack::{
    Attack, Classifier, Fgsm, Pgd, RandomStart, Report, ThreatModel, Victim, evaluate,
};
use serde_json::Value;

/// conv(1->1, 7x7) - ReLU - max-pool 4 - fc(25->10)
#[derive(Module, Debug)]
struct MnistTiny {
    conv: Conv2d,
    pool: MaxPool2d,
    fc: Linear,
}

impl Classifier for MnistTiny {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = self.pool.forward(relu(self.conv.forward(images)));
        self.fc.forward(x.flatten(1, 3))
    }
}

/// Two blocks of two 3x3 convolutions and a max-pool, then two dense layers on an NHWC flatten.
#[derive(Module, Debug)]
struct MnistCnn {
    convs: Vec<Conv2d>,
    pool: MaxPool2d,
    d1: Linear,
    d2: Linear,
}

impl Classifier for MnistCnn {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let mut x = images;
        for pair in self.convs.chunks(2) {
            for conv in pair {
                x = relu(conv.forward(x));
            }
            x = self.pool.forward(x);
        }
        let x = x.permute([0, 2, 3, 1]).flatten(1, 3);
        self.d2.forward(relu(self.d1.forward(x)))
    }
}

struct Weights<'a> {
    file: SafeTensors<'a>,
    device: Device,
}

impl Weights<'_> {
    fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let view = self.file.tensor(name).unwrap();
        let values: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), &self.device)
    }

    fn conv(&self, name: &str, padding: usize) -> Conv2d {
        let weight = self.tensor::<4>(&format!("{name}.weight"));
        let [outputs, inputs, height, width] = weight.dims();
        let mut conv = Conv2dConfig::new([inputs, outputs], [height, width])
            .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
            .init(&self.device);
        conv.weight = Param::from_tensor(weight);
        conv.bias = Some(Param::from_tensor(self.tensor(&format!("{name}.bias"))));
        conv
    }

    fn linear(&self, name: &str) -> Linear {
        // PyTorch stores [outputs, inputs], Burn [inputs, outputs].
        let weight = self.tensor::<2>(&format!("{name}.weight")).transpose();
        let [inputs, outputs] = weight.dims();
        let mut linear = LinearConfig::new(inputs, outputs).init(&self.device);
        linear.weight = Param::from_tensor(weight);
        linear.bias = Some(Param::from_tensor(self.tensor(&format!("{name}.bias"))));
        linear
    }
}

fn pool(size: usize) -> MaxPool2d {
    MaxPool2dConfig::new([size, size]).with_strides([size, size]).init()
}

fn read_images(golden: &std::path::Path, device: &Device) -> (Tensor<4>, Vec<usize>) {
    let bytes = fs::read(golden.join("mnist20.bin")).unwrap();
    let (mut labels, mut pixels) = (Vec::new(), Vec::new());
    for record in bytes.chunks_exact(785) {
        labels.push(usize::from(record[0]));
        pixels.extend(record[1..].iter().map(|&byte| f32::from(byte) / 255.0));
    }
    let data = TensorData::new(pixels, [labels.len(), 1, 28, 28]);
    (Tensor::from_data(data, device), labels)
}

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

    let bytes = fs::read(golden.join("mnist_tiny.safetensors")).unwrap();
    let weights =
        Weights { file: SafeTensors::deserialize(&bytes).unwrap(), device: device.clone() };
    let tiny = MnistTiny { conv: weights.conv("conv", 0), pool: pool(4), fc: weights.linear("fc") };
    let data = read_images(&golden, &device);
    compare("mnist_tiny", &Victim::new(&tiny), &expected["mnist_tiny"], data.clone());

    let bytes = fs::read(golden.join("mnist_cnn.safetensors")).unwrap();
    let weights = Weights { file: SafeTensors::deserialize(&bytes).unwrap(), device };
    let cnn = MnistCnn {
        convs: ["c1", "c2", "c3", "c4"].map(|name| weights.conv(name, 1)).into(),
        pool: pool(2),
        d1: weights.linear("d1"),
        d2: weights.linear("d2"),
    };
    compare("mnist_cnn", &Victim::new(&cnn), &expected["mnist_cnn"], data);
}
