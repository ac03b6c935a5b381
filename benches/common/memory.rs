//! An allocator that counts what large tensors take.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// mimalloc, or the system's allocator after [`use_system_allocator`]. Memory is given back to where it
/// came from, so the choice is made once, before the first large tensor.
pub(crate) struct CountingAllocator;

static USE_SYSTEM: AtomicBool = AtomicBool::new(false);
/// Bytes in large blocks, now and at most since [`peak_over`] began.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Below this size, mimalloc always: what is small is not what is measured.
const LARGE: usize = 256 * 1024;

fn count_new(layout: Layout) {
    if layout.size() >= LARGE {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn count_freed(layout: Layout) {
    if layout.size() >= LARGE {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
    }
}

/// From now on; for the start of `main`.
pub(crate) fn use_system_allocator() {
    USE_SYSTEM.store(true, Ordering::Relaxed);
}

/// Bytes in large blocks now.
pub(crate) fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// The most bytes that `run` holds in large blocks at a time, beside what is there already.
pub(crate) fn peak_over(run: &mut dyn FnMut()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    run();
    PEAK.load(Ordering::Relaxed) - before
}

fn from_system(layout: Layout) -> bool {
    layout.size() >= LARGE && USE_SYSTEM.load(Ordering::Relaxed)
}

// SAFETY: both allocators keep the contract, and each block returns to the one it came from: the
// choice depends on the layout and on a flag that is set first thing in `main`, before any block of
// LARGE bytes exists; the operating system limits an argument to less than that.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_new(layout);
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if from_system(layout) {
                System.alloc(layout)
            } else {
                mimalloc::MiMalloc.alloc(layout)
            }
        }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_new(layout);
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if from_system(layout) {
                System.alloc_zeroed(layout)
            } else {
                mimalloc::MiMalloc.alloc_zeroed(layout)
            }
        }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count_freed(layout);
        // SAFETY: the caller's promises are passed on.
        unsafe {
            if from_system(layout) {
                System.dealloc(block, layout);
            } else {
                mimalloc::MiMalloc.dealloc(block, layout);
            }
        }
    }
}

/// The largest memory this process has had, in bytes; Linux says so.
pub(crate) fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}
