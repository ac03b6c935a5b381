//! EfficientNet-Lite0 with its published weights on 1,000 ImageNet photographs, decoded, resized and
//! cropped by our loader, against the predictions that PyTorch makes of them with Pillow.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::tensor::Device;
use sat::{
    models::{ModelName, load_weights},
    train::data::{EvaluateTransform, ImageFolder, LoaderConfig, Transform},
};
use std::{path::Path, process::Command};

/// Photographs whose class PyTorch predicts.
const EXPECTED_RIGHT: usize = 872;

/// What we make of some photographs beside what PyTorch made of them.
#[derive(Debug, Default)]
struct Outcome {
    /// Photographs whose class we predict.
    right: usize,
    /// Photographs of which both predict the same.
    same: usize,
}

fn compare(shared: &Path) -> Outcome {
    let packed = shared.join("data/imagenet-1000/imagenet-1000.tar.xz");
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new("tar").arg("-xf").arg(&packed).arg("-C").arg(folder.path()).status();
    assert!(status.is_ok_and(|status| status.success()), "tar cannot unpack {}", packed.display());
    let expected = std::fs::read(shared.join("golden/efficientnet_lite0_expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();

    let photographs = ImageFolder::open(folder.path().join("imagenet-1000")).unwrap();
    assert_eq!((photographs.len(), photographs.classes()), (1000, 1000));
    for (index, file) in expected["files"].as_array().unwrap().iter().enumerate() {
        assert!(photographs.path(index).ends_with(file.as_str().unwrap()), "{file}");
    }
    let device = Device::flex();
    let weights = shared.join("data/weights/efficientnet-lite0-57934424.pth");
    let model = "efficientnet_lite0".parse::<ModelName>().unwrap().config().init(0, &device);
    let model = load_weights(model, weights).unwrap();

    let transform = Transform::Evaluate(EvaluateTransform::default());
    let config = LoaderConfig { batch_size: 20, ..LoaderConfig::new(transform) };
    let mut outcome = Outcome::default();
    for batch in photographs.loader(&photographs.spread(1000), 0, &config).unwrap() {
        let batch = batch.unwrap();
        let logits = model.forward((batch.images(&device) * 255.0 - 127.0) / 128.0);
        let values: Vec<f32> = logits.clone().into_data().try_to_vec().unwrap();
        let predictions = logits.argmax(1).into_data();
        let predictions = predictions.iter::<i64>().zip(batch.labels()).zip(batch.indices());
        for (row, ((prediction, label), index)) in predictions.enumerate() {
            let index = *index as usize;
            let want = expected["prediction"][index].as_i64().unwrap();
            outcome.right += usize::from(prediction == *label as i64);
            outcome.same += usize::from(prediction == want);
            if let Some(logits) = expected["logits_first2"][index].as_array() {
                let pairs = values[row * 1000..].iter().zip(logits);
                let far = pairs.map(|(v, w)| (f64::from(*v) - w.as_f64().unwrap()).abs());
                // The logits reach from -3 to 10; decoders and resizers differ by a grey level.
                let far = far.fold(0.0, f64::max);
                println!("photograph {index}: logits differ by up to {far:.3}");
                assert!(far < 0.5, "photograph {index}: logits differ by up to {far}");
            }
        }
    }
    println!("{outcome:?}");
    outcome
}

#[test]
fn a_thousand_photographs_are_seen_as_pytorch_sees_them() {
    let Some(shared) = common::shared() else { return };
    let outcome = compare(&shared);
    assert!(outcome.right.abs_diff(EXPECTED_RIGHT) <= 3, "{outcome:?}");
    assert!(outcome.same >= 985, "{outcome:?}");
}
