//! Networks against PyTorch and torchvision, with the same random weights: logits of inference, and
//! loss, gradients and BatchNorm statistics of a training pass, which has SiLU in the place of ReLU.
//!
//! `reference.py` in this folder writes the files; `SAT_PARITY` names their folder.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::loss::CrossEntropyLossConfig,
    tensor::{Device, Gradients, Int, Tensor, TensorData},
};
use safetensors::SafeTensors;
use sat::models::{
    Conventions, EfficientNetConfig, Metadata, Model, ModelName, NetworkConfig, PreActResNetConfig,
    PreActShortcut, PreActStyle, StateDict, save_safetensors,
};

/// The tolerance, relative to the largest value of a tensor.
const TOLERANCE: f32 = 1e-4;

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("SAT_PARITY").map(PathBuf::from);
    if folder.is_none() {
        // Not eprintln: the test harness would keep that to itself.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: run tests/parity/reference.py FOLDER and set SAT_PARITY=FOLDER"
        );
    }
    folder
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    file.iter().map(|(key, t)| (key.to_owned(), (t.shape().to_vec(), values(t.data())))).collect()
}

/// The largest difference, relative to the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0, |scale: f32, value| scale.max(value.abs()));
    let worst = found.iter().zip(expected).fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
    assert!(!found.iter().any(|value| value.is_nan()));
    worst / scale.max(1e-6)
}

/// The norm of each parameter's gradient, under the key of the weights file.
fn gradient_norms(model: &Model, gradients: &Gradients) -> BTreeMap<String, f32> {
    struct Norms<'a> {
        model: &'a Model,
        gradients: &'a Gradients,
        path: Vec<String>,
        norms: BTreeMap<String, f32>,
    }
    impl ModuleVisitor for Norms<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.gradients) {
                let path = self.path.join(".").replace(".gamma", ".weight");
                let key = self.model.state_key(&path.replace(".beta", ".bias"));
                let norm: f32 = gradient.powi_scalar(2).sum().sqrt().into_scalar();
                self.norms.insert(key, norm);
            }
        }
    }
    let mut visitor = Norms { model, gradients, path: Vec::new(), norms: BTreeMap::new() };
    model.visit(&mut visitor);
    visitor.norms
}

fn agrees(name: &str, config: NetworkConfig) {
    let Some(folder) = folder() else { return };
    let expected = read(&folder.join(format!("{name}.safetensors")));
    let device = Device::flex();
    let images = |device: &Device| {
        let (shape, values) = &expected["images"];
        Tensor::<4>::from_data(TensorData::new(values.clone(), shape.clone()), device)
    };
    let weights = folder.join(format!("{name}.pth"));

    let model = config.load(&weights, &device).unwrap();
    let logits: Vec<f32> = model.forward(images(&device)).try_into_vec_as().unwrap();
    let of_logits = difference(&logits, &expected["logits"].1);

    let device = device.autodiff();
    let config = config.with_activation("silu".parse().unwrap());
    let model = config.load(&weights, &device).unwrap();
    let labels: Vec<i32> = expected["labels"].1.iter().map(|label| *label as i32).collect();
    let labels = Tensor::<1, Int>::from_ints(labels.as_slice(), &device);
    let loss =
        CrossEntropyLossConfig::new().init(&device).forward(model.forward(images(&device)), labels);
    let gradients = loss.backward();
    let of_loss = difference(&[loss.into_scalar()], &expected["loss"].1);

    let norms = gradient_norms(&model, &gradients);
    let of = |key: &str| key.strip_prefix("grad.").map(str::to_owned);
    let expected_norms: BTreeMap<String, f32> =
        expected.iter().filter_map(|(key, (_, norm))| Some((of(key)?, norm[0]))).collect();
    assert_eq!(expected_norms.keys().collect::<Vec<_>>(), norms.keys().collect::<Vec<_>>());
    // Some gradients are 0 but for rounding: a bias that the next BatchNorm takes away again.
    let floor = 1e-3 * expected_norms.values().copied().fold(0.0, f32::max);
    let mut of_gradients = (0.0, String::new());
    for (key, norm) in expected_norms {
        let found = (norms[&key] - norm).abs() / norm.max(floor);
        assert!(!found.is_nan(), "{key}");
        if found > of_gradients.0 {
            of_gradients = (found, key);
        }
    }

    let after = tempfile::tempdir().unwrap();
    let after = after.path().join("after.safetensors");
    save_safetensors(&model, &after, &Metadata::new()).unwrap();
    let after = read(&after);
    let mut of_statistics: f32 = 0.0;
    for (key, (_, values)) in expected.iter().filter(|(key, _)| key.starts_with("after.")) {
        let found = &after[key.trim_start_matches("after.")].1;
        of_statistics = of_statistics.max(difference(found, values));
    }

    let text = format!(
        "{name}: logits {of_logits:.1e}, loss {of_loss:.1e}, gradients {:.1e} ({}), \
         statistics {of_statistics:.1e}",
        of_gradients.0, of_gradients.1
    );
    println!("{text}");
    let worst = of_logits.max(of_loss).max(of_gradients.0).max(of_statistics);
    assert!(worst < TOLERANCE, "{text}");
}

fn with_relu(name: ModelName) -> NetworkConfig {
    name.config().with_activation("relu".parse().unwrap())
}

#[test]
fn resnet18() {
    agrees("resnet18", with_relu(ModelName::ResNet18));
}

#[test]
fn resnet50() {
    agrees("resnet50", with_relu(ModelName::ResNet50));
}

#[test]
fn resnext50() {
    agrees("resnext50_32x4d", with_relu(ModelName::ResNeXt50x32x4d));
}

#[test]
fn efficientnet_b0() {
    let config = EfficientNetConfig::b0()
        .with_conventions(Conventions::Torchvision)
        .with_stochastic_depth(0.0)
        .with_dropout(0.0);
    agrees("efficientnet_b0", config.into());
}

#[test]
fn preact_resnet18() {
    agrees("preact_resnet18", with_relu(ModelName::PreActResNet18));
}

#[test]
fn preact_resnet18_of_robustbench() {
    let relu = PreActResNetConfig::preact_resnet18().with_activation("relu".parse().unwrap());
    let of_input = PreActResNetConfig { shortcut: PreActShortcut::Input, ..relu.clone() };
    agrees("preact_resnet18_input", of_input.into());
    let norm = PreActResNetConfig { style: PreActStyle::PreActNorm, ..relu };
    agrees("preact_resnet18_norm", norm.into());
}

#[test]
fn wide_resnet16_4() {
    let config = PreActResNetConfig::wide(2, 4).with_activation("relu".parse().unwrap());
    agrees("wide_resnet16_4", config.into());
}

#[test]
fn networks_of_deep_mind() {
    let relu = |config: PreActResNetConfig| config.with_activation("relu".parse().unwrap());
    agrees("dm_wide_resnet16_4", relu(PreActResNetConfig::deep_mind_wide(2, 4)).into());
    agrees("dm_preact_resnet18", with_relu(ModelName::DmPreActResNet18));
}
