//! Every way to misuse the crate has its own error, raised before the model runs where possible.

use std::ops::ControlFlow;

use burn::tensor::{Device, Int, Tensor};
use sat_attack::{
    Adversarial, Attack, AttackError, Fgsm, Goal, Loss, Pgd, RandomStart, ThreatModel, Victim,
    evaluate,
};

use crate::models::{batch, linear, tensor};

/// A victim that must not be asked.
fn untouched() -> Victim<'static> {
    Victim::from_fn(|_| panic!("the model ran before the input was checked"))
}

fn attack(
    victim: &Victim<'_>,
    images: Tensor<4>,
    goal: Goal,
    threat: &ThreatModel,
) -> Result<Adversarial, AttackError> {
    // Both paths must refuse.
    let pgd = Pgd::default();
    let light = pgd.perturb(victim, images.clone(), goal.clone(), threat);
    let full = pgd.run(victim, images, goal, threat);
    assert_eq!(light.is_err(), full.is_err());
    full
}

fn with_pixel(value: f32) -> Tensor<4> {
    let pixel = Tensor::<4>::full([1, 1, 1, 1], value, &Device::flex());
    batch(1, 3).slice_assign([1..2, 1..2, 2..3, 3..4], pixel)
}

fn setting(attack: Pgd) -> &'static str {
    let threat = ThreatModel::linf(0.1);
    let goal = Goal::untargeted([0, 1]);
    let error = attack.run(&untouched(), batch(1, 2), goal.clone(), &threat).unwrap_err();
    let light = attack.perturb(&untouched(), batch(1, 2), goal, &threat);
    assert!(matches!(light, Err(AttackError::InvalidSetting { .. })));
    match error {
        AttackError::InvalidSetting { setting, .. } => setting,
        other => panic!("{other}"),
    }
}

#[test]
fn empty_batches() {
    let threat = ThreatModel::linf(0.1);
    let empty = Tensor::<4>::zeros([0, 2, 4, 4], &Device::flex());
    let goal = Goal::untargeted(Vec::new());
    let result = attack(&untouched(), empty.clone(), goal, &threat);
    assert!(matches!(result, Err(AttackError::EmptyBatch)));
    let result = untouched().logits(empty);
    assert!(matches!(result, Err(AttackError::EmptyBatch)));
}

#[test]
fn invalid_threats() {
    let goal = || Goal::untargeted([0, 1]);
    for eps in [-1e-9, f64::NAN, f64::INFINITY] {
        let result = attack(&untouched(), batch(1, 2), goal(), &ThreatModel::l2(eps));
        assert!(matches!(result, Err(AttackError::InvalidEps { .. })));
    }
    let threat = ThreatModel::linf(0.0).eps_per_sample(vec![0.1; 3]);
    let result = attack(&untouched(), batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::EpsCount { eps: 3, images: 2 })));
    let threat = ThreatModel::linf(0.1).bounds(1.0, 0.0);
    let result = attack(&untouched(), batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::InvalidBounds { .. })));
}

#[test]
fn images_that_are_not_finite_or_leave_the_bounds() {
    let goal = || Goal::untargeted([0, 1, 2]);
    for threat in [ThreatModel::linf(0.1), ThreatModel::l2(0.1)] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let result = attack(&untouched(), with_pixel(value), goal(), &threat);
            assert!(matches!(result, Err(AttackError::NonFiniteImage { sample: 1, .. })));
        }
        for value in [-0.25, 1.5] {
            let result = attack(&untouched(), with_pixel(value), goal(), &threat);
            let Err(error @ AttackError::ImageOutOfBounds { sample: 1, .. }) = result else {
                panic!("{result:?}")
            };
            assert!(error.to_string().contains(&value.to_string()), "{error}");
        }
    }
}

#[test]
fn labels_of_the_wrong_number_or_class() {
    let threat = ThreatModel::linf(0.1);
    let result = attack(&untouched(), batch(1, 3), Goal::untargeted([0, 1]), &threat);
    assert!(matches!(result, Err(AttackError::LabelCount { labels: 2, images: 3 })));

    let victim = linear(6, 3);
    for goal in [Goal::untargeted([0, 1, 3]), Goal::targeted([0, 1, 3])] {
        let error = attack(&victim, batch(1, 3), goal, &threat).unwrap_err();
        assert_eq!(error.to_string(), "sample 2 has label 3, but the model has 3 classes");
    }
    let negative = Tensor::<1, Int>::from_ints([0, -1, 1], &Device::flex());
    let result = attack(&victim, batch(1, 3), Goal::untargeted(negative), &threat);
    assert!(matches!(
        result,
        Err(AttackError::LabelOutOfRange { sample: 1, label: -1, classes: 3 })
    ));
    let huge = Goal::untargeted([0, usize::MAX, 1]);
    let result = attack(&victim, batch(1, 3), huge, &threat);
    assert!(matches!(result, Err(AttackError::LabelOutOfRange { sample: 1, .. })));
}

