use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Device, FloatDType, Tensor},
};
use sat_attack::Classifier;
use sat_core::activation_parameters;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt};

/// The type that the network computes in while it trains and is attacked in training.
///
/// Weights, their updates, the optimizer's state, images, logits and losses are of the model's own
/// type in any case, and so are evaluation and held-out images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// The type of the weights, `f32` as a rule. On NVIDIA GPUs CubeCL multiplies `f32` in TF32.
    #[default]
    Full,
    /// Mixed precision ([arXiv 1710.03740](https://arxiv.org/abs/1710.03740)) with `bf16`, whose range is
    /// that of `f32`, so that losses need no scaling ([arXiv 1905.12322](https://arxiv.org/abs/1905.12322)).
    ///
    /// Convolutions, linear layers and all other parameters but those of BatchNorm and of activations are
    /// rounded to `bf16` for each pass and the gradient of the rounded ones goes to the `f32` weights. What layers
    /// give on is `bf16` as well, with sums, statistics and activations computed in `f32`.
    ///
    /// A network gets its images in `f32` (so that eps and normalisation are not rounded) and takes them to the type
    /// of its weights. [`sat_core::Conv2d`] does so and `sat-models`' networks with it; one that begins
    /// with Burn's convolution calls `cast` before it. BatchNorm must be
    /// [`sat_core::BatchNormAct`]: Burn's takes no `bf16` beside `f32`.
    ///
    /// It is meant for GPUs with tensor cores; elsewhere it is slower. Not every device has it: see
    /// [`is_supported`](Self::is_supported).
    Bf16Mixed,
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

    fn lowered(self) -> Option<FloatDType> {
        match self {
            Self::Full => None,
            Self::Bf16Mixed => Some(FloatDType::BF16),
        }
    }

    /// The model as a pass computes it, for loops of one's own: itself, or a copy with rounded weights that
    /// are on the graph of its own, so that gradients arrive at those; running statistics are shared.
    /// Its logits are `bf16`: take them to `f32` before the loss.
    pub fn of<M: Module>(self, model: &M) -> Cow<'_, M> {
        match self.lowered() {
            None => Cow::Borrowed(model),
            Some(dtype) => {
                let kept = activation_parameters(model);
                let lower = &mut Lower { dtype, kept, norms: Vec::new() };
                Cow::Owned(model.clone().map(lower))
            }
        }
    }
}

/// The logits, in the type of the images.
pub(crate) fn logits<M: Classifier>(model: &M, images: Tensor<4>) -> Tensor<2> {
    let dtype = images.dtype();
    model.logits(images).cast(dtype)
}

/// Rounds parameters, but those of activations and of BatchNorm. Running statistics must stay: the copy shares
/// them with the model.
struct Lower {
    dtype: FloatDType,
    kept: Vec<ParamId>,
    /// Of the modules entered, which are BatchNorms.
    norms: Vec<bool>,
}

impl ModuleMapper for Lower {
    fn enter_module(&mut self, _: &str, container: &str) {
        self.norms.push(container == "Struct:BatchNorm");
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.norms.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.norms.last() == Some(&true) || self.kept.contains(&param.id) {
            return param;
        }
        param.map(|weight| weight.cast(self.dtype))
    }
}
