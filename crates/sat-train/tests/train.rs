//! Training: determinism, resuming, the optimizer's formulas, and what goes wrong.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use sat_attack::{Attack, Goal, Norm, Pgd, RandomStart, Victim};
use sat_models::EfficientNetConfig;
use sat_train::{
    AdversarialStep, AttackStart, CheckpointError, Checkpoints, Decayed, MomentumForm, Normalized,
    Objective, Perturbation, Progress, Recipe, RecipeFileError, Schedule, Select, Start,
    TrainError, TrainingAttack, WeightAverage,
    data::{Augment, ImageSet},
    learned_parameters, mart_loss, optimizer, smoothed_cross_entropy, trades_loss, train,
};
use std::{fs, ops::ControlFlow};

mod common;
use common::{Model, bits, config, device, go_on, images, model, recipe, stop_at};

#[test]
fn the_same_seed_gives_the_same_weights_and_another_does_not() {
    let data = images(40);
    let run = |recipe: &Recipe| {
        let trained = train(model(), recipe, &data, &device(), None, go_on).unwrap();
        assert!(trained.is_finished());
        assert_eq!(trained.progress.history.len(), 3);
        bits(&trained.model)
    };
    let first = run(&recipe());
    assert_ne!(first, bits(&model()));
    assert_eq!(first, run(&recipe()));
    assert_ne!(first, run(&Recipe { seed: 12, ..recipe() }));
}

