use burn::tensor::Tensor;
use proptest::prelude::*;
use sat_attack::{
    Apgd, Attack, AutoAttack, Ball, Fab, FewClasses, Fgsm, Goal, Norm, Pgd, Square, ThreatModel,
    Victim,
};

use crate::models::{SHAPE, bits, convolutional, images, linear, to_vec};

const COUNT: usize = 3;

/// Asserts that every image lies in the bounds exactly, and in the ball up to the rounding of f32.
fn assert_inside(adversarial: Tensor<4>, clean: Tensor<4>, threat: &ThreatModel, radii: &[f64]) {
    let (lower, upper) = threat.bounds;
    let (lower, upper) = (f64::from(lower as f32), f64::from(upper as f32));
    let (adversarial, clean) = (to_vec(adversarial), to_vec(clean));
    let dimension = clean.len() / radii.len();
    // Half a unit in the last place of the largest pixel value.
    let ulp = lower.abs().max(upper.abs()) * f64::from(f32::EPSILON) / 2.0;
    for (sample, &eps) in radii.iter().enumerate() {
        let rows = sample * dimension..(sample + 1) * dimension;
        let mut largest: f64 = 0.0;
        let mut squares = 0.0;
        let mut sum = 0.0;
        for (a, x) in adversarial[rows.clone()].iter().zip(&clean[rows]) {
            let (a, x) = (f64::from(*a), f64::from(*x));
            assert!((lower..=upper).contains(&a), "{a} leaves [{lower}, {upper}]");
            largest = largest.max((a - x).abs());
            squares += (a - x).powi(2);
            sum += (a - x).abs();
        }
        let (size, allowed) = match threat.norm {
            Norm::Linf => (largest, eps * (1.0 + 1e-7) + ulp),
            Norm::L2 => {
                let rounding = (dimension as f64).sqrt() * ulp;
                (squares.sqrt(), eps * (1.0 + 1e-6) + rounding)
            }
            _ => (sum, eps * (1.0 + 1e-6) + dimension as f64 * ulp),
        };
        assert!(size <= allowed, "norm {size} exceeds {eps}");
    }
}

fn norm() -> impl Strategy<Value = Norm> {
    prop_oneof![Just(Norm::Linf), Just(Norm::L2), Just(Norm::L1)]
}

