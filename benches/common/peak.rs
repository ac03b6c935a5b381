//! The arithmetic that the machine can do.

use std::{hint::black_box, time::Instant};

/// Floating-point operations a second that all threads reach on multiply-adds in registers.
pub(crate) fn peak() -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut best = 0.0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let steps = 4_000_000;
        let flop: f64 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..threads).map(|_| scope.spawn(move || multiply_add(steps))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
        });
        best = best.max(flop / start.elapsed().as_secs_f64());
    }
    best
}

/// Runs that many rounds of multiply-adds with the widest instructions and says how many operations
/// they were.
fn multiply_add(steps: usize) -> f64 {
    #[inline(always)]
    fn rounds<const N: usize>(steps: usize, step: impl Fn(f32, f32, f32) -> f32) -> f64 {
        let mut sums = [1.0f32; N];
        let (a, b) = black_box((0.999_9f32, 1e-4f32));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = step(*sum, a, b);
            }
        }
        black_box(sums);
        (2 * N * steps) as f64
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,fma")]
        fn avx512(steps: usize) -> f64 {
            rounds::<256>(steps, f32::mul_add)
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(steps: usize) -> f64 {
            rounds::<96>(steps, f32::mul_add)
        }
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has these instructions.
            return unsafe { avx512(steps) };
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the machine has these instructions.
            return unsafe { avx2(steps) };
        }
    }
    rounds::<48>(steps, |sum, a, b| sum * a + b)
}
