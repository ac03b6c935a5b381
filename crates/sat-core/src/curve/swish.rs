use crate::{curve::Formula, value::Value};

/// Swish with a fixed a: SiLU sharpened by a.
pub(crate) struct Swish;

/// x where it can be multiplied with s(a x) or its complement: beyond |a x| = 800 both are 0 or 1 in
/// every precision, and the bound keeps inf * 0 away.
#[inline(always)]
pub(super) fn bounded<V: Value>(x: V, a: V) -> V {
    (a * x.clone()).abs().if_above(800.0, x.clone().one_or_nan(), x)
}

impl Formula for Swish {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (t, rest) = a.clone().product(x.clone());
        let bounded = bounded(x.clone(), a);
        // Where s is 1 the true x counts, where it is 0 the bounded one.
        t.clone().if_positive(x, bounded).times_sigmoid(t, Some(rest))
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (s, complement) = (a.clone() * x.clone()).rough_sigmoid();
        a.clone().fma(bounded(x, a) * s.clone() * complement, s)
    }

    /// df/da = x^2 s (1 - s)
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        let (s, complement) = (a.clone() * x.clone()).rough_sigmoid();
        let x = bounded(x, a);
        [(x.clone() * s) * (x * complement), V::lit(0.0)]
    }

    /// At 0.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        a / 2.0
    }
}
