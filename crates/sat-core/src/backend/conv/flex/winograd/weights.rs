//! The gradient for the weights: the transposed transform of the outputs' gradient meets the inputs'
//! numbers at each point, a matrix product whose inner dimension goes over the tiles, and the
//! transposed transform of the kernel makes weights of the sums.
//!
//! Tiles are taken in rounds that stay in the cache, in an order that the shape decides; the points and
//! inputs are shared among threads. So sums do not depend on the number of threads.

use super::super::correlate::Output;
use super::super::tile::{InstructionSet, Product, Scattered, Start, Transposition};
use super::super::weights::WeightGradient;
use super::kernels::{self, Transform};
use super::{GAP, POINTS, Part, Points, SPAN, Side, TILE, aligned, pays};
use crate::backend::threads::{share, share_with};

/// What the numbers of a round may take.
const ROUND: usize = 2 * 1024 * 1024;
/// Tiles below which the sums' own memory costs more than is saved.
const FEWEST: usize = 32;
/// Inputs that a task takes.
const INPUTS: usize = 64;

/// The gradient `[outputs, inputs, 3, 3]`; nothing where the shape is another one, or the direct way
/// faster.
pub(in super::super) fn gradient(g: &WeightGradient<'_>) -> Option<Vec<f32>> {
    let set = g.set;
    let [down, across] = g.grid.map(|size| size.div_ceil(TILE));
    let fits = g.groups == 1
        && g.kernel == [3, 3]
        && g.stride == [1, 1]
        && g.images * down * across >= FEWEST
        && pays([g.inputs, g.outputs], g.grid);
    if !fits {
        return None;
    }
    let lanes = set.lanes();
    let side = |x, channels: usize, size, first| Side {
        set,
        x,
        channels,
        size,
        first,
        pixel: channels.next_multiple_of(lanes),
        across,
    };
    let x = side(g.x, g.inputs, g.size, g.padding.map(|padding| -(padding as isize)));
    let y = side(g.grad, g.outputs, g.grid, [0, 0]);
    // Distances between tiles that are no powers of two: they would share few places in the cache.
    let [x_tile, y_tile] = [x.pixel + GAP, y.pixel + GAP];
    let most = (ROUND / (POINTS * (x_tile + y_tile))).max(FEWEST);
    let rows = (most / across).clamp(1, down);
    let together = (most / (rows * across)).clamp(1, g.images);
    let tiles = together * rows * across;
    let [x_point, y_point] = [tiles * x_tile + GAP, tiles * y_tile + GAP];
    let (mut of_x, mut of_y) = (Vec::new(), Vec::new());
    let of_x = aligned(&mut of_x, POINTS * x_point);
    let of_y = aligned(&mut of_y, POINTS * y_point);
    let offsets: Vec<u32> = (0..tiles).map(|tile| (tile * x_tile) as u32).collect();

    let point = x.pixel * y.pixel;
    let mut sums = vec![0.0; POINTS * point];
    for first in (0..g.images).step_by(together) {
        for top in (0..down).step_by(rows) {
            let images = [first, (first + together).min(g.images)];
            let tiles_down = [top, (top + rows).min(down)];
            let of_image = (tiles_down[1] - tiles_down[0]) * across;
            let [x_to, y_to] = [Output(of_x.as_mut_ptr()), Output(of_y.as_mut_ptr())];
            share_with(images[0]..images[1], Vec::new, |buffer, image| {
                let part = Part { images: [image, image + 1], tiles: tiles_down };
                let tile = (image - images[0]) * of_image;
                // SAFETY: there is room for the tiles of each image, at places of their own.
                unsafe {
                    let to = Output(x_to.at(tile * x_tile));
                    let points = Points { to, tile: x_tile, point: x_point };
                    x.take::<kernels::Input, SPAN>(part, buffer, points);
                    let to = Output(y_to.at(tile * y_tile));
                    let points = Points { to, tile: y_tile, point: y_point };
                    y.take::<kernels::Gradient, TILE>(part, buffer, points);
                }
            });
            let offsets = &offsets[..(images[1] - images[0]) * of_image];
            let (of_x, of_y) = (&*of_x, &*of_y);
            let of_points = sums.chunks_mut(point).enumerate();
            let tasks = of_points.flat_map(|(i, sums)| {
                sums.chunks_mut(INPUTS * y.pixel).enumerate().map(move |part| (i, part))
            });
            share(tasks, |(i, (part, sums))| {
                Sums { set, sums, width: y.pixel }.add(
                    &of_x[i * x_point + part * INPUTS..],
                    offsets,
                    &of_y[i * y_point..],
                    y_tile,
                );
            });
        }
    }
    Some(weights(g, &sums, [point, y.pixel]))
}

/// Sums for some of the inputs at one point, `[inputs, width]`.
struct Sums<'a> {
    set: InstructionSet,
    sums: &'a mut [f32],
    width: usize,
}

