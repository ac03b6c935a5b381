//! Weights in the safetensors and PyTorch formats, with PyTorch's names and layouts.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData, bf16, f16};
use pytorch_reader::{DType as PytorchType, PytorchError, PytorchReader};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata as Header};
use serde_json::json;
use thiserror::Error;

use crate::network::NetworkConfig;
use crate::resnet::ResNetConfig;

/// A module whose tensors have names in PyTorch's state-dict convention.
///
/// Only tensors of floats are covered; parameters that are integers or booleans are not stored.
/// Layers are translated for every module: the `gamma` and `beta` of Burn's BatchNorm and of
/// [`BatchNormAct`](sat_core::BatchNormAct) are `weight` and `bias`, and a linear weight, `[in, out]` in Burn, is `[out, in]` in the file.
pub trait StateDict: Module {
    /// The PyTorch name of the tensor at `path`: field names and indices joined by dots, as in
    /// `fc.weight` or `stages.0.2.bn1.running_mean`. Different paths must give different names.
    fn state_key(&self, path: &str) -> String {
        path.to_owned()
    }

    /// Names that other software gives to modules of this one, each with the name that
    /// [`state_key`](Self::state_key) gives: `("linear", "fc")` makes a file's `linear.weight` the
    /// `fc.weight`. Loading accepts both.
    fn aliases(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Whether loading passes over a tensor of this name, because the software that saved it never
    /// uses it.
    fn is_unused(&self, _key: &str) -> bool {
        false
    }

    /// The names of all tensors, sorted: parameters and running statistics.
    fn state_keys(&self) -> Vec<String> {
        slots(self).into_iter().map(|slot| slot.key).collect()
    }

    /// The number of parameters, each element counted: what PyTorch's `model.parameters()` holds.
    /// Burn's [`num_params`](Module::num_params) adds the running statistics of BatchNorm.
    fn parameter_count(&self) -> usize {
        let parameters = slots(self).into_iter().filter(|slot| slot.role == Role::Parameter);
        parameters.map(|slot| slot.shape.iter().product::<usize>()).sum()
    }
}

/// The text entries in the header of a safetensors file.
pub type Metadata = BTreeMap<String, String>;

/// The metadata key of the network's description: a [`NetworkConfig`] as JSON. Older files have a
/// [`ResNetConfig`] alone, which [`read_network`] understands too.
pub const METADATA_NETWORK: &str = "sat.network";

/// The metadata that says which network the weights belong to; [`read_network`] reads it back.
pub fn network_metadata(network: &NetworkConfig) -> Metadata {
    let text = serde_json::to_string(network).expect("names, numbers and lists have a JSON form");
    Metadata::from([(METADATA_NETWORK.to_owned(), text)])
}

/// The network that the weights at `path` belong to, or `None` if the file does not say.
///
/// # Errors
///
/// [`Read`](WeightsError::Read) or [`Corrupt`](WeightsError::Corrupt), and
/// [`Network`](WeightsError::Network) if the description makes no sense.
pub fn read_network(path: impl AsRef<Path>) -> Result<Option<NetworkConfig>, WeightsError> {
    let path = path.as_ref();
    let Some(text) = read_metadata(path)?.remove(METADATA_NETWORK) else { return Ok(None) };
    let refuse = |reason| WeightsError::Network { path: path.to_owned(), reason };
    let parse = || -> serde_json::Result<NetworkConfig> {
        let value: serde_json::Value = serde_json::from_str(&text)?;
        match value.get("stages") {
            Some(_) => Ok(serde_json::from_value::<ResNetConfig>(value)?.into()),
            None => serde_json::from_value(value),
        }
    };
    let network = parse().map_err(|error| refuse(error.to_string()))?;
    network.validate().map_err(|error| refuse(error.to_string()))?;
    Ok(Some(network))
}

/// What went wrong with a weights file. Every message names the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("cannot read weights from `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file cannot be written. At its path is what was there before or, if only the folder
    /// could not be flushed to the disk, the whole new file.
    #[error("cannot write weights to `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The description of the network in the file's metadata cannot be used.
    #[error("`{}`: metadata `sat.network`: {reason}; name the network yourself", path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is not a whole and valid safetensors file.
    #[error("`{}` is not a valid safetensors file: {source}; copy or download it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: SafeTensorError,
    },
    /// The file is not a PyTorch checkpoint that can be read.
    #[error("`{}` is no PyTorch checkpoint of tensors: {source}; copy or download it again, or save its `state_dict()` anew", path.display())]
    CorruptPytorch {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: PytorchError,
    },
    /// The tensors of the file are not the tensors of the model.
    #[error(
        "`{}` does not fit the model:{}{}{}; check the architecture, the number of classes and the activation",
        path.display(),
        listed("missing", missing),
        listed("unexpected", unexpected),
        listed("of another shape", misshapen)
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Tensors of the model that the file lacks, sorted.
        missing: Vec<String>,
        /// Tensors of the file that the model lacks, sorted.
        unexpected: Vec<String>,
        /// Tensors whose shapes differ, sorted by name.
        misshapen: Vec<ShapeMismatch>,
    },
    /// Two tensors of the file are the same tensor of the model once `module.` and `model.` are removed
    /// and [aliases](StateDict::aliases) are followed.
    #[error("`{}` holds the tensor `{tensor}` twice, under two names", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The name without the prefix.
        tensor: String,
    },
    /// A tensor has a data type other than f16, bf16, f32 and f64.
    #[error("`{}`: the tensor `{tensor}` is {found}; expected F16, BF16, F32 or F64", path.display())]
    DataType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its data type in the file.
        found: Dtype,
    },
    /// A value is NaN or infinite as f32.
    #[error("`{}`: the tensor `{tensor}` holds {value} at index {index}; weights must be finite", path.display())]
    NonFinite {
        /// The file, read or to be written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The index in the flattened tensor.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The device failed to hand over a tensor.
    #[error("cannot write weights to `{}`: reading the tensor `{tensor}` from its device failed: {source}", path.display())]
    Device {
        /// The file that was to be written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The cause.
        source: AnyError,
    },
}

