use crate::{
    backend::Pair,
    curve::Curve,
    error::ActivationError,
    tensor::{activate, activate_with_parameter},
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

pub(crate) const SMOOTH_RELU_LEARNABLE: &str = "smooth-relu-learnable";
/// Where arXiv 2006.14536 starts b, so that a = b^2 = 400.
const SMOOTH_RELU_START: f64 = 20.0;

/// Which curve's derivative the backward pass uses.
///
/// The probe of arXiv 2006.14536 keeps ReLU in the forward pass and lets the gradient flow as if the
/// activation were parametric softplus, in the attacker's pass, the optimizer's pass, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Gradient {
    /// The derivative of the activation itself.
    #[default]
    Own,
    /// The derivative of another curve.
    Of(Curve),
}

/// What an activation computes in its forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Function {
    /// A curve with a fixed parameter.
    Fixed(Curve),
    /// [SmoothReLU](Curve::SmoothRelu) with a = b^2 and a learnable scalar b, as in
    /// arXiv 2006.14536.
    SmoothReluLearnable {
        /// Where b starts; 20 in the paper, so that a = 400.
        start: f64,
    },
}

/// An activation as data: which function, and which gradient.
///
/// `Display`, `FromStr` and serde use one text form: `silu`, `elu:0.5`, `smooth-relu-learnable`, and
/// `value~gradient` for a pair, as in `relu~psoftplus:10`.
///
/// ```
/// use sat_core::{ActivationConfig, Curve, Gradient};
///
/// let probe: ActivationConfig = "relu~psoftplus:10".parse()?;
/// assert_eq!(probe.gradient, Gradient::Of(Curve::ParametricSoftplus(10.0)));
/// assert_eq!(probe.to_string(), "relu~psoftplus:10");
/// # Ok::<(), sat_core::ActivationError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ActivationConfig {
    /// The forward pass.
    pub function: Function,
    /// The backward pass.
    pub gradient: Gradient,
}

impl ActivationConfig {
    /// SmoothReLU with a learnable a = b^2, b = 20 at the start.
    pub const SMOOTH_RELU_LEARNABLE: Self = Self {
        function: Function::SmoothReluLearnable { start: SMOOTH_RELU_START },
        gradient: Gradient::Own,
    };

    /// The same function with another gradient.
    pub fn with_gradient(self, gradient: Gradient) -> Self {
        Self { gradient, ..self }
    }

    /// Whether every parameter lies in [`Curve::PARAMETERS`]; for the learnable activation both b and
    /// b^2 must.
    ///
    /// # Errors
    ///
    /// [`ActivationError::Parameter`] names the first that does not.
    pub fn validate(&self) -> Result<(), ActivationError> {
        match self.function {
            Function::Fixed(curve) => curve.validate().map(|_| ())?,
            Function::SmoothReluLearnable { start } => {
                let allowed = Curve::PARAMETERS;
                if !(allowed.contains(&start) && allowed.contains(&(start * start))) {
                    let activation = SMOOTH_RELU_LEARNABLE;
                    return Err(ActivationError::Parameter { activation, value: start });
                }
            }
        }
        match self.gradient {
            Gradient::Own => Ok(()),
            Gradient::Of(curve) => curve.validate().map(|_| ()),
        }
    }

    /// Builds the module on a device.
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error. Configurations read from text are valid.
    pub fn init(&self, device: &Device) -> Activation {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let b = match self.function {
            Function::Fixed(_) => None,
            Function::SmoothReluLearnable { start } => {
                Some(Param::from_tensor(Tensor::from_floats([start as f32], device)))
            }
        };
        Activation { b, config: *self }
    }
}

impl Default for ActivationConfig {
    fn default() -> Self {
        Curve::Silu.into()
    }
}

