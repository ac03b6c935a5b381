use crate::{
    backend::Pair,
    curve::{Curve, read_parameters, write_parameters},
    error::ActivationError,
    module::module,
    tensor::{activate, activate_with_parameters},
    text::by_text,
};
use burn::{
    module::{
        Content, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
        ParamId,
    },
    nn::activation::{Activation as BurnActivation, ActivationConfig as BurnActivationConfig},
    tensor::{Device, Tensor},
};
use core::{cell::RefCell, fmt, str::FromStr};
use serde::{Deserialize, Serialize};

/// Which curve's derivative the backward pass uses.
///
/// The probe of arXiv 2006.14536 keeps ReLU in the forward pass and lets the gradient flow as if the
/// activation were parametric softplus, in the attacker's pass, the optimizer's pass, or both.
///
/// As text, and in serde's formats: `own`, or the name of the curve such as `psoftplus:10`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Gradient {
    /// The derivative of the activation itself.
    #[default]
    Own,
    /// The derivative of another curve.
    Of(Curve),
}

const OWN: &str = "own";

impl fmt::Display for Gradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gradient::Own => f.write_str(OWN),
            Gradient::Of(curve) => curve.fmt(f),
        }
    }
}

impl FromStr for Gradient {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == OWN {
            return Ok(Gradient::Own);
        }
        match text.parse()? {
            Function::Fixed(curve) => curve.validate().map(|()| Gradient::Of(curve)),
            Function::Learnable(..) | Function::Burn(_) => {
                Err(ActivationError::NotAGradient { name: text.into() })
            }
        }
    }
}

by_text!(Gradient, ActivationError);

/// An activation whose parameters are learned with the weights.
///
/// `Display`, `FromStr` and serde use the names of the command line, with other starting values behind a
/// colon: `smooth-relu-learnable:10`, `pssilu:1,0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum Learnable {
    /// `smooth-relu-learnable`: [`Curve::SmoothRelu`] with a = b^2, as in arXiv 2006.14536, where b
    /// starts at 20.
    SmoothRelu {
        /// Where b starts.
        b: f64,
    },
    /// `psilu`: [`Curve::Swish`] with a learnable a, from 1; Dai et al., arXiv 2110.05626.
    PSilu {
        /// Where a starts.
        a: f64,
    },
    /// `pssilu`: [`Curve::ShiftedSwish`] with |a| and |b| learnable, from 1 and 1e-8, one pair for the
    /// whole network; Dai et al., arXiv 2110.05626. At |b| = 1 the curve is singular, and beyond it nearly
    /// straight: a large learning rate takes b there.
    PsSilu {
        /// Where a starts.
        a: f64,
        /// Where b starts.
        b: f64,
    },
}

impl Learnable {
    /// Every one, with its usual start.
    pub const ALL: &'static [Learnable] = &[
        Learnable::SmoothRelu { b: 20.0 },
        Learnable::PSilu { a: 1.0 },
        Learnable::PsSilu { a: 1.0, b: 1e-8 },
    ];

    /// The name without the start, as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Learnable::SmoothRelu { .. } => "smooth-relu-learnable",
            Learnable::PSilu { .. } => "psilu",
            Learnable::PsSilu { .. } => "pssilu",
        }
    }

    /// Where the parameters start.
    pub fn start(self) -> Vec<f64> {
        match self {
            Learnable::SmoothRelu { b } => vec![b],
            Learnable::PSilu { a } => vec![a],
            Learnable::PsSilu { a, b } => vec![a, b],
        }
    }

    /// The curve at the start.
    pub fn curve(self) -> Curve {
        match self {
            Learnable::SmoothRelu { b } => Curve::SmoothRelu(b * b),
            Learnable::PSilu { a } => Curve::Swish(a),
            Learnable::PsSilu { a, b } => Curve::ShiftedSwish(a, b),
        }
    }

    /// Whether one set of parameters usually serves the whole network.
    const fn sharing(self) -> Sharing {
        match self {
            Learnable::SmoothRelu { .. } | Learnable::PSilu { .. } => Sharing::Layer,
            Learnable::PsSilu { .. } => Sharing::Network,
        }
    }

    fn with_start(self, start: &[f64]) -> Option<Self> {
        match (self, start) {
            (Learnable::SmoothRelu { .. }, &[b]) => Some(Learnable::SmoothRelu { b }),
            (Learnable::PSilu { .. }, &[a]) => Some(Learnable::PSilu { a }),
            (Learnable::PsSilu { .. }, &[a, b]) => Some(Learnable::PsSilu { a, b }),
            _ => None,
        }
    }

    /// The parameters of the curve from the learned numbers.
    fn transform(self, learned: Tensor<1>) -> Tensor<1> {
        match self {
            Learnable::SmoothRelu { .. } => learned.clone() * learned,
            Learnable::PSilu { .. } => learned,
            Learnable::PsSilu { .. } => learned.abs(),
        }
    }

    fn validate(self) -> Result<(), ActivationError> {
        let refused =
            |value, allowed| ActivationError::Parameter { activation: self.name(), value, allowed };
        match (self, self.curve().validate()) {
            // The curve sees b^2 alone.
            (Learnable::SmoothRelu { b }, curve) if curve.is_err() || b < 0.0 => {
                let (least, most) = (Curve::PARAMETERS.start(), Curve::PARAMETERS.end());
                Err(refused(b, least.sqrt()..=most.sqrt()))
            }
            (_, Err(ActivationError::Parameter { value, allowed, .. })) => {
                Err(refused(value, allowed))
            }
            (_, result) => result,
        }
    }
}

