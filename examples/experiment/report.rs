//! What came of the rows: means and spread over seeds, and the distance from the first row beside its
//! noise.

use crate::{
    Arguments, ExperimentError, Failure,
    common::{
        output::write,
        plot::{RowPoints, rows_plot},
        spread::{deviation, mean, percent},
    },
    job::{Job, Marks, Outcome, Worst},
    plan::{Plan, Scale},
};
use sat::train::data::DataSpec;
use serde::Serialize;
use std::{fmt::Write, path::Path};

/// Two standard errors: beyond them a difference is called one.
const CLEAR: f64 = 2.0;
/// Differences below this are null, however small their noise: what seeds alone do to AutoAttack's
/// accuracy of well-trained networks.
const SMALLEST: f64 = 0.007;

/// Mean and sample standard deviation over seeds; no deviation of one seed.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    mean: f64,
    deviation: Option<f64>,
}

/// What a difference from the first row says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Above,
    Below,
    /// Within two standard errors, or below 0.7 points.
    Null,
}

/// The mean of a row less that of the first row.
#[derive(Clone, Copy, Debug, Serialize)]
struct Difference {
    value: f64,
    /// One standard error, of seeds and images together.
    error: f64,
    verdict: Verdict,
}

#[derive(Serialize)]
struct RowReport<'a> {
    row: &'a str,
    seeds: Vec<u64>,
    seed_count: usize,
    /// Multiplications of one forward pass of one image.
    macs: u64,
    clean: Spread,
    robust: Spread,
    /// On the first images; of the seeds that came that far.
    autoattack: Option<Spread>,
    autoattack_seeds: usize,
    /// None where no row has two seeds.
    clean_difference: Option<Difference>,
    robust_difference: Option<Difference>,
    /// Of the held-out images under PGD-10, after the last epoch.
    held_out: Option<Spread>,
    /// Their accuracy under FGSM less that under PGD-10.
    fgsm_gap: Option<f64>,
    /// Of how many seeds the watch saw catastrophic overfitting after any epoch.
    overfitted: usize,
    train_seconds: f64,
    runs: Vec<&'a Outcome>,
}

/// A row with what its seeds have reached.
struct Finished<'a> {
    row: &'a str,
    outcomes: Vec<Outcome>,
    worst: Vec<Worst>,
}

/// Where the report goes, and what it is of.
pub(crate) struct Place<'a> {
    pub(crate) out: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) data: &'a DataSpec,
    /// Images under AutoAttack.
    pub(crate) attacked: usize,
}

