//! Single-precision functions, written once for CPU lanes and GPU vectors.
//!
//! Every function is a straight line of additions, multiplications, at most one division and selects: a
//! loop over it vectorises on a CPU, and on a GPU the result does not depend on the driver's own
//! exponential, which may be off by many units in the last place. The polynomial coefficients are our
//! own minimax fits; the error of the fit is stated beside each.

use crate::value::{BEND, Value};

/// A [`Value`] of `f32` arithmetic whose exponent can be taken apart.
pub(crate) trait Single: Value {
    /// An integer.
    type Exponent: Clone;
    /// Whether [`fma`](Value::fma) rounds once.
    fn fuses(&self) -> bool;
    /// The nearest integer to a product below 2^21 in size, as a number and as an exponent. Of NaN and
    /// larger ones nothing is promised.
    fn nearest(self, factor: f64) -> (Self, Self::Exponent);
    /// The number of [`nearest`](Self::nearest) again, made anew from the exponent where a compiler
    /// would otherwise merge the two products of a sum n a + n b that stand apart for exactness.
    fn again(number: Self, k: Self::Exponent) -> Self;
    /// 2^(k + shift), for an exponent from -126 to 127. Of others nothing is promised.
    fn power(k: Self::Exponent, shift: i32) -> Self;
    /// self * 2^k for a result that is a normal number. Of NaN nothing is promised.
    fn scaled(self, k: Self::Exponent) -> Self {
        self * Self::power(k, 0)
    }
    /// 2^-k for -127 <= k <= 126.
    fn inverse_power(k: Self::Exponent) -> Self;
    /// A number of at least -1e38 as a term of a sum that is to be added as it is: a driver that may take out
    /// common factors and add terms in another order would put numbers together again from their digits.
    fn apart(self) -> Self {
        self
    }
    /// The product as a rounded number and what rounding lost, to 2^-33 of it, for factors whose product is
    /// far from both ends of the range.
    fn exact_product(self, other: Self) -> (Self, Self);
    /// k of x = 2^k y for a positive normal x, with y in [1, 2); also as a number.
    fn exponent(self) -> (Self::Exponent, Self);
}

/// Adding and subtracting 1.5 * 2^23 rounds to an integer, and leaves it in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// c[0] + c[1] x + c[2] x^2 + ...
#[inline(always)]
fn polynomial<S: Single, const N: usize>(x: S, c: [f64; N]) -> S {
    let mut sum = S::lit(c[N - 1]);
    let mut n = N - 1;
    while n > 0 {
        n -= 1;
        sum = sum.fma(x.clone(), S::lit(c[n]));
    }
    sum
}

/// ln 2 in two parts, the first of nine bits so that k * LN2_HIGH is exact.
const LN2_HIGH: f64 = 0.693_359_375;
const LN2_LOW: f64 = -2.121_944_4e-4;

/// x = k ln 2 + r with |r| <= ln(2)/2.
#[inline(always)]
fn reduce<S: Single>(x: S) -> (S::Exponent, S) {
    let (number, k) = x.clone().nearest(core::f64::consts::LOG2_E);
    let r = number.clone().fma(S::lit(-LN2_HIGH), x);
    let r = S::again(number, k.clone()).fma(S::lit(-LN2_LOW), r);
    (k, r)
}

/// e^r for |r| <= ln(2)/2 (relative error 4e-9 + rounding).
#[inline(always)]
fn exp_near_0<S: Single>(r: S) -> S {
    polynomial(
        r,
        [1.0, 1.0, 0.499_999_94, 0.166_665_21, 0.041_668_255, 0.008_368_662, 0.001_382_145_3],
    )
}

/// e^x = 2^k y to a relative error of 1.1e-7 + 2.8e-9 |x| + rounding: for what is added to a number near 1
/// or multiplied by one that vanishes.
#[inline(always)]
fn exp_roughly<S: Single>(x: S) -> (S::Exponent, S) {
    let (k, r) = if x.fuses() {
        // One step: the f32 number nearest to ln 2 is 2.8e-9 of it too large.
        let (number, k) = x.clone().nearest(core::f64::consts::LOG2_E);
        (k, number.fma(S::lit(-core::f64::consts::LN_2), x))
    } else {
        reduce(x)
    };
    let c = [1.0, 1.0, 0.499_992_31, 0.166_671_16, 0.041_890_33, 0.008_312_501];
    (k, polynomial(r, c))
}

/// e^r - 1 for |r| <= ln(2)/2 (relative error 3e-9 + rounding).
#[inline(always)]
fn exp_m1_near_0<S: Single>(r: S) -> S {
    let q = polynomial(
        r.clone(),
        [0.5, 0.166_666_67, 0.041_666_467, 0.008_333_361, 0.001_393_360_4, 1.985_780_1e-4],
    );
    (r.clone() * r.clone()).fma(q, r)
}