impl fmt::Display for Learnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Learnable::ALL.contains(self);
        let start = if usual { Vec::new() } else { self.start() };
        write_parameters(f, self.name(), &start)
    }
}

impl FromStr for Learnable {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, start) = match text.split_once(':') {
            Some((name, start)) => (name, Some(start)),
            None => (text, None),
        };
        let learnable = Learnable::ALL
            .iter()
            .find(|learnable| learnable.name() == name)
            .ok_or_else(|| ActivationError::Unknown { name: name.into() })?;
        let Some(start) = start else {
            return Ok(*learnable);
        };
        let start = read_parameters(learnable.name(), start)?;
        let learnable = learnable.with_start(&start).ok_or(ActivationError::ParameterCount {
            activation: learnable.name(),
            takes: learnable.start().len(),
            text: text.into(),
        })?;
        learnable.validate().map(|()| learnable)
    }
}

by_text!(Learnable, ActivationError);

/// Whose the learnable parameters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each activation has its own.
    Layer,
    /// One set serves all activations: [`SharedParameters`], which the network holds.
    Network,
}

/// What an activation computes in its forward pass.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Function {
    /// A curve with fixed parameters.
    Fixed(Curve),
    /// A curve with learnable parameters.
    Learnable(Learnable, Sharing),
    /// An activation that has no kernel here and runs through Burn's own module.
    Burn(BurnActivationConfig),
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Function::Fixed(this), Function::Fixed(other)) => this == other,
            (Function::Learnable(this, sharing), Function::Learnable(other, other_sharing)) => {
                this == other && sharing == other_sharing
            }
            // Burn's configurations have no equality but that of their text.
            (Function::Burn(_), Function::Burn(_)) => self.to_string() == other.to_string(),
            _ => false,
        }
    }
}

