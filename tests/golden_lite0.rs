//! EfficientNet-Lite0 with weights trained on ImageNet, against logits that PyTorch computed.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use std::fs;

use burn::tensor::{Device, Tensor, TensorData};
use sat::models::ModelName;

mod common;

const SIDE: usize = 224;

#[test]
fn lite0_gives_the_logits_of_pytorch() {
    let Some(shared) = common::shared() else { return };
    let device = Device::flex();
    let weights = shared.join("data/weights/efficientnet-lite0-57934424.pth");
    let model = ModelName::EfficientNetLite0.config().load(&weights, &device).unwrap();

    let text = fs::read_to_string(shared.join("golden/efficientnet_lite0_expected.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<f32> = serde_json::from_value(golden["logits_ramp_input"].clone()).unwrap();

    let count = 3 * SIDE * SIDE;
    let ramp = (0..count).map(|i| (2.0 * i as f64 / (count - 1) as f64 - 1.0) as f32).collect();
    let images = Tensor::from_data(TensorData::new(ramp, [1, 3, SIDE, SIDE]), &device);
    let logits: Vec<f32> = model.forward(images).try_into_vec_as().unwrap();

    assert_eq!(logits.len(), expected.len());
    let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "the largest difference of a logit is {worst}");
}
