//! Correlation with small kernels: the forward pass and the gradient for the input.
//!
//! A strip of the input is copied with its zero padding into a buffer that stays in the cache, columns
//! sorted by their remainder modulo the stride, so that neighbouring outputs read neighbouring numbers
//! whatever the stride. On it runs a matrix product whose inner dimension goes over input channels and
//! taps, without the copies that im2col makes. The lanes hold pixels where rows fill them, and output
//! channels where rows are short.

use super::tile::{InstructionSet, LARGEST_TILE, Product, Scattered, Start, Tile, Transposition};
use super::winograd::Winograd;
use super::{planes, pointwise};
use crate::backend::threads::{share, share_with};

/// One position of the kernel: where it reads, relative to the stride times the output's position, and
/// where its weight lies among those of one pair of channels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub(super) row: isize,
    pub(super) column: isize,
    pub(super) weight: usize,
}

/// `y[n, m, i, j] = sum over c and taps of w[m, c, tap] x[n, c, i stride + tap row, j stride + tap
/// column]`, for each group; what lies outside of x is zero.
pub(super) struct Correlation<'a> {
    pub(super) set: InstructionSet,
    pub(super) images: usize,
    pub(super) groups: usize,
    /// Of a group.
    pub(super) inputs: usize,
    /// Of a group.
    pub(super) outputs: usize,
    /// Height and width of x.
    pub(super) size: [usize; 2],
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    /// Distance of the weights of consecutive groups, outputs and inputs.
    pub(super) weight_strides: [usize; 3],
    /// None give zeros.
    pub(super) taps: Vec<Tap>,
    pub(super) stride: [usize; 2],
    /// Height and width of y.
    pub(super) grid: [usize; 2],
    pub(super) place: Place,
}

/// Where y lies in its buffer.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) plane: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl Place {
    /// Writes a row.
    ///
    /// # Safety
    ///
    /// The places must lie in the buffer, apart from what is written.
    #[inline(always)]
    pub(super) unsafe fn write(self, from: &[f32], to: *mut f32) {
        // SAFETY: as the caller promised.
        unsafe {
            if self.column == 1 {
                return planes::copy(from.as_ptr(), to, from.len());
            }
            for (i, value) in from.iter().enumerate() {
                *to.add(i * self.column) = *value;
            }
        }
    }
}

/// A buffer whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct Output(pub(super) *mut f32);

// SAFETY: whoever writes through it keeps to parts of its own.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    ///
    /// The place must lie in the buffer.
    #[inline(always)]
    pub(super) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: as the caller promised.
        unsafe { self.0.add(index) }
    }
}

/// How the copy of the input lies in its buffer.
struct Staging {
    first: [isize; 2],
    span: [usize; 2],
    /// Numbers of one remainder of the columns.
    segment: usize,
    row: usize,
    plane: usize,
    image: usize,
}

/// Numbers that a vector may read behind the last row; they end in lanes that nobody keeps.
const SLACK: usize = 64;
/// What the copy of the input may take, in numbers.
const STRIP: usize = 64 * 1024;
/// What the weights of one pass may take, in numbers.
const WEIGHTS: usize = 8 * 1024;

/// Output channels that are computed together.
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) width: usize,
    /// Where its weights begin, for each step `width` of them.
    pub(super) packed: usize,
}