/// The cause of a [`WeightsError::Device`].
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A tensor whose shape in the file is not the model's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{tensor}: model {expected:?}, file {found:?}")]
pub struct ShapeMismatch {
    /// The tensor.
    pub tensor: String,
    /// The model's shape, in PyTorch's layout.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

/// The first few by name: another architecture has hundreds.
fn listed(what: &str, items: &[impl ToString]) -> String {
    const NAMED: usize = 6;
    if items.is_empty() {
        return String::new();
    }
    let names: Vec<String> = items.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if items.len() > NAMED { ", ..." } else { "" };
    format!(" {} {what} ({}{more})", items.len(), names.join(", "))
}

/// Writes the parameters and running statistics of `model` to `path`, as f32.
///
/// Names and layouts are PyTorch's; a learnable activation parameter is under the name of its site,
/// such as `layer1.0.act1.b`. The bytes depend only on the values and on `metadata`. They go to a
/// temporary file in the same folder that then takes the place of `path`: whatever fails, `path`
/// never holds part of a file, and an old file there is not lost.
///
/// # Errors
///
/// [`Write`](WeightsError::Write), [`NonFinite`](WeightsError::NonFinite) or
/// [`Device`](WeightsError::Device).
pub fn save_safetensors<M: StateDict>(
    model: &M,
    path: impl AsRef<Path>,
    metadata: &Metadata,
) -> Result<(), WeightsError> {
    let path = path.as_ref();
    // `valid` folds in updates of the running statistics that a visit would not see yet.
    let slots = slots(&model.valid());
    let failed = |source| WeightsError::Write { path: path.to_owned(), source };

    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let temporary = temporary_file(folder).map_err(failed)?;
    let mut out = BufWriter::new(temporary.as_file());
    write_header(&mut out, &slots, metadata).map_err(failed)?;
    for slot in slots {
        let tensor = slot.key;
        let values = match (slot.read)() {
            Ok(values) => values,
            Err(source) => {
                return Err(WeightsError::Device { path: path.to_owned(), tensor, source });
            }
        };
        let values = slot.layout.swap(values, &slot.burn_shape);
        check_finite(path, &tensor, &values)?;
        for value in values {
            out.write_all(&value.to_le_bytes()).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)?;
    drop(out);
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    sync_folder(folder).map_err(failed)
}

/// Reads the tensors of `model` from the safetensors file at `path`.
///
/// Strict: every tensor of the model must be in the file with the right shape, and nothing else may
/// be, except BatchNorm's `num_batches_tracked` and what the model calls
/// [unused](StateDict::is_unused). Leading `module.` and `model.` are removed from
/// names, and [aliases](StateDict::aliases) followed. Values in f16, bf16, f32 or f64 become f32, then
/// the data type of the model's tensor.
///
/// The model keeps its device and which parameters require gradients. Clones made before keep
/// their own weights and running statistics. A model on a device without autodiff comes back in
/// inference mode, as from [`valid`](Module::valid). Beside the model, memory for one tensor is used.
///
/// # Errors
///
/// Any [`WeightsError`] about reading; nothing is loaded then. `model` is consumed: pass a `clone()`
/// to keep it whatever happens.
pub fn load_safetensors<M: StateDict>(model: M, path: impl AsRef<Path>) -> Result<M, WeightsError> {
    let path = path.as_ref();
    load(model, path, open_safetensors(path)?.tensors())
}

/// Reads the tensors of `model` from the PyTorch checkpoint at `path`: what `torch.save` made of a
/// `state_dict()`, in the zip format or the older ones.
///
/// A dictionary under `state_dict` or `model_state_dict` is taken and what lies beside it left, as is
/// one under `model` beside an `optimizer`. All else is as in [`load_safetensors`]. The file's pickle is
/// interpreted as data: no code in it is run.
///
/// # Errors
///
/// As [`load_safetensors`].
pub fn load_pytorch<M: StateDict>(model: M, path: impl AsRef<Path>) -> Result<M, WeightsError> {
    let path = path.as_ref();
    load(model, path, open_pytorch(path)?)
}

/// Reads the tensors of `model` from the file at `path`, whichever of the two formats it has: see
/// [`load_safetensors`] and [`load_pytorch`].
///
/// # Errors
///
/// As [`load_safetensors`].
pub fn load_weights<M: StateDict>(model: M, path: impl AsRef<Path>) -> Result<M, WeightsError> {
    let path = path.as_ref();
    if is_safetensors(path)? { load_safetensors(model, path) } else { load_pytorch(model, path) }
}

/// By its name or its beginning.
fn is_safetensors(path: &Path) -> Result<bool, WeightsError> {
    let failed = |source| WeightsError::Read { path: path.to_owned(), source };
    // A length in eight bytes, and JSON.
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(failed)?;
    let is_named = path.extension().is_some_and(|extension| extension == "safetensors");
    Ok(is_named || start.get(8) == Some(&b'{'))
}

fn load<M: StateDict>(
    model: M,
    path: &Path,
    file: BTreeMap<String, Stored>,
) -> Result<M, WeightsError> {
    let slots = slots(&model);
    let aliases: HashMap<String, String> = model.aliases().into_iter().collect();
    let is_ours = |key: &str| slots.binary_search_by(|slot| slot.key.as_str().cmp(key)).is_ok();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in file {
        // A field of the model's own may be called `model` or `module`.
        let mut key = if is_ours(&name) { name } else { strip_prefixes(&name).to_owned() };
        if key.rsplit('.').next() == Some("num_batches_tracked") || model.is_unused(&key) {
            continue;
        }
        if !is_ours(&key)
            && let Some((module, field)) = key.rsplit_once('.')
            && let Some(ours) = aliases.get(module)
        {
            key = format!("{ours}.{field}");
        }
        if tensors.contains_key(&key) {
            return Err(WeightsError::Duplicate { path: path.to_owned(), tensor: key });
        }
        tensors.insert(key, tensor);
    }
    compare(path, &slots, &tensors)?;

    // A map changes running statistics in place, which clones share, and leaves pending updates
    // that would overwrite them. `train` and `valid` give the model statistics of its own.
    let has_autodiff = slots.iter().any(|slot| slot.autodiff);
    let keys = slots.into_iter().map(|slot| (slot.path, slot.key)).collect();
    let model = if has_autodiff {
        model.train()
    } else {
        let valid = model.valid();
        // Else the old values would stay until the last of the new ones is there.
        drop(model);
        valid
    };
    let mut loader = Loader { file: path, place: Place::default(), keys, tensors, error: None };
    let model = model.map(&mut loader);
    match loader.error {
        None => Ok(model),
        Some(error) => Err(error),
    }
}

/// Reads the text entries in the header of the safetensors file at `path`; empty if it has none, and for
/// PyTorch checkpoints, which have no place for them.
///
/// # Errors
///
/// [`Read`](WeightsError::Read) or [`Corrupt`](WeightsError::Corrupt).
pub fn read_metadata(path: impl AsRef<Path>) -> Result<Metadata, WeightsError> {
    let path = path.as_ref();
    if !is_safetensors(path)? {
        return Ok(Metadata::new());
    }
    let header = open_safetensors(path)?.header;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// A tensor in a file, not read yet.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    read: Box<dyn Fn() -> io::Result<Vec<u8>>>,
}

struct OpenSafetensors {
    file: File,
    header: Header,
    /// Where the tensors begin.
    start: u64,
}

impl OpenSafetensors {
    fn tensors(self) -> BTreeMap<String, Stored> {
        let file = Rc::new(RefCell::new(self.file));
        let stored = |name: String, info: &safetensors::tensor::TensorInfo| {
            let (from, to) = info.data_offsets;
            let (file, start) = (file.clone(), self.start + from as u64);
            let read = move || {
                let mut bytes = vec![0; to - from];
                let mut file = file.borrow_mut();
                file.seek(SeekFrom::Start(start))?;
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            };
            (name, Stored { dtype: info.dtype, shape: info.shape.clone(), read: Box::new(read) })
        };
        self.header.tensors().into_iter().map(|(name, info)| stored(name, info)).collect()
    }
}

/// Reads the header and checks that the tensors fill the rest of the file. The safetensors crate would
/// want the whole file in memory for that.
fn open_safetensors(path: &Path) -> Result<OpenSafetensors, WeightsError> {
    const LARGEST_HEADER: u64 = 100_000_000;
    let failed = |source| WeightsError::Read { path: path.to_owned(), source };
    let corrupt = |source| WeightsError::Corrupt { path: path.to_owned(), source };

    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut size = [0; 8];
    if length < size.len() as u64 {
        return Err(corrupt(SafeTensorError::HeaderTooSmall));
    }
    file.read_exact(&mut size).map_err(failed)?;
    let size = u64::from_le_bytes(size);
    if size > LARGEST_HEADER {
        return Err(corrupt(SafeTensorError::HeaderTooLarge));
    }
    let start = 8 + size;
    if start > length {
        return Err(corrupt(SafeTensorError::InvalidHeaderLength));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|error| corrupt(SafeTensorError::InvalidHeaderDeserialization(error)))?;
    if start.checked_add(header.data_len() as u64) != Some(length) {
        return Err(corrupt(SafeTensorError::MetadataIncompleteBuffer));
    }
    Ok(OpenSafetensors { file, header, start })
}

fn open_pytorch(path: &Path) -> Result<BTreeMap<String, Stored>, WeightsError> {
    let tensors = PytorchReader::new(path).map_err(|source| match source {
        PytorchError::Io(source) if source.kind() == io::ErrorKind::NotFound => {
            WeightsError::Read { path: path.to_owned(), source }
        }
        source => WeightsError::CorruptPytorch { path: path.to_owned(), source },
    })?;
    let tensors = tensors.into_tensors();
    let holds = |prefix: &str| tensors.keys().any(|key| key.starts_with(prefix));
    let wrapper = if holds("state_dict.") {
        "state_dict."
    } else if holds("model_state_dict.") {
        "model_state_dict."
    } else if holds("model.") && holds("optimizer.") {
        "model."
    } else {
        ""
    };
    let stored = tensors.into_iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(wrapper)?.to_owned();
        let (_, dtype, shape, read) = tensor.into_parts();
        Some((name, Stored { dtype: dtype_of(dtype), shape, read: Box::new(read) }))
    });
    Ok(stored.collect())
}

