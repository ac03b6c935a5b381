//! Smooth adversarial training at work, on a CPU, in minutes: trains one small residual network for
//! each activation on 6,000 Fashion-MNIST images that are compiled in, attacks each on 1,000 test
//! images, and writes a table, a plot and a picture.
//!
//! `cargo run --release --example quickstart`

mod common;

use burn::{module::Module, tensor::Device};
use clap::Parser;
use common::{
    grid::attacked_images,
    output::{check_writable, write},
    plot::{Axis, Series, accuracy_plot},
    progress::train_with_bar,
    spread::{self, deviation, mean},
    stop::{self, Stopped},
};
use sat::{
    attack::{Norm, Pgd, Report, ThreatModel, Victim, evaluate},
    core::{ActivationConfig, device::DeviceName},
    models::{ResNet, ResNetConfig, StageConfig, StemConfig, load_safetensors, save_safetensors},
    train::{
        Checkpoints, Normalized, Recipe, Schedule, Start, TrainingAttack,
        data::{ImageSet, Split, builtin_fashion_mnist},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// Steps of the attack that the table reports, and of the one behind the plot.
const TABLE_STEPS: usize = 20;
/// The plot's perturbation sizes, as multiples of eps.
const PLOT_FACTORS: [f64; 7] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0];
/// Test images behind the plot, and in the picture.
const PLOT_IMAGES: usize = 200;
const TEST_BATCH: usize = 250;

/// Trains and attacks the same small network with several activations.
#[derive(Parser, Debug)]
struct Arguments {
    /// Activations to compare: relu, softplus, psoftplus[:a], silu, gelu, gelu-tanh, elu[:a],
    /// celu[:a], smooth-relu[:a], smooth-relu-learnable, or a pair value~gradient.
    #[arg(long, value_delimiter = ',', default_values = ["relu", "silu", "smooth-relu-learnable"])]
    activations: Vec<ActivationConfig>,
    /// Passes over the training images: 10, or 3 with --quick.
    #[arg(long)]
    epochs: Option<usize>,
    /// The largest change of a pixel (Linf), for images in [0, 1]; 8/255 works too.
    #[arg(long, default_value = "0.1", value_parser = common::eps, allow_hyphen_values = true)]
    eps: f64,
    /// Seeds; each trains every activation once, and the table shows mean and spread.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    seeds: Vec<u64>,
    /// Gradient steps of the attack inside training.
    #[arg(long, default_value_t = 1)]
    attack_steps: usize,
    /// Images per training step.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// A look around in under a minute: 3,000 training images, 3 epochs, 500 test images.
    #[arg(long)]
    quick: bool,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// The folder for results and checkpoints.
    #[arg(long, default_value = "runs/quickstart")]
    out: PathBuf,
    /// Go on with the run in that folder that was stopped.
    #[arg(long)]
    resume: bool,
}

/// What can go wrong besides the libraries' own errors.
#[derive(Debug, thiserror::Error)]
enum QuickstartError {
    #[error("{} holds a run that was stopped; go on with --resume, or choose another --out", .0.display())]
    Unfinished(PathBuf),
    #[error("cannot remove {}: {source}; check the permissions, or choose another --out", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("{} is of a run with other settings; resume with those, or choose another --out", .0.display())]
    OtherSettings(PathBuf),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is damaged: {source}; delete it to train again", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("--eps is 0; there is nothing to be robust against")]
    NoPerturbation,
    #[error("--{0} is empty; give at least one")]
    Nothing(&'static str),
    #[error("--{flag} names {value} twice")]
    Twice { flag: &'static str, value: String },
}

type Failure = Box<dyn std::error::Error>;
type Model = Normalized<ResNet>;

/// One trained and attacked model, as it stands in `report.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    activation: ActivationConfig,
    seed: u64,
    setting: Setting,
    clean_accuracy: f64,
    /// Under PGD-20 at the eps of training.
    robust_accuracy: f64,
    train_seconds: f64,
    evaluation_seconds: f64,
    /// (eps, robust accuracy under PGD-20), on the first test images.
    curve: Vec<(f64, f64)>,
}

/// All that decides an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Setting {
    recipe: Recipe,
    network: ResNetConfig,
    train_images: usize,
    test_images: usize,
    device: String,
}

#[derive(Serialize)]
struct FullReport<'a> {
    data: &'static str,
    train_images: usize,
    test_images: usize,
    curve_images: usize,
    attack: Pgd,
    eps: f64,
    device: String,
    outcomes: &'a [Outcome],
}

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    check_list("activations", &arguments.activations)?;
    check_list("seeds", &arguments.seeds)?;
    if arguments.eps == 0.0 {
        return Err(QuickstartError::NoPerturbation.into());
    }
    let device = arguments.device.open()?;
    let (mut train_set, mut test_set) =
        (builtin_fashion_mnist(Split::Train)?, builtin_fashion_mnist(Split::Test)?);
    let epochs = arguments.epochs.unwrap_or(if arguments.quick { 3 } else { 10 });
    if arguments.quick {
        (train_set, test_set) = (train_set.take(3000), test_set.take(500));
    }
    let jobs: Vec<Job<'_>> = arguments
        .seeds
        .iter()
        .flat_map(|&seed| arguments.activations.iter().map(move |activation| (activation, seed)))
        .map(|(activation, seed)| Job {
            activation: activation.clone(),
            recipe: recipe(arguments, epochs, seed),
            network: network(&train_set).with_activation(activation.clone()),
            folder: arguments
                .out
                .join(format!("{}-seed{seed}", common::file_name(&activation.to_string()))),
            train_set: &train_set,
            test_set: &test_set,
            device: &device,
            device_name: arguments.device,
        })
        .collect();
    let [report, plot, picture] = ["report.json", "accuracy_vs_eps.png", "adversarial_images.png"]
        .map(|name| arguments.out.join(name));
    let start = if arguments.resume { Start::Resume } else { Start::Fresh };
    for path in [&report, &plot, &picture] {
        check_writable(path)?;
    }
    for job in &jobs {
        job.check(start)?;
    }
    stop::on_ctrl_c()?;

    let mut outcomes = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let seed = job.recipe.seed;
        eprintln!("[{}/{}] {}, seed {seed}", i + 1, jobs.len(), job.activation);
        outcomes.push(job.run(start)?);
    }

    print_table(&outcomes, arguments, test_set.len());
    let title = format!("Fashion-MNIST, trained at eps {}, PGD-{TABLE_STEPS}", arguments.eps);
    accuracy_plot(&plot, &title, Axis::Eps, &curves(&outcomes))?;
    draw_picture(&picture, arguments, &jobs)?;
    let content = FullReport {
        data: "builtin:fashion-mnist",
        train_images: train_set.len(),
        test_images: test_set.len(),
        curve_images: PLOT_IMAGES.min(test_set.len()),
        attack: table_attack(),
        eps: arguments.eps,
        device: arguments.device.to_string(),
        outcomes: &outcomes,
    };
    write(&report, &serde_json::to_vec_pretty(&content)?)?;
    for job in &jobs {
        job.checkpoints()?.clear()?;
    }
    let seconds = started.elapsed().as_secs();
    println!("\n{}\n{}\n{}", report.display(), plot.display(), picture.display());
    println!("took {} min {} s", seconds / 60, seconds % 60);
    Ok(())
}