#[test]
fn a_stopped_training_resumes_to_the_same_weights() {
    let data = images(40);
    let unbroken = train(model(), &recipe(), &data, &device(), None, go_on).unwrap();
    // In the middle of an epoch, and at its end.
    for stop_at in [3, 5, 8] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        let stop = |progress: &Progress| {
            if progress.step == stop_at {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let place = Some((&checkpoints, Start::Fresh));
        let stopped = train(model(), &recipe(), &data, &device(), place, stop).unwrap();
        assert!(!stopped.is_finished());
        drop(stopped);
        // Another initialisation: everything must come from the checkpoint.
        let other = Normalized::to_plus_minus_one(config().init(77, &device()), 1);
        let place = Some((&checkpoints, Start::Resume));
        let resumed = train(other, &recipe(), &data, &device(), place, go_on).unwrap();
        assert!(resumed.is_finished());
        for (resumed, unbroken) in bits(&resumed.model).iter().zip(&bits(&unbroken.model)) {
            assert!(resumed == unbroken, "stopped at {stop_at}: {} differs", unbroken.0);
        }
        let timeless = |progress: &Progress| Progress {
            seconds: 0.0,
            seconds_waiting: 0.0,
            ..progress.clone()
        };
        let (resumed, unbroken) = (timeless(&resumed.progress), timeless(&unbroken.progress));
        assert_eq!(resumed, unbroken, "stopped at {stop_at}");
    }
}

/// Dropout and stochastic depth draw for each step from the seed and the samples seen.
#[test]
fn a_network_with_dropout_resumes_to_the_same_weights() {
    let mut network = EfficientNetConfig::lite0().with_input_channels(1).with_classes(3);
    (network.width, network.depth) = (0.1, 0.3);
    (network.dropout, network.stochastic_depth) = (0.5, 0.5);
    let model = |network: &EfficientNetConfig, seed| {
        Normalized::to_plus_minus_one(network.init(seed, &device()), 1)
    };
    let data = images(40);
    let recipe = Recipe { epochs: 2, ..recipe() };
    let unbroken = train(model(&network, 3), &recipe, &data, &device(), None, go_on).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let place = Some((&checkpoints, Start::Fresh));
    train(model(&network, 3), &recipe, &data, &device(), place, stop_at(7)).unwrap();
    let place = Some((&checkpoints, Start::Resume));
    let resumed = train(model(&network, 77), &recipe, &data, &device(), place, go_on).unwrap();
    assert_eq!(bits(&resumed.model), bits(&unbroken.model));

    (network.dropout, network.stochastic_depth) = (0.0, 0.0);
    let without = train(model(&network, 3), &recipe, &data, &device(), None, go_on).unwrap();
    assert_ne!(bits(&without.model), bits(&unbroken.model));
}

#[test]
fn mixup_resumes_and_recomputes_to_the_same_weights() {
    let data = images(40);
    let mixed = |mixup| {
        let augment = Augment { crop_padding: 1, mixup, ..Augment::default() };
        Recipe { epochs: 2, augment, ..recipe() }
    };
    let recipe = mixed(Some(0.4));
    let unbroken = train(model(), &recipe, &data, &device(), None, go_on).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let place = Some((&checkpoints, Start::Fresh));
    train(model(), &recipe, &data, &device(), place, stop_at(7)).unwrap();
    let place = Some((&checkpoints, Start::Resume));
    let resumed = train(model(), &recipe, &data, &device(), place, go_on).unwrap();
    assert_eq!(bits(&resumed.model), bits(&unbroken.model));

    let recomputing = device().gradient_checkpointing();
    let there = Normalized::to_plus_minus_one(config().init(3, &recomputing), 1);
    let recomputed = train(there, &recipe, &data, &recomputing, None, go_on).unwrap();
    assert_eq!(bits(&recomputed.model), bits(&unbroken.model));

    for other in [mixed(None), mixed(Some(0.8)), Recipe { seed: 12, ..recipe }] {
        let other = train(model(), &other, &data, &device(), None, go_on).unwrap();
        assert_ne!(bits(&other.model), bits(&unbroken.model));
    }
}

#[test]
fn training_learns_and_the_activation_parameter_moves() {
    let data = images(96);
    let recipe = Recipe {
        epochs: 30,
        attack: Some(TrainingAttack { eps: 0.05, ..TrainingAttack::default() }),
        ..recipe()
    };
    let trained = train(model(), &recipe, &data, &device(), None, go_on).unwrap();
    let last = trained.progress.history.last().unwrap();
    assert!(last.clean_accuracy > 0.8, "{last:?}");
    assert!(last.robust_accuracy > 0.6, "{last:?}");
    let moved = bits(&trained.model).into_iter().zip(bits(&model()));
    let moved: Vec<_> = moved.filter(|((path, _), _)| path.ends_with(".parameters")).collect();
    // Some sites get a gradient too small to change a 20 in f32.
    assert!(moved.iter().any(|((_, after), (_, before))| after != before));
}

#[test]
fn the_statistics_come_from_the_adversarial_batch_alone() {
    let data = images(8);
    let recipe = recipe();
    let attack = recipe.attack.as_ref().unwrap();
    let (batch, labels) = data.batch(&(0..8).collect::<Vec<_>>(), &device());

    let before = model();
    let goal = Goal::untargeted(labels.clone()).numbered_from(40);
    let pgd = Pgd::default()
        .steps(1)
        .relative_step_size(1.0)
        .random_start(RandomStart::WithProbability(0.8))
        .seed(recipe.seed);
    let adversarial =
        pgd.perturb(&Victim::new(&before), batch.clone(), goal, &attack.threat()).unwrap();
    sat_attack::Classifier::logits(&before, adversarial.autodiff());
    let statistics = |model: &Model| -> Vec<_> {
        bits(model).into_iter().filter(|(path, _)| path.contains("running")).collect()
    };
    let want = statistics(&before);
    assert!(!want.is_empty());

    let fresh = model();
    assert_ne!(statistics(&fresh), want);
    let mut sgd = optimizer(&recipe, &fresh);
    let step = AdversarialStep::new(&recipe);
    let (after, _) = step.run(fresh, &mut sgd, 0.1, batch, &labels, 40).unwrap();
    assert_eq!(statistics(&after), want);
}

#[test]
fn weight_decay_spares_parameters_of_one_axis() {
    let data = images(8);
    let (batch, labels) = data.batch(&(0..8).collect::<Vec<_>>(), &device());
    let (lr, momentum, decay) = (0.1f32, 0.9f32, 0.25f32);
    let after = |weight_decay: f64| {
        let recipe = Recipe { weight_decay, attack: None, ..recipe() };
        let model = model();
        let mut sgd = optimizer(&recipe, &model);
        let step = AdversarialStep::new(&recipe);
        let (model, _) = step.run(model, &mut sgd, lr.into(), batch.clone(), &labels, 0).unwrap();
        bits(&model)
    };
    let start = bits(&model());
    let (plain, decayed) = (after(0.0), after(decay.into()));
    let mut shrunk = 0;
    for ((path, plain), ((_, decayed), (_, start))) in plain.iter().zip(decayed.iter().zip(&start))
    {
        let is_weight = path.ends_with("weight");
        if !is_weight {
            assert_eq!(plain, decayed, "{path}");
            continue;
        }
        shrunk += 1;
        for ((plain, decayed), start) in plain.iter().zip(decayed).zip(start) {
            // The first Nesterov step is lr (1 + momentum) (g + decay w).
            let want = lr * (1.0 + momentum) * decay * f32::from_bits(*start);
            let got = f32::from_bits(*plain) - f32::from_bits(*decayed);
            assert!((got - want).abs() < 1e-6, "{path}: {got}, not {want}");
        }
    }
    // Six convolutions, one of them a shortcut, and the classifier.
    assert_eq!(shrunk, 7);
}

#[test]
fn label_smoothing_follows_pytorch() {
    // torch.nn.functional.cross_entropy(logits, [2, 0], label_smoothing=0.1)
    let logits = TensorData::from([[0.5f32, -1.0, 2.0], [1.5, 0.25, -0.75]]);
    let loss = |smoothing: f64| -> f64 {
        let logits = Tensor::<2>::from_data(logits.clone(), &Device::flex());
        smoothed_cross_entropy(logits, &[2, 0], smoothing).into_scalar::<f32>().into()
    };
    let rows = [[0.5f64, -1.0, 2.0], [1.5, 0.25, -0.75]];
    let want = |smoothing: f64| -> f64 {
        let row_loss = |(row, label): (&[f64; 3], usize)| {
            let log_sum = row.iter().map(|z| z.exp()).sum::<f64>().ln();
            let q = |k: usize| smoothing / 3.0 + if k == label { 1.0 - smoothing } else { 0.0 };
            (0..3).map(|k| q(k) * (log_sum - row[k])).sum::<f64>()
        };
        rows.iter().zip([2, 0]).map(row_loss).sum::<f64>() / 2.0
    };
    for smoothing in [0.0, 0.1, 0.5] {
        let (got, want) = (loss(smoothing), want(smoothing));
        assert!((got - want).abs() < 1e-6, "{smoothing}: {got}, not {want}");
    }
}

#[test]
#[should_panic(expected = "label 3 with 3 classes")]
fn a_label_beyond_the_classes_panics() {
    smoothed_cross_entropy(Tensor::zeros([1, 3], &Device::flex()), &[3], 0.0);
}

#[test]
fn bad_recipes_are_named() {
    let field = |recipe: Recipe| recipe.validate().unwrap_err().field;
    assert_eq!(field(Recipe { epochs: 0, ..recipe() }), "epochs");
    assert_eq!(field(Recipe { batch_size: 0, ..recipe() }), "batch_size");
    assert_eq!(field(Recipe { momentum: 1.0, ..recipe() }), "momentum");
    assert_eq!(field(Recipe { weight_decay: f64::NAN, ..recipe() }), "weight_decay");
    assert_eq!(field(Recipe { label_smoothing: -0.1, ..recipe() }), "label_smoothing");
    let lr = Schedule::Constant { lr: 0.0 };
    assert_eq!(field(Recipe { schedule: lr, ..recipe() }), "schedule.lr");

    let field_of = |attack| field(Recipe { attack: Some(attack), ..recipe() });
    let default = TrainingAttack::default;
    assert_eq!(field_of(TrainingAttack { eps: -0.1, ..default() }), "attack.eps");
    assert_eq!(field_of(TrainingAttack { eps: f64::NAN, ..default() }), "attack.eps");
    assert_eq!(field_of(TrainingAttack { steps: 0, ..default() }), "attack.steps");
    let step_size = Some(0.0);
    assert_eq!(field_of(TrainingAttack { step_size, ..default() }), "attack.step_size");
    let start = AttackStart::Uniform { probability: 1.1 };
    assert_eq!(field_of(TrainingAttack { start, ..default() }), "attack.start.probability");
    let start = AttackStart::Normal { std: 0.0 };
    assert_eq!(field_of(TrainingAttack { start, ..default() }), "attack.start.std");
    let start = AttackStart::NFgsm { spread: 2.0 };
    assert_eq!(field_of(TrainingAttack { start, steps: 2, ..default() }), "attack.steps");
    let norm = Norm::L2;
    assert_eq!(field_of(TrainingAttack { norm, ..default() }), "attack.eps");
    let eps = 0.5;
    assert_eq!(field_of(TrainingAttack { start, norm, eps, ..default() }), "attack.start.spread");
    let step_size = Some(0.01);
    assert_eq!(field_of(TrainingAttack { start, step_size, ..default() }), "attack.step_size");
    assert_eq!(field(Recipe { parts: 3, ..recipe() }), "parts");
    assert_eq!(field(Recipe { clip_norm: Some(0.0), ..recipe() }), "clip_norm");
    assert_eq!(field(Recipe { average: Some(1.0), ..recipe() }), "average");
    assert_eq!(field(Recipe { hold_out: 4, attack: None, ..recipe() }), "hold_out");
    let weight_perturbation = Some(Perturbation { gamma: 0.0 });
    assert_eq!(field(Recipe { weight_perturbation, ..recipe() }), "weight_perturbation.gamma");
    // From the clean image the gradient of TRADES is zero.
    let objective = Objective::Trades { beta: 6.0 };
    assert_eq!(field(Recipe { objective, ..recipe() }), "objective.beta");
    let objective = Objective::Mart { beta: 6.0 };
    assert_eq!(field(Recipe { objective, attack: None, ..recipe() }), "objective.beta");
    let mixup = |alpha| Augment { mixup: Some(alpha), ..Augment::default() };
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(field(Recipe { augment: mixup(alpha), ..recipe() }), "augment.mixup");
    }
    let two_labels = Recipe { augment: mixup(1.0), objective, ..recipe() };
    let error = two_labels.validate().unwrap_err().to_string();
    assert!(error.contains("augment.mixup") && error.contains("mart"), "{error}");
    let bad = Recipe { epochs: 0, ..recipe() };
    let error = train(model(), &bad, &images(40), &device(), None, go_on).unwrap_err();
    assert!(matches!(error, TrainError::Recipe(_)), "{error}");
    let error = train(model(), &recipe(), &images(7), &device(), None, go_on).unwrap_err();
    assert!(matches!(error, TrainError::TooFewSamples { samples: 7, batch_size: 8 }));

    let unknown = serde_json::from_str::<Recipe>("{\"epoch\": 3}").unwrap_err();
    assert!(unknown.to_string().contains("epoch"), "{unknown}");
    let text = serde_json::to_string(&recipe()).unwrap();
    assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe());
}

