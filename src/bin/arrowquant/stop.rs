//! Ctrl-C: the first one asks the work to stop, the second one ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code that shells report for a program ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

static WORKING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether the work was asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Calls `work`, which checks [`asked`] regularly. Meanwhile the first Ctrl-C or other termination
/// signal does not end the program; the second one does.
pub fn listening<R>(work: impl FnOnce() -> R) -> R {
    let ignored = ignored_signals();
    WORKING.store(true, Ordering::SeqCst);
    // If this fails, the work is done anyway, and signals end it like any program.
    let _ = ctrlc::set_handler(heard);
    ignore(&ignored);
    let result = work();
    WORKING.store(false, Ordering::SeqCst);
    result
}

/// Handles a signal, on a separate thread.
fn heard() {
    // Before and after the work, nothing would check the flag.
    if ASKED.swap(true, Ordering::SeqCst) || !WORKING.load(Ordering::SeqCst) {
        std::process::exit(EXIT_CODE.into());
    }
}

/// Returns signals that the parent process had this program ignore: nohup ignores those of a closed
/// terminal, a shell ignores Ctrl-C for background jobs.
#[cfg(unix)]
fn ignored_signals() -> Vec<libc::c_int> {
    let ignored = |signal: &libc::c_int| {
        // SAFETY: a plain structure of numbers, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: nothing is set, and `action` may be written to.
        let asked = unsafe { libc::sigaction(*signal, std::ptr::null(), &mut action) };
        asked == 0 && action.sa_sigaction == libc::SIG_IGN
    };
    let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    signals.into_iter().filter(ignored).collect()
}

/// Ignores signals again.
#[cfg(unix)]
fn ignore(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: runs no code of this program.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(not(unix))]
fn ignored_signals() -> [i32; 0] {
    []
}

#[cfg(not(unix))]
fn ignore(_: &[i32]) {}
