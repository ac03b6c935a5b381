//! Flex: one pass over the data each way, shared among threads.

use super::GateBackend;
use crate::backend::{
    block::{BLOCK, Block, CHUNK, SERIAL, each},
    flex::{Dense, by_dtype, rewrite, rewrite_with},
    norm::{LANES, Planes, total},
    number::{Number, Stored, for_each_instruction_set},
    threads::share,
};
use burn::{
    backend::{
        Flex,
        flex::{FlexTensor, Layout},
        tensor::FloatTensor,
    },
    tensor::{Bytes, DType, ElementConversion, bf16, f16},
};

impl GateBackend for Flex {
    fn channel_means(x: FloatTensor<Self>) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (rows, x) = Rows::of(x);
            let x = &x.elements::<E>()[..rows.numbers()];
            let parts = x.chunks(CHUNK).enumerate();
            let sum_up = |(i, x): (usize, &[E])| {
                let mut sums = RowSums::default();
                for (j, x) in x.chunks(BLOCK).enumerate() {
                    E::with_read(x, |x| {
                        for (row, run) in rows.planes().runs(i * CHUNK + j * BLOCK, x.len()) {
                            sums.add(row, sum(&x[run]));
                        }
                    });
                }
                sums
            };
            let sums = if x.len() <= SERIAL {
                parts.map(sum_up).collect()
            } else {
                share(parts, sum_up)
            };
            rows.gather::<E>(sums, 1.0 / rows.values as f64)
        })
    }

    fn scale_channels(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        by_dtype!(x.dtype(), E => {
            let (rows, x) = Rows::of(x);
            let gates = rows.gates::<E>(gate);
            rewrite::<E>(x, |at, x| {
                for (row, run) in rows.planes().runs(at, x.len()) {
                    scale(&mut x.part(run), gates[row]);
                }
                // SAFETY: the runs cover the block.
                unsafe { x.written() };
            })
        })
    }

    fn scale_channels_backward(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        assert_eq!(x.layout().shape(), grad.layout().shape(), "x and gradient differ in shape");
        by_dtype!(x.dtype(), E => {
            let (rows, x) = Rows::of(x);
            let gates = rows.gates::<E>(gate);
            let (_, grad) = Rows::of(grad);
            let x = x.elements::<E>();
            let (dx, sums) = rewrite_with::<E, _>(grad, RowSums::default, |sums, at, grad| {
                E::with_read(&x[at..at + grad.len()], |x| {
                    for (row, run) in rows.planes().runs(at, grad.len()) {
                        let mut grad = grad.part(run.clone());
                        sums.add(row, product_sum(&x[run], grad.read()));
                        scale(&mut grad, gates[row]);
                    }
                });
                // SAFETY: the runs cover the block.
                unsafe { grad.written() };
            });
            (dx, rows.gather::<E>(sums, 1.0))
        })
    }
}

/// A contiguous tensor as rows, one for each channel of each sample.
#[derive(Clone, Copy)]
struct Rows {
    shape: [usize; 2],
    /// In a row.
    values: usize,
}

impl Rows {
    fn of(x: FlexTensor) -> (Self, Dense) {
        let x = x.to_contiguous();
        let shape = x.layout().shape();
        let rows = Self { shape: [shape[0], shape[1]], values: shape[2..].iter().product() };
        (rows, Dense { start: x.layout().start_offset(), tensor: x })
    }

    fn count(self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn numbers(self) -> usize {
        self.count() * self.values
    }

    /// Every row as a channel of one sample.
    fn planes(self) -> Planes {
        Planes { channels: self.count(), inner: self.values }
    }

    /// The gate of each row.
    fn gates<E: Stored>(self, gate: FlexTensor) -> Vec<E::Work> {
        let gate = gate.to_contiguous();
        let start = gate.layout().start_offset();
        let gates = &gate.storage::<E>()[start..start + self.count()];
        gates.iter().map(|gate| gate.elem()).collect()
    }

    /// The sums of all parts, times a factor, `[n, channels]`.
    fn gather<E: Stored>(self, parts: Vec<RowSums>, factor: f64) -> FlexTensor {
        let mut totals = vec![0.0; self.count()];
        for (row, sum) in parts.into_iter().flat_map(|part| part.0) {
            totals[row] += sum;
        }
        let totals: Vec<E> = totals.into_iter().map(|sum| (sum * factor).elem()).collect();
        let layout = Layout::contiguous(self.shape.into());
        FlexTensor::new(Bytes::from_elems(totals), layout, E::dtype())
    }
}

/// Sums of the rows that a part of a tensor meets, in order.
#[derive(Default)]
struct RowSums(Vec<(usize, f64)>);

impl RowSums {
    fn add(&mut self, row: usize, term: f64) {
        match self.0.last_mut() {
            Some((last, sum)) if *last == row => *sum += term,
            _ => self.0.push((row, term)),
        }
    }
}

mod loops {
    use super::{Block, LANES, Number, each, total};

    #[inline(always)]
    pub(super) fn sum<W: Number, const FMA: bool>(x: &[W]) -> f64 {
        let mut sums = [W::ZERO; LANES];
        let (body, rest) = x.as_chunks::<LANES>();
        for x in body {
            for lane in 0..LANES {
                sums[lane] += x[lane];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += *x;
        }
        total(sums)
    }

    #[inline(always)]
    pub(super) fn product_sum<W: Number, const FMA: bool>(x: &[W], y: &[W]) -> f64 {
        let mut sums = [W::ZERO; LANES];
        let ((x_body, x_rest), (y_body, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        for (x, y) in x_body.iter().zip(y_body) {
            for lane in 0..LANES {
                sums[lane] += x[lane] * y[lane];
            }
        }
        for (sum, (x, y)) in sums.iter_mut().zip(x_rest.iter().zip(y_rest)) {
            *sum += *x * *y;
        }
        total(sums)
    }

    #[inline(always)]
    pub(super) fn scale<W: Number, const FMA: bool>(x: &mut Block<'_, W>, factor: W) {
        each!(x, x => x * factor);
    }
}

for_each_instruction_set! {
    sum<W: Number>(x: &[W]) -> f64;
    product_sum<W: Number>(x: &[W], y: &[W]) -> f64;
    scale<W: Number>(x: &mut Block<'_, W>, factor: W);
}
