use crate::{curve::Formula, value::Value};

/// Softplus.
///
/// max(x, 0) + ln(1 + e^-|x|): the exponential never overflows and the logarithm's argument stays in
/// [1, 2], so both ends are exact.
pub(crate) struct Softplus;

impl Formula for Softplus {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        let bend = (-x.clone().abs()).exp().ln_1p_unit();
        x.at_least(0.0) + bend
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        x.rough_sigmoid().0
    }

    /// At 0.
    fn curvature_bound(_: [f64; 2]) -> f64 {
        0.25
    }
}
