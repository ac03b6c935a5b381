use crate::{
    data::Mixup,
    objective::{
        Objective, Perturbation, divergences, mart_loss, smoothed_cross_entropy, trades_loss,
    },
    precision::{Precision, logits},
    recipe::{AttackStart, Decayed, MomentumForm, Recipe, TrainingAttack},
    targets::Targets,
};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId},
    optim::{
        GradientsAccumulator, GradientsParams, ModuleOptimizer, SgdConfig,
        decay::WeightDecayConfig, momentum::MomentumConfig,
    },
    tensor::{Device, GradientCheckpointingStrategy, Tensor, TensorData},
};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use sat_attack::{Attack, AttackError, Classifier, Goal, Loss, Victim};
use sat_core::{activation_parameters, replace_gradients};
use std::collections::HashSet;

/// One step of adversarial training, for loops of one's own; [`train`](crate::train) is built on it.
///
/// The attack sees a frozen copy of the model: BatchNorm in inference mode with untouched
/// statistics, and no weight gradients. Then the model is trained, in training mode, on the adversarial
/// images, alone or beside the clean ones, as the objective says. With mixup both work on blended images,
/// and both losses are `weight * loss(labels) + (1 - weight) * loss(partner_labels)`, see [`Mixup`].
#[derive(Clone, Debug)]
pub struct AdversarialStep {
    attack: Option<TrainingAttack>,
    seed: u64,
    mixup: Option<f64>,
    objective: Objective,
    label_smoothing: f64,
    perturbation: Option<Perturbation>,
    parts: usize,
    clip_norm: Option<f64>,
    precision: Precision,
}

/// What a step reports. The tensors are off the graph and still on the device.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The mean loss, `[1]`.
    pub loss: Tensor<1>,
    /// The logits of the adversarial images in training mode, `[n, classes]`.
    pub logits: Tensor<2>,
    /// The adversarial images, `[n, c, h, w]`.
    pub adversarial: Tensor<4>,
}

