use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use serde_json::Value;

use crate::attack::description;
use crate::batch::{Batch, Gallery, Oracle, read};
use crate::error::{at_least_one, require};
use crate::project::l1_project;
use crate::rng::{Purpose, Stream};
use crate::{Adversarial, Attack, AttackError, Goal, Loss, Norm, ThreatModel, Victim};

/// The Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search that changes
/// one square window at a time and asks the model for logits only, so it sees through masked
/// gradients. Linf, L2, and L1 as in arXiv 2103.01208.
///
/// Linf: from vertical stripes of `+-eps`, a query sets a random window to `x +- eps`, one sign for
/// each channel. L2 and L1: from a grid of bumps, a query moves the perturbation of one window into
/// another and adds a bump there, at the full radius (for L1 beyond it, from where the projection
/// leaves the largest changes). A query is kept if the margin
/// `z_y - max_{k != y} z_k` falls (for a targeted goal: `max_{k != t} z_k - z_t`). The window covers
/// a share `p` of the image, which falls from `p_init` to `p_init / 512` as queries go on. A fooled
/// sample asks no more.
///
/// Defaults are AutoAttack's: 5,000 queries, `p_init` 0.8, one run, seed 0, the schedule of `p`
/// not rescaled to the number of queries. The squares of a sample depend on the seed and its number
/// alone (see [`Goal::numbered_from`]).
#[derive(Clone, Debug, Serialize)]
pub struct Square {
    queries: usize,
    p_init: f64,
    restarts: usize,
    schedule: Schedule,
    seed: u64,
}

/// By what the window of the Square attack shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// By the number of queries so far, as made for 10,000 of them.
    #[default]
    Absolute,
    /// By the share of the queries so far.
    Rescaled,
}

impl Default for Square {
    fn default() -> Self {
        Self { queries: 5000, p_init: 0.8, restarts: 1, schedule: Schedule::Absolute, seed: 0 }
    }
}

impl Square {
    /// Queries after the first for each run, at least 1 (default 5,000).
    pub fn queries(mut self, queries: usize) -> Self {
        self.queries = queries;
        self
    }

    /// The share of the image in the first windows, in `(0, 1]` (default 0.8).
    pub fn p_init(mut self, p_init: f64) -> Self {
        self.p_init = p_init;
        self
    }

    /// Number of runs, at least 1 (default 1).
    pub fn restarts(mut self, restarts: usize) -> Self {
        self.restarts = restarts;
        self
    }

    /// By what the window shrinks (default [`Schedule::Absolute`]).
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// The seed of all random draws (default 0).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn validate(&self) -> Result<(), AttackError> {
        at_least_one("queries", self.queries)?;
        at_least_one("restarts", self.restarts)?;
        let share = self.p_init > 0.0 && self.p_init <= 1.0;
        require(share, "p_init", self.p_init, "in (0, 1]")
    }

    /// The share of the image that the window covers in this query, from 0.
    fn share(&self, query: usize) -> f64 {
        let query = match self.schedule {
            Schedule::Absolute => query,
            Schedule::Rescaled => query * 10_000 / self.queries,
        };
        let limits = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
        let halvings = limits.iter().filter(|&&limit| query > limit).count();
        self.p_init / f64::from(1u32 << halvings)
    }
}

/// One sample under attack.
struct Walk {
    stream: Stream,
    clean: Vec<f64>,
    eps: f64,
    /// The best image so far, and its margin.
    best: Vec<f64>,
    margin: f32,
}

/// The size of an image, and the values it may hold.
#[derive(Clone, Copy)]
struct Frame {
    channels: usize,
    height: usize,
    width: usize,
    norm: Norm,
    lower: f64,
    upper: f64,
}

