use crate::{curve::Formula, value::Value};

/// Mish.
///
/// With e = e^-|x|, t = tanh(ln(1 + e^x)) is (1 + 2e)/(1 + 2e + 2e^2) for x > 0 and
/// e(e + 2)/(e(e + 2) + 2) for x <= 0: nothing overflows and nothing cancels. Beyond |x| = 800 it is 0
/// or 1 in every precision; bounding x there keeps inf * 0 away.
pub(crate) struct Mish;

impl Formula for Mish {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-800.0);
        let (e, scale) = (-x.clone().abs()).exp_factors();
        let whole = e.clone() * scale.clone();
        let two = || V::lit(2.0);
        let numerator = V::lit(1.0) + two() * whole.clone();
        let above = numerator.clone().over(numerator + two() * (whole.clone() * whole.clone()));
        // (e + 2)/(e(e + 2) + 2), written so that for small e the rounding is that of a correction.
        let correction = whole.clone() + whole.clone() * whole.clone();
        let below = V::lit(1.0) - correction.over(whole.clone() * (whole + two()) + two());
        let share = x.clone() * x.clone().if_positive(above, below);
        x.if_positive(share.clone(), share * e * scale)
    }

    /// f' = t + x (1 - t^2) s; with c = 1 - s and d = 1 + c^2, t = s (1 + c)/d and 1 - t = 2 c^2/d.
    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let [x, s, c] = x.rough_sigmoid_with_x();
        let square = c.clone() * c.clone();
        let scale = V::lit(1.0).over(V::lit(1.0) + square.clone());
        let t = s.clone() * (V::lit(1.0) + c) * scale.clone();
        let complement = V::lit(2.0) * (square * scale);
        (x * s * complement).fma(V::lit(1.0) + t.clone(), t)
    }

    /// Near -0.088.
    fn curvature_bound(_: [f64; 2]) -> f64 {
        0.644_21
    }
}
