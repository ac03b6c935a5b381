//! Fused loops for Flex, Burn's CPU backend.
//!
//! One pass over the data each way, in parallel chunks, with the widest instruction set the machine
//! has, in place where nobody else holds the buffer. The formulas are those of [`crate::curve`].

use super::{
    ActivationBackend, Pair,
    block::{Block, Dense, each, rewrite},
    norm::Number,
    threads::share,
};
use crate::{
    curve::{Curve, Formula, Visitor},
    lane::Lane,
    value::Value,
};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, Element, ElementConversion, bf16, f16},
};
use core::mem::MaybeUninit;

/// Elements a thread takes at a time.
pub(super) const CHUNK: usize = 32 * 1024;
/// Tensors up to this size run on the calling thread: waking another costs a few microseconds, in which one
/// thread computes 10,000 to 60,000 elements.
pub(super) const SERIAL: usize = 2 * CHUNK;
/// Elements that stay in the first-level cache from one loop over them to the next.
pub(super) const BLOCK: usize = 1024;

impl ActivationBackend for Flex {
    fn activation(x: FloatTensor<Self>, pair: Pair) -> FloatTensor<Self> {
        pair.value.visit(Forward { x, parameters: None })
    }

    fn activation_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        curve.visit(BackwardX { x, grad, parameters: None })
    }

    fn parametric_activation(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        pair: Pair,
    ) -> FloatTensor<Self> {
        pair.value.visit(Forward { x, parameters: Some(numbers(&parameters)) })
    }

    fn parametric_activation_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        curve.visit(BackwardX { x, grad, parameters: Some(numbers(&parameters)) })
    }

    fn parametric_activation_parameter_backward(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        curve: Curve,
    ) -> FloatTensor<Self> {
        let given = numbers(&parameters);
        let sums = curve.visit(BackwardParameters { x, grad, parameters: given });
        tensor_of(parameters, &sums)
    }
}

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

// --- Operations, one per formula and number type ---

struct Forward {
    x: FlexTensor,
    parameters: Option<[f64; 2]>,
}

impl Visitor for Forward {
    type Output = FlexTensor;
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> FlexTensor {
        let parameters = self.parameters.unwrap_or(fixed);
        by_dtype!(self.x.dtype(), E => map::<E, F>(self.x, parameters))
    }
}

struct BackwardX {
    x: FlexTensor,
    grad: FlexTensor,
    parameters: Option<[f64; 2]>,
}

impl Visitor for BackwardX {
    type Output = FlexTensor;
    fn visit<F: Formula>(self, fixed: [f64; 2]) -> FlexTensor {
        let parameters = self.parameters.unwrap_or(fixed);
        by_dtype!(self.x.dtype(), E => scale_by_slope::<E, F>(self.x, self.grad, parameters))
    }
}

struct BackwardParameters {
    x: FlexTensor,
    grad: FlexTensor,
    parameters: [f64; 2],
}

impl Visitor for BackwardParameters {
    type Output = [f64; 2];
    fn visit<F: Formula>(self, _: [f64; 2]) -> [f64; 2] {
        by_dtype!(self.x.dtype(), E => parameter_sums::<E, F>(self.x, self.grad, self.parameters))
    }
}

// --- Tensors as flat buffers ---

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

/// The one or two numbers of a parameter tensor; NaN for the one that is not there.
pub(super) fn numbers(parameters: &FlexTensor) -> [f64; 2] {
    let layout = parameters.layout();
    let (start, stride) = (layout.start_offset() as isize, layout.strides()[0]);
    let at = |i: usize| -> f64 {
        if i >= layout.num_elements() {
            return f64::NAN;
        }
        let at = (start + i as isize * stride) as usize;
        by_dtype!(parameters.dtype(), E => parameters.storage::<E>()[at].elem())
    };
    [at(0), at(1)]
}

/// A tensor of the same length and type, with these numbers.
fn tensor_of(like: FlexTensor, numbers: &[f64; 2]) -> FlexTensor {
    let shape = like.layout().shape().clone();
    let numbers = &numbers[..like.layout().num_elements()];
    let dtype = like.dtype();
    by_dtype!(dtype, E => {
        let numbers: Vec<E> = numbers.iter().map(|number| number.elem::<E>()).collect();
        FlexTensor::new(Bytes::from_elems(numbers), Layout::contiguous(shape), dtype)
    })
}

// --- Loops ---

