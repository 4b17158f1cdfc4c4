//! Files that weights are read from by position, and that are checked for changes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::links;
use super::read::{ReadAt, ReadState};
use crate::error::{Error, Result};

/// The state of a file when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    /// Path used to open it.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change, if it is known.
    pub modified: Option<SystemTime>,
}

/// An open file. It is never memory-mapped: if it shrinks, that is an error, not a signal.
#[derive(Debug)]
pub(super) struct SourceFile {
    reader: Box<dyn ReadAt>,
    path: PathBuf,
    state: ReadState,
}

impl SourceFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// There is no regular file, or it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Checked before opening, which would block on a pipe.
        let status = std::fs::metadata(path).map_err(links::cannot_open(path))?;
        if !status.is_file() {
            return Err(Error::file(path, "not a file"));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        Self::over(path, Box::new(file))
    }

    /// Takes what a reader reads for a file; the path is its name in messages.
    ///
    /// # Errors
    /// The reader does not tell its state.
    pub(super) fn over(path: &Path, reader: Box<dyn ReadAt>) -> Result<Self> {
        let state = reader.state().map_err(Error::io(path, "open"))?;
        Ok(Self {
            reader,
            path: path.to_owned(),
            state,
        })
    }

    /// Returns its state when it was opened.
    pub(super) fn state(&self) -> FileState {
        FileState {
            path: self.path.clone(),
            bytes: self.state.bytes,
            modified: self.state.modified,
        }
    }

    /// Returns the path used to open it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its size when it was opened.
    pub(super) fn bytes(&self) -> u64 {
        self.state.bytes
    }

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// The read fails or ends early; `tensor` is for the message.
    pub(super) fn read(&self, out: &mut [u8], offset: u64, tensor: &str) -> Result<()> {
        self.reader.read_exact_at(out, offset).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the file ended early, was it changed?".to_owned(),
                _ => format!("cannot read: {error}"),
            };
            Error::tensor(self.path(), tensor, reason)
        })
    }

    /// Reads like [`SourceFile::read`], for bytes that belong to no tensor.
    ///
    /// # Errors
    /// The read fails or ends early.
    pub(super) fn read_header(&self, out: &mut [u8], offset: u64) -> Result<()> {
        self.reader
            .read_exact_at(out, offset)
            .map_err(Error::io(self.path(), "read"))
    }

    /// Checks that the file has not changed since it was opened.
    ///
    /// # Errors
    /// It has.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let now = self.reader.state();
        match now.map_err(Error::io(self.path(), "look at"))? == self.state {
            true => Ok(()),
            false => Err(Error::file(
                self.path(),
                "was changed while it was read: its size or modification time changed",
            )),
        }
    }
}
