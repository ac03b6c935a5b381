//! Tests of the attacks on the CPU backend: `cargo test --release -p sat-attack --features flex`.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
#![allow(clippy::single_range_in_vec_init, reason = "Burn's slice takes arrays of ranges")]

mod behaviour;
mod ensembles;
mod errors;
mod models;
mod properties;
mod resume;
mod strong;
mod training_mode;
