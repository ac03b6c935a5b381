use burn::tensor::{Int, Tensor};
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Gallery, Oracle, Pass, check_gradient, split};
use crate::error::{at_least_one, require};
use crate::loss::{targeted_dlr, targeted_margin};
use crate::pgd::{EarlyExit, is_given};
use crate::project::per_sample;
use crate::victim::ranked;
use crate::{
    Adversarial, Attack, AttackError, Flag, Goal, Loss, Norm, RandomStart, ThreatModel, Victim,
};

/// What an attack does when its loss compares more logits than the model has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FewClasses {
    /// Answer [`AttackError::TooFewClasses`].
    #[default]
    Refuse,
    /// Follow the plain margin `z_k - z_y` instead.
    Margin,
}

/// Auto-PGD (Croce and Hein 2020, arXiv 2003.01690; for L1: 2021, arXiv 2103.01208), on the
/// cross-entropy ([`Apgd::ce`]), the difference of logits ratio ([`Apgd::dlr`]), any other
/// [`Loss`], or the targeted difference of logits ratio against several classes in turn
/// ([`Apgd::targeted`], which needs an untargeted goal: it picks its targets itself).
///
/// Linf and L2, with step size `a = 2 eps` at first:
/// `z = P(x + a d(g))`, `x' = P(x + 0.75 (z - x) + 0.25 (x - x_previous))`. After 22 % of the
/// steps, then after shares that shrink by 3 % down to 6 %, a sample whose loss rose in at most
/// `rho` of the steps since the last such checkpoint, or whose best loss and step size both did not
/// change since then, goes back to its best point with half the step size.
///
/// L1, with `a = eps` at first: sparse steps `a / k sign(g)` on the `k` largest gradients,
/// projected on ball and bounds together; every 4 % of the steps `k` follows the number of changed
/// pixel values of the best point, and `a` shrinks by 1.5, down to `eps / 10`, or starts anew.
///
/// Each sample keeps the image of the highest loss among those that fool the model, else among all
/// it met. Defaults are the official ones: 100 steps, one run from a random point, `rho` 0.75,
/// seed 0; every step is taken ([`Apgd::stop_when_fooled`] changes that).
#[derive(Clone, Debug, Serialize)]
pub struct Apgd {
    objective: Objective,
    steps: usize,
    restarts: usize,
    rho: f64,
    random_start: RandomStart,
    seed: u64,
    early_exit: EarlyExit,
    few_classes: FewClasses,
    radius: Radius,
    #[serde(rename = "explicit_start", serialize_with = "is_given")]
    start: Option<Tensor<4>>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Objective {
    Loss(Loss),
    Targets(usize),
}

/// Whether the ball is larger at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Radius {
    Fixed,
    Shrinking,
}

impl Default for Apgd {
    fn default() -> Self {
        Self {
            objective: Objective::Loss(Loss::CrossEntropy),
            steps: 100,
            restarts: 1,
            rho: 0.75,
            random_start: RandomStart::Always,
            seed: 0,
            early_exit: EarlyExit::Never,
            few_classes: FewClasses::Refuse,
            radius: Radius::Fixed,
            start: None,
        }
    }
}

impl Apgd {
    /// APGD on the cross-entropy.
    pub fn ce() -> Self {
        Self::default()
    }

    /// APGD on the difference of logits ratio; at least 3 classes.
    pub fn dlr() -> Self {
        Self::default().loss(Loss::Dlr)
    }

    /// APGD on the targeted difference of logits ratio, against the 9 most likely other classes of
    /// the clean image, or all there are; at least 4 classes.
    pub fn targeted() -> Self {
        Self::default().targets(9)
    }

    /// The loss to follow.
    pub fn loss(mut self, loss: Loss) -> Self {
        self.objective = Objective::Loss(loss);
        self
    }

    /// Number of classes to aim at, at least 1: each gets all restarts, the most likely first.
    /// Models with fewer other classes get those they have.
    pub fn targets(mut self, targets: usize) -> Self {
        self.objective = Objective::Targets(targets);
        self
    }

    /// Number of gradient steps per run, at least 1 (default 100).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Number of runs, at least 1 (default 1). More than one needs a random start.
    pub fn restarts(mut self, restarts: usize) -> Self {
        self.restarts = restarts;
        self
    }

