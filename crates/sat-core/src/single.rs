//! Single-precision functions, written once for CPU lanes and GPU vectors.
//!
//! Every function is a straight line of additions, multiplications, one division and selects: a loop
//! over it vectorises on a CPU, and on a GPU the result does not depend on the driver's own exponential,
//! which may be off by many units in the last place. The polynomial coefficients are our own minimax
//! fits; the error of the fit is stated beside each.

use crate::value::{ATANH_TAIL, Value};

/// A [`Value`] of `f32` arithmetic whose exponent can be taken apart.
pub(crate) trait Single: Value {
    /// An integer.
    type Exponent: Clone;
    /// The nearest integer to a number below 2^21 in size, as a number and as an exponent.
    fn nearest(self) -> (Self, Self::Exponent);
    /// The number of [`nearest`](Self::nearest) again, made anew from the exponent where a compiler
    /// would otherwise merge the two products of a sum n a + n b that stand apart for exactness.
    fn again(number: Self, k: Self::Exponent) -> Self;
    /// 2^(k + shift), for an exponent from -126 to 127.
    fn power(k: Self::Exponent, shift: i32) -> Self;
    /// 2^-k for -127 <= k <= 126.
    fn inverse_power(k: Self::Exponent) -> Self;
    /// The product as a rounded number and what rounding lost, for factors whose product is far from
    /// both ends of the range.
    fn exact_product(self, other: Self) -> (Self, Self);
    /// x = 2^k y for a positive normal x, with y in [1, 2); k also as a number.
    fn normalized(self) -> (Self::Exponent, Self, Self);
}

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

/// x = k ln 2 + r with |r| <= ln(2)/2; returns k and p = e^r - 1 (relative error 3e-9 + rounding).
#[inline(always)]
fn reduce<S: Single>(x: S) -> (S::Exponent, S) {
    let (number, k) = (x.clone() * S::lit(core::f64::consts::LOG2_E)).nearest();
    let r = number.clone().fma(S::lit(-LN2_HIGH), x);
    let r = S::again(number, k.clone()).fma(S::lit(-LN2_LOW), r);
    (k, exp_m1_near_0(r))
}

/// e^r - 1 for |r| <= ln(2)/2.
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
    let (k, p) = reduce(x.at_least(-120.0));
    let power = S::power(k, SHIFT);
    (p.fma(power.clone(), power), S::lit(TWO_TO_MINUS_SHIFT))
}

#[inline(always)]
pub(crate) fn exp_m1_nonpositive<S: Single>(x: S) -> S {
    let (k, p) = reduce(x.at_least(-80.0).at_most(0.0));
    let scale = S::power(k, 0);
    scale.clone().fma(p, scale - S::lit(1.0))
}

/// 1/(1 + e^-x) and e^-x/(1 + e^-x). Beyond 87 the smaller one stays at 1.6e-38.
#[inline(always)]
pub(crate) fn sigmoid<S: Single>(x: S) -> (S, S) {
    let (k, p) = reduce(-x.at_least(-87.0).at_most(87.0));
    let power = S::power(k, 0);
    let e = p.fma(power.clone(), power);
    let s = S::lit(1.0) / (S::lit(1.0) + e.clone());
    (s.clone(), e * s)
}

/// x/(1 + e^-(t + rest)), accurate to where it vanishes.
#[inline(always)]
pub(crate) fn times_sigmoid<S: Single>(x: S, t: S, rest: Option<S>) -> S {
    let (k, p) = reduce(-t.clone().at_least(-130.0).at_most(40.0));
    let p = match rest {
        None => p,
        Some(rest) => {
            // e^-rest - 1 to its third term
            let change = S::lit(0.5) * (rest.clone() * rest.clone()) - rest;
            change.fma(S::lit(1.0) + p.clone(), p)
        }
    };
    let power = S::power(k, -SHIFT);
    let sum = p.fma(power.clone(), power) + S::lit(TWO_TO_MINUS_SHIFT);
    let quotient = x.clone() / sum * S::lit(TWO_TO_MINUS_SHIFT);
    (t - S::lit(40.0)).if_positive(x, quotient)
}

#[inline(always)]
pub(crate) fn ln_1p_series<S: Single>(t: S) -> (S, S, S) {
    // 1 + t = 2^k (1 + f) with f in [0, 1): both terms of k ln 2 + ln(1+f) are positive, so none of
    // their digits cancel.
    let y = S::lit(1.0) + t.clone();
    let (exponent, k, fraction) = y.clone().normalized();
    // What rounding 1 + t lost, brought to the scale of the fraction; for k = 0, f = t is exact.
    let lost = S::lit(1.0) - (y - t.clone());
    let f = (fraction - S::lit(1.0)) + lost * S::inverse_power(exponent);
    let f = k.clone().if_nonpositive(t, f);
    let s = f.clone() / (S::lit(2.0) + f.clone());
    let square = s.clone() * s.clone();
    let tail = atanh_tail(square.clone());
    // ln(1+f) = 2 s + 2 s^3 P = f - s (f - 2 s^2 P)
    let log = (-s.clone()).fma(f.clone() - S::lit(2.0) * square * tail.clone(), f);
    let log = k.clone().fma(S::lit(LN2_LOW), log);
    (k.fma(S::lit(LN2_HIGH), log), s, tail)
}

