use crate::recipe::RecipeError;
use serde::{Deserialize, Serialize};

/// The learning rate as a function of time, where time counts epochs and fractions of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate throughout.
    Constant {
        /// The rate.
        lr: f64,
    },
    /// Linear warm-up, then the rate times `factor` at each milestone. The recipe of
    /// arXiv 2006.14536: 5 epochs of warm-up, a tenth at epochs 30, 60 and 90.
    WarmupStep {
        /// The rate after warm-up.
        lr: f64,
        /// Epochs of linear growth from near 0.
        warmup_epochs: f64,
        /// Epochs at which the rate drops, in order.
        milestones: Vec<f64>,
        /// What it is multiplied by, in (0, 1].
        factor: f64,
    },
    /// One triangle: linear from near 0 to the peak, and linear back to 0 at the end of training
    /// (Smith 2017; the usual choice for fast adversarial training, arXiv 2001.03994).
    Cyclic {
        /// The peak rate.
        lr: f64,
        /// Where the peak lies, as a fraction of the training, in (0, 1).
        peak: f64,
    },
    /// Linear warm-up, then half a cosine from the rate down to 0 at the end of training
    /// (Loshchilov and Hutter 2017, arXiv 1608.03983).
    WarmupCosine {
        /// The rate after warm-up.
        lr: f64,
        /// Epochs of linear growth from near 0.
        warmup_epochs: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Cyclic { lr: 0.2, peak: 0.4 }
    }
}

impl Schedule {
    /// The rate for the step that starts at `epoch` (fractional, from 0) of `epochs`.
    pub fn lr(&self, epoch: f64, epochs: f64) -> f64 {
        match self {
            Schedule::Constant { lr } => *lr,
            Schedule::WarmupStep { lr, warmup_epochs, milestones, factor } => {
                let warmup = if epoch < *warmup_epochs { epoch / warmup_epochs } else { 1.0 };
                let drops = milestones.iter().filter(|at| epoch >= **at).count();
                lr * warmup * factor.powi(i32::try_from(drops).unwrap_or(i32::MAX))
            }
            Schedule::Cyclic { lr, peak } => {
                let at = epoch / epochs;
                let height = if at < *peak { at / peak } else { (1.0 - at) / (1.0 - peak) };
                lr * height.max(0.0)
            }
            Schedule::WarmupCosine { lr, warmup_epochs, .. } if epoch < *warmup_epochs => {
                lr * epoch / warmup_epochs
            }
            Schedule::WarmupCosine { lr, warmup_epochs } => {
                let at = (epoch - warmup_epochs) / (epochs - warmup_epochs);
                lr * 0.5 * (1.0 + (std::f64::consts::PI * at.min(1.0)).cos())
            }
        }
    }

    /// The rate that the schedule is made of: its largest, after warm-up.
    pub fn rate(&self) -> f64 {
        match self {
            Schedule::Constant { lr }
            | Schedule::WarmupStep { lr, .. }
            | Schedule::Cyclic { lr, .. }
            | Schedule::WarmupCosine { lr, .. } => *lr,
        }
    }

    /// The same schedule with another rate.
    pub fn with_rate(mut self, rate: f64) -> Self {
        match &mut self {
            Schedule::Constant { lr }
            | Schedule::WarmupStep { lr, .. }
            | Schedule::Cyclic { lr, .. }
            | Schedule::WarmupCosine { lr, .. } => *lr = rate,
        }
        self
    }

    /// The same schedule with its epochs so many times as long.
    pub(crate) fn stretched(mut self, factor: f64) -> Self {
        match &mut self {
            Schedule::Constant { .. } | Schedule::Cyclic { .. } => {}
            Schedule::WarmupStep { warmup_epochs, milestones, .. } => {
                *warmup_epochs *= factor;
                milestones.iter_mut().for_each(|milestone| *milestone *= factor);
            }
            Schedule::WarmupCosine { warmup_epochs, .. } => *warmup_epochs *= factor,
        }
        self
    }