    /// The share of rising steps, in `[0, 1]`, that keeps the step size (default 0.75).
    pub fn rho(mut self, rho: f64) -> Self {
        self.rho = rho;
        self
    }

    /// Where to start (default [`RandomStart::Always`]).
    pub fn random_start(mut self, random_start: RandomStart) -> Self {
        self.random_start = random_start;
        self
    }

    /// Starts the first run from these images, of the shape of the attacked ones, projected onto
    /// the ball.
    pub fn start_from(mut self, images: Tensor<4>) -> Self {
        self.start = Some(images);
        self
    }

    /// The seed of all random draws (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Takes a sample out of the batch as soon as the model is fooled. The outcome per sample stays
    /// the same if the model is deterministic, the loss of a fooled one is not maximal. One lucky pass
    /// of a randomised model ends the attack on a sample: leave this out for those.
    pub fn stop_when_fooled(mut self) -> Self {
        self.early_exit = EarlyExit::WhenFooled;
        self
    }

    /// What to do for models with too few classes for the loss (default: an error).
    pub fn few_classes(mut self, few_classes: FewClasses) -> Self {
        self.few_classes = few_classes;
        self
    }

    /// L1 only: spends 30 % of the steps in a ball of three times the radius, 30 % of twice, the
    /// rest in the ball, as the official L1 evaluation does.
    pub fn shrinking_radius(mut self) -> Self {
        self.radius = Radius::Shrinking;
        self
    }

    fn validate(&self, norm: Norm) -> Result<(), AttackError> {
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
        require((0.0..=1.0).contains(&self.rho), "rho", self.rho, "in [0, 1]")?;
        if let Objective::Targets(targets) = self.objective {
            at_least_one("targets", targets)?;
        }
        if self.radius == Radius::Shrinking && norm != Norm::L1 {
            return Err(AttackError::UnsupportedNorm {
                attack: "APGD with a shrinking radius",
                norm,
            });
        }
        Ok(())
    }

    /// The value to raise, per sample.
    fn value(
        &self,
        batch: &Batch,
        target: Option<&Tensor<1, Int>>,
        logits: Tensor<2>,
    ) -> Result<Tensor<1>, AttackError> {
        let [_, classes] = logits.dims();
        let labels = batch.class_tensor();
        let margin = self.few_classes == FewClasses::Margin;
        match (&self.objective, target) {
            (_, Some(target)) if margin && classes < 4 => {
                Ok(targeted_margin(logits, labels, target.clone()))
            }
            (_, Some(target)) => targeted_dlr(logits, labels, target.clone()),
            (Objective::Loss(Loss::Dlr), None) if margin && classes < 3 => {
                Ok(batch.signed(Loss::Margin.per_sample(logits, labels)?))
            }
            (Objective::Loss(loss), None) => Ok(batch.signed(loss.per_sample(logits, labels)?)),
            // A run against targets always has one.
            (Objective::Targets(_), None) => Err(AttackError::NoGradient),
        }
    }

    fn pass(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &Batch,
        target: Option<&Tensor<1, Int>>,
        images: Tensor<4>,
    ) -> Result<(Pass, Vec<f32>), AttackError> {
        let pass = oracle.pass(batch, images, |logits| self.value(batch, target, logits))?;
        check_gradient(batch, &pass.gradient)?;
        let values = pass.values.try_to_vec_as::<f32>()?;
        Ok((pass, values))
    }

    /// One run: through the shrinking balls if asked for, then in the ball itself.
    fn one_run(&self, run: Run<'_, '_, '_>, start: Tensor<4>) -> Result<Climbed, AttackError> {
        if self.radius == Radius::Fixed {
            return self.climb(run, start, self.steps, self.early_exit);
        }
        let wide_steps = (0.3 * self.steps as f64).ceil() as usize;
        let Run { oracle, gallery, batch, target, zero_gradients } = run;
        let mut images = start;
        for factor in [3.0, 2.0] {
            let wide = batch.widened(factor);
            images = wide.ball.project(images);
            let run = Run { oracle, gallery, batch: wide, target: target.clone(), zero_gradients };
            if let Climbed::Open { best, .. } =
                self.climb(run, images.clone(), wide_steps, EarlyExit::Never)?
            {
                images = best;
            }
        }
        let rest = self.steps.saturating_sub(2 * wide_steps).max(1);
        let images = batch.ball.project(images);
        let run = Run { oracle, gallery, batch, target, zero_gradients };
        self.climb(run, images, rest, self.early_exit)
    }

