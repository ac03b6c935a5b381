use std::fmt;

use serde::{Deserialize, Serialize};

/// A reason to doubt a robust accuracy, as the official AutoAttack raises them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "flag", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Flag {
    /// The same images gave different logits: the largest Euclidean difference between normalised
    /// logits exceeds 1e-4, or the number of correct ones changed.
    Randomised {
        /// The largest difference.
        difference: f64,
    },
    /// The logits are a probability distribution: the model ends in a softmax.
    ProbabilityOutput,
    /// The gradient at a starting point of APGD on a DLR loss is zero.
    ZeroGradient {
        /// Starting points, over all restarts and targets.
        points: usize,
    },
    /// Square fooled more than 0.2 % of the samples after white-box attacks had failed on them.
    SquareGained {
        /// Share of all samples, in `[0, 1]`.
        gained: f64,
    },
    /// Fewer classes than the attacks compare or aim at.
    TooFewClasses {
        /// Classes of the model.
        classes: usize,
        /// Other classes an attack wanted to aim at.
        targets: usize,
    },
    /// Images made with another gradient fooled samples that withstood the model's own.
    TransferGained {
        /// Number of samples.
        points: usize,
    },
}

impl Flag {
    /// Adds a flag to those of earlier batches: one of each kind, with what it counts added up.
    pub(crate) fn join(self, flags: &mut Vec<Flag>) {
        for flag in flags.iter_mut() {
            match (flag, &self) {
                (Flag::ZeroGradient { points: old }, Flag::ZeroGradient { points })
                | (Flag::TransferGained { points: old }, Flag::TransferGained { points }) => {
                    *old += points;
                    return;
                }
                (Flag::Randomised { difference: old }, Flag::Randomised { difference }) => {
                    *old = old.max(*difference);
                    return;
                }
                (Flag::SquareGained { gained: old }, Flag::SquareGained { gained }) => {
                    *old = *gained;
                    return;
                }
                (Flag::ProbabilityOutput, Flag::ProbabilityOutput)
                | (Flag::TooFewClasses { .. }, Flag::TooFewClasses { .. }) => return,
                _ => {}
            }
        }
        flags.push(self);
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flag::Randomised { difference } => write!(
                f,
                "the model seems to be randomised (its logits differ by {difference:.1e} from \
                 pass to pass): use AutoAttack's version rand"
            ),
            Flag::ProbabilityOutput => f.write_str(
                "the output is a probability distribution: give the logits, before the softmax",
            ),
            Flag::ZeroGradient { points } => write!(
                f,
                "{points} starting points have a zero gradient: gradient attacks cannot work there"
            ),
            Flag::SquareGained { gained } => write!(
                f,
                "Square lowered the robust accuracy by {:.2} %: the gradient may be masked; run \
                 Square with more queries and restarts, or an adaptive attack",
                100.0 * gained
            ),
            Flag::TooFewClasses { classes, targets } => write!(
                f,
                "the model has {classes} classes, fewer than {targets} targets and the label"
            ),
            Flag::TransferGained { points } => write!(
                f,
                "images made with another gradient fool {points} samples that withstand the \
                 model's own: its gradient is masked"
            ),
        }
    }
}
