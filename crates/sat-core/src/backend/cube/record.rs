//! The formulas as CubeCL code.
//!
//! A kernel is written by running its body once on values that note down what is done to them. Here a
//! formula runs on such values, so one definition of a curve serves the CPU and every CubeCL runtime.

use crate::{
    curve::Formula,
    single::{ROUND, Single, difference_to_product, single_precision_functions},
    value::Value,
};
use burn_cubecl::cubecl::{self, ir::Scope, prelude::*};
use core::ops::{Add, Div, Mul, Neg, Sub};

type Numbers<N> = NativeExpand<Vector<f32, N>>;
/// Chooses between the last two by a comparison of the first two.
type Select<N> = fn(&Scope, Numbers<N>, Numbers<N>, Numbers<N>, Numbers<N>) -> Numbers<N>;

/// A vector of `f32` in a kernel that is being written, or a constant.
pub(super) enum Recorded<'a, N: Size> {
    Vector(&'a Scope, Numbers<N>),
    Constant(f64),
}
use Recorded::Constant;

impl<N: Size> Clone for Recorded<'_, N> {
    fn clone(&self) -> Self {
        match self {
            Recorded::Vector(scope, numbers) => Recorded::Vector(scope, copy(numbers)),
            Constant(c) => Constant(*c),
        }
    }
}

/// The same value: nothing here is ever assigned to.
fn copy<T: CubeType>(numbers: &NativeExpand<T>) -> NativeExpand<T> {
    numbers.clone_unchecked()
}

/// Steps of a kernel. Each becomes a function `expand` that notes the step down.
mod step {
    use super::*;

    macro_rules! steps {
        ($($name:ident($($x:ident: $type:ty),*) -> $output:ty $body:block)*) => {
            $(
                #[cube]
                pub(super) fn $name<N: Size>($($x: $type),*) -> $output $body
            )*
        };
    }
    type F<N> = Vector<f32, N>;
    type I<N> = Vector<i32, N>;

    steps! {
        add(x: F<N>, y: F<N>) -> F<N> { x + y }
        sub(x: F<N>, y: F<N>) -> F<N> { x - y }
        mul(x: F<N>, y: F<N>) -> F<N> { x * y }
        div(x: F<N>, y: F<N>) -> F<N> { x / y }
        neg(x: F<N>) -> F<N> { -x }
        absolute(x: F<N>) -> F<N> { x.abs() }
        square_root(x: F<N>) -> F<N> { x.sqrt() }
        // Half up, where `round` would leave halves to the driver.
        round_half_up(x: F<N>) -> F<N> { (x + Vector::new(0.5)).floor() }
        to_integer(x: F<N>) -> I<N> { Vector::cast_from(x) }
        // The integer that adding `ROUND` left in the low bits.
        without_round(x: F<N>) -> I<N> {
            let bits: Vector<i32, N> = Vector::reinterpret(x);
            let round = comptime![ROUND.to_bits() as i32];
            bits - Vector::new(round)
        }
        to_number(k: I<N>) -> F<N> { Vector::cast_from(k) }
        negative(k: I<N>) -> I<N> { -k }
        bits(x: F<N>) -> I<N> { Vector::reinterpret(x) }
        high(x: F<N>) -> F<N> {
            let bits: Vector<u32, N> = Vector::reinterpret(x);
            Vector::reinterpret(bits & Vector::new(0xffff_f000))
        }
        exponent(bits: I<N>) -> I<N> { (bits >> Vector::new(23)) - Vector::new(127) }
        // 1/y to 5.1 per cent: the exponent of a number is its logarithm, roughly.
        reciprocal_guess(y: F<N>) -> F<N> {
            let bits: Vector<u32, N> = Vector::reinterpret(y);
            Vector::reinterpret(Vector::new(0x7ef3_11c7) - bits)
        }
    }

    // Outside the macro above: what `cube` writes around a call needs the call's own hygiene.
    #[cube]
    pub(super) fn fused<N: Size>(x: F<N>, y: F<N>, c: F<N>) -> F<N> {
        fma(x, y, c)
    }

