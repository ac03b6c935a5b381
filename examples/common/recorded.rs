//! What a weights file says of itself, beside its tensors.

use sat::models::{
    Metadata, NetworkConfig, WeightsError, network_metadata, read_metadata, read_network,
};
use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

const MEAN: &str = "sat.mean";
const STD: &str = "sat.std";
const RESOLUTION: &str = "sat.resolution";

/// Mean and standard deviation of each channel.
pub(crate) type Statistics = (Vec<f64>, Vec<f64>);

/// What a weights file says; nothing where it is another program's.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    path: PathBuf,
    metadata: Metadata,
}

/// Metadata that says nothing usable.
#[derive(Debug, thiserror::Error)]
#[error("{}: metadata `{key}` is no list of numbers; {instead}", path.display())]
pub(crate) struct BadMetadata {
    path: PathBuf,
    key: &'static str,
    instead: &'static str,
}

impl Recorded {
    pub(crate) fn of(path: &Path) -> Result<Self, WeightsError> {
        Ok(Self { path: path.to_owned(), metadata: read_metadata(path)? })
    }

    /// The network that the weights belong to.
    pub(crate) fn network(&self) -> Result<Option<NetworkConfig>, WeightsError> {
        read_network(&self.path)
    }

    /// The normalisation in front of it.
    pub(crate) fn normalization(&self) -> Result<Option<Statistics>, BadMetadata> {
        let instead = "give the normalisation yourself";
        let bad = |key| BadMetadata { path: self.path.clone(), key, instead };
        match (self.numbers(MEAN, instead)?, self.numbers(STD, instead)?) {
            (None, None) => Ok(None),
            (Some(mean), Some(std)) => Ok(Some((mean, std))),
            (None, _) => Err(bad(MEAN)),
            (_, None) => Err(bad(STD)),
        }
    }

    /// Height and width of the images in pixels.
    pub(crate) fn resolution(&self) -> Result<Option<u32>, BadMetadata> {
        let sides = self.numbers(RESOLUTION, "give the resolution yourself")?;
        Ok(sides.and_then(|sides| sides.first().copied()))
    }

    fn numbers<T: FromStr>(
        &self,
        key: &'static str,
        instead: &'static str,
    ) -> Result<Option<Vec<T>>, BadMetadata> {
        let Some(text) = self.metadata.get(key) else { return Ok(None) };
        let numbers: Option<Vec<T>> = text.split(',').map(|number| number.parse().ok()).collect();
        let bad = || BadMetadata { path: self.path.clone(), key, instead };
        numbers.map(Some).ok_or_else(bad)
    }
}

/// The metadata that [`Recorded`] reads back.
pub(crate) fn metadata(
    network: &NetworkConfig,
    (mean, std): (&[f32], &[f32]),
    resolution: Option<u32>,
) -> Metadata {
    let text = |values: &[f32]| {
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        values.join(",")
    };
    let mut metadata = network_metadata(network);
    metadata.insert(MEAN.to_owned(), text(mean));
    metadata.insert(STD.to_owned(), text(std));
    metadata.extend(resolution.map(|side| (RESOLUTION.to_owned(), side.to_string())));
    metadata
}
