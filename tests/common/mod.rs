//! What the tests of known answers share.

use std::{io::Write, path::PathBuf};

/// The folder of known answers and real images, which is not part of the repository: the one that
/// `SAT_SHARED` names, else `shared` beside the repository. Without it a test skips and prints why.
///
/// # Panics
///
/// If `SAT_SHARED` names a folder without known answers.
pub(crate) fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("SAT_SHARED").map(PathBuf::from);
    let is_named = named.is_some();
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = named.unwrap_or_else(beside);
    if folder.join("golden").is_dir() {
        return Some(folder);
    }
    assert!(!is_named, "SAT_SHARED: no known answers in {}", folder.display());
    // Not eprintln: the test harness would keep that to itself.
    let _ = writeln!(
        std::io::stderr(),
        "skipped: no known answers in {}; set SAT_SHARED",
        folder.display()
    );
    None
}
