use crate::{
    data::Augment,
    objective::{Objective, Perturbation},
    precision::Precision,
    schedule::Schedule,
    units::{number_or_fraction, some_number_or_fraction},
};
use sat_attack::{Loss, NFgsm, Norm, Pgd, RandomStart, ThreatModel};
use sat_core::Gradient;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How to train, as data: everything that decides the weights, except the network and the images.
///
/// The default is the recipe of arXiv 2006.14536 in miniature: single-step PGD with a random start in
/// four of five batches, SGD with Nesterov momentum, a weight decay that spares normalisation, biases
/// and activation parameters, and label smoothing.
///
/// As a file it is TOML or JSON; unknown fields are refused, fields that are left out have the
/// default's value. The exception is `attack`: a recipe in a file says so if it wants one.
///
/// ```
/// use sat_train::Recipe;
///
/// let recipe = Recipe::from_toml(
///     r#"
///     epochs = 30
///     schedule = { kind = "cyclic", lr = 0.2, peak = 0.4 }
///     [attack]
///     eps = "8/255"
///     start = { kind = "uniform", probability = 1.0 }
///     "#,
/// )?;
/// assert_eq!(recipe.attack.map(|attack| attack.eps), Some(8.0 / 255.0));
/// # Ok::<(), sat_train::RecipeFileError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Passes over the training set, at least 1.
    pub epochs: usize,
    /// Images per update of the weights, at least 1. The last images of an epoch that fill no batch
    /// are left out; the order changes from epoch to epoch.
    pub batch_size: usize,
    /// Each batch goes through the network in so many equal parts, at least 1, and the gradient is the
    /// mean over the parts: less memory, the same update. BatchNorm's statistics are those of a
    /// part, and each part draws its own random start.
    pub parts: usize,
    /// The seed of the data order, the augmentation and the attack's noise.
    pub seed: u64,
    /// So many training images, drawn by the seed, are not trained on: after each epoch FGSM and
    /// PGD-10 attack them, to see catastrophic overfitting. 0 for none.
    pub hold_out: usize,
    /// Which epoch's weights are the result.
    pub select: Select,
    /// SGD's momentum, in [0, 1), without dampening, as PyTorch defines it.
    pub momentum: f64,
    /// Which momentum.
    pub momentum_form: MomentumForm,
    /// The coefficient of 1/2 |w|^2, at least 0.
    pub weight_decay: f64,
    /// What decays.
    pub decayed: Decayed,
    /// The largest norm of the gradient of all parameters together, above 0; longer ones are scaled
    /// down to it, as `torch.nn.utils.clip_grad_norm_` does. Without it they stay.
    pub clip_norm: Option<f64>,
    /// The share of the target distribution that is spread evenly over all classes, in [0, 1).
    pub label_smoothing: f64,
    /// The decay d of a moving average of weights and statistics, in [0, 1), which becomes the
    /// result: after update t, counted from 1, average = d' average + (1 - d') weights with
    /// d' = min(d, (1 + t)/(10 + t)), as in TensorFlow. Without it there is none.
    pub average: Option<f64>,
    /// What the network computes in while it trains.
    pub precision: Precision,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// The attack that makes the training images; none trains on clean images.
    #[serde(default)]
    pub attack: Option<TrainingAttack>,
    /// What the weights minimise.
    pub objective: Objective,
    /// Adversarial perturbation of the weights, on top of any objective; none by default.
    pub weight_perturbation: Option<Perturbation>,
    /// What is done to training images before the attack.
    pub augment: Augment,
}

/// The form of SGD's momentum. v is the velocity, g the gradient with weight decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MomentumForm {
    /// v <- m v + g, w <- w - lr (g + m v).
    #[default]
    Nesterov,
    /// v <- m v + g, w <- w - lr v.
    HeavyBall,
}

/// Which epoch's weights are the result of a training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The last.
    #[default]
    Last,
    /// That whose held-out images withstood PGD-10 best, the first of equal ones: training for long
    /// overfits (Rice et al. 2020, arXiv 2002.11569). Needs `hold_out`.
    HeldOut,
}

/// Which parameters decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decayed {
    /// The weights of convolutions and linear layers: parameters of more than one axis. Normalisation
    /// gains and offsets, biases and activation parameters are spared, as in arXiv 2006.14536.
    #[default]
    Weights,
    /// All but activation parameters.
    AllButActivations,
    /// All.
    All,
}

/// The attack inside training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingAttack {
    /// The norm of the perturbation: `linf`, `l2` or `l1`.
    pub norm: Norm,
    /// The largest perturbation, in units of images in [0, 1]; a number, or a text such as `"8/255"`. L2
    /// and L1 have no usual size and need it.
    #[serde(deserialize_with = "number_or_fraction")]
    pub eps: f64,
    /// Gradient steps per batch, at least 1.
    pub steps: usize,
    /// Length of a step, as `eps`. Without it: eps for a single step, 2.5 eps / steps for several.
    #[serde(deserialize_with = "some_number_or_fraction")]
    pub step_size: Option<f64>,
    /// Where the attack starts.
    pub start: AttackStart,
    /// The gradient of the activations in the attacker's backward pass: `own`, or a curve such as
    /// `psoftplus:10`. Without it: that of the network, which is also the optimizer's.
    pub gradient: Option<Gradient>,
}

