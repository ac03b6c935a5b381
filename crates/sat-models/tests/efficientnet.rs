//! EfficientNet: modes, noise, padding, configurations; and what all families do behind one enum.

#![allow(clippy::unwrap_used)] // also outside functions marked as tests

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use sat_core::{ActivationConfig, Curve, Gradient};
use sat_models::{
    ConfigError, EfficientNet, EfficientNetConfig, Metadata, Model, ModelName, NetworkConfig,
    Padding, PreActResNetConfig, ResNetConfig, SqueezeExciteConfig, StageConfig, StateDict,
    StemConfig, network_metadata, read_network, save_safetensors,
};

/// One narrow block a stage.
fn small() -> EfficientNetConfig {
    EfficientNetConfig {
        width: 0.1,
        depth: 0.1,
        classes: 3,
        dropout: 0.5,
        stochastic_depth: 0.9,
        ..EfficientNetConfig::b0()
    }
}

/// Two blocks in some stages, so that there are sums to drop.
fn deeper() -> EfficientNetConfig {
    EfficientNetConfig { depth: 1.0, ..small() }
}

fn images<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 100.0).collect();
    Tensor::<1>::from_floats(values.as_slice(), device).reshape(shape)
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().unwrap()
}

/// One small network of each family.
fn families() -> Vec<NetworkConfig> {
    let stages = vec![StageConfig { channels: 4, blocks: 1, stride: 2 }];
    let resnet = ResNetConfig {
        stem: StemConfig { channels: 4, ..StemConfig::imagenet() },
        stages: stages.clone(),
        block: sat_models::BlockConfig::Bottleneck { groups: 2, width_per_group: 64 },
        ..ResNetConfig::resnet20()
    };
    let preact =
        PreActResNetConfig { stem_channels: 4, stages, ..PreActResNetConfig::preact_resnet18() };
    let wide = PreActResNetConfig { ..PreActResNetConfig::wide(1, 1) };
    vec![
        resnet.with_classes(3).into(),
        preact.with_classes(3).into(),
        wide.with_classes(3).into(),
        small().into(),
    ]
}

#[test]
fn noise_is_for_training_alone() {
    let device = Device::flex().autodiff();
    let model = deeper().init(0, &device);
    let x = images([2, 3, 32, 32], &device);
    let trained = |model: &EfficientNet| values(model.forward(x.clone()));
    // BatchNorm in training uses the batch's statistics, so only the noise differs between calls.
    let first = trained(&model);
    assert_ne!(first, trained(&model));
    model.reseed(0);
    assert_eq!(first, trained(&model));
    model.reseed(1);
    assert_ne!(first, trained(&model));
    let frozen = model.valid();
    let x = images([2, 3, 32, 32], &Device::flex());
    let inference = values(frozen.forward(x.clone()));
    assert_eq!(inference, values(frozen.forward(x.clone())));
    // An attack's leaf, too.
    let leaf = x.autodiff().require_grad();
    assert_eq!(inference, values(frozen.forward(leaf).inner()));

    let silent = deeper().with_dropout(0.0).with_stochastic_depth(0.0).init(0, &device);
    assert_eq!(trained(&silent), trained(&silent));
}

