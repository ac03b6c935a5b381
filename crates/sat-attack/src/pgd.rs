use burn::tensor::Tensor;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Gallery, Oracle, check_gradient, split};
use crate::error::{at_least_one, require};
use crate::project::per_sample;
use crate::{Adversarial, Attack, AttackError, Goal, Loss, ThreatModel, Victim};

/// Whether PGD starts from a random point of the ball.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RandomStart {
    /// Start from the clean image.
    Never,
    /// Start from a random point.
    Always,
    /// With this probability, in `[0, 1]`, start the whole batch from random points, else all of
    /// it from the clean images: one draw per batch and restart, as the paper's training does with
    /// probability 0.8.
    WithProbability(f64),
}

/// The length of one step, in the norm of the threat.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StepSize {
    /// In image units, the same for all samples.
    Absolute(f64),
    /// As a fraction of each sample's eps.
    OfEps(f64),
}

/// Where PGD with momentum takes the gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Lookahead {
    None,
    Nesterov,
}

/// When PGD stops working on a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EarlyExit {
    /// After all steps of a restart; a fooled sample takes no part in later restarts.
    #[default]
    Never,
    /// As soon as the model is seen to be fooled. The sample keeps that image: the clean one, if
    /// the model gets it wrong already.
    WhenFooled,
}

/// Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), and with
/// [`Pgd::momentum`] the momentum iterative method (Dong et al. 2018, arXiv 1710.06081).
///
/// From a starting point in the ball, `steps` times `x <- P(x + a d(g))`, where `g` is the gradient
/// of the loss by the image, `d` the direction of steepest ascent in the threat's norm (Linf:
/// `sign(g)`, with `sign(0) = 0`; L2: `g / |g|`; L1: see [`Ball::step`](crate::Ball::step)), `a` the step size and `P` the projection onto ball
/// and bounds (see [`Ball`](crate::Ball)). The image after the last step is the result, unless
/// [`Pgd::stop_when_fooled`] is set. With restarts each sample keeps the first image that fools the
/// model, else the one with the highest loss.
///
/// Defaults: 10 steps of `2.5 eps / steps`, one run from a random point, seed 0, cross-entropy, no
/// momentum, no early exit.
///
/// Noise is drawn by ChaCha8 from (seed, restart, number of the sample); see
/// [`Goal::numbered_from`]. Up to the rounding of the backend, which may depend on the batch size,
/// the result of a sample does not depend on the other samples, except that
/// [`RandomStart::WithProbability`] draws once for the batch it is in.
#[derive(Clone, Debug, Serialize)]
pub struct Pgd {
    steps: usize,
    step_size: Option<StepSize>,
    restarts: usize,
    random_start: RandomStart,
    seed: u64,
    momentum: Option<f64>,
    lookahead: Lookahead,
    early_exit: EarlyExit,
    loss: Loss,
    #[serde(rename = "explicit_start", serialize_with = "is_given")]
    start: Option<Tensor<4>>,
}

/// Of explicit starting images, reports say only whether there are any.
pub(crate) fn is_given<S: Serializer>(
    start: &Option<Tensor<4>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(start.is_some())
}

impl Default for Pgd {
    fn default() -> Self {
        Self {
            steps: 10,
            step_size: None,
            restarts: 1,
            random_start: RandomStart::Always,
            seed: 0,
            momentum: None,
            lookahead: Lookahead::None,
            early_exit: EarlyExit::Never,
            loss: Loss::CrossEntropy,
            start: None,
        }
    }
}

impl Pgd {
    /// Number of gradient steps per restart, at least 1 (default 10).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Length of a step in image units, positive. Default: `2.5 eps / steps`, long enough to cross
    /// the ball.
    pub fn step_size(mut self, size: f64) -> Self {
        self.step_size = Some(StepSize::Absolute(size));
        self
    }

    /// Length of a step as a positive fraction of each sample's eps.
    pub fn relative_step_size(mut self, fraction: f64) -> Self {
        self.step_size = Some(StepSize::OfEps(fraction));
        self
    }

    /// Number of runs, at least 1 (default 1). More than one needs a random start.
    pub fn restarts(mut self, restarts: usize) -> Self {
        self.restarts = restarts;
        self
    }

    /// Where to start (default [`RandomStart::Always`]).
    pub fn random_start(mut self, random_start: RandomStart) -> Self {
        self.random_start = random_start;
        self
    }

    /// Starts the first run from these images, of the shape of the attacked ones, projected onto
    /// the ball. Further restarts follow [`Pgd::random_start`].
    pub fn start_from(mut self, images: Tensor<4>) -> Self {
        self.start = Some(images);
        self
    }

