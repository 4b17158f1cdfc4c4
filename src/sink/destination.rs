//! Where the bytes of a Parquet file go.

use std::io::{self, Write};
use std::path::Path;

use super::staging::StagedFile;
use crate::error::{MEMORY, Result};

/// A path, or the caller's memory.
#[derive(Debug)]
pub enum Destination<'a> {
    /// Appears whole at its path, or not at all.
    File(StagedFile),
    /// What is left of the caller's memory.
    Memory(&'a mut [u8]),
}

impl Destination<'_> {
    /// The path, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.target(),
            Self::Memory(_) => Path::new(MEMORY),
        }
    }

    /// Puts a file at its path.
    ///
    /// # Errors
    /// It cannot be put there; the path is then as it was.
    pub fn commit(self) -> Result<()> {
        match self {
            Self::File(file) => file.commit(),
            Self::Memory(_) => Ok(()),
        }
    }
}

impl Write for Destination<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Memory(rest) if rest.len() < bytes.len() => {
                Err(io::Error::other("the destination is too small"))
            }
            Self::Memory(rest) => rest.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Memory(_) => Ok(()),
        }
    }
}
