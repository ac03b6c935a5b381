use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Oracle};
use crate::loss::widen;
use crate::project::Sample;
use crate::state::{Checksum, State, save_images};
use crate::{
    Adversarial, Attack, AttackError, Cost, Flag, Goal, Labels, Loss, Norm, Stage, ThreatModel,
    Victim,
};

/// Clean and robust accuracy over a data set, with a record for each sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Number of samples.
    pub n: usize,
    /// Samples that the model gets right without an attack.
    pub clean_correct: usize,
    /// Samples whose adversarial image the model gets right, as other tools count. A sample that is
    /// wrong without the attack and right with it counts here, rare as it is.
    pub robust_correct: usize,
    /// Samples that the model gets right both without and with the attack.
    pub worst_case_correct: usize,
    /// Mean cross-entropy of the clean images, in nats.
    pub clean_ce: f64,
    /// Mean cross-entropy of the adversarial images, in nats.
    pub adv_ce: f64,
    /// One record per sample, in order.
    pub per_sample: Vec<SampleRecord>,
    /// What it took, the clean forward passes included.
    pub cost: Cost,
    /// What came of each attack of an ensemble, in order; empty for a single attack.
    #[serde(default)]
    pub stages: Vec<StageReport>,
    /// Reasons to doubt the result.
    #[serde(default)]
    pub flags: Vec<Flag>,
    /// Whether all batches were evaluated; false when the callback stopped early.
    pub complete: bool,
}

/// One attack of an ensemble, over the data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// Samples it was given: those that withstood the attacks before it.
    pub attacked: usize,
    /// Samples it fooled.
    pub fooled: usize,
    /// What it took.
    pub cost: Cost,
}

/// What became of one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Number of the sample in the data set, from 0.
    pub index: usize,
    /// Its label.
    pub label: usize,
    /// The model's prediction for the clean image.
    pub clean_prediction: usize,
    /// The model's prediction for the adversarial image.
    pub adv_prediction: usize,
    /// Whether both predictions are the label, as in `worst_case_correct`.
    pub robust: bool,
    /// Cross-entropy of the adversarial image by the label, in nats.
    pub adv_ce: f32,
    /// The attack of an ensemble that fooled it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fooled_by: Option<String>,
}

impl Report {
    /// `clean_correct / n`, in `[0, 1]`; 0 for an empty report.
    pub fn clean_accuracy(&self) -> f64 {
        self.fraction(self.clean_correct)
    }

    /// `robust_correct / n`, in `[0, 1]`; 0 for an empty report.
    pub fn robust_accuracy(&self) -> f64 {
        self.fraction(self.robust_correct)
    }

    /// `worst_case_correct / n`, in `[0, 1]`; 0 for an empty report. Not above
    /// [`robust_accuracy`](Self::robust_accuracy), and the number to claim.
    pub fn worst_case_accuracy(&self) -> f64 {
        self.fraction(self.worst_case_correct)
    }

    /// The lines that the official AutoAttack prints about a whole data set: the accuracies without
    /// an attack and after each, and the flags.
    pub fn lines(&self) -> Vec<String> {
        let percent = |count: usize| 100.0 * self.fraction(count);
        let recognised = |sample: &&SampleRecord| sample.clean_prediction == sample.label;
        // Not what the stages count: a randomised model may be wrong about other images then.
        let fell = |stage: &StageReport| {
            let fooled = |sample: &&SampleRecord| sample.fooled_by.as_ref() == Some(&stage.name);
            self.per_sample.iter().filter(recognised).filter(fooled).count()
        };
        let mut robust = self.clean_correct;
        let mut seconds = 0.0;
        let mut lines = vec![format!("initial accuracy: {:.2}%", percent(robust))];
        for stage in &self.stages {
            robust -= fell(stage);
            seconds += stage.cost.seconds;
            lines.push(format!(
                "robust accuracy after {}: {:.2}% (total time {seconds:.1} s)",
                stage.name.to_uppercase(),
                percent(robust),
            ));
        }
        lines.extend(self.flags.iter().map(|flag| format!("Warning: {flag}")));
        lines.push(format!("robust accuracy: {:.2}%", percent(self.worst_case_correct)));
        lines
    }

