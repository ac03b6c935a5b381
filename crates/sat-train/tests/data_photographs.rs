//! Folders and shards of photographs: transforms against Pillow, order, threads, and bad input.

// Clippy's exception for tests does not cover the helper functions between them.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use sat_train::data::{
    BrokenImage, ByteBatch, DataError, DataSpec, EvaluateTransform, Filter, ImageFolder, Loader,
    LoaderConfig, Remainder, ShardOrder, ShardSet, Split, TrainTransform, Transform,
};
use tempfile::{TempDir, tempdir};

/// A picture of its own for each number.
fn picture(number: u32) -> RgbImage {
    RgbImage::from_fn(20 + number % 7, 18 + number % 5, |x, y| {
        Rgb([0, 1, 2].map(|c| (x * 9 + y * 5 + c * 40 + number * 23) as u8))
    })
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// `n` images in 3 classes, every second one a JPEG.
fn folder(n: u32) -> TempDir {
    let dir = tempdir().unwrap();
    for number in 0..n {
        let class = dir.path().join(["ant", "bee", "cat"][number as usize % 3]);
        fs::create_dir_all(&class).unwrap();
        let (ending, format) = match number % 2 {
            0 => ("JPEG", ImageFormat::Jpeg),
            _ => ("png", ImageFormat::Png),
        };
        let file = class.join(format!("{number:03}.{ending}"));
        fs::write(file, encoded(&picture(number), format)).unwrap();
    }
    dir
}

fn train() -> Transform {
    Transform::Train(TrainTransform { size: 8, ..TrainTransform::default() })
}

fn evaluate() -> Transform {
    Transform::Evaluate(EvaluateTransform { resize: 9, crop: 8, ..EvaluateTransform::default() })
}

fn config(transform: Transform) -> LoaderConfig {
    LoaderConfig { batch_size: 4, ..LoaderConfig::new(transform) }
}

fn all(loader: Loader) -> Vec<ByteBatch> {
    loader.map(|batch| batch.unwrap()).collect()
}

fn pixels(batches: &[ByteBatch]) -> Vec<u8> {
    batches.iter().flat_map(|batch| batch.pixels()).copied().collect()
}

fn indices(batches: &[ByteBatch]) -> Vec<u64> {
    batches.iter().flat_map(|batch| batch.indices()).copied().collect()
}

fn order(n: usize) -> Vec<usize> {
    (0..n).collect()
}

/// Pillow 13.0: `resize` to 12 x 9 and `crop` of the middle 5 x 5 of a 40 x 30 image with the values
/// (7 x + 13 y + 50 c + x y) mod 256, planes after planes.
#[test]
#[rustfmt::skip]
fn resizing_is_pillows() {
    let bicubic = [
        59, 104, 163, 163, 136, 161, 176, 108, 88, 131, 151, 76, 128, 173, 109, 81, 164, 147, 91, 145, 168, 110, 107,
        163, 106, 106, 167, 171, 118, 96, 191, 119, 78, 127, 161, 84, 104, 173, 128, 98, 129, 177, 94, 123, 147, 146,
        75, 149, 144, 101, 170, 181, 118, 83, 107, 127, 72, 117, 159, 140, 82, 160, 154, 92, 116, 186, 124, 87, 164,
        136, 133, 109, 156, 104, 131,
    ];
    let bilinear = [
        78, 110, 152, 156, 134, 150, 163, 113, 100, 130, 145, 93, 129, 159, 114, 98, 151, 141, 104, 139, 154, 115, 113,
        151, 112, 111, 154, 159, 120, 104, 173, 121, 94, 127, 151, 99, 113, 158, 128, 106, 128, 161, 106, 124, 140, 137,
        93, 142, 140, 110, 157, 167, 120, 95, 111, 126, 88, 119, 149, 137, 96, 148, 146, 103, 120, 168, 126, 101, 152,
        133, 135, 116, 144, 113, 130,
    ];
    let image = RgbImage::from_fn(40, 30, |x, y| {
        Rgb([0, 50, 100].map(|c| (x * 7 + y * 13 + c + x * y) as u8))
    });
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("class")).unwrap();
    image.save(dir.path().join("class/1.png")).unwrap();
    let folder = ImageFolder::open(dir.path()).unwrap();
    for (filter, want) in [(Filter::Bicubic, bicubic), (Filter::Bilinear, bilinear)] {
        let transform = Transform::Evaluate(EvaluateTransform { resize: 9, crop: 5, filter });
        let got = pixels(&all(folder.loader(&[0], 0, &config(transform)).unwrap()));
        // Pillow and we round the weights, and what is between the two passes, a little differently.
        let near = got.iter().zip(want).filter(|(got, want)| got.abs_diff(*want) <= 1).count();
        let same = got.iter().zip(want).filter(|(got, want)| **got == *want).count();
        assert!(got.len() == 75 && near == 75 && same >= 50, "{filter:?}: {near}, {same} of 75");
    }
}

