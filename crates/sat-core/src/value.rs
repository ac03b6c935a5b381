//! What a formula may be evaluated on: plain floats, SIMD-friendly lanes and whole tensors.

use core::ops::{Add, Div, Mul, Neg, Sub};

/// A number, or a tensor of numbers, on which a curve's formula is written once.
///
/// The same generic formula serves four purposes: on `f64` it is the reference, on the crate's
/// branch-free `f32` lanes it is the body of the CPU loops, on values that record what is done to them
/// it writes the CubeCL kernels, and on tensor primitives it is the composed form of every other backend.
///
/// All comparisons let a NaN take the *otherwise* branch, so a formula propagates NaN by putting the
/// arithmetic there.
pub(crate) trait Value:
    Clone
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A constant.
    fn lit(c: f64) -> Self;
    /// A constant as a rounded number and what rounding lost; a zero where that does not matter.
    fn split(c: f64) -> (Self, Self) {
        (Self::lit(c), Self::lit(0.0))
    }
    /// A constant as the arithmetic will see it, rounded to its type; any other number as it is.
    fn rounded(self) -> Self {
        self
    }
    /// The number as a sum of two, the first of twelve digits, so that products of such are exact; the
    /// number and zero where that does not matter.
    fn digits(self) -> (Self, Self) {
        (self, Self::lit(0.0))
    }
    /// The product as a rounded number and what rounding lost; a zero where that does not matter, and
    /// for products beyond 1e4, which every formula cuts off.
    fn product(self, other: Self) -> (Self, Self) {
        (self * other, Self::lit(0.0))
    }
    /// e^x for x <= 0. Unspecified for positive x.
    fn exp(self) -> Self;
    /// e^x for x <= 0 as a product of two numbers, so that a third can be multiplied in before the
    /// product gets subnormal and loses digits.
    fn exp_factors(self) -> (Self, Self) {
        (self.exp(), Self::lit(1.0))
    }
    /// e^x - 1 for x <= 0, without cancellation near 0. Unspecified for positive x.
    fn exp_m1_nonpositive(self) -> Self;
    /// ln(1 + t) for t in [0, 1e30]; and its bend (t - ln(1 + t))/t^2, which is right for t <= 1 - 2^-23. Of
    /// NaN nothing is promised.
    fn ln_1p_with_bend(self) -> (Self, Self);
    /// ln(1 + u) for u in [0, 1]; right in each digit near 0.
    fn ln_1p_unit(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// The square root of x >= 0.
    fn sqrt(self) -> Self;
    /// x Phi(x) with the standard normal distribution function Phi.
    fn times_normal(self) -> Self;
    /// The derivative of x Phi(x) at -|x|: Phi(-|x|) - |x| phi(x), as a term of a sum with 1.
    fn normal_tail_slope(self) -> Self;
    /// x y + c, rounded once where the machine can.
    fn fma(self, y: Self, c: Self) -> Self {
        self * y + c
    }
    /// self - x (y + rest), for a small rest; the product with y is not rounded where that matters.
    fn minus_product(self, x: Self, y: Self, rest: Self) -> Self {
        self - x * (y + rest)
    }
    /// self / y for y from 2^-64 to 2^126, to 1 ulp if self and the quotient are finite and normal. Of
    /// -0 it may be 0.
    fn over(self, y: Self) -> Self {
        self / y
    }
    /// `then` where self > c, else `otherwise`.
    fn if_above(self, c: f64, then: Self, otherwise: Self) -> Self;
    /// `then` where self <= c, else `otherwise`.
    fn if_at_most(self, c: f64, then: Self, otherwise: Self) -> Self;
    /// max(x, c), keeping NaN.
    fn at_least(self, c: f64) -> Self;
    /// min(x, c), keeping NaN.
    #[inline(always)]
    fn at_most(self, c: f64) -> Self {
        self.clone().if_above(c, Self::lit(c), self)
    }

    /// `then` where self > 0, else `otherwise`.
    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        self.if_above(0.0, then, otherwise)
    }
    /// `then` where self <= 0, else `otherwise`.
    #[inline(always)]
    fn if_nonpositive(self, then: Self, otherwise: Self) -> Self {
        self.if_at_most(0.0, then, otherwise)
    }

    /// The logistic sigmoid and its complement, (s(x), 1 - s(x)). With e = e^-|x| both are 1/(1+e) and
    /// e/(1+e), so nothing overflows and nothing cancels.
    fn sigmoid(self) -> (Self, Self) {
        let e = (-self.clone().abs()).exp();
        let large = Self::lit(1.0).over(Self::lit(1.0) + e.clone());
        let small = e * large.clone();
        (self.clone().if_positive(large.clone(), small.clone()), self.if_positive(small, large))
    }

    /// [`sigmoid`](Value::sigmoid) for derivatives, whose error is measured beside 1: it may be off by a
    /// fraction of 1's last digit.
    fn rough_sigmoid(self) -> (Self, Self) {
        self.sigmoid()
    }

    /// x and its [`rough_sigmoid`](Value::rough_sigmoid), as factors of one product: x is held where the
    /// smaller of the two vanishes beside 1, which keeps inf * 0 away.
    fn rough_sigmoid_with_x(self) -> [Self; 3] {
        let x = self.at_least(-800.0).at_most(800.0);
        let (s, complement) = x.clone().rough_sigmoid();
        [x, s, complement]
    }

    /// self * s(t + rest), for a rest of at most 2^-8 that t leaves out; none where that does not
    /// matter.
    fn times_sigmoid(self, t: Self, _rest: Option<Self>) -> Self {
        self * t.sigmoid().0
    }

    /// 1 for every number, NaN for NaN.
    fn one_or_nan(self) -> Self {
        self.at_least(1.0).at_most(1.0)
    }
}

