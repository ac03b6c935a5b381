//! The activation functions: one file each for the mathematics, one list for their names.

mod celu;
mod elu;
mod gelu;
mod gelu_tanh;
mod leaky_relu;
mod mish;
mod parametric_softplus;
mod relu;
mod relu6;
mod shifted_swish;
mod silu;
mod smooth_relu;
mod softplus;
mod squareplus;
mod swish;

use crate::{error::ActivationError, text::by_text, value::Value};
use core::{fmt, ops::RangeInclusive, str::FromStr};
use serde::{Deserialize, Serialize};

/// The mathematics of one curve, generic over what it is evaluated on.
///
/// Every formula takes two parameters; a curve that has fewer ignores the rest.
pub(crate) trait Formula: Send + Sync + 'static {
    /// f(x; a, b)
    fn value<V: Value>(x: V, parameters: [V; 2]) -> V;
    /// df/dx
    fn slope<V: Value>(x: V, parameters: [V; 2]) -> V;
    /// df/da and df/db; zero for a parameter the curve does not have.
    #[inline(always)]
    fn parameter_slopes<V: Value>(_x: V, _parameters: [V; 2]) -> [V; 2] {
        [V::lit(0.0), V::lit(0.0)]
    }
    /// max |f''|; infinite where f' jumps.
    fn curvature_bound(parameters: [f64; 2]) -> f64;
    /// The values each parameter may have.
    fn allowed() -> [RangeInclusive<f64>; 2] {
        [Curve::PARAMETERS, Curve::PARAMETERS]
    }
}

/// Something to be done with the formula behind a [`Curve`].
pub(crate) trait Visitor {
    type Output;
    fn visit<F: Formula>(self, parameters: [f64; 2]) -> Self::Output;
}

