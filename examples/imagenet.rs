//! Adversarial training and evaluation on a folder of photographs, such as ImageNet.
//!
//! ```text
//! cargo run --release --features cuda --example imagenet -- train --data imagenet --model resnet50 --device cuda
//! cargo run --release --example imagenet -- evaluate --data imagenet --model efficientnet_lite0 --weights W.pth
//! ```
//!
//! The folder holds `train/<class>/` and `val/<class>/`, or the class folders themselves. The images are
//! read while the network works; `docs/data.md` says how.

mod common;

use burn::tensor::{Device, Tensor};
use clap::{Args, Parser, Subcommand, ValueEnum};
use common::{
    linf_eps,
    output::{check_free, check_writable, write},
    progress::train_under_bar,
    recorded::{self, Recorded},
    replace_attack,
    stop::{self, Stopped},
};
use indicatif::{ProgressBar, ProgressStyle};
use sat::{
    attack::{Identity, Pgd, Report, ThreatModel, Victim, evaluate},
    core::{ActivationConfig, device::DeviceName},
    models::{self, Model, ModelName, NetworkConfig, load_weights, save_safetensors},
    train::{
        Checkpoints, EpochSummary, Normalized, Recipe, Start,
        data::{BrokenImage, EvaluateTransform, ImageFolder, LoaderConfig, Photographs, Transform},
    },
};
use serde::Serialize;
use std::{
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

const RECIPE: &str = include_str!("recipes/imagenet-resnet.toml");

/// Trains or evaluates a network on a folder of photographs.
#[derive(Parser, Debug)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Train against PGD, by the recipe of arXiv 2006.14536.
    Train(Train),
    /// Measure clean and robust accuracy.
    Evaluate(Evaluate),
}

#[derive(Args, Debug, Serialize)]
struct Common {
    /// A folder with train/<class>/ and val/<class>/ folders of photographs, or with the class folders.
    #[arg(long)]
    data: PathBuf,
    /// The network, such as resnet50 or efficientnet_lite0. By default the one that the weights file
    /// describes.
    #[arg(long)]
    model: Option<ModelName>,
    /// Padding and normalisation of an EfficientNet. By default those of the paper to train one from
    /// random weights, else TensorFlow's.
    #[arg(long, value_enum)]
    conventions: Option<Conventions>,
    /// The activation, such as silu; by default that of the weights file, else the network's own. Weights
    /// of other programs need it, but for EfficientNets of TensorFlow's conventions.
    #[arg(long)]
    #[serde(serialize_with = "as_text")]
    activation: Option<ActivationConfig>,
    /// Weights to start from or to evaluate: safetensors or PyTorch. A file of this program knows its
    /// network, activation, normalisation and resolution; for others they must be those of its training.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// The normalisation in front of the network. By default that of the weights file, else `lite` for
    /// EfficientNet-Lite, and `plus-minus-one` for others that start from random weights.
    #[arg(long, value_enum)]
    normalization: Option<Normalization>,
    /// Height and width of the images in pixels. By default those of the weights file, else what the
    /// network is made for.
    #[arg(long)]
    resolution: Option<u32>,
    /// Images at a time: in training in place of the recipe's, else 32.
    #[arg(long, value_parser = positive)]
    batch: Option<usize>,
    /// Use so many photographs, spread evenly over the classes.
    #[arg(long, value_parser = positive)]
    limit: Option<usize>,
    /// The largest change of a pixel, for images in [0, 1]: in training in place of the recipe's (the
    /// step size is then --step-size or follows from it), else 4/255.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    eps: Option<f64>,
    /// What a photograph does that cannot be decoded.
    #[arg(long, value_enum, default_value_t = Broken::Stop)]
    broken: Broken,
    /// The seed of everything random: in training in place of the recipe's, else 0.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    #[serde(serialize_with = "to_text")]
    device: DeviceName,
    /// The folder of the results.
    #[arg(long, default_value = "imagenet-run")]
    out: PathBuf,
}