/// A ResNet-8 on images of 14 x 14 after a strided stem.
fn network(data: &ImageSet) -> ResNetConfig {
    let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
    ResNetConfig {
        stem: StemConfig::small(16, 2),
        stages: vec![stage(16, 1), stage(32, 2), stage(64, 2)],
        ..ResNetConfig::resnet20()
    }
    .with_input_channels(data.channels())
    .with_classes(data.classes())
}

fn recipe(arguments: &Arguments, epochs: usize, seed: u64) -> Recipe {
    Recipe {
        epochs,
        batch_size: arguments.batch_size,
        seed,
        // Chosen on held-out images: docs/results/experiment-learning-rate.md.
        schedule: Schedule::Cyclic { lr: 1.2, peak: 0.3 },
        attack: Some(TrainingAttack {
            eps: arguments.eps,
            steps: arguments.attack_steps,
            ..TrainingAttack::default()
        }),
        ..Recipe::default()
    }
}

fn table_attack() -> Pgd {
    Pgd::default().steps(TABLE_STEPS).stop_when_fooled()
}

/// One activation with one seed.
struct Job<'a> {
    activation: ActivationConfig,
    recipe: Recipe,
    network: ResNetConfig,
    folder: PathBuf,
    train_set: &'a ImageSet,
    test_set: &'a ImageSet,
    device: &'a Device,
    device_name: DeviceName,
}

