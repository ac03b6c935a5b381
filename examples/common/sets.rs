//! The images to train on and those to test on.

use sat::train::data::{DataError, DataSpec, ImageSet, Split};

/// Images that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetsError {
    #[error("{0} has no test images of its own; give a data set that has")]
    NoTestSplit(DataSpec),
    #[error("--{0} is 0; leave it out to use all images")]
    NoImages(&'static str),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Both splits of a data set; of the training images so many, drawn by the seed, of the test images as
/// many as [`DataSpec::load_part`] takes.
pub(crate) fn train_and_test(
    data: &DataSpec,
    limit: Option<usize>,
    test_limit: Option<usize>,
    seed: u64,
) -> Result<(ImageSet, ImageSet), SetsError> {
    let limits = [("limit", limit), ("test-limit", test_limit)];
    if let Some((flag, _)) = limits.iter().find(|(_, limit)| *limit == Some(0)) {
        return Err(SetsError::NoImages(flag));
    }
    if !data.has_splits() {
        return Err(SetsError::NoTestSplit(data.clone()));
    }
    let train_set = drawn(data.load(Split::Train)?, limit, seed);
    let test_set = data.load_part(Split::Test, test_limit.unwrap_or(usize::MAX))?;
    Ok((train_set, test_set))
}

/// At most so many images, drawn by the seed since files are often sorted by class, in their order.
pub(crate) fn drawn(set: ImageSet, limit: Option<usize>, seed: u64) -> ImageSet {
    let Some(limit) = limit.filter(|limit| *limit < set.len()) else { return set };
    let mut indices = set.shuffled(seed, u64::MAX - 1);
    indices.truncate(limit);
    indices.sort_unstable();
    set.subset(&indices)
}
