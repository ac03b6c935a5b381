//! Planes whose every tap is a shift: depthwise convolution and its gradients.
//!
//! A plane is copied with its padding, cut into the remainders of rows and columns modulo the stride. What
//! a tap reads for neighbouring outputs, across rows too, then lies side by side, and a plane is one run
//! of vectors however short its rows are. Lanes behind the end of a row hold numbers that nobody keeps.

use super::correlate::{Correlation, Output, Tap, largest_grid};
use super::tile::Stencil;
use rayon::prelude::*;

/// Numbers that a vector may read or write behind the last element.
pub(super) const SLACK: usize = 16;
/// Numbers that one task copies, at least.
const TASK: usize = 32 * 1024;

/// How a plane is copied.
pub(super) struct Flat {
    size: [usize; 2],
    stride: [usize; 2],
    /// Where the first tap reads for the first output.
    first: [isize; 2],
    /// Remainders of rows and columns that some tap reads.
    phases: [usize; 2],
    /// Rows of one remainder.
    rows: usize,
    /// Columns of one remainder: the distance of consecutive rows of outputs.
    pub(super) segment: usize,
}

impl Flat {
    pub(super) fn new<'a>(
        size: [usize; 2],
        stride: [usize; 2],
        grid: [usize; 2],
        taps: impl Iterator<Item = &'a Tap> + Clone,
    ) -> Self {
        let extent = |offset: fn(&Tap) -> isize| {
            let low = taps.clone().map(offset).min().unwrap_or(0);
            let high = taps.clone().map(offset).max().unwrap_or(0);
            (low, (high - low).unsigned_abs())
        };
        let (first_row, row_span) = extent(|tap| tap.row);
        let (first_column, column_span) = extent(|tap| tap.column);
        Self {
            size,
            stride,
            first: [first_row, first_column],
            phases: [stride[0].min(row_span + 1), stride[1].min(column_span + 1)],
            rows: grid[0] + row_span / stride[0],
            segment: grid[1] + column_span / stride[1],
        }
    }

    /// Numbers that the copy takes, without the [`SLACK`].
    pub(super) fn len(&self) -> usize {
        self.phases[0] * self.phases[1] * self.rows * self.segment
    }

    /// Where a tap reads for the first output.
    pub(super) fn offset(&self, tap: &Tap) -> u32 {
        let [row, column] =
            [tap.row - self.first[0], tap.column - self.first[1]].map(isize::unsigned_abs);
        let phase = row % self.stride[0] * self.phases[1] + column % self.stride[1];
        let row = phase * self.rows + row / self.stride[0];
        (row * self.segment + column / self.stride[1]) as u32
    }

    /// Numbers from the first output to the last, those that nobody keeps between them.
    pub(super) fn span(&self, [height, width]: [usize; 2]) -> usize {
        (height - 1) * self.segment + width
    }

    /// Copies a plane. The padding stays what it was: zeros.
    pub(super) fn stage(&self, from: &[f32], to: &mut [f32]) {
        let [height, width] = self.size;
        let [row_stride, column_stride] = self.stride;
        // An image may be empty, and all padding.
        for (row, from) in from.chunks_exact(width.max(1)).take(height).enumerate() {
            let Some(at) = row.checked_add_signed(-self.first[0]) else { continue };
            let (row_phase, at) = (at % row_stride, at / row_stride);
            if row_phase >= self.phases[0] || at >= self.rows {
                continue;
            }
            for phase in 0..self.phases[1] {
                // The first column of this remainder that is not padding.
                let left = self.first[1] + phase as isize;
                let start = if left < 0 { left.rem_euclid(column_stride as isize) } else { left };
                let column = ((start - left) as usize) / column_stride;
                let start = start as usize;
                if start >= width || column >= self.segment {
                    continue;
                }
                let row = (row_phase * self.phases[1] + phase) * self.rows + at;
                let to = &mut to[row * self.segment..][column..self.segment];
                take_every(column_stride, &from[start..], to);
            }
        }
    }
}

/// Copies every so manieth number, as far as there is room.
#[inline(always)]
pub(super) fn take_every(stride: usize, from: &[f32], to: &mut [f32]) {
    let count = from.len().div_ceil(stride).min(to.len());
    let to = &mut to[..count];
    match stride {
        1 => to.copy_from_slice(&from[..count]),
        2 => {
            // Pairs are turned into vector code; the last may be half of one.
            for (to, pair) in to.iter_mut().zip(from.chunks_exact(2)) {
                *to = pair[0];
            }
            to[count - 1] = from[2 * (count - 1)];
        }
        _ => {
            for (to, from) in to.iter_mut().zip(from.iter().step_by(stride)) {
                *to = *from;
            }
        }
    }
}

/// Correlations of the same planes, one input and one output a group, each to its own places.
///
/// # Safety
///
/// Every place must lie in the buffer.
pub(super) unsafe fn run(correlations: &[Correlation<'_>], out: Output) {
    let Some(first) = correlations.first() else { return };
    let grid = largest_grid(correlations);
    let planes = first.images * first.groups;
    if planes * grid[0] * grid[1] == 0 {
        return;
    }
    let taps = correlations.iter().flat_map(|c| &c.taps);
    let flat = Flat::new(first.size, first.stride, grid, taps);
    let offsets: Vec<Vec<u32>> =
        correlations.iter().map(|c| c.taps.iter().map(|tap| flat.offset(tap)).collect()).collect();
    let plane = first.size[0] * first.size[1];
    let together = (TASK / flat.len().max(1)).clamp(1, planes);

    (0..planes.div_ceil(together)).into_par_iter().for_each_init(
        || (vec![0.0; flat.len() + SLACK], vec![0.0; flat.span(grid) + SLACK], Vec::new()),
        |(staged, sums, weights), task| {
            for at in task * together..((task + 1) * together).min(planes) {
                flat.stage(&first.x[at * plane..][..plane], staged);
                for (c, offsets) in correlations.iter().zip(&offsets) {
                    let of_group = &c.weight[at % c.groups * c.weight_strides[0]..];
                    weights.clear();
                    weights.extend(c.taps.iter().map(|tap| of_group[tap.weight]));
                    let (x, y, len) = (staged.as_ptr(), sums.as_mut_ptr(), flat.span(c.grid));
                    // SAFETY: both buffers have slack for the lanes behind the end.
                    unsafe { c.set.stencil(Stencil { x, y, len, offsets, weights }) };
                    let to = c.place.start + at * c.place.plane;
                    for (row, from) in sums.chunks(flat.segment).take(c.grid[0]).enumerate() {
                        // SAFETY: as the caller promised; no other task has this plane.
                        unsafe {
                            c.place.write(&from[..c.grid[1]], out.at(to + row * c.place.row))
                        };
                    }
                }
            }
        },
    );
}