#[derive(Args, Debug, Serialize)]
struct Train {
    #[command(flatten)]
    common: Common,
    /// A recipe, .toml or .json; examples/recipes/imagenet-resnet.toml by default.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// In place of the recipe's passes over the photographs; warm-up and milestones of its schedule are
    /// stretched along.
    #[arg(long, value_parser = positive)]
    epochs: Option<usize>,
    /// Stop after so many steps, within an epoch or not.
    #[arg(long, value_parser = positive)]
    steps: Option<usize>,
    /// In place of the recipe's learning rate, for a batch of the recipe's size; either is scaled to
    /// the size of the batch.
    #[arg(long)]
    lr: Option<f64>,
    /// In place of the recipe's gradient steps of the attack; 0 trains on clean images. The step size
    /// is then --step-size, or eps for one step and 2.5 eps / steps for several.
    #[arg(long)]
    attack_steps: Option<usize>,
    /// In place of the recipe's length of a step, for images in [0, 1].
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    step_size: Option<f64>,
    /// Go on with the run in the folder of --out that was stopped.
    #[arg(long)]
    resume: bool,
}

#[derive(Args, Debug, Serialize)]
struct Evaluate {
    #[command(flatten)]
    common: Common,
    /// Gradient steps of PGD; 0 measures clean accuracy alone.
    #[arg(long, default_value_t = 10)]
    attack_steps: usize,
    /// Length of a step; 2.5 eps / steps by default.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    step_size: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
#[value(rename_all = "kebab-case")]
enum Conventions {
    /// SAME padding, BatchNorm with an epsilon of 1e-3 and a momentum of 0.01.
    Tensorflow,
    /// Symmetric padding, BatchNorm with an epsilon of 1e-5 and a momentum of 0.1.
    Torchvision,
    /// SAME padding, BatchNorm with an epsilon of 1e-5 and a momentum of 0.1, as in arXiv 2006.14536.
    Paper,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Normalization {
    /// None: x.
    None,
    /// x * 2 - 1, as in arXiv 2006.14536.
    PlusMinusOne,
    /// (x * 255 - 127) / 128, as in EfficientNet-Lite.
    Lite,
    /// ImageNet's mean and standard deviation of each channel, as in torchvision.
    Imagenet,
}

#[derive(Clone, Copy, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Broken {
    /// It ends the run.
    Stop,
    /// It is left out and reported.
    Skip,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if value > 0 => Ok(value),
        _ => Err("a whole number above 0 is needed".to_owned()),
    }
}

fn to_text<S: serde::Serializer>(value: &impl ToString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

fn as_text<S: serde::Serializer>(value: &Option<impl ToString>, to: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(ToString::to_string).serialize(to)
}

/// What a training leaves in `training.json`, an evaluation in `evaluation.json`.
#[derive(Serialize)]
struct RunReport<'a, A: Serialize, R: Serialize> {
    command: Vec<String>,
    version: &'static str,
    settings: &'a A,
    photographs: usize,
    classes: usize,
    resolution: u32,
    /// Whether the run came to its end.
    complete: bool,
    skipped: Vec<String>,
    result: R,
}

#[derive(Serialize)]
struct Training {
    recipe: Recipe,
    steps: usize,
    seconds: f64,
    /// Of them, how many were spent waiting for photographs.
    seconds_waiting: f64,
    images_per_second: f64,
    /// Mean loss on the adversarial images, step by step since the run was begun or resumed.
    losses: Vec<f64>,
    history: Vec<EpochSummary>,
}

#[derive(Debug, thiserror::Error)]
enum ImageNetError {
    #[error("the weights file does not say which network it is for; give --model")]
    NoModel,
    #[error(
        "{} is for another network than --model names; leave --model out to take the file's",
        .0.display()
    )]
    OtherModel(PathBuf),
    #[error("{} is for images of other than 3 channels, and photographs have 3", .0.display())]
    NotRgb(PathBuf),
    #[error("--conventions are of EfficientNets from a --model name")]
    NoConventions,
    #[error("the weights file does not say for which resolution it is; give --resolution")]
    NoResolution,
    #[error("--batch 1 has no batch statistics to train with; give at least 2")]
    OneImage,
    #[error("evaluation needs --weights")]
    NoWeights,
    #[error(
        "{} does not say which {what} its network was trained with; give {option}", path.display()
    )]
    Unsaid { path: PathBuf, what: &'static str, option: &'static str },
}

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse().task))
}

fn run(task: &Task) -> Result<(), Failure> {
    stop::on_ctrl_c()?;
    match task {
        Task::Train(arguments) => train(arguments),
        Task::Evaluate(arguments) => measure(arguments),
    }
}

