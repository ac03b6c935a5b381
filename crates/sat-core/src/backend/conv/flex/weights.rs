//! The gradient for the weights.
//!
//! With many channels it is a matrix product whose inner dimension goes over pixels: x and the gradient
//! are copied with their channels side by side, and then a row of the kernel, all its columns and
//! channels, is one run of numbers for each pixel. With few channels in a group (depthwise) it is a set
//! of inner products of planes.
//!
//! The images are cut into chunks by the shape alone, and their sums added in order: the result does
//! not depend on the number of threads or on which of them was first.

use super::correlate::Tap;
use super::planes::{Flat, SLACK, TASK, take_every};
use super::tile::{InstructionSet, Product, Scattered, Start, Transposition};
use super::winograd;
use crate::backend::threads::{share, share_with};

/// `dw[g, m, c, kh, kw] = sum over images and i and j of grad[n, g, m, i, j]
/// x[n, g, c, i stride + kh - pad, j stride + kw - pad]`
pub(super) struct WeightGradient<'a> {
    pub(super) set: InstructionSet,
    pub(super) images: usize,
    pub(super) groups: usize,
    /// Of a group.
    pub(super) inputs: usize,
    /// Of a group.
    pub(super) outputs: usize,
    /// Height and width of x.
    pub(super) size: [usize; 2],
    /// Height and width of the gradient.
    pub(super) grid: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    /// Above and to the left.
    pub(super) padding: [usize; 2],
    pub(super) x: &'a [f32],
    pub(super) grad: &'a [f32],
}

/// Output channels that one task computes.
const OUTPUTS: usize = 64;
/// Pixels that stay in the cache while all products over them are made.
const PIXELS: usize = 128;
/// What the copy of x may take, in numbers.
const STRIP: usize = 64 * 1024;
/// Tasks that are enough for any number of threads.
const TASKS: usize = 16;

