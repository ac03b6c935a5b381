//! Data sets: readers on files made here, every error, order, and batches.

// Clippy's exception for tests does not cover the helper functions between them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sat_train::data::{
    DataError, DataSpec, ImageSet, Split, cifar10, cifar10_bin, fashion_mnist, mnist,
};
use tempfile::{TempDir, tempdir};

/// An IDX file of unsigned bytes.
fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let magic = 0x0800 | dims.len() as u32;
    let header = std::iter::once(magic).chain(dims.iter().copied());
    header.flat_map(u32::to_be_bytes).chain(data.iter().copied()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with test-split IDX files.
fn idx_dir(images: &[u8], labels: &[u8]) -> TempDir {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("t10k-images-idx3-ubyte"), images).unwrap();
    fs::write(dir.path().join("t10k-labels-idx1-ubyte.gz"), labels).unwrap();
    dir
}

/// `n` CIFAR-10 records; sample `i` has label `i % 10` and pixels `i, i + 1, ...`, wrapping.
fn cifar_records(n: usize) -> Vec<u8> {
    let record = |i: usize| {
        std::iter::once((i % 10) as u8).chain((0..3072).map(move |pixel| (i + pixel) as u8))
    };
    (0..n).flat_map(record).collect()
}

fn small_set(n: usize) -> ImageSet {
    let images = (0..n * 2 * 3 * 4).map(|v| v as u8).collect();
    let labels = (0..n).map(|i| (i % 3) as u16).collect();
    ImageSet::new(images, [2, 3, 4], labels, ["a", "b", "c"].map(String::from).to_vec()).unwrap()
}

#[test]
fn idx_round_trip() {
    let pixels: Vec<u8> = (0..3 * 2 * 4).collect();
    let (images, labels) = (idx(&[3, 2, 4], &pixels), idx(&[3], &[9, 0, 4]));
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("train-images-idx3-ubyte"), &images).unwrap();
    fs::write(dir.path().join("train-labels-idx1-ubyte"), &labels).unwrap();
    fs::write(dir.path().join("t10k-images-idx3-ubyte.gz"), gzip(&images)).unwrap();
    fs::write(dir.path().join("t10k-labels-idx1-ubyte.gz"), gzip(&labels)).unwrap();

    let train = fashion_mnist(dir.path(), Split::Train).unwrap();
    assert_eq!((train.len(), train.shape(), train.classes()), (3, [1, 2, 4], 10));
    assert_eq!(train.labels(), [9, 0, 4]);
    assert_eq!(train.image(2), &pixels[16..]);
    assert_eq!(train.class_names()[9], "Ankle boot");
    assert_eq!(fashion_mnist(dir.path(), Split::Test).unwrap(), train);
    assert_eq!(mnist(dir.path(), Split::Test).unwrap().class_names()[9], "9");
}

#[test]
fn idx_missing_file_says_what_and_where() {
    let dir = tempdir().unwrap();
    let error = fashion_mnist(dir.path(), Split::Train).unwrap_err();
    assert!(matches!(&error, DataError::Missing { path, .. } if path == dir.path()));
    assert!(error.to_string().contains("train-images-idx3-ubyte.gz"), "{error}");
}

#[test]
fn idx_truncated() {
    let labels = idx(&[2], &[0, 1]);
    let whole = idx(&[2, 2, 2], &[7; 8]);
    for cut in [0, 3, 15, 16, 23] {
        let dir = idx_dir(&whole[..cut], &labels);
        let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
        let DataError::Truncated { path, expected, actual } = &error else { panic!("{error}") };
        assert!(path.ends_with("t10k-images-idx3-ubyte"));
        assert_eq!((*expected, *actual), (if cut < 16 { 16 } else { 24 }, cut as u64));
    }
    // A gzip stream that stops early. Noise, so that the encoder has to keep its bytes.
    let noise: Vec<u8> =
        (0..1 << 16).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let packed = gzip(&idx(&[16, 64, 64], &noise));
    let dir = idx_dir(&packed[..packed.len() / 2], &gzip(&idx(&[16], &[0; 16])));
    let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
    assert!(
        matches!(error, DataError::Truncated { expected: 65_552, actual, .. } if actual > 16),
        "{error}"
    );
}

