//! Tests of the attacks on the CPU backend: `cargo test --release -p sat-attack --features flex`.
#![cfg(feature = "flex")]

mod behaviour;
mod errors;
mod models;
mod properties;
mod training_mode;
