use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    tensor::{Device, FloatDType, Tensor},
};
use sat_attack::Classifier;
use sat_core::activation_parameters;
use serde::{Deserialize, Serialize};
use std::{collections::HashSet, fmt};

/// What the network computes in while it trains and is attacked in training.
///
/// Weights, their updates, the optimizer's state, images and losses keep their type in any case, and so
/// do evaluation and held-out images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// The type of the weights, `f32` as a rule. On NVIDIA GPUs CubeCL multiplies `f32` in TF32.
    #[default]
    Full,
    /// Mixed precision ([arXiv 1710.03740](https://arxiv.org/abs/1710.03740)) with `bf16`, whose range is
    /// that of `f32`, so that losses need no scaling ([arXiv 1905.12322](https://arxiv.org/abs/1905.12322)).
    ///
    /// All parameters but those of BatchNorm and of activations are rounded to `bf16` for each pass, and
    /// the gradients of the rounded ones go to the weights, in `f32`. Layers take and give `bf16`; those of
    /// `sat-core` compute sums, statistics and curves in `f32`, others as Burn does. Logits have the
    /// digits of `bf16`, the loss is computed in `f32`.
    ///
    /// A network gets its images in `f32`, so that eps and normalisation are not rounded, and its first layer takes
    /// them to the type of its weights. [`sat_core::Conv2d`] does so, and with it the networks of
    /// `sat-models`; before a first layer of Burn's call `cast`. Behind it no layer may meet
    /// an `f32` tensor: Flex panics there, and GPU backends compute nonsense without an error, so try
    /// a network of your own on Flex. BatchNorm must be [`sat_core::BatchNormAct`].
    ///
    /// It is meant for GPUs with tensor cores for `bf16`, Ampere or newer; elsewhere it is slower. Not every
    /// device has it: see [`is_supported`](Self::is_supported).
    Bf16Mixed,
}

/// A precision that a device does not compute in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`precision` is {precision}, in which {device} does not compute; leave it out")]
pub struct UnsupportedPrecision {
    /// What was asked for.
    pub precision: Precision,
    /// The device, as Burn names it.
    pub device: String,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Bf16Mixed => "bf16-mixed",
        })
    }
}

impl Precision {
    /// Whether the device computes in this type.
    pub fn is_supported(self, device: &Device) -> bool {
        self.lowered().is_none_or(|dtype| device.supports_dtype(dtype))
    }

    /// Refuses a device that does not compute in this type.
    ///
    /// # Errors
    ///
    /// [`UnsupportedPrecision`] unless it [is supported](Self::is_supported).
    pub fn check(self, device: &Device) -> Result<(), UnsupportedPrecision> {
        if self.is_supported(device) {
            return Ok(());
        }
        Err(UnsupportedPrecision { precision: self, device: format!("{device:?}") })
    }

    fn lowered(self) -> Option<FloatDType> {
        match self {
            Self::Full => None,
            Self::Bf16Mixed => Some(FloatDType::BF16),
        }
    }

    /// The model as a pass computes it, for loops of one's own: in mixed precision with rounded
    /// parameters, which are on the graph of the model's own, so that gradients arrive at those. Running
    /// statistics are shared with the model, as by `clone()`, and not rounded. The logits are
    /// `bf16`: take them to `f32` before the loss.
    ///
    /// # Panics
    ///
    /// In mixed precision, if a device of the model does not [compute](Self::is_supported) in it, or if
    /// the model has a BatchNorm of Burn's.
    pub fn apply<M: Module>(self, model: M) -> M {
        let Some(dtype) = self.lowered() else {
            return model;
        };
        if let Err(error) = model.devices().iter().try_for_each(|device| self.check(device)) {
            panic!("{error}");
        }
        let mut kept = running_states(&model);
        kept.extend(activation_parameters(&model));
        let mut lower = Lower { dtype, kept, inside: Vec::new(), has_burns_norm: false };
        lower.inside.push(Inside::default());
        let model = model.map(&mut lower);
        lower.leave();
        assert!(!lower.has_burns_norm, "{self} needs sat_core::BatchNormAct in place of BatchNorm");
        model
    }
}

/// The logits, in the type of the images.
pub(crate) fn logits<M: Classifier>(model: &M, images: Tensor<4>) -> Tensor<2> {
    let dtype = images.dtype();
    model.logits(images).cast(dtype)
}

/// What a mapper must leave alone, because clones share it: the map writes through to all of them, and that
/// is how it can be told from parameters.
fn running_states<M: Module>(model: &M) -> HashSet<ParamId> {
    struct Mark;
    impl ModuleMapper for Mark {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(Tensor::autodiff)
        }
    }
    #[derive(Default)]
    struct Marked(HashSet<ParamId>);
    impl ModuleVisitor for Marked {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.val().is_autodiff() {
                self.0.insert(param.id);
            }
        }
    }
    // It has states of its own, and nothing in it is on an autodiff device.
    let probe = model.valid();
    drop(probe.clone().map(&mut Mark));
    let mut marked = Marked::default();
    probe.visit(&mut marked);
    marked.0
}

/// Rounds parameters, but those that are kept and those of BatchNorm.
struct Lower {
    dtype: FloatDType,
    kept: HashSet<ParamId>,
    /// The fields entered, and around them the model.
    inside: Vec<Inside>,
    has_burns_norm: bool,
}

#[derive(Default)]
struct Inside {
    /// Whether it is a field of a BatchNorm.
    of_norm: bool,
    /// Whether it is a BatchNorm, by its gain, and one of ours, by its activation.
    is_norm: bool,
    is_ours: bool,
}

impl Lower {
    fn leave(&mut self) {
        let left = self.inside.pop().unwrap_or_default();
        self.has_burns_norm |= left.is_norm && !left.is_ours;
    }
}

impl ModuleMapper for Lower {
    fn enter_module(&mut self, name: &str, container: &str) {
        let of_norm = container == "Struct:BatchNorm";
        if let (true, Some(norm)) = (of_norm, self.inside.last_mut()) {
            norm.is_norm |= name == "gamma";
            norm.is_ours |= name == "activation";
        }
        self.inside.push(Inside { of_norm, ..Inside::default() });
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let of_norm = self.inside.last().is_some_and(|field| field.of_norm);
        if of_norm || self.kept.contains(&param.id) {
            return param;
        }
        param.map(|weight| weight.dequantize().cast(self.dtype))
    }
}
