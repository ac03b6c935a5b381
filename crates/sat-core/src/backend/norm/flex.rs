//! Fused loops for Flex, Burn's CPU backend.
//!
//! Every operation is one pass over memory, in blocks of [`BLOCK`] elements. Where channels are long runs,
//! normalising and activating are one loop, so that the arithmetic runs while memory is waited for.
//! Elsewhere, with a residual and for the sums of learned parameters, the preactivation of a block is
//! computed first, into a buffer in the first-level cache; what sums or scales a gradient is a loop after
//! it.

use super::{
    super::{
        block::{BLOCK, Block, CHUNK, SERIAL, each},
        elementwise::Elementwise,
        flex::{Dense, by_dtype, moved, rewrite, rewrite_with},
        number::{Number, Stored, Work, for_each_instruction_set},
        threads::share,
    },
    NormActivation, NormBackend, Optional,
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
use core::{marker::PhantomData, mem::MaybeUninit, ops::Range};
use std::sync::Mutex;

impl NormBackend for Flex {
    fn affine_activation(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x], residual) = aligned([x], residual.into_option());
            let z = Preactivation::<E>::new(planes, None, &affine, &residual, activation);
            rewrite::<E>(x, |at, x| z.values(at, x))
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
        activation: NormActivation<Self>,
        correction: Optional<Self>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], residual.into_option());
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let correction = correction.into_option();
            let correction = correction.map(|rows| [0, 1].map(|row| vector::<E>(&rows, row)));
            rewrite::<E>(grad, |at, dx| {
                z.gradient(at, dx);
                match &correction {
                    None => scale(planes, at, dx, &z.scale),
                    Some([constant, linear]) => E::with_read(z.x_at(at, dx.len()), |x| {
                        let vectors = [&z.mean, &z.scale, constant, linear];
                        input_gradient(planes, at, x, dx.numbers(), vectors.map(Vec::as_slice));
                    }),
                }
            })
        })
    }

    fn affine_activation_backward_both(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], Some(residual));
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let layout = moved(grad.tensor.layout(), grad.start);
            let n = layout.num_elements();
            let mut dx = Vec::<E>::with_capacity(n);
            let out = SecondOutput::new(&mut dx.spare_capacity_mut()[..n]);
            let dz = rewrite::<E>(grad, |at, dz| {
                z.gradient(at, dz);
                out.write(at, dz.numbers(), |dx| scale(planes, at, dx, &z.scale));
            });
            // SAFETY: `rewrite` went over blocks that cover all n elements, and each was written.
            unsafe { dx.set_len(n) };
            (FlexTensor::new(Bytes::from_elems(dx), layout, E::dtype()), dz)
        })
    }

    fn affine_activation_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], residual.into_option());
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let n = grad.tensor.layout().num_elements();
            let grad = &grad.elements::<E>()[..n];
            let sums = Sums::over_chunks(planes, z.activation.learned, n, |range, sums| {
                let mut dz = [MaybeUninit::uninit(); BLOCK];
                for (at, grad) in blocks(range.start, &grad[range]) {
                    E::with_read(grad, |grad| {
                        let mut dz = Block::beside(grad, &mut dz[..grad.len()]);
                        z.gradient_and_sums(at, &mut dz, sums);
                    });
                }
            });
            sums.into_tensor::<E>()
        })
    }

    fn affine_activation_gradient_and_sums(
        x: FloatTensor<Self>,
        affine: FloatTensor<Self>,
        residual: Optional<Self>,
        grad: FloatTensor<Self>,
        activation: NormActivation<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        by_dtype!(x.dtype(), E => {
            let (planes, [x, grad], residual) = aligned([x, grad], residual.into_option());
            let z = Preactivation::<E>::new(planes, Some(&x), &affine, &residual, activation);
            let learned = z.activation.learned;
            let start = || Sums::new(planes, learned);
            let (dz, sums) = rewrite_with::<E, _>(grad, start, |sums, at, dz| {
                z.gradient_and_sums(at, dz, sums);
            });
            (dz, Sums::total(planes, learned, sums).into_tensor::<E>())
        })
    }
}

