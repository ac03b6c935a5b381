//! Fused loops for Flex, Burn's CPU backend.
//!
//! Every operation is one pass over memory. A block of [`BLOCK`] elements is read, normalised,
//! activated and written while it stays in the first-level cache, so the steps on it can be separate
//! loops: those of [`super::super::flex`] for the curve, and those at the end of this file.

use super::{
    super::{
        Pair,
        flex::{BLOCK, CHUNK, SERIAL, Stored, Work, by_dtype, moved, overwrite},
    },
    NormBackend, Optional,
};
use crate::curve::{Curve, Formula, Visitor};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, Element, ElementConversion, bf16, f16},
};
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ops::{Add, AddAssign, Mul, Range, Sub},
};
use rayon::prelude::*;
use std::sync::Mutex;

impl NormBackend for Flex {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x], residual) = aligned([x], residual.into_option());
            let z = Preactivation::<E>::new(planes, None, &affine, &residual, activation);
            overwrite::<E>(x.tensor, x.start, |at, block| {
                E::with_work(block, |work| {
                    z.apply_in_place(at, work);
                    z.activation.values(work);
                })
            })
        })
    }

    fn channel_statistics(x: FloatTensor<Self>) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x], _) = aligned([x], None);
            let n = x.tensor.layout().num_elements();
            statistics::<E>(planes, &x.elements::<E>()[..n])
        })
    }

    fn affine_activation_backward(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: Option<Pair>,
        correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], residual.into_option());
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let correction = correction.into_option();
            let correction = correction.map(|rows| [0, 1].map(|row| vector::<E>(&rows, row)));
            overwrite::<E>(grad.tensor, grad.start, |at, block| {
                E::with_work(block, |dz| {
                    z.scale_by_slope(at, dz);
                    match &correction {
                        None => scale(planes, at, dz, &z.scale),
                        Some([constant, linear]) => z.with_x(at, dz.len(), |x| {
                            let vectors = [&z.mean, &z.scale, constant, linear];
                            input_gradient(planes, at, x, dz, vectors.map(Vec::as_slice));
                        }),
                    }
                })
            })
        })
    }

    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], Some(residual));
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, Some(activation));
            let layout = moved(grad.tensor.layout(), grad.start);
            let n = layout.num_elements();
            let mut dx = Vec::<E>::with_capacity(n);
            let out = SecondOutput::new(&mut dx.spare_capacity_mut()[..n]);
            let dz = overwrite::<E>(grad.tensor, grad.start, |at, block| {
                out.write(at, block, |dx, block| {
                    E::with_work(block, |dz| {
                        z.scale_by_slope(at, dz);
                        E::with_work(dx, |dx| {
                            dx.copy_from_slice(dz);
                            scale(planes, at, dx, &z.scale);
                        });
                    });
                });
            });
            // SAFETY: `overwrite` went over blocks that cover all n elements, and each was written.
            unsafe { dx.set_len(n) };
            (FlexTensor::new(Bytes::from_elems(dx), layout, E::dtype()), dz)
        })
    }

    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: Option<Pair>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], residual.into_option());
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let n = grad.tensor.layout().num_elements();
            let grad = &grad.elements::<E>()[..n];
            let sums = Sums::over_chunks(planes, n, |range, sums| {
                for (at, grad) in blocks(range.start, &grad[range]) {
                    let mut dz = [<E as Stored>::Work::ZERO; BLOCK];
                    let dz = &mut dz[..grad.len()];
                    E::with_read(grad, |grad| dz.copy_from_slice(grad));
                    z.scale_by_slope(at, dz);
                    z.with_x(at, dz.len(), |x| {
                        let sums = [&mut sums.first[..], &mut sums.second[..]];
                        gradient_sums(planes, at, x, dz, &z.mean, sums);
                    });
                }
            });
            sums.into_tensor::<E>()
        })
    }

    fn affine_activation_residual_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Pair,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], Some(residual));
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, Some(activation));
            let n = grad.tensor.layout().num_elements();
            // A chunk is worked on by one thread, block after block: its lock is always free.
            let sums: Vec<_> =
                (0..n.div_ceil(CHUNK)).map(|_| Mutex::new(Sums::new(planes))).collect();
            let dz = overwrite::<E>(grad.tensor, grad.start, |at, block| {
                let mut sums = sums[at / CHUNK].lock().expect("no thread panicked with it");
                let sums = &mut *sums;
                E::with_work(block, |dz| {
                    z.scale_by_slope(at, dz);
                    z.with_x(at, dz.len(), |x| {
                        let sums = [&mut sums.first[..], &mut sums.second[..]];
                        gradient_sums(planes, at, x, dz, &z.mean, sums);
                    });
                });
            });
            let sums = sums.into_iter().map(|sums| sums.into_inner().expect("as above"));
            (dz, Sums::total(planes, sums).into_tensor::<E>())
        })
    }
}

