//! Blocks of numbers that are computed anew: over the old ones, or beside them.

use super::{number::Stored, threads::share};
use core::{mem::MaybeUninit, ops::Range};

/// Elements a thread takes at a time.
pub(super) const CHUNK: usize = 32 * 1024;
/// Tensors up to this size run on the calling thread: waking another costs a few microseconds, in which one
/// thread computes 10,000 to 60,000 elements.
pub(super) const SERIAL: usize = 2 * CHUNK;
/// Elements that stay in the first-level cache from one loop over them to the next.
pub(super) const BLOCK: usize = 1024;

/// At most [`BLOCK`] numbers, to be computed anew.
pub(super) enum Block<'a, W> {
    /// Each takes the place of the old one.
    Over(&'a mut [W]),
    /// The old ones are somebody else's too; memory for as many. Made by [`beside`](Self::beside).
    Beside(&'a [W], &'a mut [MaybeUninit<W>]),
}

impl<'a, W: Copy> Block<'a, W> {
    /// The two are of one length.
    pub(super) fn beside(old: &'a [W], new: &'a mut [MaybeUninit<W>]) -> Self {
        assert_eq!(old.len(), new.len(), "a block beside another is as long");
        Self::Beside(old, new)
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    /// The numbers as they are now.
    pub(super) fn read(&self) -> &[W] {
        match self {
            Self::Over(numbers) => numbers,
            Self::Beside(old, _) => old,
        }
    }

    /// Where the new numbers belong.
    pub(super) fn place(&self) -> *const W {
        match self {
            Self::Over(numbers) => numbers.as_ptr(),
            Self::Beside(_, new) => new.as_ptr().cast(),
        }
    }

    /// What the block is, for a moment in which nobody looks at it.
    pub(super) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::Over(&mut []))
    }

    /// The numbers where the new ones belong, for computing on in their place.
    pub(super) fn numbers(&mut self) -> &mut [W] {
        let numbers = match self.take() {
            Self::Over(numbers) => numbers,
            Self::Beside(old, new) => new.write_copy_of_slice(old),
        };
        *self = Self::Over(numbers);
        let Self::Over(numbers) = self else { unreachable!("it was made above") };
        numbers
    }

    /// A part of the block.
    #[inline(always)]
    pub(super) fn part(&mut self, range: Range<usize>) -> Block<'_, W> {
        match self {
            Self::Over(numbers) => Block::Over(&mut numbers[range]),
            Self::Beside(old, new) => Block::beside(&old[range.clone()], &mut new[range]),
        }
    }

    /// What is beside the old numbers takes their place.
    ///
    /// # Safety
    ///
    /// All of it has been written, in parts.
    pub(super) unsafe fn written(&mut self) {
        *self = match self.take() {
            // SAFETY: the caller has seen to it.
            Self::Beside(_, new) => Self::Over(unsafe { new.assume_init_mut() }),
            over @ Self::Over(_) => over,
        };
    }
}

/// Computes every number of a block from the old one (and another of a slice of the same length), in a
/// loop that compilers vectorise. A macro, because a closure that is not inlined would lose the
/// instruction set of the function around it. The expressions must not leave the loop.
macro_rules! each {
    ($block:expr, $old:ident => $new:expr) => {{
        let block: &mut Block<'_, _> = $block;
        match block.take() {
            Block::Over(numbers) => {
                for number in &mut *numbers {
                    let $old = *number;
                    *number = $new;
                }
                *block = Block::Over(numbers);
            }
            Block::Beside(old, new) => {
                assert_eq!(old.len(), new.len());
                for (old, new) in old.iter().zip(&mut *new) {
                    let $old = *old;
                    new.write($new);
                }
                // SAFETY: the loop above wrote all of it, as it is as long as the old.
                *block = Block::Over(unsafe { new.assume_init_mut() });
            }
        }
    }};
    ($block:expr, $old:pat, $other:ident in $others:expr => $new:expr) => {{
        let (block, others): (&mut Block<'_, _>, &[_]) = ($block, $others);
        assert_eq!(block.len(), others.len());
        match block.take() {
            Block::Over(numbers) => {
                for (number, other) in numbers.iter_mut().zip(others) {
                    let ($old, $other) = (*number, *other);
                    *number = $new;
                }
                *block = Block::Over(numbers);
            }
            Block::Beside(old, new) => {
                assert_eq!(old.len(), new.len());
                for ((old, other), new) in old.iter().zip(others).zip(&mut *new) {
                    let ($old, $other) = (*old, *other);
                    new.write($new);
                }
                // SAFETY: the loop above wrote all of it, as it is as long as the others.
                *block = Block::Over(unsafe { new.assume_init_mut() });
            }
        }
    }};
}
pub(super) use each;

/// Computes numbers anew in their place, with a state for each chunk of blocks: `f(state, position, block)`
/// is called for every block. The states are returned in order.
pub(super) fn compute_over<E: Stored, S: Send>(
    numbers: &mut [E],
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut Block<'_, E::Work>) + Sync,
) -> Vec<S> {
    map_chunks(numbers, |at, chunk| {
        let mut state = state();
        for (j, block) in chunk.chunks_mut(BLOCK).enumerate() {
            E::with_block(Block::Over(block), |block| f(&mut state, at + j * BLOCK, block));
        }
        state
    })
}

/// The same in a fresh buffer.
pub(super) fn compute_beside<E: Stored, S: Send>(
    old: &[E],
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut Block<'_, E::Work>) + Sync,
) -> (Vec<E>, Vec<S>) {
    let n = old.len();
    let mut out = Vec::<E>::with_capacity(n);
    let states = map_chunks(&mut out.spare_capacity_mut()[..n], |at, chunk| {
        let mut state = state();
        for (j, new) in chunk.chunks_mut(BLOCK).enumerate() {
            let at = at + j * BLOCK;
            let block = Block::beside(&old[at..at + new.len()], new);
            E::with_block(block, |block| f(&mut state, at, block));
        }
        state
    });
    // SAFETY: every one of the first n elements lies in a block, and `with_block` writes every block.
    unsafe { out.set_len(n) };
    (out, states)
}

/// Calls `f(position, chunk)` on chunks of [`CHUNK`] elements, in parallel if it pays, and returns what
/// it returns in order.
fn map_chunks<T: Send, S: Send>(all: &mut [T], f: impl Fn(usize, &mut [T]) -> S + Sync) -> Vec<S> {
    let f = |(i, chunk): (usize, &mut [T])| f(i * CHUNK, chunk);
    if all.len() <= SERIAL {
        all.chunks_mut(CHUNK).enumerate().map(f).collect()
    } else {
        share(all.chunks_mut(CHUNK).enumerate(), f)
    }
}
