//! The differentiation rules: a node saves x, the residual and vectors as long as the channels, and
//! computes the normalised values and f' again in the backward pass.

use super::{
    super::{Pair, composed::narrow},
    NormBackend, Optional,
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
    activation: Option<Pair>,
}

impl<B: NormBackend> RetroForward for Saved<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        let residual = self.residual.as_ref().map(|id| states.get_state::<FloatTensor<B>>(id));
        let y = B::affine_activation(x, self.affine.clone(), residual.into(), self.activation);
        states.save(out_node, y);
    }
}

/// The node of [`NormBackend::affine_activation`]. Parents: x, affine and, if there is one, the
/// residual.
#[derive(Debug)]
struct Affine;

/// The node of [`NormBackend::batch_norm_activation`]. Parents: x, gamma, beta and, if there is one,
/// the residual.
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
        let Saved { x, residual, affine, activation } = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let residual = residual.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let grad = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let (of_x, of_gamma, of_beta, of_residual) = (parent(), parent(), parent(), parent());

        // dz is the gradient for the residual. Where it has to be written anyway, what follows starts
        // from it.
        let (grad, sums, residual, activation) = match (of_residual, residual, activation) {
            (Some(parent), Some(residual), Some(pair)) => {
                let (dz, sums) = B::affine_activation_residual_sums(
                    x.clone(),
                    affine.clone(),
                    residual,
                    grad,
                    pair,
                );
                grads.register::<B>(parent.id, dz.clone());
                (dz, sums, None, None)
            }
            (of_residual, residual, activation) => {
                let sums = B::affine_activation_sums(
                    x.clone(),
                    affine.clone(),
                    residual.clone().into(),
                    grad.clone(),
                    activation,
                );
                if let Some(parent) = of_residual {
                    grads.register::<B>(parent.id, grad.clone());
                }
                (grad, sums, residual, activation)
            }
        };
        let [of_shift, of_scale] = [0, 1].map(|row| row_of::<B>(sums.clone(), row));
        let inverse = inverse_deviation::<B>(self.statistics, self.epsilon);
        if let Some(parent) = of_gamma {
            let dgamma = B::float_mul(of_scale.clone(), inverse.clone());
            grads.register::<B>(parent.id, narrow::<B>(dgamma, self.gamma));
        }
        if let Some(parent) = of_beta {
            grads.register::<B>(parent.id, narrow::<B>(of_shift.clone(), self.beta));
        }
        if let Some(parent) = of_x {
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
            grads.register::<B>(parent.id, dx);
        }
    }
}

impl Affine {
    fn backward<B: NormBackend, const N: usize>(
        ops: Ops<Saved<B>, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let Saved { x, residual, affine, activation } = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let residual = residual.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let grad = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        let (of_x, of_affine, of_residual) = (parent(), parent(), parent());

        if let Some(parent) = of_affine {
            let sums = B::affine_activation_sums(
                x.clone(),
                affine.clone(),
                residual.clone().into(),
                grad.clone(),
                activation,
            );
            let [of_shift, of_scale] = [0, 1].map(|row| row_of::<B>(sums.clone(), row));
            let scale = row_of::<B>(affine.clone(), 1);
            let of_mean = B::float_neg(B::float_mul(of_shift.clone(), scale));
            grads.register::<B>(parent.id, stack::<B, 3>([of_mean, of_scale, of_shift]));
        }
        let dx = match (of_residual, residual, activation) {
            (Some(parent), Some(residual), Some(pair)) => {
                let (dx, dz) = B::affine_activation_backward_both(x, affine, residual, grad, pair);
                grads.register::<B>(parent.id, dz);
                of_x.map(|parent| (parent, dx))
            }
            (of_residual, residual, activation) => {
                if let Some(parent) = of_residual {
                    grads.register::<B>(parent.id, grad.clone());
                }
                of_x.map(|parent| {
                    let (residual, constant) = (residual.into(), Optional::Absent);
                    let dx = B::affine_activation_backward(
                        x, affine, residual, grad, activation, constant,
                    );
                    (parent, dx)
                })
            }
        };
        if let Some((parent, dx)) = dx {
            grads.register::<B>(parent.id, dx);
        }
    }
}