// --- Tensors as planes of channels ---

/// How the channels lie in a dense buffer: element i belongs to channel (i / inner) % channels.
/// `inner` is the number of pixels for NCHW and 1 for channels-last.
#[derive(Clone, Copy)]
struct Planes {
    channels: usize,
    inner: usize,
}

impl Planes {
    fn of(layout: &Layout) -> Option<Self> {
        let shape = layout.shape();
        let channels = shape[1];
        if layout.is_contiguous() {
            return Some(Self { channels, inner: shape[2..].iter().product() });
        }
        let axes: Vec<usize> = (0..shape.num_dims()).filter(|axis| *axis != 1).chain([1]).collect();
        layout.permute(&axes).is_contiguous().then_some(Self { channels, inner: 1 })
    }

    /// Calls `f(channel, range)` on the runs of one channel within a block.
    #[inline(always)]
    fn for_each_run(self, at: usize, len: usize, mut f: impl FnMut(usize, Range<usize>)) {
        let mut channel = at / self.inner % self.channels;
        let mut start = 0;
        let mut end = self.inner - at % self.inner;
        while start < len {
            f(channel, start..end.min(len));
            channel = if channel + 1 == self.channels { 0 } else { channel + 1 };
            (start, end) = (end, end + self.inner);
        }
    }

    /// For `inner` = 1: calls `f(channels, range)` on runs of channels that follow each other.
    #[inline(always)]
    fn for_each_pixel(self, at: usize, len: usize, mut f: impl FnMut(Range<usize>, Range<usize>)) {
        let mut channel = at % self.channels;
        let mut start = 0;
        while start < len {
            let run = (self.channels - channel).min(len - start);
            f(channel..channel + run, start..start + run);
            (channel, start) = (0, start + run);
        }
    }
}

/// A tensor whose elements fill one range of its buffer.
struct Dense {
    tensor: FlexTensor,
    start: usize,
}

impl Dense {
    fn elements<E: Element + bytemuck::Pod>(&self) -> &[E] {
        &self.tensor.storage::<E>()[self.start..]
    }
}

/// Tensors of one shape as dense buffers in the same order of elements. What is channels-last stays
/// so if all are.
fn aligned<const N: usize>(
    tensors: [FlexTensor; N],
    residual: Option<FlexTensor>,
) -> (Planes, [Dense; N], Option<Dense>) {
    let first = &tensors[0];
    for other in tensors.iter().chain(&residual) {
        let (other_layout, layout) = (other.layout(), first.layout());
        assert_eq!(
            other_layout.shape(),
            layout.shape(),
            "x, residual and gradient differ in shape"
        );
        assert_eq!(other.dtype(), first.dtype(), "x, residual and gradient differ in type");
    }
    let planes = Planes::of(first.layout()).filter(|planes| {
        tensors.iter().chain(&residual).all(|other| {
            Planes::of(other.layout()).is_some_and(|other| other.inner == planes.inner)
        })
    });
    let dense = |tensor: FlexTensor| match planes {
        Some(_) => Dense { start: tensor.layout().start_offset(), tensor },
        None => Dense { tensor: tensor.to_contiguous(), start: 0 },
    };
    let shape = first.layout().shape().clone();
    let planes_or_contiguous =
        planes.unwrap_or_else(|| Planes { channels: shape[1], inner: shape[2..].iter().product() });
    (planes_or_contiguous, tensors.map(dense), residual.map(dense))
}