    fn climb(
        &self,
        run: Run<'_, '_, '_>,
        start: Tensor<4>,
        steps: usize,
        early_exit: EarlyExit,
    ) -> Result<Climbed, AttackError> {
        let Run { oracle, gallery, mut batch, mut target, zero_gradients } = run;
        let sparse = batch.ball.norm() == Norm::L1;
        let share = |share: f64| ((share * steps as f64) as usize).max(1);
        let (shortest, shorter) = (share(0.06), share(0.03));
        let mut period = if sparse { share(0.04) } else { share(0.22) };
        let mut since_checkpoint = 0;

        let (pass, mut values) = self.pass(oracle, &batch, target.as_ref(), start.clone())?;
        let mut fooled = oracle.fooled(&batch, pass.logits)?;
        let mut gradient = pass.gradient;
        *zero_gradients += zero_rows(&gradient)?;
        let mut tracks: Vec<Track> = values.iter().map(|&value| Track::new(value)).collect();
        if sparse {
            self.start_sparse(&batch, &start, &mut tracks)?;
        }
        let mut images = start;
        let mut previous = images.clone();
        let (mut best, mut best_gradient) = (images.clone(), gradient.clone());
        let mut best_fooling = images.clone();

        for step in 0..=steps {
            if step > 0 {
                let sizes = tracks.iter().map(|track| track.size).collect();
                let size = per_sample(sizes, &images) * batch.ball.eps();
                let moved = if sparse {
                    let count = |row: usize| tracks[row].moving;
                    let direction = batch.ball.sparse_direction(gradient, count);
                    batch.ball.project(images.clone() + direction * size)
                } else {
                    let ahead = batch.ball.step(images.clone(), gradient, size);
                    if step == 1 {
                        ahead
                    } else {
                        let momentum = (images.clone() - previous) * 0.25;
                        let stride = (ahead - images.clone()) * 0.75;
                        batch.ball.project(images.clone() + stride + momentum)
                    }
                };
                previous = images;
                images = moved;
                let (pass, new) = self.pass(oracle, &batch, target.as_ref(), images.clone())?;
                fooled = oracle.fooled(&batch, pass.logits)?;
                (gradient, values) = (pass.gradient, new);
            }

            if early_exit == EarlyExit::WhenFooled && fooled.contains(&true) {
                let (gone, open) = split(&fooled);
                gallery.put(&batch, &images, &gone);
                if open.is_empty() {
                    return Ok(Climbed::AllFooled);
                }
                let rows = batch.rows(&open);
                for tensor in [
                    &mut images,
                    &mut previous,
                    &mut gradient,
                    &mut best,
                    &mut best_gradient,
                    &mut best_fooling,
                ] {
                    *tensor = tensor.clone().select(0, rows.clone());
                }
                target = target.map(|target| target.select(0, rows));
                batch = batch.select(&open);
                tracks = open.iter().map(|&row| tracks[row].clone()).collect();
                values = open.iter().map(|&row| values[row]).collect();
                fooled = vec![false; open.len()];
            }

            let mut fooling = Vec::new();
            let mut better = Vec::new();
            for (row, (track, &value)) in tracks.iter_mut().zip(&values).enumerate() {
                if fooled[row] && track.best_fooling.is_none_or(|record| value > record) {
                    track.best_fooling = Some(value);
                    fooling.push(row);
                }
                if step > 0 {
                    track.rises += usize::from(value > track.last);
                    track.last = value;
                    if value > track.best {
                        track.best = value;
                        better.push(row);
                    }
                }
            }
            best_fooling = batch.replace(best_fooling, &images, &fooling);
            best = batch.replace(best, &images, &better);
            best_gradient = batch.replace(best_gradient, &gradient, &better);

            since_checkpoint += usize::from(step > 0);
            if since_checkpoint == period {
                let back = if sparse {
                    sparse_checkpoint(&batch, &best, &mut tracks)?
                } else {
                    let checkpoint = |track: &mut Track| track.checkpoint(period, self.rho);
                    split(&tracks.iter_mut().map(checkpoint).collect::<Vec<_>>()).0
                };
                images = batch.replace(images, &best, &back);
                gradient = batch.replace(gradient, &best_gradient, &back);
                if !sparse {
                    period = period.saturating_sub(shorter).max(shortest);
                }
                since_checkpoint = 0;
            }
        }
        Ok(Climbed::Open { batch, best, best_fooling, tracks })
    }

