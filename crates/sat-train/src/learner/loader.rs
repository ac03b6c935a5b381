use crate::{
    data::{DataError, ImageSet},
    recipe::Recipe,
    source::{self, TrainingData},
    train::TrainError,
};
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
/// that all devices together see the batches of one. Broken photographs that are left out make an
/// epoch shorter, as in `train`; the schedule then stops as many steps before its end.
#[derive(Debug)]
pub struct TrainingImages<D = ImageSet> {
    data: Arc<D>,
    recipe: Arc<Recipe>,
    device: Device,
    epoch: AtomicUsize,
    rows: Range<usize>,
}

impl<D: TrainingData> TrainingImages<D> {
    /// All images, from the epoch of this number on, counted from 0.
    ///
    /// # Errors
    ///
    /// [`TrainError::Recipe`] or [`TrainError::TooFewSamples`].
    pub fn new(
        data: D,
        recipe: impl Into<Arc<Recipe>>,
        epoch: usize,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let (data, recipe) = (Arc::new(data), recipe.into());
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

impl<D: TrainingData + Send + Sync + 'static> DataLoader<Batch> for TrainingImages<D> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let (rows, batch_size, steps) = (&self.rows, self.recipe.batch_size, self.steps());
        let batches: source::Batches<'a> = match rows.is_empty() {
            // More devices than images in a batch leave some without.
            true => Box::new(std::iter::empty()),
            false => self.data.epoch(&self.recipe, epoch as u64, rows.clone(), &self.device),
        };
        let batches = batches.enumerate().map(move |(number, batch)| {
            let (images, labels) = batch?;
            let step = epoch * steps + number;
            let first = (step * batch_size + rows.start) as u64;
            Ok(Batch { images, labels, first, step, share: rows.len() as f64 / batch_size as f64 })
        });
        let samples = self.data.len();
        let too_few = TrainError::TooFewSamples { samples, batch_size };
        Box::new(Batches {
            batches: Box::new(batches),
            seen: 0,
            items: self.num_items(),
            none: (!rows.is_empty()).then_some(too_few),
        })
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
pub struct ValidationImages<D = ImageSet> {
    data: Arc<D>,
    batch_size: usize,
    device: Device,
}

impl<D: TrainingData> ValidationImages<D> {
    /// All images, so many at a time.
    pub fn new(data: D, batch_size: usize, device: &Device) -> Self {
        Self::of(Arc::new(data), batch_size.max(1), device)
    }

    fn of(data: Arc<D>, batch_size: usize, device: &Device) -> Self {
        Self { data, batch_size, device: device.clone().without_autodiff() }
    }
}

impl<D: TrainingData + Send + Sync + 'static> DataLoader<Batch> for ValidationImages<D> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        let batches = self.data.in_order(self.batch_size, &self.device);
        let batches = batches.enumerate().map(|(step, batch)| {
            let (images, labels) = batch?;
            let first = (step * self.batch_size) as u64;
            Ok(Batch { images, labels, first, step, share: 1.0 })
        });
        Box::new(Batches {
            batches: Box::new(batches),
            seen: 0,
            items: self.num_items(),
            none: None,
        })
    }

    fn num_items(&self) -> usize {
        self.data.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self::of(self.data.clone(), self.batch_size, device))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        let indices: Vec<usize> = (start..end.min(self.data.len())).collect();
        let part = Arc::new(self.data.subset(&indices));
        Arc::new(Self::of(part, self.batch_size, &self.device))
    }
}

/// Batch after batch.
struct Batches<'a> {
    batches: Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>,
    /// Images that came.
    seen: usize,
    /// Images that come if none of them is broken.
    items: usize,
    /// What is wrong if none comes.
    none: Option<TrainError>,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batches.next() {
            Some(batch) => {
                self.none = None;
                self.seen += batch.as_ref().map_or(0, |batch| batch.labels.len());
                Some(batch.map_err(DatasetError::new))
            }
            None => self.none.take().map(|error| Err(DatasetError::new(error))),
        }
    }
}

impl DataLoaderIterator<Batch> for Batches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.seen, self.items, Some("images".to_owned()))
    }
}
