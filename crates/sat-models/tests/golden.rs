//! A PyTorch checkpoint with known answers. The files are not part of this repository: they are
//! looked for in the folder named by `SAT_SHARED`, else in `shared` beside the repository.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use std::fs;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData, activation};
use sat_models::{ResNetConfig, StateDict, load_safetensors};

fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("SAT_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
    };
    if folder.join("golden").is_dir() {
        return Some(folder);
    }
    println!("skipped: no known answers in {}; set SAT_SHARED", folder.display());
    None
}

#[test]
fn resnet20_silu_gives_the_answers_of_pytorch() {
    let Some(shared) = shared() else { return };
    let expected = fs::read(shared.join("golden/resnet20_silu_expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();

    let device = Device::flex();
    let model = ResNetConfig::resnet20().with_activation("silu".parse().unwrap());
    let model = model.init(0, &device);
    let weights = shared.join("golden/resnet20_silu_cifar10_linf.safetensors");
    let model = load_safetensors(model, &weights).unwrap();
    assert_eq!(model.parameter_count(), 272_474);

    let records = fs::read(shared.join("data/cifar10/test_exact_1017.bin")).unwrap();
    let records: Vec<&[u8]> = records.chunks_exact(3073).collect();
    let n = expected["n"].as_u64().unwrap() as usize;
    let (mut correct, mut cross_entropy, mut first) = (0u64, 0.0f64, Vec::new());
    for batch in records[..n].chunks(113) {
        let pixels: Vec<f32> =
            batch.iter().flat_map(|r| &r[1..]).map(|&p| f32::from(p) / 255.0).collect();
        let images = TensorData::new(pixels, [batch.len(), 3, 32, 32]);
        let logits: Tensor<2> = model.forward(Tensor::from_data(images, &device));
        let log_p = activation::log_softmax(logits.clone(), 1).try_into_vec_as::<f32>().unwrap();
        let logits = logits.try_into_vec_as::<f32>().unwrap();
        for (record, (logits, log_p)) in batch.iter().zip(logits.chunks(10).zip(log_p.chunks(10))) {
            let label = usize::from(record[0]);
            correct += u64::from(logits.iter().all(|&other| other <= logits[label]));
            cross_entropy -= f64::from(log_p[label]);
            if first.len() < 4 {
                first.push(logits.to_vec());
            }
        }
    }
    for (row, expected) in first.iter().zip(expected["logits0"].as_array().unwrap()) {
        for (logit, expected) in row.iter().zip(expected.as_array().unwrap()) {
            assert!((f64::from(*logit) - expected.as_f64().unwrap()).abs() < 1e-4, "{first:?}");
        }
    }
    assert_eq!(correct, expected["clean"][0].as_u64().unwrap());
    let mean = cross_entropy / n as f64;
    assert!((mean - expected["clean"][1].as_f64().unwrap()).abs() < 1e-5, "{mean}");
}
