//! Adversarial training on Burn's own learner (feature `burn-train`): its dashboard, metric files,
//! checkpointers, early stopping, and learning strategies for several devices.
//!
//! [`Adversarial`] is the model that the learner trains; [`Adversarial::training`] prepares the run and
//! [`Adversarial::learner`] its optimizer and schedule. On one device the weights are those of
//! [`train`](crate::train) with the same recipe and images.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::Device;
//! use sat_models::{ResNetConfig, StageConfig};
//! use sat_train::{Normalized, Recipe, data::ImageSet};
//! use sat_train::learner::{Adversarial, TrainingImages, ValidationImages};
//!
//! let device = Device::flex().autodiff();
//! let mut config = ResNetConfig::resnet20().with_input_channels(1).with_classes(2);
//! config.stages = vec![StageConfig { channels: 4, blocks: 1, stride: 2 }];
//! let model = Normalized::to_plus_minus_one(config.init(0, &device), 1);
//!
//! let names = vec!["dark".to_owned(), "light".to_owned()];
//! let pixels = [vec![20; 8 * 64], vec![220; 8 * 64]].concat();
//! let labels = [vec![0; 8], vec![1; 8]].concat();
//! let data = ImageSet::new(pixels, [1, 8, 8], labels, names)?;
//!
//! let recipe = Recipe { epochs: 2, batch_size: 4, ..Recipe::default() };
//! let model = Adversarial::new(model, &recipe)?;
//! let images = TrainingImages::new(data.clone(), recipe, 0, &device)?;
//! let learner = model.learner(images.steps());
//! # let folder = std::env::temp_dir().join(format!("sat-learner-{}", std::process::id()));
//! let training = model
//!     .training(&folder, images, ValidationImages::new(data, 8, &device))
//!     .with_default_checkpointers();
//! # let training = training.with_application_logger(None);
//! let result = training.launch(learner);
//! assert!(result.error.is_none());
//! let trained = result.model.result();
//! # let _ = std::fs::remove_dir_all(folder);
//! # let _ = trained;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod loader;
mod metric;
mod schedule;

pub use loader::{Batch, TrainingImages, ValidationImages};
pub use metric::{AdversarialMetric, Figure, Outcome, TrainingFigures, ValidationFigures};

use crate::{
    average::WeightAverage,
    precision::UnsupportedPrecision,
    recipe::{Recipe, RecipeError, Select, TrainingAttack},
    source::TrainingData,
    step::{AdversarialStep, clip, optimizer, scale},
    watch::{HeldOut, learned_parameters},
};
use burn::{
    module::{Module, ModuleDisplay},
    optim::{
        GradientsAccumulator, GradientsParams, ModuleOptimizer, MultiGradientsParams,
        lr_scheduler::module_lr_scheduler::ModuleLearningRate,
    },
    tensor::Tensor,
    train::{
        InferenceStep, Interrupter, Learner, SupervisedTraining, TrainOutput, TrainStep,
        TrainingError, train::WorkerFailure,
    },
};
use sat_attack::{AttackError, Classifier};
use schedule::RecipeSchedule;
use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A classifier that Burn's learner trains by a recipe.
///
/// A training step is that of [`AdversarialStep`] on the device's share of the batch. Its gradient is
/// weighted by that share, so that the sum which Burn takes over the devices is the mean over the
/// batch, and it is clipped only then. A validation step measures clean accuracy, FGSM and PGD-10 at
/// the recipe's eps and norm (eps 0 without an attack), on the averaged weights if there are any.
///
/// An attack that fails ends the training: [`LearningResult::error`](burn::train::LearningResult)
/// says why. The learner is given the images to validate on: [`hold_out`](crate::hold_out) takes them
/// from those to train on. Use `parts` in place of Burn's gradient accumulation, which takes the sum.
#[derive(Module, Debug)]
pub struct Adversarial<M: Module> {
    /// The classifier.
    pub model: M,
    /// The moving average of its weights, if the recipe has one.
    pub averaged: Option<M>,
    #[module(skip)]
    settings: Arc<Settings>,
}

