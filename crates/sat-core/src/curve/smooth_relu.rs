use crate::{curve::Formula, value::Value};

/// SmoothReLU, Xie et al. 2020: zero for x < 0 like ReLU, with a continuous derivative.
///
/// With t = a x and the bend B(t) = (t - ln(1+t))/t^2, f(x) = x t B(t). For small t, where x - ln(1+t)/a is
/// a difference of nearly equal numbers, that product is used: it does not divide by a, so the limit a -> 0
/// is finite.
pub(crate) struct SmoothRelu;

/// Up to here the bend is used, which is as far as it is right: the difference loses digits where it is small.
const SMALL: f64 = 0.999_999_8;
/// a x is held here, far above where the curve is a straight line, so that it never overflows.
const LARGE: f64 = 1e30;

/// x where positive, else zero; and t = a x.
#[inline(always)]
fn arguments<V: Value>(x: V, a: V) -> (V, V) {
    let positive = x.at_least(0.0);
    let t = (a * positive.clone()).at_most(LARGE);
    (positive, t)
}

impl Formula for SmoothRelu {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (x, t) = arguments(x, a.clone());
        let (log, bend) = t.clone().ln_1p_with_bend();
        let small = x.clone() * t.clone() * bend;
        // x - log/a cancels, so 1/a has more digits than one number.
        let inverse = (V::lit(1.0) / a.clone()).rounded();
        let (whole, rest) = a.product(inverse.clone());
        let low = ((V::lit(1.0) - whole) - rest) * inverse.clone();
        let large = x.minus_product(log, inverse, low);
        t.if_above(SMALL, large, small)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (_, t) = arguments(x, a);
        t.clone().over(V::lit(1.0) + t)
    }

    /// \[ln(1+t) - s\]/a^2 = x^2 \[1 - s - B(t)\] with the slope s = t/(1+t)
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        let (x, t) = arguments(x, a.clone());
        let slope = t.clone().over(V::lit(1.0) + t.clone());
        let (log, bend) = t.clone().ln_1p_with_bend();
        let small = x.clone() * (x * ((V::lit(1.0) - slope.clone()) - bend));
        let large = (log - slope) * (V::lit(1.0) / (a.clone() * a));
        [t.if_above(SMALL, large, small), V::lit(0.0)]
    }

    /// Right of 0.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        a
    }
}
