//! Whole steps of smooth adversarial training, and evaluations, beside what the machine can do.
//!
//! `cargo bench --bench training_step` times PGD steps of adversarial training (the attack in inference
//! mode, then the update by SGD with momentum, as `sat-train` does it) and PGD evaluations, the parts a step
//! is made of, and the memory it takes. `-- --peer FILE` sets PyTorch's times beside them, which
//! `python benches/peers/training_step.py --json FILE` measures on the same machine. Weights, images and
//! labels come from a seed. Each row runs in a process of its own, so that its memory is its own. `-- --rounds N`
//! compares activations, and attacks with the passes they are made of, in turns in one process.
//!
//! Of a step's parts the attack's passes are those of one of its steps. The floors are the arithmetic and
//! the bytes that no order of operations avoids, by the peak of multiply-adds and the speed of a copy
//! measured here, where the host computes; `docs/results/speed-cpu.md` says how they are counted.

use burn::{
    module::Module,
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use clap::Parser;
use common::{
    Quartiles, copy_bandwidth, keep_pages,
    memory::{CountingAllocator, live, peak_over, peak_resident},
    peak::peak,
    read_json, save_json,
};
use sat::{
    attack::{Attack, Goal, Pgd, ThreatModel, Victim},
    core::{ActivationConfig, device::DeviceName},
    models::{Cost, Model, ModelName},
    train::{
        AdversarialStep, AttackStart, Precision, Recipe, TrainingAttack, optimizer,
        smoothed_cross_entropy,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    env,
    hint::black_box,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

mod common;

#[global_allocator]
static GLOBAL: CountingAllocator = CountingAllocator;

const EPS: f64 = 8.0 / 255.0;

/// Steps of adversarial training and evaluations.
#[derive(Parser, Debug)]
struct Arguments {
    /// Where to compute.
    #[arg(long, default_value = "flex")]
    device: DeviceName,
    /// What networks compute in: `full`, or `bf16-mixed`.
    #[arg(long, default_value = "full", value_parser = precision)]
    precision: Precision,
    /// Networks to run.
    #[arg(long, value_delimiter = ',',
        default_values_t = [ModelName::ResNet20, ModelName::ResNet18Cifar, ModelName::ResNet50, ModelName::EfficientNetB0])]
    networks: Vec<ModelName>,
    /// Activations to run.
    #[arg(long, value_delimiter = ',', default_value = "relu,silu,gelu,smooth-relu-learnable")]
    activations: Vec<ActivationConfig>,
    /// Attack steps of each training step; 0 trains on clean images. 1 if nothing else is
    /// asked for.
    #[arg(long, value_delimiter = ',')]
    train: Vec<usize>,
    /// Attack steps of evaluations.
    #[arg(long, value_delimiter = ',')]
    evaluate: Vec<usize>,
    /// Forward passes with the gradient of the input, so many in a row: what the steps of an attack are made of.
    #[arg(long, value_delimiter = ',',
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    passes: Vec<usize>,
    /// Images a batch. Without it 128 of 32 pixels, 16 of 224.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    batch: Option<usize>,
    /// Runs of each row, of which the fastest counts, after one that does not.
    #[arg(long, default_value_t = 2,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    repeats: usize,
    /// Instead, runs everything in turns, so many rounds in one process, and prints what each activation takes
    /// beside the first: the median over rounds, which a machine's moods move less than single times. With
    /// `--train 0,K --passes K` also what an attack of K steps takes beside its passes.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..),
        conflicts_with_all = ["peer", "repeats"])]
    rounds: Option<usize>,
    /// Times of PyTorch on this machine, from benches/peers/training_step.py.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Where to write the numbers.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Prints one row as JSON.
    #[arg(long, hide = true)]
    child: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a row times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Work {
    Train,
    Evaluate,
    Passes,
}

