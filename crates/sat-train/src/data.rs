//! Image data sets, kept in memory as bytes until they go to a device.
//!
//! An [`ImageSet`] holds `N x C x H x W` bytes and `N` labels. Its batches are tensors in `[0, 1]`
//! (`byte / 255`), the range in which eps is measured; a model's own normalisation belongs to the
//! model, behind the attack.
//!
//! | source | reader | as text ([`DataSpec`]) |
//! |---|---|---|
//! | Fashion-MNIST, a subset compiled in (feature `builtin-data`) | [`builtin_fashion_mnist`] | `builtin:fashion-mnist` |
//! | Fashion-MNIST, IDX files | [`fashion_mnist`] | `fashion-mnist:DIR` |
//! | MNIST, IDX files | [`mnist`] | `mnist:DIR` |
//! | CIFAR-10, a folder: binary or Python batches, packed or not, or an image tree | [`cifar10`] | `cifar10:DIR` |
//! | CIFAR-10, one binary file | [`cifar10_bin`] | `cifar10-bin:FILE` |
//! | CIFAR-100, a folder: binary or Python, packed or not | [`cifar100`] | `cifar100:DIR` |
//! | ImageNet or another folder of photographs (feature `images`) | `ImageFolder` | `imagenet:DIR` |
//! | tar shards of photographs (feature `images`) | `ShardSet` | |
//! | any image tree (feature `images`) | [`image_tree`] | |
//!
//! Photographs are too many to keep: a `Loader` reads, decodes and transforms them in threads of its
//! own, a bounded number in front of the training. [`RemoteFile`] fetches the CIFAR archives.
//!
//! Order and augmentation are drawn from explicit seeds with ChaCha8 on the host, so they are the
//! same on every machine and backend.
//!
//! ```no_run
//! # fn example(device: &burn::tensor::Device) -> Result<(), sat_train::data::DataError> {
//! use sat_train::data::{Augment, DataSpec, Flip, Split};
//!
//! let train = "cifar10:data/cifar10".parse::<DataSpec>()?.load(Split::Train)?;
//! let augment = Augment { flip: Flip::Horizontal, crop_padding: 4, ..Augment::default() };
//! let (seed, epoch) = (0, 0);
//! for indices in train.shuffled(seed, epoch).chunks(128) {
//!     let (images, labels) = train.batch_augmented(indices, augment, seed, epoch, device);
//! }
//! # Ok(())
//! # }
//! ```

mod augment;
mod builtin;
mod cifar;
mod error;
#[cfg(feature = "images")]
mod folder;
mod idx;
#[cfg(feature = "images")]
mod listing;
#[cfg(feature = "images")]
mod loader;
#[cfg(feature = "images")]
mod photographs;
mod pickle;
mod random;
mod remote;
mod set;
#[cfg(feature = "images")]
mod shards;
mod source;
mod spec;
#[cfg(feature = "images")]
mod transform;
mod tree;

pub use augment::{Augment, Flip, Mixup};
pub use builtin::builtin_fashion_mnist;
pub use cifar::{cifar10, cifar10_bin, cifar100};
pub use error::DataError;
#[cfg(feature = "images")]
pub use folder::ImageFolder;
pub use idx::{fashion_mnist, mnist};
#[cfg(feature = "images")]
pub use loader::{BrokenImage, ByteBatch, Loader, LoaderConfig, Remainder};
#[cfg(feature = "images")]
pub use photographs::Photographs;
pub use remote::{CIFAR10_BINARY, CIFAR10_PYTHON, CIFAR100_BINARY, CIFAR100_PYTHON};
pub use sat_models::remote::{FetchError, Network, Progress, RemoteFile};
pub use set::ImageSet;
#[cfg(feature = "images")]
pub use shards::{ShardOrder, ShardSet};
pub use spec::{DataSpec, Split};
#[cfg(feature = "images")]
pub use transform::{ColorJitter, EvaluateTransform, Filter, TrainTransform, Transform};
pub use tree::image_tree;