#[test]
fn a_whole_square_at_its_own_size_stays_or_is_mirrored() {
    let image = RgbImage::from_fn(8, 8, |x, y| Rgb([0, 1, 2].map(|c| (x * 8 + y + c * 64) as u8)));
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("class")).unwrap();
    image.save(dir.path().join("class/1.png")).unwrap();
    let folder = ImageFolder::open(dir.path()).unwrap();
    let transform = Transform::Train(TrainTransform {
        size: 8,
        scale: (1.0, 1.0),
        ratio: (1.0, 1.0),
        jitter: Default::default(),
        lighting: 0.0,
        ..TrainTransform::default()
    });
    let plane = |c: u32, mirror: bool| {
        let x = move |x: u32| if mirror { 7 - x } else { x };
        (0..64).map(move |i| (x(i % 8) * 8 + i / 8 + c * 64) as u8)
    };
    let planes = |mirror| (0..3).flat_map(|c| plane(c, mirror)).collect::<Vec<u8>>();
    let mut mirrored = 0;
    for epoch in 0..200 {
        let got = pixels(&all(folder.loader(&[0], epoch, &config(transform.clone())).unwrap()));
        assert!(got == planes(false) || got == planes(true));
        mirrored += usize::from(got == planes(true));
    }
    assert!((70..130).contains(&mirrored), "{mirrored}");
}

#[test]
fn a_folder_is_sorted_by_class_and_name() {
    let dir = folder(7);
    fs::create_dir(dir.path().join(".hidden")).unwrap();
    fs::write(dir.path().join("ant/notes.txt"), "not an image").unwrap();
    fs::write(dir.path().join("ant/.thumb.png"), "not an image").unwrap();
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(
        (folder.len(), folder.class_names()),
        (7, &["ant", "bee", "cat"].map(String::from)[..])
    );
    assert_eq!(
        order(7).iter().map(|&i| folder.label(i)).collect::<Vec<_>>(),
        [0, 0, 0, 1, 1, 2, 2]
    );
    assert_eq!(folder.path(1), dir.path().join("ant/003.png"));
    assert_eq!(folder.spread(3), [0, 2, 4]);
    assert_eq!(folder.spread(9), order(7));
    assert_ne!(folder.shuffled(0, 0), folder.shuffled(0, 1));
    let batches = all(folder.loader(&[6, 0, 3], 0, &config(evaluate())).unwrap());
    assert_eq!((batches.len(), batches[0].labels()), (1, &[2, 0, 1][..]));
    assert_eq!(batches[0].indices(), [6, 0, 3]);
    let set = folder.load(evaluate()).unwrap();
    assert_eq!((set.len(), set.shape(), set.labels()[6]), (7, [3, 8, 8], 2));
    assert_eq!([set.image(6), set.image(0), set.image(3)].concat(), batches[0].pixels());
}