/// A row of a tensor of channel vectors.
fn vector<E: Stored>(vectors: &FlexTensor, row: usize) -> Vec<E::Work> {
    let vectors = vectors.to_contiguous();
    let channels = vectors.layout().shape()[1];
    let start = vectors.layout().start_offset() + row * channels;
    vectors.storage::<E::Work>()[start..start + channels].to_vec()
}

/// z = (x - m) s + b (+ r), block by block, and what follows it.
struct Preactivation<'a, E: Stored> {
    planes: Planes,
    x: &'a [E],
    residual: Option<&'a [E]>,
    mean: Vec<E::Work>,
    scale: Vec<E::Work>,
    shift: Vec<E::Work>,
    activation: ActivationLoops<E::Work>,
}

impl<'a, E: Stored> Preactivation<'a, E> {
    /// Without an x, only [`apply_in_place`](Self::apply_in_place) may be called.
    fn new(
        planes: Planes,
        x: Option<&'a Dense>,
        affine: &FlexTensor,
        residual: &'a Option<Dense>,
        activation: Option<Pair>,
    ) -> Self {
        let [mean, scale, shift] = [0, 1, 2].map(|row| vector::<E>(affine, row));
        let x = x.map_or(&[][..], Dense::elements);
        let residual = residual.as_ref().map(Dense::elements);
        let activation = ActivationLoops::new(activation);
        Self { planes, x, residual, mean, scale, shift, activation }
    }

    fn with_x<R>(&self, at: usize, len: usize, f: impl FnOnce(&[E::Work]) -> R) -> R {
        E::with_read(&self.x[at..at + len], f)
    }

    /// x becomes z.
    fn apply_in_place(&self, at: usize, x: &mut [E::Work]) {
        affine(self.planes, at, x, [&self.mean, &self.scale, &self.shift]);
        if let Some(residual) = self.residual {
            E::with_read(&residual[at..at + x.len()], |residual| add(x, residual));
        }
    }

    /// The gradient for y becomes the gradient for z.
    fn scale_by_slope(&self, at: usize, grad: &mut [E::Work]) {
        if self.activation.is_identity() {
            return;
        }
        let mut z = [E::Work::ZERO; BLOCK];
        let z = &mut z[..grad.len()];
        self.with_x(at, z.len(), |x| z.copy_from_slice(x));
        self.apply_in_place(at, z);
        self.activation.scale_by_slope(z, grad);
    }
}

/// The loops of an activation, looked up once.
struct ActivationLoops<W> {
    value: Option<CurveLoops<W>>,
    slope: Option<CurveLoops<W>>,
}

/// The loops of a curve and its parameter.
struct CurveLoops<W> {
    values: fn(&mut [W], f64),
    scale_by_slope: fn(&[W], &mut [W], f64),
    a: f64,
}

impl<W: Work> CurveLoops<W> {
    fn of(curve: Curve) -> Self {
        struct Lookup<W>(PhantomData<W>);
        impl<W: Work> Visitor for Lookup<W> {
            type Output = CurveLoops<W>;
            fn visit<F: Formula>(self, a: f64) -> CurveLoops<W> {
                CurveLoops { values: W::values::<F>, scale_by_slope: W::scale_by_slope::<F>, a }
            }
        }
        curve.visit(Lookup(PhantomData))
    }
}

impl<W: Work> ActivationLoops<W> {
    fn new(activation: Option<Pair>) -> Self {
        Self {
            value: activation.map(|pair| CurveLoops::of(pair.value)),
            slope: activation.map(|pair| CurveLoops::of(pair.slope())),
        }
    }

    fn is_identity(&self) -> bool {
        self.slope.is_none()
    }

    fn values(&self, z: &mut [W]) {
        if let Some(curve) = &self.value {
            (curve.values)(z, curve.a);
        }
    }

    fn scale_by_slope(&self, z: &[W], grad: &mut [W]) {
        if let Some(curve) = &self.slope {
            (curve.scale_by_slope)(z, grad, curve.a);
        }
    }
}

// --- Reductions ---

/// Two sums for each channel.
struct Sums {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Sums {
    fn new(planes: Planes) -> Self {
        Self { first: vec![0.0; planes.channels], second: vec![0.0; planes.channels] }
    }

