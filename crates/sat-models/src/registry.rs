//! Networks by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::efficientnet::EfficientNetConfig;
use crate::network::NetworkConfig;
use crate::preact_resnet::PreActResNetConfig;
use crate::resnet::ResNetConfig;

/// Declares [`ModelName`] from one table: variant, name, configuration, side of the default image.
macro_rules! model_names {
    ($($variant:ident, $name:literal, $config:expr, $side:literal;)*) => {
        /// A network with a standard name, as on a command line or in the metadata of a weights file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[non_exhaustive]
        pub enum ModelName {
            $(#[doc = concat!("`", $name, "`: `", stringify!($config), "`")] $variant,)*
        }

        impl ModelName {
            /// Every name.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name as text.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The network as data: 3 input channels, 1000 classes for networks made for ImageNet and
            /// 10 for those made for CIFAR. The activation is SiLU, in the Lite networks ReLU6;
            /// weights trained elsewhere may want another, as those of torchvision's ResNets do:
            /// `.with_activation("relu".parse()?)`.
            pub fn config(self) -> NetworkConfig {
                match self {
                    $(Self::$variant => $config.into(),)*
                }
            }

            /// Height and width of the images that the network is made for.
            pub const fn image_size(self) -> [usize; 2] {
                match self {
                    $(Self::$variant => [$side, $side],)*
                }
            }
        }
    };
}

model_names! {
    ResNet20, "resnet20", ResNetConfig::resnet20(), 32;
    ResNet32, "resnet32", ResNetConfig::resnet32(), 32;
    ResNet44, "resnet44", ResNetConfig::resnet44(), 32;
    ResNet56, "resnet56", ResNetConfig::resnet56(), 32;
    ResNet110, "resnet110", ResNetConfig::resnet110(), 32;
    ResNet18Cifar, "resnet18_cifar", ResNetConfig::resnet18_cifar(), 32;
    ResNet18, "resnet18", ResNetConfig::resnet18(), 224;
    ResNet34, "resnet34", ResNetConfig::resnet34(), 224;
    ResNet50, "resnet50", ResNetConfig::resnet50(), 224;
    ResNet101, "resnet101", ResNetConfig::resnet101(), 224;
    ResNet152, "resnet152", ResNetConfig::resnet152(), 224;
    ResNeXt50x32x4d, "resnext50_32x4d", ResNetConfig::resnext50_32x4d(), 224;
    ResNeXt50x32x8d, "resnext50_32x8d", ResNetConfig::resnext50_32x8d(), 224;
    ResNeXt101x32x8d, "resnext101_32x8d", ResNetConfig::resnext101_32x8d(), 224;
    ResNeXt152x32x8d, "resnext152_32x8d", ResNetConfig::resnext152_32x8d(), 224;
    PreActResNet18, "preact_resnet18", PreActResNetConfig::preact_resnet18(), 32;
    WideResNet28x10, "wide_resnet28_10", PreActResNetConfig::wide(4, 10), 32;
    WideResNet34x10, "wide_resnet34_10", PreActResNetConfig::wide(5, 10), 32;
    DmPreActResNet18, "dm_preact_resnet18", PreActResNetConfig::deep_mind_preact_resnet18(), 32;
    DmWideResNet28x10, "dm_wide_resnet28_10", PreActResNetConfig::deep_mind_wide(4, 10), 32;
    DmWideResNet70x16, "dm_wide_resnet70_16", PreActResNetConfig::deep_mind_wide(11, 16), 32;
    EfficientNetB0, "efficientnet_b0", EfficientNetConfig::b0(), 224;
    EfficientNetB1, "efficientnet_b1", EfficientNetConfig::b1(), 240;
    EfficientNetB2, "efficientnet_b2", EfficientNetConfig::b2(), 260;
    EfficientNetB3, "efficientnet_b3", EfficientNetConfig::b3(), 300;
    EfficientNetB4, "efficientnet_b4", EfficientNetConfig::b4(), 380;
    EfficientNetB5, "efficientnet_b5", EfficientNetConfig::b5(), 456;
    EfficientNetB6, "efficientnet_b6", EfficientNetConfig::b6(), 528;
    EfficientNetB7, "efficientnet_b7", EfficientNetConfig::b7(), 600;
    EfficientNetB8, "efficientnet_b8", EfficientNetConfig::b8(), 672;
    EfficientNetL1, "efficientnet_l1", EfficientNetConfig::l1(), 600;
    EfficientNetL2, "efficientnet_l2", EfficientNetConfig::l2(), 800;
    EfficientNetLite0, "efficientnet_lite0", EfficientNetConfig::lite0(), 224;
    EfficientNetLite1, "efficientnet_lite1", EfficientNetConfig::lite1(), 240;
    EfficientNetLite2, "efficientnet_lite2", EfficientNetConfig::lite2(), 260;
    EfficientNetLite3, "efficientnet_lite3", EfficientNetConfig::lite3(), 280;
    EfficientNetLite4, "efficientnet_lite4", EfficientNetConfig::lite4(), 300;
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.as_str().to_owned()
    }
}

impl FromStr for ModelName {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| UnknownModel { name: text.to_owned() })
    }
}

impl TryFrom<String> for ModelName {
    type Error = UnknownModel;

    fn try_from(text: String) -> Result<Self, UnknownModel> {
        text.parse()
    }
}

/// A name that is not in [`ModelName::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown model `{name}`{}; known models: {}", self.hint(), ModelName::ALL.map(ModelName::as_str).join(", "))]
pub struct UnknownModel {
    /// The name as it was given.
    pub name: String,
}

impl UnknownModel {
    fn hint(&self) -> String {
        let near = |known: &str| edit_distance(&self.name, known);
        let nearest = ModelName::ALL.into_iter().min_by_key(|known| near(known.as_str()));
        match nearest.filter(|known| near(known.as_str()) <= known.as_str().len() / 3) {
            Some(known) => format!(", did you mean `{known}`?"),
            None => String::new(),
        }
    }
}

/// Levenshtein's distance: the fewest insertions, deletions and replacements of a byte.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
