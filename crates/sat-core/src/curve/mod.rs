//! The activation functions: one file each for the mathematics, one list for their names.

mod celu;
mod elu;
mod gelu;
mod gelu_tanh;
mod parametric_softplus;
mod relu;
mod silu;
mod smooth_relu;
mod softplus;

use crate::{error::ActivationError, value::Value};
use core::{fmt, ops::RangeInclusive, str::FromStr};

/// The mathematics of one curve, generic over what it is evaluated on.
pub(crate) trait Formula: 'static {
    /// f(x; a)
    fn value<V: Value>(x: V, a: V) -> V;
    /// df/dx
    fn slope<V: Value>(x: V, a: V) -> V;
    /// df/da; zero for a curve without a parameter.
    #[inline(always)]
    fn parameter_slope<V: Value>(_x: V, _a: V) -> V {
        V::lit(0.0)
    }
}

/// Something to be done with the formula behind a [`Curve`].
pub(crate) trait Visitor {
    type Output;
    fn visit<F: Formula>(self, a: f64) -> Self::Output;
}

macro_rules! curves {
    (
        plain { $($(#[$plain_doc:meta])* $plain:ident = $plain_name:literal in $plain_module:ident;)* }
        parametric { $($(#[$doc:meta])* $curve:ident = $name:literal in $module:ident, default $default:literal;)* }
    ) => {
        /// An activation function with its fixed parameter: a formula for the value and one for the
        /// derivative.
        ///
        /// `Display` and `FromStr` use the names of the command line: `silu`, `elu:0.5`. A parameter
        /// left out takes its default.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Curve {
            $($(#[$plain_doc])* $plain,)*
            $($(#[$doc])* $curve(f64),)*
        }

        impl Curve {
            /// Every curve, with its default parameter.
            pub const ALL: &'static [Curve] = &[
                $(Curve::$plain,)*
                $(Curve::$curve($default),)*
            ];

            /// The name without the parameter, as on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Curve::$plain => $plain_name,)*
                    $(Curve::$curve(_) => $name,)*
                }
            }

            /// The parameter a, for a curve that has one.
            pub const fn parameter(self) -> Option<f64> {
                match self {
                    $(Curve::$plain => None,)*
                    $(Curve::$curve(a) => Some(a),)*
                }
            }

            /// The same curve with another parameter; itself if it has none.
            pub(crate) const fn with_parameter(self, a: f64) -> Self {
                match self {
                    $(Curve::$plain => Curve::$plain,)*
                    $(Curve::$curve(_) => Curve::$curve(a),)*
                }
            }

            /// Hands the formula and the parameter (NaN if there is none) to the visitor.
            pub(crate) fn visit<V: Visitor>(self, visitor: V) -> V::Output {
                match self {
                    $(Curve::$plain => visitor.visit::<$plain_module::$plain>(f64::NAN),)*
                    $(Curve::$curve(a) => visitor.visit::<$module::$curve>(a),)*
                }
            }
        }
    };
}

curves! {
    plain {
        /// f(x) = max(0, x), f'(x) = 1 for x > 0, else 0.
        ///
        /// The kinked baseline.
        Relu = "relu" in relu;
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
        /// $$ f(x) = x\,\Phi(x) $$ max |f''| = 0.80. Hendrycks and Gimpel, arXiv 1606.08415. The
        /// derivative is the derivative of this form, not of the tanh form.
        Gelu = "gelu" in gelu;
        /// f(x) = x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3): GELU's tanh form.
        ///
        /// $$ f(x) = \tfrac{x}{2}\left(1 + \tanh\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right) $$
        /// Hendrycks and Gimpel, arXiv 1606.08415; the form of the code released with
        /// arXiv 2006.14536. In `f32` the relative error grows to 2e-5 in the far tail, x < -3, where
        /// |f| < 4e-3; the absolute error stays below 2e-7.
        GeluTanh = "gelu-tanh" in gelu_tanh;
    }
    parametric {
        /// f(x) = ln(1 + e^(a x))/a, f'(x) = s(a x), a > 0.
        ///
        /// $$ f(x) = \tfrac{1}{a}\ln(1 + e^{a x}) $$ max |f''| = a/4. At a = 10 the smooth
        /// approximation of ReLU whose derivative arXiv 2006.14536 puts behind a ReLU forward pass.
        ParametricSoftplus = "psoftplus" in parametric_softplus, default 10.0;
        /// f(x) = x for x > 0, else a (e^x - 1); f'(x) = 1 for x > 0, else a e^x; a > 0.
        ///
        /// $$ f(x) = \begin{cases} x & x > 0 \\\\ a(e^x - 1) & x \le 0 \end{cases} $$ Smooth for
        /// a = 1, where max |f''| = 1. Clevert et al., arXiv 1511.07289.
        Elu = "elu" in elu, default 1.0;
        /// f(x) = x for x > 0, else a (e^(x/a) - 1); f'(x) = 1 for x > 0, else e^(x/a); a > 0.
        ///
        /// $$ f(x) = \begin{cases} x & x > 0 \\\\ a(e^{x/a} - 1) & x \le 0 \end{cases} $$ Smooth for
        /// every a; max |f''| = 1/a. Barron, arXiv 1704.07483.
        Celu = "celu" in celu, default 1.0;
        /// f(x) = x - ln(1 + a x)/a for x > 0, else 0; f'(x) = a x/(1 + a x) for x > 0, else 0;
        /// a > 0.
        ///
        /// $$ f(x) = \begin{cases} x - \tfrac{1}{a}\ln(1 + a x) & x \ge 0 \\\\ 0 & x < 0 \end{cases} $$
        /// max |f''| = a. Xie et al., arXiv 2006.14536: zero for x < 0 like ReLU, so it tells
        /// smoothness from the response to negative inputs.
        SmoothRelu = "smooth-relu" in smooth_relu, default 400.0;
    }
}

impl Curve {
    /// The parameters a that a curve may have: those for which a^2 and 1/a^2 are numbers in `f32`, so
    /// that every formula is defined.
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
            fn visit<F: Formula>(self, a: f64) -> f64 {
                F::value(self.0, a)
            }
        }
        self.visit(At(x))
    }

    /// f'(x), computed in `f64`.
    pub fn derivative(self, x: f64) -> f64 {
        struct At(f64);
        impl Visitor for At {
            type Output = f64;
            fn visit<F: Formula>(self, a: f64) -> f64 {
                F::slope(self.0, a)
            }
        }
        self.visit(At(x))
    }

    /// df/da at x, computed in `f64`; zero for a curve without a parameter.
    pub fn parameter_derivative(self, x: f64) -> f64 {
        struct At(f64);
        impl Visitor for At {
            type Output = f64;
            fn visit<F: Formula>(self, a: f64) -> f64 {
                F::parameter_slope(self.0, a)
            }
        }
        self.visit(At(x))
    }

    /// Whether the parameter lies in [`PARAMETERS`](Self::PARAMETERS).
    ///
    /// # Errors
    ///
    /// [`ActivationError::Parameter`] otherwise.
    pub fn validate(self) -> Result<Self, ActivationError> {
        match self.parameter() {
            Some(value) if !Self::PARAMETERS.contains(&value) => {
                Err(ActivationError::Parameter { activation: self.name(), value })
            }
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parameter() {
            Some(a) => write!(f, "{}:{a}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

impl FromStr for Curve {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, parameter) = match text.split_once(':') {
            Some((name, parameter)) => (name, Some(parameter)),
            None => (text, None),
        };
        let curve = Curve::ALL
            .iter()
            .find(|curve| curve.name() == name)
            .ok_or_else(|| ActivationError::Unknown { name: name.into() })?;
        match (curve.parameter(), parameter) {
            (_, None) => Ok(*curve),
            (None, Some(_)) => Err(ActivationError::UnexpectedParameter {
                activation: curve.name(),
                text: text.into(),
            }),
            (Some(_), Some(parameter)) => {
                let a = parameter.parse().map_err(|_| ActivationError::NotANumber {
                    activation: curve.name(),
                    text: parameter.into(),
                })?;
                curve.with_parameter(a).validate()
            }
        }
    }
}
