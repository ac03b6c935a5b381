//! Robust accuracy of a network on a data set, from FGSM to AutoAttack, with a record for each sample.
//!
//! `cargo run --release --example evaluate -- --model resnet20 --activation silu --weights W.safetensors
//! --data cifar10-bin:test_batch.bin --attack autoattack --eps 8/255 --state aa.state --json aa.json`
//!
//! `docs/evaluating.md` says which attack to use when.

mod common;

use burn::tensor::Tensor;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum, parser::ValueSource};
use common::{
    linf_eps,
    output::{check_writable, write},
    recorded::{Recorded, Statistics},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sat::{
    attack::{
        Apgd, Attack, AutoAttack, BothGradients, Cost, Eot, Evaluation, Fab, FewClasses, Fgsm,
        Flag, Goal, Identity, Loss, Member, NFgsm, Norm, Pgd, Pixels, RFgsm, RandomStart, Report,
        Restarts, SampleRecord, Square, StageReport, ThreatModel, Victim, eps_sweep, minimal_norm,
    },
    core::{ActivationConfig, Gradient, device::DeviceName},
    models::{ModelName, NetworkConfig, load_weights},
    train::data::{DataSpec, ImageSet, Split},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Measures clean and robust accuracy.
#[derive(Parser, Debug)]
struct Arguments {
    /// The network, such as resnet20 or efficientnet_b0 (`--example models` lists all). By default the
    /// one that the weights file describes.
    #[arg(long)]
    model: Option<ModelName>,
    /// A network that no name stands for: a JSON file of its configuration, as `--json` writes it under
    /// `network`.
    #[arg(long, conflicts_with = "model")]
    network: Option<PathBuf>,
    /// The activation, such as silu or relu~psoftplus:10. By default the one that --network or the weights
    /// file describes.
    #[arg(long)]
    activation: Option<ActivationConfig>,
    /// A safetensors file with PyTorch's names, or a PyTorch checkpoint.
    #[arg(long)]
    weights: PathBuf,
    /// The images: cifar10-bin:FILE, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, mnist:DIR,
    /// imagenet:DIR or builtin:fashion-mnist.
    #[arg(long)]
    data: DataSpec,
    /// The attack.
    #[arg(long, value_enum, default_value_t = AttackName::Pgd)]
    attack: AttackName,
    /// The norm of the perturbation: linf, l2 or l1.
    #[arg(long, default_value_t = Norm::Linf)]
    norm: Norm,
    /// The largest perturbation, for images in [0, 1]; 8/255 by default in linf. Usual in CIFAR-10 are
    /// 0.5 in l2 and 12 in l1.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    eps: Option<f64>,
    /// In place of one eps: rising sizes such as 1/255,2/255,4/255. Prints how many images withstand
    /// each; an image that falls to a small one is not attacked again.
    #[arg(long, value_delimiter = ',', value_parser = common::eps, conflicts_with_all = ["eps", "state", "keep_images"])]
    sweep: Vec<f64>,
    /// In place of one eps: the smallest size up to --eps at which the attack fools each image, by
    /// so many halvings of the interval.
    #[arg(long, value_name = "HALVINGS", conflicts_with_all = ["sweep", "state", "keep_images"])]
    minimal_norm: Option<usize>,
    /// Gradient steps. By default 20 for PGD, MI-FGSM and NI-FGSM, 100 for APGD, FAB and AutoAttack.
    #[arg(long)]
    steps: Option<usize>,
    /// Queries of Square, alone and in AutoAttack.
    #[arg(long, default_value_t = 5000)]
    queries: usize,
    /// The loss that FGSM, PGD and their kin follow.
    #[arg(long, value_enum, default_value_t = LossName::Ce)]
    loss: LossName,
    /// Which AutoAttack. By default standard, or custom if --attacks names some.
    #[arg(long, value_enum)]
    version: Option<VersionName>,
    /// The attacks of a custom AutoAttack, in order: apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
    #[arg(long, value_delimiter = ',', required_if_eq("version", "custom"))]
    attacks: Vec<Member>,
    /// What the DLR losses do with fewer than 3 classes (APGD-T: 4): fail, or follow the margin.
    #[arg(long, value_enum, default_value_t = FewClassesName::Refuse)]
    few_classes: FewClassesName,
    /// Gradients to average, for randomised models. AutoAttack's version rand brings its own 20.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    eot: usize,
    /// For an activation pair such as relu~psoftplus:10: attack by the pair's gradient alone, or also
    /// by the true one, and report the worst.
    #[arg(long, value_enum, default_value_t = GradientsName::Both)]
    gradients: GradientsName,
    /// Length of a step of PGD, for images in [0, 1]; 2.5 eps/steps by default.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    step_size: Option<f64>,
    /// Whether PGD starts from a random point of the ball instead of the image.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    random_start: bool,
    /// Runs of the attack; each image keeps the worst.
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
    /// Use so many images of the test split only: the first, or of photographs some of each class.
    #[arg(long)]
    limit: Option<usize>,
    /// Images at a time.
    #[arg(long, default_value_t = 100, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Keep the state of the run in this file after each batch, and go on from it if it is there.
    #[arg(long)]
    state: Option<PathBuf>,
    /// Keep the adversarial images in this folder, as NumPy arrays.
    #[arg(long)]
    keep_images: Option<PathBuf>,
    /// How to keep them: exactly, or rounded to 8 bits and judged after rounding.
    #[arg(long, value_enum, default_value_t = PixelsName::Float, requires = "keep_images")]
    pixels: PixelsName,
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
    /// FGSM from a random sign pattern of half the size.
    RFgsm,
    /// FGSM from uniform noise of twice the size.
    NFgsm,
    /// Projected gradient descent.
    Pgd,
    /// PGD with momentum 1.
    MiFgsm,
    /// PGD with Nesterov momentum 1.
    NiFgsm,
    /// Auto-PGD on the cross-entropy.
    ApgdCe,
    /// Auto-PGD on the difference of logits ratio.
    ApgdDlr,
    /// Auto-PGD on the targeted difference of logits ratio.
    ApgdT,
    /// The fast adaptive boundary attack.
    Fab,
    /// FAB against one class at a time.
    FabT,
    /// Random search without gradients.
    Square,
    /// The ensemble that leaderboards use.
    Autoattack,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LossName {
    /// Cross-entropy.
    Ce,
    /// Difference of logits ratio.
    Dlr,
    /// Margin of the best other class.
    Margin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VersionName {
    /// APGD-CE, APGD-T, FAB-T, Square.
    Standard,
    /// All six, with restarts.
    Plus,
    /// For randomised models.
    Rand,
    /// Those that --attacks names.
    Custom,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FewClassesName {
    /// Fail.
    Refuse,
    /// Follow the margin instead.
    Margin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GradientsName {
    /// The worst of both gradients.
    Both,
    /// The gradient of the pair alone.
    Pair,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PixelsName {
    /// As they are.
    Float,
    /// 256 levels.
    Byte,
}

/// What can go wrong besides the libraries' own errors.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    #[error("{} is no configuration of a network: {reason}", path.display())]
    Network { path: PathBuf, reason: String },
    #[error("{} does not say which network it is for; give --model and --activation", .0.display())]
    Unnamed(PathBuf),
    #[error("--model says nothing of the activation; give --activation too")]
    NoActivation,
    #[error(
        "{} is for images of {} channels and {} classes; the data has {} and {}",
        path.display(), channels[0], classes[0], channels[1], classes[1]
    )]
    OtherData { path: PathBuf, channels: [usize; 2], classes: [usize; 2] },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the network was trained at {trained} pixels and the images have {data}; \
         `imagenet evaluate` reads photographs at the network's size"
    )]
    Resolution { trained: usize, data: usize },
    #[error("--limit is 0; leave it out to use all images")]
    NoImages,
    #[error("--norm {0} needs --eps: no size is usual for all images")]
    NoEps(Norm),
    #[error("--attack {attack} does not read --{option}; leave it out, or name another attack")]
    Unread { attack: String, option: String },
    #[error("--attacks names the attacks of --version custom, which --version {0} is not")]
    NotCustom(String),
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
    #[serde(flatten)]
    about: &'a About<'a>,
    seconds: f64,
    forwards: u64,
    backwards: u64,
    stages: &'a [StageReport],
    flags: &'a [Flag],
    per_sample: &'a [SampleRecord],
}

/// What was run.
#[derive(Serialize)]
struct About<'a> {
    attack: AttackOutput<'a>,
    model: String,
    network: &'a NetworkConfig,
    activation: ActivationConfig,
    mean: Option<&'a [f64]>,
    std: Option<&'a [f64]>,
    weights_sha256: String,
    data: String,
    device: String,
}

/// The report of `--sweep`.
#[derive(Serialize)]
struct SweepOutput<'a> {
    n: usize,
    #[serde(flatten)]
    about: &'a About<'a>,
    sweep: Vec<SweepRow>,
}