    fn start_sparse(
        &self,
        batch: &Batch,
        start: &Tensor<4>,
        tracks: &mut [Track],
    ) -> Result<(), AttackError> {
        let (changed, dimension) = changed(batch, start)?;
        for (track, changed) in tracks.iter_mut().zip(changed) {
            track.size = 1.0;
            match self.radius {
                Radius::Fixed => track.follow(0.2 * dimension as f64, dimension, dimension),
                Radius::Shrinking => track.follow(changed as f64 / 1.5, changed, dimension),
            }
        }
        Ok(())
    }
}

/// What one run works with.
struct Run<'r, 'o, 'v> {
    oracle: &'r mut Oracle<'v>,
    gallery: &'o mut Gallery,
    batch: Batch,
    target: Option<Tensor<1, Int>>,
    zero_gradients: &'r mut usize,
}

/// What a run leaves behind of the samples that did not leave for the gallery.
#[allow(clippy::large_enum_variant, reason = "there is one per run")]
enum Climbed {
    AllFooled,
    Open { batch: Batch, best: Tensor<4>, best_fooling: Tensor<4>, tracks: Vec<Track> },
}

/// The course of one sample.
#[derive(Clone)]
struct Track {
    /// Step size as a fraction of eps.
    size: f64,
    best: f32,
    best_fooling: Option<f32>,
    /// Best loss at the last checkpoint.
    checked: f32,
    /// Whether the step size was halved at the last checkpoint.
    halved: bool,
    /// Steps since the last checkpoint whose loss rose.
    rises: usize,
    last: f32,
    /// L1: how many pixel values a step moves.
    moving: usize,
    /// L1: how many pixel values the best point changed, at the last checkpoint.
    changed: usize,
}

impl Track {
    fn new(value: f32) -> Self {
        Self {
            size: 2.0,
            best: value,
            best_fooling: None,
            checked: value,
            halved: true,
            rises: 0,
            // The official implementation compares the first step with 0, not with the start.
            last: 0.0,
            moving: 0,
            changed: 0,
        }
    }

    /// Whether the sample goes back to its best point, with half the step size.
    fn checkpoint(&mut self, period: usize, rho: f64) -> bool {
        let oscillates = self.rises as f64 <= rho * period as f64;
        let stands_still = !self.halved && self.checked >= self.best;
        self.halved = oscillates || stands_still;
        self.checked = self.best;
        self.rises = 0;
        if self.halved {
            self.size /= 2.0;
        }
        self.halved
    }

    fn follow(&mut self, moving: f64, changed: usize, dimension: usize) {
        let still = (dimension as f64 - moving).max(0.0) as usize;
        self.moving = dimension - still.min(dimension - 1);
        self.changed = changed;
    }
}

/// The L1 rule: which samples go back to their best points. Sets step sizes and sparsity.
fn sparse_checkpoint(
    batch: &Batch,
    best: &Tensor<4>,
    tracks: &mut [Track],
) -> Result<Vec<usize>, AttackError> {
    let (changed, dimension) = changed(batch, best)?;
    let mut back = Vec::new();
    for (row, (track, changed)) in tracks.iter_mut().zip(changed).enumerate() {
        if (changed as f64) < 0.95 * track.changed as f64 {
            track.size = 1.0;
            back.push(row);
        } else {
            track.size = (track.size / 1.5).max(0.1);
        }
        track.follow(changed as f64 / 1.5, changed, dimension);
    }
    Ok(back)
}

/// How many pixel values each sample changes, and how many it has.
fn changed(batch: &Batch, images: &Tensor<4>) -> Result<(Vec<usize>, usize), AttackError> {
    let shape = images.shape();
    let dimension = shape.num_elements() / shape[0];
    let change = (images.clone() - batch.ball.centre()).try_into_vec_as::<f64>()?;
    let count = |row: &[f64]| row.iter().filter(|&&v| v != 0.0).count();
    Ok((change.chunks_exact(dimension).map(count).collect(), dimension))
}

