use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::Tensor,
};
use std::collections::VecDeque;

/// An exponential moving average of a model's weights, activation parameters and BatchNorm statistics.
///
/// After update t, counted from 1: average = d' average + (1 - d') model with
/// d' = min(d, (1 + t)/(10 + t)), which forgets the first weights quickly, as in TensorFlow.
#[derive(Clone, Debug)]
pub struct WeightAverage<M> {
    model: M,
    decay: f64,
    updates: usize,
}

impl<M: Module> WeightAverage<M> {
    /// Starts from the model as it is. `decay` d lies in [0, 1).
    pub fn new(model: &M, decay: f64) -> Self {
        Self::resume(model.valid(), decay, 0)
    }

    /// The average as it was after so many updates.
    pub(crate) fn resume(model: M, decay: f64, updates: usize) -> Self {
        Self { model, decay, updates }
    }

    /// Takes up the model after a step.
    ///
    /// # Panics
    ///
    /// If the model is another network.
    pub fn update(self, model: &M) -> Self {
        let updates = self.updates + 1;
        let t = updates as f64;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        let mut values = Values::default();
        // `valid` also takes in the last update of BatchNorm's statistics.
        model.valid().visit(&mut values);
        let averaged = self.model.map(&mut Blend { values: values.0, share: 1.0 - decay });
        Self { model: averaged, updates, ..self }
    }

    /// The average, in the form for evaluation.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The average, in the form for evaluation.
    pub fn into_model(self) -> M {
        self.model
    }
}

/// Every float of a module in the order of its visit, flattened.
#[derive(Default)]
struct Values(VecDeque<Tensor<1>>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let size = value.shape().num_elements();
        self.0.push_back(value.reshape([size]));
    }
}

struct Blend {
    values: VecDeque<Tensor<1>>,
    share: f64,
}

impl ModuleMapper for Blend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.values.pop_front() else {
            panic!("the average is of a network with fewer parameters");
        };
        param.map(|average| {
            // Several devices may have shared the parameters out.
            let value = value.reshape(average.shape()).to_device(&average.device());
            average.clone() + (value - average) * self.share
        })
    }
}
