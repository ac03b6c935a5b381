//! Work shared among threads.

use std::sync::{Mutex, PoisonError};

/// Works on all items with all threads of Rayon's pool and the calling one; the results in order.
///
/// Rayon's own loops put a caller from outside the pool to sleep until other threads have woken up and
/// finished: some 50 microseconds, in which this one gets half a million elements done.
pub(super) fn share<T, R: Send>(
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
    let queue = Mutex::new(items.enumerate());
    let results = Mutex::new(Vec::new());
    let run = || {
        loop {
            // The lock is free again before the work begins.
            let next = locked(&queue).next();
            let Some((position, item)) = next else { return };
            let result = work(item);
            locked(&results).push((position, result));
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..rayon::current_num_threads() {
            scope.spawn(|_| run());
        }
        run();
    });
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
    fn a_panic_reaches_the_caller() {
        let run = || share(0..100, |i| assert_ne!(i, 57));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
