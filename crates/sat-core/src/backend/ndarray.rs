//! The loops of the CPU on NdArray's tensors, which are `f32` or `f64`.

use super::{
    ActivationBackend, Pair,
    block::{Block, compute_beside, compute_over},
    elementwise::{self, Elementwise, activations_of},
    number::{Number, Stored, Work},
};
use crate::curve::{Curve, Formula};
use burn::{
    backend::{
        NdArray, TensorMetadata,
        ndarray::{NdArrayTensor, SharedArray},
        tensor::FloatTensor,
    },
    tensor::ElementConversion,
};

activations_of!(NdArray);

/// Evaluates an expression for the array of a tensor of floats.
macro_rules! with_array {
    ($tensor:expr, $array:ident => $value:expr) => {
        match $tensor {
            NdArrayTensor::F32(storage) => {
                let $array = storage.into_shared();
                $value
            }
            NdArrayTensor::F64(storage) => {
                let $array = storage.into_shared();
                $value
            }
            other => panic!("activations work on f64 and f32 tensors, not on {:?}", other.dtype()),
        }
    };
}

/// The same for two tensors of one type.
macro_rules! with_arrays {
    ($first:expr, $second:expr, $arrays:pat => $value:expr) => {
        match ($first, $second) {
            (NdArrayTensor::F32(first), NdArrayTensor::F32(second)) => {
                let $arrays = (first.into_shared(), second.into_shared());
                $value
            }
            (NdArrayTensor::F64(first), NdArrayTensor::F64(second)) => {
                let $arrays = (first.into_shared(), second.into_shared());
                $value
            }
            (first, second) => panic!(
                "activations work on f64 and f32 tensors of one type, not on {:?} and {:?}",
                first.dtype(),
                second.dtype()
            ),
        }
    };
}

impl Elementwise for NdArrayTensor {
    fn map<F: Formula>(self, parameters: [f64; 2]) -> Self {
        with_array!(self, x => rewrite(x, |_, x| Work::values::<F>(x, parameters)).into())
    }

    fn scale_by_slope<F: Formula>(self, x: Self, parameters: [f64; 2]) -> Self {
        with_arrays!(self, x, (grad, x) => scale_by_slope::<_, F>(grad, x, parameters).into())
    }

    fn parameter_sums<F: Formula>(self, x: Self, parameters: [f64; 2]) -> [f64; 2] {
        with_arrays!(self, x, (grad, x) => {
            let order = memory_order(&x);
            let [grad, x] = [grad, x].map(|array| in_a_row(array, &order));
            elementwise::parameter_sums::<_, F>(slice(&x), slice(&grad), parameters)
        })
    }

    fn numbers(&self) -> [f64; 2] {
        with_array!(self.clone(), array => {
            let mut numbers = array.iter().map(|number| number.elem());
            core::array::from_fn(|_| numbers.next().unwrap_or(f64::NAN))
        })
    }

    fn with_numbers(self, numbers: [f64; 2]) -> Self {
        with_array!(self, array => {
            let mut array = array;
            array.iter_mut().zip(numbers).for_each(|(old, new)| *old = new.elem());
            array.into()
        })
    }
}

fn scale_by_slope<E: Stored<Work = E> + Work, F: Formula>(
    grad: SharedArray<E>,
    x: SharedArray<E>,
    parameters: [f64; 2],
) -> SharedArray<E> {
    assert_eq!(x.shape(), grad.shape(), "a gradient has the shape of its input");
    let x = in_a_row(x, &memory_order(&grad));
    let x = slice(&x);
    rewrite(grad, |at, grad| E::scale_by_slope::<F>(&x[at..at + grad.len()], grad, parameters))
}

/// Computes an array block by block from one of the same shape: in its place where nobody else holds
/// it, in a fresh buffer where somebody does. `f(position, block)` is called for every block, with the
/// position in [`memory_order`].
fn rewrite<E: Stored<Work = E> + Number>(
    old: SharedArray<E>,
    f: impl Fn(usize, &mut Block<'_, E>) + Sync,
) -> SharedArray<E> {
    let f = |(): &mut (), at: usize, block: &mut Block<'_, E>| f(at, block);
    let order = memory_order(&old);
    let mut places = vec![0; order.len()];
    order.iter().enumerate().for_each(|(place, axis)| places[*axis] = place);
    let mut old = in_a_row(old, &order);
    let new = if old.is_unique() {
        compute_over(old.as_slice_mut().expect("it is in a row"), || (), f);
        old
    } else {
        let (new, _) = compute_beside(slice(&old), || (), f);
        SharedArray::from_shape_vec(old.raw_dim(), new)
            .expect("there are as many numbers as before")
    };
    new.permuted_axes(places)
}

/// The axes by falling stride: elementwise work does not care about the order of the axes.
fn memory_order<E>(array: &SharedArray<E>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..array.ndim()).collect();
    order.sort_by_key(|axis| core::cmp::Reverse(array.strides()[*axis]));
    order
}

/// The array with its axes in this order and its elements in a row, copied where they are not.
fn in_a_row<E: Number>(array: SharedArray<E>, order: &[usize]) -> SharedArray<E> {
    let array = array.permuted_axes(order);
    if array.is_standard_layout() {
        return array;
    }
    array.as_standard_layout().into_owned().into_shared()
}

/// The elements of an array that has them in a row.
fn slice<E>(array: &SharedArray<E>) -> &[E] {
    array.as_slice().expect("it is in a row")
}
