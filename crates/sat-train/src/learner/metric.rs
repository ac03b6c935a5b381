use crate::watch::{HeldOut, LearnedParameters};
use burn::{
    tensor::{ExecutionError, Tensor, TensorReadError},
    train::{
        ItemLazy,
        metric::{
            Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric,
            NumericAttributes, NumericEntry, SerializedEntry,
            state::{FormatOptions, NumericMetricState},
        },
    },
};

/// What a training step leaves for the metrics. The tensors are off the graph and still on the device.
#[derive(Clone, Debug)]
pub struct TrainingFigures {
    /// The mean of the objective, `[1]`.
    pub loss: Tensor<1>,
    /// The logits of the adversarial images in training mode, `[n, classes]`.
    pub logits: Tensor<2>,
    /// The class of each image.
    pub labels: Vec<usize>,
}

/// What a validation step leaves for the metrics.
#[derive(Clone, Debug)]
pub struct ValidationFigures {
    /// Images in the batch.
    pub count: usize,
    /// Their accuracies and losses.
    pub figures: HeldOut,
    /// What the activations have learned.
    pub learned: Vec<LearnedParameters>,
}

/// The output of either step.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Of a training step.
    Trained(Box<TrainingFigures>),
    /// Of a validation step.
    Validated(ValidationFigures),
    /// Of a step that failed; the learner's interrupter has the reason.
    Failed,
}

impl ItemLazy for Outcome {
    fn sync(self) -> Result<Self, ExecutionError> {
        // Nothing is read here: the metrics do that, on a thread of their own.
        if let Self::Trained(trained) = &self {
            trained.loss.device().flush()?;
        }
        Ok(self)
    }
}

impl Adaptor<Outcome> for Outcome {
    fn adapt(&self) -> Outcome {
        self.clone()
    }
}

/// What an [`AdversarialMetric`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Figure {
    /// In training the objective, in validation the mean cross-entropy under PGD-10. Burn's default
    /// checkpointing keeps the epoch where the latter is lowest.
    Loss,
    /// Mean cross-entropy without attack, in nats; in validation.
    CleanLoss,
    /// Accuracy without attack, in per cent; in validation.
    CleanAccuracy,
    /// Accuracy in per cent: in training on the batch's adversarial images before the update, in
    /// validation under PGD-10.
    RobustAccuracy,
    /// Accuracy under FGSM, in per cent; in validation.
    FgsmAccuracy,
    /// Accuracy under FGSM minus that under PGD-10, in points; in validation. Large is catastrophic
    /// overfitting, see [`HeldOut`].
    Overfitting,
    /// A learned parameter of an activation, see [`learned_parameters`](crate::learned_parameters); in
    /// validation.
    Learned {
        /// Where the activation is.
        site: String,
        /// Which of its parameters.
        index: usize,
    },
}

impl Figure {
    fn name(&self) -> String {
        match self {
            Self::Loss => "Loss".to_owned(),
            Self::CleanLoss => "Clean loss".to_owned(),
            Self::CleanAccuracy => "Clean accuracy".to_owned(),
            Self::RobustAccuracy => "Robust accuracy".to_owned(),
            Self::FgsmAccuracy => "FGSM accuracy".to_owned(),
            Self::Overfitting => "FGSM minus PGD-10".to_owned(),
            Self::Learned { site, index } => format!("Learned {site} {index}"),
        }
    }

    fn unit(&self) -> Option<&'static str> {
        match self {
            Self::CleanAccuracy | Self::RobustAccuracy | Self::FgsmAccuracy => Some("%"),
            Self::Overfitting => Some("points"),
            Self::Loss | Self::CleanLoss | Self::Learned { .. } => None,
        }
    }

    fn higher_is_better(&self) -> bool {
        matches!(self, Self::CleanAccuracy | Self::RobustAccuracy | Self::FgsmAccuracy)
    }

    /// The mean over the images, and their number; nothing where this is not measured.
    fn read(&self, outcome: &Outcome) -> Result<Option<(f64, usize)>, TensorReadError> {
        Ok(match outcome {
            Outcome::Trained(trained) => {
                let count = trained.labels.len();
                match self {
                    Self::Loss => Some((trained.loss.clone().try_into_scalar::<f64>()?, count)),
                    Self::RobustAccuracy => {
                        let classes = trained.logits.clone().argmax(1).try_into_data()?;
                        let pairs = classes.iter::<i64>().zip(&trained.labels);
                        let right = pairs.filter(|(class, label)| *class == **label as i64);
                        Some((100.0 * right.count() as f64 / count as f64, count))
                    }
                    _ => None,
                }
            }
            Outcome::Validated(ValidationFigures { count, figures, learned }) => {
                let value = match self {
                    Self::Loss => Some(figures.pgd_loss),
                    Self::CleanLoss => Some(figures.clean_loss),
                    Self::CleanAccuracy => Some(100.0 * figures.clean_accuracy),
                    Self::RobustAccuracy => Some(100.0 * figures.pgd_accuracy),
                    Self::FgsmAccuracy => Some(100.0 * figures.fgsm_accuracy),
                    Self::Overfitting => {
                        Some(100.0 * (figures.fgsm_accuracy - figures.pgd_accuracy))
                    }
                    Self::Learned { site, index } => learned
                        .iter()
                        .find(|parameters| parameters.site == *site)
                        .and_then(|parameters| parameters.values.get(*index).copied()),
                };
                value.map(|value| (value, *count))
            }
            Outcome::Failed => None,
        })
    }
}

/// A figure of adversarial training as a metric of Burn: shown, logged, and open to checkpointing and
/// early stopping by its name.
#[derive(Clone)]
pub struct AdversarialMetric {
    figure: Figure,
    state: NumericMetricState,
    /// Whether anything was measured since it was cleared.
    measured: bool,
}

impl AdversarialMetric {
    /// The metric of a figure.
    pub fn new(figure: Figure) -> Self {
        Self { figure, state: NumericMetricState::new(), measured: false }
    }

    fn format(&self) -> FormatOptions {
        let options = FormatOptions::new(self.name()).precision(3);
        match self.figure.unit() {
            Some(unit) => options.unit(unit),
            None => options,
        }
    }
}

impl Metric for AdversarialMetric {
    type Input = Outcome;

    fn name(&self) -> MetricName {
        MetricName::new(self.figure.name())
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = self.figure.unit().map(str::to_owned);
        NumericAttributes { unit, higher_is_better: self.figure.higher_is_better() }.into()
    }

    fn update(
        &mut self,
        outcome: &Outcome,
        _: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        let Some((value, count)) = self.figure.read(outcome)? else {
            return Ok(SerializedEntry::not_available(self.figure.unit()));
        };
        self.measured = true;
        self.state.update(value, count);
        Ok(self.state.compute_update(self.format()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(match self.measured {
            true => self.state.compute_final(self.format()),
            false => SerializedEntry::not_available(self.figure.unit()),
        })
    }

    fn clear(&mut self) {
        self.state.reset();
        self.measured = false;
    }
}

impl Numeric for AdversarialMetric {
    fn value(&self) -> Option<NumericEntry> {
        self.measured.then(|| self.state.current_value())
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.measured.then(|| self.state.running_value())
    }

    fn final_value(&self) -> NumericEntry {
        self.state.final_value()
    }
}