#[test]
fn a_loss_that_is_no_number_stops_the_training() {
    let recipe = Recipe { schedule: Schedule::Constant { lr: 1e30 }, ..recipe() };
    let error = train(model(), &recipe, &images(40), &device(), None, go_on).unwrap_err();
    // The attack or the loss meets the first infinity.
    assert!(matches!(error, TrainError::Diverged { .. } | TrainError::Attack { .. }), "{error}");
}

/// The loss of a step is that of the weights before it, so the last update needs a look of its own.
#[test]
fn weights_that_are_no_numbers_are_never_kept() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let recipe =
        Recipe { epochs: 1, schedule: Schedule::Constant { lr: 1e39 }, attack: None, ..recipe() };
    let store = Some((&checkpoints, Start::Fresh));
    let error = train(model(), &recipe, &images(8), &device(), store, go_on).unwrap_err();
    assert!(matches!(error, TrainError::NonFiniteWeights { step: 1 }), "{error}");
    assert!(checkpoints.latest().unwrap().is_none());
}

#[test]
fn bad_checkpoints_are_told_apart_and_left_alone() {
    let data = images(40);
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let stop = |_: &Progress| ControlFlow::Break(());
    let run = |model: Model, recipe: &Recipe, start| {
        train(model, recipe, &data, &device(), Some((&checkpoints, start)), stop)
    };
    run(model(), &recipe(), Start::Fresh).unwrap();
    let first = checkpoints.latest().unwrap().unwrap();

    let occupied = run(model(), &recipe(), Start::Fresh).unwrap_err();
    assert!(matches!(occupied, TrainError::Checkpoint(CheckpointError::Occupied { .. })));
    let other = run(model(), &Recipe { seed: 5, ..recipe() }, Start::Resume).unwrap_err();
    assert!(matches!(other, TrainError::Checkpoint(CheckpointError::OtherRun { .. })));
    let data = ImageSet::new(
        (0..40)
            .flat_map(|i| data.image(i).iter().map(move |byte| byte ^ u8::from(i == 39)))
            .collect(),
        data.shape(),
        data.labels().to_vec(),
        data.class_names().to_vec(),
    )
    .unwrap();
    let place = Some((&checkpoints, Start::Resume));
    let other = train(model(), &recipe(), &data, &device(), place, stop).unwrap_err();
    assert!(matches!(other, TrainError::Checkpoint(CheckpointError::OtherData { .. })), "{other}");
    assert!(other.to_string().contains("not the same ones"), "{other}");
    let fewer = data.take(39);
    let other = train(model(), &recipe(), &fewer, &device(), place, stop).unwrap_err();
    assert!(other.to_string().contains("40 images, not 39"), "{other}");
    let larger = config().with_classes(4).init(0, &device());
    let larger = Normalized::to_plus_minus_one(larger, 1);
    let other = run(larger, &recipe(), Start::Resume).unwrap_err();
    assert!(matches!(other, TrainError::Checkpoint(CheckpointError::OtherModel { .. })), "{other}");
    // The same tensors, another network.
    let mish = config().with_activation("mish".parse().unwrap()).init(0, &device());
    let elsewhere = Normalized::new(config().init(0, &device()), &[0.25], &[0.5]).unwrap();
    for (other, says) in [(Normalized::to_plus_minus_one(mish, 1), "mish"), (elsewhere, "0.25")] {
        let other = run(other, &recipe(), Start::Resume).unwrap_err();
        assert!(
            matches!(&other, TrainError::Checkpoint(CheckpointError::OtherModel { .. })),
            "{other}"
        );
        assert!(other.to_string().contains(says), "{other}");
    }

    // Truncated, flipped, and text that is no JSON.
    for (file, damage) in [
        ("model.bpk", (|bytes| bytes.truncate(bytes.len() / 2)) as fn(&mut Vec<u8>)),
        ("optimizer.bpk", |bytes| bytes[100] ^= 1),
        ("state.json", |bytes| bytes.truncate(10)),
    ] {
        let path = first.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        fs::write(&path, bad).unwrap();
        let error = run(model(), &recipe(), Start::Resume).unwrap_err();
        assert!(
            matches!(error, TrainError::Checkpoint(CheckpointError::Damaged { .. })),
            "{file}: {error}"
        );
        assert!(error.to_string().contains(file), "{error}");
        fs::write(&path, good).unwrap();
    }

    let resumed = run(model(), &recipe(), Start::Resume).unwrap();
    assert_eq!(resumed.progress.step, 2);

    fs::write(folder.path().join("kept"), "a file").unwrap();
    let blocked = folder.path().join("kept").join("below a file");
    let error = Checkpoints::open(&blocked).unwrap_err();
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    assert!(error.to_string().contains("below a file"), "{error}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let data = images(40);
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    // A file where a checkpoint must be.
    fs::write(folder.path().join("checkpoint-00000010"), "in the way").unwrap();
    let place = Some((&checkpoints, Start::ResumeOrFresh));
    let error = train(model(), &recipe(), &data, &device(), place, go_on).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Read { .. })), "{error}");
    fs::remove_file(folder.path().join("checkpoint-00000010")).unwrap();

    let block = |progress: &Progress| {
        if progress.step == 9 {
            fs::write(folder.path().join("checkpoint-00000010"), "in the way").unwrap();
        }
        ControlFlow::Continue(())
    };
    let error = train(model(), &recipe(), &data, &device(), place, block).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Write { .. })), "{error}");
    assert!(folder.path().join("checkpoint-00000005").join("state.json").exists());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "no drafts are left behind: {left:?}");
    fs::remove_file(folder.path().join("checkpoint-00000010")).unwrap();
    let resumed = train(model(), &recipe(), &data, &device(), place, go_on).unwrap();
    assert!(resumed.is_finished());
}

