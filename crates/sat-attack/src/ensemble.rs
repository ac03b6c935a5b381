use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde_json::Value;

use crate::batch::{Batch, Gallery, Oracle, split};
use crate::{Adversarial, Attack, AttackError, Goal, Loss, Stage, ThreatModel, Victim};

/// Several attacks in turn, each on the samples that withstood those before it. A sample that the
/// model gets wrong on its own is not attacked.
///
/// Each sample keeps the image that fooled the model, else the one with the highest cross-entropy
/// (lowest, for a targeted goal). [`Adversarial::stages`] says which attack did what.
#[derive(Clone, Default)]
pub struct Ensemble<'a> {
    members: Vec<(String, Arc<dyn Attack + 'a>)>,
    log: Option<Log>,
}

/// Where lines of progress go.
pub(crate) type Log = Arc<dyn Fn(&str) + Send + Sync>;

impl<'a> Ensemble<'a> {
    /// No attacks yet; [`Attack::run`] needs at least one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attack, under a name for reports.
    pub fn then(mut self, name: impl Into<String>, attack: impl Attack + 'a) -> Self {
        self.members.push((name.into(), Arc::new(attack)));
        self
    }

    /// Hands a line to `log` after each attack on each batch.
    pub fn log(mut self, log: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.log = Some(Arc::new(log));
        self
    }

    pub(crate) fn log_to(mut self, log: Option<Log>) -> Self {
        self.log = log;
        self
    }
}

impl fmt::Debug for Ensemble<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|(name, _)| name)).finish()
    }
}

impl Attack for Ensemble<'_> {
    fn run(
        &self,
        victim: &Victim<'_>,
        images: Tensor<4>,
        goal: Goal,
        threat: &ThreatModel,
    ) -> Result<Adversarial, AttackError> {
        if self.members.is_empty() {
            return Err(AttackError::InvalidSetting {
                setting: "then",
                value: 0.0,
                expected: "called with at least one attack",
            });
        }
        let dtype = images.dtype();
        let whole = Batch::new(images.clone(), goal.clone(), threat)?;
        let mut oracle = Oracle::new(victim, &Loss::CrossEntropy, dtype);
        let clean = whole.ball.centre();
        let logits = oracle.logits(&whole, clean.clone())?;
        let (_, mut open) = split(&oracle.fooled(&whole, logits)?);
        let mut gallery = Gallery::new(whole.len());
        gallery.put(&whole, &clean, &(0..whole.len()).collect::<Vec<_>>());
        let mut records = vec![f32::NEG_INFINITY; whole.len()];
        let (mut stages, mut flags) = (Vec::new(), Vec::new());

        for (name, attack) in &self.members {
            if open.is_empty() {
                break;
            }
            let images = images.clone().without_autodiff().select(0, whole.rows(&open));
            let (goal, threat) = (goal.select(&open), threat.select(&open));
            let result = attack.run(victim, images, goal, &threat)?;
            oracle.add(result.cost);
            let part = whole.select(&open);
            let mut keep = Vec::new();
            for (row, &position) in open.iter().enumerate() {
                let value = whole.sign(position) * result.loss[row];
                if result.success[row] || value > records[position] {
                    records[position] = value;
                    keep.push(row);
                }
            }
            gallery.put(&part, &crate::loss::widen(result.images), &keep);
            let fooled: Vec<usize> =
                open.iter().zip(&result.success).filter(|(_, s)| **s).map(|(&p, _)| p).collect();
            if let Some(log) = &self.log {
                log(&format!(
                    "{name} - {} out of {} successfully perturbed ({:.1} s)",
                    fooled.len(),
                    open.len(),
                    result.cost.seconds
                ));
            }
            open.retain(|row| !fooled.contains(row));
            for flag in result.flags {
                flag.join(&mut flags);
            }
            stages.push(Stage {
                name: name.clone(),
                attacked: part.len(),
                fooled,
                cost: result.cost,
            });
        }
        let mut result = oracle.verdict(&whole, gallery.finish())?;
        (result.stages, result.flags) = (stages, flags);
        Ok(result)
    }

    fn describe(&self) -> Value {
        self.members
            .iter()
            .map(|(name, attack)| serde_json::json!({ "name": name, "attack": attack.describe() }))
            .collect()
    }
}