impl Job<'_> {
    fn checkpoints(&self) -> Result<Checkpoints, Failure> {
        Ok(Checkpoints::open(self.folder.join("checkpoints"))?)
    }

    fn weights(&self) -> PathBuf {
        self.folder.join("model.safetensors")
    }

    fn outcome(&self) -> PathBuf {
        self.folder.join("outcome.json")
    }

    /// Checks that the job can run here. A finished run in the folder will be replaced, file by file;
    /// a stopped one is only gone on with.
    fn check(&self, start: Start) -> Result<(), Failure> {
        self.recipe.validate()?;
        match start {
            Start::Fresh if self.checkpoints()?.latest()?.is_some() => {
                Err(QuickstartError::Unfinished(self.folder.clone()).into())
            }
            Start::Resume | Start::ResumeOrFresh => {
                self.finished().map(|_| ()).map_err(Failure::from)
            }
            Start::Fresh => Ok(()),
        }
    }

    /// Trains and evaluates, or reads what an earlier run has finished.
    fn run(&self, start: Start) -> Result<Outcome, Failure> {
        let finished = match start {
            Start::Resume | Start::ResumeOrFresh => self.finished()?,
            Start::Fresh => None,
        };
        if let Some(outcome) = finished {
            eprintln!("already done");
            return Ok(outcome);
        }
        // An older outcome would stand in the way of resuming this run.
        let path = self.outcome();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(QuickstartError::Remove { path, source }.into());
            }
            _ => {}
        }
        let (model, train_seconds) = self.train()?;
        let network = self.network.clone().into();
        let metadata = common::recorded::metadata(&network, model.statistics(), None);
        save_safetensors(&model.model, self.weights(), &metadata)?;
        let started = Instant::now();
        let victim = Victim::new(&model);
        let eps = self.eps();
        let report = self.evaluate(&victim, self.test_set, eps)?;
        let few = self.test_set.clone().take(PLOT_IMAGES);
        let mut curve = Vec::new();
        for factor in PLOT_FACTORS {
            let report = self.evaluate(&victim, &few, factor * eps)?;
            curve.push((factor * eps, report.robust_accuracy()));
        }
        let outcome = Outcome {
            activation: self.activation.clone(),
            seed: self.recipe.seed,
            setting: self.setting(),
            clean_accuracy: report.clean_accuracy(),
            robust_accuracy: report.robust_accuracy(),
            train_seconds,
            evaluation_seconds: started.elapsed().as_secs_f64(),
            curve,
        };
        eprintln!(
            "test: clean {:.1} %, PGD-{TABLE_STEPS} {:.1} %",
            100.0 * outcome.clean_accuracy,
            100.0 * outcome.robust_accuracy
        );
        write(&self.outcome(), &serde_json::to_vec_pretty(&outcome)?)?;
        Ok(outcome)
    }

    fn eps(&self) -> f64 {
        self.recipe.attack.as_ref().map_or(0.0, |attack| attack.eps)
    }

    fn finished(&self) -> Result<Option<Outcome>, QuickstartError> {
        let path = self.outcome();
        match fs::read(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(QuickstartError::Read { path, source }),
            Ok(bytes) => {
                let outcome: Outcome = match serde_json::from_slice(&bytes) {
                    Ok(outcome) => outcome,
                    Err(source) => return Err(QuickstartError::Damaged { path, source }),
                };
                if outcome.setting == self.setting() {
                    Ok(Some(outcome))
                } else {
                    Err(QuickstartError::OtherSettings(path))
                }
            }
        }
    }

    fn setting(&self) -> Setting {
        Setting {
            recipe: self.recipe.clone(),
            network: self.network.clone(),
            train_images: self.train_set.len(),
            test_images: self.test_set.len(),
            device: self.device_name.to_string(),
        }
    }

    fn train(&self) -> Result<(Model, f64), Failure> {
        let device = self.device.clone().autodiff();
        let model = Normalized::to_plus_minus_one(
            self.network.init(self.recipe.seed, &device),
            self.train_set.channels(),
        );
        let checkpoints = self.checkpoints()?;
        let place = Some((&checkpoints, Start::ResumeOrFresh));
        let trained = train_with_bar(model, &self.recipe, self.train_set, &device, place)?;
        Ok((trained.model, trained.progress.seconds))
    }

    fn evaluate(&self, victim: &Victim<'_>, set: &ImageSet, eps: f64) -> Result<Report, Failure> {
        let batches = set.batches(TEST_BATCH).map(|indices| set.batch(&indices, self.device));
        let threat = ThreatModel::linf(eps);
        let report = evaluate(victim, &table_attack(), batches, &threat, |_| stop::requested())?;
        if report.complete { Ok(report) } else { Err(Stopped.into()) }
    }
}

