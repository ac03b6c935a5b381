//! What is published: every number in a table of docs/results/ is one of the JSON files beside it, and links lead
//! somewhere.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// An object of a JSON file: what it says in words and in numbers.
#[derive(Default)]
struct Record {
    words: BTreeSet<String>,
    numbers: BTreeMap<String, f64>,
}

/// Every object of the file, with the objects inside it as parts of it too.
fn records(value: &Value, into: &mut Vec<Record>) {
    match value {
        Value::Object(fields) => {
            let mut record = Record::default();
            for (name, field) in fields {
                collect(name, field, &mut record);
                records(field, into);
            }
            into.push(record);
        }
        Value::Array(items) => items.iter().for_each(|item| records(item, into)),
        _ => {}
    }
}

fn collect(name: &str, value: &Value, record: &mut Record) {
    match value {
        Value::Number(number) => {
            record.numbers.insert(name.into(), number.as_f64().unwrap());
        }
        Value::String(word) => {
            record.words.insert(word.to_lowercase());
        }
        // By their paths, so that none hides another.
        Value::Object(fields) => {
            for (part, value) in fields {
                collect(&format!("{name}.{part}"), value, record);
            }
        }
        _ => {}
    }
}

/// A printed number: its digits behind the point, and whether it is a percentage.
struct Printed {
    text: String,
    value: f64,
    decimals: usize,
}

impl Printed {
    fn all(cell: &str) -> Vec<Self> {
        let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
        // A digit inside a word belongs to a name.
        let words = cell.split_whitespace().map(|word| word.trim_end_matches(['x', '%', '.']));
        words
            .filter(|word| word.chars().all(is_part) && word.contains(|c: char| c.is_ascii_digit()))
            .map(|word| {
                let text = word.replace(',', "");
                let decimals = text.split_once('.').map_or(0, |(_, digits)| digits.len());
                Self { value: text.parse().unwrap(), text, decimals }
            })
            .collect()
    }

    fn rounds(&self, exact: f64) -> bool {
        // Half a unit of the last digit, either way of rounding a tie.
        (self.value - exact).abs() <= 0.500_001 * 0.1f64.powi(self.decimals as i32)
    }

    /// As such, as a percentage, in thousands or millions of the unit, or as thousandths.
    fn is(&self, exact: f64) -> bool {
        [1.0, 100.0, 1e3, 1e-3, 1e-6].iter().any(|scale| self.rounds(exact * scale))
    }

    /// The ratio of two other numbers of the row, as they are printed.
    fn is_ratio_in(&self, row: &[Printed]) -> bool {
        let half = |printed: &Self| 0.5 * 0.1f64.powi(printed.decimals as i32);
        row.iter().any(|a| {
            row.iter().any(|b| {
                let low = (a.value - half(a)) / (b.value + half(b));
                let high = (a.value + half(a)) / (b.value - half(b)).max(1e-9);
                (low - half(self)..=high + half(self)).contains(&self.value)
            })
        })
    }
}

fn mean_and_deviation(numbers: &[f64]) -> [f64; 2] {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    let square = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    [mean, (square / (n - 1.0).max(1.0)).sqrt()]
}

/// What is wrong with a row: numbers that no record accounts for.
fn unexplained(heads: &[&str], cells: &[&str], records: &[Record]) -> Vec<String> {
    let words: Vec<String> = cells.iter().map(|cell| cell.to_lowercase()).collect();
    // The records that speak of the most of this row's cells; all, if it has numbers alone.
    let shared = |record: &Record| {
        record.words.iter().filter(|word| words.iter().any(|cell| cell == *word)).count()
    };
    let most = records.iter().map(shared).max().unwrap_or(0);
    let about: Vec<&Record> = records.iter().filter(|record| shared(record) == most).collect();
    let mut exact: Vec<f64> = about.iter().flat_map(|r| r.numbers.values().copied()).collect();
    let names: BTreeSet<&String> = about.iter().flat_map(|record| record.numbers.keys()).collect();
    for name in names {
        let numbers: Vec<f64> =
            about.iter().filter_map(|record| record.numbers.get(name).copied()).collect();
        exact.extend(mean_and_deviation(&numbers));
    }
    let printed: Vec<Printed> = cells.iter().flat_map(|cell| Printed::all(cell)).collect();
    let mut missing = Vec::new();
    for (head, cell) in heads.iter().zip(cells) {
        // A name with a number in it.
        if about.iter().any(|record| record.words.contains(&cell.to_lowercase())) {
            continue;
        }
        let is_ratio = |number: &Printed| head.contains('/') && number.is_ratio_in(&printed);
        let numbers = Printed::all(cell).into_iter();
        let known = |number: &Printed| exact.iter().any(|exact| number.is(*exact));
        missing.extend(numbers.filter(|n| !known(n) && !is_ratio(n)).map(|number| number.text));
    }
    missing
}

/// Rows under their heads.
fn rows(markdown: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    let mut heads = None;
    let mut rows = Vec::new();
    for line in markdown.lines() {
        if !line.starts_with('|') {
            heads = None;
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let Some(heads) = &heads else {
            heads = Some(cells);
            continue;
        };
        if !cells.iter().all(|cell| cell.starts_with('-') || cell.starts_with(':')) {
            rows.push((heads.clone(), cells));
        }
    }
    rows
}

#[test]
fn tables_are_what_the_json_files_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/results");
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for page in files.iter().filter(|path| path.extension().is_some_and(|end| end == "md")) {
        let name = page.file_stem().unwrap().to_string_lossy().into_owned();
        let mut all = Vec::new();
        for json in files.iter().filter(|path| path.extension().is_some_and(|end| end == "json")) {
            if json.file_stem().unwrap().to_string_lossy().starts_with(&name) {
                records(&serde_json::from_slice(&fs::read(json).unwrap()).unwrap(), &mut all);
            }
        }
        let text = fs::read_to_string(page).unwrap();
        for (heads, cells) in rows(&text) {
            let missing = unexplained(&heads, &cells, &all);
            checked += 1;
            if !missing.is_empty() {
                wrong.push(format!("{name}.md: {missing:?} in | {} |", cells.join(" | ")));
            }
        }
    }
    assert!(checked > 100, "only {checked} rows were found");
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

/// The pages that a folder holds, and those inside it.
fn pages(folder: &Path, into: &mut Vec<PathBuf>) {
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            pages(&path, into);
        } else if path.extension().is_some_and(|end| end == "md") {
            into.push(path);
        }
    }
}

#[test]
fn links_lead_somewhere_and_the_book_has_every_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (summary, mut all) = (root.join("docs/SUMMARY.md"), vec![root.join("README.md")]);
    pages(&root.join("docs"), &mut all);
    let contents = fs::read_to_string(&summary).unwrap();
    let mut wrong = Vec::new();
    for page in &all {
        let text = fs::read_to_string(page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if !file.contains(':') && !page.parent().unwrap().join(file).exists() {
                wrong.push(format!("{}: {target} is not there", page.display()));
            }
        }
        if let Ok(name) = page.strip_prefix(root.join("docs"))
            && *page != summary
            && !contents.contains(&format!("]({})", name.display()))
        {
            wrong.push(format!("docs/SUMMARY.md leaves out {}", name.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
