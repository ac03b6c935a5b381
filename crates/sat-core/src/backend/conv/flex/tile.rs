//! The register tile that all products are made of, for each instruction set.

use super::simd::{Portable, Vector};

/// What a tile computes with: `c[r][v] (+)= sum over k of a_k[r] b_k[v]`, where a's numbers are spread
/// over the lanes and v counts vectors.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) a: *const f32,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    /// Where the side that lies scattered has its element k; its length is the number of steps.
    pub(super) offsets: &'a [u32],
    /// Distance of consecutive elements of the other side.
    pub(super) step: usize,
    /// Distance of the vectors of b.
    pub(super) b_vector: usize,
    /// Distance of the vectors of c.
    pub(super) c_vector: usize,
    /// Distance of the rows of c.
    pub(super) c_row: usize,
    pub(super) start: Start,
}

/// What the sums start from.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Start {
    Zero,
    /// What c holds.
    Output,
}

/// No tile has more sums than this.
pub(super) const LARGEST_TILE: usize = 8 * 4 * 16;

/// A compiled tile.
pub(super) type Tile = unsafe fn(Product<'_>);

/// Which side of a product lies scattered.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scattered {
    A,
    B,
}

/// # Safety
///
/// As for [`Vector`]; the pointers of the product must be valid for what it reads and writes.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize, const A: bool>(p: Product<'_>) {
    // SAFETY: as the caller promised.
    unsafe {
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        if p.start == Start::Output {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(p.c.add(r * p.c_row + v * p.c_vector));
                }
            }
        }
        let mut dense = if A { p.b } else { p.a };
        for &offset in p.offsets {
            let (a, b) = if A {
                (p.a.add(offset as usize), dense)
            } else {
                (dense, p.b.add(offset as usize))
            };
            let mut vectors = [V::zero(); VECTORS];
            for (v, vector) in vectors.iter_mut().enumerate() {
                *vector = V::load(b.add(v * p.b_vector));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::splat(*a.add(r));
                for (sum, b) in sums.iter_mut().zip(vectors) {
                    *sum = sum.add_product(a, b);
                }
            }
            dense = dense.add(p.step);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(p.c.add(r * p.c_row + v * p.c_vector));
            }
        }
    }
}

/// The correlation of a plane of gradients with TAPS shifted planes: `sums[t][lane] += sum over i of
/// y[i lanes + lane] x[offsets[t] + i lanes + lane]`, where y is a multiple of the lanes long.
///
/// # Safety
///
/// As for [`tile`]; x must be valid up to the largest offset and the length of y.
#[inline(always)]
unsafe fn dots<V: Vector, const TAPS: usize>(
    x: *const f32,
    y: &[f32],
    offsets: &[u32],
    sums: &mut [f32],
) {
    // SAFETY: as the caller promised; there is a vector of sums for every tap.
    unsafe {
        let offsets: [usize; TAPS] = core::array::from_fn(|t| offsets[t] as usize);
        let sums = &mut sums[..TAPS * V::LANES];
        let mut totals: [V; TAPS] =
            core::array::from_fn(|t| V::load(sums.as_ptr().add(t * V::LANES)));
        for (i, y) in y.chunks_exact(V::LANES).enumerate() {
            let y = V::load(y.as_ptr());
            for (total, offset) in totals.iter_mut().zip(offsets) {
                *total = total.add_product(y, V::load(x.add(i * V::LANES + offset)));
            }
        }
        for (t, total) in totals.into_iter().enumerate() {
            total.store(sums.as_mut_ptr().add(t * V::LANES));
        }
    }
}

/// `y[i] = sum over t of weights[t] x[offsets[t] + i]` up to the next multiple of the lanes.
#[derive(Clone, Copy)]
pub(super) struct Stencil<'a> {
    pub(super) x: *const f32,
    pub(super) y: *mut f32,
    pub(super) len: usize,
    pub(super) offsets: &'a [u32],
    pub(super) weights: &'a [f32],
}