impl Work {
    fn name(self, steps: usize) -> String {
        match self {
            Self::Train => format!("PGD-{steps} training"),
            Self::Evaluate => format!("PGD-{steps} evaluation"),
            Self::Passes => format!("{steps} passes"),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    network: String,
    activation: String,
    work: Work,
    /// Of the attack, or how many passes.
    steps: usize,
    batch: usize,
    ms: f64,
    /// Of a training step with an attack.
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<Parts>,
    /// The most memory in tensors at a time, weights and momentum included. Of the host: 0 on a GPU.
    tensors_mib: f64,
    /// The most memory that the process had beyond what it started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    resident_mib: Option<f64>,
    gflop: f64,
    gbytes: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Floor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<PeerTimes>,
}

/// The least that the arithmetic and the bytes of a row take on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Floor {
    arithmetic_ms: f64,
    bytes_ms: f64,
    /// The larger one over what was measured.
    share: f64,
}

impl Row {
    /// Images attacked, and trained on, a second.
    fn images_per_second(&self) -> f64 {
        1e3 * self.batch as f64 / self.ms
    }
}

/// Milliseconds of the parts of a training step, each timed by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Parts {
    attack_forward: f64,
    attack_backward: f64,
    training_forward: f64,
    training_backward: f64,
    optimizer: f64,
    /// With every step of the attack.
    sum: f64,
    /// What the whole step took more.
    beyond: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PeerTimes {
    ms: f64,
    layout: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mib: Option<f64>,
}

/// What benches/peers/training_step.py wrote.
#[derive(Deserialize)]
struct Peer {
    software: String,
    rows: Vec<PeerRow>,
}

#[derive(Deserialize)]
struct PeerRow {
    network: String,
    activation: String,
    work: Work,
    steps: usize,
    batch: usize,
    #[serde(flatten)]
    times: PeerTimes,
}

impl Peer {
    /// The faster of the layouts it ran.
    fn times(&self, row: &Row) -> Option<PeerTimes> {
        let same = |peer: &&PeerRow| {
            peer.network == row.network
                && peer.activation == row.activation
                && peer.work == row.work
                && peer.steps == row.steps
                && peer.batch == row.batch
        };
        let times = self.rows.iter().filter(same).map(|row| &row.times);
        times.min_by(|a, b| a.ms.total_cmp(&b.ms)).cloned()
    }
}

#[derive(Serialize)]
struct Report {
    device: String,
    precision: Precision,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    /// Of a host that computes itself.
    #[serde(flatten)]
    ceilings: Option<Ceilings>,
    rows: Vec<Row>,
}

/// What the machine can do.
#[derive(Clone, Copy, Serialize)]
struct Ceilings {
    /// Of fused multiply-adds in registers, on all threads.
    peak_gflop_per_s: f64,
    /// A large copy, read and write counted.
    copy_gb_per_s: f64,
}

impl Ceilings {
    /// Those of the host, if that is what computes.
    fn of(device: DeviceName) -> Option<Self> {
        matches!(device, DeviceName::Flex | DeviceName::NdArray | DeviceName::Cpu).then(|| Self {
            peak_gflop_per_s: peak() / 1e9,
            copy_gb_per_s: copy_bandwidth(64 << 20, Duration::from_millis(300)),
        })
    }

