//! A model in training mode on an autodiff device must come out of an attack as it went in.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use sat_attack::{Attack, Classifier, Fgsm, Goal, Pgd, ThreatModel, Victim};

use crate::models::{batch, bits};

#[derive(Module, Debug)]
struct Model {
    conv: Conv2d,
    norm: BatchNorm,
    dropout: Dropout,
    dense: Linear,
}

impl Model {
    fn new(device: &Device) -> Self {
        Self {
            conv: Conv2dConfig::new([2, 4], [3, 3]).init(device),
            norm: BatchNormConfig::new(4).init(device),
            dropout: DropoutConfig::new(0.5).init(),
            dense: LinearConfig::new(16, 3).init(device),
        }
    }

    fn statistics(&self) -> [Vec<u32>; 2] {
        [&self.norm.running_mean, &self.norm.running_var]
            .map(|state| bits(&state.value_sync().without_autodiff()))
    }
}

impl Classifier for Model {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.norm.forward(self.conv.forward(images)));
        self.dense.forward(self.dropout.forward(x).flatten(1, 3))
    }
}

#[derive(Default)]
struct Collect(Vec<Vec<u32>>);

impl ModuleVisitor for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(bits(&param.val().without_autodiff()));
    }
}

fn weights<M: Module>(model: &M) -> Vec<Vec<u32>> {
    let mut collect = Collect::default();
    model.visit(&mut collect);
    collect.0
}

#[test]
fn statistics_and_weights_are_bit_identical_afterwards() {
    let device = Device::flex().autodiff();
    let model = Model::new(&device);
    // One training pass, so that the statistics are not the initial ones.
    let before_training = model.statistics();
    model.logits(batch(1, 8).autodiff());
    let statistics = model.statistics();
    assert_ne!(before_training, statistics);
    let parameters = weights(&model);

    let victim = Victim::new(&model);
    let goal = || Goal::untargeted([0, 1, 2, 0]);
    let threat = ThreatModel::linf(0.1);
    for images in [batch(2, 4), batch(2, 4).autodiff()] {
        for attack in [&Pgd::default() as &dyn Attack, &Fgsm::default()] {
            attack.run(&victim, images.clone(), goal(), &threat).unwrap();
            attack.perturb(&victim, images.clone(), goal(), &threat).unwrap();
        }
        victim.logits(images).unwrap();
    }
    assert_eq!(model.statistics(), statistics);
    assert_eq!(weights(&model), parameters);

    // The model still trains: the next pass moves the statistics.
    model.logits(batch(3, 8).autodiff());
    assert_ne!(model.statistics(), statistics);
}

#[test]
fn the_victim_is_the_model_in_inference_mode() {
    let device = Device::flex().autodiff();
    let model = Model::new(&device);
    model.logits(batch(1, 8).autodiff());
    model.statistics();
    let images = batch(2, 4);
    let victim = Victim::new(&model);
    let expected = bits(&model.valid().logits(images.clone()));
    assert_eq!(bits(&victim.logits(images.clone()).unwrap()), expected);
    // Dropout and batch statistics would show here.
    let (logits, _) =
        victim.input_gradient(images, |logits| Ok(logits.sum_dim(1).squeeze_dim(1))).unwrap();
    let difference = bits(&logits)
        .iter()
        .zip(&expected)
        .map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs())
        .fold(0.0, f32::max);
    assert!(difference < 1e-6);
}

/// A model that looks at what it is given.
#[derive(Module, Debug)]
struct Watchful {
    dense: Linear,
}

impl Classifier for Watchful {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let weight = self.dense.weight.val();
        assert!(!weight.is_require_grad() && !weight.is_autodiff());
        self.dense.forward(images.flatten(1, 3))
    }
}

#[test]
fn weights_get_no_gradients() {
    let device = Device::flex().autodiff();
    let model = Watchful { dense: LinearConfig::new(32, 3).init(&device) };
    assert!(model.dense.weight.val().is_require_grad());
    Pgd::default()
        .run(&Victim::new(&model), batch(1, 2), Goal::untargeted([0, 1]), &ThreatModel::linf(0.1))
        .unwrap();
    assert!(model.dense.weight.val().is_require_grad());
}
