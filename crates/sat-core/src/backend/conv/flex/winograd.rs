//! Kernels of three by three by Winograd's minimal filtering, F(4x4, 3x3) (Lavin and
//! Gray, arXiv 1509.09308): a quarter of the multiplications.
//!
//! Outputs are cut into tiles of four by four. Each needs six by six inputs, which a fixed transform
//! takes to 36 numbers; so does another with the kernel. There they meet one by one, so that over all
//! channels it is 36 matrix products, tiles by inputs by outputs, and a third transform makes the
//! outputs. The input's gradient is such a correlation too; that of the kernel
//! ([`weights`]) is the same backwards. Channels lie side by side throughout.

mod kernels;
mod weights;

use super::correlate::{Correlation, Output};
use super::tile::{InstructionSet, Transposition};
use crate::backend::threads::{share, share_with};
use core::{mem::MaybeUninit, ops::RangeInclusive};
use kernels::{OneWay, Rows, Transform};
pub(super) use weights::gradient;

/// Outputs of a tile along an axis.
const TILE: usize = 4;
/// Inputs of a tile along an axis.
const SPAN: usize = 6;
const POINTS: usize = SPAN * SPAN;
/// Weights of a kernel, which lie side by side.
const TAPS: usize = 9;
/// Inputs whose weights are read together: whole lines of the cache.
const TOGETHER: usize = 16;
/// Tiles that a task takes together, so that the kernel's numbers are read for many.
const TILES: usize = 32;
/// Channels that the transforms need to be worth it, and the most for which places fit into 32 bits.
const CHANNELS: RangeInclusive<usize> = 16..=8192;
/// Numbers between the blocks of the points, which would share few places in the cache otherwise.
const GAP: usize = 16;

/// A correlation that the method can do.
pub(super) struct Winograd<'a> {
    c: &'a Correlation<'a>,
    /// Where the weights of the kernel lie, row by row.
    weights: [usize; TAPS],
    /// The position of the first input relative to the output.
    first: [isize; 2],
    /// Vectors of output channels that are computed together.
    vectors: usize,
    /// The channels of so many vectors.
    width: usize,
    /// Numbers of a pixel: the input channels, as whole vectors.
    pixel: usize,
}

/// Images, and rows of tiles of each, that a task computes.
#[derive(Clone, Copy)]
struct Part {
    images: [usize; 2],
    tiles: [usize; 2],
}

/// What a thread needs again and again.
#[derive(Default)]
struct Buffers {
    /// The inputs, pixel by pixel, behind a pixel of zeros.
    x: Vec<f32>,
    /// The inputs' numbers at each point, for each tile.
    inputs: Vec<f32>,
    /// The products.
    outputs: Vec<f32>,
    /// The outputs of one block, pixel by pixel.
    y: Vec<f32>,
}

/// Images whose tiles are transformed: the inputs, or a gradient of the outputs.
#[derive(Clone, Copy)]
struct Side<'a> {
    set: InstructionSet,
    x: &'a [f32],
    channels: usize,
    /// Height and width.
    size: [usize; 2],
    /// The position of a tile's first pixel relative to its first output.
    first: [isize; 2],
    /// Numbers of a pixel: the channels, as whole vectors.
    pixel: usize,
    /// Tiles side by side.
    across: usize,
}

/// Where the numbers of tiles go.
#[derive(Clone, Copy)]
struct Points {
    to: Output,
    /// Distance of consecutive tiles.
    tile: usize,
    /// Distance of consecutive points.
    point: usize,
}