fn check_list<T: PartialEq + ToString>(
    flag: &'static str,
    values: &[T],
) -> Result<(), QuickstartError> {
    if values.is_empty() {
        return Err(QuickstartError::Nothing(flag));
    }
    for (i, value) in values.iter().enumerate() {
        if values[..i].contains(value) {
            return Err(QuickstartError::Twice { flag, value: value.to_string() });
        }
    }
    Ok(())
}

/// The outcomes of each activation, in the order of first appearance.
fn by_activation(outcomes: &[Outcome]) -> Vec<(ActivationConfig, Vec<&Outcome>)> {
    let mut groups: Vec<(ActivationConfig, Vec<&Outcome>)> = Vec::new();
    for outcome in outcomes {
        match groups.iter_mut().find(|(activation, _)| *activation == outcome.activation) {
            Some((_, group)) => group.push(outcome),
            None => groups.push((outcome.activation.clone(), vec![outcome])),
        }
    }
    groups
}

/// The mean, with the deviation where there are several seeds.
fn percent(values: &[f64]) -> String {
    let several = values.len() > 1;
    spread::percent(mean(values), several.then(|| deviation(values)))
}

fn print_table(outcomes: &[Outcome], arguments: &Arguments, images: usize) {
    println!(
        "\n{images} test images, Linf, eps {}; accuracy in per cent{}\n",
        arguments.eps,
        if arguments.seeds.len() > 1 { ", mean ± standard deviation over seeds" } else { "" }
    );
    let robust = format!("PGD-{TABLE_STEPS}");
    println!("| {:<24} | {:>12} | {robust:>12} | {:>10} |", "activation", "clean", "training s");
    println!("|{:-<26}|{:->13}:|{:->13}:|{:->11}:|", "", "", "", "");
    for (activation, group) in by_activation(outcomes) {
        let column = |figure: fn(&Outcome) -> f64| -> Vec<f64> {
            group.iter().map(|outcome| figure(outcome)).collect()
        };
        println!(
            "| {:<24} | {:>12} | {:>12} | {:>10.0} |",
            activation.to_string(),
            percent(&column(|outcome| outcome.clean_accuracy)),
            percent(&column(|outcome| outcome.robust_accuracy)),
            mean(&column(|outcome| outcome.train_seconds)),
        );
    }
    if arguments.seeds.len() == 1 {
        let error = 100.0 * (0.25 / images as f64).sqrt();
        println!(
            "\nOne seed: {images} images alone leave about ±{error:.1} points (one standard error), \
             and seeds add to it; try --seeds 0,1,2."
        );
    }
}

/// One curve for each activation, averaged over seeds.
fn curves(outcomes: &[Outcome]) -> Vec<Series> {
    let series = |(activation, group): (ActivationConfig, Vec<&Outcome>)| {
        let points = 0..group[0].curve.len();
        Series {
            name: activation.to_string(),
            x: points.clone().map(|i| group[0].curve[i].0).collect(),
            accuracy: points
                .map(|i| mean(&group.iter().map(|o| o.curve[i].1).collect::<Vec<_>>()))
                .collect(),
        }
    };
    by_activation(outcomes).into_iter().map(series).collect()
}

/// Attacks a few test images with the first seed's models and draws what comes of it.
fn draw_picture(path: &Path, arguments: &Arguments, jobs: &[Job<'_>]) -> Result<(), Failure> {
    let first_seed = || jobs.iter().filter(|job| job.recipe.seed == arguments.seeds[0]);
    let models = first_seed().map(|job| {
        let model = load_safetensors(job.network.init(0, job.device), job.weights())?;
        let model = Normalized::to_plus_minus_one(model, job.test_set.channels()).valid();
        Ok((job.activation.to_string(), Victim::new(&model)))
    });
    let models = models.collect::<Result<Vec<_>, Failure>>()?;
    let title =
        format!("PGD-{TABLE_STEPS} at eps {} on adversarially trained models", arguments.eps);
    let attack = Pgd::default().steps(TABLE_STEPS);
    let images = (jobs[0].test_set, jobs[0].device);
    attacked_images(path, &title, images, &attack, (Norm::Linf, arguments.eps), &models)
}
