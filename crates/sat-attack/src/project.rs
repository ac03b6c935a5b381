use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use sat_core::sign_step;

use crate::loss::widen;
use crate::rng::{Purpose, Stream};
use crate::{AttackError, Norm, ThreatModel};

/// Keeps divisions by a norm finite; foolbox uses the same value.
const MIN_NORM: f64 = 1e-12;

/// The images an attacker may choose: for each clean image the points within `eps` of it and
/// within the pixel bounds.
///
/// Works in f32, or in f64 for f64 images; half-precision images are widened to f32.
#[derive(Clone, Debug)]
pub struct Ball {
    centre: Tensor<4>,
    /// `[n, 1, 1, 1]`
    eps: Tensor<4>,
    region: Region,
    /// Pixel values that must stay, `[n, c, h, w]`.
    fixed: Option<Tensor<4, Bool>>,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per batch")]
enum Region {
    /// Per pixel `max(x - eps, lower)` and `min(x + eps, upper)`, rounded once.
    Linf {
        lower: Tensor<4>,
        upper: Tensor<4>,
    },
    L2 {
        lower: f64,
        upper: f64,
    },
    L1 {
        lower: f64,
        upper: f64,
    },
}

/// The share of pixel values that one L1 step of PGD moves.
const L1_SHARE: f64 = 0.05;

impl Ball {
    /// The ball around `images` `[n, c, h, w]`. Reads one flag back from the device.
    ///
    /// # Errors
    ///
    /// [`AttackError::EmptyBatch`], the errors of an invalid [`ThreatModel`],
    /// [`AttackError::MaskCount`], [`AttackError::MaskLength`], [`AttackError::NonFiniteImage`] and
    /// [`AttackError::ImageOutOfBounds`].
    pub fn new(images: Tensor<4>, threat: &ThreatModel) -> Result<Self, AttackError> {
        let [count, ..] = images.dims();
        if count == 0 {
            return Err(AttackError::EmptyBatch);
        }
        let radii = threat.radii(count)?;
        let centre = widen(images.without_autodiff());
        let (lower, upper) = threat.bounds;
        check_images(&centre, lower, upper)?;

        let eps = per_sample(radii, &centre);
        let region = match threat.norm {
            Norm::Linf => Region::Linf {
                lower: (centre.clone() - eps.clone()).clamp_min(lower),
                upper: (centre.clone() + eps.clone()).clamp_max(upper),
            },
            Norm::L2 => Region::L2 { lower, upper },
            Norm::L1 => Region::L1 { lower, upper },
        };
        let fixed = threat.mask.as_ref().map(|mask| fixed(mask, &centre)).transpose()?;
        Ok(Self { centre, eps, region, fixed })
    }

    /// The clean images `[n, c, h, w]`.
    pub fn centre(&self) -> Tensor<4> {
        self.centre.clone()
    }

    /// The point of the ball and the bounds that stands for `images` `[n, c, h, w]`.
    ///
    /// Linf: clamps to `[max(x - eps, lower), min(x + eps, upper)]`, rounded once; as seen from
    /// outside, the distance exceeds eps by at most half a unit in the last place of a pixel.
    /// L2: scales the perturbation to length eps if it is longer, then clamps to the bounds, which
    /// only shortens it; the length exceeds eps by rounding only (about `1e-7` per pixel value).
    /// L1: the nearest point of ball and bounds together, `sign(d) min(max(|d| - t, 0), r)` with the
    /// room `r` to the bound and the least `t >= 0` that fits, computed in f64 on the host.
    /// The bounds hold exactly. Values that the mask fixes are those of the clean image.
    ///
    /// # Panics
    ///
    /// When the shape differs from the clean images'.
    pub fn project(&self, images: Tensor<4>) -> Tensor<4> {
        let images = self.masked(images);
        match &self.region {
            Region::Linf { lower, upper } => images.max_pair(lower.clone()).min_pair(upper.clone()),
            Region::L2 { lower, upper } => {
                let change = images - self.centre.clone();
                let length = l2_norm(change.clone()).clamp_min(MIN_NORM);
                let scale = (self.eps.clone() / length).clamp_max(1.0);
                (self.centre.clone() + change * scale).clamp(*lower, *upper)
            }
            Region::L1 { lower, upper } => self.on_host(images, |sample| {
                l1_project(sample.point, sample.centre, sample.eps, *lower, *upper);
            }),
        }
    }

