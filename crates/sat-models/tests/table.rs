//! Sizes and costs of every named network, against the originals'.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use sat_core::Curve;
use sat_models::{Cost, ModelName, NetworkConfig, StateDict};

fn cost(name: &str) -> Cost {
    let name: ModelName = name.parse().unwrap();
    name.config().cost(name.image_size(), &Device::flex())
}

/// Parameters as the original implementations have them, with their number of classes.
const PARAMETERS: [(&str, u64); 37] = [
    ("resnet20", 272_474),
    ("resnet32", 466_906),
    ("resnet44", 661_338),
    ("resnet56", 855_770),
    ("resnet110", 1_730_714),
    ("resnet18_cifar", 11_173_962),
    ("resnet18", 11_689_512),
    ("resnet34", 21_797_672),
    ("resnet50", 25_557_032),
    ("resnet101", 44_549_160),
    ("resnet152", 60_192_808),
    ("resnext50_32x4d", 25_028_904),
    ("resnext50_32x8d", 48_021_800),
    ("resnext101_32x8d", 88_791_336),
    ("resnext152_32x8d", 122_372_392),
    ("wide_resnet28_10", 36_479_194),
    ("wide_resnet34_10", 46_160_474),
    ("preact_resnet18", 11_171_146),
    ("dm_preact_resnet18", 12_548_426),
    ("dm_wide_resnet28_10", 36_479_194),
    ("dm_wide_resnet70_16", 266_796_506),
    ("efficientnet_b0", 5_288_548),
    ("efficientnet_b1", 7_794_184),
    ("efficientnet_b2", 9_109_994),
    ("efficientnet_b3", 12_233_232),
    ("efficientnet_b4", 19_341_616),
    ("efficientnet_b5", 30_389_784),
    ("efficientnet_b6", 43_040_704),
    ("efficientnet_b7", 66_347_960),
    ("efficientnet_b8", 87_413_142),
    ("efficientnet_l1", 272_630_564),
    ("efficientnet_l2", 480_309_308),
    ("efficientnet_lite0", 4_652_008),
    ("efficientnet_lite1", 5_416_680),
    ("efficientnet_lite2", 6_092_072),
    ("efficientnet_lite3", 8_197_096),
    ("efficientnet_lite4", 13_006_568),
];

#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, expected) in PARAMETERS {
        assert_eq!(cost(name).parameters, expected, "{name}");
    }
    assert_eq!(PARAMETERS.len(), ModelName::ALL.len());
}

#[test]
fn multiplications_are_the_published_ones() {
    for (name, giga) in [
        ("resnet50", 4.089),
        ("resnet152", 11.514),
        ("efficientnet_b0", 0.386),
        ("efficientnet_b4", 4.394),
        ("efficientnet_b7", 37.746),
        ("efficientnet_l1", 162.0),
    ] {
        let macs = cost(name).macs as f64 / 1e9;
        assert!((macs / giga - 1.0).abs() < 0.005, "{name}: {macs} against {giga}");
    }
}

/// The count without weights is that of the network with them, and their values are all there.
#[test]
fn built_networks_have_the_counted_parameters() {
    #[derive(Default)]
    struct Elements(usize);
    impl ModuleVisitor for Elements {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 += param.val().try_into_vec_as::<f32>().unwrap().len();
        }
    }
    for name in ["resnet110", "preact_resnet18", "efficientnet_b0", "efficientnet_lite0"] {
        let config = name.parse::<ModelName>().unwrap().config();
        let model = config.init(0, &Device::flex());
        assert_eq!(model.parameter_count() as u64, cost(name).parameters, "{name}");
        let mut elements = Elements::default();
        model.visit(&mut elements);
        let keys = model.state_keys();
        assert!(elements.0 > model.parameter_count(), "{name}: with running statistics");
        assert_eq!(keys.len(), config.init(1, &Device::flex()).state_keys().len());
    }
}

/// A hand count: conv 3x3 1->2 on 4x4, two BatchNorms' outputs, ...
#[test]
fn a_small_network_is_counted_by_hand() {
    let config = sat_models::ResNetConfig {
        stem: sat_models::StemConfig::small(2, 1),
        stages: vec![sat_models::StageConfig { channels: 2, blocks: 1, stride: 1 }],
        ..sat_models::ResNetConfig::resnet20()
    };
    let config = NetworkConfig::from(config.with_input_channels(1).with_classes(3));
    let cost = config.cost([4, 4], &Device::flex());
    assert_eq!(cost.parameters, (18 + 4) + 2 * (36 + 4) + (6 + 3));
    assert_eq!(cost.macs, 16 * 18 + 2 * 16 * 36 + 6);
    assert_eq!(cost.activations, 6 * 2 * 16 + 5);
}

#[test]
fn names_say_what_they_were_made_for() {
    let name: ModelName = "efficientnet_l1".parse().unwrap();
    assert_eq!(name.image_size(), [600, 600]);
    assert_eq!(name.config().classes(), 1000);
    assert_eq!(name.config().activation(), &Curve::Silu.into());
    let lite = ModelName::EfficientNetLite0.config();
    assert_eq!(lite.activation(), &Curve::Relu6.into());
    assert_eq!(ModelName::WideResNet28x10.config().classes(), 10);
}
