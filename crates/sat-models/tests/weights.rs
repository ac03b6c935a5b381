//! Weights files: round trips, strictness, damage.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sat_models::{
    Metadata, ResNet, ResNetConfig, StageConfig, StateDict, StemConfig, WeightsError,
    load_safetensors, network_metadata, read_metadata, read_network, save_safetensors,
};
use tempfile::TempDir;

fn tiny() -> ResNetConfig {
    ResNetConfig {
        input_channels: 1,
        classes: 3,
        stem: StemConfig::small(2, 1),
        stages: vec![
            StageConfig { channels: 2, blocks: 1, stride: 1 },
            StageConfig { channels: 3, blocks: 1, stride: 2 },
        ],
        block: Default::default(),
        activation: Default::default(),
        initialization: Default::default(),
    }
}

/// A trained-looking model on the autodiff device: batch statistics, pending updates included.
fn trained(config: &ResNetConfig, seed: u64) -> ResNet {
    let device = Device::flex().autodiff();
    let model = config.init(seed, &device);
    for i in 0..2 {
        model.forward(images(config.input_channels, &device) * (i as f32 + 0.5));
    }
    model
}

fn images(channels: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..4 * channels * 64).map(|i| (i * 37 % 101) as f32 / 100.0).collect();
    Tensor::from_data(TensorData::new(values, [4, channels, 8, 8]), device)
}

fn logits(model: &ResNet, channels: usize) -> TensorData {
    model.valid().forward(images(channels, &Device::flex())).into_data()
}