    /// `images` in the caller's type: the nearest numbers of f16 or bf16, but where they lie further
    /// from the clean pixel than the image itself, the next ones towards it. So what is in the ball
    /// stays there.
    pub(crate) fn rounded(&self, images: Tensor<4>, dtype: DType) -> Tensor<4> {
        // Between half a unit and one and a half units in the last place of any number of the type.
        let step = match dtype {
            DType::F16 => 1.25 / 2048.0,
            DType::BF16 => 1.25 / 256.0,
            _ => return images.cast(dtype),
        };
        let images = widen(images);
        let in_type = |images: Tensor<4>| images.cast(dtype).cast(self.centre.dtype());
        let distance = |images: &Tensor<4>| (images.clone() - self.centre.clone()).abs();
        let limit = distance(&images);
        let nearest = in_type(images);
        let outside = distance(&nearest).greater(limit.clone());
        let inwards = (self.centre.clone() - nearest.clone()).sign();
        let next = in_type(nearest.clone() + inwards * nearest.clone().abs() * step);
        // Numbers too small for the step.
        let still_outside = distance(&next).greater(limit);
        let next = next.mask_where(still_outside, self.centre.clone());
        nearest.mask_where(outside, next).cast(dtype)
    }

    /// Goes from `images` in the direction of steepest ascent for `gradient`, by a step of norm
    /// `size` (`[n, 1, 1, 1]`), and projects.
    ///
    /// Linf: `size * sign(g)` with `sign(0) = 0`. L2: `size * g / max(|g|, 1e-12)`, so a zero
    /// gradient gives no step. L1: `size / k * sign(g)` on the `k` pixel values with the largest
    /// `|g|`, the largest 5 % of those that can still move that way (SLIDE of Tramer and Boneh 2019,
    /// arXiv 1904.13000). In Linf that is one pass ([`sign_step`]); the others need sums or an order
    /// over the whole image, and are composed of Burn's operations.
    ///
    /// # Panics
    ///
    /// When a shape does not fit the clean images'.
    pub fn step(&self, images: Tensor<4>, gradient: Tensor<4>, size: Tensor<4>) -> Tensor<4> {
        let gradient = self.free(gradient);
        let direction = match &self.region {
            Region::Linf { lower, upper } => {
                let moved = sign_step(images, gradient, size, lower.clone(), upper.clone());
                return self.masked(moved);
            }
            Region::L2 { .. } => {
                let length = l2_norm(gradient.clone()).clamp_min(MIN_NORM);
                gradient / length
            }
            &Region::L1 { lower, upper } => {
                // What sits at a bound cannot follow its gradient across it.
                let stuck = (images.clone().greater_equal_scalar(upper))
                    .bool_and(gradient.clone().greater_scalar(0.0))
                    .bool_or(
                        images
                            .clone()
                            .lower_equal_scalar(lower)
                            .bool_and(gradient.clone().lower_scalar(0.0)),
                    );
                let [_, c, h, w] = images.dims();
                let count = ((c * h * w) as f64 * L1_SHARE).ceil() as usize;
                self.sparse_direction(gradient.mask_fill(stuck, 0.0), |_| count)
            }
        };
        self.project(images + direction * size)
    }

    pub(crate) fn norm(&self) -> Norm {
        match self.region {
            Region::Linf { .. } => Norm::Linf,
            Region::L2 { .. } => Norm::L2,
            Region::L1 { .. } => Norm::L1,
        }
    }

    /// The gradient by the values that may change; 0 for the others.
    pub(crate) fn free(&self, gradient: Tensor<4>) -> Tensor<4> {
        match &self.fixed {
            Some(fixed) => gradient.mask_fill(fixed.clone(), 0.0),
            None => gradient,
        }
    }

    /// The images with the clean values where the mask fixes them.
    pub(crate) fn masked(&self, images: Tensor<4>) -> Tensor<4> {
        match &self.fixed {
            Some(fixed) => images.mask_where(fixed.clone(), self.centre.clone()),
            None => images,
        }
    }

    pub(crate) fn is_masked(&self) -> bool {
        self.fixed.is_some()
    }

