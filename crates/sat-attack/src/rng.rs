//! Random numbers of our own, so that a run repeats: Burn's generator is global to the process and
//! moved by any thread.

use std::f64::consts::TAU;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream is used for; streams of different use never overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Noise of a random start, per sample.
    StartNoise = 1,
    /// Whether a batch starts at random at all, per batch.
    StartDraw = 2,
    /// The squares of the Square attack, per sample.
    Squares = 3,
}

/// An independent stream for each (seed, restart, sample, purpose): these are the key of the
/// ChaCha8 generator.
pub(crate) struct Stream(ChaCha8Rng);

impl Stream {
    pub(crate) fn new(seed: u64, restart: u64, sample: u64, purpose: Purpose) -> Self {
        let mut key = [0; 32];
        let words = [seed, restart, sample, purpose as u64];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub(crate) fn uniform(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        (self.0.next_u64() >> 11) as f64 * SCALE
    }

    /// Uniform in `0..below`, which must be positive. The bias is below `below / 2^53`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        ((self.uniform() * below as f64) as usize).min(below - 1)
    }

    /// 1 or -1, equally likely.
    pub(crate) fn sign(&mut self) -> f64 {
        if self.uniform() < 0.5 { -1.0 } else { 1.0 }
    }

    /// Uniform in the unit ball of the maximum norm.
    pub(crate) fn linf_ball(&mut self, dimension: usize) -> impl Iterator<Item = f64> {
        (0..dimension).map(|_| 2.0 * self.uniform() - 1.0)
    }

    /// Uniform in the unit ball of the Euclidean norm: a Gaussian direction and the radius
    /// `u^(1/d)`.
    pub(crate) fn l2_ball(&mut self, dimension: usize) -> impl Iterator<Item = f64> {
        let direction: Vec<f64> = (0..dimension).map(|_| self.gaussian()).collect();
        let norm = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        let radius = self.uniform().powf(1.0 / dimension as f64);
        let scale = if norm > 0.0 { radius / norm } else { 0.0 };
        direction.into_iter().map(move |value| value * scale)
    }

    /// Standard normal, by Box and Muller.
    pub(crate) fn gaussian(&mut self) -> f64 {
        // 1 - u is in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_in_every_part_of_their_key() {
        let first = |seed, restart, sample, purpose| {
            Stream::new(seed, restart, sample, purpose).0.next_u64()
        };
        let draws = [
            first(0, 0, 0, Purpose::StartNoise),
            first(1, 0, 0, Purpose::StartNoise),
            first(0, 1, 0, Purpose::StartNoise),
            first(0, 0, 1, Purpose::StartNoise),
            first(0, 0, 0, Purpose::StartDraw),
        ];
        for (index, draw) in draws.iter().enumerate() {
            assert!(!draws[..index].contains(draw));
        }
    }

    #[test]
    fn linf_noise_is_uniform() {
        let mut stream = Stream::new(3, 0, 0, Purpose::StartNoise);
        let noise: Vec<f64> = stream.linf_ball(100_000).collect();
        let mean = noise.iter().sum::<f64>() / 1e5;
        let square = noise.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(noise.iter().all(|v| v.abs() <= 1.0));
        // Five standard errors.
        assert!(mean.abs() < 5.0 * (1.0f64 / 3.0 / 1e5).sqrt());
        assert!((square - 1.0 / 3.0).abs() < 5.0 * (4.0f64 / 45.0 / 1e5).sqrt());
    }

    #[test]
    fn l2_noise_is_uniform_in_the_ball() {
        // In d dimensions the radius r has E r^d = 1/2, and each coordinate has mean 0.
        let (samples, dimension) = (20_000, 3);
        let (mut volume, mut first) = (0.0, 0.0);
        for sample in 0..samples {
            let mut stream = Stream::new(0, 0, sample, Purpose::StartNoise);
            let point: Vec<f64> = stream.l2_ball(dimension).collect();
            let norm = point.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!(norm <= 1.0);
            volume += norm.powi(3) / samples as f64;
            first += point[0] / samples as f64;
        }
        assert!((volume - 0.5).abs() < 0.011, "{volume}");
        assert!(first.abs() < 0.016, "{first}");
    }
}