#[test]
fn idx_damaged_gzip_is_found() {
    let mut packed = gzip(&idx(&[2, 2, 2], &[7; 8]));
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    let dir = idx_dir(&packed, &gzip(&idx(&[2], &[0, 1])));
    let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
    assert!(matches!(error, DataError::Io { .. }), "{error}");
}

#[test]
fn idx_trailing_data() {
    let dir = idx_dir(&idx(&[2, 2, 2], &[7; 9]), &idx(&[2], &[0, 1]));
    let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
    assert!(matches!(error, DataError::TrailingData { expected: 24, .. }), "{error}");
    // A gzip bomb: 256 MB of zeros behind a header for 8 bytes. Only one byte more is unpacked.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
    bomb.write_all(&idx(&[2, 2, 2], &[])).unwrap();
    for _ in 0..256 {
        bomb.write_all(&vec![0; 1_000_000]).unwrap();
    }
    let dir = idx_dir(&bomb.finish().unwrap(), &idx(&[2], &[0, 1]));
    let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
    assert!(matches!(error, DataError::TrailingData { expected: 24, .. }), "{error}");
}

#[test]
fn idx_header_cannot_make_us_allocate() {
    for dims in [[u32::MAX; 3], [1 << 21, 1 << 10, 1]] {
        let dir = idx_dir(&idx(&dims, &[7; 8]), &idx(&[2], &[0, 1]));
        let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
        match dims[0] {
            // 2 GiB exactly is allowed, but is not there.
            0x20_0000 => {
                assert!(matches!(error, DataError::Truncated { actual: 24, .. }), "{error}")
            }
            _ => assert!(matches!(error, DataError::TooLarge { .. }), "{error}"),
        }
    }
}

#[test]
fn idx_bad_magic() {
    let labels = idx(&[2], &[0, 1]);
    let dir = idx_dir(&[labels.clone(), vec![0; 30]].concat(), &labels);
    let error = fashion_mnist(dir.path(), Split::Test).unwrap_err();
    assert!(
        matches!(error, DataError::BadMagic { expected: 0x0803, actual: 0x0801, .. }),
        "{error}"
    );
}

#[test]
fn idx_contents_must_fit() {
    let load = |images: &[u8], labels: &[u8]| {
        fashion_mnist(idx_dir(images, labels).path(), Split::Test).unwrap_err()
    };
    let images = idx(&[2, 2, 2], &[7; 8]);
    let error = load(&images, &idx(&[3], &[0; 3]));
    assert!(matches!(error, DataError::CountMismatch { images: 2, labels: 3, .. }), "{error}");
    let error = load(&images, &idx(&[2], &[0, 10]));
    assert!(
        matches!(error, DataError::LabelOutOfRange { index: 1, label: 10, classes: 10, .. }),
        "{error}"
    );
    let error = load(&idx(&[0, 2, 2], &[]), &idx(&[0], &[]));
    assert!(matches!(error, DataError::Empty { .. }), "{error}");
    let error = load(&idx(&[2, 0, 2], &[]), &idx(&[2], &[0, 0]));
    assert!(matches!(error, DataError::BadShape { shape: [1, 0, 2], .. }), "{error}");
}

#[test]
fn in_memory_set_is_checked() {
    let new = |bytes, labels: Vec<u16>| {
        ImageSet::new(vec![0; bytes], [1, 2, 2], labels, vec!["only".into()]).unwrap_err()
    };
    assert!(matches!(new(7, vec![0]), DataError::BadShape { bytes: 7, .. }));
    assert!(matches!(new(8, vec![0]), DataError::CountMismatch { images: 2, labels: 1, .. }));
    assert!(matches!(new(4, vec![1]), DataError::LabelOutOfRange { index: 0, label: 1, .. }));
    assert!(matches!(new(0, vec![]), DataError::Empty { .. }));
    let overflow = ImageSet::new(vec![0; 4], [usize::MAX, 2, 2], vec![0], vec!["only".into()]);
    assert!(matches!(overflow, Err(DataError::BadShape { .. })));
}