/// # Safety
///
/// As for [`tile`]; the taps must be TAPS, but for 0, which takes any number.
#[inline(always)]
unsafe fn stencil<V: Vector, const TAPS: usize>(s: Stencil<'_>) {
    // SAFETY: as the caller promised.
    unsafe {
        if TAPS == 0 {
            for at in (0..s.len).step_by(V::LANES) {
                let mut sum = V::zero();
                for (weight, offset) in s.weights.iter().zip(s.offsets) {
                    sum =
                        sum.add_product(V::splat(*weight), V::load(s.x.add(at + *offset as usize)));
                }
                sum.store(s.y.add(at));
            }
            return;
        }
        let weights: [V; TAPS] = core::array::from_fn(|t| V::splat(s.weights[t]));
        let offsets: [usize; TAPS] = core::array::from_fn(|t| s.offsets[t] as usize);
        for at in (0..s.len).step_by(V::LANES) {
            let x = s.x.add(at);
            let mut sum = V::zero();
            for (weight, offset) in weights.into_iter().zip(offsets) {
                sum = sum.add_product(weight, V::load(x.add(offset)));
            }
            sum.store(s.y.add(at));
        }
    }
}

/// # Safety
///
/// As for [`tile`]: `from` and `to` must be valid for the matrix and its transpose.
#[inline(always)]
unsafe fn transpose<V: Vector>(t: Transposition) {
    let Transposition { from, from_row, rows, columns, to, to_row } = t;
    let lanes = V::LANES;
    let (whole_rows, whole_columns) = (rows / lanes * lanes, columns / lanes * lanes);
    // SAFETY: as the caller promised.
    unsafe {
        for i in (0..whole_rows).step_by(lanes) {
            for j in (0..whole_columns).step_by(lanes) {
                V::transpose(from.add(i * from_row + j), from_row, to.add(j * to_row + i), to_row);
            }
        }
        for i in 0..rows {
            let done = if i < whole_rows { whole_columns } else { 0 };
            for j in done..columns {
                *to.add(j * to_row + i) = *from.add(i * from_row + j);
            }
        }
    }
}

/// `to[j * to_row + i] = from[i * from_row + j]`
#[derive(Clone, Copy)]
pub(super) struct Transposition {
    pub(super) from: *const f32,
    pub(super) from_row: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) to: *mut f32,
    pub(super) to_row: usize,
}

/// An instruction set, which the machine has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

macro_rules! choose {
    ($function:ident, $rows:expr, $vectors:expr, $scattered:expr; $($r:literal: $($v:literal)*;)*) => {
        match ($rows, $vectors, $scattered) {
            $($(
                ($r, $v, Scattered::A) => $function::<$r, $v, true>,
                ($r, $v, Scattered::B) => $function::<$r, $v, false>,
            )*)*
            (rows, vectors, _) => unreachable!("no tile of {rows} by {vectors}"),
        }
    };
}

