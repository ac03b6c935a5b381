use super::{
    BrokenImage, DataError, EvaluateTransform, ImageFolder, Loader, LoaderConfig, Remainder,
    TrainTransform, Transform,
};
use crate::{
    recipe::Recipe,
    source::{Batches, TrainingData},
    units::SumOfParts,
};
use burn::tensor::{Device, Tensor};
use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Photographs of a folder to train on, read while the network works. Of the recipe's `augment` only
/// `mixup` has a meaning here: the transform takes the place of the others.
#[derive(Clone, Debug)]
pub struct Photographs {
    /// The files.
    pub folder: ImageFolder,
    /// Which of them.
    pub indices: Vec<usize>,
    /// What is done to an image that is trained on.
    pub train: TrainTransform,
    /// What is done to one that is only watched.
    pub evaluate: EvaluateTransform,
    /// What a broken image does.
    pub broken: BrokenImage,
    /// Shared with the parts that [`subset`](TrainingData::subset) gives.
    skipped: Arc<Mutex<BTreeSet<String>>>,
}

impl Photographs {
    /// These files at a height and width in pixels, with the usual transforms.
    pub fn new(folder: ImageFolder, indices: Vec<usize>, size: u32, broken: BrokenImage) -> Self {
        Self {
            folder,
            indices,
            train: TrainTransform { size, ..TrainTransform::default() },
            evaluate: EvaluateTransform::of_size(size),
            broken,
            skipped: Arc::default(),
        }
    }

    /// The broken images that were left out so far, each with its reason.
    pub fn broken_files(&self) -> Vec<String> {
        self.skipped().iter().cloned().collect()
    }

    fn skipped(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batches<'a>(
        &'a self,
        indices: &[usize],
        epoch: u64,
        config: LoaderConfig,
        device: &'a Device,
    ) -> Batches<'a> {
        match self.folder.loader(indices, epoch, &config) {
            Ok(loader) => Box::new(Reading { loader, photographs: self, device }),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }
}

struct Reading<'a> {
    loader: Loader,
    photographs: &'a Photographs,
    device: &'a Device,
}

impl Iterator for Reading<'_> {
    type Item = Result<(Tensor<4>, Vec<usize>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.loader.next();
        if !self.loader.skipped().is_empty() {
            let skipped = self.loader.skipped().iter().map(ToString::to_string);
            self.photographs.skipped().extend(skipped);
        }
        Some(next?.map(|batch| (batch.images(self.device), batch.labels().to_vec())))
    }
}

impl TrainingData for Photographs {
    fn len(&self) -> usize {
        self.indices.len()
    }

    /// Of class names, paths below the folder, labels and transforms; the files themselves are too
    /// many to read.
    fn sha256(&self) -> String {
        let mut sum = SumOfParts::default();
        for name in self.folder.class_names() {
            sum.add(name.as_bytes());
        }
        sum.add(format!("{:?}{:?}{:?}", self.train, self.evaluate, self.broken).as_bytes());
        for &index in &self.indices {
            sum.add(self.folder.path_below(index).to_string_lossy().as_bytes());
            sum.add(&(self.folder.label(index) as u64).to_le_bytes());
        }
        sum.finish()
    }

    fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize> {
        super::random::shuffled(self.indices.len(), seed, epoch)
    }

    fn subset(&self, indices: &[usize]) -> Self {
        Self { indices: indices.iter().map(|&i| self.indices[i]).collect(), ..self.clone() }
    }

    fn epoch<'a>(
        &'a self,
        recipe: &'a Recipe,
        epoch: u64,
        rows: Range<usize>,
        device: &'a Device,
    ) -> Batches<'a> {
        let order = self.shuffled(recipe.seed, epoch);
        let order: Vec<usize> = order.into_iter().map(|i| self.indices[i]).collect();
        let whole = recipe.batch_size;
        let read = |order: &[usize], batch_size: usize| {
            let config = LoaderConfig {
                batch_size,
                remainder: Remainder::Drop,
                broken: self.broken,
                seed: recipe.seed,
                ..LoaderConfig::new(Transform::Train(self.train.clone()))
            };
            self.batches(order, epoch, config, device)
        };
        match self.broken {
            BrokenImage::Stop => {
                let parts = order.chunks_exact(whole).flat_map(|batch| &batch[rows.clone()]);
                read(&parts.copied().collect::<Vec<_>>(), rows.len())
            }
            // Which images are in a batch is known only when all before them have been read.
            BrokenImage::Skip => Box::new(read(&order, whole).map(move |batch| {
                let (images, labels) = batch?;
                Ok((images.slice([rows.clone()]), labels[rows.clone()].to_vec()))
            })),
        }
    }

    fn in_order<'a>(&'a self, batch_size: usize, device: &'a Device) -> Batches<'a> {
        let transform = Transform::Evaluate(self.evaluate.clone());
        let broken = self.broken;
        let config = LoaderConfig { batch_size, broken, ..LoaderConfig::new(transform) };
        self.batches(&self.indices, 0, config, device)
    }
}
