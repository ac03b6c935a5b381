use crate::{curve::Formula, value::Value};

/// ELU.
pub(crate) struct Elu;

impl Formula for Elu {
    #[inline(always)]
    fn value<V: Value>(x: V, a: V) -> V {
        let negative = a * x.clone().at_most(0.0).exp_m1_nonpositive();
        x.clone().if_positive(x, negative)
    }

    /// The exponential sees min(x, 0): e^x overflows for x above 88.7 and would turn the branch that
    /// is not taken into inf * 0.
    #[inline(always)]
    fn slope<V: Value>(x: V, a: V) -> V {
        let negative = a * x.clone().at_most(0.0).exp();
        x.if_positive(V::lit(1.0), negative)
    }

    #[inline(always)]
    fn parameter_slope<V: Value>(x: V, _: V) -> V {
        x.at_most(0.0).exp_m1_nonpositive()
    }
}
