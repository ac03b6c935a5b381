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
use common::output::{check_writable, write};
use indicatif::{ProgressBar, ProgressStyle};
use sat::{
    attack::{Identity, Pgd, Report, ThreatModel, Victim, evaluate},
    core::{ActivationConfig, device::DeviceName},
    models::{Model, ModelName, NetworkConfig, load_weights, network_metadata, save_safetensors},
    train::{
        AdversarialStep, Normalized, Recipe, Schedule, TrainingAttack,
        data::{
            BrokenImage, EvaluateTransform, ImageFolder, LoaderConfig, Remainder, TrainTransform,
            Transform,
        },
        optimizer,
    },
};
use serde::Serialize;
use std::{
    collections::HashSet,
    error::Error,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Set by Ctrl-C: end after this step or batch, and keep what there is.
static STOP: AtomicBool = AtomicBool::new(false);

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
    /// Images at a time.
    #[arg(long, default_value_t = 32, value_parser = positive)]
    batch: usize,
    /// Use so many photographs, spread evenly over the classes.
    #[arg(long, value_parser = positive)]
    limit: Option<usize>,
    /// The largest change of a pixel, for images in [0, 1].
    #[arg(long, default_value = "4/255", value_parser = common::eps, allow_hyphen_values = true)]
    eps: f64,
    /// What a photograph does that cannot be decoded.
    #[arg(long, value_enum, default_value_t = Broken::Stop)]
    broken: Broken,
    /// The seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
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
    /// Passes over the photographs.
    #[arg(long, default_value_t = 100, value_parser = positive)]
    epochs: usize,
    /// End after so many steps, within an epoch or not.
    #[arg(long, value_parser = positive)]
    steps: Option<usize>,
    /// The learning rate for 256 images a step; it is scaled to the size of the batch.
    #[arg(long, default_value_t = 0.1)]
    lr: f64,
    /// Gradient steps of the attack; 0 trains on clean images.
    #[arg(long, default_value_t = 1)]
    attack_steps: usize,
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
    /// Mean loss on the adversarial images, step by step.
    losses: Vec<f64>,
}

#[derive(Debug, thiserror::Error)]
enum ImageNetError {
    #[error("the loss of step {step} is {loss}; lower --lr or --eps; no weights were written")]
    Diverged { step: usize, loss: f64 },
    #[error("{photographs} photographs do not fill one batch of {batch}; lower --batch")]
    TooFew { photographs: usize, batch: usize },
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
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; Ctrl-C again to leave at once");
    })?;
    match task {
        Task::Train(arguments) => train(arguments),
        Task::Evaluate(arguments) => measure(arguments),
    }
}

