//! Our activations beside Burn's on any device of the build, alone and in a chain.
//!
//! ```text
//! cargo bench --bench device --features wgpu -- --device wgpu --elements 4194304
//! cargo bench --bench device --features wgpu,fusion -- --device wgpu --elements 4194304
//! ```
//!
//! The first command measures our kernels, the second what runs under Burn's fusion: activations by
//! themselves composed, normalisations by the kernels. `alone`
//! is the activation; `chain` is y = f(1.1 x + 0.1) 0.9, where a kernel of its own cuts the fused
//! block in two. Backward passes start from a tensor of ones. `of copy` is what an activation must move
//! over the time it takes, over the same for Burn's x + 1. Every measurement waits for the device.
//!
//! `norm` and `norm+residual` are BatchNormAct beside Burn's BatchNorm and activation, of f32 in NCHW
//! order, with the statistics of the batch (training) and with the running ones (attack).

use burn::tensor::{Device, FloatDType, Tensor};
use clap::{Parser, ValueEnum};
use common::{
    in_turns,
    norm::{ACTIVATIONS, Mode, Sum, burn_pass, our_pass},
    pairs_of, save_json,
};
use sat::core::{Curve, device::DeviceName, tensor::activate};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode, time::Duration};

mod common;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Our activations beside Burn's on a device.
#[derive(Parser)]
struct Arguments {
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: DeviceName,
    /// Size of the tensors.
    #[arg(long, default_value_t = 1 << 26,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    elements: usize,
    /// Batch, channels, height and width of what is normalised.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 64, 32, 32])]
    norm_shape: Vec<usize>,
    /// Type of the tensors, but for those that are normalised.
    #[arg(long, value_enum, default_value_t = Type::F32)]
    dtype: Type,
    /// Curves to run, by their names; all if none is given.
    #[arg(long, value_delimiter = ',')]
    curves: Vec<Curve>,
    /// Time for each measurement.
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// What the machine is called in the results.
    #[arg(long, default_value = "unnamed")]
    machine: String,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Type {
    F32,
    F16,
    Bf16,
}

impl Type {
    fn dtype(self) -> FloatDType {
        match self {
            Type::F32 => FloatDType::F32,
            Type::F16 => FloatDType::F16,
            Type::Bf16 => FloatDType::BF16,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::F16 | Type::Bf16 => 2,
        }
    }
}

#[derive(Serialize)]
struct Row {
    activation: String,
    work: &'static str,
    pass: &'static str,
    ours_ms: f64,
    burn_ms: f64,
    burn_over_ours: f64,
    share_of_copy_bandwidth: f64,
}

#[derive(Serialize)]
struct Report {
    machine: String,
    device: String,
    fusion: bool,
    elements: usize,
    dtype: Type,
    norm_shape: [usize; 4],
    copy_gb_per_s: f64,
    rows: Vec<Row>,
}

impl Report {
    fn add(&mut self, row: Row) {
        println!(
            "| {} | {} | {} | {:.3} | {:.3} | {:.2} | {:.0} % |",
            row.activation,
            row.work,
            row.pass,
            row.ours_ms,
            row.burn_ms,
            row.burn_over_ours,
            100.0 * row.share_of_copy_bandwidth
        );
        self.rows.push(row);
    }
}

fn main() -> ExitCode {
    common::keep_pages();
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let pairs = pairs_of(&arguments.curves)?;
    let wanted = |curve: &Curve| pairs.iter().any(|pair| pair.curve == *curve);
    let device = arguments.device.open()?;
    let dtype = arguments.dtype;
    if !device.supports_dtype(dtype.dtype()) {
        return Err(format!("{} has no {:?}", arguments.device, dtype.dtype()).into());
    }
    let norm_shape = <[usize; 4]>::try_from(arguments.norm_shape.clone())
        .ok()
        .filter(|shape| shape.iter().product::<usize>() >= 2)
        .ok_or("`--norm-shape` takes four numbers, as in 64,64,32,32, for two values or more")?;
    let budget = Duration::from_millis(arguments.milliseconds);
    let n = arguments.elements;
    let x = Tensor::<1>::random([n], burn::tensor::Distribution::Normal(0.0, 2.0), &device)
        .cast(dtype.dtype());
    device.sync()?;
    let copy = || {
        let y = x.clone() + 1.0;
        device.sync().expect("the device answers");
        drop(y);
    };
    let [first, second] = in_turns(budget, [&mut { copy }, &mut { copy }]);
    let copy_gb_per_s = (2 * n * dtype.bytes()) as f64 / first.min(second) / 1e9;
    let mut report = Report {
        machine: arguments.machine.clone(),
        device: arguments.device.to_string(),
        fusion: cfg!(feature = "fusion"),
        elements: n,
        dtype,
        norm_shape,
        copy_gb_per_s,
        rows: Vec::new(),
    };
    let fusion = if report.fusion { "with" } else { "without" };
    println!(
        "{}: {} {fusion} fusion, {n} elements of {:?}; x + 1 moves {copy_gb_per_s:.1} GB/s\n",
        report.machine,
        report.device,
        dtype.dtype()
    );
    println!("| activation | work | pass | ours ms | Burn ms | Burn/ours | of copy |");
    println!("|---|---|---|--:|--:|--:|--:|");
    for pair in &pairs {
        let ours = |x| activate(x, pair.curve);
        for work in [Work::Alone, Work::Chain] {
            for (pass, backward, moved) in [("forward", false, 2), ("forward+backward", true, 5)] {
                let [ours, burn] = in_turns(
                    budget,
                    [
                        &mut pass_over(&x, &device, ours, work, backward),
                        &mut pass_over(&x, &device, pair.burns, work, backward),
                    ],
                );
                let row = Row {
                    activation: pair.curve.to_string(),
                    work: work.name(),
                    pass,
                    ours_ms: ours * 1e3,
                    burn_ms: burn * 1e3,
                    burn_over_ours: burn / ours,
                    share_of_copy_bandwidth: (moved * n * dtype.bytes()) as f64
                        / ours
                        / 1e9
                        / copy_gb_per_s,
                };
                report.add(row);
            }
        }
    }
    let bytes = (norm_shape.iter().product::<usize>() * size_of::<f32>()) as f64;
    for (curve, burns) in ACTIVATIONS.into_iter().filter(|(curve, _)| wanted(curve)) {
        for mode in [Mode::Training, Mode::Attack] {
            for sum in [Sum::None, Sum::Residual] {
                let [ours, burn] = in_turns(
                    budget,
                    [
                        &mut our_pass(&device, norm_shape, curve, mode, sum),
                        &mut burn_pass(&device, norm_shape, burns, mode, sum),
                    ],
                );
                report.add(Row {
                    activation: curve.to_string(),
                    work: match sum {
                        Sum::None => "norm",
                        Sum::Residual => "norm+residual",
                    },
                    pass: match mode {
                        Mode::Training => "training, forward+backward",
                        Mode::Attack => "attack, forward+backward",
                    },
                    ours_ms: ours * 1e3,
                    burn_ms: burn * 1e3,
                    burn_over_ours: burn / ours,
                    share_of_copy_bandwidth: mode.accesses(sum) as f64 * bytes
                        / ours
                        / 1e9
                        / copy_gb_per_s,
                });
            }
        }
    }
    Ok(save_json(arguments.json.as_deref(), &report))
}

#[derive(Clone, Copy)]
enum Work {
    Alone,
    Chain,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Alone => "alone",
            Work::Chain => "chain",
        }
    }
}

fn pass_over(
    x: &Tensor<1>,
    device: &Device,
    f: impl Fn(Tensor<1>) -> Tensor<1>,
    work: Work,
    backward: bool,
) -> impl FnMut() {
    let (x, device) = (x.clone(), device.clone());
    let apply = move |x: Tensor<1>| match work {
        Work::Alone => f(x),
        Work::Chain => f(x * 1.1 + 0.1) * 0.9,
    };
    move || {
        let result = if backward {
            let leaf = x.clone().autodiff().require_grad();
            let mut grads = apply(leaf.clone()).backward();
            leaf.grad_remove(&mut grads)
        } else {
            Some(apply(x.clone()))
        };
        // The result lives until the device is done: else fusion could leave the work out.
        device.sync().expect("the device answers");
        drop(result);
    }
}
