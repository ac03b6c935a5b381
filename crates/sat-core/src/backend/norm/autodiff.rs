//! The differentiation rules: a node saves x, the residual and vectors as long as the channels, and
//! computes the normalised values and f' again in the backward pass.

use super::{
    super::composed::narrow,
    NormActivation, NormBackend, Optional,
    composed::{batch_affine, inverse_deviation, row_of, stack},
};
use burn::{
    backend::{
        Autodiff, AutodiffBackend, Backend, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{
                base::Checkpointer, retro_forward::RetroForward, state::BackwardStates,
                strategy::CheckpointStrategy,
            },
            grads::Gradients,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::DType,
};

/// What the backward pass, and gradient checkpointing, compute from.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    x: NodeId,
    residual: Option<NodeId>,
    affine: FloatTensor<B>,
    activation: NormActivation<B>,
}

impl<B: NormBackend> RetroForward for Saved<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        let residual = self.residual.as_ref().map(|id| states.get_state::<FloatTensor<B>>(id));
        let (affine, activation) = (self.affine.clone(), self.activation.clone());
        let y = B::affine_activation(x, affine, residual.into(), activation);
        states.save(out_node, y);
    }
}

/// What a node starts its backward pass with.
struct Start<B: Backend, const N: usize> {
    x: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    affine: FloatTensor<B>,
    activation: NormActivation<B>,
    grad: FloatTensor<B>,
    /// Where gradients go to: the first N parents, the residual, the learned parameters.
    of_first: [Option<NodeId>; N],
    of_residual: Option<NodeId>,
    of_parameters: Option<NodeId>,
}

impl<B: NormBackend, const N: usize> Start<B, N> {
    fn new<const M: usize>(
        ops: Ops<Saved<B>, M>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) -> Self {
        let Saved { x, residual, affine, activation } = ops.state;
        let mut parents = ops.parents.into_iter().map(|parent| parent.map(|parent| parent.id));
        let mut parent = || parents.next().flatten();
        Self {
            x: checkpointer.retrieve_node_output(x),
            of_first: core::array::from_fn(|_| parent()),
            of_residual: residual.and_then(|_| parent()),
            of_parameters: parent(),
            residual: residual.map(|id| checkpointer.retrieve_node_output(id)),
            affine,
            activation,
            grad: grads.consume::<B>(&ops.node),
        }
    }
}

/// The gradient for learned parameters, from the [sums](NormBackend::affine_activation_sums).
fn register_parameters<B: Backend>(
    node: Option<NodeId>,
    activation: &NormActivation<B>,
    sums: &FloatTensor<B>,
    grads: &mut Gradients,
) {
    let (Some(node), NormActivation::Learned(_, parameters)) = (node, activation) else {
        return;
    };
    let (count, channels) = (parameters.shape().num_elements(), sums.shape()[1]);
    let rows = B::float_slice(sums.clone(), &[(2..2 + count).into(), (0..channels).into()]);
    let gradient = B::float_reshape(B::float_sum_dim(rows, 1), [count].into());
    grads.register::<B>(node, narrow::<B>(gradient, parameters.dtype()));
}

/// The node of [`NormBackend::affine_activation`]. Parents: x, affine and, if there are any, the
/// residual and learned parameters.
#[derive(Debug)]
struct Affine;

/// The node of [`NormBackend::batch_norm_activation`]. Parents: x, gamma, beta and, if there are any,
/// the residual and learned parameters.
#[derive(Debug)]
struct BatchNorm<B: Backend> {
    statistics: FloatTensor<B>,
    epsilon: f64,
    gamma: DType,
    beta: DType,
}

