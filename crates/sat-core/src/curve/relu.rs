use crate::{curve::Formula, value::Value};

/// ReLU.
pub(crate) struct Relu;

impl Formula for Relu {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        x.clone().if_nonpositive(V::lit(0.0), x)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        x.clone().if_nonpositive(V::lit(0.0), x.clone().if_positive(V::lit(1.0), x))
    }

    fn curvature_bound(_: [f64; 2]) -> f64 {
        f64::INFINITY
    }
}
