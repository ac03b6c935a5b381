use burn::tensor::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Oracle};
use crate::{Adversarial, Attack, AttackError, Goal, Loss, ThreatModel, Victim};

/// The attack that leaves the images as they are: its robust accuracy is the clean one.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Identity;

impl Attack for Identity {
    /// One forward pass.
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        let dtype = images.dtype();
        let batch = Batch::new(images, goal, threat)?;
        Oracle::new(victim, &Loss::CrossEntropy, dtype).verdict(&batch, batch.ball.centre())
    }

    fn describe(&self) -> Value {
        description("none", self)
    }
}
