use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::source::{check_size, io_error, read_exactly};
use super::{DataError, ImageSet, Split, image_tree};

/// In the order of the labels, which is also the alphabet's.
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const SHAPE: [usize; 3] = [3, 32, 32];
const RECORD: u64 = 1 + 3 * 32 * 32;
const HELP: &str = "download the binary version of CIFAR-10 from \
                    https://www.cs.toronto.edu/~kriz/cifar.html, or give a folder with train/<class>/ \
                    and test/<class>/ image folders";

/// One file of CIFAR-10 in its binary version: for each image a label byte, then 1,024 bytes each
/// of red, green and blue. Any number of images, so a subset is fine.
///
/// # Errors
///
/// The file is missing, empty, too large, ends within a record, or holds a label above 9.
pub fn cifar10_bin(file: impl AsRef<Path>) -> Result<ImageSet, DataError> {
    read(file.as_ref(), std::slice::from_ref(&file.as_ref().to_owned()))
}

/// CIFAR-10 from a folder, either in its binary version (`data_batch_1.bin` to `data_batch_5.bin`
/// and `test_batch.bin`, here or under `cifar-10-batches-bin`: 50,000 and 10,000 images), or as an
/// [`image_tree`] with 10 classes.
///
/// # Errors
///
/// A file is missing or broken as for [`cifar10_bin`] and [`image_tree`], or the folder only holds
/// the Python version, which is not read.
pub fn cifar10(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    let dir = dir.as_ref();
    let names: &[&str] = match split {
        Split::Train => &[
            "data_batch_1.bin",
            "data_batch_2.bin",
            "data_batch_3.bin",
            "data_batch_4.bin",
            "data_batch_5.bin",
        ],
        Split::Test => &["test_batch.bin"],
    };
    let mut binary_dirs = [dir.to_owned(), dir.join("cifar-10-batches-bin")].into_iter();
    if let Some(found) = binary_dirs.find(|dir| dir.join(names[0]).is_file()) {
        let files: Vec<PathBuf> = names.iter().map(|name| found.join(name)).collect();
        return read(&found, &files);
    }
    if dir.join(split.to_string()).is_dir() {
        let set = image_tree(dir, split)?;
        // Labels are positions among the sorted names: other names would shift them unnoticed.
        let found = set.class_names();
        let numbers = (0..CLASSES.len()).map(|class| class.to_string());
        if found == CLASSES || found.iter().cloned().eq(numbers) {
            return Ok(set);
        }
        return Err(DataError::Missing {
            path: dir.join(split.to_string()),
            wanted: format!(
                "set of 10 class folders, {} or 0 to 9 (there are {}: {})",
                CLASSES.join(", "),
                found.len(),
                found.join(", ")
            ),
            help: HELP,
        });
    }
    let python = ["data_batch_1", "test_batch", "cifar-10-batches-py"];
    if python.iter().any(|name| dir.join(name).exists()) {
        return Err(DataError::Unsupported {
            path: dir.to_owned(),
            format: "the Python (pickle) batches of CIFAR-10",
            help: HELP,
        });
    }
    let wanted = format!("{} or {split}/<class>/", names[0]);
    Err(DataError::Missing { path: dir.to_owned(), wanted, help: HELP })
}

fn read(origin: &Path, files: &[PathBuf]) -> Result<ImageSet, DataError> {
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for path in files {
        if !path.is_file() {
            let wanted = "file of CIFAR-10's binary version".to_owned();
            return Err(DataError::Missing { path: path.clone(), wanted, help: HELP });
        }
        let file = File::open(path).map_err(io_error(path))?;
        let len = file.metadata().map_err(io_error(path))?.len();
        check_size(path, len)?;
        let whole = len.next_multiple_of(RECORD);
        let records = read_exactly(path, &mut BufReader::new(file), whole, 0)?;
        for (index, record) in records.chunks_exact(RECORD as usize).enumerate() {
            let label = record[0];
            if usize::from(label) >= CLASSES.len() {
                return Err(DataError::LabelOutOfRange {
                    origin: path.display().to_string(),
                    index,
                    label: label.into(),
                    classes: CLASSES.len(),
                });
            }
            labels.push(u16::from(label));
            images.extend_from_slice(&record[1..]);
        }
        check_size(origin, images.len() as u64)?;
    }
    let class_names = CLASSES.map(str::to_owned).to_vec();
    ImageSet::from_source(origin.display(), images, SHAPE, labels, class_names)
}