    /// Sums over chunks of [`CHUNK`] elements, added up in order, so that the result does not depend
    /// on the number of threads.
    fn over_chunks(planes: Planes, n: usize, f: impl Fn(Range<usize>, &mut Sums) + Sync) -> Self {
        let over_chunk = |chunk| {
            let mut sums = Sums::new(planes);
            f(chunk * CHUNK..n.min((chunk + 1) * CHUNK), &mut sums);
            sums
        };
        let chunks = 0..n.div_ceil(CHUNK);
        if n <= SERIAL {
            return Self::total(planes, chunks.map(over_chunk));
        }
        let all: Vec<Sums> = chunks.into_par_iter().map(over_chunk).collect();
        Self::total(planes, all)
    }

    fn total(planes: Planes, all: impl IntoIterator<Item = Sums>) -> Self {
        let mut total = Sums::new(planes);
        for sums in all {
            total.first.iter_mut().zip(sums.first).for_each(|(total, sum)| *total += sum);
            total.second.iter_mut().zip(sums.second).for_each(|(total, sum)| *total += sum);
        }
        total
    }

    /// `[2, channels]`
    fn into_tensor<E: Stored>(self) -> FlexTensor {
        let shape = [2, self.first.len()];
        let rows: Vec<E::Work> =
            self.first.into_iter().chain(self.second).map(|sum| sum.elem()).collect();
        FlexTensor::new(Bytes::from_elems(rows), Layout::contiguous(shape.into()), E::Work::dtype())
    }
}

/// Mean and variance in one pass, in f64: the sums of x - k and of its square, where k is the
/// channel's first element. As k is one of the elements, (mean - k)^2 is at most n times the
/// variance, so the difference of the sums loses no more than a factor n of f64's 2^53.
fn statistics<E: Stored>(planes: Planes, x: &[E]) -> FlexTensor {
    let mut first = vec![E::Work::ZERO; planes.channels];
    for (channel, first) in first.iter_mut().enumerate() {
        if let Some(x) = x.get(channel * planes.inner) {
            *first = E::with_read(core::slice::from_ref(x), |x| x[0]);
        }
    }
    let mut sums = Sums::over_chunks(planes, x.len(), |range, sums| {
        for (at, block) in blocks(range.start, &x[range]) {
            E::with_read(block, |x| {
                moments(planes, at, x, &first, &mut sums.first, &mut sums.second);
            });
        }
    });
    let n = (x.len() / planes.channels.max(1)) as f64;
    for ((sum, square), first) in sums.first.iter_mut().zip(&mut sums.second).zip(first) {
        let offset = *sum / n;
        let variance = *square / n - offset * offset;
        *sum = first.into() + offset;
        // Rounding may leave a constant channel just below zero. Not f64::max: it drops NaN.
        *square = if variance < 0.0 { 0.0 } else { variance };
    }
    sums.into_tensor::<E>()
}

/// Blocks of at most [`BLOCK`] elements, with their positions.
fn blocks<E>(start: usize, all: &[E]) -> impl Iterator<Item = (usize, &[E])> {
    all.chunks(BLOCK).enumerate().map(move |(i, block)| (start + i * BLOCK, block))
}

/// A second output, in the blocks that [`overwrite`] goes over.
struct SecondOutput<'a, E>(Vec<Mutex<&'a mut [MaybeUninit<E>]>>);

impl<'a, E: Stored> SecondOutput<'a, E> {
    fn new(out: &'a mut [MaybeUninit<E>]) -> Self {
        Self(out.chunks_mut(CHUNK).map(Mutex::new).collect())
    }

    /// Fills a block with a copy of `block` and hands both to `f` for overwriting. A chunk is worked
    /// on by one thread, so its lock is always free.
    fn write(&self, at: usize, block: &mut [E], f: impl FnOnce(&mut [E], &mut [E])) {
        let mut chunk = self.0[at / CHUNK].lock().expect("no thread panicked with it");
        let start = at % CHUNK;
        f(chunk[start..start + block.len()].write_copy_of_slice(block), block);
    }
}

// --- Number types and their loops ---