/// The report of `--minimal-norm`.
#[derive(Serialize)]
struct SmallestOutput<'a> {
    n: usize,
    #[serde(flatten)]
    about: &'a About<'a>,
    /// JSON has no infinity: an image that withstands the largest size has no distance.
    distances: Vec<Option<f64>>,
    forwards: u64,
    backwards: u64,
    seconds: f64,
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
    common::pages::keep_pages();
    let given = Arguments::command().get_matches();
    let arguments = Arguments::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
    let is_given = |option: &str| given.value_source(option) == Some(ValueSource::CommandLine);
    common::exit_code(check_options(&arguments, is_given).and_then(|()| run(&arguments)))
}

impl AttackName {
    /// The options of the command line that it reads, of those that not all attacks do.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Fgsm => &["loss", "eot"],
            Self::RFgsm | Self::NFgsm => &["loss", "eot", "restarts"],
            Self::Pgd | Self::MiFgsm | Self::NiFgsm => &[
                "loss",
                "eot",
                "restarts",
                "steps",
                "step_size",
                "random_start",
                "stop_when_fooled",
            ],
            Self::ApgdCe => &["eot", "restarts", "steps", "random_start", "stop_when_fooled"],
            Self::ApgdDlr | Self::ApgdT => {
                &["eot", "restarts", "steps", "random_start", "stop_when_fooled", "few_classes"]
            }
            Self::Fab | Self::FabT => &["eot", "restarts", "steps"],
            Self::Square => &["restarts", "queries"],
            Self::Autoattack => {
                &["eot", "restarts", "steps", "queries", "few_classes", "version", "attacks"]
            }
        }
    }
}

