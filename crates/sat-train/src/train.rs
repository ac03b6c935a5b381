use crate::{
    average::WeightAverage,
    checkpoint::{CheckpointError, Checkpoints, Identity, Loaded, Snapshot},
    data::DataError,
    precision::UnsupportedPrecision,
    recipe::{Recipe, RecipeError, Select, TrainingAttack},
    source::{Batches, TrainingData},
    step::{AdversarialStep, correct, optimizer, training_device},
    watch::{HeldOut, LearnedParameters, learned_parameters},
};
use burn::{
    module::{Module, ModuleDisplay, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use sat_attack::{AttackError, Classifier, Victim};
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, ops::ControlFlow, time::Instant};

/// Clean accuracy is measured on every so many batches, to cost a few per cent of the time.
const CLEAN_EVERY: usize = 8;
/// How much of the past the running figures remember, per batch.
const MEMORY: f64 = 0.95;

/// How far a training has come, and running figures of the last batches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Epochs begun, counted from 1.
    pub epoch: usize,
    /// Steps done of that epoch; 0 once it is over.
    pub step_of_epoch: usize,
    /// Epochs of the whole training.
    pub epochs: usize,
    /// Wall-clock seconds spent, over all runs of a training that was stopped and resumed.
    pub seconds: f64,
    /// Of them, how many were spent waiting for images.
    pub seconds_waiting: f64,
    /// The learning rate of the last step.
    pub lr: f64,
    /// The loss of the last step.
    pub step_loss: f64,
    /// Running mean of the loss on adversarial training images.
    pub loss: f64,
    /// Running accuracy on clean training images, before each update.
    pub clean_accuracy: f64,
    /// Running accuracy on adversarial training images, before each update.
    pub robust_accuracy: f64,
    /// One row an epoch: the running figures at its end.
    pub history: Vec<EpochSummary>,
}

/// The running figures at the end of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochSummary {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Running mean of the loss on adversarial training images.
    pub loss: f64,
    /// Running accuracy on clean training images.
    pub clean_accuracy: f64,
    /// Running accuracy on adversarial training images.
    pub robust_accuracy: f64,
    /// The images that were held out, under attack, if the recipe holds any out: by the averaged
    /// weights if there are any, else by the epoch's last.
    pub held_out: Option<HeldOut>,
    /// What the activations of the same weights have learned; nothing where they have no parameters.
    pub learned: Vec<LearnedParameters>,
}

/// Where a training starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the model as it is given; the folder must hold no checkpoints.
    Fresh,
    /// From the newest checkpoint; the folder must hold one.
    Resume,
    /// From the newest checkpoint, or from the model if there is none.
    ResumeOrFresh,
}

/// A trained model, or one whose training was stopped.
#[derive(Debug)]
pub struct Trained<M> {
    /// The model, still on the autodiff device; `valid()` gives the one for evaluation.
    pub model: M,
    /// The moving average of its weights, in the form for evaluation, if the recipe has one.
    pub averaged: Option<M>,
    /// The weights of the best epoch so far, averaged if those are, in the form for evaluation, if the
    /// recipe selects by held-out images.
    pub best: Option<M>,
    /// How far it came.
    pub progress: Progress,
}

impl<M: Module> Trained<M> {
    /// The result of the training, in the form for evaluation: the weights of the best epoch if the
    /// recipe selects one, else the averaged ones if there are any, else those of the last step.
    pub fn result(&self) -> M {
        let chosen = self.best.clone().or_else(|| self.averaged.clone());
        chosen.unwrap_or_else(|| self.model.valid())
    }
}

impl<M> Trained<M> {
    /// The figures of the epoch whose weights are the [`result`](Self::result): the last, or the best if
    /// the recipe selects it. None before the first epoch has ended.
    pub fn result_epoch(&self) -> Option<&EpochSummary> {
        let history = &self.progress.history;
        if self.best.is_some() { best_epoch(history) } else { history.last() }
    }

