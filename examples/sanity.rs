//! Is the robust accuracy of these networks real? Checks for gradient masking (Athalye et al. 2018, arXiv
//! 1802.00420; Carlini et al. 2019, arXiv 1902.06705): accuracy against eps, against steps and restarts
//! of the attack, an attack without gradients, transfer between the networks, and the loss around an image.
//!
//! `cargo run --release --example sanity -- --weights relu=a.safetensors,silu=b.safetensors
//! --data builtin:fashion-mnist --eps 0.1 --out runs/sanity`

mod common;

use burn::tensor::{Device, Tensor};
use clap::Parser;
use common::{
    linf_eps,
    output::{check_writable, write},
    plot::{Axis, Series, accuracy_plot},
    recorded::Recorded,
    stop::{self, Stopped},
    surface::{Surface, surfaces},
};
use sat::{
    attack::{
        Apgd, Attack, Fgsm, Goal, Pgd, RandomStart, Square, ThreatModel, Victim, cross_entropy,
        evaluate,
    },
    core::device::DeviceName,
    models::load_weights,
    train::data::{DataSpec, ImageSet, Split},
};
use serde::Serialize;
use std::{fmt::Write, path::PathBuf, process::ExitCode};

const STEPS: [usize; 9] = [1, 2, 5, 10, 20, 50, 100, 200, 500];
const RESTARTS: [usize; 4] = [1, 2, 5, 10];
/// Sizes of the perturbation, as multiples of --eps.
const FACTORS: [f64; 9] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0];
/// A ball of Linf that holds the grey image, whatever the image.
const LARGE: f64 = 0.5;
/// Steps of the attacks whose number of steps is not the question.
const USUAL: usize = 20;
const BATCH: usize = 100;
/// Points along each side of the loss surface.
const SIDE: usize = 21;
/// Accuracies closer than this count as equal: a few images of the usual few hundred.
const TOLERANCE: f64 = 0.015;

/// Looks for signs that an attack fails for other reasons than robustness.
#[derive(Parser, Debug)]
struct Arguments {
    /// Networks as NAME=FILE: weights as the examples write them, with the network in their metadata.
    #[arg(long, value_delimiter = ',', required = true, value_parser = named)]
    weights: Vec<(String, PathBuf)>,
    /// The images.
    #[arg(long)]
    data: DataSpec,
    /// The eps of the training, for images in [0, 1] (Linf).
    #[arg(long, value_parser = common::eps)]
    eps: f64,
    /// Use the first so many test images.
    #[arg(long, default_value_t = 200)]
    limit: usize,
    /// Queries of the attack without gradients.
    #[arg(long, default_value_t = 1000)]
    queries: usize,
    /// Which test image the loss surface is drawn around, counted from 0.
    #[arg(long, default_value_t = 0)]
    surface_image: usize,
    /// Where to compute.
    #[arg(long, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// The folder for report and pictures.
    #[arg(long, default_value = "runs/sanity")]
    out: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum SanityError {
    #[error("{} does not say which network it is for", .0.display())]
    Unnamed(PathBuf),
    #[error("--weights names {0} twice; give each network its own name")]
    Twice(String),
    #[error("--{0} is 0; there is nothing to attack")]
    Nothing(&'static str),
    #[error("--surface-image {given} is not among the {images} images")]
    NoSuchImage { given: usize, images: usize },
}

/// An accuracy under one attack.
#[derive(Serialize)]
struct Point {
    network: String,
    at: f64,
    accuracy: f64,
}

/// Accuracy of `to` on images that fool `from`.
#[derive(Serialize)]
struct Transfer {
    from: String,
    to: String,
    accuracy: f64,
}

/// All about one network.
#[derive(Serialize)]
struct Checked {
    name: String,
    clean: f64,
    fgsm: f64,
    pgd: f64,
    apgd: f64,
    square: f64,
    eps: Vec<Point>,
    steps: Vec<Point>,
    restarts: Vec<Point>,
    signs: Vec<Sign>,
}

/// What gradient masking would show.
#[derive(Serialize)]
struct Sign {
    sign: &'static str,
    seen: bool,
}

type Failure = Box<dyn std::error::Error>;

fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.into(), path.into()))
        }
        _ => Err("give a name and a file, such as relu=model.safetensors".to_owned()),
    }
}

