//! Attacks made of another attack.

use burn::tensor::Tensor;
use serde_json::{Value, json};

use crate::batch::{Batch, Gallery, Oracle, split};
use crate::error::at_least_one;
use crate::fab::Minimal;
use crate::{Adversarial, Attack, AttackError, Cost, Flag, Goal, Loss, ThreatModel, Victim};

/// Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): gives an attack the mean
/// gradient of several passes through a randomised model. Logits and losses are those of the first
/// pass.
#[derive(Clone, Debug)]
pub struct Eot<A> {
    attack: A,
    passes: usize,
}

impl<A: Attack> Eot<A> {
    /// Averages `passes` gradients, at least 1 (20 in AutoAttack's version rand).
    pub fn new(attack: A, passes: usize) -> Self {
        Self { attack, passes }
    }
}

impl<A: Attack> Attack for Eot<A> {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        at_least_one("passes", self.passes)?;
        self.attack.run(&victim.averaged(self.passes), images, goal, threat)
    }

    fn perturb(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Tensor<4>, AttackError> {
        at_least_one("passes", self.passes)?;
        self.attack.perturb(&victim.averaged(self.passes), images, goal, threat)
    }

    fn describe(&self) -> Value {
        json!({ "name": "eot", "passes": self.passes, "attack": self.attack.describe() })
    }
}

/// Repeats an attack with other random streams on the samples that withstood it, and keeps for each
/// the image that fools the model, else the one with the highest cross-entropy (lowest, for a
/// targeted goal). Repeating an attack without random draws is a waste.
#[derive(Clone, Debug)]
pub struct Restarts<A> {
    attack: A,
    runs: usize,
}

impl<A: Attack> Restarts<A> {
    /// Runs the attack `runs` times, at least once.
    pub fn new(attack: A, runs: usize) -> Self {
        Self { attack, runs }
    }
}

impl<A: Attack> Attack for Restarts<A> {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        at_least_one("runs", self.runs)?;
        let first = self.attack.run(victim, images.clone(), goal.clone(), threat)?;
        let mut merged = Merge::new(victim, images, goal, threat, first)?;
        for run in 1..self.runs {
            let repetition = run as u64;
            merged.again(|images, goal, threat| {
                self.attack.run(victim, images, goal.repetition(repetition), threat)
            })?;
        }
        merged.finish()
    }

    fn describe(&self) -> Value {
        json!({ "name": "restarts", "runs": self.runs, "attack": self.attack.describe() })
    }
}

/// The guard against gradient masking: attacks by the model's own gradient, then attacks what
/// withstood it by the gradient of a twin, a model with the same logits and another backward pass
/// (an activation pair such as ReLU with the gradient of softplus). The result is the worst of both;
/// the samples that only the twin's gradient fooled raise [`Flag::TransferGained`].
///
/// Success is always judged by the model itself, so any surrogate may stand in for the twin.
#[derive(Clone, Debug)]
pub struct BothGradients<'t, A> {
    attack: A,
    twin: Victim<'t>,
}

impl<'t, A: Attack> BothGradients<'t, A> {
    /// Attacks with the victim's gradient, then with the twin's.
    pub fn new(attack: A, twin: Victim<'t>) -> Self {
        Self { attack, twin }
    }
}

impl<A: Attack> Attack for BothGradients<'_, A> {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        let first = self.attack.run(victim, images.clone(), goal.clone(), threat)?;
        let before = first.fooled();
        let mut merged = Merge::new(victim, images, goal, threat, first)?;
        merged.again(|images, goal, threat| {
            let dtype = images.dtype();
            let batch = Batch::new(images.clone(), goal.clone(), threat)?;
            let made = self.attack.run(&self.twin, images, goal, threat)?;
            let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
            oracle.add(made.cost);
            let mut judged = oracle.verdict(&batch, made.images)?;
            judged.cost.seconds += made.cost.seconds;
            judged.flags = made.flags;
            judged.stages = made.stages;
            for stage in &mut judged.stages {
                stage.name.push_str(" (other gradient)");
                stage.fooled.retain(|&row| judged.success[row]);
            }
            Ok(judged)
        })?;
        let mut result = merged.finish()?;
        let gained = result.fooled().saturating_sub(before);
        if gained > 0 {
            Flag::TransferGained { points: gained }.join(&mut result.flags);
        }
        Ok(result)
    }

    fn describe(&self) -> Value {
        json!({ "name": "both_gradients", "attack": self.attack.describe() })
    }
}

