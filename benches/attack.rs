//! How long attacks take on a CIFAR ResNet-20, beside the passes they are made of.
//!
//! `cargo bench --bench attack` needs no data: weights and images come from a seed. `-- --json FILE` writes
//! the numbers.
#![allow(clippy::unwrap_used, reason = "a bench panics when it cannot run")]

use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use sat::{
    attack::{Attack, Ball, Goal, Pgd, ThreatModel, Victim, cross_entropy},
    models::ModelName,
};
use serde::Serialize;
use std::{
    hint::black_box,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

mod common;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Attacks beside the passes they are made of.
#[derive(Parser)]
struct Arguments {
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Passes {
    images: usize,
    forward_ms: f64,
    input_gradient_ms: f64,
    pgd20_ms: f64,
    pgd20_over_passes: f64,
}

#[derive(Serialize)]
struct Update {
    shape: String,
    ours_ms: f64,
    burn_ms: f64,
}

#[derive(Serialize)]
struct Report {
    passes: Vec<Passes>,
    updates: Vec<Update>,
}

/// The median of a few runs, in milliseconds. Reading the result waits for the device.
fn median(mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..7).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64() * 1e3
    });
    common::Quartiles::of(times).median
}

fn main() -> ExitCode {
    common::keep_pages();
    let arguments = Arguments::parse();
    let mut report = Report { passes: Vec::new(), updates: Vec::new() };
    let device = Device::flex();
    let model = ModelName::ResNet20.config().with_activation("silu".parse().unwrap());
    let victim = Victim::new(&model.init(0, &device));
    let threat = ThreatModel::linf(8.0 / 255.0);
    println!(
        "| images | forward ms | forward + input gradient ms | PGD-20 ms | PGD-20 / 20 passes |"
    );
    println!("|---:|---:|---:|---:|---:|");
    for count in [26, 52, 100] {
        let pixels = (0..count * 3072).map(|i| (i * 7919 % 256) as f32 / 255.0).collect();
        let data = TensorData::new::<f32, _>(pixels, [count, 3, 32, 32]);
        let images = Tensor::<4>::from_data(data, &device);
        let labels: Vec<usize> = (0..count).map(|i| i % 10).collect();
        let classes = Tensor::from_data(
            TensorData::new(labels.iter().map(|&l| l as i64).collect(), [count]),
            &device,
        );
        let forward = median(|| {
            victim.logits(images.clone()).unwrap().into_data();
        });
        let gradient = median(|| {
            let loss = |logits| Ok(cross_entropy(logits, classes.clone()));
            victim.input_gradient(images.clone(), loss).unwrap().1.into_data();
        });
        let pgd = median(|| {
            let goal = Goal::untargeted(labels.clone());
            let attack = Pgd::default().steps(20);
            attack.perturb(&victim, images.clone(), goal, &threat).unwrap().into_data();
        });
        let row = Passes {
            images: count,
            forward_ms: forward,
            input_gradient_ms: gradient,
            pgd20_ms: pgd,
            pgd20_over_passes: pgd / (20.0 * gradient),
        };
        println!(
            "| {count} | {forward:.1} | {gradient:.1} | {pgd:.0} | {:.3} |",
            row.pgd20_over_passes
        );
        report.passes.push(row);
    }
    println!();
    println!("| images | PGD's update ms | of Burn's operations ms |");
    println!("|---|---:|---:|");
    for shape in [[128, 3, 32, 32], [16, 3, 224, 224]] {
        report.updates.push(update(shape, &device));
    }
    common::save_json(arguments.json.as_deref(), &report)
}

/// One step in Linf and the way back into ball and bounds. Both get a gradient that nobody else holds.
fn update(shape: [usize; 4], device: &Device) -> Update {
    let count: usize = shape.iter().product();
    let number = |i: usize, factor: usize| (i * factor % 256) as f32 / 255.0;
    let tensor = |factor: usize, shift: f32| {
        let values: Vec<f32> = (0..count).map(|i| number(i, factor) - shift).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), device)
    };
    let (images, gradient) = (tensor(7919, 0.0), tensor(104_729, 0.5));
    let ball = Ball::new(images.clone(), &ThreatModel::linf(8.0 / 255.0)).unwrap();
    let size = Tensor::<4>::full([shape[0], 1, 1, 1], 2.0 / 255.0, device);
    let fresh = || gradient.clone() + 0.0;
    let mut ours = || {
        black_box(ball.step(images.clone(), fresh(), size.clone()));
    };
    let mut burns = || {
        black_box(ball.project(images.clone() + fresh().sign() * size.clone()));
    };
    let best = common::in_turns(Duration::from_secs(2), [&mut ours, &mut burns]);
    let copy =
        common::in_turns(Duration::from_secs(1), [&mut || _ = black_box(fresh()), &mut || ()]);
    let [ours, burns] = best.map(|seconds| (seconds - copy[0]) * 1e3);
    let shape = shape.map(|size| size.to_string()).join("x");
    println!("| {shape} | {ours:.3} | {burns:.3} |");
    Update { shape, ours_ms: ours, burn_ms: burns }
}
