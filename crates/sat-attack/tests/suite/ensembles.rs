//! AutoAttack, ensembles and wrappers.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor, TensorData};
use sat_attack::{
    Apgd, Attack, AttackError, AutoAttack, BothGradients, Ensemble, Eot, Fab, FewClasses, Fgsm,
    Flag, Goal, Identity, Loss, Member, Norm, Pgd, RandomStart, Restarts, Square, ThreatModel,
    Victim, eps_sweep, minimal_norm,
};

use crate::models::{batch, bits, convolutional, labels, linear, tensor, values};

fn small(attack: AutoAttack) -> AutoAttack {
    attack.steps(6).queries(20)
}

#[test]
fn autoattack_is_at_least_as_strong_as_its_first_attack_in_every_norm() {
    let victim = convolutional(1, 5);
    let x = batch(2, 12);
    let goal = Goal::untargeted(labels(&victim, &x));
    for threat in [ThreatModel::linf(0.02), ThreatModel::l2(0.08), ThreatModel::l1(0.4)] {
        let first = Apgd::ce().steps(6).run(&victim, x.clone(), goal.clone(), &threat).unwrap();
        for attack in [AutoAttack::standard(), AutoAttack::plus(), AutoAttack::rand()] {
            let adv = small(attack).run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            assert!(adv.fooled() + 1 >= first.fooled(), "{}", threat.norm);
            assert!(adv.robust() > 0 && adv.fooled() > 0, "{}", adv.fooled());
            let by_stages: usize = adv.stages.iter().map(|stage| stage.fooled.len()).sum();
            assert_eq!(by_stages, adv.fooled());
            // Each attack gets what is left.
            let mut left = 12;
            for stage in &adv.stages {
                assert_eq!(stage.attacked, left, "{}", stage.name);
                left -= stage.fooled.len();
            }
            assert_eq!(adv.predictions, victim.predict(adv.images).unwrap());
        }
    }
}

#[test]
fn versions_have_the_official_attacks_in_the_official_order() {
    let victim = linear(6, 5);
    let x = batch(7, 2);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(1e-5);
    let names = |attack: AutoAttack| -> Vec<String> {
        let adv = small(attack).run(&victim, x.clone(), goal.clone(), &threat).unwrap();
        adv.stages.into_iter().map(|stage| stage.name).collect()
    };
    assert_eq!(names(AutoAttack::standard()), ["apgd-ce", "apgd-t", "fab-t", "square"]);
    let plus = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"];
    assert_eq!(names(AutoAttack::plus()), plus);
    assert_eq!(names(AutoAttack::rand()), ["apgd-ce", "apgd-dlr"]);
    let list: Vec<Member> = ["square", "fab"].map(|name| name.parse().unwrap()).to_vec();
    assert_eq!(names(AutoAttack::custom(list)), ["square", "fab"]);
    assert!("apgd".parse::<Member>().is_err());
    let none = AutoAttack::custom([]).run(&victim, x, goal, &threat);
    assert!(matches!(none, Err(AttackError::InvalidSetting { .. })));
}

#[test]
fn the_cost_of_autoattack_on_a_robust_sample_is_that_of_the_official_settings() {
    let victim = linear(6, 5);
    let x = batch(7, 1);
    let goal = Goal::untargeted(labels(&victim, &x));
    let adv = AutoAttack::standard().run(&victim, x, goal, &ThreatModel::linf(1e-6)).unwrap();
    assert_eq!(adv.robust(), 1);
    let cost = |name: &str| {
        let stage = adv.stages.iter().find(|stage| stage.name == name).unwrap();
        (stage.cost.forwards, stage.cost.backwards)
    };
    // A look at the clean image, 101 gradients, the verdict.
    assert_eq!(cost("apgd-ce"), (103, 101));
    // Four other classes.
    assert_eq!(cost("apgd-t"), (4 * 101 + 2, 4 * 101));
    assert_eq!(cost("fab-t"), (4 * 200 + 2, 4 * 100));
    assert_eq!(cost("square"), (5001 + 2, 0));
    // Five checks, the clean image, the verdict.
    let stages: u64 = adv.stages.iter().map(|stage| stage.cost.forwards).sum();
    assert_eq!(adv.cost.forwards, stages + 7);
}