#[test]
fn cifar_binary_round_trip() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("some.bin");
    fs::write(&file, cifar_records(12)).unwrap();
    let set = cifar10_bin(&file).unwrap();
    assert_eq!((set.len(), set.shape(), set.classes()), (12, [3, 32, 32], 10));
    assert_eq!(set.labels(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    assert_eq!(set.class_names()[9], "truck");
    assert!(set.image(11).iter().enumerate().all(|(pixel, &v)| v == (11 + pixel) as u8));
    let spec = DataSpec::Cifar10Bin(file);
    assert_eq!(spec.load(Split::Test).unwrap(), set);
    assert!(!spec.has_splits());
}

#[test]
fn cifar_binary_errors() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("some.bin");
    let load = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        cifar10_bin(&file).unwrap_err()
    };
    let error = load(&cifar_records(2)[..3073 + 100]);
    assert!(matches!(error, DataError::Truncated { expected: 6146, actual: 3173, .. }), "{error}");
    let mut wrong_label = cifar_records(3);
    wrong_label[3073] = 10;
    let error = load(&wrong_label);
    assert!(matches!(error, DataError::LabelOutOfRange { index: 1, label: 10, .. }), "{error}");
    assert!(error.to_string().contains("some.bin"), "{error}");
    assert!(matches!(load(&[]), DataError::Empty { .. }));
    let error = cifar10_bin(dir.path().join("other.bin")).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
    // Sparse: takes no room on the disk, and must not be read.
    fs::File::create(&file).unwrap().set_len(3 << 30).unwrap();
    let error = cifar10_bin(&file).unwrap_err();
    assert!(matches!(error, DataError::TooLarge { bytes: 0xc000_0000, .. }), "{error}");
}

#[test]
fn cifar_folder_of_binary_batches() {
    let dir = tempdir().unwrap();
    let batches = dir.path().join("cifar-10-batches-bin");
    fs::create_dir(&batches).unwrap();
    for i in 1..=5 {
        fs::write(batches.join(format!("data_batch_{i}.bin")), cifar_records(i)).unwrap();
    }
    fs::write(batches.join("test_batch.bin"), cifar_records(4)).unwrap();
    let train = cifar10(dir.path(), Split::Train).unwrap();
    assert_eq!(train.labels(), [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]);
    assert_eq!(cifar10(dir.path(), Split::Test).unwrap().len(), 4);
    assert_eq!(cifar10(&batches, Split::Test).unwrap().len(), 4);

    fs::remove_file(batches.join("data_batch_3.bin")).unwrap();
    let error = cifar10(dir.path(), Split::Train).unwrap_err();
    assert!(
        matches!(&error, DataError::Missing { path, .. } if path.ends_with("data_batch_3.bin")),
        "{error}"
    );
}

#[test]
fn cifar_folder_of_something_else() {
    let dir = tempdir().unwrap();
    let error = cifar10(dir.path(), Split::Train).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("cifar-10-binary.tar.gz"), "{error}");
}

#[cfg(feature = "images")]
mod images {
    use std::path::Path;

    use image::{Rgb, RgbImage};
    use sat_train::data::image_tree;

    use super::*;

    fn save(path: &Path, width: u32, height: u32, color: [u8; 3]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut image = RgbImage::from_pixel(width, height, Rgb(color));
        image.put_pixel(1, 0, Rgb([9, 8, 7]));
        image.save(path).unwrap();
    }