macro_rules! curves {
    (
        plain { $($(#[$plain_doc:meta])* $plain:ident = $plain_name:literal in $plain_module:ident;)* }
        parametric { $($(#[$doc:meta])* $curve:ident($($p:ident),+) = $name:literal in $module:ident, default $($default:literal),+;)* }
    ) => {
        /// An activation function with its fixed parameters: a formula for the value and one for the
        /// derivative.
        ///
        /// `Display`, `FromStr` and serde use the names of the command line: `silu`, `elu:0.5`,
        /// `shifted-swish:1,0.1`. Parameters left out take their defaults.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        #[non_exhaustive]
        pub enum Curve {
            $($(#[$plain_doc])* $plain,)*
            $($(#[$doc])* $curve($(number!($p)),+),)*
        }

        impl Curve {
            /// Every curve, with its default parameters.
            pub const ALL: &'static [Curve] = &[
                $(Curve::$plain,)*
                $(Curve::$curve($($default),+),)*
            ];

            /// The name without the parameters, as on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Curve::$plain => $plain_name,)*
                    $(Curve::$curve(..) => $name,)*
                }
            }

            /// The parameters a, b, of which a curve has none, one or two.
            pub fn parameters(self) -> Vec<f64> {
                match self {
                    $(Curve::$plain => Vec::new(),)*
                    $(Curve::$curve($($p),+) => vec![$($p),+],)*
                }
            }

            /// The same curve with other parameters, if there are as many as it takes.
            fn with_parameters(self, parameters: &[f64]) -> Option<Self> {
                match (self, parameters) {
                    $((Curve::$plain, []) => Some(Curve::$plain),)*
                    $((Curve::$curve(..), &[$($p),+]) => Some(Curve::$curve($($p),+)),)*
                    _ => None,
                }
            }

            /// Hands the formula and the parameters (NaN where there is none) to the visitor.
            pub(crate) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
                match self {
                    $(Curve::$plain => visitor.visit::<$plain_module::$plain>(padded([])),)*
                    $(Curve::$curve($($p),+) => {
                        visitor.visit::<$module::$curve>(padded([$($p),+]))
                    })*
                }
            }
        }
    };
}

fn padded<const N: usize>(given: [f64; N]) -> [f64; 2] {
    core::array::from_fn(|i| given.get(i).copied().unwrap_or(f64::NAN))
}

/// The type of a parameter, for a macro that repeats over their names.
macro_rules! number {
    ($parameter:ident) => {
        f64
    };
}

curves! {
    plain {
        /// f(x) = max(0, x), f'(x) = 1 for x > 0, else 0.
        ///
        /// The kinked baseline.
        Relu = "relu" in relu;
        /// f(x) = min(max(0, x), 6), f'(x) = 1 for 0 < x < 6, else 0.
        ///
        /// Kinked; for networks that were trained with it. Krizhevsky 2010.
        Relu6 = "relu6" in relu6;
        /// f(x) = ln(1 + e^x), f'(x) = s(x) = 1/(1 + e^-x).
        ///
        /// $$ f(x) = \ln(1 + e^x) $$ max |f''| = 1/4. Dugas et al. 2001.
        Softplus = "softplus" in softplus;
        /// f(x) = x s(x), f'(x) = s(x) + x s(x) (1 - s(x)), with s(x) = 1/(1 + e^-x).
        ///
        /// $$ f(x) = \frac{x}{1 + e^{-x}} $$ max |f''| = 1/2. Also called Swish; Elfwing et al.
        /// arXiv 1702.03118, Ramachandran et al. arXiv 1710.05941.
        Silu = "silu" in silu;
        /// f(x) = x Phi(x), f'(x) = Phi(x) + x phi(x), with the standard normal distribution
        /// function Phi and density phi.
        ///
        /// $$ f(x) = x\,\Phi(x) $$ max |f''| = 0.798. Hendrycks and Gimpel, arXiv 1606.08415. The
        /// derivative is the derivative of this form, not of the tanh form.
        Gelu = "gelu" in gelu;
        /// f(x) = x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3): GELU's tanh form.
        ///
        /// $$ f(x) = \tfrac{x}{2}\left(1 + \tanh\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right) $$
        /// Hendrycks and Gimpel, arXiv 1606.08415; the form of the code released with
        /// arXiv 2006.14536. max |f''| = 0.798.
        GeluTanh = "gelu-tanh" in gelu_tanh;
        /// f(x) = x t, t = tanh(ln(1 + e^x)); f'(x) = t + x (1 - t^2) s(x).
        ///
        /// $$ f(x) = x \tanh(\ln(1 + e^x)) $$ max |f''| = 0.644. Misra, arXiv 1908.08681.
        Mish = "mish" in mish;
    }
    parametric {
        /// f(x) = ln(1 + e^(a x))/a, f'(x) = s(a x), a > 0.
        ///
        /// $$ f(x) = \tfrac{1}{a}\ln(1 + e^{a x}) $$ max |f''| = a/4. At a = 10 the smooth
        /// approximation of ReLU whose derivative arXiv 2006.14536 puts behind a ReLU forward pass.
        ParametricSoftplus(a) = "psoftplus" in parametric_softplus, default 10.0;
        /// f(x) = x for x > 0, else a (e^x - 1); f'(x) = 1 for x > 0, else a e^x; a > 0.
        ///
        /// $$ f(x) = \begin{cases} x & x > 0 \\\\ a(e^x - 1) & x \le 0 \end{cases} $$ Smooth for
        /// a = 1, where max |f''| = 1. Clevert et al., arXiv 1511.07289.
        Elu(a) = "elu" in elu, default 1.0;
        /// f(x) = x for x > 0, else a (e^(x/a) - 1); f'(x) = 1 for x > 0, else e^(x/a); a > 0.
        ///
        /// $$ f(x) = \begin{cases} x & x > 0 \\\\ a(e^{x/a} - 1) & x \le 0 \end{cases} $$ Smooth for
        /// every a; max |f''| = 1/a. Barron, arXiv 1704.07483.
        Celu(a) = "celu" in celu, default 1.0;
        /// f(x) = x - ln(1 + a x)/a for x > 0, else 0; f'(x) = a x/(1 + a x) for x > 0, else 0;
        /// a > 0.
        ///
        /// $$ f(x) = \begin{cases} x - \tfrac{1}{a}\ln(1 + a x) & x \ge 0 \\\\ 0 & x < 0 \end{cases} $$
        /// max |f''| = a. Xie et al., arXiv 2006.14536: zero for x < 0 like ReLU, so it tells
        /// smoothness from the response to negative inputs.
        SmoothRelu(a) = "smooth-relu" in smooth_relu, default 400.0;
        /// f(x) = x s(a x), f'(x) = s + a x s (1 - s), s = s(a x), a > 0.
        ///
        /// $$ f(x) = \frac{x}{1 + e^{-a x}} $$ max |f''| = a/2. Ramachandran et al. arXiv 1710.05941;
        /// with a learnable a, the PSiLU of Dai et al., arXiv 2110.05626.
        Swish(a) = "swish" in swish, default 1.0;
        /// f(x) = x (s(a x) - b)/(1 - b), f'(x) = (s + a x s (1 - s) - b)/(1 - b), s = s(a x), a > 0,
        /// 0 < b < 1.
        ///
        /// $$ f(x) = x \, \frac{\sigma(a x) - b}{1 - b} $$ max |f''| = a/(2 - 2b). With a learnable
        /// pair, the PSSiLU of Dai et al., arXiv 2110.05626.
        ShiftedSwish(a, b) = "shifted-swish" in shifted_swish, default 1.0, 1e-8;
        /// f(x) = (x + sqrt(x^2 + a))/2, f'(x) = (1 + x/sqrt(x^2 + a))/2, a > 0.
        ///
        /// $$ f(x) = \frac{x + \sqrt{x^2 + a}}{2} $$ max |f''| = 1/(2 sqrt(a)). Algebraic: no
        /// exponential. Barron, arXiv 2112.11687.
        Squareplus(a) = "squareplus" in squareplus, default 4.0;
        /// f(x) = x for x > 0, else a x; f'(x) = 1 for x > 0, else a; a > 0.
        ///
        /// Kinked; for networks that were trained with it. Maas et al. 2013.
        LeakyRelu(a) = "leaky-relu" in leaky_relu, default 0.01;
    }
}

impl Curve {
    /// The values a parameter may have, unless the curve says less: those for which a^2 and 1/a^2 are
    /// numbers in `f32`, so that every formula is defined.
    pub const PARAMETERS: RangeInclusive<f64> = 1e-15..=1e15;

    /// f(x), computed in `f64`: the reference of every kernel.
    ///
    /// ```
    /// use sat_core::Curve;
    /// assert!((Curve::Softplus.value(0.0) - 2f64.ln()).abs() < 1e-15);
    /// ```
    pub fn value(self, x: f64) -> f64 {
        struct At(f64);
        impl Visitor for At {
            type Output = f64;
            fn visit<F: Formula>(self, parameters: [f64; 2]) -> f64 {
                F::value(self.0, parameters)
            }
        }
        self.visit(At(x))
    }

    /// f'(x), computed in `f64`.
    pub fn derivative(self, x: f64) -> f64 {
        struct At(f64);
        impl Visitor for At {
            type Output = f64;
            fn visit<F: Formula>(self, parameters: [f64; 2]) -> f64 {
                F::slope(self.0, parameters)
            }
        }
        self.visit(At(x))
    }

    /// df/da and df/db at x, computed in `f64`: as many as the curve has parameters.
    pub fn parameter_derivatives(self, x: f64) -> Vec<f64> {
        struct At(f64);
        impl Visitor for At {
            type Output = [f64; 2];
            fn visit<F: Formula>(self, parameters: [f64; 2]) -> [f64; 2] {
                F::parameter_slopes(self.0, parameters)
            }
        }
        self.visit(At(x))[..self.parameters().len()].to_vec()
    }

    /// max |f''| over all x: how fast the gradient may turn, which matters for robustness. Infinite
    /// for a kinked curve.
    ///
    /// ```
    /// use sat_core::Curve;
    /// assert_eq!(Curve::Silu.curvature_bound(), 0.5);
    /// assert_eq!(Curve::Relu.curvature_bound(), f64::INFINITY);
    /// ```
    pub fn curvature_bound(self) -> f64 {
        struct Bound;
        impl Visitor for Bound {
            type Output = f64;
            fn visit<F: Formula>(self, parameters: [f64; 2]) -> f64 {
                F::curvature_bound(parameters)
            }
        }
        self.visit(Bound)
    }

    /// Whether the parameters lie where the curve is defined; most often that is
    /// [`PARAMETERS`](Self::PARAMETERS).
    ///
    /// # Errors
    ///
    /// [`ActivationError::Parameter`] otherwise.
    pub fn validate(self) -> Result<(), ActivationError> {
        struct Allowed;
        impl Visitor for Allowed {
            type Output = [RangeInclusive<f64>; 2];
            fn visit<F: Formula>(self, _: [f64; 2]) -> Self::Output {
                F::allowed()
            }
        }
        for (value, allowed) in self.parameters().into_iter().zip(self.visit(Allowed)) {
            if !allowed.contains(&value) {
                return Err(ActivationError::Parameter { activation: self.name(), value, allowed });
            }
        }
        Ok(())
    }
}

/// `name`, `name:a` or `name:a,b`.
pub(crate) fn write_parameters(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    parameters: &[f64],
) -> fmt::Result {
    f.write_str(name)?;
    for (i, parameter) in parameters.iter().enumerate() {
        write!(f, "{}{parameter}", if i == 0 { ':' } else { ',' })?;
    }
    Ok(())
}

/// What stands behind the colon of `name:a,b`.
pub(crate) fn read_parameters(
    activation: &'static str,
    text: &str,
) -> Result<Vec<f64>, ActivationError> {
    let number = |text: &str| {
        let error = || ActivationError::NotANumber { activation, text: text.into() };
        text.parse().map_err(|_| error())
    };
    text.split(',').map(number).collect()
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_parameters(f, self.name(), &self.parameters())
    }
}

impl FromStr for Curve {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, parameters) = match text.split_once(':') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (text, None),
        };
        let curve = Curve::ALL
            .iter()
            .find(|curve| curve.name() == name)
            .ok_or_else(|| ActivationError::Unknown { name: name.into() })?;
        let Some(parameters) = parameters else {
            return Ok(*curve);
        };
        let takes = curve.parameters().len();
        let error = || ActivationError::ParameterCount {
            activation: curve.name(),
            takes,
            text: text.into(),
        };
        if takes == 0 {
            return Err(error());
        }
        let parameters = read_parameters(curve.name(), parameters)?;
        let curve = curve.with_parameters(&parameters).ok_or_else(error)?;
        curve.validate().map(|()| curve)
    }
}

by_text!(Curve, ActivationError);
