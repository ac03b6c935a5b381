//! APGD, FAB and Square where the best answer is known.

use std::cell::Cell;

use burn::tensor::{Device, Int, Tensor};
use sat_attack::{
    Apgd, Attack, AttackError, Fab, FewClasses, Fgsm, Flag, Goal, Loss, NFgsm, Norm, Pgd, RFgsm,
    RandomStart, Square, ThreatModel, Victim, dlr, eps_sweep, margin, minimal_norm, targeted_dlr,
};

use crate::models::{batch, bits, convolutional, images, labels, linear, tensor, to_vec};

const NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];

/// For a linear model of two classes and images far from the bounds: the distance of each image to
/// the boundary, `|z_1 - z_0| / |w_1 - w_0|` in the dual norm.
fn distances(seed: u64, x: &Tensor<4>, norm: Norm) -> Vec<f64> {
    let weight = to_vec(tensor(seed, [32, 2]));
    let slope: Vec<f64> =
        weight.chunks_exact(2).map(|pair| f64::from(pair[1]) - f64::from(pair[0])).collect();
    let dual = match norm {
        Norm::Linf => slope.iter().map(|w| w.abs()).sum::<f64>(),
        Norm::L2 => slope.iter().map(|w| w * w).sum::<f64>().sqrt(),
        _ => slope.iter().fold(0.0, |largest: f64, w| largest.max(w.abs())),
    };
    to_vec(x.clone())
        .chunks_exact(32)
        .map(|image| {
            let margin: f64 = image.iter().zip(&slope).map(|(x, w)| f64::from(*x) * w).sum();
            margin.abs() / dual
        })
        .collect()
}

/// Images near grey, whose boundary is near, so that no bound is in the way.
fn grey(seed: u64) -> Tensor<4> {
    images(seed, [6, 2, 4, 4], 0.45, 0.55)
}

/// A linear model of two classes whose boundary runs through the grey image.
fn centred(seed: u64) -> Victim<'static> {
    let weight = tensor(seed, [32, 2]);
    Victim::from_fn(move |x: Tensor<4>| (x.flatten::<2>(1, 3) - 0.5).matmul(weight.clone()))
}

#[test]
fn fab_finds_the_closed_form_distance_of_a_linear_model() {
    let victim = centred(5);
    let x = grey(1);
    let goal = Goal::untargeted(labels(&victim, &x));
    for norm in NORMS {
        let want = distances(5, &(x.clone() - 0.5), norm);
        for fab in [Fab::default().steps(20), Fab::targeted().steps(20)] {
            let found = fab.minimal(&victim, x.clone(), goal.clone(), norm, (0.0, 1.0)).unwrap();
            for (found, want) in found.distances.iter().zip(&want) {
                // The overshoot makes it a little longer, never shorter.
                assert!(found / want > 0.999 && found / want < 1.06, "{norm}: {found}, {want}");
            }
            let lengths = norm.lengths(&(found.images - x.clone())).unwrap();
            for (length, distance) in lengths.iter().zip(&found.distances) {
                assert!((length - distance).abs() < 1e-6);
            }
        }
    }
}

#[test]
fn attacks_succeed_just_outside_the_closed_form_radius_and_fail_inside() {
    let victim = centred(5);
    let x = grey(1);
    let goal = Goal::untargeted(labels(&victim, &x));
    for norm in NORMS {
        let radii = distances(5, &(x.clone() - 0.5), norm);
        let threat = |factor: f64| {
            let radii = radii.iter().map(|radius| radius * factor).collect();
            ThreatModel::new(norm, 0.0).eps_per_sample(radii)
        };
        let attacks: [(&dyn Attack, f64); 5] = [
            (&Apgd::ce().steps(40), 1.02),
            (&Apgd::default().loss(Loss::Margin).steps(40).stop_when_fooled(), 1.02),
            (&Apgd::targeted().few_classes(FewClasses::Margin).steps(40), 1.02),
            (&Fab::targeted().steps(20), 1.06),
            // Sparse steps keep a share of their length on weak pixels.
            (&Pgd::default().steps(40), if norm == Norm::L1 { 2.0 } else { 1.02 }),
        ];
        for (attack, enough) in attacks {
            let fooled = |factor: f64| {
                attack.run(&victim, x.clone(), goal.clone(), &threat(factor)).unwrap().fooled()
            };
            assert_eq!(fooled(0.98), 0, "{norm} {}", attack.describe());
            assert_eq!(fooled(enough), 6, "{norm} {}", attack.describe());
        }
    }
}

