//! Adversarial training on CIFAR-10 from a recipe: stops and resumes to the same weights, and ends with
//! a report.
//!
//! `cargo run --release --example cifar10 -- --data cifar10:DIR --recipe examples/recipes/cifar10.toml
//! --model resnet18_cifar --activation silu --out runs/cifar10`

mod common;

use burn::module::Module;
use clap::Parser;
use common::{
    grid::attacked_images,
    output::{check_free, check_writable, write},
    plot::{Axis, Series, accuracy_plot},
    progress::train_with_bar,
    recorded, replace_attack,
    sets::train_and_test,
    stop::{self, Stopped},
};
use sat::{
    attack::{Pgd, Report, ThreatModel, Victim, evaluate},
    core::{ActivationConfig, device::DeviceName},
    models::{ModelName, save_safetensors},
    train::{
        Checkpoints, EpochSummary, Normalized, Recipe, Start, TrainingAttack,
        data::{DataSpec, ImageSet},
    },
};
use serde_json::json;
use std::{fmt::Write, path::PathBuf, process::ExitCode};

/// Steps of the attack that the report names.
const TEST_STEPS: usize = 20;
/// What the workspace pins.
const BURN: &str = "0.22.1";
const TEST_BATCH: usize = 100;
/// The plot's perturbation sizes, as multiples of eps, and how many test images it takes.
const PLOT_FACTORS: [f64; 7] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0];
const PLOT_IMAGES: usize = 500;
const PICTURE: &str = "adversarial_images.png";
const RECIPE: &str = include_str!("recipes/cifar10.toml");

/// Trains a network adversarially and reports its clean and robust accuracy.
#[derive(Parser, Debug)]
struct Arguments {
    /// A recipe, .toml or .json; examples/recipes/cifar10.toml by default.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// In place of the recipe's passes over the training images; warm-up and milestones of its schedule
    /// are stretched along.
    #[arg(long)]
    epochs: Option<usize>,
    /// In place of the recipe's images per update.
    #[arg(long)]
    batch_size: Option<usize>,
    /// In place of the recipe's seed; also of the initial weights.
    #[arg(long)]
    seed: Option<u64>,
    /// In place of the recipe's eps, for images in [0, 1]. The step size is then --step-size, or
    /// follows from eps and the number of steps.
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    eps: Option<f64>,
    /// In place of the recipe's gradient steps of the attack; 0 trains on clean images. The step size
    /// is then --step-size, or eps for one step and 2.5 eps / steps for several.
    #[arg(long)]
    attack_steps: Option<usize>,
    /// In place of the recipe's length of a step, for images in [0, 1].
    #[arg(long, value_parser = common::eps, allow_hyphen_values = true)]
    step_size: Option<f64>,
    /// The network: resnet18_cifar, resnet20, ...
    #[arg(long, default_value = "resnet18_cifar")]
    model: ModelName,
    /// The activation, such as silu or relu~psoftplus:10.
    #[arg(long, default_value = "silu")]
    activation: ActivationConfig,
    /// The images: cifar10:DIR, fashion-mnist:DIR, mnist:DIR or builtin:fashion-mnist.
    #[arg(long)]
    data: DataSpec,
    /// Train on so many images only, drawn by the seed.
    #[arg(long)]
    limit: Option<usize>,
    /// Test on so many images only: the first, or of photographs some of each class.
    #[arg(long)]
    test_limit: Option<usize>,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Go on with the run in the folder of --out that was stopped.
    #[arg(long)]
    resume: bool,
    /// The folder for weights, report and checkpoints.
    #[arg(long, default_value = "runs/cifar10")]
    out: PathBuf,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let recipe = recipe(arguments)?;
    let Arguments { limit, test_limit, .. } = *arguments;
    let (train_set, test_set) = train_and_test(&arguments.data, limit, test_limit, recipe.seed)?;
    let device = arguments.device.open()?;
    let file = |name: &str| arguments.out.join(name);
    let weights = file("model.safetensors");
    if !arguments.resume {
        check_free(&weights)?;
    }
    let results = ["report.json", "report.md", "accuracy_vs_eps.png", "training.png", PICTURE];
    for path in results.map(file).iter().chain([&weights]) {
        check_writable(path)?;
    }
    println!(
        "{} with {}, {} training and {} test images, on {}\n\n{}",
        arguments.model,
        arguments.activation,
        train_set.len(),
        test_set.len(),
        arguments.device,
        recipe.to_toml()
    );
    stop::on_ctrl_c()?;

    let config = arguments
        .model
        .config()
        .with_activation(arguments.activation.clone())
        .with_input_channels(train_set.channels())
        .with_classes(train_set.classes());
    let training_device = device.clone().autodiff();
    let model = config.init(recipe.seed, &training_device);
    let model = Normalized::to_plus_minus_one(model, train_set.channels());
    let checkpoints = Checkpoints::open(file("checkpoints"))?;
    let start = if arguments.resume { Start::Resume } else { Start::Fresh };
    let place = Some((&checkpoints, start));
    let trained = train_with_bar(model, &recipe, &train_set, &training_device, place)?;
    let model = trained.result();
    let metadata = recorded::metadata(&config, model.statistics(), None);
    save_safetensors(&model.model, &weights, &metadata)?;