    #[cube]
    pub(super) fn if_greater<N: Size>(x: F<N>, y: F<N>, then: F<N>, otherwise: F<N>) -> F<N> {
        select_many(x.greater_than(&y), then, otherwise)
    }

    #[cube]
    pub(super) fn if_less_equal<N: Size>(x: F<N>, y: F<N>, then: F<N>, otherwise: F<N>) -> F<N> {
        select_many(x.less_equal(&y), then, otherwise)
    }

    #[cube]
    pub(super) fn power<N: Size>(k: I<N>, #[comptime] shift: i32) -> F<N> {
        let bias = comptime![127 + shift];
        Vector::reinterpret((k + Vector::new(bias)) << Vector::new(23))
    }

    #[cube]
    pub(super) fn constant<N: Size>(#[comptime] c: f32) -> Vector<f32, N> {
        Vector::new(c.runtime())
    }
}

impl<'a, N: Size> Recorded<'a, N> {
    pub(super) fn numbers(self, scope: &Scope) -> Numbers<N> {
        match self {
            Recorded::Vector(_, numbers) => numbers,
            Constant(c) => step::constant::expand::<N>(scope, c as f32),
        }
    }

    fn scope(&self) -> Option<&'a Scope> {
        match self {
            Recorded::Vector(scope, _) => Some(scope),
            Constant(_) => None,
        }
    }

    fn unary(self, step: fn(&Scope, Numbers<N>) -> Numbers<N>, constant: fn(f64) -> f64) -> Self {
        match self {
            Recorded::Vector(scope, x) => Recorded::Vector(scope, step(scope, x)),
            Constant(c) => Constant(constant(c)),
        }
    }

    fn binary(
        self,
        other: Self,
        step: fn(&Scope, Numbers<N>, Numbers<N>) -> Numbers<N>,
        constant: fn(f64, f64) -> f64,
    ) -> Self {
        match (self.scope().or(other.scope()), self, other) {
            (None, Constant(x), Constant(y)) => Constant(constant(x, y)),
            (Some(scope), x, y) => {
                Recorded::Vector(scope, step(scope, x.numbers(scope), y.numbers(scope)))
            }
            (None, ..) => unreachable!("a vector has a scope"),
        }
    }

    fn select(
        self,
        than: f64,
        step: Select<N>,
        constant: fn(f64, f64) -> bool,
        then: Self,
        otherwise: Self,
    ) -> Self {
        match self {
            Constant(c) if constant(c, than) => then,
            Constant(_) => otherwise,
            Recorded::Vector(scope, x) => {
                let than = Constant(than).numbers(scope);
                let (then, otherwise) = (then.numbers(scope), otherwise.numbers(scope));
                Recorded::Vector(scope, step(scope, x, than, then, otherwise))
            }
        }
    }

    /// Whether the kernel is for CUDA: nothing but products and sums is merged there, and a division or a
    /// rounding to integers costs as much as many multiplications.
    fn is_cuda(&self) -> bool {
        self.scope().is_some_and(|scope| {
            let state = scope.state();
            let properties = state.device_properties.as_ref();
            properties.is_some_and(|device| device.identity.fingerprint.starts_with("ptx"))
        })
    }

    /// A vector's scope and numbers; a constant where formulas never take one.
    fn vector(self) -> (&'a Scope, Numbers<N>) {
        match self {
            Recorded::Vector(scope, x) => (scope, x),
            Constant(_) => unreachable!("formulas take no constant apart"),
        }
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt, $($shortcut:pat => $value:expr),*) => {
        impl<N: Size> $trait for Recorded<'_, N> {
            type Output = Self;
            fn $method(self, other: Self) -> Self {
                match (self, other) {
                    $($shortcut => $value,)*
                    (x, y) => x.binary(y, step::$method::expand::<N>, |x, y| x $op y),
                }
            }
        }
    };
}
operator!(Add, add, +, (x, Constant(0.0)) | (Constant(0.0), x) => x);
operator!(Sub, sub, -, (x, Constant(0.0)) => x);
operator!(Mul, mul, *,
    (x, Constant(1.0)) | (Constant(1.0), x) => x,
    // What a formula adds for the sake of rounding and what is absent here.
    (_, Constant(0.0)) | (Constant(0.0), _) => Constant(0.0));
