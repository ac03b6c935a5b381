use crate::{curve::Formula, value::Value};

/// GELU in its exact form.
pub(crate) struct Gelu;

impl Formula for Gelu {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        x.times_normal()
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let below = x.clone().normal_tail_slope();
        x.if_positive(V::lit(1.0) - below.clone(), below)
    }

    /// f'' = (2 - x^2) phi(x), largest at 0.
    fn curvature_bound(_: [f64; 2]) -> f64 {
        2.0 * crate::value::FRAC_1_SQRT_2PI
    }
}
