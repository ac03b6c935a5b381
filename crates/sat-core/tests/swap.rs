//! Activations in a module tree: replaced, shared, found, and converted from Burn's.

#![cfg(feature = "flex")]
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    nn::{
        Linear, LinearConfig,
        activation::{
            ActivationConfig as Burns, CeluConfig, EluConfig, HardShrinkConfig, HardSigmoidConfig,
            LeakyReluConfig, PReluConfig, ShrinkConfig, SoftShrinkConfig, SoftplusConfig,
            SwiGluConfig, ThresholdedReluConfig,
        },
    },
    optim::{GradientsParams, ModuleOptimizer, SgdConfig},
    tensor::{DType, Device, Tensor, TensorData},
};
use common::{to_vec, vector};
use sat_core::{
    Activation, ActivationConfig, ActivationExt, BatchNormAct, BatchNormActConfig, Curve, Function,
    SharedParameters, activation_parameters, replace_activations,
};

#[derive(Module, Debug)]
struct Block {
    linear: Linear,
    act: Activation,
}

#[derive(Module, Debug)]
struct Net {
    blocks: Vec<Block>,
    norm: BatchNormAct,
    last: Option<Activation>,
    shared: Option<SharedParameters>,
}

fn net(config: &ActivationConfig, device: &Device) -> Net {
    let block = || Block { linear: LinearConfig::new(4, 4).init(device), act: config.init(device) };
    Net {
        blocks: vec![block(), block()],
        norm: BatchNormActConfig::new(4).with_activation(config.clone()).init(device),
        last: Some(config.init(device)),
        shared: config.init_shared(device),
    }
}

impl Net {
    fn activations(&self) -> Vec<&Activation> {
        let in_blocks = self.blocks.iter().map(|block| &block.act);
        in_blocks.chain(&self.norm.activation).chain(&self.last).collect()
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let shared = self.shared.as_ref();
        let x = self
            .blocks
            .iter()
            .fold(x, |x, block| block.act.forward_shared(block.linear.forward(x), shared));
        let x = self.norm.forward_shared(x, None, shared);
        self.last.iter().fold(x, |x, act| act.forward_shared(x, shared))
    }
}

/// Every floating-point parameter that is no activation's, as bits.
fn weights<M: Module>(module: &M) -> Vec<(ParamId, Vec<u32>)> {
    struct Weights(Vec<ParamId>, Vec<(ParamId, Vec<u32>)>);
    impl ModuleVisitor for Weights {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.0.contains(&param.id) {
                let bits = to_vec(param.val().inner()).into_iter().map(f32::to_bits).collect();
                self.1.push((param.id, bits));
            }
        }
    }
    let mut weights = Weights(activation_parameters(module), Vec::new());
    module.visit(&mut weights);
    weights.1
}

#[test]
fn every_activation_is_replaced_and_no_weight_changes() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let before = net(&Curve::Relu.into(), &device);
        let kept = weights(&before);
        assert!(kept.len() >= 6);
        assert!(activation_parameters(&before).is_empty());
        for text in ["silu", "smooth-relu-learnable:3", "relu~psoftplus:10", "burn:\"Tanh\""] {
            let config: ActivationConfig = text.parse().unwrap();
            let after = replace_activations(before.clone(), &config, &device);
            assert!(after.activations().iter().all(|activation| *activation.config() == config));
            assert_eq!(after.activations().len(), 4);
            assert_eq!(weights(&after), kept, "{text}");
            let learnable = if text.starts_with("smooth") { 4 } else { 0 };
            assert_eq!(activation_parameters(&after).len(), learnable, "{text}");
            // A replacement ends with the call: later mapping changes nothing.
            let mapped = after.no_grad();
            assert!(mapped.activations().iter().all(|activation| *activation.config() == config));
        }
        assert!(before.activations().iter().all(|a| *a.config() == Curve::Relu.into()));
    }
}

