//! Fused normalisation beside Burn's BatchNorm and Burn's activation on Flex.
//!
//! `cargo bench --bench norm` prints milliseconds and ratios, and the time in which a plain copy moves
//! the bytes that each pass has to move. Both sides run in the same process, in turns, with an
//! allocator that keeps pages. `-- --json FILE` writes the numbers, `-- --shape 64,64,32,32` sets the
//! shape. `benches/peers/norm.py` measures the same in PyTorch.

use burn::{
    module::Module,
    nn::BatchNormConfig,
    tensor::{Device, Tensor, TensorData, activation as burns},
};
use clap::Parser;
use common::{copy_bandwidth, in_turns, save_json};
use sat::core::{BatchNormActConfig, Curve};
use serde::Serialize;
use std::{hint::black_box, path::PathBuf, process::ExitCode, time::Duration};

mod common;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Our normalisation and activation beside Burn's.
#[derive(Parser, Debug)]
struct Arguments {
    /// Batch, channels, height and width.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 64, 32, 32])]
    shape: Vec<usize>,
    /// Time for each measurement.
    #[arg(long, default_value_t = 2000)]
    milliseconds: u64,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// Forward, and backward to the input, gamma and beta, with the statistics of the batch.
    Training,
    /// Forward, and backward to the input, with the running statistics: a step of an attack.
    Attack,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Sum {
    /// f(norm(x))
    None,
    /// f(norm(x) + residual)
    Residual,
}

impl Mode {
    /// How often an element is read or written at least, by the passes of one forward and backward.
    fn accesses(self, sum: Sum) -> usize {
        match (self, sum) {
            // Statistics x; forward x y; sums x dy; gradient x dy dx.
            (Mode::Training, Sum::None) => 1 + 2 + 2 + 3,
            // Statistics x; forward x r y; sums x r dy dz; gradient x dz dx.
            (Mode::Training, Sum::Residual) => 1 + 3 + 4 + 3,
            // Forward x y; gradient x dy dx.
            (Mode::Attack, Sum::None) => 2 + 3,
            // Forward x r y; gradient x r dy dx dr.
            (Mode::Attack, Sum::Residual) => 3 + 5,
        }
    }
}

#[derive(Serialize)]
struct Row {
    activation: &'static str,
    mode: Mode,
    sum: Sum,
    ours_ms: f64,
    burn_ms: f64,
    burn_over_ours: f64,
    /// The time in which a copy of one tensor moves the same bytes.
    floor_ms: f64,
}

#[derive(Serialize)]
struct Report {
    shape: [usize; 4],
    allocator: &'static str,
    threads: usize,
    /// A copy of one tensor, which the last-level cache may hold.
    copy_gb_per_s: f64,
    /// A copy eight times as large.
    large_copy_gb_per_s: f64,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    common::keep_pages();
    let arguments = Arguments::parse();
    let Ok(shape) = <[usize; 4]>::try_from(arguments.shape) else {
        eprintln!("error: `--shape` takes four numbers, as in 64,64,32,32");
        return ExitCode::FAILURE;
    };
    let n: usize = shape.iter().product();
    if n < 2 {
        eprintln!("error: `--shape` describes fewer than two values");
        return ExitCode::FAILURE;
    }
    let budget = Duration::from_millis(arguments.milliseconds);
    let copy = copy_bandwidth(n, budget);
    let large_copy = copy_bandwidth(8 * n, budget);
    let mut report = Report {
        shape,
        allocator: "mimalloc",
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        copy_gb_per_s: copy,
        large_copy_gb_per_s: large_copy,
        rows: Vec::new(),
    };
    println!(
        "Flex, f32, {shape:?}, {} threads; a copy of one tensor moves {copy:.1} GB/s (read and write \
         counted), of eight {large_copy:.1} GB/s",
        report.threads
    );
    println!("| activation | mode     | residual | ours ms | Burn ms | Burn/ours | floor ms |");
    println!("|------------|----------|----------|--------:|--------:|----------:|---------:|");
    for (activation, curve, burns) in [
        ("relu", Curve::Relu, burns::relu as fn(Tensor<4>) -> Tensor<4>),
        ("silu", Curve::Silu, burns::silu),
    ] {
        for mode in [Mode::Training, Mode::Attack] {
            for sum in [Sum::None, Sum::Residual] {
                let [ours, burn] = in_turns(
                    budget,
                    [
                        &mut our_pass(shape, curve, mode, sum),
                        &mut burn_pass(shape, burns, mode, sum),
                    ],
                );
                let bytes = (mode.accesses(sum) * n * size_of::<f32>()) as f64;
                let row = Row {
                    activation,
                    mode,
                    sum,
                    ours_ms: ours * 1e3,
                    burn_ms: burn * 1e3,
                    burn_over_ours: burn / ours,
                    floor_ms: bytes / copy / 1e6,
                };
                println!(
                    "| {activation:<10} | {:<8} | {:<8} | {:>7.2} | {:>7.2} | {:>8.2}x | {:>8.2} |",
                    if mode == Mode::Training { "training" } else { "attack" },
                    if sum == Sum::Residual { "yes" } else { "no" },
                    row.ours_ms,
                    row.burn_ms,
                    row.burn_over_ours,
                    row.floor_ms,
                );
                report.rows.push(row);
            }
        }
    }
    save_json(arguments.json.as_deref(), &report)
}

fn our_pass(shape: [usize; 4], curve: Curve, mode: Mode, sum: Sum) -> impl FnMut() {
    let layer =
        BatchNormActConfig::new(shape[1]).with_activation(curve).init(&Device::flex().autodiff());
    let layer = if mode == Mode::Training { layer } else { layer.valid() };
    pass(shape, sum, move |x, residual| match residual {
        None => layer.forward(x),
        Some(residual) => layer.forward_with_residual(x, residual),
    })
}

fn burn_pass(
    shape: [usize; 4],
    activation: fn(Tensor<4>) -> Tensor<4>,
    mode: Mode,
    sum: Sum,
) -> impl FnMut() {
    let layer = BatchNormConfig::new(shape[1]).init(&Device::flex().autodiff());
    let layer = if mode == Mode::Training { layer } else { layer.valid() };
    pass(shape, sum, move |x, residual| {
        let z = layer.forward(x);
        activation(match residual {
            None => z,
            Some(residual) => z + residual,
        })
    })
}

/// Forward and backward, from an input that is held elsewhere as a convolution's output is. The
/// gradient of y is the tensor of ones that Burn starts from: made in the time of both sides, and not
/// counted in the floor.
fn pass(
    shape: [usize; 4],
    sum: Sum,
    forward: impl Fn(Tensor<4>, Option<Tensor<4>>) -> Tensor<4>,
) -> impl FnMut() {
    let device = Device::flex();
    let values = |shift: usize| {
        let n = shape.iter().product();
        let values: Vec<f32> =
            (0..n).map(|i: usize| ((i + shift) * 7919 % 10_007) as f32 / 1000.0 - 5.0).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), &device)
    };
    let x = values(0);
    let residual = (sum == Sum::Residual).then(|| values(1));
    move || {
        let leaf = |t: &Tensor<4>| t.clone().autodiff().require_grad();
        let (x, residual) = (leaf(&x), residual.as_ref().map(leaf));
        let y = forward(x.clone(), residual.clone());
        let mut grads = y.backward();
        black_box(x.grad_remove(&mut grads));
        black_box(residual.and_then(|residual| residual.grad_remove(&mut grads)));
    }
}
