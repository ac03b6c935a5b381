//! Adversarial training on every device of the build, side by side: `cargo test -p sat-train --test
//! devices --features flex,wgpu`.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "../../sat-core/tests/common/devices.rs"]
mod list;

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use list::devices;
use sat_attack::Classifier;
use sat_models::{EfficientNetConfig, Model, NetworkConfig, ResNetConfig, StageConfig, StemConfig};
use sat_train::{
    AdversarialStep, Normalized, Precision, Recipe, TrainError, TrainingAttack, data::ImageSet,
    optimizer, train as train_whole,
};
use std::ops::ControlFlow;

/// Channels, learning rate and network: grey and coloured images, both families, strides, a projection,
/// squeeze-and-excitation, learned parameters. The gradients of an EfficientNet this small are in the
/// thousands, and a step too long makes noise of any difference.
fn networks() -> [(usize, f64, NetworkConfig); 3] {
    let resnet = |channels| {
        let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
        let config = ResNetConfig {
            stem: StemConfig::small(8, 1),
            stages: vec![stage(8, 1), stage(16, 2)],
            ..ResNetConfig::resnet20()
        };
        NetworkConfig::ResNet(config).with_input_channels(channels).with_classes(5)
    };
    let efficientnet = EfficientNetConfig { width: 0.25, depth: 0.3, ..EfficientNetConfig::b0() };
    let efficientnet =
        NetworkConfig::EfficientNet(efficientnet.with_stochastic_depth(0.0).with_dropout(0.0));
    [
        (1, 0.02, resnet(1).with_activation("silu".parse().unwrap())),
        (3, 0.02, resnet(3).with_activation("smooth-relu-learnable:2".parse().unwrap())),
        (3, 1e-4, efficientnet.with_classes(5)),
    ]
}

const SIZE: usize = 16;
const LABELS: [usize; 6] = [0, 3, 1, 4, 2, 3];

fn images(channels: usize, device: &Device) -> Tensor<4> {
    let shape = [LABELS.len(), channels, SIZE, SIZE];
    let pixels = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1009) as f32 / 1008.0);
    Tensor::from_data(TensorData::new(pixels.collect(), shape), device)
}

/// The losses of two steps, and the logits after them.
fn train(
    channels: usize,
    lr: f64,
    network: &NetworkConfig,
    device: &Device,
) -> (Vec<f32>, Vec<f32>) {
    let tracked = device.clone().autodiff();
    let model: Model = network.init(0, &tracked);
    let mut model = Normalized::to_plus_minus_one(model, channels);
    let attack = TrainingAttack { eps: 0.05, steps: 2, ..TrainingAttack::default() };
    let recipe = Recipe { attack: Some(attack), ..Recipe::default() };
    let step = AdversarialStep::new(&recipe);
    let mut sgd = optimizer(&recipe, &model);
    let mut losses = Vec::new();
    for first in [0, 6] {
        let images = images(channels, device);
        let (trained, output) =
            step.run(model, &mut sgd, lr, images.clone(), &LABELS, first).unwrap();
        let change = (output.adversarial - images).abs().max().into_scalar::<f32>();
        assert!(change <= 0.05 + 1e-6, "the attack changes a pixel by {change}");
        losses.push(output.loss.into_scalar::<f32>());
        model = trained;
    }
    let logits = model.valid().logits(images(channels, device));
    (losses, logits.into_data().try_into_vec().unwrap())
}

#[test]
fn a_step_does_the_same_on_every_device() {
    for (channels, lr, network) in networks() {
        let mut reference: Option<(Vec<f32>, Vec<f32>)> = None;
        for (name, device) in devices() {
            let got = train(channels, lr, &network, &device);
            let Some(want) = &reference else {
                reference = Some(got);
                continue;
            };
            // Gradients near zero may have another sign in the attack.
            for (got, want) in [(&got.0, &want.0), (&got.1, &want.1)] {
                let scale = want.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
                let near = |(got, want): (&f32, &f32)| (got - want).abs() <= 1e-2 * scale;
                let close = got.iter().zip(want).all(near);
                assert!(close, "{name}, {network:?}: {got:?}, not {want:?}");
            }
        }
    }
}

#[test]
fn mixed_precision_trains_or_is_refused() {
    let names = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
    let pixels = (0..10 * SIZE * SIZE).map(|i| (i * 7919 % 251) as u8).collect();
    let labels = (0..10).map(|i| i % 5).collect();
    let data = ImageSet::new(pixels, [1, SIZE, SIZE], labels, names).unwrap();
    let [(channels, _, network), ..] = networks();
    let train_on = |device: &Device, precision| {
        let recipe = Recipe { epochs: 1, batch_size: 10, precision, ..Recipe::default() };
        let model: Model = network.init(0, &device.clone().autodiff());
        let model = Normalized::to_plus_minus_one(model, channels);
        let go_on = |_: &sat_train::Progress| ControlFlow::Continue(());
        train_whole(model, &recipe, &data, device, None, go_on)
    };
    for (name, device) in devices() {
        let full = train_on(&device, Precision::Full).unwrap().progress.loss;
        match train_on(&device, Precision::Bf16Mixed) {
            Ok(trained) => {
                let loss = trained.progress.loss;
                assert!(Precision::Bf16Mixed.is_supported(&device), "{name}");
                assert!((loss - full).abs() < 0.01 * full, "{name}: {loss}, not {full}");
            }
            Err(error) => {
                assert!(!Precision::Bf16Mixed.is_supported(&device), "{name}: {error}");
                assert!(matches!(error, TrainError::Precision(..)), "{name}: {error}");
                assert!(error.to_string().contains("bf16-mixed"), "{error}");
            }
        }
    }
}