fn main() -> ExitCode {
    common::pages::keep_pages();
    common::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let names: Vec<&String> = arguments.weights.iter().map(|(name, _)| name).collect();
    if let Some(i) = (0..names.len()).find(|&i| names[..i].contains(&names[i])) {
        return Err(SanityError::Twice(names[i].clone()).into());
    }
    for (flag, nothing) in [("limit", arguments.limit == 0), ("eps", arguments.eps == 0.0)] {
        if nothing {
            return Err(SanityError::Nothing(flag).into());
        }
    }
    linf_eps(arguments.eps)?;
    let file = |name: &str| arguments.out.join(name);
    check_writable(&file("report.json"))?;
    let device = arguments.device.open()?;
    let data = arguments.data.load_part(Split::Test, arguments.limit)?;
    if arguments.surface_image >= data.len() {
        let (given, images) = (arguments.surface_image, data.len());
        return Err(SanityError::NoSuchImage { given, images }.into());
    }
    stop::on_ctrl_c()?;
    let mut victims = Vec::new();
    for (name, path) in &arguments.weights {
        let recorded = Recorded::of(path)?;
        let network = recorded.network()?.ok_or_else(|| SanityError::Unnamed(path.clone()))?;
        let model = load_weights(network.init(0, &device), path)?;
        let mut victim = Victim::new(&model);
        if let Some((mean, std)) = recorded.normalization()? {
            victim = victim.normalize(&mean, &std)?;
        }
        victims.push((name.clone(), victim));
    }

    let bench = Bench { data: &data, device: &device };
    let mut checked = Vec::new();
    for (name, victim) in &victims {
        eprintln!("{name}");
        checked.push(bench.check(name, victim, arguments)?);
    }
    let transfers = bench.transfers(&victims, arguments.eps)?;
    for own in &mut checked {
        let stronger = transfers.iter().any(|transfer| {
            transfer.to == own.name
                && transfer.from != own.name
                && transfer.accuracy < own.pgd - TOLERANCE
        });
        own.signs.push(Sign { sign: "images that fool another network do better", seen: stronger });
    }

    let series: Vec<Series> = checked
        .iter()
        .map(|own| Series {
            name: own.name.clone(),
            x: own.eps.iter().map(|point| point.at).collect(),
            accuracy: own.eps.iter().map(|point| point.accuracy).collect(),
        })
        .collect();
    let title =
        format!("PGD-{USUAL}, {} test images, trained at eps {}", data.len(), arguments.eps);
    accuracy_plot(&file("accuracy_vs_eps.png"), &title, Axis::Eps, &series)?;
    let mut around = Vec::new();
    for (name, victim) in &victims {
        let rows = bench.surface(victim, arguments.surface_image, arguments.eps)?;
        around.push(Surface { name: name.clone(), rows });
    }
    let title = format!("The loss around test image {}", arguments.surface_image);
    let axes =
        "to the right the sign of the gradient, upwards that of another image's, -2 eps to 2 eps";
    surfaces(&file("loss_surface.png"), &title, axes, &around)?;

    let content = serde_json::json!({
        "command": std::env::args().skip(1).collect::<Vec<_>>(),
        "data": arguments.data.to_string(),
        "device": arguments.device.to_string(),
        "n": data.len(),
        "trained_eps": arguments.eps,
        "usual_steps": USUAL,
        "queries": arguments.queries,
        "tolerance": TOLERANCE,
        "networks": checked,
        "transfer": transfers,
    });
    write(&file("report.json"), &serde_json::to_vec_pretty(&content)?)?;
    let table = tables(&checked, &transfers)?;
    println!("{table}");
    write(&file("report.md"), table.as_bytes())?;
    Ok(())
}

/// The images that all attacks take.
struct Bench<'a> {
    data: &'a ImageSet,
    device: &'a Device,
}