/// Samples whose gradient is zero everywhere.
fn zero_rows(gradient: &Tensor<4>) -> Result<usize, AttackError> {
    let largest = gradient.clone().abs().max_dims(&[1, 2, 3]).try_into_vec_as::<f32>()?;
    Ok(largest.iter().filter(|&&largest| largest == 0.0).count())
}

impl Attack for Apgd {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        self.validate(threat.norm)?;
        let dtype = images.dtype();
        let whole = Batch::new(images, goal, threat)?;
        let first = whole.samples[0];
        // The oracle's own loss is not used: each pass brings its objective.
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
        let mut gallery = Gallery::new(whole.len());
        let mut best = vec![f32::NEG_INFINITY; whole.len()];
        let mut open = Some(whole.clone());
        let mut zero_gradients = 0;

        let mut plan: Vec<(usize, Option<usize>)> =
            (0..self.restarts).map(|restart| (restart, None)).collect();
        let mut rivals = Vec::new();
        let leaves_clean = self.random_start != RandomStart::Never || self.start.is_some();
        let aims = matches!(self.objective, Objective::Targets(_));
        if aims || (self.early_exit == EarlyExit::WhenFooled && leaves_clean) {
            let clean = whole.ball.centre();
            let logits = oracle.logits(&whole, clean.clone())?;
            let fooled = oracle.fooled(&whole, logits.clone())?;
            if let Objective::Targets(targets) = self.objective {
                whole.require_untargeted("APGD-T")?;
                rivals = ranked(logits, whole.classes())?;
                let ranks = targets.min(rivals[0].len());
                if ranks == 0 {
                    return Err(AttackError::TooFewClasses {
                        loss: "targeted",
                        needs: 2,
                        classes: 1,
                    });
                }
                plan = (0..ranks)
                    .flat_map(|rank| (0..self.restarts).map(move |_| rank))
                    .enumerate()
                    .map(|(run, rank)| (run, Some(rank)))
                    .collect();
            }
            if self.early_exit == EarlyExit::WhenFooled {
                let (gone, rest) = split(&fooled);
                gallery.put(&whole, &clean, &gone);
                open = (!rest.is_empty()).then(|| whole.select(&rest));
            }
        }

        for (index, rank) in plan {
            let Some(batch) = open.take() else { break };
            let start = match (&self.start, index) {
                (Some(start), 0) => whole.start(start)?.select(0, batch.rows(&batch.positions)),
                _ if self.radius == Radius::Shrinking => {
                    let wide = batch.widened(3.0);
                    wide.random_or_clean(self.random_start, self.seed, index as u64, first)
                }
                _ => batch.random_or_clean(self.random_start, self.seed, index as u64, first),
            };
            let target = rank.map(|rank| {
                let targets: Vec<usize> =
                    batch.positions.iter().map(|&position| rivals[position][rank]).collect();
                batch.int_tensor(&targets)
            });
            let run = Run {
                oracle: &mut oracle,
                gallery: &mut gallery,
                batch,
                target,
                zero_gradients: &mut zero_gradients,
            };
            let Climbed::Open { batch, best: images, best_fooling, tracks } =
                self.one_run(run, start)?
            else {
                break;
            };
            let (mut fooling, mut better, mut rest) = (Vec::new(), Vec::new(), Vec::new());
            for (row, track) in tracks.iter().enumerate() {
                let record = &mut best[batch.positions[row]];
                if track.best_fooling.is_some() {
                    fooling.push(row);
                    continue;
                }
                rest.push(row);
                if track.best > *record || index == 0 {
                    *record = track.best;
                    better.push(row);
                }
            }
            gallery.put(&batch, &best_fooling, &fooling);
            gallery.put(&batch, &images, &better);
            open = (!rest.is_empty()).then(|| batch.select(&rest));
        }
        let mut result = oracle.verdict(&whole, gallery.finish())?;
        let margins = aims || matches!(self.objective, Objective::Loss(Loss::Dlr));
        if margins && zero_gradients > 0 {
            result.flags.push(Flag::ZeroGradient { points: zero_gradients });
        }
        Ok(result)
    }

    fn describe(&self) -> Value {
        description("apgd", self)
    }
}