impl InstructionSet {
    /// All that the machine has, the widest first.
    pub(super) fn all() -> Vec<Self> {
        vec![
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            Self::Portable,
        ]
        .into_iter()
        .filter(|set| match set {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
            }
            Self::Portable => true,
        })
        .collect()
    }

    pub(super) fn widest() -> Self {
        Self::all()[0]
    }

    pub(super) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 8,
            Self::Portable => Portable::LANES,
        }
    }

    /// The numbers of rows that tiles have, the largest first.
    pub(super) fn rows(self) -> &'static [usize] {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => &[8, 7, 4, 2, 1],
            _ => &[4, 2, 1],
        }
    }

    /// The most vectors that a tile with so many rows has.
    pub(super) fn vectors(self, rows: usize) -> usize {
        match (self, rows) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, 8) => 3,
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, _) => 4,
            _ => 3,
        }
    }

    /// The tile of a size out of [`rows`](Self::rows) and 1 to [`vectors`](Self::vectors).
    pub(super) fn tile(self, rows: usize, vectors: usize, scattered: Scattered) -> Tile {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<const ROWS: usize, const VECTORS: usize, const A: bool>(p: Product<'_>) {
            // SAFETY: as for `tile`, here and below.
            unsafe { tile::<core::arch::x86_64::__m512, ROWS, VECTORS, A>(p) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<const ROWS: usize, const VECTORS: usize, const A: bool>(p: Product<'_>) {
            unsafe { tile::<core::arch::x86_64::__m256, ROWS, VECTORS, A>(p) }
        }
        unsafe fn portable<const ROWS: usize, const VECTORS: usize, const A: bool>(p: Product<'_>) {
            unsafe { tile::<Portable, ROWS, VECTORS, A>(p) }
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => choose!(avx512, rows, vectors, scattered;
                8: 1 2 3; 7: 1 2 3 4; 4: 1 2 3 4; 2: 1 2 3 4; 1: 1 2 3 4;),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => choose!(avx2, rows, vectors, scattered;
                4: 1 2 3; 2: 1 2 3; 1: 1 2 3;),
            Self::Portable => choose!(portable, rows, vectors, scattered;
                4: 1 2 3; 2: 1 2 3; 1: 1 2 3;),
        }
    }

    /// # Safety
    ///
    /// The pointers must be valid for the matrix and its transpose.
    pub(super) unsafe fn transpose(self, t: Transposition) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512(t: Transposition) {
            // SAFETY: as the caller promised, here and below.
            unsafe { transpose::<core::arch::x86_64::__m512>(t) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(t: Transposition) {
            unsafe { transpose::<core::arch::x86_64::__m256>(t) }
        }
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512(t),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(t),
                Self::Portable => transpose::<Portable>(t),
            }
        }
    }

    /// How many of the taps that are left [`dots`](Self::dots) takes: as many as there are registers for.
    pub(super) fn taps(self, left: usize) -> usize {
        let most = if self.lanes() == 16 { 25 } else { 9 };
        [25, 9, 3, 1].into_iter().find(|taps| *taps <= left.min(most)).unwrap_or(1)
    }

    /// # Safety
    ///
    /// x must be valid for what is read; the taps must be as many as [`taps`](Self::taps) says.
    pub(super) unsafe fn dots(self, x: *const f32, y: &[f32], offsets: &[u32], sums: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<const TAPS: usize>(x: *const f32, y: &[f32], o: &[u32], sums: &mut [f32]) {
            // SAFETY: as the caller promised, here and below.
            unsafe { dots::<core::arch::x86_64::__m512, TAPS>(x, y, o, sums) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<const TAPS: usize>(x: *const f32, y: &[f32], o: &[u32], sums: &mut [f32]) {
            unsafe { dots::<core::arch::x86_64::__m256, TAPS>(x, y, o, sums) }
        }
        macro_rules! by_taps {
            ($function:ident$(, $vector:ty)?) => {
                match offsets.len() {
                    25 => $function::<$($vector,)? 25>(x, y, offsets, sums),
                    9 => $function::<$($vector,)? 9>(x, y, offsets, sums),
                    3 => $function::<$($vector,)? 3>(x, y, offsets, sums),
                    1 => $function::<$($vector,)? 1>(x, y, offsets, sums),
                    taps => unreachable!("no loop for {taps} taps"),
                }
            };
        }
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => by_taps!(avx512),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => by_taps!(avx2),
                Self::Portable => by_taps!(dots, Portable),
            }
        }
    }

    /// # Safety
    ///
    /// x and y must be valid for what is read and written.
    pub(super) unsafe fn stencil(self, s: Stencil<'_>) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<const TAPS: usize>(s: Stencil<'_>) {
            // SAFETY: as the caller promised, here and below.
            unsafe { stencil::<core::arch::x86_64::__m512, TAPS>(s) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<const TAPS: usize>(s: Stencil<'_>) {
            unsafe { stencil::<core::arch::x86_64::__m256, TAPS>(s) }
        }
        // The kernels of networks, and what is left of them for each remainder at stride 2.
        macro_rules! by_taps {
            ($function:ident$(, $vector:ty)?) => {
                match s.offsets.len() {
                    1 => $function::<$($vector,)? 1>(s),
                    2 => $function::<$($vector,)? 2>(s),
                    4 => $function::<$($vector,)? 4>(s),
                    6 => $function::<$($vector,)? 6>(s),
                    9 => $function::<$($vector,)? 9>(s),
                    25 => $function::<$($vector,)? 25>(s),
                    _ => $function::<$($vector,)? 0>(s),
                }
            };
        }
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => by_taps!(avx512),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => by_taps!(avx2),
                Self::Portable => by_taps!(stencil, Portable),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tile_is_larger_than_the_largest() {
        for set in InstructionSet::all() {
            for &rows in set.rows() {
                assert!(rows * set.vectors(rows) * set.lanes() <= LARGEST_TILE, "{set:?}, {rows}");
            }
        }
    }
}