    fn add_stages(&mut self, stages: &[Stage]) {
        for stage in stages {
            let known = self.stages.iter_mut().find(|known| known.name == stage.name);
            let report = match known {
                Some(report) => report,
                None => {
                    self.stages.push(StageReport {
                        name: stage.name.clone(),
                        attacked: 0,
                        fooled: 0,
                        cost: Cost::default(),
                    });
                    let last = self.stages.len() - 1;
                    &mut self.stages[last]
                }
            };
            report.attacked += stage.attacked;
            report.fooled += stage.fooled.len();
            report.cost += stage.cost;
        }
    }

    /// Raises the flag of Square, as the official implementation does: more than 0.2 % of all
    /// samples, and another attack before it.
    fn check_square(&mut self) {
        let square = self.stages.iter().position(|stage| stage.name == "square");
        if let Some(place) = square.filter(|&place| place > 0) {
            let gained = self.fraction(self.stages[place].fooled);
            self.flags.retain(|flag| !matches!(flag, Flag::SquareGained { .. }));
            if gained > 0.002 {
                self.flags.push(Flag::SquareGained { gained });
            }
        }
    }

    fn fraction(&self, count: usize) -> f64 {
        count as f64 / self.n.max(1) as f64
    }
}

/// Measures clean and robust accuracy: attacks every sample, untargeted, batch by batch. A shorthand
/// for [`Evaluation`] without its options.
///
/// # Errors
///
/// As [`Evaluation::run`].
pub fn evaluate<L: Into<Labels>>(
    victim: &Victim<'_>,
    attack: &dyn Attack,
    batches: impl IntoIterator<Item = (Tensor<4>, L)>,
    threat: &ThreatModel,
    progress: impl FnMut(&Report) -> ControlFlow<()>,
) -> Result<Report, AttackError> {
    Evaluation::new(victim, attack, threat).run(batches, progress)
}

/// How adversarial images are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pixels {
    /// As they are: f64 for f64 images, else f32.
    Float,
    /// At 256 levels between the bounds: each value at the nearest, or one nearer to the clean value
    /// where the change would be longer than eps. What is reported is measured on the rounded images. An
    /// image whose clean values lie between the levels, and which rounding takes out of the ball, is
    /// replaced by the clean one.
    Byte,
}

/// The evaluation of a model on a data set.
#[derive(Clone)]
pub struct Evaluation<'e> {
    victim: &'e Victim<'e>,
    attack: &'e dyn Attack,
    threat: &'e ThreatModel,
    model: String,
    state: Option<PathBuf>,
    images: Option<(PathBuf, Pixels)>,
}

impl<'e> Evaluation<'e> {
    /// An evaluation that keeps nothing. Per-sample eps are those of the whole data set, in its
    /// order.
    pub fn new(victim: &'e Victim<'e>, attack: &'e dyn Attack, threat: &'e ThreatModel) -> Self {
        Self { victim, attack, threat, model: String::new(), state: None, images: None }
    }

    /// Names the model, such as the SHA-256 sum of its weights, so that a state file of another
    /// model is told apart (default: an empty name).
    pub fn model(mut self, name: impl Into<String>) -> Self {
        self.model = name.into();
        self
    }

    /// Keeps the state of the run in this JSON file, written anew after each batch (beside it,
    /// flushed and renamed), and goes on from it if it is there. A run that is killed loses at most
    /// one batch and ends with the report of an uninterrupted one, but for the seconds.
    ///
    /// The state knows its attack and settings, threat, model name, images and labels, the logits of
    /// the first image, and how adversarial images are kept.
    pub fn resume_from(mut self, path: impl Into<PathBuf>) -> Self {
        self.state = Some(path.into());
        self
    }

    /// Keeps the adversarial images in this folder as NumPy arrays `[n, c, h, w]`, one file for each
    /// batch, named after its first sample: `000000.npy`. `np.load` reads them.
    pub fn keep_images(mut self, folder: impl Into<PathBuf>, pixels: Pixels) -> Self {
        self.images = Some((folder.into(), pixels));
        self
    }

