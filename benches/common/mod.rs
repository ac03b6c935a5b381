//! What the benches share.

// Each bench uses a part of it.
#![allow(dead_code)]

pub(crate) mod memory;
pub(crate) mod norm;
pub(crate) mod peak;
pub(crate) mod peer;

use burn::tensor::{Tensor, activation as burns};
use sat::core::Curve;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs,
    hint::black_box,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

#[path = "../../examples/common/pages.rs"]
mod pages;
#[allow(unused_imports, reason = "each bench uses a part")]
pub(crate) use pages::keep_pages;

/// The same function twice.
pub(crate) struct Pair {
    pub(crate) curve: Curve,
    pub(crate) burns: fn(Tensor<1>) -> Tensor<1>,
}

/// The pairs of these curves; of all, if none is given.
pub(crate) fn pairs_of(curves: &[Curve]) -> Result<Vec<Pair>, String> {
    let all = pairs();
    if let Some(curve) = curves.iter().find(|curve| all.iter().all(|pair| pair.curve != **curve)) {
        return Err(format!("{curve} is no curve that Burn is compared in"));
    }
    Ok(all.into_iter().filter(|pair| curves.is_empty() || curves.contains(&pair.curve)).collect())
}

/// Burn's own function, or what a user would write where Burn has none.
fn pairs() -> Vec<Pair> {
    let burns = |curve| -> fn(Tensor<1>) -> Tensor<1> {
        match curve {
            Curve::Relu => burns::relu,
            Curve::Relu6 => |x| x.clamp(0.0, 6.0),
            Curve::LeakyRelu(_) => |x| burns::leaky_relu(x, 0.01),
            Curve::Softplus => |x| burns::softplus(x, 1.0),
            Curve::ParametricSoftplus(_) => |x| burns::softplus(x, 10.0),
            Curve::Silu => burns::silu,
            Curve::Gelu => burns::gelu,
            Curve::GeluTanh => burns::gelu_approximate,
            Curve::Mish => burns::mish,
            Curve::Elu(_) => |x| burns::elu(x, 1.0),
            Curve::Celu(_) => |x| burns::celu(x, 1.0),
            Curve::SmoothRelu(_) => |x| {
                let positive = burns::relu(x);
                positive.clone() - (positive * 400.0).log1p() / 400.0
            },
            Curve::Swish(_) => |x| x.clone() * burns::sigmoid(x * 1.0),
            Curve::ShiftedSwish(..) => {
                |x| x.clone() * (burns::sigmoid(x * 1.0) - 1e-8) / (1.0 - 1e-8)
            }
            Curve::Squareplus(_) => |x| (x.clone() + (x.clone() * x + 4.0).sqrt()) / 2.0,
            other => unreachable!("{other} has no counterpart here yet"),
        }
    };
    Curve::ALL.iter().map(|&curve| Pair { curve, burns: burns(curve) }).collect()
}

/// Seconds per call of each, the fastest of many, run in turns so that both meet the same machine.
pub(crate) fn in_turns(budget: Duration, mut runs: [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let mut best = [f64::INFINITY; 2];
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || started.elapsed() < budget {
        for (run, best) in runs.iter_mut().zip(&mut best) {
            let start = Instant::now();
            run();
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    best
}

/// The middle of many numbers, and where their middle half begins and ends.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quartiles {
    pub(crate) lower: f64,
    pub(crate) median: f64,
    pub(crate) upper: f64,
}

impl Quartiles {
    /// Of at least one number; between the two nearest where none stands at the place.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let [lower, median, upper] = [0.25, 0.5, 0.75].map(|share| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        });
        Self { lower, median, upper }
    }
}

/// Bytes read and written a second, in GB/s, by a parallel copy of n floats.
pub(crate) fn copy_bandwidth(n: usize, budget: Duration) -> f64 {
    Copies::of(n).bandwidth(budget)
}

/// A parallel copy of floats, again and again.
pub(crate) struct Copies {
    source: Vec<f32>,
    target: Vec<f32>,
}

impl Copies {
    pub(crate) fn of(n: usize) -> Self {
        let source = vec![1.0f32; n];
        // Written once, so that no fresh page is in the time.
        let target = source.clone();
        Self { source, target }
    }

    /// Bytes read and written a second, in GB/s.
    pub(crate) fn bandwidth(&mut self, budget: Duration) -> f64 {
        let n = self.source.len();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let chunk = n.div_ceil(threads);
        // Small ones several times, so that starting the threads does not count.
        let times = (1 << 24) / n.clamp(1, 1 << 24);
        let mut best = f64::INFINITY;
        let started = Instant::now();
        while best.is_infinite() || started.elapsed() < budget {
            let start = Instant::now();
            std::thread::scope(|scope| {
                let parts = self.source.chunks(chunk).zip(self.target.chunks_mut(chunk));
                for (source, target) in parts {
                    scope.spawn(move || {
                        for _ in 0..times {
                            black_box(&mut *target).copy_from_slice(black_box(source));
                        }
                    });
                }
            });
            best = best.min(start.elapsed().as_secs_f64() / times as f64);
        }
        (2 * n * size_of::<f32>()) as f64 / best / 1e9
    }
}

/// Reads what a bench or its peer wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Writes the numbers, if somewhere is given to write them to, and says how the process ends.
pub(crate) fn save_json(path: Option<&Path>, report: &impl Serialize) -> ExitCode {
    let Some(path) = path else { return ExitCode::SUCCESS };
    let written = serde_json::to_vec_pretty(report)
        .map_err(std::io::Error::other)
        .and_then(|text| fs::write(path, text));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
