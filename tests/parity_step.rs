//! Three steps of adversarial training against PyTorch's: adversarial images, loss, clipped gradients,
//! weights and BatchNorm's statistics; and mixed precision beside its autocast. `tests/parity/step.py`
//! made the numbers and says what they are.
#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData},
};
use safetensors::{SafeTensors, tensor::TensorView};
use sat::{
    models::{ResNet, ResNetConfig, StageConfig, StemConfig, load_safetensors, save_safetensors},
    train::{
        AdversarialStep, AttackStart, Normalized, Precision, Recipe, TrainingAttack, optimizer,
    },
};
use std::{collections::BTreeMap, fs};

const TOLERANCE: f32 = 1e-4;
const NUMBERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/step.safetensors");
type Named = BTreeMap<String, Vec<f32>>;

fn values(view: &TensorView<'_>) -> Vec<f32> {
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The tensors whose names start with `prefix`, without it.
fn named(file: &SafeTensors<'_>, prefix: &str) -> Named {
    let rest = |name: &str| name.strip_prefix(prefix).map(str::to_owned);
    file.iter().filter_map(|(name, view)| Some((rest(name)?, values(&view)))).collect()
}

/// The tensors of a model under PyTorch's names.
fn of_model(model: &ResNet) -> Named {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_safetensors(model, &path, &Default::default()).unwrap();
    let bytes = fs::read(&path).unwrap();
    named(&SafeTensors::deserialize(&bytes).unwrap(), "")
}

/// Puts each gradient where its parameter was.
struct IntoModel<'a>(&'a GradientsParams);

impl ModuleMapper for IntoModel<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.get::<D>(param.id) {
            Some(gradient) => param.map(|_| gradient.autodiff()),
            None => param,
        }
    }
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() < TOLERANCE, "{what}[{i}]: {got}, PyTorch has {want}");
    }
}

/// The network of step.py with the weights under `prefix`.
fn load(file: &SafeTensors<'_>, prefix: &str, device: &Device) -> Normalized<ResNet> {
    let stage = |channels, stride| StageConfig { channels, blocks: 1, stride };
    let config = ResNetConfig {
        stem: StemConfig::small(4, 1),
        stages: vec![stage(4, 1), stage(8, 2)],
        ..ResNetConfig::resnet20()
    }
    .with_classes(5)
    .with_activation("silu".parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let views = file.iter().filter_map(|(name, view)| Some((name.strip_prefix(prefix)?, view)));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let model = load_safetensors(config.init(0, device), &path).unwrap();
    Normalized::to_plus_minus_one(model, 3)
}

fn recipe() -> Recipe {
    let recipe = Recipe {
        batch_size: 8,
        momentum: 0.9,
        weight_decay: 5e-2,
        label_smoothing: 0.1,
        clip_norm: Some(1.0),
        attack: Some(TrainingAttack {
            steps: 3,
            step_size: Some(3.0 / 255.0),
            start: AttackStart::Clean,
            ..TrainingAttack::default()
        }),
        ..Recipe::default()
    };
    recipe.validate().unwrap();
    recipe
}

/// Images under this name, and the labels.
fn batch(
    file: &SafeTensors<'_>,
    step: usize,
    images: &str,
    device: &Device,
) -> (Tensor<4>, Vec<usize>) {
    let of_step = |name: &str| file.tensor(&format!("{step}.{name}")).unwrap();
    let images = TensorData::new(values(&of_step(images)), [8, 3, 8, 8]);
    let labels = of_step("labels").data().chunks_exact(8).map(|label| label[0].into()).collect();
    (Tensor::from_data(images, device), labels)
}

#[test]
fn steps_are_those_of_pytorch() {
    let bytes = fs::read(NUMBERS).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let device = Device::flex().autodiff();
    let mut model = load(&file, "start.", &device);
    let recipe = recipe();
    let step = AdversarialStep::new(&recipe);
    let mut sgd = optimizer(&recipe, &model);
    for number in 0..3 {
        let of_step = |name: &str| values(&file.tensor(&format!("{number}.{name}")).unwrap());
        let (images, labels) = batch(&file, number, "images", &device);
        let (gradients, output) = step.gradients(&model, images, &labels, 0).unwrap();
        let adversarial = output.adversarial.into_data().try_into_vec::<f32>().unwrap();
        close("adversarial images", &adversarial, &of_step("adversarial"));
        close("loss", &[output.loss.into_scalar::<f32>()], &of_step("loss"));
        let got = of_model(&model.model.clone().map(&mut IntoModel(&gradients)));
        for (name, want) in named(&file, &format!("{number}.gradient.")) {
            close(&format!("step {number}: gradient of {name}"), &got[&name], &want);
        }
        model = sgd.step(0.1, model, gradients);
        let (got, want) = (of_model(&model.model), named(&file, &format!("{number}.after.")));
        assert!(got.keys().eq(want.keys()));
        for (name, want) in want {
            close(&format!("step {number}: {name} after it"), &got[&name], &want);
        }
    }
}

/// Both round to `bf16`, but not in the same places: what can be compared is how far the rounding moves the
/// gradient. Autocast rounds once more, between normalisation and activation. In steps 0, 1 and 2 it is
/// 0.78, 0.86 and 0.84 per cent here, 0.88, 1.06 and 0.95 there.
#[test]
fn mixed_precision_moves_the_gradient_about_as_far_as_autocast() {
    let bytes = fs::read(NUMBERS).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let device = Device::flex().autodiff();
    let recipe = Recipe { precision: Precision::Bf16Mixed, attack: None, ..recipe() };
    for (number, weights) in ["start.", "0.after.", "1.after."].into_iter().enumerate() {
        let model = load(&file, weights, &device);
        let (images, labels) = batch(&file, number, "adversarial", &device);
        let step = AdversarialStep::new(&recipe);
        let (gradients, output) = step.gradients(&model, images, &labels, 0).unwrap();
        let got = of_model(&model.model.clone().map(&mut IntoModel(&gradients)));
        let exact = named(&file, &format!("{number}.gradient."));
        let autocast = named(&file, &format!("{number}.bf16.gradient."));
        assert!(exact.keys().eq(autocast.keys()));
        // |gradient - exact| / |exact|, over all parameters
        let distance = |gradient: &Named| {
            let square = |of: &dyn Fn(f32, f32) -> f32| -> f32 {
                let pairs =
                    exact.iter().flat_map(|(name, exact)| exact.iter().zip(&gradient[name]));
                pairs.map(|(exact, got)| of(*exact, *got).powi(2)).sum()
            };
            (square(&|exact, got| exact - got) / square(&|exact, _| exact)).sqrt()
        };
        let (ours, autocasts) = (distance(&got), distance(&autocast));
        println!("step {number}: {ours}, autocast {autocasts}");
        assert!(ours > 1e-4 && ours < 1.1 * autocasts, "step {number}: {ours}, not {autocasts}");
        let loss = output.loss.into_scalar::<f32>();
        let [want] = values(&file.tensor(&format!("{number}.loss")).unwrap())[..] else {
            panic!("a loss is one number");
        };
        assert!((loss - want).abs() < 2e-3, "step {number}: loss {loss}, not {want}");
    }
}
