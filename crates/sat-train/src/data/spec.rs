use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{
    DataError, ImageSet, builtin_fashion_mnist, cifar10, cifar10_bin, cifar100, fashion_mnist,
    mnist,
};

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// A data set named by text, as on a command line: `kind:path`.
///
/// ```
/// use sat_train::data::DataSpec;
///
/// let spec: DataSpec = "cifar10:data/cifar10".parse()?;
/// assert_eq!(spec, DataSpec::Cifar10("data/cifar10".into()));
/// assert_eq!(spec.to_string(), "cifar10:data/cifar10");
/// # Ok::<(), sat_train::data::DataError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataSpec {
    /// `builtin:fashion-mnist`, see [`builtin_fashion_mnist`].
    BuiltinFashionMnist,
    /// `fashion-mnist:DIR`, see [`fashion_mnist`].
    FashionMnist(PathBuf),
    /// `mnist:DIR`, see [`mnist`].
    Mnist(PathBuf),
    /// `cifar10:DIR`, see [`cifar10`].
    Cifar10(PathBuf),
    /// `cifar10-bin:FILE`, see [`cifar10_bin`].
    Cifar10Bin(PathBuf),
    /// `cifar100:DIR`, see [`cifar100`].
    Cifar100(PathBuf),
    /// `imagenet:DIR`: photographs in `DIR/val/<class>/` for [`Split::Test`], in
    /// `DIR/train/<class>/` for [`Split::Train`], or in `DIR/<class>/` for both. All are decoded into
    /// memory at 224 pixels, as for evaluation (the default of `EvaluateTransform`), at most
    /// 14,266 of them: [`load_part`](Self::load_part) takes some. Training streams them instead, with
    /// `ImageFolder` (feature `images`).
    ImageNet(PathBuf),
}

impl DataSpec {
    /// The forms that can be parsed.
    pub const KNOWN: [&str; 7] = [
        "builtin:fashion-mnist",
        "fashion-mnist:DIR",
        "mnist:DIR",
        "cifar10:DIR",
        "cifar10-bin:FILE",
        "cifar100:DIR",
        "imagenet:DIR",
    ];

    /// Reads a split. Where training and test images are not told apart, it gives the same images for
    /// both, see [`has_splits`](Self::has_splits).
    ///
    /// # Errors
    ///
    /// As the reader of the kind.
    pub fn load(&self, split: Split) -> Result<ImageSet, DataError> {
        match self {
            Self::BuiltinFashionMnist => builtin_fashion_mnist(split),
            Self::FashionMnist(dir) => fashion_mnist(dir, split),
            Self::Mnist(dir) => mnist(dir, split),
            Self::Cifar10(dir) => cifar10(dir, split),
            Self::Cifar10Bin(file) => cifar10_bin(file),
            Self::Cifar100(dir) => cifar100(dir, split),
            Self::ImageNet(dir) => imagenet(dir, split, usize::MAX),
        }
    }

    /// Reads `n` images of a split, or all if there are fewer: the first ones, as leaderboards take
    /// them; of photographs, which are sorted by class, some that are spread evenly over the classes,
    /// and no others are decoded.
    ///
    /// # Errors
    ///
    /// As the reader of the kind.
    pub fn load_part(&self, split: Split, n: usize) -> Result<ImageSet, DataError> {
        match self {
            Self::ImageNet(dir) => imagenet(dir, split, n),
            _ => Ok(self.load(split)?.take(n)),
        }
    }

    /// Whether training and test images are told apart. Where they are not, don't evaluate on what
    /// you trained on.
    pub fn has_splits(&self) -> bool {
        match self {
            Self::Cifar10Bin(_) => false,
            Self::ImageNet(dir) => {
                imagenet_split(dir, Split::Train) != imagenet_split(dir, Split::Test)
            }
            _ => true,
        }
    }
}

impl FromStr for DataSpec {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        match text.split_once(':') {
            Some(("builtin", "fashion-mnist")) => Ok(Self::BuiltinFashionMnist),
            Some(("fashion-mnist", path)) if !path.is_empty() => {
                Ok(Self::FashionMnist(path.into()))
            }
            Some(("mnist", path)) if !path.is_empty() => Ok(Self::Mnist(path.into())),
            Some(("cifar10", path)) if !path.is_empty() => Ok(Self::Cifar10(path.into())),
            Some(("cifar10-bin", path)) if !path.is_empty() => Ok(Self::Cifar10Bin(path.into())),
            Some(("cifar100", path)) if !path.is_empty() => Ok(Self::Cifar100(path.into())),
            Some(("imagenet", path)) if !path.is_empty() => Ok(Self::ImageNet(path.into())),
            _ => Err(DataError::UnknownSpec { given: text.to_owned() }),
        }
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltinFashionMnist => f.write_str("builtin:fashion-mnist"),
            Self::FashionMnist(dir) => write!(f, "fashion-mnist:{}", dir.display()),
            Self::Mnist(dir) => write!(f, "mnist:{}", dir.display()),
            Self::Cifar10(dir) => write!(f, "cifar10:{}", dir.display()),
            Self::Cifar10Bin(file) => write!(f, "cifar10-bin:{}", file.display()),
            Self::Cifar100(dir) => write!(f, "cifar100:{}", dir.display()),
            Self::ImageNet(dir) => write!(f, "imagenet:{}", dir.display()),
        }
    }
}

/// The folder of the class folders.
fn imagenet_split(dir: &Path, split: Split) -> PathBuf {
    let name = match split {
        Split::Train => "train",
        Split::Test => "val",
    };
    let (found, other) = (dir.join(name), dir.join("train"));
    // With a train folder, the folder itself holds no classes: let the error name what is missing.
    if found.is_dir() || other.is_dir() { found } else { dir.to_owned() }
}

#[cfg(feature = "images")]
fn imagenet(dir: &Path, split: Split, n: usize) -> Result<ImageSet, DataError> {
    use super::{EvaluateTransform, ImageFolder, Transform};

    let folder = ImageFolder::open(imagenet_split(dir, split))?;
    folder.load_spread(n, Transform::Evaluate(EvaluateTransform::default()))
}

#[cfg(not(feature = "images"))]
fn imagenet(_dir: &Path, _split: Split, _n: usize) -> Result<ImageSet, DataError> {
    Err(DataError::MissingFeature { what: "reading photographs", feature: "images" })
}
