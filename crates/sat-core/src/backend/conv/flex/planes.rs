//! Planes whose every tap is a shift: depthwise convolution and its gradients.
//!
//! A plane is copied with its padding, cut into the remainders of rows and columns modulo the stride. What
//! a tap reads for neighbouring outputs, across rows too, then lies side by side, and a plane is one run
//! of vectors however short its rows are. Lanes behind the end of a row hold numbers that nobody keeps.

use super::correlate::{Correlation, Output, Tap, largest_grid};
use super::tile::Stencil;
use crate::backend::threads::share_with;

/// Numbers that a vector may read or write behind the last element.
pub(super) const SLACK: usize = 16;
/// Numbers that a task copies or adds, about.
pub(super) const TASK: usize = 32 * 1024;

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
        for row_phase in 0..self.phases[0] {
            let (top, first_row) = inside(self.first[0] + row_phase as isize, row_stride);
            for column_phase in 0..self.phases[1] {
                let (left, first_column) =
                    inside(self.first[1] + column_phase as isize, column_stride);
                if left >= width || first_column >= self.segment {
                    continue;
                }
                let phase = row_phase * self.phases[1] + column_phase;
                for (i, row) in (top..height).step_by(row_stride).enumerate() {
                    let at = first_row + i;
                    if at >= self.rows {
                        break;
                    }
                    let to = &mut to[(phase * self.rows + at) * self.segment..];
                    let to = &mut to[first_column..self.segment];
                    take_every(column_stride, &from[row * width + left..(row + 1) * width], to);
                }
            }
        }
    }
}

/// The first of `first`, `first + stride` and so on that is not negative, and its number.
pub(super) fn inside(first: isize, stride: usize) -> (usize, usize) {
    let number = (-first).max(0).unsigned_abs().div_ceil(stride);
    ((first + (number * stride) as isize).unsigned_abs(), number)
}

/// Copies every so manieth number, as far as there is room.
#[inline(always)]
pub(super) fn take_every(stride: usize, from: &[f32], to: &mut [f32]) {
    if stride == 1 {
        let count = from.len().min(to.len());
        // SAFETY: both have so many, and a slice to be written has no part in another.
        return unsafe { copy(from.as_ptr(), to.as_mut_ptr(), count) };
    }
    let count = from.len().div_ceil(stride).min(to.len());
    let to = &mut to[..count];
    match stride {
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

/// Copies so many numbers. The rows of small images are too short for a call of `memcpy`.
///
/// # Safety
///
/// Both must be valid for so many, and apart.
#[inline(always)]
pub(super) unsafe fn copy(from: *const f32, to: *mut f32, count: usize) {
    /// Two pieces that may overlap. Of a loop the compiler would make a call of `memcpy` again.
    #[inline(always)]
    unsafe fn pieces<const N: usize>(from: *const f32, to: *mut f32, count: usize) {
        for at in [0, count - N] {
            // SAFETY: as the caller promised; there are N numbers at least.
            unsafe {
                let numbers = from.add(at).cast::<[f32; N]>().read_unaligned();
                to.add(at).cast::<[f32; N]>().write_unaligned(numbers);
            }
        }
    }
    // SAFETY: as the caller promised.
    unsafe {
        match count {
            1 => pieces::<1>(from, to, count),
            2..4 => pieces::<2>(from, to, count),
            4..8 => pieces::<4>(from, to, count),
            8..16 => pieces::<8>(from, to, count),
            16..32 => pieces::<16>(from, to, count),
            32..64 => pieces::<32>(from, to, count),
            _ => to.copy_from_nonoverlapping(from, count),
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

    share_with(
        0..planes.div_ceil(together),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_all_numbers_and_no_more() {
        let from: Vec<f32> = (1..=100).map(|i| i as f32).collect();
        for count in 0..=from.len() {
            let mut to = vec![0.0; from.len() + 1];
            // SAFETY: both are as long at least, and apart.
            unsafe { copy(from.as_ptr(), to.as_mut_ptr(), count) };
            assert_eq!(to[..count], from[..count]);
            assert!(to[count..].iter().all(|number| *number == 0.0), "{count}");
        }
    }
}
