use burn::tensor::{Device, Tensor, TensorData};

use super::random::{Draw, rng, shuffled};
use super::{Augment, DataError};
use crate::units::SumOfParts;

/// Labelled images of one size, in memory: `N x C x H x W` bytes, planes one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSet {
    images: Vec<u8>,
    labels: Vec<u16>,
    shape: [usize; 3],
    class_names: Vec<String>,
}

impl ImageSet {
    /// A set from `N x C x H x W` bytes, `shape = [C, H, W]`, `N` labels, and one name a class.
    ///
    /// # Errors
    ///
    /// [`BadShape`](DataError::BadShape), [`CountMismatch`](DataError::CountMismatch),
    /// [`LabelOutOfRange`](DataError::LabelOutOfRange) or [`Empty`](DataError::Empty).
    pub fn new(
        images: Vec<u8>,
        shape: [usize; 3],
        labels: Vec<u16>,
        class_names: Vec<String>,
    ) -> Result<Self, DataError> {
        Self::from_source("image set", images, shape, labels, class_names)
    }

    /// [`new`](Self::new), with the file or folder to name in an error.
    pub(super) fn from_source(
        origin: impl std::fmt::Display,
        images: Vec<u8>,
        shape: [usize; 3],
        labels: Vec<u16>,
        class_names: Vec<String>,
    ) -> Result<Self, DataError> {
        let origin = || origin.to_string();
        if images.is_empty() && labels.is_empty() {
            return Err(DataError::Empty { origin: origin() });
        }
        let pixels = shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim));
        let count = match pixels {
            Some(pixels) if pixels > 0 && images.len().is_multiple_of(pixels) => {
                images.len() / pixels
            }
            _ => {
                return Err(DataError::BadShape { origin: origin(), shape, bytes: images.len() });
            }
        };
        if count != labels.len() {
            return Err(DataError::CountMismatch {
                origin: origin(),
                images: count,
                labels: labels.len(),
            });
        }
        let classes = class_names.len();
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes) {
            let label = usize::from(labels[index]);
            return Err(DataError::LabelOutOfRange { origin: origin(), index, label, classes });
        }
        Ok(Self { images, labels, shape, class_names })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class index of each sample.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// The `C x H x W` bytes of one image.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn image(&self, index: usize) -> &[u8] {
        let size = self.image_size();
        &self.images[index * size..(index + 1) * size]
    }

    /// Channels, height and width of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Number of channels: 1 (grey) or 3 (red, green, blue).
    pub fn channels(&self) -> usize {
        self.shape[0]
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.shape[1]
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.shape[2]
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// The name of each class, by index.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The SHA-256 sum of everything in the set, in hexadecimal: shape, class names, labels and images.
    pub fn sha256(&self) -> String {
        let mut sum = SumOfParts::default();
        for size in self.shape {
            sum.add(&(size as u64).to_le_bytes());
        }
        for name in &self.class_names {
            sum.add(name.as_bytes());
        }
        sum.add(&self.labels.iter().flat_map(|label| label.to_le_bytes()).collect::<Vec<_>>());
        sum.add(&self.images);
        sum.finish()
    }

    /// The first `n` samples, or all of them if there are fewer.
    #[must_use]
    pub fn take(mut self, n: usize) -> Self {
        let n = n.min(self.len());
        self.images.truncate(n * self.image_size());
        self.labels.truncate(n);
        self
    }

    /// The samples before `mid` and those from `mid` on, for example training and validation.
    ///
    /// # Panics
    ///
    /// If `mid` exceeds [`len`](Self::len).
    #[must_use]
    pub fn split_at(mut self, mid: usize) -> (Self, Self) {
        let rest = Self {
            images: self.images.split_off(mid * self.image_size()),
            labels: self.labels.split_off(mid),
            shape: self.shape,
            class_names: self.class_names.clone(),
        };
        (self, rest)
    }

    /// The samples at `indices`, in that order.
    ///
    /// # Panics
    ///
    /// If an index is not below [`len`](Self::len).
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        Self {
            images: indices.iter().flat_map(|&i| self.image(i)).copied().collect(),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            shape: self.shape,
            class_names: self.class_names.clone(),
        }
    }

    /// The samples at `indices` on `device`: images `[n, C, H, W]` in `[0, 1]` (`byte / 255`, in the
    /// device's float type, f32 unless configured otherwise) and their labels.
    ///
    /// # Panics
    ///
    /// If an index is not below [`len`](Self::len).
    pub fn batch(&self, indices: &[usize], device: &Device) -> (Tensor<4>, Vec<usize>) {
        self.gather(indices, device, |index, out| out.extend_from_slice(self.image(index)))
    }

    /// [`batch`](Self::batch), with each image cropped, flipped and cut out at random.
    ///
    /// What happens to a sample depends on the seed, the epoch and its index in the set, not on the
    /// batch that it is in.
    ///
    /// # Panics
    ///
    /// If an index is not below [`len`](Self::len).
    pub fn batch_augmented(
        &self,
        indices: &[usize],
        augment: Augment,
        seed: u64,
        epoch: u64,
        device: &Device,
    ) -> (Tensor<4>, Vec<usize>) {
        self.gather(indices, device, |index, out| {
            let mut rng = rng(seed, epoch, Draw::Augment(index as u64));
            let image = augment.apply(self.image(index), self.height(), self.width(), &mut rng);
            out.extend_from_slice(&image);
        })
    }

    /// Indices `0..len()` in order, `size` at a time; the last batch holds what is left.
    ///
    /// # Panics
    ///
    /// If `size` is 0.
    pub fn batches(&self, size: usize) -> impl ExactSizeIterator<Item = Vec<usize>> + use<> {
        let len = self.len();
        (0..len).step_by(size).map(move |start| (start..len.min(start + size)).collect())
    }

    /// Indices `0..len()` in the random order of an epoch, the same on every machine.
    pub fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize> {
        shuffled(self.len(), seed, epoch)
    }

    fn image_size(&self) -> usize {
        self.shape.iter().product()
    }

    fn gather(
        &self,
        indices: &[usize],
        device: &Device,
        push_image: impl Fn(usize, &mut Vec<u8>),
    ) -> (Tensor<4>, Vec<usize>) {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_size());
        for &index in indices {
            push_image(index, &mut pixels);
        }
        let [channels, height, width] = self.shape;
        let labels = indices.iter().map(|&i| usize::from(self.labels[i])).collect();
        (unit_tensor(&pixels, [indices.len(), channels, height, width], device), labels)
    }
}

/// Images on a device, in [0, 1]: bytes divided by 255. They become floats here on the host, because
/// not every device computes on bytes.
pub(super) fn unit_tensor(bytes: &[u8], shape: [usize; 4], device: &Device) -> Tensor<4> {
    let pixels = bytes.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    Tensor::from_data(TensorData::new::<f32, _>(pixels, shape), device)
}