impl Common {
    /// The photographs, and which of them are used.
    fn photographs(&self, part: &str) -> Result<(ImageFolder, Vec<usize>), Failure> {
        let below = self.data.join(part);
        let split = ["train", "val"].iter().any(|part| self.data.join(part).is_dir());
        let folder = match split {
            true => ImageFolder::open(below)?,
            false => ImageFolder::open(&self.data)?,
        };
        let used = folder.spread(self.limit.unwrap_or(usize::MAX));
        Ok((folder, used))
    }

    /// What the weights file says of itself.
    fn recorded(&self) -> Result<Option<Recorded>, Failure> {
        Ok(self.weights.as_deref().map(Recorded::of).transpose()?)
    }

    fn network(
        &self,
        recorded: Option<&Recorded>,
        classes: usize,
    ) -> Result<NetworkConfig, Failure> {
        let path = || self.weights.clone().unwrap_or_default();
        let named = self.model.map(|name| self.named(name)).transpose()?;
        let described = match recorded.map(Recorded::network).transpose() {
            // A description of another version: the command line's network stands.
            Err(_) if named.is_some() => None,
            described => described?.flatten(),
        };
        let network = match (described, named) {
            (None, None) => return Err(ImageNetError::NoModel.into()),
            (None, Some(_))
                if self.weights.is_some() && self.activation.is_none() && !self.is_tensorflow() =>
            {
                return Err(self.unsaid("activation", "--activation").into());
            }
            (None, Some(named)) => named,
            (Some(_), None) if self.conventions.is_some() => {
                return Err(ImageNetError::NoConventions.into());
            }
            (Some(described), None) => described,
            (Some(described), Some(named)) => {
                let named = named
                    .with_classes(described.classes())
                    .with_activation(described.activation().clone());
                if named != described {
                    return Err(ImageNetError::OtherModel(path()).into());
                }
                named
            }
        };
        if network.input_channels() != 3 {
            return Err(ImageNetError::NotRgb(path()).into());
        }
        let network = network.with_classes(classes);
        Ok(match &self.activation {
            Some(activation) => network.with_activation(activation.clone()),
            None => network,
        })
    }

    /// The network of that name, by the conventions of the command line.
    fn named(&self, name: ModelName) -> Result<NetworkConfig, ImageNetError> {
        match (name.config(), self.conventions) {
            (NetworkConfig::EfficientNet(config), Some(conventions)) => {
                let conventions = match conventions {
                    Conventions::Tensorflow => models::Conventions::TensorFlow,
                    Conventions::Torchvision => models::Conventions::Torchvision,
                    Conventions::Paper => models::Conventions::Paper,
                };
                Ok(config.with_conventions(conventions).into())
            }
            (NetworkConfig::EfficientNet(config), None) if self.weights.is_none() => {
                Ok(config.with_conventions(models::Conventions::Paper).into())
            }
            (_, Some(_)) => Err(ImageNetError::NoConventions),
            (network, None) => Ok(network),
        }
    }

    /// Whether the name is of an EfficientNet of TensorFlow's conventions, whose activation follows
    /// from it.
    fn is_tensorflow(&self) -> bool {
        let efficientnet =
            |name: ModelName| matches!(name.config(), NetworkConfig::EfficientNet(_));
        self.model.is_some_and(efficientnet)
            && matches!(self.conventions, None | Some(Conventions::Tensorflow))
    }

    fn unsaid(&self, what: &'static str, option: &'static str) -> ImageNetError {
        ImageNetError::Unsaid { path: self.weights.clone().unwrap_or_default(), what, option }
    }

