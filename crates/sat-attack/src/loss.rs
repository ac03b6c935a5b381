use std::fmt;
use std::sync::Arc;

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor};
use serde::{Serialize, Serializer};

use crate::AttackError;

/// A loss of the caller: logits `[n, classes]` and classes `[n]` to losses `[n]`.
type LossFn = dyn Fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1> + Send + Sync;

/// The per-sample loss that a gradient attack raises for the true label (untargeted) or lowers
/// for the target (targeted).
///
/// Attacks follow the gradient of the *sum* over the batch, so the gradient of one sample does
/// not depend on the size of the batch. Serialises as its name.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Loss {
    /// Cross-entropy, `-ln softmax(z)_y` (see [`cross_entropy`]).
    #[default]
    CrossEntropy,
    /// The difference of logits ratio (see [`dlr`]).
    Dlr,
    /// The margin of the best other class (see [`margin`]).
    Margin,
    /// A loss of the caller (see [`Loss::custom`]).
    Custom(CustomLoss),
}

/// A named loss of the caller, made by [`Loss::custom`].
#[derive(Clone)]
pub struct CustomLoss {
    name: String,
    function: Arc<LossFn>,
}

impl Loss {
    /// A loss of the caller: from logits `[n, classes]` and labels or targets `[n]` to one loss
    /// per sample `[n]`, differentiable by the logits. It gets half-precision logits as f32.
    /// `name` appears in reports.
    pub fn custom<F>(name: impl Into<String>, function: F) -> Self
    where
        F: Fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1> + Send + Sync + 'static,
    {
        Loss::Custom(CustomLoss { name: name.into(), function: Arc::new(function) })
    }

    /// The name in reports: `cross_entropy`, `dlr`, `margin`, or the name given to [`Loss::custom`].
    pub fn name(&self) -> &str {
        match self {
            Loss::CrossEntropy => "cross_entropy",
            Loss::Dlr => "dlr",
            Loss::Margin => "margin",
            Loss::Custom(custom) => &custom.name,
        }
    }

    /// Losses `[n]` of logits `[n, classes]` by `classes` `[n]`.
    ///
    /// # Errors
    ///
    /// [`AttackError::LossShape`] when a custom loss does not return one value per sample;
    /// [`AttackError::TooFewClasses`] for DLR with fewer than 3 classes, and the margin with one.
    pub fn per_sample(
        &self,
        logits: Tensor<2>,
        classes: Tensor<1, Int>,
    ) -> Result<Tensor<1>, AttackError> {
        let [images, _] = logits.dims();
        let loss = match self {
            Loss::CrossEntropy => cross_entropy(logits, classes),
            Loss::Dlr => dlr(logits, classes)?,
            Loss::Margin => margin(logits, classes)?,
            Loss::Custom(custom) => (custom.function)(widen(logits), classes),
        };
        let [values] = loss.dims();
        if values == images {
            Ok(loss)
        } else {
            Err(AttackError::LossShape { loss: self.name().to_owned(), values, images })
        }
    }
}

impl fmt::Debug for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loss({})", self.name())
    }
}

impl fmt::Debug for CustomLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CustomLoss({})", self.name)
    }
}

