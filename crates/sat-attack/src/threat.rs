use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::AttackError;

/// The norm that measures a perturbation, over all pixels and channels of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Norm {
    /// The largest absolute change of a pixel value, `max |d_i|`.
    Linf,
    /// The Euclidean length, `sqrt(sum d_i^2)`.
    L2,
    /// The sum of absolute changes, `sum |d_i|`.
    L1,
}

impl Norm {
    /// The norm of each change `[n, c, h, w]`, summed in f64; NaN where a value is.
    ///
    /// # Errors
    ///
    /// [`AttackError::Read`] when the device fails.
    pub fn lengths(self, changes: &Tensor<4>) -> Result<Vec<f64>, AttackError> {
        let [_, channels, height, width] = changes.dims();
        let values = changes.try_to_vec_as::<f64>()?;
        let dimension = (channels * height * width).max(1);
        Ok(values.chunks_exact(dimension).map(|change| self.length(change)).collect())
    }

    /// The norm of one change.
    pub(crate) fn length(self, change: &[f64]) -> f64 {
        match self {
            // `f64::max` would lose NaN.
            Norm::Linf => change.iter().fold(0.0, |largest, v| match v.abs() {
                size if size > largest || size.is_nan() => size,
                _ => largest,
            }),
            Norm::L2 => change.iter().map(|v| v * v).sum::<f64>().sqrt(),
            Norm::L1 => change.iter().map(|v| v.abs()).sum(),
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Norm::Linf => "linf",
            Norm::L2 => "l2",
            Norm::L1 => "l1",
        })
    }
}

/// The text names no [`Norm`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown norm `{0}`: use linf, l2 or l1")]
pub struct ParseNormError(String);

impl FromStr for Norm {
    type Err = ParseNormError;

    /// Reads `linf`, `l2` or `l1`, in any case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "linf" => Ok(Norm::Linf),
            "l2" => Ok(Norm::L2),
            "l1" => Ok(Norm::L1),
            _ => Err(ParseNormError(text.to_owned())),
        }
    }
}

/// The radius of the ball: one for all samples, or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Eps {
    /// The same radius for every sample.
    Uniform(f64),
    /// One radius per sample, in the order of the batch.
    PerSample(Vec<f64>),
}

/// What the attacker may do: move an image by at most `eps` in a norm, within pixel bounds.
///
/// All values are in image units, before normalisation: `ThreatModel::linf(8.0 / 255.0)` means
/// eight grey levels for images in `[0, 1]`. For images in `[0, 255]` write
/// `ThreatModel::linf(8.0).bounds(0.0, 255.0)`.
///
/// Constructors accept anything; an attack checks the threat before it does any work and answers
/// [`AttackError::InvalidEps`], [`AttackError::EpsCount`] or [`AttackError::InvalidBounds`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreatModel {
    /// The norm that measures the perturbation.
    pub norm: Norm,
    /// The largest norm allowed, at least 0.
    pub eps: Eps,
    /// Lowest and highest pixel value allowed.
    pub bounds: (f64, f64),
    /// Which pixel values may change, for each sample in the order of the batch and for each value
    /// in the order `[c, h, w]`; `None` for all of them. See [`ThreatModel::mask`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Vec<Vec<bool>>>,
}

impl ThreatModel {
    /// A ball of radius `eps` in `norm`, bounds `[0, 1]`.
    pub fn new(norm: Norm, eps: f64) -> Self {
        Self { norm, eps: Eps::Uniform(eps), bounds: (0.0, 1.0), mask: None }
    }

    /// Every pixel value may change by at most `eps`; bounds `[0, 1]`.
    pub fn linf(eps: f64) -> Self {
        Self::new(Norm::Linf, eps)
    }

    /// The perturbation may have Euclidean length `eps` at most; bounds `[0, 1]`.
    pub fn l2(eps: f64) -> Self {
        Self::new(Norm::L2, eps)
    }

    /// The absolute changes may sum to `eps` at most; bounds `[0, 1]`.
    pub fn l1(eps: f64) -> Self {
        Self::new(Norm::L1, eps)
    }

    /// Sets the lowest and highest pixel value allowed.
    pub fn bounds(mut self, lower: f64, upper: f64) -> Self {
        self.bounds = (lower, upper);
        self
    }

    /// Sets one radius per sample, in the order of the batch.
    pub fn eps_per_sample(mut self, eps: Vec<f64>) -> Self {
        self.eps = Eps::PerSample(eps);
        self
    }

