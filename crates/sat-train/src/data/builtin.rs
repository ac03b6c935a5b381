use super::{DataError, ImageSet, Split};

/// A subset of Fashion-MNIST that is part of the library: 6,000 training and 1,000 test images, 600
/// and 100 a class, the first ones of each class in the official order.
///
/// Enough to try things out with no download; publish numbers on the full set
/// ([`fashion_mnist`](super::fashion_mnist)). Copyright 2017 Zalando SE, MIT licence.
///
/// # Errors
///
/// [`DataError::MissingFeature`] in a build without the cargo feature `builtin-data`.
pub fn builtin_fashion_mnist(split: Split) -> Result<ImageSet, DataError> {
    #[cfg(feature = "builtin-data")]
    {
        macro_rules! asset {
            ($name:literal) => {
                include_bytes!(concat!("../../assets/fashion-mnist-6k/", $name)).as_slice()
            };
        }
        let (images, labels) = match split {
            Split::Train => {
                (asset!("train-images-idx3-ubyte.gz"), asset!("train-labels-idx1-ubyte.gz"))
            }
            Split::Test => {
                (asset!("t10k-images-idx3-ubyte.gz"), asset!("t10k-labels-idx1-ubyte.gz"))
            }
        };
        let origin = format!("built-in Fashion-MNIST, {split} split");
        super::idx::fashion_mnist_from_memory(&origin, images, labels)
    }
    #[cfg(not(feature = "builtin-data"))]
    {
        let _ = split;
        Err(DataError::MissingFeature { what: "builtin:fashion-mnist", feature: "builtin-data" })
    }
}
