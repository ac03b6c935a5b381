use crate::{curve::Formula, value::Value};

/// ReLU6.
pub(crate) struct Relu6;

impl Formula for Relu6 {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        x.clone().if_nonpositive(V::lit(0.0), x).at_most(6.0)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let inside = x.clone().if_positive(V::lit(1.0), x.clone());
        let below = (V::lit(6.0) - x.clone()).if_nonpositive(V::lit(0.0), inside);
        x.if_nonpositive(V::lit(0.0), below)
    }

    fn curvature_bound(_: [f64; 2]) -> f64 {
        f64::INFINITY
    }
}