fn map<E: Stored, F: Formula>(x: FlexTensor, parameters: [f64; 2]) -> FlexTensor {
    rewrite::<E>(flat(x), |_, x| E::Work::values::<F>(x, parameters))
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

/// The sums of grad * df/da and grad * df/db. Each block is summed in its number type, the blocks in
/// f64 and in order, so that the result does not depend on the number of threads.
fn parameter_sums<E: Stored, F: Formula>(
    x: FlexTensor,
    grad: FlexTensor,
    parameters: [f64; 2],
) -> [f64; 2] {
    let n = x.layout().num_elements();
    let [x, grad] = flat_pair(x, grad);
    let [x, grad] = [&x, &grad].map(|dense| &dense.elements::<E>()[..n]);
    let of_block = |(x, grad): (&[E], &[E])| {
        E::with_read(x, |x| {
            E::with_read(grad, |grad| E::Work::parameter_sums::<F>(x, grad, parameters))
        })
    };
    let add = |sums: [f64; 2], more: [f64; 2]| [sums[0] + more[0], sums[1] + more[1]];
    let of_chunk = |(x, grad): (&[E], &[E])| {
        x.chunks(BLOCK).zip(grad.chunks(BLOCK)).map(of_block).fold([0.0; 2], add)
    };
    let chunks = x.chunks(CHUNK).zip(grad.chunks(CHUNK));
    let sums = if n <= SERIAL { chunks.map(of_chunk).collect() } else { share(chunks, of_chunk) };
    sums.into_iter().fold([0.0; 2], add)
}

// --- Number types ---

/// A number type of tensors.
pub(super) trait Stored: Element + bytemuck::Pod + Send + Sync {
    /// What the arithmetic is done in.
    type Work: Work;
    /// Hands the elements to `f` for reading.
    fn with_read<R>(elements: &[Self], f: impl FnOnce(&[Self::Work]) -> R) -> R;
    /// Hands a block to `f` in the numbers of arithmetic, and writes what `f` leaves there: all of it has
    /// been written then. `f` must leave the block where it is.
    fn with_block(block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, Self::Work>));
    /// The same for a fresh block, whose old numbers are given as those of arithmetic.
    fn with_fresh(
        old: &[Self::Work],
        new: &mut [MaybeUninit<Self>],
        f: impl FnOnce(&mut Block<'_, Self::Work>),
    );
}

macro_rules! stored_as_is {
    ($number:ty) => {
        impl Stored for $number {
            type Work = $number;
            fn with_read<R>(elements: &[Self], f: impl FnOnce(&[Self]) -> R) -> R {
                f(elements)
            }
            fn with_block(mut block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, Self>)) {
                let place = (block.place(), block.len());
                f(&mut block);
                block.numbers();
                assert_eq!((block.place(), block.len()), place, "the block is another one");
            }
            fn with_fresh(
                old: &[Self],
                new: &mut [MaybeUninit<Self>],
                f: impl FnOnce(&mut Block<'_, Self>),
            ) {
                Self::with_block(Block::beside(old, new), f);
            }
        }
    };
}
stored_as_is!(f32);
stored_as_is!(f64);

macro_rules! stored_in_half {
    ($number:ty) => {
        impl Stored for $number {
            type Work = f32;
            fn with_read<R>(elements: &[Self], f: impl FnOnce(&[f32]) -> R) -> R {
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..elements.len()];
                work.iter_mut().zip(elements).for_each(|(work, x)| *work = x.to_f32());
                f(work)
            }
            fn with_block(mut block: Block<'_, Self>, f: impl FnOnce(&mut Block<'_, f32>)) {
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..block.len()];
                work.iter_mut().zip(block.read()).for_each(|(work, x)| *work = x.to_f32());
                f(&mut Block::Over(work));
                each!(&mut block, _, new in work => Self::from_f32(new));
            }
            fn with_fresh(
                old: &[f32],
                new: &mut [MaybeUninit<Self>],
                f: impl FnOnce(&mut Block<'_, f32>),
            ) {
                assert_eq!(old.len(), new.len(), "a block beside another is as long");
                let mut buffer = [0.0; BLOCK];
                let work = &mut buffer[..old.len()];
                work.copy_from_slice(old);
                f(&mut Block::Over(work));
                new.iter_mut().zip(work).for_each(|(new, work)| _ = new.write(Self::from_f32(*work)));
            }
        }
    };
}
stored_in_half!(f16);
stored_in_half!(bf16);

