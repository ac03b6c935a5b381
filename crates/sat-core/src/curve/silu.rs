use crate::{curve::Formula, value::Value};

/// SiLU.
pub(crate) struct Silu;

impl Formula for Silu {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        // Left of -800 the sigmoid is 0 in every precision; bounding x there keeps inf * 0 away.
        let x = x.at_least(-800.0);
        x.clone().times_sigmoid(x, None)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let [x, s, complement] = x.rough_sigmoid_with_x();
        (s.clone() * x).fma(complement, s)
    }

    /// At 0.
    fn curvature_bound(_: [f64; 2]) -> f64 {
        0.5
    }
}
