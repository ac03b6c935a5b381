//! Our activations beside Burn's own operations on Flex: forward, and forward with backward.
//!
//! `cargo bench --bench activation` prints milliseconds and ratios, and the bandwidth of a plain copy
//! on the same machine, which is the floor: forward reads x and writes y; backward reads x and dy and
//! writes dx. It also prints the most memory that large tensors took beside the input. Both sides run
//! in the same process, in turns, with an allocator that keeps pages;
//! `-- --system-allocator` takes the system's instead, `-- --json FILE` writes the numbers, and
//! `-- --elements 1000000` runs one size. `-- --pytorch python` sets PyTorch beside them, with the Python that
//! has it: [`TURNS`] turns for each row, in each of which we, PyTorch and the copy run shortly after one
//! another, because the speed of memory changes by up to a factor of two within minutes on machines that are
//! shared. Milliseconds are the fastest of all turns, ratios the median of the turns' own.

use burn::{
    backend::Dispatch,
    tensor::{Device, Tensor, TensorData},
};
use clap::Parser;
use common::{
    Copies, Pair, Quartiles, in_turns, keep_pages,
    memory::{CountingAllocator, peak_over, use_system_allocator},
    pairs_of,
    peer::Peer,
    save_json,
};
use sat::core::{Curve, backend::ActivationBackend, tensor::activate};
use serde::Serialize;
use std::{fmt, hint::black_box, io, path::PathBuf, process::ExitCode, time::Duration};

mod common;

#[global_allocator]
static GLOBAL: CountingAllocator = CountingAllocator;

/// Rounds of one row.
const TURNS: u32 = 9;

