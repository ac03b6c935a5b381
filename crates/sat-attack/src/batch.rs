//! What all attacks share: the samples still under attack, and the counted questions to the model.

use std::cell::RefCell;
use std::time::Instant;

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use crate::goal::Direction;
use crate::loss::{cross_entropy_of, widen};
use crate::pgd::RandomStart;
use crate::project::{Ball, first_non_finite};
use crate::rng::{Purpose, Stream};
use crate::victim::{LogitRows, argmax};
use crate::{Adversarial, AttackError, Cost, Goal, Loss, ThreatModel, Victim};

/// The samples an attack works on. Samples leave through [`Batch::select`].
#[derive(Clone)]
pub(crate) struct Batch {
    pub(crate) ball: Ball,
    /// Where each sample stands in the caller's batch.
    pub(crate) positions: Vec<usize>,
    /// The number of each sample in the data set, which chooses its random stream.
    pub(crate) samples: Vec<u64>,
    directions: Vec<Direction>,
    classes: Vec<i64>,
    class_tensor: Tensor<1, Int>,
    /// 1 where the attacker raises the loss, -1 where it lowers it.
    signs: Tensor<1>,
}

impl Batch {
    /// Checks images, threat and the number of labels.
    pub(crate) fn new(
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Self, AttackError> {
        let [count, ..] = images.dims();
        if count > 0 && goal.classes.len() != count {
            return Err(AttackError::LabelCount { labels: goal.classes.len(), images: count });
        }
        let ball = Ball::new(images, threat)?;
        let device = ball.centre().device();
        // Labels that no device integer holds are refused by `check_classes`, before this tensor
        // is used.
        let clip = |label: &i64| (*label).clamp(0, i64::from(i32::MAX));
        let indices = goal.classes.iter().map(clip).collect();
        let signs: Vec<f32> = goal.directions.iter().map(|direction| direction.sign()).collect();
        Ok(Self {
            ball,
            positions: (0..count).collect(),
            samples: goal.samples,
            directions: goal.directions,
            class_tensor: int_tensor(indices, &device),
            signs: Tensor::from_data(signs.as_slice(), &device),
            classes: goal.classes,
        })
    }

    /// Refuses targets, for attacks that work on the label's boundary.
    pub(crate) fn require_untargeted(&self, attack: &'static str) -> Result<(), AttackError> {
        match self.directions.iter().position(|&direction| direction == Direction::Towards) {
            None => Ok(()),
            Some(row) => Err(AttackError::UnsupportedGoal { attack, sample: self.positions[row] }),
        }
    }

    /// The label or target of each sample. Checked against the classes once the model has run.
    pub(crate) fn classes(&self) -> impl Iterator<Item = usize> {
        self.classes.iter().map(|&class| class as usize)
    }

    pub(crate) fn class_tensor(&self) -> Tensor<1, Int> {
        self.class_tensor.clone()
    }

    /// The value to raise, for losses by the label or target.
    pub(crate) fn signed(&self, loss: Tensor<1>) -> Tensor<1> {
        let signs = self.signs.clone().cast(loss.dtype());
        loss * signs
    }

    /// For each row of logits the margin to bring down, and whether the sample is fooled.
    pub(crate) fn margins(&self, rows: &LogitRows) -> Vec<(f32, bool)> {
        rows.iter()
            .zip(self.aims())
            .map(|(row, (direction, class))| {
                let others = row.iter().enumerate().filter(|(k, _)| *k as i64 != class);
                let rival = others.map(|(_, &z)| z).fold(f32::NEG_INFINITY, f32::max);
                let margin = row[class as usize] - rival;
                (direction.sign() * margin, direction.reached(class, argmax(row)))
            })
            .collect()
    }

    /// 1 where the attacker raises the loss of this row, -1 where it lowers it.
    pub(crate) fn sign(&self, row: usize) -> f32 {
        self.directions[row].sign()
    }

    fn aims(&self) -> impl Iterator<Item = (Direction, i64)> {
        self.directions.iter().copied().zip(self.classes.iter().copied())
    }

    /// Class numbers as a tensor on this batch's device.
    pub(crate) fn int_tensor(&self, classes: &[usize]) -> Tensor<1, Int> {
        row_tensor(classes, &self.class_tensor.device())
    }

    /// Where a restart begins: the clean images, or random points.
    pub(crate) fn random_or_clean(
        &self,
        random_start: RandomStart,
        seed: u64,
        restart: u64,
        first: u64,
    ) -> Tensor<4> {
        let random = match random_start {
            RandomStart::Never => false,
            RandomStart::Always => true,
            RandomStart::WithProbability(p) => {
                Stream::new(seed, restart, first, Purpose::StartDraw).uniform() < p
            }
        };
        if random { self.ball.random(seed, restart, &self.samples) } else { self.ball.centre() }
    }

    /// Takes the images at `rows` from `new`, the others from `old`.
    pub(crate) fn replace(&self, old: Tensor<4>, new: &Tensor<4>, rows: &[usize]) -> Tensor<4> {
        if rows.is_empty() {
            return old;
        }
        if rows.len() == self.len() {
            return new.clone();
        }
        let mut mask = vec![false; self.len()];
        for &row in rows {
            mask[row] = true;
        }
        let shape = [self.len(), 1, 1, 1];
        let mask = Tensor::<4, Bool>::from_data(TensorData::new(mask, shape), &new.device());
        old.mask_where(mask.expand(new.shape()), new.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Keeps the samples at `rows`.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let tensor = self.rows(rows);
        Self {
            ball: self.ball.select(tensor.clone()),
            positions: pick(&self.positions, rows),
            samples: pick(&self.samples, rows),
            directions: pick(&self.directions, rows),
            classes: pick(&self.classes, rows),
            class_tensor: self.class_tensor.clone().select(0, tensor.clone()),
            signs: self.signs.clone().select(0, tensor),
        }
    }

    /// The same samples in a ball of `factor` times the radius.
    pub(crate) fn widened(&self, factor: f64) -> Self {
        Self { ball: self.ball.scaled(factor), ..self.clone() }
    }

    /// `rows` as an index tensor for this batch's device.
    pub(crate) fn rows(&self, rows: &[usize]) -> Tensor<1, Int> {
        row_tensor(rows, &self.class_tensor.device())
    }

    /// An explicit starting point for this batch, checked and projected.
    pub(crate) fn start(&self, start: &Tensor<4>) -> Result<Tensor<4>, AttackError> {
        let centre = self.ball.centre();
        if start.dims() != centre.dims() {
            return Err(AttackError::StartShape { start: start.dims(), images: centre.dims() });
        }
        let start = start.clone().without_autodiff().cast(centre.dtype());
        if let Some((sample, value)) = first_non_finite(&start)? {
            return Err(AttackError::NonFiniteStart { sample, value });
        }
        Ok(self.ball.project(start))
    }

    fn check_classes(&self, classes: usize) -> Result<(), AttackError> {
        let valid = |label: &i64| usize::try_from(*label).is_ok_and(|label| label < classes);
        match self.classes.iter().position(|label| !valid(label)) {
            Some(row) => Err(AttackError::LabelOutOfRange {
                sample: self.positions[row],
                label: self.classes[row],
                classes,
            }),
            None => Ok(()),
        }
    }
}

/// Asks the model, and counts.
pub(crate) struct Oracle<'a> {
    victim: &'a Victim<'a>,
    loss: &'a Loss,
    /// The type of the caller's images, which is what the model gets.
    dtype: DType,
    cost: Cost,
    started: Instant,
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(victim: &'a Victim<'a>, loss: &'a Loss, dtype: DType) -> Self {
        Self { victim, loss, dtype, cost: Cost::default(), started: Instant::now() }
    }

    /// Logits `[n, classes]` of `images`, which stand for the samples of `batch`.
    pub(crate) fn logits(
        &mut self,
        batch: &Batch,
        images: Tensor<4>,
    ) -> Result<Tensor<2>, AttackError> {
        self.cost.forwards += batch.len() as u64;
        let logits = self.victim.logits(batch.ball.rounded(images, self.dtype))?;
        batch.check_classes(logits.dims()[1])?;
        Ok(logits)
    }

    /// Logits, and the gradient by the images of the loss to raise (the target's loss, negated,
    /// where there is one).
    pub(crate) fn gradient(
        &mut self,
        batch: &Batch,
        images: Tensor<4>,
    ) -> Result<(Tensor<2>, Tensor<4>), AttackError> {
        let pass = {
            let loss = self.loss;
            self.pass(batch, images, |logits| {
                Ok(batch.signed(loss.per_sample(logits, batch.class_tensor())?))
            })?
        };
        Ok((pass.logits, pass.gradient))
    }

    /// Logits, values and gradient of any objective, one value per sample.
    pub(crate) fn pass(
        &mut self,
        batch: &Batch,
        images: Tensor<4>,
        objective: impl Fn(Tensor<2>) -> Result<Tensor<1>, AttackError>,
    ) -> Result<Pass, AttackError> {
        let passes = (batch.len() * self.victim.passes()) as u64;
        self.cost.forwards += passes;
        self.cost.backwards += passes;
        let images = batch.ball.rounded(images, self.dtype);
        let values = RefCell::new(None);
        let (logits, gradient) = self.victim.input_gradient(images, |logits| {
            batch.check_classes(logits.dims()[1])?;
            let objective = objective(logits)?;
            values.replace(Some(objective.clone().without_autodiff()));
            Ok(objective)
        })?;
        let values = values.into_inner().ok_or(AttackError::NoGradient)?;
        Ok(Pass { logits, values, gradient: widen(gradient) })
    }

    /// Adds the work of another attack.
    pub(crate) fn add(&mut self, cost: Cost) {
        self.cost.forwards += cost.forwards;
        self.cost.backwards += cost.backwards;
    }

    pub(crate) fn cost(&self) -> Cost {
        Cost { seconds: self.started.elapsed().as_secs_f64(), ..self.cost }
    }

    /// The value to raise, per sample.
    pub(crate) fn objective(
        &self,
        batch: &Batch,
        logits: Tensor<2>,
    ) -> Result<Tensor<1>, AttackError> {
        Ok(batch.signed(self.loss.per_sample(logits, batch.class_tensor())?))
    }

    /// Which samples the logits show to be fooled.
    pub(crate) fn fooled(
        &self,
        batch: &Batch,
        logits: Tensor<2>,
    ) -> Result<Vec<bool>, AttackError> {
        let rows = read(batch, logits)?;
        Ok(rows
            .iter()
            .zip(batch.aims())
            .map(|(row, (direction, class))| direction.reached(class, argmax(row)))
            .collect())
    }

    /// Judges the images that the attack returns, by a fresh forward pass.
    pub(crate) fn verdict(
        mut self,
        batch: &Batch,
        images: Tensor<4>,
    ) -> Result<Adversarial, AttackError> {
        let images = batch.ball.rounded(images, self.dtype);
        let rows = read(batch, self.logits(batch, images.clone())?)?;
        let predictions: Vec<usize> = rows.iter().map(argmax).collect();
        let success = predictions
            .iter()
            .zip(batch.aims())
            .map(|(&prediction, (direction, class))| direction.reached(class, prediction))
            .collect();
        // The classes were checked against the logits.
        let loss = rows
            .iter()
            .zip(&batch.classes)
            .map(|(row, &class)| cross_entropy_of(row, class as usize))
            .collect();
        self.cost.seconds = self.started.elapsed().as_secs_f64();
        Ok(Adversarial {
            images,
            success,
            predictions,
            loss,
            cost: self.cost,
            stages: Vec::new(),
            flags: Vec::new(),
        })
    }
}

/// What one forward and backward pass gives.
pub(crate) struct Pass {
    pub(crate) logits: Tensor<2>,
    /// The objective, per sample.
    pub(crate) values: Tensor<1>,
    pub(crate) gradient: Tensor<4>,
}

/// Refuses a gradient with a NaN or an infinity.
pub(crate) fn check_gradient(batch: &Batch, gradient: &Tensor<4>) -> Result<(), AttackError> {
    match first_non_finite(gradient)? {
        Some((row, _)) => Err(AttackError::NonFiniteGradient { sample: batch.positions[row] }),
        None => Ok(()),
    }
}

pub(crate) fn read(batch: &Batch, logits: Tensor<2>) -> Result<LogitRows, AttackError> {
    LogitRows::read(logits).map_err(|error| match error {
        AttackError::NonFiniteLogits { sample: row } => {
            AttackError::NonFiniteLogits { sample: batch.positions[row] }
        }
        error => error,
    })
}

/// The best image found so far for each sample of the caller's batch.
pub(crate) struct Gallery {
    images: Vec<Tensor<4>>,
    stored: usize,
    /// For each sample, the row of its image among all stored.
    slots: Vec<usize>,
}

impl Gallery {
    pub(crate) fn new(samples: usize) -> Self {
        Self { images: Vec::new(), stored: 0, slots: vec![0; samples] }
    }

    /// Stores the images at `rows`, of the samples at `rows` of `batch`.
    pub(crate) fn put(&mut self, batch: &Batch, images: &Tensor<4>, rows: &[usize]) {
        if rows.is_empty() {
            return;
        }
        for (offset, &row) in rows.iter().enumerate() {
            self.slots[batch.positions[row]] = self.stored + offset;
        }
        self.stored += rows.len();
        self.images.push(images.clone().select(0, batch.rows(rows)));
    }

    /// All images in the order of the caller's batch. Every sample must have been stored.
    pub(crate) fn finish(self) -> Tensor<4> {
        let images = Tensor::cat(self.images, 0);
        let rows = row_tensor(&self.slots, &images.device());
        images.select(0, rows)
    }
}

/// Rows that are true, rows that are false.
pub(crate) fn split(flags: &[bool]) -> (Vec<usize>, Vec<usize>) {
    (0..flags.len()).partition(|&row| flags[row])
}

fn int_tensor(values: Vec<i64>, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub(crate) fn row_tensor(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    // Row numbers count tensors in memory, far below i64::MAX.
    int_tensor(rows.iter().map(|&row| row as i64).collect(), device)
}

fn pick<T: Copy>(values: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| values[row]).collect()
}