impl Side<'_> {
    /// Takes tiles of N by N pixels to their numbers at all points, in the order of images, rows and
    /// columns.
    ///
    /// # Safety
    ///
    /// There must be places for all tiles, and nobody else may write to them.
    unsafe fn take<W: OneWay<N, SPAN>, const N: usize>(
        &self,
        part: Part,
        x: &mut Vec<f32>,
        points: Points,
    ) {
        let [height, width] = self.size;
        let plane = height * width;
        let [first_row, end_row] =
            [(part.tiles[0], 0), (part.tiles[1], N - TILE)].map(|(tile, beyond)| {
                let row = (tile * TILE + beyond) as isize + self.first[0];
                row.clamp(0, height as isize) as usize
            });
        let pixels = (end_row - first_row) * width;
        let images = part.images[1] - part.images[0];
        let x = aligned(x, (1 + images * pixels) * self.pixel);
        x[..self.pixel].fill(0.0);
        if pixels > 0 {
            for (i, image) in (part.images[0]..part.images[1]).enumerate() {
                let from = image * self.channels * plane + first_row * width;
                let transposition = Transposition {
                    from: self.x[from..from + (self.channels - 1) * plane + pixels].as_ptr(),
                    from_row: plane,
                    rows: self.channels,
                    columns: pixels,
                    to: x[(1 + i * pixels) * self.pixel..][..pixels * self.pixel].as_mut_ptr(),
                    to_row: self.pixel,
                };
                // SAFETY: each plane has these rows, the buffer room for all channels of each pixel.
                unsafe { self.set.transpose(transposition) };
            }
        }
        let into: [u32; POINTS] = core::array::from_fn(|i| (i * points.point) as u32);
        let mut tile = 0;
        for image in 0..images {
            for row in part.tiles[0]..part.tiles[1] {
                for column in 0..self.across {
                    let mut at = [0; POINTS];
                    for (i, at) in at.chunks_exact_mut(N).take(N).enumerate() {
                        let row = (row * TILE + i).wrapping_add_signed(self.first[0]);
                        if row >= height {
                            continue;
                        }
                        let start = 1 + image * pixels + (row - first_row) * width;
                        for (j, at) in at.iter_mut().enumerate() {
                            let column = (column * TILE + j).wrapping_add_signed(self.first[1]);
                            if column < width {
                                *at = ((start + column) * self.pixel) as u32;
                            }
                        }
                    }
                    // SAFETY: `at` are pixels of the buffer; places as the caller promised.
                    unsafe {
                        self.set.both_ways::<W, N, SPAN>(Transform {
                            from: x.as_ptr(),
                            at: &at,
                            to: points.to.at(tile * points.tile),
                            into: &into,
                            len: self.pixel,
                        });
                    }
                    tile += 1;
                }
            }
        }
    }
}

impl<'a> Winograd<'a> {
    /// Nothing where the kernel is another one, or the direct way faster.
    pub(super) fn new(c: &'a Correlation<'a>) -> Option<Self> {
        let first =
            [c.taps.iter().map(|tap| tap.row).min()?, c.taps.iter().map(|tap| tap.column).min()?];
        let mut weights = [None; TAPS];
        for tap in &c.taps {
            let [row, column] =
                [tap.row - first[0], tap.column - first[1]].map(isize::unsigned_abs);
            if row < 3 && column < 3 && tap.weight < TAPS {
                weights[row * 3 + column] = Some(tap.weight);
            }
        }
        let whole = c.taps.len() == TAPS && weights.iter().all(Option::is_some);
        let dense = c.place.column == 1 && c.place.row == c.grid[1];
        let plain = c.groups == 1 && c.stride == [1, 1] && dense;
        if !whole || !plain || !pays([c.inputs, c.outputs], c.grid) {
            return None;
        }
        let lanes = c.set.lanes();
        let vectors = c.outputs.div_ceil(lanes);
        let vectors = if vectors.is_multiple_of(3) { 3 } else { vectors.min(2) };
        Some(Self {
            c,
            weights: weights.map(Option::unwrap_or_default),
            first,
            vectors,
            width: vectors * lanes,
            pixel: c.inputs.next_multiple_of(lanes),
        })
    }

    /// # Safety
    ///
    /// Every place must lie in the buffer.
    pub(super) unsafe fn run(&self, out: Output) {
        let c = self.c;
        let [down, across] = c.grid.map(|size| size.div_ceil(TILE));
        if c.images * down * across == 0 {
            return;
        }
        let kernel = self.kernel();
        let threads = rayon::current_num_threads();
        let together = (TILES / (down * across)).clamp(1, c.images.div_ceil(threads));
        let bundles = c.images.div_ceil(together);
        let enough = threads.div_ceil(bundles).min(down);
        let rows = (TILES / across).clamp(1, down.div_ceil(enough));
        let strips = down.div_ceil(rows);
        share_with(0..bundles * strips, Buffers::default, |buffers, task| {
            let (strip, bundle) = (task % strips, task / strips);
            let part = Part {
                images: [bundle, bundle + 1].map(|i| (i * together).min(c.images)),
                tiles: [strip, strip + 1].map(|i| (i * rows).min(down)),
            };
            // SAFETY: parts are disjoint, and their places are in the buffer.
            unsafe { self.compute(part, &kernel, buffers, out) };
        });
    }