    /// Attacks all batches.
    ///
    /// `batches` yields images `[n, c, h, w]` with their labels. Samples are numbered through the
    /// batches, so the result does not depend on the batch size, but for attacks that draw once a
    /// batch. After each batch `progress` sees the report so far; [`ControlFlow::Break`] ends the
    /// evaluation and returns it. No batches give an empty report.
    ///
    /// # Errors
    ///
    /// Any [`AttackError`]; sample numbers in it count within the batch.
    pub fn run<L: Into<Labels>>(
        &self,
        batches: impl IntoIterator<Item = (Tensor<4>, L)>,
        mut progress: impl FnMut(&Report) -> ControlFlow<()>,
    ) -> Result<Report, AttackError> {
        let pixels = self.images.as_ref().map(|(_, pixels)| *pixels);
        let mut state =
            State::new(&self.model, self.attack.describe(), self.threat.clone(), pixels);
        let mut done = 0;
        if let Some(path) = &self.state {
            match State::read(path)? {
                Some(old) => {
                    old.same_run(&state, path)?;
                    done = old.report.n;
                    state = old;
                    // There may be more images now.
                    state.report.complete = false;
                }
                // Says now that it cannot be written, not after the first batch.
                None => state.write(path)?,
            }
        }
        let mut seen = 0;
        let mut checksum = Checksum::new();
        for (images, labels) in batches {
            let [count, ..] = images.dims();
            if count == 0 {
                return Err(AttackError::EmptyBatch);
            }
            let images = images.without_autodiff();
            let goal = Goal::untargeted(labels).numbered_from(seen as u64);
            if let Some(path) = &self.state {
                if seen == 0 {
                    state.check_logits(self.victim, &images, path)?;
                }
                // What the state has done is compared, the rest is added.
                let known = done.saturating_sub(seen).min(count);
                checksum.add(&images, &goal, 0..known)?;
                if known > 0 && seen + known == done {
                    state.check_images(checksum, path)?;
                }
                checksum.add(&images, &goal, known..count)?;
                if known == count {
                    seen += count;
                    continue;
                }
                if known > 0 {
                    let rows: Vec<usize> = (known..count).collect();
                    let index = crate::batch::row_tensor(&rows, &images.device());
                    self.batch(images.select(0, index), goal.select(&rows), &mut state.report)?;
                } else {
                    self.batch(images, goal, &mut state.report)?;
                }
                state.images = checksum;
                state.write(path)?;
            } else {
                self.batch(images, goal, &mut state.report)?;
            }
            seen += count;
            if progress(&state.report).is_break() {
                return Ok(state.report);
            }
        }
        if let Some(path) = self.state.as_ref().filter(|_| seen < done) {
            return Err(AttackError::StateOfAnother { path: path.clone(), what: "data set" });
        }
        state.report.complete = true;
        if let Some(path) = &self.state {
            state.write(path)?;
        }
        Ok(state.report)
    }