impl Frame {
    fn start(&self, walk: &mut Walk) -> Vec<f64> {
        let Frame { channels, height, width, .. } = *self;
        let mut change = vec![0.0; walk.clean.len()];
        if self.norm == Norm::Linf {
            for channel in change.chunks_exact_mut(height * width) {
                for column in 0..width {
                    let value = walk.eps * walk.stream.sign();
                    channel[column..].iter_mut().step_by(width).for_each(|v| *v = value);
                }
            }
            return self.inside(walk, change);
        }
        let side = (height.min(width) / 5).max(1);
        let margins = ((height % side) / 2, (width % side) / 2);
        for row in 0..height / side {
            for column in 0..width / side {
                let bump = self.bump(side, &mut walk.stream);
                let corner = (margins.0 + row * side, margins.1 + column * side);
                for channel in 0..channels {
                    let sign = walk.stream.sign();
                    for (index, value) in self.window(channel, corner, side).zip(&bump) {
                        change[index] = sign * value;
                    }
                }
            }
        }
        self.inside(walk, change)
    }

    /// The next image to ask about, with a window that covers the share `p`.
    fn candidate(&self, walk: &mut Walk, p: f64) -> Vec<f64> {
        let Frame { channels, height, width, .. } = *self;
        let side = (p * (height * width) as f64).sqrt().round() as usize;
        let smallest = if self.norm == Norm::Linf { 1 } else { 3 };
        // Bumps of L2 and L1 have two unequal halves: their sides are odd.
        let odd = |side: usize| if self.norm == Norm::Linf { side } else { side | 1 };
        let side = odd(side.max(smallest)).min(height).min(width);
        let corner =
            |stream: &mut Stream| (stream.below(height - side + 1), stream.below(width - side + 1));
        let first = corner(&mut walk.stream);
        let mut change: Vec<f64> =
            walk.best.iter().zip(&walk.clean).map(|(best, clean)| best - clean).collect();
        if self.norm == Norm::Linf {
            for channel in 0..channels {
                let value = walk.eps * walk.stream.sign();
                self.window(channel, first, side).for_each(|index| change[index] = value);
            }
            return self.inside(walk, change);
        }

        // What the two windows hold together is spent anew in the first of them.
        let second = corner(&mut walk.stream);
        let mut touched = vec![false; change.len()];
        for channel in 0..channels {
            self.window(channel, first, side).for_each(|index| touched[index] = true);
            self.window(channel, second, side).for_each(|index| touched[index] = true);
        }
        let held: Vec<f64> =
            change.iter().zip(&touched).map(|(v, &t)| if t { *v } else { 0.0 }).collect();
        let whole = self.norm.length(&change);
        let channel_count = channels as f64;
        let budgets: Vec<f64> = match self.norm {
            // The official code's: the windows' length is a channel's own, and all is taken once a
            // channel.
            Norm::L1 => {
                let left = (walk.eps - whole).max(0.0);
                let held = held.chunks_exact(height * width).map(|held| self.norm.length(held));
                held.map(|held| left + held * channel_count).collect()
            }
            norm => {
                let held = norm.length(&held);
                let left = (walk.eps.powi(2) - whole.powi(2)).max(0.0);
                vec![(left / channel_count + held * held).sqrt(); channels]
            }
        };
        let bump = self.bump(side, &mut walk.stream);
        let mut fresh = Vec::with_capacity(channels * side * side);
        for (channel, budget) in budgets.into_iter().enumerate() {
            let sign = walk.stream.sign();
            let old: Vec<f64> = self.window(channel, first, side).map(|i| change[i]).collect();
            let old_length = self.norm.length(&old) + 1e-12;
            let new: Vec<f64> =
                bump.iter().zip(&old).map(|(b, old)| sign * b + old / old_length).collect();
            let scale = budget / (self.norm.length(&new) + 1e-12);
            fresh.extend(new.into_iter().map(|v| v * scale));
        }
        for channel in 0..channels {
            self.window(channel, second, side).for_each(|index| change[index] = 0.0);
        }
        let mut fresh = fresh.into_iter();
        for channel in 0..channels {
            for (index, value) in self.window(channel, first, side).zip(&mut fresh) {
                change[index] = value;
            }
        }
        self.inside(walk, change)
    }