/// An activation as data: which function, and which gradient.
///
/// `Display`, `FromStr` and serde use one text form:
///
/// | text | meaning |
/// |---|---|
/// | `silu`, `elu:0.5` | a [`Curve`], with its parameters |
/// | `smooth-relu-learnable`, `psilu:2`, `pssilu` | a [`Learnable`], with its start |
/// | `psilu@network`, `pssilu@layer` | the same, with the [`Sharing`] that is not its usual one |
/// | `relu~psoftplus:10` | the value of one curve, the gradient of another |
/// | `burn:"Tanh"` | [`Function::Burn`], in the JSON of Burn's configuration |
///
/// ```
/// use sat_core::{ActivationConfig, Curve, Gradient};
///
/// let probe: ActivationConfig = "relu~psoftplus:10".parse()?;
/// assert_eq!(probe.gradient, Gradient::Of(Curve::ParametricSoftplus(10.0)));
/// assert_eq!(probe.to_string(), "relu~psoftplus:10");
/// # Ok::<(), sat_core::ActivationError>(())
/// ```
///
/// What Burn's configuration can say, this one can:
///
/// ```
/// use burn::nn::activation::ActivationConfig as Burns;
/// use sat_core::{ActivationConfig, Curve};
///
/// assert_eq!(ActivationConfig::from(Burns::Gelu), Curve::Gelu.into());
/// assert_eq!(ActivationConfig::from(Burns::Tanh).to_string(), "burn:\"Tanh\"");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
        function: Function::Learnable(Learnable::SmoothRelu { b: 20.0 }, Sharing::Layer),
        gradient: Gradient::Own,
    };

    /// The same function with another gradient.
    pub fn with_gradient(self, gradient: Gradient) -> Self {
        Self { gradient, ..self }
    }

    /// Whether every parameter lies where its curve is defined, and the gradient can be had.
    ///
    /// # Errors
    ///
    /// [`ActivationError::Parameter`] names the first parameter that does not,
    /// [`ActivationError::BurnGradient`] says that a function of Burn's cannot have another gradient.
    pub fn validate(&self) -> Result<(), ActivationError> {
        match &self.function {
            Function::Fixed(curve) => curve.validate()?,
            Function::Learnable(learnable, _) => learnable.validate()?,
            Function::Burn(_) if self.gradient != Gradient::Own => {
                return Err(ActivationError::BurnGradient { name: self.function.to_string() });
            }
            Function::Burn(_) => {}
        }
        match self.gradient {
            Gradient::Own => Ok(()),
            Gradient::Of(curve) => curve.validate(),
        }
    }

    /// Builds the module on a device.
    ///
    /// With [`Sharing::Network`] the module has no parameters of its own; it wants those of
    /// [`init_shared`](Self::init_shared) in [`Activation::forward_shared`].
    ///
    /// # Panics
    ///
    /// If [`validate`](Self::validate) gives an error. Configurations read from text are valid.
    pub fn init(&self, device: &Device) -> Activation {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let (parameters, burns) = match &self.function {
            Function::Learnable(learnable, Sharing::Layer) => {
                (Some(parameters(*learnable, device)), None)
            }
            Function::Burn(burns) => (None, Some(burns.init(device))),
            Function::Fixed(_) | Function::Learnable(_, Sharing::Network) => (None, None),
        };
        Activation { parameters, burns, config: self.clone() }
    }

    /// Builds what all activations of a network share: something with [`Sharing::Network`], nothing
    /// otherwise.
    pub fn init_shared(&self, device: &Device) -> Option<SharedParameters> {
        match self.function {
            Function::Learnable(learnable, Sharing::Network) => {
                Some(SharedParameters { parameters: parameters(learnable, device) })
            }
            _ => None,
        }
    }
}

fn parameters(learnable: Learnable, device: &Device) -> Param<Tensor<1>> {
    let start: Vec<f32> = learnable.start().into_iter().map(|start| start as f32).collect();
    Param::from_tensor(Tensor::from_floats(start.as_slice(), device))
}

impl Default for ActivationConfig {
    fn default() -> Self {
        Curve::Silu.into()
    }
}

impl From<Function> for ActivationConfig {
    fn from(function: Function) -> Self {
        Self { function, gradient: Gradient::Own }
    }
}

impl From<Curve> for ActivationConfig {
    fn from(curve: Curve) -> Self {
        Function::Fixed(curve).into()
    }
}

impl From<Learnable> for ActivationConfig {
    fn from(learnable: Learnable) -> Self {
        Function::Learnable(learnable, learnable.sharing()).into()
    }
}

/// Burn's activation with our kernels where we have them: the same function, whose gradient is that
/// of the function itself.
///
/// Softplus becomes a curve only if Burn's threshold, above which it returns x, lies where `f32` does
/// not see it.
impl From<BurnActivationConfig> for ActivationConfig {
    fn from(burns: BurnActivationConfig) -> Self {
        let curve = match &burns {
            BurnActivationConfig::Relu => Some(Curve::Relu),
            BurnActivationConfig::LeakyRelu(config) => {
                Some(Curve::LeakyRelu(config.negative_slope))
            }
            BurnActivationConfig::Gelu => Some(Curve::Gelu),
            BurnActivationConfig::GeluApproximate => Some(Curve::GeluTanh),
            BurnActivationConfig::Softplus(config) if config.threshold >= 17.0 => {
                Some(match config.beta {
                    1.0 => Curve::Softplus,
                    beta => Curve::ParametricSoftplus(beta),
                })
            }
            BurnActivationConfig::Elu(config) => Some(Curve::Elu(config.alpha)),
            BurnActivationConfig::Celu(config) => Some(Curve::Celu(config.alpha)),
            _ => None,
        };
        match curve.filter(|curve| curve.validate().is_ok()) {
            Some(curve) => curve.into(),
            None => Function::Burn(burns).into(),
        }
    }
}

