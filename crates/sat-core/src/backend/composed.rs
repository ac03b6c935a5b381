//! The formulas on whole tensors, made of Burn's own primitives: right on every backend.

use crate::{
    curve::{Curve, Formula, Visitor},
    value::{BEND, FRAC_1_SQRT_2PI, Value, bend_series},
};
use burn::{
    backend::{
        Backend, TensorMetadata, get_device_settings,
        tensor::{BoolTensor, FloatTensor},
    },
    tensor::{BoolDType, DType, FloatDType, Scalar, Slice},
};
use core::ops::{Add, Div, Mul, Neg, Sub};

/// f(x), with the curve's own parameters or with those in a tensor.
pub(crate) fn value<B: Backend>(
    x: FloatTensor<B>,
    parameters: Option<FloatTensor<B>>,
    curve: Curve,
) -> FloatTensor<B> {
    struct OfValue<B: Backend>(FloatTensor<B>, [Composed<B>; 2]);
    impl<B: Backend> Visitor for OfValue<B> {
        type Output = Composed<B>;
        fn visit<F: Formula>(self, _: [f64; 2]) -> Self::Output {
            F::value(Tensor(self.0), self.1)
        }
    }
    let dtype = x.dtype();
    let (x, parameters) = arguments::<B>(x, parameters, curve);
    narrow::<B>(curve.visit(OfValue(x.clone(), parameters)).into_tensor(x), dtype)
}

/// df/dx
pub(crate) fn slope<B: Backend>(
    x: FloatTensor<B>,
    parameters: Option<FloatTensor<B>>,
    curve: Curve,
) -> FloatTensor<B> {
    struct OfSlope<B: Backend>(FloatTensor<B>, [Composed<B>; 2]);
    impl<B: Backend> Visitor for OfSlope<B> {
        type Output = Composed<B>;
        fn visit<F: Formula>(self, _: [f64; 2]) -> Self::Output {
            F::slope(Tensor(self.0), self.1)
        }
    }
    let (x, parameters) = arguments::<B>(x, parameters, curve);
    curve.visit(OfSlope(x.clone(), parameters)).into_tensor(x)
}

/// df/da, and df/db for a curve of two parameters.
pub(crate) fn parameter_slopes<B: Backend>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    curve: Curve,
) -> Vec<FloatTensor<B>> {
    struct OfParameters<B: Backend>(FloatTensor<B>, [Composed<B>; 2]);
    impl<B: Backend> Visitor for OfParameters<B> {
        type Output = [Composed<B>; 2];
        fn visit<F: Formula>(self, _: [f64; 2]) -> Self::Output {
            F::parameter_slopes(Tensor(self.0), self.1)
        }
    }
    let (x, parameters) = arguments::<B>(x, Some(parameters), curve);
    let slopes = curve.visit(OfParameters(x.clone(), parameters)).into_iter();
    slopes.take(curve.parameters().len()).map(|slope| slope.into_tensor(x.clone())).collect()
}

/// grad * df/dx
pub(crate) fn backward<B: Backend>(
    x: FloatTensor<B>,
    parameters: Option<FloatTensor<B>>,
    grad: FloatTensor<B>,
    curve: Curve,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    narrow::<B>(B::float_mul(widen::<B>(grad), slope::<B>(x, parameters, curve)), dtype)
}

/// The sums of grad * df/da and grad * df/db, in a tensor of the parameters' shape.
pub(crate) fn parameter_backward<B: Backend>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    grad: FloatTensor<B>,
    curve: Curve,
) -> FloatTensor<B> {
    let dtype = parameters.dtype();
    let grad = widen::<B>(grad);
    let sums = parameter_slopes::<B>(x, parameters, curve)
        .into_iter()
        .map(|slope| B::float_reshape(B::float_sum(B::float_mul(grad.clone(), slope)), [1].into()));
    narrow::<B>(B::float_cat(sums.collect(), 0), dtype)
}

/// x in a type to compute in; and the parameters, shaped so that they broadcast over x where they are
/// a tensor.
fn arguments<B: Backend>(
    x: FloatTensor<B>,
    parameters: Option<FloatTensor<B>>,
    curve: Curve,
) -> (FloatTensor<B>, [Composed<B>; 2]) {
    let x = widen::<B>(x);
    let axes = x.shape().num_dims();
    let given = curve.parameters();
    let parameters = core::array::from_fn(|i| match (&parameters, given.get(i)) {
        (Some(tensor), Some(_)) => {
            let one = B::float_slice(tensor.clone(), &[Slice::from(i..i + 1)]);
            Tensor(B::float_reshape(narrow::<B>(one, x.dtype()), vec![1; axes].into()))
        }
        (None, Some(number)) => Constant(*number),
        (_, None) => Constant(f64::NAN),
    });
    (x, parameters)
}

