//! Training on a folder of photographs: stopped and resumed, with broken files and without.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use image::{Rgb, RgbImage};
use sat_train::{
    CheckpointError, Checkpoints, Normalized, Recipe, Start, TrainError, Trained,
    data::{BrokenImage, ImageFolder, Photographs},
    train,
};
use std::{fs, path::Path};
use tempfile::{TempDir, tempdir};

mod common;
use common::{bits, config, device, go_on, recipe, stop_at};

type Model = Normalized<sat_models::ResNet>;

fn model(seed: u64) -> Model {
    Normalized::to_plus_minus_one(config().with_input_channels(3).init(seed, &device()), 3)
}

/// 36 pictures in three classes.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    for number in 0..36u32 {
        let class = dir.path().join(["ant", "bee", "cat"][number as usize % 3]);
        fs::create_dir_all(&class).unwrap();
        let picture = RgbImage::from_fn(14, 12, |x, y| {
            Rgb([0, 1, 2].map(|c| (x * 9 + y * 5 + c * 40 + number * 23) as u8))
        });
        picture.save(class.join(format!("{number:03}.jpg"))).unwrap();
    }
    dir
}

fn photographs(dir: &Path, broken: BrokenImage) -> Photographs {
    let folder = ImageFolder::open(dir).unwrap();
    let all = (0..folder.len()).collect();
    Photographs::new(folder, all, 12, broken)
}

fn short() -> Recipe {
    // 32 are trained on: four steps an epoch.
    Recipe { epochs: 3, hold_out: 4, ..recipe() }
}

fn run(
    seed: u64,
    data: &Photographs,
    place: Option<(&Checkpoints, Start)>,
    stop: usize,
) -> Result<Trained<Model>, TrainError> {
    train(model(seed), &short(), data, &device(), place, stop_at(stop))
}

#[test]
fn a_stopped_training_resumes_to_the_same_weights() {
    let dir = folder();
    for (broken, steps) in [(BrokenImage::Stop, 12), (BrokenImage::Skip, 9)] {
        if broken == BrokenImage::Skip {
            // Three steps of eight are left of 27 to 31 good pictures.
            for number in [0, 7, 12, 31, 20] {
                let class = ["ant", "bee", "cat"][number % 3];
                fs::write(dir.path().join(class).join(format!("{number:03}.jpg")), "no JPEG")
                    .unwrap();
            }
        }
        let data = photographs(dir.path(), broken);
        let unbroken = run(3, &data, None, usize::MAX).unwrap();
        assert!(unbroken.is_finished());
        assert_eq!(unbroken.progress.step, steps);
        assert_eq!(unbroken.progress.history.len(), 3);
        assert!(unbroken.progress.history[2].held_out.is_some());
        assert_eq!(data.broken_files().len(), if broken == BrokenImage::Skip { 5 } else { 0 });
        for stop_at in [2, steps / 3, steps / 3 + 1] {
            let place = tempdir().unwrap();
            let checkpoints = Checkpoints::open(place.path()).unwrap();
            let stopped = run(3, &data, Some((&checkpoints, Start::Fresh)), stop_at).unwrap();
            assert!(!stopped.is_finished());
            let place = Some((&checkpoints, Start::Resume));
            let resumed = run(77, &data, place, usize::MAX).unwrap();
            assert!(resumed.is_finished());
            assert_eq!(bits(&resumed.model), bits(&unbroken.model), "stopped at {stop_at}");
            assert_eq!(resumed.progress.history, unbroken.progress.history);
        }
    }
}

#[test]
fn a_broken_file_ends_the_training_with_its_name() {
    let dir = folder();
    fs::write(dir.path().join("bee").join("001.jpg"), "").unwrap();
    let data = photographs(dir.path(), BrokenImage::Stop);
    let error = run(3, &data, None, usize::MAX).unwrap_err();
    assert!(matches!(error, TrainError::Data(_)), "{error}");
    assert!(error.to_string().contains("001.jpg"), "{error}");
}

