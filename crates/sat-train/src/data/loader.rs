use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::random::{Draw, rng};
use super::transform::Pictures;
use super::{DataError, Transform};

/// The most bytes that are reserved for a batch before its images are there.
const MAX_RESERVED: usize = 64 << 20;

/// How a [`Loader`] reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// What is done to each image.
    pub transform: Transform,
    /// Images a batch, 1 to 65,536.
    pub batch_size: usize,
    /// What becomes of the last images if they do not fill a batch.
    #[serde(default)]
    pub remainder: Remainder,
    /// What a broken image does.
    #[serde(default)]
    pub broken: BrokenImage,
    /// The seed of a random transform.
    #[serde(default)]
    pub seed: u64,
    /// Threads that decode; without a number, as many as the machine has cores. The batches do not
    /// depend on it.
    #[serde(default)]
    pub threads: Option<NonZeroUsize>,
    /// Batches' worth of images that are made ready in advance, 1 to 16.
    #[serde(default = "default_ahead")]
    pub ahead: usize,
}

fn default_ahead() -> usize {
    2
}

impl LoaderConfig {
    /// Batches of 256, the last one as it comes, a broken image as an error, seed 0, all cores, two
    /// batches ahead.
    pub fn new(transform: Transform) -> Self {
        Self {
            transform,
            batch_size: 256,
            remainder: Remainder::default(),
            broken: BrokenImage::default(),
            seed: 0,
            threads: None,
            ahead: default_ahead(),
        }
    }

    fn validate(&self) -> Result<(), DataError> {
        self.transform.validate()?;
        // Queues are allocated for their full length.
        let threads = self.threads.map_or(1, NonZeroUsize::get);
        for (setting, value, most, expected) in [
            ("batch_size", self.batch_size, 65_536, "1 to 65,536"),
            ("ahead", self.ahead, 16, "1 to 16"),
            ("threads", threads, 1024, "1 to 1,024"),
        ] {
            if !(1..=most).contains(&value) {
                return Err(DataError::BadSetting { setting, value: value as f64, expected });
            }
        }
        Ok(())
    }
}

/// What becomes of the last images if they do not fill a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// They are a smaller batch.
    #[default]
    Keep,
    /// They are left out, as is usual for training.
    Drop,
}

/// What an image does that cannot be read or decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokenImage {
    /// It ends the loading with an error that names it.
    #[default]
    Stop,
    /// It is left out, and kept in [`Loader::skipped`]. The images after it move up.
    Skip,
}

/// Images of one size and their labels, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteBatch {
    pixels: Vec<u8>,
    size: usize,
    labels: Vec<usize>,
    indices: Vec<u64>,
}

impl ByteBatch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// `n x 3 x size x size` bytes: planes of red, green and blue.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The class index of each image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// Which sample of its set each image is.
    pub fn indices(&self) -> &[u64] {
        &self.indices
    }

    /// Height and width of the images.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The images on a device, `[n, 3, size, size]` in [0, 1] (`byte / 255`, in the device's float
    /// type).
    pub fn images(&self, device: &Device) -> Tensor<4> {
        super::set::unit_tensor(&self.pixels, [self.len(), 3, self.size, self.size], device)
    }
}

/// Batches of images that threads of its own read, decode and transform: an iterator.
///
/// The order is that of the samples, whatever the number of threads, and a random transform depends
/// on the seed, the epoch and the sample alone. Threads stay at most
/// [`ahead`](LoaderConfig::ahead) batches in front, so memory is bounded: about `(ahead + 1) x
/// batch_size x 3 x size^2` bytes, and one decoded photograph a thread. After an error the iterator
/// ends. Dropping it stops the threads.
///
/// ```no_run
/// # fn example(device: &burn::tensor::Device) -> Result<(), sat_train::data::DataError> {
/// use sat_train::data::{ImageFolder, LoaderConfig, Transform, TrainTransform};
///
/// let photographs = ImageFolder::open("imagenet/train")?;
/// let config = LoaderConfig::new(Transform::Train(TrainTransform::default()));
/// for epoch in 0..90 {
///     let order = photographs.shuffled(config.seed, epoch);
///     for batch in photographs.loader(&order, epoch, &config)? {
///         let batch = batch?;
///         let (images, labels) = (batch.images(device), batch.labels());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Loader {
    batch_size: usize,
    size: usize,
    remainder: Remainder,
    broken: BrokenImage,
    /// What each thread has ready; they take turns, sample by sample.
    ready: VecDeque<Receiver<Outcome>>,
    threads: Vec<JoinHandle<()>>,
    skipped: Vec<DataError>,
    delivered: usize,
    taken: usize,
}

/// A sample to read: its bytes, or else the file that holds them.
pub(super) struct Job {
    pub(super) index: u64,
    pub(super) label: usize,
    pub(super) path: PathBuf,
    pub(super) bytes: Option<Vec<u8>>,
}

/// Takes a job, or an error that ends the loading; false means that no more are wanted.
pub(super) type Deliver<'a> = &'a mut dyn FnMut(Result<Job, DataError>) -> bool;

#[derive(Debug)]
enum Outcome {
    Sample { index: u64, label: usize, pixels: Vec<u8> },
    Broken(DataError),
    Fatal(DataError),
}