#[test]
fn flags_of_the_model_output() {
    let x = batch(7, 4);
    let threat = ThreatModel::linf(1e-4);
    let flags = |victim: &Victim<'_>, attack: AutoAttack| {
        let goal = Goal::untargeted(labels(victim, &x));
        let attack = small(attack).few_classes(FewClasses::Margin);
        attack.run(victim, x.clone(), goal, &threat).unwrap().flags
    };
    let plain = linear(6, 10);
    assert_eq!(flags(&plain, AutoAttack::standard()), []);

    let softmax = Victim::from_fn(|x| {
        burn::tensor::activation::softmax(x.flatten::<2>(1, 3).narrow(1, 0, 10), 1)
    });
    assert_eq!(flags(&softmax, AutoAttack::standard()), [Flag::ProbabilityOutput]);

    let few = flags(&linear(6, 3), AutoAttack::standard());
    assert_eq!(few, [Flag::TooFewClasses { classes: 3, targets: 9 }]);
    assert_eq!(flags(&linear(6, 3), AutoAttack::custom([Member::Square])), []);

    let calls = Cell::new(0);
    let weight = tensor(6, [32, 10]);
    let random = Victim::from_fn(|x| {
        calls.set(calls.get() + 1);
        let noise = Tensor::<1>::from_floats(&values(calls.get(), 10)[..], &Device::flex());
        x.flatten::<2>(1, 3).matmul(weight.clone()) + noise.unsqueeze() * 0.01
    });
    let found = flags(&random, AutoAttack::standard());
    assert!(matches!(found[..], [Flag::Randomised { difference }] if difference > 1e-4));
    assert_eq!(flags(&random, AutoAttack::rand()), []);

    // Later batches of a data set are not checked again.
    let goal = Goal::untargeted(labels(&softmax, &x)).numbered_from(4);
    let later = small(AutoAttack::standard()).run(&softmax, x.clone(), goal, &threat).unwrap();
    assert_eq!(later.flags, []);
}

#[test]
fn autoattack_refuses_targets_and_few_classes() {
    let victim = linear(6, 3);
    let threat = ThreatModel::linf(0.1);
    let result = AutoAttack::standard().run(&victim, batch(7, 2), Goal::targeted([0, 1]), &threat);
    assert!(matches!(result, Err(AttackError::UnsupportedGoal { .. })));
    let x = batch(7, 2);
    let goal = Goal::untargeted(labels(&victim, &x));
    let small_ball = ThreatModel::linf(1e-6);
    let result = AutoAttack::standard().run(&victim, x, goal, &small_ball);
    assert!(matches!(result, Err(AttackError::TooFewClasses { needs: 4, .. })));
}

#[test]
fn log_lines_say_what_each_attack_did() {
    let victim = linear(6, 5);
    let x = batch(7, 3);
    let goal = Goal::untargeted(labels(&victim, &x));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let attack =
        small(AutoAttack::standard()).log(move |line| sink.lock().unwrap().push(line.to_owned()));
    attack.run(&victim, x, goal, &ThreatModel::linf(1e-5)).unwrap();
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 4);
    assert!(lines[0].starts_with("apgd-ce - 0 out of 3 successfully perturbed"), "{}", lines[0]);
}

#[test]
fn an_ensemble_is_the_worst_of_its_members() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(0.05);
    let (weak, strong) = (Fgsm::default(), Pgd::default().steps(20));
    let alone =
        |attack: &dyn Attack| attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
    let both = Ensemble::new()
        .then("none", Identity)
        .then("fgsm", weak.clone())
        .then("pgd", strong.clone());
    let both = alone(&both);
    let (weak, strong) = (alone(&weak), alone(&strong));
    for sample in 0..16 {
        assert_eq!(both.success[sample], weak.success[sample] || strong.success[sample]);
        if !both.success[sample] {
            assert!(both.loss[sample] >= weak.loss[sample].max(strong.loss[sample]) - 1e-5);
        }
    }
    assert_eq!(both.stages[0].fooled, Vec::<usize>::new());
    assert!(!both.stages[2].fooled.is_empty());
    let empty = Ensemble::new().run(&victim, x.clone(), goal.clone(), &threat);
    assert!(matches!(empty, Err(AttackError::InvalidSetting { .. })));
}