    /// Attacks one batch and adds it to the report.
    fn batch(&self, images: Tensor<4>, goal: Goal, report: &mut Report) -> Result<(), AttackError> {
        let [count, ..] = images.dims();
        let threat = self.threat.slice(report.n..report.n + count)?;
        let batch = Batch::new(images.clone(), goal.clone(), &threat)?;
        let oracle = Oracle::new(self.victim, &Loss::CrossEntropy, images.dtype());
        let clean = oracle.verdict(&batch, batch.ball.centre())?;
        let mut adversarial = self.attack.run(self.victim, images, goal, &threat)?;
        if let Some((folder, pixels)) = &self.images {
            if *pixels == Pixels::Byte {
                adversarial = self.rounded(&batch, &threat, adversarial)?;
            }
            save_images(folder, report.n, &adversarial.images, *pixels, threat.bounds)?;
        }

        let first = report.n;
        for (row, label) in batch.classes().enumerate() {
            let correct = !clean.success[row];
            let robust = correct && !adversarial.success[row];
            let stage = adversarial.stages.iter().find(|stage| stage.fooled.contains(&row));
            let record = SampleRecord {
                index: first + row,
                label,
                clean_prediction: clean.predictions[row],
                adv_prediction: adversarial.predictions[row],
                robust,
                adv_ce: adversarial.loss[row],
                fooled_by: stage.map(|stage| stage.name.clone()),
            };
            report.n += 1;
            report.clean_correct += usize::from(correct);
            report.robust_correct += usize::from(!adversarial.success[row]);
            report.worst_case_correct += usize::from(robust);
            let weight = 1.0 / report.n as f64;
            report.clean_ce += (f64::from(clean.loss[row]) - report.clean_ce) * weight;
            report.adv_ce += (f64::from(record.adv_ce) - report.adv_ce) * weight;
            report.per_sample.push(record);
        }
        report.add_stages(&adversarial.stages);
        for flag in adversarial.flags {
            flag.join(&mut report.flags);
        }
        report.check_square();
        report.cost += clean.cost;
        report.cost += adversarial.cost;
        Ok(())
    }

    /// The images rounded to 256 levels, judged anew.
    fn rounded(
        &self,
        batch: &Batch,
        threat: &ThreatModel,
        adversarial: Adversarial,
    ) -> Result<Adversarial, AttackError> {
        let dtype = adversarial.images.dtype();
        let images = batch.ball.on_host(widen(adversarial.images), |sample| {
            let mask = threat.mask.as_ref().map(|mask| mask[sample.row].as_slice());
            to_levels(sample, threat.norm, threat.bounds, mask);
        });
        let images = batch.ball.masked(images);
        let oracle = Oracle::new(self.victim, &Loss::CrossEntropy, dtype);
        let mut judged = oracle.verdict(batch, images)?;
        judged.cost += adversarial.cost;
        judged.flags = adversarial.flags;
        judged.stages = adversarial.stages;
        for stage in &mut judged.stages {
            stage.fooled.retain(|&row| judged.success[row]);
        }
        Ok(judged)
    }
}

/// Rounds the values that may change to the nearest of 256 levels; then those that this took furthest
/// from the clean ones go one level back, until the change is no longer than eps. If that does not do,
/// because the clean values lie between levels, the sample is the clean one again.
fn to_levels(sample: Sample<'_>, norm: Norm, (lower, upper): (f64, f64), mask: Option<&[bool]>) {
    let Sample { point, centre, eps, .. } = sample;
    let level = (upper - lower) / 255.0;
    // Clean values and eps are rounded numbers themselves.
    let reach = eps * (1.0 + 1e-6) + 1e-6 * (upper - lower);
    let mut further = Vec::new();
    for (i, (value, clean)) in point.iter_mut().zip(centre).enumerate() {
        if mask.is_none_or(|mask| mask[i]) {
            let exact = (*value - clean).abs();
            *value = ((*value - lower) / level).round() * level + lower;
            let by = (*value - clean).abs() - exact;
            if by > 0.0 {
                further.push((by, i));
            }
        }
    }
    further.sort_unstable_by(|(a, _), (b, _)| b.total_cmp(a));
    // What a value adds to the length, and what the sum of all may be; in Linf none may be too long.
    let size = |change: f64| match norm {
        Norm::Linf => f64::from(change.abs() > reach),
        Norm::L2 => change * change,
        Norm::L1 => change.abs(),
    };
    let most = match norm {
        Norm::Linf => 0.0,
        Norm::L2 => reach * reach,
        Norm::L1 => reach,
    };
    let sizes = |point: &[f64]| point.iter().zip(centre).map(|(x, c)| size(x - c)).sum::<f64>();
    let mut sum = sizes(point);
    for (_, i) in further {
        if sum <= most {
            break;
        }
        let change = point[i] - centre[i];
        if norm != Norm::Linf || size(change) > 0.0 {
            point[i] -= level.copysign(change);
            sum += size(point[i] - centre[i]) - size(change);
        }
    }
    if sizes(point) > most {
        point.copy_from_slice(centre);
    }
}
