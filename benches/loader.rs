//! How fast photographs become batches of bytes, and what memory that takes.
//!
//! `cargo bench --bench loader -- --data imagenet/train`, where the folder holds `<class>/<file>.jpg`.
#![allow(clippy::unwrap_used, reason = "a bench panics when it cannot run")]

mod common;

use burn::tensor::Device;
use clap::Parser;
use sat::train::data::{EvaluateTransform, ImageFolder, LoaderConfig, TrainTransform, Transform};
use serde::Serialize;
use std::{
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(Parser)]
struct Arguments {
    /// A folder of photographs, `<class>/<file>.jpg`.
    #[arg(long)]
    data: PathBuf,
    /// Images a batch.
    #[arg(long, default_value_t = 256)]
    batch: usize,
    /// Height and width of the batches.
    #[arg(long, default_value_t = 224)]
    size: u32,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Row {
    transform: &'static str,
    threads: usize,
    images: usize,
    seconds: f64,
    images_per_second: f64,
    /// The most memory that the process has held so far, in MiB; Linux only.
    peak_mib: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// The peak while a batch is at work and the loader's queues are full.
    busy_peak_mib: Option<f64>,
}

fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let folder = ImageFolder::open(&arguments.data).unwrap();
    let train = TrainTransform { size: arguments.size, ..TrainTransform::default() };
    let transforms = [
        ("evaluate", Transform::Evaluate(EvaluateTransform::of_size(arguments.size))),
        ("train", Transform::Train(train.clone())),
    ];
    let cores = std::thread::available_parallelism().unwrap();
    println!("| transform | threads | images/s | peak memory of the process, MiB |");
    println!("|---|---:|---:|---:|");
    let mut rows = Vec::new();
    for (name, transform) in transforms {
        for threads in [NonZeroUsize::MIN, cores] {
            let config = LoaderConfig {
                batch_size: arguments.batch,
                threads: Some(threads),
                ..LoaderConfig::new(transform.clone())
            };
            let start = Instant::now();
            let loader = folder.loader(&folder.shuffled(0, 0), 0, &config).unwrap();
            let images: usize = loader.map(|batch| batch.unwrap().len()).sum();
            let seconds = start.elapsed().as_secs_f64();
            let row = Row {
                transform: name,
                threads: threads.get(),
                images,
                seconds,
                images_per_second: images as f64 / seconds,
                peak_mib: peak_mib(),
            };
            let peak = row.peak_mib.map_or("unknown".to_owned(), |mib| format!("{mib:.0}"));
            println!("| {name} | {threads} | {:.0} | {peak} |", row.images_per_second);
            rows.push(row);
        }
    }
    // A training step is slower than the loader: then its queues are full, one batch is at work and
    // on the device as floats.
    let config =
        LoaderConfig { batch_size: arguments.batch, ..LoaderConfig::new(Transform::Train(train)) };
    let mut loader = folder.loader(&folder.shuffled(0, 0), 0, &config).unwrap();
    let first = loader.next().unwrap().unwrap();
    let images = first.images(&Device::flex());
    std::thread::sleep(Duration::from_secs(5));
    let second = loader.next().unwrap().unwrap();
    let busy_peak_mib = peak_mib();
    println!(
        "\nwith full queues, {} images as floats and {} as bytes: {} MiB",
        images.dims()[0],
        second.len(),
        busy_peak_mib.map_or("unknown".to_owned(), |mib| format!("{mib:.0}"))
    );
    common::save_json(arguments.json.as_deref(), &Report { rows, busy_peak_mib })
}
