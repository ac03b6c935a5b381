use crate::{curve::Formula, value::Value};

/// Squareplus.
pub(crate) struct Squareplus;

/// sqrt(x^2 + a) and its mean with |x|, without x^2 where x alone decides.
#[inline(always)]
fn root_and_mean<V: Value>(x: V, a: V) -> (V, V) {
    // a is at most 1e15.
    const LARGE: f64 = 1e15;
    let size = x.abs();
    let bounded = size.clone().at_most(LARGE);
    let root = (bounded.clone() * bounded.clone() + a).sqrt();
    let mean = V::lit(0.5) * (root.clone() + bounded);
    let unless_large = |value| size.clone().if_above(LARGE, size.clone(), value);
    (unless_large(root), unless_large(mean))
}

impl Formula for Squareplus {
    /// For x <= 0 the sum (x + sqrt(x^2 + a))/2 cancels; there it is a/4 / mean.
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (_, mean) = root_and_mean(x.clone(), a.clone());
        x.if_positive(mean.clone(), V::lit(0.25) * a / mean)
    }

    /// For x <= 0, a/4 / mean / sqrt(x^2 + a): two divisions, because the product of the denominators
    /// overflows before its reciprocal vanishes.
    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let (root, mean) = root_and_mean(x.clone(), a.clone());
        let small = (V::lit(0.25) * a / mean) / root;
        x.if_positive(V::lit(1.0) - small.clone(), small)
    }

    /// df/da = 1/(4 sqrt(x^2 + a))
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        [V::lit(0.25) / root_and_mean(x, a).0, V::lit(0.0)]
    }

    /// At 0.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        0.5 / a.sqrt()
    }
}