/// Correlations of the same x and the same channels, each to its own places. They run side by side, so that
/// places that lie between each other are written while they are in the cache.
///
/// # Safety
///
/// Every place must lie in the buffer.
pub(super) unsafe fn run(correlations: &[Correlation<'_>], out: Output) {
    let Some(first) = correlations.first() else { return };
    if first.inputs == 1 && first.outputs == 1 {
        // SAFETY: as the caller promised.
        return unsafe { planes::run(correlations, out) };
    }
    if let [c] = correlations
        && pointwise::fits(c)
    {
        // SAFETY: as the caller promised.
        return unsafe { pointwise::run(c, out) };
    }
    if let [c] = correlations
        && let Some(winograd) = Winograd::new(c)
    {
        // SAFETY: as the caller promised.
        return unsafe { winograd.run(out) };
    }
    let [height, width] = largest_grid(correlations);
    if first.images * first.groups * first.outputs * height * width == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    // Small images together, so that the weights are read for many pixels.
    let together = (256 / (height * width)).clamp(1, first.images.div_ceil(2 * threads));
    let bundles = first.images.div_ceil(together);
    let per_row = first.inputs * Staging::new(correlations, 1).row * first.stride[0];
    let mut rows = (STRIP / (per_row * together).max(1)).clamp(1, height);
    let enough = (4 * threads).div_ceil(bundles * first.groups);
    rows = rows.min(height.div_ceil(enough.min(height))).max(4.min(height));
    let strips = height.div_ceil(rows);
    let staging = Staging::new(correlations, rows);
    debug_assert!(together * staging.image < u32::MAX as usize);
    let plans: Vec<Plan<'_>> = correlations.iter().map(|c| Plan::new(c, &staging)).collect();

    share_with(
        0..bundles * first.groups * strips,
        || (Vec::new(), Vec::new()),
        |(staged, scratch): &mut (Vec<f32>, Vec<f32>), task| {
            let (strip, rest) = (task % strips, task / strips);
            let (group, bundle) = (rest % first.groups, rest / first.groups);
            let image = bundle * together;
            let images = [image, (image + together).min(first.images)];
            let part = Part { images, rows: [strip * rows, (strip + 1) * rows], group };
            first.stage(&staging, part.within(height), staged);
            for plan in &plans {
                let part = part.within(plan.c.grid[0]);
                if part.rows[0] == part.rows[1] {
                    continue;
                }
                let weights = &plan.packed[group * plan.packed.len() / first.groups..];
                let (c, offsets) = (plan.c, &plan.offsets);
                let work = Work { c, staging: &staging, offsets, staged, weights };
                // SAFETY: parts are disjoint, and their places are in the buffer.
                unsafe {
                    if plan.by_pixels {
                        work.pixels_in_lanes(&plan.blocks, part, out);
                    } else {
                        work.channels_in_lanes(&plan.blocks, part, scratch, out);
                    }
                }
            }
        },
    );
}

/// The largest height and width of the outputs.
pub(super) fn largest_grid(correlations: &[Correlation<'_>]) -> [usize; 2] {
    [0, 1].map(|axis| correlations.iter().map(|c| c.grid[axis]).max().unwrap_or(0))
}

/// What is computed once for all tasks.
struct Plan<'a> {
    c: &'a Correlation<'a>,
    by_pixels: bool,
    blocks: Vec<Block>,
    packed: Vec<f32>,
    offsets: Vec<u32>,
}

impl<'a> Plan<'a> {
    fn new(c: &'a Correlation<'a>, staging: &Staging) -> Self {
        let by_pixels = c.by_pixels();
        let blocks = c.blocks(by_pixels);
        Self { c, by_pixels, packed: c.pack(&blocks), blocks, offsets: c.offsets(staging) }
    }
}

impl Staging {
    /// Of so many rows of outputs.
    fn new(correlations: &[Correlation<'_>], rows: usize) -> Self {
        let Correlation { stride, inputs, .. } = correlations[0];
        let taps = || correlations.iter().flat_map(|c| &c.taps);
        let extent = |offset: fn(&Tap) -> isize| {
            let low = taps().map(offset).min().unwrap_or(0);
            let high = taps().map(offset).max().unwrap_or(0);
            (low, (high - low).unsigned_abs())
        };
        let (first_row, row_span) = extent(|tap| tap.row);
        let (first_column, column_span) = extent(|tap| tap.column);
        let segment = largest_grid(correlations)[1] + column_span / stride[1];
        let row = segment * stride[1].min(column_span + 1);
        let rows = (rows - 1) * stride[0] + row_span + 1;
        // Planes that lie 4 KiB apart would share few places in the first-level cache.
        let plane = match (rows * row).next_multiple_of(16) {
            plane if inputs_collide(plane) => plane + 48,
            plane => plane,
        };
        Self {
            first: [first_row, first_column],
            span: [row_span, column_span],
            segment,
            row,
            plane,
            image: plane * inputs,
        }
    }
}

impl Correlation<'_> {
    fn by_pixels(&self) -> bool {
        if self.taps.is_empty() {
            return true;
        }
        let lanes = self.set.lanes();
        let filled = |n: usize| n as f64 / n.next_multiple_of(lanes) as f64;
        // Pixels in the lanes need no transposition afterwards.
        filled(self.grid[1]) >= 0.8 * filled(self.outputs)
    }

    pub(super) fn blocks(&self, by_pixels: bool) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut packed = 0;
        let mut add = |first, count, width| {
            blocks.push(Block { first, count, width, packed });
            packed += width * self.inputs * self.taps.len();
        };
        if by_pixels {
            // Powers of two alone: another number of rows would have weights that straddle lines.
            let sizes = self.set.rows().iter().filter(|rows| rows.is_power_of_two());
            let sizes: Vec<usize> = sizes.copied().collect();
            let mut first = 0;
            while first < self.outputs {
                let left = self.outputs - first;
                let width = sizes.iter().copied().rfind(|size| *size >= left).unwrap_or(sizes[0]);
                add(first, width.min(left), width);
                first += width;
            }
        } else {
            let lanes = self.set.lanes();
            let rows = self.tile_rows(self.grid[1]);
            let vectors = self.outputs.div_ceil(lanes);
            let most = match self.set.vectors(rows) {
                3 if rows == 8 && !vectors.is_multiple_of(3) => 2,
                most => most,
            };
            let count = vectors.div_ceil(most);
            for block in 0..count {
                let [first, end] = [block, block + 1].map(|i| i * vectors / count * lanes);
                add(first, end.min(self.outputs) - first, end - first);
            }
        }
        blocks
    }

    /// How many of the pixels that are left in a row the next tile takes.
    fn tile_rows(&self, left: usize) -> usize {
        let sizes = self.set.rows();
        let whole = sizes.iter().filter(|size| **size > 4).find(|size| left.is_multiple_of(**size));
        *whole.or_else(|| sizes.iter().find(|size| **size <= left)).unwrap_or(&1)
    }

    /// For each group and block, the weights of each step side by side.
    pub(super) fn pack(&self, blocks: &[Block]) -> Vec<f32> {
        let steps = self.inputs * self.taps.len();
        let of_group: usize = blocks.iter().map(|block| block.width * steps).sum();
        let mut packed = vec![0.0; of_group * self.groups];
        let [of_groups, of_outputs, of_inputs] = self.weight_strides;
        let mut parts = Vec::with_capacity(self.groups * blocks.len());
        let mut rest = packed.as_mut_slice();
        for group in 0..self.groups {
            for block in blocks {
                let (part, after) = rest.split_at_mut(block.width * steps);
                parts.push((group, block, part));
                rest = after;
            }
        }
        let fill = |(group, block, part): (usize, &Block, &mut [f32])| {
            let start = group * of_groups + block.first * of_outputs;
            let weights = &self.weight[start..];
            for (step, lanes) in part.chunks_exact_mut(block.width).enumerate() {
                let (input, tap) = (step / self.taps.len(), step % self.taps.len());
                let at = input * of_inputs + self.taps[tap].weight;
                for (output, lane) in lanes[..block.count].iter_mut().enumerate() {
                    *lane = weights[at + output * of_outputs];
                }
            }
        };
        if of_group * self.groups < planes::TASK {
            parts.into_iter().for_each(fill);
        } else {
            share(parts.into_iter(), fill);
        }
        packed
    }

    /// Where each step, an input channel and a tap, reads.
    fn offsets(&self, staging: &Staging) -> Vec<u32> {
        let place = |tap: &Tap| {
            let row = (tap.row - staging.first[0]) as usize;
            let column = (tap.column - staging.first[1]) as usize;
            let (phase, column) = (column % self.stride[1], column / self.stride[1]);
            row * staging.row + phase * staging.segment + column
        };
        let of_channel = |channel| {
            self.taps.iter().map(move |tap| (channel * staging.plane + place(tap)) as u32)
        };
        (0..self.inputs).flat_map(of_channel).collect()
    }

    fn stage(&self, staging: &Staging, part: Part, staged: &mut Vec<f32>) {
        let images = part.images[1] - part.images[0];
        staged.resize(staged.len().max(images * staging.image + SLACK), 0.0);
        let [height, width] = self.size;
        let rows = (part.rows[1] - part.rows[0] - 1) * self.stride[0] + staging.span[0] + 1;
        let first_row = (part.rows[0] * self.stride[0]) as isize + staging.first[0];
        for image in 0..images {
            for channel in 0..self.inputs {
                let of_x = (part.images[0] + image) * self.groups * self.inputs
                    + part.group * self.inputs
                    + channel;
                let x = &self.x[of_x * height * width..][..height * width];
                let plane = &mut staged[image * staging.image + channel * staging.plane..];
                for row in 0..rows {
                    if row % self.stride[0] > staging.span[0] {
                        continue; // No output reads it.
                    }
                    let to = &mut plane[row * staging.row..][..staging.row];
                    let from = first_row + row as isize;
                    if from < 0 || from >= height as isize {
                        to.fill(0.0);
                        continue;
                    }
                    let from = &x[from as usize * width..][..width];
                    for (phase, to) in to.chunks_exact_mut(staging.segment).enumerate() {
                        copy_row(from, staging.first[1] + phase as isize, self.stride[1], to);
                    }
                }
            }
        }
    }
}