impl<B: NormBackend> BatchNorm<B> {
    fn backward<const N: usize>(
        self,
        ops: Ops<Saved<B>, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let start = Start::<B, 3>::new(ops, grads, checkpointer);
        let Start { x, residual, affine, activation, grad, of_first, of_residual, of_parameters } =
            start;
        let [of_x, of_gamma, of_beta] = of_first;
        let learned = activation.clone();
        // dz is the gradient for the residual. Where it has to be written anyway, what follows starts
        // from it.
        let is_identity = matches!(activation, NormActivation::Identity);
        let (grad, sums, residual, activation) = match activation {
            activation if of_residual.is_some() && !is_identity => {
                let (x, affine, residual) = (x.clone(), affine.clone(), residual.into());
                let (dz, sums) =
                    B::affine_activation_gradient_and_sums(x, affine, residual, grad, activation);
                (dz, sums, None, NormActivation::Identity)
            }
            activation => {
                let sums = B::affine_activation_sums(
                    x.clone(),
                    affine.clone(),
                    residual.clone().into(),
                    grad.clone(),
                    activation.clone(),
                );
                (grad, sums, residual, activation)
            }
        };
        if let Some(node) = of_residual {
            grads.register::<B>(node, grad.clone());
        }
        register_parameters::<B>(of_parameters, &learned, &sums, grads);
        let [of_shift, of_scale] = [0, 1].map(|row| row_of::<B>(sums.clone(), row));
        let inverse = inverse_deviation::<B>(self.statistics, self.epsilon);
        if let Some(node) = of_gamma {
            let dgamma = B::float_mul(of_scale.clone(), inverse.clone());
            grads.register::<B>(node, narrow::<B>(dgamma, self.gamma));
        }
        if let Some(node) = of_beta {
            grads.register::<B>(node, narrow::<B>(of_shift.clone(), self.beta));
        }
        if let Some(node) = of_x {
            // s (dz - mean of dz - xhat mean of (dz xhat)), with xhat = (x - m) inverse.
            let channels = x.shape()[1].max(1);
            let per_channel = x.shape().num_elements() as f64 / channels as f64;
            let scale = row_of::<B>(affine.clone(), 1);
            let scale = B::float_div_scalar(scale, per_channel.into());
            let constant = B::float_mul(scale.clone(), of_shift);
            let linear = B::float_mul(inverse.clone(), inverse);
            let linear = B::float_mul(B::float_mul(scale, linear), of_scale);
            let correction = Optional::Tensor(stack::<B, 2>([constant, linear]));
            let residual = residual.into();
            let dx =
                B::affine_activation_backward(x, affine, residual, grad, activation, correction);
            grads.register::<B>(node, dx);
        }
    }
}

impl Affine {
    fn backward<B: NormBackend, const N: usize>(
        ops: Ops<Saved<B>, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let start = Start::<B, 2>::new(ops, grads, checkpointer);
        let Start { x, residual, affine, activation, grad, of_first, of_residual, of_parameters } =
            start;
        let [of_x, of_affine] = of_first;
        if of_affine.is_some() || of_parameters.is_some() {
            let sums = B::affine_activation_sums(
                x.clone(),
                affine.clone(),
                residual.clone().into(),
                grad.clone(),
                activation.clone(),
            );
            register_parameters::<B>(of_parameters, &activation, &sums, grads);
            if let Some(node) = of_affine {
                let [of_shift, of_scale] = [0, 1].map(|row| row_of::<B>(sums.clone(), row));
                let scale = row_of::<B>(affine.clone(), 1);
                let of_mean = B::float_neg(B::float_mul(of_shift.clone(), scale));
                grads.register::<B>(node, stack::<B, 3>([of_mean, of_scale, of_shift]));
            }
        }
        let is_identity = matches!(activation, NormActivation::Identity);
        let dx = match (of_residual, residual) {
            (Some(node), Some(residual)) if !is_identity => {
                let (dx, dz) =
                    B::affine_activation_backward_both(x, affine, residual, grad, activation);
                grads.register::<B>(node, dz);
                of_x.map(|node| (node, dx))
            }
            (of_residual, residual) => {
                if let Some(node) = of_residual {
                    grads.register::<B>(node, grad.clone());
                }
                of_x.map(|node| {
                    let (residual, constant) = (residual.into(), Optional::Absent);
                    let dx = B::affine_activation_backward(
                        x, affine, residual, grad, activation, constant,
                    );
                    (node, dx)
                })
            }
        };
        if let Some((node, dx)) = dx {
            grads.register::<B>(node, dx);
        }
    }
}

/// Burn counts a node's parents in its type.
macro_rules! with_parents {
    ($($parents:literal: $node:ty, $self:ident => $backward:expr;)*) => {
        $(
            impl<B: NormBackend> Backward<B, $parents> for $node {
                type State = Saved<B>;

                fn backward(
                    $self,
                    ops: Ops<Self::State, $parents>,
                    grads: &mut Gradients,
                    checkpointer: &mut Checkpointer,
                ) {
                    $backward(ops, grads, checkpointer);
                }
            }
        )*
    };
}
with_parents! {
    2: Affine, self => Affine::backward;
    3: Affine, self => Affine::backward;
    4: Affine, self => Affine::backward;
    3: BatchNorm<B>, self => |ops, grads, checkpointer| self.backward(ops, grads, checkpointer);
    4: BatchNorm<B>, self => |ops, grads, checkpointer| self.backward(ops, grads, checkpointer);
    5: BatchNorm<B>, self => |ops, grads, checkpointer| self.backward(ops, grads, checkpointer);
}