    /// The radii `[n, 1, 1, 1]`.
    pub(crate) fn eps(&self) -> Tensor<4> {
        self.eps.clone()
    }

    /// One random point per sample, uniform in the ball before the bounds clip it.
    pub(crate) fn random(&self, seed: u64, restart: u64, samples: &[u64]) -> Tensor<4> {
        let shape = self.centre.shape();
        let dimension = shape.num_elements() / samples.len();
        let mut noise = Vec::with_capacity(shape.num_elements());
        for &sample in samples {
            let mut stream = Stream::new(seed, restart, sample, Purpose::StartNoise);
            match self.region {
                Region::Linf { .. } => noise.extend(stream.linf_ball(dimension).map(to_f32)),
                Region::L2 { .. } => noise.extend(stream.l2_ball(dimension).map(to_f32)),
                // Wide enough to be cut back by the projection for any useful radius.
                Region::L1 { lower, upper } => noise
                    .extend((0..dimension).map(|_| to_f32(stream.gaussian() * (upper - lower)))),
            }
        }
        let noise = Tensor::<4>::from_data(
            TensorData::new(noise, shape),
            (&self.centre.device(), self.centre.dtype()),
        );
        let change = match self.region {
            Region::L1 { .. } => noise,
            _ => noise * self.eps.clone(),
        };
        self.project(self.centre.clone() + change)
    }

    /// `sign(g) / k` on the `k` values with the largest `|g|` of each sample, 0 elsewhere, with
    /// `k = count(sample)`; values with no gradient do not count.
    pub(crate) fn sparse_direction(
        &self,
        gradient: Tensor<4>,
        count: impl Fn(usize) -> usize,
    ) -> Tensor<4> {
        self.on_host(self.free(gradient), |sample| sparse_sign(sample.point, count(sample.row)))
    }

    /// The same ball with `factor` times the radius.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        let eps = self.eps.clone() * factor;
        let region = match &self.region {
            // Only L1 attacks widen their ball: the bounds of Linf are cut already.
            Region::Linf { .. } => unreachable!("a Linf ball is not scaled"),
            region => region.clone(),
        };
        Self { eps, region, ..self.clone() }
    }

    /// Edits each sample of `images` in f64 on the host.
    pub(crate) fn on_host(&self, images: Tensor<4>, edit: impl Fn(Sample<'_>)) -> Tensor<4> {
        let shape = images.shape();
        let dimension = shape.num_elements() / shape[0];
        let read = |tensor: Tensor<4>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
        let (centres, radii) = (read(self.centre.clone()), read(self.eps.clone()));
        let mut points = read(images);
        let samples = points.chunks_exact_mut(dimension).zip(centres.chunks_exact(dimension));
        for (row, (point, centre)) in samples.enumerate() {
            edit(Sample { row, point, centre, eps: radii[row] });
        }
        Tensor::from_data(
            TensorData::new(points, shape),
            (&self.centre.device(), self.centre.dtype()),
        )
    }

    pub(crate) fn select(&self, rows: Tensor<1, Int>) -> Self {
        let pick = |tensor: &Tensor<4>| tensor.clone().select(0, rows.clone());
        Self {
            centre: pick(&self.centre),
            eps: pick(&self.eps),
            region: match &self.region {
                Region::Linf { lower, upper } => {
                    Region::Linf { lower: pick(lower), upper: pick(upper) }
                }
                region => region.clone(),
            },
            fixed: self.fixed.as_ref().map(|fixed| fixed.clone().select(0, rows.clone())),
        }
    }
}

/// Where the mask lets nothing change.
fn fixed(mask: &[Vec<bool>], centre: &Tensor<4>) -> Result<Tensor<4, Bool>, AttackError> {
    let shape = centre.shape();
    let values = shape.num_elements() / shape[0];
    if mask.len() != shape[0] {
        return Err(AttackError::MaskCount { masks: mask.len(), images: shape[0] });
    }
    if let Some(sample) = mask.iter().position(|mask| mask.len() != values) {
        return Err(AttackError::MaskLength { sample, flags: mask[sample].len(), values });
    }
    let fixed: Vec<bool> = mask.iter().flatten().map(|free| !free).collect();
    Ok(Tensor::from_data(TensorData::new(fixed, shape), &centre.device()))
}

/// One sample on the host.
pub(crate) struct Sample<'a> {
    pub(crate) row: usize,
    /// Its point, to be edited.
    pub(crate) point: &'a mut [f64],
    pub(crate) centre: &'a [f64],
    pub(crate) eps: f64,
}