impl WeightGradient<'_> {
    /// The gradient, `[groups * outputs, inputs, kernel height, kernel width]`.
    pub(super) fn compute(&self) -> Vec<f32> {
        let len = self.groups * self.outputs * self.inputs * self.kernel[0] * self.kernel[1];
        let of_x = self.images * self.size[0] * self.size[1];
        if len * of_x * self.grid[0] * self.grid[1] == 0 {
            return vec![0.0; len];
        }
        if self.kernel == [1, 1] && self.padding == [0, 0] && self.stride != [1, 1] {
            let (x, size, stride) = (&self.met()[..], self.grid, [1, 1]);
            return WeightGradient { x, size, stride, ..*self }.compute();
        }
        // Nothing is padded: padding behind the last row or column shows in the grid alone.
        if self.kernel == [1, 1] && self.padding == [0, 0] && self.grid == self.size {
            let joined = self.joined();
            if joined != self.size {
                return WeightGradient { size: joined, grid: joined, ..*self }.compute();
            }
        }
        if let Some(gradient) = winograd::gradient(self) {
            return gradient;
        }
        if self.outputs >= 8 && self.inputs * self.kernel[1] >= 8 {
            self.by_products()
        } else {
            self.by_planes()
        }
    }

    /// With a kernel of one position and stride 1, rows put together as long as they stay in the cache:
    /// long rows are copied faster.
    fn joined(&self) -> [usize; 2] {
        let [height, width] = self.size;
        let fits =
            |rows: &usize| height.is_multiple_of(*rows) && rows * width * self.inputs <= 2 * STRIP;
        let rows = (1..=height).rev().find(fits).unwrap_or(1);
        [height / rows, rows * width]
    }

    fn by_products(&self) -> Vec<f32> {
        let lanes = self.set.lanes();
        let [height, width] = self.kernel;
        let run = width * self.inputs;
        // One row of the kernel, with room for whole vectors.
        let row = run.next_multiple_of(lanes);
        let blocks = self.outputs.div_ceil(OUTPUTS);
        let chunks = TASKS.div_ceil(blocks * self.groups).min(self.images);
        let parts: Vec<Vec<f32>> =
            share_with(0..self.groups * blocks * chunks, Buffers::default, |buffers, task| {
                let (chunk, rest) = (task % chunks, task / chunks);
                let (block, group) = (rest % blocks, rest / blocks);
                let images = [chunk, chunk + 1].map(|i| i * self.images / chunks);
                let first = block * OUTPUTS;
                let count = OUTPUTS.min(self.outputs - first);
                let mut sums = vec![0.0; count.next_multiple_of(self.widest_rows()) * height * row];
                self.add_products(group, first, count, images, row, buffers, &mut sums);
                sums
            });

        let per_output = self.inputs * height * width;
        let mut total = vec![0.0; self.groups * self.outputs * per_output];
        let together = TASK.div_ceil(per_output * chunks);
        share(total.chunks_mut(per_output * together).enumerate(), |(i, total)| {
            for (j, total) in total.chunks_exact_mut(per_output).enumerate() {
                let output = i * together + j;
                let (group, output) = (output / self.outputs, output % self.outputs);
                let first = (group * blocks + output / OUTPUTS) * chunks;
                for part in &parts[first..first + chunks] {
                    let part = &part[output % OUTPUTS * height * row..][..height * row];
                    for (kh, part) in part.chunks_exact(row).enumerate() {
                        for (kw, part) in part[..run].chunks_exact(self.inputs).enumerate() {
                            let total = total[kh * width + kw..].iter_mut().step_by(height * width);
                            for (total, part) in total.zip(part) {
                                *total += part;
                            }
                        }
                    }
                }
            }
        });
        total
    }

    /// Rows of the tiles; always the largest power of two.
    fn widest_rows(&self) -> usize {
        self.set.rows()[0]
    }

    #[allow(clippy::too_many_arguments, reason = "the numbers of one task")]
    fn add_products(
        &self,
        group: usize,
        first: usize,
        count: usize,
        images: [usize; 2],
        row: usize,
        buffers: &mut Buffers,
        sums: &mut [f32],
    ) {
        let lanes = self.set.lanes();
        let [rows, columns] = self.grid;
        let tile_rows = self.widest_rows();
        let most = self.set.vectors(tile_rows);
        let tiles: Vec<_> = (1..=most).map(|v| self.set.tile(tile_rows, v, Scattered::B)).collect();
        let x_columns = (columns - 1) * self.stride[1] + self.kernel[1];
        let x_row = x_columns * self.inputs;
        // Rows of the gradient that are taken together, or small images.
        let strip = (STRIP / (x_row * self.stride[0])).clamp(1, rows);
        let together = (PIXELS / (rows * columns)).max(1).min((STRIP / (x_row * rows)).max(1));
        let x_rows = (strip - 1) * self.stride[0] + self.kernel[0];
        let grad_width = count.next_multiple_of(tile_rows).next_multiple_of(lanes);
        let vectors = row / lanes;

        for image in (images[0]..images[1]).step_by(together) {
            let end = (image + together).min(images[1]);
            for top in (0..rows).step_by(strip) {
                let bottom = (top + strip).min(rows);
                let pixels = (bottom - top) * columns;
                let needed = x_rows * x_row * together + lanes;
                buffers.x.resize(buffers.x.len().max(needed), 0.0);
                // What lies between the outputs and the width ends in sums that nobody reads.
                let needed = grad_width * pixels * together;
                buffers.grad.resize(buffers.grad.len().max(needed), 0.0);
                buffers.offsets.clear();
                for (i, n) in (image..end).enumerate() {
                    let x = &mut buffers.x[i * x_rows * x_row..];
                    self.stage(group, n, [top, bottom], x);
                    for r in 0..bottom - top {
                        let start = i * x_rows * x_row + r * self.stride[0] * x_row;
                        buffers.offsets.extend(
                            (0..columns).map(|j| (start + j * self.stride[1] * self.inputs) as u32),
                        );
                    }
                    let plane = rows * columns;
                    let from =
                        ((n * self.groups + group) * self.outputs + first) * plane + top * columns;
                    // SAFETY: the gradient has `count` planes from here on, the buffer that many
                    // numbers for every pixel.
                    unsafe {
                        self.set.transpose(Transposition {
                            from: self.grad[from..from + (count - 1) * plane + pixels].as_ptr(),
                            from_row: plane,
                            rows: count,
                            columns: pixels,
                            to: buffers.grad[i * pixels * grad_width..][..pixels * grad_width]
                                .as_mut_ptr(),
                            to_row: grad_width,
                        });
                    }
                }
                for (part, offsets) in buffers.offsets.chunks(PIXELS).enumerate() {
                    let grad = &buffers.grad[part * PIXELS * grad_width..];
                    for kh in 0..self.kernel[0] {
                        let mut vector = 0;
                        while vector < vectors {
                            let wide = match vectors - vector {
                                4 if most == 3 => 2,
                                left => left.min(most),
                            };
                            for output in (0..count).step_by(tile_rows) {
                                let c = (output * self.kernel[0] + kh) * row + vector * lanes;
                                let product = Product {
                                    a: grad[output..].as_ptr(),
                                    b: buffers.x[kh * x_row + vector * lanes..].as_ptr(),
                                    c: sums[c..].as_mut_ptr(),
                                    offsets,
                                    step: grad_width,
                                    b_vector: lanes,
                                    c_vector: lanes,
                                    c_row: self.kernel[0] * row,
                                    start: Start::Output,
                                };
                                // SAFETY: the gradients have room for whole tiles, the sums for whole
                                // tiles and vectors, and x has one vector more than is staged.
                                unsafe { tiles[wide - 1](product) };
                            }
                            vector += wide;
                        }
                    }
                }
            }
        }
    }

    /// The rows of x that these rows of the gradient meet, zero-padded, channels side by side.
    fn stage(&self, group: usize, image: usize, [top, bottom]: [usize; 2], to: &mut [f32]) {
        let [height, width] = self.size;
        let columns = (self.grid[1] - 1) * self.stride[1] + self.kernel[1];
        let rows = (bottom - top - 1) * self.stride[0] + self.kernel[0];
        let plane = height * width;
        let x =
            &self.x[(image * self.groups + group) * self.inputs * plane..][..self.inputs * plane];
        // Columns of x that are met: those before and behind are padding.
        let left = self.padding[1].min(columns);
        let valid = width.min(columns - left);
        for (row, to) in to.chunks_exact_mut(columns * self.inputs).take(rows).enumerate() {
            let from = (top * self.stride[0] + row).wrapping_sub(self.padding[0]);
            if from >= height {
                to.fill(0.0);
                continue;
            }
            to[..left * self.inputs].fill(0.0);
            to[(left + valid) * self.inputs..].fill(0.0);
            // SAFETY: x has a row of `width` numbers there in each plane, the buffer `inputs` numbers
            // for each of the columns.
            unsafe {
                self.set.transpose(Transposition {
                    from: x[from * width..].as_ptr(),
                    from_row: plane,
                    rows: self.inputs,
                    columns: valid,
                    to: to[left * self.inputs..].as_mut_ptr(),
                    to_row: self.inputs,
                });
            }
        }
    }

    fn by_planes(&self) -> Vec<f32> {
        let lanes = self.set.lanes();
        let [height, width] = self.size;
        let [rows, columns] = self.grid;
        let positions = self.kernel[0] * self.kernel[1];
        let taps: Vec<Tap> = (0..positions)
            .map(|tap| Tap {
                row: (tap / self.kernel[1]) as isize - self.padding[0] as isize,
                column: (tap % self.kernel[1]) as isize - self.padding[1] as isize,
                weight: tap,
            })
            .collect();
        let flat = Flat::new(self.size, self.stride, self.grid, taps.iter());
        let offsets: Vec<u32> = taps.iter().map(|tap| flat.offset(tap)).collect();
        // The gradient in rows as far apart, with zeros between them and behind the end.
        let of_grad = flat.span(self.grid).next_multiple_of(lanes);
        let chunks = TASKS.div_ceil(self.groups).min(self.images);
        let pairs = self.outputs * self.inputs;
        let parts: Vec<Vec<f32>> = share_with(
            0..self.groups * chunks,
            || (vec![0.0; self.inputs * flat.len() + SLACK], vec![0.0; of_grad]),
            |(x, grad), task| {
                let (chunk, group) = (task % chunks, task / chunks);
                let mut sums = vec![0.0; pairs * positions * lanes];
                for image in chunk * self.images / chunks..(chunk + 1) * self.images / chunks {
                    let planes =
                        &self.x[(image * self.groups + group) * self.inputs * height * width..];
                    for input in 0..self.inputs {
                        let plane = &planes[input * height * width..][..height * width];
                        flat.stage(plane, &mut x[input * flat.len()..]);
                    }
                    for output in 0..self.outputs {
                        let plane = (image * self.groups + group) * self.outputs + output;
                        let plane = &self.grad[plane * rows * columns..][..rows * columns];
                        for (row, from) in plane.chunks_exact(columns).enumerate() {
                            take_every(1, from, &mut grad[row * flat.segment..][..columns]);
                        }
                        for input in 0..self.inputs {
                            let x = x[input * flat.len()..].as_ptr();
                            let pair = (output * self.inputs + input) * positions;
                            let mut tap = 0;
                            while tap < positions {
                                let taps = self.set.taps(positions - tap);
                                let sums = &mut sums[(pair + tap) * lanes..];
                                let offsets = &offsets[tap..tap + taps];
                                // SAFETY: x has slack for the lanes behind the end.
                                unsafe { self.set.dots(x, grad, offsets, sums) };
                                tap += taps;
                            }
                        }
                    }
                }
                sums.chunks_exact(lanes).map(|lanes| lanes.iter().sum()).collect()
            },
        );
        let mut total = Vec::with_capacity(self.groups * pairs * positions);
        for parts in parts.chunks_exact(chunks) {
            let mut sums = parts[0].clone();
            for part in &parts[1..] {
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            total.extend(sums);
        }
        total
    }

    /// With a kernel of one position, the columns and rows of x that it meets, side by side.
    fn met(&self) -> Vec<f32> {
        let [height, width] = self.size;
        let [rows, columns] = self.grid;
        let mut met = vec![0.0; self.images * self.groups * self.inputs * rows * columns];
        let together = TASK.div_ceil(rows * columns);
        let (of_met, of_x) = (rows * columns, height * width);
        let planes = met.chunks_mut(together * of_met).zip(self.x.chunks(together * of_x));
        share(planes, |(met, x)| {
            for (met, x) in met.chunks_exact_mut(of_met).zip(x.chunks_exact(of_x)) {
                let rows = x.chunks(width).step_by(self.stride[0]);
                for (met, x) in met.chunks_mut(columns).zip(rows) {
                    take_every(self.stride[1], x, met);
                }
            }
        });
        met
    }
}

/// What a thread needs again and again.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    grad: Vec<f32>,
    offsets: Vec<u32>,
}
