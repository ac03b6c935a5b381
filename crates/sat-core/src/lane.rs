//! Branch-free single-precision arithmetic that compilers turn into SIMD code.
//!
//! Every function is a straight line of additions, multiplications, one division and selects, so a
//! loop over it vectorises. The polynomial coefficients are our own minimax fits; the error of the
//! fit is stated beside each.

use crate::value::{FRAC_1_SQRT_2PI, Value};
use core::ops::{Add, Div, Mul, Neg, Sub};

/// An `f32` lane. `FMA` says whether the code it is compiled into may use fused multiply-add
/// instructions (without them, `f32::mul_add` is a slow library call).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Lane<const FMA: bool>(pub(crate) f32);

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl<const FMA: bool> $trait for Lane<FMA> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(self.0 $op other.0)
            }
        }
    };
}
operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

impl<const FMA: bool> Neg for Lane<FMA> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// c[0] + c[1] x + c[2] x^2 + ...
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    let mut n = N - 1;
    while n > 0 {
        n -= 1;
        sum = fma::<FMA>(sum, x, c[n]);
    }
    sum
}

/// 2^k for -126 <= k <= 127.
#[inline(always)]
fn pow2(k: i32) -> f32 {
    f32::from_bits(((k + 127) as u32) << 23)
}

/// Adding and subtracting 1.5 * 2^23 rounds to an integer, and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first of nine bits so that k * LN2_HIGH is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// x = k ln 2 + r with |r| <= ln(2)/2; returns k and p = e^r - 1 (relative error 3e-9 + rounding).
#[inline(always)]
fn reduce<const FMA: bool>(x: f32) -> (i32, f32) {
    let shifted = fma::<FMA>(x, core::f32::consts::LOG2_E, ROUND);
    let k = shifted - ROUND;
    let r = fma::<FMA>(k, -LN2_LOW, fma::<FMA>(k, -LN2_HIGH, x));
    let q = polynomial::<FMA, 6>(
        r,
        [0.5, 0.166_666_67, 0.041_666_467, 0.008_333_361, 0.001_393_360_4, 1.985_780_1e-4],
    );
    let bits = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    (bits, fma::<FMA>(r * r, q, r))
}

impl<const FMA: bool> Value for Lane<FMA> {
    #[inline(always)]
    fn lit(c: f64) -> Self {
        Self(c as f32)
    }

    #[inline(always)]
    fn split(c: f64) -> (Self, Self) {
        (Self(c as f32), Self((c - f64::from(c as f32)) as f32))
    }

    #[inline(always)]
    fn product(self, other: Self) -> (Self, Self) {
        let (x, y) = (self.0, other.0);
        let product = x * y;
        let rest = if FMA {
            x.mul_add(y, -product)
        } else {
            // Dekker: twelve bits each, so that the four products are exact.
            let high = |x: f32| f32::from_bits(x.to_bits() & 0xffff_f000);
            let (xh, yh) = (high(x), high(y));
            let (xl, yl) = (x - xh, y - yh);
            ((xh * yh - product) + (xh * yl + xl * yh)) + xl * yl
        };
        (Self(product), Self(if product.abs() < 1e4 { rest } else { 0.0 }))
    }

    #[inline(always)]
    fn exp(self) -> Self {
        let (e, scale) = self.exp_factors();
        e * scale
    }

    #[inline(always)]
    fn exp_factors(self) -> (Self, Self) {
        let (k, p) = reduce::<FMA>(self.at_least(-120.0).at_most(89.0).0);
        // Two factors also because 2^k alone leaves the range of normal numbers at both ends.
        let half = k >> 1;
        (Self((1.0 + p) * pow2(half)), Self(pow2(k - half)))
    }

    #[inline(always)]
    fn exp_m1_nonpositive(self) -> Self {
        let (k, p) = reduce::<FMA>(self.at_least(-80.0).at_most(0.0).0);
        let scale = pow2(k);
        Self(fma::<FMA>(scale, p, scale - 1.0))
    }

