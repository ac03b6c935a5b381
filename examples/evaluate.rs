//! Robust accuracy of a network on a data set: clean, FGSM or PGD, with a record for each sample.
//!
//! `cargo run --release --example evaluate -- --model resnet20 --activation silu --weights W.safetensors
//! --data cifar10-bin:test_batch.bin --attack pgd --eps 8/255 --steps 20 --json out.json`

mod common;

use clap::{ArgAction, Parser, ValueEnum};
use common::output::{check_writable, write};
use indicatif::{ProgressBar, ProgressStyle};
use sat::{
    attack::{
        Attack, Fgsm, Identity, Norm, Pgd, RandomStart, Report, SampleRecord, ThreatModel, Victim,
        evaluate,
    },
    core::{ActivationConfig, device::DeviceName},
    models::{ModelName, ResNetConfig, load_safetensors, read_metadata, read_network},
    train::data::{DataSpec, ImageSet, Split},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{fs, io, ops::ControlFlow, path::PathBuf, process::ExitCode, time::Instant};

/// Measures clean and robust accuracy.
#[derive(Parser, Debug)]
struct Arguments {
    /// The network: resnet20, resnet32, resnet44, resnet56, resnet110 or resnet18_cifar. By default
    /// the one that the weights file describes.
    #[arg(long)]
    model: Option<ModelName>,
    /// The activation, such as silu or relu~psoftplus:10. By default the one that the weights file
    /// describes.
    #[arg(long)]
    activation: Option<ActivationConfig>,
    /// A safetensors file with PyTorch's names.
    #[arg(long)]
    weights: PathBuf,
    /// The images: cifar10-bin:FILE, cifar10:DIR, fashion-mnist:DIR, mnist:DIR or
    /// builtin:fashion-mnist.
    #[arg(long)]
    data: DataSpec,
    /// The attack.
    #[arg(long, value_enum, default_value_t = AttackName::Pgd)]
    attack: AttackName,
    /// The norm of the perturbation: linf or l2.
    #[arg(long, default_value_t = Norm::Linf)]
    norm: Norm,
    /// The largest perturbation, for images in [0, 1].
    #[arg(long, default_value = "8/255", value_parser = common::eps, allow_hyphen_values = true)]
    eps: f64,
    /// Gradient steps of PGD.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Length of a step of PGD, for images in [0, 1]; 2.5 eps/steps by default.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    step_size: Option<f64>,
    /// Whether PGD starts from a random point of the ball instead of the image.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    random_start: bool,
    /// Runs of PGD; each image keeps the worst.
    #[arg(long, default_value_t = 1)]
    restarts: usize,
    /// Let images leave PGD as soon as they are misclassified: faster, same or lower robust
    /// accuracy, lower adversarial cross-entropy.
    #[arg(long)]
    stop_when_fooled: bool,
    /// The seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Mean of each channel, if the network wants normalised images; by default what the weights file
    /// says, if anything.
    #[arg(long, value_delimiter = ',', requires = "std")]
    mean: Vec<f64>,
    /// Standard deviation of each channel.
    #[arg(long, value_delimiter = ',', requires = "mean")]
    std: Vec<f64>,
    /// Use the first so many images of the test split only.
    #[arg(long)]
    limit: Option<usize>,
    /// Images at a time.
    #[arg(long, default_value_t = 100, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Where to write the report.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum AttackName {
    /// None: clean accuracy.
    None,
    /// The fast gradient sign method, one step of size eps.
    Fgsm,
    /// Projected gradient descent.
    Pgd,
    /// Not in this version.
    ApgdCe,
    /// Not in this version.
    ApgdDlr,
    /// Not in this version.
    Autoattack,
}

/// What can go wrong besides the libraries' own errors.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    #[error("attack `{0}` is not in this version; use none, fgsm or pgd")]
    NotYet(String),
    #[error("{} does not say which network it is for; give --model and --activation", .0.display())]
    Unnamed(PathBuf),
    #[error("{}: metadata `{key}` is no list of numbers; give --mean and --std", path.display())]
    BadMetadata { path: PathBuf, key: &'static str },
    #[error("--model says nothing of the activation; give --activation too")]
    NoActivation,
    #[error(
        "{} is for images of {} channels and {} classes; the data has {} and {}",
        path.display(), channels[0], classes[0], channels[1], classes[1]
    )]
    OtherData { path: PathBuf, channels: [usize; 2], classes: [usize; 2] },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("--limit is 0; leave it out to use all images")]
    NoImages,
}

