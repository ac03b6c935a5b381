//! FGSM from a noisy point.

use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Oracle, check_gradient};
use crate::error::require;
use crate::rng::{Purpose, Stream};
use crate::{Adversarial, Attack, AttackError, Goal, Loss, Norm, ThreatModel, Victim};

/// R+FGSM (Tramer et al. 2018, arXiv 1705.07204): `x' = x + a sign(N)` with Gaussian noise `N`, then
/// `x' + (eps - a) sign(g)` with the gradient at `x'`; Linf only. For one step from a uniform random
/// point (RS-FGSM of Wong et al. 2020, arXiv 2001.03994) use
/// `Pgd::default().steps(1).relative_step_size(1.25)`.
#[derive(Clone, Debug, Serialize)]
pub struct RFgsm {
    share: f64,
    seed: u64,
    loss: Loss,
}

impl Default for RFgsm {
    fn default() -> Self {
        Self { share: 0.5, seed: 0, loss: Loss::CrossEntropy }
    }
}

impl RFgsm {
    /// `a` as a share of eps, in `[0, 1]` (default 0.5).
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// The seed of the noise (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The loss to follow (default cross-entropy).
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }
}

impl Attack for RFgsm {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        require((0.0..=1.0).contains(&self.share), "share", self.share, "in [0, 1]")?;
        let dtype = images.dtype();
        let batch = linf("R+FGSM", images, goal, threat)?;
        let mut oracle = Oracle::new(victim, &self.loss, dtype);
        let eps = batch.ball.eps();
        let signs = noise(&batch, self.seed, |stream| stream.sign());
        let start = batch.ball.project(batch.ball.centre() + signs * eps.clone() * self.share);
        let (_, gradient) = oracle.gradient(&batch, start.clone())?;
        check_gradient(&batch, &gradient)?;
        let images = batch.ball.step(start, gradient, eps * (1.0 - self.share));
        oracle.verdict(&batch, images)
    }

    fn describe(&self) -> Value {
        description("r+fgsm", self)
    }
}

/// N-FGSM (de Jorge et al. 2022, arXiv 2202.01181), an attack for training: noise uniform in
/// `[-k eps, k eps]`, then a step `eps sign(g)`, neither of them clipped to the ball, both to the pixel bounds; Linf only.
///
/// [`Attack::perturb`] gives the images as the paper trains on them, up to `(k + 1) eps` away and
/// within the pixel bounds. [`Attack::run`] projects them onto the ball.
#[derive(Clone, Debug, Serialize)]
pub struct NFgsm {
    spread: f64,
    seed: u64,
    loss: Loss,
}

impl Default for NFgsm {
    fn default() -> Self {
        Self { spread: 2.0, seed: 0, loss: Loss::CrossEntropy }
    }
}

impl NFgsm {
    /// `k`, at least 0 (default 2).
    pub fn spread(mut self, spread: f64) -> Self {
        self.spread = spread;
        self
    }

    /// The seed of the noise (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The loss to follow (default cross-entropy).
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    fn step(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &Batch,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        let valid = self.spread.is_finite() && self.spread >= 0.0;
        require(valid, "spread", self.spread, "finite and at least 0")?;
        let eps = batch.ball.eps();
        let shift = noise(batch, self.seed, |stream| 2.0 * stream.uniform() - 1.0);
        let (lower, upper) = threat.bounds;
        let noisy = batch.ball.centre() + shift * eps.clone() * self.spread;
        let start = batch.ball.masked(noisy.clamp(lower, upper));
        let (_, gradient) = oracle.gradient(batch, start.clone())?;
        check_gradient(batch, &gradient)?;
        Ok((start + batch.ball.free(gradient).sign() * eps).clamp(lower, upper))
    }
}

impl Attack for NFgsm {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        let dtype = images.dtype();
        let batch = linf("N-FGSM", images, goal, threat)?;
        let mut oracle = Oracle::new(victim, &self.loss, dtype);
        let images = self.step(&mut oracle, &batch, threat)?;
        let images = batch.ball.project(images);
        oracle.verdict(&batch, images)
    }

    /// One forward and one backward pass. The images leave the ball: see [`NFgsm`].
    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        let dtype = images.dtype();
        let batch = linf("N-FGSM", images, goal, threat)?;
        let mut oracle = Oracle::new(victim, &self.loss, dtype);
        Ok(self.step(&mut oracle, &batch, threat)?.cast(dtype))
    }

    fn describe(&self) -> Value {
        description("n-fgsm", self)
    }
}

fn linf(
    attack: &'static str,
    images: Tensor<4>,
    goal: Goal,
    threat: &ThreatModel,
) -> Result<Batch, AttackError> {
    match threat.norm {
        Norm::Linf => Batch::new(images, goal, threat),
        norm => Err(AttackError::UnsupportedNorm { attack, norm }),
    }
}

/// One draw for each pixel value, from the stream of its sample.
fn noise(batch: &Batch, seed: u64, draw: impl Fn(&mut Stream) -> f64) -> Tensor<4> {
    let centre = batch.ball.centre();
    let shape = centre.shape();
    let dimension = shape.num_elements() / batch.len();
    let mut values = Vec::with_capacity(shape.num_elements());
    for &sample in &batch.samples {
        let mut stream = Stream::new(seed, 0, sample, Purpose::StartNoise);
        values.extend((0..dimension).map(|_| draw(&mut stream)));
    }
    let data = TensorData::new(values, shape);
    Tensor::from_data(data, (&centre.device(), centre.dtype()))
}
