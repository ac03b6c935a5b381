use crate::{curve::Formula, value::Value};

/// GELU in its tanh form, x s(2u), because (1 + tanh u)/2 = s(2u).
///
/// Beyond |x| = 40 the sigmoid is 0 or 1 in every precision.
pub(crate) struct GeluTanh;

/// 2 sqrt(2/pi) and the cubic coefficient of the approximation.
const SCALE: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044715;

/// 2u = x (c0 + c1 x^2) as a rounded number and what rounding lost: the exponential of the sigmoid
/// magnifies the relative error of 2u by 2u itself.
#[inline(always)]
fn argument<V: Value>(x: V) -> (V, V) {
    let (c0, c0_rest) = V::split(SCALE);
    let (c1, c1_rest) = V::split(SCALE * CUBIC);
    let (square, square_rest) = x.clone().product(x.clone());
    let (term, term_rest) = c1.clone().product(square.clone());
    // Where it matters the sum of twelve digits each is exact, in whatever order a compiler adds.
    let ((c0_high, c0_low), (term_high, term_low)) = (c0.digits(), term.digits());
    let sum = term_high + c0_high;
    let rest = term_low + (c0_low + c0_rest) + term_rest + c1 * square_rest + c1_rest * square;
    let (u2, u2_rest) = x.clone().product(sum);
    (u2, u2_rest + x * rest)
}

impl Formula for GeluTanh {
    #[inline(always)]
    fn value<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-40.0);
        let (u2, rest) = argument(x.clone().at_most(40.0));
        x.times_sigmoid(u2, Some(rest))
    }

    #[inline(always)]
    fn slope<V: Value>(x: V, _: [V; 2]) -> V {
        let x = x.at_least(-40.0).at_most(40.0);
        let square = x.clone() * x.clone();
        let u2 = x.clone() * (V::lit(SCALE) + V::lit(SCALE * CUBIC) * square.clone());
        let (s, complement) = u2.rough_sigmoid();
        let u2_slope = V::lit(SCALE) + V::lit(3.0 * SCALE * CUBIC) * square;
        (x * s.clone() * complement).fma(u2_slope, s)
    }

    /// At 0, where f'' = 2 sqrt(2/pi).
    fn curvature_bound(_: [f64; 2]) -> f64 {
        SCALE / 2.0
    }
}
