use crate::{curve::Formula, value::Value};

/// Squareplus.
pub(crate) struct Squareplus;

/// sqrt(x^2 + a), without x^2 where x alone decides.
#[inline(always)]
fn root<V: Value>(x: V, a: V) -> V {
    // a is at most 1e15.
    const LARGE: f64 = 1e15;
    let size = x.abs();
    let bounded = size.clone().at_most(LARGE);
    let root = (bounded.clone() * bounded + a).sqrt();
    (size.clone() - V::lit(LARGE)).if_positive(size, root)
}

impl Formula for Squareplus {
    /// For x <= 0 the sum (x + sqrt(x^2 + a))/2 cancels; there it is a/2 / (sqrt(x^2 + a) - x).
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        // Halves first: the sum overflows before its half does.
        let root = root(x.clone(), a.clone());
        let mean = V::lit(0.5) * root + V::lit(0.5) * x.clone().abs();
        let negative = V::lit(0.25) * a / mean.clone();
        x.if_positive(mean, negative)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        let root = root(x.clone(), a.clone());
        let size = x.clone().abs();
        // Two divisions, because the product of the denominators overflows before its reciprocal
        // vanishes.
        let small = (V::lit(0.5) * a / (root.clone() + size)) / root;
        x.if_positive(V::lit(1.0) - small.clone(), small)
    }

    /// df/da = 1/(4 sqrt(x^2 + a))
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        [V::lit(0.25) / root(x, a), V::lit(0.0)]
    }

    /// At 0.
    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        0.5 / a.sqrt()
    }
}
