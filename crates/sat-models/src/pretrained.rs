//! Weights that torchvision publishes.

use sat_core::Curve;

use crate::efficientnet::Conventions;
use crate::network::NetworkConfig;
use crate::registry::ModelName;
use crate::remote::RemoteFile;

/// Which of torchvision's trainings on ImageNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torchvision {
    /// `IMAGENET1K_V1`, the original recipe.
    V1,
    /// `IMAGENET1K_V2`, a longer one.
    V2,
}

/// A public weights file, and the network it is for.
#[derive(Clone, Debug)]
pub struct Pretrained {
    /// Where the file is.
    pub file: RemoteFile,
    /// The network as it was trained: activation, padding and BatchNorm.
    pub config: NetworkConfig,
}

/// torchvision's weights for a network, or `None` where it has none.
///
/// Their files carry the first 8 digits of their SHA-256, and that is what is checked.
///
/// ```no_run
/// use burn::tensor::Device;
/// use sat_models::{ModelName, Torchvision, pretrained, remote::Network};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let weights = pretrained(ModelName::ResNet50, Torchvision::V2).ok_or("no such weights")?;
/// let path = weights.file.fetch("weights", Network::Download)?;
/// let model = weights.config.load(&path, &Device::default())?;
/// # drop(model);
/// # Ok(())
/// # }
/// ```
pub fn pretrained(name: ModelName, training: Torchvision) -> Option<Pretrained> {
    let row = |&&(of, version, ..): &&Row| (of, version) == (name, training);
    let &(_, _, stem, mebibytes) = TABLE.iter().find(row)?;
    let (_, sha256) = stem.rsplit_once('-')?;
    let file = RemoteFile {
        url: format!("https://download.pytorch.org/models/{stem}.pth").into(),
        name: format!("{stem}.pth").into(),
        limit: mebibytes << 20,
        sha256: sha256.into(),
    };
    let config = match name.config() {
        NetworkConfig::EfficientNet(config) => {
            let config = config.with_conventions(Conventions::Torchvision);
            match name {
                ModelName::EfficientNetB5
                | ModelName::EfficientNetB6
                | ModelName::EfficientNetB7 => config.with_norm(1e-3, 0.01).into(),
                _ => config.into(),
            }
        }
        config => config.with_activation(Curve::Relu.into()),
    };
    Some(Pretrained { file, config })
}

/// The network, the training, the file's name without ending, and MiB that it has at most.
type Row = (ModelName, Torchvision, &'static str, u64);

const TABLE: [Row; 21] = [
    (ModelName::ResNet18, Torchvision::V1, "resnet18-f37072fd", 45),
    (ModelName::ResNet34, Torchvision::V1, "resnet34-b627a593", 84),
    (ModelName::ResNet50, Torchvision::V1, "resnet50-0676ba61", 98),
    (ModelName::ResNet50, Torchvision::V2, "resnet50-11ad3fa6", 98),
    (ModelName::ResNet101, Torchvision::V1, "resnet101-63fe2227", 171),
    (ModelName::ResNet101, Torchvision::V2, "resnet101-cd907fc2", 171),
    (ModelName::ResNet152, Torchvision::V1, "resnet152-394f9c45", 231),
    (ModelName::ResNet152, Torchvision::V2, "resnet152-f82ba261", 231),
    (ModelName::ResNeXt50x32x4d, Torchvision::V1, "resnext50_32x4d-7cdf4587", 96),
    (ModelName::ResNeXt50x32x4d, Torchvision::V2, "resnext50_32x4d-1a0047aa", 96),
    (ModelName::ResNeXt101x32x8d, Torchvision::V1, "resnext101_32x8d-8ba56ff5", 340),
    (ModelName::ResNeXt101x32x8d, Torchvision::V2, "resnext101_32x8d-110c445d", 340),
    (ModelName::EfficientNetB0, Torchvision::V1, "efficientnet_b0_rwightman-7f5810bc", 21),
    (ModelName::EfficientNetB1, Torchvision::V1, "efficientnet_b1_rwightman-bac287d4", 31),
    (ModelName::EfficientNetB1, Torchvision::V2, "efficientnet_b1-c27df63c", 31),
    (ModelName::EfficientNetB2, Torchvision::V1, "efficientnet_b2_rwightman-c35c1473", 36),
    (ModelName::EfficientNetB3, Torchvision::V1, "efficientnet_b3_rwightman-b3899882", 48),
    (ModelName::EfficientNetB4, Torchvision::V1, "efficientnet_b4_rwightman-23ab8bcd", 75),
    (ModelName::EfficientNetB5, Torchvision::V1, "efficientnet_b5_lukemelas-1a07897c", 117),
    (ModelName::EfficientNetB6, Torchvision::V1, "efficientnet_b6_lukemelas-24a108a5", 166),
    (ModelName::EfficientNetB7, Torchvision::V1, "efficientnet_b7_lukemelas-c5b4e57e", 255),
];
