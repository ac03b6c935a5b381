//! The transforms and the matrix product of Winograd's method, for each instruction set.
//!
//! Outputs of one tile are coefficients of a product of polynomials, which is known from its values at
//! six points: 0, ±A, ±B and infinity. With A = 5/8 and B = 3/2 the rounding errors are
//! a third of those that the usual points 0, ±1, ±2 have.

use super::super::simd::{Portable, Vector};
use super::super::tile::InstructionSet;

const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
/// One over the products of the distances between a point and the others.
const AT_0: f32 = 1.0 / (A2 * B2);
const AT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
const AT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));

/// A linear map of N vectors to M.
pub(super) trait OneWay<const N: usize, const M: usize> {
    /// # Safety
    ///
    /// As for [`Vector`].
    unsafe fn apply<V: Vector>(v: [V; N]) -> [V; M];
}

/// Six inputs to the values that meet the kernel's.
pub(super) struct Input;
/// The kernel's three weights to its values at the points.
pub(super) struct Kernel;
/// Values of the product at the points to four outputs.
pub(super) struct Output;
/// The transpose of [`Output`]: the gradient of four outputs to that of the products.
pub(super) struct Gradient;
/// The transpose of [`Kernel`]: the gradient of the kernel's values to that of its weights.
pub(super) struct KernelGradient;

impl OneWay<6, 6> for Input {
    #[inline(always)]
    unsafe fn apply<V: Vector>([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        // SAFETY: as the caller promised, here and below.
        unsafe {
            let [a, b] = [A, B].map(|x| V::splat(x));
            let [minus_a, minus_b] = [-A, -B].map(|x| V::splat(x));
            let [minus_a2, minus_b2] = [-A2, -B2].map(|x| V::splat(x));
            let (product, minus_sum) = (V::splat(A2 * B2), V::splat(-(A2 + B2)));
            let (even_a, odd_a) = (d4.add_product(minus_b2, d2), d3.add_product(minus_b2, d1));
            let (even_b, odd_b) = (d4.add_product(minus_a2, d2), d3.add_product(minus_a2, d1));
            [
                d4.add_product(minus_sum, d2).add_product(product, d0),
                even_a.add_product(a, odd_a),
                even_a.add_product(minus_a, odd_a),
                even_b.add_product(b, odd_b),
                even_b.add_product(minus_b, odd_b),
                d5.add_product(minus_sum, d3).add_product(product, d1),
            ]
        }
    }
}

impl OneWay<3, 6> for Kernel {
    #[inline(always)]
    unsafe fn apply<V: Vector>([g0, g1, g2]: [V; 3]) -> [V; 6] {
        unsafe {
            let zero = V::zero();
            let even = |scale: f32, square: f32| {
                zero.add_product(V::splat(scale), g0).add_product(V::splat(scale * square), g2)
            };
            let (at_a, at_b) = (even(AT_A, A2), even(AT_B, B2));
            [
                zero.add_product(V::splat(AT_0), g0),
                at_a.add_product(V::splat(AT_A * A), g1),
                at_a.add_product(V::splat(-AT_A * A), g1),
                at_b.add_product(V::splat(AT_B * B), g1),
                at_b.add_product(V::splat(-AT_B * B), g1),
                g2,
            ]
        }
    }
}

impl OneWay<6, 4> for Output {
    #[inline(always)]
    unsafe fn apply<V: Vector>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        unsafe {
            let (zero, one, minus_one) = (V::zero(), V::splat(1.0), V::splat(-1.0));
            let (sum_a, sum_b) = (m1.add_product(one, m2), m3.add_product(one, m4));
            let (odd_a, odd_b) = (m1.add_product(minus_one, m2), m3.add_product(minus_one, m4));
            let of = |start: V, a: f32, of_a: V, b: f32, of_b: V| {
                start.add_product(V::splat(a), of_a).add_product(V::splat(b), of_b)
            };
            [
                m0.add_product(one, sum_a).add_product(one, sum_b),
                of(zero, A, odd_a, B, odd_b),
                of(zero, A2, sum_a, B2, sum_b),
                of(m5, A2 * A, odd_a, B2 * B, odd_b),
            ]
        }
    }
}

impl OneWay<4, 6> for Gradient {
    #[inline(always)]
    unsafe fn apply<V: Vector>([y0, y1, y2, y3]: [V; 4]) -> [V; 6] {
        unsafe {
            let [a, b] = [A, B].map(|x| V::splat(x));
            let [minus_a, minus_b] = [-A, -B].map(|x| V::splat(x));
            let [a2, b2] = [A2, B2].map(|x| V::splat(x));
            let (even_a, odd_a) = (y0.add_product(a2, y2), y1.add_product(a2, y3));
            let (even_b, odd_b) = (y0.add_product(b2, y2), y1.add_product(b2, y3));
            [
                y0,
                even_a.add_product(a, odd_a),
                even_a.add_product(minus_a, odd_a),
                even_b.add_product(b, odd_b),
                even_b.add_product(minus_b, odd_b),
                y3,
            ]
        }
    }
}

