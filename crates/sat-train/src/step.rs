use crate::recipe::{Recipe, TrainingAttack};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup, ParamId},
    optim::{
        GradientsParams, ModuleOptimizer, SgdConfig, decay::WeightDecayConfig,
        momentum::MomentumConfig,
    },
    tensor::{Device, Int, Tensor, TensorData, activation::log_softmax},
};
use sat_attack::{Attack, AttackError, Classifier, Goal, Pgd, ThreatModel, Victim};

/// One step of adversarial training, for loops of one's own; [`train`](crate::train) is built on it.
///
/// The attack sees a frozen copy of the model: BatchNorm in inference mode with untouched
/// statistics, and no weight gradients. Then the model is trained on the adversarial images alone, in
/// training mode.
#[derive(Clone, Debug)]
pub struct AdversarialStep {
    attack: Option<(Pgd, ThreatModel)>,
    label_smoothing: f64,
}

/// What a step reports. The tensors are off the graph and still on the device.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The mean loss on the adversarial images, `[1]`.
    pub loss: Tensor<1>,
    /// The logits of the adversarial images in training mode, `[n, classes]`.
    pub logits: Tensor<2>,
}

impl AdversarialStep {
    /// The step of a recipe.
    pub fn new(recipe: &Recipe) -> Self {
        let attack = |attack: &TrainingAttack| (attack.attack(recipe.seed), attack.threat());
        Self { attack: recipe.attack.as_ref().map(attack), label_smoothing: recipe.label_smoothing }
    }

    /// Attacks the images and updates the model on the result.
    ///
    /// `model` is on an autodiff device; `images` `[n, c, h, w]` in [0, 1] on the same device, with
    /// or without autodiff; `first` is the number of training samples seen before, which numbers the
    /// random streams of the attack.
    ///
    /// # Errors
    ///
    /// Any [`AttackError`]; the model is then lost, so keep a checkpoint.
    pub fn run<M: Module + Classifier>(
        &self,
        model: M,
        optimizer: &mut ModuleOptimizer,
        lr: f64,
        images: Tensor<4>,
        labels: &[usize],
        first: u64,
    ) -> Result<(M, StepOutput), AttackError> {
        let strategy = images.gradient_checkpointing_strategy();
        let images = match &self.attack {
            None => images,
            Some((attack, threat)) => {
                let goal = Goal::untargeted(labels).numbered_from(first);
                attack.perturb(&Victim::new(&model), images, goal, threat)?
            }
        };
        let images = images.without_autodiff().autodiff();
        let images = match strategy {
            Some(strategy) => images.with_gradient_checkpointing_strategy(strategy),
            None => images,
        };
        let logits = model.logits(images);
        let loss = smoothed_cross_entropy(logits.clone(), labels, self.label_smoothing);
        let output = StepOutput { loss: loss.clone().inner(), logits: logits.inner() };
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        Ok((optimizer.step(lr, model, gradients), output))
    }
}

/// The mean over the batch of -sum_k q_k ln p_k, where p is the softmax of the logits and q puts
/// 1 - smoothing on the label and spreads `smoothing` over all classes evenly, as PyTorch does.
///
/// `logits` `[n, classes]`, one label a row; the result is `[1]`.
///
/// # Panics
///
/// If the number of labels is not n, or a label is not below the number of classes.
pub fn smoothed_cross_entropy(logits: Tensor<2>, labels: &[usize], smoothing: f64) -> Tensor<1> {
    let [rows, classes] = logits.dims();
    assert_eq!(rows, labels.len(), "one label a row of logits");
    if let Some(label) = labels.iter().find(|label| **label >= classes) {
        panic!("label {label} with {classes} classes");
    }
    let log_p = log_softmax(logits, 1);
    // Labels count classes, far below i64::MAX.
    let labels: Vec<i64> = labels.iter().map(|label| *label as i64).collect();
    let device = log_p.device().without_autodiff();
    let labels = Tensor::<2, Int>::from_data(TensorData::new(labels, [rows, 1]), &device);
    let of_label = log_p.clone().gather(1, labels).mean();
    (of_label * (1.0 - smoothing) + log_p.mean() * smoothing).neg()
}

/// SGD as the recipe says: Nesterov momentum without dampening, and a weight decay that spares
/// parameters of one axis, which are normalisation gains and offsets, biases, and activation
/// parameters.
///
/// The groups hold the identities of the parameters: build the optimizer after weights were loaded.
pub fn optimizer<M: Module>(recipe: &Recipe, model: &M) -> ModuleOptimizer {
    let momentum = MomentumConfig::new()
        .with_momentum(recipe.momentum)
        .with_dampening(0.0)
        .with_nesterov(true);
    let plain = SgdConfig::new().with_momentum(Some(momentum));
    let decay = WeightDecayConfig::new(recipe.weight_decay as f32);
    let decayed = plain.clone().with_weight_decay(Some(decay));
    ModuleOptimizer::from(decayed.build()).with_group(one_axis(model), plain.build(), None)
}

fn one_axis<M: Module>(model: &M) -> ParamGroup {
    struct OneAxis(Vec<ParamId>);
    impl ModuleVisitor for OneAxis {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 1 {
                self.0.push(param.id);
            }
        }
    }
    let mut found = OneAxis(Vec::new());
    model.visit(&mut found);
    ParamGroup::from_ids(found.0)
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