#[inline(always)]
pub(crate) fn ln_1p_unit<S: Single>(u: S) -> S {
    // ln(1+u) = 2 atanh(s), s = u/(2+u) <= 1/3; written around u so that only the small correction is
    // rounded at its own scale: u - s (u - 2 s^2 P).
    let s = u.clone() / (S::lit(2.0) + u.clone());
    // For tiny u the tail vanishes beside u; without the bound s^2 would be a subnormal number, which
    // many machines are slow on.
    let bounded = s.clone().at_least(1e-15);
    let square = bounded.clone() * bounded;
    let tail = square.clone() * atanh_tail(square);
    (-s).fma(u.clone() - S::lit(2.0) * tail, u)
}

#[inline(always)]
pub(crate) fn atanh_tail<S: Single>(z: S) -> S {
    polynomial(z, ATANH_TAIL)
}

#[inline(always)]
pub(crate) fn normal_tail<S: Single>(x: S) -> S {
    // Beyond 15 the tail is below the smallest f32.
    let z = x.abs().at_most(15.0);
    // Phi(-z) = e^(L(u) - z^2/2) with u = z - C and L(u) = L0 + u P(u); C is chosen so that L0 is short.
    // Error of the fit of L: 1.2e-8 up to 5, small beside e^L up to 6.25, from where on L counts as
    // constant.
    const C: f64 = 1.491_281_509_399_414;
    const L0: f64 = -1.577_114_105_224_609_4;
    let u = z.clone().at_most(6.25) - S::lit(C);
    let bend = polynomial(
        u.clone(),
        [
            -0.439_984_17,
            0.075_136_78,
            -0.013_941_11,
            0.002_376_547_3,
            -3.359_462_4e-4,
            3.060_179_7e-5,
            1.530_073_6e-6,
            -1.453_583_3e-6,
            3.406_925_7e-7,
            -4.184_498_8e-8,
            2.203_311_8e-9,
        ],
    );
    // z^2 = square + rest exactly: the exponential magnifies the rounding of z^2 by z^2/2. What is left
    // of the exponent after the powers of two is summed so that the large numbers come first, without
    // rounding.
    let (square, rest) = z.clone().exact_product(z);
    let exponent = S::lit(-0.5) * square;
    let sum = u.clone().fma(bend.clone(), exponent.clone() + S::lit(L0));
    let (number, k) = (sum * S::lit(core::f64::consts::LOG2_E)).nearest();
    let r = number.clone().fma(S::lit(-LN2_HIGH), exponent) + S::lit(L0);
    let low = S::again(number, k.clone()).fma(S::lit(-LN2_LOW), S::lit(-0.5) * rest);
    let p = exp_m1_near_0(u.fma(bend, r + low));
    let power = S::power(k, SHIFT);
    p.fma(power.clone(), power) * S::lit(TWO_TO_MINUS_SHIFT)
}

#[inline(always)]
pub(crate) fn normal_tail_slope<S: Single>(x: S) -> S {
    // Phi(-z) - z phi(z) = e^(-z^2/2) H(z); absolute error of the fit 7e-8. Beyond 12 it stays at
    // -1e-31, where it is zero beside 1 and not subnormal.
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
    let (k, p) = reduce(S::lit(-0.5) * (z.clone() * z));
    let power = S::power(k, 0);
    p.fma(power.clone(), power) * h
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
            let in_range = product.clone().abs() - Self::lit(1e4);
            (product, in_range.if_nonpositive(rest, Self::lit(0.0)))
        }
        #[inline(always)]
        fn sigmoid(self) -> (Self, Self) {
            $crate::single::sigmoid(self)
        }
        #[inline(always)]
        fn times_sigmoid(self, t: Self, rest: Option<Self>) -> Self {
            $crate::single::times_sigmoid(self, t, rest)
        }
        #[inline(always)]
        fn ln_1p_series(self) -> (Self, Self, Self) {
            $crate::single::ln_1p_series(self)
        }
        #[inline(always)]
        fn ln_1p_unit(self) -> Self {
            $crate::single::ln_1p_unit(self)
        }
        #[inline(always)]
        fn atanh_tail(self) -> Self {
            $crate::single::atanh_tail(self)
        }
        #[inline(always)]
        fn normal_tail(self) -> Self {
            $crate::single::normal_tail(self)
        }
        #[inline(always)]
        fn normal_tail_slope(self) -> Self {
            $crate::single::normal_tail_slope(self)
        }
    };
}
pub(crate) use single_precision_functions;