#[test]
fn nothing_to_resume_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let place = Some((&checkpoints, Start::Resume));
    let error = train(model(), &recipe(), &images(40), &device(), place, go_on).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Nothing { .. })), "{error}");
}

#[test]
fn recipe_files_are_read_strictly() {
    let with_eps = |eps: &str| Recipe::from_toml(&format!("[attack]\neps = {eps}"));
    let eps = |text: &str| with_eps(text).unwrap().attack.unwrap().eps;
    assert_eq!(eps("\"8/255\""), 8.0 / 255.0);
    assert_eq!(eps("0.03"), 0.03);
    for eight in ["8", "8.0", "\"8\""] {
        let error = with_eps(eight).unwrap_err();
        assert!(matches!(error, RecipeFileError::Invalid(_)), "{error}");
        assert!(error.to_string().contains("8/255"), "{error}");
    }
    assert!(matches!(with_eps("\"8/0\"").unwrap_err(), RecipeFileError::Toml(_)));
    let error = Recipe::from_toml("epoch = 3").unwrap_err();
    assert!(error.to_string().contains("epoch"), "{error}");
    let error = Recipe::from_json("{\"attack\": {\"epsilon\": 0.1}}").unwrap_err();
    assert!(error.to_string().contains("epsilon"), "{error}");
    assert_eq!(Recipe::from_toml("").unwrap().attack, None);

    let full = Recipe {
        parts: 2,
        hold_out: 4,
        clip_norm: Some(1.0),
        average: Some(0.99),
        augment: Augment { mixup: Some(0.2), ..Augment::default() },
        weight_perturbation: Some(Perturbation { gamma: 0.005 }),
        objective: Objective::Trades { beta: 6.0 },
        attack: Some(TrainingAttack {
            start: AttackStart::Normal { std: 0.001 },
            step_size: Some(0.007),
            gradient: Some("psoftplus:10".parse().unwrap()),
            ..TrainingAttack::default()
        }),
        ..recipe()
    };
    assert_eq!(Recipe::from_toml(&full.to_toml()).unwrap(), full);
    assert_eq!(Recipe::from_toml(&recipe().to_toml()).unwrap(), recipe());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recipe.yaml");
    assert!(matches!(Recipe::read(&file), Err(RecipeFileError::Extension { .. })));
    let file = folder.path().join("recipe.toml");
    assert!(matches!(Recipe::read(&file), Err(RecipeFileError::Read { .. })));
    fs::write(&file, "epochs = 0").unwrap();
    let error = Recipe::read(&file).unwrap_err().to_string();
    assert!(error.contains("recipe.toml") && error.contains("epochs"), "{error}");
    fs::write(&file, full.to_toml()).unwrap();
    assert_eq!(Recipe::read(&file).unwrap(), full);
}

