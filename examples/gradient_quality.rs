//! The probe of arXiv 2006.14536, table 1: does a better gradient help the attacker inside training, the
//! optimizer, or both? ReLU in every forward pass; in the backward pass its own derivative or that of
//! parametric softplus, for either. A last run is smooth in both passes.
//!
//! `cargo run --release --example gradient_quality` takes a small network and Fashion-MNIST.

mod common;

use burn::module::Module;
use clap::Parser;
use common::{
    output::{check_writable, write},
    progress::train_with_bar,
    stop::{self, Stopped},
};
use sat::{
    attack::{Pgd, Victim, evaluate},
    core::{ActivationConfig, Curve, Gradient, device::DeviceName, replace_gradients},
    models::ModelName,
    train::{
        Checkpoints, Normalized, Recipe, Schedule, Start, TrainingAttack,
        data::{DataSpec, Split},
    },
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

const TEST_STEPS: usize = 20;
const TEST_BATCH: usize = 250;

/// Trains five networks that differ in nothing but the gradient of their activation.
#[derive(Parser, Debug)]
struct Arguments {
    /// A recipe; by default 5 epochs of single-step training at eps 0.1.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// The network.
    #[arg(long, default_value = "resnet20")]
    model: ModelName,
    /// The images.
    #[arg(long, default_value = "builtin:fashion-mnist")]
    data: DataSpec,
    /// Train on the first so many images, and test on the first quarter as many.
    #[arg(long, default_value_t = 2000)]
    limit: usize,
    /// In place of the recipe's passes over the training images.
    #[arg(long)]
    epochs: Option<usize>,
    /// In place of the recipe's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to compute.
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Go on with the run in the folder of --out that was stopped.
    #[arg(long)]
    resume: bool,
    /// The folder for the table as JSON and for checkpoints.
    #[arg(long, default_value = "runs/gradient_quality")]
    out: PathBuf,
}

/// One row of the table.
#[derive(Serialize)]
struct Row {
    attacker: String,
    optimizer: String,
    clean_accuracy: f64,
    robust_accuracy: f64,
    seconds: f64,
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("the recipe has no [attack] whose gradient could be chosen")]
    NoAttack,
}

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut recipe = match &arguments.recipe {
        Some(path) => Recipe::read(path)?,
        None => Recipe {
            epochs: 5,
            batch_size: 64,
            schedule: Schedule::Cyclic { lr: 0.1, peak: 0.3 },
            attack: Some(TrainingAttack { eps: 0.1, ..TrainingAttack::default() }),
            ..Recipe::default()
        },
    };
    if let Some(epochs) = arguments.epochs {
        recipe = recipe.with_epochs(epochs);
    }
    recipe.seed = arguments.seed.unwrap_or(recipe.seed);
    recipe.validate()?;
    let attack = recipe.attack.clone().ok_or(ProbeError::NoAttack)?;
    let report = arguments.out.join("report.json");
    check_writable(&report)?;
    let device = arguments.device.open()?;
    let train_set = arguments.data.load(Split::Train)?.take(arguments.limit);
    let test_set = arguments.data.load(Split::Test)?.take(arguments.limit.div_ceil(4));
    stop::on_ctrl_c()?;

    let relu = ActivationConfig::from(Curve::Relu);
    let softplus = Curve::ParametricSoftplus(10.0);
    let smooth = Gradient::Of(softplus);
    // The network's gradient is the optimizer's; the attacker has one of its own.
    let runs = [
        (relu.clone(), Gradient::Own),
        (relu.clone(), smooth),
        (relu.clone().with_gradient(smooth), Gradient::Own),
        (relu.with_gradient(smooth), smooth),
        (softplus.into(), Gradient::Own),
    ];
    let start = if arguments.resume { Start::ResumeOrFresh } else { Start::Fresh };
    let mut rows = Vec::new();
    let mut folders = Vec::new();
    println!("| gradient of the attacker | of the optimizer | clean | PGD-{TEST_STEPS} |");
    println!("|---|---|---:|---:|");
    for (activation, attacker) in runs {
        let recipe = Recipe {
            attack: Some(TrainingAttack { gradient: Some(attacker), ..attack.clone() }),
            ..recipe.clone()
        };
        let config = arguments
            .model
            .config()
            .with_activation(activation.clone())
            .with_input_channels(train_set.channels())
            .with_classes(train_set.classes());
        let training_device = device.clone().autodiff();
        let model = config.init(recipe.seed, &training_device);
        let model = Normalized::to_plus_minus_one(model, train_set.channels());
        let checkpoints = Checkpoints::open(arguments.out.join(format!("run{}", rows.len() + 1)))?;
        let place = Some((&checkpoints, start));
        let trained = train_with_bar(model, &recipe, &train_set, &training_device, place)?;
        folders.push(checkpoints);
        // Evaluation is that of the network itself, gradient and all.
        let victim = Victim::new(&replace_gradients(trained.result(), Gradient::Own).valid());
        let batches = test_set.batches(TEST_BATCH).map(|rows| test_set.batch(&rows, &device));
        let pgd = Pgd::default().steps(TEST_STEPS);
        let report = evaluate(&victim, &pgd, batches, &attack.threat(), |_| stop::requested())?;
        if !report.complete {
            return Err(Stopped.into());
        }
        let own = activation.function.to_string();
        let name = |gradient: Gradient| match gradient {
            Gradient::Own => own.clone(),
            Gradient::Of(curve) => format!("{own}~{curve}"),
        };
        let row = Row {
            attacker: name(attacker),
            optimizer: name(activation.gradient),
            clean_accuracy: report.clean_accuracy(),
            robust_accuracy: report.worst_case_accuracy(),
            seconds: trained.progress.seconds,
        };
        println!(
            "| {} | {} | {:.1} % | {:.1} % |",
            row.attacker,
            row.optimizer,
            100.0 * row.clean_accuracy,
            100.0 * row.robust_accuracy
        );
        rows.push(row);
    }
    let error = 100.0 * (0.25 / test_set.len() as f64).sqrt();
    println!("\n{} test images leave about ±{error:.1} points; seeds add to it", test_set.len());
    let content = serde_json::json!({
        "command": std::env::args().collect::<Vec<_>>(),
        "recipe": recipe,
        "model": arguments.model.as_str(),
        "data": arguments.data.to_string(),
        "train_images": train_set.len(),
        "test_images": test_set.len(),
        "rows": rows,
    });
    write(&report, &serde_json::to_vec_pretty(&content)?)?;
    for checkpoints in folders {
        checkpoints.clear()?;
    }
    Ok(())
}
