use burn::tensor::Tensor;
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::{Adversarial, Attack, AttackError, Goal, Loss, Pgd, RandomStart, ThreatModel, Victim};

/// The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of size eps
/// from the clean image, `x + eps sign(g)`, clipped to the bounds. With an L2 threat the step is
/// `eps g / |g|`.
///
/// For a random start or another step size use [`Pgd`] with one step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fgsm {
    loss: Loss,
}

impl Fgsm {
    /// The loss to follow (default cross-entropy).
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    fn as_pgd(&self) -> Pgd {
        Pgd::default()
            .steps(1)
            .relative_step_size(1.0)
            .random_start(RandomStart::Never)
            .loss(self.loss.clone())
    }
}

impl Attack for Fgsm {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        self.as_pgd().run(victim, images, goal, threat)
    }

    /// One forward and one backward pass.
    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        self.as_pgd().perturb(victim, images, goal, threat)
    }

    fn describe(&self) -> Value {
        description("fgsm", self)
    }
}