/// Powers of two are made this much larger or smaller and the result corrected by it, where 2^k alone
/// leaves the range of normal numbers.
const SHIFT: i32 = 64;
const TWO_TO_MINUS_SHIFT: f64 = 1.0 / (1u128 << SHIFT) as f64;

#[inline(always)]
pub(crate) fn exp_factors<S: Single>(x: S) -> (S, S) {
    let (k, r) = reduce(x.at_least(-120.0));
    (exp_near_0(r) * S::power(k, SHIFT), S::lit(TWO_TO_MINUS_SHIFT))
}

#[inline(always)]
pub(crate) fn exp_m1_nonpositive<S: Single>(x: S) -> S {
    let (k, r) = reduce(x.at_least(-80.0).at_most(0.0));
    let scale = S::power(k, 0);
    scale.clone().fma(exp_m1_near_0(r), scale - S::lit(1.0))
}

/// 1/(1 + e^-x) and e^-x/(1 + e^-x). Beyond 87 the smaller one stays at 1.6e-38.
#[inline(always)]
pub(crate) fn sigmoid<S: Single>(x: S) -> (S, S) {
    let (k, r) = reduce(-x.at_least(-87.0).at_most(87.0));
    shares(exp_near_0(r) * S::power(k, 0))
}

#[inline(always)]
pub(crate) fn rough_sigmoid<S: Single>(x: S) -> (S, S) {
    let (k, y) = exp_roughly(-x.at_least(-87.0).at_most(87.0));
    shares(y * S::power(k, 0))
}

#[inline(always)]
pub(crate) fn rough_sigmoid_with_x<S: Single>(x: S) -> [S; 3] {
    let x = x.at_least(-87.0).at_most(87.0);
    let (k, y) = exp_roughly(-x.clone());
    // A NaN may get lost here; x keeps it.
    let (s, complement) = shares(y.scaled(k));
    [x, s, complement]
}

/// 1/(1 + e) and e/(1 + e)
#[inline(always)]
fn shares<S: Single>(e: S) -> (S, S) {
    let s = S::lit(1.0).over(S::lit(1.0) + e.clone());
    (s.clone(), e * s)
}

/// x/(1 + e^-(t + rest)), accurate to where it vanishes.
#[inline(always)]
pub(crate) fn times_sigmoid<S: Single>(x: S, t: S, rest: Option<S>) -> S {
    // Where t is beyond 40 all this may be anything: x is chosen at the end.
    let (k, r) = reduce(-t.clone().at_least(-130.0));
    let e = exp_near_0(r);
    let e = match rest {
        None => e,
        Some(rest) => {
            // e^-rest - 1 to its third term
            let change = S::lit(0.5) * (rest.clone() * rest.clone()) - rest;
            change.fma(e.clone(), e)
        }
    };
    let sum = e.fma(S::power(k, -SHIFT), S::lit(TWO_TO_MINUS_SHIFT));
    let quotient = x.clone().over(sum) * S::lit(TWO_TO_MINUS_SHIFT);
    t.if_above(40.0, x, quotient)
}

#[inline(always)]
pub(crate) fn ln_1p_with_bend<S: Single>(t: S) -> (S, S) {
    // 1 + t = 2^k (1 + f) with f in [0, 1]: both terms of k ln 2 + ln(1+f) are positive, so none of their
    // digits cancel. f keeps the digits of t, not of the rounded sum; for k = 0 it is t.
    let (exponent, k) = (S::lit(1.0) + t.clone()).exponent();
    let scale = S::inverse_power(exponent);
    let f = t.fma(scale.clone(), scale - S::lit(1.0));
    let bend = polynomial(f.clone(), BEND);
    let log = (-(f.clone() * bend.clone())).fma(f.clone(), f);
    (k.fma(S::lit(core::f64::consts::LN_2), log), bend)
}

/// Relative error of the fit 5e-9.
#[inline(always)]
pub(crate) fn ln_1p_unit<S: Single>(u: S) -> S {
    let ratio = polynomial(
        u.clone(),
        [
            1.0,
            -0.499_999_3,
            0.333_304_64,
            -0.249_580_2,
            0.196_921_23,
            -0.153_449_92,
            0.106_614_25,
            -0.057_461_39,
            0.020_089_189,
            -0.003_291_299_6,
        ],
    );
    u * ratio
}

