//! Every error of the engine, each with a stable code for C callers.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};

thread_local! {
    static PANICS_ARE_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread is about to become an error, so that a program's panic hook
/// need not print it.
pub fn panics_are_quiet() -> bool {
    PANICS_ARE_QUIET.get()
}

/// Calls `body`, which turns panics into errors.
pub(crate) fn quiet_panics<T>(body: impl FnOnce() -> T) -> T {
    let before = PANICS_ARE_QUIET.replace(true);
    let result = body();
    PANICS_ARE_QUIET.set(before);
    result
}

/// The stand-in for a file name in messages about data in memory.
pub(crate) const MEMORY: &str = "(memory)";

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Messages name the file, the tensor and the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is unknown or out of range.
    #[error("{key}: {reason}")]
    Config {
        /// The key, flag or variable.
        key: String,
        /// The value and what is allowed.
        reason: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted action, as a verb phrase.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is of the wrong kind, damaged or incomplete.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor in a file is invalid, or cannot be processed as requested.
    #[error("{}: tensor '{tensor}': {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A plan does not fit the source it is run on, or cannot be read.
    #[error("plan: {0}")]
    Plan(String),
    /// A stored checksum does not match the data.
    #[error("{}: tensor '{tensor}', tile {tile}: checksum does not match, the data is damaged", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The tile, from 0.
        tile: u32,
    },
    /// The caller's progress callback asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A bug in this library.
    #[error("internal error: {0}")]
    Internal(String),
    /// An argument of a C API call is invalid: null, a wrong length, not UTF-8.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    /// Returns the stable code of the error's kind. 0 means success and is never an error. Codes
    /// are not reused.
    pub fn code(&self) -> i32 {
        match self {
            Self::Config { .. } => 1,
            Self::Io { .. } => 2,
            Self::File { .. } => 3,
            Self::Tensor { .. } => 4,
            Self::Plan(_) => 5,
            Self::Checksum { .. } => 6,
            Self::Cancelled => 7,
            Self::Internal(_) => 8,
            Self::Argument(_) => 9,
        }
    }

    /// Makes an operating system error on `path` while trying to `action`.
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// Makes an error about a malformed file.
    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Makes an error about a malformed or unsuitable tensor.
    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    /// Returns a configuration error with `place` put before its key.
    pub(crate) fn within(self, place: &str) -> Self {
        match self {
            Self::Config { key, reason } if key.is_empty() => Self::config(place, reason),
            Self::Config { key, reason } => Self::config(format!("{place}: {key}"), reason),
            other => other,
        }
    }

    /// Makes an error about a setting that is unknown or out of range.
    pub(crate) fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            key: key.into(),
            reason: reason.into(),
        }
    }
}