    fn model(
        &self,
        recorded: Option<&Recorded>,
        network: &NetworkConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Normalized<Model>, Failure> {
        let mut model = network.init(seed, device);
        if let Some(weights) = &self.weights {
            model = load_weights(model, weights)?;
        }
        let known = match self.normalization {
            Some(given) => Some(given.statistics()),
            None => recorded.map(Recorded::normalization).transpose()?.flatten(),
        };
        let lite = self.model.is_some_and(|name| name.to_string().contains("lite"));
        let (mean, std) = match known {
            Some((mean, _)) if mean.len() != 3 => {
                return Err(ImageNetError::NotRgb(self.weights.clone().unwrap_or_default()).into());
            }
            Some(statistics) => statistics,
            None if lite => Normalization::Lite.statistics(),
            None if self.weights.is_some() => {
                return Err(self.unsaid("normalisation", "--normalization").into());
            }
            None => Normalization::PlusMinusOne.statistics(),
        };
        Ok(Normalized::new(model, &mean, &std)?)
    }

    fn resolution(&self, recorded: Option<&Recorded>) -> Result<u32, Failure> {
        if let Some(given) = self.resolution {
            return Ok(given);
        }
        // Sides of the registry are a few hundred pixels.
        let made_for = self.model.map(|name| name.image_size()[0] as u32);
        let recorded = recorded.map(Recorded::resolution).transpose()?.flatten();
        Ok(recorded.or(made_for).ok_or(ImageNetError::NoResolution)?)
    }

    fn broken(&self) -> BrokenImage {
        match self.broken {
            Broken::Stop => BrokenImage::Stop,
            Broken::Skip => BrokenImage::Skip,
        }
    }
}

impl Normalization {
    fn statistics(self) -> common::recorded::Statistics {
        let (mean, std) = match self {
            Normalization::None => ([0.0; 3], [1.0; 3]),
            Normalization::PlusMinusOne => ([0.5; 3], [0.5; 3]),
            Normalization::Lite => ([127.0 / 255.0; 3], [128.0 / 255.0; 3]),
            Normalization::Imagenet => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        };
        (mean.to_vec(), std.to_vec())
    }
}

impl Train {
    /// The recipe of a file or that of the paper, and what stands in for its values.
    fn recipe(&self) -> Result<Recipe, Failure> {
        let common = &self.common;
        let mut recipe = match &self.recipe {
            Some(path) => Recipe::read(path)?,
            None => Recipe::from_toml(RECIPE)?,
        };
        let batch = common.batch.unwrap_or(recipe.batch_size);
        let rate = self.lr.unwrap_or(recipe.schedule.rate());
        let scale = batch as f64 / recipe.batch_size as f64;
        recipe.schedule = recipe.schedule.with_rate(rate * scale);
        recipe.batch_size = batch;
        if let Some(epochs) = self.epochs {
            recipe = recipe.with_epochs(epochs);
        }
        recipe.seed = common.seed.unwrap_or(recipe.seed);
        replace_attack(&mut recipe, common.eps, self.attack_steps, self.step_size)?;
        recipe.validate()?;
        Ok(recipe)
    }
}

fn train(arguments: &Train) -> Result<(), Failure> {
    let common = &arguments.common;
    let recipe = arguments.recipe()?;
    let (folder, used) = common.photographs("train")?;
    let file = |name: &str| common.out.join(name);
    let (weights, training) = (file("weights.safetensors"), file("training.json"));
    if recipe.batch_size == 1 {
        return Err(ImageNetError::OneImage.into());
    }
    if !arguments.resume {
        check_free(&weights)?;
    }
    for path in [&training, &weights] {
        check_writable(path)?;
    }
    println!("{}", recipe.to_toml());
    let device = common.device.open()?.autodiff();
    let recorded = common.recorded()?;
    let network = common.network(recorded.as_ref(), folder.classes())?;
    let resolution = common.resolution(recorded.as_ref())?;
    let model = common.model(recorded.as_ref(), &network, recipe.seed, &device)?;
    let (photographs, classes) = (used.len(), folder.classes());
    let data = Photographs::new(folder, used, resolution, common.broken());
    let checkpoints = Checkpoints::open(file("checkpoints"))?;
    let start = if arguments.resume { Start::Resume } else { Start::Fresh };

    let limit = arguments.steps.unwrap_or(usize::MAX);
    let mut losses = Vec::new();
    let place = Some((&checkpoints, start));
    let trained = train_under_bar(model, &recipe, &data, &device, place, |progress| {
        losses.push(progress.step_loss);
        if progress.step >= limit { ControlFlow::Break(()) } else { stop::requested() }
    })?;

    let finished = trained.is_finished();
    let model = trained.result();
    let progress = trained.progress;
    let metadata = recorded::metadata(&network, model.statistics(), Some(resolution));
    save_safetensors(&model.model, &weights, &metadata)?;
    let images_per_second = (progress.step * recipe.batch_size) as f64 / progress.seconds;
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        println!(
            "{} of {} steps, loss {first:.3} at first and {last:.3} at last, \
             {images_per_second:.2} images/s, of {:.1} s {:.1} s waiting for photographs",
            progress.step, progress.steps, progress.seconds, progress.seconds_waiting
        );
    }
    let result = Training {
        recipe,
        steps: progress.step,
        seconds: progress.seconds,
        seconds_waiting: progress.seconds_waiting,
        images_per_second,
        losses,
        history: progress.history,
    };
    let report = RunReport {
        command: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION"),
        settings: arguments,
        photographs,
        classes,
        resolution,
        complete: finished || progress.step >= limit,
        skipped: data.broken_files(),
        result,
    };
    save(&training, &report)?;
    if finished {
        checkpoints.clear()?;
    }
    if report.complete { Ok(()) } else { Err(Stopped.into()) }
}

