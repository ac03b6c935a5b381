//! Training from a recipe on Burn's learner: its dashboard in the terminal, metric files, a checkpoint
//! after each epoch, early stopping, several devices.
//!
//! `cargo run --release --features tui --example learner -- --data builtin:fashion-mnist --model resnet20
//! --epochs 3 --out runs/learner`
//!
//! Without the feature `tui`, or without a terminal, Burn prints lines in place of the dashboard.

mod common;

use burn::{
    tensor::Device,
    train::{
        ExecutionStrategy, MetricEarlyStoppingStrategy, MultiDeviceOptim, StoppingCondition,
        checkpoint::{
            ComposedCheckpointingStrategy, KeepLastNCheckpoints, MetricCheckpointingStrategy,
        },
        metric::store::{Aggregate, Direction, Split},
    },
};
use clap::Parser;
use common::{
    output::{WriteError, check_writable, write},
    recorded,
    sets::train_and_test,
};
use sat::{
    core::{ActivationConfig, device::DeviceName},
    models::{ModelName, save_safetensors},
    train::{
        Normalized, Recipe, Select,
        data::DataSpec,
        hold_out,
        learner::{Adversarial, AdversarialMetric, Figure, TrainingImages, ValidationImages},
    },
};
use serde_json::{Value, json};
use std::{fs, num::NonZeroUsize, path::PathBuf, process::ExitCode};

/// Images watched at a time.
const BATCH: usize = 100;
const RECIPE: &str = include_str!("recipes/cifar10.toml");

/// Trains a network adversarially on Burn's learner.
#[derive(Parser, Debug)]
struct Arguments {
    /// A recipe, .toml or .json; examples/recipes/cifar10.toml by default. Its `hold_out` images are
    /// watched; without them the test images are, which then are no test of what they chose.
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// In place of the recipe's passes over the training images; warm-up and milestones of its schedule
    /// are stretched along.
    #[arg(long)]
    epochs: Option<usize>,
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
    /// Of the test images, if those are watched, only so many: the first, or of photographs some of each
    /// class.
    #[arg(long)]
    test_limit: Option<usize>,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// On how many devices, each of which takes its share of every batch; a CPU stands in for several.
    #[arg(long, default_value = "1")]
    devices: NonZeroUsize,
    /// Stop after so many epochs without a better accuracy under PGD-10. The weights are those of the
    /// last epoch; those of the best are in the folder's `checkpoint`.
    #[arg(long)]
    patience: Option<NonZeroUsize>,
    /// Go on with the run in the folder of --out, after its last whole epoch.
    #[arg(long)]
    resume: bool,
    /// The folder for weights, metrics and checkpoints.
    #[arg(long, default_value = "runs/learner")]
    out: PathBuf,
}