#[test]
fn square_needs_no_gradient() {
    // Steps hide the gradient; the random search walks over them.
    let inner = convolutional(1, 5);
    let masked = Victim::from_fn(|x: Tensor<4>| {
        let autodiff = x.is_autodiff();
        let logits = inner.logits(x.clone()).unwrap();
        if autodiff {
            logits.autodiff() + x.flatten::<2>(1, 3).narrow(1, 0, 5) * 0.0
        } else {
            logits
        }
    });
    let x = batch(2, 12);
    let goal = Goal::untargeted(labels(&masked, &x));
    for threat in [ThreatModel::linf(0.1), ThreatModel::l2(0.6), ThreatModel::l1(3.0)] {
        let pgd = Pgd::default().random_start(RandomStart::Never);
        let blind = pgd.run(&masked, x.clone(), goal.clone(), &threat).unwrap();
        assert_eq!(blind.fooled(), 0);
        let square = Square::default().queries(300);
        let adv = square.run(&masked, x.clone(), goal.clone(), &threat).unwrap();
        assert!(adv.fooled() >= 4, "{}: {}", threat.norm, adv.fooled());
        // One pass for the clean image, one to judge, and at most 301 queries.
        assert!(adv.cost.forwards <= 12 * 303 && adv.cost.backwards == 0);
        let robust = adv.robust() as u64;
        assert!(adv.cost.forwards >= robust * 303);
    }
}

#[test]
fn square_reaches_a_target() {
    let victim = convolutional(1, 5);
    let x = batch(2, 8);
    let targets: Vec<usize> = labels(&victim, &x).iter().map(|k| (k + 1) % 5).collect();
    let threat = ThreatModel::linf(0.3);
    let adv = Square::default()
        .queries(300)
        .run(&victim, x, Goal::targeted(targets.clone()), &threat)
        .unwrap();
    assert!(adv.fooled() > 0);
    for (row, &target) in targets.iter().enumerate() {
        assert_eq!(adv.success[row], adv.predictions[row] == target);
    }
}

#[test]
fn apgd_beats_pgd_with_the_same_steps() {
    let victim = convolutional(1, 5);
    let x = batch(2, 24);
    let goal = Goal::untargeted(labels(&victim, &x));
    for threat in [ThreatModel::linf(0.02), ThreatModel::l2(0.1), ThreatModel::l1(0.6)] {
        let total = |attack: &dyn Attack| -> f32 {
            attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap().loss.iter().sum()
        };
        let apgd = total(&Apgd::ce().steps(30));
        let pgd = total(&Pgd::default().steps(30));
        assert!(apgd >= pgd - 0.01, "{}: {apgd} against {pgd}", threat.norm);
    }
}

#[test]
fn early_exit_changes_no_outcome_of_apgd() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    for threat in [ThreatModel::linf(0.02), ThreatModel::l2(0.1), ThreatModel::l1(0.5)] {
        for apgd in [Apgd::ce(), Apgd::dlr(), Apgd::targeted(), Apgd::ce().restarts(2)] {
            let run =
                |attack: &Apgd| attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            let full = run(&apgd.clone().steps(15));
            let early = run(&apgd.steps(15).stop_when_fooled());
            assert_eq!(full.success, early.success);
            assert!(early.cost.backwards < full.cost.backwards);
            assert!(full.fooled() > 0);
        }
    }
}