fn saved(config: &ResNetConfig) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_safetensors(&trained(config, 1), &path, &Metadata::new()).unwrap();
    (folder, path)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(k, t)| (k.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(key, (dtype, shape, data))| {
        (key, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Loads a saved model after a change to its tensors.
fn load_edited(edit: impl FnOnce(&mut Tensors)) -> Result<ResNet, WeightsError> {
    let (_folder, path) = saved(&tiny());
    let mut tensors = read_tensors(&path);
    edit(&mut tensors);
    write_tensors(&path, &tensors);
    load_safetensors(tiny().init(0, &Device::flex()), &path)
}

#[test]
fn a_saved_model_comes_back_bit_for_bit() {
    for activation in ["silu", "smooth-relu-learnable"] {
        let config = tiny().with_activation(activation.parse().unwrap());
        let model = trained(&config, 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save_safetensors(&model, &path, &Metadata::new()).unwrap();
        let expected = logits(&model, 1);
        for device in [Device::flex(), Device::flex().autodiff()] {
            let fresh = config.init(2, &device);
            assert_ne!(logits(&fresh, 1), expected);
            let loaded = load_safetensors(fresh, &path).unwrap();
            logits(&loaded, 1).assert_eq(&expected, true);
            // Saving again gives the same bytes.
            let again = folder.path().join("again.safetensors");
            save_safetensors(&loaded, &again, &Metadata::new()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
        }
    }
}

#[test]
fn names_and_layouts_are_those_of_pytorch() {
    let config = tiny().with_activation("smooth-relu-learnable".parse().unwrap());
    let (_folder, path) = saved(&config);
    let tensors = read_tensors(&path);
    let mut expected: Vec<String> = [
        "conv1.weight",
        "act1.parameters",
        "layer1.0.conv1.weight",
        "layer1.0.act1.parameters",
        "layer1.0.conv2.weight",
        "layer1.0.act2.parameters",
        "layer2.0.conv1.weight",
        "layer2.0.act1.parameters",
        "layer2.0.conv2.weight",
        "layer2.0.act2.parameters",
        "layer2.0.downsample.0.weight",
        "fc.weight",
        "fc.bias",
    ]
    .map(String::from)
    .into();
    for norm in [
        "bn1",
        "layer1.0.bn1",
        "layer1.0.bn2",
        "layer2.0.bn1",
        "layer2.0.bn2",
        "layer2.0.downsample.1",
    ] {
        for field in ["weight", "bias", "running_mean", "running_var"] {
            expected.push(format!("{norm}.{field}"));
        }
    }
    expected.sort();
    assert_eq!(tensors.keys().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(config.init(0, &Device::flex()).state_keys(), expected);
    assert_eq!(tensors["fc.weight"].1, [3, 3]);
    assert_eq!(tensors["layer2.0.conv1.weight"].1, [3, 2, 3, 3]);
    assert_eq!(tensors["layer2.0.downsample.0.weight"].1, [3, 2, 1, 1]);
}

/// The matrix is not square and its order in the file is written down by hand.
#[test]
fn linear_weights_are_transposed() {
    let config = tiny().with_classes(2);
    let (_folder, path) = saved(&config);
    let mut tensors = read_tensors(&path);
    assert_eq!(tensors["fc.weight"].1, [2, 3]);
    let rows: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    tensors.get_mut("fc.weight").unwrap().2 = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_tensors(&path, &tensors);
    let model = load_safetensors(config.init(0, &Device::flex()), &path).unwrap();
    struct Fc(Option<TensorData>);
    impl ModuleVisitor for Fc {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 2 {
                self.0 = Some(param.val().into_data());
            }
        }
    }
    let mut fc = Fc(None);
    model.visit(&mut fc);
    let expected = TensorData::from([[1.0f32, 4.0], [2.0, 5.0], [3.0, 6.0]]);
    fc.0.unwrap().assert_eq(&expected, true);
    save_safetensors(&model, &path, &Metadata::new()).unwrap();
    assert_eq!(read_tensors(&path)["fc.weight"], tensors["fc.weight"]);
}

#[test]
fn a_field_named_model_keeps_its_name() {
    #[derive(Module, Debug)]
    struct Wrapper {
        model: Linear,
    }
    impl StateDict for Wrapper {}
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let wrapper =
        |seed: f32| Wrapper { model: Linear { weight: param([[seed, 2.0]]), bias: None } };
    save_safetensors(&wrapper(1.0), &path, &Metadata::new()).unwrap();
    let loaded = load_safetensors(wrapper(5.0), &path).unwrap();
    assert_eq!(loaded.state_keys(), ["model.weight"]);
    let values: Vec<f32> = loaded.model.weight.val().into_data().try_into_vec().unwrap();
    assert_eq!(values, [1.0, 2.0]);
}

fn param(values: [[f32; 2]; 1]) -> Param<Tensor<2>> {
    Param::from_data(values, &Device::flex())
}

#[test]
fn metadata_comes_back_and_may_be_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let metadata = network_metadata(&tiny().into());
    save_safetensors(&trained(&tiny(), 1), &path, &metadata).unwrap();
    assert_eq!(read_metadata(&path).unwrap(), metadata);
    assert_eq!(read_network(&path).unwrap(), Some(tiny().into()));
    save_safetensors(&trained(&tiny(), 1), &path, &Metadata::new()).unwrap();
    assert_eq!(read_metadata(&path).unwrap(), Metadata::new());
    assert_eq!(read_network(&path).unwrap(), None);
    for bad in
        ["{", "{\"stages\": 3}", &metadata["sat.network"].replace("\"stride\":1", "\"stride\":0")]
    {
        let metadata = Metadata::from([("sat.network".to_owned(), bad.to_owned())]);
        save_safetensors(&trained(&tiny(), 1), &path, &metadata).unwrap();
        let error = read_network(&path).unwrap_err();
        assert!(matches!(error, WeightsError::Network { .. }), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn loading_keeps_gradients_and_leaves_clones_alone() {
    let (_folder, path) = saved(&tiny());
    let model = trained(&tiny(), 9);
    let clone = model.clone();
    let before = logits(&clone, 1);
    let loaded = load_safetensors(model, &path).unwrap();
    logits(&clone, 1).assert_eq(&before, true);
    // An update that was pending before the load is gone: training goes on from the file.
    let on_file = logits(&loaded, 1);
    loaded.valid();
    logits(&loaded, 1).assert_eq(&on_file, true);

    struct Tracked(usize, usize);
    impl ModuleVisitor for Tracked {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() { self.0 += 1 } else { self.1 += 1 }
        }
    }
    let mut tracked = Tracked(0, 0);
    loaded.visit(&mut tracked);
    assert_eq!((tracked.0, tracked.1), (6 + 2 + 12, 12));
    let mut frozen = Tracked(0, 0);
    load_safetensors(tiny().init(0, &Device::flex().autodiff()).no_grad(), &path)
        .unwrap()
        .visit(&mut frozen);
    assert_eq!(frozen.0, 0);
    // A model loaded on a plain device can be trained after `train`.
    let mut resumed = Tracked(0, 0);
    load_safetensors(tiny().init(0, &Device::flex()), &path).unwrap().train().visit(&mut resumed);
    assert_eq!((resumed.0, resumed.1), (6 + 2 + 12, 12));
}

#[test]
fn every_difference_is_in_one_error() {
    let error = load_edited(|tensors| {
        tensors.remove("conv1.weight");
        tensors.remove("bn1.running_var");
        tensors.insert("extra.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
        tensors.insert("fc.bias".into(), (Dtype::F32, vec![5], vec![0; 20]));
    })
    .unwrap_err();
    let text = error.to_string();
    let WeightsError::Mismatch { path, missing, unexpected, misshapen } = error else {
        panic!("{text}");
    };
    assert_eq!(missing, ["bn1.running_var", "conv1.weight"]);
    assert_eq!(unexpected, ["extra.weight"]);
    assert_eq!(misshapen.len(), 1);
    assert_eq!((&*misshapen[0].tensor, &*misshapen[0].expected), ("fc.bias", &[3][..]));
    assert_eq!(misshapen[0].found, [5]);
    for part in [path.to_str().unwrap(), "conv1.weight", "extra.weight", "fc.bias", "[5]"] {
        assert!(text.contains(part), "{text}");
    }
}

/// The same number of elements in another shape is still an error.
#[test]
fn a_reshaped_tensor_is_refused() {
    let error = load_edited(|tensors| {
        tensors.get_mut("conv1.weight").unwrap().1 = vec![1, 2, 3, 3];
    })
    .unwrap_err();
    assert!(matches!(error, WeightsError::Mismatch { misshapen, .. } if misshapen.len() == 1));
}

#[test]
fn the_wrong_activation_is_an_error_both_ways() {
    let learnable = tiny().with_activation("smooth-relu-learnable".parse().unwrap());
    let (_folder, path) = saved(&tiny());
    let error = load_safetensors(learnable.init(0, &Device::flex()), &path).unwrap_err();
    assert!(matches!(error, WeightsError::Mismatch { missing, .. } if missing.len() == 5));
    let (_folder, path) = saved(&learnable);
    let error = load_safetensors(tiny().init(0, &Device::flex()), &path).unwrap_err();
    assert!(matches!(error, WeightsError::Mismatch { unexpected, .. } if unexpected.len() == 5));
}

#[test]
fn counters_and_prefixes_of_pytorch_are_accepted() {
    load_edited(|tensors| {
        tensors.insert("bn1.num_batches_tracked".into(), (Dtype::I64, vec![], vec![0; 8]));
        let prefixed = ["module.", "model.", "module.model.", ""].into_iter().cycle();
        *tensors = std::mem::take(tensors)
            .into_iter()
            .zip(prefixed)
            .map(|((key, tensor), prefix)| (format!("{prefix}{key}"), tensor))
            .collect();
    })
    .unwrap();
}

#[test]
fn a_tensor_given_twice_is_an_error() {
    let error = load_edited(|tensors| {
        let bias = tensors["fc.bias"].clone();
        tensors.insert("module.fc.bias".into(), bias);
    })
    .unwrap_err();
    assert!(matches!(error, WeightsError::Duplicate { tensor, .. } if tensor == "fc.bias"));
}

#[test]
fn other_float_types_are_converted() {
    // 1.5, -2 and 0.25 are exact in each type.
    let f16 = [0x3E00u16, 0xC000, 0x3400].map(u16::to_le_bytes).concat();
    let bf16 = [0x3FC0u16, 0xC000, 0x3E80].map(u16::to_le_bytes).concat();
    let f64 = [1.5f64, -2.0, 0.25].map(f64::to_le_bytes).concat();
    for (dtype, bytes) in [(Dtype::F16, f16), (Dtype::BF16, bf16), (Dtype::F64, f64)] {
        let model = load_edited(|tensors| {
            tensors.insert("fc.bias".into(), (dtype, vec![3], bytes));
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save_safetensors(&model, &path, &Metadata::new()).unwrap();
        let expected = [1.5f32, -2.0, 0.25].map(f32::to_le_bytes).concat();
        assert_eq!(read_tensors(&path)["fc.bias"], (Dtype::F32, vec![3], expected), "{dtype}");
    }
}

#[test]
fn integers_are_refused() {
    let error = load_edited(|tensors| {
        tensors.insert("fc.bias".into(), (Dtype::I32, vec![3], vec![0; 12]));
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, WeightsError::DataType { tensor, found: Dtype::I32, .. } if tensor == "fc.bias")
    );
    assert!(text.contains("I32") && text.contains("model.safetensors"), "{text}");
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (dtype, bytes) in [
        (Dtype::F32, [0.0, f32::NAN, 0.0].map(f32::to_le_bytes).concat()),
        (Dtype::F32, [0.0, f32::INFINITY, 0.0].map(f32::to_le_bytes).concat()),
        (Dtype::F64, [0.0, 1e300f64, 0.0].map(f64::to_le_bytes).concat()),
        (Dtype::F16, [0u16, 0x7C00, 0].map(u16::to_le_bytes).concat()),
    ] {
        let error = load_edited(|tensors| {
            tensors.insert("fc.bias".into(), (dtype, vec![3], bytes));
        })
        .unwrap_err();
        let text = error.to_string();
        let found = matches!(&error, WeightsError::NonFinite { tensor, index: 1, .. } if tensor == "fc.bias");
        assert!(found && text.contains("fc.bias"), "{text}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let path = Path::new("no/such/file.safetensors");
    let error = load_safetensors(tiny().init(0, &Device::flex()), path).unwrap_err();
    assert!(error.to_string().contains("no/such/file.safetensors"));
    assert!(matches!(error, WeightsError::Read { .. }));
    assert!(matches!(read_metadata(path), Err(WeightsError::Read { .. })));
}

#[test]
fn damaged_files_are_corrupt() {
    let (_folder, path) = saved(&tiny());
    let whole = fs::read(&path).unwrap();
    let model = tiny().init(0, &Device::flex());
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = load_safetensors(model.clone(), &path).unwrap_err();
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert!(matches!(error, WeightsError::Corrupt { .. }), "{error}");
        assert!(matches!(read_metadata(&path), Err(WeightsError::Corrupt { .. })));
    };
    for length in [0, 4, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..length]);
    }
    refused(&[&whole[..], &[0]].concat());
    refused(b"PK\x03\x04 this is a zip file, as .pth files are");
    // A header that claims to be huge, and a tensor that claims to be.
    refused(&u64::MAX.to_le_bytes());
    let header = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#;
    refused(&[&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Damage anywhere gives a model or an error, never a panic.
    #[test]
    fn damaged_bytes_never_panic(position in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (_folder, path) = saved(&tiny());
        let mut bytes = fs::read(&path).unwrap();
        let position = position.index(bytes.len());
        bytes[position] = value;
        fs::write(&path, bytes).unwrap();
        let _ = load_safetensors(tiny().init(0, &Device::flex()), &path);
        let _ = read_metadata(&path);
    }
}

#[test]
fn a_failed_save_keeps_the_old_file() {
    let (folder, path) = saved(&tiny());
    let before = fs::read(&path).unwrap();
    let device = Device::flex().autodiff();
    let diverged = tiny().init(0, &device);
    diverged.forward(Tensor::full([1, 1, 8, 8], f32::NAN, &device));
    let error = save_safetensors(&diverged, &path, &Metadata::new()).unwrap_err();
    assert!(matches!(error, WeightsError::NonFinite { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    // Nothing else is left in the folder.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let model = trained(&tiny(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "text").unwrap();
    let occupied = folder.path().join("folder");
    fs::create_dir_all(occupied.join("inside")).unwrap();
    for path in [folder.path().join("none/model"), file.join("model"), occupied] {
        let error = save_safetensors(&model, &path, &Metadata::new()).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(matches!(error, WeightsError::Write { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_file_is_replaced_whole() {
    let (_folder, path) = saved(&tiny().with_classes(50));
    save_safetensors(&trained(&tiny(), 1), &path, &Metadata::new()).unwrap();
    load_safetensors(tiny().init(0, &Device::flex()), &path).unwrap();
}