/// What can go wrong besides the libraries' own errors.
#[derive(Debug, thiserror::Error)]
enum LearnerError {
    #[error("{0} holds checkpoints; go on with --resume, or choose another --out")]
    Occupied(PathBuf),
    #[error("{0} holds no checkpoint to resume; check --out, or leave out --resume")]
    NothingToResume(PathBuf),
    #[error("{0} is of a run with other settings; resume with those, or choose another --out")]
    OtherRun(PathBuf),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(
        "the recipe selects an epoch, which Burn's checkpoints do here: set `select` to \"last\", and see \
         --patience"
    )]
    Selects,
    #[error("stopped; go on after the last epoch with --resume")]
    Stopped,
    #[error("the training ended early: {0}")]
    Failed(String),
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { limit, test_limit, .. } = *arguments;
    let mut recipe = match &arguments.recipe {
        Some(path) => Recipe::read(path)?,
        None => Recipe::from_toml(RECIPE)?,
    };
    if let Some(epochs) = arguments.epochs {
        recipe = recipe.with_epochs(epochs);
    }
    recipe.validate()?;
    if recipe.select != Select::Last {
        return Err(LearnerError::Selects.into());
    }
    let open = |number| arguments.device.open_number(number).map(Device::autodiff);
    let devices = (0..arguments.devices.get()).map(open).collect::<Result<Vec<_>, _>>()?;
    let (train_set, test_set) = train_and_test(&arguments.data, limit, test_limit, recipe.seed)?;
    let (train_set, watched) = hold_out(&train_set, &recipe).unwrap_or((train_set, test_set));
    let weights = arguments.out.join("model.safetensors");
    check_writable(&weights)?;

    let (channels, classes) = (train_set.channels(), train_set.classes());
    let config = arguments.model.config().with_activation(arguments.activation.clone());
    let config = config.with_input_channels(channels).with_classes(classes);
    let settings = json!({ "recipe": recipe, "network": config, "images": train_set.sha256() });
    let epoch = first_epoch(arguments, recipe.epochs, &settings)?;
    println!("{} with {}\n\n{}", arguments.model, arguments.activation, recipe.to_toml());

    let model = config.init(recipe.seed, &devices[0]);
    let model = Adversarial::new(Normalized::to_plus_minus_one(model, channels), &recipe)?;
    let images = TrainingImages::new(train_set, recipe, epoch, &devices[0])?;
    let validation = ValidationImages::new(watched, BATCH, &devices[0]);
    let learner = model.learner(images.steps());
    let mut training =
        model.training(&arguments.out, images, validation).with_default_checkpointers().summary();
    // The last two, and the one that the early stopping looks for.
    training = training.with_checkpointing_strategy(
        ComposedCheckpointingStrategy::builder()
            .add(KeepLastNCheckpoints::new(2))
            .add(MetricCheckpointingStrategy::new(
                &AdversarialMetric::new(Figure::RobustAccuracy),
                Aggregate::Mean,
                Direction::Highest,
                Split::Valid,
            ))
            .build(),
    );
    if epoch > 0 {
        training = training.checkpoint(epoch);
    }
    if devices.len() > 1 {
        let strategy = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
        training = training.with_training_strategy(strategy.into());
    }
    if let Some(n_epochs) = arguments.patience.map(NonZeroUsize::get) {
        training = training.early_stopping(MetricEarlyStoppingStrategy::new(
            &AdversarialMetric::new(Figure::RobustAccuracy),
            Aggregate::Mean,
            Direction::Highest,
            Split::Valid,
            StoppingCondition::NoImprovementSince { n_epochs },
        ));
    }
    let result = training.launch(learner);
    // The dashboard leaves the terminal, and the summary is printed.
    drop(result.renderer);
    if let Some(error) = result.error {
        return Err(LearnerError::Failed(error.to_string()).into());
    }
    if result.interrupted.is_some() {
        return Err(LearnerError::Stopped.into());
    }
    let trained = result.model.result();
    let metadata = recorded::metadata(&config, trained.statistics(), None);
    save_safetensors(&trained.model, &weights, &metadata)?;
    println!("weights in {}", weights.display());
    Ok(())
}

/// The epoch to begin with, counted from 0: that after the last checkpoint, if there is to be one. Burn's
/// checkpoints do not know their run, so its settings stand beside them.
fn first_epoch(
    arguments: &Arguments,
    epochs: usize,
    settings: &Value,
) -> Result<usize, LearnerError> {
    let checkpoints = arguments.out.join("checkpoint");
    let file = arguments.out.join("settings.json");
    let there = |part: &str, epoch| checkpoints.join(format!("{part}-{epoch}.bpk")).exists();
    let whole =
        |epoch: &usize| ["model", "optim", "scheduler"].iter().all(|part| there(part, *epoch));
    match ((1..=epochs).rev().find(whole), arguments.resume) {
        (Some(epoch), true) => {
            let text = fs::read(&file).unwrap_or_default();
            let then: Option<Value> = serde_json::from_slice(&text).ok();
            let same = then.as_ref() == Some(settings);
            if same { Ok(epoch) } else { Err(LearnerError::OtherRun(file)) }
        }
        (None, true) => Err(LearnerError::NothingToResume(checkpoints)),
        (Some(_), false) => Err(LearnerError::Occupied(checkpoints)),
        (None, false) => {
            write(&file, format!("{settings:#}").as_bytes())?;
            Ok(0)
        }
    }
}
