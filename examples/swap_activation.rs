//! How a Burn model takes a smooth activation, line by line.
//!
//! ```text
//! cargo run --release --example swap_activation -- --activation silu
//! ```
//!
//! `Before` is a small network as one writes it with Burn alone; `After` is the same with sat-core. What
//! differs stands behind `// before:` and `// after:`.

use std::process::ExitCode;

use burn::{
    module::{Module, ParamGroup},
    nn::{Linear, LinearConfig, Relu},
    optim::{GradientsParams, ModuleOptimizer, SgdConfig, decay::WeightDecayConfig},
    tensor::{Device, Tensor},
};
use clap::Parser;
use sat::core::{
    Activation, ActivationConfig, Curve, SharedParameters, activation_parameters,
    replace_activations,
};

mod common;

/// Swaps the activation of a small network.
#[derive(Parser)]
struct Args {
    /// What takes the place of ReLU: `silu`, `elu:0.5`, `relu~psoftplus:10`, `pssilu`, ...
    #[arg(long, default_value = "smooth-relu-learnable")]
    activation: ActivationConfig,
}

#[derive(Module, Debug)]
struct Before {
    first: Linear,
    act: Relu,
    second: Linear,
}

impl Before {
    fn init(device: &Device) -> Self {
        Self {
            first: LinearConfig::new(2, 8).init(device),
            act: Relu::new(),
            second: LinearConfig::new(8, 1).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.second.forward(self.act.forward(self.first.forward(x)))
    }
}

#[derive(Module, Debug)]
struct After {
    first: Linear,
    // before: act: Relu,
    // after:
    act: Activation,
    second: Linear,
    // after: only for activations that share their parameters across the network, like `pssilu`.
    shared: Option<SharedParameters>,
}

impl After {
    fn init(config: &ActivationConfig, device: &Device) -> Self {
        Self {
            first: LinearConfig::new(2, 8).init(device),
            // before: act: Relu::new(),
            // after:
            act: config.init(device),
            second: LinearConfig::new(8, 1).init(device),
            shared: config.init_shared(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.first.forward(x);
        // before: let x = self.act.forward(x);
        // after: `forward(x)` does where nothing is shared.
        let x = self.act.forward_shared(x, self.shared.as_ref());
        self.second.forward(x)
    }
}

fn main() -> ExitCode {
    common::exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex().autodiff();
    let x = Tensor::<2>::from_floats([[0.5, -1.0], [2.0, 0.25]], &device);

    // The same weights in both, so that the activation is all that differs.
    let before = Before::init(&device);
    let mut relu = After::init(&Curve::Relu.into(), &device);
    relu.first = before.first.clone();
    relu.second = before.second.clone();
    show("Burn's ReLU", &x, |x| before.forward(x))?;
    show("ReLU of sat-core", &x, |x| relu.forward(x))?;

    // A network in another activation, all else kept. What is shared belongs to the network.
    let config = &args.activation;
    let mut after = replace_activations(relu, config, &device);
    after.shared = config.init_shared(&device);
    show(&config.to_string(), &x, |x| after.forward(x))?;

    // Learnable parameters are no weights: the optimizer has a group for them, without weight decay.
    let learnable = activation_parameters(&after);
    println!("\nlearnable parameters without weight decay: {}", learnable.len());
    let plain = SgdConfig::new();
    let decayed = plain.clone().with_weight_decay(Some(WeightDecayConfig::new(5e-4)));
    let mut optimizer = ModuleOptimizer::from(decayed.build()).with_group(
        ParamGroup::from_ids(learnable),
        plain.build(),
        None,
    );
    let grads = GradientsParams::from_grads(after.forward(x.clone()).sum().backward(), &after);
    let after = optimizer.step(0.01, after, grads);
    show("after one step", &x, |x| after.forward(x))?;

    // Burn's own configurations convert.
    let burns = burn::nn::activation::ActivationConfig::Gelu;
    println!("Burn's Gelu is `{}` here", ActivationConfig::from(burns));
    Ok(())
}

/// Prints the outputs and the gradients of their sum by the inputs.
fn show(
    name: &str,
    x: &Tensor<2>,
    forward: impl Fn(Tensor<2>) -> Tensor<2>,
) -> Result<(), Box<dyn std::error::Error>> {
    let leaf = x.clone().require_grad();
    let y = forward(leaf.clone());
    let grads = y.clone().sum().backward();
    let dx = leaf.grad(&grads).ok_or("the input has no gradient")?;
    let numbers = |data: burn::tensor::TensorData| data.try_into_vec::<f32>();
    println!(
        "{name:<24} y = {:7.4?}  dy/dx = {:7.4?}",
        numbers(y.inner().into_data())?,
        numbers(dx.into_data())?
    );
    Ok(())
}
