//! Vectors of `f32` in the registers of each instruction set.

/// A register of `f32`.
///
/// # Safety
///
/// All functions may be called only inside of code that is compiled for the instruction set, on a
/// machine that has it; pointers must be valid for [`LANES`](Self::LANES) elements.
pub(super) trait Vector: Copy {
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// a b + self
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// `to[j * to_row + i] = from[i * from_row + j]` for a square of [`LANES`](Self::LANES).
    unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: as the caller promised.
                unsafe { *to.add(j * to_row + i) = *from.add(i * from_row + j) };
            }
        }
    }
}

/// Four lanes that any compiler turns into vector code.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Vector for Portable {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promised.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promised.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // Without the instruction `mul_add` is a library call; 64-bit Arm always has it.
        Self(core::array::from_fn(|i| {
            if cfg!(target_arch = "aarch64") {
                a.0[i].mul_add(b.0[i], self.0[i])
            } else {
                self.0[i] + a.0[i] * b.0[i]
            }
        }))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use core::arch::x86_64::*;

    impl Vector for __m256 {
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as the caller promised, here and below.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { _mm256_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
            unsafe {
                let r: [Self; 8] = core::array::from_fn(|i| Self::load(from.add(i * from_row)));
                // Pairs of rows, then of pairs, then the halves of the registers.
                let (mut t, mut u) = ([r[0]; 8], [r[0]; 8]);
                for i in 0..4 {
                    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
                }
                for i in 0..2 {
                    let t = &t[4 * i..];
                    u[4 * i] = _mm256_shuffle_ps::<0x44>(t[0], t[2]);
                    u[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[0], t[2]);
                    u[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[1], t[3]);
                    u[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[1], t[3]);
                }
                for i in 0..4 {
                    let low = _mm256_permute2f128_ps::<0x20>(u[i], u[i + 4]);
                    low.store(to.add(i * to_row));
                    let high = _mm256_permute2f128_ps::<0x31>(u[i], u[i + 4]);
                    high.store(to.add((i + 4) * to_row));
                }
            }
        }
    }

    impl Vector for __m512 {
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { _mm512_fmadd_ps(a, b, self) }
        }

        #[inline(always)]
        unsafe fn transpose(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
            unsafe {
                let r: [Self; 16] = core::array::from_fn(|i| Self::load(from.add(i * from_row)));
                // Pairs of rows, then of pairs, then the quarters of the registers.
                let (mut t, mut u) = ([r[0]; 16], [r[0]; 16]);
                for i in 0..8 {
                    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
                }
                for i in 0..4 {
                    let t = &t[4 * i..];
                    u[4 * i] = _mm512_shuffle_ps::<0x44>(t[0], t[2]);
                    u[4 * i + 1] = _mm512_shuffle_ps::<0xee>(t[0], t[2]);
                    u[4 * i + 2] = _mm512_shuffle_ps::<0x44>(t[1], t[3]);
                    u[4 * i + 3] = _mm512_shuffle_ps::<0xee>(t[1], t[3]);
                }
                // u[4 q + i] holds, in quarter p, elements 4 p + i of rows 4 q to 4 q + 3.
                for i in 0..4 {
                    let a = _mm512_shuffle_f32x4::<0x44>(u[i], u[4 + i]);
                    let b = _mm512_shuffle_f32x4::<0x44>(u[8 + i], u[12 + i]);
                    let c = _mm512_shuffle_f32x4::<0xee>(u[i], u[4 + i]);
                    let d = _mm512_shuffle_f32x4::<0xee>(u[8 + i], u[12 + i]);
                    _mm512_shuffle_f32x4::<0x88>(a, b).store(to.add(i * to_row));
                    _mm512_shuffle_f32x4::<0xdd>(a, b).store(to.add((4 + i) * to_row));
                    _mm512_shuffle_f32x4::<0x88>(c, d).store(to.add((8 + i) * to_row));
                    _mm512_shuffle_f32x4::<0xdd>(c, d).store(to.add((12 + i) * to_row));
                }
            }
        }
    }
}