#[test]
fn other_files_are_other_data() {
    let (dir, place) = (folder(), tempdir().unwrap());
    let checkpoints = Checkpoints::open(place.path()).unwrap();
    let data = photographs(dir.path(), BrokenImage::Stop);
    run(3, &data, Some((&checkpoints, Start::Fresh)), 1).unwrap();
    fs::rename(dir.path().join("ant").join("000.jpg"), dir.path().join("ant").join("new.jpg"))
        .unwrap();
    let data = photographs(dir.path(), BrokenImage::Stop);
    let error =
        train(model(3), &short(), &data, &device(), Some((&checkpoints, Start::Resume)), go_on);
    let error = error.unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::OtherData { .. })), "{error}");
}

/// The same on Burn's learner.
#[cfg(feature = "burn-train")]
mod learner {
    use super::*;
    use burn::{
        data::dataloader::{DataLoader, split::split_dataloader},
        tensor::Tensor,
        train::LearningResult,
    };
    use sat_train::learner::{Adversarial, TrainingImages, ValidationImages};
    use std::sync::Arc;

    fn training_images(data: &Photographs) -> TrainingImages<Photographs> {
        TrainingImages::new(data.clone(), recipe(), 0, &device()).unwrap()
    }

    fn learn(data: &Photographs) -> LearningResult<Adversarial<Model>> {
        let place = tempdir().unwrap();
        let model = Adversarial::new(model(3), &recipe()).unwrap();
        let images = training_images(data);
        let learner = model.learner(images.steps());
        let validation = ValidationImages::new(data.clone(), 8, &device());
        let training = model.training(place.path(), images, validation);
        training.with_application_logger(None).launch(learner)
    }

    #[test]
    fn the_weights_are_those_of_the_plain_loop() {
        let dir = folder();
        let data = photographs(dir.path(), BrokenImage::Stop);
        let want = train(model(3), &recipe(), &data, &device(), None, go_on).unwrap();
        let got = learn(&data);
        assert!(got.error.is_none());
        assert_eq!(bits(&got.model.model), bits(&want.model));
    }

    #[test]
    fn the_shares_of_devices_are_the_batches_of_one() {
        let dir = folder();
        for broken in [BrokenImage::Stop, BrokenImage::Skip] {
            if broken == BrokenImage::Skip {
                fs::write(dir.path().join("bee").join("001.jpg"), "no JPEG").unwrap();
            }
            let data = photographs(dir.path(), broken);
            let three = [device(), device(), device()];
            let three = split_dataloader(Arc::new(training_images(&data)), &three);
            let mut parts: Vec<_> = three.iter().map(|loader| loader.iter()).collect();
            let one = training_images(&data);
            let mut seen = 0;
            for whole in one.iter() {
                let whole = whole.unwrap();
                let shares = parts.iter_mut().map(|part| part.next().unwrap().unwrap());
                let (images, labels): (Vec<_>, Vec<_>) =
                    shares.map(|share| (share.images, share.labels)).unzip();
                assert_eq!(labels.concat(), whole.labels);
                assert_eq!(Tensor::cat(images, 0).into_data(), whole.images.into_data());
                seen += 1;
            }
            assert_eq!(seen, 4);
            assert!(parts.iter_mut().all(|part| part.next().is_none()));
        }
    }

    #[test]
    fn broken_files_are_named_or_left_out() {
        let dir = folder();
        for number in 0..30 {
            let class = ["ant", "bee", "cat"][number % 3];
            fs::write(dir.path().join(class).join(format!("{number:03}.jpg")), "").unwrap();
        }
        let error = learn(&photographs(dir.path(), BrokenImage::Stop)).error.unwrap().to_string();
        assert!(error.contains(".jpg"), "{error}");
        // Six are left, and a batch has eight.
        let error = learn(&photographs(dir.path(), BrokenImage::Skip)).error.unwrap().to_string();
        assert!(error.contains("do not fill one batch of 8"), "{error}");
    }
}
