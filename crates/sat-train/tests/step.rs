//! One step against its formulas, on models whose gradients are known by hand.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use burn::{
    module::{Module, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use sat_attack::{AttackError, Classifier};
use sat_core::{Activation, ActivationConfig};
use sat_train::{
    AdversarialStep, AttackStart, MomentumForm, Objective, Perturbation, Recipe, TrainingAttack,
    data::{Augment, Mixup},
    optimizer,
};

fn device() -> Device {
    Device::flex().autodiff()
}

/// logits = x W^T + b, of images of four pixels.
#[derive(Module, Debug)]
struct Linear {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

const WEIGHT: [[f64; 4]; 2] = [[0.5, -1.0, 0.25, 2.0], [-0.75, 0.5, 1.5, -0.25]];
const BIAS: [f64; 2] = [0.125, -0.5];
const IMAGES: [[f64; 4]; 4] =
    [[0.5, 0.25, 0.75, 0.5], [0.4, 0.6, 0.5, 0.3], [0.7, 0.45, 0.3, 0.6], [0.35, 0.5, 0.65, 0.4]];
const LABELS: [usize; 4] = [1, 0, 0, 1];

impl Linear {
    fn new() -> Self {
        let weight = WEIGHT.map(|row| row.map(|w| w as f32));
        let bias = BIAS.map(|b| b as f32);
        Self {
            weight: Param::from_data(weight, &device()),
            bias: Param::from_data(bias, &device()),
        }
    }
}

impl Classifier for Linear {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = images.flatten::<2>(1, 3);
        x.matmul(self.weight.val().transpose()) + self.bias.val().unsqueeze()
    }
}

fn images() -> Tensor<4> {
    let pixels = IMAGES.map(|row| row.map(|x| x as f32));
    Tensor::<2>::from_data(pixels, &device()).reshape([4, 1, 2, 2])
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Plain cross-entropy on clean images.
fn clean() -> Recipe {
    Recipe { attack: None, label_smoothing: 0.0, ..Recipe::default() }
}

/// The probabilities of the classes, in f64.
fn softmax(weight: [[f64; 4]; 2], x: &[f64; 4]) -> [f64; 2] {
    let logit = |k: usize| BIAS[k] + (0..4).map(|i| weight[k][i] * x[i]).sum::<f64>();
    [0, 1].map(|k| logit(k).exp() / (logit(0).exp() + logit(1).exp()))
}

fn one_hot(label: usize) -> [f64; 2] {
    [0, 1].map(|k| if k == label { 1.0 } else { 0.0 })
}

/// The gradients of the mean cross-entropy by weight and bias, in f64.
fn gradients(weight: [[f64; 4]; 2]) -> ([[f64; 4]; 2], [f64; 2]) {
    soft_gradients(weight, &IMAGES, &LABELS.map(one_hot))
}

/// The same for probabilities of the classes in place of labels.
fn soft_gradients(
    weight: [[f64; 4]; 2],
    images: &[[f64; 4]; 4],
    targets: &[[f64; 2]; 4],
) -> ([[f64; 4]; 2], [f64; 2]) {
    let (mut of_weight, mut of_bias) = ([[0.0; 4]; 2], [0.0; 2]);
    for (x, target) in images.iter().zip(targets) {
        let p = softmax(weight, x);
        for k in 0..2 {
            let error = p[k] - target[k];
            of_bias[k] += error / 4.0;
            for i in 0..4 {
                of_weight[k][i] += error * x[i] / 4.0;
            }
        }
    }
    (of_weight, of_bias)
}

fn assert_close(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-6, "{what}: {got}, not {want}");
    }
}

