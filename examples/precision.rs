//! Measures the error of every curve on every device of the build and prints the table of
//! docs/precision.md.
//!
//! ```text
//! cargo run --release --example precision -- --stride 257
//! cargo run --release --example precision --features wgpu -- --device wgpu --stride 4001
//! ```
//!
//! `--stride 1` takes all finite `f32` numbers: about an hour on Flex with two cores.

#[path = "../crates/sat-core/tests/common/precision.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests, which panic")]
mod precision;

use std::process::ExitCode;

use clap::Parser;
use precision::{Subnormals, curves, walk};
use sat::core::{Curve, device::DeviceName};

mod common;

/// Errors in units in the last place.
#[derive(Parser)]
struct Args {
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: DeviceName,
    /// Takes every so-manieth finite number.
    #[arg(long, default_value_t = 257, value_parser = clap::value_parser!(u32).range(1..))]
    stride: u32,
    /// Curves to measure, by their names; those of the table if none is given.
    #[arg(long, value_delimiter = ',')]
    curves: Vec<Curve>,
}

fn main() -> ExitCode {
    common::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let device = args.device.open()?;
    let subnormals = match args.device {
        DeviceName::Flex | DeviceName::NdArray | DeviceName::Cpu => Subnormals::Kept,
        _ => Subnormals::Flushed,
    };
    println!("{}, every {}. finite number of f32\n", args.device, args.stride);
    println!("| curve | value, ulp | at x | derivative, ulp of max(1, \\|f'\\|) | at x |");
    println!("|---|--:|--:|--:|--:|");
    let chosen = if args.curves.is_empty() { curves() } else { args.curves.clone() };
    for curve in chosen {
        let worst = walk(curve, &device, subnormals, args.stride);
        let tail = match worst.tail.0 {
            0.0 => String::new(),
            tail => format!("; {tail:.0e} absolute for x < -5"),
        };
        println!(
            "| {curve} | {:.2}{tail} | {:.3e} | {:.2} | {:.3e} |",
            worst.value.0, worst.value.1, worst.slope.0, worst.slope.1
        );
    }
    Ok(())
}