/// Where the attack inside training starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttackStart {
    /// From the clean images.
    Clean,
    /// From random points of the ball with this probability, in [0, 1], else from the clean images;
    /// one draw per batch.
    Uniform {
        /// The probability.
        probability: f64,
    },
    /// From the clean images with normal noise, as TRADES and MART do (with 0.001).
    Normal {
        /// The noise's standard deviation, in units of images in [0, 1], above 0.
        #[serde(deserialize_with = "number_or_fraction")]
        std: f64,
    },
    /// N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): uniform noise of `spread` times eps, and one
    /// step of eps from there that is not projected back to the ball. For Linf and one step.
    NFgsm {
        /// At least 0; the paper's choice is 2.
        spread: f64,
    },
}

impl Default for TrainingAttack {
    fn default() -> Self {
        Self {
            norm: Norm::Linf,
            eps: 8.0 / 255.0,
            steps: 1,
            step_size: None,
            start: AttackStart::Uniform { probability: 0.8 },
            gradient: None,
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch_size: 128,
            parts: 1,
            seed: 0,
            hold_out: 0,
            select: Select::default(),
            momentum: 0.9,
            momentum_form: MomentumForm::default(),
            weight_decay: 5e-4,
            decayed: Decayed::default(),
            clip_norm: None,
            label_smoothing: 0.1,
            average: None,
            precision: Precision::default(),
            schedule: Schedule::default(),
            attack: Some(TrainingAttack::default()),
            objective: Objective::default(),
            weight_perturbation: None,
            augment: Augment::default(),
        }
    }
}

/// A field of a [`Recipe`] that no training can use.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("recipe: `{field}` is {value}; it must be {expected}")]
pub struct RecipeError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: f64,
    /// What would do.
    pub expected: &'static str,
}