fn bounds() -> impl Strategy<Value = (f64, f64)> {
    prop_oneof![
        Just((0.0, 1.0)),
        Just((0.0, 255.0)),
        (-3.0..3.0f64, 0.01..5.0f64).prop_map(|(lower, width)| (lower, lower + width)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn adversarial_images_lie_in_the_ball_and_in_the_bounds(
        seed in 0..1000u64,
        norm in norm(),
        (lower, upper) in bounds(),
        fractions in prop::array::uniform3(0.0..1.5f64),
        deep: bool,
        early: bool,
        momentum: bool,
        step in 0.01..3.0f64,
        restarts in 1..3usize,
    ) {
        let victim: Victim<'_> = if deep { convolutional(seed, 4) } else { linear(seed, 4) };
        let [c, h, w] = SHAPE;
        let x = images(seed, [COUNT, c, h, w], lower, upper);
        let radii = fractions.map(|fraction| fraction * (upper - lower));
        let threat = ThreatModel::new(norm, 0.0)
            .eps_per_sample(radii.to_vec())
            .bounds(lower, upper);
        let goal = Goal::untargeted(victim.predict(x.clone()).unwrap());
        let mut pgd = Pgd::default()
            .steps(4)
            .relative_step_size(step)
            .restarts(restarts)
            .seed(seed);
        if early {
            pgd = pgd.stop_when_fooled();
        }
        if momentum {
            pgd = pgd.momentum(0.9);
        }
        for attack in [&pgd as &dyn Attack, &Fgsm::default()] {
            let adv = attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap();
            assert_inside(adv.images.clone(), x.clone(), &threat, &radii);
            prop_assert_eq!(&adv.predictions, &victim.predict(adv.images).unwrap());
            let light = attack.perturb(&victim, x.clone(), goal.clone(), &threat).unwrap();
            assert_inside(light, x.clone(), &threat, &radii);
        }
    }

    #[test]
    fn strong_attacks_keep_to_the_rules(
        seed in 0..1000u64,
        norm in norm(),
        (lower, upper) in bounds(),
        fractions in prop::array::uniform3(0.0..0.6f64),
        classes in 2..6usize,
        which in 0..6usize,
    ) {
        let victim = convolutional(seed, classes);
        let [c, h, w] = SHAPE;
        let x = images(seed, [COUNT, c, h, w], lower, upper);
        let radii = fractions.map(|fraction| fraction * (upper - lower));
        let threat = ThreatModel::new(norm, 0.0)
            .eps_per_sample(radii.to_vec())
            .bounds(lower, upper);
        let goal = Goal::untargeted(victim.predict(x.clone()).unwrap());
        let margin = FewClasses::Margin;
        let attack: Box<dyn Attack> = match which {
            0 => Box::new(Apgd::ce().steps(6).seed(seed)),
            1 => Box::new(Apgd::dlr().steps(6).restarts(2).few_classes(margin)),
            2 => Box::new(Apgd::targeted().steps(4).few_classes(margin).stop_when_fooled()),
            3 => Box::new(Fab::default().steps(4).restarts(2).seed(seed)),
            4 => Box::new(Square::default().queries(15).seed(seed)),
            _ => Box::new(AutoAttack::standard().steps(3).queries(5).few_classes(margin)),
        };
        let run = |threat: &ThreatModel| {
            attack.run(&victim, x.clone(), goal.clone(), threat).unwrap()
        };
        let adv = run(&threat);
        assert_inside(adv.images.clone(), x.clone(), &threat, &radii);
        prop_assert_eq!(&adv.predictions, &victim.predict(adv.images.clone()).unwrap());
        prop_assert_eq!(bits(&adv.images), bits(&run(&threat).images));
        let none = run(&ThreatModel::new(norm, 0.0).bounds(lower, upper));
        prop_assert_eq!(none.fooled(), 0);
        prop_assert_eq!(bits(&none.images), bits(&x));
    }

    #[test]
    fn on_a_linear_model_a_larger_ball_fools_at_least_as_many(
        seed in 0..1000u64,
        norm in norm(),
        small in 0.001..0.2f64,
        growth in 1.05..3.0f64,
    ) {
        let victim = linear(seed, 2);
        let [c, h, w] = SHAPE;
        let x = images(seed, [COUNT, c, h, w], 0.3, 0.7);
        let goal = Goal::untargeted(victim.predict(x.clone()).unwrap());
        // Scaled so that some fall and some do not in each norm.
        let scale = match norm {
            Norm::Linf => 1.0,
            Norm::L2 => 5.0,
            _ => 15.0,
        };
        for attack in [&Apgd::ce().steps(12) as &dyn Attack, &Fab::targeted().steps(5)] {
            let fooled = |eps: f64| {
                let threat = ThreatModel::new(norm, eps * scale);
                attack.run(&victim, x.clone(), goal.clone(), &threat).unwrap().fooled()
            };
            prop_assert!(fooled(small * growth) >= fooled(small));
        }
    }

    #[test]
    fn projection_lands_inside_and_leaves_inner_points_alone(
        seed in 0..1000u64,
        norm in norm(),
        eps in 0.0..2.0f64,
        scale in 0.0..3.0f64,
    ) {
        let [c, h, w] = SHAPE;
        let x = images(seed, [COUNT, c, h, w], 0.0, 1.0);
        let threat = ThreatModel::new(norm, eps);
        let ball = Ball::new(x.clone(), &threat).unwrap();
        let far = x.clone() + (images(seed + 1, [COUNT, c, h, w], -1.0, 1.0)) * scale;
        let once = ball.project(far);
        assert_inside(once.clone(), x.clone(), &threat, &[eps; COUNT]);
        let twice = ball.project(once.clone());
        let moved = (twice - once).abs().max().into_scalar::<f32>();
        prop_assert!(moved <= 1e-6, "moved by {}", moved);
    }
}