impl AdversarialStep {
    /// The step of a recipe.
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            attack: recipe.attack.clone(),
            seed: recipe.seed,
            mixup: recipe.augment.mixup,
            objective: recipe.objective,
            label_smoothing: recipe.label_smoothing,
            perturbation: recipe.weight_perturbation,
            parts: recipe.parts,
            clip_norm: recipe.clip_norm,
            precision: recipe.precision,
        }
    }

    /// Attacks the images and updates the model on the result.
    ///
    /// `model` is on an autodiff device; `images` `[n, c, h, w]` in [0, 1] on the same device, with
    /// or without autodiff; `first` is the number of training samples seen before, which numbers the
    /// random streams of mixup, of the attack and of the model's dropout.
    ///
    /// # Errors
    ///
    /// Any [`AttackError`]; the model is then lost, so keep a checkpoint.
    ///
    /// # Panics
    ///
    /// As [`gradients`](Self::gradients).
    pub fn run<M: Module + Classifier>(
        &self,
        model: M,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        images: Tensor<4>,
        labels: &[usize],
        first: u64,
    ) -> Result<(M, StepOutput), AttackError> {
        let (gradients, output) = self.gradients(&model, images, labels, first)?;
        Ok((optimizer.step(lr, model, gradients), output))
    }

    /// Attacks the images and takes the gradient of the weights, clipped if the recipe says so; moves
    /// BatchNorm's statistics, but no weights.
    ///
    /// # Errors
    ///
    /// Any [`AttackError`].
    ///
    /// # Panics
    ///
    /// If there is not one label an image, a label is not below the number of classes, the number of
    /// images is no multiple of the recipe's `parts`, the attack's gradient curve is not for one
    /// of the model's activations, or the model does not compute in the recipe's
    /// [precision](Precision::apply).
    pub fn gradients<M: Module + Classifier>(
        &self,
        model: &M,
        images: Tensor<4>,
        labels: &[usize],
        first: u64,
    ) -> Result<(GradientsParams, StepOutput), AttackError> {
        let [count, ..] = images.dims();
        assert_eq!(count, labels.len(), "one label an image");
        assert!(count.is_multiple_of(self.parts), "{count} images in {} parts", self.parts);
        let (images, targets) = self.mix(images, labels, first)?;
        let size = count / self.parts;
        let mut sum = GradientsAccumulator::new();
        let mut outputs = Vec::with_capacity(self.parts);
        for part in 0..self.parts {
            let rows = part * size..(part + 1) * size;
            let images = images.clone().slice([rows.clone()]);
            let first = first + rows.start as u64;
            let (gradients, output) = self.of_part(model, images, &targets.rows(rows), first)?;
            sum.accumulate(model, gradients);
            outputs.push(output);
        }
        let mut gradients = sum.grads();
        if self.parts > 1 {
            let share = Tensor::full([1], 1.0 / self.parts as f64, &outputs[0].loss.device());
            scale(&mut gradients, model, &share);
        }
        if let Some(largest) = self.clip_norm {
            clip(&mut gradients, model, largest);
        }
        let output = StepOutput {
            loss: Tensor::cat(outputs.iter().map(|part| part.loss.clone()).collect(), 0).mean(),
            logits: Tensor::cat(outputs.iter().map(|part| part.logits.clone()).collect(), 0),
            adversarial: Tensor::cat(outputs.into_iter().map(|part| part.adversarial).collect(), 0),
        };
        Ok((gradients, output))
    }

    /// The adversarial images of a training batch, without autodiff; the images themselves, or their
    /// blends, without an attack. Arguments, errors and panics as in [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// Any [`AttackError`].
    pub fn perturb<M: Module + Classifier>(
        &self,
        model: &M,
        images: Tensor<4>,
        labels: &[usize],
        first: u64,
    ) -> Result<Tensor<4>, AttackError> {
        let (images, targets) = self.mix(images, labels, first)?;
        self.attack(model, images.without_autodiff(), &targets, first)
    }

    /// The batch as it is trained on, but for the attack.
    fn mix<'a>(
        &self,
        images: Tensor<4>,
        labels: &'a [usize],
        first: u64,
    ) -> Result<(Tensor<4>, Targets<'a>), AttackError> {
        let Some(alpha) = self.mixup else {
            return Ok((images, Targets::of(labels)));
        };
        let Mixup { images, partner_labels, weight } =
            Mixup::of(images, labels, alpha, self.seed, first).map_err(|_| {
                let (setting, expected) = ("augment.mixup", "finite and above 0");
                AttackError::InvalidSetting { setting, value: alpha, expected }
            })?;
        Ok((images, Targets::mixed(labels, partner_labels, weight)))
    }

    /// The images after the attack of the recipe, if it has one.
    fn attack<M: Module + Classifier>(
        &self,
        model: &M,
        images: Tensor<4>,
        targets: &Targets<'_>,
        first: u64,
    ) -> Result<Tensor<4>, AttackError> {
        let Some(attack) = &self.attack else {
            return Ok(images);
        };
        let mut frozen = model.valid();
        if let Some(gradient) = attack.gradient {
            frozen = replace_gradients(frozen, gradient);
        }
        let frozen = self.precision.apply(frozen);
        let victim = Victim::from_fn(move |images| logits(&frozen, images));
        let loss = match self.objective {
            Objective::Adversarial | Objective::Mart { .. } => targets.attacked_loss(),
            Objective::Trades { .. } => {
                let clean = victim.logits(images.clone())?;
                Loss::custom("divergence", move |logits, _| {
                    divergences(clean.clone().cast(logits.dtype()), logits).squeeze_dim(1)
                })
            }
        };
        let goal = Goal::untargeted(targets.labels()).numbered_from(first);
        let threat = attack.threat();
        if let Some(n_fgsm) = attack.n_fgsm(self.seed, loss.clone()) {
            return n_fgsm.perturb(&victim, images, goal, &threat);
        }
        let mut pgd = attack.pgd(self.seed, loss);
        if let AttackStart::Normal { std } = attack.start {
            let noise = normal_noise(&images, self.seed, first);
            pgd = pgd.start_from(images.clone() + noise * std);
        }
        pgd.perturb(&victim, images, goal, &threat)
    }

    fn of_part<M: Module + Classifier>(
        &self,
        model: &M,
        images: Tensor<4>,
        targets: &Targets<'_>,
        first: u64,
    ) -> Result<(GradientsParams, StepOutput), AttackError> {
        let strategy = images.gradient_checkpointing_strategy();
        let images = images.without_autodiff();
        model.reseed(rng(self.seed, first, Draw::Dropout).next_u64());
        let adversarial = self.attack(model, images.clone(), targets, first)?;
        let perturbed = self.perturbation.map(|perturbation| {
            // Statistics of its own: this pass must not move the model's.
            let proxy = model.valid().train();
            let (loss, _) = self.loss(&proxy, &images, &adversarial, targets, None);
            let gradients = GradientsParams::from_grads(loss.backward(), &proxy);
            model.clone().map(&mut Perturb { gradients, gamma: perturbation.gamma })
        });
        let model = perturbed.as_ref().unwrap_or(model);
        let (loss, logits) = self.loss(model, &images, &adversarial, targets, strategy);
        let output = StepOutput { loss: loss.clone().inner(), logits: logits.inner(), adversarial };
        Ok((GradientsParams::from_grads(loss.backward(), model), output))
    }

    /// The objective, and the logits of the adversarial images.
    fn loss<M: Module + Classifier>(
        &self,
        model: &M,
        images: &Tensor<4>,
        adversarial: &Tensor<4>,
        targets: &Targets<'_>,
        strategy: Option<GradientCheckpointingStrategy>,
    ) -> (Tensor<1>, Tensor<2>) {
        let model = self.precision.apply(model.clone());
        let logits = |images: &Tensor<4>| logits(&model, tracked(images.clone(), strategy));
        let smoothing = self.label_smoothing;
        match self.objective {
            Objective::Adversarial => {
                let z = logits(adversarial);
                let loss = |labels: &[usize]| smoothed_cross_entropy(z.clone(), labels, smoothing);
                (targets.mean(loss), z)
            }
            Objective::Trades { beta } => {
                let (clean, z) = (logits(images), logits(adversarial));
                let loss = |labels: &[usize]| {
                    trades_loss(clean.clone(), z.clone(), labels, beta, smoothing)
                };
                (targets.mean(loss), z)
            }
            Objective::Mart { beta } => {
                let (clean, z) = (logits(images), logits(adversarial));
                let loss =
                    |labels: &[usize]| mart_loss(clean.clone(), z.clone(), labels, beta, smoothing);
                (targets.mean(loss), z)
            }
        }
    }
}

