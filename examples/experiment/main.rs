//! Runs an experiment: trains every row of a plan with every seed, tests each network under PGD and
//! AutoAttack, and writes what came of it as JSON, a Markdown page and a plot.
//!
//! `cargo run --release --example experiment -- --plan examples/experiments/activations.toml`
//!
//! Finished rows are kept: the same command goes on where it was stopped, and several processes with
//! different `--seeds` can share a folder.

#[path = "../common/mod.rs"]
mod common;
mod job;
mod plan;
mod report;

use clap::Parser;
use common::{output::check_writable, sets::drawn, stop};
use job::Job;
use plan::{Images, Plan, Scale};
use report::Place;
use sat::{
    core::device::DeviceName,
    train::data::{DataSpec, Split},
};
use std::{path::PathBuf, process::ExitCode};

/// Trains and tests the rows of a plan.
#[derive(Parser, Debug)]
struct Arguments {
    /// What to compare, such as examples/experiments/activations.toml.
    #[arg(long)]
    plan: PathBuf,
    /// Data, network, recipe and test.
    #[arg(long, default_value = "examples/experiments/scales/small.toml")]
    scale: PathBuf,
    /// In place of the scale's images.
    #[arg(long)]
    data: Option<DataSpec>,
    /// Test on these images, in place of the test images of the data.
    #[arg(long)]
    test_data: Option<DataSpec>,
    /// Only these seeds of the plan's.
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Only these rows, by their names; the report has all that are finished.
    #[arg(long, value_delimiter = ';')]
    rows: Vec<String>,
    /// How far to go.
    #[arg(long, value_enum, default_value_t = Stage::Autoattack)]
    stage: Stage,
    /// Where to compute: flex, or a backend this was built with (`--features cuda`, wgpu, ...).
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// The folder for weights and reports; runs/NAME-SCALE by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Stage {
    /// The report of what is finished.
    Report,
    /// Training and PGD before it.
    Train,
    /// AutoAttack too.
    Autoattack,
}

#[derive(Debug, thiserror::Error)]
enum ExperimentError {
    #[error("no row is called `{given}`; the plan has {}", known.join("; "))]
    UnknownRow { given: String, known: Vec<String> },
    #[error("no row has the seed {0} of --seeds")]
    UnknownSeed(u64),
    #[error("{0} has no test images of its own; give some with --test-data")]
    NoTestSplit(DataSpec),
    #[error("the test images have other channels or classes than the training images")]
    OtherImages,
    #[error("nothing is finished yet; there is nothing to report")]
    Nothing,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let plan: Plan = plan::read(&arguments.plan)?;
    plan.check()?;
    let scale: Scale = plan::read(&arguments.scale)?;
    scale.check()?;
    let known = || plan.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    if let Some(given) = arguments.rows.iter().find(|name| !known().contains(name)) {
        return Err(ExperimentError::UnknownRow { given: given.clone(), known: known() }.into());
    }
    let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{}-{}", stem(&arguments.plan), stem(&arguments.scale));
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&name));
    check_writable(&out.join("report.json"))?;
    let data = match &arguments.data {
        Some(data) => data.clone(),
        None => scale.data.parse()?,
    };
    if arguments.test_data.is_none() && !data.has_splits() {
        return Err(ExperimentError::NoTestSplit(data).into());
    }
    let train_set = drawn(data.load(Split::Train)?, scale.train_images, 0);
    let test_data = arguments.test_data.as_ref().unwrap_or(&data);
    let test_set = test_data.load_part(Split::Test, scale.test_images.unwrap_or(usize::MAX))?;
    let images = [Images::of(&train_set), Images::of(&test_set)];
    if !images[0].fit(&images[1]) {
        return Err(ExperimentError::OtherImages.into());
    }
    let device = arguments.device.open()?;
    stop::on_ctrl_c()?;

    let mut jobs = Vec::new();
    for row in &plan.rows {
        for &seed in row.seeds(&scale)? {
            jobs.push(Job {
                row: &row.name,
                setting: row.setting(&plan, &scale, seed, images.each_ref())?,
                folder: out.join(format!("{}-seed{seed}", row.file_name())),
                train_set: &train_set,
                test_set: &test_set,
                device: &device,
            });
        }
    }
    let has = |seed: &&u64| jobs.iter().any(|job| job.setting.recipe.seed == **seed);
    if let Some(seed) = arguments.seeds.iter().find(|seed| !has(seed)) {
        return Err(ExperimentError::UnknownSeed(*seed).into());
    }
    // What stands in the way of the report is said before hours of work.
    let attacked = scale.autoattack_images.min(test_set.len());
    for job in &jobs {
        job.outcome()?;
        job.worst(attacked)?;
    }
    // Seed by seed, so that every row has one early.
    let mut chosen: Vec<&Job<'_>> = jobs
        .iter()
        .filter(|job| arguments.rows.is_empty() || arguments.rows.iter().any(|row| row == job.row))
        .filter(|job| {
            arguments.seeds.is_empty() || arguments.seeds.contains(&job.setting.recipe.seed)
        })
        .collect();
    chosen.sort_by_key(|job| job.setting.recipe.seed);

    let stages = [Stage::Train, Stage::Autoattack];
    for stage in stages.into_iter().filter(|stage| *stage <= arguments.stage) {
        for (i, job) in chosen.iter().enumerate() {
            let seed = job.setting.recipe.seed;
            let place = format!("[{}/{}] {}, seed {seed}", i + 1, chosen.len(), job.row);
            match (stage, job.outcome()?) {
                (Stage::Train, None) => {
                    eprintln!("{place}");
                    job.train()?;
                }
                (Stage::Autoattack, Some(outcome)) if job.worst(attacked)?.is_none() => {
                    eprintln!("{place}, AutoAttack");
                    job.attack(&outcome, attacked)?;
                }
                _ => {}
            }
        }
    }
    let place = Place { out: &out, name: &name, data: &data, attacked };
    report::report(place, &plan, &scale, &jobs, arguments)
}
