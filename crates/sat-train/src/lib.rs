//! Adversarial training of [Burn](https://burn.dev) classifiers.
//!
//! A [`Recipe`] says how to train, [`train`] does it with checkpoints that resume to the same weights,
//! and [`AdversarialStep`] is the single step for loops of one's own. Data sets are in [`data`];
//! robust accuracy is measured by [`sat_attack::evaluate`].
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::{module::Module, tensor::Device};
//! use sat_attack::Victim;
//! use sat_models::{ResNetConfig, StageConfig};
//! use sat_train::{Normalized, Recipe, data::ImageSet, train};
//! use std::ops::ControlFlow;
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
//! let trained = train(model, &recipe, &data, &device, None, |progress| {
//!     println!("step {} of {}: loss {:.3}", progress.step, progress.steps, progress.loss);
//!     ControlFlow::Continue(())
//! })?;
//! let victim = Victim::new(&trained.model);
//! # let _ = victim;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs)]

pub mod data;
#[cfg(feature = "burn-train")]
pub mod learner;

mod average;
mod checkpoint;
mod normalized;
mod objective;
mod precision;
mod recipe;
mod schedule;
mod source;
mod step;
mod targets;
mod train;
mod units;
mod watch;

pub use average::WeightAverage;
pub use checkpoint::{CheckpointError, Checkpoints};
pub use normalized::{NormalizationError, Normalized};
pub use objective::{Objective, Perturbation, mart_loss, smoothed_cross_entropy, trades_loss};
pub use precision::{Precision, UnsupportedPrecision};
pub use recipe::{
    AttackStart, Decayed, MomentumForm, Recipe, RecipeError, RecipeFileError, Select,
    TrainingAttack,
};
pub use schedule::Schedule;
pub use source::{Batches, TrainingData};
pub use step::{AdversarialStep, StepOutput, optimizer};
pub use train::{EpochSummary, Progress, Start, TrainError, Trained, hold_out, train};
pub use units::{EpsError, parse_eps};
pub use watch::{HeldOut, LearnedParameters, learned_parameters};