/// The nearest point of the L1 ball and the bounds together.
pub(crate) fn l1_project(point: &mut [f64], centre: &[f64], eps: f64, lower: f64, upper: f64) {
    let room = |change: f64, x: f64| if change > 0.0 { upper - x } else { x - lower };
    let mut largest = 0.0f64;
    for (z, &x) in point.iter_mut().zip(centre) {
        *z -= x;
        largest = largest.max(z.abs());
    }
    let shrunk = |z: f64, x: f64, t: f64| (z.abs() - t).max(0.0).min(room(z, x));
    let size = |t: f64, point: &[f64]| -> f64 {
        point.iter().zip(centre).map(|(&z, &x)| shrunk(z, x, t)).sum()
    };
    // The size falls as t grows: halve until the two ends are neighbours.
    let (mut low, mut high) = (0.0, largest);
    if size(0.0, point) <= eps {
        high = 0.0;
    }
    while low < high {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if size(middle, point) > eps { low = middle } else { high = middle }
    }
    for (z, &x) in point.iter_mut().zip(centre) {
        *z = (x + shrunk(*z, x, high).copysign(*z)).clamp(lower, upper);
    }
}

/// `sign(v) / k` on the `k = min(count, nonzero values)` largest `|v|`, 0 elsewhere.
fn sparse_sign(values: &mut [f64], count: usize) {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i] != 0.0).collect();
    let count = count.clamp(1, order.len().max(1));
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, |&a, &b| {
            values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b))
        });
        order.truncate(count);
    }
    let signs: Vec<(usize, f64)> = order.iter().map(|&i| (i, values[i].signum())).collect();
    values.fill(0.0);
    for (index, sign) in signs {
        values[index] = sign / count as f64;
    }
}

/// Euclidean length per sample, `[n, 1, 1, 1]`.
pub(crate) fn l2_norm(tensor: Tensor<4>) -> Tensor<4> {
    tensor.square().sum_dims(&[1, 2, 3]).sqrt()
}

/// Values `[n, 1, 1, 1]` with the device and the type of `like`.
pub(crate) fn per_sample(values: Vec<f64>, like: &Tensor<4>) -> Tensor<4> {
    let shape = [values.len(), 1, 1, 1];
    Tensor::from_data(TensorData::new(values, shape), (&like.device(), like.dtype()))
}

/// The first NaN or infinity of a batch: its sample and the value.
pub(crate) fn first_non_finite(images: &Tensor<4>) -> Result<Option<(usize, f64)>, AttackError> {
    if images.clone().is_finite().all().try_into_scalar::<bool>()? {
        return Ok(None);
    }
    find(images, |value| !value.is_finite())
}

fn check_images(images: &Tensor<4>, lower: f64, upper: f64) -> Result<(), AttackError> {
    // Written so that NaN is not inside.
    let inside = images
        .clone()
        .greater_equal_scalar(lower)
        .bool_and(images.clone().lower_equal_scalar(upper));
    if inside.all().try_into_scalar::<bool>()? {
        return Ok(());
    }
    if let Some((sample, value)) = find(images, |value| !value.is_finite())? {
        return Err(AttackError::NonFiniteImage { sample, value });
    }
    match find(images, |value| !(lower..=upper).contains(&value))? {
        Some((sample, value)) => Err(AttackError::ImageOutOfBounds { sample, value, lower, upper }),
        None => Ok(()),
    }
}

/// The first value of a batch that meets `condition`, searched on the host.
fn find(
    images: &Tensor<4>,
    condition: impl Fn(f64) -> bool,
) -> Result<Option<(usize, f64)>, AttackError> {
    let shape = images.shape();
    let dimension = shape.num_elements() / shape[0];
    let values = images.try_to_vec_as::<f64>()?;
    Ok(values
        .iter()
        .position(|&value| condition(value))
        .map(|position| (position / dimension, values[position])))
}

fn to_f32(value: f64) -> f32 {
    value as f32
}
