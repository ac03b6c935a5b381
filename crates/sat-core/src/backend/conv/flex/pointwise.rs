//! Kernels of one position: a matrix product that meets the pixels where they lie, without a copy.

use super::correlate::{Correlation, Output, Tap};
use super::tile::{LARGEST_TILE, Product, Scattered, Start, Tile};
use crate::backend::threads::share_with;

/// Inputs that a task takes, in numbers.
const PANEL: usize = 32 * 1024;

/// Whether it is such a kernel, and a plane fills a vector.
pub(super) fn fits(c: &Correlation<'_>) -> bool {
    let plane = c.size[0] * c.size[1];
    let at_once = |tap: &Tap| tap.row == 0 && tap.column == 0;
    c.taps.len() == 1
        && c.taps.iter().all(at_once)
        && c.stride == [1, 1]
        && c.grid == c.size
        && c.place.column == 1
        && c.place.row == c.size[1]
        && plane >= c.set.lanes()
        && c.inputs * plane < u32::MAX as usize
}

/// # Safety
///
/// The correlation must [fit](fits), and every place must lie in the buffer.
pub(super) unsafe fn run(c: &Correlation<'_>, out: Output) {
    let lanes = c.set.lanes();
    let plane = c.size[0] * c.size[1];
    let blocks = c.blocks(true);
    let packed = c.pack(&blocks);
    let offsets: Vec<u32> = (0..c.inputs).map(|input| (input * plane) as u32).collect();
    let tiles: Vec<Vec<Tile>> = blocks
        .iter()
        .map(|block| {
            let vectors = 1..=c.set.vectors(block.width);
            vectors.map(|v| c.set.tile(block.width, v, Scattered::B)).collect()
        })
        .collect();
    let most = tiles.iter().map(Vec::len).min().unwrap_or(1).min(plane / lanes);
    let vectors = plane.div_ceil(lanes);
    let images = c.images * c.groups;
    // Pixels whose inputs stay in the cache for all outputs, in whole tiles.
    let panel = (PANEL / (c.inputs * lanes)).clamp(1, vectors).next_multiple_of(most);
    let panels = vectors.div_ceil(panel);
    // Small ones together: a task is to be longer than it takes to fetch it.
    let tasks = images * panels;
    let fair = tasks.div_ceil(2 * rayon::current_num_threads()).max(1);
    let together = (PANEL / (c.inputs * plane)).clamp(1, fair);
    let parts = (0..tasks).step_by(together).map(|first| first..(first + together).min(tasks));
    share_with(
        parts,
        || [0.0f32; LARGEST_TILE],
        |scratch, part| {
            for task in part {
                let (number, image) = (task % panels, task / panels);
                let [first, end] = [number, number + 1].map(|i| (i * panel).min(vectors));
                let x = &c.x[image * c.inputs * plane..][..c.inputs * plane];
                let packed = &packed[image % c.groups * packed.len() / c.groups..];
                for (block, tiles) in blocks.iter().zip(&tiles) {
                    let to = c.place.start + (image * c.outputs + block.first) * c.place.plane;
                    let mut vector = first;
                    while vector < end {
                        let wide = match end - vector {
                            // Not three and one, where it can be two and two.
                            4 if most == 3 => 2,
                            left => left.min(most),
                        };
                        let column = vector * lanes;
                        // The last vectors of a plane are read from further left.
                        let again = (column + wide * lanes).saturating_sub(plane);
                        let direct = again == 0 && block.count == block.width;
                        let (c_pointer, c_row) = if direct {
                            // SAFETY: as the caller promised.
                            (unsafe { out.at(to + column) }, c.place.plane)
                        } else {
                            (scratch.as_mut_ptr(), wide * lanes)
                        };
                        let product = Product {
                            a: packed[block.packed..].as_ptr(),
                            b: x[column - again..].as_ptr(),
                            c: c_pointer,
                            offsets: &offsets,
                            step: block.width,
                            b_vector: lanes,
                            c_vector: lanes,
                            c_row,
                            start: Start::Zero,
                        };
                        // SAFETY: the packed weights have a row for every input, each plane the vectors.
                        unsafe { tiles[wide - 1](product) };
                        if !direct {
                            let rows = scratch.chunks_exact(wide * lanes).take(block.count);
                            for (m, row) in rows.enumerate() {
                                let to = to + m * c.place.plane + column;
                                // SAFETY: as the caller promised; tasks have columns of their own.
                                unsafe { c.place.write(&row[again..], out.at(to)) };
                            }
                        }
                        vector += wide;
                    }
                }
            }
        },
    );
}