#[test]
fn apgd_counts_its_passes() {
    let calls = Cell::new(0);
    let weight = tensor(5, [32, 3]);
    let victim = Victim::from_fn(|x| {
        calls.set(calls.get() + 1);
        x.flatten::<2>(1, 3).matmul(weight.clone())
    });
    let attack = Apgd::ce().steps(9);
    let goal = Goal::untargeted([0, 1, 2, 0]);
    let adv = attack.run(&victim, batch(1, 4), goal, &ThreatModel::linf(1e-4)).unwrap();
    // The start, nine steps, the verdict.
    assert_eq!(calls.get(), 11);
    assert_eq!((adv.cost.forwards, adv.cost.backwards), (44, 40));
}

#[test]
fn a_zero_gradient_is_flagged_and_moves_nothing() {
    let victim = Victim::from_fn(|x| {
        let fixed = Tensor::<2>::from_floats([[3.0, 1.0, 0.0, -1.0]], &Device::flex());
        x.flatten::<2>(1, 3).narrow(1, 0, 4) * 0.0 + fixed
    });
    let x = batch(1, 4);
    let goal = Goal::untargeted([0; 4]);
    for norm in NORMS {
        let threat = ThreatModel::new(norm, 0.1);
        for (attack, points) in [(Apgd::dlr(), 4), (Apgd::targeted().targets(2), 8)] {
            let attack = attack.steps(3);
            let adv = attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            assert_eq!(adv.flags, [Flag::ZeroGradient { points }]);
            assert_eq!(adv.fooled(), 0);
        }
        let found =
            Fab::default().steps(3).minimal(&victim, x.clone(), goal.clone(), norm, (0.0, 1.0));
        let found = found.unwrap();
        assert!(found.distances.iter().all(|d| d.is_infinite()));
        assert_eq!(bits(&found.images), bits(&x));
    }
}

#[test]
fn a_model_that_is_wrong_is_at_distance_zero() {
    let victim = linear(6, 3);
    let x = batch(7, 3);
    let mut classes = labels(&victim, &x);
    classes[1] = (classes[1] + 1) % 3;
    let goal = Goal::untargeted(classes);
    let found = Fab::default().minimal(&victim, x.clone(), goal, Norm::L2, (0.0, 1.0)).unwrap();
    assert_eq!(found.distances[1], 0.0);
    assert!(found.distances[0] > 0.0 && found.distances[2] > 0.0);
    let row = |t: &Tensor<4>| bits(&t.clone().narrow(0, 1, 1));
    assert_eq!(row(&found.images), row(&x));
}

#[test]
fn losses_agree_with_their_formulas_and_with_finite_differences() {
    let device = Device::flex();
    let rows = [[2.0f32, -1.0, 0.5, 3.0, 0.25], [1.0, 4.0, -2.0, 0.0, 3.5]];
    let logits = || Tensor::<2>::from_floats(rows, &device);
    let classes = |c: [i64; 2]| Tensor::<1, Int>::from_ints(c, &device);
    let near = |t: Tensor<1>, want: [f32; 2]| {
        for (found, want) in to_vec(t).iter().zip(want) {
            assert!((found - want).abs() < 1e-6, "{found}, not {want}");
        }
    };
    // Labels: the third largest, and the largest.
    near(margin(logits(), classes([2, 1])).unwrap(), [2.5, -0.5]);
    near(dlr(logits(), classes([2, 1])).unwrap(), [2.5 / 2.5, -0.5 / 3.0]);
    let targeted = targeted_dlr(logits(), classes([2, 1]), classes([0, 2])).unwrap();
    near(targeted, [1.5 / (3.0 - 0.375), -6.0 / (4.0 - 0.5)]);

    let losses: [fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>; 3] = [
        |z, y| margin(z, y).unwrap(),
        |z, y| dlr(z, y).unwrap(),
        |z, y| targeted_dlr(z, y.clone(), (y + 1) % 5).unwrap(),
    ];
    for loss in losses {
        let leaf = logits().autodiff().require_grad();
        let mut gradients = loss(leaf.clone(), classes([2, 1])).sum().backward();
        let gradient = to_vec(leaf.grad_remove(&mut gradients).unwrap());
        for index in 0..10 {
            let mut shift = [0.0f32; 10];
            shift[index] = 0.01;
            let shift = Tensor::<1>::from_floats(shift, &device).reshape([2, 5]);
            let at = |z: Tensor<2>| loss(z, classes([2, 1])).sum().into_scalar::<f32>();
            let slope = (at(logits() + shift.clone()) - at(logits() - shift)) / 0.02;
            assert!((slope - gradient[index]).abs() < 1e-3, "{index}: {slope}");
        }
    }
}

