use burn::tensor::{Int, Tensor, TensorData};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Beta, Distribution};

use super::DataError;
use super::random::Draw;

/// The value of a pixel that a cutout painted.
const GREY: u8 = 128;

/// Random changes to a training image: made on its bytes before it goes to the device, and mixup, which
/// blends the batch there, before the attack.
///
/// The usual choice for CIFAR is a horizontal flip and a crop with 4 pixels of padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Whether to mirror.
    pub flip: Flip,
    /// Pad by this many black pixels on each side, then crop back to the image's size at a
    /// uniformly drawn position; 0 leaves the image where it is.
    pub crop_padding: u8,
    /// Cutout (arXiv 1708.04552): paint a square of this side grey (128, about the mean), around a
    /// uniformly drawn pixel; what lies outside the image is lost. 0 paints nothing.
    pub cutout: u8,
    /// [`Mixup`] with the share drawn from `Beta(alpha, alpha)`, for this alpha, finite and above 0;
    /// none by default. For the objectives `adversarial` and `trades`.
    pub mixup: Option<f64>,
}

/// How an [`Augment`] mirrors images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flip {
    /// Never.
    #[default]
    None,
    /// Left to right, with probability 1/2.
    Horizontal,
}

impl Augment {
    /// A changed copy of an image of `height x width` planes.
    pub(super) fn apply(
        self,
        image: &[u8],
        height: usize,
        width: usize,
        rng: &mut impl Rng,
    ) -> Vec<u8> {
        // All three are always drawn, so that the crop does not depend on the kind of flip.
        let pad = i32::from(self.crop_padding);
        let down = rng.random_range(-pad..=pad) as isize;
        let right = rng.random_range(-pad..=pad) as isize;
        let mirror = rng.random::<bool>() && self.flip == Flip::Horizontal;

        let mut out = Vec::with_capacity(image.len());
        for plane in image.chunks_exact(height * width) {
            for y in 0..height {
                let row = y.checked_add_signed(down).filter(|&y| y < height);
                for x in 0..width {
                    let x = if mirror { width - 1 - x } else { x };
                    let column = x.checked_add_signed(right).filter(|&x| x < width);
                    let inside = row.zip(column);
                    out.push(inside.map_or(0, |(y, x)| plane[y * width + x]));
                }
            }
        }
        if self.cutout > 0 {
            let side = usize::from(self.cutout);
            let hole = |centre: usize, end: usize| {
                centre.saturating_sub(side / 2)..end.min(centre + side - side / 2)
            };
            let rows = hole(rng.random_range(0..height), height);
            let columns = hole(rng.random_range(0..width), width);
            for plane in out.chunks_exact_mut(height * width) {
                for y in rows.clone() {
                    plane[y * width..][columns.clone()].fill(GREY);
                }
            }
        }
        out
    }
}

/// Pairs of images blended into one (arXiv 1710.09412): `weight * x + (1 - weight) * x[partner]`.
#[derive(Clone, Debug)]
pub struct Mixup {
    /// The blended images, `[n, c, h, w]` in [0, 1].
    pub images: Tensor<4>,
    /// The label of each image's partner; the image keeps its own label too.
    pub partner_labels: Vec<usize>,
    /// The share of the image itself, one for the whole batch, in [1/2, 1], so that its own label is
    /// the one of the larger share. The loss is
    /// `weight * loss(labels) + (1 - weight) * loss(partner_labels)`.
    pub weight: f64,
}