/// A number type of arithmetic.
pub(in crate::backend) trait Number:
    Element
    + bytemuck::Pod
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
    + Into<f64>
{
    const ZERO: Self;
}

impl Number for f32 {
    const ZERO: Self = 0.0;
}

impl Number for f64 {
    const ZERO: Self = 0.0;
}

/// Sums over a run are kept in so many lanes: one would chain every addition to the one before it.
const LANES: usize = 16;

/// The loops, to be compiled once for each instruction set. They multiply and add in two steps, so
/// all of them give the same bits.
mod loops {
    use super::{LANES, Number, Planes};

    /// x = (x - m) s + b
    #[inline(always)]
    pub(super) fn affine<W: Number>(planes: Planes, at: usize, x: &mut [W], vectors: [&[W]; 3]) {
        let [mean, scale, shift] = vectors;
        if planes.inner == 1 {
            planes.for_each_pixel(at, x.len(), |c, run| {
                let vectors = mean[c.clone()].iter().zip(&scale[c.clone()]).zip(&shift[c]);
                for (x, ((m, s), b)) in x[run].iter_mut().zip(vectors) {
                    *x = (*x - *m) * *s + *b;
                }
            });
        } else {
            planes.for_each_run(at, x.len(), |c, run| {
                let (m, s, b) = (mean[c], scale[c], shift[c]);
                x[run].iter_mut().for_each(|x| *x = (*x - m) * s + b);
            });
        }
    }

    /// x = x + r
    #[inline(always)]
    pub(super) fn add<W: Number>(x: &mut [W], residual: &[W]) {
        x.iter_mut().zip(residual).for_each(|(x, r)| *x += *r);
    }

    /// dz = s dz
    #[inline(always)]
    pub(super) fn scale<W: Number>(planes: Planes, at: usize, dz: &mut [W], scale: &[W]) {
        if planes.inner == 1 {
            planes.for_each_pixel(at, dz.len(), |c, run| {
                dz[run].iter_mut().zip(&scale[c]).for_each(|(dz, s)| *dz = *dz * *s);
            });
        } else {
            planes.for_each_run(at, dz.len(), |c, run| {
                let s = scale[c];
                dz[run].iter_mut().for_each(|dz| *dz = *dz * s);
            });
        }
    }

    /// dz = s dz - d - e (x - m), with the vectors m, s, d and e.
    #[inline(always)]
    pub(super) fn input_gradient<W: Number>(
        planes: Planes,
        at: usize,
        x: &[W],
        dz: &mut [W],
        vectors: [&[W]; 4],
    ) {
        let [mean, scale, constant, linear] = vectors;
        if planes.inner == 1 {
            planes.for_each_pixel(at, dz.len(), |c, run| {
                let moving = mean[c.clone()].iter().zip(&linear[c.clone()]);
                let vectors = moving.zip(scale[c.clone()].iter().zip(&constant[c]));
                let elements = dz[run.clone()].iter_mut().zip(&x[run]);
                for ((dz, x), ((m, e), (s, d))) in elements.zip(vectors) {
                    *dz = *dz * *s - *d - (*x - *m) * *e;
                }
            });
        } else {
            planes.for_each_run(at, dz.len(), |c, run| {
                let (m, s, d, e) = (mean[c], scale[c], constant[c], linear[c]);
                for (dz, x) in dz[run.clone()].iter_mut().zip(&x[run]) {
                    *dz = *dz * s - d - (*x - m) * e;
                }
            });
        }
    }