    #[test]
    fn tree_round_trip_in_turns() {
        let dir = tempdir().unwrap();
        let test = dir.path().join("test");
        save(&test.join("cat/1.png"), 3, 2, [10, 20, 30]);
        save(&test.join("cat/2.png"), 3, 2, [11, 21, 31]);
        save(&test.join("ant/b.png"), 3, 2, [12, 22, 32]);
        save(&test.join("ant/a.JPG"), 3, 2, [13, 23, 33]);
        fs::write(test.join("ant/notes.txt"), "not an image").unwrap();
        let set = image_tree(dir.path(), Split::Test).unwrap();
        assert_eq!(set.class_names(), ["ant", "cat"]);
        assert_eq!(set.labels(), [0, 1, 0, 1]);
        assert_eq!(set.shape(), [3, 2, 3]);
        let expected = [[10, 9, 10, 10, 10, 10], [20, 8, 20, 20, 20, 20], [30, 7, 30, 30, 30, 30]];
        assert_eq!(set.image(1), expected.concat());
    }

    #[test]
    fn tree_errors() {
        let dir = tempdir().unwrap();
        let train = dir.path().join("train");
        let load = || image_tree(dir.path(), Split::Train).unwrap_err();
        assert!(matches!(load(), DataError::Missing { .. }));
        fs::create_dir_all(train.join("a")).unwrap();
        let error = load();
        assert!(matches!(&error, DataError::Missing { wanted, .. } if wanted == "images"));
        save(&train.join("a/1.png"), 3, 2, [0; 3]);
        save(&train.join("b/odd.png"), 2, 3, [0; 3]);
        let error = load();
        assert!(
            matches!(&error, DataError::SizeMismatch { path, expected: [3, 2], actual: [2, 3] }
                if path.ends_with("b/odd.png")),
            "{error}"
        );
        fs::write(train.join("b/odd.png"), "not an image").unwrap();
        let error = load();
        assert!(
            matches!(&error, DataError::Decode { path, .. } if path.ends_with("b/odd.png")),
            "{error}"
        );
    }

    #[test]
    fn cifar_tree_needs_ten_classes() {
        let dir = tempdir().unwrap();
        for class in 0..9 {
            save(&dir.path().join(format!("test/{class}/1.png")), 32, 32, [class; 3]);
        }
        let error = cifar10(dir.path(), Split::Test).unwrap_err();
        assert!(error.to_string().contains("there are 9"), "{error}");
        save(&dir.path().join("test/9/1.png"), 32, 32, [9; 3]);
        assert_eq!(cifar10(dir.path(), Split::Test).unwrap().len(), 10);
        // Ten folders under other names would get the wrong labels.
        let test = dir.path().join("test");
        std::fs::rename(test.join("3"), test.join("cat")).unwrap();
        let error = cifar10(dir.path(), Split::Test).unwrap_err();
        assert!(error.to_string().contains("automobile"), "{error}");
    }
}

#[cfg(feature = "builtin-data")]
#[test]
fn builtin_set_is_balanced() {
    use sat_train::data::builtin_fashion_mnist;

    for (split, per_class) in [(Split::Train, 600), (Split::Test, 100)] {
        let set = builtin_fashion_mnist(split).unwrap();
        assert_eq!((set.shape(), set.classes()), ([1, 28, 28], 10));
        for class in 0..10 {
            let count = set.labels().iter().filter(|&&label| label == class).count();
            assert_eq!(count, per_class, "class {class} of {split}");
        }
        // The mean of the whole set is 0.286.
        let sum: u64 = (0..set.len()).flat_map(|i| set.image(i)).map(|&v| u64::from(v)).sum();
        let mean = sum as f64 / 255.0 / (set.len() * 784) as f64;
        assert!((mean - 0.286).abs() < 0.005, "{mean}");
        assert_eq!("builtin:fashion-mnist".parse::<DataSpec>().unwrap().load(split).unwrap(), set);
    }
}

#[cfg(not(feature = "builtin-data"))]
#[test]
fn builtin_set_names_its_feature() {
    let error = DataSpec::BuiltinFashionMnist.load(Split::Test).unwrap_err();
    assert!(matches!(error, DataError::MissingFeature { feature: "builtin-data", .. }), "{error}");
}