#[test]
fn shared_parameters_have_one_gradient_for_all_layers() {
    let device = Device::flex().autodiff();
    let config: ActivationConfig = "pssilu:1.5,0.1".parse().unwrap();
    let shared = config.init_shared(&device).unwrap();
    let layers = [config.init(&device), config.init(&device)];
    assert!(layers.iter().all(|layer| layer.parameters().is_none()));
    let x = vector(&[-1.5, -0.25, 0.5, 2.0], &device);
    let y = layers.iter().fold(x.clone(), |x, layer| layer.forward_shared(x, Some(&shared)));
    let grads = y.sum().backward();
    let got = to_vec(shared.parameters().val().grad(&grads).unwrap());

    // d f(f(x; p); p)/dp = f'(f(x)) df/dp(x) + df/dp(f(x))
    let curve = Curve::ShiftedSwish(1.5, f64::from(0.1f32));
    for (i, got) in got.into_iter().enumerate() {
        let want: f64 = to_vec(x.clone().inner())
            .into_iter()
            .map(|x| {
                let first = curve.value(x.into());
                curve.derivative(first) * curve.parameter_derivatives(x.into())[i]
                    + curve.parameter_derivatives(first)[i]
            })
            .sum();
        assert!((f64::from(got) - want).abs() < 1e-5 * want.abs().max(1.0), "{i}: {got}, {want}");
    }
    let net = net(&config, &device);
    assert_eq!(activation_parameters(&net), [net.shared.as_ref().unwrap().parameters().id]);
    let grads = net.forward(Tensor::ones([3, 4], &device)).sum().backward();
    assert!(net.shared.as_ref().unwrap().parameters().val().grad(&grads).is_some());
}

#[test]
fn an_optimizer_moves_shared_parameters_once() {
    let device = Device::flex().autodiff();
    let net = net(&"pssilu:1.5,0.1".parse().unwrap(), &device);
    let learned = |net: &Net| to_vec(net.shared.as_ref().unwrap().parameters().val().inner());
    let before = learned(&net);
    let grads = net.forward(Tensor::ones([3, 4], &device) * 0.5).sum().backward();
    let slope = net.shared.as_ref().unwrap().parameters().val().grad(&grads).unwrap();
    let slope = to_vec(slope);
    assert!(slope.iter().all(|slope| *slope != 0.0));
    let mut optimizer = ModuleOptimizer::from(SgdConfig::new().build());
    let grads = GradientsParams::from_grads(grads, &net);
    let after = learned(&optimizer.step(0.125, net, grads));
    for i in 0..2 {
        let want = before[i] - 0.125 * slope[i];
        assert!((after[i] - want).abs() < 1e-6, "{i}: {}, not {want}", after[i]);
    }
}

/// A user's module with the names of one of ours.
mod users {
    use burn::{
        module::{Module, Param},
        tensor::Tensor,
    };

    #[derive(Module, Debug)]
    pub(crate) struct Activation {
        pub(crate) parameters: Param<Tensor<1>>,
    }
}

#[test]
fn what_bears_the_name_of_an_activation_alone_is_not_found() {
    let parameters = Param::from_tensor(Tensor::ones([1], &Device::flex()));
    assert!(activation_parameters(&users::Activation { parameters }).is_empty());
}

#[test]
fn of_burns_activations_alpha_is_found_and_weights_are_not() {
    let device = Device::flex();
    let init = |burns| net(&ActivationConfig::from(burns), &device);
    let found = activation_parameters(&init(Burns::PRelu(PReluConfig::new())));
    assert_eq!(found.len(), 4);
    assert!(activation_parameters(&init(Burns::SwiGlu(SwiGluConfig::new(4, 4)))).is_empty());
}

#[test]
fn a_learnable_replacement_starts_anew() {
    let device = Device::flex();
    let act = "psilu:3".parse::<ActivationConfig>().unwrap().init(&device);
    let old = act.parameters().unwrap().id;
    let act = replace_activations(act, &"psilu:2".parse().unwrap(), &device);
    assert_eq!(to_vec(act.parameters().unwrap().val()), [2.0]);
    assert_ne!(act.parameters().unwrap().id, old);
}

#[test]
#[should_panic(expected = "pssilu@layer")]
fn shared_parameters_are_missed_aloud() {
    let device = Device::flex();
    "pssilu".parse::<ActivationConfig>().unwrap().init(&device).forward(vector(&[1.0], &device));
}

