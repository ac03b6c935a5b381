//! Smooth adversarial training for [Burn](https://burn.dev): the four crates under one name.
//!
//! | part | crate | for |
//! |---|---|---|
//! | [`core`] | `sat-core` | smooth activations and fused normalisation, with kernels of their own |
//! | [`attack`] | `sat-attack` | FGSM, PGD, AutoAttack, and robust accuracy over a data set |
//! | [`models`] | `sat-models` | residual networks and PyTorch weights |
//! | [`train`] | `sat-train` | adversarial training, data sets, checkpoints |

#![warn(missing_docs)]

pub use sat_attack as attack;
pub use sat_core as core;
pub use sat_models as models;
pub use sat_train as train;

/// The code in the guide to attacks, compiled and run with the documentation tests.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../docs/attacking.md")]
struct Attacking;

/// The code in the README, compiled and run with the documentation tests.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
struct Readme;