/// On the autodiff device, with the checkpointing strategy of the training.
fn tracked<const D: usize>(
    tensor: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Tensor<D> {
    match strategy {
        Some(strategy) => tensor.autodiff().with_gradient_checkpointing_strategy(strategy),
        None => tensor.autodiff(),
    }
}

/// Standard normal noise, one stream a sample.
fn normal_noise(images: &Tensor<4>, seed: u64, first: u64) -> Tensor<4> {
    let shape = images.dims();
    let size = shape[1] * shape[2] * shape[3];
    let mut values: Vec<f32> = Vec::with_capacity(shape[0] * size);
    for sample in (first..).take(shape[0]) {
        let mut rng = rng(seed, sample, Draw::Start);
        values.extend((0..size).map(|_| rng.sample::<f32, _>(StandardNormal)));
    }
    Tensor::from_data(TensorData::new(values, shape), (&images.device(), images.dtype()))
}

/// What a random number of a step is for: each has a stream of its own.
enum Draw {
    Start,
    Dropout,
}

/// The stream of the sample that is seen as number `sample`.
fn rng(seed: u64, sample: u64, draw: Draw) -> ChaCha8Rng {
    // Words that no stream of order and augmentation has.
    let purpose = u64::from_le_bytes(match draw {
        Draw::Start => *b"start\0\0\0",
        Draw::Dropout => *b"dropout\0",
    });
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, sample, purpose, 0]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Moves each weight of more than one axis by gamma |w| g / |g|.
struct Perturb {
    gradients: GradientsParams,
    gamma: f64,
}

impl ModuleMapper for Perturb {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.gradients.get::<D>(param.id).filter(|_| D > 1);
        let Some(gradient) = gradient else {
            return param;
        };
        param.map(|weight| {
            let strategy = weight.gradient_checkpointing_strategy();
            let weight = weight.inner();
            let norm = |x: &Tensor<D>| x.clone().square().sum().sqrt();
            // The official code's guard against a gradient of zero.
            let ratio = norm(&weight) / (norm(&gradient) + 1e-20) * self.gamma;
            let moved = weight + gradient * ratio.reshape([1; D]);
            tracked(moved, strategy).require_grad()
        })
    }
}

