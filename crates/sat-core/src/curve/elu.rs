use crate::{curve::Formula, value::Value};

/// ELU.
pub(crate) struct Elu;

impl Formula for Elu {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let negative = a * x.clone().exp_m1_nonpositive();
        x.clone().if_positive(x, negative)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let negative = a * x.clone().exp();
        x.if_positive(V::lit(1.0), negative)
    }

    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, _: [V; 2]) -> [V; 2] {
        [x.at_most(0.0).exp_m1_nonpositive(), V::lit(0.0)]
    }

    /// At 0 the derivative jumps from a to 1, unless a is 1.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        if a == 1.0 { 1.0 } else { f64::INFINITY }
    }
}