operator!(Div, div, /,);

impl<N: Size> Neg for Recorded<'_, N> {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(step::neg::expand::<N>, f64::neg)
    }
}

impl<'a, N: Size> Single for Recorded<'a, N> {
    type Exponent = (&'a Scope, NativeExponent<N>);

    fn fuses(&self) -> bool {
        self.is_cuda()
    }

    fn nearest(self, factor: f64) -> (Self, Self::Exponent) {
        if self.is_cuda() {
            let (scope, shifted) = self.fma(Constant(factor), Constant(ROUND.into())).vector();
            let k = (scope, NativeExponent(step::without_round::expand::<N>(scope, shifted)));
            return (Self::again(Constant(0.0), k.clone()), k);
        }
        let (scope, x) = (self * Constant(factor)).vector();
        let rounded = step::round_half_up::expand::<N>(scope, x);
        let k = step::to_integer::expand::<N>(scope, copy(&rounded));
        (Recorded::Vector(scope, rounded), (scope, NativeExponent(k)))
    }

    fn again(_: Self, (scope, k): Self::Exponent) -> Self {
        Recorded::Vector(scope, step::to_number::expand::<N>(scope, k.0))
    }

    fn power((scope, k): Self::Exponent, shift: i32) -> Self {
        Recorded::Vector(scope, step::power::expand::<N>(scope, k.0, shift))
    }

    fn inverse_power((scope, k): Self::Exponent) -> Self {
        let k = step::negative::expand::<N>(scope, k.0);
        Self::power((scope, NativeExponent(k)), 0)
    }

    fn apart(self) -> Self {
        // CUDA's compiler merges products and sums and leaves the rest as it is. No driver looks through a
        // comparison.
        if self.is_cuda() { self } else { self.at_least(-1e38) }
    }

    fn exact_product(self, other: Self) -> (Self, Self) {
        let product = self.clone() * other.clone();
        if product.is_cuda() {
            // Not a product, which compilers draw unrounded into the sums it is a term of.
            let product = self.clone().fma(other.clone(), Constant(-0.0));
            return (product.clone(), self.fma(other, -product));
        }
        // A fused multiply-add is not fused on every driver.
        let rest = difference_to_product(product.clone(), self, other, Constant(0.0));
        (product, -rest)
    }

    fn exponent(self) -> (Self::Exponent, Self) {
        let (scope, x) = self.vector();
        let bits = step::bits::expand::<N>(scope, x);
        let k = step::exponent::expand::<N>(scope, bits);
        let number = step::to_number::expand::<N>(scope, copy(&k));
        ((scope, NativeExponent(k)), Recorded::Vector(scope, number))
    }
}

pub(super) struct NativeExponent<N: Size>(NativeExpand<Vector<i32, N>>);

impl<N: Size> Clone for NativeExponent<N> {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

impl<N: Size> Value for Recorded<'_, N> {
    single_precision_functions!();

