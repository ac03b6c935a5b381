//! Training on Burn's learner: the same weights as the plain loop, checkpoints, metrics, several
//! devices.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use burn::{
    data::dataloader::{DataLoader, split::split_dataloader},
    module::{Module, ModuleDisplay},
    nn,
    tensor::{Device, Tensor},
    train::{
        ExecutionStrategy, LearningResult, MetricEarlyStoppingStrategy, MultiDeviceOptim,
        StoppingCondition, SupervisedTraining,
        metric::store::{Aggregate, Direction, Split},
    },
};
use sat_attack::{Attack, Classifier, Fgsm, Pgd, Victim, evaluate};
use sat_core::{Activation, ActivationConfig};
use sat_train::{
    AttackStart, Decayed, MomentumForm, Normalized, Objective, Perturbation, Recipe, RecipeError,
    Schedule, Select, TrainError, TrainingAttack,
    data::{Augment, ImageSet},
    hold_out,
    learner::{
        Adversarial, AdversarialMetric, Figure, LearnerError, TrainingImages, ValidationImages,
    },
    train,
};
use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

mod common;
use common::{bits, config, device, go_on, images, model, recipe};

type Training<M> = SupervisedTraining<Adversarial<M>>;

/// Trains on the learner, after what the test does to the run.
fn learn<M: Module + ModuleDisplay + Classifier + 'static>(
    model: M,
    recipe: &Recipe,
    data: &ImageSet,
    (folder, epoch): (&Path, usize),
    prepare: impl FnOnce(Training<M>) -> Training<M>,
) -> LearningResult<Adversarial<M>> {
    let model = Adversarial::new(model, recipe).unwrap();
    let images = TrainingImages::new(data.clone(), recipe.clone(), epoch, &device()).unwrap();
    let validation = ValidationImages::new(data.clone().take(10), 4, &device());
    let learner = model.learner(images.steps());
    let training = model.training(folder, images, validation).with_application_logger(None);
    prepare(training).launch(learner)
}

fn all_options() -> Recipe {
    Recipe {
        epochs: 2,
        parts: 2,
        clip_norm: Some(1.0),
        average: Some(0.9),
        augment: Augment { mixup: Some(0.4), ..Augment::default() },
        weight_perturbation: Some(Perturbation { gamma: 0.01 }),
        decayed: Decayed::AllButActivations,
        momentum_form: MomentumForm::HeavyBall,
        objective: Objective::Trades { beta: 6.0 },
        attack: Some(TrainingAttack {
            eps: 0.1,
            steps: 2,
            start: AttackStart::Normal { std: 0.001 },
            ..TrainingAttack::default()
        }),
        ..recipe()
    }
}

#[test]
fn the_weights_are_those_of_the_plain_loop() {
    let data = images(44);
    for recipe in [recipe(), all_options(), Recipe { hold_out: 4, ..recipe() }] {
        let want = train(model(), &recipe, &data, &device(), None, go_on).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let rest = hold_out(&data, &recipe).map_or(data.clone(), |(rest, _)| rest);
        let got = learn(model(), &recipe, &rest, (folder.path(), 0), |training| training);
        assert!(got.error.is_none() && got.interrupted.is_none());
        assert_eq!(bits(&got.model.model), bits(&want.model));
        assert_eq!(bits(&got.model.result()), bits(&want.result()));
    }
}

#[test]
fn a_checkpoint_of_burn_resumes_to_the_same_weights() {
    let data = images(44);
    for recipe in [Recipe { epochs: 2, ..recipe() }, all_options()] {
        let folder = tempfile::tempdir().unwrap();
        let unbroken = learn(model(), &recipe, &data, (folder.path(), 0), |training| {
            training.with_default_checkpointers()
        });
        let checkpoints = folder.path().join("checkpoint");
        assert!(checkpoints.join("model-1.bpk").exists());
        // Everything must come from the first checkpoint.
        fs::remove_file(checkpoints.join("model-2.bpk")).unwrap();
        let other = Normalized::to_plus_minus_one(config().init(77, &device()), 1);
        let resumed = learn(other, &recipe, &data, (folder.path(), 1), |training| {
            training.with_default_checkpointers().checkpoint(1)
        });
        assert!(resumed.error.is_none());
        assert_eq!(bits(&resumed.model.model), bits(&unbroken.model.model));
        assert_eq!(bits(&resumed.model.result()), bits(&unbroken.model.result()));
    }
}