/// Our activations beside Burn's.
#[derive(Parser, Debug)]
struct Arguments {
    /// Sizes to run.
    #[arg(long, value_delimiter = ',', default_values_t = [100_000, 1_000_000, 10_000_000],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    elements: Vec<usize>,
    /// Curves to run, by their names; all if none is given.
    #[arg(long, value_delimiter = ',')]
    curves: Vec<Curve>,
    /// Time for each measurement, all turns together.
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// Use the system's allocator for large tensors.
    #[arg(long)]
    system_allocator: bool,
    /// The Python that runs benches/peers/activation.py beside us.
    #[arg(long)]
    pytorch: Option<String>,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Row {
    activation: String,
    elements: usize,
    pass: String,
    /// Ours in turns with Burn's.
    ours_ms: f64,
    burn_ms: f64,
    burn_over_ours: Quartiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ms: Option<f64>,
    /// Ours again and again, as the peer's is measured, and the two passes from a gradient that is there
    /// already: Burn's `backward` makes a tensor of ones first, on one thread.
    alone_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_over_ours: Option<Quartiles>,
    /// The most memory in tensors beside the input, over the size of the input.
    ours_peak: f64,
    burn_peak: f64,
    /// What moves at least, over our time, over what a copy moves in its time.
    share_of_copy_bandwidth: Quartiles,
}

#[derive(Serialize)]
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
    match run(&arguments) {
        Ok(report) => save_json(arguments.json.as_deref(), &report),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<Report> {
    let pairs = pairs_of(&arguments.curves).map_err(io::Error::other)?;
    let turn = Duration::from_millis(arguments.milliseconds) / TURNS;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = |python: &String| Peer::start(python, "activation.py", threads);
    let mut peer = arguments.pytorch.as_ref().map(start).transpose()?;
    let mut report = Report {
        allocator: if arguments.system_allocator { "system" } else { "mimalloc" }.into(),
        threads,
        peer: peer.as_ref().map(|peer| peer.software.clone()),
        copy_gb_per_s: Vec::new(),
        rows: Vec::new(),
    };
    println!("Flex, f32, {threads} threads, allocator {}", report.allocator);
    if let Some(software) = &report.peer {
        println!("beside {software}");
    }
    for &n in &arguments.elements {
        println!("\n{n} elements\n");
        println!(
            "| activation | pass | ours ms | Burn ms | Burn/ours | alone ms | peer ms | peer/ours | quartiles | of copy | peak, ours | peak, Burn |"
        );
        println!("|---|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|");
        let mut copies = Copies::of(n);
        let mut best_copy = 0.0f64;
        for pair in &pairs {
            for pass in [Pass::Forward, Pass::Both] {
                let (row, copy) = measure(n, pair, pass, turn, &mut copies, peer.as_mut())?;
                best_copy = best_copy.max(copy);
                println!("{row}");
                report.rows.push(row);
            }
        }
        println!("\nA copy moves up to {best_copy:.1} GB/s (read and write counted).");
        report.copy_gb_per_s.push((n, best_copy));
    }
    Ok(report)
}

#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Both,
}

/// A row, and the bandwidth of the copies in its turns.
fn measure(
    n: usize,
    pair: &Pair,
    pass: Pass,
    turn: Duration,
    copies: &mut Copies,
    mut peer: Option<&mut Peer>,
) -> io::Result<(Row, f64)> {
    let (name, transfers) = match pass {
        Pass::Forward => ("forward", 2),
        Pass::Both => ("forward+backward", 5),
    };
    let activation = pair.curve.to_string();
    let question = format!("{activation} {n} {name} {}", turn.as_millis().max(1));
    let mut of_ours = pass_over(n, |x| activate(x, pair.curve), pass);
    let mut of_burn = pass_over(n, pair.burns, pass);
    let size = (n * size_of::<f32>()) as f64;
    let ours_peak = peak_over(&mut of_ours) as f64 / size;
    let burn_peak = peak_over(&mut of_burn) as f64 / size;
    let mut repeated: Box<dyn FnMut()> = match pass {
        Pass::Forward => Box::new(pass_over(n, |x| activate(x, pair.curve), pass)),
        Pass::Both => Box::new(both_passes(n, pair.curve)),
    };
    let [mut ours, mut burn, mut alone, mut peers] = [f64::INFINITY; 4];
    let [mut over_ours, mut ratios, mut shares] = [const { Vec::new() }; 3];
    let mut best_copy = 0.0f64;
    for _ in 0..TURNS {
        let [ours_now, burn_now] = in_turns(turn, [&mut of_ours, &mut of_burn]);
        (ours, burn) = (ours.min(ours_now), burn.min(burn_now));
        over_ours.push(burn_now / ours_now);
        let copy = copies.bandwidth(turn);
        let [alone_now, _] = in_turns(turn, [&mut repeated, &mut || {}]);
        alone = alone.min(alone_now);
        best_copy = best_copy.max(copy);
        shares.push(f64::from(transfers) * size / alone_now / 1e9 / copy);
        let answer = peer.as_mut().map(|peer| peer.ask(&question)).transpose()?.flatten();
        if let Some(ms) = answer {
            peers = peers.min(ms);
            ratios.push(ms / alone_now / 1e3);
        }
    }
    let row = Row {
        activation,
        elements: n,
        pass: name.into(),
        ours_ms: ours * 1e3,
        burn_ms: burn * 1e3,
        burn_over_ours: Quartiles::of(over_ours),
        peer_ms: peers.is_finite().then_some(peers),
        alone_ms: alone * 1e3,
        peer_over_ours: (!ratios.is_empty()).then(|| Quartiles::of(ratios)),
        share_of_copy_bandwidth: Quartiles::of(shares),
        ours_peak,
        burn_peak,
    };
    Ok((row, best_copy))
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer_ms = self.peer_ms.map(|ms| format!("{ms:.3}")).unwrap_or_default();
        let peer = self.peer_over_ours.map(|Quartiles { lower, median, upper }| {
            format!("{median:.2} | {lower:.2} {upper:.2}")
        });
        write!(
            f,
            "| {} | {} | {:.3} | {:.3} | {:.1} | {:.3} | {peer_ms} | {} | {:.0} % | {:.1} | {:.1} |",
            self.activation,
            self.pass,
            self.ours_ms,
            self.burn_ms,
            self.burn_over_ours.median,
            self.alone_ms,
            peer.unwrap_or_else(|| " | ".into()),
            100.0 * self.share_of_copy_bandwidth.median,
            self.ours_peak,
            self.burn_peak
        )
    }
}

fn input(n: usize) -> TensorData {
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 10_007) as f32 / 1000.0 - 5.0).collect();
    TensorData::new(values, [n])
}

/// One pass, with the input held elsewhere as a layer's input is, so the forward pass does not happen
/// in place. The backward pass starts from a tensor of ones, which Burn makes and which is counted in
/// the time of both sides, not in the bytes.
fn pass_over(n: usize, f: impl Fn(Tensor<1>) -> Tensor<1>, pass: Pass) -> impl FnMut() {
    let device = Device::flex();
    let x = Tensor::<1>::from_data(input(n), &device);
    move || match pass {
        Pass::Forward => _ = black_box(f(x.clone())),
        Pass::Both => {
            let leaf = x.clone().autodiff().require_grad();
            let mut grads = f(leaf.clone()).backward();
            black_box(leaf.grad_remove(&mut grads));
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
