//! Training in `bf16` with `f32` weights, beside training in `f32`.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::{
    module::{Module, ModuleVisitor, Param, Quantizer, RunningState},
    nn,
    optim::GradientsParams,
    tensor::{
        DType, Device, Tensor, TensorData, bf16,
        quantization::{Calibration, QuantValue},
    },
};
use common::{bits, device};
use sat_attack::Classifier;
use sat_models::{
    EfficientNetConfig, Model, NetworkConfig, PreActResNetConfig, ResNetConfig, StageConfig,
    StemConfig,
};
use sat_train::{
    AdversarialStep, AttackStart, Checkpoints, Normalized, Objective, Perturbation, Precision,
    Recipe, Start, TrainError, TrainingAttack, optimizer, train,
};
use std::collections::HashMap;

const EPS: f64 = 0.05;
const LABELS: [usize; 8] = [0, 2, 1, 2, 0, 1, 1, 0];

/// Every family, with activations that have no parameter, one a site, a pair for the network, and Burn's PReLU.
fn networks() -> Vec<NetworkConfig> {
    let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
    let resnet = ResNetConfig {
        stem: StemConfig::small(8, 3),
        stages: vec![stage(8, 1), stage(16, 2)],
        ..ResNetConfig::resnet20()
    };
    let preact = PreActResNetConfig {
        stages: vec![stage(8, 1), stage(16, 2)],
        ..PreActResNetConfig::preact_resnet18()
    };
    let efficientnet = EfficientNetConfig { width: 0.25, depth: 0.3, ..EfficientNetConfig::b0() }
        .with_stochastic_depth(0.0)
        .with_dropout(0.0);
    let prelu = nn::activation::ActivationConfig::PRelu(nn::PReluConfig::new());
    let with = |config: NetworkConfig, activation: &str| {
        config.with_classes(3).with_activation(activation.parse().unwrap())
    };
    vec![
        with(resnet.clone().into(), "silu"),
        with(resnet.clone().into(), "smooth-relu-learnable:2"),
        with(resnet.clone().into(), "pssilu"),
        NetworkConfig::from(resnet).with_classes(3).with_activation(prelu.into()),
        with(preact.into(), "gelu"),
        with(efficientnet.into(), "silu"),
    ]
}

fn images() -> Tensor<4> {
    let shape = [LABELS.len(), 3, 64, 64];
    let pixels = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1009) as f32 / 1008.0);
    Tensor::from_data(TensorData::new(pixels.collect(), shape), &device())
}

/// After two updates in `f32`, where residual branches begin with gains of 0.
fn model(network: &NetworkConfig) -> Normalized<Model> {
    let mut model = Normalized::to_plus_minus_one(network.init(5, &device()), 3);
    if matches!(network, NetworkConfig::EfficientNet(_)) {
        return model;
    }
    let recipe = Recipe { attack: None, ..recipe(Precision::Full) };
    let (step, mut sgd) = (AdversarialStep::new(&recipe), optimizer(&recipe, &model));
    for first in [0, 8] {
        (model, _) = step.run(model, &mut sgd, 0.1, images(), &LABELS, first).unwrap();
    }
    model
}

fn recipe(precision: Precision) -> Recipe {
    let attack = TrainingAttack { eps: EPS, start: AttackStart::Clean, ..Default::default() };
    Recipe { attack: Some(attack), precision, ..Recipe::default() }
}

/// The gradients of all parameters, by path.
fn gradients<M: Module>(model: &M, gradients: &GradientsParams) -> Vec<(String, Vec<f64>)> {
    struct Flat<'a> {
        gradients: &'a GradientsParams,
        path: Vec<String>,
        found: Vec<(String, Vec<f64>)>,
    }
    impl ModuleVisitor for Flat<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.join(".");
            assert_eq!(param.val().dtype(), DType::F32, "{path}");
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                assert_eq!(gradient.dtype(), DType::F32, "gradient of {path}");
                self.found.push((path, gradient.into_data().iter().collect()));
            }
        }
    }
    let mut flat = Flat { gradients, path: Vec::new(), found: Vec::new() };
    model.visit(&mut flat);
    flat.found
}

