use std::ops::AddAssign;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AttackError, Flag, Goal, ThreatModel, Victim};

/// An attack: a value holding its settings. Victim, images, goal and threat come at the call.
pub trait Attack {
    /// Attacks `images` `[n, c, h, w]` and reports what became of each sample.
    ///
    /// The returned images lie in the ball and in the bounds, and success is measured on them by
    /// one more forward pass.
    ///
    /// # Errors
    ///
    /// Any [`AttackError`]. A NaN or infinity in a gradient or in the logits is an error, because
    /// skipping it would count a broken model as robust.
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError>;

    /// Returns just the adversarial images `[n, c, h, w]`, for training: as [`Attack::run`], but
    /// without the bookkeeping where an attack can do without it.
    ///
    /// # Errors
    ///
    /// As [`Attack::run`].
    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        Ok(self.run(victim, images, goal, threat)?.images)
    }

    /// Name and settings, for reports and to tell whether a state file belongs to this attack. By
    /// default the name of the type.
    fn describe(&self) -> Value {
        Value::from(std::any::type_name::<Self>())
    }
}

impl<A: Attack + ?Sized> Attack for Box<A> {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        (**self).run(victim, images, goal, threat)
    }

    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        (**self).perturb(victim, images, goal, threat)
    }

    fn describe(&self) -> Value {
        (**self).describe()
    }
}

/// What an attack did to a batch, sample by sample.
#[derive(Clone, Debug)]
pub struct Adversarial {
    /// The adversarial images `[n, c, h, w]`, on the images' device without autodiff and in their
    /// type. Where the attack failed: its best attempt.
    pub images: Tensor<4>,
    /// Whether the goal was reached. Untargeted: the prediction is not the label, which includes
    /// samples the model got wrong before the attack. Targeted: the prediction is the target.
    pub success: Vec<bool>,
    /// The model's prediction for the adversarial image; the first of equal logits.
    pub predictions: Vec<usize>,
    /// Cross-entropy of the adversarial image by the label or target, in nats.
    pub loss: Vec<f32>,
    /// What it took.
    pub cost: Cost,
    /// What came of each attack of an ensemble, in order; empty for a single attack.
    pub stages: Vec<Stage>,
    /// Reasons to doubt the result.
    pub flags: Vec<Flag>,
}

/// One attack of an ensemble, on one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Number of samples it was given: those that withstood the attacks before it.
    pub attacked: usize,
    /// The samples it fooled, as rows of the batch.
    pub fooled: Vec<usize>,
    /// What it took.
    pub cost: Cost,
}

impl Adversarial {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.success.len()
    }

    /// Whether there are no samples; attacks refuse empty batches.
    pub fn is_empty(&self) -> bool {
        self.success.is_empty()
    }

    /// Number of samples for which the attack reached its goal.
    pub fn fooled(&self) -> usize {
        self.success.iter().filter(|&&fooled| fooled).count()
    }

    /// Number of samples that withstood the attack.
    pub fn robust(&self) -> usize {
        self.len() - self.fooled()
    }
}

/// Work done by an attack, counted in images: a forward pass of a batch of 100 counts 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Images pushed forward through the model.
    pub forwards: u64,
    /// Images pushed backward through the model, each after a forward pass that is counted too.
    pub backwards: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

/// The settings of an attack as JSON, under its name.
pub(crate) fn description(name: &str, settings: &impl Serialize) -> Value {
    // Serialising plain settings cannot fail; a custom implementation that does shows as null.
    serde_json::json!({ "name": name, "settings": serde_json::to_value(settings).ok() })
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.forwards += other.forwards;
        self.backwards += other.backwards;
        self.seconds += other.seconds;
    }
}
