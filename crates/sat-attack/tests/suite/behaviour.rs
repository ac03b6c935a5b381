use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use sat_attack::{
    Adversarial, Aim, Apgd, Attack, AttackError, Ball, Ensemble, Fab, Fgsm, Goal, Identity, Loss,
    Norm, Pgd, RandomStart, Restarts, Square, ThreatModel, Victim, cross_entropy, evaluate,
};

use crate::models::{batch, bits, convolutional, images, labels, linear, tensor, to_vec};

fn deterministic() -> Pgd {
    Pgd::default().random_start(RandomStart::Never)
}

fn threats() -> [ThreatModel; 2] {
    [ThreatModel::linf(0.1), ThreatModel::l2(0.5)]
}

#[test]
fn a_linear_model_is_attacked_optimally() {
    // With two classes the loss grows with (w_other - w_label) x alone: the best point of the ball
    // is known in closed form.
    let weight = tensor(5, [32, 2]);
    let victim = linear(5, 2);
    let x = images(1, [3, 2, 4, 4], 0.4, 0.6);
    let goal = Goal::untargeted([0, 1, 0]);
    let difference = |label: usize| {
        let column = |k: usize| weight.clone().slice([0..32, k..k + 1]).reshape([1, 2, 4, 4]);
        column(1 - label) - column(label)
    };
    let direction = Tensor::cat([0, 1, 0].map(difference).to_vec(), 0);
    let attacks: [&dyn Attack; 3] = [
        &Fgsm::default(),
        // Each L2 step of size eps halves the distance from a random start to the optimum.
        &Pgd::default().steps(20).relative_step_size(1.0),
        &deterministic().momentum(1.0),
    ];

    // 0.05 stays clear of the bounds, 0.5 runs into them.
    for eps in [0.05, 0.5] {
        let best = (x.clone() + direction.clone().sign() * eps).clamp(0.0, 1.0);
        for attack in attacks {
            let adv =
                attack.run(&victim, x.clone(), goal.clone(), &ThreatModel::linf(eps)).unwrap();
            let error = (adv.images - best.clone()).abs().max().into_scalar::<f32>();
            assert!(error < 1e-6, "eps {eps}: off by {error}");
        }
    }

    let length = direction.clone().square().sum_dims(&[1, 2, 3]).sqrt();
    let best = x.clone() + direction / length * 0.3;
    for attack in attacks {
        let adv = attack.run(&victim, x.clone(), goal.clone(), &ThreatModel::l2(0.3)).unwrap();
        let error = (adv.images - best.clone()).abs().max().into_scalar::<f32>();
        assert!(error < 1e-5, "L2: off by {error}");
    }
}

#[test]
fn attacks_succeed_on_a_network_and_more_steps_help() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    let clean = run(&Fgsm::default(), &victim, &x, &goal, &ThreatModel::linf(0.0));
    assert_eq!(clean.fooled(), 0);
    for threat in threats() {
        let one = run(&Fgsm::default(), &victim, &x, &goal, &threat);
        let many = run(&deterministic().steps(20), &victim, &x, &goal, &threat);
        assert!(many.fooled() >= 8, "{}", many.fooled());
        assert!(total(&many) >= total(&one) && total(&one) > total(&clean));
    }
}

#[test]
fn success_predictions_and_loss_describe_the_returned_images() {
    let victim = convolutional(1, 5);
    let x = batch(2, 12);
    let classes = labels(&victim, &x);
    let attacks = [
        Pgd::default(),
        Pgd::default().stop_when_fooled(),
        Pgd::default().restarts(3),
        Pgd::default().restarts(3).stop_when_fooled(),
    ];
    for attack in &attacks {
        for threat in threats() {
            let goal = Goal::untargeted(classes.clone());
            let adv = run(attack, &victim, &x, &goal, &threat);
            let predictions = victim.predict(adv.images.clone()).unwrap();
            assert_eq!(adv.predictions, predictions);
            let device = Device::flex();
            let index: Vec<i64> = classes.iter().map(|&class| class as i64).collect();
            let index = Tensor::<1, Int>::from_data(TensorData::new(index, [12]), &device);
            let loss = to_vec(cross_entropy(victim.logits(adv.images.clone()).unwrap(), index));
            for (row, &class) in classes.iter().enumerate() {
                assert_eq!(adv.success[row], predictions[row] != class);
                assert!((adv.loss[row] - loss[row]).abs() < 1e-5);
            }
            assert_eq!(adv.len(), 12);
            assert_eq!(adv.fooled() + adv.robust(), 12);
        }
    }
}