#[test]
fn batches_do_not_depend_on_threads_nor_on_the_batch() {
    let dir = folder(23);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let order = folder.shuffled(3, 1);
    let read = |threads, batch_size, seed, epoch, order: &[usize]| {
        let threads = NonZeroUsize::new(threads);
        let config = LoaderConfig { threads, batch_size, seed, ahead: 1, ..config(train()) };
        all(folder.loader(order, epoch, &config).unwrap())
    };
    let want = read(1, 4, 3, 1, &order);
    assert_eq!(want.iter().map(ByteBatch::len).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 3]);
    assert_eq!(indices(&want), order.iter().map(|&i| i as u64).collect::<Vec<_>>());
    for threads in [2, 3, 7, 40] {
        assert_eq!(read(threads, 4, 3, 1, &order), want, "{threads} threads");
    }
    assert_eq!(pixels(&read(2, 9, 3, 1, &order)), pixels(&want));
    // A run that goes on within an epoch.
    assert_eq!(read(2, 4, 3, 1, &order[8..]), want[2..]);
    assert_ne!(pixels(&read(1, 4, 4, 1, &order)), pixels(&want));
    assert_ne!(pixels(&read(1, 4, 3, 2, &order)), pixels(&want));
}

#[test]
fn the_remainder_is_kept_or_dropped() {
    let dir = folder(6);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let lens = |remainder, n| {
        let config = LoaderConfig { remainder, ..config(evaluate()) };
        let batches = all(folder.loader(&order(n), 0, &config).unwrap());
        batches.iter().map(ByteBatch::len).collect::<Vec<_>>()
    };
    assert_eq!(lens(Remainder::Keep, 6), [4, 2]);
    assert_eq!(lens(Remainder::Drop, 6), [4]);
    assert_eq!(lens(Remainder::Drop, 4), [4]);
    assert_eq!(lens(Remainder::Keep, 0), [0; 0]);
}

#[test]
fn broken_images_are_named_and_stop_or_are_skipped() {
    let whole = encoded(&picture(0), ImageFormat::Jpeg);
    let cut = &whole[..whole.len() * 2 / 3];
    // A JPEG header that promises 65,535 x 65,535 pixels.
    let mut huge = whole.clone();
    let frame = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    huge[frame + 5..frame + 9].fill(0xff);
    for (what, bytes) in [("empty", &[][..]), ("cut off", cut), ("", &huge), ("", b"not an image")]
    {
        let dir = folder(10);
        let folder = ImageFolder::open(dir.path()).unwrap();
        fs::write(folder.path(5), bytes).unwrap();
        let mut loader = folder.loader(&order(10), 0, &config(evaluate())).unwrap();
        assert_eq!(loader.next().unwrap().unwrap().len(), 4);
        let error = loader.next().unwrap().unwrap_err();
        let DataError::Decode { path, .. } = &error else { panic!("{error}") };
        assert_eq!(*path, folder.path(5));
        assert!(error.to_string().contains(what), "{error}");
        assert!(loader.next().is_none());

        let skip = LoaderConfig { broken: BrokenImage::Skip, ..config(evaluate()) };
        let mut loader = folder.loader(&order(10), 0, &skip).unwrap();
        let batches: Vec<ByteBatch> = loader.by_ref().map(|batch| batch.unwrap()).collect();
        assert_eq!(indices(&batches), [0, 1, 2, 3, 4, 6, 7, 8, 9]);
        assert_eq!(batches.len(), 3);
        assert!(
            matches!(loader.skipped(), [DataError::Decode { path, .. }] if *path == folder.path(5))
        );
        assert!(folder.load(evaluate()).is_err());
    }
    // A file that has gone.
    let dir = folder(10);
    let folder = ImageFolder::open(dir.path()).unwrap();
    fs::remove_file(folder.path(0)).unwrap();
    let mut loader = folder.loader(&order(10), 0, &config(evaluate())).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(&error, DataError::Io { path, .. } if *path == folder.path(0)), "{error}");
    // Nothing but broken images is not an empty epoch.
    (1..10).for_each(|index| fs::write(folder.path(index), "").unwrap());
    let skip = LoaderConfig { broken: BrokenImage::Skip, ..config(evaluate()) };
    let mut loader = folder.loader(&order(10), 0, &skip).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::AllBroken { count: 10, .. }), "{error}");
    assert!(loader.next().is_none());
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let dir = folder(40);
    let folder = ImageFolder::open(dir.path()).unwrap();
    for taken in [0, 1, 3] {
        let mut loader = folder.loader(&order(40), 0, &config(evaluate())).unwrap();
        (0..taken).for_each(|_| drop(loader.next()));
        // Waits for the threads: it returns, or the test hangs.
        drop(loader);
    }
}