#[test]
fn few_classes_are_an_error_unless_the_margin_is_asked_for() {
    let x = batch(1, 2);
    let threat = ThreatModel::linf(0.2);
    let run = |attack: Apgd, classes: usize| {
        let victim = linear(6, classes);
        let goal = Goal::untargeted(labels(&victim, &x));
        attack.steps(5).run(&victim, x.clone(), goal, &threat)
    };
    assert!(matches!(
        run(Apgd::dlr(), 2),
        Err(AttackError::TooFewClasses { needs: 3, classes: 2, .. })
    ));
    assert!(matches!(
        run(Apgd::targeted(), 3),
        Err(AttackError::TooFewClasses { needs: 4, classes: 3, .. })
    ));
    assert!(run(Apgd::dlr(), 3).is_ok());
    assert!(run(Apgd::targeted(), 4).is_ok());
    assert!(run(Apgd::dlr().few_classes(FewClasses::Margin), 2).unwrap().fooled() > 0);
    assert!(run(Apgd::targeted().few_classes(FewClasses::Margin), 2).unwrap().fooled() > 0);
    let one = run(Apgd::targeted().few_classes(FewClasses::Margin), 1);
    assert!(matches!(one, Err(AttackError::TooFewClasses { classes: 1, .. })));
}

#[test]
fn bad_settings_norms_and_goals_are_refused_before_the_model_runs() {
    let victim = Victim::from_fn(|_| panic!("the model ran before the input was checked"));
    let threat = ThreatModel::linf(0.1);
    let goal = || Goal::untargeted([0, 1]);
    let refused: [(&dyn Attack, &str); 13] = [
        (&Apgd::ce().steps(0), "steps"),
        (&Apgd::ce().restarts(0), "restarts"),
        (&Apgd::ce().random_start(RandomStart::Never).restarts(2), "restarts"),
        (&Apgd::ce().rho(1.5), "rho"),
        (&Apgd::targeted().targets(0), "targets"),
        (&Fab::default().steps(0), "steps"),
        (&Fab::targeted().targets(0), "targets"),
        (&Fab::default().eta(0.9), "eta"),
        (&Fab::default().beta(1.0), "beta"),
        (&Square::default().queries(0), "queries"),
        (&Square::default().p_init(0.0), "p_init"),
        (&RFgsm::default().share(1.1), "share"),
        (&NFgsm::default().spread(f64::NAN), "spread"),
    ];
    for (attack, name) in refused {
        match attack.run(&victim, batch(1, 2), goal(), &threat) {
            Err(AttackError::InvalidSetting { setting, .. }) => assert_eq!(setting, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let l2 = ThreatModel::l2(0.1);
    for attack in
        [&RFgsm::default() as &dyn Attack, &NFgsm::default(), &Apgd::ce().shrinking_radius()]
    {
        let result = attack.run(&victim, batch(1, 2), goal(), &l2);
        assert!(matches!(result, Err(AttackError::UnsupportedNorm { norm: Norm::L2, .. })));
    }
    let victim = linear(6, 4);
    for attack in [&Apgd::targeted() as &dyn Attack, &Fab::default(), &Fab::targeted()] {
        let result = attack.run(&victim, batch(1, 2), Goal::targeted([0, 1]), &threat);
        assert!(matches!(result, Err(AttackError::UnsupportedGoal { .. })));
    }
}

#[test]
fn nan_is_an_error_for_every_attack() {
    let factor = Tensor::<2>::from_floats([[1.0], [f32::NAN]], &Device::flex());
    let victim =
        Victim::from_fn(move |x: Tensor<4>| x.flatten::<2>(1, 3).narrow(1, 0, 4) * factor.clone());
    for norm in NORMS {
        let threat = ThreatModel::new(norm, 0.1);
        let attacks: [&dyn Attack; 5] =
            [&Apgd::ce(), &Apgd::targeted(), &Fab::default(), &Square::default(), &Pgd::default()];
        for attack in attacks {
            let goal = Goal::untargeted([0, 1]);
            let result = attack.run(&victim, batch(1, 2), goal, &threat);
            let refused = matches!(
                result,
                Err(AttackError::NonFiniteLogits { .. } | AttackError::NonFiniteGradient { .. })
            );
            assert!(refused, "{norm} {}: {result:?}", attack.describe());
        }
    }
}

#[test]
fn noisy_fgsm_steps_as_published() {
    let victim = linear(6, 3);
    let x = images(7, [4, 2, 4, 4], 0.4, 0.6);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(0.05);
    // A linear model has the same gradient everywhere but for the weights of the classes: the last
    // step of a two-class model would be FGSM's. Here the sizes are what is checked.
    let adv = RFgsm::default().run(&victim, x.clone(), goal.clone(), &threat).unwrap();
    for change in to_vec(adv.images - x.clone()) {
        // +-eps/2 and +-eps/2.
        assert!(change.abs() < 1e-6 || (change.abs() - 0.05).abs() < 1e-6, "{change}");
    }
    let whole = NFgsm::default().perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
    let largest = (whole.clone() - x.clone()).abs().max().into_scalar::<f32>();
    assert!(largest > 0.1 && largest <= 0.15 + 1e-6, "{largest}");
    let inside = NFgsm::default().run(&victim, x.clone(), goal.clone(), &threat).unwrap();
    let largest = (inside.images - x.clone()).abs().max().into_scalar::<f32>();
    assert!(largest <= 0.05 + 1e-6);
    // Without noise it is FGSM.
    let plain = NFgsm::default().spread(0.0).run(&victim, x.clone(), goal.clone(), &threat);
    let fgsm = Fgsm::default().run(&victim, x, goal, &threat).unwrap();
    assert_eq!(bits(&plain.unwrap().images), bits(&fgsm.images));
}

#[test]
fn nesterov_looks_ahead() {
    let victim = convolutional(1, 5);
    let x = batch(2, 4);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(0.05);
    let run = |attack: Pgd| {
        let attack = attack.steps(5).random_start(RandomStart::Never);
        attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap()
    };
    let (heavy, ahead) = (run(Pgd::default().momentum(1.0)), run(Pgd::default().nesterov(1.0)));
    assert_ne!(bits(&heavy.images), bits(&ahead.images));
    // Without memory there is nothing to look along.
    let (heavy, ahead) = (run(Pgd::default().momentum(0.0)), run(Pgd::default().nesterov(0.0)));
    assert_eq!(bits(&heavy.images), bits(&ahead.images));
}

#[test]
fn a_sample_does_not_notice_its_neighbours() {
    let victim = convolutional(1, 5);
    let x = batch(2, 6);
    let classes = labels(&victim, &x);
    let attacks: [&dyn Attack; 4] = [
        &Apgd::ce().steps(8),
        &Apgd::targeted().steps(5).stop_when_fooled(),
        &Fab::targeted().steps(5),
        &Square::default().queries(40),
    ];
    for attack in attacks {
        for threat in [ThreatModel::linf(0.03), ThreatModel::l2(0.15), ThreatModel::l1(0.7)] {
            let goal = Goal::untargeted(classes.clone());
            let together = attack.run(&victim, x.clone(), goal, &threat).unwrap();
            for (sample, &class) in classes.iter().enumerate() {
                let alone = x.clone().narrow(0, sample, 1);
                let goal = Goal::untargeted([class]).numbered_from(sample as u64);
                let alone = attack.run(&victim, alone, goal, &threat).unwrap();
                assert_eq!(alone.success[0], together.success[sample], "{}", attack.describe());
                let row = together.images.clone().narrow(0, sample, 1);
                let difference = (row - alone.images).abs().max().into_scalar::<f32>();
                assert!(difference < 1e-4, "{}: {difference}", attack.describe());
            }
        }
    }
}

#[test]
fn masked_values_stay_to_the_bit() {
    let victim = convolutional(1, 5);
    let x = batch(2, 6);
    let goal = Goal::untargeted(labels(&victim, &x));
    // Each sample has its own checkerboard of columns.
    let mask: Vec<Vec<bool>> =
        (0..6).map(|sample| (0..32).map(|i| (i + sample) % 3 != 0).collect()).collect();
    let attacks: [&dyn Attack; 8] = [
        &Fgsm::default(),
        &Pgd::default(),
        &Apgd::ce().steps(8),
        &Apgd::targeted().steps(5).stop_when_fooled(),
        &Fab::default().steps(5).restarts(2),
        &Square::default().queries(40),
        &RFgsm::default(),
        &NFgsm::default(),
    ];
    for norm in NORMS {
        let eps = match norm {
            Norm::Linf => 0.1,
            Norm::L2 => 0.5,
            _ => 2.0,
        };
        let threat = ThreatModel::new(norm, eps).mask(mask.clone());
        for attack in attacks {
            let adv = match attack.run(&victim, x.clone(), goal.clone(), &threat) {
                Err(AttackError::UnsupportedNorm { .. }) => continue,
                adv => adv.unwrap(),
            };
            assert!(adv.fooled() > 0, "{norm} {}", attack.describe());
            let (found, clean) = (to_vec(adv.images), to_vec(x.clone()));
            let mut moved = 0;
            for (index, (found, clean)) in found.iter().zip(&clean).enumerate() {
                if mask[index / 32][index % 32] {
                    moved += usize::from(found != clean);
                } else {
                    assert_eq!(found.to_bits(), clean.to_bits(), "{}", attack.describe());
                }
            }
            assert!(moved > 0);
        }
    }
    // Nothing may change: nothing does.
    let victim = centred(5);
    let x = grey(1);
    let goal = Goal::untargeted(labels(&victim, &x));
    let nothing = ThreatModel::linf(0.5).mask(vec![vec![false; 32]; 6]);
    for attack in attacks {
        let few = matches!(
            attack.run(&victim, x.clone(), goal.clone(), &nothing),
            Err(AttackError::TooFewClasses { .. })
        );
        if !few {
            let adv = attack.run(&victim, x.clone(), goal.clone(), &nothing).unwrap();
            assert_eq!(adv.fooled(), 0);
            assert_eq!(bits(&adv.images), bits(&x));
        }
    }
}

#[test]
fn masks_of_the_wrong_size_are_refused() {
    let victim = Victim::from_fn(|_| panic!("the model ran before the input was checked"));
    let run = |mask: Vec<Vec<bool>>| {
        let threat = ThreatModel::linf(0.1).mask(mask);
        Pgd::default().run(&victim, batch(1, 2), Goal::untargeted([0, 1]), &threat).unwrap_err()
    };
    let count = run(vec![vec![true; 32]]);
    assert!(matches!(count, AttackError::MaskCount { masks: 1, images: 2 }));
    let length = run(vec![vec![true; 32], vec![true; 31]]);
    assert!(matches!(length, AttackError::MaskLength { sample: 1, flags: 31, values: 32 }));
}

#[test]
fn nesterov_stops_only_where_the_image_itself_fools() {
    let victim = convolutional(1, 5);
    let x = batch(2, 12);
    let goal = Goal::untargeted(labels(&victim, &x));
    let mut left_early = 0;
    for eps in [0.01, 0.02, 0.03, 0.05] {
        for threat in [ThreatModel::linf(eps), ThreatModel::l2(5.0 * eps)] {
            let attack = Pgd::default().steps(6).random_start(RandomStart::Never).nesterov(1.0);
            let run = |attack: &Pgd| attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            let (full, early) = (run(&attack), run(&attack.clone().stop_when_fooled()));
            for (sample, fooled) in full.success.iter().enumerate() {
                assert!(early.success[sample] || !fooled, "eps {eps}, sample {sample}");
            }
            left_early += usize::from(early.cost.backwards < full.cost.backwards);
        }
    }
    assert!(left_early > 0);
}

#[test]
fn the_smallest_radius_of_a_model_that_is_wrong_is_zero() {
    let victim = linear(6, 3);
    let x = batch(7, 3);
    let mut classes = labels(&victim, &x);
    classes[1] = (classes[1] + 1) % 3;
    let goal = Goal::untargeted(classes);
    let threat = ThreatModel::linf(0.0);
    let attack = Fgsm::default();
    let found = minimal_norm(&attack, &victim, x.clone(), goal, &threat, 0.5, 6).unwrap();
    assert_eq!(found.distances[1], 0.0);
    assert!(found.distances[0] > 0.0 && found.distances[2] > 0.0);
    let row = |t: &Tensor<4>| bits(&t.clone().narrow(0, 1, 1));
    assert_eq!(row(&found.images), row(&x));
}

#[test]
fn sweeps_and_smallest_radii_keep_each_sample_its_mask() {
    let victim = linear(6, 3);
    let x = batch(7, 6);
    let goal = Goal::untargeted(labels(&victim, &x));
    let mask: Vec<Vec<bool>> =
        (0..6).map(|sample| (0..32).map(|i| (i + sample) % 3 != 0).collect()).collect();
    let threat = ThreatModel::linf(0.0).mask(mask.clone());
    let attack = Fgsm::default();
    let radii = [0.02, 0.1, 0.4];
    let sweep = eps_sweep(&attack, &victim, x.clone(), &goal, &threat, &radii).unwrap();
    let fooled: Vec<usize> =
        sweep.iter().map(|point| point.success.iter().filter(|&&s| s).count()).collect();
    // Some fall early, others late: the later radii saw a part of the batch.
    assert!(fooled[0] < fooled[2] && fooled.iter().any(|&n| n > 0 && n < 6), "{fooled:?}");

    let found = minimal_norm(&attack, &victim, x.clone(), goal, &threat, 0.4, 8).unwrap();
    let changes = to_vec(found.images - x);
    for (index, change) in changes.iter().enumerate() {
        assert!(mask[index / 32][index % 32] || *change == 0.0, "{index}");
    }
    for (distance, late) in found.distances.iter().zip(&sweep[2].success) {
        assert_eq!(distance.is_finite(), *late);
    }
}

#[test]
fn a_length_with_nan_in_it_is_nan() {
    let mut values = [0.5f32; 32];
    values[3] = f32::NAN;
    let changes = Tensor::<1>::from_floats(&values[..], &Device::flex()).reshape([1, 2, 4, 4]);
    for norm in NORMS {
        assert!(norm.lengths(&changes).unwrap()[0].is_nan(), "{norm}");
    }
    let all = Tensor::<4>::full([1, 2, 4, 4], f32::NAN, &Device::flex());
    assert!(Norm::Linf.lengths(&all).unwrap()[0].is_nan());
}
