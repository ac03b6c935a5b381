use crate::{curve::Formula, value::Value};

/// SmoothReLU, Xie et al. 2020: zero for x < 0 like ReLU, with a continuous derivative.
///
/// With t = a x and s = t/(2+t), ln(1+t) = 2 atanh(s) = 2 s + 2 s^3 P(s^2). For small t the series
/// replaces the difference of nearly equal numbers, and no term divides by a, so the limit a -> 0 is
/// finite.
pub(crate) struct SmoothRelu;

/// Up to here the series is used.
const SMALL: f64 = 0.99;
/// a x is held here, far above where the curve is a straight line, so that it never overflows.
const LARGE: f64 = 1e30;

/// x where positive, else zero; and t = a x.
#[inline(always)]
fn arguments<V: Value>(x: V, a: V) -> (V, V) {
    let positive = x.clone().if_nonpositive(V::lit(0.0), x);
    let t = (a * positive.clone()).at_most(LARGE);
    (positive, t)
}

/// ln(1+t); and s and w = s (1-s) P for t up to [`SMALL`], where f(x) = x s (1 - w).
#[inline(always)]
fn series<V: Value>(t: V) -> (V, V, V) {
    let (log, s, tail) = t.ln_1p_series();
    (log, s.clone(), (s.clone() - s.clone() * s) * tail)
}

impl Formula for SmoothRelu {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (x, t) = arguments(x, a.clone());
        let (log, s, w) = series(t.clone());
        let small = x.clone() * (-w).fma(s.clone(), s);
        // x - log/a cancels, so 1/a has two parts and every product is rounded with its sum.
        let inverse = V::lit(1.0) / a.clone();
        let (whole, rest) = a.product(inverse.clone());
        let low = ((V::lit(1.0) - whole) - rest) * inverse.clone();
        let large = (-log.clone()).fma(low, (-log).fma(inverse, x));
        t.if_above(SMALL, large, small)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (_, t) = arguments(x, a);
        t.clone().over(V::lit(1.0) + t)
    }

    /// \[ln(1+t) - t/(1+t)\]/a^2, which is x^2 \[1/(1+t) - (1 - w)/(2+t)\] for small t, 1/(2+t) = (1 - s)/2.
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        let (x, t) = arguments(x, a.clone());
        let recip = V::lit(1.0).over(V::lit(1.0) + t.clone());
        let (log, s, w) = series(t.clone());
        let half = V::lit(0.5) - V::lit(0.5) * s;
        let small = x.clone() * (x * (recip.clone() - half * (V::lit(1.0) - w)));
        let large = (log - t.clone() * recip) * (V::lit(1.0) / (a.clone() * a));
        [t.if_above(SMALL, large, small), V::lit(0.0)]
    }

    /// Right of 0.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        a
    }
}
