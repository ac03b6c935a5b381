use std::ops::ControlFlow;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Oracle};
use crate::{Attack, AttackError, Cost, Goal, Labels, Loss, ThreatModel, Victim};

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
    /// Whether all batches were evaluated; false when the callback stopped early.
    pub complete: bool,
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

    fn fraction(&self, count: usize) -> f64 {
        count as f64 / self.n.max(1) as f64
    }
}

/// Measures clean and robust accuracy: attacks every sample, untargeted, batch by batch.
///
/// `batches` yields images `[n, c, h, w]` with their labels. Samples are numbered through the
/// batches, so the result does not depend on the batch size, but for attacks that draw once a batch. Per-sample eps are those of the whole
/// data set, in its order. After each batch `progress` sees the report so far;
/// [`ControlFlow::Break`] ends the evaluation and returns it. No batches give an empty report.
///
/// # Errors
///
/// Any [`AttackError`]; sample numbers in it count within the batch.
pub fn evaluate<L: Into<Labels>>(
    victim: &Victim<'_>,
    attack: &dyn Attack,
    batches: impl IntoIterator<Item = (Tensor<4>, L)>,
    threat: &ThreatModel,
    mut progress: impl FnMut(&Report) -> ControlFlow<()>,
) -> Result<Report, AttackError> {
    let mut report = Report::default();
    for (images, labels) in batches {
        let [count, ..] = images.dims();
        let threat = threat.slice(report.n..report.n + count)?;
        let goal = Goal::untargeted(labels).numbered_from(report.n as u64);

        let batch = Batch::new(images.clone(), goal.clone(), &threat)?;
        let oracle = Oracle::new(victim, &Loss::CrossEntropy, images.dtype());
        let clean = oracle.verdict(&batch, batch.ball.centre())?;
        let adversarial = attack.run(victim, images, goal.clone(), &threat)?;

        for (row, &label) in goal.classes.iter().enumerate() {
            let correct = !clean.success[row];
            let robust = correct && !adversarial.success[row];
            let record = SampleRecord {
                index: report.n,
                // Checked against the class count by the clean pass.
                label: label as usize,
                clean_prediction: clean.predictions[row],
                adv_prediction: adversarial.predictions[row],
                robust,
                adv_ce: adversarial.loss[row],
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
        report.cost += clean.cost;
        report.cost += adversarial.cost;
        if progress(&report).is_break() {
            return Ok(report);
        }
    }
    report.complete = true;
    Ok(report)
}