    /// The seed of all random draws (default 0). In training, change it or number the samples (see
    /// [`Goal::numbered_from`]), or every batch gets the same noise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Steps along `m <- decay m + g / mean|g|` in place of `g`, with `decay >= 0` (usually 1).
    pub fn momentum(mut self, decay: f64) -> Self {
        self.momentum = Some(decay);
        self
    }

    /// As [`Pgd::momentum`], with the gradient taken at `x + a decay m` (NI-FGSM, Lin et al. 2020,
    /// arXiv 1908.06281).
    pub fn nesterov(mut self, decay: f64) -> Self {
        self.momentum = Some(decay);
        self.lookahead = Lookahead::Nesterov;
        self
    }

    /// Takes a sample out of the batch as soon as the model is fooled: faster, and the robust
    /// accuracy can only be lower, if the model is deterministic. The loss of a fooled sample is then
    /// not maximal. With [`Pgd::nesterov`] it takes another forward pass a step, at the images
    /// themselves. [`Attack::perturb`] ignores this.
    pub fn stop_when_fooled(mut self) -> Self {
        self.early_exit = EarlyExit::WhenFooled;
        self
    }

    /// The loss to follow (default cross-entropy).
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    fn validate(&self) -> Result<(), AttackError> {
        at_least_one("steps", self.steps)?;
        at_least_one("restarts", self.restarts)?;
        require(
            self.restarts == 1 || self.random_start != RandomStart::Never,
            "restarts",
            self.restarts as f64,
            "1 without a random start, since every restart would repeat the first",
        )?;
        if let RandomStart::WithProbability(p) = self.random_start {
            let valid = (0.0..=1.0).contains(&p);
            require(valid, "random_start", p, "a probability in [0, 1]")?;
        }
        if let Some(StepSize::Absolute(size) | StepSize::OfEps(size)) = self.step_size {
            let valid = size.is_finite() && size > 0.0;
            require(valid, "step_size", size, "positive and finite")?;
        }
        if let Some(decay) = self.momentum {
            let valid = decay.is_finite() && decay >= 0.0;
            require(valid, "momentum", decay, "finite and at least 0")?;
        }
        Ok(())
    }

    /// Where each sample starts in this restart. `first` numbers the caller's whole batch.
    fn starting_point(
        &self,
        batch: &Batch,
        restart: u64,
        first: u64,
    ) -> Result<Tensor<4>, AttackError> {
        if let (Some(start), 0) = (&self.start, restart) {
            return batch.start(start);
        }
        Ok(batch.random_or_clean(self.random_start, self.seed, restart, first))
    }

    fn descent(&self, batch: &Batch) -> Descent {
        let eps = batch.ball.eps();
        let size = match self.step_size {
            None => eps * (2.5 / self.steps as f64),
            Some(StepSize::OfEps(fraction)) => eps * fraction,
            Some(StepSize::Absolute(size)) => per_sample(vec![size; batch.len()], &eps),
        };
        Descent { size, decay: self.momentum, lookahead: self.lookahead, velocity: None }
    }

    /// Runs all steps of one restart from `images`. Fooled samples leave for the gallery if early
    /// exit is on; the others come back, with their last images.
    fn survivors(
        &self,
        oracle: &mut Oracle<'_>,
        gallery: &mut Gallery,
        mut batch: Batch,
        mut images: Tensor<4>,
    ) -> Result<Option<(Batch, Tensor<4>)>, AttackError> {
        let mut descent = self.descent(&batch);
        for _ in 0..self.steps {
            let ahead = descent.ahead(&images);
            let elsewhere = ahead.is_some();
            let at = ahead.unwrap_or_else(|| images.clone());
            let (mut logits, mut gradient) = oracle.gradient(&batch, at)?;
            check_gradient(&batch, &gradient)?;
            if self.early_exit == EarlyExit::WhenFooled {
                if elsewhere {
                    // Those logits are of a point that may lie outside the ball.
                    logits = oracle.logits(&batch, images.clone())?;
                }
                let (fooled, open) = split(&oracle.fooled(&batch, logits)?);
                gallery.put(&batch, &images, &fooled);
                if open.is_empty() {
                    return Ok(None);
                }
                if !fooled.is_empty() {
                    let rows = batch.rows(&open);
                    batch = batch.select(&open);
                    images = images.select(0, rows.clone());
                    gradient = gradient.select(0, rows.clone());
                    descent.select(rows);
                }
            }
            images = descent.step(&batch, images, gradient);
        }
        Ok(Some((batch, images)))
    }
}

impl Attack for Pgd {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        self.validate()?;
        let dtype = images.dtype();
        let whole = Batch::new(images, goal, threat)?;
        let first = whole.samples[0];
        let mut oracle = Oracle::new(victim, &self.loss, dtype);
        let mut gallery = Gallery::new(whole.len());
        let mut best = vec![f32::NEG_INFINITY; whole.len()];
        let mut open = Some(whole.clone());