/// Half-precision numbers are computed on in f32.
pub(crate) fn widen<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    match x.dtype() {
        DType::F16 | DType::BF16 => B::float_cast(x, FloatDType::F32),
        _ => x,
    }
}

pub(crate) fn narrow<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}

/// A tensor, or a constant that no tensor needs to be made for.
enum Composed<B: Backend> {
    Tensor(FloatTensor<B>),
    Constant(f64),
}
use Composed::{Constant, Tensor};

impl<B: Backend> Clone for Composed<B> {
    fn clone(&self) -> Self {
        match self {
            Tensor(x) => Tensor(x.clone()),
            Constant(c) => Constant(*c),
        }
    }
}

impl<B: Backend> Composed<B> {
    fn into_tensor(self, like: FloatTensor<B>) -> FloatTensor<B> {
        match self {
            Tensor(x) => x,
            Constant(c) => {
                B::float_full(like.shape(), c.into(), &like.device(), like.dtype().into())
            }
        }
    }

    fn map(self, tensor: fn(FloatTensor<B>) -> FloatTensor<B>, constant: fn(f64) -> f64) -> Self {
        match self {
            Tensor(x) => Tensor(tensor(x)),
            Constant(c) => Constant(constant(c)),
        }
    }

    /// c[0] + c[1] x + c[2] x^2 + ...
    fn polynomial(self, c: &[f64]) -> Self {
        c.iter().rev().fold(Constant(0.0), |sum, c| sum * self.clone() + Constant(*c))
    }

    /// Chooses by a comparison of the number with a constant.
    fn select(
        self,
        bound: f64,
        tensor: fn(FloatTensor<B>, Scalar, BoolDType) -> BoolTensor<B>,
        constant: fn(f64, f64) -> bool,
        then: Self,
        otherwise: Self,
    ) -> Self {
        let condition = match self {
            Constant(c) => return if constant(c, bound) { then } else { otherwise },
            Tensor(condition) => condition,
        };
        let bool_dtype = get_device_settings::<B>(&condition.device()).bool_dtype;
        let otherwise = otherwise.into_tensor(condition.clone());
        let mask = tensor(condition, bound.into(), bool_dtype);
        Tensor(match then {
            Constant(c) => B::float_mask_fill(otherwise, mask, c.into()),
            Tensor(then) => B::float_mask_where(otherwise, mask, then),
        })
    }
}

impl<B: Backend> Add for Composed<B> {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Tensor(x), Tensor(y)) => Tensor(B::float_add(x, y)),
            // What a formula adds for the sake of f32 and what is absent here.
            (x, Constant(0.0)) | (Constant(0.0), x) => x,
            (Tensor(x), Constant(c)) | (Constant(c), Tensor(x)) => {
                Tensor(B::float_add_scalar(x, c.into()))
            }
            (Constant(x), Constant(y)) => Constant(x + y),
        }
    }
}

impl<B: Backend> Sub for Composed<B> {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        match (self, other) {
            (Tensor(x), Tensor(y)) => Tensor(B::float_sub(x, y)),
            (x, y) => x + -y,
        }
    }
}

impl<B: Backend> Mul for Composed<B> {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        match (self, other) {
            (Tensor(x), Tensor(y)) => Tensor(B::float_mul(x, y)),
            (_, Constant(0.0)) | (Constant(0.0), _) => Constant(0.0),
            (x, Constant(1.0)) | (Constant(1.0), x) => x,
            (Tensor(x), Constant(c)) | (Constant(c), Tensor(x)) => {
                Tensor(B::float_mul_scalar(x, c.into()))
            }
            (Constant(x), Constant(y)) => Constant(x * y),
        }
    }
}

impl<B: Backend> Div for Composed<B> {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        match (self, other) {
            (Tensor(x), Tensor(y)) => Tensor(B::float_div(x, y)),
            (Tensor(x), Constant(c)) => Tensor(B::float_div_scalar(x, c.into())),
            (Constant(c), Tensor(x)) => Tensor(B::float_recip(x)) * Constant(c),
            (Constant(x), Constant(y)) => Constant(x / y),
        }
    }
}

impl<B: Backend> Neg for Composed<B> {
    type Output = Self;
    fn neg(self) -> Self {
        self.map(B::float_neg, f64::neg)
    }
}

/// 2 Phi(x) - 1
fn normal_erf<B: Backend>(x: Composed<B>) -> Composed<B> {
    (x * Constant(core::f64::consts::FRAC_1_SQRT_2)).map(B::float_erf, libm::erf)
}