impl Sums<'_> {
    /// Adds the products of x, whose tiles lie at the offsets, and y, whose tiles lie `y_tile` apart.
    fn add(&mut self, x: &[f32], offsets: &[u32], y: &[f32], y_tile: usize) {
        let Self { set, width, .. } = *self;
        let lanes = set.lanes();
        let vectors = width / lanes;
        let most = if vectors.is_multiple_of(3) { 3 } else { 2 };
        // Channels are whole vectors, and those whole tiles.
        let rows = set.rows()[0];
        for vector in (0..vectors).step_by(most) {
            let tile = set.tile(rows, most.min(vectors - vector), Scattered::A);
            for row in (0..self.sums.len() / width).step_by(rows) {
                let product = Product {
                    a: x[row..].as_ptr(),
                    b: y[vector * lanes..].as_ptr(),
                    c: self.sums[row * width + vector * lanes..].as_mut_ptr(),
                    offsets,
                    step: y_tile,
                    b_vector: lanes,
                    c_vector: lanes,
                    c_row: width,
                    start: Start::Output,
                };
                // SAFETY: x and y have their channels for each of the tiles, the sums whole tiles.
                unsafe { tile(product) };
            }
        }
    }
}

/// From the sums at all points, `point` apart, each with rows of `width` for every input.
fn weights(g: &WeightGradient<'_>, sums: &[f32], [point, width]: [usize; 2]) -> Vec<f32> {
    /// Inputs that are transposed together.
    const TOGETHER: usize = 16;
    let mut weights = vec![0.0; g.outputs * g.inputs * 9];
    let to = Output(weights.as_mut_ptr());
    let at: [u32; POINTS] = core::array::from_fn(|i| (i * point) as u32);
    let into: [u32; 9] = core::array::from_fn(|tap| (tap * width) as u32);
    let buffer = || vec![0.0; TOGETHER * 9 * width];
    share_with(0..g.inputs.div_ceil(TOGETHER), buffer, |taps, task| {
        let first = task * TOGETHER;
        let count = TOGETHER.min(g.inputs - first);
        for (input, taps) in taps.chunks_exact_mut(9 * width).take(count).enumerate() {
            let transform = Transform {
                from: sums[(first + input) * width..].as_ptr(),
                at: &at,
                to: taps.as_mut_ptr(),
                into: &into,
                len: width,
            };
            // SAFETY: each point has a row for every input, the buffer nine.
            unsafe { g.set.both_ways::<kernels::KernelGradient, SPAN, 3>(transform) };
        }
        // SAFETY: every task has columns of its own.
        unsafe {
            g.set.transpose(Transposition {
                from: taps.as_ptr(),
                from_row: width,
                rows: 9 * count,
                columns: g.outputs,
                to: to.at(first * 9),
                to_row: g.inputs * 9,
            });
        }
    });
    weights
}

#[cfg(test)]
mod tests {
    use super::super::tests::noise;
    use super::*;

    /// The definition, in f64.
    fn reference(g: &WeightGradient<'_>) -> Vec<f64> {
        let ([height, width], [rows, columns]) = (g.size, g.grid);
        let mut sums = vec![0.0; g.outputs * g.inputs * 9];
        for (i, sum) in sums.iter_mut().enumerate() {
            let (tap, input, output) = (i % 9, i / 9 % g.inputs, i / 9 / g.inputs);
            for image in 0..g.images {
                let x = &g.x[(image * g.inputs + input) * height * width..];
                let grad = &g.grad[(image * g.outputs + output) * rows * columns..];
                for (row, column) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let y = grad[row * columns + column];
                    let row = (row + tap / 3).wrapping_sub(g.padding[0]);
                    let column = (column + tap % 3).wrapping_sub(g.padding[1]);
                    if row < height && column < width {
                        *sum += f64::from(y) * f64::from(x[row * width + column]);
                    }
                }
            }
        }
        sums
    }

    #[test]
    fn rounding_errors_are_millionths_of_the_largest_sum() {
        for (images, inputs, outputs, size, padding) in [
            (8, 16, 16, [9, 11], [1, 1]),
            (40, 33, 17, [4, 4], [1, 1]),
            (9, 17, 48, [7, 13], [0, 2]),
            // Several rounds.
            (1, 70, 80, [72, 76], [1, 1]),
            (16, 70, 80, [20, 19], [1, 1]),
        ] {
            let grid = [0, 1].map(|axis| size[axis] + 2 * padding[axis] - 2);
            let x = noise(images * inputs * size[0] * size[1], 1);
            let grad = noise(images * outputs * grid[0] * grid[1], 2);
            let g = WeightGradient {
                set: InstructionSet::widest(),
                images,
                groups: 1,
                inputs,
                outputs,
                size,
                grid,
                kernel: [3, 3],
                stride: [1, 1],
                padding,
                x: &x,
                grad: &grad,
            };
            let want = reference(&g);
            let largest = want.iter().fold(0.0f64, |largest, sum| largest.max(sum.abs()));
            for set in InstructionSet::all() {
                let got = gradient(&WeightGradient { set, ..g }).expect("a shape for Winograd");
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs() / largest;
                    assert!(error <= 5e-6, "{set:?}, {size:?}, {i}: {got}, not {want}");
                }
            }
        }
    }
}
