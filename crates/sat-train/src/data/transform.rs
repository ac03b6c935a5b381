//! From an image file of any size to `3 x size x size` bytes.

use std::io::Cursor;

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{CroppedImage, Image, ImageRef},
};
use image::{DynamicImage, ImageFormat, ImageReader, Limits, RgbImage};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::{DataError, Flip};

/// What is done to a photograph, from the decoded file to a square of bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Transform {
    /// For training: random.
    Train(TrainTransform),
    /// For evaluation: the same every time.
    Evaluate(EvaluateTransform),
}

/// The usual changes to a training photograph: a random part of it, mirrored half of the time, with
/// other colours and other light.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTransform {
    /// Height and width of the result in pixels, at least 1.
    pub size: u32,
    /// The part of the area that is kept: lower and upper bound, in (0, 1].
    pub scale: (f64, f64),
    /// Its width divided by its height: lower and upper bound, above 0.
    pub ratio: (f64, f64),
    /// How it is resized.
    pub filter: Filter,
    /// Whether to mirror.
    pub flip: Flip,
    /// Random brightness, contrast and saturation, in random order.
    pub jitter: ColorJitter,
    /// The standard deviation of AlexNet's lighting noise along the principal components of
    /// ImageNet's colours (Krizhevsky et al. 2012), at least 0; 0.1 is usual, 0 is none.
    pub lighting: f64,
}

impl Default for TrainTransform {
    /// The recipe of arXiv 2006.14536 at 224 pixels: 8 to 100 % of the area, sides 3:4 to 4:3,
    /// bilinear, flip, jitter 0.4, lighting 0.1.
    fn default() -> Self {
        Self {
            size: 224,
            scale: (0.08, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            filter: Filter::Bilinear,
            flip: Flip::Horizontal,
            jitter: ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4 },
            lighting: 0.1,
        }
    }
}

/// Resize the shorter side, then keep the middle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateTransform {
    /// Length of the shorter side after resizing, at least `crop`.
    pub resize: u32,
    /// Height and width of the result, at least 1.
    pub crop: u32,
    /// How it is resized.
    pub filter: Filter,
}

impl Default for EvaluateTransform {
    /// 256, 224, bicubic.
    fn default() -> Self {
        Self { resize: 256, crop: 224, filter: Filter::Bicubic }
    }
}

impl EvaluateTransform {
    /// The middle `size / 0.875` pixels of the shorter side: 256 for 224.
    pub fn of_size(size: u32) -> Self {
        let resize = (f64::from(size) / 0.875).round() as u32;
        Self { resize, crop: size, ..Self::default() }
    }
}

/// How an image is resized. Both take the mean over all source pixels when shrinking, as Pillow and
/// torchvision do by default; the values agree with theirs to one grey level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// A triangle.
    #[default]
    Bilinear,
    /// Catmull-Rom's cubic (a = -0.5).
    Bicubic,
}

/// By how much brightness, contrast and saturation change: each by a factor drawn from
/// `[max(0, 1 - x), 1 + x]`, as torchvision does. 0 is no change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// Towards black.
    pub brightness: f64,
    /// Towards the mean grey.
    pub contrast: f64,
    /// Towards the pixel's own grey.
    pub saturation: f64,
}

