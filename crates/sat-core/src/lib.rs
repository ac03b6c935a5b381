#![warn(missing_docs)]
// Burn keeps NdArray working; so do we.
#![cfg_attr(feature = "ndarray", allow(deprecated))]
//! Smooth activation functions for [Burn](https://burn.dev), with fused forward and backward kernels.
//!
//! Each activation is one operation with its own differentiation rule: the graph keeps the input and
//! nothing else, and the backward pass is one pass over the data. On Flex, Burn's CPU backend, and on
//! NdArray both passes are hand-written vector loops; on the CubeCL backends (GPUs, and CPUs through LLVM) they are
//! kernels written by the same formulas. Everywhere else, and outside a [`BatchNormAct`] under Burn's
//! fusion engine, which merges them with their neighbours, they are composed of Burn's primitives. On a
//! backend that the crate was not built for Burn differentiates that form, and the graph keeps more.
//!
//! | to have | use |
//! |---|---|
//! | a function of a tensor | [`tensor`], e.g. [`tensor::silu`], or `x.silu()` with [`ActivationExt`] |
//! | a module in a model | [`Activation`], built by [`ActivationConfig::init`] |
//! | a normalisation and its activation in one operation | [`BatchNormAct`], built by [`BatchNormActConfig::init`] |
//! | a convolution that is fast on the CPU | [`Conv2d`], in the place of Burn's |
//! | global average pooling, and a gate on channels | [`channel_means`], [`scale_channels`] |
//! | the step of an attack in Linf | [`sign_step`] |
//! | a choice in a configuration file or on a command line | [`ActivationConfig`], `"silu".parse()` |
//! | another gradient than the function's own | [`Gradient::Of`], `"relu~psoftplus:10"` |
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor};
//! use sat_core::ActivationExt;
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<1>::from_floats([-2.0, 0.0, 2.0], &device).require_grad();
//! let grads = x.clone().smooth_relu(400.0).sum().backward();
//! let dx = x.grad(&grads).unwrap();
//! # let _ = dx;
//! # }
//! ```
//!
//! # Backends
//!
//! The features `flex`, `ndarray`, `cuda`, `wgpu`, `vulkan`, `metal`, `rocm` and `cpu` are additive
//! and off by default; each enables the Burn backend of that name. On a backend of Burn that this
//! crate was not built for, the same functions run, composed of Burn's operations. [`device`] turns a
//! name into a device, or into an error that names the missing feature.

pub mod backend;
pub mod device;
pub mod tensor;

mod activation;
mod conv;
mod curve;
mod error;
mod gate;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod lane;
mod module;
mod norm;
#[cfg(any(feature = "flex", feature = "ndarray", feature = "cube"))]
mod single;
mod step;
mod text;
mod value;

pub use activation::{
    Activation, ActivationConfig, Function, Gradient, Learnable, SharedParameters, Sharing,
    activation_parameters, replace_activations, replace_gradients,
};
pub use backend::Pair;
pub use conv::{Conv2d, Conv2dConfig};
pub use curve::Curve;
pub use error::ActivationError;
pub use gate::{channel_means, scale_channels};
pub use norm::{BatchNormAct, BatchNormActConfig, NormError};
pub use step::sign_step;
pub use tensor::ActivationExt;

/// Runs the code of the README.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
struct Readme;