const BURN: &str = "burn:";

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Function::Fixed(curve) => curve.fmt(f),
            Function::Learnable(learnable, sharing) if *sharing == learnable.sharing() => {
                learnable.fmt(f)
            }
            Function::Learnable(learnable, Sharing::Layer) => write!(f, "{learnable}@layer"),
            Function::Learnable(learnable, Sharing::Network) => write!(f, "{learnable}@network"),
            Function::Burn(burns) => {
                let json = serde_json::to_string(burns).map_err(|_| fmt::Error)?;
                write!(f, "{BURN}{json}")
            }
        }
    }
}

impl FromStr for Function {
    type Err = ActivationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(json) = text.strip_prefix(BURN) {
            return serde_json::from_str(json).map(Function::Burn).map_err(|error| {
                ActivationError::BurnConfig { text: json.into(), reason: error.to_string() }
            });
        }
        let (rest, sharing) = match text.split_once('@') {
            None => (text, None),
            Some((rest, "layer")) => (rest, Some(Sharing::Layer)),
            Some((rest, "network")) => (rest, Some(Sharing::Network)),
            Some(_) => return Err(ActivationError::Sharing { text: text.into() }),
        };
        match (rest.parse::<Learnable>(), sharing) {
            (Ok(learnable), sharing) => {
                Ok(Function::Learnable(learnable, sharing.unwrap_or(learnable.sharing())))
            }
            (Err(ActivationError::Unknown { .. }), None) => text.parse().map(Function::Fixed),
            (Err(ActivationError::Unknown { .. }), Some(_)) => {
                rest.parse::<Curve>()?;
                Err(ActivationError::Sharing { text: text.into() })
            }
            (Err(error), _) => Err(error),
        }
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
            Some((function, gradient)) => (function, gradient.parse()?),
        };
        let config = Self { function: function.parse()?, gradient };
        config.validate().map(|()| config)
    }
}

by_text!(ActivationConfig, ActivationError);

/// The learnable parameters that all activations of a network share; the network holds them.
#[derive(Clone, Debug)]
pub struct SharedParameters {
    parameters: Param<Tensor<1>>,
}

module!(SharedParameters in SHARED_CONTAINER; parameters);

impl SharedParameters {
    /// The learned numbers.
    pub fn parameters(&self) -> &Param<Tensor<1>> {
        &self.parameters
    }
}

/// An activation as a module: put it where Burn's own activation stands.
///
/// Learnable parameters are one tensor of one or two numbers on the device, never read back to the
/// host; [`activation_parameters`] finds them, for a parameter group without weight decay.
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
#[derive(Clone, Debug)]
pub struct Activation {
    parameters: Option<Param<Tensor<1>>>,
    burns: Option<BurnActivation>,
    config: ActivationConfig,
}