#[test]
fn settings_out_of_range() {
    let pgd = Pgd::default;
    assert_eq!(setting(pgd().steps(0)), "steps");
    assert_eq!(setting(pgd().restarts(0)), "restarts");
    let fixed = pgd().restarts(2).random_start(RandomStart::Never);
    assert_eq!(setting(fixed), "restarts");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(setting(pgd().step_size(bad)), "step_size");
        assert_eq!(setting(pgd().relative_step_size(bad)), "step_size");
    }
    for bad in [-0.1, 1.1, f64::NAN] {
        let attack = pgd().random_start(RandomStart::WithProbability(bad));
        assert_eq!(setting(attack), "random_start");
    }
    for bad in [-0.1, f64::NAN, f64::INFINITY] {
        assert_eq!(setting(pgd().momentum(bad)), "momentum");
    }
}

#[test]
fn explicit_starts_of_the_wrong_shape_or_with_nan() {
    let threat = ThreatModel::linf(0.1);
    let run = |start: Tensor<4>| {
        Pgd::default().start_from(start).run(
            &untouched(),
            batch(1, 3),
            Goal::untargeted([0, 1, 2]),
            &threat,
        )
    };
    assert!(matches!(run(batch(1, 2)), Err(AttackError::StartShape { .. })));
    assert!(matches!(
        run(with_pixel(f32::NAN)),
        Err(AttackError::NonFiniteStart { sample: 1, .. })
    ));
}

#[test]
fn normalisations() {
    let normalize = |mean: &[f64], std: &[f64]| untouched().normalize(mean, std).unwrap_err();
    assert!(matches!(
        normalize(&[0.5, 0.5], &[0.5]),
        AttackError::NormalizationLength { mean: 2, std: 1 }
    ));
    assert!(matches!(normalize(&[], &[]), AttackError::NormalizationLength { .. }));
    for std in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            normalize(&[0.5, 0.5], &[0.5, std]),
            AttackError::NormalizationValue { channel: 1, .. }
        ));
    }
    assert!(matches!(
        normalize(&[f64::NAN], &[0.5]),
        AttackError::NormalizationValue { channel: 0, .. }
    ));

    let victim = untouched().normalize(&[0.5; 3], &[0.5; 3]).unwrap();
    let threat = ThreatModel::linf(0.1);
    let result = attack(&victim, batch(1, 2), Goal::untargeted([0, 1]), &threat);
    assert!(matches!(result, Err(AttackError::ChannelCount { images: 2, normalization: 3 })));
}

#[test]
fn models_that_return_the_wrong_thing() {
    let threat = ThreatModel::linf(0.1);
    let goal = || Goal::untargeted([0, 1]);

    let rows = Victim::from_fn(|x| x.reshape([1, 64]));
    let result = attack(&rows, batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::LogitsShape { rows: 1, classes: 64, images: 2 })));

    let detached = Victim::from_fn(|x| x.detach().flatten::<2>(1, 3).narrow(1, 0, 3));
    let result = attack(&detached, batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::NoGradient)));

    let constant = Victim::from_fn(|_| tensor(1, [2, 3]));
    let result = attack(&constant, batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::NoGradient)));

    let loss = Loss::custom("mean", |logits, _| logits.mean());
    let result = Fgsm::default().loss(loss).run(&linear(6, 3), batch(1, 2), goal(), &threat);
    assert!(matches!(result, Err(AttackError::LossShape { values: 1, .. })));
}

#[test]
fn nan_in_logits_or_gradients_is_not_robustness() {
    let threat = ThreatModel::linf(0.1);
    // 0 / 0 for the second image only, through a mask that keeps the graph.
    let poison = |x: Tensor<4>| {
        let factor = Tensor::<2>::from_floats([[1.0], [f32::NAN]], &Device::flex());
        x.flatten::<2>(1, 3).narrow(1, 0, 3) * factor
    };
    let victim = Victim::from_fn(poison);
    let result = victim.predict(batch(1, 2));
    assert!(matches!(result, Err(AttackError::NonFiniteLogits { sample: 1 })));
    let run = |victim: &Victim<'_>, attack: Pgd| {
        attack.run(victim, batch(1, 2), Goal::untargeted([0, 1]), &threat)
    };
    assert!(run(&victim, Pgd::default()).is_err());
    assert!(matches!(
        run(&victim, Pgd::default().stop_when_fooled()),
        Err(AttackError::NonFiniteLogits { sample: 1 })
    ));

    // The square root of zero has finite values and no finite slope.
    let kink = Victim::from_fn(|x| {
        let x = x.flatten::<2>(1, 3);
        let rows = Tensor::<2>::from_floats([[1.0], [0.0]], &Device::flex());
        (x * rows).sqrt().narrow(1, 0, 3)
    });
    assert!(matches!(
        run(&kink, Pgd::default()),
        Err(AttackError::NonFiniteGradient { sample: 1 })
    ));
}

#[test]
fn evaluations_with_too_few_radii() {
    let threat = ThreatModel::linf(0.0).eps_per_sample(vec![0.1; 3]);
    let batches = [(batch(1, 2), [0, 1]), (batch(2, 2), [0, 1])];
    let result =
        evaluate(&linear(6, 3), &Fgsm::default(), batches, &threat, |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(AttackError::EpsCount { eps: 3, images: 4 })));
}
