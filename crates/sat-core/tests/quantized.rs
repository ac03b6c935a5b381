//! Networks whose weights were quantized: every layer takes them as Burn's own do.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::{
    module::{Module, Quantizer},
    nn::{Linear, LinearConfig, PaddingConfig2d},
    tensor::{
        DType, Device, Tensor, TensorData,
        quantization::{Calibration, QuantScheme, QuantValue},
    },
};
use common::to_vec;
use sat_core::{
    Activation, ActivationConfig, ActivationExt, BatchNormAct, BatchNormActConfig, Conv2d,
    Conv2dConfig, SharedParameters, channel_means, scale_channels, sign_step,
};

#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    norm: BatchNormAct,
    act: Activation,
    shared: SharedParameters,
    head: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        let shared: ActivationConfig = "pssilu:1.5,0.2".parse().unwrap();
        let learnable: ActivationConfig = "smooth-relu-learnable:3".parse().unwrap();
        let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
        Self {
            conv: Conv2dConfig::new([3, 16], [3, 3]).with_padding(padding).init(device),
            norm: BatchNormActConfig::new(16).with_activation(learnable).init(device),
            act: shared.init(device),
            shared: shared.init_shared(device).unwrap(),
            head: LinearConfig::new(16, 4).init(device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = self.norm.forward(self.conv.forward(x));
        let x = self.act.forward_shared(x, Some(&self.shared));
        self.head.forward(channel_means(x))
    }
}

fn scheme(device: &Device) -> QuantScheme {
    device.settings().quantization.scheme.with_value(QuantValue::Q8S)
}

fn quantized<M: Module>(module: M, device: &Device) -> M {
    module.quantize_weights(&mut Quantizer::new(Calibration::MinMax, scheme(device)))
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1009) as f32 / 504.0 - 1.0).collect()
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 0.03, "{what}: {got}, not {want}");
    }
}

#[test]
fn a_quantized_network_computes_nearly_the_same() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let data = TensorData::new(numbers(2 * 3 * 8 * 8), [2, 3, 8, 8]);
        let x = || Tensor::<4>::from_data(data.clone(), &device);
        // Frozen in inference, so that the running statistics count too; else in training where
        // the device differentiates.
        for net in [Net::new(&device).freeze(), Net::new(&device)] {
            // First, as a clone shares the running statistics.
            let want = to_vec(net.forward(x()));
            let small = quantized(net, &device);
            for dtype in [small.conv.weight.val().dtype(), small.norm.gamma.val().dtype()] {
                assert!(matches!(dtype, DType::QFloat(_)), "{dtype:?}");
            }
            assert_close(&to_vec(small.forward(x())), &want, "the network");
        }
    }
}

#[test]
fn functions_take_quantized_tensors() {
    let device = Device::flex();
    let scheme = scheme(&device);
    let x = Tensor::<2>::from_data(TensorData::new(numbers(64), [4, 16]), &device);
    let small = x.clone().quantize_dynamic(&scheme);
    let near = |got: Tensor<2>, want: Tensor<2>, what| {
        assert_close(&to_vec(got), &to_vec(want), what);
    };
    near(small.clone().silu(), x.clone().silu(), "silu");
    near(channel_means(small.clone()), channel_means(x.clone()), "means");
    let twice = scale_channels(small.clone(), small.clone());
    near(twice, scale_channels(x.clone(), x.clone()), "gate");
    let size = Tensor::full([4, 1], 0.1, &device);
    let step = |x: Tensor<2>| {
        let (lower, upper) = (Tensor::full([4, 16], -0.9, &device), Tensor::ones([4, 16], &device));
        sign_step(x, Tensor::ones([4, 16], &device), size.clone(), lower, upper)
    };
    near(step(small), step(x), "step");
}