    fn floor(self, row: &Row) -> Floor {
        let arithmetic_ms = row.gflop / self.peak_gflop_per_s * 1e3;
        let bytes_ms = row.gbytes / self.copy_gb_per_s * 1e3;
        Floor { arithmetic_ms, bytes_ms, share: arithmetic_ms.max(bytes_ms) / row.ms }
    }
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    keep_pages();
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let trains = arguments.train.iter().map(|&steps| (Work::Train, steps));
    let evaluates = arguments.evaluate.iter().map(|&steps| (Work::Evaluate, steps));
    let passes = arguments.passes.iter().map(|&steps| (Work::Passes, steps));
    let mut works: Vec<_> = trains.chain(evaluates).chain(passes).collect();
    if works.is_empty() {
        works.push((Work::Train, 1));
    }
    if arguments.child {
        let [network] = arguments.networks[..] else { return Err("one network a row".into()) };
        let row = Bench::new(arguments, network, &arguments.activations[0])?.row(works[0])?;
        println!("{}", serde_json::to_string(&row)?);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(rounds) = arguments.rounds {
        return in_turns(arguments, &works, rounds);
    }

    let peer = arguments.peer.as_deref().map(read_json::<Peer>).transpose()?;
    let mut report = Report {
        device: arguments.device.to_string(),
        precision: arguments.precision,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        peer: peer.as_ref().map(|peer| peer.software.clone()),
        ceilings: Ceilings::of(arguments.device),
        rows: Vec::new(),
    };
    println!("{}, {} precision, {} threads", report.device, report.precision, report.threads);
    if let Some(Ceilings { peak_gflop_per_s, copy_gb_per_s }) = report.ceilings {
        println!("peak {peak_gflop_per_s:.0} GFLOP/s, a large copy moves {copy_gb_per_s:.1} GB/s");
    }
    if let Some(software) = &report.peer {
        println!("beside {software}");
    }
    println!(
        "\n| network | activation | work | batch | ms | images/s | peer ms | peer/ours | arithmetic floor ms | bytes floor ms | % of floor | MiB in tensors | MiB resident | peer's MiB |"
    );
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for &network in &arguments.networks {
        for activation in &arguments.activations {
            for &work in &works {
                let mut row = in_a_process_of_its_own(arguments, network, activation, work)?;
                row.peer = peer.as_ref().and_then(|peer| peer.times(&row));
                row.floor = report.ceilings.map(|ceilings| ceilings.floor(&row));
                print_row(&row);
                report.rows.push(row);
            }
        }
    }
    println!(
        "\n| network | activation | work | attack forward ms | attack backward | training forward | training backward | optimizer | sum | step beyond it |"
    );
    println!("|---|---|---|--:|--:|--:|--:|--:|--:|--:|");
    for row in &report.rows {
        if let Some(parts) = &row.parts {
            println!(
                "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
                row.network,
                row.activation,
                row.work.name(row.steps),
                parts.attack_forward,
                parts.attack_backward,
                parts.training_forward,
                parts.training_backward,
                parts.optimizer,
                parts.sum,
                parts.beyond
            );
        }
    }
    Ok(save_json(arguments.json.as_deref(), &report))
}

/// What a row takes beside the first activation's.
#[derive(Serialize)]
struct Turns {
    network: String,
    activation: String,
    work: Work,
    steps: usize,
    batch: usize,
    rounds: usize,
    /// Over rounds, as is what follows.
    ms: f64,
    over_first: Quartiles,
}

/// What an attack takes beside the passes it is made of: a training step with it less one without, over so
/// many passes.
#[derive(Serialize)]
struct BesidePasses {
    network: String,
    activation: String,
    steps: usize,
    rounds: usize,
    over_passes: Quartiles,
}

#[derive(Serialize)]
struct TurnsReport {
    precision: Precision,
    rows: Vec<Turns>,
    attacks: Vec<BesidePasses>,
}

fn in_turns(
    arguments: &Arguments,
    works: &[(Work, usize)],
    rounds: usize,
) -> Result<ExitCode, Failure> {
    println!(
        "| network | work | batch | activation | ms | beside the first | lower quartile | upper |"
    );
    println!("|---|---|--:|---|--:|--:|--:|--:|");
    let mut report =
        TurnsReport { precision: arguments.precision, rows: Vec::new(), attacks: Vec::new() };
    for &network in &arguments.networks {
        let benches = arguments.activations.iter().map(|a| Bench::new(arguments, network, a));
        let benches = benches.collect::<Result<Vec<_>, _>>()?;
        let all = times_in_turns(&benches, works, rounds)?;
        for (&(work, steps), of_benches) in works.iter().zip(&all) {
            for (bench, times) in benches.iter().zip(of_benches) {
                let ratios = times.iter().zip(&of_benches[0]).map(|(time, first)| time / first);
                let [network, activation] = bench.names.clone();
                let row = Turns {
                    network,
                    activation,
                    work,
                    steps,
                    batch: bench.labels.len(),
                    rounds,
                    ms: Quartiles::of(times.iter().copied()).median,
                    over_first: Quartiles::of(ratios),
                };
                println!(
                    "| {} | {} | {} | {} | {:.0} | {:.2} | {:.2} | {:.2} |",
                    row.network,
                    work.name(steps),
                    row.batch,
                    row.activation,
                    row.ms,
                    row.over_first.median,
                    row.over_first.lower,
                    row.over_first.upper
                );
                report.rows.push(row);
            }
        }
        let of_work = |work| works.iter().position(|other| *other == work).map(|i| &all[i]);
        for &(work, steps) in works.iter().filter(|(work, _)| *work == Work::Passes) {
            let attacked = of_work((Work::Train, steps)).zip(of_work((Work::Train, 0)));
            let Some(((attacked, clean), passes)) = attacked.zip(of_work((work, steps))) else {
                continue;
            };
            for (i, bench) in benches.iter().enumerate() {
                let attacks = attacked[i].iter().zip(&clean[i]).map(|(all, rest)| all - rest);
                let ratios = attacks.zip(&passes[i]).map(|(attack, passes)| attack / passes);
                let over_passes = Quartiles::of(ratios);
                let [network, activation] = bench.names.clone();
                report.attacks.push(BesidePasses {
                    network,
                    activation,
                    steps,
                    rounds,
                    over_passes,
                });
            }
        }
    }
    if !report.attacks.is_empty() {
        println!(
            "\n| network | activation | attack steps | beside its passes | lower quartile | upper |"
        );
        println!("|---|---|--:|--:|--:|--:|");
    }
    for row in &report.attacks {
        let Quartiles { lower, median, upper } = row.over_passes;
        println!(
            "| {} | {} | {} | {median:.2} | {lower:.2} | {upper:.2} |",
            row.network, row.activation, row.steps
        );
    }
    Ok(save_json(arguments.json.as_deref(), &report))
}

/// Milliseconds of every round, for each work and bench, after one round that does not count.
fn times_in_turns(
    benches: &[Bench],
    works: &[(Work, usize)],
    rounds: usize,
) -> Result<Vec<Vec<Vec<f64>>>, Failure> {
    let mut runs = Vec::new();
    for (i, &(work, steps)) in works.iter().enumerate() {
        runs.extend(benches.iter().enumerate().map(|(j, bench)| (i, j, bench.work(work, steps))));
    }
    let mut times = vec![vec![Vec::new(); benches.len()]; works.len()];
    for round in 0..=rounds {
        // Each round starts with another one, so that a drift favours none.
        for turn in 0..runs.len() {
            let at = (turn + round) % runs.len();
            let (i, j, run) = &mut runs[at];
            let start = Instant::now();
            run()?;
            if round > 0 {
                times[*i][*j].push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(times)
}

fn in_a_process_of_its_own(
    arguments: &Arguments,
    network: ModelName,
    activation: &ActivationConfig,
    (work, steps): (Work, usize),
) -> Result<Row, Failure> {
    let option = match work {
        Work::Train => ["--train".to_owned(), steps.to_string()],
        Work::Evaluate => ["--evaluate".to_owned(), steps.to_string()],
        Work::Passes => ["--passes".to_owned(), steps.to_string()],
    };
    let mut command = Command::new(env::current_exe()?);
    command
        .arg("--child")
        .args(["--networks", &network.to_string(), "--activations", &activation.to_string()])
        .args(["--device", &arguments.device.to_string()])
        .args(["--precision", &arguments.precision.to_string()])
        .args(["--repeats", &arguments.repeats.to_string()])
        .args(option);
    if let Some(batch) = arguments.batch {
        command.args(["--batch", &batch.to_string()]);
    }
    let output = command.output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{network} with {activation}: {error}").into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn print_row(row: &Row) {
    let [arithmetic, bytes, share] = row.floor.as_ref().map_or_else(Default::default, |floor| {
        [floor.arithmetic_ms, floor.bytes_ms, 100.0 * floor.share].map(|x| format!("{x:.0}"))
    });
    let (peer_ms, ratio, peer_memory) = match &row.peer {
        None => Default::default(),
        Some(peer) => (
            format!("{:.0}", peer.ms),
            format!("{:.2}", peer.ms / row.ms),
            peer.memory_mib.map(|mib| format!("{mib:.0}")).unwrap_or_default(),
        ),
    };
    println!(
        "| {} | {} | {} | {} | {:.0} | {:.1} | {peer_ms} | {ratio} | {arithmetic} | {bytes} | {share} | {:.0} | {} | {peer_memory} |",
        row.network,
        row.activation,
        row.work.name(row.steps),
        row.batch,
        row.ms,
        row.images_per_second(),
        row.tensors_mib,
        row.resident_mib.map(|mib| format!("{mib:.0}")).unwrap_or_default(),
    );
}

/// A network, a batch, and what they cost.
struct Bench {
    names: [String; 2],
    device: Device,
    precision: Precision,
    model: Model,
    cost: Cost,
    images: Tensor<4>,
    labels: Vec<usize>,
    repeats: usize,
}

impl Bench {
    fn new(
        arguments: &Arguments,
        network: ModelName,
        activation: &ActivationConfig,
    ) -> Result<Self, Failure> {
        let device = arguments.device.open()?;
        arguments.precision.check(&device)?;
        let config = network.config().with_activation(activation.clone());
        let [height, width] = network.image_size();
        let batch = arguments.batch.unwrap_or(if height > 32 { 16 } else { 128 });
        let shape = [batch, 3, height, width];
        let pixels = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 256) as f32 / 255.0);
        let data = TensorData::new(pixels.collect::<Vec<f32>>(), shape);
        Ok(Self {
            names: [network.to_string(), activation.to_string()],
            cost: config.cost([height, width], &device),
            model: config.init(0, &device.clone().autodiff()),
            images: Tensor::from_data(data, &device),
            labels: (0..batch).map(|i| i % 10).collect(),
            device,
            precision: arguments.precision,
            repeats: arguments.repeats,
        })
    }

    fn row(&self, (work, steps): (Work, usize)) -> Result<Row, Failure> {
        let before = peak_resident();
        let mut ms = f64::INFINITY;
        let mut tensors = 0;
        let mut once = self.work(work, steps);
        let mut failed = None;
        for repeat in 0..=self.repeats {
            let held = live();
            let start = Instant::now();
            let peak = peak_over(&mut || failed = once().err());
            let elapsed = start.elapsed().as_secs_f64() * 1e3;
            if let Some(error) = failed {
                return Err(error);
            }
            tensors = tensors.max(held + peak);
            if repeat > 0 {
                ms = ms.min(elapsed);
            }
        }
        let resident = before.zip(peak_resident()).map(|(before, after)| after - before);
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        let [network, activation] = self.names.clone();
        let (flop, bytes) = self.floor(work, steps);
        drop(once);
        Ok(Row {
            network,
            activation,
            work,
            steps,
            batch: self.labels.len(),
            ms,
            parts: (work == Work::Train && steps > 0).then(|| self.parts(steps, ms)).transpose()?,
            tensors_mib: mib(tensors as f64),
            resident_mib: resident.map(|bytes| mib(bytes as f64)),
            gflop: flop / 1e9,
            gbytes: bytes / 1e9,
            floor: None,
            peer: None,
        })
    }

    /// One step, one evaluation or so many passes. Waits for the device.
    fn work(&self, work: Work, steps: usize) -> Box<dyn FnMut() -> Result<(), Failure> + '_> {
        if work == Work::Evaluate {
            let model = self.frozen();
            let victim = Victim::from_fn(move |images| self.logits(&model, images));
            return Box::new(move || {
                let goal = Goal::untargeted(self.labels.clone());
                let attack = Pgd::default().steps(steps);
                attack.run(&victim, self.images.clone(), goal, &ThreatModel::linf(EPS))?;
                Ok(())
            });
        }
        if work == Work::Passes {
            let model = self.frozen();
            return Box::new(move || {
                for _ in 0..steps {
                    let (leaf, loss) = self.attacked(&model);
                    black_box(leaf.grad_remove(&mut loss.backward()));
                }
                Ok(self.device.sync()?)
            });
        }
        let start = AttackStart::Uniform { probability: 1.0 };
        let attack = TrainingAttack { eps: EPS, steps, start, ..TrainingAttack::default() };
        let attack = (steps > 0).then_some(attack);
        let recipe = Recipe { attack, precision: self.precision, ..recipe() };
        let step = AdversarialStep::new(&recipe);
        let mut sgd = optimizer(&recipe, &self.model);
        let mut model = Some(self.model.clone());
        Box::new(move || {
            let trained = model.take().ok_or("the step before has failed")?;
            let images = self.images.clone();
            let (trained, output) = step.run(trained, &mut sgd, 0.01, images, &self.labels, 0)?;
            output.loss.into_data();
            self.device.sync()?;
            model = Some(trained);
            Ok(())
        })
    }

    /// The network as attacks see it.
    fn frozen(&self) -> Model {
        self.precision.apply(self.model.valid())
    }

    fn logits(&self, model: &Model, images: Tensor<4>) -> Tensor<2> {
        model.forward(images).cast(self.images.dtype())
    }

    /// The images as an attack sees them, and their loss.
    fn attacked(&self, model: &Model) -> (Tensor<4>, Tensor<1>) {
        let leaf = self.images.clone().autodiff().require_grad();
        let loss = smoothed_cross_entropy(self.logits(model, leaf.clone()), &self.labels, 0.0);
        (leaf, loss)
    }

    /// The parts of a step, by hand.
    fn parts(&self, steps: usize, ms: f64) -> Result<Parts, Failure> {
        let mut best = [f64::INFINITY; 5];
        let recipe = recipe();
        let mut sgd = optimizer(&recipe, &self.model);
        let mut model = self.model.clone();
        let valid = self.frozen();
        for _ in 0..=self.repeats {
            let mut times = Vec::new();
            let mut start = Instant::now();
            let mut lap = || -> Result<(), Failure> {
                self.device.sync()?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
                start = Instant::now();
                Ok(())
            };
            let (leaf, loss) = self.attacked(&valid);
            lap()?;
            let mut gradients = loss.backward();
            let gradient = leaf.grad_remove(&mut gradients);
            drop((gradients, gradient));
            lap()?;
            let logits =
                self.logits(&self.precision.apply(model.clone()), self.images.clone().autodiff());
            let loss = smoothed_cross_entropy(logits, &self.labels, recipe.label_smoothing);
            lap()?;
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            lap()?;
            model = sgd.step(0.01, model, gradients);
            lap()?;
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time);
            }
        }
        let [attack_forward, attack_backward, training_forward, training_backward, optimizer] =
            best;
        let attack = steps as f64 * (attack_forward + attack_backward);
        let sum = attack + training_forward + training_backward + optimizer;
        let beyond = ms - sum;
        Ok(Parts {
            attack_forward,
            attack_backward,
            training_forward,
            training_backward,
            optimizer,
            sum,
            beyond,
        })
    }

