//! What the benches of activations share.

use burn::tensor::{Tensor, activation as burns};
use sat::core::Curve;
use std::time::{Duration, Instant};

/// The same function twice.
pub(crate) struct Pair {
    pub(crate) curve: Curve,
    pub(crate) burns: fn(Tensor<1>) -> Tensor<1>,
}

/// Burn's own function, or what a user would write where Burn has none.
pub(crate) fn pairs() -> Vec<Pair> {
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
