//! How runs are told to go about it, and what none of them may write over.

use std::path::Path;

use super::progress::{LogFn, ProgressFn};
use super::share::{PART_BYTES, Share};
use crate::error::{Error, Result};
use crate::source::Source;

/// Planes in flight when nothing else is said.
pub(super) const DEFAULT_BUDGET: usize = 1 << 30;

/// How a run goes about it; nothing here changes what tensors become.
pub struct Options<'a> {
    /// Threads that quantize; 0 is all of the machine's, 1 starts none.
    pub threads: usize,
    /// Bytes of planes in flight, where the plan sets no limit that asks for less.
    pub budget: usize,
    /// Bytes of memory that are free; `None` asks the machine. A run that would take more
    /// streams.
    pub free_memory: Option<u64>,
    /// Into a folder: goes on with the parts that are there. That is the default; an output that is
    /// one file is refused with it.
    pub resume: bool,
    /// Into a folder: makes all parts anew, and removes those of an earlier run before, be it of
    /// another model or of other settings. No other run may be writing to the folder.
    pub restart: bool,
    /// Into a folder: does this share of the work only. [`merge`](super::merge) makes one model
    /// of all.
    pub share: Option<Share>,
    /// Into a folder: bytes of planes after which a part ends.
    pub part_bytes: usize,
    /// Told how far the run has come.
    pub progress: Option<ProgressFn<'a>>,
    /// Told what is worth telling: what a plan does that was hardly meant, tensors that got
    /// something else than planned.
    pub log: Option<LogFn<'a>>,
}

impl Options<'_> {
    /// Options for a part of the work, which reports to the same callbacks.
    pub(super) fn again(&mut self) -> Options<'_> {
        Options {
            progress: match &mut self.progress {
                Some(progress) => Some(&mut **progress),
                None => None,
            },
            log: match &mut self.log {
                Some(log) => Some(&mut **log),
                None => None,
            },
            ..*self
        }
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            threads: 0,
            budget: DEFAULT_BUDGET,
            free_memory: None,
            resume: false,
            restart: false,
            share: None,
            part_bytes: PART_BYTES,
            progress: None,
            log: None,
        }
    }
}

/// Refuses a path to write to that is one of the files being read.
///
/// # Errors
/// It is one of them.
pub fn check_not_input(source: &dyn Source, output: &Path) -> Result<()> {
    // A file that does not exist yet is no input.
    let Ok(there) = output.canonicalize() else {
        return Ok(());
    };
    for input in source.files() {
        if input.path.canonicalize().is_ok_and(|input| input == there) {
            return Err(Error::file(output, "would be overwritten while it is read"));
        }
    }
    Ok(())
}

/// Refuses a name that is not one of safetensors files, of which tools go by it.
pub(super) fn check_safetensors(output: &Path) -> Result<()> {
    if output
        .extension()
        .is_some_and(|extension| extension == "safetensors")
    {
        return Ok(());
    }
    let reason = format!("'{}' does not end in .safetensors", output.display());
    Err(Error::config("output", reason))
}
