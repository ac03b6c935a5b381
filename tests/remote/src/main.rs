//! Adversarial training on a remote device: Burn's server on a loopback port with Flex behind it, beside
//! the same steps on Flex itself. Ends with an error where the weights differ.

use burn::{
    module::{Module, ModuleVisitor, Param},
    remote::RemoteHost,
    server::{RemoteServer, WebSocketTransport},
    tensor::{Device, Tensor},
};
use sat_attack::Norm;
use sat_models::{ResNet, ResNetConfig, StageConfig, StemConfig};
use sat_train::{
    AttackStart, Normalized, Objective, Progress, Recipe, Schedule, TrainingAttack, data::ImageSet,
    train,
};
use std::{error::Error, net::TcpListener, ops::ControlFlow, thread, time::Instant};

type Model = Normalized<ResNet>;

/// The largest difference of a weight or a statistic that passes. Flex has loops of its own for
/// convolution, normalisation and activation; for the server they are composed of Burn's operations,
/// which round otherwise.
const TOLERANCE: f32 = 1e-5;

fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("ws://{}", listener.local_addr()?);
    // It serves until the process ends.
    thread::spawn(|| {
        let transport = WebSocketTransport::from_listener(listener);
        if let Err(error) = RemoteServer::new([Device::flex()]).serve(transport) {
            eprintln!("the server ended: {error}");
        }
    });
    let remote = Device::remote_options(&RemoteHost::websocket(&address)).init()?;

    println!(
        "| objective | attack | largest difference | weights moved by | s on Flex | s remote |"
    );
    println!("|---|---|---:|---:|---:|---:|");
    let start = floats(&model(&Device::flex())?)?;
    for (name, recipe) in recipes() {
        let (local, local_seconds) = run(&recipe, &Device::flex())?;
        let (far, far_seconds) = run(&recipe, &remote)?;
        let (difference, moved) = (largest(&local, &far), largest(&local, &start));
        println!(
            "| {name} | {difference:.1e} | {moved:.2} | {local_seconds:.1} | {far_seconds:.1} |"
        );
        // Not so for a NaN.
        if !(difference <= TOLERANCE && moved > 0.01) {
            return Err(format!("{name}: the weights are not those of Flex").into());
        }
    }
    Ok(())
}

/// Plain adversarial training and TRADES, with several attack steps, held-out images and averaged
/// weights.
fn recipes() -> [(&'static str, Recipe); 2] {
    let attack = TrainingAttack {
        eps: 0.1,
        steps: 3,
        start: AttackStart::Uniform { probability: 1.0 },
        ..TrainingAttack::default()
    };
    let recipe = Recipe {
        epochs: 2,
        batch_size: 8,
        hold_out: 8,
        average: Some(0.9),
        clip_norm: Some(1.0),
        schedule: Schedule::Constant { lr: 0.05 },
        attack: Some(attack.clone()),
        ..Recipe::default()
    };
    // With the usual noise of 0.001 the first gradient of TRADES is a difference of nearly equal numbers,
    // and its direction is that of their rounding.
    let start = AttackStart::Normal { std: 0.05 };
    let l2 = TrainingAttack { norm: Norm::L2, eps: 0.5, start, ..attack };
    let trades =
        Recipe { objective: Objective::Trades { beta: 6.0 }, attack: Some(l2), ..recipe.clone() };
    [("adversarial | Linf, PGD-3", recipe), ("TRADES | L2, PGD-3", trades)]
}

/// The weights and statistics after training on the device, and the seconds it took.
fn run(recipe: &Recipe, device: &Device) -> Result<(Vec<f32>, f64), Box<dyn Error>> {
    let device = device.clone().autodiff();
    let began = Instant::now();
    let go_on = |_: &Progress| ControlFlow::Continue(());
    let trained = train(model(&device)?, recipe, &images()?, &device, None, go_on)?;
    let mut weights = floats(&trained.model.valid())?;
    weights.extend(floats(&trained.result())?);
    Ok((weights, began.elapsed().as_secs_f64()))
}

/// A small ResNet with BatchNorm and a learned activation parameter.
fn model(device: &Device) -> Result<Model, Box<dyn Error>> {
    let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
    let config = ResNetConfig {
        stem: StemConfig::small(4, 1),
        stages: vec![stage(4, 1), stage(8, 2)],
        ..ResNetConfig::resnet20()
    };
    let config = config.with_input_channels(1).with_classes(3);
    let config = config.with_activation("smooth-relu-learnable".parse()?);
    Ok(Normalized::to_plus_minus_one(config.init(3, device), 1))
}

/// 40 images of noisy stripes in three classes, 12 x 12.
fn images() -> Result<ImageSet, Box<dyn Error>> {
    let pixel = |i: usize, x: usize| {
        let stripe = if (x / 2) % 3 == i % 3 { 150 } else { 60 };
        (stripe + (i * 7919 + x * 104_729) % 83) as u8
    };
    let pixels = (0..40).flat_map(|i| (0..144).map(move |x| pixel(i, x))).collect();
    let labels = (0..40).map(|i| i % 3).collect();
    Ok(ImageSet::new(pixels, [1, 12, 12], labels, ["a", "b", "c"].map(String::from).to_vec())?)
}

/// All weights and statistics, read from the device.
fn floats<M: Module>(model: &M) -> Result<Vec<f32>, Box<dyn Error>> {
    struct Floats(Result<Vec<f32>, String>);
    impl ModuleVisitor for Floats {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().try_into_data().map_err(|error| format!("{error:?}"));
            match (&mut self.0, data) {
                (Ok(floats), Ok(data)) => floats.extend(data.iter::<f32>()),
                (Ok(_), Err(error)) => self.0 = Err(error),
                (Err(_), _) => {}
            }
        }
    }
    let mut floats = Floats(Ok(Vec::new()));
    model.visit(&mut floats);
    Ok(floats.0?)
}

/// The largest difference of two lists that begin alike.
fn largest(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap_or(f32::NAN)
}
