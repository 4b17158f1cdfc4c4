//! What a run tells its caller while it works.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes dealt with: of the sample that formats are chosen by; of the source that is quantized;
    /// of the files that are compared; of a
    /// model that is checked, and then of what it decodes to; of weights that scales are chosen by,
    /// and then of the file that they are folded into.
    pub done: usize,
    /// Bytes in all.
    pub total: usize,
}

/// Called on the thread that made the call; returning false cancels the run.
pub type ProgressFn<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Hardly meant.
    Warning,
    /// For whoever started the run, and nothing is wrong: that it goes on with what is there.
    Notice,
}

/// Called with what a run has to say, on the thread that made the call; returning false cancels
/// the run.
pub type LogFn<'a> = &'a mut dyn FnMut(Level, &str) -> bool;

/// Says something to the caller, if it listens.
pub(super) fn say(log: &mut Option<LogFn<'_>>, level: Level, message: &str) -> Result<()> {
    match log.as_mut().is_none_or(|log| log(level, message)) {
        true => Ok(()),
        false => Err(Error::Cancelled),
    }
}

/// Counts on any thread, tells on the caller's.
pub(super) struct Counter<'done, 'tell> {
    done: &'done AtomicUsize,
    total: usize,
    tell: Option<ProgressFn<'tell>>,
}

impl<'done, 'tell> Counter<'done, 'tell> {
    pub(super) fn new(
        done: &'done AtomicUsize,
        total: usize,
        tell: Option<ProgressFn<'tell>>,
    ) -> Self {
        Self { done, total, tell }
    }

    pub(super) fn tell(&mut self) -> Result<()> {
        let progress = Progress {
            done: self.done.load(Ordering::Relaxed).min(self.total),
            total: self.total,
        };
        match self.tell.as_mut().is_none_or(|tell| tell(progress)) {
            true => Ok(()),
            false => Err(Error::Cancelled),
        }
    }
}
