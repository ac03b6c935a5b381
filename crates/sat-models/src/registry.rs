//! Networks by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::resnet::ResNetConfig;

/// A network with a standard name, as on a command line or in the metadata of a weights file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum ModelName {
    /// `resnet20`: [`ResNetConfig::resnet20`]
    ResNet20,
    /// `resnet32`: [`ResNetConfig::resnet32`]
    ResNet32,
    /// `resnet44`: [`ResNetConfig::resnet44`]
    ResNet44,
    /// `resnet56`: [`ResNetConfig::resnet56`]
    ResNet56,
    /// `resnet110`: [`ResNetConfig::resnet110`]
    ResNet110,
    /// `resnet18_cifar`: [`ResNetConfig::resnet18_cifar`]
    ResNet18Cifar,
}

impl ModelName {
    /// Every name.
    pub const ALL: [Self; 6] = [
        Self::ResNet20,
        Self::ResNet32,
        Self::ResNet44,
        Self::ResNet56,
        Self::ResNet110,
        Self::ResNet18Cifar,
    ];

    /// The name as text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResNet20 => "resnet20",
            Self::ResNet32 => "resnet32",
            Self::ResNet44 => "resnet44",
            Self::ResNet56 => "resnet56",
            Self::ResNet110 => "resnet110",
            Self::ResNet18Cifar => "resnet18_cifar",
        }
    }

    /// The network as data: 3 input channels, 10 classes and the default activation.
    pub fn config(self) -> ResNetConfig {
        match self {
            Self::ResNet20 => ResNetConfig::resnet20(),
            Self::ResNet32 => ResNetConfig::resnet32(),
            Self::ResNet44 => ResNetConfig::resnet44(),
            Self::ResNet56 => ResNetConfig::resnet56(),
            Self::ResNet110 => ResNetConfig::resnet110(),
            Self::ResNet18Cifar => ResNetConfig::resnet18_cifar(),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.as_str().to_owned()
    }
}

impl FromStr for ModelName {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| UnknownModel { name: text.to_owned() })
    }
}

impl TryFrom<String> for ModelName {
    type Error = UnknownModel;

    fn try_from(text: String) -> Result<Self, UnknownModel> {
        text.parse()
    }
}

/// A name that is not in [`ModelName::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown model `{name}`{}; known models: {}", self.hint(), ModelName::ALL.map(ModelName::as_str).join(", "))]
pub struct UnknownModel {
    /// The name as it was given.
    pub name: String,
}

impl UnknownModel {
    fn hint(&self) -> String {
        let near = |known: &str| edit_distance(&self.name, known);
        let nearest = ModelName::ALL.into_iter().min_by_key(|known| near(known.as_str()));
        match nearest.filter(|known| near(known.as_str()) <= known.as_str().len() / 3) {
            Some(known) => format!(", did you mean `{known}`?"),
            None => String::new(),
        }
    }
}

/// Levenshtein's distance: the fewest insertions, deletions and replacements of a byte.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
