//! Our activations beside Burn's own operations on Flex: forward, and forward with backward.
//!
//! `cargo bench --bench activation` prints milliseconds and ratios, and the bandwidth of a plain copy
//! on the same machine, which is the floor: forward reads x and writes y; backward reads x and dy and
//! writes dx. It also prints the most memory that large tensors took beside the input. Both sides run
//! in the same process, in turns, with an allocator that keeps pages;
//! `-- --system-allocator` takes the system's instead, `-- --json FILE` writes the numbers, and
//! `-- --elements 1000000` runs one size. `-- --peer FILE` sets PyTorch's times beside them, which
//! `python benches/peers/activation.py --json FILE` measures on the same machine. Where pages lie in
//! memory is luck, once for each process: `--peer` may be given several files, `--earlier FILE` names what
//! this bench wrote before, and of each side the fastest counts.

use burn::{
    backend::Dispatch,
    tensor::{Device, Tensor, TensorData},
};
use clap::Parser;
use common::{
    copy_bandwidth, in_turns, keep_pages,
    memory::{CountingAllocator, peak_over, use_system_allocator},
    pairs, read_json, save_json,
};
use sat::core::{ActivationBackend, Curve, tensor::activate};
use serde::{Deserialize, Serialize};
use std::{hint::black_box, path::PathBuf, process::ExitCode, time::Duration};

mod common;

#[global_allocator]
static GLOBAL: CountingAllocator = CountingAllocator;