/// Softmax of rows, in f64.
fn softmax(rows: [[f64; 3]; 2]) -> [[f64; 3]; 2] {
    rows.map(|row| {
        let sum: f64 = row.iter().map(|z| z.exp()).sum();
        row.map(|z| z.exp() / sum)
    })
}

#[test]
fn trades_and_mart_are_their_formulas() {
    let clean = [[0.5f64, -1.0, 2.0], [1.5, 0.25, -0.75]];
    let attacked = [[0.75f64, -0.5, 0.25], [-0.5, 1.25, 0.5]];
    let (p, q, labels) = (softmax(clean), softmax(attacked), [2usize, 0]);
    let tensor = |rows: [[f64; 3]; 2]| {
        let rows = rows.map(|row| row.map(|z| z as f32));
        Tensor::<2>::from_data(rows, &Device::flex())
    };
    let sum = |f: &dyn Fn(usize, usize) -> f64, i: usize| (0..3).map(|k| f(i, k)).sum::<f64>();
    let mean = |f: &dyn Fn(usize) -> f64| (f(0) + f(1)) / 2.0;

    let kl = |i: usize, k: usize| p[i][k] * (p[i][k] / q[i][k]).ln();
    let want = mean(&|i| -p[i][labels[i]].ln() + 6.0 * sum(&kl, i));
    let got = trades_loss(tensor(clean), tensor(attacked), &labels, 6.0, 0.0);
    let got = f64::from(got.into_scalar::<f32>());
    assert!((got - want).abs() < 1e-5, "TRADES: {got}, not {want}");

    let want = mean(&|i| {
        let y = labels[i];
        let rival = (0..3).filter(|k| *k != y).map(|k| q[i][k]).fold(0.0, f64::max);
        let kl = |i: usize, k: usize| p[i][k] * (p[i][k].ln() - (q[i][k] + 1e-12).ln());
        -q[i][y].ln() - (1.0001 - rival + 1e-12).ln() + 5.0 * sum(&kl, i) * (1.0000001 - p[i][y])
    });
    let got = mart_loss(tensor(clean), tensor(attacked), &labels, 5.0, 0.0);
    let got = f64::from(got.into_scalar::<f32>());
    assert!((got - want).abs() < 1e-5, "MART: {got}, not {want}");
}