impl OneWay<6, 3> for KernelGradient {
    #[inline(always)]
    unsafe fn apply<V: Vector>([u0, u1, u2, u3, u4, u5]: [V; 6]) -> [V; 3] {
        unsafe {
            let (one, minus_one) = (V::splat(1.0), V::splat(-1.0));
            let (sum_a, sum_b) = (u1.add_product(one, u2), u3.add_product(one, u4));
            let (odd_a, odd_b) = (u1.add_product(minus_one, u2), u3.add_product(minus_one, u4));
            let of = |start: V, a: f32, of_a: V, b: f32, of_b: V| {
                start.add_product(V::splat(a), of_a).add_product(V::splat(b), of_b)
            };
            let at_0 = V::zero().add_product(V::splat(AT_0), u0);
            [
                of(at_0, AT_A, sum_a, AT_B, sum_b),
                of(V::zero(), AT_A * A, odd_a, AT_B * B, odd_b),
                of(u5, AT_A * A2, sum_a, AT_B * B2, sum_b),
            ]
        }
    }
}

/// A square of vectors, each `len` long in all, to another.
#[derive(Clone, Copy)]
pub(super) struct Transform<'a> {
    pub(super) from: *const f32,
    /// Where each vector of the square lies.
    pub(super) at: &'a [u32],
    pub(super) to: *mut f32,
    /// Where each vector of the result goes.
    pub(super) into: &'a [u32],
    /// A multiple of the lanes.
    pub(super) len: usize,
}

/// The map along the columns, then along the rows.
///
/// # Safety
///
/// As for [`Vector`]; the pointers must be valid for what is read and written.
#[inline(always)]
unsafe fn both_ways<V: Vector, W: OneWay<N, M>, const N: usize, const M: usize>(t: Transform<'_>) {
    let (at, into) = (&t.at[..N * N], &t.into[..M * M]);
    for lane in (0..t.len).step_by(V::LANES) {
        // SAFETY: as the caller promised.
        unsafe {
            let mut half = [[V::zero(); N]; M];
            for j in 0..N {
                let column =
                    core::array::from_fn(|i| V::load(t.from.add(at[i * N + j] as usize + lane)));
                for (row, value) in half.iter_mut().zip(W::apply(column)) {
                    row[j] = value;
                }
            }
            for (i, row) in half.into_iter().enumerate() {
                for (j, value) in W::apply(row).into_iter().enumerate() {
                    value.store(t.to.add(into[i * M + j] as usize + lane));
                }
            }
        }
    }
}

/// `c[r][v] = sum over k of a[r][k] b[k][v]`, where v counts vectors, whose rows lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) steps: usize,
}

/// # Safety
///
/// As for [`both_ways`].
#[inline(always)]
unsafe fn rows<V: Vector, const ROWS: usize, const VECTORS: usize>(p: Rows) {
    // SAFETY: as the caller promised.
    unsafe {
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        let mut b = p.b;
        for k in 0..p.steps {
            let vectors: [V; VECTORS] = core::array::from_fn(|v| V::load(b.add(v * V::LANES)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = V::splat(*p.a.add(r * p.a_row + k));
                for (sum, b) in sums.iter_mut().zip(vectors) {
                    *sum = sum.add_product(a, b);
                }
            }
            b = b.add(VECTORS * V::LANES);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(p.c.add((r * VECTORS + v) * V::LANES));
            }
        }
    }
}

impl InstructionSet {
    /// # Safety
    ///
    /// The pointers must be valid for what is read and written.
    pub(super) unsafe fn both_ways<W: OneWay<N, M>, const N: usize, const M: usize>(
        self,
        t: Transform<'_>,
    ) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<W: OneWay<N, M>, const N: usize, const M: usize>(t: Transform<'_>) {
            // SAFETY: as the caller promised, here and below.
            unsafe { both_ways::<core::arch::x86_64::__m512, W, N, M>(t) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<W: OneWay<N, M>, const N: usize, const M: usize>(t: Transform<'_>) {
            unsafe { both_ways::<core::arch::x86_64::__m256, W, N, M>(t) }
        }
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512::<W, N, M>(t),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::<W, N, M>(t),
                Self::Portable => both_ways::<Portable, W, N, M>(t),
            }
        }
    }

    /// The product of a size that [`tile`](Self::tile) has too.
    pub(super) fn product(self, rows: usize, vectors: usize) -> unsafe fn(Rows) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<const R: usize, const V: usize>(p: Rows) {
            // SAFETY: as for `rows`, here and below.
            unsafe { self::rows::<core::arch::x86_64::__m512, R, V>(p) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<const R: usize, const V: usize>(p: Rows) {
            unsafe { self::rows::<core::arch::x86_64::__m256, R, V>(p) }
        }
        unsafe fn portable<const R: usize, const V: usize>(p: Rows) {
            unsafe { self::rows::<Portable, R, V>(p) }
        }
        macro_rules! choose {
            ($function:ident; $($r:literal: $($v:literal)*;)*) => {
                match (rows, vectors) {
                    $($(($r, $v) => $function::<$r, $v>,)*)*
                    (rows, vectors) => unreachable!("no product of {rows} by {vectors}"),
                }
            };
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => choose!(avx512; 8: 1 2 3; 7: 1 2 3; 4: 1 2 3; 2: 1 2 3; 1: 1 2 3;),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => choose!(avx2; 4: 1 2 3; 2: 1 2 3; 1: 1 2 3;),
            Self::Portable => choose!(portable; 4: 1 2 3; 2: 1 2 3; 1: 1 2 3;),
        }
    }
}