/// Our activations beside Burn's.
#[derive(Parser, Debug)]
struct Arguments {
    /// Sizes to run.
    #[arg(long, value_delimiter = ',', default_values_t = [100_000, 1_000_000, 10_000_000],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    elements: Vec<usize>,
    /// Time for each measurement.
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// Use the system's allocator for large tensors.
    #[arg(long)]
    system_allocator: bool,
    /// Times of PyTorch on this machine, from benches/peers/activation.py; of several the fastest.
    #[arg(long)]
    peer: Vec<PathBuf>,
    /// What earlier runs on this machine wrote; the fastest counts.
    #[arg(long)]
    earlier: Vec<PathBuf>,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What benches/peers/activation.py wrote.
#[derive(Deserialize)]
struct Peer {
    software: String,
    threads: usize,
    rows: Vec<PeerRow>,
}

#[derive(Deserialize)]
struct PeerRow {
    activation: String,
    elements: usize,
    pass: String,
    ms: f64,
}

/// The fastest of the peer's runs.
fn of_peers(peers: &[Peer], activation: &str, elements: usize, pass: &str) -> Option<f64> {
    let rows = peers.iter().flat_map(|peer| &peer.rows);
    let matches = |row: &&PeerRow| {
        row.activation == activation && row.elements == elements && row.pass == pass
    };
    rows.filter(matches).map(|row| row.ms).min_by(f64::total_cmp)
}

#[derive(Serialize, Deserialize)]
struct Row {
    activation: String,
    elements: usize,
    pass: String,
    /// Ours in turns with Burn's.
    ours_ms: f64,
    burn_ms: f64,
    burn_over_ours: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ms: Option<f64>,
    /// Ours again and again, as the peer's is measured, and the two passes from a gradient that is there
    /// already: Burn's `backward` makes a tensor of ones first, on one thread.
    alone_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_over_ours: Option<f64>,
    /// The most memory in tensors beside the input, over the size of the input.
    ours_peak: f64,
    burn_peak: f64,
    /// What moves at least, over our time, over what a copy moves in its time.
    share_of_copy_bandwidth: f64,
}

#[derive(Serialize, Deserialize)]
struct Report {
    allocator: String,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    copy_gb_per_s: Vec<(usize, f64)>,
    rows: Vec<Row>,
}

fn main() -> ExitCode {
    if std::env::args_os().any(|argument| argument == "--system-allocator") {
        use_system_allocator();
    }
    keep_pages();
    let arguments = Arguments::parse();
    let budget = Duration::from_millis(arguments.milliseconds);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let peers = arguments.peer.iter().map(|path| read_json(path)).collect();
    let earlier = arguments.earlier.iter().map(|path| read_json(path)).collect();
    let (peers, earlier): (Vec<Peer>, Vec<Report>) = match (peers, earlier) {
        (Ok(peers), Ok(earlier)) => (peers, earlier),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("error: cannot read times: {error}");
            return ExitCode::FAILURE;
        }
    };
    let others = peers.iter().map(|peer| peer.threads);
    if let Some(other) =
        others.chain(earlier.iter().map(|report| report.threads)).find(|other| *other != threads)
    {
        eprintln!("error: a file's run had {other} threads, this bench runs {threads}");
        return ExitCode::FAILURE;
    }
    let mut report = Report {
        allocator: if arguments.system_allocator { "system" } else { "mimalloc" }.into(),
        threads,
        peer: peers.first().map(|peer| peer.software.clone()),
        copy_gb_per_s: Vec::new(),
        rows: Vec::new(),
    };
    println!("Flex, f32, {threads} threads, allocator {}", report.allocator);
    if let Some(software) = &report.peer {
        println!("beside {software}");
    }
    for &n in &arguments.elements {
        let copies = earlier.iter().flat_map(|report| &report.copy_gb_per_s);
        let copies = copies.filter(|(elements, _)| *elements == n).map(|(_, copy)| *copy);
        let copy = copies.fold(copy_bandwidth(n, budget), f64::max);
        report.copy_gb_per_s.push((n, copy));
        println!("\n{n} elements; a copy moves {copy:.1} GB/s (read and write counted)\n");
        println!(
            "| activation | pass | ours ms | Burn ms | Burn/ours | alone ms | peer ms | peer/ours | of copy | peak, ours | peak, Burn |"
        );
        println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
        for pair in pairs() {
            let ours = |x| activate(x, pair.curve);
            for (pass, backward, moved) in [("forward", false, 2), ("forward+backward", true, 5)] {
                let (mut of_ours, mut of_burn) =
                    (pass_over(n, ours, backward), pass_over(n, pair.burns, backward));
                let peaks = [peak_over(&mut of_ours), peak_over(&mut of_burn)];
                let [ours_peak, burn_peak] =
                    peaks.map(|peak| peak as f64 / (n * size_of::<f32>()) as f64);
                let [mut ours, mut burn] = in_turns(budget, [&mut of_ours, &mut of_burn]);
                let mut repeated: Box<dyn FnMut()> =
                    if backward { Box::new(both_passes(n, pair.curve)) } else { Box::new(of_ours) };
                let [mut alone, _] = in_turns(budget / 2, [&mut repeated, &mut || {}]);
                let activation = pair.curve.to_string();
                let same = |row: &&Row| {
                    row.activation == activation && row.elements == n && row.pass == pass
                };
                for row in earlier.iter().flat_map(|report| &report.rows).filter(same) {
                    ours = ours.min(row.ours_ms / 1e3);
                    burn = burn.min(row.burn_ms / 1e3);
                    alone = alone.min(row.alone_ms / 1e3);
                }
                let bytes = (moved * n * size_of::<f32>()) as f64;
                let peer_ms = of_peers(&peers, &activation, n, pass);
                let row = Row {
                    activation,
                    elements: n,
                    pass: pass.into(),
                    ours_ms: ours * 1e3,
                    burn_ms: burn * 1e3,
                    burn_over_ours: burn / ours,
                    peer_ms,
                    alone_ms: alone * 1e3,
                    peer_over_ours: peer_ms.map(|ms| ms / alone / 1e3),
                    share_of_copy_bandwidth: bytes / alone / 1e9 / copy,
                    ours_peak,
                    burn_peak,
                };
                let (peer_ms, peer_ratio) = match (row.peer_ms, row.peer_over_ours) {
                    (Some(ms), Some(ratio)) => (format!("{ms:.3}"), format!("{ratio:.2}")),
                    _ => Default::default(),
                };
                println!(
                    "| {} | {} | {:.3} | {:.3} | {:.1} | {:.3} | {peer_ms} | {peer_ratio} | {:.0} % | {:.1} | {:.1} |",
                    row.activation,
                    row.pass,
                    row.ours_ms,
                    row.burn_ms,
                    row.burn_over_ours,
                    row.alone_ms,
                    100.0 * row.share_of_copy_bandwidth,
                    row.ours_peak,
                    row.burn_peak
                );
                report.rows.push(row);
            }
        }
    }
    save_json(arguments.json.as_deref(), &report)
}

fn input(n: usize) -> TensorData {
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 10_007) as f32 / 1000.0 - 5.0).collect();
    TensorData::new(values, [n])
}

/// One pass, with the input held elsewhere as a layer's input is, so the forward pass does not happen
/// in place. The backward pass starts from a tensor of ones, which Burn makes and which is counted in
/// the time of both sides, not in the bytes.
fn pass_over(n: usize, f: impl Fn(Tensor<1>) -> Tensor<1>, backward: bool) -> impl FnMut() {
    let device = Device::flex();
    let x = Tensor::<1>::from_data(input(n), &device);
    move || {
        if backward {
            let leaf = x.clone().autodiff().require_grad();
            let mut grads = f(leaf.clone()).backward();
            black_box(leaf.grad_remove(&mut grads));
        } else {
            black_box(f(x.clone()));
        }
    }
}

/// Our two passes by themselves, from a gradient that somebody else holds, with no graph.
fn both_passes(n: usize, curve: Curve) -> impl FnMut() {
    let device = Device::flex();
    let x = Tensor::<1>::from_data(input(n), &device).into_dispatch();
    let ones = Tensor::<1>::ones([n], &device).into_dispatch();
    move || {
        black_box(Dispatch::activation(x.clone(), curve.into()));
        black_box(Dispatch::activation_backward(x.clone(), ones.clone(), curve));
    }
}
