use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::listing::{entries, file_name, is_image};
use super::loader::{Deliver, Job};
use super::random::shuffled;
use super::source::io_error;
use super::{DataError, ImageSet, Loader, LoaderConfig, Transform};

const HELP: &str = "lay the images out as <class>/<file>.jpg, one folder a class";

/// A list of labelled image files, such as ImageNet's. The images stay on the disk: a [`Loader`] reads
/// them, several at a time.
///
/// Samples are sorted by class and file name. Image files are those that end in `.jpg`, `.jpeg` or
/// `.png`, in any case; what is in them is found out when they are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    root: PathBuf,
    class_names: Vec<String>,
    /// Paths below the root, and labels.
    samples: Arc<Vec<(PathBuf, u32)>>,
}

impl ImageFolder {
    /// The images in `dir/<class>/`. The index of a class is the position of its folder's name in
    /// sorted order; for ImageNet's folders that is the usual numbering.
    ///
    /// # Errors
    ///
    /// The folder is missing or has no class folders, or a class folder has no images.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, DataError> {
        let root = dir.as_ref().to_owned();
        let folders = class_folders(&root)?;
        if folders.is_empty() {
            return Err(missing(&root, "class folders"));
        }
        let mut samples = Vec::new();
        for (label, folder) in folders.iter().enumerate() {
            let before = samples.len();
            for path in entries(folder)?.into_iter().filter(|path| is_image(path)) {
                let below = path.strip_prefix(&root).unwrap_or(&path).to_owned();
                samples.push((below, label as u32));
            }
            if samples.len() == before {
                return Err(missing(folder, "images"));
            }
        }
        let class_names = folders.iter().map(|path| file_name(path)).collect();
        Ok(Self { root, class_names, samples: samples.into() })
    }

    /// [`open`](Self::open), where the class folders must be exactly these, in any order; a class's
    /// index is its position in sorted order. Use it for validation images with the class names of
    /// training: one missing folder would shift the labels of all that follow.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open), and [`DataError::ClassMismatch`].
    pub fn open_with_classes(
        dir: impl AsRef<Path>,
        class_names: &[String],
    ) -> Result<Self, DataError> {
        let path = dir.as_ref();
        // Before the folders are read, so that a class folder that is not there is named first.
        let found: Vec<String> = class_folders(path)?.iter().map(|path| file_name(path)).collect();
        let not_in = |these: &[String], those: &[String]| -> Vec<String> {
            let those: HashSet<&String> = those.iter().collect();
            these.iter().filter(|name| !those.contains(name)).cloned().collect()
        };
        let missing = not_in(class_names, &found);
        let unexpected = not_in(&found, class_names);
        if missing.is_empty() && unexpected.is_empty() {
            return Self::open(path);
        }
        Err(DataError::ClassMismatch { path: path.to_owned(), missing, unexpected })
    }

    /// The images that a text file names: a line holds a path below `dir`, white space, and the
    /// class index, as in the label files of ImageNet's validation set. Empty lines are skipped, and
    /// the order is the file's.
    ///
    /// # Errors
    ///
    /// The label file cannot be read, names no image, or has a line that is not understood, names
    /// a file twice, a file that is not there, or a class that is not below the number of names.
    pub fn from_list(
        dir: impl AsRef<Path>,
        list: impl AsRef<Path>,
        class_names: Vec<String>,
    ) -> Result<Self, DataError> {
        let (root, list) = (dir.as_ref().to_owned(), list.as_ref());
        let text = fs::read_to_string(list).map_err(io_error(list))?;
        let mut samples: Vec<(PathBuf, u32)> = Vec::new();
        let mut seen = HashSet::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |reason: &str| DataError::Malformed {
                path: list.to_owned(),
                what: "label file",
                reason: format!("line {}, `{line}`: {reason}", number + 1),
            };
            let (path, label) = line
                .trim_end()
                .rsplit_once(char::is_whitespace)
                .ok_or_else(|| bad("a path and a class index are needed"))?;
            let path = PathBuf::from(path.trim());
            let index = label.parse().map_err(|_| bad("the class index is not a number"))?;
            if index as usize >= class_names.len() {
                let (label, classes) = (index as usize, class_names.len());
                let origin = list.display().to_string();
                return Err(DataError::LabelOutOfRange { origin, index: number, label, classes });
            }
            if !seen.insert(path.clone()) {
                return Err(bad("this file was named before"));
            }
            if !root.join(&path).is_file() {
                return Err(bad(&format!("no such file in {}", root.display())));
            }
            samples.push((path, index));
        }
        if samples.is_empty() {
            return Err(DataError::Empty { origin: list.display().to_string() });
        }
        Ok(Self { root, class_names, samples: samples.into() })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// The name of each class, by index.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The file of a sample.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn path(&self, index: usize) -> PathBuf {
        self.root.join(&self.samples[index].0)
    }

    /// Its path below the folder.
    pub(super) fn path_below(&self, index: usize) -> &Path {
        &self.samples[index].0
    }

    /// The class index of a sample.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn label(&self, index: usize) -> usize {
        self.samples[index].1 as usize
    }

    /// Indices `0..len()` in the random order of an epoch, the same on every machine.
    pub fn shuffled(&self, seed: u64, epoch: u64) -> Vec<usize> {
        shuffled(self.len(), seed, epoch)
    }

    /// `n` indices spread evenly over the set, in order, or all of them if there are fewer: a
    /// sorted set begins with one class, so its first `n` would not stand for it.
    pub fn spread(&self, n: usize) -> Vec<usize> {
        let (n, len) = (n.min(self.len()), self.len());
        (0..n).map(|i| (i as u128 * len as u128 / n as u128) as usize).collect()
    }

    /// Reads the samples at `indices`, in that order, transformed and in batches. `epoch` and the
    /// index of a sample decide what a random transform does to it, the number of threads does not.
    ///
    /// To go on within an epoch, or to share one among processes, give a part of the order.
    ///
    /// # Errors
    ///
    /// A setting is out of its range, or this build lacks the cargo feature `images`.
    ///
    /// # Panics
    ///
    /// If an index is not below [`len`](Self::len).
    pub fn loader(
        &self,
        indices: &[usize],
        epoch: u64,
        config: &LoaderConfig,
    ) -> Result<Loader, DataError> {
        if let Some(index) = indices.iter().find(|&&index| index >= self.len()) {
            panic!("sample {index} of {}", self.len());
        }
        let (folder, indices) = (self.clone(), indices.to_vec());
        let jobs = move |deliver: Deliver<'_>| {
            for index in indices {
                let (label, path) = (folder.label(index), folder.path(index));
                if !deliver(Ok(Job { index: index as u64, label, path, bytes: None })) {
                    return;
                }
            }
        };
        Loader::start(jobs, epoch, config)
    }

    /// All images in memory, transformed: for sets that are small, or used many times.
    ///
    /// # Errors
    ///
    /// An image is broken, the whole is above 2 GiB, there are more than 65,536 classes, a setting is
    /// out of its range, or this build lacks the cargo feature `images`.
    pub fn load(&self, transform: Transform) -> Result<ImageSet, DataError> {
        self.load_spread(usize::MAX, transform)
    }

    /// As [`load`](Self::load), of the images that [`spread`](Self::spread) names.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_spread(&self, n: usize, transform: Transform) -> Result<ImageSet, DataError> {
        let size = u64::from(transform.size());
        let indices = self.spread(n);
        let (each, origin) = (3 * size * size, &self.root);
        super::source::check_size(origin, each.saturating_mul(indices.len() as u64))?;
        let config = LoaderConfig { batch_size: 64, ..LoaderConfig::new(transform) };
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for batch in self.loader(&indices, 0, &config)? {
            let batch = batch?;
            pixels.extend_from_slice(batch.pixels());
            // More classes than labels can count: the set's own check reports it.
            labels.extend(batch.labels().iter().map(|&l| u16::try_from(l).unwrap_or(u16::MAX)));
        }
        let shape = [3, size as usize, size as usize];
        ImageSet::from_source(origin.display(), pixels, shape, labels, self.class_names.clone())
    }
}

fn missing(path: &Path, wanted: &str) -> DataError {
    DataError::Missing { path: path.to_owned(), wanted: wanted.to_owned(), help: HELP }
}

/// The sorted folders within a folder, but for hidden ones.
fn class_folders(root: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !root.is_dir() {
        return Err(missing(root, "folder of this name"));
    }
    let mut folders = entries(root)?;
    folders.retain(|path| path.is_dir() && !file_name(path).starts_with('.'));
    Ok(folders)
}
