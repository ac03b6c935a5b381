use burn::{module::Module, tensor::Tensor};
use sat_attack::Classifier;
use sat_models::PixelStatistics;

/// A classifier behind the normalisation of its input: images in [0, 1] come in, the model sees
/// (x - mean)/std, channel by channel.
///
/// With the normalisation inside, training, attacks and evaluation all speak of eps in image units.
#[derive(Module, Debug)]
pub struct Normalized<M: Module> {
    /// The model itself.
    pub model: M,
    #[module(skip)]
    pixels: PixelStatistics,
}

/// A normalisation that cannot be applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NormalizationError {
    /// Mean and standard deviation are for different numbers of channels.
    #[error(
        "normalisation: {mean} means and {std} standard deviations; give one of each a channel"
    )]
    Length {
        /// Number of means.
        mean: usize,
        /// Number of standard deviations.
        std: usize,
    },
    /// A value is not finite, or a standard deviation is not positive.
    #[error(
        "normalisation of channel {channel}: mean {mean}, standard deviation {std}; \
         both must be finite, and the second above 0"
    )]
    Value {
        /// The channel.
        channel: usize,
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },
}

impl<M: Module> Normalized<M> {
    /// Puts the normalisation in front of the model: one mean and one standard deviation a channel.
    ///
    /// # Errors
    ///
    /// [`NormalizationError`] if the numbers of channels differ or a value cannot be used.
    pub fn new(model: M, mean: &[f64], std: &[f64]) -> Result<Self, NormalizationError> {
        if mean.len() != std.len() || mean.is_empty() {
            return Err(NormalizationError::Length { mean: mean.len(), std: std.len() });
        }
        for (channel, (&mean, &std)) in mean.iter().zip(std).enumerate() {
            if !(mean.is_finite() && std.is_finite() && std > 0.0) {
                return Err(NormalizationError::Value { channel, mean, std });
            }
        }
        let to_f32 = |values: &[f64]| values.iter().map(|value| *value as f32).collect();
        Ok(Self { model, pixels: PixelStatistics { mean: to_f32(mean), std: to_f32(std) } })
    }

    /// Mean and standard deviation of each channel.
    pub fn statistics(&self) -> (&[f32], &[f32]) {
        (&self.pixels.mean, &self.pixels.std)
    }

    /// The normalisation of arXiv 2006.14536, x * 2 - 1 in every channel.
    pub fn to_plus_minus_one(model: M, channels: usize) -> Self {
        let half = vec![0.5; channels];
        Self { model, pixels: PixelStatistics { mean: half.clone(), std: half } }
    }
}

/// # Panics
///
/// If the images have another number of channels than the normalisation.
impl<M: Module + Classifier> Classifier for Normalized<M> {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        self.model.logits(self.pixels.normalize(images))
    }

    fn reseed(&self, seed: u64) {
        self.model.reseed(seed);
    }
}
