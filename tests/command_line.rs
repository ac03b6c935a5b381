//! What the example programs say to bad input: one line that helps, and no panic.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output},
};

/// An example that Cargo has built beside this test.
fn example(name: &str) -> Command {
    let test = env::current_exe().unwrap();
    let folder: PathBuf = test.ancestors().nth(2).unwrap().join("examples");
    let program = folder.join(name).with_extension(env::consts::EXE_EXTENSION);
    assert!(program.exists(), "{} is not built; run `cargo build --examples`", program.display());
    Command::new(program)
}

fn refused(output: Output, code: i32, says: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in says {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn evaluate_says_what_is_wrong_with_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.safetensors");
    fs::write(&text, "these are no weights").unwrap();
    let text = text.to_str().unwrap();
    let data = "builtin:fashion-mnist";

    let with = |extra: &[&str]| {
        let weights = ["--weights", "missing.safetensors"];
        example("evaluate").args(weights).args(extra).output().unwrap()
    };
    refused(with(&["--data", data]), 1, &["missing.safetensors"]);
    refused(with(&["--data", "mnits:/data"]), 2, &["mnits:/data", "fashion-mnist:DIR"]);
    refused(with(&["--data", data, "--eps", "-1/255"]), 2, &["--eps", "negative"]);
    refused(with(&["--data", data, "--eps", "nan"]), 2, &["--eps"]);
    refused(with(&["--data", data, "--eps", "8"]), 1, &["did you mean 8/255?"]);
    refused(with(&["--data", data, "--norm", "l2"]), 1, &["--norm l2 needs --eps"]);
    refused(with(&["--data", data, "--pixels", "byte"]), 2, &["--keep-images"]);
    refused(with(&["--data", data, "--attack", "pgdd"]), 2, &["pgdd", "autoattack"]);
    refused(with(&["--data", data, "--sweep", "0.1", "--eps", "0.1"]), 2, &["--sweep"]);
    let whole = ["--data", data, "--minimal-norm", "3", "--eps", "1"];
    refused(with(&whole), 1, &["missing.safetensors"]);
    let custom = ["--data", data, "--attack", "autoattack", "--attacks", "apgd-ce"];
    refused(with(&custom), 1, &["missing.safetensors"]);
    // What an attack does not read.
    let steps = ["--data", data, "--attack", "fgsm", "--steps", "50"];
    refused(with(&steps), 1, &["--attack fgsm", "--steps"]);
    let queries = ["--data", data, "--attack", "apgd-t", "--queries", "9"];
    refused(with(&queries), 1, &["--attack apgd-t", "--queries"]);
    refused(with(&["--data", data, "--attacks", "apgd-ce"]), 1, &["--attack pgd", "--attacks"]);
    let alone = [&custom[..], &["--queries", "9"]].concat();
    refused(with(&alone), 1, &["--attack autoattack", "--queries"]);
    let plus = ["--data", data, "--attack", "autoattack", "--version", "plus"];
    refused(with(&[&plus[..], &["--attacks", "square"]].concat()), 1, &["--version plus"]);
    refused(with(&["--data", data, "--model", "resnet21"]), 2, &["did you mean `resnet20`?"]);
    refused(with(&["--data", data, "--activation", "silly"]), 2, &["silly", "silu"]);
    refused(with(&["--data", data, "--device", "tpu"]), 2, &["tpu"]);
    if !cfg!(feature = "cuda") {
        refused(with(&["--data", data, "--device", "cuda"]), 1, &["--features cuda"]);
    }

    let network = folder.path().join("network.json");
    fs::write(&network, "{\"resnet\": {}}").unwrap();
    let network = ["--data", data, "--network", network.to_str().unwrap()];
    refused(with(&network), 1, &["network.json", "missing field"]);

    let given = ["--weights", text, "--data", data];
    refused(example("evaluate").args(given).output().unwrap(), 1, &["text.safetensors"]);
}

#[test]
fn quickstart_says_what_is_wrong_with_its_arguments() {
    let run = |arguments: &[&str]| example("quickstart").args(arguments).output().unwrap();
    refused(run(&["--activations", "relu,silly"]), 2, &["silly"]);
    refused(run(&["--eps", "-0.1"]), 2, &["--eps"]);
    refused(run(&["--epochs", "0"]), 1, &["`epochs` is 0"]);

    // A file where the folder of results should be.
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("taken");
    fs::write(&out, "").unwrap();
    let output = run(&["--quick", "--out", out.to_str().unwrap()]);
    refused(output, 1, &["taken"]);
}

#[test]
fn learner_says_what_is_wrong_with_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let run = |extra: &[&str]| {
        let data = ["--data", "builtin:fashion-mnist", "--out", out];
        example("learner").args(data).args(extra).output().unwrap()
    };
    refused(run(&["--devices", "0"]), 2, &["--devices"]);
    refused(run(&["--patience", "0"]), 2, &["--patience"]);
    refused(run(&["--epochs", "0"]), 1, &["`epochs` is 0"]);
    refused(run(&["--resume"]), 1, &["no checkpoint", "--out"]);

    let checkpoints = folder.path().join("checkpoint");
    fs::create_dir(&checkpoints).unwrap();
    for part in ["model", "optim", "scheduler"] {
        fs::write(checkpoints.join(format!("{part}-2.bpk")), "").unwrap();
    }
    refused(run(&[]), 1, &["--resume"]);
    refused(run(&["--resume"]), 1, &["settings.json", "other settings"]);
}