#[test]
fn eps_zero_changes_nothing() {
    let victim = convolutional(3, 4);
    let x = batch(4, 5);
    let goal = Goal::untargeted(labels(&victim, &x));
    let attacks: [&dyn Attack; 4] = [
        &Fgsm::default(),
        &Pgd::default(),
        &Pgd::default().step_size(0.1).restarts(2),
        &Pgd::default().momentum(1.0),
    ];
    for attack in attacks {
        for threat in [ThreatModel::linf(0.0), ThreatModel::l2(0.0)] {
            let adv = run(attack, &victim, &x, &goal, &threat);
            assert_eq!(bits(&adv.images), bits(&x));
            assert_eq!(adv.fooled(), 0);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_does_not() {
    let victim = convolutional(3, 4);
    let x = batch(4, 5);
    let goal = Goal::untargeted(labels(&victim, &x));
    for threat in threats() {
        let attack = Pgd::default().steps(3).restarts(2).seed(7);
        let once = run(&attack, &victim, &x, &goal, &threat);
        let twice = run(&attack, &victim, &x, &goal, &threat);
        let other = run(&attack.seed(8), &victim, &x, &goal, &threat);
        assert_eq!(bits(&once.images), bits(&twice.images));
        assert_ne!(bits(&once.images), bits(&other.images));
    }
}

#[test]
fn a_sample_does_not_notice_its_neighbours() {
    let victim = convolutional(1, 5);
    let x = batch(2, 6);
    let classes = labels(&victim, &x);
    for attack in [
        Pgd::default().steps(5),
        Pgd::default().steps(5).restarts(3),
        Pgd::default().steps(5).restarts(3).stop_when_fooled(),
        Pgd::default().steps(5).stop_when_fooled().momentum(0.9),
    ] {
        // A radius that fools some samples and not others, so that some leave.
        for threat in [ThreatModel::linf(0.03), ThreatModel::l2(0.1)] {
            let goal = Goal::untargeted(classes.clone());
            let together = run(&attack, &victim, &x, &goal, &threat);
            assert!(together.fooled() > 0 && together.robust() > 0);
            for (sample, &class) in classes.iter().enumerate() {
                let alone = x.clone().slice([sample..sample + 1]);
                let goal = Goal::untargeted([class]).numbered_from(sample as u64);
                let alone = run(&attack, &victim, &alone, &goal, &threat);
                let row = together.images.clone().slice([sample..sample + 1]);
                let difference = (row - alone.images).abs().max().into_scalar::<f32>();
                // Not bit for bit: matrix products may sum in another order.
                assert!(difference < 1e-5, "sample {sample} moved by {difference}");
                assert_eq!(alone.success[0], together.success[sample]);
            }
        }
    }
}

#[test]
fn early_exit_keeps_the_clean_image_of_a_sample_that_is_wrong_already() {
    let victim = linear(6, 3);
    let x = batch(7, 4);
    let mut classes = labels(&victim, &x);
    classes[2] = (classes[2] + 1) % 3;
    let goal = Goal::untargeted(classes);
    let threat = ThreatModel::linf(1e-4);
    for attack in [Pgd::default().stop_when_fooled(), deterministic().stop_when_fooled()] {
        let adv = run(&attack, &victim, &x, &goal, &threat);
        assert_eq!(adv.success, [false, false, true, false]);
        let row = |t: &Tensor<4>| bits(&t.clone().slice([2..3]));
        assert_eq!(row(&adv.images), row(&x));
    }
}

#[test]
fn early_exit_saves_work_and_fools_no_fewer() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    for threat in threats() {
        let full = run(&deterministic().steps(20), &victim, &x, &goal, &threat);
        let attack = deterministic().steps(20).stop_when_fooled();
        let early = run(&attack, &victim, &x, &goal, &threat);
        assert!(early.fooled() >= full.fooled());
        assert!(early.cost.backwards < full.cost.backwards);
    }
}

#[test]
fn restarts_only_help() {
    let victim = convolutional(1, 5);
    let x = batch(2, 16);
    let goal = Goal::untargeted(labels(&victim, &x));
    let threat = ThreatModel::linf(0.02);
    let once = run(&Pgd::default().steps(2), &victim, &x, &goal, &threat);
    let often = Pgd::default().steps(2).restarts(8);
    let often = run(&often, &victim, &x, &goal, &threat);
    let mut improved = 0;
    for sample in 0..16 {
        assert!(often.success[sample] || !once.success[sample]);
        if !often.success[sample] {
            assert!(often.loss[sample] >= once.loss[sample] - 1e-6);
            improved += usize::from(often.loss[sample] > once.loss[sample] + 1e-6);
        }
    }
    assert!(improved > 0);
}

#[test]
fn passes_are_counted_and_perturb_makes_no_more_than_the_steps() {
    let calls = Cell::new(0);
    let weight = tensor(5, [32, 3]);
    let victim = Victim::from_fn(|x| {
        calls.set(calls.get() + 1);
        x.flatten::<2>(1, 3).matmul(weight.clone())
    });
    let x = batch(1, 4);
    let goal = Goal::untargeted([0, 1, 2, 0]);
    let attack = Pgd::default().steps(7);
    let threat = ThreatModel::linf(0.1);

    let adv = attack.perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
    assert_eq!(calls.replace(0), 7);
    let full = run(&attack, &victim, &x, &goal, &threat);
    assert_eq!(calls.replace(0), 8);
    assert_eq!((full.cost.forwards, full.cost.backwards), (8 * 4, 7 * 4));
    assert!(full.cost.seconds > 0.0);
    assert_eq!(bits(&adv), bits(&full.images));

    Fgsm::default().perturb(&victim, x, goal, &threat).unwrap();
    assert_eq!(calls.get(), 1);
}

#[test]
fn targeted_attacks_raise_the_target() {
    let victim = convolutional(1, 5);
    let x = batch(2, 8);
    let targets: Vec<usize> = labels(&victim, &x).iter().map(|k| (k + 2) % 5).collect();
    let goal = Goal::targeted(targets.clone());
    let clean = run(&Fgsm::default(), &victim, &x, &goal, &ThreatModel::linf(0.0));
    assert_eq!(clean.fooled(), 0);
    for threat in [ThreatModel::linf(0.2), ThreatModel::l2(1.0)] {
        let adv = run(&Pgd::default().steps(20), &victim, &x, &goal, &threat);
        assert!(adv.fooled() > 0);
        for (sample, &target) in targets.iter().enumerate() {
            assert!(adv.loss[sample] < clean.loss[sample]);
            assert_eq!(adv.success[sample], adv.predictions[sample] == target);
        }
    }
}

#[test]
fn each_sample_has_its_own_goal() {
    let victim = convolutional(1, 5);
    let x = batch(2, 8);
    let labels = labels(&victim, &x);
    let targets: Vec<usize> = labels.iter().map(|k| (k + 1) % 5).collect();
    let is_targeted = |sample: usize| !sample.is_multiple_of(3);
    let mixed = Goal::mixed((0..8).map(|sample| match is_targeted(sample) {
        true => Aim::Targeted(targets[sample]),
        false => Aim::Untargeted(labels[sample]),
    }));
    let pgd = || Pgd::default().steps(8).step_size(0.05);
    let attacks: [Box<dyn Attack>; 6] = [
        Box::new(Fgsm::default()),
        Box::new(pgd().restarts(2).stop_when_fooled()),
        Box::new(Apgd::ce().steps(10)),
        Box::new(Square::default().queries(60)),
        Box::new(Restarts::new(pgd(), 2)),
        Box::new(Ensemble::new().then("pgd", pgd()).then("square", Square::default().queries(20))),
    ];
    let threat = ThreatModel::linf(0.2);
    for attack in &attacks {
        let run = |goal: &Goal| run(attack.as_ref(), &victim, &x, goal, &threat);
        let away = run(&Goal::untargeted(labels.clone()));
        let towards = run(&Goal::targeted(targets.clone()));
        let both = run(&mixed);
        let mut reached = [0, 0];
        for sample in 0..8 {
            let targeted = is_targeted(sample);
            let alone = if targeted { &towards } else { &away };
            let name = attack.describe();
            assert_eq!(both.success[sample], alone.success[sample], "{name}, sample {sample}");
            assert_eq!(both.predictions[sample], alone.predictions[sample], "{name}");
            let near = (both.loss[sample] - alone.loss[sample]).abs() < 1e-3;
            assert!(near, "{name}: {} {}", both.loss[sample], alone.loss[sample]);
            reached[usize::from(targeted)] += usize::from(both.success[sample]);
        }
        assert!(reached[0] > 0, "{}: no label was left", attack.describe());
        // One step reaches few targets.
        assert!(reached[1] > 0 || attack.describe()["name"] == "fgsm", "{}", attack.describe());
    }
    let refused = Fab::targeted().run(&victim, x.clone(), mixed, &threat);
    assert!(matches!(refused, Err(AttackError::UnsupportedGoal { sample: 1, .. })));
}

#[test]
fn a_step_in_linf_is_a_signed_step_and_a_projection() {
    let x = batch(1, 4);
    let mask: Vec<bool> = (0..32).map(|i| i % 5 != 0).collect();
    let threats = [0.1, 0.0].map(ThreatModel::linf).into_iter().chain([
        ThreatModel::linf(0.0).eps_per_sample(vec![0.0, 0.05, 0.3, 2.0]),
        ThreatModel::linf(0.2).mask(vec![mask; 4]),
    ]);
    let size = Tensor::<1>::from_floats([0.1, 0.03, 0.2, 0.0], &x.device()).reshape([4, 1, 1, 1]);
    for threat in threats {
        let ball = Ball::new(x.clone(), &threat).unwrap();
        let start = ball.project(x.clone() + tensor(2, [4, 2, 4, 4]) * 0.2);
        let mut gradient = to_vec(tensor(3, [4, 2, 4, 4]));
        gradient[7] = f32::NAN;
        gradient[40] = 0.0;
        let gradient = Tensor::from_data(TensorData::new(gradient, [4, 2, 4, 4]), &x.device());
        let want = ball.project(start.clone() + gradient.clone().sign() * size.clone());
        let got = ball.step(start, gradient, size.clone());
        assert_eq!(bits(&got), bits(&want), "{threat:?}");
    }
}

#[test]
fn each_sample_has_its_own_radius() {
    let victim = linear(6, 3);
    let x = images(7, [3, 2, 4, 4], 0.4, 0.6);
    let radii = [0.0, 0.05, 0.3];
    let goal = Goal::untargeted(labels(&victim, &x));
    for norm in [Norm::Linf, Norm::L2] {
        let threat = ThreatModel::new(norm, 0.0).eps_per_sample(radii.to_vec());
        let adv = run(&Pgd::default(), &victim, &x, &goal, &threat);
        let change = adv.images - x.clone();
        let size = match norm {
            Norm::Linf => change.abs().max_dims(&[1, 2, 3]),
            _ => change.square().sum_dims(&[1, 2, 3]).sqrt(),
        };
        for (size, radius) in to_vec(size).iter().zip(radii) {
            assert!((f64::from(*size) - radius).abs() < 1e-6, "{norm}: {size}");
        }
    }
}

#[test]
fn a_zero_gradient_moves_nothing_and_makes_no_nan() {
    let victim = Victim::from_fn(|x| x.flatten::<2>(1, 3).narrow(1, 0, 3) * 0.0);
    let x = batch(1, 4);
    let goal = Goal::untargeted([0, 1, 2, 0]);
    for threat in threats() {
        for attack in [deterministic(), deterministic().momentum(1.0)] {
            let adv = run(&attack, &victim, &x, &goal, &threat);
            assert_eq!(bits(&adv.images), bits(&x));
            // Equal logits: the first class is predicted.
            assert_eq!(adv.predictions, [0; 4]);
        }
    }
}

#[test]
fn the_explicit_start_is_projected_and_used() {
    let seen = RefCell::new(Vec::new());
    let weight = tensor(5, [32, 3]);
    let victim = Victim::from_fn(|x| {
        seen.borrow_mut().push(x.clone().without_autodiff());
        x.flatten::<2>(1, 3).matmul(weight.clone())
    });
    let x = batch(1, 2);
    let start = x.clone() + 0.3;
    let goal = Goal::untargeted([0, 1]);
    let attack = Pgd::default().steps(1).start_from(start);
    run(&attack, &victim, &x, &goal, &ThreatModel::linf(0.1));
    let expected = (x.clone() + 0.1).clamp(0.0, 1.0);
    let seen = seen.borrow();
    assert_eq!(bits(&seen[0]), bits(&expected));
}

#[test]
fn the_start_is_random_with_the_given_probability_for_the_whole_batch() {
    let seen = RefCell::new(None);
    let weight = tensor(5, [32, 3]);
    let victim = Victim::from_fn(|x| {
        seen.replace(Some(x.clone().without_autodiff()));
        x.flatten::<2>(1, 3).matmul(weight.clone())
    });
    let x = batch(1, 2);
    let threat = ThreatModel::linf(0.1);
    let moved = |attack: Pgd, first: u64| {
        let goal = Goal::untargeted([0, 1]).numbered_from(first);
        attack.perturb(&victim, x.clone(), goal, &threat).unwrap();
        let start = seen.take().unwrap();
        let rows: Vec<bool> = (0..2)
            .map(|row| {
                let row = |t: &Tensor<4>| bits(&t.clone().slice([row..row + 1]));
                row(&start) != row(&x)
            })
            .collect();
        assert_eq!(rows[0], rows[1], "one draw for the whole batch");
        rows[0]
    };
    let one_step = Pgd::default().steps(1);
    assert!(moved(one_step.clone(), 0));
    assert!(!moved(one_step.clone().random_start(RandomStart::Never), 0));

    let attack = one_step.random_start(RandomStart::WithProbability(0.8));
    let by_seed = (0..500).filter(|&s| moved(attack.clone().seed(s), 0)).count();
    let by_sample = (0..500).filter(|&n| moved(attack.clone(), 2 * n)).count();
    // 400 expected, standard deviation 9.
    assert!((355..=445).contains(&by_seed), "{by_seed}");
    assert!((355..=445).contains(&by_sample), "{by_sample}");
}

#[test]
fn a_custom_loss_is_followed() {
    // Raising minus the logit of the label goes against the label's column of weights.
    let victim = linear(6, 3);
    let weight = tensor(6, [32, 3]);
    let x = images(7, [1, 2, 4, 4], 0.4, 0.6);
    let loss = Loss::custom("minus_logit", |logits, classes: Tensor<1, Int>| {
        logits.gather(1, classes.unsqueeze_dim(1)).squeeze_dim::<1>(1).neg()
    });
    let attack = Fgsm::default().loss(loss);
    let adv = run(&attack, &victim, &x, &Goal::untargeted([1]), &ThreatModel::linf(0.1));
    let column = weight.slice([0..32, 1..2]).reshape([1, 2, 4, 4]);
    let expected = x - column.sign() * 0.1;
    assert_eq!(bits(&adv.images), bits(&expected));
}

#[test]
fn normalisation_stays_inside_the_victim() {
    // A victim that normalises is the same function as one whose model was rescaled.
    let weight = tensor(5, [32, 3]);
    let (mean, std) = ([0.4, 0.6], [0.2, 0.5]);
    let victim = linear(5, 3).normalize(&mean, &std).unwrap();
    let by_hand = Victim::from_fn(|x: Tensor<4>| {
        let row = |v: [f64; 2]| Tensor::<4>::from_data([[[[v[0]]], [[v[1]]]]], &Device::flex());
        ((x - row(mean)) / row(std)).flatten::<2>(1, 3).matmul(weight.clone())
    });
    let x = batch(1, 4);
    let goal = Goal::untargeted([0, 1, 2, 0]);
    for threat in threats() {
        let attack = Pgd::default();
        let inside = run(&attack, &victim, &x, &goal, &threat);
        let outside = run(&attack, &by_hand, &x, &goal, &threat);
        assert_eq!(bits(&inside.images), bits(&outside.images));
    }
}

#[test]
fn the_input_gradient_matches_finite_differences() {
    // In f64, where differences are accurate.
    let weight = tensor(9, [32, 4]).cast(DType::F64);
    let victim = Victim::from_fn(move |x| {
        let hidden = x.flatten::<2>(1, 3);
        (hidden.clone() * hidden).matmul(weight.clone())
    })
    .normalize(&[0.3, 0.4], &[0.5, 0.25])
    .unwrap();
    let device = Device::flex();
    let x = batch(3, 2).cast(DType::F64);
    let classes = Tensor::<1, Int>::from_ints([1, 3], &device);
    let loss = |x: Tensor<4>| {
        let logits = victim.logits(x).unwrap();
        cross_entropy(logits, classes.clone()).sum().into_scalar::<f64>()
    };
    let (_, gradient) =
        victim.input_gradient(x.clone(), |z| Ok(cross_entropy(z, classes.clone()))).unwrap();
    assert_eq!(gradient.dtype(), DType::F64);
    let gradient: Vec<f64> = gradient.try_into_vec_as().unwrap();
    let step = 1e-6;
    for pixel in [0, 5, 31, 32, 47, 63] {
        let mut shift = vec![0.0; 64];
        shift[pixel] = step;
        let shift = TensorData::new(shift, [2, 2, 4, 4]);
        let shift = Tensor::<4>::from_data(shift, (&device, DType::F64));
        let slope = (loss(x.clone() + shift.clone()) - loss(x.clone() - shift)) / (2.0 * step);
        let error = (slope - gradient[pixel]).abs();
        assert!(error < 1e-7, "pixel {pixel}: {slope} against {}", gradient[pixel]);
    }
}

#[test]
fn half_precision_and_double_images_keep_their_type() {
    for dtype in [DType::F16, DType::F64] {
        let weight = tensor(5, [32, 3]).cast(dtype);
        let victim = Victim::from_fn(move |x| {
            assert_eq!(x.dtype(), dtype);
            x.flatten::<2>(1, 3).matmul(weight.clone())
        });
        let x = batch(1, 4).cast(dtype);
        let goal = Goal::untargeted(victim.predict(x.clone()).unwrap());
        for threat in threats() {
            for attack in [Pgd::default(), Pgd::default().restarts(2).momentum(1.0)] {
                let adv = run(&attack, &victim, &x, &goal, &threat);
                assert_eq!(adv.images.dtype(), dtype);
                assert!(adv.fooled() > 0);
            }
        }
    }
}

#[test]
fn half_precision_results_lie_in_the_ball() {
    for dtype in [DType::F16, DType::BF16] {
        let weight = tensor(5, [32, 3]).cast(dtype);
        let victim = Victim::from_fn(move |x| x.flatten::<2>(1, 3).matmul(weight.clone()));
        let x = batch(1, 8).cast(dtype);
        let goal = Goal::untargeted(victim.predict(x.clone()).unwrap());
        for eps in [8.0 / 255.0, 0.0111] {
            let threats = [ThreatModel::linf(eps), ThreatModel::l2(eps), ThreatModel::l1(eps)];
            for threat in threats {
                let attack = Pgd::default().steps(4);
                let adv = run(&attack, &victim, &x, &goal, &threat);
                let light = attack.perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
                for images in [adv.images, light] {
                    assert_eq!(images.dtype(), dtype);
                    let exact = |t: &Tensor<4>| t.clone().cast(DType::F64);
                    let lengths = threat.norm.lengths(&(exact(&images) - exact(&x))).unwrap();
                    let largest = lengths.iter().copied().fold(0.0, f64::max);
                    assert!(largest <= eps * (1.0 + 1e-6) + 1e-7, "{dtype:?} {}", threat.norm);
                    // L1 changes few pixels, by more than a unit in the last place.
                    assert!(largest > 0.3 * eps, "{dtype:?} {}: {largest}", threat.norm);
                }
            }
        }
    }
}

#[test]
fn images_on_an_autodiff_device_are_taken_out_of_their_graph() {
    let victim = linear(6, 3);
    let x = batch(7, 2);
    let goal = Goal::untargeted([0, 1]);
    let threat = ThreatModel::linf(0.1);
    let plain = run(&Pgd::default(), &victim, &x, &goal, &threat);
    let tracked = x.autodiff().require_grad() * 1.0;
    let adv = run(&Pgd::default(), &victim, &tracked, &goal, &threat);
    assert!(!adv.images.is_autodiff());
    assert_eq!(bits(&adv.images), bits(&plain.images));
    let light = Pgd::default().perturb(&victim, tracked, goal, &threat).unwrap();
    assert!(!light.is_autodiff());
}

#[test]
fn labels_may_be_a_tensor() {
    let labels = Tensor::<1, Int>::from_ints([2, 0], &Device::flex());
    assert_eq!(Goal::untargeted(labels), Goal::untargeted([2, 0]));
    assert_eq!(Goal::untargeted(vec![2, 0]), Goal::untargeted([2, 0]));
}

#[test]
fn evaluation_counts_and_does_not_depend_on_the_batch_size() {
    let victim = convolutional(1, 5);
    let x = batch(2, 10);
    let mut classes = labels(&victim, &x);
    classes[3] = (classes[3] + 1) % 5;
    let radii: Vec<f64> = (0..10).map(|sample| 0.004 * sample as f64).collect();
    let threat = ThreatModel::linf(0.0).eps_per_sample(radii);
    let measure = |size: usize| {
        let batches = (0..10).step_by(size).map(|start| {
            let end = (start + size).min(10);
            (x.clone().slice([start..end]), classes[start..end].to_vec())
        });
        evaluate(&victim, &Pgd::default(), batches, &threat, |_| ControlFlow::Continue(())).unwrap()
    };
    let report = measure(10);
    assert_eq!((report.n, report.clean_correct), (10, 9));
    assert!(report.complete);
    assert!(report.robust_correct > 0 && report.robust_correct < 9);
    assert_eq!(report.clean_accuracy(), 0.9);
    assert_eq!(report.robust_accuracy(), report.robust_correct as f64 / 10.0);
    // The clean pass, ten steps and the final check, for each image.
    assert_eq!((report.cost.forwards, report.cost.backwards), (120, 100));
    let robust = report.per_sample.iter().filter(|r| r.robust).count();
    assert_eq!(robust, report.worst_case_correct);
    assert_eq!(report.worst_case_accuracy(), robust as f64 / 10.0);
    let right = report.per_sample.iter().filter(|r| r.adv_prediction == r.label).count();
    assert_eq!(right, report.robust_correct);
    let mean = report.per_sample.iter().map(|r| f64::from(r.adv_ce)).sum::<f64>() / 10.0;
    assert!((mean - report.adv_ce).abs() < 1e-9);
    for (index, record) in report.per_sample.iter().enumerate() {
        assert_eq!((record.index, record.label), (index, classes[index]));
        let correct = record.clean_prediction == record.label;
        assert_eq!(correct, index != 3);
        assert_eq!(record.robust, correct && record.adv_prediction == record.label);
    }

    let small = measure(3);
    assert!((small.adv_ce - report.adv_ce).abs() < 1e-5);
    for (one, other) in report.per_sample.iter().zip(&small.per_sample) {
        assert_eq!(one.adv_prediction, other.adv_prediction);
        assert!((one.adv_ce - other.adv_ce).abs() < 1e-4);
    }
}

#[test]
fn evaluation_stops_when_asked_and_returns_what_it_has() {
    let victim = linear(6, 3);
    let batches = (0..5).map(|seed| (batch(seed, 2), [0, 1]));
    let threat = ThreatModel::linf(0.1);
    let report = evaluate(&victim, &Fgsm::default(), batches, &threat, |report| {
        if report.n >= 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!((report.n, report.per_sample.len()), (4, 4));
    assert!(!report.complete);

    let none: [(Tensor<4>, Vec<usize>); 0] = [];
    let empty =
        evaluate(&victim, &Fgsm::default(), none, &threat, |_| ControlFlow::Continue(())).unwrap();
    assert!(empty.complete);
    assert_eq!(empty.robust_accuracy(), 0.0);
}

#[test]
fn the_attack_that_does_nothing_measures_clean_accuracy() {
    let victim = convolutional(1, 5);
    let x = batch(2, 10);
    let mut classes = labels(&victim, &x);
    classes[3] = (classes[3] + 1) % 5;
    let threat = ThreatModel::linf(0.1);
    let go_on = |_: &_| ControlFlow::Continue(());
    let report = evaluate(&victim, &Identity, [(x.clone(), classes)], &threat, go_on).unwrap();
    assert_eq!((report.clean_correct, report.robust_correct), (9, 9));
    assert_eq!(report.clean_ce, report.adv_ce);
    assert_eq!((report.cost.forwards, report.cost.backwards), (20, 0));
}

#[test]
fn settings_and_reports_serialise() {
    let attack = Pgd::default().steps(50).step_size(0.5).momentum(1.0);
    assert_eq!(
        serde_json::to_value(&attack).unwrap(),
        serde_json::json!({
            "steps": 50, "step_size": {"absolute": 0.5}, "restarts": 1, "random_start": "always",
            "seed": 0, "momentum": 1.0, "lookahead": "none", "early_exit": "never", "loss": "cross_entropy",
            "explicit_start": false,
        })
    );
    let threat = ThreatModel::linf(0.25);
    let json = serde_json::to_string(&threat).unwrap();
    assert_eq!(json, r#"{"norm":"linf","eps":0.25,"bounds":[0.0,1.0]}"#);
    assert_eq!(serde_json::from_str::<ThreatModel>(&json).unwrap(), threat);

    let victim = linear(6, 3);
    let report = evaluate(&victim, &Fgsm::default(), [(batch(1, 2), [0, 1])], &threat, |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let json = serde_json::to_string(&report).unwrap();
    let back: sat_attack::Report = serde_json::from_str(&json).unwrap();
    assert_eq!((back.n, back.per_sample.len()), (2, 2));
}

fn run(
    attack: &dyn Attack,
    victim: &Victim<'_>,
    images: &Tensor<4>,
    goal: &Goal,
    threat: &ThreatModel,
) -> Adversarial {
    attack.run(victim, images.clone(), goal.clone(), threat).unwrap()
}

fn total(adv: &Adversarial) -> f32 {
    adv.loss.iter().sum()
}
