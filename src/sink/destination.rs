//! Where the bytes of a Parquet file go.

use std::io;
use std::path::Path;

use super::staging::{GoOn, StagedFile};
use crate::error::{MEMORY, Result};

/// A path, or the caller's memory.
#[derive(Debug)]
pub enum Destination<'a> {
    /// Appears whole at its path, or not at all.
    File(StagedFile),
    /// The caller's memory.
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

    /// Writes `bytes` from `offset` on, where anything may lie before them that comes later.
    ///
    /// # Errors
    /// The disk is full or fails, or the memory is too small.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_at(bytes, offset),
            Self::Memory(memory) => {
                let place = range(offset, bytes.len()).and_then(|range| memory.get_mut(range));
                let too_small = || io::Error::other("the destination is too small");
                place.ok_or_else(too_small)?.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Drops what was written from `end` on.
    ///
    /// # Errors
    /// The disk fails.
    pub fn cut(&mut self, end: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.cut(end),
            Self::Memory(_) => Ok(()),
        }
    }

    /// Reads back what was written.
    ///
    /// # Errors
    /// Nothing was written there, or the disk fails.
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_at(bytes, offset),
            Self::Memory(memory) => {
                let place = range(offset, bytes.len()).and_then(|range| memory.get(range));
                let missing = || io::Error::from(io::ErrorKind::UnexpectedEof);
                bytes.copy_from_slice(place.ok_or_else(missing)?);
                Ok(())
            }
        }
    }

    /// Puts a file at its path. `go_on` is called while the system writes it to the disk.
    ///
    /// # Errors
    /// It cannot be put there, or `go_on` fails; the path is then as it was.
    pub fn commit(self, go_on: GoOn<'_>) -> Result<()> {
        match self {
            Self::File(file) => file.commit_with(go_on),
            Self::Memory(_) => Ok(()),
        }
    }
}

fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}
