use crate::{curve::Formula, value::Value};

/// GELU in its exact form.
///
/// The distribution function comes from its upper tail, so that x * Phi(x) keeps its relative
/// accuracy far into the negative side. Beyond |x| = 40 the tail is zero in every precision.
pub(crate) struct Gelu;

impl Formula for Gelu {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-40.0);
        let tail = x.clone().normal_tail();
        let above = (-x.clone().at_most(40.0)).fma(tail.clone(), x.clone());
        x.clone().if_positive(above, x * tail)
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