// --- Tensors as planes of channels ---

/// How the channels lie in a dense buffer: element i belongs to channel (i / inner) % channels.
/// `inner` is the number of pixels for NCHW and 1 for channels-last.
#[derive(Clone, Copy)]
pub(in crate::backend) struct Planes {
    pub(in crate::backend) channels: usize,
    pub(in crate::backend) inner: usize,
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

    /// The runs of one channel within a block: (channel, range).
    #[inline(always)]
    pub(in crate::backend) fn runs(self, at: usize, len: usize) -> Runs {
        let channel = at / self.inner % self.channels;
        Runs { planes: self, channel, start: 0, end: self.inner - at % self.inner, len }
    }

    /// For `inner` = 1: the runs of channels that follow each other, (channels, range).
    #[inline(always)]
    fn pixels(self, at: usize, len: usize) -> Pixels {
        Pixels { planes: self, channel: at % self.channels, start: 0, len }
    }
}

pub(in crate::backend) struct Runs {
    planes: Planes,
    channel: usize,
    start: usize,
    end: usize,
    len: usize,
}

impl Iterator for Runs {
    type Item = (usize, Range<usize>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.start >= self.len {
            return None;
        }
        let run = (self.channel, self.start..self.end.min(self.len));
        self.channel = if self.channel + 1 == self.planes.channels { 0 } else { self.channel + 1 };
        (self.start, self.end) = (self.end, self.end + self.planes.inner);
        Some(run)
    }
}

struct Pixels {
    planes: Planes,
    channel: usize,
    start: usize,
    len: usize,
}

impl Iterator for Pixels {
    type Item = (Range<usize>, Range<usize>);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.start >= self.len {
            return None;
        }
        let run = (self.planes.channels - self.channel).min(self.len - self.start);
        let (channel, start) = (self.channel, self.start);
        (self.channel, self.start) = (0, start + run);
        Some((channel..channel + run, start..start + run))
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

/// (x - m) s + b of a block at a position.
#[derive(Clone, Copy)]
struct Affine<'a, W> {
    planes: Planes,
    at: usize,
    mean: &'a [W],
    scale: &'a [W],
    shift: &'a [W],
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
    /// Without an x, only [`values`](Self::values) may be called.
    fn new(
        planes: Planes,
        x: Option<&'a Dense>,
        affine: &FlexTensor,
        residual: &'a Option<Dense>,
        activation: NormActivation<Flex>,
    ) -> Self {
        let [mean, scale, shift] = [0, 1, 2].map(|row| vector::<E>(affine, row));
        let x = x.map_or(&[][..], Dense::elements);
        let residual = residual.as_ref().map(Dense::elements);
        let activation = ActivationLoops::new(activation);
        Self { planes, x, residual, mean, scale, shift, activation }
    }

    fn x_at(&self, at: usize, len: usize) -> &[E] {
        &self.x[at..at + len]
    }

    /// z of x.
    fn compute(&self, at: usize, x: &[E::Work], z: &mut [E::Work]) {
        match self.residual {
            None => affine(self.affine_at(at), x, None, z),
            Some(residual) => E::with_read(&residual[at..at + x.len()], |residual| {
                affine(self.affine_at(at), x, Some(residual), z);
            }),
        }
    }