fn values_of(logits: Tensor<2>) -> Vec<f64> {
    logits.into_data().iter().collect()
}

fn values(bits: &[u32]) -> Vec<f64> {
    bits.iter().map(|bits| f32::from_bits(*bits).into()).collect()
}

/// |a - b|/|b|
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn gradients_and_statistics_are_near_those_in_f32() {
    for network in networks() {
        let run = |precision| {
            let model = model(&network);
            // Clean images: the sign in an attack makes a step of a rounding.
            let recipe = Recipe { attack: None, ..recipe(precision) };
            let step = AdversarialStep::new(&recipe);
            let (got, output) = step.gradients(&model, images(), &LABELS, 0).unwrap();
            assert_eq!(output.logits.dtype(), DType::F32);
            let all = gradients(&model, &got);
            let statistics: Vec<_> =
                bits(&model).into_iter().filter(|(path, _)| path.contains("running")).collect();
            let loss: f32 = output.loss.into_scalar();
            (loss, all, statistics)
        };
        let (loss, all, statistics) = run(Precision::Full);
        let (loss_bf16, all_bf16, statistics_bf16) = run(Precision::Bf16Mixed);
        assert_ne!(loss, loss_bf16, "{network:?}: nothing was rounded");
        assert!((loss - loss_bf16).abs() < 0.01 * loss, "{loss_bf16}, not {loss}: {network:?}");
        assert_eq!(all.len(), all_bf16.len());
        let flat = |all: &[(String, Vec<f64>)]| -> Vec<f64> {
            all.iter().flat_map(|(_, values)| values.clone()).collect()
        };
        let error = distance(&flat(&all_bf16), &flat(&all));
        // Deeper, and with more normalisations over few values.
        let bound = if matches!(network, NetworkConfig::EfficientNet(_)) { 0.15 } else { 0.03 };
        assert!(error > 0.0 && error < bound, "{error}: {network:?}");
        let initial = bits(&model(&network));
        // Means in units of the standard deviation: many are near 0.
        let all: HashMap<_, _> = statistics.iter().cloned().collect();
        for (path, got) in &statistics_bf16 {
            let (got_values, want) = (values(got), values(&all[path]));
            let variance = values(&all[&path.replace("running_mean", "running_var")]);
            for ((got, want), variance) in got_values.iter().zip(&want).zip(variance) {
                let unit = if path.ends_with("mean") { variance.sqrt() } else { variance };
                let error = (got - want).abs() / unit;
                assert!(error < 0.005, "{path}: {got}, not {want}");
            }
            let moved = initial.iter().any(|(before, bits)| before == path && bits != got);
            assert!(moved, "{path} has not moved");
        }
    }
}

#[test]
fn images_stay_in_f32_under_attack() {
    let network = &networks()[0];
    let step = AdversarialStep::new(&recipe(Precision::Bf16Mixed));
    let (clean, model) = (images(), model(network));
    let adversarial = step.perturb(&model, clean.clone(), &LABELS, 0).unwrap();
    assert_eq!(adversarial.dtype(), DType::F32);
    let clean: Vec<f32> = clean.into_data().iter().collect();
    let eps = EPS as f32;
    let mut moved = 0;
    for (x, got) in clean.iter().zip(adversarial.into_data().iter::<f32>()) {
        // One step of eps: nothing in between, which `bf16` could not hold.
        let ends = [*x, (x - eps).max(0.0), (x + eps).min(1.0)];
        assert!(ends.iter().any(|end| (got - end).abs() < 1e-7), "{x} became {got}");
        moved += usize::from(got != *x);
    }
    assert!(moved > clean.len() / 2);
}