impl<B: Backend> Value for Composed<B> {
    fn lit(c: f64) -> Self {
        Constant(c)
    }
    fn exp(self) -> Self {
        self.map(B::float_exp, f64::exp)
    }
    fn exp_m1_nonpositive(self) -> Self {
        match self {
            // e^x - 1 = tanh(x/2) (e^x + 1), without cancellation.
            Tensor(x) if x.dtype() == DType::F64 => {
                let half = Tensor(B::float_tanh(B::float_mul_scalar(x.clone(), 0.5.into())));
                half * (Tensor(x).exp() + Constant(1.0))
            }
            // A hyperbolic tangent costs two exponentials; this minimax fit is right to 6e-9 up to here.
            Tensor(_) => {
                let fit = [0.999_999_994, 0.499_997_965, 0.166_565_073, 0.040_034_268];
                let near_0 = self.clone() * self.clone().polynomial(&fit);
                let beyond = self.clone().exp() - Constant(1.0);
                self.if_above(-0.1, near_0, beyond)
            }
            Constant(c) => Constant(c.exp_m1()),
        }
    }
    fn ln_1p_with_bend(self) -> (Self, Self) {
        let bend = match &self {
            Tensor(x) if x.dtype() != DType::F64 => self.clone().polynomial(&BEND),
            _ => bend_series(self.clone()),
        };
        (self.ln_1p_unit(), bend)
    }
    fn ln_1p_unit(self) -> Self {
        self.map(B::float_log1p, f64::ln_1p)
    }
    fn abs(self) -> Self {
        self.map(B::float_abs, f64::abs)
    }
    fn sqrt(self) -> Self {
        self.map(B::float_sqrt, f64::sqrt)
    }
    fn times_normal(self) -> Self {
        // erf loses the tail's digits; what is left of -40 is zero, and -inf * 0 would not be.
        let x = self.at_least(-40.0);
        x.clone() * (normal_erf(x) * Constant(0.5) + Constant(0.5))
    }
    fn normal_tail_slope(self) -> Self {
        let z = self.abs().at_most(40.0);
        let tail = (Constant(1.0) - normal_erf(z.clone())) * Constant(0.5);
        let density = (z.clone() * z.clone() * Constant(-0.5)).exp() * Constant(FRAC_1_SQRT_2PI);
        tail - z * density
    }
    fn if_above(self, bound: f64, then: Self, otherwise: Self) -> Self {
        self.select(bound, B::float_greater_elem, |x, c| x > c, then, otherwise)
    }
    fn if_at_most(self, bound: f64, then: Self, otherwise: Self) -> Self {
        self.select(bound, B::float_lower_equal_elem, |x, c| x <= c, then, otherwise)
    }
    // Not float_clamp_min, nor float_clamp_max in `at_most`: some backends take a maximum that loses NaN.
    fn at_least(self, bound: f64) -> Self {
        self.clone().select(bound, B::float_lower_elem, |x, c| x < c, Constant(bound), self)
    }
}

#[cfg(all(test, feature = "flex"))]
#[allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
mod tests {
    use super::*;
    use burn::{
        backend::Dispatch,
        tensor::{Device, Tensor, TensorData},
    };

    const ENDS: [f64; 9] =
        [f64::NEG_INFINITY, -1e30, -700.0, -1e-30, -0.0, 0.0, 1e-30, 1e30, f64::INFINITY];

    fn to_vec(x: FloatTensor<Dispatch>) -> Vec<f64> {
        Tensor::<1>::from_dispatch(x).into_data().convert::<f64>().try_into_vec().unwrap()
    }

