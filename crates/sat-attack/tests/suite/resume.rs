//! Evaluations that stop, go on, and refuse what is not theirs.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use sat_attack::{
    Attack, AttackError, AutoAttack, Cost, Evaluation, Fgsm, Norm, Pgd, Pixels, Report,
    ThreatModel, Victim, evaluate,
};

use crate::models::{batch, convolutional, labels, linear, to_vec};

const COUNT: usize = 24;

fn threat() -> ThreatModel {
    ThreatModel::linf(0.02)
}

fn attack() -> AutoAttack {
    AutoAttack::standard().steps(5).queries(30)
}

fn batches(victim: &Victim<'_>, size: usize) -> Vec<(Tensor<4>, Vec<usize>)> {
    let x = batch(2, COUNT);
    let classes = labels(victim, &x);
    (0..COUNT)
        .step_by(size)
        .map(|start| {
            let end = (start + size).min(COUNT);
            (x.clone().narrow(0, start, end - start), classes[start..end].to_vec())
        })
        .collect()
}

fn go_on(_: &Report) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The report without the clock.
fn timeless(mut report: Report) -> Report {
    report.cost.seconds = 0.0;
    for stage in &mut report.stages {
        stage.cost.seconds = 0.0;
    }
    report
}

#[test]
fn a_stopped_evaluation_goes_on_to_the_same_report() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (attack(), threat());
    let whole = evaluate(&victim, &attack, batches(&victim, 4), &threat, go_on).unwrap();
    assert!(whole.stages.len() == 4 && whole.robust_correct > 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let evaluation = Evaluation::new(&victim, &attack, &threat).model("m").resume_from(&path);
    for stop_at in [4, 12, 16] {
        let report = evaluation
            .run(batches(&victim, 4), |report| {
                if report.n >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert!(!report.complete);
        assert_eq!(report.n, stop_at);
    }
    let mut seen = Vec::new();
    let report = evaluation
        .run(batches(&victim, 4), |report| {
            seen.push(report.n);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, [20, 24]);
    assert_eq!(timeless(report.clone()), timeless(whole));
    // A finished one is read back.
    let again = evaluation.run(batches(&victim, 4), |_| unreachable!()).unwrap();
    assert_eq!(again, report);
    assert!(!folder.path().join("state.json.draft").exists());
}

#[test]
fn another_batch_size_may_go_on() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (Pgd::default().steps(3), threat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let evaluation = Evaluation::new(&victim, &attack, &threat).resume_from(&path);
    evaluation.run(batches(&victim, 10), |_| ControlFlow::Break(())).unwrap();
    let report = evaluation.run(batches(&victim, 7), go_on).unwrap();
    let whole = evaluate(&victim, &attack, batches(&victim, 24), &threat, go_on).unwrap();
    assert_eq!(report.n, COUNT);
    for (one, other) in report.per_sample.iter().zip(&whole.per_sample) {
        assert_eq!((one.index, one.robust), (other.index, other.robust));
        assert!((one.adv_ce - other.adv_ce).abs() < 1e-4);
    }
}

#[test]
fn states_of_other_evaluations_are_refused_and_kept() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (Fgsm::default(), threat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let evaluation = Evaluation::new(&victim, &attack, &threat).model("a").resume_from(&path);
    evaluation.run(batches(&victim, 8), |_| ControlFlow::Break(())).unwrap();
    let before = fs::read(&path).unwrap();
    let what = |evaluation: Evaluation<'_>, data: Vec<(Tensor<4>, Vec<usize>)>| {
        let error = evaluation.resume_from(&path).run(data, go_on).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), before);
        match error {
            AttackError::StateOfAnother { what, .. } => what,
            other => panic!("{other}"),
        }
    };
    let data = || batches(&victim, 8);
    assert_eq!(what(Evaluation::new(&victim, &attack, &threat).model("b"), data()), "model");
    let other = Pgd::default();
    assert_eq!(what(Evaluation::new(&victim, &other, &threat).model("a"), data()), "attack");
    let wide = ThreatModel::linf(0.1);
    assert_eq!(what(Evaluation::new(&victim, &attack, &wide).model("a"), data()), "threat");
    let kept = Evaluation::new(&victim, &attack, &threat).model("a");
    let kept = kept.keep_images(folder.path().join("kept"), Pixels::Float);
    assert_eq!(what(kept, data()), "way of keeping images");
    let stranger = convolutional(9, 5);
    let same_name = Evaluation::new(&stranger, &attack, &threat).model("a");
    assert_eq!(what(same_name, data()), "model's output");
    let mut changed = data();
    changed[0].0 = changed[0].0.clone() * 0.999;
    let changed_pixels = what(Evaluation::new(&victim, &attack, &threat).model("a"), changed);
    assert!(["data set", "model's output"].contains(&changed_pixels));
    let mut changed = data();
    changed[0].1[7] = (changed[0].1[7] + 1) % 5;
    let evaluation = Evaluation::new(&victim, &attack, &threat).model("a");
    assert_eq!(what(evaluation, changed), "data set");
    let evaluation = Evaluation::new(&victim, &attack, &threat).model("a");
    assert_eq!(what(evaluation, Vec::new()), "data set");
}