/// Multiplies each gradient by a factor `[1]`.
pub(crate) fn scale<M: Module>(gradients: &mut GradientsParams, model: &M, factor: &Tensor<1>) {
    struct Scale<'a> {
        gradients: &'a mut GradientsParams,
        factor: &'a Tensor<1>,
        seen: HashSet<ParamId>,
    }
    impl ModuleVisitor for Scale<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            // A parameter that is used in two places has one gradient.
            if self.seen.insert(param.id)
                && let Some(gradient) = self.gradients.remove::<D>(param.id)
            {
                let factor = self.factor.clone().reshape([1; D]);
                self.gradients.register(param.id, gradient * factor);
            }
        }
    }
    model.visit(&mut Scale { gradients, factor, seen: HashSet::new() });
}

/// Scales all gradients by min(1, largest/(norm + 1e-6)), where the norm is that of all of them
/// together, as `torch.nn.utils.clip_grad_norm_` does.
pub(crate) fn clip<M: Module>(gradients: &mut GradientsParams, model: &M, largest: f64) {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sum: Option<Tensor<1>>,
        seen: HashSet<ParamId>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.seen.insert(param.id)
                && let Some(gradient) = self.gradients.get::<D>(param.id)
            {
                let square = gradient.square().sum();
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    let mut squares = Squares { gradients, sum: None, seen: HashSet::new() };
    model.visit(&mut squares);
    if let Some(sum) = squares.sum {
        let factor = (sum.sqrt() + 1e-6).recip() * largest;
        scale(gradients, model, &factor.clamp_max(1.0));
    }
}

/// SGD as the recipe says: momentum without dampening, and weight decay for the parameters that the
/// recipe names.
///
/// The groups hold the paths of the parameters in the module tree, so they outlive the loading of
/// weights, which changes identities; build the optimizer for the module that it will step.
pub fn optimizer<M: Module>(recipe: &Recipe, model: &M) -> ModuleOptimizer {
    let momentum = MomentumConfig::new()
        .with_momentum(recipe.momentum)
        .with_dampening(0.0)
        .with_nesterov(recipe.momentum_form == MomentumForm::Nesterov);
    let plain = SgdConfig::new().with_momentum(Some(momentum));
    let decay = WeightDecayConfig::new(recipe.weight_decay as f32);
    let decayed = plain.clone().with_weight_decay(Some(decay));
    let activations = activation_parameters(model);
    let spared = |axes: usize, id: &ParamId| match recipe.decayed {
        Decayed::Weights => axes == 1,
        Decayed::AllButActivations => activations.contains(id),
        Decayed::All => false,
    };
    let spared = ParamGroup::from_paths(paths(model, spared));
    ModuleOptimizer::from(decayed.build()).with_group(spared, plain.build(), None)
}

/// The paths of the parameters with this property of their number of axes and their identity.
fn paths<M: Module>(model: &M, wanted: impl Fn(usize, &ParamId) -> bool) -> Vec<String> {
    struct Paths<W> {
        wanted: W,
        path: Vec<String>,
        found: Vec<String>,
    }
    impl<W: Fn(usize, &ParamId) -> bool> ModuleVisitor for Paths<W> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if (self.wanted)(D, &param.id) {
                self.found.push(self.path.join("."));
            }
        }
    }
    let mut paths = Paths { wanted, path: Vec::new(), found: Vec::new() };
    model.visit(&mut paths);
    paths.found
}

/// How many rows of logits `[n, classes]` have their largest value at the label.
pub(crate) fn correct(logits: Tensor<2>, labels: &[usize]) -> usize {
    let predictions = logits.argmax(1).into_data();
    let predictions = predictions.iter::<i64>();
    predictions.zip(labels).filter(|(prediction, label)| *prediction == **label as i64).count()
}

/// The device of training: the same hardware, with autodiff.
pub(crate) fn training_device(device: &Device) -> Device {
    if device.is_autodiff() { device.clone() } else { device.clone().autodiff() }
}
