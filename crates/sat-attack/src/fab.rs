use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Oracle, check_gradient};
use crate::error::{at_least_one, require};
use crate::hyperplane::{dual_norm, nearest};
use crate::loss::targeted_margin;
use crate::rng::{Purpose, Stream};
use crate::victim::ranked;
use crate::{Adversarial, Attack, AttackError, Cost, Goal, Loss, Norm, ThreatModel, Victim};

/// The fast adaptive boundary attack (Croce and Hein 2020, arXiv 1907.02044): looks for the
/// *smallest* perturbation that changes the prediction, in Linf, L2 or L1.
///
/// Each step takes the nearest linearised decision boundary at `x`, projects both `x` and the clean
/// image `x0` onto it within the bounds (`d1`, `d2`), and goes to
/// `(1 - a) (x + eta d1) + a (x0 + eta d2)` with `a = min(|d1| / (|d1| + |d2|), alpha_max)`. Where
/// the model is fooled the point is kept if it is nearer than before, and the search goes on from
/// `x0 + beta (x - x0)`.
///
/// [`Fab::default`] looks at the boundaries to all classes, with as many gradients a step;
/// [`Fab::targeted`] (FAB-T) at one class a run, the 9 most likely of the clean image in turn.
/// Defaults are the official ones: 100 steps, one run, `alpha_max` 0.1, `eta` 1.05, `beta` 0.9.
/// Needs an untargeted goal. The arithmetic besides the model's runs on the host.
///
/// As an [`Attack`] it stops working on a sample as soon as the perturbation fits the threat, and
/// answers the found image if it does, else its projection onto the ball. [`Fab::minimal`] gives
/// the smallest perturbations themselves.
#[derive(Clone, Debug, Serialize)]
pub struct Fab {
    steps: usize,
    restarts: usize,
    targets: Option<usize>,
    alpha_max: f64,
    eta: f64,
    beta: f64,
    seed: u64,
}

/// The smallest perturbations that were found, sample by sample.
#[derive(Clone, Debug)]
pub struct Minimal {
    /// The nearest image that fools the model, or the clean one where none was found.
    pub images: Tensor<4>,
    /// Its distance from the clean image in the norm asked for: 0 where the model is wrong anyway,
    /// infinite where no image was found.
    pub distances: Vec<f64>,
    /// What it took.
    pub cost: Cost,
}

impl Default for Fab {
    fn default() -> Self {
        Self {
            steps: 100,
            restarts: 1,
            targets: None,
            alpha_max: 0.1,
            eta: 1.05,
            beta: 0.9,
            seed: 0,
        }
    }
}

impl Fab {
    /// FAB-T: one class a run, the 9 most likely other classes in turn, or all there are.
    pub fn targeted() -> Self {
        Self::default().targets(9)
    }

    /// Number of classes to aim at in turn, at least 1.
    pub fn targets(mut self, targets: usize) -> Self {
        self.targets = Some(targets);
        self
    }

    /// Number of steps per run, at least 1 (default 100).
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Number of runs for each target, at least 1 (default 1). The first starts from the clean
    /// image, the others from random points at most half of eps, or of the best distance, away.
    pub fn restarts(mut self, restarts: usize) -> Self {
        self.restarts = restarts;
        self
    }

    /// The largest weight of the step from the clean image, in `[0, 1]` (default 0.1).
    pub fn alpha_max(mut self, alpha_max: f64) -> Self {
        self.alpha_max = alpha_max;
        self
    }