    /// The image with this change, in ball and bounds. L2 goes to the sphere before the bounds cut, L1
    /// to the nearest point.
    fn inside(&self, walk: &Walk, change: Vec<f64>) -> Vec<f64> {
        let (lower, upper) = (self.lower, self.upper);
        let scale = match self.norm {
            Norm::Linf | Norm::L1 => 1.0,
            norm => walk.eps / (norm.length(&change) + 1e-12),
        };
        let mut image: Vec<f64> =
            change.iter().zip(&walk.clean).map(|(d, x)| x + d * scale).collect();
        if self.norm == Norm::L1 {
            l1_project(&mut image, &walk.clean, walk.eps, lower, upper);
        }
        image.iter_mut().for_each(|v| *v = v.clamp(lower, upper));
        image
    }

    /// The positions of a window in one channel, row by row.
    fn window(
        &self,
        channel: usize,
        (top, left): (usize, usize),
        side: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let (height, width) = (self.height, self.width);
        (top..top + side).flat_map(move |row| {
            let start = (channel * height + row) * width + left;
            start..start + side
        })
    }

    /// A bump of length 1: two halves of opposite sign, each highest in its middle, side by side or
    /// one above the other.
    fn bump(&self, side: usize, stream: &mut Stream) -> Vec<f64> {
        let upper_half = side / 2;
        let mut bump = self.half_bump(upper_half, side);
        bump.extend(self.half_bump(side - upper_half, side).into_iter().map(|v| -v));
        let length = self.norm.length(&bump);
        bump.iter_mut().for_each(|v| *v /= length);
        if stream.uniform() < 0.5 {
            return bump;
        }
        (0..side * side).map(|index| bump[index % side * side + index / side]).collect()
    }

    /// `sum_k 1 / (k + 1)^2` over the growing rectangles `k` around the middle that hold the point, for
    /// L1 with the fourth power; of length 1.
    fn half_bump(&self, rows: usize, columns: usize) -> Vec<f64> {
        let power = if self.norm == Norm::L1 { -4 } else { -2 };
        let (middle_row, middle_column) = (rows / 2, columns / 2);
        let rings = middle_row.max(middle_column) + 1;
        let mut bump = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                let ring = row.abs_diff(middle_row).max(column.abs_diff(middle_column));
                bump.push((ring..rings).map(|k| ((k + 1) as f64).powi(power)).sum());
            }
        }
        let length = self.norm.length(&bump);
        bump.iter_mut().for_each(|v: &mut f64| *v /= length);
        bump
    }
}

impl Attack for Square {
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
        let clean = whole.ball.centre();
        let [_, channels, height, width] = clean.dims();
        let (lower, upper) = threat.bounds;
        let frame = Frame { channels, height, width, norm: threat.norm, lower, upper };
        let radii = threat.radii(whole.len())?;
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
        let mut gallery = Gallery::new(whole.len());
        let mut records = vec![f32::INFINITY; whole.len()];

        let logits = oracle.logits(&whole, clean.clone())?;
        let fooled = oracle.fooled(&whole, logits)?;
        let all: Vec<usize> = (0..whole.len()).collect();
        gallery.put(&whole, &clean, &all);
        let mut open: Vec<usize> = (0..whole.len()).filter(|&row| !fooled[row]).collect();