fn dtype_of(dtype: PytorchType) -> Dtype {
    match dtype {
        PytorchType::F64 => Dtype::F64,
        PytorchType::F32 => Dtype::F32,
        PytorchType::F16 => Dtype::F16,
        PytorchType::BF16 => Dtype::BF16,
        PytorchType::I64 => Dtype::I64,
        PytorchType::I32 => Dtype::I32,
        PytorchType::I16 => Dtype::I16,
        PytorchType::I8 => Dtype::I8,
        PytorchType::U64 => Dtype::U64,
        PytorchType::U32 => Dtype::U32,
        PytorchType::U16 => Dtype::U16,
        PytorchType::U8 => Dtype::U8,
        PytorchType::Bool => Dtype::BOOL,
    }
}

/// Names from `DataParallel` start with `module.`, those from wrapper modules with `model.`.
fn strip_prefixes(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix("module.").or_else(|| name.strip_prefix("model.")) {
        name = rest;
    }
    name
}

fn compare(
    path: &Path,
    slots: &[Slot],
    tensors: &BTreeMap<String, Stored>,
) -> Result<(), WeightsError> {
    let mut missing = Vec::new();
    let mut misshapen = Vec::new();
    for slot in slots {
        match tensors.get(&slot.key) {
            None => missing.push(slot.key.clone()),
            Some(tensor) if tensor.shape != slot.shape => misshapen.push(ShapeMismatch {
                tensor: slot.key.clone(),
                expected: slot.shape.clone(),
                found: tensor.shape.clone(),
            }),
            Some(_) => {}
        }
    }
    let known = |key: &str| slots.binary_search_by(|slot| slot.key.as_str().cmp(key)).is_ok();
    let unexpected: Vec<String> = tensors.keys().filter(|key| !known(key)).cloned().collect();
    if !(missing.is_empty() && unexpected.is_empty() && misshapen.is_empty()) {
        let path = path.to_owned();
        return Err(WeightsError::Mismatch { path, missing, unexpected, misshapen });
    }
    // Known before anything is loaded, though the values are not.
    for (key, tensor) in tensors {
        if !matches!(tensor.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) {
            let (path, tensor, found) = (path.to_owned(), key.clone(), tensor.dtype);
            return Err(WeightsError::DataType { path, tensor, found });
        }
    }
    Ok(())
}