impl Activation {
    /// Applies the function elementwise; input and output have the same shape.
    ///
    /// # Panics
    ///
    /// If the parameters are shared across the network ([`Sharing::Network`]): call
    /// [`forward_shared`](Self::forward_shared).
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_shared(x, None)
    }

    /// Applies the function with the parameters that the network shares, if it is one that shares.
    ///
    /// # Panics
    ///
    /// If the activation needs shared parameters and there are none.
    pub fn forward_shared<const D: usize>(
        &self,
        x: Tensor<D>,
        shared: Option<&SharedParameters>,
    ) -> Tensor<D> {
        match &self.burns {
            // In the type of alpha, which may be another than that of x, as with learned parameters of ours.
            Some(BurnActivation::PRelu(layer)) => {
                let (dtype, alpha) = (x.dtype(), layer.alpha.val().dequantize());
                return burn::tensor::activation::prelu(x.cast(alpha.dtype()), alpha).cast(dtype);
            }
            Some(burns) => return burns.forward(x),
            None => {}
        }
        match self.kernel(shared) {
            Some((pair, None)) => activate(x, pair),
            Some((pair, Some(parameters))) => activate_with_parameters(x, parameters, pair),
            None => unreachable!("an activation of Burn's is built with its module"),
        }
    }

    /// The curves, and the parameters that are a tensor, if the activation has a kernel here.
    pub(crate) fn kernel(
        &self,
        shared: Option<&SharedParameters>,
    ) -> Option<(Pair, Option<Tensor<1>>)> {
        let gradient = self.config.gradient;
        match self.config.function {
            Function::Fixed(value) => Some((Pair { value, gradient }, None)),
            Function::Learnable(learnable, sharing) => {
                let learned = match sharing {
                    Sharing::Layer => self.parameters.as_ref(),
                    Sharing::Network => shared.map(SharedParameters::parameters),
                };
                let learned = learned.unwrap_or_else(|| {
                    panic!(
                        "activation `{learnable}` shares its parameters across the network: pass \
                         those of `ActivationConfig::init_shared` to `forward_shared`, or give each \
                         layer its own with `{learnable}@layer`"
                    )
                });
                let pair = Pair { value: learnable.curve(), gradient };
                Some((pair, Some(learnable.transform(learned.val().dequantize()))))
            }
            Function::Burn(_) => None,
        }
    }

    /// What the module was built from. Learned parameters are in [`parameters`](Self::parameters).
    pub fn config(&self) -> &ActivationConfig {
        &self.config
    }

    /// The learnable numbers, for an activation that has its own: b of
    /// [`Learnable::SmoothRelu`], a of [`Learnable::PSilu`], a and b of [`Learnable::PsSilu`].
    pub fn parameters(&self) -> Option<&Param<Tensor<1>>> {
        self.parameters.as_ref()
    }

    /// The same activation, parameters and all, with another gradient in its backward pass.
    ///
    /// # Panics
    ///
    /// If [`ActivationConfig::validate`] refuses the pair.
    pub fn with_gradient(mut self, gradient: Gradient) -> Self {
        self.config.gradient = gradient;
        if let Err(error) = self.config.validate() {
            panic!("{error}");
        }
        self
    }
}

// Names that no derive gives, so that a user's own `Activation` is not taken for this one.
const CONTAINER: &str = "Struct:sat_core::Activation";
const SHARED_CONTAINER: &str = "Struct:sat_core::SharedParameters";
const PARAMETERS: &str = "parameters";
const BURNS: &str = "burns";

thread_local! {
    /// What is done to each activation, while [`replace_activations`] or [`replace_gradients`] maps.
    static REPLACEMENT: RefCell<Option<Replacement>> = const { RefCell::new(None) };
}

#[derive(Clone)]
enum Replacement {
    Activation(ActivationConfig, Device),
    Gradient(Gradient),
}