/// A recipe file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeFileError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The name ends neither in `.toml` nor in `.json`.
    #[error("{} is no recipe: its name must end in .toml or .json", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// The file's text is no recipe.
    #[error("{}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with its text.
        source: Box<RecipeFileError>,
    },
    /// The text is no TOML, or has unknown fields or values.
    #[error("recipe: {0}")]
    Toml(#[from] toml::de::Error),
    /// The text is no JSON, or has unknown fields or values.
    #[error("recipe: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of its range.
    #[error(transparent)]
    Invalid(#[from] RecipeError),
}

impl RecipeError {
    /// The error about a field, unless it is valid.
    pub(crate) fn unless(
        valid: bool,
        field: &'static str,
        value: f64,
        expected: &'static str,
    ) -> Result<(), Self> {
        if valid { Ok(()) } else { Err(Self { field, value, expected }) }
    }
}

impl Recipe {
    /// Reads a recipe and checks it.
    ///
    /// # Errors
    ///
    /// [`RecipeFileError`].
    pub fn from_toml(text: &str) -> Result<Self, RecipeFileError> {
        let recipe: Self = toml::from_str(text)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Reads a recipe and checks it.
    ///
    /// # Errors
    ///
    /// [`RecipeFileError`].
    pub fn from_json(text: &str) -> Result<Self, RecipeFileError> {
        let recipe: Self = serde_json::from_str(text)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Reads a `.toml` or `.json` file and checks it.
    ///
    /// # Errors
    ///
    /// [`RecipeFileError`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, RecipeFileError> {
        let path = path.as_ref();
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Self::from_toml,
            Some("json") => Self::from_json,
            _ => return Err(RecipeFileError::Extension { path: path.to_owned() }),
        };
        let text = fs::read_to_string(path)
            .map_err(|source| RecipeFileError::Read { path: path.to_owned(), source })?;
        parse(&text).map_err(|source| RecipeFileError::Content {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// The recipe as TOML, with every field but those that are off.
    ///
    /// # Panics
    ///
    /// If `seed` is above `i64::MAX`, which TOML cannot hold.
    pub fn to_toml(&self) -> String {
        match toml::to_string(self) {
            Ok(text) => text,
            Err(error) => panic!("a recipe as TOML: {error}"),
        }
    }

    /// The same recipe over so many epochs: warm-up and milestones of its schedule are stretched or
    /// shortened in proportion.
    pub fn with_epochs(mut self, epochs: usize) -> Self {
        if self.epochs > 0 {
            self.schedule = self.schedule.stretched(epochs as f64 / self.epochs as f64);
        }
        self.epochs = epochs;
        self
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field out of its range.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let check = RecipeError::unless;
        let count = |field, value: usize| check(value > 0, field, value as f64, "at least 1");
        count("epochs", self.epochs)?;
        count("batch_size", self.batch_size)?;
        count("parts", self.parts)?;
        let divides = self.batch_size.is_multiple_of(self.parts);
        check(divides, "parts", self.parts as f64, "a divisor of `batch_size`")?;
        let seed = i64::try_from(self.seed).is_ok();
        check(seed, "seed", self.seed as f64, "below 2^63, so that TOML can hold it")?;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        check(unit(self.momentum), "momentum", self.momentum, "in [0, 1)")?;
        check(unit(self.label_smoothing), "label_smoothing", self.label_smoothing, "in [0, 1)")?;
        let decay = self.weight_decay;
        check(decay.is_finite() && decay >= 0.0, "weight_decay", decay, "finite and at least 0")?;
        if let Some(norm) = self.clip_norm {
            check(norm.is_finite() && norm > 0.0, "clip_norm", norm, "finite and above 0")?;
        }
        if let Some(decay) = self.average {
            check(unit(decay), "average", decay, "in [0, 1)")?;
        }
        if let Some(attack) = &self.attack {
            attack.validate()?;
        }
        let held = self.hold_out as f64;
        let valid = self.hold_out == 0 || self.attack.is_some();
        check(valid, "hold_out", held, "0 without an [attack]")?;
        let valid = self.select == Select::Last || self.hold_out > 0;
        check(valid, "hold_out", held, "above 0 to select an epoch by")?;
        self.objective.validate(self.attack.as_ref())?;
        if let Some(alpha) = self.augment.mixup {
            let field = "augment.mixup";
            check(alpha.is_finite() && alpha > 0.0, field, alpha, "finite and above 0")?;
            let mart = matches!(self.objective, Objective::Mart { .. });
            let one_label = "left out with the objective `mart`, which takes one label an image";
            check(!mart, field, alpha, one_label)?;
        }
        if let Some(perturbation) = &self.weight_perturbation {
            perturbation.validate()?;
        }
        self.schedule.validate()
    }
}

impl TrainingAttack {
    fn validate(&self) -> Result<(), RecipeError> {
        let check = RecipeError::unless;
        let Self { norm, eps, steps, step_size, start, .. } = *self;
        check(eps.is_finite() && eps >= 0.0, "attack.eps", eps, "finite and at least 0")?;
        let below_one = "below 1 for Linf, since images lie in [0, 1]; did you mean a fraction, \
                         such as \"8/255\" instead of 8?";
        check(norm != Norm::Linf || eps < 1.0, "attack.eps", eps, below_one)?;
        let left_out = norm != Norm::Linf && eps == Self::default().eps;
        let other = "given for l2 and l1; 8/255 is the default of linf, and hardly meant here";
        check(!left_out, "attack.eps", eps, other)?;
        check(steps > 0, "attack.steps", steps as f64, "at least 1")?;
        if let Some(size) = step_size {
            let valid = size.is_finite() && size > 0.0;
            check(valid, "attack.step_size", size, "finite and above 0")?;
            check(norm != Norm::Linf || size < 1.0, "attack.step_size", size, below_one)?;
        }
        match start {
            AttackStart::Clean => Ok(()),
            AttackStart::Uniform { probability } => {
                let valid = (0.0..=1.0).contains(&probability);
                check(valid, "attack.start.probability", probability, "in [0, 1]")
            }
            AttackStart::Normal { std } => {
                let valid = std.is_finite() && std > 0.0;
                check(valid, "attack.start.std", std, "finite and above 0")
            }
            AttackStart::NFgsm { spread } => {
                let valid = spread.is_finite() && spread >= 0.0;
                check(valid, "attack.start.spread", spread, "finite and at least 0")?;
                check(steps == 1, "attack.steps", steps as f64, "1 with the start `n-fgsm`")?;
                check(
                    norm == Norm::Linf,
                    "attack.start.spread",
                    spread,
                    "left to the norm `linf`: `n-fgsm` exists for no other",
                )?;
                let size = step_size.unwrap_or(eps);
                check(size == eps, "attack.step_size", size, "left out with the start `n-fgsm`")
            }
        }
    }

    /// The threat model of the attack.
    pub fn threat(&self) -> ThreatModel {
        ThreatModel::new(self.norm, self.eps)
    }

    /// The attack as projected gradient descent; `seed` decides its noise.
    pub(crate) fn pgd(&self, seed: u64, loss: Loss) -> Pgd {
        let random_start = match self.start {
            AttackStart::Uniform { probability } => RandomStart::WithProbability(probability),
            AttackStart::Clean | AttackStart::Normal { .. } | AttackStart::NFgsm { .. } => {
                RandomStart::Never
            }
        };
        let pgd = Pgd::default().steps(self.steps).random_start(random_start).seed(seed).loss(loss);
        match self.step_size {
            Some(size) => pgd.step_size(size),
            None if self.steps == 1 => pgd.relative_step_size(1.0),
            None => pgd,
        }
    }

    /// The attack as N-FGSM, if it is that.
    pub(crate) fn n_fgsm(&self, seed: u64, loss: Loss) -> Option<NFgsm> {
        match self.start {
            AttackStart::NFgsm { spread } => {
                Some(NFgsm::default().spread(spread).seed(seed).loss(loss))
            }
            _ => None,
        }
    }
}