fn decode(path: &Path, key: &str, tensor: &Stored) -> Result<Vec<f32>, WeightsError> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
    }
    let bytes =
        (tensor.read)().map_err(|source| WeightsError::Read { path: path.to_owned(), source })?;
    let values = match tensor.dtype {
        Dtype::F32 => each(&bytes, f32::from_le_bytes),
        Dtype::F64 => each(&bytes, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F16 => each(&bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => each(&bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        found => {
            let tensor = key.to_owned();
            return Err(WeightsError::DataType { path: path.to_owned(), tensor, found });
        }
    };
    check_finite(path, key, &values)?;
    Ok(values)
}

fn check_finite(path: &Path, key: &str, values: &[f32]) -> Result<(), WeightsError> {
    match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((index, &value)) => {
            let tensor = key.to_owned();
            Err(WeightsError::NonFinite { path: path.to_owned(), tensor, index, value })
        }
    }
}

/// Written here rather than by the safetensors crate, which orders metadata at random and needs
/// all tensors in memory.
fn write_header(out: &mut impl Write, slots: &[Slot], metadata: &Metadata) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut start = 0;
    for slot in slots {
        let end = start + slot.shape.iter().product::<usize>() * size_of::<f32>();
        let info = json!({ "dtype": "F32", "shape": slot.shape, "data_offsets": [start, end] });
        header.insert(slot.key.clone(), info);
        start = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)
}