impl Transform {
    /// Height and width of the result.
    pub fn size(&self) -> u32 {
        match self {
            Self::Train(train) => train.size,
            Self::Evaluate(evaluate) => evaluate.crop,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`DataError::BadSetting`] for the first one out of its range.
    pub fn validate(&self) -> Result<(), DataError> {
        let check = |valid: bool, setting, value: f64, expected| match valid {
            true => Ok(()),
            false => Err(DataError::BadSetting { setting, value, expected }),
        };
        // Beyond that, one image would take gigabytes.
        let size = |setting, value: u32| {
            check((1..=8192).contains(&value), setting, value.into(), "1 to 8192 pixels")
        };
        match self {
            Self::Evaluate(EvaluateTransform { resize, crop, .. }) => {
                size("crop", *crop)?;
                size("resize", *resize)?;
                check(resize >= crop, "resize", (*resize).into(), "at least `crop`")
            }
            Self::Train(train) => {
                size("size", train.size)?;
                let (low, high) = train.scale;
                check(low > 0.0 && low <= high, "scale", low, "above 0, the lower bound first")?;
                check(high <= 1.0, "scale", high, "at most 1")?;
                let (low, high) = train.ratio;
                check(low > 0.0 && low <= high, "ratio", low, "above 0, the lower bound first")?;
                check(high.is_finite(), "ratio", high, "finite")?;
                let ColorJitter { brightness, contrast, saturation } = train.jitter;
                for (setting, value) in [
                    ("jitter.brightness", brightness),
                    ("jitter.contrast", contrast),
                    ("jitter.saturation", saturation),
                    ("lighting", train.lighting),
                ] {
                    let valid = value.is_finite() && value >= 0.0;
                    check(valid, setting, value, "finite and at least 0")?;
                }
                Ok(())
            }
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The largest image that is decoded: ImageNet's largest takes 183 MB.
const MAX_DECODED: u64 = 256 << 20;

/// A part of an image: left, top, width, height.
type Part = [u32; 4];

/// Decodes and transforms, one image after the other, with buffers that are used again.
pub(super) struct Pictures {
    resizer: Resizer,
}

impl Pictures {
    pub(super) fn new() -> Self {
        Self { resizer: Resizer::new() }
    }

    /// The planes of the transformed image, `3 x size x size` bytes.
    pub(super) fn read(
        &mut self,
        file: &[u8],
        transform: &Transform,
        rng: &mut impl Rng,
    ) -> Result<Vec<u8>, Failure> {
        let image = decode(file)?;
        let size = transform.size() as usize;
        let pixels = match transform {
            Transform::Evaluate(transform) => self.evaluate(&image, transform)?,
            Transform::Train(transform) => self.train(&image, transform, rng)?,
        };
        let mut planes = vec![0; 3 * size * size];
        for (channel, plane) in planes.chunks_exact_mut(size * size).enumerate() {
            for (out, pixel) in plane.iter_mut().zip(pixels.chunks_exact(3)) {
                *out = pixel[channel];
            }
        }
        Ok(planes)
    }

    fn evaluate(
        &mut self,
        image: &RgbImage,
        transform: &EvaluateTransform,
    ) -> Result<Vec<u8>, Failure> {
        let (width, height) = image.dimensions();
        let short = u64::from(width.min(height));
        let scaled = |side: u32| {
            let scaled = u64::from(transform.resize) * u64::from(side) / short;
            u32::try_from(scaled).ok().filter(|&side| side <= 1 << 16)
        };
        let (Some(wide), Some(high)) = (scaled(width), scaled(height)) else {
            return Err(format!("{width} x {height} pixels are too long a strip").into());
        };
        let whole = [0, 0, width, height];
        let resized = self.resize(image, whole, [wide, high], transform.filter)?;
        let crop = transform.crop;
        // Half a pixel to the even side, as Python rounds.
        let margin = |side: u32| (f64::from(side - crop) / 2.0).round_ties_even() as usize;
        let (left, top) = (margin(wide), margin(high));
        let rows = resized.chunks_exact(3 * wide as usize).skip(top).take(crop as usize);
        Ok(rows.flat_map(|row| &row[3 * left..][..3 * crop as usize]).copied().collect())
    }

    fn train(
        &mut self,
        image: &RgbImage,
        transform: &TrainTransform,
        rng: &mut impl Rng,
    ) -> Result<Vec<u8>, Failure> {
        let size = transform.size;
        let part = random_part(image.dimensions().into(), transform, rng);
        let mut pixels = self.resize(image, part, [size, size], transform.filter)?;
        if rng.random::<bool>() && transform.flip == Flip::Horizontal {
            for row in pixels.chunks_exact_mut(3 * size as usize) {
                row.reverse();
                row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
            }
        }
        recolor(&mut pixels, transform.jitter, transform.lighting, rng);
        Ok(pixels)
    }

    /// A part of an image at another size. Nothing outside of the part is looked at.
    fn resize(
        &mut self,
        image: &RgbImage,
        [left, top, width, height]: Part,
        [wide, high]: [u32; 2],
        filter: Filter,
    ) -> Result<Vec<u8>, Failure> {
        let (from, to) = (image.dimensions(), PixelType::U8x3);
        let source = ImageRef::new(from.0, from.1, image.as_raw(), to)?;
        let source = CroppedImage::new(&source, left, top, width, height)?;
        let mut target = Image::new(wide, high, to);
        let filter = match filter {
            Filter::Bilinear => FilterType::Bilinear,
            Filter::Bicubic => FilterType::CatmullRom,
        };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        self.resizer.resize(&source, &mut target, &options)?;
        Ok(target.into_vec())
    }
}

/// A JPEG or PNG file as RGB; its first bytes tell which, not its name.
fn decode(file: &[u8]) -> Result<RgbImage, Failure> {
    if file.is_empty() {
        return Err("the file is empty (0 bytes)".into());
    }
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    // The decoder would fill up what is missing with grey.
    if reader.format() == Some(ImageFormat::Jpeg) && is_cut_off(file) {
        return Err("the JPEG file is cut off: it has no end marker".into());
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    let image = reader.decode()?;
    if image.width() == 0 || image.height() == 0 {
        return Err("the image has no pixels".into());
    }
    Ok(match image {
        DynamicImage::ImageRgb8(image) => image,
        other => other.into_rgb8(),
    })
}

/// Whether a JPEG file's last scan (marker 0xffda) has no end of image (0xffd9) after it. Neither can
/// be among the data of a scan.
fn is_cut_off(file: &[u8]) -> bool {
    let last = file
        .windows(2)
        .rev()
        .find(|pair| [[0xff, 0xd9], [0xff, 0xda]].contains(&[pair[0], pair[1]]));
    last.is_none_or(|pair| pair[1] == 0xda)
}

/// torchvision's random resized crop: ten draws of an area and a shape; if none fits, the
/// middle, as large as the allowed shapes let it be.
fn random_part(
    [width, height]: [u32; 2],
    TrainTransform { scale, ratio, .. }: &TrainTransform,
    rng: &mut impl Rng,
) -> Part {
    let (wide, high) = (f64::from(width), f64::from(height));
    for _ in 0..10 {
        let area = wide * high * rng.random_range(scale.0..=scale.1);
        let ratio = rng.random_range(ratio.0.ln()..=ratio.1.ln()).exp();
        let w = (area * ratio).sqrt().round_ties_even();
        let h = (area / ratio).sqrt().round_ties_even();
        if (1.0..=wide).contains(&w) && (1.0..=high).contains(&h) {
            let (w, h) = (w as u32, h as u32);
            let top = rng.random_range(0..=height - h);
            return [rng.random_range(0..=width - w), top, w, h];
        }
    }
    let (mut w, mut h) = (wide, high);
    if wide / high < ratio.0 {
        h = (wide / ratio.0).round_ties_even();
    } else if wide / high > ratio.1 {
        w = (high * ratio.1).round_ties_even();
    }
    let (w, h) = ((w as u32).clamp(1, width), (h as u32).clamp(1, height));
    [(width - w) / 2, (height - h) / 2, w, h]
}

/// Eigenvectors (columns) and eigenvalues of the colours of ImageNet, in units of [0, 1].
const EIGENVECTORS: [[f64; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];
const EIGENVALUES: [f64; 3] = [0.2175, 0.0188, 0.0045];

fn grey(pixel: &[f32]) -> f32 {
    0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
}

fn recolor(pixels: &mut [u8], jitter: ColorJitter, lighting: f64, rng: &mut impl Rng) {
    let ColorJitter { brightness, contrast, saturation } = jitter;
    let mut amounts = [(0, brightness), (1, contrast), (2, saturation)];
    amounts.shuffle(rng);
    // All are always drawn, so that one setting does not change what another one does.
    let factors = amounts.map(|(change, amount)| {
        let factor = rng.random_range((1.0 - amount).max(0.0)..=1.0 + amount);
        (change, amount > 0.0, factor as f32)
    });
    let noise: [f64; 3] = [(); 3].map(|()| StandardNormal.sample(rng));
    if lighting == 0.0 && factors.iter().all(|(_, changes, _)| !changes) {
        return;
    }
    let mut values: Vec<f32> = pixels.iter().map(|&byte| f32::from(byte)).collect();
    let clamp = |value: f32| value.clamp(0.0, 255.0);
    for (change, _, factor) in factors.into_iter().filter(|(_, changes, _)| *changes) {
        match change {
            0 => values.iter_mut().for_each(|value| *value = clamp(*value * factor)),
            1 => {
                let sum: f64 = values.chunks_exact(3).map(|pixel| f64::from(grey(pixel))).sum();
                let rest = (sum / (values.len() / 3) as f64) as f32 * (1.0 - factor);
                values.iter_mut().for_each(|value| *value = clamp(*value * factor + rest));
            }
            _ => {
                for pixel in values.chunks_exact_mut(3) {
                    let rest = grey(pixel) * (1.0 - factor);
                    pixel.iter_mut().for_each(|value| *value = clamp(*value * factor + rest));
                }
            }
        }
    }
    let shift = EIGENVECTORS.map(|row| {
        let along = row.iter().zip(EIGENVALUES).zip(noise);
        (along.map(|((v, value), noise)| v * value * noise).sum::<f64>() * lighting * 255.0) as f32
    });
    for (out, pixel) in pixels.chunks_exact_mut(3).zip(values.chunks_exact(3)) {
        for ((out, value), shift) in out.iter_mut().zip(pixel).zip(shift) {
            *out = clamp(value + shift).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    proptest! {
        /// Inside the image, and of an allowed area and shape but for rounding, or else the middle.
        #[test]
        fn parts_are_as_asked(width in 1_u32..600, height in 1_u32..600, seed: u64) {
            let transform = TrainTransform::default();
            let part = random_part([width, height], &transform, &mut rng(seed));
            let [left, top, w, h] = part;
            prop_assert!(w > 0 && h > 0 && left + w <= width && top + h <= height);
            let middle = (width - w) / 2 == left && (height - h) / 2 == top;
            let area = f64::from(w * h) / f64::from(width * height);
            let slack = 1.0 / f64::from(w) + 1.0 / f64::from(h);
            let ratio = f64::from(w) / f64::from(h);
            let (low, high) = transform.ratio;
            let shaped = (low * (1.0 - slack)..high * (1.0 + slack)).contains(&ratio);
            prop_assert!(area >= 0.08 * (1.0 - slack) || middle, "{:?}", part);
            prop_assert!(shaped || w == 1 || h == 1, "{:?}", part);
        }

        #[test]
        fn any_bytes_are_an_image_or_an_error(bytes: Vec<u8>, head in 0_usize..3) {
            let head: &[u8] = [&[][..], &[0xff, 0xd8, 0xff], b"\x89PNG\r\n\x1a\n"][head];
            let _ = decode(&[head, &bytes].concat());
        }
    }

    #[test]
    fn parts_have_the_mean_area_that_was_asked_for() {
        let transform = TrainTransform { scale: (0.2, 0.4), ..TrainTransform::default() };
        let mut rng = rng(0);
        let (mut area, mut log_ratio, mut left, n) = (0.0, 0.0, 0.0, 4000);
        for _ in 0..n {
            let [x, _, w, h] = random_part([500, 400], &transform, &mut rng);
            area += f64::from(w * h) / 200_000.0 / f64::from(n);
            log_ratio += (f64::from(w) / f64::from(h)).ln() / f64::from(n);
            left += f64::from(x) / f64::from(500 - w) / f64::from(n);
        }
        assert!((area - 0.3).abs() < 0.005, "{area}");
        assert!(log_ratio.abs() < 0.02, "{log_ratio}");
        assert!((left - 0.5).abs() < 0.02, "{left}");
    }

    #[test]
    fn a_strip_gives_its_middle() {
        let transform = TrainTransform::default();
        assert_eq!(random_part([1000, 9], &transform, &mut rng(0)), [494, 0, 12, 9]);
        assert_eq!(random_part([9, 1000], &transform, &mut rng(0)), [0, 494, 9, 12]);
    }

    fn recolored(pixels: &[u8], jitter: ColorJitter, lighting: f64, seed: u64) -> Vec<u8> {
        let mut out = pixels.to_vec();
        recolor(&mut out, jitter, lighting, &mut rng(seed));
        out
    }

    #[test]
    fn each_jitter_does_its_part_and_no_more() {
        let pixels: Vec<u8> = (0..300).map(|i| (i * 37 % 120 + 20) as u8).collect();
        let none = ColorJitter::default();
        assert_eq!(recolored(&pixels, none, 0.0, 0), pixels);
        let greys: Vec<u8> = (0..300).map(|i| (i / 3) as u8).collect();
        let saturation = ColorJitter { saturation: 0.4, ..none };
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for seed in 0..50 {
            assert_eq!(recolored(&greys, saturation, 0.0, seed), greys);
            let flat = recolored(&[90; 300], ColorJitter { contrast: 0.4, ..none }, 0.0, seed);
            assert_eq!(flat, [90; 300]);
            let bright = recolored(&pixels, ColorJitter { brightness: 0.4, ..none }, 0.0, seed);
            let sum = |pixels: &[u8]| pixels.iter().map(|&p| f64::from(p)).sum::<f64>();
            let factor = sum(&bright) / sum(&pixels);
            for (out, pixel) in bright.iter().zip(&pixels) {
                assert!((f64::from(*out) - f64::from(*pixel) * factor).abs() <= 1.0);
            }
            (low, high) = (low.min(factor), high.max(factor));
            let coloured = recolored(&pixels, saturation, 0.0, seed);
            let grey = |pixels: &[u8]| {
                let pixels: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
                grey(&pixels)
            };
            for (out, pixel) in coloured.chunks(3).zip(pixels.chunks(3)) {
                assert!((grey(out) - grey(pixel)).abs() < 1.0, "saturation keeps the light");
            }
        }
        assert!((0.6..0.65).contains(&low) && (1.35..1.4).contains(&high), "{low} {high}");
    }

    /// The covariance of the shifts is std^2 V diag(eigenvalues^2) V'.
    #[test]
    fn lighting_follows_the_principal_components() {
        let n = 4000;
        let mut squares = [0.0; 3];
        for seed in 0..n {
            let out = recolored(&[128; 6], ColorJitter::default(), 0.1, seed);
            assert_eq!(out[..3], out[3..], "one shift for all pixels");
            for (sum, value) in squares.iter_mut().zip(&out) {
                *sum += (f64::from(*value) - 128.0).powi(2) / n as f64;
            }
        }
        for (square, row) in squares.iter().zip(EIGENVECTORS) {
            let want: f64 = row.iter().zip(EIGENVALUES).map(|(v, l)| (25.5 * v * l).powi(2)).sum();
            // Rounding to bytes adds 1/12.
            assert!((square - want - 1.0 / 12.0).abs() < 0.06 * want, "{square} {want}");
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let setting = |transform: Transform| match transform.validate() {
            Err(DataError::BadSetting { setting, .. }) => setting,
            other => panic!("{other:?}"),
        };
        let evaluate = EvaluateTransform::default();
        let small = EvaluateTransform { resize: 223, ..evaluate.clone() };
        assert_eq!(setting(Transform::Evaluate(small)), "resize");
        assert_eq!(setting(Transform::Evaluate(EvaluateTransform { crop: 0, ..evaluate })), "crop");
        let train = TrainTransform::default;
        let train_setting = |t: TrainTransform| setting(Transform::Train(t));
        assert_eq!(train_setting(TrainTransform { size: 10_000, ..train() }), "size");
        for scale in [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (f64::NAN, 1.0), (0.1, f64::NAN)] {
            assert_eq!(train_setting(TrainTransform { scale, ..train() }), "scale");
        }
        for ratio in [(0.0, 1.0), (2.0, 1.0), (1.0, f64::INFINITY)] {
            assert_eq!(train_setting(TrainTransform { ratio, ..train() }), "ratio");
        }
        assert_eq!(train_setting(TrainTransform { lighting: -0.1, ..train() }), "lighting");
        let jitter = ColorJitter { contrast: f64::NAN, ..ColorJitter::default() };
        assert_eq!(train_setting(TrainTransform { jitter, ..train() }), "jitter.contrast");
    }
}
