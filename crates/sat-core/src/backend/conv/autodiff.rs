//! The differentiation rule: a node keeps x only where the weight has a gradient, and the weight only
//! where x has one.

use super::ConvBackend;
use burn::{
    backend::{
        Autodiff, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::ops::ConvOptions,
};

#[derive(Debug)]
struct Convolution;

/// What the backward pass computes from.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<NodeId>,
    weight: Option<NodeId>,
    size: [usize; 2],
    kernel: [usize; 2],
    options: ConvOptions<2>,
}

impl<B: ConvBackend> Backward<B, 2> for Convolution {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let Saved { x, weight, size, kernel, options } = ops.state;
        // Each is taken from the checkpointer whether or not it is used: it counts the uses.
        let x = x.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let weight = weight.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let grad = grads.consume::<B>(&ops.node);
        let [of_x, of_weight] = ops.parents;
        if let (Some(parent), Some(weight)) = (of_x, weight) {
            let dx = B::convolution_input_gradient(weight, grad.clone(), size, options.clone());
            grads.register::<B>(parent.id, dx);
        }
        if let (Some(parent), Some(x)) = (of_weight, x) {
            let dw = B::convolution_weight_gradient(x, grad, kernel, options);
            grads.register::<B>(parent.id, dw);
        }
    }
}

fn last_two(shape: impl core::ops::Index<usize, Output = usize>) -> [usize; 2] {
    [shape[2], shape[3]]
}

impl<B: ConvBackend, C: CheckpointStrategy> ConvBackend for Autodiff<B, C> {
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        match Convolution.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = Saved {
                    x: weight.is_tracked().then(|| prep.checkpoint(&x)),
                    weight: x.is_tracked().then(|| prep.checkpoint(&weight)),
                    size: last_two(x.shape()),
                    kernel: last_two(weight.shape()),
                    options: options.clone(),
                };
                let y = B::convolution(x.into_primitive(), weight.into_primitive(), options);
                prep.finish(saved, y)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::convolution(x.into_primitive(), weight.into_primitive(), options))
            }
        }
    }
}