    #[inline(always)]
    fn ln_1p(self) -> Self {
        // 1 + u = 2^k (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1].
        const SQRT_HALF: u32 = 0x3f35_04f3;
        // A quarter of the largest f32 keeps the exponent arithmetic in range.
        let u = self.at_most(f32::MAX as f64 / 4.0).0;
        let y = 1.0 + u;
        let bits = y.to_bits().wrapping_add(0x3f80_0000 - SQRT_HALF);
        let k = (bits >> 23) as i32 - 127;
        let fraction = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF) - 1.0;
        // What rounding 1 + u lost, brought to the scale of f; for k = 0, f = u is exact.
        let lost = if u < 1.0 { u - (y - 1.0) } else { 1.0 - (y - u) };
        let f = if k == 0 { u } else { fraction + lost * pow2(-k) };
        let s = f / (2.0 + f);
        let tail = s * s * Self(s * s).atanh_tail().0;
        let k = k as f32;
        // ln(1+f) = 2 s + 2 s^3 P = f - s (f - 2 s^2 P)
        let log = fma::<FMA>(-s, f - 2.0 * tail, f);
        Self(fma::<FMA>(k, LN2_HIGH, fma::<FMA>(k, LN2_LOW, log))).keep_nan(self)
    }

    #[inline(always)]
    fn ln_1p_unit(self) -> Self {
        // ln(1+u) = 2 atanh(s), s = u/(2+u) <= 1/3; written around u so that only the small
        // correction is rounded at its own scale: u - s (u - 2 s^2 P).
        let u = self.0;
        let s = u / (2.0 + u);
        // For tiny u the tail vanishes beside u; without the bound s^2 would be a subnormal number,
        // which many machines are slow on.
        let bounded = Self(s).at_least(1e-15).0;
        let square = bounded * bounded;
        let tail = square * Self(square).atanh_tail().0;
        Self(fma::<FMA>(-s, u - 2.0 * tail, u))
    }

    #[inline(always)]
    fn atanh_tail(self) -> Self {
        // Relative error of the fit 1e-8 on [0, 1/9].
        Self(polynomial::<FMA, 5>(
            self.0,
            [0.333_333_34, 0.199_998_51, 0.142_962_5, 0.108_522_66, 0.116_167_82],
        ))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs())
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.sqrt())
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        // Beyond 15 the upper tail is below the smallest f32.
        let z = self.abs().at_most(15.0).0;
        // The upper tail Q(z) = e^(-z^2/2) G(t)/(z + 4), t = (z-4)/(z+4); relative error of the fit
        // 2e-8, the constant term in two parts. `scale` is 1/(z + 4) but for `lost_in_scale`.
        let sum = z + 4.0;
        let scale = 1.0 / sum;
        let lost = z - (sum - 4.0);
        let lost_in_scale = fma::<FMA>(-sum, scale, 1.0) - lost * scale;
        let t = (z - 4.0) * scale;
        let g = polynomial::<FMA, 10>(
            fma::<FMA>(t, lost_in_scale, t),
            [
                -7.417_338_7e-9,
                -0.607_896_57,
                0.387_136_9,
                -0.186_523_66,
                0.060_403_49,
                -0.007_524_003_3,
                -0.003_510_209_3,
                0.001_568_407_4,
                1.746_566_6e-4,
                -1.341_974_4e-4,
            ],
        );
        let g = 0.755_285_14 + g;
        // z^2 = square + rest exactly: e^(-z^2/2) magnifies the rounding of z^2 by z^2/2. All
        // corrections go into p before e^.. = 2^k (1 + p) is rounded.
        let (square, rest) = Self(z).product(Self(z));
        let (k, p) = reduce::<FMA>(-0.5 * square.0);
        let half = k >> 1;
        let (power, other_power) = (pow2(half), pow2(k - half));
        let of_exp = fma::<FMA>(-0.5 * rest.0, 1.0 + p, p);
        let of_tail = fma::<FMA>(lost_in_scale, 1.0 + of_exp, of_exp);
        let tail = fma::<FMA>(of_tail, g, g) * scale * power * other_power;
        let e = (1.0 + of_exp) * power * other_power;
        let cdf = if self.0 > 0.0 { 1.0 - tail } else { tail };
        (Self(cdf), Self(e * FRAC_1_SQRT_2PI as f32))
    }

    #[inline(always)]
    fn if_positive(self, then: Self, otherwise: Self) -> Self {
        if self.0 > 0.0 { then } else { otherwise }
    }

    #[inline(always)]
    fn if_nonpositive(self, then: Self, otherwise: Self) -> Self {
        if self.0 <= 0.0 { then } else { otherwise }
    }

    #[inline(always)]
    fn at_least(self, c: f64) -> Self {
        if self.0 < c as f32 { Self(c as f32) } else { self }
    }

    #[inline(always)]
    fn at_most(self, c: f64) -> Self {
        if self.0 > c as f32 { Self(c as f32) } else { self }
    }
}

impl<const FMA: bool> Lane<FMA> {
    /// The integer tricks in `ln_1p` turn a NaN into a number.
    #[inline(always)]
    fn keep_nan(self, input: Self) -> Self {
        if input.0.is_nan() { input } else { self }
    }
}