/// The gradients of one step, flattened, with the path of each.
fn gradients(model: &Model, recipe: &Recipe) -> Vec<(String, Vec<f32>)> {
    struct Read {
        path: Vec<String>,
        gradients: GradientsParams,
        found: Vec<(String, Vec<f32>)>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                let values = gradient.into_data().try_into_vec().unwrap();
                self.found.push((self.path.join("."), values));
            }
        }
    }
    let (batch, labels) = images(8).batch(&(0..8).collect::<Vec<_>>(), &device());
    let step = AdversarialStep::new(recipe);
    let (gradients, _) = step.gradients(model, batch, &labels, 0).unwrap();
    let mut read = Read { path: Vec::new(), gradients, found: Vec::new() };
    model.visit(&mut read);
    assert!(!read.found.is_empty());
    read.found
}

fn norm(gradients: &[(String, Vec<f32>)]) -> f64 {
    let all = gradients.iter().flat_map(|(_, values)| values);
    all.map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn clipping_scales_all_gradients_together() {
    let plain = gradients(&model(), &recipe());
    let whole = norm(&plain);
    let largest = 0.25 * whole;
    let clipped = gradients(&model(), &Recipe { clip_norm: Some(largest), ..recipe() });
    for ((path, plain), (_, clipped)) in plain.iter().zip(&clipped) {
        for (plain, clipped) in plain.iter().zip(clipped) {
            let want = f64::from(*plain) * largest / (whole + 1e-6);
            assert!((f64::from(*clipped) - want).abs() < 1e-5 * whole, "{path}");
        }
    }
    assert!((norm(&clipped) - largest).abs() < 1e-4 * whole);
    let longer = gradients(&model(), &Recipe { clip_norm: Some(2.0 * whole), ..recipe() });
    assert!((norm(&longer) - whole).abs() < 1e-5 * whole);
}

#[test]
fn the_average_follows_its_formula_and_resumes() {
    let start = model();
    let mut want: Vec<Vec<f64>> = floats(&start);
    let mut average = WeightAverage::new(&start, 0.5);
    for t in 1..=6 {
        let other = Normalized::to_plus_minus_one(config().init(100 + t, &device()), 1);
        average = average.update(&other);
        let decay = f64::min(0.5, (1.0 + t as f64) / (10.0 + t as f64));
        for (want, other) in want.iter_mut().zip(floats(&other)) {
            for (want, other) in want.iter_mut().zip(other) {
                *want = decay * *want + (1.0 - decay) * other;
            }
        }
    }
    for (got, want) in floats(average.model()).iter().zip(&want) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got}, not {want}");
        }
    }
}