    /// The kernel at each point: for each block of outputs and point, `[inputs, width]`, and a gap.
    fn kernel(&self) -> Box<[MaybeUninit<f32>]> {
        let c = self.c;
        let [_, of_outputs, of_inputs] = c.weight_strides;
        let point = c.inputs * self.width + GAP;
        let mut kernel = Box::new_uninit_slice(c.outputs.div_ceil(self.width) * POINTS * point);
        // Inputs whose weights lie side by side are read together: the lines of the cache are far apart.
        let together = if of_inputs == TAPS { TOGETHER } else { 1 };
        let vectors = |inputs: usize| (inputs * TAPS).next_multiple_of(c.set.lanes());
        let at = self.weights.map(|tap| (tap * self.width) as u32);
        let into: [u32; POINTS] = core::array::from_fn(|i| (i * point) as u32);
        share(kernel.chunks_mut(POINTS * point).enumerate(), |(block, kernel)| {
            let first = block * self.width;
            let count = self.width.min(c.outputs - first);
            let mut taps = vec![0.0; vectors(together) * self.width];
            for start in (0..c.inputs).step_by(together) {
                let inputs = together.min(c.inputs - start);
                let from = first * of_outputs + start * of_inputs;
                let last = from + (count - 1) * of_outputs;
                // Whole vectors where the weights go on; nobody reads what is too much.
                let columns = match vectors(inputs) {
                    columns if last + columns <= c.weight.len() => columns,
                    _ => inputs * TAPS,
                };
                let transposition = Transposition {
                    from: c.weight[from..last + columns].as_ptr(),
                    from_row: of_outputs,
                    rows: count,
                    columns,
                    to: taps.as_mut_ptr(),
                    to_row: self.width,
                };
                // SAFETY: the weights have these rows, `taps` a row of `width` for each column.
                unsafe { c.set.transpose(transposition) };
                for (i, input) in (start..start + inputs).enumerate() {
                    let transform = Transform {
                        from: taps[i * TAPS * self.width..].as_ptr(),
                        at: &at,
                        to: kernel[input * self.width..].as_mut_ptr().cast(),
                        into: &into,
                        len: self.width,
                    };
                    // SAFETY: each point has a row of `width` numbers for every input.
                    unsafe { c.set.both_ways::<kernels::Kernel, 3, SPAN>(transform) };
                }
            }
        });
        kernel
    }

    /// # Safety
    ///
    /// The part's places must lie in the buffer, and nobody else may write to them; the kernel must be
    /// that of [`kernel`](Self::kernel).
    unsafe fn compute(
        &self,
        part: Part,
        kernel: &[MaybeUninit<f32>],
        buffers: &mut Buffers,
        out: Output,
    ) {
        let c = self.c;
        let across = c.grid[1].div_ceil(TILE);
        let tiles = (part.images[1] - part.images[0]) * (part.tiles[1] - part.tiles[0]) * across;
        let input_point = tiles * self.pixel + GAP;
        let output_point = tiles * self.width + GAP;
        let inputs = aligned(&mut buffers.inputs, POINTS * input_point);
        let outputs = aligned(&mut buffers.outputs, POINTS * output_point);
        let points =
            Points { to: Output(inputs.as_mut_ptr()), tile: self.pixel, point: input_point };
        // SAFETY: the inputs have room for all tiles at all points.
        unsafe { self.inputs().take::<kernels::Input, SPAN>(part, &mut buffers.x, points) };
        let kernel_point = c.inputs * self.width + GAP;
        for (block, kernel) in kernel.chunks_exact(POINTS * kernel_point).enumerate() {
            for point in 0..POINTS {
                let mut tile = 0;
                while tile < tiles {
                    let rows = self.rows(tiles - tile);
                    let product = Rows {
                        a: inputs[point * input_point + tile * self.pixel..].as_ptr(),
                        a_row: self.pixel,
                        b: kernel[point * kernel_point..].as_ptr().cast(),
                        c: outputs[point * output_point + tile * self.width..].as_mut_ptr(),
                        steps: c.inputs,
                    };
                    // SAFETY: the inputs have a pixel for every tile, the kernel a row of vectors for
                    // every input, the outputs one for every tile.
                    unsafe { c.set.product(rows, self.vectors)(product) };
                    tile += rows;
                }
            }
            // SAFETY: as the caller promised.
            unsafe { self.give_outputs(part, block, outputs, output_point, &mut buffers.y, out) };
        }
    }

