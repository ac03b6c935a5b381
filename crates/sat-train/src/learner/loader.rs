use crate::{data::ImageSet, recipe::Recipe, train::TrainError};
use burn::{
    data::{
        dataloader::{DataLoader, DataLoaderIterator, Progress},
        dataset::DatasetError,
    },
    tensor::{Device, Tensor},
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Images and labels of a step on one device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[n, c, h, w]`, in [0, 1].
    pub images: Tensor<4>,
    /// The class of each image.
    pub labels: Vec<usize>,
    /// How many samples were seen before the first of these, over the whole training.
    pub first: u64,
    /// How many updates were made before this one.
    pub step: usize,
    /// Which share of all images of the step these are: 1 on one device.
    pub share: f64,
}

/// The training images of a recipe, epoch after epoch as [`train`](crate::train) takes them.
///
/// [`iter`](DataLoader::iter) is one epoch, and each call the next one. The part that
/// [`slice`](DataLoader::slice) gives to one of several devices is the same rows of every batch, so
/// that all devices together see the batches of one.
#[derive(Debug)]
pub struct TrainingImages {
    data: Arc<ImageSet>,
    recipe: Arc<Recipe>,
    device: Device,
    epoch: AtomicUsize,
    rows: Range<usize>,
}

impl TrainingImages {
    /// All images, from the epoch of this number on, counted from 0.
    ///
    /// # Errors
    ///
    /// [`TrainError::Recipe`] or [`TrainError::TooFewSamples`].
    pub fn new(
        data: impl Into<Arc<ImageSet>>,
        recipe: impl Into<Arc<Recipe>>,
        epoch: usize,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let (data, recipe) = (data.into(), recipe.into());
        recipe.validate()?;
        let (samples, batch_size) = (data.len(), recipe.batch_size);
        if samples < batch_size {
            return Err(TrainError::TooFewSamples { samples, batch_size });
        }
        let (epoch, device) = (AtomicUsize::new(epoch), device.clone());
        Ok(Self { data, recipe, device, epoch, rows: 0..batch_size })
    }

    /// Updates in an epoch: the last images that fill no batch are left out.
    pub fn steps(&self) -> usize {
        self.data.len() / self.recipe.batch_size
    }

    fn part(&self, rows: Range<usize>, device: &Device) -> Arc<Self> {
        Arc::new(Self {
            data: self.data.clone(),
            recipe: self.recipe.clone(),
            device: device.clone(),
            epoch: AtomicUsize::new(self.epoch.load(Ordering::Relaxed)),
            rows,
        })
    }
}

impl DataLoader<Batch> for TrainingImages {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let Recipe { batch_size, seed, augment, .. } = *self.recipe;
        let order = self.data.shuffled(seed, epoch as u64);
        let rows = self.rows.clone();
        let steps = self.steps();
        let batch = move |number: usize| {
            let start = number * batch_size;
            let indices = &order[start + rows.start..start + rows.end];
            let (images, labels) =
                self.data.batch_augmented(indices, augment, seed, epoch as u64, &self.device);
            let step = epoch * steps + number;
            let first = (step * batch_size + rows.start) as u64;
            Batch { images, labels, first, step, share: rows.len() as f64 / batch_size as f64 }
        };
        // More devices than images in a batch leave some without.
        let steps = if self.rows.is_empty() { 0 } else { steps };
        let ends = (1..=steps).map(|number| number * self.rows.len()).collect();
        Box::new(Batches { batch: Box::new(batch), done: 0, ends })
    }

    fn num_items(&self) -> usize {
        self.steps() * self.rows.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        self.part(self.rows.clone(), device)
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        let row = |item: usize| self.rows.start + (item / self.steps()).min(self.rows.len());
        self.part(row(start)..row(end), &self.device)
    }
}

/// Images to validate on, in their order, all of them.
#[derive(Debug)]
pub struct ValidationImages {
    data: Arc<ImageSet>,
    batch_size: usize,
    device: Device,
    range: Range<usize>,
}

impl ValidationImages {
    /// All images, so many at a time.
    pub fn new(data: impl Into<Arc<ImageSet>>, batch_size: usize, device: &Device) -> Self {
        let (data, device) = (data.into(), device.clone().without_autodiff());
        let range = 0..data.len();
        Self { data, batch_size: batch_size.max(1), device, range }
    }

    fn part(&self, range: Range<usize>, device: &Device) -> Arc<Self> {
        let Self { data, batch_size, .. } = self;
        let (data, device) = (data.clone(), device.clone().without_autodiff());
        Arc::new(Self { data, batch_size: *batch_size, device, range })
    }
}

impl DataLoader<Batch> for ValidationImages {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let Range { start, end } = self.range;
        let batch = move |number: usize| {
            let first = start + number * self.batch_size;
            let indices: Vec<usize> = (first..end.min(first + self.batch_size)).collect();
            let (images, labels) = self.data.batch(&indices, &self.device);
            Batch { images, labels, first: first as u64, step: number, share: 1.0 }
        };
        let count = self.num_items().div_ceil(self.batch_size);
        let ends = (1..=count).map(|n| self.num_items().min(n * self.batch_size)).collect();
        Box::new(Batches { batch: Box::new(batch), done: 0, ends })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        self.part(self.range.clone(), device)
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        let item = |item: usize| (self.range.start + item).min(self.range.end);
        self.part(item(start)..item(end), &self.device)
    }
}

/// Batch after batch.
struct Batches<'a> {
    batch: Box<dyn Fn(usize) -> Batch + 'a>,
    done: usize,
    /// Images seen after each batch.
    ends: Vec<usize>,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.done < self.ends.len()).then(|| {
            self.done += 1;
            Ok((self.batch)(self.done - 1))
        })
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        let seen = |batches: usize| match batches {
            0 => 0,
            _ => self.ends[batches - 1],
        };
        Progress::new(seen(self.done), seen(self.ends.len()), Some("images".to_owned()))
    }
}