impl Mixup {
    /// Blends a batch `[n, c, h, w]` in [0, 1] with itself in another order. The weight is the larger
    /// of l and 1 - l, with l drawn from `Beta(alpha, alpha)`: the partners are a random order, and
    /// exchanging each image with its partner gives the same pairs just as often. `seed` and `step`, a
    /// number that no other batch has, decide weight and partners.
    ///
    /// # Errors
    ///
    /// [`DataError::BadSetting`] if alpha is not finite and above 0.
    ///
    /// # Panics
    ///
    /// If there is not one label an image.
    pub fn of(
        images: Tensor<4>,
        labels: &[usize],
        alpha: f64,
        seed: u64,
        step: u64,
    ) -> Result<Self, DataError> {
        assert_eq!(images.dims()[0], labels.len(), "one label an image");
        let beta = match Beta::new(alpha, alpha) {
            Ok(beta) if alpha.is_finite() => beta,
            _ => {
                let expected = "finite and above 0";
                return Err(DataError::BadSetting {
                    setting: "mixup alpha",
                    value: alpha,
                    expected,
                });
            }
        };
        let mut rng = super::random::rng(seed, step, Draw::Mixup);
        let share: f64 = beta.sample(&mut rng);
        let weight = share.max(1.0 - share);
        if labels.is_empty() {
            return Ok(Self { images, partner_labels: Vec::new(), weight });
        }
        let mut partners: Vec<usize> = (0..labels.len()).collect();
        partners.shuffle(&mut rng);
        let partner_labels = partners.iter().map(|&partner| labels[partner]).collect();
        let partners: Vec<i64> = partners.into_iter().map(|partner| partner as i64).collect();
        let data = TensorData::new(partners, [labels.len()]);
        let partners = Tensor::<1, Int>::from_data(data, &images.device().without_autodiff());
        let others = images.clone().select(0, partners);
        // Rounding can leave the range, which an attack refuses.
        let images = (images * weight + others * (1.0 - weight)).clamp(0.0, 1.0);
        Ok(Self { images, partner_labels, weight })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Every pixel has its own value, none of them 0.
    fn image(height: usize, width: usize) -> Vec<u8> {
        (1..=height * width).map(|v| v as u8).collect()
    }

    proptest! {
        /// The result is a shift of the image, mirrored or not, with black from outside.
        #[test]
        fn crop_is_a_shift(
            (height, width) in (1_usize..12, 1_usize..12),
            crop_padding: u8,
            seed: u64,
        ) {
            let image = image(height, width);
            let augment = Augment { flip: Flip::Horizontal, crop_padding, ..Augment::default() };
            let out = augment.apply(&image, height, width, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert_eq!(out.len(), image.len());
            let pad = isize::from(crop_padding);
            // Beyond the image's own size every shift gives black, so there is no need to look.
            let shifts = || -pad.min(12)..=pad.min(12);
            let found = shifts().flat_map(|dy| shifts().map(move |dx| (dy, dx))).any(|(dy, dx)| {
                [false, true].into_iter().any(|mirror| {
                    (0..height * width).all(|i| {
                        let (y, x) = ((i / width) as isize, (i % width) as isize);
                        let x = if mirror { width as isize - 1 - x } else { x };
                        let (y, x) = (y + dy, x + dx);
                        let inside = (0..height as isize).contains(&y)
                            && (0..width as isize).contains(&x);
                        let expected = match inside {
                            true => image[y as usize * width + x as usize],
                            false => 0,
                        };
                        out[i] == expected
                    })
                })
            });
            prop_assert!(found);
        }
    }

    #[test]
    fn nothing_asked_nothing_changed() {
        let image = image(5, 7);
        for seed in 0..20 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!(Augment::default().apply(&image, 5, 7, &mut rng), image);
        }
    }

    #[test]
    fn flips_half_of_the_time_and_reaches_every_shift() {
        let image = image(3, 3);
        let flip = Augment { flip: Flip::Horizontal, ..Augment::default() };
        let crop = Augment { crop_padding: 1, ..Augment::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut flipped = 0;
        let mut crops = std::collections::HashSet::new();
        for _ in 0..1000 {
            let out = flip.apply(&image, 3, 3, &mut rng);
            flipped += usize::from(out == [3, 2, 1, 6, 5, 4, 9, 8, 7]);
            crops.insert(crop.apply(&image, 3, 3, &mut rng));
        }
        assert!((400..600).contains(&flipped), "{flipped}");
        assert_eq!(crops.len(), 9);
    }

    #[test]
    fn planes_move_together() {
        let plane = image(4, 4);
        let planes = [plane.clone(), plane].concat();
        let augment = Augment { flip: Flip::Horizontal, crop_padding: 2, ..Augment::default() };
        for seed in 0..20 {
            let out = augment.apply(&planes, 4, 4, &mut ChaCha8Rng::seed_from_u64(seed));
            assert_eq!(out[..16], out[16..]);
        }
    }

    #[test]
    fn cutout_paints_one_square_at_every_place() {
        let planes = [image(5, 6), image(5, 6)].concat();
        let augment = Augment { cutout: 3, ..Augment::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let out = augment.apply(&planes, 5, 6, &mut rng);
            let painted: Vec<usize> = (0..60).filter(|&i| out[i] != planes[i]).collect();
            assert!(painted.iter().all(|&i| out[i] == GREY));
            let (first, second) = painted.split_at(painted.len() / 2);
            assert!(first.iter().map(|i| i + 30).eq(second.iter().copied()), "both planes");
            let bounds = |of: fn(usize) -> usize| {
                let values = || first.iter().map(|&i| of(i));
                values().min().unwrap()..values().max().unwrap() + 1
            };
            let (rows, columns) = (bounds(|i| i / 6), bounds(|i| i % 6));
            assert_eq!(rows.len() * columns.len(), first.len(), "a rectangle");
            assert!((2..=3).contains(&rows.len()) && (2..=3).contains(&columns.len()));
            seen.insert((rows.start, rows.end, columns.start, columns.end));
        }
        assert_eq!(seen.len(), 30, "one for each pixel");
    }
}