struct Settings {
    recipe: Recipe,
    step: AdversarialStep,
    attack: TrainingAttack,
    /// Updates made, for the moving average.
    updates: AtomicUsize,
    interrupter: Interrupter,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

/// A recipe that [`Adversarial`] cannot train by.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LearnerError {
    /// A field is out of its range.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The recipe selects an epoch.
    #[error("recipe: `select` must be `last`: here Burn's checkpointers choose epochs")]
    Select,
    /// A device of the model does not compute in the recipe's precision.
    #[error("recipe: {0}")]
    Precision(#[from] UnsupportedPrecision),
}

impl<M: Module + ModuleDisplay + Classifier> Adversarial<M> {
    /// A classifier on an autodiff device that sees images in [0, 1], and a recipe.
    ///
    /// # Errors
    ///
    /// [`LearnerError`].
    pub fn new(model: M, recipe: &Recipe) -> Result<Self, LearnerError> {
        recipe.validate()?;
        if recipe.select != Select::Last {
            return Err(LearnerError::Select);
        }
        model.devices().iter().try_for_each(|device| recipe.precision.check(device))?;
        let averaged = recipe.average.map(|_| model.valid());
        let no_attack = TrainingAttack { eps: 0.0, ..TrainingAttack::default() };
        let settings = Settings {
            // The gradient is clipped when those of all devices have met.
            step: AdversarialStep::new(&Recipe { clip_norm: None, ..recipe.clone() }),
            attack: recipe.attack.clone().unwrap_or(no_attack),
            recipe: recipe.clone(),
            updates: AtomicUsize::new(0),
            interrupter: Interrupter::new(),
        };
        Ok(Self { model, averaged, settings: Arc::new(settings) })
    }

    /// The run: the recipe's epochs, and all metrics (see [`Figure`]). Loss and robust accuracy are
    /// measured in training and validation, the others in validation.
    ///
    /// To go on from the checkpoint of epoch k, give it `.checkpoint(k)`, and images that begin at
    /// epoch k. Checkpointers, strategy, early stopping and the rest are
    /// [`SupervisedTraining`]'s. Leave its interrupter as it is: it ends the training when an attack
    /// fails.
    pub fn training<T, V>(
        &self,
        folder: impl AsRef<Path>,
        images: TrainingImages<T>,
        validation: ValidationImages<V>,
    ) -> SupervisedTraining<Self>
    where
        M: 'static,
        T: TrainingData + Send + Sync + 'static,
        V: TrainingData + Send + Sync + 'static,
    {
        let training = SupervisedTraining::new(folder, Arc::new(images), Arc::new(validation))
            .with_interrupter(self.settings.interrupter.clone())
            .num_epochs(self.settings.recipe.epochs);
        let metric = AdversarialMetric::new;
        let training = training.metrics((metric(Figure::Loss), metric(Figure::RobustAccuracy)));
        let learned = learned_parameters(&self.model).into_iter().flat_map(|parameters| {
            let site = parameters.site;
            (0..parameters.values.len())
                .map(move |index| Figure::Learned { site: site.clone(), index })
        });
        [Figure::CleanLoss, Figure::CleanAccuracy, Figure::FgsmAccuracy, Figure::Overfitting]
            .into_iter()
            .chain(learned)
            .fold(training, |training, figure| training.metric_valid_numeric(metric(figure)))
    }

    /// The model with the optimizer and the schedule of its recipe; `steps` updates are one epoch,
    /// see [`TrainingImages::steps`].
    pub fn learner(&self, steps: usize) -> Learner<Self>
    where
        M: 'static,
    {
        let recipe = &self.settings.recipe;
        let optimizer = optimizer(recipe, &self.model);
        Learner::new(self.clone(), optimizer, RecipeSchedule::new(recipe, steps))
    }