impl From<Curve> for ActivationConfig {
    fn from(curve: Curve) -> Self {
        Self { function: Function::Fixed(curve), gradient: Gradient::Own }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Function::Fixed(curve) => curve.fmt(f),
            Function::SmoothReluLearnable { start } if *start == SMOOTH_RELU_START => {
                f.write_str(SMOOTH_RELU_LEARNABLE)
            }
            Function::SmoothReluLearnable { start } => {
                write!(f, "{SMOOTH_RELU_LEARNABLE}:{start}")
            }
        }
    }
}

impl FromStr for Function {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = text.strip_prefix(SMOOTH_RELU_LEARNABLE) else {
            return text.parse().map(Function::Fixed);
        };
        let start = match rest.strip_prefix(':') {
            None if rest.is_empty() => SMOOTH_RELU_START,
            None => return Err(ActivationError::Unknown { name: text.into() }),
            Some(start) => start.parse().map_err(|_| ActivationError::NotANumber {
                activation: SMOOTH_RELU_LEARNABLE,
                text: start.into(),
            })?,
        };
        Ok(Function::SmoothReluLearnable { start })
    }
}

impl fmt::Display for ActivationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gradient {
            Gradient::Own => self.function.fmt(f),
            Gradient::Of(curve) => write!(f, "{}~{curve}", self.function),
        }
    }
}

impl FromStr for ActivationConfig {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (function, gradient) = match text.split_once('~') {
            None => (text, Gradient::Own),
            Some((function, gradient)) => match gradient.parse()? {
                Function::Fixed(curve) => (function, Gradient::Of(curve)),
                Function::SmoothReluLearnable { .. } => {
                    return Err(ActivationError::LearnableGradient { name: gradient.into() });
                }
            },
        };
        let config = Self { function: function.parse()?, gradient };
        config.validate().map(|()| config)
    }
}

impl From<ActivationConfig> for String {
    fn from(config: ActivationConfig) -> Self {
        config.to_string()
    }
}

impl TryFrom<String> for ActivationConfig {
    type Error = ActivationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// An activation as a module: put it where Burn's own activation stands.
///
/// A learnable parameter is one scalar on the device, never read back to the host. Its field is
/// named `b`, so that a parameter group can spare paths ending in `.b` from weight decay.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use sat_core::ActivationConfig;
///
/// let device = Device::flex();
/// let activation = "gelu".parse::<ActivationConfig>()?.init(&device);
/// let y = activation.forward(Tensor::<1>::from_floats([-1.0, 0.0, 1.0], &device));
/// # let _ = y;
/// # }
/// # Ok::<(), sat_core::ActivationError>(())
/// ```
#[derive(Module, Debug)]
pub struct Activation {
    b: Option<Param<Tensor<1>>>,
    #[module(skip)]
    config: ActivationConfig,
}

impl Activation {
    /// Applies the function elementwise; input and output have the same shape.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match (self.config.function, &self.b) {
            (Function::SmoothReluLearnable { start }, Some(b)) => {
                let pair = Pair {
                    value: Curve::SmoothRelu(start * start),
                    gradient: self.config.gradient,
                };
                let b = b.val();
                activate_with_parameter(x, b.clone() * b, pair)
            }
            (Function::Fixed(value), _) => {
                activate(x, Pair { value, gradient: self.config.gradient })
            }
            (Function::SmoothReluLearnable { .. }, None) => {
                unreachable!("a learnable activation is built with its parameter")
            }
        }
    }

    /// What the module was built from. A learned parameter is in [`parameter`](Self::parameter).
    pub fn config(&self) -> ActivationConfig {
        self.config
    }

    /// The learnable scalar b, for an activation that has one.
    pub fn parameter(&self) -> Option<&Param<Tensor<1>>> {
        self.b.as_ref()
    }

    /// The same activation, parameter and all, with another gradient in its backward pass.
    ///
    /// # Panics
    ///
    /// If [`Curve::validate`] refuses the curve.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        if let Gradient::Of(curve) = gradient
            && let Err(error) = curve.validate()
        {
            panic!("{error}");
        }
        self.config.gradient = gradient;
        self
    }
}