/// Why the weights stay in `f32`: an update below half of `bf16`'s spacing would be lost.
#[test]
fn small_updates_are_kept() {
    let network = &networks()[0];
    let recipe = Recipe { weight_decay: 0.0, momentum: 0.0, ..recipe(Precision::Bf16Mixed) };
    let lr = 1e-3;
    let before = model(network);
    let step = AdversarialStep::new(&recipe);
    let (got, _) = step.gradients(&before, images(), &LABELS, 0).unwrap();
    let all = gradients(&before, &got);
    let (old, mut sgd) = (bits(&before), optimizer(&recipe, &before));
    let new = bits(&sgd.step(lr, before, got));
    let of = |model: &[(String, Vec<u32>)], path: &str| {
        let (_, bits) = model.iter().find(|(name, _)| name == path).unwrap();
        values(bits)
    };
    let (mut changed, mut beyond) = (0, 0);
    for (path, gradient) in &all {
        for ((new, old), g) in of(&new, path).iter().zip(of(&old, path)).zip(gradient) {
            let want = old - lr * g;
            assert!((new - want).abs() < 2e-7, "{path}: {new}, not {want}");
            changed += usize::from(*new != old);
            beyond += usize::from(bf16::from_f64(*new) != bf16::from_f64(old));
        }
    }
    assert!(changed > 300 && beyond < changed / 3, "{changed} changed, {beyond} in bf16");
}

/// What a recipe can ask for besides, beside the same in `f32` and beside the plain recipe.
#[test]
fn every_setting_works_with_it() {
    let network = &networks()[1];
    let attack = || recipe(Precision::Full).attack;
    let plain = || Recipe { label_smoothing: 0.0, ..recipe(Precision::Full) };
    let parts = Recipe { parts: 2, ..plain() };
    let gradient = TrainingAttack {
        steps: 3,
        gradient: Some("psoftplus:10".parse().unwrap()),
        ..attack().unwrap()
    };
    let gradient = Recipe { attack: Some(gradient), ..plain() };
    let trades = Recipe { objective: Objective::Trades { beta: 6.0 }, ..plain() };
    let mart = Recipe { objective: Objective::Mart { beta: 5.0 }, ..plain() };
    let perturbed = Recipe { weight_perturbation: Some(Perturbation { gamma: 0.5 }), ..plain() };
    let clipped = Recipe { clip_norm: Some(0.01), ..plain() };
    let run = |recipe: &Recipe, precision, device: &Device| {
        let recipe = Recipe { precision, ..recipe.clone() };
        let model = model(network).fork(device);
        let step = AdversarialStep::new(&recipe);
        let images = images().inner().to_device(device);
        let (got, output) = step.gradients(&model, images, &LABELS, 0).unwrap();
        let flat = gradients(&model, &got).into_iter().flat_map(|(_, values)| values);
        (f64::from(output.loss.into_scalar::<f32>()), flat.collect::<Vec<_>>())
    };
    let device = device();
    let (_, without) = run(&plain(), Precision::Bf16Mixed, &device);
    for recipe in [parts, gradient, trades, mart, perturbed, clipped] {
        let (want, exact) = run(&recipe, Precision::Full, &device);
        let (loss, mixed) = run(&recipe, Precision::Bf16Mixed, &device);
        assert!((loss - want).abs() < 0.02 * want, "{recipe:?}: {loss}, not {want}");
        let error = distance(&mixed, &exact);
        assert!(error < 0.2, "{recipe:?}: {error}");
        assert!(distance(&mixed, &without) > 2.0 * error, "{recipe:?} makes no difference");
    }
    let checkpointing = Device::flex().autodiff().gradient_checkpointing();
    assert_eq!(run(&plain(), Precision::Bf16Mixed, &checkpointing).1, without);
}

/// A normalisation that no rule knows by its name, and a layer whose parameter has one axis.
#[derive(Module, Debug)]
struct Centred {
    mean: RunningState<Tensor<1>>,
    offset: Param<Tensor<1>>,
}