/// With a probability of nearly 1, hardly a block is left; scaled up, yet finite.
#[test]
fn dropped_blocks_leave_the_rest_finite() {
    let device = Device::flex().autodiff();
    let model = deeper().with_stochastic_depth(0.999).init(0, &device);
    let logits = values(model.forward(images([4, 3, 32, 32], &device)));
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn padding_decides_where_the_kernel_lies() {
    let device = Device::flex();
    let same = small().init(0, &device);
    let symmetric = small().with_padding(Padding::Symmetric).init(0, &device);
    // SAME pads a 3×3 kernel of stride 2 at the end alone where the size is even, on both sides where it
    // is odd. All sizes from 65 down to 3 are odd.
    let logits =
        |model: &EfficientNet, side| values(model.forward(images([1, 3, side, side], &device)));
    assert_ne!(logits(&same, 64), logits(&symmetric, 64));
    assert_eq!(logits(&same, 65), logits(&symmetric, 65));
    for side in [1, 2, 7, 33] {
        assert_eq!(logits(&same, side).len(), 3);
        assert_eq!(logits(&symmetric, side).len(), 3);
    }
}

#[test]
fn squeeze_and_excitation_has_its_own_activation() {
    let device = Device::flex();
    let own = |activation: Option<ActivationConfig>| {
        let config = SqueezeExciteConfig { ratio: 0.25, activation };
        let model = small().with_squeeze_excite(Some(config)).init(0, &device);
        values(model.forward(images([1, 3, 32, 32], &device)))
    };
    assert_eq!(own(None), own(Some(Curve::Silu.into())));
    assert_ne!(own(None), own(Some(Curve::Relu.into())));
    let without = small().with_squeeze_excite(None).init(0, &device);
    assert!(without.parameter_count() < small().init(0, &device).parameter_count());
}

fn gradients(model: &Model, gradients: &Gradients) -> (usize, usize) {
    struct Count<'a>(&'a Gradients, usize, usize);
    impl ModuleVisitor for Count<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match param.val().grad(self.0) {
                Some(gradient) if values(gradient.clone()).iter().all(|v| v.is_finite()) => {
                    self.1 += 1;
                }
                _ => self.2 += 1,
            }
        }
    }
    let mut count = Count(gradients, 0, 0);
    model.visit(&mut count);
    (count.1, count.2)
}

/// In one call on a model that is already there, and it still trains.
#[test]
fn activations_of_every_family_can_be_swapped() {
    let device = Device::flex().autodiff();
    let x = images([4, 3, 32, 32], &device);
    for config in families() {
        for name in ["relu", "gelu", "smooth-relu-learnable", "pssilu", "relu~psoftplus:10"] {
            let activation: ActivationConfig = name.parse().unwrap();
            let model = config.init(0, &device).with_activation(&activation);
            let built = config.clone().with_activation(activation).init(0, &device);
            assert_eq!(model.state_keys(), built.state_keys(), "{name}");
            model.reseed(7);
            built.reseed(7);
            let logits = model.forward(x.clone());
            assert_eq!(values(logits.clone()), values(built.forward(x.clone())), "{name}");
            let grads = logits.powi_scalar(2).sum().backward();
            let (with, without) = gradients(&model, &grads);
            let statistics =
                model.state_keys().iter().filter(|key| key.contains("running_")).count();
            assert_eq!((with + without, without), (model.state_keys().len(), statistics), "{name}");
        }
    }
}

#[test]
fn a_probe_changes_the_gradient_alone() {
    let device = Device::flex();
    let x = images([2, 3, 32, 32], &device);
    for config in families() {
        let relu = config.with_activation("relu".parse().unwrap()).init(0, &device);
        let probe = relu.clone().with_gradient(Gradient::Of(Curve::ParametricSoftplus(10.0)));
        let pass = |model: &Model| {
            let leaf = x.clone().autodiff().require_grad();
            let logits = model.valid().forward(leaf.clone());
            let grads = logits.clone().sum().backward();
            (values(logits.inner()), values(leaf.grad(&grads).unwrap()))
        };
        let ((logits, gradient), (probe_logits, probe_gradient)) = (pass(&relu), pass(&probe));
        assert_eq!(logits, probe_logits);
        assert_ne!(gradient, probe_gradient);
    }
}

#[test]
fn features_are_the_outputs_of_the_stages() {
    let device = Device::flex();
    let model = ModelName::ResNet18.config().init(0, &device);
    let shapes: Vec<[usize; 4]> =
        model.features(images([1, 3, 64, 64], &device)).iter().map(|x| x.dims()).collect();
    assert_eq!(shapes, [[1, 64, 16, 16], [1, 128, 8, 8], [1, 256, 4, 4], [1, 512, 2, 2]]);
    let features = Model::from(small().init(0, &device)).features(images([1, 3, 64, 64], &device));
    let sides: Vec<usize> = features.iter().map(|x| x.dims()[2]).collect();
    assert_eq!(sides, [32, 16, 8, 4, 4, 2, 2]);
}

