//! The loops of the CPU on the tensors of Flex, Burn's CPU backend.

use super::{
    ActivationBackend, Pair,
    block::{Block, compute_beside, compute_over},
    elementwise::{self, Elementwise, activations_of},
    number::{Stored, Work},
};
use crate::curve::{Curve, Formula};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, ElementConversion, bf16, f16},
};

activations_of!(Flex);

/// Evaluates an expression with a type's name bound to the number type of a tensor.
macro_rules! by_dtype {
    ($dtype:expr, $number:ident => $value:expr) => {
        match $dtype {
            DType::F32 => {
                type $number = f32;
                $value
            }
            DType::F64 => {
                type $number = f64;
                $value
            }
            DType::F16 => {
                type $number = f16;
                $value
            }
            DType::BF16 => {
                type $number = bf16;
                $value
            }
            other => panic!("activations work on f64, f32, f16 and bf16 tensors, not on {other:?}"),
        }
    };
}

pub(super) use by_dtype;

impl Elementwise for FlexTensor {
    fn map<F: Formula>(self, parameters: [f64; 2]) -> Self {
        by_dtype!(self.dtype(), E => {
            rewrite::<E>(flat(self), |_, x| Work::values::<F>(x, parameters))
        })
    }

    fn scale_by_slope<F: Formula>(self, x: Self, parameters: [f64; 2]) -> Self {
        by_dtype!(x.dtype(), E => scale_by_slope::<E, F>(x, self, parameters))
    }

    fn parameter_sums<F: Formula>(self, x: Self, parameters: [f64; 2]) -> [f64; 2] {
        by_dtype!(x.dtype(), E => {
            let n = x.layout().num_elements();
            let [x, grad] = flat_pair(x, self);
            let [x, grad] = [&x, &grad].map(|dense| &dense.elements::<E>()[..n]);
            elementwise::parameter_sums::<E, F>(x, grad, parameters)
        })
    }

    fn numbers(&self) -> [f64; 2] {
        let layout = self.layout();
        let (start, stride) = (layout.start_offset() as isize, layout.strides()[0]);
        core::array::from_fn(|i| {
            if i >= layout.num_elements() {
                return f64::NAN;
            }
            let at = (start + i as isize * stride) as usize;
            by_dtype!(self.dtype(), E => self.storage::<E>()[at].elem())
        })
    }

    fn with_numbers(self, numbers: [f64; 2]) -> Self {
        let shape = self.layout().shape().clone();
        let numbers = &numbers[..self.layout().num_elements()];
        let dtype = self.dtype();
        by_dtype!(dtype, E => {
            let numbers: Vec<E> = numbers.iter().map(|number| number.elem::<E>()).collect();
            FlexTensor::new(Bytes::from_elems(numbers), Layout::contiguous(shape), dtype)
        })
    }
}

// --- Tensors as flat buffers ---

/// A tensor whose elements fill one range of its buffer.
pub(super) struct Dense {
    pub(super) tensor: FlexTensor,
    pub(super) start: usize,
}

impl Dense {
    /// From the first element to the end of the buffer, which may hold more than the tensor.
    pub(super) fn elements<E: Stored>(&self) -> &[E] {
        &self.tensor.storage::<E>()[self.start..]
    }
}

/// The tensor as a dense one, copied where it has gaps.
///
/// A permuted tensor that covers its whole buffer stays as it is: elementwise work does not care
/// about the order of the axes.
fn flat(x: FlexTensor) -> Dense {
    if let Some((start, _)) = x.layout().contiguous_offsets() {
        return Dense { tensor: x, start };
    }
    if is_dense(x.layout()) {
        return Dense { start: x.layout().start_offset(), tensor: x };
    }
    Dense { tensor: x.to_contiguous(), start: 0 }
}

/// Whether the elements fill a range without gaps or repeats, in whatever order of the axes.
fn is_dense(layout: &Layout) -> bool {
    let mut axes: Vec<(isize, usize)> = layout
        .strides()
        .iter()
        .zip(layout.shape().iter())
        .filter(|(_, size)| **size != 1)
        .map(|(stride, size)| (*stride, *size))
        .collect();
    axes.sort_unstable();
    let mut expected = 1;
    axes.iter().all(|&(stride, size)| {
        let matches = stride == expected;
        expected *= size as isize;
        matches
    })
}

/// The layout of a new buffer that holds the range [start, ..) of the old one.
pub(super) fn moved(layout: &Layout, start: usize) -> Layout {
    Layout::new(layout.shape().clone(), layout.strides().to_vec(), layout.start_offset() - start)
}

/// Two tensors of one shape as flat buffers in the same order of elements.
fn flat_pair(x: FlexTensor, grad: FlexTensor) -> [Dense; 2] {
    assert_eq!(x.layout().shape(), grad.layout().shape(), "a gradient has the shape of its input");
    let [x, grad] = [x, grad].map(flat);
    if x.tensor.layout().strides() == grad.tensor.layout().strides() {
        return [x, grad];
    }
    [x, grad].map(|dense| flat(dense.tensor.to_contiguous()))
}

// --- Loops ---

/// Computes a tensor block by block from one of the same shape: in its place where nobody else holds
/// it, in a fresh buffer where somebody does. `f(position, block)` is called for every block.
pub(super) fn rewrite<E: Stored>(
    old: Dense,
    f: impl Fn(usize, &mut Block<'_, E::Work>) + Sync,
) -> FlexTensor {
    rewrite_with::<E, _>(old, || (), |(), at, block| f(at, block)).0
}

/// The same with a state for each chunk of blocks; the states are returned in order.
pub(super) fn rewrite_with<E: Stored, S: Send>(
    old: Dense,
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut Block<'_, E::Work>) + Sync,
) -> (FlexTensor, Vec<S>) {
    let Dense { mut tensor, start } = old;
    let n = tensor.layout().num_elements();
    if n == 0 {
        return (tensor, Vec::new());
    }
    if let Some(storage) = tensor.try_storage_mut::<E>() {
        let states = compute_over(&mut storage[start..start + n], state, f);
        return (tensor, states);
    }
    let old = &tensor.storage::<E>()[start..start + n];
    let (out, states) = compute_beside(old, state, f);
    let layout = moved(tensor.layout(), start);
    (FlexTensor::new(Bytes::from_elems(out), layout, tensor.dtype()), states)
}

fn scale_by_slope<E: Stored, F: Formula>(
    x: FlexTensor,
    grad: FlexTensor,
    parameters: [f64; 2],
) -> FlexTensor {
    let [x, grad] = flat_pair(x, grad);
    let x = x.elements::<E>();
    rewrite::<E>(grad, |at, grad| {
        E::with_read(&x[at..at + grad.len()], |x| {
            E::Work::scale_by_slope::<F>(x, grad, parameters);
        });
    })
}
