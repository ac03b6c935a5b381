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
//! | CIFAR-10, a folder: binary batches or an image tree | [`cifar10`] | `cifar10:DIR` |
//! | CIFAR-10, one binary file | [`cifar10_bin`] | `cifar10-bin:FILE` |
//! | any image tree (feature `images`) | [`image_tree`] | |
//!
//! Order and augmentation are drawn from explicit seeds with ChaCha8 on the host, so they are the
//! same on every machine and backend.
//!
//! ```no_run
//! # fn example(device: &burn::tensor::Device) -> Result<(), sat_train::data::DataError> {
//! use sat_train::data::{Augment, DataSpec, Flip, Split};
//!
//! let train = "cifar10:data/cifar10".parse::<DataSpec>()?.load(Split::Train)?;
//! let augment = Augment { flip: Flip::Horizontal, crop_padding: 4 };
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
mod idx;
mod set;
mod source;
mod spec;
mod tree;

pub use augment::{Augment, Flip};
pub use builtin::builtin_fashion_mnist;
pub use cifar::{cifar10, cifar10_bin};
pub use error::DataError;
pub use idx::{fashion_mnist, mnist};
pub use set::ImageSet;
pub use spec::{DataSpec, Split};
pub use tree::image_tree;