#[test]
fn specs_round_trip_and_unknown_ones_list_the_known() {
    for text in [
        "builtin:fashion-mnist",
        "fashion-mnist:a/b",
        "mnist:a",
        "cifar10:with space",
        "cifar10-bin:C:\\x.bin",
        "cifar100:a",
        "imagenet:/a/b",
    ] {
        assert_eq!(text.parse::<DataSpec>().unwrap().to_string(), text);
    }
    for text in ["", "cifar10", "cifar10:", "builtin:mnist", "svhn:dir", "CIFAR10:dir"] {
        let error = text.parse::<DataSpec>().unwrap_err();
        assert!(matches!(&error, DataError::UnknownSpec { given } if given == text));
        assert!(error.to_string().contains("cifar10-bin:FILE"), "{error}");
    }
}

#[test]
fn parts_of_a_set() {
    let set = small_set(7);
    assert_eq!(set.clone().take(9), set);
    let head = set.clone().take(3);
    assert_eq!((head.len(), head.labels()), (3, &[0, 1, 2][..]));
    let (front, back) = set.clone().split_at(3);
    assert_eq!(front, head);
    assert_eq!((back.len(), back.image(0)), (4, set.image(3)));
    assert_eq!(set.subset(&[3, 4, 5, 6]), back);
    let picked = set.subset(&[6, 0, 6]);
    assert_eq!(picked.labels(), [0, 0, 0]);
    assert_eq!((picked.image(0), picked.image(1)), (set.image(6), set.image(0)));
    assert!(set.take(0).is_empty());
}

#[test]
fn order_is_the_same_everywhere() {
    // Written down once: a change here breaks every published run.
    assert_eq!(small_set(10).shuffled(0, 0), [3, 8, 6, 7, 1, 0, 5, 9, 2, 4]);
}

proptest! {
    #[test]
    fn shuffle_is_a_permutation(n in 1_usize..300, seed: u64, epoch: u64) {
        let set = small_set(n);
        let order = set.shuffled(seed, epoch);
        prop_assert_eq!(&order, &set.shuffled(seed, epoch));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
        if n > 50 {
            prop_assert_ne!(&order, &set.shuffled(seed, epoch ^ 1));
            prop_assert_ne!(&order, &set.shuffled(seed ^ 1, epoch));
        }
    }

    #[test]
    fn batches_cover_the_set_in_order(n in 1_usize..100, size in 1_usize..40) {
        let batches: Vec<_> = small_set(n).batches(size).collect();
        prop_assert_eq!(batches.len(), n.div_ceil(size));
        prop_assert!(batches[..batches.len() - 1].iter().all(|batch| batch.len() == size));
        prop_assert_eq!(batches.concat(), (0..n).collect::<Vec<_>>());
    }

    /// Bytes from anywhere give a set or an error, never a panic.
    #[test]
    fn readers_survive_any_bytes(
        images: Vec<u8>,
        labels: Vec<u8>,
        dims: [u32; 3],
        small in proptest::array::uniform3(0_u32..5),
    ) {
        for dims in [dims, small] {
            let labels = idx(&[labels.len() as u32], &labels);
            let _ = fashion_mnist(idx_dir(&idx(&dims, &images), &labels).path(), Split::Test);
        }
        let dir = idx_dir(&images, &labels);
        let _ = fashion_mnist(dir.path(), Split::Test);
        let _ = cifar10_bin(dir.path().join("t10k-images-idx3-ubyte"));
    }
}

#[cfg(feature = "flex")]
mod batches {
    use burn::tensor::{Device, Tensor};
    use sat_train::data::{Augment, Flip, Mixup};

    use super::*;

    fn values(tensor: &Tensor<4>) -> Vec<f32> {
        tensor.to_data().try_to_vec().unwrap()
    }

    #[test]
    fn batch_is_bytes_over_255() {
        let images = (0..=255).collect();
        let set =
            ImageSet::new(images, [2, 8, 8], vec![1, 0], vec!["a".into(), "b".into()]).unwrap();
        let (tensor, labels) = set.batch(&[1, 0, 1], &Device::flex());
        assert_eq!((tensor.dims(), labels), ([3, 2, 8, 8], vec![0, 1, 0]));
        let values = values(&tensor);
        for (i, &value) in values.iter().enumerate() {
            let byte = set.image([1, 0, 1][i / 128])[i % 128];
            assert_eq!(value, f32::from(byte) / 255.0);
            assert!((0.0..=1.0).contains(&value));
        }
        assert_eq!(values[127], 1.0);
        assert_eq!(values[128], 0.0);
    }

