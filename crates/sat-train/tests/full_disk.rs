//! A disk that is full in the middle of a checkpoint, for real: a small tmpfs in a mount namespace of its
//! own, which ends with its process.

#![cfg(all(target_os = "linux", feature = "flex"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use sat_train::{CheckpointError, Checkpoints, Progress, Start, TrainError, train};
use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Write},
    ops::ControlFlow,
    path::Path,
    process::Command,
};

mod common;
use common::{bits, device, go_on, images, model, recipe};

/// Names the folder to mount on, in the process that has the namespace.
const FOLDER: &str = "SAT_FULL_DISK";
const PAGE: u64 = 4096;

#[test]
fn a_full_disk_leaves_the_checkpoint_before() {
    if let Some(folder) = env::var_os(FOLDER) {
        return fill_a_disk(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let probe = in_a_namespace().args(["mount", "-t", "tmpfs", "none"]).arg(folder.path()).output();
    let refused = match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = refused {
        println!("skipped, for no file system can be mounted here: {reason}");
        return;
    }
    let status = in_a_namespace()
        .arg(env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_leaves_the_checkpoint_before", "--nocapture"])
        .env(FOLDER, folder.path())
        .status();
    assert!(status.unwrap().success());
}

/// A command whose mounts nobody else sees.
fn in_a_namespace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--"]);
    command
}

fn fill_a_disk(folder: &Path) {
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(folder).status();
    assert!(mount.unwrap().success());
    let data = images(40);
    let checkpoints = Checkpoints::open(folder.join("checkpoints")).unwrap();
    let place = |start| Some((&checkpoints, start));
    let stop_at = |step: usize| {
        move |progress: &Progress| match progress.step {
            done if done == step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    train(model(), &recipe(), &data, &device(), place(Start::Fresh), stop_at(5)).unwrap();
    let first = contents(checkpoints.folder());
    assert!(first.iter().any(|(name, _)| name == "checkpoint-00000005/state.json"));

    // The rest of the disk holds no page of the next checkpoint, some of it, or all.
    let filler = folder.join("filler");
    let mut failures = 0;
    for free in 0.. {
        fill(&filler, free * PAGE);
        let next = train(model(), &recipe(), &data, &device(), place(Start::Resume), stop_at(6));
        let Err(error) = next else {
            break;
        };
        let TrainError::Checkpoint(CheckpointError::Write { path, source }) = &error else {
            panic!("{error}");
        };
        assert_eq!(source.kind(), ErrorKind::StorageFull, "{error}");
        assert!(path.starts_with(checkpoints.folder()), "{error}");
        assert!(error.to_string().contains("check the disk"), "{error}");
        assert!(contents(checkpoints.folder()) == first, "the folder is as it was");
        failures += 1;
    }
    assert!(failures > 1, "the disk was full before every page of the checkpoint");

    fs::remove_file(filler).unwrap();
    let resumed = train(model(), &recipe(), &data, &device(), place(Start::Resume), go_on).unwrap();
    let unbroken = train(model(), &recipe(), &data, &device(), None, go_on).unwrap();
    assert_eq!(bits(&resumed.model), bits(&unbroken.model));
}

/// Writes until the disk is full, and gives back so many bytes.
fn fill(path: &Path, free: u64) {
    let mut file = File::create(path).unwrap();
    let mut pages = 0;
    let error = loop {
        match file.write_all(&[0; PAGE as usize]) {
            Ok(()) => pages += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    file.set_len(pages * PAGE - free).unwrap();
}

/// Every file below the folder, with its bytes.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => {
                let below = contents(&path).into_iter();
                files.extend(below.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
            }
            false => files.push((name, fs::read(&path).unwrap())),
        }
    }
    files.sort();
    files
}
