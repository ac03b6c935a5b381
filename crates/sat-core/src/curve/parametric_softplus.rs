use crate::{curve::Formula, value::Value};

/// Parametric softplus: softplus sharpened by a.
pub(crate) struct ParametricSoftplus;

impl Formula for ParametricSoftplus {
    #[inline(always)]
    fn value<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        // a |x| is not rounded before the exponential magnifies its error.
        let (product, rest) = (-a.clone()).product(x.clone().abs());
        let (e, scale) = product.clone().exp_factors();
        let e = e.clone() + e * rest;
        let inverse = V::lit(1.0) / a;
        let bend = (e.clone() * scale.clone()).ln_1p_unit() * inverse.clone();
        // Here ln(1 + e) is e, which may be subnormal where e/a is not.
        let end = e * inverse * scale;
        x.at_least(0.0) + product.if_above(-60.0, bend, end)
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, [a, _]: [V; 2]) -> V {
        (a * x).rough_sigmoid().0
    }

    /// With t = a x: \[x s(t) - f(x)\]/a = -\[|t| e/(1+e) + ln(1+e)\]/a^2, e = e^-|t|.
    #[inline(always)]
    fn parameter_slopes<V: Value>(x: V, [a, _]: [V; 2]) -> [V; 2] {
        // Beyond 800 the bend is zero in every precision; the bound keeps inf * 0 away.
        let t = (a.clone() * x).abs().at_most(800.0);
        let e = (-t.clone()).exp();
        let bend = t * e.clone().over(V::lit(1.0) + e.clone()) + e.ln_1p_unit();
        [-(bend / (a.clone() * a)), V::lit(0.0)]
    }

    fn curvature_bound([a, _]: [f64; 2]) -> f64 {
        a / 4.0
    }
}
