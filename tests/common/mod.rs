//! What the tests of known answers share.

use std::path::PathBuf;

/// The folder of known answers and real images, which is not part of the repository: the one that
/// `SAT_SHARED` names, else `shared` beside the repository. Prints why a test skips.
pub(crate) fn shared() -> Option<PathBuf> {
    let folder = match std::env::var_os("SAT_SHARED") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"),
    };
    if folder.join("golden").is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no known answers in {}; set SAT_SHARED", folder.display());
    None
}