#[test]
fn files_that_are_no_state_are_refused_and_kept() {
    let victim = linear(6, 3);
    let (attack, threat) = (Fgsm::default(), threat());
    let folder = tempfile::tempdir().unwrap();
    let run = |path: &Path| {
        let data = [(batch(1, 2), vec![0, 1])];
        Evaluation::new(&victim, &attack, &threat).resume_from(path).run(data, go_on)
    };
    let path = folder.path().join("state.json");
    for text in ["", "{", "[]", r#"{"version": 1}"#, "\u{0}\u{0}\u{0}"] {
        fs::write(&path, text).unwrap();
        assert!(matches!(run(&path), Err(AttackError::StateFormat { .. })), "{text:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    // A folder in its place, and no folder to be in.
    let is_folder = run(folder.path());
    assert!(matches!(is_folder, Err(AttackError::StateFile { action: "read", .. })));
    let nowhere = run(&folder.path().join("missing/state.json"));
    assert!(matches!(nowhere, Err(AttackError::StateFile { action: "write", .. })));
}

#[test]
fn a_write_that_fails_leaves_the_old_state() {
    let victim = linear(6, 3);
    let (attack, threat) = (Fgsm::default(), threat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let data = || [(batch(1, 2), vec![0, 1]), (batch(2, 2), vec![0, 1])];
    let evaluation = Evaluation::new(&victim, &attack, &threat).resume_from(&path);
    evaluation.run(data(), |_| ControlFlow::Break(())).unwrap();
    let before = fs::read(&path).unwrap();
    // What cannot be opened for writing stands for a disk that takes no more.
    fs::create_dir(folder.path().join("state.json.draft")).unwrap();
    let failed = evaluation.run(data(), go_on);
    assert!(matches!(failed, Err(AttackError::StateFile { action: "write", .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_dir(folder.path().join("state.json.draft")).unwrap();
    assert_eq!(evaluation.run(data(), go_on).unwrap().n, 4);
}

/// Set for the child process of the next test: the state file it works on.
const CHILD: &str = "SAT_ATTACK_TEST_STATE";

fn slow_evaluation(path: &Path) -> Report {
    let inner = convolutional(1, 5);
    let victim = Victim::from_fn(|x| {
        // Long enough to be killed in the middle.
        std::thread::sleep(Duration::from_millis(1));
        inner.logits(x.clone()).map_or_else(
            |error| panic!("{error}"),
            |logits| if x.is_autodiff() { logits.autodiff() } else { logits },
        )
    });
    // Square alone: it needs no gradient, which the wrapped model does not have.
    let attack = AutoAttack::custom(["square".parse().unwrap()]).queries(40);
    let threat = threat();
    let evaluation = Evaluation::new(&victim, &attack, &threat).model("slow").resume_from(path);
    evaluation.run(batches(&victim, 2), go_on).unwrap()
}

#[test]
fn child_of_the_kill_test() {
    if let Some(path) = std::env::var_os(CHILD) {
        slow_evaluation(&PathBuf::from(path));
    }
}

#[cfg(unix)]
#[test]
fn a_killed_run_resumes_to_the_same_report() {
    let folder = tempfile::tempdir().unwrap();
    let whole = slow_evaluation(&folder.path().join("whole.json"));
    let path = folder.path().join("killed.json");
    let mut kills = 0;
    for pause in [60, 150, 90, 200, 120] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["resume::child_of_the_kill_test", "--exact"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // At an arbitrary moment after it has begun.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !path.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(pause));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        // Whatever the moment: the file is whole.
        let state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(state["report"]["n"].as_u64().unwrap() <= COUNT as u64);
    }
    assert!(kills > 0);
    let resumed = slow_evaluation(&path);
    assert_eq!(timeless(resumed), timeless(whole));
}

/// The header and the values of a NumPy file.
fn read_npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0);
    let header = String::from_utf8(bytes[10..10 + length].to_vec()).unwrap();
    (header, bytes[10 + length..].to_vec())
}

#[test]
fn adversarial_images_are_kept_as_they_are() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (Pgd::default().steps(3), threat());
    let folder = tempfile::tempdir().unwrap();
    let evaluation =
        Evaluation::new(&victim, &attack, &threat).keep_images(folder.path(), Pixels::Float);
    let report = evaluation.run(batches(&victim, 16), go_on).unwrap();
    let (header, bytes) = read_npy(&folder.path().join("000016.npy"));
    assert!(header.contains("'descr': '<f4', 'fortran_order': False, 'shape': (8, 2, 4, 4)"));
    let kept: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let (x, classes) = batches(&victim, 16).remove(1);
    let goal = sat_attack::Goal::untargeted(classes).numbered_from(16);
    let adv = attack.run(&victim, x, goal, &threat).unwrap();
    assert_eq!(kept, to_vec(adv.images));
    assert_eq!(report.per_sample[16].adv_prediction, adv.predictions[0]);
}

#[test]
fn rounded_images_are_judged_after_rounding() {
    let victim = convolutional(1, 5);
    let x = (batch(2, COUNT) * 255.0).round() / 255.0;
    let classes = labels(&victim, &x);
    let threat = ThreatModel::linf(3.0 / 255.0);
    let attack = Pgd::default().steps(5);
    let folder = tempfile::tempdir().unwrap();
    let evaluation =
        Evaluation::new(&victim, &attack, &threat).keep_images(folder.path(), Pixels::Byte);
    let report = evaluation.run([(x.clone(), classes.clone())], go_on).unwrap();
    let (header, bytes) = read_npy(&folder.path().join("000000.npy"));
    assert!(header.contains("'|u1'"));
    let kept: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
    for (kept, clean) in kept.iter().zip(to_vec(x.clone())) {
        assert!((kept - clean).abs() <= 3.0 / 255.0 + 1e-6);
    }
    let data = burn::tensor::TensorData::new(kept, x.shape());
    let kept = Tensor::<4>::from_data(data, &x.device());
    let predictions = victim.predict(kept).unwrap();
    for (record, prediction) in report.per_sample.iter().zip(predictions) {
        assert_eq!(record.adv_prediction, prediction);
    }
    assert!(report.robust_correct > 0 && report.robust_correct < COUNT);
    assert!(report.cost != Cost::default());

    // Half a level cannot be kept: the clean images are.
    let threat = ThreatModel::linf(0.5 / 255.0);
    let evaluation =
        Evaluation::new(&victim, &attack, &threat).keep_images(folder.path(), Pixels::Byte);
    let report = evaluation.run([(x, classes)], go_on).unwrap();
    assert_eq!(report.robust_correct, COUNT);
}

/// How long a change is.
fn length(norm: Norm, change: &[f64]) -> f64 {
    match norm {
        Norm::Linf => change.iter().fold(0.0, |most: f64, d| most.max(d.abs())),
        Norm::L2 => change.iter().map(|d| d * d).sum::<f64>().sqrt(),
        _ => change.iter().map(|d| d.abs()).sum(),
    }
}

#[test]
fn rounding_keeps_the_ball_and_nearly_all_of_the_change() {
    let victim = convolutional(1, 5);
    let folder = tempfile::tempdir().unwrap();
    // None is a whole number of levels.
    for (norm, eps) in [(Norm::Linf, 0.1), (Norm::L2, 0.5), (Norm::L1, 2.3)] {
        for range in [1.0, 255.0] {
            let x = (batch(2, COUNT) * 255.0).round() * (range / 255.0);
            let classes = labels(&victim, &x);
            let eps = eps * range;
            let threat = ThreatModel { bounds: (0.0, range), ..ThreatModel::new(norm, eps) };
            let attack = Pgd::default().steps(5);
            let evaluation =
                Evaluation::new(&victim, &attack, &threat).keep_images(folder.path(), Pixels::Byte);
            let report = evaluation.run([(x.clone(), classes.clone())], go_on).unwrap();
            assert!(report.robust_correct < COUNT, "{norm}");
            let (_, bytes) = read_npy(&folder.path().join("000000.npy"));
            let kept: Vec<f64> = bytes.iter().map(|&b| f64::from(b) * range / 255.0).collect();
            let goal = sat_attack::Goal::untargeted(classes);
            let exact = attack.run(&victim, x.clone(), goal, &threat).unwrap();
            let exact: Vec<f64> = to_vec(exact.images).into_iter().map(f64::from).collect();
            let clean: Vec<f64> = to_vec(x).into_iter().map(f64::from).collect();
            let size = clean.len() / COUNT;
            for of in (0..clean.len()).step_by(size).map(|start| start..start + size) {
                let change = |to: &[f64]| -> f64 {
                    let change = to[of.clone()].iter().zip(&clean[of.clone()]).map(|(a, b)| a - b);
                    length(norm, &change.collect::<Vec<_>>())
                };
                let (kept, exact) = (change(&kept), change(&exact));
                assert!(kept <= eps * (1.0 + 2e-6) + 2e-6 * range, "{kept} of {eps} in {norm}");
                assert!(kept >= 0.97 * exact, "{kept} of {exact} in {norm}");
            }
        }
    }
}

#[test]
fn images_between_levels_are_the_clean_ones_where_rounding_leaves_the_ball() {
    let victim = convolutional(1, 5);
    let x = ((batch(2, COUNT) * 250.0).floor() + 0.4) / 255.0;
    let classes = labels(&victim, &x);
    let folder = tempfile::tempdir().unwrap();
    // Rounding alone moves every value by 0.4 levels: 32 of them by 2.3 levels in L2.
    for (eps, robust) in [(2.0 / 255.0, true), (20.0 / 255.0, false)] {
        let (attack, threat) = (Pgd::default().steps(5), ThreatModel::l2(eps));
        let evaluation =
            Evaluation::new(&victim, &attack, &threat).keep_images(folder.path(), Pixels::Byte);
        let report = evaluation.run([(x.clone(), classes.clone())], go_on).unwrap();
        let (_, bytes) = read_npy(&folder.path().join("000000.npy"));
        let clean = to_vec(x.clone()).into_iter().map(|x| (x * 255.0).round() as u8);
        assert_eq!(bytes.into_iter().eq(clean), robust);
        assert!(!robust || report.robust_correct == COUNT);
    }
}

#[test]
fn a_finished_evaluation_that_goes_on_is_not_complete_until_it_is() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (Fgsm::default(), threat());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let evaluation = Evaluation::new(&victim, &attack, &threat).resume_from(&path);
    let all = batches(&victim, 4);
    let first = evaluation.run(all[..2].to_vec(), go_on).unwrap();
    assert!(first.complete);
    let stopped = evaluation.run(all.clone(), |_| ControlFlow::Break(())).unwrap();
    assert!(!stopped.complete && stopped.n == 12);
    let report = evaluation.run(all, go_on).unwrap();
    assert!(report.complete && report.n == COUNT);
}

#[test]
fn an_empty_batch_is_an_error_with_a_state_and_without() {
    let victim = convolutional(1, 5);
    let (attack, threat) = (Fgsm::default(), threat());
    let folder = tempfile::tempdir().unwrap();
    let plain = Evaluation::new(&victim, &attack, &threat);
    let kept = plain.clone().resume_from(folder.path().join("state.json"));
    let empty = || (batch(2, 4).slice([0..0]), Vec::new());
    for evaluation in [&plain, &kept] {
        let result = evaluation.run([empty()], go_on);
        assert!(matches!(result, Err(AttackError::EmptyBatch)), "{result:?}");
        let mut later = batches(&victim, 4);
        later.insert(1, empty());
        let result = evaluation.run(later, go_on);
        assert!(matches!(result, Err(AttackError::EmptyBatch)), "{result:?}");
    }
}

#[test]
fn bytes_leave_masked_values_alone() {
    let victim = convolutional(1, 5);
    // Every fourth value is masked, and alone has no place among the 256 levels.
    let mask: Vec<bool> = (0..32).map(|i| i % 4 != 0).collect();
    let values: Vec<f32> = to_vec(batch(2, COUNT))
        .into_iter()
        .enumerate()
        .map(|(i, v)| if mask[i % 32] { (v * 255.0).round() / 255.0 } else { v })
        .collect();
    let x = Tensor::<1>::from_floats(&values[..], &Device::flex()).reshape([COUNT, 2, 4, 4]);
    let classes = labels(&victim, &x);
    let threat = ThreatModel::linf(12.0 / 255.0).mask(vec![mask; COUNT]);
    let attack = Fgsm::default();
    let plain = Evaluation::new(&victim, &attack, &threat);
    let folder = tempfile::tempdir().unwrap();
    let rounded = plain.clone().keep_images(folder.path(), Pixels::Byte);
    let [plain, rounded] = [plain, rounded]
        .map(|evaluation| evaluation.run([(x.clone(), classes.clone())], go_on).unwrap());
    assert!(plain.adv_ce > plain.clean_ce);
    // Nothing moves but by what the levels round.
    let near = (plain.adv_ce - rounded.adv_ce).abs();
    assert!(near < 1e-5 * plain.adv_ce, "{} and {}", plain.adv_ce, rounded.adv_ce);
}

#[test]
fn lines_of_a_randomised_model_count_each_sample_once() {
    let sample = |index, clean_prediction, fooled_by: Option<&str>| sat_attack::SampleRecord {
        index,
        label: 0,
        clean_prediction,
        adv_prediction: 1,
        robust: false,
        adv_ce: 1.0,
        fooled_by: fooled_by.map(str::to_owned),
    };
    // The ensemble saw both right and fooled both; the clean pass before saw one.
    let report = Report {
        n: 2,
        clean_correct: 1,
        per_sample: vec![sample(0, 0, Some("apgd-ce")), sample(1, 1, Some("apgd-ce"))],
        stages: vec![sat_attack::StageReport {
            name: "apgd-ce".to_owned(),
            attacked: 2,
            fooled: 2,
            cost: Cost::default(),
        }],
        ..Report::default()
    };
    let lines = report.lines();
    assert_eq!(lines[0], "initial accuracy: 50.00%");
    assert!(lines[1].starts_with("robust accuracy after APGD-CE: 0.00%"), "{}", lines[1]);
}