        // Without a random start the first step sees the clean images anyway.
        let leaves_clean = self.random_start != RandomStart::Never || self.start.is_some();
        if self.early_exit == EarlyExit::WhenFooled && leaves_clean {
            let clean = whole.ball.centre();
            let logits = oracle.logits(&whole, clean.clone())?;
            let (fooled, rest) = split(&oracle.fooled(&whole, logits)?);
            gallery.put(&whole, &clean, &fooled);
            open = (!rest.is_empty()).then(|| whole.select(&rest));
        }

        for restart in 0..self.restarts {
            let Some(batch) = open.take() else { break };
            let start = if restart == 0 && self.start.is_some() {
                // The explicit start covers the whole batch: cut it down to the open samples.
                self.starting_point(&whole, 0, first)?.select(0, batch.rows(&batch.positions))
            } else {
                self.starting_point(&batch, restart as u64, first)?
            };
            let survivors = self.survivors(&mut oracle, &mut gallery, batch, start)?;
            let Some((batch, images)) = survivors else {
                break;
            };
            if self.restarts == 1 {
                let all: Vec<usize> = (0..batch.len()).collect();
                gallery.put(&batch, &images, &all);
                break;
            }
            let logits = oracle.logits(&batch, images.clone())?;
            let fooled = oracle.fooled(&batch, logits.clone())?;
            let objective = oracle.objective(&batch, logits)?.try_into_vec_as::<f32>()?;
            let mut better = Vec::new();
            for (row, &value) in objective.iter().enumerate() {
                let record = &mut best[batch.positions[row]];
                if fooled[row] || value > *record || restart == 0 {
                    *record = value;
                    better.push(row);
                }
            }
            gallery.put(&batch, &images, &better);
            let (_, rest) = split(&fooled);
            open = (!rest.is_empty()).then(|| batch.select(&rest));
        }
        oracle.verdict(&whole, gallery.finish())
    }

    /// Exactly `steps` forward and backward passes, from a starting point that is drawn once
    /// (restarts and early exit are for [`Attack::run`]). Waits for the device only to check the
    /// images before the first step. Gradients are not checked: a NaN gradient does not move its
    /// pixel, or turns the image into NaN, depending on the backend.
    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        self.validate()?;
        let dtype = images.dtype();
        let batch = Batch::new(images, goal, threat)?;
        let first = batch.samples[0];
        let mut oracle = Oracle::new(victim, &self.loss, dtype);
        let mut descent = self.descent(&batch);
        let mut images = self.starting_point(&batch, 0, first)?;
        for _ in 0..self.steps {
            let at = descent.ahead(&images).unwrap_or_else(|| images.clone());
            let (_, gradient) = oracle.gradient(&batch, at)?;
            images = descent.step(&batch, images, gradient);
        }
        Ok(batch.ball.rounded(images, dtype))
    }

    fn describe(&self) -> Value {
        description("pgd", self)
    }
}

/// The state of one descent besides the images.
struct Descent {
    /// `[n, 1, 1, 1]`
    size: Tensor<4>,
    decay: Option<f64>,
    lookahead: Lookahead,
    velocity: Option<Tensor<4>>,
}

impl Descent {
    /// Where to take the gradient, if not at the images themselves.
    fn ahead(&self, images: &Tensor<4>) -> Option<Tensor<4>> {
        match (self.lookahead, &self.velocity, self.decay) {
            (Lookahead::Nesterov, Some(velocity), Some(decay)) => {
                Some(images.clone() + velocity.clone() * self.size.clone() * decay)
            }
            _ => None,
        }
    }

    fn step(&mut self, batch: &Batch, images: Tensor<4>, gradient: Tensor<4>) -> Tensor<4> {
        let direction = match self.decay {
            None => gradient,
            Some(decay) => {
                // The smallest normal f32 keeps a zero gradient from giving NaN.
                let scale = gradient.clone().abs().mean_dims(&[1, 2, 3]);
                let scaled = gradient / scale.clamp_min(f32::MIN_POSITIVE);
                let velocity = match self.velocity.take() {
                    None => scaled,
                    Some(velocity) => velocity * decay + scaled,
                };
                self.velocity = Some(velocity.clone());
                velocity
            }
        };
        batch.ball.step(images, direction, self.size.clone())
    }

    fn select(&mut self, rows: Tensor<1, burn::tensor::Int>) {
        self.size = self.size.clone().select(0, rows.clone());
        self.velocity = self.velocity.take().map(|v| v.select(0, rows));
    }
}
