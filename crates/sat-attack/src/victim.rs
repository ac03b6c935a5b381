use std::fmt;
use std::rc::Rc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};

use crate::AttackError;
use crate::loss::widen;

/// A model that maps images `[n, channels, height, width]` to logits `[n, classes]`.
pub trait Classifier {
    /// The logits of a batch. Must be differentiable by `images`, and treat samples separately.
    fn logits(&self, images: Tensor<4>) -> Tensor<2>;

    /// Starts the random numbers of a training pass (dropout, stochastic depth) anew from a seed. A
    /// network that draws none has nothing to do.
    fn reseed(&self, _seed: u64) {}
}

/// The model under attack, frozen, with its input normalisation inside.
///
/// The attacker sees images in image units (usually `[0, 1]`); [`Victim::normalize`] keeps eps and
/// bounds in those units. Gradients are computed for the input only.
#[derive(Clone)]
pub struct Victim<'a> {
    forward: Rc<dyn Fn(Tensor<4>) -> Tensor<2> + 'a>,
    normalization: Option<Normalization>,
    /// How many gradients are averaged.
    passes: usize,
}

#[derive(Clone, Debug)]
struct Normalization {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl<'a> Victim<'a> {
    /// Freezes a copy of `model` with [`Module::valid`]: weights are constants without gradients,
    /// dropout is off, BatchNorm uses its running statistics and does not update them. The model
    /// itself may be in training mode on an autodiff device; it is not changed. Copying shares
    /// the weights' memory.
    pub fn new<M: Module + Classifier + 'a>(model: &M) -> Self {
        let model = model.valid();
        Self::from_fn(move |images| model.logits(images))
    }

    /// Wraps a function from images `[n, c, h, w]` to logits `[n, classes]`.
    ///
    /// The caller freezes the model, with `model.valid()`: a model in training mode would update
    /// its BatchNorm statistics during the attack and compute weight gradients for nothing.
    pub fn from_fn(forward: impl Fn(Tensor<4>) -> Tensor<2> + 'a) -> Self {
        Self { forward: Rc::new(forward), normalization: None, passes: 1 }
    }

    /// The same model, whose gradient is the mean of `passes` gradients.
    pub(crate) fn averaged(&self, passes: usize) -> Self {
        Self { passes: self.passes * passes, ..self.clone() }
    }

    pub(crate) fn passes(&self) -> usize {
        self.passes
    }

