//! The differentiation rule: the node saves the input alone.

use super::{ActivationBackend, Pair};
use crate::curve::Curve;
use burn::backend::{
    Autodiff,
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
};
use core::marker::PhantomData;

/// How gradient checkpointing recomputes the output.
#[derive(Debug)]
struct Recompute<B> {
    x: NodeId,
    a: Option<NodeId>,
    pair: Pair,
    backend: PhantomData<B>,
}

impl<B: ActivationBackend> RetroForward for Recompute<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        let y = match &self.a {
            None => B::activation(x, self.pair),
            Some(a) => {
                let a = states.get_state::<FloatTensor<B>>(a);
                B::parametric_activation(x, a, self.pair)
            }
        };
        states.save(out_node, y);
    }
}

#[derive(Debug)]
struct Fixed;

impl<B: ActivationBackend> Backward<B, 1> for Fixed {
    type State = (NodeId, Curve);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, curve) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, B::activation_backward(x, grad, curve));
        }
    }
}

#[derive(Debug)]
struct Parametric;

impl<B: ActivationBackend> Backward<B, 2> for Parametric {
    type State = (NodeId, NodeId, Pair);

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (x, a, pair) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let a = checkpointer.retrieve_node_output::<FloatTensor<B>>(a);
        let grad = grads.consume::<B>(&ops.node);
        let [of_x, of_a] = ops.parents;
        if let Some(parent) = of_a {
            let da = B::parametric_activation_parameter_backward(
                x.clone(),
                a.clone(),
                grad.clone(),
                pair.value,
            );
            grads.register::<B>(parent.id, da);
        }
        if let Some(parent) = of_x {
            let dx = match pair.gradient {
                crate::Gradient::Own => B::parametric_activation_backward(x, a, grad, pair.value),
                crate::Gradient::Of(curve) => B::activation_backward(x, grad, curve),
            };
            grads.register::<B>(parent.id, dx);
        }
    }
}

// In the tracked branches the input is cloned, not moved: the clone marks its buffer as shared, so
// that the kernel does not overwrite what the backward pass still needs.
impl<B: ActivationBackend, C: CheckpointStrategy> ActivationBackend for Autodiff<B, C> {
    fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
        let recompute = Recompute { x: x.id(), a: None, pair, backend: PhantomData::<B> };
        match Backward::<B, 1>::prepare::<C>(Fixed, [x.node()])
            .memory_bound()
            .retro_forward(recompute)
            .parents([&x])
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), pair.slope());
                prep.finish(state, B::activation(x.primitive().clone(), pair))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::activation(x.into_primitive(), pair)),
        }
    }

    fn parametric_activation(
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        let recompute = Recompute { x: x.id(), a: Some(a.id()), pair, backend: PhantomData::<B> };
        match Backward::<B, 2>::prepare::<C>(Parametric, [x.node(), a.node()])
            .memory_bound()
            .retro_forward(recompute)
            .parents([&x, &a])
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&a), pair);
                let y =
                    B::parametric_activation(x.primitive().clone(), a.primitive().clone(), pair);
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::parametric_activation(x.into_primitive(), a.into_primitive(), pair))
            }
        }
    }
}