/// The value of a metric over the first epoch, as Burn's log files have it.
fn logged(folder: &Path, split: &str, metric: &str) -> f64 {
    let file = folder.join(split).join("epoch-1").join(format!("{metric}.log"));
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let value = text.lines().find_map(|line| line.strip_suffix(",final"));
    value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn the_metric_files_have_what_the_attacks_leave() {
    let (data, folder) = (images(44), tempfile::tempdir().unwrap());
    let recipe = Recipe { epochs: 1, ..recipe() };
    let result = learn(model(), &recipe, &data, (folder.path(), 0), |training| training);
    let (model, threat) = (result.model.result(), recipe.attack.unwrap().threat());
    let victim = Victim::new(&model);
    let plain = Device::flex();
    // Batch by batch: each has the random starts of a first batch.
    let under = |attack: &dyn Attack| {
        let reports = data.clone().take(10).batches(4).map(|rows| {
            let batch = data.batch(&rows, &plain);
            evaluate(&victim, attack, [batch], &threat, |_| ControlFlow::Continue(())).unwrap()
        });
        let reports: Vec<_> = reports.collect();
        let robust: usize = reports.iter().map(|report| report.robust_correct).sum();
        let clean: usize = reports.iter().map(|report| report.clean_correct).sum();
        let loss: f64 = reports.iter().map(|report| report.adv_ce * report.n as f64).sum();
        (10.0 * clean as f64, 10.0 * robust as f64, loss / 10.0)
    };
    let (clean, fgsm, _) = under(&Fgsm::default());
    let (_, pgd, loss) = under(&Pgd::default().steps(10).stop_when_fooled());
    let valid = |metric| logged(folder.path(), "valid", metric);
    for (metric, want) in [
        ("Clean_accuracy", clean),
        ("Robust_accuracy", pgd),
        ("FGSM_accuracy", fgsm),
        ("FGSM_minus_PGD-10", fgsm - pgd),
        ("Loss", loss),
    ] {
        let got = valid(metric);
        assert!((got - want).abs() < 1e-6, "{metric}: {got}, not {want}");
    }
    let learned = &sat_train::learned_parameters(&model)[0];
    assert_eq!(valid(&format!("Learned_{}_0", learned.site)), learned.values[0]);
    assert!(logged(folder.path(), "train", "Loss") > 0.0);
    assert!((0.0..=100.0).contains(&logged(folder.path(), "train", "Robust_accuracy")));
}

#[test]
fn early_stopping_watches_a_figure() {
    let (data, folder) = (images(16), tempfile::tempdir().unwrap());
    // The learning rate is too small to change any prediction.
    let schedule = Schedule::Constant { lr: 1e-12 };
    let recipe = Recipe { epochs: 9, schedule, ..recipe() };
    learn(model(), &recipe, &data, (folder.path(), 0), |training| {
        training.early_stopping(MetricEarlyStoppingStrategy::new(
            &AdversarialMetric::new(Figure::CleanAccuracy),
            Aggregate::Mean,
            Direction::Highest,
            Split::Valid,
            StoppingCondition::NoImprovementSince { n_epochs: 2 },
        ))
    });
    assert!(folder.path().join("valid").join("epoch-3").exists());
    assert!(!folder.path().join("valid").join("epoch-4").exists());
}

#[test]
fn a_failed_attack_ends_the_training_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { schedule: Schedule::Constant { lr: 1e30 }, ..recipe() };
    let result = learn(model(), &recipe, &images(40), (folder.path(), 0), |training| training);
    let error = result.error.unwrap().to_string();
    assert!(error.contains("finite"), "{error}");
}

#[test]
fn too_few_images_and_bad_recipes_are_refused() {
    let bad = Recipe { epochs: 0, ..recipe() };
    let error = Adversarial::new(model(), &bad).unwrap_err();
    assert!(matches!(&error, LearnerError::Recipe(RecipeError { field: "epochs", .. })), "{error}");
    let bad = Recipe { select: Select::HeldOut, hold_out: 8, ..recipe() };
    assert_eq!(Adversarial::new(model(), &bad).unwrap_err(), LearnerError::Select);
    let error = TrainingImages::new(images(7), recipe(), 0, &device()).unwrap_err();
    assert!(matches!(error, TrainError::TooFewSamples { samples: 7, batch_size: 8 }), "{error}");
}

/// A network without BatchNorm, whose statistics would be those of each device's share.
#[derive(Module, Debug)]
struct Plain {
    convolution: nn::conv::Conv2d,
    activation: Activation,
    linear: nn::Linear,
}