        for restart in 0..self.restarts {
            if open.is_empty() {
                break;
            }
            let mut batch = whole.select(&open);
            let mut all_fooled = false;
            let pixels = batch.ball.centre().try_into_vec_as::<f64>()?;
            let mut walks: Vec<Walk> = pixels
                .chunks_exact(channels * height * width)
                .enumerate()
                .map(|(row, clean)| Walk {
                    stream: Stream::new(
                        self.seed,
                        restart as u64,
                        batch.samples[row],
                        Purpose::Squares,
                    ),
                    clean: clean.to_vec(),
                    eps: radii[batch.positions[row]],
                    best: clean.to_vec(),
                    margin: f32::INFINITY,
                })
                .collect();
            for query in 0..=self.queries {
                let candidates: Vec<Vec<f64>> = walks
                    .iter_mut()
                    .map(|walk| match query {
                        0 => frame.start(walk),
                        _ => frame.candidate(walk, self.share(query - 1)),
                    })
                    .collect();
                let images = ask(&batch, candidates.iter());
                let rows = read(&batch, oracle.logits(&batch, images)?)?;
                let margins = batch.margins(&rows);
                let mut left = Vec::new();
                for (row, (margin, fooled)) in margins.into_iter().enumerate() {
                    let walk = &mut walks[row];
                    if fooled || margin < walk.margin {
                        walk.margin = margin;
                        walk.best.clone_from(&candidates[row]);
                    }
                    if !fooled {
                        left.push(row);
                    }
                }
                if left.len() < walks.len() || query == self.queries {
                    // Those that leave, and at the end those that set a record.
                    let leaving: Vec<usize> = (0..walks.len())
                        .filter(|row| {
                            let record = &mut records[batch.positions[*row]];
                            let last = query == self.queries && walks[*row].margin < *record;
                            if last {
                                *record = walks[*row].margin;
                            }
                            last || !left.contains(row)
                        })
                        .collect();
                    let best = ask(&batch, walks.iter().map(|walk| &walk.best));
                    gallery.put(&batch, &best, &leaving);
                }
                all_fooled = left.is_empty();
                if all_fooled {
                    break;
                }
                if left.len() < walks.len() {
                    batch = batch.select(&left);
                    let mut keep = left.iter().copied().peekable();
                    let mut row = 0;
                    walks.retain(|_| {
                        let kept = keep.next_if_eq(&row).is_some();
                        row += 1;
                        kept
                    });
                }
            }
            open = if all_fooled { Vec::new() } else { batch.positions };
        }
        let images = whole.ball.project(gallery.finish());
        oracle.verdict(&whole, images)
    }

    fn describe(&self) -> Value {
        description("square", self)
    }
}

/// Images on the device, in the ball as the device sees it.
fn ask<'i>(batch: &Batch, images: impl Iterator<Item = &'i Vec<f64>>) -> Tensor<4> {
    let centre = batch.ball.centre();
    let values: Vec<f32> = images.flatten().map(|&v| v as f32).collect();
    let data = TensorData::new(values, centre.shape());
    let images = Tensor::from_data(data, (&centre.device(), centre.dtype()));
    match batch.ball.norm() {
        Norm::Linf => batch.ball.project(images),
        // In the ball already; projecting again would only round.
        _ => batch.ball.masked(images),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_shrinks_as_published() {
        let square = Square::default();
        let shares = [(0, 1), (10, 1), (11, 2), (51, 4), (201, 8), (501, 16), (1001, 32)];
        for (query, part) in shares {
            assert_eq!(square.share(query), 0.8 / f64::from(part));
        }
        assert_eq!(square.share(4001), 0.8 / 128.0);
        let rescaled = Square::default().queries(1000).schedule(Schedule::Rescaled);
        assert_eq!(rescaled.share(100), 0.8 / 16.0);
    }

    #[test]
    fn bumps_have_length_one_and_two_halves() {
        for norm in [Norm::L2, Norm::L1] {
            let frame = Frame { channels: 1, height: 9, width: 9, norm, lower: 0.0, upper: 1.0 };
            let mut stream = Stream::new(0, 0, 0, Purpose::Squares);
            for side in [3, 5, 7] {
                let bump = frame.bump(side, &mut stream);
                assert!((norm.length(&bump) - 1.0).abs() < 1e-12);
                let positive = bump.iter().filter(|&&v| v > 0.0).count();
                assert_eq!(positive, side * (side / 2));
            }
        }
    }
}
