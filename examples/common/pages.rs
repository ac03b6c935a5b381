//! The allocator of the examples and benches.

/// Tells mimalloc to keep the pages of freed memory. By itself it gives them back after 10
/// milliseconds, and the next large tensor pays for fresh ones, which costs more than the arithmetic
/// on it. The environment variable `MIMALLOC_PURGE_DELAY`, in milliseconds, goes before: 1000 keeps a
/// program smaller. For the start of `main`.
pub(crate) fn keep_pages() {
    /// `mi_option_purge_delay` of mimalloc.h; -1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: no other thread runs that could read the option at the same time.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) }
}