#[test]
fn restarts_never_lose_a_sample() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(0.02);
    let run = |attack: &dyn Attack| attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
    let once = run(&Pgd::default().steps(2));
    let often = run(&Restarts::new(Pgd::default().steps(2), 6));
    let mut better = 0;
    for sample in 0..16 {
        assert!(often.success[sample] || !once.success[sample]);
        better += usize::from(often.loss[sample] > once.loss[sample] + 1e-6);
    }
    assert!(better > 0);
    assert!(often.cost.backwards > once.cost.backwards);
    assert_eq!(often.predictions, victim.predict(often.images).unwrap());
}

#[test]
fn eot_averages_gradients() {
    // The gradient's sign is right in one pass of three only, its mean is right.
    let calls = Cell::new(0);
    let weight = tensor(5, [32, 2]);
    let victim = Victim::from_fn(|x| {
        calls.set(calls.get() + 1);
        let factor = if calls.get() % 3 == 0 { 5.0 } else { -1.0 };
        x.flatten::<2>(1, 3).matmul(weight.clone()) * factor
    });
    let honest = linear(5, 2);
    let x = batch(1, 3);
    let goal = Goal::untargeted([0, 1, 0]);
    let threat = ThreatModel::linf(0.05);
    let attack = Fgsm::default().loss(Loss::Margin);
    let want = attack.perturb(&honest, x.clone(), goal.clone(), &threat).unwrap();
    let eot = Eot::new(attack.clone(), 3);
    let found = eot.perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
    assert_eq!(bits(&found), bits(&want));
    calls.set(0);
    let alone = attack.perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
    assert_ne!(bits(&alone), bits(&want));
    calls.set(0);
    let adv = eot.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
    assert_eq!((adv.cost.forwards, adv.cost.backwards), (3 * 3 + 3, 3 * 3));
    let zero = Eot::new(attack, 0).run(&victim, x, goal, &threat);
    assert!(matches!(zero, Err(AttackError::InvalidSetting { .. })));
}

#[test]
fn the_guard_reports_the_worst_of_both_gradients() {
    // The model's own gradient is cut; the twin has the same logits and the true gradient.
    let twin = convolutional(1, 5);
    let inner = convolutional(1, 5);
    let masked = Victim::from_fn(move |x: Tensor<4>| {
        let autodiff = x.is_autodiff();
        let logits = inner.logits(x.clone()).unwrap();
        if autodiff {
            logits.autodiff() + x.flatten::<2>(1, 3).narrow(1, 0, 5) * 0.0
        } else {
            logits
        }
    });
    let x = batch(2, 8);
    let goal = Goal::untargeted(labels(&twin, &x));
    let threat = ThreatModel::linf(0.1);
    let attack = Pgd::default().random_start(RandomStart::Never);
    let own = attack.run(&masked, x.clone(), goal.clone(), &threat).unwrap();
    let true_one = attack.run(&twin, x.clone(), goal.clone(), &threat).unwrap();
    assert_eq!(own.fooled(), 0);
    assert!(true_one.fooled() > 0);
    let guard = BothGradients::new(attack.clone(), twin.clone());
    let worst = guard.run(&masked, x.clone(), goal.clone(), &threat).unwrap();
    assert_eq!(worst.success, true_one.success);
    assert_eq!(worst.flags, [Flag::TransferGained { points: true_one.fooled() }]);
    // The attacks of an ensemble are told apart by gradient.
    let ensemble = Ensemble::new().then("pgd", attack.clone());
    let guard = BothGradients::new(ensemble, twin.clone());
    let worst = guard.run(&masked, x.clone(), goal.clone(), &threat).unwrap();
    let fooled: Vec<(&str, usize)> =
        worst.stages.iter().map(|stage| (stage.name.as_str(), stage.fooled.len())).collect();
    assert_eq!(fooled, [("pgd", 0), ("pgd (other gradient)", true_one.fooled())]);
    for &row in &worst.stages[1].fooled {
        assert!(worst.success[row]);
    }
    // A model with nothing to hide raises nothing.
    let honest = BothGradients::new(attack, twin.clone()).run(&twin, x, goal, &threat).unwrap();
    assert_eq!(honest.flags, []);
}

