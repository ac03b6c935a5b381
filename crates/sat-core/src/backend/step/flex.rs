//! Flex: one pass over the data, in the place of the gradient where nobody else holds it.

use super::{
    super::{
        block::Block,
        flex::{Dense, rewrite},
        number::{Number, Stored},
    },
    StepBackend, composed,
};
use burn::{
    backend::{Flex, flex::FlexTensor, tensor::FloatTensor},
    tensor::{DType, ElementConversion},
};

impl StepBackend for Flex {
    fn sign_step(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        size: FloatTensor<Self>,
        lower: FloatTensor<Self>,
        upper: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match x.dtype() {
            DType::F32 => sign_step::<f32>(x, gradient, size, lower, upper),
            DType::F64 => sign_step::<f64>(x, gradient, size, lower, upper),
            // Rounds after each of the operations.
            _ => composed::sign_step::<Self>(x, gradient, size, lower, upper),
        }
    }
}

fn sign_step<E: Stored<Work = E> + Number + PartialOrd>(
    x: FlexTensor,
    gradient: FlexTensor,
    size: FlexTensor,
    lower: FlexTensor,
    upper: FlexTensor,
) -> FlexTensor {
    let inputs = [x, size, lower, upper].map(|tensor| tensor.to_contiguous());
    let [x, size, lower, upper] = inputs.each_ref().map(numbers::<E>);
    let values = x.len() / size.len().max(1);
    let [one, minus_one] = [1.0f32, -1.0].map(|sign| sign.elem::<E>());
    let step = |mut at: usize, gradient: &mut Block<'_, E>| {
        // A block may hold values of several samples.
        let mut rest = gradient.numbers();
        while !rest.is_empty() {
            let sample = at / values;
            let run;
            let length = rest.len().min((sample + 1) * values - at);
            (run, rest) = rest.split_at_mut(length);
            let range = at..at + run.len();
            let (x, lower, upper) = (&x[range.clone()], &lower[range.clone()], &upper[range]);
            for (((out, &x), &lower), &upper) in run.iter_mut().zip(x).zip(lower).zip(upper) {
                // NaN is neither.
                let sign = if *out > E::ZERO {
                    one
                } else if *out < E::ZERO {
                    minus_one
                } else {
                    E::ZERO
                };
                let y = x + sign * size[sample];
                let y = if y < lower { lower } else { y };
                *out = if upper < y { upper } else { y };
            }
            at += run.len();
        }
    };
    let tensor =
        if gradient.layout().is_contiguous() { gradient } else { gradient.to_contiguous() };
    let start = tensor.layout().start_offset();
    rewrite::<E>(Dense { tensor, start }, step)
}

/// The numbers of a contiguous tensor.
fn numbers<E: Stored>(tensor: &FlexTensor) -> &[E] {
    let layout = tensor.layout();
    &tensor.storage::<E>()[layout.start_offset()..][..layout.num_elements()]
}