#[test]
fn everything_burn_can_say_converts_and_computes_the_same() {
    let device = Device::flex();
    // (configuration, whether a kernel of ours computes it)
    let all = [
        (Burns::Identity, false),
        (Burns::Gelu, true),
        (Burns::GeluApproximate, true),
        (Burns::PRelu(PReluConfig::new()), false),
        (Burns::Relu, true),
        (Burns::LeakyRelu(LeakyReluConfig::new()), true),
        (Burns::SwiGlu(SwiGluConfig::new(8, 8)), false),
        (Burns::Selu, false),
        (Burns::Sigmoid, false),
        (Burns::Tanh, false),
        (Burns::HardSigmoid(HardSigmoidConfig::new()), false),
        (Burns::HardSwish, false),
        (Burns::Softplus(SoftplusConfig::new()), true),
        (Burns::Softplus(SoftplusConfig::new().with_beta(2.0)), true),
        (Burns::Softplus(SoftplusConfig::new().with_threshold(1.0)), false),
        (Burns::Softsign, false),
        (Burns::Elu(EluConfig::new()), true),
        (Burns::Elu(EluConfig::new().with_alpha(0.0)), false),
        (Burns::Celu(CeluConfig::new().with_alpha(2.0)), true),
        (Burns::ThresholdedRelu(ThresholdedReluConfig::new()), false),
        (Burns::HardShrink(HardShrinkConfig::new()), false),
        (Burns::SoftShrink(SoftShrinkConfig::new()), false),
        (Burns::Shrink(ShrinkConfig::new()), false),
    ];
    let x: Vec<f32> = (0..80).map(|i| i as f32 / 8.0 - 5.0).collect();
    let x = vector(&x, &device).reshape([10, 8]);
    for (burns, ours) in all {
        let name = format!("{burns:?}");
        let swiglu = matches!(burns, Burns::SwiGlu(_));
        let config = ActivationConfig::from(burns.clone());
        assert_eq!(matches!(config.function, Function::Fixed(_)), ours, "{name}");
        let text = config.to_string();
        assert_eq!(text.parse::<ActivationConfig>().unwrap(), config, "{text}");
        let got = config.init(&device).forward::<2>(x.clone());
        // Its weights are drawn at random.
        if swiglu {
            assert_eq!(got.dims(), [10, 8]);
            continue;
        }
        let want = to_vec(burns.init(&device).forward(x.clone()));
        for (got, want) in to_vec(got).into_iter().zip(want) {
            assert!((got - want).abs() <= 2e-6 * want.abs().max(1.0), "{name}: {got}, {want}");
        }
    }
}

/// Where Burn's composed operations have gone wrong, on some backend or other.
#[test]
fn known_traps_are_no_traps_here() {
    let device = Device::flex().autodiff();
    let slope = |f: fn(Tensor<1>) -> Tensor<1>, at: f32| {
        let x = vector(&[at], &device).require_grad();
        let grads = f(x.clone()).sum().backward();
        to_vec(x.grad(&grads).unwrap())[0]
    };
    // e^x overflows behind the branch that is not taken.
    assert_eq!(slope(|x| x.elu(1.0), 100.0), 1.0);
    assert_eq!(slope(|x| x.celu(2.0), 100.0), 1.0);
    // The derivative of the exact form, not of the tanh form.
    let exact = Curve::Gelu.derivative(-3.1);
    let tanh = Curve::GeluTanh.derivative(-3.1);
    let got = f64::from(slope(|x| x.gelu(), -3.1));
    assert!((got - exact).abs() < 1e-7 && (got - tanh).abs() > 1e-5, "{got}, {exact}, {tanh}");
    // A sigmoid in f32 behind f64 tensors.
    let x = [-3.3f64, 0.7];
    let data = TensorData::new(x.to_vec(), [2]);
    let y = Tensor::<1>::from_data(data, (&Device::flex(), DType::F64)).silu();
    for (x, y) in x.into_iter().zip(y.into_data().try_into_vec::<f64>().unwrap()) {
        assert!((y - x / (1.0 + (-x).exp())).abs() < 1e-15, "{x}: {y}");
    }
}

#[test]
fn curvature_bounds_are_the_largest_second_derivatives() {
    let others = ["psoftplus:2", "celu:2", "smooth-relu:3", "swish:2", "shifted-swish:1,0.25"];
    let others = others.iter().map(|name| name.parse::<Curve>().unwrap());
    for curve in Curve::ALL.iter().copied().chain(others) {
        let bound = curve.curvature_bound();
        let scale = curve.parameters().first().copied().unwrap_or(1.0).max(1.0);
        let h = 1e-5 / scale;
        let steps = (-40_000..=40_000).map(|i| f64::from(i) * 2e-4 / scale);
        let slopes = steps.map(|x| (curve.derivative(x + h) - curve.derivative(x - h)) / (2.0 * h));
        let largest = slopes.map(f64::abs).fold(0.0, f64::max);
        if bound.is_infinite() {
            assert!(largest > 1e3, "{curve}: {largest}");
        } else {
            assert!((largest / bound - 1.0).abs() < 5e-3, "{curve}: {largest}, not {bound}");
        }
    }
}
