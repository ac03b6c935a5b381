//! What a weights file says of itself, beside its tensors.

use sat::models::{Metadata, NetworkConfig, network_metadata, read_metadata, read_network};
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
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    /// The network that the weights belong to.
    pub(crate) network: Option<NetworkConfig>,
    /// The normalisation in front of it.
    pub(crate) normalization: Option<Statistics>,
    /// Height and width of the images in pixels.
    pub(crate) resolution: Option<u32>,
}

/// Metadata that says nothing usable.
#[derive(Debug, thiserror::Error)]
#[error("{}: metadata `{key}` is no list of numbers; train again or remove it", path.display())]
struct BadMetadata {
    path: PathBuf,
    key: &'static str,
}

impl Recorded {
    pub(crate) fn of(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let metadata = read_metadata(path)?;
        fn numbers<T: FromStr>(
            path: &Path,
            metadata: &Metadata,
            key: &'static str,
        ) -> Result<Option<Vec<T>>, BadMetadata> {
            let Some(text) = metadata.get(key) else { return Ok(None) };
            let numbers = text.split(',').map(|number| number.parse().ok()).collect();
            match numbers {
                Some(numbers) => Ok(Some(numbers)),
                None => Err(BadMetadata { path: path.to_owned(), key }),
            }
        }
        let normalization = match (numbers(path, &metadata, MEAN)?, numbers(path, &metadata, STD)?)
        {
            (None, None) => None,
            (Some(mean), Some(std)) => Some((mean, std)),
            (None, _) => return Err(BadMetadata { path: path.to_owned(), key: MEAN }.into()),
            (_, None) => return Err(BadMetadata { path: path.to_owned(), key: STD }.into()),
        };
        let resolution =
            numbers(path, &metadata, RESOLUTION)?.and_then(|sides| sides.first().copied());
        Ok(Self { network: read_network(path)?, normalization, resolution })
    }
}

/// The metadata that [`Recorded::of`] reads back.
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
