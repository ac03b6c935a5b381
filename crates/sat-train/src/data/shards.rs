use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::seq::SliceRandom;

use super::listing::{entries, file_name};
use super::loader::{Deliver, Job};
use super::random::{Draw, rng};
use super::source::{io_error, read_exactly};
use super::{DataError, Loader, LoaderConfig};

/// The largest file within a shard, 64 MiB: a header cannot make us allocate more.
const MAX_ENTRY: u64 = 64 << 20;

/// Tar files with images and their labels, read from front to back: for sets with more files than a
/// file system likes, on slow disks and network drives.
///
/// A sample is two files that stand one after the other in a shard and share a name up to the
/// first dot after the last slash: an image (`.jpg`, `.jpeg` or `.png`) and a `.cls` with the class index
/// as text, in either order. WebDataset writes such files. Others with that name are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSet {
    shards: Vec<PathBuf>,
    classes: usize,
}

/// The order of the samples of a [`ShardSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardOrder {
    /// As they are stored, shard after shard in the order of the names.
    Stored,
    /// Shards in random order; samples through a buffer of so many undecoded images, from which the
    /// next one is drawn at random. The seed of the loader and the epoch decide. 1,000 photographs
    /// take about 110 MB.
    Shuffled {
        /// Images in the buffer, at least 1.
        buffer: usize,
    },
}

impl ShardSet {
    /// The files that end in `.tar` in a folder, in the order of their names.
    ///
    /// # Errors
    ///
    /// The folder is missing or has no shards.
    pub fn open(dir: impl AsRef<Path>, classes: usize) -> Result<Self, DataError> {
        let dir = dir.as_ref();
        let missing = |wanted: &str| DataError::Missing {
            path: dir.to_owned(),
            wanted: wanted.to_owned(),
            help: "give a folder with .tar files that hold pairs of <name>.jpg and <name>.cls",
        };
        if !dir.is_dir() {
            return Err(missing("folder of this name"));
        }
        let mut shards = entries(dir)?;
        shards.retain(|path| {
            path.extension().is_some_and(|e| e == "tar") && !file_name(path).starts_with('.')
        });
        if shards.is_empty() {
            return Err(missing("shards"));
        }
        Ok(Self { shards, classes })
    }

    /// The shards.
    pub fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Reads all samples once, transformed and in batches. Their indices are the number of the shard
    /// times 2^32 plus the number of the sample in it.
    ///
    /// A broken image is treated as [`LoaderConfig::broken`] says; a shard that is broken itself
    /// ends the loading.
    ///
    /// # Errors
    ///
    /// A setting is out of its range.
    pub fn loader(
        &self,
        order: ShardOrder,
        epoch: u64,
        config: &LoaderConfig,
    ) -> Result<Loader, DataError> {
        let mut shards: Vec<_> = self.shards.iter().cloned().enumerate().collect();
        let buffer = match order {
            ShardOrder::Stored => 1,
            ShardOrder::Shuffled { buffer } => {
                shards.shuffle(&mut rng(config.seed, epoch, Draw::ShardOrder));
                buffer
            }
        };
        if !(1..=1 << 20).contains(&buffer) {
            let (value, expected) = (buffer as f64, "1 to 1,048,576");
            return Err(DataError::BadSetting { setting: "buffer", value, expected });
        }
        let (classes, mut rng) = (self.classes, rng(config.seed, epoch, Draw::ShuffleBuffer));
        let read = move |deliver: Deliver<'_>| {
            let mut waiting = Vec::new();
            let mut draw =
                |waiting: &mut Vec<Job>| waiting.swap_remove(rng.random_range(0..waiting.len()));
            for (number, path) in shards {
                let read = read_shard(number as u64, &path, classes, |sample| {
                    waiting.push(sample);
                    waiting.len() < buffer || deliver(Ok(draw(&mut waiting)))
                });
                match read {
                    Ok(true) => {}
                    Ok(false) => return,
                    // What was read before it comes first, so that the error is met in its place.
                    Err(error) => {
                        while !waiting.is_empty() && deliver(Ok(draw(&mut waiting))) {}
                        deliver(Err(error));
                        return;
                    }
                }
            }
            while !waiting.is_empty() && deliver(Ok(draw(&mut waiting))) {}
        };
        Loader::start(read, epoch, config)
    }
}

/// A sample of which one file may still be missing.
struct Half {
    key: PathBuf,
    image: Option<(PathBuf, Vec<u8>)>,
    label: Option<usize>,
}

/// Delivers the samples of a shard, until `deliver` says that no more are wanted: then false.
fn read_shard(
    number: u64,
    shard: &Path,
    classes: usize,
    mut deliver: impl FnMut(Job) -> bool,
) -> Result<bool, DataError> {
    let malformed = |reason: String| DataError::Malformed {
        path: shard.to_owned(),
        what: "shard of image and .cls pairs",
        reason,
    };
    let broken = |error: std::io::Error| malformed(error.to_string());
    let file = File::open(shard).map_err(io_error(shard))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut half: Option<Half> = None;
    let mut count = 0;
    let widow = |half: &Half| {
        let lacking = if half.image.is_none() { "image" } else { ".cls file" };
        malformed(format!("sample `{}` has no {lacking} beside it", half.key.display()))
    };
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(broken)?.into_owned();
        let name = file_name(&path);
        let Some((stem, extension)) = name.split_once('.') else { continue };
        let extension = extension.to_ascii_lowercase();
        let is_label = extension == "cls";
        if !is_label && !["jpg", "jpeg", "png"].contains(&extension.as_str()) {
            continue;
        }
        if entry.size() > MAX_ENTRY {
            let (path, bytes) = (shard.join(&path), entry.size());
            return Err(DataError::TooLarge { path, bytes, limit: MAX_ENTRY });
        }
        let (size, inside) = (entry.size(), shard.join(&path));
        let bytes = read_exactly(&inside, &mut entry, size, 0)?;
        let key = path.with_file_name(stem);
        let mut sample = match half.take() {
            Some(half) if half.key == key => half,
            Some(half) => return Err(widow(&half)),
            None => Half { key, image: None, label: None },
        };
        let twice = if is_label { sample.label.is_some() } else { sample.image.is_some() };
        if twice {
            return Err(malformed(format!("sample `{}` is there twice", sample.key.display())));
        }
        if is_label {
            sample.label = Some(label(&bytes, &inside, classes)?);
        } else {
            sample.image = Some((inside, bytes));
        }
        half = match (sample.image, sample.label) {
            (Some((path, bytes)), Some(label)) => {
                let index = number << 32 | count;
                count += 1;
                if !deliver(Job { index, label, path, bytes: Some(bytes) }) {
                    return Ok(false);
                }
                None
            }
            (image, label) => Some(Half { key: sample.key, image, label }),
        };
    }
    match half {
        Some(half) => Err(widow(&half)),
        None if count == 0 => Err(malformed("there are no samples in it".to_owned())),
        None => Ok(true),
    }
}

fn label(bytes: &[u8], path: &Path, classes: usize) -> Result<usize, DataError> {
    let text = String::from_utf8_lossy(bytes);
    let label = text.trim().parse().map_err(|_| DataError::Malformed {
        path: path.to_owned(),
        what: "class index",
        reason: format!("`{}` is not a number", text.chars().take(20).collect::<String>()),
    })?;
    if label < classes {
        return Ok(label);
    }
    let origin = path.display().to_string();
    Err(DataError::LabelOutOfRange { origin, index: 0, label, classes })
}
