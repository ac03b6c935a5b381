//! What an experiment compares, and at which scale, as data.

use crate::common;
use sat::{
    attack::ThreatModel,
    core::Gradient,
    models::{ConfigError, ModelName, NetworkConfig},
    train::{Recipe, RecipeError, data::ImageSet},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// The rows of an experiment. Each is the scale with the plan's and its own fields changed; the first is
/// the one that the others are compared with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The page's heading.
    pub(crate) title: String,
    /// What the experiment asks.
    pub(crate) question: String,
    /// Fields of the network that differ from the scale's in every row; `model` puts another network in
    /// its place.
    #[serde(default)]
    network: Table,
    /// What is compared.
    #[serde(rename = "row")]
    pub(crate) rows: Vec<Row>,
    /// What is compared besides each row with the first.
    #[serde(default, rename = "comparison")]
    pub(crate) comparisons: Vec<Comparison>,
}

/// The runs of some rows, taken together, beside those of others.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    /// What the table calls it.
    pub(crate) name: String,
    /// Names of rows.
    pub(crate) rows: Vec<String>,
    /// Names of the rows they are compared with.
    pub(crate) beside: Vec<String>,
}

/// One row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// What the table calls it.
    pub(crate) name: String,
    /// Fields of the network that differ from the plan's; `model` puts another network in its place.
    #[serde(default)]
    network: Table,
    /// Fields of the recipe that differ from the scale's.
    #[serde(default)]
    recipe: Table,
    /// Trains so many times as long.
    #[serde(default = "once")]
    epochs_times: usize,
    /// In place of the scale's seeds.
    seeds: Option<Vec<u64>>,
    /// The test attack also runs with these gradients in place of the network's own, and
    /// each image counts at its worst.
    #[serde(default)]
    attackers: Vec<Gradient>,
}

fn once() -> usize {
    1
}

/// Data, network, recipe and test: everything that the rows share.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scale {
    /// The images, as `--data` takes them.
    pub(crate) data: String,
    /// Train on so many images, drawn by seed 0; all by default.
    pub(crate) train_images: Option<usize>,
    /// Test on so many images, the first or of photographs some of each class; all by default.
    pub(crate) test_images: Option<usize>,
    /// Steps of the test's PGD.
    pub(crate) pgd_steps: usize,
    /// AutoAttack sees the first so many test images.
    pub(crate) autoattack_images: usize,
    /// The seeds of weights, data order and noise.
    pub(crate) seeds: Vec<u64>,
    /// `model`, a name, and the fields that differ from it.
    network: Table,
    /// The recipe, without its seed.
    recipe: Table,
}

/// All that decides an outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) network: NetworkConfig,
    pub(crate) recipe: Recipe,
    pub(crate) attackers: Vec<Gradient>,
    pub(crate) threat: ThreatModel,
    pub(crate) train_images: usize,
    pub(crate) train_sha256: String,
    pub(crate) test_images: usize,
    pub(crate) test_sha256: String,
    pub(crate) pgd_steps: usize,
}

/// What a setting knows of a set of images.
pub(crate) struct Images {
    count: usize,
    channels: usize,
    classes: usize,
    sha256: String,
}

impl Images {
    pub(crate) fn of(set: &ImageSet) -> Self {
        let (count, channels, classes) = (set.len(), set.channels(), set.classes());
        Self { count, channels, classes, sha256: set.sha256() }
    }

    /// Whether a network for these can be tested on the others.
    pub(crate) fn fit(&self, other: &Self) -> bool {
        [self.channels, self.classes] == [other.channels, other.classes]
    }
}

/// A plan or scale that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("the {place}'s `{field}` is empty or 0; give at least one")]
    Nothing { place: &'static str, field: &'static str },
    #[error("the scale's recipe has no [attack], by whose threat all rows are tested")]
    NoThreat,
    #[error(
        "row `{row}` changes the eps or norm of the attack; all rows are tested by the scale's"
    )]
    OtherThreat { row: String },
    #[error("the scale: {0}")]
    Scale(Box<toml::de::Error>),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the scale's `network` names no `model`")]
    NoModel,
    #[error("row `{row}`: {source}")]
    Field { row: String, source: Box<toml::de::Error> },
    #[error("row `{row}`: {source}")]
    Network { row: String, source: ConfigError },
    #[error("row `{row}`: {source}")]
    Recipe { row: String, source: RecipeError },
    #[error("row `{row}` stands there twice; give each its own name")]
    Twice { row: String },
    #[error("row `{row}`: the list of seeds is empty, or has one of them twice")]
    Seeds { row: String },
    #[error("comparison `{comparison}` names no row on one of its sides; give each at least one")]
    OneSided { comparison: String },
    #[error("comparison `{comparison}` names the row `{row}`, which the plan does not have")]
    UnknownRow { comparison: String, row: String },
    #[error("comparison `{comparison}` names the row `{row}` twice")]
    NamedTwice { comparison: String, row: String },
}

/// Reads a plan or a scale.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, PlanError> {
    let text = fs::read_to_string(path)
        .map_err(|source| PlanError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|source| PlanError::Toml { path: path.to_owned(), source: Box::new(source) })
}

impl Plan {
    /// # Errors
    ///
    /// If there is no row, two have one name, or a comparison names none or one that is not there.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if self.rows.is_empty() {
            return Err(PlanError::Nothing { place: "plan", field: "row" });
        }
        let twice = self.rows.iter().enumerate().find(|(i, row)| {
            self.rows[..*i].iter().any(|earlier| earlier.file_name() == row.file_name())
        });
        if let Some((_, row)) = twice {
            return Err(PlanError::Twice { row: row.name.clone() });
        }
        self.comparisons.iter().try_for_each(|comparison| comparison.check(&self.rows))
    }
}