fn floats(model: &Model) -> Vec<Vec<f64>> {
    let of_bits = |bits: Vec<u32>| bits.into_iter().map(|b| f32::from_bits(b).into()).collect();
    bits(model).into_iter().map(|(_, bits)| of_bits(bits)).collect()
}

/// Every option at once: stopped and resumed as an unbroken run.
#[test]
fn all_options_resume_to_the_same_weights() {
    let data = images(48);
    for objective in [Objective::Trades { beta: 6.0 }, Objective::Mart { beta: 5.0 }] {
        let recipe = Recipe {
            epochs: 2,
            parts: 2,
            hold_out: 8,
            clip_norm: Some(1.0),
            average: Some(0.9),
            weight_perturbation: Some(Perturbation { gamma: 0.01 }),
            decayed: Decayed::AllButActivations,
            momentum_form: MomentumForm::HeavyBall,
            objective,
            attack: Some(TrainingAttack {
                eps: 0.1,
                steps: 2,
                start: AttackStart::Normal { std: 0.001 },
                ..TrainingAttack::default()
            }),
            ..recipe()
        };
        let unbroken = train(model(), &recipe, &data, &device(), None, go_on).unwrap();
        let last = unbroken.progress.history.last().unwrap();
        assert!(last.held_out.is_some());
        assert_eq!(last.learned, learned_parameters(&unbroken.result()));
        assert!(!last.learned.is_empty());

        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        let place = Some((&checkpoints, Start::Fresh));
        train(model(), &recipe, &data, &device(), place, stop_at(7)).unwrap();
        let other = Normalized::to_plus_minus_one(config().init(77, &device()), 1);
        let place = Some((&checkpoints, Start::Resume));
        let resumed = train(other, &recipe, &data, &device(), place, go_on).unwrap();
        assert_eq!(bits(&resumed.model), bits(&unbroken.model));
        assert_eq!(bits(&resumed.result()), bits(&unbroken.result()));
        assert_ne!(bits(&resumed.result()), bits(&resumed.model));
        assert_eq!(resumed.progress.history, unbroken.progress.history);
    }
}