/// Left of -10 it stays at -7e-21.
#[inline(always)]
pub(crate) fn times_normal<S: Single>(x: S) -> S {
    let z = x.clone().abs().at_most(10.0);
    // Phi(-z) = e^-(z^2 + G)/2 with G = G0 + u P(u), u = z - C; C is chosen so that G0 is short. Error of
    // the fit of G: 3e-8 up to 4, 1.5e-7 up to 5, beyond which it may grow as fast as e^-z^2/2 falls.
    const C: f64 = 1.489_972_6;
    const G0: f64 = 3.153_076_171_875;
    let u = z.clone() - S::lit(C);
    let bend = polynomial(
        u.clone(),
        [
            0.880_361_85,
            -0.150_383_4,
            0.027_907_33,
            -0.004_757_002_5,
            6.720_255_5e-4,
            -6.140_466e-5,
            -2.875_253e-6,
            2.917_151e-6,
            -7.238_367e-7,
            9.643_067e-8,
            -5.589_708e-9,
        ],
    );
    // z^2 = square + rest: the exponential magnifies the rounding of z^2 by z^2/2.
    let (square, rest) = z.clone().exact_product(z.clone());
    // The whole exponent in powers of two, to 0.05 up to 5: near enough to take the integer from.
    let estimate = z.clone().fma(S::lit(-0.913_296), S::lit(-1.050_016_7));
    let (number, k) = square.clone().fma(S::lit(-0.642_706_2), estimate).nearest(1.0);
    // What is left of z^2 + G is summed so that the large numbers come first, unrounded where they are
    // large.
    let left = number.clone().fma(S::lit(2.0 * LN2_HIGH), square) + S::lit(G0);
    let low = S::again(number, k.clone()).fma(S::lit(2.0 * LN2_LOW), rest);
    // e^-h/2, to 7e-9 for |h| <= 0.8, which is all up to z = 5; positive up to 10.
    let e = polynomial(
        u.fma(bend, left + low),
        [
            1.0,
            -0.500_000_06,
            0.125_000_03,
            -0.020_832_675,
            0.002_603_962,
            -2.622_705_4e-4,
            2.199_886e-5,
        ],
    );
    (-z).fma(e.scaled(k), x.at_least(0.0))
}

#[inline(always)]
pub(crate) fn normal_tail_slope<S: Single>(x: S) -> S {
    // Phi(-z) - z phi(z) = e^(-z^2/2) H(z); absolute error of the product 7e-8. H counts as constant
    // beyond 6, so that its sign stays. Beyond 12 the product stays at -1e-31, where it is zero beside 1
    // and not subnormal.
    let z = x.abs().at_most(12.0);
    let h = polynomial(
        z.clone().at_most(6.0),
        [
            0.499_999_94,
            -0.797_878_8,
            0.249_916_79,
            -0.132_513_79,
            0.061_154_86,
            -0.024_313_9,
            0.007_939_369,
            -0.001_974_618_3,
            3.397_361e-4,
            -3.520_745_3e-5,
            1.631_670_8e-6,
        ],
    );
    let (k, y) = exp_roughly(S::lit(-0.5) * (z.clone() * z));
    y.scaled(k) * h
}

/// c - x (y + rest) for a c near x y, without fused multiply-add: Dekker 1971. The product of the high
/// digits is exact, what is left of it right to 2^-33 of the product.
#[inline(always)]
pub(crate) fn difference_to_product<S: Single>(c: S, x: S, y: S, rest: S) -> S {
    let ((x_high, x_low), (y_high, y_low)) = (x.clone().digits(), y.digits());
    (c - x_high * y_high.clone()).apart() - (x * (y_low + rest) + x_low * y_high)
}

/// The methods of [`Value`] that stand above.
macro_rules! single_precision_functions {
    () => {
        #[inline(always)]
        fn exp(self) -> Self {
            let (e, scale) = $crate::single::exp_factors(self);
            e * scale
        }
        #[inline(always)]
        fn exp_m1_nonpositive(self) -> Self {
            $crate::single::exp_m1_nonpositive(self)
        }
        #[inline(always)]
        fn product(self, other: Self) -> (Self, Self) {
            let (product, rest) = self.exact_product(other);
            let rest = product.clone().abs().if_at_most(1e4, rest, Self::lit(0.0));
            (product, rest)
        }
        #[inline(always)]
        fn minus_product(self, x: Self, y: Self, rest: Self) -> Self {
            if x.fuses() {
                return (-x.clone()).fma(rest, (-x).fma(y, self));
            }
            $crate::single::difference_to_product(self, x, y, rest)
        }
        #[inline(always)]
        fn sigmoid(self) -> (Self, Self) {
            $crate::single::sigmoid(self)
        }
        #[inline(always)]
        fn rough_sigmoid(self) -> (Self, Self) {
            $crate::single::rough_sigmoid(self)
        }
        #[inline(always)]
        fn rough_sigmoid_with_x(self) -> [Self; 3] {
            $crate::single::rough_sigmoid_with_x(self)
        }
        #[inline(always)]
        fn times_sigmoid(self, t: Self, rest: Option<Self>) -> Self {
            $crate::single::times_sigmoid(self, t, rest)
        }
        #[inline(always)]
        fn ln_1p_with_bend(self) -> (Self, Self) {
            $crate::single::ln_1p_with_bend(self)
        }
        #[inline(always)]
        fn ln_1p_unit(self) -> Self {
            $crate::single::ln_1p_unit(self)
        }
        #[inline(always)]
        fn times_normal(self) -> Self {
            $crate::single::times_normal(self)
        }
        #[inline(always)]
        fn normal_tail_slope(self) -> Self {
            $crate::single::normal_tail_slope(self)
        }
    };
}
pub(crate) use single_precision_functions;
