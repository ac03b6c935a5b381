//! How long networks take to predict, and what loading one costs.
//!
//! `cargo bench --bench models -- [--json FILE]`, beside `python benches/peers/models.py` and
//! `benches/peers/candle`. Weights and images come from a seed. With `--load FILE` it only loads a
//! ResNet-50 from that file and says what that took.
#![allow(clippy::unwrap_used, reason = "a bench panics when it cannot run")]

use burn::tensor::{Device, Tensor, TensorData};
use common::memory::peak_resident;
use sat::models::{Metadata, ModelName, save_safetensors};
use serde::Serialize;
use std::{env, fs, path::Path, process::Command, time::Instant};

mod common;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LOADED: ModelName = ModelName::ResNet50;

#[derive(Serialize)]
struct Row {
    network: ModelName,
    images: usize,
    milliseconds: f64,
}

/// The fastest of a few runs, in milliseconds. Reading the result waits for the device.
fn fastest(runs: usize, mut run: impl FnMut()) -> f64 {
    run();
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}

/// In a process of its own, so that its peak is that of loading.
fn load(path: &Path) {
    let before = peak_resident();
    let start = Instant::now();
    let model = LOADED.config().load(path, &Device::flex()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let file = fs::metadata(path).unwrap().len() as f64 / f64::from(1 << 20);
    print!("{LOADED}: {file:.1} MiB loaded in {seconds:.3} s");
    match (before, peak_resident()) {
        (Some(before), Some(after)) => {
            println!(
                ", {:.2} times the file in memory",
                (after - before) as f64 / f64::from(1 << 20) / file
            )
        }
        _ => println!(),
    }
    drop(model);
}

fn argument(name: &str) -> Option<String> {
    env::args().skip_while(|argument| argument != name).nth(1)
}

fn main() {
    common::keep_pages();
    if let Some(path) = argument("--load") {
        return load(Path::new(&path));
    }
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    save_safetensors(&LOADED.config().init(0, &device), &path, &Metadata::new()).unwrap();
    let this = env::current_exe().unwrap();
    assert!(Command::new(this).arg("--load").arg(&path).status().unwrap().success());

    println!("| network | images | forward ms |");
    println!("|---|---:|---:|");
    let mut rows = Vec::new();
    for name in [ModelName::ResNet50, ModelName::EfficientNetB0] {
        let model = name.config().init(0, &device);
        let [height, width] = name.image_size();
        for count in [1, 16] {
            let shape = [count, 3, height, width];
            let pixels = (0..shape.iter().product()).map(|i| (i * 7919 % 256) as f32 / 255.0);
            let data = TensorData::new(pixels.collect::<Vec<f32>>(), shape);
            let images = Tensor::<4>::from_data(data, &device);
            let milliseconds = fastest(if count == 1 { 20 } else { 5 }, || {
                model.forward(images.clone()).into_data();
            });
            println!("| {name} | {count} | {milliseconds:.1} |");
            rows.push(Row { network: name, images: count, milliseconds });
        }
    }
    if let Some(path) = argument("--json") {
        fs::write(path, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
}
