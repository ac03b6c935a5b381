//! The differentiation rules: the means save a shape, the product both of its factors.

use super::{GateBackend, composed};
use burn::{
    backend::{
        Autodiff, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{
                base::Checkpointer, retro_forward::RetroForward, state::BackwardStates,
                strategy::CheckpointStrategy,
            },
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::Shape,
};
use core::marker::PhantomData;

#[derive(Debug)]
struct Means;

impl<B: GateBackend> Backward<B, 1> for Means {
    type State = Shape;

    fn backward(self, ops: Ops<Shape, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, composed::means_backward::<B>(grad, ops.state));
        }
    }
}

/// How gradient checkpointing recomputes the product.
#[derive(Debug)]
struct Recompute<B> {
    x: NodeId,
    gate: NodeId,
    backend: PhantomData<B>,
}

impl<B: GateBackend> RetroForward for Recompute<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        let gate = states.get_state::<FloatTensor<B>>(&self.gate);
        states.save(out_node, B::scale_channels(x, gate));
    }
}

#[derive(Debug)]
struct Scale;

impl<B: GateBackend> Backward<B, 2> for Scale {
    /// x and the gate.
    type State = [NodeId; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x, gate] = ops.state.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let grad = grads.consume::<B>(&ops.node);
        let (dx, of_gate) = B::scale_channels_backward(x, gate, grad);
        for (parent, gradient) in ops.parents.into_iter().zip([dx, of_gate]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: GateBackend, C: CheckpointStrategy> GateBackend for Autodiff<B, C> {
    fn channel_means(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Backward::<B, 1>::prepare::<C>(Means, [x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.shape(), B::channel_means(x.into_primitive())),
            OpsKind::UnTracked(prep) => prep.finish(B::channel_means(x.into_primitive())),
        }
    }

    fn scale_channels(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let nodes = [x.node(), gate.node()];
        let recompute = Recompute { x: x.id(), gate: gate.id(), backend: PhantomData::<B> };
        match Backward::<B, 2>::prepare::<C>(Scale, nodes)
            .memory_bound()
            .retro_forward(recompute)
            .parents([&x, &gate])
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let saved = [prep.checkpoint(&x), prep.checkpoint(&gate)];
                // Cloned, not moved: the clones mark the buffers as shared, so that the loop does
                // not overwrite what the backward pass still needs.
                let (x, gate) = (x.primitive().clone(), gate.primitive().clone());
                prep.finish(saved, B::scale_channels(x, gate))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::scale_channels(x.into_primitive(), gate.into_primitive()))
            }
        }
    }
}
