//! What the tests of known answers share.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The folder of known answers and real images, which is not part of the repository: the one that
/// `SAT_SHARED` names, else `shared` in a folder around the package, such as beside the repository. Without it a test skips and prints why.
///
/// # Panics
///
/// If `SAT_SHARED` names a folder without known answers.
pub(crate) fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("SAT_SHARED").map(PathBuf::from);
    let is_named = named.is_some();
    let around = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|at| at.join("shared"));
    let mut places = named.map_or(around.collect(), |named| vec![named]).into_iter();
    let found = places.find(|folder| folder.join("golden").is_dir());
    assert!(found.is_some() || !is_named, "SAT_SHARED: no known answers there");
    if found.is_none() {
        // Not eprintln: the test harness would keep that to itself.
        let _ = writeln!(std::io::stderr(), "skipped: no known answers; set SAT_SHARED");
    }
    found
}