    /// Whether the training ran to its end.
    pub fn is_finished(&self) -> bool {
        self.progress.step == self.progress.steps
    }
}

/// Why a training ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The data set, but for broken images that are left out, is smaller than one batch.
    #[error(
        "{samples} training images do not fill one batch of {batch_size}, or not if broken ones are \
         left out; lower `batch_size` or `hold_out`"
    )]
    TooFewSamples {
        /// Images to train on: those of the data set that are not held out.
        samples: usize,
        /// Images a batch.
        batch_size: usize,
    },
    /// The device does not compute in the recipe's precision.
    #[error("recipe: {0}")]
    Precision(#[from] UnsupportedPrecision),
    /// The attack failed.
    #[error("step {step}: {source}")]
    Attack {
        /// The step, counted from 1.
        step: usize,
        /// The reason.
        source: AttackError,
    },
    /// The loss is no longer a number. Checkpoints written before are as they were.
    #[error(
        "step {step}: the loss is {loss}; lower the learning rate or eps, and start again in another folder"
    )]
    Diverged {
        /// The step, counted from 1.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// An update made a weight infinite or NaN. Checkpoints written before are as they were.
    #[error(
        "step {step}: a weight is no longer a finite number; lower the learning rate or eps, and start again in another folder"
    )]
    NonFiniteWeights {
        /// The step, counted from 1.
        step: usize,
    },
    /// The images cannot be read. Checkpoints written before are as they were.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Trains a classifier adversarially.