/// Threads stop when as many images wait as was asked for: files that are changed late are read late.
#[test]
fn threads_stay_within_their_bounds() {
    let dir = folder(60);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let config = LoaderConfig {
        batch_size: 2,
        ahead: 1,
        threads: NonZeroUsize::new(2),
        ..config(evaluate())
    };
    let loader = folder.loader(&order(60), 0, &config).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    // Ready: 2 images. In hand: one a thread, and two waiting for each.
    (20..60).for_each(|index| fs::write(folder.path(index), "").unwrap());
    let read = loader.take_while(Result::is_ok).count();
    assert_eq!(read, 10);
}

#[test]
fn bad_settings_and_missing_samples() {
    let dir = folder(4);
    let folder = ImageFolder::open(dir.path()).unwrap();
    for bad in [
        LoaderConfig { batch_size: 0, ..config(evaluate()) },
        LoaderConfig { ahead: 0, ..config(evaluate()) },
        LoaderConfig { ahead: usize::MAX, ..config(evaluate()) },
        LoaderConfig { threads: NonZeroUsize::new(100_000), ..config(evaluate()) },
        config(Transform::Evaluate(EvaluateTransform { resize: 3, ..Default::default() })),
    ] {
        let error = folder.loader(&[0], 0, &bad).unwrap_err();
        assert!(matches!(error, DataError::BadSetting { .. }), "{error}");
    }
    let config = serde_json::to_string(&config(train())).unwrap();
    let typo = config.replace("lighting", "lightning");
    assert!(serde_json::from_str::<LoaderConfig>(&config).is_ok());
    assert!(serde_json::from_str::<LoaderConfig>(&typo).is_err());
}

#[test]
#[should_panic(expected = "sample 4 of 4")]
fn an_index_beyond_the_end() {
    let dir = folder(4);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let _ = folder.loader(&[4], 0, &config(evaluate()));
}

#[test]
fn folders_that_are_not_what_they_should_be() {
    let dir = tempdir().unwrap();
    let open = |below: &str| ImageFolder::open(dir.path().join(below)).unwrap_err();
    let error = open("nowhere");
    assert!(
        matches!(&error, DataError::Missing { path, .. } if path.ends_with("nowhere")),
        "{error}"
    );
    assert!(open("").to_string().contains("class folders"));
    fs::create_dir_all(dir.path().join("set/empty")).unwrap();
    let error = open("set");
    assert!(
        matches!(&error, DataError::Missing { path, .. } if path.ends_with("set/empty")),
        "{error}"
    );

    let dir = folder(6);
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let open = |classes: &[&str]| ImageFolder::open_with_classes(dir.path(), &names(classes));
    assert_eq!(open(&["cat", "ant", "bee"]).unwrap(), ImageFolder::open(dir.path()).unwrap());
    let error = open(&["ant", "bee", "cat", "dog"]).unwrap_err();
    assert!(error.to_string().contains("missing: dog; unexpected: none"), "{error}");
    let error = open(&["ant", "bird", "cat"]).unwrap_err();
    assert!(
        matches!(&error, DataError::ClassMismatch { missing, unexpected, .. }
            if *missing == ["bird"] && *unexpected == ["bee"]),
        "{error}"
    );
}

#[test]
fn label_files() {
    let dir = folder(6);
    let list = dir.path().join("val.txt");
    let open = |text: &str| {
        fs::write(&list, text).unwrap();
        ImageFolder::from_list(dir.path(), &list, vec!["no".to_owned(), "yes".to_owned()])
    };
    let folder = open("bee/001.png 1\n\nant/000.JPEG\t0\r\n").unwrap();
    assert_eq!((folder.len(), folder.label(0), folder.label(1)), (2, 1, 0));
    assert_eq!(folder.path(1), dir.path().join("ant/000.JPEG"));
    for (text, says) in [
        ("bee/001.png", "a path and a class index"),
        ("bee/001.png one", "not a number"),
        ("bee/001.png -1", "not a number"),
        ("ant/000.JPEG 0\nbee/007.png 1", "line 2, `bee/007.png 1`: no such file"),
        ("ant/000.JPEG 0\nant/000.JPEG 1", "named before"),
        ("bee/001.png 2", "label 2 of sample 0 is out of range for 2 classes"),
        ("\n", "no samples"),
    ] {
        let error = open(text).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("val.txt"), "{error}");
    }
    let error = ImageFolder::from_list(dir.path(), dir.path().join("no.txt"), Vec::new());
    assert!(matches!(error, Err(DataError::Io { .. })));
}