fn inputs_collide(plane: usize) -> bool {
    let line = plane % 1024;
    !(32..=992).contains(&line)
}

/// `to[k] = from[first + k stride]`, and zero outside.
pub(super) fn copy_row(from: &[f32], first: isize, stride: usize, to: &mut [f32]) {
    let width = from.len() as isize;
    let (start, before) = planes::inside(first, stride);
    let before = before.min(to.len());
    let end = (width - first).max(0).unsigned_abs().div_ceil(stride).clamp(before, to.len());
    to[..before].fill(0.0);
    to[end..].fill(0.0);
    let middle = &mut to[before..end];
    if middle.is_empty() {
        return;
    }
    planes::take_every(stride, &from[start..], middle);
}

/// The images and output rows (start and end) of a group that one task computes.
#[derive(Clone, Copy)]
struct Part {
    images: [usize; 2],
    rows: [usize; 2],
    group: usize,
}

impl Part {
    /// Cut to the rows that there are.
    fn within(self, height: usize) -> Self {
        Self { rows: self.rows.map(|row| row.min(height)), ..self }
    }
}

struct Work<'a> {
    c: &'a Correlation<'a>,
    staging: &'a Staging,
    offsets: &'a [u32],
    staged: &'a [f32],
    /// Of the group.
    weights: &'a [f32],
}

