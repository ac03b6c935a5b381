use crate::{curve::Formula, value::Value};

/// GELU in its tanh form, x s(2u), because (1 + tanh u)/2 = s(2u).
///
/// Beyond |x| = 40 the sigmoid is 0 or 1 in every precision.
pub(crate) struct GeluTanh;

/// 2 sqrt(2/pi) and the cubic coefficient of the approximation.
const SCALE: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044715;

impl Formula for GeluTanh {
    #[inline(always)]
    fn value<V: Value>(x: V, _: V) -> V {
        let x = x.at_least(-40.0);
        let bounded = x.clone().at_most(40.0);
        let square = bounded.clone() * bounded.clone();
        let u2 = bounded * (V::lit(SCALE) + V::lit(SCALE * CUBIC) * square);
        x * u2.sigmoid().0
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: V) -> V {
        let x = x.at_least(-40.0).at_most(40.0);
        let square = x.clone() * x.clone();
        let u2 = x.clone() * (V::lit(SCALE) + V::lit(SCALE * CUBIC) * square.clone());
        let (s, complement) = u2.sigmoid();
        let u2_slope = V::lit(SCALE) + V::lit(3.0 * SCALE * CUBIC) * square;
        s.clone() + x * s * complement * u2_slope
    }
}