impl Comparison {
    fn check(&self, rows: &[Row]) -> Result<(), PlanError> {
        let comparison = || self.name.clone();
        if self.rows.is_empty() || self.beside.is_empty() {
            return Err(PlanError::OneSided { comparison: comparison() });
        }
        let mut seen = Vec::new();
        for row in self.rows.iter().chain(&self.beside) {
            if !rows.iter().any(|known| known.name == *row) {
                return Err(PlanError::UnknownRow { comparison: comparison(), row: row.clone() });
            }
            if seen.contains(&row) {
                return Err(PlanError::NamedTwice { comparison: comparison(), row: row.clone() });
            }
            seen.push(row);
        }
        Ok(())
    }
}

impl Scale {
    /// # Errors
    ///
    /// If a number that must not be 0 is.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let fields = [
            ("train_images", self.train_images == Some(0)),
            ("test_images", self.test_images == Some(0)),
            ("pgd_steps", self.pgd_steps == 0),
            ("autoattack_images", self.autoattack_images == 0),
        ];
        match fields.into_iter().find(|(_, nothing)| *nothing) {
            Some((field, _)) => Err(PlanError::Nothing { place: "scale", field }),
            None => Ok(()),
        }
    }

    /// What every row is tested by.
    fn threat(&self) -> Result<ThreatModel, PlanError> {
        let recipe: Recipe =
            self.recipe.clone().try_into().map_err(|e| PlanError::Scale(Box::new(e)))?;
        recipe.attack.map(|attack| attack.threat()).ok_or(PlanError::NoThreat)
    }
}

impl Row {
    /// The seeds, those of the scale by default.
    pub(crate) fn seeds<'a>(&'a self, scale: &'a Scale) -> Result<&'a [u64], PlanError> {
        let seeds = self.seeds.as_ref().unwrap_or(&scale.seeds);
        let twice = seeds.iter().enumerate().any(|(i, seed)| seeds[..i].contains(seed));
        match seeds.is_empty() || twice {
            true => Err(PlanError::Seeds { row: self.name.clone() }),
            false => Ok(seeds),
        }
    }

    /// What its folders are called.
    pub(crate) fn file_name(&self) -> String {
        common::file_name(&self.name)
    }

    /// The row of a plan at a scale, with a seed.
    pub(crate) fn setting(
        &self,
        plan: &Plan,
        scale: &Scale,
        seed: u64,
        images: [&Images; 2],
    ) -> Result<Setting, PlanError> {
        let row = || self.name.clone();
        let field = |source| PlanError::Field { row: row(), source: Box::new(source) };
        let network = self.network(plan, scale)?;
        let [train, test] = images;
        let network = network.with_input_channels(train.channels).with_classes(train.classes);
        network.validate().map_err(|source| PlanError::Network { row: row(), source })?;
        let mut recipe = scale.recipe.clone();
        merge(&mut recipe, &self.recipe);
        let recipe: Recipe = recipe.try_into().map_err(field)?;
        let epochs = recipe.epochs * self.epochs_times;
        let recipe = Recipe { seed, ..recipe }.with_epochs(epochs);
        recipe.validate().map_err(|source| PlanError::Recipe { row: row(), source })?;
        let threat = scale.threat()?;
        if recipe.attack.as_ref().is_some_and(|attack| attack.threat() != threat) {
            return Err(PlanError::OtherThreat { row: row() });
        }
        Ok(Setting {
            network,
            recipe,
            attackers: self.attackers.clone(),
            threat,
            train_images: train.count,
            train_sha256: train.sha256.clone(),
            test_images: test.count,
            test_sha256: test.sha256.clone(),
            pgd_steps: scale.pgd_steps,
        })
    }

    fn network(&self, plan: &Plan, scale: &Scale) -> Result<NetworkConfig, PlanError> {
        let field = |source| PlanError::Field { row: self.name.clone(), source: Box::new(source) };
        let mut network: Option<(String, Table)> = None;
        for layer in [&scale.network, &plan.network, &self.network] {
            let mut layer = layer.clone();
            if let Some(model) = layer.remove("model") {
                let model: ModelName = model.try_into().map_err(field)?;
                network = family(&model.config());
            }
            match &mut network {
                Some((_, fields)) => merge(fields, &layer),
                None => return Err(PlanError::NoModel),
            }
        }
        let tagged = network.map(|(family, fields)| (family, Value::Table(fields)));
        Table::from_iter(tagged).try_into().map_err(field)
    }
}

/// A network as the name of its family and its fields.
fn family(config: &NetworkConfig) -> Option<(String, Table)> {
    let tagged = Table::try_from(config).ok()?;
    tagged.into_iter().find_map(|(family, fields)| match fields {
        Value::Table(fields) => Some((family, fields)),
        _ => None,
    })
}

/// Puts the fields of `over` in their places; tables inside are merged in the same way, unless they
/// are of another `kind`.
fn merge(base: &mut Table, over: &Table) {
    for (name, value) in over {
        match (base.get_mut(name), value) {
            (Some(Value::Table(base)), Value::Table(over))
                if over.get("kind").is_none_or(|kind| base.get("kind") == Some(kind)) =>
            {
                merge(base, over);
            }
            _ => {
                base.insert(name.clone(), value.clone());
            }
        }
    }
}