#[test]
fn weight_perturbation_takes_the_gradient_at_the_perturbed_weights() {
    let gamma = 0.5;
    let (g, _) = gradients(WEIGHT);
    let norm = |rows: &[[f64; 4]; 2]| rows.iter().flatten().map(|w| w * w).sum::<f64>().sqrt();
    let ratio = gamma * norm(&WEIGHT) / norm(&g);
    let mut perturbed = WEIGHT;
    for (row, g) in perturbed.iter_mut().zip(&g) {
        row.iter_mut().zip(g).for_each(|(w, g)| *w += ratio * g);
    }
    // The bias has one axis and stays.
    let (want_weight, want_bias) = gradients(perturbed);

    let model = Linear::new();
    let recipe = Recipe { weight_perturbation: Some(Perturbation { gamma }), ..clean() };
    let (got, output) =
        AdversarialStep::new(&recipe).gradients(&model, images(), &LABELS, 0).unwrap();
    assert_close(&values(got.get::<2>(model.weight.id).unwrap()), want_weight.as_flattened(), "W");
    assert_close(&values(got.get::<1>(model.bias.id).unwrap()), &want_bias, "b");
    assert_close(&values(model.weight.val()), WEIGHT.as_flattened(), "the weights stay");
    assert!(output.loss.into_scalar::<f32>() > 0.0);
    // It is not the gradient at the weights themselves.
    assert!((want_weight[0][0] - g[0][0]).abs() > 1e-3);
}

/// With two classes the sign of the gradient by the image is known, so the noise can be told from the
/// step.
#[test]
fn n_fgsm_adds_noise_of_its_spread_and_a_whole_step() {
    let (eps, spread) = (0.02, 2.0);
    let attack =
        TrainingAttack { eps, start: AttackStart::NFgsm { spread }, ..TrainingAttack::default() };
    let step = AdversarialStep::new(&Recipe { attack: Some(attack), ..clean() });
    let model = Linear::new();
    let mut noise = Vec::new();
    for first in (0..400).step_by(4) {
        let adversarial = step.perturb(&model, images(), &LABELS, first).unwrap();
        let moved = values(adversarial);
        for (n, x) in moved.iter().enumerate() {
            let (sample, pixel) = (n / 4, n % 4);
            let label = LABELS[sample];
            let towards_other = WEIGHT[1 - label][pixel] - WEIGHT[label][pixel];
            noise.push((x - IMAGES[sample][pixel] - eps * towards_other.signum()) / eps);
        }
    }
    assert_eq!(noise.len(), 1600);
    let bounds = |values: &[f64]| {
        values.iter().fold((0.0, 0.0), |(low, high): (f64, f64), &x| (low.min(x), high.max(x)))
    };
    let (low, high) = bounds(&noise);
    assert!(low >= -spread - 1e-4 && high <= spread + 1e-4, "{low} to {high}");
    assert!(low < -1.95 && high > 1.95, "{low} to {high}: the noise fills its range");
    let mean = noise.iter().sum::<f64>() / 1600.0;
    let variance = noise.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1600.0;
    // Uniform in [-2, 2]: variance 4/3, and standard errors of 0.029 and 0.03.
    assert!(mean.abs() < 0.15 && (variance - 4.0 / 3.0).abs() < 0.15, "{mean}, {variance}");
}

/// logits = (f(x - 0.6) w, 0), of images of one pixel.
#[derive(Module, Debug)]
struct Kinked {
    weight: Param<Tensor<2>>,
    activation: Activation,
}

impl Classifier for Kinked {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let x = images.flatten::<2>(1, 3);
        let first = self.activation.forward(x - 0.6).matmul(self.weight.val());
        Tensor::cat(vec![first.clone(), first.zeros_like()], 1)
    }
}