    /// How far to step over the boundary, at least 1 (default 1.05).
    pub fn eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }

    /// How much of a found perturbation to keep for the next step, in `(0, 1)` (default 0.9).
    pub fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// The seed of the random starts (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The smallest perturbation of each sample in `norm`, within pixel `bounds`.
    ///
    /// # Errors
    ///
    /// As [`Attack::run`].
    pub fn minimal(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        norm: Norm,
        bounds: (f64, f64),
    ) -> Result<Minimal, AttackError> {
        let dtype = images.dtype();
        let threat = ThreatModel::new(norm, 0.0).bounds(bounds.0, bounds.1);
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
        let whole = Batch::new(images, goal, &threat)?;
        let found = self.search(&mut oracle, &whole, &threat, None)?;
        Ok(Minimal {
            images: whole.ball.rounded(found.images, dtype),
            distances: found.distances,
            cost: oracle.cost(),
        })
    }

    fn validate(&self) -> Result<(), AttackError> {
        at_least_one("steps", self.steps)?;
        at_least_one("restarts", self.restarts)?;
        at_least_one("targets", self.targets.unwrap_or(1))?;
        let share = (0.0..=1.0).contains(&self.alpha_max);
        require(share, "alpha_max", self.alpha_max, "in [0, 1]")?;
        let over = self.eta.is_finite() && self.eta >= 1.0;
        require(over, "eta", self.eta, "finite and at least 1")?;
        require(self.beta > 0.0 && self.beta < 1.0, "beta", self.beta, "in (0, 1)")
    }

    /// The nearest images. With radii, a sample leaves once its distance is within its radius.
    fn search(
        &self,
        oracle: &mut Oracle<'_>,
        whole: &Batch,
        threat: &ThreatModel,
        radii: Option<&[f64]>,
    ) -> Result<Found, AttackError> {
        self.validate()?;
        whole.require_untargeted("FAB")?;
        let clean = whole.ball.centre();
        let logits = oracle.logits(whole, clean.clone())?;
        let wrong = oracle.fooled(whole, logits.clone())?;
        let rivals = ranked(logits, whole.classes())?;
        if rivals[0].is_empty() {
            return Err(AttackError::TooFewClasses { loss: "margin", needs: 2, classes: 1 });
        }
        let shape = clean.shape();
        let dimension = shape.num_elements() / shape[0];
        let mut found = Found {
            points: clean.try_to_vec_as::<f64>()?,
            distances: wrong.iter().map(|&w| if w { 0.0 } else { f64::INFINITY }).collect(),
            images: clean.clone(),
        };
        let targets = match self.targets {
            Some(targets) => (0..targets.min(rivals[0].len())).map(Some).collect(),
            None => vec![None],
        };
        for target in targets {
            for restart in 0..self.restarts {
                let within = |row: usize| match radii {
                    Some(radii) => found.distances[row] <= radii[row],
                    None => found.distances[row] == 0.0,
                };
                let open: Vec<usize> = (0..whole.len()).filter(|&row| !within(row)).collect();
                if open.is_empty() {
                    break;
                }
                let run = Search {
                    fab: self,
                    threat,
                    radii,
                    dimension,
                    rivals: &rivals,
                    target,
                    stream: (target.unwrap_or(0) * self.restarts + restart) as u64,
                    noisy: restart > 0,
                };
                run.walk(oracle, whole.select(&open), &mut found)?;
            }
        }
        found.images = Tensor::from_data(
            TensorData::new(std::mem::take(&mut found.points), shape),
            (&clean.device(), clean.dtype()),
        );
        Ok(found)
    }
}

/// The nearest images so far.
struct Found {
    points: Vec<f64>,
    distances: Vec<f64>,
    images: Tensor<4>,
}

/// One run against one target, or all classes.
struct Search<'s> {
    fab: &'s Fab,
    threat: &'s ThreatModel,
    radii: Option<&'s [f64]>,
    dimension: usize,
    rivals: &'s [Vec<usize>],
    target: Option<usize>,
    stream: u64,
    noisy: bool,
}

