//! Adversarial attacks against any [Burn](https://burn.dev) image classifier, from FGSM to
//! AutoAttack, for Linf, L2 and L1, and robust accuracy over a data set.
//!
//! An attack is a value; the victim, the goal and the threat come at the call, and the answer is
//! per sample.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor};
//! use sat_attack::{Attack, Classifier, Goal, Pgd, ThreatModel, Victim};
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     linear: Linear,
//! }
//!
//! impl Classifier for Model {
//!     fn logits(&self, images: Tensor<4>) -> Tensor<2> {
//!         self.linear.forward(images.flatten(1, 3))
//!     }
//! }
//!
//! let device = Device::flex();
//! let model = Model { linear: LinearConfig::new(12, 10).init(&device) };
//! let images = Tensor::<4>::full([2, 3, 2, 2], 0.5, &device);
//!
//! // Frozen, with the input normalisation inside: eps and bounds are in image units.
//! let victim = Victim::new(&model).normalize(&[0.5, 0.5, 0.5], &[0.2, 0.2, 0.2])?;
//! let threat = ThreatModel::linf(8.0 / 255.0);
//! let adv = Pgd::default()
//!     .steps(20)
//!     .step_size(2.0 / 255.0)
//!     .restarts(5)
//!     .stop_when_fooled()
//!     .run(&victim, images, Goal::untargeted([3, 7]), &threat)?;
//! println!("{} of {} fooled, {} forwards", adv.fooled(), adv.len(), adv.cost.forwards);
//! # }
//! # Ok::<(), sat_attack::AttackError>(())
//! ```
//!
//! The number that leaderboards compare is AutoAttack's, over a data set, in batches, with a state
//! that a killed run resumes from:
//!
//! ```no_run
//! # use burn::tensor::Tensor;
//! # fn evaluate(
//! #     victim: &sat_attack::Victim<'_>,
//! #     batches: Vec<(Tensor<4>, Vec<usize>)>,
//! # ) -> Result<(), sat_attack::AttackError> {
//! use sat_attack::{AutoAttack, Evaluation, ThreatModel};
//! use std::ops::ControlFlow;
//!
//! let (attack, threat) = (AutoAttack::standard(), ThreatModel::linf(8.0 / 255.0));
//! let evaluation = Evaluation::new(victim, &attack, &threat).resume_from("aa.state");
//! let report = evaluation.run(batches, |_| ControlFlow::Continue(()))?;
//! report.lines().iter().for_each(|line| println!("{line}"));
//! # Ok(())
//! # }
//! ```
//!
//! | attack | |
//! |---|---|
//! | [`Fgsm`], [`RFgsm`], [`NFgsm`] | one gradient |
//! | [`Pgd`] | PGD, MI-FGSM and NI-FGSM |
//! | [`Apgd`] | APGD-CE, APGD-DLR, APGD-T |
//! | [`Fab`] | FAB, FAB-T, and minimal perturbations |
//! | [`Square`] | no gradient |
//! | [`AutoAttack`], [`Ensemble`] | several in turn |
//! | [`Restarts`], [`Eot`], [`BothGradients`] | around any attack |
//! | [`eps_sweep`], [`minimal_norm`] | over radii |
//!
//! # Rules
//!
//! - Gradients are of the input only. [`Victim::new`] freezes a copy of the model; BatchNorm
//!   statistics and weights stay as they are.
//! - The returned images lie in the ball and in the bounds, and success is re-checked on them by a
//!   fresh forward pass.
//! - Every random draw comes from one seed through a generator of our own, so a run repeats.
//! - Bad input gives an [`AttackError`], also when it shows only in the model's output: NaN logits
//!   or gradients never count as robust.
//!
//! For training, [`Attack::perturb`] returns just the images, with no pass more than the steps.

#![warn(missing_docs)]

mod apgd;
mod attack;
mod autoattack;
mod batch;
mod ensemble;
mod error;
mod evaluate;
mod fab;
mod fgsm;
mod flag;
mod goal;
mod hyperplane;
mod identity;
mod loss;
mod noise_fgsm;
mod pgd;
mod project;
mod rng;
mod square;
mod state;
mod threat;
mod victim;
mod wrappers;

pub use apgd::{Apgd, FewClasses};
pub use attack::{Adversarial, Attack, Cost, Stage};
pub use autoattack::{AutoAttack, Member, ParseMemberError};
pub use ensemble::Ensemble;
pub use error::AttackError;
pub use evaluate::{Evaluation, Pixels, Report, SampleRecord, StageReport, evaluate};
pub use fab::{Fab, Minimal};
pub use fgsm::Fgsm;
pub use flag::Flag;
pub use goal::{Aim, Goal, Labels};
pub use identity::Identity;
pub use loss::{CustomLoss, Loss, cross_entropy, dlr, margin, targeted_dlr};
pub use noise_fgsm::{NFgsm, RFgsm};
pub use pgd::{Pgd, RandomStart};
pub use project::Ball;
pub use square::{Schedule, Square};
pub use threat::{Eps, Norm, ParseNormError, ThreatModel};
pub use victim::{Classifier, Victim};
pub use wrappers::{BothGradients, Eot, Restarts, SweepPoint, eps_sweep, minimal_norm};