#[test]
fn imagenet_by_name() {
    let dir = folder(4);
    let spec: DataSpec = format!("imagenet:{}", dir.path().display()).parse().unwrap();
    assert!(!spec.has_splits());
    let set = spec.load(Split::Test).unwrap();
    assert_eq!((set.shape(), set.labels()), ([3, 224, 224], &[0, 0, 1, 2][..]));
    // One of each class, not the first of one class; and no other file is read.
    for number in [1, 3] {
        assert_eq!(spec.load_part(Split::Test, number).unwrap().len(), number);
    }
    let part = spec.load_part(Split::Test, 2).unwrap();
    assert_eq!(part.labels(), [0, 1]);
    assert_eq!(spec.load_part(Split::Test, 9).unwrap(), set);
    let parts = tempdir().unwrap();
    fs::rename(dir.path(), parts.path().join("train")).unwrap();
    let spec = DataSpec::ImageNet(parts.path().into());
    assert!(spec.has_splits());
    assert_eq!(spec.load(Split::Train).unwrap(), set);
    let error = spec.load(Split::Test).unwrap_err();
    assert!(matches!(&error, DataError::Missing { path, .. } if path.ends_with("val")), "{error}");
}

/// Files of a shard, in order.
fn shard(path: &Path, files: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap();
}

fn sample(number: u32) -> [(String, Vec<u8>); 3] {
    let image = encoded(&picture(number), ImageFormat::Png);
    [
        (format!("some/{number:04}.cls"), format!("{}\n", number % 3).into_bytes()),
        (format!("some/{number:04}.json"), b"{}".to_vec()),
        (format!("some/{number:04}.png"), image),
    ]
}

#[test]
fn shards_give_what_is_in_them() {
    let dir = tempdir().unwrap();
    for (name, numbers) in [("b.tar", 10..25), ("a.tar", 0..10)] {
        let files: Vec<_> = numbers.flat_map(sample).collect();
        shard(&dir.path().join(name), &files);
    }
    let shards = ShardSet::open(dir.path(), 3).unwrap();
    assert_eq!(shards.shards().len(), 2);
    let read = |order, epoch, threads, transform| {
        let config = LoaderConfig { threads: NonZeroUsize::new(threads), ..config(transform) };
        all(shards.loader(order, epoch, &config).unwrap())
    };
    let stored = read(ShardOrder::Stored, 0, 2, evaluate());
    let labels: Vec<usize> = stored.iter().flat_map(|batch| batch.labels()).copied().collect();
    assert_eq!(labels, (0..25).map(|number| number % 3).collect::<Vec<_>>());
    let want: Vec<u64> = (0..10).chain((0..15).map(|i| (1 << 32) + i)).collect();
    assert_eq!(indices(&stored), want);
    // The same pixels as from a folder.
    let files = tempdir().unwrap();
    fs::create_dir(files.path().join("x")).unwrap();
    for number in 0..25 {
        picture(number).save(files.path().join(format!("x/{number:02}.png"))).unwrap();
    }
    let folder = ImageFolder::open(files.path()).unwrap();
    let same = all(folder.loader(&order(25), 0, &config(evaluate())).unwrap());
    assert_eq!(pixels(&stored), pixels(&same));

    let buffer = ShardOrder::Shuffled { buffer: 6 };
    let shuffled = read(buffer, 0, 3, train());
    assert_eq!(read(buffer, 0, 1, train()), shuffled);
    assert_ne!(indices(&read(buffer, 1, 1, train())), indices(&shuffled));
    let mut sorted = indices(&shuffled);
    assert_ne!(sorted, want);
    sorted.sort();
    assert_eq!(sorted, want);
    // What happens to a sample does not depend on where it stands.
    let in_order = read(ShardOrder::Stored, 0, 1, train());
    let by_index = |batches: &[ByteBatch]| {
        let pixels = pixels(batches);
        let mut all: Vec<_> =
            indices(batches).into_iter().zip(pixels.chunks(192).map(<[u8]>::to_vec)).collect();
        all.sort();
        all
    };
    assert_eq!(by_index(&in_order), by_index(&shuffled));
    // Dropped early, with the reader still at work.
    let mut loader = shards.loader(buffer, 0, &config(train())).unwrap();
    assert!(loader.next().is_some());
}