    fn lit(c: f64) -> Self {
        Constant(c)
    }
    fn fma(self, y: Self, c: Self) -> Self {
        let Some(scope) = self.scope().or(y.scope()).or(c.scope()) else {
            return self * y + c;
        };
        let (x, y, c) = (self.numbers(scope), y.numbers(scope), c.numbers(scope));
        Recorded::Vector(scope, step::fused::expand::<N>(scope, x, y, c))
    }
    fn over(self, y: Self) -> Self {
        let Recorded::Vector(scope, numbers) = &y else {
            return self / y;
        };
        if !y.is_cuda() {
            return self / y;
        }
        let guess =
            Recorded::Vector(scope, step::reciprocal_guess::expand::<N>(scope, copy(numbers)));
        // The guess times (1 + e)(1 + e^2) is off by e^4, 7e-6, and the quotient by that squared.
        let e = (-y.clone()).fma(guess.clone(), Constant(1.0));
        let r = guess.clone().fma(e.clone(), guess);
        let r = r.clone().fma(e.clone() * e, r);
        let quotient = self.clone() * r.clone();
        let rest = (-y).fma(quotient.clone(), self);
        rest.fma(r, quotient)
    }
    fn split(c: f64) -> (Self, Self) {
        (Constant(f64::from(c as f32)), Constant(c - f64::from(c as f32)))
    }
    fn rounded(self) -> Self {
        match self {
            Constant(c) => Constant(f64::from(c as f32)),
            vector => vector,
        }
    }
    fn digits(self) -> (Self, Self) {
        let high = match self.clone() {
            Recorded::Vector(scope, x) => {
                Recorded::Vector(scope, step::high::expand::<N>(scope, x))
            }
            Constant(c) => Constant(f64::from(f32::from_bits((c as f32).to_bits() & 0xffff_f000))),
        };
        (high.clone(), (self - high).apart())
    }
    fn abs(self) -> Self {
        self.unary(step::absolute::expand::<N>, f64::abs)
    }
    fn sqrt(self) -> Self {
        self.unary(step::square_root::expand::<N>, f64::sqrt)
    }
    fn if_above(self, c: f64, then: Self, otherwise: Self) -> Self {
        self.select(c, step::if_greater::expand::<N>, |x, c| x > c, then, otherwise)
    }
    fn if_at_most(self, c: f64, then: Self, otherwise: Self) -> Self {
        self.select(c, step::if_less_equal::expand::<N>, |x, c| x <= c, then, otherwise)
    }
    fn at_least(self, c: f64) -> Self {
        self.clone().if_at_most(c, Constant(c), self)
    }
}

/// The fixed parameters of a curve as part of a kernel's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::backend) struct Fixed([u64; 2]);

impl Fixed {
    pub(in crate::backend) fn new(parameters: [f64; 2]) -> Self {
        Self(parameters.map(f64::to_bits))
    }

    fn values<V: Value>(self) -> [V; 2] {
        self.0.map(|bits| V::lit(f64::from_bits(bits)).rounded())
    }
}

macro_rules! formulas {
    ($($fixed:ident $learned:ident = $method:ident;)*) => {
        $(
            #[cube]
            pub(in crate::backend) fn $fixed<F: Formula, N: Size>(
                x: Vector<f32, N>,
                #[comptime] parameters: Fixed,
            ) -> Vector<f32, N> {
                intrinsic!(|scope| {
                    let x = Recorded::Vector(scope, x);
                    F::$method(x, parameters.values()).numbers(scope)
                })
            }

            #[cube]
            pub(in crate::backend) fn $learned<F: Formula, N: Size>(
                x: Vector<f32, N>,
                a: Vector<f32, N>,
                b: Vector<f32, N>,
            ) -> Vector<f32, N> {
                intrinsic!(|scope| {
                    let [x, a, b] = [x, a, b].map(|v| Recorded::Vector(scope, v));
                    F::$method(x, [a, b]).numbers(scope)
                })
            }
        )*
    };
}

formulas! {
    fixed_value learned_value = value;
    fixed_slope learned_slope = slope;
}

/// df/da, or df/db.
#[cube]
pub(in crate::backend) fn parameter_slope<F: Formula, N: Size>(
    x: Vector<f32, N>,
    a: Vector<f32, N>,
    b: Vector<f32, N>,
    #[comptime] which: usize,
) -> Vector<f32, N> {
    intrinsic!(|scope| {
        let [x, a, b] = [x, a, b].map(|v| Recorded::Vector(scope, v));
        let slopes = F::parameter_slopes(x, [a, b]);
        let [slope, other] = slopes;
        if which == 0 { slope } else { other }.numbers(scope)
    })
}