    let victim = Victim::new(&model.valid());
    let under = |images: &ImageSet, threat: &ThreatModel| -> Result<Report, Failure> {
        let batches = images.batches(TEST_BATCH).map(|rows| images.batch(&rows, &device));
        let attack = Pgd::default().steps(TEST_STEPS);
        let report = evaluate(&victim, &attack, batches, threat, |_| stop::requested())?;
        if report.complete { Ok(report) } else { Err(Stopped.into()) }
    };
    // A network that was trained on clean images is tested like the others.
    let usual = TrainingAttack::default();
    let attack = recipe.attack.as_ref().unwrap_or(&usual);
    let eps = arguments.eps.unwrap_or(attack.eps);
    let threat = ThreatModel::new(attack.norm, eps);
    let report = under(&test_set, &threat)?;
    let few = test_set.clone().take(PLOT_IMAGES);
    let mut curve = Vec::new();
    // At eps 0 there is nothing to plot against.
    for factor in PLOT_FACTORS.iter().filter(|_| eps > 0.0) {
        let threat = ThreatModel::new(threat.norm, factor * eps);
        curve.push((factor * eps, under(&few, &threat)?.worst_case_accuracy()));
    }
    let name = format!("{}, {}", arguments.model, arguments.activation);

    let command: Vec<String> = std::env::args().collect();
    let content = json!({
        "command": command,
        "versions": {
            "sat": env!("CARGO_PKG_VERSION"),
            "burn": BURN,
            "system": [std::env::consts::OS, std::env::consts::ARCH],
        },
        "recipe": recipe,
        "network": config,
        "data": arguments.data.to_string(),
        "train_images": train_set.len(),
        "device": arguments.device.to_string(),
        "seconds": trained.progress.seconds,
        "history": trained.progress.history,
        "attack": { "pgd_steps": TEST_STEPS, "threat": threat, "batch": TEST_BATCH },
        "n": report.n,
        "clean_correct": report.clean_correct,
        "robust_correct": report.robust_correct,
        "worst_case_correct": report.worst_case_correct,
        "clean_ce": report.clean_ce,
        "adv_ce": report.adv_ce,
        "curve": curve,
    });
    write(&file("report.json"), &serde_json::to_vec_pretty(&content)?)?;
    let mut table = String::new();
    writeln!(table, "| network | clean | PGD-{TEST_STEPS} | test images | training s |")?;
    writeln!(table, "|---|---:|---:|---:|---:|")?;
    writeln!(
        table,
        "| {name} | {:.2} % | {:.2} % | {} | {:.0} |",
        100.0 * report.clean_accuracy(),
        100.0 * report.worst_case_accuracy(),
        report.n,
        trained.progress.seconds
    )?;
    println!("\n{table}");
    let text = format!(
        "{table}\nsat {}, burn {BURN}, {} {}, device {}\n\n    {}\n\n```toml\n{}```\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        arguments.device,
        command.join(" "),
        recipe.to_toml()
    );
    write(&file("report.md"), text.as_bytes())?;

    let history = &trained.progress.history;
    accuracy_plot(&file("training.png"), &name, Axis::Epoch, &training_curves(history))?;
    if eps > 0.0 {
        let title = format!("trained at eps {eps:.4}, PGD-{TEST_STEPS}, {} images", few.len());
        let (sizes, accuracy) = curve.iter().copied().unzip();
        let against_eps = [Series { name: name.clone(), x: sizes, accuracy }];
        accuracy_plot(&file("accuracy_vs_eps.png"), &title, Axis::Eps, &against_eps)?;
        attacked_images(
            &file(PICTURE),
            &format!("PGD-{TEST_STEPS} at eps {eps:.4}"),
            (&test_set, &device),
            &Pgd::default().steps(TEST_STEPS),
            (threat.norm, eps),
            &[(name, victim.clone())],
        )?;
    }
    checkpoints.clear()?;
    Ok(())
}

/// Accuracy over the epochs: of the training images while they were trained on, and of those held out.
fn training_curves(history: &[EpochSummary]) -> Vec<Series> {
    type Figure = fn(&EpochSummary) -> Option<f64>;
    let figures: [(&str, Figure); 5] = [
        ("training, clean", |epoch| Some(epoch.clean_accuracy)),
        ("training, adversarial", |epoch| Some(epoch.robust_accuracy)),
        ("held out, clean", |epoch| epoch.held_out.map(|held_out| held_out.clean_accuracy)),
        ("held out, FGSM", |epoch| epoch.held_out.map(|held_out| held_out.fgsm_accuracy)),
        ("held out, PGD-10", |epoch| epoch.held_out.map(|held_out| held_out.pgd_accuracy)),
    ];
    let curves = figures.map(|(name, figure)| {
        let points = history.iter().filter_map(|e| figure(e).map(|value| (e.epoch as f64, value)));
        let (x, accuracy) = points.unzip();
        Series { name: name.to_owned(), x, accuracy }
    });
    curves.into_iter().filter(|series| !series.x.is_empty()).collect()
}

fn recipe(arguments: &Arguments) -> Result<Recipe, Failure> {
    let mut recipe = match &arguments.recipe {
        Some(path) => Recipe::read(path)?,
        None => Recipe::from_toml(RECIPE)?,
    };
    if let Some(epochs) = arguments.epochs {
        recipe = recipe.with_epochs(epochs);
    }
    recipe.batch_size = arguments.batch_size.unwrap_or(recipe.batch_size);
    recipe.seed = arguments.seed.unwrap_or(recipe.seed);
    let Arguments { eps, attack_steps, step_size, .. } = *arguments;
    replace_attack(&mut recipe, eps, attack_steps, step_size)?;
    recipe.validate()?;
    Ok(recipe)
}