#[test]
fn broken_shards_are_named() {
    let dir = tempdir().unwrap();
    let error = ShardSet::open(dir.path(), 3).unwrap_err();
    assert!(matches!(error, DataError::Missing { .. }), "{error}");
    let file = dir.path().join("a.tar");
    let fails_with_order = |files: &[(String, Vec<u8>)], order| {
        shard(&file, files);
        let shards = ShardSet::open(dir.path(), 3).unwrap();
        let mut loader = shards.loader(order, 0, &config(evaluate())).unwrap();
        let error = loader.find_map(Result::err).unwrap();
        assert!(loader.next().is_none());
        assert!(error.to_string().contains("a.tar"), "{error}");
        error.to_string()
    };
    let fails = |files: &[(String, Vec<u8>)]| fails_with_order(files, ShardOrder::Stored);
    let with_label = |label: &str| {
        let mut files = [sample(0), sample(1)].concat();
        files[3].1 = label.as_bytes().to_vec();
        files
    };
    assert!(fails(&with_label("dog")).contains("`dog` is not a number"));
    assert!(fails(&with_label("3")).contains("label 3"));
    let [label, _, image] = sample(0);
    assert!(fails(&[]).contains("no samples"));
    assert!(fails(std::slice::from_ref(&label)).contains("no image"));
    assert!(fails(&[image.clone(), sample(1)[2].clone()]).contains("no .cls"));
    assert!(fails(&[label.clone(), label.clone()]).contains("there twice"));
    let shuffled = ShardOrder::Shuffled { buffer: 100 };
    assert!(fails_with_order(&[label, image.clone(), image], shuffled).contains("no .cls"));

    let files = [sample(0), sample(1), sample(2)].concat();
    shard(&file, &files);
    let whole = fs::read(&file).unwrap();
    // Within the last image.
    let last = files[8].1.len();
    let cut = whole.len() - 1024 - last.next_multiple_of(512) + last / 2;
    fs::write(&file, &whole[..cut]).unwrap();
    let shards = ShardSet::open(dir.path(), 3).unwrap();
    let read: Vec<_> = shards.loader(ShardOrder::Stored, 0, &config(evaluate())).unwrap().collect();
    assert!(matches!(&read[..], [Err(DataError::Truncated { .. })]), "{read:?}");
    // A broken image can be skipped, a broken shard cannot.
    let skip = LoaderConfig { broken: BrokenImage::Skip, ..config(evaluate()) };
    assert!(shards.loader(ShardOrder::Stored, 0, &skip).unwrap().any(|batch| batch.is_err()));
    let mut files = files;
    files[2].1 = b"no image".to_vec();
    shard(&file, &files);
    let mut loader = shards.loader(ShardOrder::Stored, 0, &skip).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().indices(), [1, 2]);
    assert!(loader.next().is_none());
    assert!(loader.skipped()[0].to_string().contains("a.tar/some/0000.png"));
    let error = shards.loader(ShardOrder::Shuffled { buffer: 0 }, 0, &skip).unwrap_err();
    assert!(matches!(error, DataError::BadSetting { setting: "buffer", .. }), "{error}");
}

#[cfg(feature = "flex")]
#[test]
fn a_batch_on_a_device_is_bytes_over_255() {
    use burn::tensor::Device;

    let dir = folder(3);
    let folder = ImageFolder::open(dir.path()).unwrap();
    let batch = all(folder.loader(&order(3), 0, &config(evaluate())).unwrap()).remove(0);
    let images = batch.images(&Device::flex());
    assert_eq!(images.dims(), [3, 3, 8, 8]);
    let values: Vec<f32> = images.into_data().try_to_vec().unwrap();
    assert!(values.iter().zip(batch.pixels()).all(|(v, &byte)| *v == f32::from(byte) / 255.0));
}