    /// Adds dz and dz (x - m) to the sums of their channels: lanes over a run, then f64.
    #[inline(always)]
    pub(super) fn gradient_sums<W: Number>(
        planes: Planes,
        at: usize,
        x: &[W],
        dz: &[W],
        mean: &[W],
        [first, second]: [&mut [f64]; 2],
    ) {
        if planes.inner == 1 {
            planes.for_each_pixel(at, dz.len(), |c, run| {
                let sums = first[c.clone()].iter_mut().zip(&mut second[c.clone()]);
                let elements = x[run.clone()].iter().zip(&dz[run]).zip(&mean[c]);
                for ((first, second), ((x, dz), m)) in sums.zip(elements) {
                    *first += (*dz).into();
                    *second += (*dz * (*x - *m)).into();
                }
            });
        } else {
            planes.for_each_run(at, dz.len(), |c, run| {
                let m = mean[c];
                let (x, dz) = (&x[run.clone()], &dz[run]);
                let mut sums = [[W::ZERO; LANES]; 2];
                let (x_body, x_rest) = x.as_chunks::<LANES>();
                let (dz_body, dz_rest) = dz.as_chunks::<LANES>();
                for (x, dz) in x_body.iter().zip(dz_body) {
                    for lane in 0..LANES {
                        sums[0][lane] += dz[lane];
                        sums[1][lane] += dz[lane] * (x[lane] - m);
                    }
                }
                for (lane, (x, dz)) in x_rest.iter().zip(dz_rest).enumerate() {
                    sums[0][lane] += *dz;
                    sums[1][lane] += *dz * (*x - m);
                }
                first[c] += total(sums[0]);
                second[c] += total(sums[1]);
            });
        }
    }

    /// Adds x - k and its square to the sums of their channels, all in f64.
    #[inline(always)]
    pub(super) fn moments<W: Number>(
        planes: Planes,
        at: usize,
        x: &[W],
        origin: &[W],
        first: &mut [f64],
        second: &mut [f64],
    ) {
        let difference = |x: W, k: W| -> f64 {
            let (x, k): (f64, f64) = (x.into(), k.into());
            x - k
        };
        if planes.inner == 1 {
            planes.for_each_pixel(at, x.len(), |c, run| {
                let sums = first[c.clone()].iter_mut().zip(&mut second[c.clone()]);
                for ((first, second), (x, k)) in sums.zip(x[run].iter().zip(&origin[c])) {
                    let d = difference(*x, *k);
                    *first += d;
                    *second += d * d;
                }
            });
        } else {
            planes.for_each_run(at, x.len(), |c, run| {
                let k = origin[c];
                let mut sums = [[0.0; LANES]; 2];
                let (body, rest) = x[run].as_chunks::<LANES>();
                for x in body {
                    for lane in 0..LANES {
                        let d = difference(x[lane], k);
                        sums[0][lane] += d;
                        sums[1][lane] += d * d;
                    }
                }
                for (lane, x) in rest.iter().enumerate() {
                    let d = difference(*x, k);
                    sums[0][lane] += d;
                    sums[1][lane] += d * d;
                }
                first[c] += total(sums[0]);
                second[c] += total(sums[1]);
            });
        }
    }

    #[inline(always)]
    fn total<W: Number>(lanes: [W; LANES]) -> f64 {
        lanes.into_iter().map(Into::into).sum()
    }
}

macro_rules! for_each_instruction_set {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            fn $name<W: Number>($($argument: $type),*) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw")]
                    fn avx512<W: Number>($($argument: $type),*) {
                        loops::$name($($argument),*);
                    }
                    #[target_feature(enable = "avx2")]
                    fn avx2<W: Number>($($argument: $type),*) {
                        loops::$name($($argument),*);
                    }
                    if std::is_x86_feature_detected!("avx512f")
                        && std::is_x86_feature_detected!("avx512dq")
                        && std::is_x86_feature_detected!("avx512vl")
                        && std::is_x86_feature_detected!("avx512bw")
                    {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx512($($argument),*) };
                    }
                    if std::is_x86_feature_detected!("avx2") {
                        // SAFETY: the machine has these instructions.
                        return unsafe { avx2($($argument),*) };
                    }
                }
                loops::$name($($argument),*);
            }
        )*
    };
}

for_each_instruction_set! {
    affine(planes: Planes, at: usize, x: &mut [W], vectors: [&[W]; 3]);
    add(x: &mut [W], residual: &[W]);
    scale(planes: Planes, at: usize, dz: &mut [W], scale: &[W]);
    input_gradient(planes: Planes, at: usize, x: &[W], dz: &mut [W], vectors: [&[W]; 4]);
    gradient_sums(
        planes: Planes, at: usize, x: &[W], dz: &[W], mean: &[W], sums: [&mut [f64]; 2]
    );
    moments(
        planes: Planes, at: usize, x: &[W], origin: &[W], first: &mut [f64], second: &mut [f64]
    );
}
