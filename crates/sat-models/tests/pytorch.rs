//! PyTorch checkpoints: layouts, wrappers, damage, and pickles that ask for code.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, TensorData};
use proptest::prelude::*;
use sat_models::{
    EfficientNetConfig, Metadata, Model, NetworkConfig, PixelStatistics, PreActResNetConfig,
    PreActShortcut, PreActStyle, ResNetConfig, StageConfig, StateDict, StemConfig, WeightsError,
    load_pytorch, load_weights, read_metadata, read_network, save_safetensors,
};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The containers of `torch.save`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Container {
    Zip,
    /// PyTorch 0.1.10 to 1.5.
    Legacy,
    /// Before that.
    Tar,
}

/// Writes pickles, protocol 2.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }
    fn int(self, value: usize) -> Self {
        self.raw(b"\x8a\x09").raw(&(value as u64).to_le_bytes()).raw(&[0])
    }
    fn ints(self, values: &[usize]) -> Self {
        values.iter().fold(self.raw(b"("), |pickle, value| pickle.int(*value)).raw(b"t")
    }
    /// A tensor as `torch.save` writes one.
    fn tensor(self, container: Container, key: &str, count: usize, shape: &[usize]) -> Self {
        let strides: Vec<usize> =
            (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let pickle = self
            .raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(b"ctorch\nFloatStorage\n")
            .text(key)
            .text("cpu")
            .int(count)
            .raw(if container == Container::Legacy { b"N" } else { b"" })
            .raw(b"tQ")
            .int(0)
            .ints(shape)
            .ints(&strides);
        pickle.raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }
    fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// A dictionary of tensors, in dictionaries of the given names.
fn checkpoint(container: Container, wrappers: &[&str], tensors: &Tensors) -> Vec<u8> {
    checkpoint_in("archive", container, wrappers, tensors)
}

/// As [`checkpoint`]; a zip archive has its entries below `root`.
fn checkpoint_in(
    root: &str,
    container: Container,
    wrappers: &[&str],
    tensors: &Tensors,
) -> Vec<u8> {
    let mut pickle = Pickle::new();
    for wrapper in wrappers {
        pickle = pickle.raw(b"}(").text("epoch").int(3).text(wrapper);
    }
    pickle = pickle.raw(b"}(");
    for (i, (key, (shape, values))) in tensors.iter().enumerate() {
        let number = i.to_string();
        pickle = match container {
            Container::Tar => pickle.text(key).text(&number).raw(b"Q"),
            _ => pickle.text(key).tensor(container, &number, values.len(), shape),
        };
    }
    pickle = pickle.raw(b"u");
    for _ in wrappers {
        pickle = pickle.raw(b"u");
    }
    let pickle = pickle.end();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let system = Pickle::new()
        .raw(b"}(")
        .text("protocol_version")
        .int(1001)
        .text("little_endian")
        .raw(b"\x88u")
        .end();
    match container {
        Container::Zip => {
            let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let options =
                SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            let mut entry = |name: &str, bytes: &[u8]| {
                zip.start_file(format!("{root}/{name}"), options).unwrap();
                zip.write_all(bytes).unwrap();
            };
            entry("data.pkl", &pickle);
            entry("byteorder", b"little");
            for (i, (_, values)) in tensors.values().enumerate() {
                entry(&format!("data/{i}"), &bytes(values));
            }
            entry("version", b"3\n");
            zip.finish().unwrap().into_inner()
        }
        Container::Legacy => {
            let magic = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
            let mut file = Pickle::new().raw(magic).end();
            file.extend(Pickle::new().int(1001).end());
            file.extend(system);
            file.extend(pickle);
            let keys = (0..tensors.len())
                .fold(Pickle::new().raw(b"]("), |pickle, i| pickle.text(&i.to_string()));
            file.extend(keys.raw(b"e").end());
            for (_, values) in tensors.values() {
                file.extend((values.len() as i64).to_le_bytes());
                file.extend(bytes(values));
            }
            file
        }
        Container::Tar => {
            let words = |words: &[usize]| {
                words.iter().flat_map(|&word| (word as i64).to_le_bytes()).collect()
            };
            let count = Pickle::new().int(tensors.len()).end();
            let (mut storages, mut headers) = (count.clone(), count);
            for (i, (shape, values)) in tensors.values().enumerate() {
                let number = i.to_string();
                let start = || Pickle::new().raw(b"(").text(&number);
                storages.extend(start().text("cpu").raw(b"ctorch\nFloatStorage\nt").end());
                storages.extend::<Vec<u8>>(words(&[values.len()]));
                storages.extend(bytes(values));
                headers.extend(start().text(&number).raw(b"ctorch\nFloatTensor\nt").end());
                headers.extend([shape.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
                let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product());
                let numbers: Vec<usize> = shape.iter().copied().chain(strides).chain([0]).collect();
                headers.extend::<Vec<u8>>(words(&numbers));
            }
            storages.extend(Pickle::new().raw(b"]").end());
            archive(&[
                ("sys_info", &system),
                ("storages", &storages),
                ("tensors", &headers),
                ("pickle", &pickle),
            ])
        }
    }
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn tiny() -> NetworkConfig {
    let config = ResNetConfig {
        stem: StemConfig::small(2, 1),
        stages: vec![
            StageConfig { channels: 2, blocks: 1, stride: 1 },
            StageConfig { channels: 3, blocks: 1, stride: 2 },
        ],
        ..ResNetConfig::resnet20()
    };
    config.with_classes(3).into()
}

/// One block of stride 2.
fn small(base: PreActResNetConfig) -> PreActResNetConfig {
    let stages = vec![StageConfig { channels: 3, blocks: 1, stride: 2 }];
    PreActResNetConfig { stem_channels: 2, stages, ..base }
}

/// The tensors of a network as safetensors has them.
fn tensors(model: &impl StateDict) -> Tensors {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_safetensors(model, &path, &Metadata::new()).unwrap();
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    file.iter().map(|(key, t)| (key.to_owned(), (t.shape().to_vec(), values(t.data())))).collect()
}

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn load(config: &NetworkConfig, bytes: &[u8]) -> Result<Model, WeightsError> {
    let (_folder, path) = written(bytes);
    config.load(&path, &Device::flex())
}

#[test]
fn checkpoints_of_all_containers_load() {
    let saved = tensors(&tiny().init(1, &Device::flex()));
    for container in [Container::Zip, Container::Legacy, Container::Tar] {
        for wrappers in [&[][..], &["state_dict"], &["model_state_dict"]] {
            let loaded = load(&tiny(), &checkpoint(container, wrappers, &saved)).unwrap();
            assert_eq!(tensors(&loaded), saved);
        }
    }
}

#[test]
fn prefixes_and_counters_are_passed_over() {
    let saved = tensors(&tiny().init(1, &Device::flex()));
    let mut prefixed: Tensors =
        saved.iter().map(|(key, tensor)| (format!("module.{key}"), tensor.clone())).collect();
    prefixed.insert("module.bn1.num_batches_tracked".into(), (vec![], vec![3.0]));
    let loaded = load(&tiny(), &checkpoint(Container::Zip, &["state_dict"], &prefixed)).unwrap();
    assert_eq!(tensors(&loaded), saved);
}

/// The model keeps its matrix as [in, out]; the file has [out, in], as PyTorch's linear layer.
#[test]
fn linear_weights_are_transposed() {
    #[derive(Module, Debug)]
    struct Head {
        fc: Linear,
    }
    impl StateDict for Head {}
    let head = Head { fc: LinearConfig::new(3, 2).init(&Device::flex()) };
    let weight = (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let saved =
        Tensors::from([("fc.weight".into(), weight), ("fc.bias".into(), (vec![2], vec![0.0; 2]))]);
    let (_folder, path) = written(&checkpoint(Container::Zip, &[], &saved));
    let head = load_pytorch(head, path).unwrap();
    let values: Vec<f32> = head.fc.weight.val().try_into_vec_as().unwrap();
    assert_eq!(values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}

#[test]
fn every_difference_is_in_one_error() {
    let mut saved = tensors(&tiny().init(1, &Device::flex()));
    saved.remove("conv1.weight");
    saved.insert("extra".into(), (vec![1], vec![0.0]));
    saved.insert("fc.bias".into(), (vec![2], vec![0.0; 2]));
    let error = load(&tiny(), &checkpoint(Container::Legacy, &[], &saved)).unwrap_err();
    let WeightsError::Mismatch { missing, unexpected, misshapen, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((&*missing, &*unexpected), (&["conv1.weight".into()][..], &["extra".into()][..]));
    assert_eq!(misshapen[0].tensor, "fc.bias");
}

/// Renames the modules of saved tensors; those without a new name keep theirs.
fn renamed(saved: &Tensors, names: &[(&str, &str)]) -> Tensors {
    let names: BTreeMap<&str, &str> = names.iter().copied().collect();
    saved
        .iter()
        .map(|(key, tensor)| {
            let (module, field) = key.rsplit_once('.').unwrap();
            let module = names.get(module).copied().unwrap_or(module);
            (format!("{module}.{field}"), tensor.clone())
        })
        .collect()
}

#[test]
fn names_of_robustbench_load() {
    let saved = tensors(&tiny().init(1, &Device::flex()));
    let theirs = renamed(
        &saved,
        &[
            ("fc", "linear"),
            ("layer2.0.downsample.0", "layer2.0.shortcut.0"),
            ("layer2.0.downsample.1", "layer2.0.shortcut.1"),
        ],
    );
    assert_ne!(theirs, saved);
    let loaded = load(&tiny(), &checkpoint(Container::Zip, &[], &theirs)).unwrap();
    assert_eq!(tensors(&loaded), saved);

    let wide: NetworkConfig = PreActResNetConfig::wide(1, 1).into();
    let saved = tensors(&wide.init(1, &Device::flex()));
    assert!(saved.contains_key("block2.layer.0.convShortcut.weight"));
    let mut theirs = saved.clone();
    theirs.insert("sub_block1.layer.0.bn1.weight".into(), (vec![16], vec![1.0; 16]));
    let loaded = load(&wide, &checkpoint(Container::Zip, &[], &theirs)).unwrap();
    assert_eq!(tensors(&loaded), saved);

    let preact: NetworkConfig = small(PreActResNetConfig::preact_resnet18()).into();
    let saved = tensors(&preact.init(1, &Device::flex()));
    assert!(saved.contains_key("layer1.0.shortcut.0.weight") && saved.contains_key("linear.bias"));

    // The names of the two shortcuts are the same, the logits are not.
    let NetworkConfig::PreActResNet(config) = preact.clone() else { unreachable!() };
    let of_input: NetworkConfig =
        PreActResNetConfig { shortcut: PreActShortcut::Input, ..config.clone() }.into();
    let file = checkpoint(Container::Zip, &[], &saved);
    let logits = |config: &NetworkConfig| {
        let images = burn::tensor::Tensor::ones([1, 3, 8, 8], &Device::flex());
        load(config, &file).unwrap().valid().forward(images).try_into_vec_as::<f32>().unwrap()
    };
    assert_ne!(logits(&preact), logits(&of_input));

    let norm: NetworkConfig =
        PreActResNetConfig { style: PreActStyle::PreActNorm, ..config }.into();
    let saved = tensors(&norm.init(1, &Device::flex()));
    assert!(saved.contains_key("bn.running_mean") && saved.contains_key("layer1.0.bn1.weight"));
}

/// One block a stage: the first without expansion, which shifts the numbers of torchvision and the
/// names of timm.
fn small_efficientnet() -> EfficientNetConfig {
    EfficientNetConfig { width: 0.1, depth: 0.1, classes: 3, ..EfficientNetConfig::b0() }
}

#[test]
fn names_of_timm_and_of_lite_load() {
    let config: NetworkConfig = small_efficientnet().into();
    let saved = tensors(&config.init(1, &Device::flex()));
    let mut timm: Vec<(String, String)> = Vec::new();
    let mut lite = Vec::new();
    let mut both = |ours: &str, timms: &str, lites: &str| {
        assert!(saved.contains_key(&format!("{ours}.weight")), "{ours}");
        timm.push((ours.to_owned(), timms.to_owned()));
        lite.push((ours.to_owned(), lites.to_owned()));
    };
    both("features.0.0", "conv_stem", "_conv_stem");
    both("features.0.1", "bn1", "_bn0");
    both("features.8.0", "conv_head", "_conv_head");
    both("features.8.1", "bn2", "_bn1");
    both("classifier.1", "classifier", "_fc");
    for (ours, timms, lites) in [
        ("0.0", "conv_dw", "_depthwise_conv"),
        ("0.1", "bn1", "_bn1"),
        ("1.fc1", "se.conv_reduce", "_se_reduce"),
        ("1.fc2", "se.conv_expand", "_se_expand"),
        ("2.0", "conv_pw", "_project_conv"),
        ("2.1", "bn2", "_bn2"),
    ] {
        let ours = format!("features.1.0.block.{ours}");
        both(&ours, &format!("blocks.0.0.{timms}"), &format!("_blocks.0.{lites}"));
    }
    for stage in 1..7 {
        for (ours, timms, lites) in [
            ("0.0", "conv_pw", "_expand_conv"),
            ("0.1", "bn1", "_bn0"),
            ("1.0", "conv_dw", "_depthwise_conv"),
            ("1.1", "bn2", "_bn1"),
            ("2.fc1", "se.conv_reduce", "_se_reduce"),
            ("2.fc2", "se.conv_expand", "_se_expand"),
            ("3.0", "conv_pwl", "_project_conv"),
            ("3.1", "bn3", "_bn2"),
        ] {
            let ours = format!("features.{}.0.block.{ours}", stage + 1);
            let (timms, lites) =
                (format!("blocks.{stage}.0.{timms}"), format!("_blocks.{stage}.{lites}"));
            both(&ours, &timms, &lites);
        }
    }
    for names in [timm, lite] {
        let names: Vec<(&str, &str)> = names.iter().map(|(a, b)| (&**a, &**b)).collect();
        let theirs = renamed(&saved, &names);
        assert!(theirs.keys().all(|key| !key.starts_with("features")), "every name is foreign");
        let loaded = load(&config, &checkpoint(Container::Zip, &[], &theirs)).unwrap();
        assert_eq!(tensors(&loaded), saved);
    }
}

/// PyTorch ends its archives with the records of large ones too, and names entries after the file. With
/// 21 characters the first entry of the directory is as long as those records.
#[test]
fn archives_of_torch_save_load_whatever_their_name() {
    let saved = tensors(&tiny().init(1, &Device::flex()));
    for length in 8..25 {
        let root = "r".repeat(length);
        let file = with_large_end(&checkpoint_in(&root, Container::Zip, &[], &saved));
        let loaded = load(&tiny(), &file).unwrap();
        assert_eq!(tensors(&loaded), saved, "{length}");
    }
}

/// The archive with the Zip64 records before its end.
fn with_large_end(archive: &[u8]) -> Vec<u8> {
    let (entries, end) = archive.split_at(archive.len() - 22);
    assert_eq!(&end[..4], b"PK\x05\x06");
    let number = |at: usize| u64::from(u16::from_le_bytes([end[at], end[at + 1]]));
    let long = |at: usize| u64::from(u32::from_le_bytes(end[at..at + 4].try_into().unwrap()));
    let mut file = entries.to_vec();
    let large = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(44u64.to_le_bytes());
    file.extend([0x1e, 3, 45, 0]);
    file.extend([0; 8]);
    for value in [number(8), number(10), long(12), long(16)] {
        file.extend(value.to_le_bytes());
    }
    file.extend(b"PK\x06\x07");
    file.extend(0u32.to_le_bytes());
    file.extend(large.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(end);
    file
}

#[test]
fn formats_are_told_apart_by_their_bytes() {
    let model = tiny().init(1, &Device::flex());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    save_safetensors(&model, &path, &Metadata::new()).unwrap();
    assert_eq!(
        tensors(&load_weights(tiny().init(2, &Device::flex()), &path).unwrap()),
        tensors(&model)
    );
    let missing = load_weights(model, Path::new("no/such/file")).unwrap_err();
    assert!(matches!(missing, WeightsError::Read { .. }));

    // A checkpoint of PyTorch says nothing of its network.
    let theirs = checkpoint(Container::Zip, &[], &tensors(&tiny().init(1, &Device::flex())));
    fs::write(&path, theirs).unwrap();
    assert_eq!(read_metadata(&path).unwrap(), Metadata::new());
    assert_eq!(read_network(&path).unwrap(), None);
}

/// `os.system` in the place of a tensor, in both containers: an error, and nothing runs.
#[test]
fn code_in_a_pickle_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    for module in ["os\nsystem", "posix\nsystem", "builtins\neval", "__builtin__\nexec"] {
        let call = Pickle::new()
            .raw(b"}(")
            .text("fc.bias")
            .raw(format!("c{module}\n(").as_bytes())
            .text(&command)
            .raw(b"tRu")
            .end();
        let error = load(&tiny(), &call).unwrap_err();
        assert!(error.to_string().contains("model.pth"), "{error}");
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file(
            "archive/data.pkl",
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
        )
        .unwrap();
        zip.write_all(&call).unwrap();
        load(&tiny(), &zip.finish().unwrap().into_inner()).unwrap_err();
    }
    assert!(!witness.exists());
}

/// A shape beyond memory over a storage of four bytes, whole or by stride 0.
#[test]
fn huge_sizes_are_refused_without_being_allocated() {
    let saved = tensors(&tiny().init(1, &Device::flex()));
    for shape in [vec![1 << 40], vec![1 << 31, 1 << 31], vec![usize::MAX >> 1, 2]] {
        for container in [Container::Zip, Container::Legacy, Container::Tar] {
            let mut huge = saved.clone();
            huge.insert("fc.bias".into(), (shape.clone(), vec![0.0]));
            load(&tiny(), &checkpoint(container, &[], &huge)).unwrap_err();
        }
    }
    let header = br#"{"fc.bias":{"dtype":"F32","shape":[4611686018427387903],"data_offsets":[0,18446744073709551612]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    assert!(matches!(load(&tiny(), &file).unwrap_err(), WeightsError::Corrupt { .. }));
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let mut saved = tensors(&tiny().init(1, &Device::flex()));
    saved.get_mut("fc.bias").unwrap().1[1] = f32::NAN;
    let error = load(&tiny(), &checkpoint(Container::Zip, &[], &saved)).unwrap_err();
    assert!(matches!(error, WeightsError::NonFinite { index: 1, .. }), "{error}");
}

fn sample(container: Container) -> Vec<u8> {
    checkpoint(container, &["state_dict"], &tensors(&tiny().init(1, &Device::flex())))
}

/// What people have at hand in the place of weights.
#[test]
fn other_files_are_refused_with_their_name() {
    let zip_of_arrays = {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("conv1.weight.npy", options).unwrap();
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.finish().unwrap().into_inner()
    };
    let others: [(&str, Vec<u8>); 12] = [
        ("nothing", Vec::new()),
        ("a web page", b"<!DOCTYPE html><html><body>404 Not Found</body></html>".to_vec()),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec()),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00".to_vec()),
        ("HDF5 (Keras)", b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00\x00\x08\x08\x00".to_vec()),
        ("NumPy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}".to_vec()),
        ("ONNX", b"\x08\x08\x12\x07pytorch\x1a\x031.9".to_vec()),
        ("GGUF", b"GGUF\x03\x00\x00\x00\x00\x00\x00\x00".to_vec()),
        ("a zip of arrays", zip_of_arrays),
        ("a tar of photographs", archive(&[("n01440764/1.jpg", b"\xff\xd8\xff\xe0")])),
        ("a tar without tensors", archive(&[("pickle", b"\x80\x02}."), ("storages", b"")])),
        ("a pickle of a list", Pickle::new().raw(b"](").int(1).raw(b"e").end()),
    ];
    for (what, bytes) in others {
        let error = load(&tiny(), &bytes).unwrap_err();
        assert!(matches!(error, WeightsError::CorruptPytorch { .. }), "{what}: {error}");
        assert!(error.to_string().contains("model.pth"), "{what}: {error}");
    }
}

/// Entries of an archive that claim more than there is.
#[test]
fn tars_that_claim_too_much_are_refused_without_allocating_it() {
    let many = Pickle::new().int(usize::MAX >> 2).end();
    let system = Pickle::new().raw(b"}(").text("little_endian").raw(b"\x88u").end();
    let one = [
        &Pickle::new().int(1).end()[..],
        &Pickle::new().raw(b"(").text("0").text("cpu").raw(b"ctorch\nFloatStorage\nt").end(),
        &(i64::MAX >> 3).to_le_bytes(),
    ]
    .concat();
    for storages in [&many, &one] {
        let entries =
            [("sys_info", &system), ("storages", storages), ("tensors", &many), ("pickle", &many)];
        let bytes = archive(&entries.map(|(name, bytes)| (name, &bytes[..])));
        let error = load(&tiny(), &bytes).unwrap_err();
        assert!(matches!(error, WeightsError::CorruptPytorch { .. }), "{error}");
    }
    let mut huge = tar::Header::new_ustar();
    huge.set_path("storages").unwrap();
    huge.set_size(1 << 50);
    huge.set_cksum();
    load(&tiny(), huge.as_bytes()).unwrap_err();
}

fn container() -> impl Strategy<Value = Container> {
    prop_oneof![Just(Container::Zip), Just(Container::Legacy), Just(Container::Tar)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Damage anywhere gives a model or an error, never a panic.
    #[test]
    fn damaged_bytes_never_panic(
        container in container(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = sample(container);
        for (position, value) in changes {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        let _ = load(&tiny(), &bytes);
    }

    #[test]
    fn cut_files_are_errors(container in container(), length in any::<prop::sample::Index>()) {
        let bytes = sample(container);
        // Nothing in a tar's last two blocks, and in the rest of the one before, is missed.
        let needed = bytes.len() - if container == Container::Tar { 3 * 512 } else { 0 };
        let length = length.index(needed);
        prop_assert!(load(&tiny(), &bytes[..length]).is_err());
    }

    /// Bytes that begin like a pickle.
    #[test]
    fn random_pickles_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = load(&tiny(), &[b"\x80\x02}(", &bytes[..]].concat());
        let system = Pickle::new().raw(b"}(").text("little_endian").raw(b"\x88u").end();
        let parts = ["storages", "tensors", "pickle"].map(|name| (name, &bytes[..]));
        let _ = load(&tiny(), &archive(&[&[("sys_info", &system[..])][..], &parts].concat()));
    }
}

#[test]
fn networks_of_deep_mind_have_their_names_and_bring_their_pixels_along() {
    let wide: NetworkConfig = PreActResNetConfig::deep_mind_wide(1, 1).into();
    let saved = tensors(&wide.init(1, &Device::flex()));
    for key in [
        "init_conv.weight",
        "layer.0.block.0.batchnorm_0.weight",
        "layer.1.block.0.conv_0.weight",
        "layer.1.block.0.batchnorm_1.running_var",
        "layer.2.block.0.conv_1.weight",
        "layer.2.block.0.shortcut.weight",
        "batchnorm.bias",
        "logits.weight",
    ] {
        assert!(saved.contains_key(key), "{key} is not in {:?}", saved.keys());
    }
    let preact: NetworkConfig = small(PreActResNetConfig::deep_mind_preact_resnet18()).into();
    let of_preact = tensors(&preact.init(1, &Device::flex()));
    for key in ["conv_2d.weight", "layer_0.0.conv_2d_1.weight", "layer_0.0.batchnorm_0.bias"] {
        assert!(of_preact.contains_key(key), "{key} is not in {:?}", of_preact.keys());
    }
    assert_eq!(of_preact["layer_0.0.shortcut.weight"].0, [3, 2, 3, 3]);

    // The pixel statistics are the configuration's, whether or not the file has some.
    let logits = |mean: f32, std: f32, pixel: f32, theirs: &Tensors| {
        let NetworkConfig::PreActResNet(mut config) = wide.clone() else { unreachable!() };
        config.pixels = Some(PixelStatistics { mean: vec![mean; 3], std: vec![std; 3] });
        let model = load(&config.into(), &checkpoint(Container::Zip, &[], theirs)).unwrap();
        let images = burn::tensor::Tensor::full([1, 3, 8, 8], pixel, &Device::flex());
        model.forward(images).try_into_vec_as::<f32>().unwrap()
    };
    let mut with_statistics = saved.clone();
    with_statistics.insert("mean".into(), (vec![3, 1, 1], vec![9.0; 3]));
    with_statistics.insert("std".into(), (vec![3, 1, 1], vec![9.0; 3]));
    let expected = logits(0.0, 1.0, 1.0, &saved);
    assert_eq!(logits(0.5, 0.25, 0.75, &saved), expected);
    assert_eq!(logits(0.5, 0.25, 0.75, &with_statistics), expected);
    assert_ne!(logits(0.0, 1.0, 0.75, &saved), expected);

    let grey = wide.with_input_channels(1).validate().unwrap_err();
    assert_eq!(
        grey.to_string(),
        "network configuration: `pixels.mean` has 3 numbers for 1 input channels"
    );
    let flat = PixelStatistics { std: vec![0.25, 0.0, 0.25], ..PixelStatistics::cifar100() };
    let flat = PreActResNetConfig {
        pixels: Some(flat),
        ..PreActResNetConfig::deep_mind_preact_resnet18()
    };
    assert!(flat.validate().unwrap_err().to_string().contains("`pixels.std` is 0"));
}

/// Logits that PyTorch computed in f64 with the blocks of `tests/parity/reference.py`. With the usual padding on
/// all sides they are off by up to 0.03 and 1.
#[test]
fn networks_of_deep_mind_give_the_logits_of_pytorch() {
    for (base, expected) in [
        (
            PreActResNetConfig::deep_mind_wide(1, 1),
            [
                -0.709515, -0.720091, -0.880116, -0.742578, -0.681854, 0.585246, 1.320026,
                -1.958249, -1.728897, -0.077145,
            ],
        ),
        (
            PreActResNetConfig::deep_mind_preact_resnet18(),
            [
                -1.859563, 0.435359, -1.272283, -3.974393, -0.184971, -0.322054, 3.724877,
                -4.232201, -4.579286, -2.702182,
            ],
        ),
    ] {
        let config: NetworkConfig = small(base).into();
        let mut theirs = tensors(&config.init(1, &Device::flex()));
        for (n, (key, (_, values))) in theirs.iter_mut().enumerate() {
            let offset = if key.ends_with("running_var") { 2.0 } else { 0.0 };
            for (i, value) in values.iter_mut().enumerate() {
                *value = ((1.7 * (i * i) as f64 + n as f64).sin() + offset) as f32;
            }
        }
        let model = load(&config, &checkpoint(Container::Zip, &[], &theirs)).unwrap();
        let images = (0..192).map(|i| (0.5 + 0.5 * (0.05 * f64::from(i)).sin()) as f32);
        let data = TensorData::new(images.collect::<Vec<_>>(), [1, 3, 8, 8]);
        let images = burn::tensor::Tensor::from_data(data, &Device::flex());
        let logits = model.forward(images).try_into_vec_as::<f32>().unwrap();
        for (logit, expected) in logits.iter().zip(expected) {
            assert!((logit - expected).abs() < 1e-4, "{logits:?}");
        }
    }
}
