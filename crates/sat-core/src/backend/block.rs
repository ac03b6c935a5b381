//! Blocks of a Flex tensor that is computed anew: over its old numbers, or beside them.

use super::{
    flex::{BLOCK, CHUNK, SERIAL, Stored, moved},
    threads::share,
};
use burn::{backend::flex::FlexTensor, tensor::Bytes};
use core::{mem::MaybeUninit, ops::Range};

/// A tensor whose elements fill one range of its buffer.
pub(super) struct Dense {
    pub(super) tensor: FlexTensor,
    pub(super) start: usize,
}

impl Dense {
    /// From the first element to the end of the buffer, which may hold more than the tensor.
    pub(super) fn elements<E: Stored>(&self) -> &[E] {
        &self.tensor.storage::<E>()[self.start..]
    }
}

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

/// Computes a tensor block by block from one of the same shape: in its place where nobody else holds
/// it, in a fresh buffer where somebody does. `f(position, block)` is called for every block.
pub(super) fn rewrite<E: Stored>(
    old: Dense,
    f: impl Fn(usize, &mut Block<'_, E::Work>) + Sync,
) -> FlexTensor {
    rewrite_with::<E, _>(old, || (), |(), at, block| f(at, block)).0
}

/// The same with a state for each chunk of blocks; the states are returned in order.
pub(super) fn rewrite_with<E: Stored, S: Send>(
    old: Dense,
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut Block<'_, E::Work>) + Sync,
) -> (FlexTensor, Vec<S>) {
    let Dense { mut tensor, start } = old;
    let n = tensor.layout().num_elements();
    if n == 0 {
        return (tensor, Vec::new());
    }
    if let Some(storage) = tensor.try_storage_mut::<E>() {
        let states = map_chunks(&mut storage[start..start + n], |at, chunk| {
            let mut state = state();
            for (j, block) in chunk.chunks_mut(BLOCK).enumerate() {
                E::with_block(Block::Over(block), |block| f(&mut state, at + j * BLOCK, block));
            }
            state
        });
        return (tensor, states);
    }
    let old = &tensor.storage::<E>()[start..start + n];
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
    let layout = moved(tensor.layout(), start);
    (FlexTensor::new(Bytes::from_elems(out), layout, tensor.dtype()), states)
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