impl Common {
    /// The photographs, and which of them are used.
    fn photographs(&self, part: &str) -> Result<(ImageFolder, Vec<usize>), Failure> {
        if self.eps >= 1.0 {
            return Err(ImageNetError::EpsUnit(self.eps).into());
        }
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
        device: &Device,
    ) -> Result<Normalized<Model>, Failure> {
        let mut model = network.init(self.seed, device);
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

    fn loader(&self, transform: Transform, remainder: Remainder) -> LoaderConfig {
        let broken = match self.broken {
            Broken::Stop => BrokenImage::Stop,
            Broken::Skip => BrokenImage::Skip,
        };
        LoaderConfig {
            batch_size: self.batch,
            remainder,
            broken,
            seed: self.seed,
            ..LoaderConfig::new(transform)
        }
    }

    fn report(&self) -> PathBuf {
        self.out.join("report.json")
    }
}

fn train(arguments: &Train) -> Result<(), Failure> {
    let common = &arguments.common;
    let (folder, used) = common.photographs("train")?;
    let (batch, weights) = (common.batch, common.out.join("weights.safetensors"));
    if batch == 1 {
        return Err(ImageNetError::OneImage.into());
    }
    let per_epoch = used.len() / batch;
    if per_epoch == 0 {
        return Err(ImageNetError::TooFew { photographs: used.len(), batch }.into());
    }
    for path in [&common.report(), &weights] {
        check_writable(path)?;
    }
    let recipe = Recipe {
        epochs: arguments.epochs,
        batch_size: batch,
        seed: common.seed,
        weight_decay: 1e-4,
        schedule: Schedule::WarmupStep {
            lr: arguments.lr * batch as f64 / 256.0,
            warmup_epochs: 5.0,
            milestones: vec![30.0, 60.0, 90.0],
            factor: 0.1,
        },
        attack: (arguments.attack_steps > 0).then(|| TrainingAttack {
            eps: common.eps,
            steps: arguments.attack_steps,
            ..TrainingAttack::default()
        }),
        ..Recipe::default()
    };
    recipe.validate()?;
    let device = common.device.open()?.autodiff();
    let network = common.network(folder.classes());
    let mut model = common.model(&network, &device)?;
    let transform = TrainTransform { size: common.resolution(), ..TrainTransform::default() };
    let config = common.loader(Transform::Train(transform), Remainder::Drop);
    let step = AdversarialStep::new(&recipe);
    let mut optimizer = optimizer(&recipe, &model);

    let steps = arguments.steps.unwrap_or(usize::MAX).min(per_epoch * arguments.epochs);
    let bar = bar(steps, "steps");
    let (mut losses, mut skipped, mut waiting) = (Vec::new(), Vec::new(), 0.0);
    let started = Instant::now();
    let used: HashSet<usize> = used.into_iter().collect();
    let mut epoch = 0;
    while losses.len() < steps && !STOP.load(Ordering::SeqCst) {
        let mut order = folder.shuffled(common.seed, epoch);
        order.retain(|index| used.contains(index));
        let mut loader = folder.loader(&order, epoch, &config)?;
        let mut of_epoch = 0;
        while losses.len() < steps && !STOP.load(Ordering::SeqCst) {
            let asked = Instant::now();
            let Some(next) = loader.next() else { break };
            let next = next?;
            waiting += asked.elapsed().as_secs_f64();
            let time = epoch as f64 + f64::from(of_epoch) / per_epoch as f64;
            let lr = recipe.schedule.lr(time, arguments.epochs as f64);
            let seen = (losses.len() * batch) as u64;
            let images = next.images(&device);
            let (updated, output) =
                step.run(model, &mut optimizer, lr, images, next.labels(), seen)?;
            model = updated;
            let loss = f64::from(output.loss.into_scalar::<f32>());
            losses.push(loss);
            if !loss.is_finite() {
                return Err(ImageNetError::Diverged { step: losses.len(), loss }.into());
            }
            of_epoch += 1;
            bar.set_message(format!("loss {loss:.4}"));
            bar.inc(1);
        }
        skipped.extend(loader.skipped().iter().map(ToString::to_string));
        if of_epoch == 0 {
            // So many photographs are broken that no batch fills.
            let photographs = order.len() - loader.skipped().len();
            return Err(ImageNetError::TooFew { photographs, batch }.into());
        }
        epoch += 1;
    }
    bar.finish_and_clear();

    let seconds = started.elapsed().as_secs_f64();
    let done = losses.len();
    let mut metadata = network_metadata(&network);
    metadata.extend(common::normalization_metadata(model.statistics()));
    // The model for evaluation, whose BatchNorm statistics are up to date.
    let valid = burn::module::Module::valid(&model);
    save_safetensors(&valid.model, &weights, &metadata)?;
    let images_per_second = (done * batch) as f64 / seconds;
    if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
        println!(
            "{done} of {steps} steps, loss {first:.3} at first and {last:.3} at last, \
             {images_per_second:.2} images/s, of {seconds:.1} s {waiting:.1} s waiting for photographs"
        );
    }
    let result = Training {
        recipe,
        steps: done,
        seconds,
        seconds_waiting: waiting,
        images_per_second,
        losses,
    };
    let report = RunReport {
        command: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION"),
        settings: arguments,
        photographs: used.len(),
        classes: folder.classes(),
        resolution: common.resolution(),
        complete: done == steps,
        skipped,
        result,
    };
    save(&common.report(), &report)
}

fn measure(arguments: &Evaluate) -> Result<(), Failure> {
    let common = &arguments.common;
    if common.weights.is_none() {
        return Err(ImageNetError::NoWeights.into());
    }
    let (folder, used) = common.photographs("val")?;
    check_writable(&common.report())?;
    let device = common.device.open()?;
    let model = common.model(&common.network(folder.classes()), &device)?;
    let victim = Victim::new(&model);
    let threat = ThreatModel::linf(common.eps);
    let transform = EvaluateTransform::of_size(common.resolution());
    let config = common.loader(Transform::Evaluate(transform), Remainder::Keep);
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
        match STOP.load(Ordering::SeqCst) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let pgd = Pgd::default().steps(arguments.attack_steps.max(1)).seed(common.seed);
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
