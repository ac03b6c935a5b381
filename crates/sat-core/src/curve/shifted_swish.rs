use super::swish::bounded;
use crate::{
    curve::{Curve, Formula},
    value::Value,
};
use core::ops::RangeInclusive;

/// Swish whose gate is shifted down by b, and scaled so that f(x) -> x for large x.
pub(crate) struct ShiftedSwish;

impl Formula for ShiftedSwish {
    /// x - x (1 - s)/(1 - b) for x > 0, where s may be 1; x (s - b)/(1 - b) for x <= 0. Next to the zero
    /// of s - b, left of 0, the error is relative to b x.
    #[inline(always)]
    fn value<V: Value>(x: V, [a, b]: [V; 2]) -> V {
        let t = a.clone() * x.clone();
        let (s, complement) = t.clone().sigmoid();
        let scale = V::lit(1.0) / (V::lit(1.0) - b.clone());
        let above = x.clone() - bounded(x.clone(), a) * complement * scale.clone();
        let below = x.clone() * ((s - b) * scale);
        t.if_positive(above, below)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, b]: [V; 2]) -> V {
        let (s, complement) = (a.clone() * x.clone()).rough_sigmoid();
        let scale = V::lit(1.0) / (V::lit(1.0) - b.clone());
        ((s.clone() - b) + a.clone() * (bounded(x, a) * s * complement)) * scale
    }

    /// df/da = x^2 s (1 - s)/(1 - b), df/db = -x (1 - s)/(1 - b)^2
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, b]: [V; 2]) -> [V; 2] {
        let t = a.clone() * x.clone();
        let (s, complement) = t.clone().rough_sigmoid();
        let bounded = bounded(x.clone(), a);
        let scale = V::lit(1.0) / (V::lit(1.0) - b);
        let by_a = (bounded.clone() * s) * (bounded.clone() * complement.clone());
        // Where the gate is closed 1 - s is 1 and the true x counts.
        let by_b = t.if_positive(bounded, x) * complement;
        [by_a * scale.clone(), -(by_b * (scale.clone() * scale))]
    }

    /// At 0.
    fn curvature_bound([a, b]: [f64; 2]) -> f64 {
        a / 2.0 / (1.0 - b)
    }

    fn allowed() -> [RangeInclusive<f64>; 2] {
        [Curve::PARAMETERS, *Curve::PARAMETERS.start()..=0.999]
    }
}