/// Below its kink ReLU gives the attacker no gradient; a curve of the attacker's own does, and leaves
/// the optimizer's alone.
#[test]
fn the_attackers_gradient_curve_is_the_attackers_alone() {
    let device = device();
    let relu: ActivationConfig = "relu".parse().unwrap();
    let model =
        Kinked { weight: Param::from_data([[1.5f32]], &device), activation: relu.init(&device) };
    let adversarial = |gradient: Option<&str>| {
        let attack = TrainingAttack {
            eps: 0.05,
            start: AttackStart::Clean,
            gradient: gradient.map(|curve| curve.parse().unwrap()),
            ..TrainingAttack::default()
        };
        let step = AdversarialStep::new(&Recipe { attack: Some(attack), ..clean() });
        let images = Tensor::<4>::full([2, 1, 1, 1], 0.5, &device);
        let (gradients, output) = step.gradients(&model, images, &[0, 1], 0).unwrap();
        let of_weight = values(gradients.get::<2>(model.weight.id).unwrap());
        assert_eq!(of_weight, [0.0], "ReLU of -0.1 and below is 0");
        values(output.adversarial)
    };
    assert_close(&adversarial(None), &[0.5, 0.5], "the kink hides the gradient");
    // The derivative of parametric softplus is positive everywhere: the first image loses its class by
    // less of the first logit, the second by more.
    assert_close(&adversarial(Some("psoftplus:10")), &[0.45, 0.55], "the curve shows it");
}

/// With two classes the attacker moves along sign((p_0 - q_0) (w_0 - w_1)), p the prediction and q the
/// target: a target of two classes can turn it round.
#[test]
fn mixup_attacks_and_trains_on_both_labels() {
    let (eps, alpha, beta, smoothing) = (0.02, 1.0, 6.0, 0.1);
    let recipe = Recipe {
        label_smoothing: smoothing,
        attack: Some(TrainingAttack {
            eps,
            start: AttackStart::Clean,
            ..TrainingAttack::default()
        }),
        augment: Augment { mixup: Some(alpha), ..Augment::default() },
        ..clean()
    };
    let model = Linear::new();
    let mut turned = 0;
    for first in (0..80).step_by(4) {
        // Numbers in place of labels tell who the partners are.
        let mix = Mixup::of(images(), &[0, 1, 2, 3], alpha, recipe.seed, first).unwrap();
        let share = |own: f64, partner: f64| mix.weight * own + (1.0 - mix.weight) * partner;
        let (mut blends, mut targets) = ([[0.0; 4]; 4], [[0.0; 2]; 4]);
        for (i, &j) in mix.partner_labels.iter().enumerate() {
            blends[i] = [0, 1, 2, 3].map(|pixel| share(IMAGES[i][pixel], IMAGES[j][pixel]));
            let (own, partner) = (one_hot(LABELS[i]), one_hot(LABELS[j]));
            targets[i] = [0, 1].map(|k| share(own[k], partner[k]));
        }
        let mut adversarial = blends;
        for ((x, target), label) in adversarial.iter_mut().zip(&targets).zip(LABELS) {
            let p = softmax(WEIGHT, x)[0];
            let direction = (p - target[0]).signum();
            turned += usize::from(direction != (p - one_hot(label)[0]).signum());
            for (i, pixel) in x.iter_mut().enumerate() {
                *pixel += eps * direction * (WEIGHT[0][i] - WEIGHT[1][i]).signum();
            }
        }
        let smoothed = targets.map(|q| q.map(|q| (1.0 - smoothing) * q + smoothing / 2.0));
        let (want_weight, want_bias) = soft_gradients(WEIGHT, &adversarial, &smoothed);

        let step = AdversarialStep::new(&recipe);
        let (got, output) = step.gradients(&model, images(), &LABELS, first).unwrap();
        assert_close(&values(output.adversarial), adversarial.as_flattened(), "images");
        let of_weight = values(got.get::<2>(model.weight.id).unwrap());
        assert_close(&of_weight, want_weight.as_flattened(), "W");
        assert_close(&values(got.get::<1>(model.bias.id).unwrap()), &want_bias, "b");
        let alone = step.perturb(&model, images(), &LABELS, first).unwrap();
        assert_close(&values(alone), adversarial.as_flattened(), "perturb");

        // TRADES: the cross-entropy of the blends, and the divergence of their predictions.
        let trades = Recipe { objective: Objective::Trades { beta }, ..recipe.clone() };
        let (_, output) =
            AdversarialStep::new(&trades).gradients(&model, images(), &LABELS, first).unwrap();
        let moved = values(output.adversarial);
        let loss = |i: usize| -> f64 {
            let (p, q) = (softmax(WEIGHT, &blends[i]), smoothed[i]);
            let adversarial = softmax(WEIGHT, moved[4 * i..4 * i + 4].try_into().unwrap());
            let term = |k: usize| -q[k] * p[k].ln() + beta * p[k] * (p[k] / adversarial[k]).ln();
            term(0) + term(1)
        };
        assert_close(&values(output.loss), &[(0..4).map(loss).sum::<f64>() / 4.0], "TRADES");
    }
    assert!(turned > 0, "no target of two classes turned the attack round");

    let augment = Augment { mixup: Some(f64::NAN), ..Augment::default() };
    let step = AdversarialStep::new(&Recipe { augment, ..recipe });
    let error = step.gradients(&model, images(), &LABELS, 0).unwrap_err();
    assert!(matches!(error, AttackError::InvalidSetting { setting: "augment.mixup", .. }));
}