///
/// `model` is on an autodiff device and sees images in [0, 1] (see
/// [`Normalized`](crate::Normalized)). After every epoch, and when it is stopped, the state goes to
/// `checkpoints`, if there are any. Everything random follows from the recipe's seed, the epoch and
/// the number of samples seen, so a resumed training ends with the weights of an unbroken one: bit
/// for bit on Flex. That includes dropout and stochastic depth in networks whose
/// [`reseed`](Classifier::reseed) starts their noise: it is called before each step.
///
/// `observe` sees the progress after every step; `ControlFlow::Break` stops the training after a
/// checkpoint.
///
/// # Errors
///
/// [`TrainError`]. Checkpoints written before stay as they are.
///
/// # Panics
///
/// If the images have another number of channels than the model takes, or a label is not below the
/// number of its classes.
pub fn train<M: Module + ModuleDisplay + Classifier, D: TrainingData>(
    model: M,
    recipe: &Recipe,
    data: &D,
    device: &Device,
    checkpoints: Option<(&Checkpoints, Start)>,
    mut observe: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Trained<M>, TrainError> {
    recipe.validate()?;
    let identified = |(folder, start)| (folder, start, Identity::of(data, &model));
    let checkpoints = checkpoints.map(identified);
    let held_out = hold_out(data, recipe);
    let (data, held_out) = match &held_out {
        Some((rest, held_out)) => (rest, Some(held_out)),
        None => (data, None),
    };
    let batch_size = recipe.batch_size;
    let per_epoch = data.len() / batch_size;
    if per_epoch == 0 {
        return Err(TrainError::TooFewSamples { samples: data.len(), batch_size });
    }
    let device = training_device(device);
    recipe.precision.check(&device)?;
    let step = AdversarialStep::new(recipe);
    let resumed = match &checkpoints {
        Some((checkpoints, Start::Resume | Start::ResumeOrFresh, identity)) => {
            checkpoints.load(&model, recipe, identity, |model| optimizer(recipe, model))?
        }
        Some((checkpoints, Start::Fresh, _)) => match checkpoints.latest()? {
            Some(path) => return Err(CheckpointError::Occupied { path }.into()),
            None => None,
        },
        None => None,
    };
    if let (None, Some((checkpoints, Start::Resume, _))) = (&resumed, &checkpoints) {
        return Err(CheckpointError::Nothing { path: checkpoints.folder().to_owned() }.into());
    }
    let Loaded { mut model, mut optimizer, averaged, mut best, mut progress } = resumed
        .unwrap_or_else(|| {
            let optimizer = optimizer(recipe, &model);
            let (steps, epochs) = (per_epoch * recipe.epochs, recipe.epochs);
            let progress = Progress { steps, epochs, ..Progress::default() };
            Loaded { averaged: None, best: None, optimizer, progress, model }
        });
    let mut average = recipe.average.map(|decay| match averaged {
        Some(averaged) => WeightAverage::resume(averaged, decay, progress.step),
        None => WeightAverage::new(&model, decay),
    });

    let (started, seconds_before) = (Instant::now(), progress.seconds);
    let begun = match progress.step_of_epoch {
        0 => progress.epoch,
        _ => progress.epoch - 1,
    };
    for epoch in begun..recipe.epochs {
        // An epoch that was left is read anew, so that it does not matter where images were broken.
        let mut batches = data.epoch(recipe, epoch as u64, 0..batch_size, &device);
        for _ in 0..progress.step_of_epoch {
            batches.next().transpose()?;
        }
        let mut next = timed(&mut batches, &mut progress.seconds_waiting)?;
        if next.is_none() {
            // So many images are broken that the others fill no batch.
            return Err(TrainError::TooFewSamples { samples: data.len(), batch_size });
        }
        while let Some((images, labels)) = next {
            let first = progress.step == 0;
            let running = |figure: &mut f64, value: f64| {
                *figure = if first { value } else { *figure * MEMORY + value * (1.0 - MEMORY) };
            };
            let number = progress.step + 1;
            let attack_failed = |source| TrainError::Attack { step: number, source };
            if progress.step % CLEAN_EVERY == 0 {
                let logits = Victim::new(&model).logits(images.clone()).map_err(attack_failed)?;
                let accuracy = correct(logits, &labels) as f64 / batch_size as f64;
                let figure = &mut progress.clean_accuracy;
                *figure = if first { accuracy } else { 0.7 * *figure + 0.3 * accuracy };
            }
            let time = (epoch * per_epoch + progress.step_of_epoch) as f64 / per_epoch as f64;
            progress.lr = recipe.schedule.lr(time, recipe.epochs as f64);
            let seen = (progress.step * batch_size) as u64;
            let (updated, output) = step
                .run(model, &mut optimizer, progress.lr, images, &labels, seen)
                .map_err(attack_failed)?;
            model = updated;
            average = average.map(|average| average.update(&model));
            let loss = f64::from(output.loss.into_scalar::<f32>());
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step: number, loss });
            }
            progress.step_loss = loss;
            running(&mut progress.loss, loss);
            let accuracy = correct(output.logits, &labels) as f64 / batch_size as f64;
            running(&mut progress.robust_accuracy, accuracy);
            progress.step = number;
            progress.step_of_epoch += 1;
            progress.seconds = seconds_before + started.elapsed().as_secs_f64();
            progress.epoch = epoch + 1;

            next = timed(&mut batches, &mut progress.seconds_waiting)?;
            let epoch_ends = next.is_none();
            // The last update before the model is kept or given back: no loss would show what it did.
            if epoch_ends && !is_finite(&model) {
                return Err(TrainError::NonFiniteWeights { step: number });
            }
            if epoch_ends {
                // Broken images that were left out make an epoch shorter.
                progress.steps -= per_epoch - progress.step_of_epoch;
                progress.step_of_epoch = 0;
                // What would be the result of this epoch.
                let result = average.as_ref().map_or(&model, WeightAverage::model);
                let held_out = match (held_out, &recipe.attack) {
                    (Some(held_out), Some(attack)) => {
                        Some(watch(result, held_out, attack, batch_size, number)?)
                    }
                    _ => None,
                };
                progress.history.push(EpochSummary {
                    epoch: progress.epoch,
                    loss: progress.loss,
                    clean_accuracy: progress.clean_accuracy,
                    robust_accuracy: progress.robust_accuracy,
                    held_out,
                    learned: learned_parameters(result),
                });
                let best_so_far = best_epoch(&progress.history).map(|epoch| epoch.epoch);
                if recipe.select == Select::HeldOut && best_so_far == Some(progress.epoch) {
                    best = Some(result.valid());
                }
            }
            let stopped = observe(&progress).is_break();
            if stopped && !epoch_ends && !is_finite(&model) {
                return Err(TrainError::NonFiniteWeights { step: number });
            }
            if let Some((checkpoints, _, identity)) = &checkpoints
                && (epoch_ends || stopped)
            {
                checkpoints.save(Snapshot {
                    model: &model,
                    averaged: average.as_ref().map(WeightAverage::model),
                    best: best.as_ref(),
                    optimizer: &optimizer,
                    recipe,
                    identity,
                    progress: &progress,
                })?;
            }
            if stopped {
                let averaged = average.map(WeightAverage::into_model);
                return Ok(Trained { model, averaged, best, progress });
            }
        }
    }
    Ok(Trained { model, averaged: average.map(WeightAverage::into_model), best, progress })
}

