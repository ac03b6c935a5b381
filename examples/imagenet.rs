//! Adversarial training and evaluation on a folder of photographs, such as ImageNet.
//!
//! ```text
//! cargo run --release --example imagenet -- train --data imagenet --model resnet50 --activation silu --device cuda
//! cargo run --release --example imagenet -- evaluate --data imagenet --model efficientnet_lite0 --weights W.pth
//! ```
//!
//! The folder holds `train/<class>/` and `val/<class>/`, or the class folders themselves. The images are
//! read while the network works; `docs/data.md` says how.

mod common;

use burn::tensor::{Device, Tensor};
use clap::{Args, Parser, Subcommand, ValueEnum};
use common::{
    output::{check_writable, write},
    stop,
};
use indicatif::{ProgressBar, ProgressStyle};
use sat::{
    attack::{Identity, Pgd, Report, ThreatModel, Victim, evaluate},
    core::{ActivationConfig, device::DeviceName},
    models::{Model, ModelName, NetworkConfig, load_weights, network_metadata, save_safetensors},
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
    /// The network, such as resnet50 or efficientnet_lite0.
    #[arg(long)]
    model: ModelName,
    /// The activation, such as silu; by default the network's own.
    #[arg(long)]
    #[serde(serialize_with = "as_text")]
    activation: Option<ActivationConfig>,
    /// Weights to start from or to evaluate: safetensors or PyTorch. Model, activation and
    /// normalisation must be those they were trained with.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// The normalisation in front of the network. By default `lite` for EfficientNet-Lite, else
    /// `plus-minus-one`.
    #[arg(long, value_enum)]
    normalization: Option<Normalization>,
    /// Height and width of the images in pixels. By default what the network is made for.
    #[arg(long)]
    resolution: Option<u32>,
    /// Images at a time: in training in place of the recipe's, else 32.
    #[arg(long, value_parser = positive)]
    batch: Option<usize>,
    /// Use so many photographs, spread evenly over the classes.
    #[arg(long, value_parser = positive)]
    limit: Option<usize>,
    /// The largest change of a pixel, for images in [0, 1]: in training in place of the recipe's, else
    /// 4/255.
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
    /// In place of the recipe's passes over the photographs.
    #[arg(long, value_parser = positive)]
    epochs: Option<usize>,
    /// Stop after so many steps, within an epoch or not.
    #[arg(long, value_parser = positive)]
    steps: Option<usize>,
    /// In place of the recipe's learning rate, for a batch of the recipe's size; either is scaled to
    /// the size of the batch.
    #[arg(long)]
    lr: Option<f64>,
    /// In place of the recipe's gradient steps of the attack; 0 trains on clean images.
    #[arg(long)]
    attack_steps: Option<usize>,
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
enum Normalization {
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

/// What a run leaves in `report.json`.
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
    #[error("the recipe has no [attack], which --eps and --attack-steps change")]
    NoAttack,
    #[error("--batch 1 has no batch statistics to train with; give at least 2")]
    OneImage,
    #[error("evaluation needs --weights")]
    NoWeights,
    #[error("--eps {0} covers every image in [0, 1]; did you mean {0}/255?")]
    EpsUnit(f64),
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

    fn network(&self, classes: usize) -> NetworkConfig {
        let network = self.model.config().with_classes(classes);
        match &self.activation {
            Some(activation) => network.with_activation(activation.clone()),
            None => network,
        }
    }

    fn model(
        &self,
        network: &NetworkConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Normalized<Model>, Failure> {
        let mut model = network.init(seed, device);
        if let Some(weights) = &self.weights {
            model = load_weights(model, weights)?;
        }
        let lite = self.model.to_string().contains("lite");
        let usual = if lite { Normalization::Lite } else { Normalization::PlusMinusOne };
        let (mean, std) = match self.normalization.unwrap_or(usual) {
            Normalization::PlusMinusOne => ([0.5; 3], [0.5; 3]),
            Normalization::Lite => ([127.0 / 255.0; 3], [128.0 / 255.0; 3]),
            Normalization::Imagenet => ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        };
        Ok(Normalized::new(model, &mean, &std)?)
    }

    fn resolution(&self) -> u32 {
        // Sides of the registry are a few hundred pixels.
        self.resolution.unwrap_or(self.model.image_size()[0] as u32)
    }

    fn broken(&self) -> BrokenImage {
        match self.broken {
            Broken::Stop => BrokenImage::Stop,
            Broken::Skip => BrokenImage::Skip,
        }
    }

    fn report(&self) -> PathBuf {
        self.out.join("report.json")
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
        recipe.epochs = self.epochs.unwrap_or(recipe.epochs);
        recipe.seed = common.seed.unwrap_or(recipe.seed);
        if self.attack_steps == Some(0) {
            recipe.attack = None;
        } else if self.attack_steps.is_some() || common.eps.is_some() {
            let attack = recipe.attack.as_mut().ok_or(ImageNetError::NoAttack)?;
            attack.eps = common.eps.unwrap_or(attack.eps);
            attack.steps = self.attack_steps.unwrap_or(attack.steps);
        }
        recipe.validate()?;
        Ok(recipe)
    }
}

fn train(arguments: &Train) -> Result<(), Failure> {
    let common = &arguments.common;
    let recipe = arguments.recipe()?;
    let (folder, used) = common.photographs("train")?;
    let weights = common.out.join("weights.safetensors");
    if recipe.batch_size == 1 {
        return Err(ImageNetError::OneImage.into());
    }
    for path in [&common.report(), &weights] {
        check_writable(path)?;
    }
    println!("{}", recipe.to_toml());
    let device = common.device.open()?.autodiff();
    let network = common.network(folder.classes());
    let model = common.model(&network, recipe.seed, &device)?;
    let (photographs, classes) = (used.len(), folder.classes());
    let data = Photographs::new(folder, used, common.resolution(), common.broken());
    let checkpoints = Checkpoints::open(common.out.join("checkpoints"))?;
    let start = if arguments.resume { Start::Resume } else { Start::Fresh };

    let limit = arguments.steps.unwrap_or(usize::MAX);
    let bar = bar(limit.min(u32::MAX as usize), "steps");
    let mut losses = Vec::new();
    let place = Some((&checkpoints, start));
    let trained = sat::train::train(model, &recipe, &data, &device, place, |progress| {
        losses.push(progress.step_loss);
        bar.set_length(progress.steps.min(limit) as u64);
        bar.set_message(format!("loss {:.4}", progress.step_loss));
        bar.set_position(progress.step as u64);
        if progress.step >= limit { ControlFlow::Break(()) } else { stop::requested() }
    });
    bar.finish_and_clear();
    let trained = trained?;

    let finished = trained.is_finished();
    let model = trained.result();
    let progress = trained.progress;
    let mut metadata = network_metadata(&network);
    metadata.extend(common::normalization_metadata(model.statistics()));
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
        resolution: common.resolution(),
        complete: finished || progress.step >= limit,
        skipped: data.broken_files(),
        result,
    };
    save(&common.report(), &report)?;
    if finished {
        checkpoints.clear()?;
    }
    Ok(())
}

fn measure(arguments: &Evaluate) -> Result<(), Failure> {
    let common = &arguments.common;
    if common.weights.is_none() {
        return Err(ImageNetError::NoWeights.into());
    }
    let eps = common.eps.unwrap_or(4.0 / 255.0);
    if eps >= 1.0 {
        return Err(ImageNetError::EpsUnit(eps).into());
    }
    let (folder, used) = common.photographs("val")?;
    check_writable(&common.report())?;
    let device = common.device.open()?;
    let seed = common.seed.unwrap_or(0);
    let model = common.model(&common.network(folder.classes()), seed, &device)?;
    let victim = Victim::new(&model);
    let threat = ThreatModel::linf(eps);
    let transform = EvaluateTransform::of_size(common.resolution());
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
    let bar = bar(used.len(), "photographs");
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
        resolution: common.resolution(),
        complete: report.complete,
        skipped: loader.skipped().iter().map(ToString::to_string).collect(),
        result: report,
    };
    save(&common.report(), &report)
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

fn bar(length: usize, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    let template =
        format!("{{bar:30.green/white.dim}} {{pos}}/{{len}} {what}  {{msg}}  {{eta}} to go");
    // The template is a constant: one that fails shows the default bar.
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}
