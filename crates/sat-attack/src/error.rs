use std::io;
use std::path::PathBuf;

use burn::tensor::TensorReadError;

use crate::Norm;

/// What can go wrong in this crate.
///
/// Sample numbers count from zero within the batch handed in. Threats, images and settings are
/// checked before the model is run; what depends on the model's output (class count, finite
/// logits) is checked as soon as it is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// The batch holds no image.
    #[error("the batch holds no images: pass at least one")]
    EmptyBatch,

    /// `eps` is negative, infinite or NaN.
    #[error("eps must be finite and at least 0, but it is {eps}{}", at_sample(*.sample))]
    InvalidEps {
        /// The value found.
        eps: f64,
        /// The sample it belongs to; `None` for an `eps` shared by all samples.
        sample: Option<usize>,
    },

    /// The number of per-sample radii differs from the number of images.
    #[error("{eps} per-sample eps for {images} images: give one eps per image")]
    EpsCount {
        /// Number of radii.
        eps: usize,
        /// Number of images.
        images: usize,
    },

    /// The number of masks differs from the number of images.
    #[error("{masks} masks for {images} images: give one mask per image")]
    MaskCount {
        /// Number of masks.
        masks: usize,
        /// Number of images.
        images: usize,
    },

    /// A mask does not have one flag per pixel value.
    #[error("the mask of sample {sample} has {flags} flags for {values} pixel values")]
    MaskLength {
        /// The sample.
        sample: usize,
        /// Flags of its mask.
        flags: usize,
        /// Pixel values of an image.
        values: usize,
    },

    /// The pixel bounds are not finite or not in ascending order.
    #[error("image bounds must be finite with lower < upper, but they are [{lower}, {upper}]")]
    InvalidBounds {
        /// Lowest pixel value allowed.
        lower: f64,
        /// Highest pixel value allowed.
        upper: f64,
    },

    /// An image holds a NaN or an infinite value.
    #[error("image {sample} holds the value {value}: remove NaN and infinity from the input")]
    NonFiniteImage {
        /// The sample.
        sample: usize,
        /// The first such value.
        value: f64,
    },

    /// A clean image leaves the bounds, so no point of the ball around it need be valid.
    #[error(
        "image {sample} holds the value {value}, outside the bounds [{lower}, {upper}]: attack \
         images before normalisation (see `Victim::normalize`) or set `ThreatModel::bounds`"
    )]
    ImageOutOfBounds {
        /// The sample.
        sample: usize,
        /// The first such value.
        value: f64,
        /// Lowest pixel value allowed.
        lower: f64,
        /// Highest pixel value allowed.
        upper: f64,
    },

    /// The number of labels or targets differs from the number of images.
    #[error("{labels} labels for {images} images: give one label per image")]
    LabelCount {
        /// Number of labels.
        labels: usize,
        /// Number of images.
        images: usize,
    },

    /// A label or target names no class of the model.
    #[error("sample {sample} has label {label}, but the model has {classes} classes")]
    LabelOutOfRange {
        /// The sample.
        sample: usize,
        /// Its label or target.
        label: i64,
        /// Number of columns of the logits.
        classes: usize,
    },

    /// The model did not return one row of logits per image.
    #[error("the model returned logits of shape [{rows}, {classes}] for {images} images")]
    LogitsShape {
        /// Rows returned.
        rows: usize,
        /// Columns returned.
        classes: usize,
        /// Images passed in.
        images: usize,
    },

    /// The model returned a NaN or infinite logit.
    #[error("the model returned a NaN or infinite logit for sample {sample}")]
    NonFiniteLogits {
        /// The sample.
        sample: usize,
    },

    /// The gradient of the loss by the image holds a NaN or an infinity.
    #[error(
        "the gradient by image {sample} holds a NaN or an infinity: the attack cannot follow it, \
         and skipping it would report robustness that is not there"
    )]
    NonFiniteGradient {
        /// The sample.
        sample: usize,
    },

    /// The loss does not depend on the images through differentiable operations.
    #[error(
        "the loss has no gradient by the images: the model must not detach its input or leave \
         the autodiff device"
    )]
    NoGradient,

    /// The custom loss did not return one value per sample.
    #[error("the loss `{loss}` returned {values} values for {images} images")]
    LossShape {
        /// Name of the loss.
        loss: String,
        /// Values returned.
        values: usize,
        /// Images in the batch.
        images: usize,
    },

    /// Mean and standard deviation differ in length, or are empty.
    #[error("normalisation needs one mean and one std per channel, but got {mean} and {std}")]
    NormalizationLength {
        /// Number of means.
        mean: usize,
        /// Number of standard deviations.
        std: usize,
    },

    /// A mean is not finite, or a standard deviation is not positive and finite.
    #[error(
        "normalisation of channel {channel}: mean {mean} must be finite, std {std} positive and \
         finite"
    )]
    NormalizationValue {
        /// The channel.
        channel: usize,
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },

    /// The images have another number of channels than the normalisation.
    #[error("images with {images} channels meet a normalisation for {normalization} channels")]
    ChannelCount {
        /// Channels of the images.
        images: usize,
        /// Channels of the normalisation.
        normalization: usize,
    },

    /// An attack's setting is out of its range.
    #[error("{setting} is {value}, but it must be {expected}")]
    InvalidSetting {
        /// Name of the builder method.
        setting: &'static str,
        /// The value given.
        value: f64,
        /// The values allowed.
        expected: &'static str,
    },

    /// The explicit starting images do not have the shape of the images.
    #[error("the starting images have shape {start:?}, the images {images:?}")]
    StartShape {
        /// Shape of the starting images.
        start: [usize; 4],
        /// Shape of the images.
        images: [usize; 4],
    },

    /// An explicit starting image holds a NaN or an infinite value.
    #[error("starting image {sample} holds the value {value}: remove NaN and infinity from it")]
    NonFiniteStart {
        /// The sample.
        sample: usize,
        /// The first such value.
        value: f64,
    },

    /// The loss compares more logits than the model has.
    #[error(
        "the {loss} loss needs at least {needs} classes, the model has {classes}: use another \
         loss, or ask for the margin with `FewClasses::Margin`"
    )]
    TooFewClasses {
        /// Name of the loss.
        loss: &'static str,
        /// Classes it needs.
        needs: usize,
        /// Classes of the model.
        classes: usize,
    },

    /// The attack is not defined for the norm of the threat.
    #[error("{attack} is not defined for the {norm} norm")]
    UnsupportedNorm {
        /// Name of the attack.
        attack: &'static str,
        /// The norm.
        norm: Norm,
    },

    /// The attack chooses targets itself, or measures a distance to the label's boundary.
    #[error("{attack} attacks the label, and sample {sample} has a target: use `Goal::untargeted`")]
    UnsupportedGoal {
        /// Name of the attack.
        attack: &'static str,
        /// Row of the first sample with a target.
        sample: usize,
    },

    /// The state of an earlier run cannot be read, or the new one cannot be written.
    #[error("cannot {action} {}: {source}; what was there before is untouched", path.display())]
    StateFile {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },

    /// The file is not a state of an evaluation.
    #[error("{} is not a state of an evaluation: {reason}; it is left as it is", path.display())]
    StateFormat {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// The state belongs to another evaluation.
    #[error(
        "{} belongs to another evaluation: its {what} differs; it is left as it is. Name another \
         state file, or remove this one", path.display()
    )]
    StateOfAnother {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },

    /// The device failed to compute or to hand back a result.
    #[error("reading a tensor back from the device failed")]
    Read(#[from] TensorReadError),
}

fn at_sample(sample: Option<usize>) -> String {
    sample.map_or_else(String::new, |index| format!(" for sample {index}"))
}

/// Refuses a setting out of its range.
pub(crate) fn require(
    valid: bool,
    setting: &'static str,
    value: f64,
    expected: &'static str,
) -> Result<(), AttackError> {
    if valid { Ok(()) } else { Err(AttackError::InvalidSetting { setting, value, expected }) }
}

/// Refuses a count of 0.
pub(crate) fn at_least_one(setting: &'static str, value: usize) -> Result<(), AttackError> {
    require(value > 0, setting, 0.0, "at least 1")
}
