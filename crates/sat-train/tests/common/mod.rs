//! A small network, small images and a short recipe.

// Each test file uses a part of it.
#![allow(dead_code)]

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use sat_models::{ResNet, ResNetConfig, StageConfig, StemConfig};
use sat_train::{Normalized, Progress, Recipe, Schedule, TrainingAttack, data::ImageSet};
use std::ops::ControlFlow;

pub(crate) type Model = Normalized<ResNet>;

pub(crate) fn device() -> Device {
    Device::flex().autodiff()
}

/// Three classes of noisy stripes, 12 x 12.
pub(crate) fn images(n: usize) -> ImageSet {
    let pixel = |i: usize, x: usize| {
        let stripe = if (x / 2) % 3 == i % 3 { 150 } else { 60 };
        (stripe + (i * 7919 + x * 104_729) % 83) as u8
    };
    let pixels = (0..n).flat_map(|i| (0..144).map(move |x| pixel(i, x))).collect();
    let labels = (0..n).map(|i| (i % 3) as u16).collect();
    let names = ["a", "b", "c"].map(String::from).to_vec();
    ImageSet::new(pixels, [1, 12, 12], labels, names).unwrap()
}

pub(crate) fn config() -> ResNetConfig {
    let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
    ResNetConfig {
        stem: StemConfig::small(4, 1),
        stages: vec![stage(4, 1), stage(8, 2)],
        ..ResNetConfig::resnet20()
    }
    .with_input_channels(1)
    .with_classes(3)
    .with_activation("smooth-relu-learnable".parse().unwrap())
}

pub(crate) fn model() -> Model {
    Normalized::to_plus_minus_one(config().init(3, &device()), 1)
}

pub(crate) fn recipe() -> Recipe {
    Recipe {
        epochs: 3,
        batch_size: 8,
        seed: 11,
        schedule: Schedule::Cyclic { lr: 0.05, peak: 0.4 },
        attack: Some(TrainingAttack { eps: 0.1, ..TrainingAttack::default() }),
        ..Recipe::default()
    }
}

/// All parameters and running statistics, as (path, bits).
pub(crate) fn bits<M: Module>(model: &M) -> Vec<(String, Vec<u32>)> {
    #[derive(Default)]
    struct Bits {
        path: Vec<String>,
        found: Vec<(String, Vec<u32>)>,
    }
    impl ModuleVisitor for Bits {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values: Vec<f32> = param.val().into_data().try_into_vec().unwrap();
            let bits = values.into_iter().map(f32::to_bits).collect();
            self.found.push((self.path.join("."), bits));
        }
    }
    let mut visitor = Bits::default();
    model.valid().visit(&mut visitor);
    visitor.found
}

pub(crate) fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Stops a training after so many steps.
pub(crate) fn stop_at(step: usize) -> impl FnMut(&Progress) -> ControlFlow<()> {
    move |progress| match progress.step {
        done if done == step => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    }
}