    /// The averaged weights if there are any, else those of the last step, in the form for evaluation.
    pub fn result(&self) -> M {
        self.averaged.as_ref().unwrap_or(&self.model).valid()
    }

    fn fail(&self, error: &AttackError) {
        // Burn has no error for a step on one device; this one carries any message.
        let failure = WorkerFailure { device_id: 0, message: error.to_string() };
        self.settings.interrupter.fail(TrainingError::Workers(vec![failure]));
    }
}

impl<M: Module + ModuleDisplay + Classifier> TrainStep for Adversarial<M> {
    type Input = Batch;
    type Output = Outcome;

    fn step(&self, batch: Batch) -> TrainOutput<Outcome> {
        let Batch { images, labels, first, step, share } = batch;
        self.settings.updates.store(step + 1, Ordering::Relaxed);
        match self.settings.step.gradients(&self.model, images, &labels, first) {
            Ok((mut grads, output)) => {
                if share < 1.0 {
                    let share = Tensor::full([1], share, &output.loss.device());
                    scale(&mut grads, &self.model, &share);
                }
                let item = TrainingFigures { loss: output.loss, logits: output.logits, labels };
                TrainOutput { grads, item: Outcome::Trained(Box::new(item)) }
            }
            Err(error) => {
                self.fail(&error);
                TrainOutput { grads: GradientsParams::new(), item: Outcome::Failed }
            }
        }
    }

    fn optimize(
        self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        mut grads: GradientsParams,
    ) -> Self {
        let Self { model, averaged, settings } = self;
        if let Some(largest) = settings.recipe.clip_norm {
            clip(&mut grads, &model, largest);
        }
        let model = optim.step(lr_module, model, grads);
        Self::averaging(model, averaged, settings)
    }

    fn optimize_multi(
        self,
        optim: &mut ModuleOptimizer,
        lr_module: ModuleLearningRate,
        grads: MultiGradientsParams,
    ) -> Self {
        if self.settings.recipe.clip_norm.is_none() {
            let Self { model, averaged, settings } = self;
            let model = optim.step_multi(lr_module, model, grads);
            return Self::averaging(model, averaged, settings);
        }
        // The norm is that of all gradients together, so they meet on one device.
        let mut sum = GradientsAccumulator::new();
        let mut main = None;
        for (grads, device) in grads.grads {
            let main = main.get_or_insert(device);
            sum.accumulate(&self.model, grads.to_device(main, &self.model));
        }
        self.optimize(optim, lr_module, sum.grads())
    }
}

impl<M: Module + ModuleDisplay> Adversarial<M> {
    /// The model after an update, taken up by the average.
    fn averaging(model: M, averaged: Option<M>, settings: Arc<Settings>) -> Self {
        let averaged = averaged.zip(settings.recipe.average).map(|(averaged, decay)| {
            let updates = settings.updates.load(Ordering::Relaxed);
            let average = WeightAverage::resume(averaged.valid(), decay, updates - 1);
            average.update(&model).into_model()
        });
        Self { model, averaged, settings }
    }
}

impl<M: Module + ModuleDisplay + Classifier> InferenceStep for Adversarial<M> {
    type Input = Batch;
    type Output = Outcome;

    fn step(&self, batch: Batch) -> Outcome {
        let Batch { images, labels, .. } = batch;
        let model = self.averaged.as_ref().unwrap_or(&self.model);
        let count = labels.len();
        let batches = || [(images.clone(), labels.clone())];
        match HeldOut::of(model, &self.settings.attack, batches) {
            Ok(figures) => {
                let learned = learned_parameters(model);
                Outcome::Validated(ValidationFigures { count, figures, learned })
            }
            Err(error) => {
                self.fail(&error);
                Outcome::Failed
            }
        }
    }
}
