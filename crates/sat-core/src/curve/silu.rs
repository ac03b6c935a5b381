use crate::{curve::Formula, value::Value};

/// SiLU.
///
/// Beyond |x| = 800 the sigmoid is 0 or 1 in every precision; bounding x there keeps inf * 0 away.
pub(crate) struct Silu;

impl Formula for Silu {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-800.0);
        x.clone().times_sigmoid(x, None)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-800.0).at_most(800.0);
        let (s, complement) = x.clone().sigmoid();
        s.clone() + s * x * complement
    }

    /// At 0.
    fn curvature_bound(_: [f64; 2]) -> f64 {
        0.5
    }
}