#[test]
fn the_recipes_of_the_examples_can_be_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/recipes");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        Recipe::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

/// The epoch whose held-out images withstand the most, and not what came of it later.
#[test]
fn the_best_epoch_is_the_result() {
    let data = images(60);
    let mut earlier = 0;
    for (seed, average) in [(1, None), (2, None), (3, None), (4, Some(0.5)), (5, Some(0.5))] {
        let recipe = Recipe {
            epochs: 5,
            hold_out: 20,
            select: Select::HeldOut,
            seed,
            average,
            schedule: Schedule::Constant { lr: 0.3 },
            ..recipe()
        };
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        let stop_after = |epochs: usize| {
            move |progress: &Progress| match progress.history.len() == epochs {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let place = Some((&checkpoints, Start::Fresh));
        train(model(), &recipe, &data, &device(), place, stop_after(4)).unwrap();
        let place = Some((&checkpoints, Start::Resume));
        let trained = train(model(), &recipe, &data, &device(), place, go_on).unwrap();
        let accuracy: Vec<f64> =
            trained.progress.history.iter().map(|e| e.held_out.unwrap().pgd_accuracy).collect();
        let most = accuracy.iter().copied().fold(0.0, f64::max);
        let best = accuracy.iter().position(|a| *a == most).unwrap() + 1;
        assert_eq!(trained.result_epoch().unwrap().epoch, best);

        let last = Recipe { select: Select::Last, ..recipe };
        let there = train(model(), &last, &data, &device(), None, stop_after(best)).unwrap();
        assert_eq!(bits(&trained.result()), bits(&there.result()), "{accuracy:?}");
        assert_eq!(there.result_epoch().unwrap().epoch, best);
        earlier += usize::from(best < 5);
    }
    assert!(earlier > 0, "no training was better before its end");
    let none = Recipe { select: Select::HeldOut, hold_out: 0, ..recipe() };
    assert_eq!(none.validate().unwrap_err().field, "hold_out");
}