pub(crate) fn report(
    Place { out, name, data, attacked }: Place<'_>,
    plan: &Plan,
    scale: &Scale,
    jobs: &[Job<'_>],
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut finished: Vec<Finished<'_>> = Vec::new();
    for row in &plan.rows {
        let mut found = Finished { row: &row.name, outcomes: Vec::new(), worst: Vec::new() };
        for job in jobs.iter().filter(|job| job.row == row.name) {
            found.outcomes.extend(job.outcome()?);
            found.worst.extend(job.worst(attacked)?);
        }
        if !found.outcomes.is_empty() {
            finished.push(found);
        }
    }
    let Some(any) = finished.first() else { return Err(ExperimentError::Nothing.into()) };
    // Without the plan's first row there is nothing to compare with.
    let first = finished.iter().find(|row| row.row == plan.rows[0].name);
    let (clean, robust) = (|o: &Outcome| o.clean.clone(), |o: &Outcome| o.robust.clone());
    let pooled = |marks: fn(&Outcome) -> Marks| pooled_deviation(&finished, marks);
    let (clean_noise, robust_noise) = (pooled(clean), pooled(robust));
    let size = [jobs[0].test_set.height(), jobs[0].test_set.width()];
    let rows: Vec<RowReport<'_>> = finished
        .iter()
        .map(|row| {
            let held_out: Vec<_> = row.outcomes.iter().filter_map(|o| o.held_out).collect();
            let withstood: Vec<f64> = held_out.iter().map(|of| of.pgd_accuracy).collect();
            let gaps: Vec<f64> =
                held_out.iter().map(|of| of.fgsm_accuracy - of.pgd_accuracy).collect();
            let difference = |marks: fn(&Outcome) -> Marks, noise: Option<f64>| {
                let (first, noise) = (first.filter(|first| first.row != row.row)?, noise?);
                Some(Difference::between(&row.marks(marks), &first.marks(marks), noise))
            };
            RowReport {
                row: row.row,
                seeds: row.outcomes.iter().map(|o| o.setting.recipe.seed).collect(),
                seed_count: row.outcomes.len(),
                macs: row.outcomes[0].setting.network.cost(size, jobs[0].device).macs,
                clean: Spread::of(&means(&row.marks(clean))),
                robust: Spread::of(&means(&row.marks(robust))),
                autoattack: (!row.worst.is_empty()).then(|| {
                    Spread::of(&row.worst.iter().map(|w| w.robust.mean()).collect::<Vec<_>>())
                }),
                autoattack_seeds: row.worst.len(),
                clean_difference: difference(clean, clean_noise),
                robust_difference: difference(robust, robust_noise),
                held_out: (!withstood.is_empty()).then(|| Spread::of(&withstood)),
                fgsm_gap: (!gaps.is_empty()).then(|| mean(&gaps)),
                overfitted: row.outcomes.iter().filter(|o| !o.overfitted.is_empty()).count(),
                train_seconds: mean(
                    &row.outcomes.iter().map(|o| o.train_seconds).collect::<Vec<_>>(),
                ),
                runs: row.outcomes.iter().collect(),
            }
        })
        .collect();

    let setting = &any.outcomes[0].setting;
    let content = serde_json::json!({
        "title": plan.title,
        "question": plan.question,
        "command": std::env::args().skip(1).collect::<Vec<_>>(),
        "versions": { "sat": env!("CARGO_PKG_VERSION"), "burn": "0.22.1" },
        "device": arguments.device.to_string(),
        "data": data.to_string(),
        "train_sha256": setting.train_sha256,
        "test_sha256": setting.test_sha256,
        "test_data": arguments.test_data.as_ref().map(ToString::to_string),
        "threat": setting.threat,
        "train_images": setting.train_images,
        "test_images": setting.test_images,
        "pgd_steps": scale.pgd_steps,
        "autoattack_images": attacked,
        "seed_deviation": { "clean": clean_noise, "robust": robust_noise },
        "rows": rows,
    });
    let plot = format!("{name}.png");
    let points: Vec<RowPoints> = rows
        .iter()
        .map(|row| RowPoints {
            name: row.row.to_owned(),
            values: row.runs.iter().map(|run| run.robust.mean()).collect(),
            mean: row.robust.mean,
        })
        .collect();
    let label = format!("accuracy under PGD-{} (%)", scale.pgd_steps);
    rows_plot(&out.join(&plot), &plan.title, &label, &points)?;
    write(&out.join("report.json"), &serde_json::to_vec_pretty(&content)?)?;
    let table = table(&rows, scale)?;
    println!("{table}");
    write(
        &out.join("report.md"),
        format!("# {}\n\n{}\n\n{table}", plan.title, plan.question).as_bytes(),
    )?;
    Ok(())
}

/// The rows as a Markdown table, in per cent.
fn table(rows: &[RowReport<'_>], scale: &Scale) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "| row | seeds | M MACs | clean | beside the first row | PGD-{} | beside the first row | that is | AutoAttack | PGD-10, held out | FGSM - PGD-10 |",
        scale.pgd_steps
    )?;
    writeln!(text, "|---|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|")?;
    for row in rows {
        let distance = |difference: Option<Difference>| match difference {
            None => String::new(),
            Some(Difference { value, error, .. }) => {
                format!("{:+.1} ± {:.1}", 100.0 * value, 100.0 * error)
            }
        };
        let verdict = match row.robust_difference.map(|difference| difference.verdict) {
            None => "",
            Some(Verdict::Above) => "above",
            Some(Verdict::Below) => "below",
            Some(Verdict::Null) => "null",
        };
        let gap = row.fgsm_gap.map(|gap| format!("{:.1}", 100.0 * gap)).unwrap_or_default();
        let watch = match row.overfitted {
            0 => String::new(),
            seeds => format!(", overfitted in {seeds}"),
        };
        let worst = row.autoattack.map(|spread| spread.percent()).unwrap_or_default();
        let held_out = row.held_out.map(|spread| spread.percent()).unwrap_or_default();
        writeln!(
            text,
            "| {} | {} | {:.1} | {} | {} | {} | {} | {verdict} | {worst} | {held_out} | {gap}{watch} |",
            row.row,
            row.seed_count,
            row.macs as f64 / 1e6,
            row.clean.percent(),
            distance(row.clean_difference),
            row.robust.percent(),
            distance(row.robust_difference),
        )?;
    }
    Ok(text)
}

impl Finished<'_> {
    fn marks(&self, marks: fn(&Outcome) -> Marks) -> Vec<Marks> {
        self.outcomes.iter().map(marks).collect()
    }
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        Self { mean: mean(values), deviation: (values.len() > 1).then(|| deviation(values)) }
    }

    fn percent(&self) -> String {
        percent(self.mean, self.deviation)
    }
}

impl Difference {
    /// `noise` is the standard deviation of one seed. The images add the variance of the difference
    /// that each of them makes, which is smaller than that of two independent sets.
    fn between(row: &[Marks], first: &[Marks], noise: f64) -> Self {
        let value = mean(&means(row)) - mean(&means(first));
        let images: Vec<f64> =
            per_image(row).iter().zip(per_image(first)).map(|(a, b)| a - b).collect();
        let of_images = deviation(&images).powi(2) / images.len() as f64;
        let of_seeds = noise.powi(2) * (1.0 / row.len() as f64 + 1.0 / first.len() as f64);
        let error = (of_images + of_seeds).sqrt();
        let verdict = match value {
            _ if value.abs() <= CLEAR * error || value.abs() < SMALLEST => Verdict::Null,
            _ if value > 0.0 => Verdict::Above,
            _ => Verdict::Below,
        };
        Self { value, error, verdict }
    }
}

/// The standard deviation of one seed, from all rows that have several.
fn pooled_deviation(rows: &[Finished<'_>], marks: fn(&Outcome) -> Marks) -> Option<f64> {
    let several =
        || rows.iter().map(|row| means(&row.marks(marks))).filter(|seeds| seeds.len() > 1);
    let degrees: usize = several().map(|seeds| seeds.len() - 1).sum();
    let squares: f64 =
        several().map(|seeds| deviation(&seeds).powi(2) * (seeds.len() - 1) as f64).sum();
    (degrees > 0).then(|| (squares / degrees as f64).sqrt())
}

/// The share of each seed.
fn means(seeds: &[Marks]) -> Vec<f64> {
    seeds.iter().map(Marks::mean).collect()
}

/// For each image, the share of seeds that get it right.
fn per_image(seeds: &[Marks]) -> Vec<f64> {
    let mut shares = vec![0.0; seeds.first().map_or(0, |marks| marks.iter().len())];
    for marks in seeds {
        for (share, mark) in shares.iter_mut().zip(marks.iter()) {
            *share += f64::from(u8::from(mark)) / seeds.len() as f64;
        }
    }
    shares
}