// By hand, not derived, so that `map` can exchange the activation: Burn's mappers see parameters
// alone.
impl Module for Activation {
    fn collect_devices(&self, devices: Vec<Device>) -> Vec<Device> {
        self.burns.collect_devices(self.parameters.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        Self { parameters: self.parameters.fork(device), burns: self.burns.fork(device), ..self }
    }

    fn to_device(self, device: &Device) -> Self {
        let burns = self.burns.to_device(device);
        Self { parameters: self.parameters.to_device(device), burns, ..self }
    }

    fn train(self) -> Self {
        Self { parameters: self.parameters.train(), burns: self.burns.train(), ..self }
    }

    fn valid(&self) -> Self {
        Self {
            parameters: self.parameters.valid(),
            burns: self.burns.valid(),
            config: self.config.clone(),
        }
    }

    fn materialize(self) -> Self {
        Self { parameters: self.parameters.materialize(), burns: self.burns.materialize(), ..self }
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(PARAMETERS, CONTAINER);
        self.parameters.visit(visitor);
        visitor.exit_module(PARAMETERS, CONTAINER);
        visitor.enter_module(BURNS, CONTAINER);
        self.burns.visit(visitor);
        visitor.exit_module(BURNS, CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        match REPLACEMENT.with_borrow(Option::clone) {
            None => {}
            Some(Replacement::Activation(config, device)) => return config.init(&device),
            Some(Replacement::Gradient(gradient)) => return self.with_gradient(gradient),
        }
        mapper.enter_module(PARAMETERS, CONTAINER);
        let parameters = Module::map(self.parameters, mapper);
        mapper.exit_module(PARAMETERS, CONTAINER);
        mapper.enter_module(BURNS, CONTAINER);
        let burns = Module::map(self.burns, mapper);
        mapper.exit_module(BURNS, CONTAINER);
        Self { parameters, burns, config: self.config }
    }
}

impl ModuleDisplayDefault for Activation {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_debug_attribute("config", &self.config.to_string()).optional()
    }
}

impl ModuleDisplay for Activation {}

/// Replaces every [`Activation`] in a module tree; all other weights stay.
///
/// Learnable parameters start anew, on `device`: that of the module, with autodiff if it is in training, for
/// without it they are not learned. A network whose activations share parameters holds
/// them itself: replacing to or from [`Sharing::Network`] is for the network to do.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::Device};
/// use sat_core::{Activation, ActivationConfig, Curve, replace_activations};
///
/// #[derive(Module, Debug)]
/// struct Layer {
///     linear: Linear,
///     act: Activation,
/// }
///
/// let device = Device::flex();
/// let linear = LinearConfig::new(4, 4).init(&device);
/// let layer = Layer { linear, act: ActivationConfig::from(Curve::Relu).init(&device) };
/// let smooth = replace_activations(layer, &"silu".parse()?, &device);
/// assert_eq!(smooth.act.config(), &Curve::Silu.into());
/// # }
/// # Ok::<(), sat_core::ActivationError>(())
/// ```
///
/// # Panics
///
/// If [`ActivationConfig::validate`] refuses the configuration.
pub fn replace_activations<M: Module>(module: M, config: &ActivationConfig, device: &Device) -> M {
    if let Err(error) = config.validate() {
        panic!("{error}");
    }
    replace(module, Replacement::Activation(config.clone(), device.clone()))
}

/// Sets the gradient of every [`Activation`] in a module tree; values, parameters and weights stay.
///
/// This is how the attack inside a training sees another gradient than the optimizer.
///
/// # Panics
///
/// If [`ActivationConfig::validate`] refuses the gradient for one of the activations.
pub fn replace_gradients<M: Module>(module: M, gradient: Gradient) -> M {
    replace(module, Replacement::Gradient(gradient))
}

fn replace<M: Module>(module: M, replacement: Replacement) -> M {
    struct Keep;
    impl ModuleMapper for Keep {}
    /// Ends the replacement, also when mapping panics.
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            REPLACEMENT.set(None);
        }
    }
    REPLACEMENT.set(Some(replacement));
    let _ended = Ended;
    module.map(&mut Keep)
}

/// The learnable parameters of all activations in a module tree, shared ones too, and alpha where an
/// [`Activation`] runs Burn's PReLU.
///
/// They are no weights, and the papers that have them spare them from weight decay: give these ids to
/// a parameter group of the optimizer.
pub fn activation_parameters<M: Module>(module: &M) -> Vec<ParamId> {
    #[derive(Default)]
    struct Collect {
        /// For each module entered, whether what lies in it is a parameter of an activation.
        inside: Vec<Inside>,
        found: Vec<ParamId>,
    }
    #[derive(Clone, Copy, PartialEq)]
    enum Inside {
        Parameters,
        /// Weights, but for PReLU's alpha.
        Burns,
        Elsewhere,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            let inside = match (self.inside.last(), container, name) {
                (_, CONTAINER | SHARED_CONTAINER, PARAMETERS) => Inside::Parameters,
                (_, CONTAINER, BURNS) => Inside::Burns,
                (Some(Inside::Burns), "Struct:PRelu", _) => Inside::Parameters,
                (Some(Inside::Burns), ..) => Inside::Burns,
                _ => Inside::Elsewhere,
            };
            self.inside.push(inside);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.inside.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.inside.last() == Some(&Inside::Parameters) {
                self.found.push(param.id);
            }
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.found
}