/// What f(z) is computed from, on a backend with autodiff.
struct Inputs<B: Backend, C: CheckpointStrategy> {
    x: FloatTensor<Autodiff<B, C>>,
    /// Vectors of channels.
    vectors: Vec<FloatTensor<Autodiff<B, C>>>,
    residual: Option<FloatTensor<Autodiff<B, C>>>,
    activation: NormActivation<Autodiff<B, C>>,
}

impl<B: NormBackend, C: CheckpointStrategy> Inputs<B, C> {
    fn parameters(&self) -> Option<&FloatTensor<Autodiff<B, C>>> {
        match &self.activation {
            NormActivation::Learned(_, parameters) => Some(parameters),
            NormActivation::Identity | NormActivation::Fixed(_) => None,
        }
    }

    /// In the order of a node's parents.
    fn all(&self) -> impl Iterator<Item = &FloatTensor<Autodiff<B, C>>> {
        [&self.x].into_iter().chain(&self.vectors).chain(&self.residual).chain(self.parameters())
    }

    /// f(z), recorded as the given node, which has as many parents as there are inputs.
    fn record<const N: usize>(
        self,
        node: impl Backward<B, N, State = Saved<B>>,
        affine: FloatTensor<B>,
    ) -> FloatTensor<Autodiff<B, C>> {
        let activation = match &self.activation {
            NormActivation::Identity => NormActivation::Identity,
            NormActivation::Fixed(pair) => NormActivation::Fixed(*pair),
            NormActivation::Learned(curve, parameters) => {
                NormActivation::Learned(*curve, parameters.primitive().clone())
            }
        };
        let saved = Saved {
            x: self.x.id(),
            residual: self.residual.as_ref().map(|residual| residual.id()),
            affine: affine.clone(),
            activation: activation.clone(),
        };
        let nodes: Vec<NodeGuard> = self.all().map(|input| input.node()).collect();
        let Ok(parents) = <[NodeGuard; N]>::try_from(nodes) else {
            unreachable!("a node has one parent for each input");
        };
        match node
            .prepare::<C>(parents)
            .memory_bound()
            .retro_forward(saved.clone())
            // Burn wants to hear of every parent, whether it is recomputed from or not.
            .parents(self.all())
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                prep.checkpoint(&self.x);
                if let Some(residual) = &self.residual {
                    prep.checkpoint(residual);
                }
                // Cloned, not moved: the clones mark the buffers as shared, so that the kernel does
                // not overwrite what the backward pass still needs.
                let residual = self.residual.as_ref().map(|residual| residual.primitive().clone());
                let x = self.x.primitive().clone();
                prep.finish(saved, B::affine_activation(x, affine, residual.into(), activation))
            }
            OpsKind::UnTracked(prep) => {
                let residual = self.residual.map(|residual| residual.into_primitive());
                let x = self.x.into_primitive();
                prep.finish(B::affine_activation(x, affine, residual.into(), activation))
            }
        }
    }
}

impl<B: NormBackend, C: CheckpointStrategy> NormBackend for Autodiff<B, C> {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        let rows = affine.primitive().clone();
        let residual = residual.into_option();
        let inputs = Inputs { x, vectors: vec![affine], residual, activation };
        match inputs.all().count() {
            2 => inputs.record::<2>(Affine, rows),
            3 => inputs.record::<3>(Affine, rows),
            _ => inputs.record::<4>(Affine, rows),
        }
    }

    fn batch_norm_activation(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: NormActivation<Self>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let statistics = B::channel_statistics(x.primitive().clone());
        let rows = batch_affine::<B>(
            statistics.clone(),
            gamma.primitive().clone(),
            beta.primitive().clone(),
            epsilon,
        );
        let node = BatchNorm {
            statistics: statistics.clone(),
            epsilon,
            gamma: gamma.dtype(),
            beta: beta.dtype(),
        };
        let residual = residual.into_option();
        let inputs = Inputs { x, vectors: vec![gamma, beta], residual, activation };
        let y = match inputs.all().count() {
            3 => inputs.record::<3>(node, rows),
            4 => inputs.record::<4>(node, rows),
            _ => inputs.record::<5>(node, rows),
        };
        (y, <Self as AutodiffBackend>::from_inner(statistics))
    }
}
