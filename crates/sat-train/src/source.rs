//! Where a training takes its images from.

use crate::{
    data::{DataError, ImageSet},
    recipe::Recipe,
};
use burn::tensor::{Device, Tensor};
use std::ops::Range;

/// Images `[n, c, h, w]` in [0, 1] and their labels, batch by batch; after an error nothing more comes.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<(Tensor<4>, Vec<usize>), DataError>> + 'a>;

/// Labelled images that [`train`](crate::train) and Burn's learner can train on: an [`ImageSet`] in
/// memory, or `Photographs` on the disk (feature `images`).
pub trait TrainingData: Sized {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tells these images from others, in hexadecimal; a checkpoint keeps it.
    fn sha256(&self) -> String;

    /// Indices `0..len()` in the random order of an epoch, the same on every machine.
    fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize>;

    /// The images at these indices, in this order.
    fn subset(&self, indices: &[usize]) -> Self;

    /// The full batches of an epoch, shuffled and transformed at random, as the recipe's `batch_size`,
    /// `seed` and `augment` say; of each batch these rows, a range within `0..batch_size` that is not
    /// empty, which are the same whatever the range.
    fn epoch<'a>(
        &'a self,
        recipe: &'a Recipe,
        epoch: u64,
        rows: Range<usize>,
        device: &'a Device,
    ) -> Batches<'a>;

    /// All images in order and without random transforms; the last batch holds what is left.
    fn in_order<'a>(&'a self, batch_size: usize, device: &'a Device) -> Batches<'a>;
}

impl TrainingData for ImageSet {
    fn len(&self) -> usize {
        self.len()
    }

    fn sha256(&self) -> String {
        self.sha256()
    }

    fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize> {
        self.shuffled(seed, epoch)
    }

    fn subset(&self, indices: &[usize]) -> Self {
        self.subset(indices)
    }

    fn epoch<'a>(
        &'a self,
        recipe: &'a Recipe,
        epoch: u64,
        rows: Range<usize>,
        device: &'a Device,
    ) -> Batches<'a> {
        let Recipe { batch_size, seed, augment, .. } = *recipe;
        let order = self.shuffled(seed, epoch);
        Box::new((0..self.len() / batch_size).map(move |number| {
            let start = number * batch_size;
            let indices = &order[start + rows.start..start + rows.end];
            Ok(self.batch_augmented(indices, augment, seed, epoch, device))
        }))
    }

    fn in_order<'a>(&'a self, batch_size: usize, device: &'a Device) -> Batches<'a> {
        Box::new(self.batches(batch_size).map(move |indices| Ok(self.batch(&indices, device))))
    }
}