/// A number type of arithmetic, with the loops over it.
pub(super) trait Work: Number {
    /// x = f(x)
    fn values<F: Formula>(x: &mut Block<'_, Self>, parameters: [f64; 2]);
    /// grad = grad * f'(x)
    fn scale_by_slope<F: Formula>(x: &[Self], grad: &mut Block<'_, Self>, parameters: [f64; 2]);
    /// The sums of grad * df/da and grad * df/db.
    fn parameter_sums<F: Formula>(x: &[Self], grad: &[Self], parameters: [f64; 2]) -> [f64; 2];
}

impl Work for f64 {
    fn values<F: Formula>(x: &mut Block<'_, Self>, parameters: [f64; 2]) {
        each!(x, x => F::value(x, parameters));
    }
    fn scale_by_slope<F: Formula>(x: &[Self], grad: &mut Block<'_, Self>, parameters: [f64; 2]) {
        each!(grad, grad, x in x => grad * F::slope(x, parameters));
    }
    fn parameter_sums<F: Formula>(x: &[Self], grad: &[Self], parameters: [f64; 2]) -> [f64; 2] {
        x.iter().zip(grad).fold([0.0; 2], |sums, (x, grad)| {
            let slopes = F::parameter_slopes(*x, parameters);
            [sums[0] + grad * slopes[0], sums[1] + grad * slopes[1]]
        })
    }
}

/// The loops on lanes, to be compiled once for each instruction set.
mod loops {
    use super::{Block, Formula, Lane, Value, each};

    #[inline(always)]
    pub(super) fn values<F: Formula, const FMA: bool>(
        x: &mut Block<'_, f32>,
        parameters: [f64; 2],
    ) {
        let parameters = parameters.map(Lane::<FMA>::lit);
        each!(x, x => F::value(Lane(x), parameters).0);
    }

    #[inline(always)]
    pub(super) fn scale_by_slope<F: Formula, const FMA: bool>(
        x: &[f32],
        grad: &mut Block<'_, f32>,
        parameters: [f64; 2],
    ) {
        let parameters = parameters.map(Lane::<FMA>::lit);
        each!(grad, grad, x in x => grad * F::slope(Lane(x), parameters).0);
    }

    #[inline(always)]
    pub(super) fn parameter_sums<F: Formula, const FMA: bool>(
        x: &[f32],
        grad: &[f32],
        parameters: [f64; 2],
    ) -> [f64; 2] {
        // Sixteen running sums each: one would chain every addition to the one before it.
        let parameters = parameters.map(Lane::<FMA>::lit);
        let mut sums = [[0.0f32; 16]; 2];
        let (x_body, x_rest) = x.as_chunks::<16>();
        let (grad_body, grad_rest) = grad.as_chunks::<16>();
        for (x, grad) in x_body.iter().zip(grad_body) {
            for i in 0..16 {
                let slopes = F::parameter_slopes(Lane(x[i]), parameters);
                sums[0][i] += grad[i] * slopes[0].0;
                sums[1][i] += grad[i] * slopes[1].0;
            }
        }
        let mut totals = sums.map(|sums| sums.into_iter().map(f64::from).sum::<f64>());
        for (x, grad) in x_rest.iter().zip(grad_rest) {
            let slopes = F::parameter_slopes(Lane::<FMA>(*x), parameters);
            totals[0] += f64::from(grad * slopes[0].0);
            totals[1] += f64::from(grad * slopes[1].0);
        }
        totals
    }
}

/// Compiles functions of a module `loops`, whose last generic says whether fused multiply-add may be
/// used, once for each instruction set, and calls the widest that the machine has.
macro_rules! for_each_instruction_set {
    ($(
        $name:ident<$($generic:ident: $bound:path),+>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $output:ty)?;
    )*) => {
        $(
            fn $name<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,fma")]
                    fn avx512<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                        loops::$name::<$($generic,)+ true>($($argument),*)
                    }
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2<$($generic: $bound),+>($($argument: $type),*) $(-> $output)? {
                        loops::$name::<$($generic,)+ true>($($argument),*)
                    }
                    if std::is_x86_feature_detected!("avx512f")
                        && std::is_x86_feature_detected!("avx512dq")
                        && std::is_x86_feature_detected!("avx512vl")
                        && std::is_x86_feature_detected!("avx512bw")
                        && std::is_x86_feature_detected!("fma")
                    {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx512::<$($generic),+>($($argument),*) };
                    }
                    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
                    {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx2::<$($generic),+>($($argument),*) };
                    }
                }
                // 64-bit Arm always has fused multiply-add.
                loops::$name::<$($generic,)+ { cfg!(target_arch = "aarch64") }>($($argument),*)
            }
        )*
    };
}
pub(super) use for_each_instruction_set;

impl Work for f32 {
    for_each_instruction_set! {
        values<F: Formula>(x: &mut Block<'_, f32>, parameters: [f64; 2]);
        scale_by_slope<F: Formula>(x: &[f32], grad: &mut Block<'_, f32>, parameters: [f64; 2]);
        parameter_sums<F: Formula>(x: &[f32], grad: &[f32], parameters: [f64; 2]) -> [f64; 2];
    }
}