    /// Lets the attacker change only some pixel values: one list of `c h w` flags per sample, in the
    /// order of the batch. The others stay as they are to the bit.
    pub fn mask(mut self, mask: Vec<Vec<bool>>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// The threat for the samples in `range`. A uniform threat is the same for any range.
    ///
    /// # Errors
    ///
    /// [`AttackError::EpsCount`] or [`AttackError::MaskCount`] when there are fewer per-sample radii
    /// or masks than `range` asks for.
    pub fn slice(&self, range: Range<usize>) -> Result<Self, AttackError> {
        if let Eps::PerSample(eps) = &self.eps
            && eps.len() < range.end
        {
            return Err(AttackError::EpsCount { eps: eps.len(), images: range.end });
        }
        if let Some(mask) = &self.mask
            && mask.len() < range.end
        {
            return Err(AttackError::MaskCount { masks: mask.len(), images: range.end });
        }
        Ok(self.select(&range.collect::<Vec<_>>()))
    }

    /// The threat for the samples at `rows`, which exist.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let eps = match &self.eps {
            Eps::Uniform(eps) => Eps::Uniform(*eps),
            Eps::PerSample(eps) => Eps::PerSample(rows.iter().map(|&row| eps[row]).collect()),
        };
        let mask =
            self.mask.as_ref().map(|mask| rows.iter().map(|&row| mask[row].clone()).collect());
        Self { norm: self.norm, eps, bounds: self.bounds, mask }
    }

    /// Checks the threat and returns one radius per image.
    pub(crate) fn radii(&self, images: usize) -> Result<Vec<f64>, AttackError> {
        let (lower, upper) = self.bounds;
        if !(lower.is_finite() && upper.is_finite() && lower < upper) {
            return Err(AttackError::InvalidBounds { lower, upper });
        }
        let valid = |eps: f64| eps.is_finite() && eps >= 0.0;
        match &self.eps {
            Eps::Uniform(eps) if valid(*eps) => Ok(vec![*eps; images]),
            Eps::Uniform(eps) => Err(AttackError::InvalidEps { eps: *eps, sample: None }),
            Eps::PerSample(radii) if radii.len() != images => {
                Err(AttackError::EpsCount { eps: radii.len(), images })
            }
            Eps::PerSample(radii) => match radii.iter().position(|&eps| !valid(eps)) {
                Some(sample) => {
                    Err(AttackError::InvalidEps { eps: radii[sample], sample: Some(sample) })
                }
                None => Ok(radii.clone()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_read_back_what_they_print() {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            assert_eq!(norm.to_string().parse::<Norm>(), Ok(norm));
        }
        assert_eq!("LInf".parse::<Norm>(), Ok(Norm::Linf));
        let error = "l3".parse::<Norm>().unwrap_err();
        assert_eq!(error.to_string(), "unknown norm `l3`: use linf, l2 or l1");
    }

    #[test]
    fn bad_radii_are_refused() {
        for eps in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                ThreatModel::linf(eps).radii(2),
                Err(AttackError::InvalidEps { sample: None, .. })
            ));
            assert!(matches!(
                ThreatModel::l2(0.0).eps_per_sample(vec![0.1, eps]).radii(2),
                Err(AttackError::InvalidEps { sample: Some(1), .. })
            ));
        }
        assert!(matches!(
            ThreatModel::l2(0.0).eps_per_sample(vec![0.1]).radii(2),
            Err(AttackError::EpsCount { eps: 1, images: 2 })
        ));
    }

    #[test]
    fn bad_bounds_are_refused() {
        for (lower, upper) in [(1.0, 0.0), (0.5, 0.5), (f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert!(matches!(
                ThreatModel::linf(0.1).bounds(lower, upper).radii(1),
                Err(AttackError::InvalidBounds { .. })
            ));
        }
    }

    #[test]
    fn slices_keep_the_order_of_the_radii() {
        let threat = ThreatModel::l2(0.0).eps_per_sample(vec![1.0, 2.0, 3.0]);
        assert_eq!(threat.slice(1..3).unwrap().radii(2).unwrap(), [2.0, 3.0]);
        assert!(matches!(threat.slice(2..5), Err(AttackError::EpsCount { eps: 3, images: 5 })));
        let masked = ThreatModel::l2(1.0).mask(vec![vec![true], vec![false]]);
        assert_eq!(masked.slice(1..2).unwrap().mask, Some(vec![vec![false]]));
        let short = masked.slice(1..3);
        assert!(matches!(short, Err(AttackError::MaskCount { masks: 2, images: 3 })));
    }
}
