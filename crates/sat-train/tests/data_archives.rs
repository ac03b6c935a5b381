//! CIFAR as it is distributed: Python batches, archives, CIFAR-100.

// Clippy's exception for tests does not cover the helper functions between them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sat_train::data::{
    CIFAR10_BINARY, CIFAR10_PYTHON, CIFAR100_BINARY, CIFAR100_PYTHON, DataError, DataSpec, Network,
    Split, cifar10, cifar100,
};
use tempfile::tempdir;

/// Pixels of sample `i`.
fn pixels(i: usize) -> impl Iterator<Item = u8> {
    (0..3072).map(move |pixel| (i * 31 + pixel) as u8)
}

/// A batch as Python 2 wrote it: protocol 2, a NumPy array and a list of numbers.
fn python_batch(key: &str, labels: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
    let mut out = b"\x80\x02}q\x01(".to_vec();
    out.extend(text("batch_label"));
    out.extend(b"q\x02");
    out.extend(text("training batch 1 of 5"));
    out.extend(b"q\x03");
    out.extend(text(key));
    out.extend(b"q\x04]q\x05(");
    out.extend(labels.iter().flat_map(|&label| [b'K', label]));
    out.push(b'e');
    out.extend(text("data"));
    out.extend(b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85");
    out.extend(b"U\x01b\x87Rq\x09(K\x01M");
    out.extend((labels.len() as u16).to_le_bytes());
    out.extend(b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b");
    out.extend(b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T");
    out.extend((labels.len() as u32 * 3072).to_le_bytes());
    out.extend((0..labels.len()).flat_map(pixels));
    out.extend(b"q\x0ctb");
    out.extend(text("filenames"));
    out.extend(b"q\x0d]q\x0e(");
    for i in 0..labels.len() {
        out.extend(text(&format!("leptodactylus_s_{i}.png")));
        out.extend([b'r', i as u8, 1, 0, 0]);
    }
    out.extend(b"eu.");
    out
}

fn archive(path: &Path, files: &[(&str, Vec<u8>)]) {
    let gzip = GzEncoder::new(fs::File::create(path).unwrap(), Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
}

#[test]
fn python_batches_packed_and_unpacked() {
    let dir = tempdir().unwrap();
    let batch = |i: u8| python_batch("labels", &[i, 9 - i]);
    let names: Vec<String> =
        (1..=5).map(|i| format!("cifar-10-batches-py/data_batch_{i}")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().map(String::as_str).zip((1..=5).map(batch)).collect();
    // The order in the archive is not that of the names.
    files.swap(1, 3);
    files.push(("cifar-10-batches-py/test_batch", python_batch("labels", &[3])));
    files.push(("cifar-10-batches-py/readme.html", b"<html>".to_vec()));
    archive(&dir.path().join("cifar-10-python.tar.gz"), &files);
    let packed = cifar10(dir.path(), Split::Train).unwrap();
    assert_eq!(packed.labels(), [1, 8, 2, 7, 3, 6, 4, 5, 5, 4]);
    assert_eq!(packed.class_names()[9], "truck");
    assert!(packed.image(3).iter().copied().eq(pixels(1)));
    assert_eq!(cifar10(dir.path(), Split::Test).unwrap().labels(), [3]);

    let other = tempdir().unwrap();
    fs::create_dir(other.path().join("cifar-10-batches-py")).unwrap();
    for (name, bytes) in files {
        fs::write(other.path().join(name), bytes).unwrap();
    }
    assert_eq!(cifar10(other.path(), Split::Train).unwrap(), packed);
}

#[test]
fn binary_archive() {
    let dir = tempdir().unwrap();
    let record = |label: u8, i| std::iter::once(label).chain(pixels(i)).collect::<Vec<u8>>();
    let test = [record(7, 0), record(2, 1)].concat();
    let file = dir.path().join("cifar-10-binary.tar.gz");
    archive(&file, &[("cifar-10-batches-bin/test_batch.bin", test)]);
    let set = cifar10(dir.path(), Split::Test).unwrap();
    assert_eq!(set.labels(), [7, 2]);
    assert!(set.image(1).iter().copied().eq(pixels(1)));
    let error = cifar10(dir.path(), Split::Train).unwrap_err();
    assert!(
        matches!(&error, DataError::Missing { path, .. } if path.ends_with("data_batch_1.bin"))
    );
    assert!(error.to_string().contains("cifar-10-binary.tar.gz"), "{error}");
    // A download that was cut off.
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = cifar10(dir.path(), Split::Test).unwrap_err();
    assert!(error.to_string().contains("cifar-10-binary.tar.gz"), "{error}");
}

#[test]
fn cifar100_takes_the_fine_labels() {
    let dir = tempdir().unwrap();
    let record = |fine: u8, i| [19, fine].into_iter().chain(pixels(i)).collect::<Vec<u8>>();
    let train = [record(99, 0), record(0, 1), record(42, 2)].concat();
    fs::write(dir.path().join("train.bin"), &train).unwrap();
    let set = cifar100(dir.path(), Split::Train).unwrap();
    assert_eq!((set.labels(), set.classes()), (&[99, 0, 42][..], 100));
    let name = |class: usize| set.class_names()[class].as_str();
    assert_eq!((name(0), name(42), name(99)), ("apple", "leopard", "worm"));
    assert!(set.class_names().is_sorted());
    assert!(set.image(2).iter().copied().eq(pixels(2)));
    assert_eq!(DataSpec::Cifar100(dir.path().into()).load(Split::Train).unwrap(), set);

    let python = tempdir().unwrap();
    fs::write(python.path().join("train"), python_batch("fine_labels", &[99, 0, 42])).unwrap();
    assert_eq!(cifar100(python.path(), Split::Train).unwrap(), set);
    let error = cifar100(python.path(), Split::Test).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");

    fs::write(dir.path().join("train.bin"), &train[..train.len() - 1]).unwrap();
    let error = cifar100(dir.path(), Split::Train).unwrap_err();
    assert!(matches!(error, DataError::Truncated { expected: 9222, actual: 9221, .. }), "{error}");
    fs::write(dir.path().join("train.bin"), record(100, 0)).unwrap();
    let error = cifar100(dir.path(), Split::Train).unwrap_err();
    assert!(matches!(error, DataError::LabelOutOfRange { label: 100, .. }), "{error}");
}

fn read_python(bytes: &[u8]) -> Result<sat_train::data::ImageSet, DataError> {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("test_batch"), bytes).unwrap();
    cifar10(dir.path(), Split::Test)
}

#[test]
fn broken_python_batches() {
    let good = python_batch("labels", &[1, 2]);
    assert_eq!(read_python(&good).unwrap().len(), 2);
    let reason = |bytes: &[u8]| match read_python(bytes).unwrap_err() {
        DataError::Malformed { path, reason, .. } => {
            assert!(path.ends_with("test_batch"));
            reason
        }
        other => panic!("{other}"),
    };
    for cut in 0..good.len() - 1 {
        if cut < 300 || cut > good.len() - 80 || cut % 500 == 0 {
            reason(&good[..cut]);
        }
    }
    assert!(reason(&python_batch("label", &[1])).contains("no entry `labels`"));
    // Fewer labels than rows.
    let at = good.windows(2).position(|pair| pair == [b'K', 1]).unwrap();
    let mut fewer = good.clone();
    fewer.drain(at..at + 2);
    assert!(reason(&fewer).contains("1 labels, but 2 rows"));
    // Fortran's order.
    let at = good.windows(2).position(|pair| pair == [0x89, b'T']).unwrap();
    let mut fortran = good.clone();
    fortran[at] = 0x88;
    assert!(reason(&fortran).contains("C's order"));
    let error = read_python(&python_batch("labels", &[1, 10])).unwrap_err();
    assert!(matches!(error, DataError::LabelOutOfRange { index: 1, label: 10, .. }), "{error}");
    // `os.system("touch ...")`: the name is read, and nothing is called.
    let dir = tempdir().unwrap();
    let victim = dir.path().join("victim");
    let command = format!("touch {}", victim.display());
    let evil =
        [b"\x80\x02cos\nsystem\nU", &[command.len() as u8][..], command.as_bytes(), b"\x85R."]
            .concat();
    assert!(reason(&evil).contains("not a dictionary"));
    assert!(!victim.exists());
    // Lists in lists, deep enough to end a program that follows them by recursion.
    let deep = [b"\x80\x02".to_vec(), vec![b']'; 1 << 20], vec![b'a'; 1 << 20]].concat();
    assert!(reason(&deep).contains("more values"));
}

proptest! {
    #[test]
    fn python_reader_survives_any_bytes(bytes: Vec<u8>, at: proptest::sample::Index, new: u8) {
        let _ = read_python(&bytes);
        let mut batch = python_batch("labels", &[1, 2, 3]);
        // Not among the pixels, where every byte is as good as another.
        let ends = batch.len() - 9216;
        let at = at.index(ends);
        let at = if at < 200 { at } else { at + 9216 };
        batch[at.min(ends + 9215)] = new;
        let _ = read_python(&batch);
    }
}

#[test]
fn archives_that_are_not_there_are_named_with_their_address() {
    let dir = tempdir().unwrap();
    for file in [CIFAR10_BINARY, CIFAR10_PYTHON, CIFAR100_BINARY, CIFAR100_PYTHON] {
        let error = file.fetch(dir.path(), Network::Offline).unwrap_err().to_string();
        assert!(error.contains(&*file.name) && error.contains(&*file.url), "{error}");
        assert_eq!(file.sha256.len(), 64);
    }
}