/// Burn counts a node's parents in its type.
macro_rules! with_and_without_residual {
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
with_and_without_residual! {
    2: Affine, self => Affine::backward;
    3: Affine, self => Affine::backward;
    3: BatchNorm<B>, self => |ops, grads, checkpointer| self.backward(ops, grads, checkpointer);
    4: BatchNorm<B>, self => |ops, grads, checkpointer| self.backward(ops, grads, checkpointer);
}

/// f(z), recorded as the given node.
fn recorded<B: NormBackend, C: CheckpointStrategy, const N: usize>(
    node: impl Backward<B, N, State = Saved<B>>,
    parents: [NodeGuard; N],
    x: FloatTensor<Autodiff<B, C>>,
    vectors: &[FloatTensor<Autodiff<B, C>>],
    residual: Option<FloatTensor<Autodiff<B, C>>>,
    saved: Saved<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let Saved { affine, activation, .. } = saved.clone();
    match node
        .prepare::<C>(parents)
        .memory_bound()
        .retro_forward(saved.clone())
        // Burn wants to hear of every parent, whether it is recomputed from or not.
        .parents([&x].into_iter().chain(vectors).chain(&residual))
        .stateful()
    {
        OpsKind::Tracked(mut prep) => {
            prep.checkpoint(&x);
            if let Some(residual) = &residual {
                prep.checkpoint(residual);
            }
            // Cloned, not moved: the clones mark the buffers as shared, so that the kernel does not
            // overwrite what the backward pass still needs.
            let residual = residual.as_ref().map(|residual| residual.primitive().clone());
            let x = x.primitive().clone();
            let y = B::affine_activation(x, affine, residual.into(), activation);
            prep.finish(saved, y)
        }
        OpsKind::UnTracked(prep) => {
            let residual = residual.map(|residual| residual.into_primitive());
            let x = x.into_primitive();
            prep.finish(B::affine_activation(x, affine, residual.into(), activation))
        }
    }
}

impl<B: NormBackend, C: CheckpointStrategy> NormBackend for Autodiff<B, C> {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        let residual = residual.into_option();
        let saved = Saved {
            x: x.id(),
            residual: residual.as_ref().map(|residual| residual.id()),
            affine: affine.primitive().clone(),
            activation,
        };
        let vectors = [affine];
        match residual {
            None => {
                let parents = [x.node(), vectors[0].node()];
                recorded::<B, C, 2>(Affine, parents, x, &vectors, None, saved)
            }
            Some(residual) => {
                let parents = [x.node(), vectors[0].node(), residual.node()];
                recorded::<B, C, 3>(Affine, parents, x, &vectors, Some(residual), saved)
            }
        }
    }

    fn batch_norm_activation(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: Option<Pair>,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let residual = residual.into_option();
        let statistics = B::channel_statistics(x.primitive().clone());
        let saved = Saved {
            x: x.id(),
            residual: residual.as_ref().map(|residual| residual.id()),
            affine: batch_affine::<B>(
                statistics.clone(),
                gamma.primitive().clone(),
                beta.primitive().clone(),
                epsilon,
            ),
            activation,
        };
        let node = BatchNorm {
            statistics: statistics.clone(),
            epsilon,
            gamma: gamma.dtype(),
            beta: beta.dtype(),
        };
        let vectors = [gamma, beta];
        let [of_gamma, of_beta] = [0, 1].map(|i: usize| vectors[i].node());
        let y = match residual {
            None => {
                let parents = [x.node(), of_gamma, of_beta];
                recorded::<B, C, 3>(node, parents, x, &vectors, None, saved)
            }
            Some(residual) => {
                let parents = [x.node(), of_gamma, of_beta, residual.node()];
                recorded::<B, C, 4>(node, parents, x, &vectors, Some(residual), saved)
            }
        };
        (y, <Self as AutodiffBackend>::from_inner(statistics))
    }
}