impl Search<'_> {
    fn walk(
        &self,
        oracle: &mut Oracle<'_>,
        mut batch: Batch,
        found: &mut Found,
    ) -> Result<(), AttackError> {
        let (norm, dimension) = (self.threat.norm, self.dimension);
        let (lower, upper) = self.threat.bounds;
        let mut clean = batch.ball.centre().try_to_vec_as::<f64>()?;
        let mut points = clean.clone();
        if self.noisy {
            for (row, point) in points.chunks_exact_mut(dimension).enumerate() {
                let position = batch.positions[row];
                let radius = self
                    .radii
                    .map_or(found.distances[position], |radii| radii[position])
                    .min(found.distances[position]);
                if radius.is_finite() {
                    self.shift(point, radius / 2.0, batch.samples[row]);
                }
            }
        }
        if self.noisy && batch.ball.is_masked() {
            points = batch.ball.masked(tensor(&batch, &points)).try_into_vec_as::<f64>()?;
        }
        for _ in 0..self.fab.steps {
            let images = tensor(&batch, &points);
            let (values, gradients) = self.nearest_boundary(oracle, &batch, images)?;
            for (row, point) in points.chunks_exact_mut(dimension).enumerate() {
                let rows = row * dimension..(row + 1) * dimension;
                let (clean, slope) = (&clean[rows.clone()], &gradients[rows]);
                // The boundary is where slope . z = offset.
                let offset = dot(slope, point) - f64::from(values[row]);
                let from = |start: &[f64]| {
                    let change =
                        nearest(norm, start, slope, offset - dot(slope, start), lower, upper);
                    let length = norm.length(&change).max(1e-8);
                    (change, length)
                };
                let ((here, near), (there, far)) = (from(point), from(clean));
                let bias = (near / (near + far)).min(self.fab.alpha_max);
                let eta = self.fab.eta;
                for (index, z) in point.iter_mut().enumerate() {
                    let ahead = *z + eta * here[index];
                    let anchored = clean[index] + eta * there[index];
                    let next = ahead * (1.0 - bias) + anchored * bias;
                    *z = round(next.clamp(lower, upper));
                }
            }

            let logits = oracle.logits(&batch, tensor(&batch, &points))?;
            let fooled = oracle.fooled(&batch, logits)?;
            let mut open = Vec::new();
            for (row, point) in points.chunks_exact_mut(dimension).enumerate() {
                let position = batch.positions[row];
                if fooled[row] {
                    let clean = &clean[row * dimension..(row + 1) * dimension];
                    let change: Vec<f64> = point.iter().zip(clean).map(|(z, x)| z - x).collect();
                    let distance = norm.length(&change);
                    if distance < found.distances[position] {
                        found.distances[position] = distance;
                        found.points[position * dimension..(position + 1) * dimension]
                            .copy_from_slice(point);
                    }
                    if self.radii.is_some_and(|radii| distance <= radii[position]) {
                        continue;
                    }
                    for ((z, x), change) in point.iter_mut().zip(clean).zip(change) {
                        *z = round(x + self.fab.beta * change);
                    }
                }
                open.push(row);
            }
            if open.is_empty() {
                return Ok(());
            }
            if open.len() < batch.len() {
                let keep = |values: &[f64]| {
                    open.iter()
                        .flat_map(|row| &values[row * dimension..(row + 1) * dimension])
                        .copied()
                        .collect()
                };
                (points, clean) = (keep(&points), keep(&clean));
                batch = batch.select(&open);
            }
        }
        Ok(())
    }

    /// For each sample `z_k - z_y` and its gradient, for the class whose linearised boundary is
    /// nearest, or for the target.
    fn nearest_boundary(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &Batch,
        images: Tensor<4>,
    ) -> Result<(Vec<f32>, Vec<f64>), AttackError> {
        let ranks = match self.target {
            Some(rank) => rank..rank + 1,
            None => 0..self.rivals[0].len(),
        };
        let mut values = vec![0.0; batch.len()];
        let mut gradients = vec![0.0; batch.len() * self.dimension];
        let mut distances = vec![f64::INFINITY; batch.len()];
        for rank in ranks {
            let classes: Vec<usize> =
                batch.positions.iter().map(|&position| self.rivals[position][rank]).collect();
            let classes = batch.int_tensor(&classes);
            let pass = oracle.pass(batch, images.clone(), |logits| {
                Ok(targeted_margin(logits, batch.class_tensor(), classes.clone()))
            })?;
            check_gradient(batch, &pass.gradient)?;
            let margins = pass.values.try_into_vec_as::<f32>()?;
            let slopes = batch.ball.free(pass.gradient).try_into_vec_as::<f64>()?;
            let target = gradients.chunks_exact_mut(self.dimension);
            for (row, (best, slope)) in target.zip(slopes.chunks_exact(self.dimension)).enumerate()
            {
                let steepness = dual_norm(self.threat.norm, slope) + 1e-12;
                let distance = f64::from(margins[row]).abs() / steepness;
                if distance < distances[row] {
                    distances[row] = distance;
                    values[row] = margins[row];
                    best.copy_from_slice(slope);
                }
            }
        }
        Ok((values, gradients))
    }

    /// Moves a point by `length` in a random direction, within the bounds.
    fn shift(&self, point: &mut [f64], length: f64, sample: u64) {
        let mut stream = Stream::new(self.fab.seed, self.stream, sample, Purpose::StartNoise);
        let noise: Vec<f64> = match self.threat.norm {
            Norm::Linf => stream.linf_ball(point.len()).collect(),
            _ => (0..point.len()).map(|_| stream.gaussian()).collect(),
        };
        let scale = length / self.threat.norm.length(&noise).max(f64::MIN_POSITIVE);
        let (lower, upper) = self.threat.bounds;
        for (z, noise) in point.iter_mut().zip(noise) {
            *z = round((*z + noise * scale).clamp(lower, upper));
        }
    }
}

impl Attack for Fab {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        let dtype = images.dtype();
        let whole = Batch::new(images, goal, threat)?;
        let radii = threat.radii(whole.len())?;
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
        let found = self.search(&mut oracle, &whole, threat, Some(&radii))?;
        let images = whole.ball.project(found.images);
        oracle.verdict(&whole, images)
    }

    fn describe(&self) -> Value {
        description(if self.targets.is_some() { "fab-t" } else { "fab" }, self)
    }
}

/// The model computes in f32: what it is asked about is what is kept.
fn round(value: f64) -> f64 {
    f64::from(value as f32)
}

fn tensor(batch: &Batch, points: &[f64]) -> Tensor<4> {
    let centre = batch.ball.centre();
    let data = TensorData::new(points.to_vec(), centre.shape());
    Tensor::from_data(data, (&centre.device(), centre.dtype()))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
