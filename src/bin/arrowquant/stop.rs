//! Ctrl-C: the first asks the work to stop, the second ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

/// What shells give a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

static WORKING: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether the work was asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Calls `work`, which looks at [`asked`] now and then. Meanwhile Ctrl-C, or being told to end
/// in another way, no longer ends the program; a second time does.
pub fn listening<R>(work: impl FnOnce() -> R) -> R {
    let ignored = ignored_signals();
    WORKING.store(true, Ordering::SeqCst);
    // Without it the work is done all the same, and dies as any program.
    let _ = ctrlc::set_handler(heard);
    ignore(&ignored);
    let result = work();
    WORKING.store(false, Ordering::SeqCst);
    result
}

/// Called on a thread of its own.
fn heard() {
    // Before and after the work nobody would look.
    if ASKED.swap(true, Ordering::SeqCst) || !WORKING.load(Ordering::SeqCst) {
        std::process::exit(EXIT_CODE.into());
    }
}

/// Signals that whoever started us has us ignore: nohup those of a closed terminal, a shell
/// Ctrl-C for what runs in its background.
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
        // SAFETY: runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(not(unix))]
fn ignored_signals() -> [i32; 0] {
    []
}

#[cfg(not(unix))]
fn ignore(_: &[i32]) {}