impl Value for f64 {
    fn lit(c: f64) -> Self {
        c
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn exp_m1_nonpositive(self) -> Self {
        f64::exp_m1(self)
    }
    fn ln_1p_with_bend(self) -> (Self, Self) {
        (self.ln_1p(), bend_series(self))
    }
    fn ln_1p_unit(self) -> Self {
        f64::ln_1p(self)
    }
    fn abs(self) -> Self {
        f64::abs(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn times_normal(self) -> Self {
        // From the upper tail, so that it keeps its relative accuracy far into the negative side.
        let z = self.abs().at_most(40.0);
        self.at_least(0.0) - z * normal_tail(z)
    }
    fn normal_tail_slope(self) -> Self {
        let z = self.abs().at_most(40.0);
        normal_tail(z) - z * (-0.5 * z * z).exp() * FRAC_1_SQRT_2PI
    }
    fn if_above(self, c: f64, then: Self, otherwise: Self) -> Self {
        if self > c { then } else { otherwise }
    }
    fn if_at_most(self, c: f64, then: Self, otherwise: Self) -> Self {
        if self <= c { then } else { otherwise }
    }
    fn at_least(self, c: f64) -> Self {
        if self < c { c } else { self }
    }
}

/// Phi(-z)
fn normal_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z * core::f64::consts::FRAC_1_SQRT_2)
}

/// 1/sqrt(2 pi)
pub(crate) const FRAC_1_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

/// (t - ln(1 + t))/t^2 = [1 - 2 s P(s^2)/(2 + t)]/(2 + t) for t in [0, 1], to the digits of `f64`, with
/// s = t/(2 + t) and P(z) = (atanh(s)/s - 1)/z = 1/3 + z/5 + z^2/7 + ...
pub(crate) fn bend_series<V: Value>(t: V) -> V {
    let inverse = V::lit(1.0) / (V::lit(2.0) + t.clone());
    let s = t * inverse.clone();
    let square = s.clone() * s.clone();
    // 18 terms: (1/9)^18 / 39 is below 2^-60.
    let term = |n: i32| V::lit(1.0 / f64::from(2 * n + 3));
    let tail = (0..17).rev().fold(term(17), |sum, n| sum * square.clone() + term(n));
    (V::lit(1.0) - V::lit(2.0) * s * tail * inverse.clone()) * inverse
}

/// The same as a polynomial of t, for `f32`: our own minimax fit, relative error 6.3e-8.
pub(crate) const BEND: [f64; 9] = [
    0.499_999_97,
    -0.333_328_66,
    0.249_870_23,
    -0.198_579_43,
    0.158_622_2,
    -0.115_923_956,
    0.067_111_9,
    -0.025_438_49,
    0.004_519_075_6,
];