#[test]
fn parts_are_the_same_update() {
    let augment = Augment { mixup: Some(1.0), ..Augment::default() };
    let attack = TrainingAttack {
        eps: 0.05,
        start: AttackStart::Uniform { probability: 1.0 },
        ..TrainingAttack::default()
    };
    let model = Linear::new();
    let gradients = |parts: usize| {
        let recipe = Recipe { parts, augment, attack: Some(attack.clone()), ..clean() };
        let (gradients, output) =
            AdversarialStep::new(&recipe).gradients(&model, images(), &LABELS, 12).unwrap();
        let of_weight = values(gradients.get::<2>(model.weight.id).unwrap());
        let of_bias = values(gradients.get::<1>(model.bias.id).unwrap());
        (of_weight, of_bias, values(output.adversarial), values(output.logits), values(output.loss))
    };
    let whole = gradients(1);
    for parts in [2, 4] {
        let in_parts = gradients(parts);
        assert_close(&in_parts.0, &whole.0, "gradient of W");
        assert_close(&in_parts.1, &whole.1, "gradient of b");
        assert_close(&in_parts.2, &whole.2, "adversarial images");
        assert_close(&in_parts.3, &whole.3, "logits");
        assert_close(&in_parts.4, &whole.4, "loss");
    }
}

#[test]
fn momentum_is_as_pytorch_defines_it() {
    let gradient = [[0.5f32, 0.25, -1.0, 0.0], [0.75, -0.5, 0.125, 1.0]];
    for form in [MomentumForm::Nesterov, MomentumForm::HeavyBall] {
        let recipe = Recipe { momentum: 0.9, momentum_form: form, weight_decay: 0.1, ..clean() };
        let mut model = Linear::new();
        let mut sgd = optimizer(&recipe, &model);
        let (mut w, mut v) = (WEIGHT, [[0.0f64; 4]; 2]);
        for step in 0..4 {
            let product = model.weight.val() * Tensor::<2>::from_data(gradient, &device());
            let grads = GradientsParams::from_grads(product.sum().backward(), &model);
            model = sgd.step(0.2, model, grads);
            for (k, i) in (0..8).map(|n| (n / 4, n % 4)) {
                let g = f64::from(gradient[k][i]) + 0.1 * w[k][i];
                v[k][i] = 0.9 * v[k][i] + g;
                w[k][i] -= 0.2
                    * match form {
                        MomentumForm::Nesterov => g + 0.9 * v[k][i],
                        MomentumForm::HeavyBall => v[k][i],
                    };
            }
            let got = values(model.weight.val());
            assert_close(&got, w.as_flattened(), &format!("{form:?}, step {step}"));
        }
    }
}
