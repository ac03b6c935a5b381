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
    parameters: Option<NodeId>,
    pair: Pair,
    backend: PhantomData<B>,
}

impl<B: ActivationBackend> RetroForward for Recompute<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.x);
        let y = match &self.parameters {
            None => B::activation(x, self.pair),
            Some(parameters) => {
                let parameters = states.get_state::<FloatTensor<B>>(parameters);
                B::parametric_activation(x, parameters, self.pair)
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
        let (x, parameters, pair) = ops.state;
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let parameters = checkpointer.retrieve_node_output::<FloatTensor<B>>(parameters);
        let grad = grads.consume::<B>(&ops.node);
        let [of_x, of_parameters] = ops.parents;
        if let Some(parent) = of_parameters {
            let gradient = B::parametric_activation_parameter_backward(
                x.clone(),
                parameters.clone(),
                grad.clone(),
                pair.value,
            );
            grads.register::<B>(parent.id, gradient);
        }
        if let Some(parent) = of_x {
            let dx = match pair.gradient {
                crate::Gradient::Own => {
                    B::parametric_activation_backward(x, parameters, grad, pair.value)
                }
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
        let recompute = Recompute { x: x.id(), parameters: None, pair, backend: PhantomData::<B> };
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
        parameters: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        let recompute = Recompute {
            x: x.id(),
            parameters: Some(parameters.id()),
            pair,
            backend: PhantomData::<B>,
        };
        match Backward::<B, 2>::prepare::<C>(Parametric, [x.node(), parameters.node()])
            .memory_bound()
            .retro_forward(recompute)
            .parents([&x, &parameters])
            .stateful()
        {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&parameters), pair);
                let y = B::parametric_activation(
                    x.primitive().clone(),
                    parameters.primitive().clone(),
                    pair,
                );
                prep.finish(state, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::parametric_activation(
                x.into_primitive(),
                parameters.into_primitive(),
                pair,
            )),
        }
    }
}