/// Refuses options that say nothing to the attack: who gives one expects it to count.
fn check_options(arguments: &Arguments, is_given: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let all = AttackName::value_variants().iter().flat_map(|attack| attack.options());
    for option in all {
        if is_given(option) && !arguments.reads(option) {
            let attack = value_name(&arguments.attack);
            return Err(EvaluateError::Unread { attack, option: option.replace('_', "-") }.into());
        }
    }
    match &arguments.version {
        Some(version) if !arguments.attacks.is_empty() && *version != VersionName::Custom => {
            Err(EvaluateError::NotCustom(value_name(version)).into())
        }
        _ => Ok(()),
    }
}

/// As on the command line.
fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

impl Arguments {
    /// Whether the attack reads an option, AutoAttack if a member does.
    fn reads(&self, option: &str) -> bool {
        let any = |members: &[Member]| {
            self.attacks.is_empty() || self.attacks.iter().any(|member| members.contains(member))
        };
        match (self.attack, option) {
            (AttackName::Autoattack, "queries") => {
                self.version != Some(VersionName::Rand) && any(&[Member::Square])
            }
            (AttackName::Autoattack, "few_classes") => any(&[Member::ApgdDlr, Member::ApgdT]),
            _ => self.attack.options().contains(&option),
        }
    }