    /// Of max(1, |want|), or of NaN and infinity, which are to be met.
    fn assert_close(got: &[f64], want: &[f64], bound: f64, what: &str) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let met = got == want || got.is_nan() && want.is_nan();
            let close = (got - want).abs() <= bound * want.abs().max(1.0);
            assert!(met || close, "{what}, element {i}: {got}, not {want}");
        }
    }

    #[test]
    fn the_formulas_on_tensors_are_the_reference() {
        let middle = (-4000..4000).map(|i| f64::from(i) * 0.011);
        let near_0 = (-60..0).flat_map(|k| [1.7f64.powi(k), -(1.7f64.powi(k))]);
        let x: Vec<f64> = ENDS.into_iter().chain(middle).chain(near_0).collect();
        for (dtype, bound) in [(DType::F32, 1e-6), (DType::F64, 1e-12)] {
            let tensor = |numbers: &[f64]| {
                let data = TensorData::new(numbers.to_vec(), [numbers.len()]);
                Tensor::<1>::from_data(data, (&Device::flex(), dtype))
            };
            // As the type holds them.
            let held = to_vec(tensor(&x).into_dispatch());
            let given = || tensor(&x).into_dispatch();
            for &curve in Curve::ALL {
                let numbers = curve.parameters();
                let of = |f: &dyn Fn(f64) -> f64| held.iter().map(|x| f(*x)).collect::<Vec<_>>();
                let values = of(&|x| curve.value(x));
                let slopes = of(&|x| curve.derivative(x));
                let learned = || Some(tensor(&numbers).into_dispatch());
                for parameters in [None, learned().filter(|_| !numbers.is_empty())] {
                    let what = format!("{curve} in {dtype:?}, learned: {}", parameters.is_some());
                    let got = value::<Dispatch>(given(), parameters.clone(), curve);
                    assert_close(&to_vec(got), &values, bound, &what);
                    let got = slope::<Dispatch>(given(), parameters, curve);
                    assert_close(&to_vec(got), &slopes, bound, &format!("{what}, derivative"));
                }
                let Some(parameters) = learned().filter(|_| !numbers.is_empty()) else { continue };
                let got = parameter_slopes::<Dispatch>(given(), parameters, curve);
                assert_eq!(got.len(), numbers.len());
                for (i, got) in got.into_iter().enumerate() {
                    let want = of(&|x| curve.parameter_derivatives(x)[i]);
                    assert_close(&to_vec(got), &want, bound, &format!("{curve}, parameter {i}"));
                }
            }
        }
    }

    /// Where e^x - 1 and x - ln(1 + a x)/a have none left in f32.
    #[test]
    fn digits_near_0_are_right() {
        let x: Vec<f32> = (0..400).map(|i| 0.5 * 0.85f32.powi(i)).collect();
        for (curve, sign) in
            [(Curve::Elu(1.0), -1.0), (Curve::Celu(2.0), -1.0), (Curve::SmoothRelu(3.0), 1.0)]
        {
            let x: Vec<f32> = x.iter().map(|x| sign * x).collect();
            let data = TensorData::new(x.clone(), [x.len()]);
            let given = Tensor::<1>::from_data(data, &Device::flex()).into_dispatch();
            for (x, got) in x.iter().zip(to_vec(value::<Dispatch>(given, None, curve))) {
                let want = curve.value(f64::from(*x));
                let lost = f64::from(f32::MIN_POSITIVE);
                assert!(
                    (got - want).abs() <= 2e-6 * want.abs() + lost,
                    "{curve}({x}): {got}, {want}"
                );
            }
        }
    }

    /// The gradients, in every type: the arithmetic is that of f32 for half precision.
    #[test]
    fn gradients_are_the_slopes_times_what_comes_from_above() {
        let x: Vec<f64> = (-40..40).map(|i| f64::from(i) * 0.125).collect();
        let grad: Vec<f64> = (0..80).map(|i| f64::from(i % 7) * 0.25 - 0.5).collect();
        let types = [DType::F64, DType::F32, DType::F16, DType::BF16];
        for (dtype, bound) in types.into_iter().zip([1e-12, 1e-6, 6e-4, 5e-3]) {
            let tensor = |numbers: &[f64]| {
                let data = TensorData::new(numbers.to_vec(), [numbers.len()]);
                Tensor::<1>::from_data(data, (&Device::flex(), dtype)).into_dispatch()
            };
            for &curve in Curve::ALL {
                let what = format!("{curve} in {dtype:?}");
                let pairs = || x.iter().zip(&grad);
                let got = value::<Dispatch>(tensor(&x), None, curve);
                assert_eq!(got.dtype(), dtype);
                let want: Vec<f64> = x.iter().map(|x| curve.value(*x)).collect();
                assert_close(&to_vec(got), &want, bound, &what);
                let got = backward::<Dispatch>(tensor(&x), None, tensor(&grad), curve);
                assert_eq!(got.dtype(), dtype);
                let want: Vec<f64> = pairs().map(|(x, g)| g * curve.derivative(*x)).collect();
                assert_close(&to_vec(got), &want, bound, &what);
                let parameters = to_vec(tensor(&curve.parameters()));
                if parameters.is_empty() {
                    continue;
                }
                let given = tensor(&parameters);
                let got = parameter_backward::<Dispatch>(tensor(&x), given, tensor(&grad), curve);
                assert_eq!(got.dtype(), dtype);
                let sum = |i: usize| {
                    pairs().map(|(x, g)| g * curve.parameter_derivatives(*x)[i]).sum::<f64>()
                };
                let want: Vec<f64> = (0..parameters.len()).map(sum).collect();
                assert_close(&to_vec(got), &want, 20.0 * bound, &what);
            }
        }
    }

    #[test]
    fn a_nan_stays_one() {
        for &curve in Curve::ALL {
            let x = Tensor::<1>::from_data([f32::NAN], &Device::flex()).into_dispatch();
            for got in
                [value::<Dispatch>(x.clone(), None, curve), slope::<Dispatch>(x, None, curve)]
            {
                assert!(to_vec(got)[0].is_nan(), "{curve}");
            }
        }
    }
}
