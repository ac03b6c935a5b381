//! Single-precision arithmetic that compilers turn into SIMD code.

use crate::{
    single::{ROUND, Single, difference_to_product, exp_factors, single_precision_functions},
    value::Value,
};
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

impl<const FMA: bool> Single for Lane<FMA> {
    type Exponent = i32;

    #[inline(always)]
    fn fuses(&self) -> bool {
        FMA
    }

    #[inline(always)]
    fn nearest(self, factor: f64) -> (Self, i32) {
        let shifted = self.fma(Self::lit(factor), Self(ROUND)).0;
        (Self(shifted - ROUND), shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32)
    }

    #[inline(always)]
    fn again(number: Self, _: i32) -> Self {
        number
    }

    #[inline(always)]
    fn power(k: i32, shift: i32) -> Self {
        Self(f32::from_bits((k.wrapping_add(127 + shift) as u32) << 23))
    }

    // Added to the exponent: integer additions run beside the multiplications, which are what a loop
    // waits for.
    #[inline(always)]
    fn scaled(self, k: i32) -> Self {
        Self(f32::from_bits(self.0.to_bits().wrapping_add((k as u32) << 23)))
    }

    #[inline(always)]
    fn inverse_power(k: i32) -> Self {
        Self::power(-k, 0)
    }

    #[inline(always)]
    fn exact_product(self, other: Self) -> (Self, Self) {
        let (x, y) = (self.0, other.0);
        let product = x * y;
        let rest = if FMA {
            x.mul_add(y, -product)
        } else {
            -difference_to_product(Self(product), self, other, Self(0.0)).0
        };
        (Self(product), Self(rest))
    }

    #[inline(always)]
    fn exponent(self) -> (i32, Self) {
        let k = (self.0.to_bits() >> 23) as i32 - 127;
        (k, Self(k as f32))
    }
}

impl<const FMA: bool> Value for Lane<FMA> {
    single_precision_functions!();

    // For lanes alone: GPUs take subnormal numbers for zero, and a driver may multiply the factors in
    // another order.
    #[inline(always)]
    fn exp_factors(self) -> (Self, Self) {
        exp_factors(self)
    }

    #[inline(always)]
    fn fma(self, y: Self, c: Self) -> Self {
        Self(if FMA { self.0.mul_add(y.0, c.0) } else { self.0 * y.0 + c.0 })
    }

    #[inline(always)]
    fn lit(c: f64) -> Self {
        Self(c as f32)
    }

    #[inline(always)]
    fn split(c: f64) -> (Self, Self) {
        (Self(c as f32), Self((c - f64::from(c as f32)) as f32))
    }

    #[inline(always)]
    fn digits(self) -> (Self, Self) {
        let high = f32::from_bits(self.0.to_bits() & 0xffff_f000);
        (Self(high), Self(self.0 - high))
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
    fn if_above(self, c: f64, then: Self, otherwise: Self) -> Self {
        if self.0 > c as f32 { then } else { otherwise }
    }

    #[inline(always)]
    fn if_at_most(self, c: f64, then: Self, otherwise: Self) -> Self {
        if self.0 <= c as f32 { then } else { otherwise }
    }

    #[inline(always)]
    fn at_least(self, c: f64) -> Self {
        if self.0 < c as f32 { Self(c as f32) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::Lane;
    use crate::curve::{Curve, Formula, Visitor};

    /// In ulp, at a number.
    struct Errors(f32);
    impl Visitor for Errors {
        /// Of value and derivative, without and with fused multiply-add.
        type Output = [[f64; 2]; 2];
        fn visit<F: Formula>(self, parameters: [f64; 2]) -> Self::Output {
            fn errors<F: Formula, const FMA: bool>(x: f32, parameters: [f64; 2]) -> [f64; 2] {
                // A parameter counts as the f32 number nearest to it.
                let exact = parameters.map(|parameter| f64::from(parameter as f32));
                let lanes = parameters.map(|parameter| Lane::<FMA>(parameter as f32));
                let (value, slope) = (F::value(Lane(x), lanes).0, F::slope(Lane(x), lanes).0);
                let x = f64::from(x);
                let (f, df) = (F::value(x, exact), F::slope(x, exact));
                let ulp = |at: f64| {
                    let at = (at.abs() as f32).max(f32::MIN_POSITIVE);
                    f64::from(at.next_up() - at)
                };
                let error = |got: f32, want: f64, size: f64| {
                    assert!(got.is_finite(), "{got} at {x}");
                    (f64::from(got) - want).abs() / ulp(size)
                };
                [error(value, f, f), error(slope, df, 1.0f64.max(df.abs()))]
            }
            [errors::<F, false>(self.0, parameters), errors::<F, true>(self.0, parameters)]
        }
    }

    /// The machine that runs the other tests has fused multiply-add; not every machine has.
    #[test]
    fn curves_keep_the_promise_with_and_without_fused_multiply_add() {
        for &curve in Curve::ALL {
            // Further left GELU's forms are promised 1e-9, and shifted Swish comes near its zero.
            let (end, without) = match curve {
                Curve::Gelu => (-5.0, 5.0),
                Curve::GeluTanh => (-5.0, 4.0),
                Curve::ShiftedSwish(..) => (-15.0, 4.0),
                _ => (-20.0, 4.0),
            };
            let mut worst = [[0.0f64; 2]; 2];
            for i in 0..20_001 {
                let x = (i - 10_000) as f32 * 2.000_1e-3;
                if x < end {
                    continue;
                }
                let errors = curve.visit(Errors(x));
                for (worst, error) in worst.iter_mut().flatten().zip(errors.into_iter().flatten()) {
                    *worst = worst.max(error);
                }
            }
            for (worst, promised) in worst.into_iter().zip([without, 4.0]) {
                assert!(worst[0] <= promised && worst[1] <= 4.0, "{curve}: {worst:.2?}");
            }
        }
    }

    /// Every number around a x = 1, where the difference has lost most digits, and some on both sides.
    #[test]
    fn smooth_relu_keeps_the_promise_where_its_two_forms_meet() {
        for a in [0.7, 3.0, 20.0, 400.0] {
            let bits = |t: f64| ((t / a) as f32).to_bits();
            let near = bits(0.98)..bits(1.02);
            let numbers = near.chain((bits(0.6)..bits(5.0)).step_by(101));
            let errors = numbers.map(|x| Curve::SmoothRelu(a).visit(Errors(f32::from_bits(x))));
            let worst = errors.map(|[[plain, _], [fused, _]]| plain.max(fused)).fold(0.0, f64::max);
            assert!(worst <= 4.0, "a = {a}: {worst:.2}");
        }
    }
}
