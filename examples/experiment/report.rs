//! What came of the rows: means and spread over seeds, and the distance from the first row, or from
//! those that the plan names, beside its noise.

use crate::{
    Arguments, ExperimentError, Failure,
    common::{
        output::write,
        plot::{RowPoints, rows_plot},
        spread::{deviation, mean, percent},
    },
    job::{Job, Marks, Outcome, Worst},
    plan::{Comparison, Plan, Scale},
};
use sat::{attack::Flag, train::data::DataSpec};
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

/// What a difference says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Above,
    Below,
    /// Within two standard errors, or below 0.7 points.
    Null,
}

/// The mean of some runs less that of those they are compared with.
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
    attacked: Vec<Attacked<'a>>,
}

/// A seed under AutoAttack.
#[derive(Serialize)]
struct Attacked<'a> {
    seed: u64,
    robust: &'a Marks,
    flags: &'a [Flag],
}

/// A comparison of the plan; nothing where a row of it is not finished.
#[derive(Serialize)]
struct ComparisonReport<'a> {
    comparison: &'a str,
    clean: Option<Difference>,
    robust: Option<Difference>,
    autoattack: Option<Difference>,
}

/// By what the images of a run were marked.
#[derive(Clone, Copy)]
enum Test {
    Clean,
    Pgd,
    AutoAttack,
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
    let noise = |test| pooled_deviation(&finished, test);
    let first = std::slice::from_ref(&plan.rows[0].name);
    let size = [jobs[0].test_set.height(), jobs[0].test_set.width()];
    let rows: Vec<RowReport<'_>> = finished
        .iter()
        .map(|row| {
            let held_out: Vec<_> = row.outcomes.iter().filter_map(|o| o.held_out).collect();
            let withstood: Vec<f64> = held_out.iter().map(|of| of.pgd_accuracy).collect();
            let gaps: Vec<f64> =
                held_out.iter().map(|of| of.fgsm_accuracy - of.pgd_accuracy).collect();
            let marks = |test| means(&row.marks(test));
            let difference = |test| {
                let another = row.row != first[0];
                another.then(|| difference(&finished, &[row.row], first, test)).flatten()
            };
            RowReport {
                row: row.row,
                seeds: row.outcomes.iter().map(|o| o.setting.recipe.seed).collect(),
                seed_count: row.outcomes.len(),
                macs: row.outcomes[0].setting.network.cost(size, jobs[0].device).macs,
                clean: Spread::of(&marks(Test::Clean)),
                robust: Spread::of(&marks(Test::Pgd)),
                autoattack: (!row.worst.is_empty()).then(|| Spread::of(&marks(Test::AutoAttack))),
                autoattack_seeds: row.worst.len(),
                clean_difference: difference(Test::Clean),
                robust_difference: difference(Test::Pgd),
                held_out: (!withstood.is_empty()).then(|| Spread::of(&withstood)),
                fgsm_gap: (!gaps.is_empty()).then(|| mean(&gaps)),
                overfitted: row.outcomes.iter().filter(|o| !o.overfitted.is_empty()).count(),
                train_seconds: mean(
                    &row.outcomes.iter().map(|o| o.train_seconds).collect::<Vec<_>>(),
                ),
                runs: row.outcomes.iter().collect(),
                attacked: row.worst.iter().map(Attacked::of).collect(),
            }
        })
        .collect();
    let comparisons: Vec<ComparisonReport<'_>> =
        plan.comparisons.iter().map(|asked| ComparisonReport::of(asked, &finished)).collect();

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
        "seed_deviation": {
            "clean": noise(Test::Clean),
            "robust": noise(Test::Pgd),
            "autoattack": noise(Test::AutoAttack),
        },
        "rows": rows,
        "comparisons": comparisons,
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
    let mut table = table(&rows, scale)?;
    if !comparisons.is_empty() {
        write!(table, "\n{}", comparison_table(&comparisons, scale)?)?;
    }
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
        let verdict = verdict(row.robust_difference);
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

/// The plan's comparisons as a Markdown table, in points.
fn comparison_table(
    comparisons: &[ComparisonReport<'_>],
    scale: &Scale,
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let steps = scale.pgd_steps;
    writeln!(
        text,
        "| comparison | clean | that is | PGD-{steps} | that is | AutoAttack | that is |"
    )?;
    writeln!(text, "|---|--:|---|--:|---|--:|---|")?;
    for ComparisonReport { comparison, clean, robust, autoattack } in comparisons {
        let cell = |of: &Option<Difference>| format!("{} | {}", distance(*of), verdict(*of));
        writeln!(
            text,
            "| {comparison} | {} | {} | {} |",
            cell(clean),
            cell(robust),
            cell(autoattack)
        )?;
    }
    Ok(text)
}

/// A difference in points.
fn distance(difference: Option<Difference>) -> String {
    difference.map_or(String::new(), |Difference { value, error, .. }| {
        format!("{:+.1} ± {:.1}", 100.0 * value, 100.0 * error)
    })
}

fn verdict(difference: Option<Difference>) -> &'static str {
    match difference.map(|difference| difference.verdict) {
        None => "",
        Some(Verdict::Above) => "above",
        Some(Verdict::Below) => "below",
        Some(Verdict::Null) => "null",
    }
}

impl Finished<'_> {
    fn marks(&self, test: Test) -> Vec<&Marks> {
        match test {
            Test::Clean => self.outcomes.iter().map(|outcome| &outcome.clean).collect(),
            Test::Pgd => self.outcomes.iter().map(|outcome| &outcome.robust).collect(),
            Test::AutoAttack => self.worst.iter().map(|worst| &worst.robust).collect(),
        }
    }
}