    #[test]
    fn empty_batch() {
        let (tensor, labels) = small_set(2).batch(&[], &Device::flex());
        assert_eq!((tensor.dims(), labels.len()), ([0, 2, 3, 4], 0));
    }

    #[test]
    fn augmentation_depends_on_seed_epoch_and_sample_only() {
        let set = small_set(40);
        let augment =
            Augment { flip: Flip::Horizontal, crop_padding: 2, cutout: 3, ..Augment::default() };
        let batch = |indices: &[usize], seed, epoch| {
            let (tensor, labels) =
                set.batch_augmented(indices, augment, seed, epoch, &Device::flex());
            (values(&tensor), labels)
        };
        let all: Vec<usize> = (0..40).collect();
        let (whole, labels) = batch(&all, 5, 1);
        assert_eq!(labels, set.batch(&all, &Device::flex()).1);
        assert!(whole.iter().all(|v| (0.0..=1.0).contains(v)));
        assert_eq!(batch(&[7, 39], 5, 1).0, [&whole[7 * 24..8 * 24], &whole[39 * 24..]].concat());
        assert_ne!(batch(&all, 5, 2).0, whole);
        assert_ne!(batch(&all, 6, 1).0, whole);
        assert_ne!(whole, values(&set.batch(&all, &Device::flex()).0));
        let plain = set.batch_augmented(&all, Augment::default(), 5, 1, &Device::flex()).0;
        assert_eq!(values(&plain), values(&set.batch(&all, &Device::flex()).0));
    }

    #[test]
    fn mixup_blends_pairs_and_names_the_partners() {
        let set = small_set(16);
        let (images, _) = set.batch(&(0..16).collect::<Vec<_>>(), &Device::flex());
        // Labels that tell which image is which.
        let labels: Vec<usize> = (100..116).collect();
        let mix =
            |alpha, seed, step| Mixup::of(images.clone(), &labels, alpha, seed, step).unwrap();
        let plain = values(&images);
        let mut weights = Vec::new();
        for step in 0..50 {
            let mixed = mix(0.2, 1, step);
            let mut partners = mixed.partner_labels.clone();
            for (i, blend) in values(&mixed.images).chunks(24).enumerate() {
                let partner = mixed.partner_labels[i] - 100;
                for (j, value) in blend.iter().enumerate() {
                    let (own, other) = (plain[i * 24 + j], plain[partner * 24 + j]);
                    let want =
                        mixed.weight * f64::from(own) + (1.0 - mixed.weight) * f64::from(other);
                    assert!((f64::from(*value) - want).abs() < 1e-6);
                }
            }
            partners.sort();
            assert_eq!(partners, labels);
            weights.push(mixed.weight);
        }
        // Beta(0.2, 0.2) has mean 1/2 and variance 1/(4 * 1.4).
        let variance = weights.iter().map(|w| (w - 0.5).powi(2)).sum::<f64>() / 50.0;
        assert!((variance - 0.179).abs() < 0.04, "{variance}");
        assert!(weights.iter().all(|w| (0.5..=1.0).contains(w)));
        let white = Mixup::of(Tensor::ones([16, 1, 1, 1], &Device::flex()), &labels, 1.0, 1, 0);
        assert_eq!(values(&white.unwrap().images), [1.0; 16]);
        let again = mix(0.2, 1, 7);
        assert_eq!(values(&again.images), values(&mix(0.2, 1, 7).images));
        assert_ne!(again.weight, mix(0.2, 2, 7).weight);
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Mixup::of(images.clone(), &labels, alpha, 0, 0).unwrap_err();
            assert!(matches!(error, DataError::BadSetting { .. }), "{error}");
        }
    }
}
