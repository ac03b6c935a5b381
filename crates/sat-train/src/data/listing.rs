//! What lies in a folder.

use std::path::{Path, PathBuf};

use super::DataError;
use super::source::io_error;

/// What a folder holds, sorted by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = std::fs::read_dir(folder).map_err(io_error(folder))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(io_error(folder)))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether a path looks like that of a JPEG or PNG file, and is not hidden.
pub(super) fn is_image(path: &Path) -> bool {
    let known = ["jpg", "jpeg", "png"];
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|e| known.contains(&e.as_str())) && !file_name(path).starts_with('.')
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