impl<'a> Attacked<'a> {
    fn of(worst: &'a Worst) -> Self {
        Self { seed: worst.seed(), robust: &worst.robust, flags: &worst.flags }
    }
}

impl<'a> ComparisonReport<'a> {
    fn of(asked: &'a Comparison, finished: &[Finished<'_>]) -> Self {
        let difference = |test| difference(finished, &asked.rows, &asked.beside, test);
        Self {
            comparison: &asked.name,
            clean: difference(Test::Clean),
            robust: difference(Test::Pgd),
            autoattack: difference(Test::AutoAttack),
        }
    }
}

/// Between the runs of some rows and those of others; none if one of the rows has no run, if the rows of a
/// side have unequal numbers of them, or if no row has two seeds that tell the noise.
fn difference(
    finished: &[Finished<'_>],
    rows: &[impl AsRef<str>],
    beside: &[impl AsRef<str>],
    test: Test,
) -> Option<Difference> {
    let noise = pooled_deviation(finished, test)?;
    let row = marks_of(finished, rows, test)?;
    let beside = marks_of(finished, beside, test)?;
    Some(Difference::between(&row, &beside, noise))
}

/// Those of all runs of the rows; none if one of the rows has no run, or fewer than another, whose setting
/// would then count for more.
fn marks_of<'a>(
    finished: &'a [Finished<'_>],
    rows: &[impl AsRef<str>],
    test: Test,
) -> Option<Vec<&'a Marks>> {
    let runs = rows.iter().map(|name| {
        let row = finished.iter().find(|row| row.row == name.as_ref())?;
        Some(row.marks(test))
    });
    let runs: Vec<Vec<&Marks>> = runs.collect::<Option<_>>()?;
    let count = runs.first().map_or(0, Vec::len);
    let is_even = count > 0 && runs.iter().all(|marks| marks.len() == count);
    is_even.then(|| runs.concat())
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
    fn between(row: &[&Marks], first: &[&Marks], noise: f64) -> Self {
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
fn pooled_deviation(rows: &[Finished<'_>], test: Test) -> Option<f64> {
    let several = || rows.iter().map(|row| means(&row.marks(test))).filter(|seeds| seeds.len() > 1);
    let degrees: usize = several().map(|seeds| seeds.len() - 1).sum();
    let squares: f64 =
        several().map(|seeds| deviation(&seeds).powi(2) * (seeds.len() - 1) as f64).sum();
    (degrees > 0).then(|| (squares / degrees as f64).sqrt())
}

/// The share of each seed.
fn means(seeds: &[&Marks]) -> Vec<f64> {
    seeds.iter().map(|marks| marks.mean()).collect()
}

/// For each image, the share of seeds that get it right.
fn per_image(seeds: &[&Marks]) -> Vec<f64> {
    let mut shares = vec![0.0; seeds.first().map_or(0, |marks| marks.iter().len())];
    for marks in seeds {
        for (share, mark) in shares.iter_mut().zip(marks.iter()) {
            *share += f64::from(u8::from(mark)) / seeds.len() as f64;
        }
    }
    shares
}
