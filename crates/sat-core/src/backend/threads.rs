//! Work shared among threads.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How often a caller from outside the pool looks whether the others are done before it goes to sleep: for
/// 40 microseconds on an EPYC with Zen 4, about as long as a thread takes to wake up.
const LOOKS: usize = 3000;

/// Works on all items with the threads of Rayon's pool and the calling one; the results in order.
pub(super) fn share<T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    share_with(items, || (), |(), item| work(item))
}

/// The same, with a state that each thread keeps from item to item.
///
/// Rayon's own loops put a caller from outside the pool to sleep until other threads have woken up and
/// finished: some 50 microseconds, in which this one gets half a million elements done.
pub(super) fn share_with<S, T: Send, R: Send>(
    items: impl Iterator<Item = T>,
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> R + Sync,
) -> Vec<R> {
    fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
    let items: Vec<_> = items.enumerate().collect();
    // With a caller from outside there is one thread more than cores. With one fewer, a thread of the pool
    // that looks for work in vain may keep a core from those that have some.
    let outside = rayon::current_thread_index().is_none();
    let threads = rayon::current_num_threads() + usize::from(outside);
    let threads = threads.clamp(1, items.len().max(1));
    // Each thread begins with items that lie side by side: what two of them write in turns wanders
    // between their caches.
    let (mut rest, mut queues) = (items.into_iter(), Vec::with_capacity(threads));
    for left in (1..=threads).rev() {
        let count = rest.len().div_ceil(left);
        queues.push(Mutex::new(rest.by_ref().take(count).collect::<Vec<_>>().into_iter()));
    }
    let results = Mutex::new(Vec::new());
    let run = |own: usize| {
        let (mut kept, mut done) = (None, Vec::new());
        let next = || {
            // Own items from the front, those of others from behind. Each lock is free again before
            // the work begins.
            let others = queues[own + 1..].iter().chain(&queues[..own]);
            let mine = locked(&queues[own]).next();
            mine.or_else(|| others.into_iter().find_map(|queue| locked(queue).next_back()))
        };
        while let Some((position, item)) = next() {
            done.push((position, work(kept.get_or_insert_with(&state), item)));
        }
        locked(&results).append(&mut done);
    };
    if threads == 1 {
        run(0);
    } else {
        let at_work = AtomicUsize::new(threads - 1);
        rayon::in_place_scope(|scope| {
            let (run, at_work) = (&run, &at_work);
            for own in 1..threads {
                scope.spawn(move |_| {
                    run(own);
                    at_work.fetch_sub(1, Ordering::Relaxed);
                });
            }
            run(0);
            // The scope waits for them anyway. A thread of the pool looks for other work meanwhile; any
            // other one goes to sleep, and has to wake up again.
            let looks = if outside { LOOKS } else { 0 };
            for _ in 0..looks {
                if at_work.load(Ordering::Relaxed) == 0 {
                    break;
                }
                core::hint::spin_loop();
            }
        });
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(position, _)| *position);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_results_keep_their_order() {
        for n in [0, 1, 2, 1000] {
            let mut items = vec![0; n];
            let squares = share(items.iter_mut().enumerate(), |(i, item)| {
                *item += 1;
                i * i
            });
            assert_eq!(squares, (0..n).map(|i| i * i).collect::<Vec<_>>());
            assert_eq!(items, vec![1; n]);
        }
    }

    #[test]
    fn a_thread_keeps_its_state() {
        let made = AtomicUsize::new(0);
        let state = || {
            made.fetch_add(1, Ordering::Relaxed);
            0
        };
        let counts = share_with(0..1000, state, |count, _| {
            *count += 1;
            *count
        });
        let made = made.into_inner();
        // The calling thread is none of the pool's.
        let threads = rayon::current_num_threads() + 1;
        assert!((1..=threads).contains(&made), "{made} states for {threads} threads");
        // Each state counts from 1 to what its thread has worked on.
        assert_eq!(counts.iter().filter(|count| **count == 1).count(), made);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let run = || share(0..100, |i| assert_ne!(i, 57));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
