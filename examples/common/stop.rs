//! Ctrl-C: once to stop after the current step, twice to leave at once.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
};

/// The user stopped the run; what is finished is kept.
#[derive(Debug, thiserror::Error)]
#[error("stopped; an example with --resume goes on with it")]
pub(crate) struct Stopped;

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C is a request, and the second ends the process.
pub(crate) fn on_ctrl_c() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; Ctrl-C again to leave at once");
    })
}

/// Whether a stop was requested.
pub(crate) fn requested() -> ControlFlow<()> {
    if STOP.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