impl Loader {
    /// The threads: one that hands out jobs in turns, and the others that do them. Each has a queue
    /// of its own, so the order needs no sorting, and a full queue makes its thread wait.
    pub(super) fn start(
        jobs: impl FnOnce(Deliver<'_>) + Send + 'static,
        epoch: u64,
        config: &LoaderConfig,
    ) -> Result<Self, DataError> {
        config.validate()?;
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let workers = config.threads.unwrap_or_else(cores).get();
        let depth = (config.ahead * config.batch_size).div_ceil(workers);
        let (mut inputs, mut ready, mut threads) = (Vec::new(), VecDeque::new(), Vec::new());
        for _ in 0..workers {
            let (input, jobs) = sync_channel(2);
            let (output, outcomes) = sync_channel(depth);
            let (transform, seed) = (config.transform.clone(), config.seed);
            threads.push(spawn(move || work(&jobs, &output, &transform, seed, epoch))?);
            inputs.push(input);
            ready.push_back(outcomes);
        }
        threads.push(spawn(move || {
            let mut turns = inputs.iter().cycle();
            jobs(&mut |job| turns.next().is_some_and(|input| input.send(job).is_ok()));
        })?);
        Ok(Self {
            batch_size: config.batch_size,
            size: config.transform.size() as usize,
            remainder: config.remainder,
            broken: config.broken,
            ready,
            threads,
            skipped: Vec::new(),
            delivered: 0,
            taken: 0,
        })
    }

    /// The broken images so far, if [`BrokenImage::Skip`] was chosen.
    pub fn skipped(&self) -> &[DataError] {
        &self.skipped
    }

    /// What comes next in the order of the samples.
    fn take(&mut self) -> Option<Outcome> {
        let queue = self.ready.pop_front()?;
        match queue.recv() {
            Ok(outcome) => {
                self.ready.push_back(queue);
                self.taken += 1;
                Some(outcome)
            }
            // Jobs are handed out in turns: where one has none, no other has.
            Err(_) => {
                drop(queue);
                self.stop();
                None
            }
        }
    }

    /// Ends the threads. A bug that ended one must not look like the end of the data.
    fn stop(&mut self) {
        self.ready.clear();
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Iterator for Loader {
    type Item = Result<ByteBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = ByteBatch {
            pixels: Vec::with_capacity(
                MAX_RESERVED.min(self.batch_size * 3 * self.size * self.size),
            ),
            size: self.size,
            labels: Vec::new(),
            indices: Vec::new(),
        };
        let failed = loop {
            if batch.len() == self.batch_size {
                break None;
            }
            match self.take() {
                None => break None,
                Some(Outcome::Sample { index, label, pixels }) => {
                    batch.pixels.extend_from_slice(&pixels);
                    batch.labels.push(label);
                    batch.indices.push(index);
                }
                Some(Outcome::Broken(error)) if self.broken == BrokenImage::Skip => {
                    self.skipped.push(error);
                }
                Some(Outcome::Broken(error) | Outcome::Fatal(error)) => break Some(error),
            }
        };
        if let Some(error) = failed {
            self.stop();
            return Some(Err(error));
        }
        let short = batch.len() < self.batch_size;
        if batch.is_empty() || (short && self.remainder == Remainder::Drop) {
            let all_broken = self.delivered == 0 && self.skipped.len() == self.taken;
            // Once: the count of skipped images is then behind.
            if all_broken && self.taken > 0 {
                self.taken = 0;
                return self.skipped.pop().map(|last| {
                    let count = self.skipped.len() + 1;
                    Err(DataError::AllBroken { count, last: last.into() })
                });
            }
            return None;
        }
        self.delivered += 1;
        Some(Ok(batch))
    }
}

impl std::iter::FusedIterator for Loader {}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DataError> {
    let named = std::thread::Builder::new().name("sat-loader".to_owned());
    let failed = |source| DataError::Io { path: "the threads of the loader".into(), source };
    named.spawn(work).map_err(failed)
}

/// One thread: does its jobs until there are no more, or nobody takes the results.
fn work(
    jobs: &Receiver<Result<Job, DataError>>,
    output: &SyncSender<Outcome>,
    transform: &Transform,
    seed: u64,
    epoch: u64,
) {
    let mut pictures = Pictures::new();
    for job in jobs {
        let outcome = match job {
            Err(error) => Outcome::Fatal(error),
            Ok(Job { index, label, path, bytes }) => {
                let bytes = match bytes {
                    Some(bytes) => Ok(bytes),
                    None => std::fs::read(&path),
                };
                let mut rng = rng(seed, epoch, Draw::Augment(index));
                let pixels = bytes.map_err(|source| DataError::Io { path: path.clone(), source });
                let pixels = pixels.and_then(|bytes| {
                    pictures
                        .read(&bytes, transform, &mut rng)
                        .map_err(|source| DataError::Decode { path, source })
                });
                match pixels {
                    Ok(pixels) => Outcome::Sample { index, label, pixels },
                    Err(error) => Outcome::Broken(error),
                }
            }
        };
        if output.send(outcome).is_err() {
            break;
        }
    }
}