type Failure = Box<dyn std::error::Error>;

/// The report as it is written to `--json`.
#[derive(Serialize)]
struct Output<'a> {
    n: usize,
    clean_correct: usize,
    robust_correct: usize,
    worst_case_correct: usize,
    clean_ce: f64,
    adv_ce: f64,
    attack: AttackOutput<'a>,
    model: String,
    network: &'a ResNetConfig,
    activation: ActivationConfig,
    mean: Option<&'a [f64]>,
    std: Option<&'a [f64]>,
    weights_sha256: String,
    data: String,
    device: String,
    seconds: f64,
    forwards: u64,
    backwards: u64,
    per_sample: &'a [SampleRecord],
}

/// All settings of the attack.
#[derive(Serialize)]
struct AttackOutput<'a> {
    name: AttackName,
    threat: &'a ThreatModel,
    settings: serde_json::Value,
    batch: usize,
}

fn main() -> ExitCode {
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (attack, settings) = attack(arguments)?;
    if arguments.limit == Some(0) {
        return Err(EvaluateError::NoImages.into());
    }
    if let Some(path) = &arguments.json {
        check_writable(path)?;
    }
    let device = arguments.device.open()?;
    let mut data = arguments.data.load(Split::Test)?;
    if let Some(limit) = arguments.limit {
        data = data.take(limit);
    }
    let (name, network) = network(arguments, &data)?;
    let activation = network.activation;
    let model = load_safetensors(network.init(0, &device), &arguments.weights)?;
    let bytes = fs::read(&arguments.weights)
        .map_err(|source| EvaluateError::Read { path: arguments.weights.clone(), source })?;
    let mut victim = Victim::new(&model);
    let normalization = normalization(arguments)?;
    if let Some((mean, std)) = &normalization {
        victim = victim.normalize(mean, std)?;
    }
    let threat = ThreatModel::new(arguments.norm, arguments.eps);

    let bar = ProgressBar::new(data.len() as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {elapsed} gone, {eta} to go")
    {
        bar.set_style(style.progress_chars("━━─"));
    }
    let started = Instant::now();
    let batches = data.batches(arguments.batch).map(|indices| data.batch(&indices, &device));
    let report = evaluate(&victim, attack.as_ref(), batches, &threat, |report| {
        bar.set_position(report.n as u64);
        bar.set_message(summary(report));
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    println!("{}", summary(&report));
    println!(
        "cross-entropy: clean {:.6}, adversarial {:.6}; {} forwards, {} backwards, {:.1} s",
        report.clean_ce,
        report.adv_ce,
        report.cost.forwards,
        report.cost.backwards,
        started.elapsed().as_secs_f64()
    );
    if let Some(path) = &arguments.json {
        let output = Output {
            n: report.n,
            clean_correct: report.clean_correct,
            robust_correct: report.robust_correct,
            worst_case_correct: report.worst_case_correct,
            clean_ce: report.clean_ce,
            adv_ce: report.adv_ce,
            attack: AttackOutput {
                name: arguments.attack,
                threat: &threat,
                settings,
                batch: arguments.batch,
            },
            model: name,
            network: &network,
            activation,
            mean: normalization.as_ref().map(|(mean, _)| mean.as_slice()),
            std: normalization.as_ref().map(|(_, std)| std.as_slice()),
            weights_sha256: Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect(),
            data: arguments.data.to_string(),
            device: arguments.device.to_string(),
            seconds: started.elapsed().as_secs_f64(),
            forwards: report.cost.forwards,
            backwards: report.cost.backwards,
            per_sample: &report.per_sample,
        };
        write(path, &serde_json::to_vec_pretty(&output)?)?;
    }
    Ok(())
}

fn summary(report: &Report) -> String {
    format!(
        "{} images: clean {} ({:.2} %), robust {} ({:.2} %)",
        report.n,
        report.clean_correct,
        100.0 * report.clean_accuracy(),
        report.robust_correct,
        100.0 * report.robust_accuracy()
    )
}

fn attack(arguments: &Arguments) -> Result<(Box<dyn Attack>, serde_json::Value), Failure> {
    Ok(match arguments.attack {
        AttackName::None => (Box::new(Identity), serde_json::to_value(Identity)?),
        AttackName::Fgsm => {
            let fgsm = Fgsm::default();
            let settings = serde_json::to_value(&fgsm)?;
            (Box::new(fgsm), settings)
        }
        AttackName::Pgd => {
            let start =
                if arguments.random_start { RandomStart::Always } else { RandomStart::Never };
            let mut pgd = Pgd::default()
                .steps(arguments.steps)
                .random_start(start)
                .restarts(arguments.restarts)
                .seed(arguments.seed);
            if let Some(size) = arguments.step_size {
                pgd = pgd.step_size(size);
            }
            if arguments.stop_when_fooled {
                pgd = pgd.stop_when_fooled();
            }
            let settings = serde_json::to_value(&pgd)?;
            (Box::new(pgd), settings)
        }
        AttackName::ApgdCe | AttackName::ApgdDlr | AttackName::Autoattack => {
            let name = arguments.attack.to_possible_value();
            let name = name.map_or_else(String::new, |value| value.get_name().to_owned());
            return Err(EvaluateError::NotYet(name).into());
        }
    })
}

/// Mean and standard deviation of each channel.
type Statistics = (Vec<f64>, Vec<f64>);

/// The normalisation in front of the network: that of the command line, else of the weights file,
/// else none.
fn normalization(arguments: &Arguments) -> Result<Option<Statistics>, Failure> {
    if !arguments.mean.is_empty() {
        return Ok(Some((arguments.mean.clone(), arguments.std.clone())));
    }
    let path = &arguments.weights;
    let metadata = read_metadata(path)?;
    if !metadata.contains_key(common::MEAN) && !metadata.contains_key(common::STD) {
        return Ok(None);
    }
    let numbers = |key: &'static str| -> Result<Vec<f64>, EvaluateError> {
        let text = metadata.get(key);
        text.and_then(|text| text.split(',').map(|number| number.parse().ok()).collect())
            .ok_or_else(|| EvaluateError::BadMetadata { path: path.clone(), key })
    };
    Ok(Some((numbers(common::MEAN)?, numbers(common::STD)?)))
}

/// The network of the command line, else the one the weights file describes; with its name.
fn network(arguments: &Arguments, data: &ImageSet) -> Result<(String, ResNetConfig), Failure> {
    if let Some(name) = arguments.model {
        let activation = arguments.activation.ok_or(EvaluateError::NoActivation)?;
        // The names stand for RGB images and ten classes; the data may have others.
        let network = name
            .config()
            .with_activation(activation)
            .with_input_channels(data.channels())
            .with_classes(data.classes());
        return Ok((name.to_string(), network));
    }
    let path = &arguments.weights;
    let network = read_network(path)?.ok_or_else(|| EvaluateError::Unnamed(path.clone()))?;
    if (network.input_channels, network.classes) != (data.channels(), data.classes()) {
        return Err(EvaluateError::OtherData {
            path: path.clone(),
            channels: [network.input_channels, data.channels()],
            classes: [network.classes, data.classes()],
        }
        .into());
    }
    let activation = arguments.activation.unwrap_or(network.activation);
    Ok(("as in the weights file".to_owned(), network.with_activation(activation)))
}