    fn affine_at(&self, at: usize) -> Affine<'_, E::Work> {
        let [mean, scale, shift] = [&self.mean, &self.scale, &self.shift].map(Vec::as_slice);
        Affine { planes: self.planes, at, mean, scale, shift }
    }

    /// Whether z is (x - m) s + b with the same numbers along runs of at least [`LONG_RUN`].
    fn is_affine_in_runs(&self) -> bool {
        self.residual.is_none() && self.planes.inner >= LONG_RUN
    }

    /// A block of x becomes f(z).
    fn values(&self, at: usize, x: &mut Block<'_, E::Work>) {
        match &self.activation.value {
            Some(curve) if self.is_affine_in_runs() => {
                (curve.values_of_affine)(self.affine_at(at), x, curve.parameters);
            }
            value => {
                let mut z = buffer::<E>();
                let z = &mut z[..x.len()];
                self.compute(at, x.read(), z);
                match value {
                    Some(curve) => (curve.values)(z, x, curve.parameters),
                    None => each!(x, _, z in z => z),
                }
            }
        }
    }

    /// A block of the gradient for y becomes that for z.
    fn gradient(&self, at: usize, grad: &mut Block<'_, E::Work>) {
        let Some(curve) = &self.activation.slope else { return };
        E::with_read(self.x_at(at, grad.len()), |x| {
            if self.is_affine_in_runs() {
                (curve.gradient_of_affine)(self.affine_at(at), x, grad, curve.parameters);
            } else {
                let mut z = buffer::<E>();
                let z = &mut z[..x.len()];
                self.compute(at, x, z);
                (curve.gradient)(z, grad, curve.parameters);
            }
        });
    }

    /// The same, added to the sums with dz (x - m) and, if parameters are learned, their terms.
    fn gradient_and_sums(&self, at: usize, grad: &mut Block<'_, E::Work>, sums: &mut Sums) {
        match &self.activation.slope {
            Some(curve) if self.activation.learned > 0 => {
                let mut z = buffer::<E>();
                let z = &mut z[..grad.len()];
                E::with_read(self.x_at(at, z.len()), |x| self.compute(at, x, z));
                // In one loop, what the two have in common is computed once.
                let both = curve.gradient_and_parameter_sums;
                let terms = both(z, grad.numbers(), curve.parameters);
                sums.parameters.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
            }
            _ => self.gradient(at, grad),
        }
        let sums = [&mut sums.first[..], &mut sums.second[..]];
        let dz = grad.read();
        E::with_read(self.x_at(at, dz.len()), |x| {
            gradient_sums(self.planes, at, x, dz, &self.mean, sums);
        });
    }
}

/// The shortest run of one channel that is worth a loop of its own for normalising and activating: the end of
/// a run is computed one by one.
const LONG_RUN: usize = 256;

/// The loops of an activation, looked up once.
struct ActivationLoops<W> {
    value: Option<CurveLoops<W>>,
    slope: Option<CurveLoops<W>>,
    /// The rows of sums for learned parameters: 0 or 2.
    learned: usize,
}

/// The numbers of z = (x - m) s + b, x, grad, which becomes grad f'(z), and the parameters.
type GradientOfAffine<W> = fn(Affine<'_, W>, &[W], &mut Block<'_, W>, [f64; 2]);

/// z, grad, which becomes grad f'(z), and the parameters; the sums of grad df/da and grad df/db. For learned
/// curves alone, whose gradient is that of the value's own curve.
type GradientAndSums<W> = fn(&[W], &mut [W], [f64; 2]) -> [f64; 2];