    /// The eps of the run; 0 where there is none.
    fn size(&self) -> Result<f64, Failure> {
        if self.norm == Norm::Linf {
            // The whole range is where the search for the smallest perturbation may begin.
            let largest = self.eps.filter(|eps| self.minimal_norm.is_none() || *eps > 1.0);
            self.sweep
                .iter()
                .copied()
                .chain(largest)
                .try_for_each(|eps| linf_eps(eps).map(drop))?;
        }
        match (self.norm, self.eps) {
            _ if !self.sweep.is_empty() => Ok(0.0),
            (_, Some(eps)) => Ok(eps),
            (Norm::Linf, None) => Ok(8.0 / 255.0),
            _ if self.attack == AttackName::None => Ok(0.0),
            (norm, None) => Err(EvaluateError::NoEps(norm).into()),
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let eps = arguments.size()?;
    let threat = ThreatModel::new(arguments.norm, eps);
    let bar = ProgressBar::hidden();
    let mut attack = attack(arguments, &bar);
    if arguments.limit == Some(0) {
        return Err(EvaluateError::NoImages.into());
    }
    if let Some(path) = &arguments.json {
        check_writable(path)?;
    }
    let configured = arguments.network.as_deref().map(read_network).transpose()?;
    let device = arguments.device.open()?;
    let data = arguments.data.load_part(Split::Test, arguments.limit.unwrap_or(usize::MAX))?;
    let recorded = Recorded::of(&arguments.weights)?;
    let trained = recorded.resolution()?.map_or(data.height(), |side| side as usize);
    if trained != data.height() {
        return Err(EvaluateError::Resolution { trained, data: data.height() }.into());
    }
    let (name, network) = network(arguments, configured, &recorded, &data)?;
    let activation = network.activation().clone();
    let model = load_weights(network.init(0, &device), &arguments.weights)?;
    let bytes = fs::read(&arguments.weights)
        .map_err(|source| EvaluateError::Read { path: arguments.weights.clone(), source })?;
    let mut victim = Victim::new(&model);
    let normalization = normalization(arguments, &recorded)?;
    if let Some((mean, std)) = &normalization {
        victim = victim.normalize(mean, std)?;
    }
    let mut twin = None;
    if activation.gradient != Gradient::Own && arguments.gradients == GradientsName::Both {
        let own = network.clone().with_activation(activation.clone().with_gradient(Gradient::Own));
        twin = Some(load_weights(own.init(0, &device), &arguments.weights)?);
    }
    if let Some(twin) = &twin {
        let mut twin = Victim::new(twin);
        if let Some((mean, std)) = &normalization {
            twin = twin.normalize(mean, std)?;
        }
        attack = Box::new(BothGradients::new(attack, twin));
    }
    println!(
        "network {name}, activation {activation}, {}; {} images of {} by {} pixels",
        match &normalization {
            Some((mean, std)) => format!("normalised by mean {mean:?} and deviation {std:?}"),
            None => "images as they are".to_owned(),
        },
        data.len(),
        data.height(),
        data.width(),
    );
    let weights_sha256: String =
        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let described = attack.describe();
    let about = About {
        attack: AttackOutput {
            name: arguments.attack,
            threat: &threat,
            settings: described.get("settings").cloned().unwrap_or(described),
            batch: arguments.batch,
        },
        model: name,
        network: &network,
        activation,
        mean: normalization.as_ref().map(|(mean, _)| mean.as_slice()),
        std: normalization.as_ref().map(|(_, std)| std.as_slice()),
        weights_sha256,
        data: arguments.data.to_string(),
        device: arguments.device.to_string(),
    };
    if !arguments.sweep.is_empty() {
        let batches = data.batches(arguments.batch).map(|indices| data.batch(&indices, &device));
        return sweep(arguments, &victim, attack.as_ref(), batches, &about);
    }
    if let Some(halvings) = arguments.minimal_norm {
        let batches = data.batches(arguments.batch).map(|indices| data.batch(&indices, &device));
        return smallest(arguments, &victim, attack.as_ref(), batches, (eps, halvings), &about);
    }
    let mut evaluation = Evaluation::new(&victim, attack.as_ref(), &threat).model(format!(
        "{} {}",
        about.weights_sha256,
        serde_json::to_string(&network)?
    ));
    if let Some(path) = &arguments.state {
        evaluation = evaluation.resume_from(path);
    }
    if let Some(folder) = &arguments.keep_images {
        let pixels = match arguments.pixels {
            PixelsName::Float => Pixels::Float,
            PixelsName::Byte => Pixels::Byte,
        };
        evaluation = evaluation.keep_images(folder, pixels);
    }

    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.set_length(data.len() as u64);
    bar.reset();
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {elapsed} gone, {eta} to go")
    {
        bar.set_style(style.progress_chars("━━─"));
    }
    let batches = data.batches(arguments.batch).map(|indices| data.batch(&indices, &device));
    let report = evaluation.run(batches, |report| {
        bar.set_position(report.n as u64);
        bar.set_message(summary(report));
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    if !(report.stages.is_empty() && report.flags.is_empty()) {
        report.lines().iter().for_each(|line| println!("{line}"));
    }
    println!("{}", summary(&report));
    println!(
        "cross-entropy: clean {:.6}, adversarial {:.6}; {} forwards, {} backwards, {:.1} s",
        report.clean_ce,
        report.adv_ce,
        report.cost.forwards,
        report.cost.backwards,
        report.cost.seconds
    );
    if let Some(path) = &arguments.json {
        let output = Output {
            n: report.n,
            clean_correct: report.clean_correct,
            robust_correct: report.robust_correct,
            worst_case_correct: report.worst_case_correct,
            clean_ce: report.clean_ce,
            adv_ce: report.adv_ce,
            about: &about,
            seconds: report.cost.seconds,
            forwards: report.cost.forwards,
            backwards: report.cost.backwards,
            stages: &report.stages,
            flags: &report.flags,
            per_sample: &report.per_sample,
        };
        write(path, &serde_json::to_vec_pretty(&output)?)?;
    }
    Ok(())
}

/// The images that withstand an attack of one size.
#[derive(Serialize)]
struct SweepRow {
    eps: f64,
    robust_correct: usize,
    forwards: u64,
    backwards: u64,
}

/// Attacks at each size in turn.
fn sweep(
    arguments: &Arguments,
    victim: &Victim<'_>,
    attack: &dyn Attack,
    batches: impl Iterator<Item = (Tensor<4>, Vec<usize>)>,
    about: &About<'_>,
) -> Result<(), Failure> {
    let threat = ThreatModel::new(arguments.norm, 0.0);
    let row = |&eps| SweepRow { eps, robust_correct: 0, forwards: 0, backwards: 0 };
    let mut rows: Vec<SweepRow> = arguments.sweep.iter().map(row).collect();
    let mut n = 0;
    for (images, labels) in batches {
        let goal = Goal::untargeted(labels.as_slice()).numbered_from(n as u64);
        n += labels.len();
        let points = eps_sweep(attack, victim, images, &goal, &threat, &arguments.sweep)?;
        for (row, point) in rows.iter_mut().zip(points) {
            row.robust_correct += point.success.iter().filter(|&&fooled| !fooled).count();
            row.forwards += point.cost.forwards;
            row.backwards += point.cost.backwards;
        }
    }
    println!("| eps ({}) | robust of {n} |\n|---:|---:|", arguments.norm);
    for row in &rows {
        println!("| {:.5} | {} |", row.eps, row.robust_correct);
    }
    if let Some(path) = &arguments.json {
        let output = SweepOutput { n, about, sweep: rows };
        write(path, &serde_json::to_vec_pretty(&output)?)?;
    }
    Ok(())
}

/// The smallest perturbation of each image.
fn smallest(
    arguments: &Arguments,
    victim: &Victim<'_>,
    attack: &dyn Attack,
    batches: impl Iterator<Item = (Tensor<4>, Vec<usize>)>,
    (largest, halvings): (f64, usize),
    about: &About<'_>,
) -> Result<(), Failure> {
    let mut distances: Vec<f64> = Vec::new();
    let mut cost = Cost::default();
    for (images, labels) in batches {
        let goal = Goal::untargeted(labels).numbered_from(distances.len() as u64);
        let found =
            minimal_norm(attack, victim, images, goal, about.attack.threat, largest, halvings)?;
        distances.extend(found.distances);
        cost += found.cost;
    }
    // Of images that need an attack; an infinite distance is one beyond the largest.
    let mut right: Vec<f64> = distances.iter().copied().filter(|d| *d > 0.0).collect();
    right.sort_by(f64::total_cmp);
    let fooled = right.iter().filter(|d| d.is_finite()).count();
    println!(
        "{} of {} images are misclassified without an attack; of the others {fooled} of {} are fooled \
         within {largest:.5} ({})",
        distances.len() - right.len(),
        distances.len(),
        right.len(),
        arguments.norm
    );
    match right.get(right.len() / 2) {
        Some(median) if median.is_finite() => {
            println!("the median of their smallest perturbations is {median:.6}");
        }
        Some(_) => println!("the median of their smallest perturbations is above {largest:.6}"),
        None => {}
    }
    if let Some(path) = &arguments.json {
        let output = SmallestOutput {
            n: distances.len(),
            about,
            distances: distances.into_iter().map(|d| d.is_finite().then_some(d)).collect(),
            forwards: cost.forwards,
            backwards: cost.backwards,
            seconds: cost.seconds,
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
        report.worst_case_correct,
        100.0 * report.worst_case_accuracy()
    )
}

fn attack(arguments: &Arguments, bar: &ProgressBar) -> Box<dyn Attack> {
    let seed = arguments.seed;
    let loss = match arguments.loss {
        LossName::Ce => Loss::CrossEntropy,
        LossName::Dlr => Loss::Dlr,
        LossName::Margin => Loss::Margin,
    };
    let few_classes = match arguments.few_classes {
        FewClassesName::Refuse => FewClasses::Refuse,
        FewClassesName::Margin => FewClasses::Margin,
    };
    let random_start =
        if arguments.random_start { RandomStart::Always } else { RandomStart::Never };
    let pgd = |pgd: Pgd| {
        let mut pgd = pgd
            .steps(arguments.steps.unwrap_or(20))
            .random_start(random_start)
            .restarts(arguments.restarts)
            .loss(loss.clone())
            .seed(seed);
        if let Some(size) = arguments.step_size {
            pgd = pgd.step_size(size);
        }
        if arguments.stop_when_fooled {
            pgd = pgd.stop_when_fooled();
        }
        finish(arguments, pgd)
    };
    let apgd = |apgd: Apgd| {
        let mut apgd = apgd
            .steps(arguments.steps.unwrap_or(100))
            .random_start(random_start)
            .restarts(arguments.restarts)
            .few_classes(few_classes)
            .seed(seed);
        if arguments.stop_when_fooled {
            apgd = apgd.stop_when_fooled();
        }
        finish(arguments, apgd)
    };
    let fab = |fab: Fab| {
        let steps = arguments.steps.unwrap_or(100);
        finish(arguments, fab.steps(steps).restarts(arguments.restarts).seed(seed))
    };
    match arguments.attack {
        AttackName::None => Box::new(Identity),
        AttackName::Fgsm => finish(arguments, Fgsm::default().loss(loss)),
        AttackName::RFgsm => again(arguments, RFgsm::default().loss(loss).seed(seed)),
        AttackName::NFgsm => again(arguments, NFgsm::default().loss(loss).seed(seed)),
        AttackName::Pgd => pgd(Pgd::default()),
        AttackName::MiFgsm => pgd(Pgd::default().momentum(1.0)),
        AttackName::NiFgsm => pgd(Pgd::default().nesterov(1.0)),
        AttackName::ApgdCe => apgd(Apgd::ce()),
        AttackName::ApgdDlr => apgd(Apgd::dlr()),
        AttackName::ApgdT => apgd(Apgd::targeted()),
        AttackName::Fab => fab(Fab::default()),
        AttackName::FabT => fab(Fab::targeted()),
        AttackName::Square => {
            let square = Square::default().queries(arguments.queries);
            Box::new(square.restarts(arguments.restarts).seed(seed))
        }
        AttackName::Autoattack => {
            let version = match arguments.version {
                _ if !arguments.attacks.is_empty() => AutoAttack::custom(arguments.attacks.clone()),
                None | Some(VersionName::Standard) => AutoAttack::standard(),
                Some(VersionName::Plus) => AutoAttack::plus(),
                Some(VersionName::Rand) => AutoAttack::rand(),
                Some(VersionName::Custom) => unreachable!("it requires --attacks"),
            };
            let bar = bar.clone();
            let attack = version
                .steps(arguments.steps.unwrap_or(100))
                .queries(arguments.queries)
                .few_classes(few_classes)
                .seed(seed)
                .log(move |line| bar.suspend(|| eprintln!("{line}")));
            again(arguments, attack)
        }
    }
}

/// With the restarts of the command line, for attacks that have none of their own.
fn again(arguments: &Arguments, attack: impl Attack + 'static) -> Box<dyn Attack> {
    match arguments.restarts {
        1 => finish(arguments, attack),
        runs => finish(arguments, Restarts::new(attack, runs)),
    }
}

/// With the averaged gradients of the command line.
fn finish(arguments: &Arguments, attack: impl Attack + 'static) -> Box<dyn Attack> {
    match arguments.eot {
        1 => Box::new(attack),
        passes => Box::new(Eot::new(attack, passes)),
    }
}

/// The normalisation in front of the network: that of the command line, else of the weights file,
/// else none.
fn normalization(
    arguments: &Arguments,
    recorded: &Recorded,
) -> Result<Option<Statistics>, Failure> {
    if arguments.mean.is_empty() {
        Ok(recorded.normalization()?)
    } else {
        Ok(Some((arguments.mean.clone(), arguments.std.clone())))
    }
}

/// The network of the command line, else the one the weights file describes; with its name.
fn network(
    arguments: &Arguments,
    configured: Option<NetworkConfig>,
    recorded: &Recorded,
    data: &ImageSet,
) -> Result<(String, NetworkConfig), Failure> {
    if let Some(name) = arguments.model {
        let activation = arguments.activation.clone().ok_or(EvaluateError::NoActivation)?;
        // The names stand for RGB images and ten classes; the data may have others.
        let network = name
            .config()
            .with_activation(activation)
            .with_input_channels(data.channels())
            .with_classes(data.classes());
        return Ok((name.to_string(), network));
    }
    let (path, name, network) = match (&arguments.network, configured) {
        (Some(path), Some(network)) => (path, path.display().to_string(), network),
        _ => {
            let path = &arguments.weights;
            let network =
                recorded.network()?.ok_or_else(|| EvaluateError::Unnamed(path.clone()))?;
            (path, "as in the weights file".to_owned(), network)
        }
    };
    if (network.input_channels(), network.classes()) != (data.channels(), data.classes()) {
        return Err(EvaluateError::OtherData {
            path: path.clone(),
            channels: [network.input_channels(), data.channels()],
            classes: [network.classes(), data.classes()],
        }
        .into());
    }
    let activation = arguments.activation.clone().unwrap_or(network.activation().clone());
    Ok((name, network.with_activation(activation)))
}

fn read_network(path: &Path) -> Result<NetworkConfig, EvaluateError> {
    let text = fs::read_to_string(path)
        .map_err(|source| EvaluateError::Read { path: path.to_owned(), source })?;
    let refuse = |reason| EvaluateError::Network { path: path.to_owned(), reason };
    let network: NetworkConfig =
        serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
    network.validate().map_err(|error| refuse(error.to_string()))?;
    Ok(network)
}
