//! What the tests of known answers share.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The folder of known answers and real images, which is not part of the repository: the one that
/// `SAT_SHARED` names, else `shared` in a folder around the package, such as beside the repository.
/// Without it a test skips and prints why.
///
/// # Panics
///
/// If `SAT_SHARED` names a folder without known answers.
pub(crate) fn shared() -> Option<PathBuf> {
    let has_answers = |folder: &PathBuf| folder.join("golden").is_dir();
    if let Some(named) = std::env::var_os("SAT_SHARED").map(PathBuf::from) {
        assert!(has_answers(&named), "SAT_SHARED: no known answers in {}", named.display());
        return Some(named);
    }
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = package.ancestors().map(|around| around.join("shared")).find(has_answers);
    if found.is_none() {
        // Not eprintln: the test harness would keep that to itself.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: no known answers in a folder `shared` around {}; set SAT_SHARED",
            package.display()
        );
    }
    found
}
