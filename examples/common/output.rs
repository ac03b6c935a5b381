//! Result files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A result file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; check the disk and the permissions, or choose another place", path.display())]
pub(crate) struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the folder, writes beside the file and renames, so that an older file survives a failure.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let draft = draft(path);
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&draft, bytes))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // What is left of it; that it cannot be removed either would add nothing.
        let _ = fs::remove_file(&draft);
    }
    written.map_err(|source| WriteError { path: path.to_owned(), source })
}

/// A finished result where a new one was to go.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is there already; go on with --resume if that run was stopped, choose another --out, or remove the folder",
    .0.display()
)]
pub(crate) struct Taken(PathBuf);

/// Refuses to put a result in the place of an older one.
pub(crate) fn check_free(path: &Path) -> Result<(), Taken> {
    if path.exists() { Err(Taken(path.to_owned())) } else { Ok(()) }
}

/// Finds out before hours of work whether [`write`] will have a place to write to. Makes the folder.
pub(crate) fn check_writable(path: &Path) -> Result<(), WriteError> {
    let draft = draft(path);
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&draft, b""))
        .and_then(|()| fs::remove_file(&draft))
        .and_then(|()| match path.is_dir() {
            true => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            false => Ok(()),
        })
        .map_err(|source| WriteError { path: path.to_owned(), source })
}

fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    // Several processes may write reports of one folder.
    name.push(format!(".{}.draft", std::process::id()));
    name.into()
}