#[test]
fn checkpointed_training_has_the_same_gradients() {
    // The noise is the same, since the seed is.
    let config: NetworkConfig = deeper().with_stochastic_depth(0.5).into();
    let sum = |device: Device| {
        struct Sum<'a>(&'a Gradients, f64);
        impl ModuleVisitor for Sum<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(gradient) = param.val().grad(self.0) {
                    self.1 += values(gradient).iter().map(|v| f64::from(v.abs())).sum::<f64>();
                }
            }
        }
        let model = config.init(0, &device);
        let logits = model.forward(images([4, 3, 32, 32], &device));
        let grads = logits.powi_scalar(2).sum().backward();
        let mut sum = Sum(&grads, 0.0);
        model.visit(&mut sum);
        sum.1
    };
    let plain = sum(Device::flex().autodiff());
    let checkpointed = sum(Device::flex().autodiff().gradient_checkpointing());
    assert!(plain > 0.0);
    assert!((plain - checkpointed).abs() < 1e-4 * plain, "{plain} {checkpointed}");
}

#[test]
fn every_family_survives_its_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for config in families() {
        let model = config.init(0, &Device::flex());
        save_safetensors(&model, &path, &network_metadata(&config)).unwrap();
        assert_eq!(read_network(&path).unwrap().as_ref(), Some(&config));
        let loaded = config.load(&path, &Device::flex()).unwrap();
        let x = images([1, 3, 32, 32], &Device::flex());
        assert_eq!(values(loaded.forward(x.clone())), values(model.forward(x)));
    }
    // Files from before there were families.
    let old = r#"{"input_channels":1,"classes":3,"stem":{"channels":2,"stride":1},
        "stages":[{"channels":2,"blocks":1,"stride":1}],"activation":"silu"}"#;
    let metadata = Metadata::from([("sat.network".to_owned(), old.to_owned())]);
    let model = families()[0].init(0, &Device::flex());
    save_safetensors(&model, &path, &metadata).unwrap();
    let Some(NetworkConfig::ResNet(config)) = read_network(&path).unwrap() else { panic!() };
    assert_eq!((config.stem, config.block), (StemConfig::small(2, 1), Default::default()));
}

#[test]
fn numbers_out_of_range_are_named() {
    let bad = |change: fn(&mut EfficientNetConfig)| {
        let mut config = small();
        change(&mut config);
        let ConfigError::Range { field, .. } = config.validate().unwrap_err() else { panic!() };
        field
    };
    assert_eq!(small().validate(), Ok(()));
    assert_eq!(bad(|c| c.width = 0.0), "width");
    assert_eq!(bad(|c| c.depth = f64::NAN), "depth");
    assert_eq!(bad(|c| c.norm_epsilon = 0.0), "norm_epsilon");
    assert_eq!(bad(|c| c.norm_momentum = 1.5), "norm_momentum");
    assert_eq!(bad(|c| c.stochastic_depth = 1.0), "stochastic_depth");
    assert_eq!(bad(|c| c.dropout = -0.1), "dropout");
    assert_eq!(bad(|c| c.squeeze_excite.as_mut().unwrap().ratio = 2.0), "squeeze_excite.ratio");
    let mut huge = ResNetConfig::resnet50();
    huge.stages[0].channels = usize::MAX;
    assert!(matches!(huge.validate(), Err(ConfigError::TooLarge { .. })));
    huge.stages[0].channels = 64;
    huge.block = sat_models::BlockConfig::Bottleneck { groups: 1 << 20, width_per_group: 64 };
    assert!(matches!(huge.validate(), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn a_name_is_one_line() {
    let device = Device::flex();
    let model = Model::from_name("resnet20", 0, &device).unwrap();
    assert_eq!(model.forward(images([1, 3, 32, 32], &device)).dims(), [1, 10]);
    assert!(Model::from_name("resnet", 0, &device).unwrap_err().to_string().contains("resnet50"));
}