impl Classifier for Plain {
    fn logits(&self, images: Tensor<4>) -> Tensor<2> {
        let features = self.activation.forward(self.convolution.forward(images));
        self.linear.forward(features.flatten(1, 3))
    }
}

fn plain() -> Plain {
    let device = device();
    device.seed(5);
    let activation: ActivationConfig = "smooth-relu-learnable".parse().unwrap();
    let convolution = nn::conv::Conv2dConfig::new([1, 4], [3, 3]).init(&device);
    let linear = nn::LinearConfig::new(400, 3).init(&device);
    // Parameters are drawn at their first use.
    Plain { convolution, activation: activation.init(&device), linear }.materialize()
}

fn on_two_devices(optim: MultiDeviceOptim) -> ExecutionStrategy {
    ExecutionStrategy::multi(vec![device(), device()], optim)
}

#[test]
fn two_devices_give_the_weights_of_one() {
    let start = plain();
    for clip_norm in [None, Some(0.5)] {
        let recipe = Recipe {
            clip_norm,
            average: Some(0.9),
            attack: Some(TrainingAttack {
                eps: 0.1,
                steps: 2,
                // With a probability between 0 and 1 each device makes a draw of its own.
                start: AttackStart::Uniform { probability: 1.0 },
                ..TrainingAttack::default()
            }),
            ..recipe()
        };
        let run = |strategy: Option<MultiDeviceOptim>| {
            let folder = tempfile::tempdir().unwrap();
            let place = (folder.path(), 0);
            let result =
                learn(start.clone(), &recipe, &images(44), place, |training| match strategy {
                    Some(optim) => training.with_training_strategy(on_two_devices(optim).into()),
                    None => training,
                });
            assert!(result.error.is_none());
            (floats(&result.model.model), floats(&result.model.result()))
        };
        let one = run(None);
        assert_ne!(one.0, floats(&start));
        for optim in [MultiDeviceOptim::OptimMainDevice, MultiDeviceOptim::OptimSharded] {
            let two = run(Some(optim));
            for (one, two) in [(&one.0, &two.0), (&one.1, &two.1)] {
                for (one, two) in one.iter().zip(two) {
                    assert!((one - two).abs() < 2e-5, "{optim:?}: {two}, not {one}");
                }
            }
        }
    }
}

fn floats<M: Module>(model: &M) -> Vec<f32> {
    bits(model).into_iter().flat_map(|(_, bits)| bits).map(f32::from_bits).collect()
}

#[test]
fn two_devices_do_not_wait_for_each_other_for_ever() {
    let (done, waiting) = mpsc::channel();
    thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        let recipe = Recipe { epochs: 25, ..recipe() };
        let result = learn(model(), &recipe, &images(64), (folder.path(), 0), |training| {
            training
                .with_training_strategy(on_two_devices(MultiDeviceOptim::OptimMainDevice).into())
        });
        let learned = bits(&result.model.model) != bits(&model());
        done.send((result.error.is_none(), learned)).unwrap();
    });
    // 200 steps, with BatchNorm.
    assert_eq!(waiting.recv_timeout(Duration::from_secs(120)), Ok((true, true)));
}

#[test]
fn the_shares_of_devices_are_the_batches_of_one() {
    let data = images(44);
    let one = TrainingImages::new(data, recipe(), 2, &device()).unwrap();
    assert_eq!((one.steps(), one.num_items()), (5, 40));
    let three = split_dataloader(Arc::new(one), &[device(), device(), device()]);
    let one = TrainingImages::new(images(44), recipe(), 2, &device()).unwrap();
    // Two epochs, and three rows at most on each device.
    for _ in 0..2 {
        let mut parts: Vec<_> = three.iter().map(|loader| loader.iter()).collect();
        for whole in one.iter() {
            let whole = whole.unwrap();
            let shares: Vec<_> =
                parts.iter_mut().map(|part| part.next().unwrap().unwrap()).collect();
            let labels: Vec<_> = shares.iter().flat_map(|share| share.labels.clone()).collect();
            assert_eq!(labels, whole.labels);
            let images = shares.iter().map(|share| share.images.clone()).collect();
            assert_eq!(Tensor::cat(images, 0).into_data(), whole.images.into_data());
            assert!((shares.iter().map(|share| share.share).sum::<f64>() - 1.0).abs() < 1e-12);
            assert_eq!(shares[0].first, whole.first);
            assert_eq!(shares[1].first, whole.first + shares[0].labels.len() as u64);
            assert!(shares.iter().all(|share| share.step == whole.step));
        }
        assert!(parts.iter_mut().all(|part| part.next().is_none()));
    }
}
