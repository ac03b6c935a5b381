//! Convolution beside Burn's on Flex, for the layers of the networks that SAT trains.
//!
//! `cargo bench --bench conv` prints milliseconds and ratios for the forward pass, the gradient of the
//! input and the gradient of the weight, and what share of the machine's measured peak ours reach. Both
//! sides run in the same process, in turns, with an allocator that keeps pages. `-- --json FILE` writes
//! the numbers, `-- --only TEXT` takes the layers whose names contain it. `benches/peers/conv.py`
//! measures the same in PyTorch.

use burn::{
    module::Module,
    nn::{PaddingConfig2d, conv as burns},
    tensor::{Device, Tensor, TensorData},
};
use clap::Parser;
use common::{copy_bandwidth, in_turns, peak::peak, save_json};
use sat::core::Conv2d;
use serde::Serialize;
use std::{hint::black_box, path::PathBuf, process::ExitCode, time::Duration};

mod common;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Our convolution beside Burn's.
#[derive(Parser, Debug)]
struct Arguments {
    /// Time for each measurement, in milliseconds.
    #[arg(long, default_value_t = 300)]
    milliseconds: u64,
    /// The layers whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The names and sizes that `benches/peers/conv.py` has too: batch, channels in and out, image, kernel,
/// stride, groups.
const LAYERS: &[(&str, [usize; 7])] = &[
    ("resnet20 stem 3-16", [128, 3, 16, 32, 3, 1, 1]),
    ("resnet20 16x32", [128, 16, 16, 32, 3, 1, 1]),
    ("resnet20 32x16", [128, 32, 32, 16, 3, 1, 1]),
    ("resnet20 64x8", [128, 64, 64, 8, 3, 1, 1]),
    ("resnet20 16-32/2", [128, 16, 32, 32, 3, 2, 1]),
    ("resnet20 32-64/2", [128, 32, 64, 16, 3, 2, 1]),
    ("resnet20 16-32/2 1x1", [128, 16, 32, 32, 1, 2, 1]),
    ("resnet18 64x32", [64, 64, 64, 32, 3, 1, 1]),
    ("resnet18 128x16", [64, 128, 128, 16, 3, 1, 1]),
    ("resnet18 256x8", [64, 256, 256, 8, 3, 1, 1]),
    ("resnet18 512x4", [64, 512, 512, 4, 3, 1, 1]),
    ("resnet18 64-128/2", [64, 64, 128, 32, 3, 2, 1]),
    ("resnet18 256-512/2", [64, 256, 512, 8, 3, 2, 1]),
    ("resnet18 64-128/2 1x1", [64, 64, 128, 32, 1, 2, 1]),
    ("resnet50 stem 7x7/2", [16, 3, 64, 224, 7, 2, 1]),
    ("resnet50 64-256 1x1", [16, 64, 256, 56, 1, 1, 1]),
    ("resnet50 256-64 1x1", [16, 256, 64, 56, 1, 1, 1]),
    ("resnet50 64x56", [16, 64, 64, 56, 3, 1, 1]),
    ("resnet50 512-128 1x1", [16, 512, 128, 28, 1, 1, 1]),
    ("resnet50 128x28", [16, 128, 128, 28, 3, 1, 1]),
    ("resnet50 256x14", [16, 256, 256, 14, 3, 1, 1]),
    ("resnet50 512x7", [16, 512, 512, 7, 3, 1, 1]),
    ("resnet50 2048-512 1x1", [16, 2048, 512, 7, 1, 1, 1]),
    ("efficientnet 96x112 dw3/2", [16, 96, 96, 112, 3, 2, 96]),
    ("efficientnet 144x56 dw3", [16, 144, 144, 56, 3, 1, 144]),
    ("efficientnet 240x28 dw5", [16, 240, 240, 28, 5, 1, 240]),
    ("efficientnet 672x14 dw5", [16, 672, 672, 14, 5, 1, 672]),
    ("efficientnet 1152x7 dw5", [16, 1152, 1152, 7, 5, 1, 1152]),
    ("efficientnet 40-240 1x1", [16, 40, 240, 28, 1, 1, 1]),
    ("resnext 128x56 32 groups", [16, 128, 128, 56, 3, 1, 32]),
    ("resnext 1024x7 32 groups", [16, 1024, 1024, 7, 3, 1, 32]),
];

#[derive(Serialize)]
struct Row {
    layer: &'static str,
    pass: &'static str,
    gflop: f64,
    ours_ms: f64,
    burn_ms: f64,
    burn_over_ours: f64,
    ours_of_peak: f64,
}

#[derive(Serialize)]
struct Report {
    allocator: &'static str,
    threads: usize,
    /// Of dependent-free fused multiply-adds in registers, on all threads.
    peak_gflop_per_s: f64,
    /// A large copy, read and write counted.
    copy_gb_per_s: f64,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    common::keep_pages();
    let arguments = Arguments::parse();
    let budget = Duration::from_millis(arguments.milliseconds);
    let peak = peak();
    let mut report = Report {
        allocator: "mimalloc",
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        peak_gflop_per_s: peak / 1e9,
        copy_gb_per_s: copy_bandwidth(64 << 20, budget),
        rows: Vec::new(),
    };
    println!(
        "Flex, f32, {} threads; peak {:.0} GFLOP/s, a large copy moves {:.1} GB/s",
        report.threads, report.peak_gflop_per_s, report.copy_gb_per_s
    );
    println!(
        "| layer                      | pass | GFLOP | ours ms | Burn ms | Burn/ours | of peak |"
    );
    println!(
        "|----------------------------|------|------:|--------:|--------:|----------:|--------:|"
    );
    for &(layer, sizes) in LAYERS.iter().filter(|(name, _)| name.contains(&arguments.only)) {
        let [batch, inputs, outputs, image, kernel, stride, groups] = sizes;
        let grid = image.div_ceil(stride);
        let flop = 2.0
            * (batch * outputs * grid * grid) as f64
            * (inputs / groups * kernel * kernel) as f64;
        for (pass, gradient) in
            [("y", Gradient::None), ("y dx", Gradient::Input), ("y dw", Gradient::Weight)]
        {
            let burn = burn_layer(sizes);
            let ours = Conv2d::from(burn.clone());
            let [ours, burn] = in_turns(
                budget,
                [
                    &mut run(sizes, gradient, ours, |layer, x| layer.forward(x)),
                    &mut run(sizes, gradient, burn, |layer, x| layer.forward(x)),
                ],
            );
            let flop = if gradient == Gradient::None { flop } else { 2.0 * flop };
            let row = Row {
                layer,
                pass,
                gflop: flop / 1e9,
                ours_ms: ours * 1e3,
                burn_ms: burn * 1e3,
                burn_over_ours: burn / ours,
                ours_of_peak: flop / ours / peak,
            };
            println!(
                "| {layer:<26} | {pass:<4} | {:>5.2} | {:>7.2} | {:>7.2} | {:>8.2}x | {:>6.0}% |",
                row.gflop,
                row.ours_ms,
                row.burn_ms,
                row.burn_over_ours,
                100.0 * row.ours_of_peak,
            );
            report.rows.push(row);
        }
    }
    save_json(arguments.json.as_deref(), &report)
}

#[derive(Clone, Copy, PartialEq)]
enum Gradient {
    None,
    Input,
    Weight,
}

fn burn_layer([_, inputs, outputs, _, kernel, stride, groups]: [usize; 7]) -> burns::Conv2d {
    let pad = kernel / 2;
    burns::Conv2dConfig::new([inputs, outputs], [kernel; 2])
        .with_stride([stride; 2])
        .with_groups(groups)
        .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
        .with_bias(false)
        .init(&Device::flex().autodiff())
}

/// The forward pass, and with a gradient the backward pass from a tensor of ones.
fn run<M: Module>(
    [batch, inputs, _, image, ..]: [usize; 7],
    gradient: Gradient,
    layer: M,
    forward: impl Fn(&M, Tensor<4>) -> Tensor<4>,
) -> impl FnMut() {
    let layer = if gradient == Gradient::Weight { layer } else { layer.valid() };
    let n = batch * inputs * image * image;
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 10_007) as f32 / 1e4 - 0.5).collect();
    let x = Tensor::<4>::from_data(
        TensorData::new(values, [batch, inputs, image, image]),
        &Device::flex(),
    );
    move || match gradient {
        Gradient::None => {
            black_box(forward(&layer, x.clone()));
        }
        Gradient::Input => {
            let x = x.clone().autodiff().require_grad();
            let mut grads = forward(&layer, x.clone()).backward();
            black_box(x.grad_remove(&mut grads));
        }
        Gradient::Weight => {
            black_box(forward(&layer, x.clone().autodiff()).backward());
        }
    }
}
