use crate::{data::Augment, schedule::Schedule};
use sat_attack::{Norm, Pgd, RandomStart, ThreatModel};
use serde::{Deserialize, Serialize};

/// How to train, as data: everything that decides the weights, except the network and the images.
///
/// The default is the recipe of arXiv 2006.14536 in miniature: single-step PGD with a random start in
/// four of five batches, SGD with Nesterov momentum, a weight decay that spares normalisation, biases
/// and activation parameters, and label smoothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Passes over the training set, at least 1.
    pub epochs: usize,
    /// Images per step, at least 1. The last images of an epoch that fill no batch are left out;
    /// the order changes from epoch to epoch.
    pub batch_size: usize,
    /// The seed of the data order, the augmentation and the attack's noise.
    pub seed: u64,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// SGD's momentum, in [0, 1). Nesterov's form, without dampening, as PyTorch defines it.
    pub momentum: f64,
    /// The coefficient of 1/2 |w|^2 for weights of convolutions and linear layers, at least 0.
    /// Parameters of one axis (normalisation, biases, activation parameters) are spared.
    pub weight_decay: f64,
    /// The share of the target distribution that is spread evenly over all classes, in [0, 1).
    pub label_smoothing: f64,
    /// The attack that makes the training images; none trains on clean images.
    pub attack: Option<TrainingAttack>,
    /// What is done to a training image before the attack.
    pub augment: Augment,
}

/// The attack inside training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingAttack {
    /// The norm of the perturbation.
    pub norm: Norm,
    /// The largest perturbation, in units of images in [0, 1].
    pub eps: f64,
    /// Gradient steps per batch, at least 1.
    pub steps: usize,
    /// Length of a step. Without it: eps for a single step, 2.5 eps / steps for several.
    pub step_size: Option<f64>,
    /// The probability that a batch starts from random points of the ball instead of the clean
    /// images; one draw per batch.
    pub random_start: f64,
}

impl Default for TrainingAttack {
    fn default() -> Self {
        Self { norm: Norm::Linf, eps: 8.0 / 255.0, steps: 1, step_size: None, random_start: 0.8 }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch_size: 128,
            seed: 0,
            schedule: Schedule::default(),
            momentum: 0.9,
            weight_decay: 5e-4,
            label_smoothing: 0.1,
            attack: Some(TrainingAttack::default()),
            augment: Augment::default(),
        }
    }
}

/// A field of a [`Recipe`] that no training can use.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("recipe: `{field}` is {value}; it must be {expected}")]
pub struct RecipeError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
    /// What would do.
    pub expected: &'static str,
}

impl RecipeError {
    /// The error about a field, unless it is valid.
    pub(crate) fn unless(
        valid: bool,
        field: &'static str,
        value: f64,
        expected: &'static str,
    ) -> Result<(), Self> {
        if valid { Ok(()) } else { Err(Self { field, value, expected }) }
    }
}

impl Recipe {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field out of its range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let check = RecipeError::unless;
        check(self.epochs > 0, "epochs", self.epochs as f64, "at least 1")?;
        check(self.batch_size > 0, "batch_size", self.batch_size as f64, "at least 1")?;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        check(unit(self.momentum), "momentum", self.momentum, "in [0, 1)")?;
        check(unit(self.label_smoothing), "label_smoothing", self.label_smoothing, "in [0, 1)")?;
        let decay = self.weight_decay;
        check(decay.is_finite() && decay >= 0.0, "weight_decay", decay, "finite and at least 0")?;
        if let Some(attack) = &self.attack {
            let TrainingAttack { eps, steps, step_size, random_start, .. } = *attack;
            check(eps.is_finite() && eps >= 0.0, "attack.eps", eps, "finite and at least 0")?;
            check(steps > 0, "attack.steps", steps as f64, "at least 1")?;
            if let Some(size) = step_size {
                let valid = size.is_finite() && size > 0.0;
                check(valid, "attack.step_size", size, "finite and above 0")?;
            }
            let valid = (0.0..=1.0).contains(&random_start);
            check(valid, "attack.random_start", random_start, "in [0, 1]")?;
        }
        self.schedule.validate()
    }
}

impl TrainingAttack {
    /// The threat model of the attack.
    pub fn threat(&self) -> ThreatModel {
        ThreatModel::new(self.norm, self.eps)
    }

    /// The attack itself; `seed` decides its noise.
    pub fn attack(&self, seed: u64) -> Pgd {
        let pgd = Pgd::default()
            .steps(self.steps)
            .random_start(RandomStart::WithProbability(self.random_start))
            .seed(seed);
        match self.step_size {
            Some(size) => pgd.step_size(size),
            None if self.steps == 1 => pgd.relative_step_size(1.0),
            None => pgd,
        }
    }
}
