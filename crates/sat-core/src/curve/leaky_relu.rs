use crate::{curve::Formula, value::Value};

/// Leaky ReLU.
pub(crate) struct LeakyRelu;

impl Formula for LeakyRelu {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        x.clone().if_positive(x.clone(), a * x)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        x.clone().if_positive(V::lit(1.0), x.clone().if_nonpositive(a, x))
    }

    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, _: [V; 2]) -> [V; 2] {
        [x.at_most(0.0), V::lit(0.0)]
    }

    fn curvature_bound(_: [f64; 2]) -> f64 {
        f64::INFINITY
    }
}