fn temporary_file(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sat-weights-");
    // The usual mode of a new file, less the umask; tempfile's own is private to the user.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Makes the renaming of a file in `folder` last through a power failure.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// A tensor of a model.
struct Slot {
    /// The fields on the way to it, the last under PyTorch's name.
    path: String,
    key: String,
    /// The shape in the file.
    shape: Vec<usize>,
    burn_shape: Vec<usize>,
    layout: Layout,
    role: Role,
    autodiff: bool,
    read: Box<dyn FnOnce() -> Result<Vec<f32>, AnyError>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Parameter,
    RunningStatistic,
}

/// How a tensor lies in the file.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    AsInBurn,
    /// A matrix with its axes exchanged.
    Transposed,
}

impl Layout {
    /// Turns values of the given shape from one layout into the other.
    fn swap(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match (self, shape) {
            (Self::Transposed, &[rows, columns]) => (0..columns)
                .flat_map(|column| (0..rows).map(move |row| (row, column)))
                .map(|(row, column)| values[row * columns + column])
                .collect(),
            _ => values,
        }
    }

    fn swap_shape(self, shape: &[usize]) -> Vec<usize> {
        match self {
            Self::AsInBurn => shape.to_vec(),
            Self::Transposed => shape.iter().rev().copied().collect(),
        }
    }
}