impl Work<'_> {
    /// # Safety
    ///
    /// The part's places must lie in the buffer, and nobody else may write to them.
    unsafe fn pixels_in_lanes(&self, blocks: &[Block], part: Part, out: Output) {
        let Self { c, staging, .. } = self;
        let lanes = c.set.lanes();
        let width = c.grid[1];
        let across = width.div_ceil(lanes);
        let rows = part.rows[1] - part.rows[0];
        let mut scratch = [0.0f32; LARGEST_TILE];
        for block in blocks {
            let most = c.set.vectors(block.width);
            let tiles: Vec<Tile> =
                (1..=most).map(|v| c.set.tile(block.width, v, Scattered::B)).collect();
            let a = self.weights[block.packed..].as_ptr();
            for image in 0..part.images[1] - part.images[0] {
                let output = (part.images[0] + image) * c.groups * c.outputs
                    + part.group * c.outputs
                    + block.first;
                // The vectors of a tile lie side by side, or, where one fills a row, below each other.
                let (tall, wide) = if across == 1 { (most, 1) } else { (1, most) };
                let mut row = 0;
                while row < rows {
                    let tall = tall.min(rows - row);
                    let mut vector = 0;
                    while vector < across {
                        // Not three and one, where it can be two and two.
                        let wide = match across - vector {
                            4 if most == 3 => 2,
                            left => left.min(wide),
                        };
                        let vectors = wide * tall;
                        // The last tile of a row goes back over what the one before has written.
                        let mut column = vector * lanes;
                        if column + wide * lanes > width && width >= wide * lanes {
                            column = width - wide * lanes;
                        }
                        let b = image * staging.image + row * c.stride[0] * staging.row + column;
                        let to = c.place.start
                            + output * c.place.plane
                            + (part.rows[0] + row) * c.place.row
                            + column * c.place.column;
                        let direct = block.count == block.width
                            && c.place.column == 1
                            && column + wide * lanes <= width;
                        let (c_pointer, c_row, c_vector) = if direct {
                            let vector = if tall > 1 { c.place.row } else { lanes };
                            // SAFETY: as the caller promised.
                            (unsafe { out.at(to) }, c.place.plane, vector)
                        } else {
                            (scratch.as_mut_ptr(), vectors * lanes, lanes)
                        };
                        let product = Product {
                            a,
                            b: self.staged[b..].as_ptr(),
                            c: c_pointer,
                            offsets: self.offsets,
                            step: block.width,
                            b_vector: if tall > 1 { c.stride[0] * staging.row } else { lanes },
                            c_vector,
                            c_row,
                            start: Start::Zero,
                        };
                        // SAFETY: the packed weights have a row for every step; the staged copy has
                        // every place that a pixel reads, and slack behind it for the lanes beyond.
                        unsafe { tiles[vectors - 1](product) };
                        if !direct {
                            let valid = (width - column).min(wide * lanes);
                            for m in 0..block.count {
                                for v in 0..tall {
                                    let from = &scratch[m * vectors * lanes + v * lanes..];
                                    let to = to + m * c.place.plane + v * c.place.row;
                                    // SAFETY: as the caller promised.
                                    unsafe { c.place.write(&from[..valid], out.at(to)) };
                                }
                            }
                        }
                        vector += wide;
                    }
                    row += tall;
                }
            }
        }
    }

    /// # Safety
    ///
    /// As for [`pixels_in_lanes`](Self::pixels_in_lanes).
    unsafe fn channels_in_lanes(
        &self,
        blocks: &[Block],
        part: Part,
        scratch: &mut Vec<f32>,
        out: Output,
    ) {
        let Self { c, staging, .. } = self;
        let lanes = c.set.lanes();
        let width = c.grid[1];
        let rows = part.rows[1] - part.rows[0];
        let images = part.images[1] - part.images[0];
        for block in blocks {
            scratch.resize(scratch.len().max(images * rows * width * block.width), 0.0);
            let vectors = block.width / lanes;
            let passes = (self.offsets.len() * block.width).div_ceil(WEIGHTS);
            let steps = self.offsets.len().div_ceil(passes);
            for (pass, offsets) in self.offsets.chunks(steps).enumerate() {
                let b = self.weights[block.packed + pass * steps * block.width..].as_ptr();
                let mut left = width;
                while left > 0 {
                    let pixels = c.tile_rows(left);
                    let tile = c.set.tile(pixels, vectors, Scattered::A);
                    let column = width - left;
                    for image in 0..images {
                        for row in 0..rows {
                            let a =
                                image * staging.image + row * c.stride[0] * staging.row + column;
                            let to = ((image * rows + row) * width + column) * block.width;
                            let product = Product {
                                a: self.staged[a..].as_ptr(),
                                b,
                                c: scratch[to..][..pixels * block.width].as_mut_ptr(),
                                offsets,
                                step: block.width,
                                b_vector: lanes,
                                c_vector: lanes,
                                c_row: block.width,
                                start: if pass == 0 { Start::Zero } else { Start::Output },
                            };
                            // SAFETY: the staged copy has every place that a pixel reads, the packed
                            // weights a row for every step.
                            unsafe { tile(product) };
                        }
                    }
                    left -= pixels;
                }
            }
            for image in 0..images {
                let output = (part.images[0] + image) * c.groups * c.outputs
                    + part.group * c.outputs
                    + block.first;
                let to = c.place.start + output * c.place.plane + part.rows[0] * c.place.row;
                let from = &scratch[image * rows * width * block.width..];
                // SAFETY: as the caller promised.
                unsafe { self.write(from, block, rows, out.at(to)) };
            }
        }
    }

    /// Writes what lies by pixels and channels to planes.
    ///
    /// # Safety
    ///
    /// As for [`pixels_in_lanes`](Self::pixels_in_lanes).
    unsafe fn write(&self, from: &[f32], block: &Block, rows: usize, to: *mut f32) {
        let c = self.c;
        let (width, place) = (c.grid[1], c.place);
        // SAFETY: as the caller promised.
        unsafe {
            if place.column != 1 {
                // A few pixels at a time, so that each plane is gone to once for all of them.
                const PIXELS: usize = 16;
                let mut planes = [0.0; 64 * PIXELS];
                for (row, from) in from.chunks_exact(width * block.width).take(rows).enumerate() {
                    for (part, from) in from.chunks(PIXELS * block.width).enumerate() {
                        let pixels = from.len() / block.width;
                        c.set.transpose(Transposition {
                            from: from.as_ptr(),
                            from_row: block.width,
                            rows: pixels,
                            columns: block.count,
                            to: planes.as_mut_ptr(),
                            to_row: PIXELS,
                        });
                        let to = to.add(row * place.row + part * PIXELS * place.column);
                        let planes = planes.chunks_exact(PIXELS).take(block.count);
                        for (m, plane) in planes.enumerate() {
                            place.write(&plane[..pixels], to.add(m * place.plane));
                        }
                    }
                }
                return;
            }
            let (times, pixels) =
                if place.row == width { (1, rows * width) } else { (rows, width) };
            for i in 0..times {
                c.set.transpose(Transposition {
                    from: from[i * pixels * block.width..][..pixels * block.width].as_ptr(),
                    from_row: block.width,
                    rows: pixels,
                    columns: block.count,
                    to: to.add(i * place.row),
                    to_row: place.plane,
                });
            }
        }
    }
}
