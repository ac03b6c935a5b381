//! Fused normalisation beside Burn's BatchNorm and Burn's activation on Flex.
//!
//! `cargo bench --bench norm` prints milliseconds and ratios, and the time in which a plain copy moves
//! the bytes that each pass has to move. Both sides run in the same process, in turns, with an
//! allocator that keeps pages. `-- --json FILE` writes the numbers, `-- --shape 64,64,32,32` sets the
//! shape. `benches/peers/norm.py` measures the same in PyTorch.

use burn::tensor::Device;
use clap::Parser;
use common::{
    copy_bandwidth, in_turns,
    norm::{ACTIVATIONS, Mode, Sum, burn_pass, our_pass},
    save_json,
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode, time::Duration};

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
    let device = Device::flex();
    for (curve, burns) in ACTIVATIONS {
        let activation = curve.name();
        for mode in [Mode::Training, Mode::Attack] {
            for sum in [Sum::None, Sum::Residual] {
                let [ours, burn] = in_turns(
                    budget,
                    [
                        &mut our_pass(&device, shape, curve, mode, sum),
                        &mut burn_pass(&device, shape, burns, mode, sum),
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