    fn inputs(&self) -> Side<'_> {
        let Correlation { set, x, size, grid, inputs, .. } = *self.c;
        let across = grid[1].div_ceil(TILE);
        Side { set, x, channels: inputs, size, first: self.first, pixel: self.pixel, across }
    }

    /// How many of the tiles that are left the next product takes.
    fn rows(&self, left: usize) -> usize {
        let mut sizes = self.c.set.rows().iter();
        sizes.find(|size| **size <= left).copied().unwrap_or(1)
    }

    /// A block of outputs from their values at all points.
    ///
    /// # Safety
    ///
    /// As for [`compute`](Self::compute).
    unsafe fn give_outputs(
        &self,
        part: Part,
        block: usize,
        from: &[f32],
        point: usize,
        y: &mut Vec<f32>,
        out: Output,
    ) {
        let c = self.c;
        let [height, width] = c.grid;
        let first_row = part.tiles[0] * TILE;
        let pixels = (height.min(part.tiles[1] * TILE) - first_row) * width;
        // What lies behind the edge goes to a pixel of its own, which nobody reads.
        let y = aligned(y, (pixels + 1) * self.width);
        let at: [u32; POINTS] = core::array::from_fn(|i| (i * point) as u32);
        let first = block * self.width;
        let count = self.width.min(c.outputs - first);
        let mut tile = 0;
        for image in part.images[0]..part.images[1] {
            for row in part.tiles[0]..part.tiles[1] {
                for column in 0..width.div_ceil(TILE) {
                    let into: [u32; TILE * TILE] = core::array::from_fn(|i| {
                        let (row, column) = (row * TILE + i / TILE, column * TILE + i % TILE);
                        let inside = row < height && column < width;
                        let pixel =
                            if inside { (row - first_row) * width + column } else { pixels };
                        (pixel * self.width) as u32
                    });
                    let transform = Transform {
                        from: from[tile * self.width..].as_ptr(),
                        at: &at,
                        to: y.as_mut_ptr(),
                        into: &into,
                        len: self.width,
                    };
                    // SAFETY: each point has a row for every tile, y one for every pixel.
                    unsafe { c.set.both_ways::<kernels::Output, SPAN, TILE>(transform) };
                    tile += 1;
                }
            }
            let to = c.place.start
                + (image * c.outputs + first) * c.place.plane
                + first_row * c.place.row;
            // SAFETY: as the caller promised.
            unsafe {
                c.set.transpose(Transposition {
                    from: y.as_ptr(),
                    from_row: self.width,
                    rows: pixels,
                    columns: count,
                    to: out.at(to),
                    to_row: c.place.plane,
                });
            }
        }
    }
}

/// Whether the method is faster than the direct way. The shape of one image decides, so that an
/// image's outputs do not depend on how many others there are.
fn pays(channels: [usize; 2], [height, width]: [usize; 2]) -> bool {
    let [down, across] = [height, width].map(|size| size.div_ceil(TILE));
    // At most two thirds of the multiplications, where tiles reach over the edge.
    let fewer = 3 * down * across * POINTS <= 2 * 9 * height * width;
    channels.iter().all(|channels| CHANNELS.contains(channels)) && fewer && across <= 8 * TILES
}

/// So many numbers of a buffer, from a place where lines of the cache begin.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = 64;
    buffer.resize(buffer.len().max(len + LINE / size_of::<f32>()), 0.0);
    let skipped = buffer.as_ptr().align_offset(LINE);
    &mut buffer[skipped..][..len]
}

#[cfg(test)]
mod tests {
    use super::super::correlate::{Place, Tap};
    use super::*;