/// The tensors of a model, sorted by key.
fn slots<M: StateDict>(model: &M) -> Vec<Slot> {
    let mut lister = Lister { model, place: Place::default(), slots: Vec::new() };
    model.visit(&mut lister);
    let mut slots = lister.slots;
    slots.sort_by(|a, b| a.key.cmp(&b.key));
    slots
}

/// The fields entered on the way to a tensor, each with the type that contains it.
#[derive(Default)]
struct Place {
    fields: Vec<(String, String)>,
}

impl Place {
    fn enter(&mut self, name: &str, container: &str) {
        self.fields.push((name.to_owned(), container.to_owned()));
    }

    fn exit(&mut self) {
        self.fields.pop();
    }

    fn last(&self) -> (&str, &str) {
        self.fields.last().map_or(("", ""), |(name, container)| (name, container))
    }

    fn path(&self) -> String {
        let mut names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        let torch_name = match self.last() {
            ("gamma", "Struct:BatchNorm") => "weight",
            ("beta", "Struct:BatchNorm") => "bias",
            (name, _) => name,
        };
        names.pop();
        names.push(torch_name);
        names.join(".")
    }

    fn layout(&self) -> Layout {
        match self.last() {
            ("weight", "Struct:Linear") => Layout::Transposed,
            _ => Layout::AsInBurn,
        }
    }

    fn role(&self) -> Role {
        match self.last() {
            ("running_mean" | "running_var", "Struct:BatchNorm") => Role::RunningStatistic,
            _ => Role::Parameter,
        }
    }
}

struct Lister<'a, M> {
    model: &'a M,
    place: Place,
    slots: Vec<Slot>,
}

impl<M: StateDict> ModuleVisitor for Lister<'_, M> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.place.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.place.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let layout = self.place.layout();
        let burn_shape = param.lazy_shape().to_vec();
        let param = param.clone();
        let path = self.place.path();
        self.slots.push(Slot {
            key: self.model.state_key(&path),
            path,
            shape: layout.swap_shape(&burn_shape),
            burn_shape,
            layout,
            role: self.place.role(),
            autodiff: param.lazy_device().is_autodiff(),
            read: Box::new(move || Ok(param.val().try_into_vec_as::<f32>()?)),
        });
    }
}

/// Puts the tensors of a file, known to fit, into a model, one after the other. After an error the
/// rest is left.
struct Loader<'a> {
    file: &'a Path,
    place: Place,
    /// The key of each path.
    keys: HashMap<String, String>,
    tensors: BTreeMap<String, Stored>,
    error: Option<WeightsError>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.place.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.place.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.error.is_some() {
            return param;
        }
        let key = self.keys.get(&self.place.path());
        let Some((key, stored)) = key.and_then(|key| self.tensors.remove_entry(key)) else {
            return param;
        };
        let values = match decode(self.file, &key, &stored) {
            Ok(values) => values,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let layout = self.place.layout();
        param.map(|old| {
            let shape = old.dims();
            let values = layout.swap(values, &layout.swap_shape(&shape));
            let data = TensorData::new(values, shape);
            let new = Tensor::from_data(data, (&old.device(), old.dtype()));
            new.set_require_grad(old.is_require_grad())
        })
    }
}