impl Bench<'_> {
    fn accuracy(&self, victim: &Victim<'_>, attack: &dyn Attack, eps: f64) -> Result<f64, Failure> {
        let batches = self.data.batches(BATCH).map(|rows| self.data.batch(&rows, self.device));
        let threat = ThreatModel::linf(eps);
        let report = evaluate(victim, attack, batches, &threat, |_| stop::requested())?;
        if report.complete { Ok(report.worst_case_accuracy()) } else { Err(Stopped.into()) }
    }

    fn check(
        &self,
        name: &str,
        victim: &Victim<'_>,
        arguments: &Arguments,
    ) -> Result<Checked, Failure> {
        let eps = arguments.eps;
        let pgd = |steps| Pgd::default().steps(steps).stop_when_fooled();
        let mut of_eps = Vec::new();
        for factor in FACTORS {
            let accuracy = self.accuracy(victim, &pgd(USUAL), factor * eps)?;
            of_eps.push(Point { network: name.to_owned(), at: factor * eps, accuracy });
        }
        let large = self.accuracy(victim, &pgd(USUAL), LARGE)?;
        let mut of_steps = Vec::new();
        for steps in STEPS {
            let attack = match steps {
                // One step of 2.5 eps would leave the ball.
                1 => pgd(1).step_size(eps),
                _ => pgd(steps),
            };
            let accuracy = self.accuracy(victim, &attack, eps)?;
            of_steps.push(Point { network: name.to_owned(), at: steps as f64, accuracy });
        }
        let mut of_restarts = Vec::new();
        for restarts in RESTARTS {
            let attack = pgd(USUAL).random_start(RandomStart::Always).restarts(restarts);
            let accuracy = self.accuracy(victim, &attack, eps)?;
            of_restarts.push(Point { network: name.to_owned(), at: restarts as f64, accuracy });
        }
        let clean = self.accuracy(victim, &pgd(1), 0.0)?;
        let fgsm = self.accuracy(victim, &Fgsm::default(), eps)?;
        let apgd = self.accuracy(victim, &Apgd::ce().stop_when_fooled(), eps)?;
        let square = self.accuracy(victim, &Square::default().queries(arguments.queries), eps)?;
        let pgd = of_steps.iter().find(|point| point.at == USUAL as f64);
        let pgd = pgd.map_or(f64::NAN, |point| point.accuracy);
        let most = of_steps.iter().map(|point| point.accuracy).fold(f64::INFINITY, f64::min);
        let signs = vec![
            Sign {
                sign: "accuracy stays where the ball is large enough for anything",
                seen: large > TOLERANCE,
            },
            Sign { sign: "one step does better than many", seen: fgsm < most - TOLERANCE },
            Sign {
                sign: "an attack without gradients does better",
                seen: square < most - TOLERANCE,
            },
            Sign { sign: "more steps do worse", seen: worse_with_more(&of_steps) },
        ];
        Ok(Checked {
            name: name.to_owned(),
            clean,
            fgsm,
            pgd,
            apgd,
            square,
            eps: of_eps,
            steps: of_steps,
            restarts: of_restarts,
            signs,
        })
    }

    /// Every network on the images that PGD makes against every network.
    fn transfers(
        &self,
        victims: &[(String, Victim<'_>)],
        eps: f64,
    ) -> Result<Vec<Transfer>, Failure> {
        let (threat, attack) = (ThreatModel::linf(eps), Pgd::default().steps(USUAL));
        let mut transfers = Vec::new();
        for (from, source) in victims {
            let mut right = vec![0; victims.len()];
            for (i, rows) in self.data.batches(BATCH).enumerate() {
                if stop::requested().is_break() {
                    return Err(Stopped.into());
                }
                let (images, labels) = self.data.batch(&rows, self.device);
                let goal = Goal::untargeted(labels.as_slice()).numbered_from((i * BATCH) as u64);
                let images = attack.perturb(source, images, goal, &threat)?;
                for (right, (_, target)) in right.iter_mut().zip(victims) {
                    let predicted = target.predict(images.clone())?;
                    *right += predicted.iter().zip(&labels).filter(|(a, b)| a == b).count();
                }
            }
            for (right, (to, _)) in right.into_iter().zip(victims) {
                let accuracy = right as f64 / self.data.len() as f64;
                transfers.push(Transfer { from: from.clone(), to: to.clone(), accuracy });
            }
        }
        Ok(transfers)
    }

    /// The loss on a grid through one image: along the sign of its gradient, and along that of another image.
    fn surface(
        &self,
        victim: &Victim<'_>,
        image: usize,
        eps: f64,
    ) -> Result<Vec<Vec<f64>>, Failure> {
        let (x, labels) = self.data.batch(&[image], self.device);
        let classes = Tensor::from_data([labels[0] as i64].as_slice(), self.device);
        let loss = |logits: Tensor<2>| {
            let [n, _] = logits.dims();
            Ok(cross_entropy(logits, Tensor::clone(&classes).repeat_dim(0, n)))
        };
        let (_, gradient) = victim.input_gradient(x.clone(), loss)?;
        let along = gradient.sign();
        // Another image's gradient has signs that have nothing to do with this one.
        let (other, labels) = self.data.batch(&[(image + 1) % self.data.len()], self.device);
        let classes = Tensor::from_data([labels[0] as i64].as_slice(), self.device);
        let (_, gradient) =
            victim.input_gradient(other, |logits| Ok(cross_entropy(logits, classes.clone())))?;
        let across = gradient.sign();
        let place = |i: usize| 2.0 * eps * (2.0 * i as f64 / (SIDE - 1) as f64 - 1.0);
        let mut rows = Vec::new();
        for j in 0..SIDE {
            let row = (0..SIDE).map(|i| {
                (x.clone() + along.clone() * place(i) + across.clone() * place(j)).clamp(0.0, 1.0)
            });
            let logits = victim.logits(Tensor::cat(row.collect(), 0))?;
            rows.push(loss(logits)?.into_data().iter::<f64>().collect());
        }
        Ok(rows)
    }
}

/// Whether accuracy ever rises by more than the tolerance from one number of steps to a larger one.
fn worse_with_more(points: &[Point]) -> bool {
    let mut least = f64::INFINITY;
    points.iter().any(|point| {
        let rises = point.accuracy > least + TOLERANCE;
        least = least.min(point.accuracy);
        rises
    })
}

/// Everything as Markdown, in per cent.
fn tables(checked: &[Checked], transfers: &[Transfer]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    writeln!(
        text,
        "| network | clean | FGSM | PGD-{USUAL} | APGD-CE | Square | signs of masking |"
    )?;
    writeln!(text, "|---|--:|--:|--:|--:|--:|---|")?;
    for own in checked {
        let seen: Vec<_> =
            own.signs.iter().filter(|sign| sign.seen).map(|sign| sign.sign).collect();
        let signs = if seen.is_empty() { "none".to_owned() } else { seen.join("; ") };
        let figures = [own.clean, own.fgsm, own.pgd, own.apgd, own.square].map(percent).join(" | ");
        writeln!(text, "| {} | {figures} | {signs} |", own.name)?;
    }
    type Points = fn(&Checked) -> &[Point];
    let kinds: [(&str, Points); 3] =
        [("eps", |own| &own.eps), ("steps", |own| &own.steps), ("restarts", |own| &own.restarts)];
    for (kind, points) in kinds {
        let Some(first) = checked.first() else { continue };
        let heads: Vec<String> =
            points(first).iter().map(|point| format!("{:.4}", point.at)).collect();
        let heads: Vec<&str> =
            heads.iter().map(|head| head.trim_end_matches('0').trim_end_matches('.')).collect();
        writeln!(text, "\n| {kind} | {} |", heads.join(" | "))?;
        writeln!(text, "|---{}|", "|--:".repeat(heads.len()))?;
        for own in checked {
            let accuracies: Vec<String> =
                points(own).iter().map(|point| percent(point.accuracy)).collect();
            writeln!(text, "| {} | {} |", own.name, accuracies.join(" | "))?;
        }
    }
    let names: Vec<&str> = checked.iter().map(|own| own.name.as_str()).collect();
    writeln!(text, "\n| images that fool | {} |", names.join(" | "))?;
    writeln!(text, "|---{}|", "|--:".repeat(names.len()))?;
    for from in &names {
        let row = transfers.iter().filter(|transfer| transfer.from == *from);
        let accuracies: Vec<String> = row.map(|transfer| percent(transfer.accuracy)).collect();
        writeln!(text, "| {from} | {} |", accuracies.join(" | "))?;
    }
    Ok(text)
}