/// The worst of several runs of an attack over a batch.
struct Merge<'m> {
    victim: &'m Victim<'m>,
    images: Tensor<4>,
    goal: Goal,
    threat: &'m ThreatModel,
    whole: Batch,
    gallery: Gallery,
    result: Adversarial,
}

impl<'m> Merge<'m> {
    fn new(
        victim: &'m Victim<'m>,
        images: Tensor<4>,
        goal: Goal,
        threat: &'m ThreatModel,
        result: Adversarial,
    ) -> Result<Self, AttackError> {
        let whole = Batch::new(images.clone(), goal.clone(), threat)?;
        let mut gallery = Gallery::new(whole.len());
        gallery.put(&whole, &result.images, &(0..whole.len()).collect::<Vec<_>>());
        let images = images.without_autodiff();
        Ok(Self { victim, images, goal, threat, whole, gallery, result })
    }

    fn again(
        &mut self,
        run: impl FnOnce(Tensor<4>, Goal, &ThreatModel) -> Result<Adversarial, AttackError>,
    ) -> Result<(), AttackError> {
        let (_, open) = split(&self.result.success);
        if open.is_empty() {
            return Ok(());
        }
        let images = self.images.clone().select(0, self.whole.rows(&open));
        let more = run(images, self.goal.select(&open), &self.threat.select(&open))?;
        let mut keep = Vec::new();
        for (row, &position) in open.iter().enumerate() {
            let sign = self.whole.sign(position);
            if more.success[row] || sign * more.loss[row] > sign * self.result.loss[position] {
                self.result.success[position] = more.success[row];
                self.result.loss[position] = more.loss[row];
                keep.push(row);
            }
        }
        self.gallery.put(&self.whole.select(&open), &more.images, &keep);
        self.result.cost += more.cost;
        for mut stage in more.stages {
            stage.fooled.iter_mut().for_each(|row| *row = open[*row]);
            match self.result.stages.iter_mut().find(|known| known.name == stage.name) {
                Some(known) => {
                    known.attacked += stage.attacked;
                    known.fooled.extend(stage.fooled);
                    known.cost += stage.cost;
                }
                None => self.result.stages.push(stage),
            }
        }
        for flag in more.flags {
            flag.join(&mut self.result.flags);
        }
        Ok(())
    }

    fn finish(self) -> Result<Adversarial, AttackError> {
        let oracle = Oracle::new(self.victim, &Loss::CrossEntropy, self.images.dtype());
        let judged = oracle.verdict(&self.whole, self.gallery.finish())?;
        let mut cost = self.result.cost;
        cost += judged.cost;
        Ok(Adversarial { cost, stages: self.result.stages, flags: self.result.flags, ..judged })
    }
}