#[test]
fn running_states_are_neither_rounded_nor_copied() {
    // Nothing that `bf16` could hold.
    let value = 1.0 + 1e-6f32;
    let tensor = || Tensor::<1>::from_floats([value, value], &device());
    let model = Centred { mean: RunningState::new(tensor()), offset: Param::from_tensor(tensor()) };
    let rounded = Precision::Bf16Mixed.apply(model.clone());
    assert_eq!(rounded.offset.val().dtype(), DType::BF16);
    assert_eq!(model.offset.val().dtype(), DType::F32);
    for state in [&rounded.mean, &model.mean] {
        assert_eq!(state.value().into_data(), tensor().into_data());
    }
    rounded.mean.update(tensor() * 2.0);
    assert_eq!(model.mean.value_sync().into_data(), (tensor() * 2.0).into_data());
}

#[test]
fn quantized_weights_are_rounded_too() {
    let model = model(&networks()[0]).valid();
    let scheme = device().settings().quantization.scheme.with_value(QuantValue::Q8S);
    let quantized = model.quantize_weights(&mut Quantizer::new(Calibration::MinMax, scheme));
    let images = images().inner();
    let want = values_of(quantized.logits(images.clone()));
    let mixed = Precision::Bf16Mixed.apply(quantized).logits(images);
    assert_eq!(mixed.dtype(), DType::BF16);
    let error = distance(&values_of(mixed), &want);
    assert!(error > 0.0 && error < 0.03, "{error}");
}

#[test]
#[should_panic(expected = "sat_core::BatchNormAct")]
fn burns_batch_norm_is_refused() {
    let norm = nn::BatchNormConfig::new(4).init(&device());
    Precision::Bf16Mixed.apply(vec![norm]);
}

/// Stopped and resumed as any other training; and a checkpoint of one precision is not gone on with in
/// another.
#[test]
fn a_training_learns_and_resumes() {
    let data = common::images(96);
    let attack = Some(TrainingAttack { eps: 0.01, ..TrainingAttack::default() });
    let recipe = Recipe { precision: Precision::Bf16Mixed, attack, epochs: 5, ..common::recipe() };
    let run = |recipe: &Recipe| {
        train(common::model(), recipe, &data, &device(), None, common::go_on).unwrap()
    };
    let unbroken = run(&recipe);
    let full = Recipe { precision: Precision::Full, ..recipe.clone() };
    let [mixed_loss, full_loss] = [&unbroken, &run(&full)]
        .map(|trained| trained.progress.history.iter().map(|epoch| epoch.loss).collect::<Vec<_>>());
    for (mixed, full) in mixed_loss.iter().zip(&full_loss) {
        assert!((mixed - full).abs() < 0.01, "{mixed_loss:?}, not {full_loss:?}");
    }
    assert_ne!(mixed_loss, full_loss);
    assert!(mixed_loss[4] < mixed_loss[0], "{mixed_loss:?}");

    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let fresh = Some((&checkpoints, Start::Fresh));
    train(common::model(), &recipe, &data, &device(), fresh, common::stop_at(5)).unwrap();
    let resume = Some((&checkpoints, Start::Resume));
    let other = train(common::model(), &full, &data, &device(), resume, common::go_on);
    let error = other.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(_)), "{error}");
    let resumed = train(common::model(), &recipe, &data, &device(), resume, common::go_on).unwrap();
    assert_eq!(bits(&resumed.model), bits(&unbroken.model));
}

#[test]
fn recipes_name_it() {
    let recipe = Recipe::from_toml("precision = \"bf16-mixed\"").unwrap();
    assert_eq!(recipe.precision, Precision::Bf16Mixed);
    assert_eq!(Recipe::from_toml(&recipe.to_toml()).unwrap(), recipe);
    assert_eq!(Recipe::from_toml("").unwrap().precision, Precision::Full);
    let message = Recipe::from_toml("precision = \"fp16\"").unwrap_err().to_string();
    assert!(message.contains("fp16") && message.contains("bf16-mixed"), "{message}");
}
