//! The IDX format of MNIST: a magic number and the dimensions as big-endian `u32`, then bytes.

use std::io::Read;
use std::path::Path;

use super::source::{check_size, open, read_exactly, read_up_to};
use super::{DataError, ImageSet, Split};

const FASHION_MNIST: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
const MNIST: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Fashion-MNIST from `dir`, which holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and
/// the same with `t10k` for the test split, plain or gzip (`.gz`): 60,000 and 10,000 grey images of
/// 28 x 28 pixels in 10 classes.
///
/// Data: Xiao, Rasul and Vollgraf 2017, <https://arxiv.org/abs/1708.07747>.
///
/// # Errors
///
/// A file is missing, truncated, too long, of another kind, too large, or does not fit the other.
pub fn fashion_mnist(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    let help = "get the four files from https://github.com/zalandoresearch/fashion-mnist \
                or from Debian's package dataset-fashion-mnist";
    read_dir(dir.as_ref(), split, &FASHION_MNIST, help)
}

/// MNIST from `dir`, in the same files as [`fashion_mnist`].
///
/// # Errors
///
/// As for [`fashion_mnist`].
pub fn mnist(dir: impl AsRef<Path>, split: Split) -> Result<ImageSet, DataError> {
    let help = "get the four files of MNIST, train-images-idx3-ubyte.gz and so on";
    read_dir(dir.as_ref(), split, &MNIST, help)
}

fn read_dir(
    dir: &Path,
    split: Split,
    class_names: &[&str],
    help: &'static str,
) -> Result<ImageSet, DataError> {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let find = |what: &str| {
        let name = format!("{prefix}-{what}-ubyte");
        let candidates = [dir.join(&name), dir.join(format!("{name}.gz"))];
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| DataError::Missing {
            path: dir.to_owned(),
            wanted: format!("{name} or {name}.gz"),
            help,
        })
    };
    let images = find("images-idx3")?;
    let labels = find("labels-idx1")?;
    let (mut image_reader, mut label_reader) = (open(&images)?, open(&labels)?);
    read((&images, &mut image_reader), (&labels, &mut label_reader), class_names)
}

/// The built-in subset, from gzip files in memory.
#[cfg(feature = "builtin-data")]
pub(super) fn fashion_mnist_from_memory(
    origin: &str,
    images: &[u8],
    labels: &[u8],
) -> Result<ImageSet, DataError> {
    let path = |what| std::path::PathBuf::from(format!("{origin}/{what}"));
    let mut image_reader = flate2::read::GzDecoder::new(images);
    let mut label_reader = flate2::read::GzDecoder::new(labels);
    read((&path("images"), &mut image_reader), (&path("labels"), &mut label_reader), &FASHION_MNIST)
}

fn read(
    (image_path, images): (&Path, &mut dyn Read),
    (label_path, labels): (&Path, &mut dyn Read),
    class_names: &[&str],
) -> Result<ImageSet, DataError> {
    let ([_, height, width], images) = read_array(image_path, images)?;
    let ([_], labels) = read_array(label_path, labels)?;
    ImageSet::from_source(
        format_args!("{} with {}", image_path.display(), label_path.display()),
        images,
        [1, height, width],
        labels.into_iter().map(u16::from).collect(),
        class_names.iter().map(ToString::to_string).collect(),
    )
}

/// A file of unsigned bytes with `D` dimensions.
fn read_array<const D: usize>(
    path: &Path,
    reader: &mut dyn Read,
) -> Result<([usize; D], Vec<u8>), DataError> {
    let header_len = 4 + 4 * D as u64;
    let header = read_exactly(path, reader, header_len, 0)?;
    let mut words = header.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let (expected, actual) = (0x0800 | D as u32, words.next().unwrap_or_default());
    if actual != expected {
        return Err(DataError::BadMagic { path: path.to_owned(), expected, actual });
    }
    let dims: [u32; D] = std::array::from_fn(|_| words.next().unwrap_or_default());
    let count = dims.iter().fold(1_u64, |n, &dim| n.saturating_mul(u64::from(dim)));
    check_size(path, count)?;
    let data = read_exactly(path, reader, count, header_len)?;
    // Reading on to the end also makes gzip check its checksum.
    if !read_up_to(path, reader, 1)?.is_empty() {
        let expected = header_len + count;
        return Err(DataError::TrailingData { path: path.to_owned(), expected });
    }
    Ok((dims.map(|dim| dim as usize), data))
}