    pub(crate) fn validate(&self) -> Result<(), RecipeError> {
        let check = RecipeError::unless;
        let rate = self.rate();
        check(rate.is_finite() && rate > 0.0, "schedule.lr", rate, "finite and above 0")?;
        match self {
            Schedule::Constant { .. } => Ok(()),
            Schedule::WarmupStep { warmup_epochs, milestones, factor, .. } => {
                let warmup = *warmup_epochs;
                let valid = warmup.is_finite() && warmup >= 0.0;
                check(valid, "schedule.warmup_epochs", warmup, "finite and at least 0")?;
                for milestone in milestones {
                    let valid = milestone.is_finite() && *milestone >= 0.0;
                    check(valid, "schedule.milestones", *milestone, "finite and at least 0")?;
                }
                let valid = *factor > 0.0 && *factor <= 1.0;
                check(valid, "schedule.factor", *factor, "in (0, 1]")
            }
            Schedule::Cyclic { peak, .. } => {
                check(*peak > 0.0 && *peak < 1.0, "schedule.peak", *peak, "in (0, 1)")
            }
            Schedule::WarmupCosine { warmup_epochs, .. } => {
                let warmup = *warmup_epochs;
                let valid = warmup.is_finite() && warmup >= 0.0;
                check(valid, "schedule.warmup_epochs", warmup, "finite and at least 0")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    #[test]
    fn warm_up_grows_and_milestones_drop() {
        let schedule = Schedule::WarmupStep {
            lr: 0.1,
            warmup_epochs: 5.0,
            milestones: vec![30.0, 60.0, 90.0],
            factor: 0.1,
        };
        let close = |epoch: f64, want: f64| {
            let got = schedule.lr(epoch, 100.0);
            assert!((got - want).abs() < 1e-12, "epoch {epoch}: {got}, not {want}");
        };
        close(0.0, 0.0);
        close(2.5, 0.05);
        close(5.0, 0.1);
        close(29.9, 0.1);
        close(30.0, 0.01);
        close(75.0, 1e-3);
        close(99.0, 1e-4);
    }

    #[test]
    fn a_cycle_rises_to_its_peak_and_falls_to_zero() {
        let schedule = Schedule::Cyclic { lr: 0.2, peak: 0.4 };
        let close = |epoch: f64, want: f64| {
            let got = schedule.lr(epoch, 10.0);
            assert!((got - want).abs() < 1e-12, "epoch {epoch}: {got}, not {want}");
        };
        close(0.0, 0.0);
        close(2.0, 0.1);
        close(4.0, 0.2);
        close(7.0, 0.1);
        close(10.0, 0.0);
    }

    #[test]
    fn a_cosine_warms_up_and_falls_to_zero() {
        let schedule = Schedule::WarmupCosine { lr: 0.2, warmup_epochs: 2.0 };
        let close = |epoch: f64, want: f64| {
            let got = schedule.lr(epoch, 10.0);
            assert!((got - want).abs() < 1e-12, "epoch {epoch}: {got}, not {want}");
        };
        close(0.0, 0.0);
        close(1.0, 0.1);
        close(2.0, 0.2);
        close(4.0, 0.1 + 0.1 * std::f64::consts::FRAC_1_SQRT_2);
        close(6.0, 0.1);
        close(10.0, 0.0);
        // All warm-up and no cosine.
        let schedule = Schedule::WarmupCosine { lr: 0.2, warmup_epochs: 10.0 };
        assert!((schedule.lr(9.0, 10.0) - 0.18).abs() < 1e-12);
    }

    #[test]
    fn other_epochs_stretch_the_schedule() {
        let schedule = Schedule::WarmupStep {
            lr: 0.1,
            warmup_epochs: 5.0,
            milestones: vec![30.0, 60.0, 90.0],
            factor: 0.1,
        };
        let cosine = Schedule::WarmupCosine { lr: 0.2, warmup_epochs: 5.0 };
        let cyclic = Schedule::Cyclic { lr: 0.2, peak: 0.4 };
        for schedule in [schedule, cosine, cyclic] {
            let recipe = Recipe { epochs: 100, schedule: schedule.clone(), ..Recipe::default() };
            let short = recipe.with_epochs(10);
            assert_eq!(short.epochs, 10);
            for epoch in [0.0, 0.25, 1.0, 2.95, 3.05, 7.0, 9.5] {
                let want = schedule.lr(10.0 * epoch, 100.0);
                let got = short.schedule.lr(epoch, 10.0);
                assert!((got - want).abs() < 1e-12, "epoch {epoch}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn bad_schedules_are_named() {
        let field = |schedule: Schedule| schedule.validate().unwrap_err().field;
        assert_eq!(field(Schedule::Constant { lr: f64::NAN }), "schedule.lr");
        assert_eq!(field(Schedule::Cyclic { lr: 0.1, peak: 1.0 }), "schedule.peak");
        let step = |milestones: Vec<f64>, factor| Schedule::WarmupStep {
            lr: 0.1,
            warmup_epochs: 0.0,
            milestones,
            factor,
        };
        assert_eq!(field(step(vec![-1.0], 0.1)), "schedule.milestones");
        assert_eq!(field(step(vec![1.0], 0.0)), "schedule.factor");
    }
}