    /// Feeds the model `(x - mean) / std`, per channel. Replaces an earlier normalisation.
    ///
    /// # Errors
    ///
    /// [`AttackError::NormalizationLength`] when the slices are empty or differ in length,
    /// [`AttackError::NormalizationValue`] when a value is not finite or a std is not positive.
    /// Images with another number of channels give [`AttackError::ChannelCount`] when they come.
    pub fn normalize(mut self, mean: &[f64], std: &[f64]) -> Result<Self, AttackError> {
        if mean.len() != std.len() || mean.is_empty() {
            return Err(AttackError::NormalizationLength { mean: mean.len(), std: std.len() });
        }
        for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
            if !(mean.is_finite() && std.is_finite() && std > 0.0) {
                return Err(AttackError::NormalizationValue { channel, mean, std });
            }
        }
        self.normalization = Some(Normalization { mean: mean.to_vec(), std: std.to_vec() });
        Ok(self)
    }

    /// Logits `[n, classes]` of images `[n, c, h, w]`, without autodiff.
    ///
    /// # Errors
    ///
    /// [`AttackError::EmptyBatch`], [`AttackError::ChannelCount`], [`AttackError::LogitsShape`].
    pub fn logits(&self, images: Tensor<4>) -> Result<Tensor<2>, AttackError> {
        Ok(self.forward(images.without_autodiff())?.without_autodiff())
    }

    /// The class with the largest logit for each image; the first of equals.
    ///
    /// # Errors
    ///
    /// As [`Victim::logits`], and [`AttackError::NonFiniteLogits`].
    pub fn predict(&self, images: Tensor<4>) -> Result<Vec<usize>, AttackError> {
        let rows = LogitRows::read(self.logits(images)?)?;
        Ok(rows.iter().map(argmax).collect())
    }

    /// Logits `[n, classes]` of the images, and the gradient `[n, c, h, w]` by the images of the
    /// sum of `loss`, which maps logits to one loss per sample. Both come without autodiff; one
    /// forward and one backward pass. Images on an autodiff device are taken out of their graph.
    ///
    /// # Errors
    ///
    /// As [`Victim::logits`]; [`AttackError::NoGradient`] when the loss does not depend on the
    /// images; and whatever `loss` returns.
    pub fn input_gradient(
        &self,
        images: Tensor<4>,
        loss: impl Fn(Tensor<2>) -> Result<Tensor<1>, AttackError>,
    ) -> Result<(Tensor<2>, Tensor<4>), AttackError> {
        let (logits, mut gradient) = self.one_gradient(images.clone(), &loss)?;
        for _ in 1..self.passes {
            gradient = gradient + self.one_gradient(images.clone(), &loss)?.1;
        }
        if self.passes > 1 {
            gradient = gradient / self.passes as f64;
        }
        Ok((logits, gradient))
    }

    fn one_gradient(
        &self,
        images: Tensor<4>,
        loss: impl Fn(Tensor<2>) -> Result<Tensor<1>, AttackError>,
    ) -> Result<(Tensor<2>, Tensor<4>), AttackError> {
        let leaf = images.without_autodiff().autodiff().require_grad();
        let logits = self.forward(leaf.clone())?;
        let loss = loss(logits.clone())?;
        if !loss.is_tracked() {
            return Err(AttackError::NoGradient);
        }
        let mut gradients = loss.sum().backward();
        let gradient = leaf.grad_remove(&mut gradients).ok_or(AttackError::NoGradient)?;
        Ok((logits.without_autodiff(), with_plain_strides(gradient)))
    }

    fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, AttackError> {
        let [count, channels, ..] = images.dims();
        if count == 0 {
            return Err(AttackError::EmptyBatch);
        }
        let images = match &self.normalization {
            None => images,
            Some(normalization) if normalization.mean.len() != channels => {
                return Err(AttackError::ChannelCount {
                    images: channels,
                    normalization: normalization.mean.len(),
                });
            }
            Some(Normalization { mean, std }) => {
                let device = images.device().without_autodiff();
                let per_channel = |values: &[f64]| {
                    let data = TensorData::new(values.to_vec(), [1, values.len(), 1, 1]);
                    Tensor::<4>::from_data(data, (&device, images.dtype()))
                };
                let (mean, std) = (per_channel(mean), per_channel(std));
                (images - mean) / std
            }
        };
        let logits = (self.forward)(images);
        let [rows, classes] = logits.dims();
        if rows != count || classes == 0 {
            return Err(AttackError::LogitsShape { rows, classes, images: count });
        }
        Ok(logits)
    }
}

/// The same gradient, without the strides that a convolution gives to a single channel. In a chain that
/// overwrites such a tensor, Burn 0.22.1's fusion engine reads the others at wrong places
/// (docs/upstream/activations-and-normalisation.md).
fn with_plain_strides(gradient: Tensor<4>) -> Tensor<4> {
    let shape = gradient.dims();
    if shape[1] != 1 {
        return gradient;
    }
    gradient.flatten::<2>(1, 3).reshape(shape)
}

impl fmt::Debug for Victim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Victim").field("normalization", &self.normalization).finish_non_exhaustive()
    }
}

/// Finite logits on the host.
pub(crate) struct LogitRows {
    values: Vec<f32>,
    classes: usize,
}

impl LogitRows {
    pub(crate) fn read(logits: Tensor<2>) -> Result<Self, AttackError> {
        let [_, classes] = logits.dims();
        let values = widen(logits).try_into_vec_as::<f32>()?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(position) => Err(AttackError::NonFiniteLogits { sample: position / classes }),
            None => Ok(Self { values, classes }),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.classes)
    }
}

/// For each row the classes other than its label, by falling logit; the first of equals first.
pub(crate) fn ranked(
    logits: Tensor<2>,
    labels: impl Iterator<Item = usize>,
) -> Result<Vec<Vec<usize>>, AttackError> {
    let rows = LogitRows::read(logits)?;
    Ok(rows
        .iter()
        .zip(labels)
        .map(|(row, label)| {
            let mut order: Vec<usize> = (0..row.len()).filter(|&class| class != label).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            order
        })
        .collect())
}

/// Index of the largest value, the first of equals.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}
