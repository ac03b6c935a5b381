use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use super::pickle::{self, Value};
use super::source::{check_size, io_error, open, read_exactly, read_up_to};
use super::{DataError, ImageSet, Split, image_tree};

/// In the order of the labels, which is also the alphabet's.
const CLASSES_10: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
/// The fine labels, in their order, which is also the alphabet's.
#[rustfmt::skip]
const CLASSES_100: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur",
    "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard",
    "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle",
    "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear",
    "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon",
    "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail",
    "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
];
const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;

/// What tells the two data sets apart.
struct Kind {
    classes: &'static [&'static str],
    /// Bytes before the pixels of a binary record; the last one is the label.
    label_bytes: usize,
    /// The key of the labels in the Python version.
    label_key: &'static [u8],
    /// The file names without `.bin`, of the training and the test split.
    files: [&'static [&'static str]; 2],
    /// Folder and archive of the binary version, then of the Python version.
    binary: [&'static str; 2],
    python: [&'static str; 2],
    help: &'static str,
}

const CIFAR10: Kind = Kind {
    classes: &CLASSES_10,
    label_bytes: 1,
    label_key: b"labels",
    files: [
        &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
        &["test_batch"],
    ],
    binary: ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"],
    python: ["cifar-10-batches-py", "cifar-10-python.tar.gz"],
    help: "put cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html here, packed or \
           unpacked, or give a folder with train/<class>/ and test/<class>/ image folders",
};

const CIFAR100: Kind = Kind {
    classes: &CLASSES_100,
    // The coarse label comes first.
    label_bytes: 2,
    label_key: b"fine_labels",
    files: [&["train"], &["test"]],
    binary: ["cifar-100-binary", "cifar-100-binary.tar.gz"],
    python: ["cifar-100-python", "cifar-100-python.tar.gz"],
    help: "put cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html here, packed or \
           unpacked",
};

/// One file of CIFAR-10 in its binary version: for each image a label byte, then 1,024 bytes each
/// of red, green and blue. Any number of images, so a subset is fine.
///
/// # Errors
///
/// The file is missing, empty, too large, ends within a record, or holds a label above 9.
pub fn cifar10_bin(file: impl AsRef<Path>) -> Result<ImageSet, DataError> {
    let path = file.as_ref().to_owned();
    CIFAR10.decode(&path.clone(), vec![read_file(&CIFAR10, path)?], Kind::binary_records)
}

/// CIFAR-10 from a folder: 50,000 training and 10,000 test images of 32 x 32 pixels in 10 classes.
///
/// The folder holds, in this order of preference, the binary version (`data_batch_1.bin` and so on,
/// here, under `cifar-10-batches-bin`, or in `cifar-10-binary.tar.gz`), the Python version (the
/// same names without `.bin`, here, under `cifar-10-batches-py`, or in `cifar-10-python.tar.gz`), or
/// an [`image_tree`] with 10 classes. Python files are data to us: nothing in them is run.
///
/// # Errors
///
/// A file is missing or broken as for [`cifar10_bin`] and [`image_tree`], or a Python file holds
/// something else than CIFAR's batches do.
pub fn cifar10(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    let dir = dir.as_ref();
    if let Some(set) = CIFAR10.load(dir, split)? {
        return Ok(set);
    }
    if !dir.join(split.to_string()).is_dir() {
        return Err(CIFAR10.missing(dir, format!("data_batch_1.bin or {split}/<class>/")));
    }
    let set = image_tree(dir, split)?;
    // Labels are positions among the sorted names: other names would shift them unnoticed.
    let found = set.class_names();
    let numbers = (0..CLASSES_10.len()).map(|class| class.to_string());
    if found == CLASSES_10 || found.iter().cloned().eq(numbers) {
        return Ok(set);
    }
    let wanted = format!(
        "set of 10 class folders, {} or 0 to 9 (there are {}: {})",
        CLASSES_10.join(", "),
        found.len(),
        found.join(", ")
    );
    Err(CIFAR10.missing(&dir.join(split.to_string()), wanted))
}

/// CIFAR-100 with its fine labels from a folder: 50,000 training and 10,000 test images of 32 x 32
/// pixels in 100 classes.
///
/// The folder holds the binary version (`train.bin` and `test.bin`, here, under `cifar-100-binary`,
/// or in `cifar-100-binary.tar.gz`), or the Python version (`train` and `test`, here, under
/// `cifar-100-python`, or in `cifar-100-python.tar.gz`).
///
/// # Errors
///
/// As for [`cifar10`].
pub fn cifar100(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    let dir = dir.as_ref();
    let set = CIFAR100.load(dir, split)?;
    set.ok_or_else(|| CIFAR100.missing(dir, format!("{split}.bin")))
}

/// A file and what is in it.
type Named = (PathBuf, Vec<u8>);
/// What the files of a version hold: pixels and labels, appended to what came before.
type Decoder = fn(&Kind, &Named, &mut Vec<u8>, &mut Vec<u16>) -> Result<(), DataError>;

impl Kind {
    fn missing(&self, path: &Path, wanted: String) -> DataError {
        DataError::Missing { path: path.to_owned(), wanted, help: self.help }
    }

    /// The set, if one of the official forms is there.
    fn load(&self, dir: &Path, split: Split) -> Result<Option<ImageSet>, DataError> {
        let files = match split {
            Split::Train => self.files[0],
            Split::Test => self.files[1],
        };
        let versions: [(&str, [&str; 2], Decoder); 2] =
            [(".bin", self.binary, Self::binary_records), ("", self.python, Self::python_batch)];
        for (ending, [folder, archive], decoder) in versions {
            let names: Vec<String> = files.iter().map(|name| format!("{name}{ending}")).collect();
            let mut folders = [dir.to_owned(), dir.join(folder)].into_iter();
            if let Some(found) = folders.find(|dir| dir.join(&names[0]).is_file()) {
                let read = |name| read_file(self, found.join(name));
                let contents = names.iter().map(read).collect::<Result<_, _>>()?;
                return self.decode(&found, contents, decoder).map(Some);
            }
            let archive = dir.join(archive);
            if archive.is_file() {
                let contents = self.unpack(&archive, &names)?;
                return self.decode(&archive, contents, decoder).map(Some);
            }
        }
        Ok(None)
    }

    /// The named files of an archive, in the order of the names.
    fn unpack(&self, archive: &Path, names: &[String]) -> Result<Vec<Named>, DataError> {
        let failed = io_error(archive);
        let mut found = HashMap::new();
        let mut total = 0;
        let mut tar = tar::Archive::new(open(archive)?);
        for entry in tar.entries().map_err(&failed)? {
            let mut entry = entry.map_err(&failed)?;
            let path = entry.path().map_err(&failed)?.into_owned();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.header().entry_type().is_file() && names.contains(&name) {
                let size = entry.size();
                total += size;
                check_size(archive, total)?;
                let path = archive.join(path);
                let bytes = read_exactly(&path, &mut entry, size, 0)?;
                found.insert(name, (path, bytes));
            }
        }
        let take = |name: &String| {
            let missing = || self.missing(&archive.join(name), "file of this name".to_owned());
            found.remove(name).ok_or_else(missing)
        };
        names.iter().map(take).collect()
    }

    fn decode(
        &self,
        origin: &Path,
        files: Vec<Named>,
        decoder: Decoder,
    ) -> Result<ImageSet, DataError> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for file in &files {
            decoder(self, file, &mut images, &mut labels)?;
            check_size(origin, images.len() as u64)?;
        }
        let class_names = self.classes.iter().map(|name| (*name).to_owned()).collect();
        ImageSet::from_source(origin.display(), images, SHAPE, labels, class_names)
    }

    /// The label of a file's sample, checked.
    fn label(&self, path: &Path, index: usize, label: i64) -> Result<u16, DataError> {
        let classes = self.classes.len();
        match u16::try_from(label) {
            Ok(label) if usize::from(label) < classes => Ok(label),
            _ => Err(DataError::LabelOutOfRange {
                origin: path.display().to_string(),
                index,
                label: usize::try_from(label).unwrap_or(usize::MAX),
                classes,
            }),
        }
    }

    fn binary_records(
        &self,
        (path, bytes): &Named,
        images: &mut Vec<u8>,
        labels: &mut Vec<u16>,
    ) -> Result<(), DataError> {
        let record = self.label_bytes + PIXELS;
        if !bytes.len().is_multiple_of(record) {
            let expected = bytes.len().next_multiple_of(record) as u64;
            let actual = bytes.len() as u64;
            return Err(DataError::Truncated { path: path.clone(), expected, actual });
        }
        for (index, record) in bytes.chunks_exact(record).enumerate() {
            let (head, pixels) = record.split_at(self.label_bytes);
            labels.push(self.label(path, index, head[self.label_bytes - 1].into())?);
            images.extend_from_slice(pixels);
        }
        Ok(())
    }

    fn python_batch(
        &self,
        (path, bytes): &Named,
        images: &mut Vec<u8>,
        labels: &mut Vec<u16>,
    ) -> Result<(), DataError> {
        let (pixels, list) = self.batch_parts(bytes).map_err(|reason| DataError::Malformed {
            path: path.clone(),
            what: "batch of CIFAR's Python version",
            reason,
        })?;
        for (index, label) in list.into_iter().enumerate() {
            labels.push(self.label(path, index, label)?);
        }
        images.extend_from_slice(pixels);
        Ok(())
    }

    /// Pixels and labels of a Python batch: a dictionary with a NumPy array of n x 3072 bytes and a
    /// list of n numbers.
    fn batch_parts<'a>(&self, bytes: &'a [u8]) -> Result<(&'a [u8], Vec<i64>), String> {
        let Value::Dict(entries) = pickle::read(bytes)? else {
            return Err("it is not a dictionary".to_owned());
        };
        let get = |wanted: &[u8]| {
            let found = entries
                .iter()
                .find(|(key, _)| matches!(key, Value::Text(key) if bytes[key.clone()] == *wanted));
            let name = String::from_utf8_lossy(wanted);
            found.map(|(_, value)| value).ok_or_else(|| format!("no entry `{name}`"))
        };
        let labels = match get(self.label_key)? {
            Value::List(labels) => labels
                .iter()
                .map(|label| match label {
                    Value::Int(label) => Ok(*label),
                    _ => Err("a label is not a number".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()?,
            _ => return Err("the labels are not a list".to_owned()),
        };
        // The state of a NumPy array: version, shape, type, whether in Fortran's order, data.
        let (rows, pixels) = match get(b"data")? {
            Value::Tuple(state) => match &state[..] {
                [_, Value::Tuple(shape), _, Value::Int(0), Value::Text(data)] => match shape[..] {
                    [Value::Int(rows), Value::Int(columns)] if columns == PIXELS as i64 => {
                        (rows, &bytes[data.clone()])
                    }
                    _ => return Err("the images are not rows of 3,072 bytes".to_owned()),
                },
                _ => return Err("the images are not an array of bytes in C's order".to_owned()),
            },
            _ => return Err("the images are not an array".to_owned()),
        };
        let count = labels.len();
        if usize::try_from(rows) != Ok(count) || pixels.len() != count * PIXELS {
            let size = pixels.len();
            return Err(format!("{count} labels, but {rows} rows of images in {size} bytes"));
        }
        Ok((pixels, labels))
    }
}

fn read_file(kind: &Kind, path: PathBuf) -> Result<Named, DataError> {
    if !path.is_file() {
        return Err(kind.missing(&path, "file of this name".to_owned()));
    }
    let file = File::open(&path).map_err(io_error(&path))?;
    let len = file.metadata().map_err(io_error(&path))?.len();
    check_size(&path, len)?;
    let bytes = read_up_to(&path, BufReader::new(file), len)?;
    Ok((path, bytes))
}
