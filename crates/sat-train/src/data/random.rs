//! Random numbers on the host: the same on every machine, whatever runs beside.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// What a random number is for: each has a stream of its own.
pub(super) enum Draw {
    Order,
    Augment(u64),
    Mixup,
    #[cfg(feature = "images")]
    ShardOrder,
    #[cfg(feature = "images")]
    ShuffleBuffer,
}

pub(super) fn rng(seed: u64, epoch: u64, draw: Draw) -> ChaCha8Rng {
    let (kind, index) = match draw {
        Draw::Order => (0, 0),
        Draw::Augment(index) => (1, index),
        Draw::Mixup => (2, 0),
        #[cfg(feature = "images")]
        Draw::ShardOrder => (3, 0),
        #[cfg(feature = "images")]
        Draw::ShuffleBuffer => (4, 0),
    };
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, epoch, kind, index]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// The indices `0..len` in the random order of an epoch.
pub(super) fn shuffled(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.shuffle(&mut rng(seed, epoch, Draw::Order));
    indices
}