/// The loops of a curve and its parameters.
struct CurveLoops<W> {
    values: fn(&[W], &mut Block<'_, W>, [f64; 2]),
    values_of_affine: fn(Affine<'_, W>, &mut Block<'_, W>, [f64; 2]),
    gradient: fn(&[W], &mut Block<'_, W>, [f64; 2]),
    gradient_of_affine: GradientOfAffine<W>,
    gradient_and_parameter_sums: GradientAndSums<W>,
    parameters: [f64; 2],
}

impl<W: Work> CurveLoops<W> {
    /// With the curve's own parameters, or with others.
    fn of(curve: Curve, learned: Option<[f64; 2]>) -> Self {
        struct Lookup<W>(Option<[f64; 2]>, PhantomData<W>);
        impl<W: Work> Visitor for Lookup<W> {
            type Output = CurveLoops<W>;
            fn visit<F: Formula>(self, fixed: [f64; 2]) -> CurveLoops<W> {
                CurveLoops {
                    values: values::<W, F>,
                    values_of_affine: values_of_affine::<W, F>,
                    gradient: W::scale_by_slope::<F>,
                    gradient_of_affine: gradient_of_affine::<W, F>,
                    gradient_and_parameter_sums: gradient_and_parameter_sums::<W, F>,
                    parameters: self.0.unwrap_or(fixed),
                }
            }
        }
        curve.visit(Lookup(learned, PhantomData))
    }
}

impl<W: Work> ActivationLoops<W> {
    fn new(activation: NormActivation<Flex>) -> Self {
        let Some((pair, parameters)) = activation.into_parts() else {
            return Self { value: None, slope: None, learned: 0 };
        };
        let parameters = parameters.as_ref().map(Elementwise::numbers);
        Self {
            value: Some(CurveLoops::of(pair.value, parameters)),
            slope: Some(CurveLoops::of(pair.slope(), parameters)),
            learned: parameters.map_or(0, |parameters| parameters.len()),
        }
    }
}

// --- Blocks ---

fn buffer<E: Stored>() -> [E::Work; BLOCK] {
    [<E as Stored>::Work::ZERO; BLOCK]
}

/// A second output, in the blocks that [`rewrite`] goes over.
struct SecondOutput<'a, E>(Vec<Mutex<&'a mut [MaybeUninit<E>]>>);

impl<'a, E: Stored> SecondOutput<'a, E> {
    fn new(out: &'a mut [MaybeUninit<E>]) -> Self {
        Self(out.chunks_mut(CHUNK).map(Mutex::new).collect())
    }

    /// Writes a block that `f` makes of the numbers.
    fn write(&self, at: usize, old: &[E::Work], f: impl FnOnce(&mut Block<'_, E::Work>)) {
        // A chunk is worked on by one thread, so its lock is always free.
        let mut chunk = self.0[at / CHUNK].lock().expect("no thread panicked with it");
        let start = at % CHUNK;
        E::with_fresh(old, &mut chunk[start..start + old.len()], f);
    }
}

// --- Reductions ---

/// Two sums for each channel, and those for learned parameters.
struct Sums {
    first: Vec<f64>,
    second: Vec<f64>,
    parameters: Vec<f64>,
}

impl Sums {
    fn new(planes: Planes, learned: usize) -> Self {
        let zeros = || vec![0.0; planes.channels];
        Self { first: zeros(), second: zeros(), parameters: vec![0.0; learned] }
    }

    /// Sums over chunks of [`CHUNK`] elements, added up in order, so that the result does not depend
    /// on the number of threads.
    fn over_chunks(
        planes: Planes,
        learned: usize,
        n: usize,
        f: impl Fn(Range<usize>, &mut Sums) + Sync,
    ) -> Self {
        let over_chunk = |chunk| {
            let mut sums = Sums::new(planes, learned);
            f(chunk * CHUNK..n.min((chunk + 1) * CHUNK), &mut sums);
            sums
        };
        let chunks = 0..n.div_ceil(CHUNK);
        if n <= SERIAL {
            return Self::total(planes, learned, chunks.map(over_chunk));
        }
        Self::total(planes, learned, share(chunks, over_chunk))
    }

    fn total(planes: Planes, learned: usize, all: impl IntoIterator<Item = Sums>) -> Self {
        let mut total = Sums::new(planes, learned);
        let add = |total: &mut [f64], sums: Vec<f64>| {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        };
        for sums in all {
            add(&mut total.first, sums.first);
            add(&mut total.second, sums.second);
            add(&mut total.parameters, sums.parameters);
        }
        total
    }

