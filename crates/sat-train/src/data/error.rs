use std::path::PathBuf;

/// Why a data set could not be read.
///
/// `path` is the file or folder at fault; `origin` says the same for data that may also come from
/// memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder is not there.
    #[error("{}: no {wanted} here; {help}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What was looked for.
        wanted: String,
        /// What to do about it.
        help: &'static str,
    },
    /// The operating system, or the gzip decoder, refused.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file ends before the data that it announces.
    #[error("{}: truncated: {actual} bytes (unpacked) where {expected} are needed; copy or download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes needed, after decompression.
        expected: u64,
        /// Bytes found, after decompression.
        actual: u64,
    },
    /// A file goes on after the data that it announces.
    #[error("{}: goes on after the {expected} bytes (unpacked) that its header announces; is it another kind of file?", path.display())]
    TrailingData {
        /// The file.
        path: PathBuf,
        /// Bytes announced, after decompression.
        expected: u64,
    },
    /// A file starts with the wrong magic number.
    #[error("{}: starts with {actual:#010x} instead of {expected:#010x}; is it another kind of file?", path.display())]
    BadMagic {
        /// The file.
        path: PathBuf,
        /// The magic number of the format.
        expected: u32,
        /// What the file starts with.
        actual: u32,
    },
    /// More data than an in-memory set may hold.
    #[error("{}: {bytes} bytes of data, more than the {limit} that are kept in memory; use a subset", path.display())]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// Bytes announced or found.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The numbers of images and labels differ.
    #[error("{origin}: {images} images but {labels} labels; the two must come from the same split")]
    CountMismatch {
        /// The file or set.
        origin: String,
        /// Number of images.
        images: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A label names no class.
    #[error("{origin}: label {label} of sample {index} is out of range for {classes} classes")]
    LabelOutOfRange {
        /// The file or set.
        origin: String,
        /// Index of the sample, from 0.
        index: usize,
        /// The label found.
        label: usize,
        /// Number of classes; labels run from 0 to one less.
        classes: usize,
    },
    /// There are no samples.
    #[error("{origin}: no samples")]
    Empty {
        /// The file or set.
        origin: String,
    },
    /// An image shape with a zero in it, or pixels that don't fill a whole number of images.
    #[error("{origin}: {bytes} bytes don't make whole images of {} x {} x {} (channels x height x width)", shape[0], shape[1], shape[2])]
    BadShape {
        /// The file or set.
        origin: String,
        /// Channels, height and width.
        shape: [usize; 3],
        /// Number of pixel bytes given.
        bytes: usize,
    },
    /// An image's size differs from the first one's.
    #[error(
        "{}: {} x {} pixels (width x height), but the images before it have {} x {}; resize them to one size",
        path.display(), actual[0], actual[1], expected[0], expected[1]
    )]
    SizeMismatch {
        /// The image that differs.
        path: PathBuf,
        /// Width and height of the first image.
        expected: [u32; 2],
        /// Width and height of this one.
        actual: [u32; 2],
    },
    /// An image file cannot be decoded.
    #[error("{}: not a readable image: {source}", path.display())]
    Decode {
        /// The image file.
        path: PathBuf,
        /// The decoder's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Broken images were to be skipped, and none was left.
    #[error("all of {count} images are broken; the last one: {last}")]
    AllBroken {
        /// Number of images.
        count: usize,
        /// What is wrong with the last one.
        last: Box<DataError>,
    },
    /// A file is not what its name or place says.
    #[error("{}: not a {what}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The class folders are not those that the labels are numbered by.
    #[error(
        "{}: the class folders are not the expected ones, so labels would shift unnoticed; missing: {}; unexpected: {}",
        path.display(), few(missing), few(unexpected)
    )]
    ClassMismatch {
        /// The folder of the class folders.
        path: PathBuf,
        /// Classes with no folder.
        missing: Vec<String>,
        /// Folders of no class.
        unexpected: Vec<String>,
    },
    /// A setting out of its range.
    #[error("`{setting}` is {value}; it must be {expected}")]
    BadSetting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What would do.
        expected: &'static str,
    },
    /// A cargo feature is needed that this build lacks.
    #[error("{what} needs the cargo feature `{feature}` of sat-train")]
    MissingFeature {
        /// What was asked for.
        what: &'static str,
        /// The feature to enable.
        feature: &'static str,
    },
    /// A data set was named in words that [`DataSpec`](super::DataSpec) does not know.
    #[error("unknown data set `{given}`; known: {}", super::DataSpec::KNOWN.join(", "))]
    UnknownSpec {
        /// The text given.
        given: String,
    },
}

/// The first names of a list, which may have a thousand.
fn few(names: &[String]) -> String {
    let rest = names.len().saturating_sub(5);
    match names {
        [] => "none".to_owned(),
        _ if rest == 0 => names.join(", "),
        _ => format!("{} and {rest} more", names[..5].join(", ")),
    }
}