/// The smallest radius at which an attack fools each sample, by bisection between 0 and `largest`,
/// in the norm and bounds of `threat` (whose eps is not used). After `halvings` steps the distance is
/// at most `largest / 2^halvings` above the smallest radius at which this attack succeeds, if its
/// success does not fall with the radius; it is 0 where the model is wrong anyway. Works with any
/// attack; [`Fab::minimal`](crate::Fab::minimal) needs fewer passes.
///
/// # Errors
///
/// Those of the attack; [`AttackError::InvalidEps`] for `largest`.
pub fn minimal_norm(
    attack: &dyn Attack,
    victim: &Victim<'_>,
    images: Tensor<4>,
    goal: Goal,
    threat: &ThreatModel,
    largest: f64,
    halvings: usize,
) -> Result<Minimal, AttackError> {
    let dtype = images.dtype();
    let outer = ThreatModel { eps: crate::Eps::Uniform(largest), ..threat.clone() };
    let whole = Batch::new(images.clone(), goal.clone(), &outer)?;
    let images = images.without_autodiff();
    let centre = whole.ball.centre();
    let all: Vec<usize> = (0..whole.len()).collect();
    let mut gallery = Gallery::new(whole.len());
    gallery.put(&whole, &centre, &all);
    let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
    let logits = oracle.logits(&whole, centre.clone())?;
    let (wrong, mut open) = split(&oracle.fooled(&whole, logits)?);
    let mut cost = oracle.cost();
    // Where the attack fails, and where it succeeds.
    let mut low = vec![0.0; whole.len()];
    let mut high = vec![f64::INFINITY; whole.len()];
    wrong.iter().for_each(|&position| high[position] = 0.0);
    let mut trial = vec![largest; whole.len()];
    for _ in 0..=halvings {
        if open.is_empty() {
            break;
        }
        let radii = open.iter().map(|&position| trial[position]).collect();
        let threat = outer.select(&open).eps_per_sample(radii);
        let part = whole.select(&open);
        let images = images.clone().select(0, whole.rows(&open));
        let result = attack.run(victim, images, goal.select(&open), &threat)?;
        cost += result.cost;
        let found = crate::loss::widen(result.images);
        let distances = threat.norm.lengths(&(found.clone() - part.ball.centre()))?;
        let mut keep = Vec::new();
        for (row, &position) in open.iter().enumerate() {
            if !result.success[row] {
                low[position] = trial[position];
            } else if distances[row] < high[position] {
                high[position] = distances[row];
                keep.push(row);
            }
        }
        gallery.put(&part, &found, &keep);
        // What withstands the largest radius is done.
        open.retain(|&position| high[position].is_finite() && high[position] > low[position]);
        for &position in &open {
            trial[position] = 0.5 * (low[position] + high[position]);
        }
    }
    let images = whole.ball.rounded(gallery.finish(), dtype);
    Ok(Minimal { images, distances: high, cost })
}

/// Which samples an attack fools at each of several radii.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepPoint {
    /// The radius.
    pub eps: f64,
    /// Whether each sample is fooled at this radius or a smaller one.
    pub success: Vec<bool>,
    /// What this radius took.
    pub cost: Cost,
}

/// Attacks at each radius in turn, in rising order, in the norm and bounds of `threat` (whose eps
/// is not used). A sample fooled in a small ball is fooled in every larger one and is not attacked
/// again, so success never falls along the sweep; one that is fooled without an attack is in all.
///
/// # Errors
///
/// Those of the attack, and [`AttackError::InvalidSetting`] when `radii` do not rise.
pub fn eps_sweep(
    attack: &dyn Attack,
    victim: &Victim<'_>,
    images: Tensor<4>,
    goal: &Goal,
    threat: &ThreatModel,
    radii: &[f64],
) -> Result<Vec<SweepPoint>, AttackError> {
    if let Some(pair) = radii.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(AttackError::InvalidSetting {
            setting: "radii",
            value: pair[1],
            expected: "larger than the one before it",
        });
    }
    let images = images.without_autodiff();
    let [count, ..] = images.dims();
    let mut success = vec![false; count];
    let mut sweep = Vec::with_capacity(radii.len());
    for &eps in radii {
        let threat = ThreatModel { eps: crate::Eps::Uniform(eps), ..threat.clone() };
        let whole = Batch::new(images.clone(), goal.clone(), &threat)?;
        let mut cost = Cost::default();
        if sweep.is_empty() {
            let oracle = Oracle::new(victim, &Loss::CrossEntropy, images.dtype());
            let clean = oracle.verdict(&whole, whole.ball.centre())?;
            (success, cost) = (clean.success, clean.cost);
        }
        let (_, open) = split(&success);
        if !open.is_empty() {
            let part = images.clone().select(0, whole.rows(&open));
            let result = attack.run(victim, part, goal.select(&open), &threat.select(&open))?;
            cost += result.cost;
            for (&position, fooled) in open.iter().zip(result.success) {
                success[position] |= fooled;
            }
        }
        sweep.push(SweepPoint { eps, success: success.clone(), cost });
    }
    Ok(sweep)
}