    /// Floating-point operations and bytes; what updates weights is f32, other tensors are of the
    /// precision, and the rounding of weights to it is left out. Half of the kept elements are outputs
    /// of convolutions, half of normalisations. Forward: the convolution reads one and writes the other, the normalisation
    /// the other way round; with the batch's statistics it reads its input once more. The gradient of
    /// the input: the convolution reads and writes once, the normalisation reads two and writes one. In
    /// training the convolution reads two more for its weights, the normalisation two for its sums.
    /// Weights are read by each pass; their gradient is written; SGD reads three and writes two.
    fn floor(&self, work: Work, steps: usize) -> (f64, f64) {
        let batch = self.labels.len() as f64;
        let forward = 2.0 * batch * self.cost.macs as f64;
        let size = match self.precision {
            Precision::Full => 4.0,
            Precision::Bf16Mixed => 2.0,
        };
        let kept = size * batch * self.cost.activations as f64;
        let parameters = self.cost.parameters as f64;
        let (read, updated) = (size * parameters, 4.0 * parameters);
        let attack_step = (2.0 * forward, (2.0 + 2.5) * kept + 2.0 * read);
        let steps = steps as f64;
        let rest = match work {
            Work::Train => (3.0 * forward, (2.5 + 4.5) * kept + 2.0 * read + (1.0 + 5.0) * updated),
            Work::Evaluate => (forward, 2.0 * kept + read),
            Work::Passes => (0.0, 0.0),
        };
        (steps * attack_step.0 + rest.0, steps * attack_step.1 + rest.1)
    }
}

fn precision(name: &str) -> Result<Precision, serde_json::Error> {
    serde_json::from_value(name.into())
}

/// The paper's, without an attack.
fn recipe() -> Recipe {
    Recipe { attack: None, label_smoothing: 0.1, ..Recipe::default() }
}