fn measure(arguments: &Evaluate) -> Result<(), Failure> {
    let common = &arguments.common;
    if common.weights.is_none() {
        return Err(ImageNetError::NoWeights.into());
    }
    let eps = linf_eps(common.eps.unwrap_or(4.0 / 255.0))?;
    let (folder, used) = common.photographs("val")?;
    let evaluation = common.out.join("evaluation.json");
    check_writable(&evaluation)?;
    let device = common.device.open()?;
    let seed = common.seed.unwrap_or(0);
    let recorded = common.recorded()?;
    let network = common.network(recorded.as_ref(), folder.classes())?;
    let resolution = common.resolution(recorded.as_ref())?;
    let model = common.model(recorded.as_ref(), &network, seed, &device)?;
    let victim = Victim::new(&model);
    let threat = ThreatModel::linf(eps);
    let transform = EvaluateTransform::of_size(resolution);
    let config = LoaderConfig {
        batch_size: common.batch.unwrap_or(32),
        broken: common.broken(),
        ..LoaderConfig::new(Transform::Evaluate(transform))
    };
    let mut loader = folder.loader(&used, 0, &config)?;
    let mut failed = None;
    // The evaluation takes batches; an error ends them and is looked at afterwards.
    let batches = std::iter::from_fn(|| match loader.next()? {
        Ok(batch) => Some((batch.images(&device), batch.labels().to_vec())),
        Err(error) => {
            failed = Some(error);
            None::<(Tensor<4>, Vec<usize>)>
        }
    });
    let bar = bar(used.len());
    let progress = |report: &Report| {
        bar.set_position(report.n as u64);
        bar.set_message(summary(report));
        stop::requested()
    };
    let pgd = Pgd::default().steps(arguments.attack_steps.max(1)).seed(seed);
    let pgd = match arguments.step_size {
        Some(size) => pgd.step_size(size),
        None => pgd,
    };
    let report = match arguments.attack_steps {
        0 => evaluate(&victim, &Identity, batches, &threat, progress)?,
        _ => evaluate(&victim, &pgd, batches, &threat, progress)?,
    };
    bar.finish_and_clear();
    if let Some(error) = failed {
        return Err(error.into());
    }
    println!("{} of {} photographs: {}", report.n, used.len(), summary(&report));
    let report = RunReport {
        command: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION"),
        settings: arguments,
        photographs: used.len(),
        classes: folder.classes(),
        resolution,
        complete: report.complete,
        skipped: loader.skipped().iter().map(ToString::to_string).collect(),
        result: report,
    };
    save(&evaluation, &report)?;
    if report.complete { Ok(()) } else { Err(Stopped.into()) }
}

fn summary(report: &Report) -> String {
    format!(
        "clean {:.1} % ({}), robust {:.1} % ({})",
        100.0 * report.clean_accuracy(),
        report.clean_correct,
        100.0 * report.worst_case_accuracy(),
        report.worst_case_correct
    )
}

fn save(path: &Path, report: &impl Serialize) -> Result<(), Failure> {
    write(path, &serde_json::to_vec_pretty(report)?)?;
    println!("report: {}", path.display());
    Ok(())
}

fn bar(photographs: usize) -> ProgressBar {
    let bar = ProgressBar::new(photographs as u64);
    // The template is a constant: one that fails shows the default bar.
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:30.green/white.dim} {pos}/{len} photographs  {msg}  {eta} to go",
    ) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}