    /// From a fixed generator, roughly normal.
    pub(super) fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut uniform = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| uniform() + uniform() + uniform()).collect()
    }

    fn correlation<'a>(
        set: InstructionSet,
        [images, inputs, outputs, height, width, padding]: [usize; 6],
        x: &'a [f32],
        weight: &'a [f32],
    ) -> Correlation<'a> {
        let grid = [height, width].map(|size| size + 2 * padding - 2);
        let at = |position: usize| position as isize - padding as isize;
        Correlation {
            set,
            images,
            groups: 1,
            inputs,
            outputs,
            size: [height, width],
            x,
            weight,
            weight_strides: [0, inputs * 9, 9],
            taps: (0..9)
                .map(|tap| Tap { row: at(tap / 3), column: at(tap % 3), weight: tap })
                .collect(),
            stride: [1, 1],
            grid,
            place: Place { start: 0, plane: grid[0] * grid[1], row: grid[1], column: 1 },
        }
    }

    fn run(c: &Correlation<'_>) -> Vec<f32> {
        let mut y = vec![f32::NAN; c.images * c.outputs * c.grid[0] * c.grid[1]];
        let winograd = Winograd::new(c).expect("a shape for Winograd");
        // SAFETY: y has all places.
        unsafe { winograd.run(Output(y.as_mut_ptr())) };
        y
    }

    /// The definition, in f64.
    fn reference(c: &Correlation<'_>) -> Vec<f64> {
        let ([height, width], [rows, columns]) = (c.size, c.grid);
        let mut y = vec![0.0; c.images * c.outputs * rows * columns];
        for (i, y) in y.iter_mut().enumerate() {
            let (column, row) = (i % columns, i / columns % rows);
            let (output, image) =
                (i / (rows * columns) % c.outputs, i / (rows * columns * c.outputs));
            for tap in &c.taps {
                let row = (row as isize + tap.row) as usize;
                let column = (column as isize + tap.column) as usize;
                if row >= height || column >= width {
                    continue;
                }
                for input in 0..c.inputs {
                    let x = c.x[((image * c.inputs + input) * height + row) * width + column];
                    let weight = output * c.weight_strides[1] + input * c.weight_strides[2];
                    *y += f64::from(x) * f64::from(c.weight[weight + tap.weight]);
                }
            }
        }
        y
    }

    #[test]
    fn rounding_errors_are_millionths_of_the_largest_output() {
        for (sizes, bound) in [
            ([1, 16, 16, 9, 11, 1], 2e-6),
            ([2, 64, 48, 8, 6, 1], 3e-6),
            ([3, 40, 20, 7, 13, 0], 3e-6),
            ([7, 17, 33, 5, 4, 2], 2e-6),
            ([1, 512, 64, 4, 4, 1], 6e-6),
        ] {
            let [images, inputs, outputs, height, width, _] = sizes;
            let x = noise(images * inputs * height * width, 1);
            let weight = noise(outputs * inputs * 9, 2);
            for set in InstructionSet::all() {
                let c = correlation(set, sizes, &x, &weight);
                let want = reference(&c);
                let largest = want.iter().fold(0.0f64, |largest, y| largest.max(y.abs()));
                for (i, (got, want)) in run(&c).iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs() / largest;
                    assert!(error <= bound, "{set:?}, {sizes:?}, {i}: {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn an_image_is_the_same_alone_and_among_others() {
        let (x, weight) = (noise(9 * 16 * 49, 1), noise(16 * 16 * 9, 2));
        for set in InstructionSet::all() {
            let all = run(&correlation(set, [9, 16, 16, 7, 7, 1], &x, &weight));
            let last = run(&correlation(set, [1, 16, 16, 7, 7, 1], &x[8 * 16 * 49..], &weight));
            assert_eq!(all[8 * 16 * 49..], last);
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_tiles() {
        let (mut x, weight) = (noise(16 * 12 * 12, 1), noise(16 * 16 * 9, 2));
        x[5 * 12 + 5] = f32::INFINITY;
        for set in InstructionSet::all() {
            let y = run(&correlation(set, [1, 16, 16, 12, 12, 1], &x, &weight));
            for (i, y) in y.iter().enumerate() {
                let (row, column) = (i / 12 % 12, i % 12);
                // The pixel is the second of its tile: one further on and the tile before is not met.
                let meets = (4..8).contains(&row) && (4..8).contains(&column);
                assert_eq!(y.is_finite(), !meets, "{set:?}, row {row}, column {column}");
            }
        }
    }

    #[test]
    fn other_shapes_go_the_direct_way() {
        let (x, weight) = (noise(16 * 64, 1), noise(16 * 16 * 9, 2));
        let set = InstructionSet::widest();
        assert!(Winograd::new(&correlation(set, [1, 16, 16, 8, 8, 1], &x, &weight)).is_some());
        assert!(Winograd::new(&correlation(set, [1, 15, 16, 8, 8, 1], &x, &weight)).is_none());
        assert!(Winograd::new(&correlation(set, [1, 16, 16, 2, 2, 1], &x, &weight)).is_none());
        let strided =
            Correlation { stride: [2, 1], ..correlation(set, [1, 16, 16, 8, 8, 1], &x, &weight) };
        assert!(Winograd::new(&strided).is_none());
    }
}