    /// The two rows, and one for each learned parameter, whose sum stands at the first channel.
    fn into_tensor<E: Stored>(self) -> FlexTensor {
        let channels = self.first.len();
        let shape = [2 + self.parameters.len(), channels];
        let mut rows: Vec<E::Work> =
            self.first.into_iter().chain(self.second).map(|sum| sum.elem()).collect();
        for sum in self.parameters {
            let at = rows.len();
            rows.resize(at + channels, E::Work::ZERO);
            rows[at] = sum.elem();
        }
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
    let mut sums = Sums::over_chunks(planes, 0, x.len(), |range, sums| {
        for (at, block) in blocks(range.start, &x[range]) {
            E::with_read(block, |x| {
                let sums = [&mut sums.first[..], &mut sums.second[..]];
                moments(planes, at, x, &first, sums);
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

// --- Loops ---

/// Sums over a run are kept in so many lanes: one would chain every addition to the one before it.
pub(in crate::backend) const LANES: usize = 16;

/// What the lanes sum up to.
#[inline(always)]
pub(in crate::backend) fn total<W: Number>(lanes: [W; LANES]) -> f64 {
    let mut sum = 0.0;
    for lane in lanes {
        sum += lane.into();
    }
    sum
}

/// The loops, to be compiled once for each instruction set. Outside of the curves they multiply and
/// add in two steps, so all of them give the same bits.
mod loops {
    use super::{Affine, Block, Formula, LANES, Number, Planes, each, total};

    /// z = (x - m) s + b (+ r)
    #[inline(always)]
    pub(super) fn affine<W: Number, const FMA: bool>(
        Affine { planes, at, mean, scale, shift }: Affine<'_, W>,
        x: &[W],
        residual: Option<&[W]>,
        z: &mut [W],
    ) {
        if planes.inner == 1 {
            for (c, run) in planes.pixels(at, x.len()) {
                let vectors = mean[c.clone()].iter().zip(&scale[c.clone()]).zip(&shift[c]);
                let elements = z[run.clone()].iter_mut().zip(&x[run.clone()]);
                match residual {
                    None => {
                        for ((z, x), ((m, s), b)) in elements.zip(vectors) {
                            *z = (*x - *m) * *s + *b;
                        }
                    }
                    Some(r) => {
                        for (((z, x), r), ((m, s), b)) in elements.zip(&r[run]).zip(vectors) {
                            *z = (*x - *m) * *s + *b + *r;
                        }
                    }
                }
            }
        } else {
            for (c, run) in planes.runs(at, x.len()) {
                let (m, s, b) = (mean[c], scale[c], shift[c]);
                let elements = z[run.clone()].iter_mut().zip(&x[run.clone()]);
                match residual {
                    None => {
                        for (z, x) in elements {
                            *z = (*x - m) * s + b;
                        }
                    }
                    Some(r) => {
                        for ((z, x), r) in elements.zip(&r[run]) {
                            *z = (*x - m) * s + b + *r;
                        }
                    }
                }
            }
        }
    }

    /// f(z), whatever the block held.
    #[inline(always)]
    pub(super) fn values<W: Number, F: Formula, const FMA: bool>(
        z: &[W],
        y: &mut Block<'_, W>,
        parameters: [f64; 2],
    ) {
        each!(y, _, z in z => W::value::<F, FMA>(z, parameters));
    }

    /// x = f(z) with z = (x - m) s + b, for channels in runs
    #[inline(always)]
    pub(super) fn values_of_affine<W: Number, F: Formula, const FMA: bool>(
        Affine { planes, at, mean, scale, shift }: Affine<'_, W>,
        x: &mut Block<'_, W>,
        parameters: [f64; 2],
    ) {
        for (c, run) in planes.runs(at, x.len()) {
            let (m, s, b) = (mean[c], scale[c], shift[c]);
            each!(&mut x.part(run), x => W::value::<F, FMA>((x - m) * s + b, parameters));
        }
        // SAFETY: the runs cover the block.
        unsafe { x.written() };
    }

    /// grad = grad f'(z) with z = (x - m) s + b, for channels in runs
    #[inline(always)]
    pub(super) fn gradient_of_affine<W: Number, F: Formula, const FMA: bool>(
        Affine { planes, at, mean, scale, shift }: Affine<'_, W>,
        x: &[W],
        grad: &mut Block<'_, W>,
        parameters: [f64; 2],
    ) {
        for (c, run) in planes.runs(at, grad.len()) {
            let (m, s, b) = (mean[c], scale[c], shift[c]);
            let (x, mut grad) = (&x[run.clone()], grad.part(run));
            each!(&mut grad, grad, x in x => {
                grad * W::slope::<F, FMA>((x - m) * s + b, parameters)
            });
        }
        // SAFETY: the runs cover the block.
        unsafe { grad.written() };
    }

    /// grad = grad f'(z), and the sums of grad df/da and grad df/db: lanes over a block, then f64.
    #[inline(always)]
    pub(super) fn gradient_and_parameter_sums<W: Number, F: Formula, const FMA: bool>(
        z: &[W],
        grad: &mut [W],
        parameters: [f64; 2],
    ) -> [f64; 2] {
        let mut sums = [[W::ZERO; LANES]; 2];
        let (z_body, z_rest) = z.as_chunks::<LANES>();
        let (grad_body, grad_rest) = grad.as_chunks_mut::<LANES>();
        for (z, grad) in z_body.iter().zip(grad_body) {
            for i in 0..LANES {
                let slopes = W::parameter_slopes::<F, FMA>(z[i], parameters);
                sums[0][i] += grad[i] * slopes[0];
                sums[1][i] += grad[i] * slopes[1];
                grad[i] = grad[i] * W::slope::<F, FMA>(z[i], parameters);
            }
        }
        for (i, (z, grad)) in z_rest.iter().zip(grad_rest).enumerate() {
            let slopes = W::parameter_slopes::<F, FMA>(*z, parameters);
            sums[0][i] += *grad * slopes[0];
            sums[1][i] += *grad * slopes[1];
            *grad = *grad * W::slope::<F, FMA>(*z, parameters);
        }
        sums.map(total)
    }

    /// dz = s dz
    #[inline(always)]
    pub(super) fn scale<W: Number, const FMA: bool>(
        planes: Planes,
        at: usize,
        dz: &mut Block<'_, W>,
        scale: &[W],
    ) {
        if planes.inner == 1 {
            for (c, run) in planes.pixels(at, dz.len()) {
                each!(&mut dz.part(run), dz, s in &scale[c] => dz * s);
            }
        } else {
            for (c, run) in planes.runs(at, dz.len()) {
                let s = scale[c];
                each!(&mut dz.part(run), dz => dz * s);
            }
        }
        // SAFETY: the runs cover the block.
        unsafe { dz.written() };
    }

    /// dz = s dz - d - e (x - m), with the vectors m, s, d and e.
    #[inline(always)]
    pub(super) fn input_gradient<W: Number, const FMA: bool>(
        planes: Planes,
        at: usize,
        x: &[W],
        dz: &mut [W],
        [mean, scale, constant, linear]: [&[W]; 4],
    ) {
        if planes.inner == 1 {
            for (c, run) in planes.pixels(at, dz.len()) {
                let moving = mean[c.clone()].iter().zip(&linear[c.clone()]);
                let vectors = moving.zip(scale[c.clone()].iter().zip(&constant[c]));
                let elements = dz[run.clone()].iter_mut().zip(&x[run]);
                for ((dz, x), ((m, e), (s, d))) in elements.zip(vectors) {
                    *dz = *dz * *s - *d - (*x - *m) * *e;
                }
            }
        } else {
            for (c, run) in planes.runs(at, dz.len()) {
                let (m, s, d, e) = (mean[c], scale[c], constant[c], linear[c]);
                for (dz, x) in dz[run.clone()].iter_mut().zip(&x[run]) {
                    *dz = *dz * s - d - (*x - m) * e;
                }
            }
        }
    }

    /// Adds dz and dz (x - m) to the sums of their channels: lanes over a run, then f64.
    #[inline(always)]
    pub(super) fn gradient_sums<W: Number, const FMA: bool>(
        planes: Planes,
        at: usize,
        x: &[W],
        dz: &[W],
        mean: &[W],
        [first, second]: [&mut [f64]; 2],
    ) {
        if planes.inner == 1 {
            for (c, run) in planes.pixels(at, dz.len()) {
                let sums = first[c.clone()].iter_mut().zip(&mut second[c.clone()]);
                let elements = x[run.clone()].iter().zip(&dz[run]).zip(&mean[c]);
                for ((first, second), ((x, dz), m)) in sums.zip(elements) {
                    *first += (*dz).into();
                    *second += (*dz * (*x - *m)).into();
                }
            }
        } else {
            for (c, run) in planes.runs(at, dz.len()) {
                let m = mean[c];
                let mut sums = [[W::ZERO; LANES]; 2];
                let (x_body, x_rest) = x[run.clone()].as_chunks::<LANES>();
                let (dz_body, dz_rest) = dz[run].as_chunks::<LANES>();
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
            }
        }
    }

    /// Adds x - k and its square to the sums of their channels, all in f64.
    #[inline(always)]
    pub(super) fn moments<W: Number, const FMA: bool>(
        planes: Planes,
        at: usize,
        x: &[W],
        origin: &[W],
        [first, second]: [&mut [f64]; 2],
    ) {
        if planes.inner == 1 {
            for (c, run) in planes.pixels(at, x.len()) {
                let sums = first[c.clone()].iter_mut().zip(&mut second[c.clone()]);
                for ((first, second), (x, k)) in sums.zip(x[run].iter().zip(&origin[c])) {
                    let d = (*x).into() - (*k).into();
                    *first += d;
                    *second += d * d;
                }
            }
        } else {
            for (c, run) in planes.runs(at, x.len()) {
                let k: f64 = origin[c].into();
                let mut sums = [[0.0f64; LANES]; 2];
                let (body, rest) = x[run].as_chunks::<LANES>();
                for x in body {
                    for lane in 0..LANES {
                        let d = x[lane].into() - k;
                        sums[0][lane] += d;
                        sums[1][lane] += d * d;
                    }
                }
                for (lane, x) in rest.iter().enumerate() {
                    let d = (*x).into() - k;
                    sums[0][lane] += d;
                    sums[1][lane] += d * d;
                }
                first[c] += total(sums[0]);
                second[c] += total(sums[1]);
            }
        }
    }
}

for_each_instruction_set! {
    affine<W: Number>(affine: Affine<'_, W>, x: &[W], residual: Option<&[W]>, z: &mut [W]);
    values<W: Number, F: Formula>(z: &[W], y: &mut Block<'_, W>, parameters: [f64; 2]);
    values_of_affine<W: Number, F: Formula>(
        affine: Affine<'_, W>, x: &mut Block<'_, W>, parameters: [f64; 2]
    );
    gradient_of_affine<W: Number, F: Formula>(
        affine: Affine<'_, W>, x: &[W], grad: &mut Block<'_, W>, parameters: [f64; 2]
    );
    gradient_and_parameter_sums<W: Number, F: Formula>(
        z: &[W], grad: &mut [W], parameters: [f64; 2]
    ) -> [f64; 2];
    scale<W: Number>(planes: Planes, at: usize, dz: &mut Block<'_, W>, scale: &[W]);
    input_gradient<W: Number>(planes: Planes, at: usize, x: &[W], dz: &mut [W], vectors: [&[W]; 4]);
    gradient_sums<W: Number>(
        planes: Planes, at: usize, x: &[W], dz: &[W], mean: &[W], sums: [&mut [f64]; 2]
    );
    moments<W: Number>(planes: Planes, at: usize, x: &[W], origin: &[W], sums: [&mut [f64]; 2]);
}
