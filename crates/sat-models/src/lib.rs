//! ResNets, WideResNets and EfficientNets for [Burn](https://burn.dev) with any activation of
//! `sat-core`, seeded initialisation, and weights from PyTorch and safetensors files.
//!
//! A network is data until it is built:
//!
//! ```
//! # #[cfg(feature = "flex")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use burn::module::Module;
//! use burn::tensor::{Device, Tensor};
//! use sat_models::{ModelName, load_safetensors, network_metadata, read_network, save_safetensors};
//!
//! let name: ModelName = "resnet20".parse()?;
//! let config = name.config().with_activation("silu".parse()?);
//! let device = Device::flex();
//! let model = config.init(0, &device); // seed 0
//! let logits = model.forward(Tensor::zeros([2, 3, 32, 32], &device));
//! assert_eq!(logits.dims(), [2, 10]);
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("resnet20.safetensors");
//! save_safetensors(&model, &file, &network_metadata(&config))?;
//! assert_eq!(read_network(&file)?.as_ref(), Some(&config));
//!
//! // Training takes the differentiable twin of the device; attacks and evaluation take `valid()`.
//! let model = load_safetensors(config.init(1, &device.autodiff()), &file)?;
//! let attacked = model.valid();
//! # drop(attacked);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "flex"))]
//! # fn main() {}
//! ```
//!
//! [`ResNetConfig`], [`PreActResNetConfig`] and [`EfficientNetConfig`] describe networks of any size;
//! [`StateDict`] gives a module of your own the same weights files. [`pretrained`] knows torchvision's weights, and
//! [`remote::RemoteFile`] fetches and checks any others.

#![warn(missing_docs)]

mod config;
mod cost;
mod efficientnet;
mod init;
mod network;
mod preact_resnet;
mod pretrained;
mod registry;
pub mod remote;
mod resnet;
mod weights;

pub use config::ConfigError;
pub use cost::Cost;
pub use efficientnet::{
    Conventions, EfficientNet, EfficientNetConfig, Padding, Scaling, SqueezeExciteConfig,
};
pub use init::Initialization;
pub use network::{Model, NetworkConfig};
pub use preact_resnet::{
    PixelStatistics, PreActResNet, PreActResNetConfig, PreActShortcut, PreActStyle,
};
pub use pretrained::{Pretrained, Torchvision, pretrained};
pub use registry::{ModelName, UnknownModel};
pub use resnet::{BlockConfig, Pool, ResNet, ResNetConfig, StageConfig, StemConfig};
pub use weights::{
    METADATA_NETWORK, Metadata, ShapeMismatch, StateDict, WeightsError, load_pytorch,
    load_safetensors, load_weights, network_metadata, read_metadata, read_network,
    save_safetensors,
};