impl Serialize for Loss {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Cross-entropy per sample, `-ln softmax(z)_y = ln(sum_k e^(z_k - m)) - (z_y - m)` with
/// `m = max_k z_k`, so that no exponential overflows. Half precision is computed in f32.
///
/// Shapes: logits `[n, classes]`, classes `[n]`, result `[n]`, in nats.
///
/// # Panics
///
/// As Burn's `gather`, when the shapes differ or a class is out of range.
pub fn cross_entropy(logits: Tensor<2>, classes: Tensor<1, Int>) -> Tensor<1> {
    log_softmax(widen(logits), 1).gather(1, classes.unsqueeze_dim(1)).squeeze_dim::<1>(1).neg()
}

/// The difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690), per sample:
/// `-(z_y - max_{k != y} z_k) / (z_(1) - z_(3) + 1e-12)`, with `z_(1) >= z_(2) >= ...` the sorted
/// logits. Positive where the prediction is wrong; unlike cross-entropy it does not change when
/// the logits are shifted or scaled.
///
/// Shapes: logits `[n, classes]`, labels `[n]`, result `[n]`.
///
/// # Errors
///
/// [`AttackError::TooFewClasses`] below 3 classes.
pub fn dlr(logits: Tensor<2>, labels: Tensor<1, Int>) -> Result<Tensor<1>, AttackError> {
    require("DLR", 3, &logits)?;
    let logits = widen(logits);
    let order = ranking(&logits);
    let span = rank(&logits, &order, 0) - rank(&logits, &order, 2) + SPAN_MIN;
    Ok(margin_of(logits, order, labels) / span)
}

/// The targeted difference of logits ratio (Croce and Hein 2020, arXiv 2003.01690), per sample:
/// `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)`.
///
/// Shapes: logits `[n, classes]`, labels and targets `[n]`, result `[n]`.
///
/// # Errors
///
/// [`AttackError::TooFewClasses`] below 4 classes.
pub fn targeted_dlr(
    logits: Tensor<2>,
    labels: Tensor<1, Int>,
    targets: Tensor<1, Int>,
) -> Result<Tensor<1>, AttackError> {
    require("targeted DLR", 4, &logits)?;
    let logits = widen(logits);
    let order = ranking(&logits);
    let low = (rank(&logits, &order, 2) + rank(&logits, &order, 3)) * 0.5;
    let span = rank(&logits, &order, 0) - low + SPAN_MIN;
    Ok(targeted_margin(logits, labels, targets) / span)
}

/// The margin of the best other class, per sample: `max_{k != y} z_k - z_y`, positive where the
/// prediction is wrong.
///
/// Shapes: logits `[n, classes]`, labels `[n]`, result `[n]`.
///
/// # Errors
///
/// [`AttackError::TooFewClasses`] for a model of one class.
pub fn margin(logits: Tensor<2>, labels: Tensor<1, Int>) -> Result<Tensor<1>, AttackError> {
    require("margin", 2, &logits)?;
    let logits = widen(logits);
    let order = ranking(&logits);
    Ok(margin_of(logits, order, labels))
}

/// `z_t - z_y` per sample.
pub(crate) fn targeted_margin(
    logits: Tensor<2>,
    labels: Tensor<1, Int>,
    targets: Tensor<1, Int>,
) -> Tensor<1> {
    let pick = |classes: Tensor<1, Int>| {
        logits.clone().gather(1, classes.unsqueeze_dim(1)).squeeze_dim::<1>(1)
    };
    pick(targets) - pick(labels)
}

/// Keeps the division of DLR finite, as the official implementation does.
const SPAN_MIN: f64 = 1e-12;

fn require(loss: &'static str, needs: usize, logits: &Tensor<2>) -> Result<(), AttackError> {
    let [_, classes] = logits.dims();
    if classes < needs {
        return Err(AttackError::TooFewClasses { loss, needs, classes });
    }
    Ok(())
}

/// The classes of each sample by falling logit. No gradient goes through it: the sorted logits are
/// gathered, which Burn can differentiate.
fn ranking(logits: &Tensor<2>) -> Tensor<2, Int> {
    logits.clone().without_autodiff().argsort_descending(1)
}

/// The logit at a rank, from 0, `[n]`.
fn rank(logits: &Tensor<2>, order: &Tensor<2, Int>, rank: usize) -> Tensor<1> {
    logits.clone().gather(1, order.clone().narrow(1, rank, 1)).squeeze_dim(1)
}

fn margin_of(logits: Tensor<2>, order: Tensor<2, Int>, labels: Tensor<1, Int>) -> Tensor<1> {
    let labels = labels.unsqueeze_dim::<2>(1);
    let first = order.clone().narrow(1, 0, 1);
    let right = first.clone().equal(labels.clone());
    let rival = first.mask_where(right, order.narrow(1, 1, 1));
    (logits.clone().gather(1, rival) - logits.gather(1, labels)).squeeze_dim(1)
}

/// Half precision as f32; f32 and f64 as they are.
pub(crate) fn widen<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F64 | DType::F32 => tensor,
        _ => tensor.cast(DType::F32),
    }
}

/// Cross-entropy of one row of finite logits, on the host.
pub(crate) fn cross_entropy_of(logits: &[f32], class: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
    (sum.ln() - f64::from(logits[class] - max)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_cross_entropy_is_stable() {
        assert!((cross_entropy_of(&[0.0, 0.0], 0) - 2f32.ln()).abs() < 1e-7);
        assert_eq!(cross_entropy_of(&[1e30, 0.0], 0), 0.0);
        assert_eq!(cross_entropy_of(&[1000.0, 0.0], 1), 1000.0);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn device_and_host_agree() {
        let device = burn::tensor::Device::flex();
        let rows = [[1.5f32, -2.0, 900.0], [0.1, 0.2, 0.3]];
        let logits = Tensor::<2>::from_floats(rows, &device);
        let classes = Tensor::<1, Int>::from_ints([1, 2], &device);
        let losses: Vec<f32> = cross_entropy(logits, classes).try_into_vec_as().unwrap();
        assert!((losses[0] - cross_entropy_of(&rows[0], 1)).abs() < 1e-3);
        assert!((losses[1] - cross_entropy_of(&rows[1], 2)).abs() < 1e-6);
    }
}