/// The epoch that left the most held-out images right under PGD-10, the first of equal ones.
fn best_epoch(history: &[EpochSummary]) -> Option<&EpochSummary> {
    let withstood = |epoch: &EpochSummary| epoch.held_out.map(|held_out| held_out.pgd_accuracy);
    let better = |best, epoch| if withstood(epoch) > withstood(best) { epoch } else { best };
    history.iter().reduce(better)
}

/// The next batch, and how long it took to come.
fn timed(
    batches: &mut Batches<'_>,
    seconds: &mut f64,
) -> Result<Option<(Tensor<4>, Vec<usize>)>, DataError> {
    let asked = Instant::now();
    let next = batches.next().transpose();
    *seconds += asked.elapsed().as_secs_f64();
    next
}

/// The images to train on and those to watch, as the recipe's `hold_out` says and [`train`] takes them;
/// nothing where it is 0. For Burn's learner, which is given both.
pub fn hold_out<D: TrainingData>(data: &D, recipe: &Recipe) -> Option<(D, D)> {
    (recipe.hold_out > 0).then(|| {
        // Drawn, since files are often sorted by class. No epoch has this number.
        let mut order = data.shuffled(recipe.seed, u64::MAX);
        let mut rest = order.split_off(recipe.hold_out.min(data.len()));
        order.sort_unstable();
        rest.sort_unstable();
        (data.subset(&rest), data.subset(&order))
    })
}

/// The images that are held out, under attack.
fn watch<M: Module + Classifier>(
    model: &M,
    images: &impl TrainingData,
    attack: &TrainingAttack,
    batch_size: usize,
    step: usize,
) -> Result<HeldOut, TrainError> {
    // Images go in as they are: no autodiff but the attack's own.
    let device = model.devices().remove(0).without_autodiff();
    let failed = RefCell::new(None);
    // The evaluation takes batches; an error ends them and is looked at afterwards.
    let batches = || {
        let keep = |error| *failed.borrow_mut() = Some(error);
        images.in_order(batch_size, &device).map_while(move |batch| batch.map_err(keep).ok())
    };
    let measured = HeldOut::of(model, attack, batches);
    match failed.take() {
        Some(error) => Err(error.into()),
        None => measured.map_err(|source| TrainError::Attack { step, source }),
    }
}

/// Whether every floating-point parameter and statistic is a finite number.
fn is_finite<M: Module>(model: &M) -> bool {
    struct Finite(bool);
    impl ModuleVisitor for Finite {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 &= param.val().is_finite().all().into_scalar::<bool>();
        }
    }
    let mut finite = Finite(true);
    model.visit(&mut finite);
    finite.0
}
