//! Files that weights are read from by position, and that are checked for changes.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::what;
use crate::error::{Error, Result};

/// The state of a file when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileState {
    /// Path used to open it.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change, if the system knows it.
    pub modified: Option<SystemTime>,
}

/// An open file. It is never memory-mapped: if it shrinks, that is an error, not a signal.
#[derive(Debug)]
pub(super) struct SourceFile {
    file: File,
    state: FileState,
}

impl SourceFile {
    /// Opens a regular file.
    ///
    /// # Errors
    /// There is no regular file, or it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Checked before opening, which would block on a pipe.
        let status = std::fs::metadata(path).map_err(what::cannot_open(path))?;
        if !status.is_file() {
            return Err(Error::file(path, "not a file"));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let status = file.metadata().map_err(Error::io(path, "open"))?;
        let state = state(path, &status);
        Ok(Self { file, state })
    }

    /// Returns its state when it was opened.
    pub(super) fn state(&self) -> &FileState {
        &self.state
    }

    /// Returns the path used to open it.
    pub(super) fn path(&self) -> &Path {
        &self.state.path
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
        read_exact_at(&self.file, out, offset).map_err(|error| {
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
        read_exact_at(&self.file, out, offset).map_err(Error::io(self.path(), "read"))
    }

    /// Checks that the file has not changed since it was opened.
    ///
    /// # Errors
    /// It has.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let status = self.file.metadata();
        let now = status.map_err(Error::io(self.path(), "look at"))?;
        match state(self.path(), &now) == self.state {
            true => Ok(()),
            false => Err(Error::file(
                self.path(),
                "was changed while it was read: its size or modification time changed",
            )),
        }
    }
}

fn state(path: &Path, status: &Metadata) -> FileState {
    FileState {
        path: path.to_owned(),
        bytes: status.len(),
        modified: status.modified().ok(),
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