#[test]
fn success_never_falls_along_a_sweep_and_the_smallest_radius_is_near_fabs() {
    let victim = convolutional(1, 5);
    let x = batch(2, 8);
    let goal = Goal::untargeted(labels(&victim, &x));
    for norm in [Norm::Linf, Norm::L2] {
        let threat = ThreatModel::new(norm, 0.0);
        let largest = if norm == Norm::Linf { 0.4 } else { 2.0 };
        let radii: Vec<f64> = (0..5).map(|k| largest * f64::from(k) / 4.0).collect();
        let attack = Apgd::ce().steps(20).stop_when_fooled();
        let sweep = eps_sweep(&attack, &victim, x.clone(), &goal, &threat, &radii).unwrap();
        assert_eq!(sweep.len(), 5);
        assert!(sweep[0].success.iter().all(|fooled| !fooled));
        for pair in sweep.windows(2) {
            for (before, after) in pair[0].success.iter().zip(&pair[1].success) {
                assert!(after >= before);
            }
        }
        assert!(sweep[4].success.iter().all(|&fooled| fooled));

        let searched =
            minimal_norm(&attack, &victim, x.clone(), goal.clone(), &threat, largest, 12).unwrap();
        let fab =
            Fab::default().minimal(&victim, x.clone(), goal.clone(), norm, (0.0, 1.0)).unwrap();
        for (a, b) in searched.distances.iter().zip(&fab.distances) {
            assert!((a / b - 1.0).abs() < 0.1, "{norm}: {a} and {b}");
        }
        let lengths = norm.lengths(&(searched.images - x.clone())).unwrap();
        for (length, distance) in lengths.iter().zip(&searched.distances) {
            assert!((length - distance).abs() < 1e-6);
        }
    }
    let radii = [0.1, 0.1];
    let flat = eps_sweep(&Fgsm::default(), &victim, x, &goal, &ThreatModel::linf(0.0), &radii);
    assert!(matches!(flat, Err(AttackError::InvalidSetting { .. })));
}

#[test]
fn images_of_any_shape() {
    // One channel, wider than high, smaller than Square's windows.
    for shape in [[2, 1, 3, 7], [2, 5, 1, 1], [2, 3, 6, 2]] {
        let [_, c, h, w] = shape;
        let weight = tensor(3, [c * h * w, 5]);
        let victim = Victim::from_fn(|x: Tensor<4>| x.flatten::<2>(1, 3).matmul(weight.clone()));
        let data = TensorData::new(vec![0.5f32; 2 * c * h * w], shape);
        let x = Tensor::<4>::from_data(data, &Device::flex());
        let goal = Goal::untargeted(labels(&victim, &x));
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let threat = ThreatModel::new(norm, 0.3);
            let adv = small(AutoAttack::plus())
                .few_classes(FewClasses::Margin)
                .run(&victim, x.clone(), goal.clone(), &threat)
                .unwrap();
            assert_eq!(adv.len(), 2);
            let square = Square::default().queries(30);
            let adv = square.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            let lengths = norm.lengths(&(adv.images - x.clone())).unwrap();
            assert!(lengths.iter().all(|&length| length <= 0.3 + 1e-5), "{norm}: {lengths:?}");
        }
    }
}

#[test]
fn a_lucky_pass_of_a_randomised_model_ends_no_attack_of_rand() {
    let calls = Cell::new(0);
    let weight = tensor(6, [32, 10]);
    // Noise that decides every few passes, whatever the image.
    let random = Victim::from_fn(|x| {
        calls.set(calls.get() + 1);
        let noise = Tensor::<1>::from_floats(&values(calls.get(), 10)[..], &Device::flex());
        x.flatten::<2>(1, 3).matmul(weight.clone()) + noise.unsqueeze() * 2.0
    });
    let x = batch(7, 4);
    let goal = Goal::untargeted(labels(&linear(6, 10), &x));
    let threat = ThreatModel::linf(1e-3);
    let adv = small(AutoAttack::rand()).run(&random, x, goal, &threat).unwrap();
    let mut attacked = 0;
    for stage in &adv.stages {
        // 6 steps and the start, 20 passes each.
        assert_eq!(stage.cost.backwards, (stage.attacked * 7 * 20) as u64, "{}", stage.name);
        attacked += stage.attacked;
    }
    assert!(attacked > 0);
}
