//! Bytes that are read by position, wherever they are: a file on a disk, or what a caller's function
//! fetches.

use std::fs::File;
use std::io;
use std::time::SystemTime;

/// What is known of some bytes, and changes whenever they may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadState {
    /// Number of bytes.
    pub bytes: u64,
    /// When they were last written to, where that is known.
    pub modified: Option<SystemTime>,
    /// Version, where the place they are in has one: an ETag or a commit.
    pub version: Option<String>,
}

/// Bytes that any thread may read by position.
pub trait ReadAt: Send + Sync + std::fmt::Debug {
    /// The state of the bytes now.
    ///
    /// # Errors
    /// The bytes are gone, or their state cannot be read.
    fn state(&self) -> io::Result<ReadState>;

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// The read fails, or ends early: [`io::ErrorKind::UnexpectedEof`].
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn state(&self) -> io::Result<ReadState> {
        let status = self.metadata()?;
        Ok(ReadState {
            bytes: status.len(),
            modified: status.modified().ok(),
            version: None,
        })
    }

    #[cfg(unix)]
    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, out, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !out.is_empty() {
            match self.seek_read(out, offset) {
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
}

/// Reads by a function of the caller's, which gets where to put the bytes and the offset of the
/// first.
pub struct ReadFn<F> {
    state: ReadState,
    read: F,
}

impl<F: Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync> ReadFn<F> {
    /// A reader of `bytes` bytes. `version` is for bytes that have one.
    pub fn new(bytes: u64, version: Option<String>, read: F) -> Self {
        let state = ReadState {
            bytes,
            modified: None,
            version,
        };
        Self { state, read }
    }
}

impl<F> std::fmt::Debug for ReadFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReadFn").field(&self.state).finish()
    }
}

impl<F: Fn(&mut [u8], u64) -> io::Result<()> + Send + Sync> ReadAt for ReadFn<F> {
    fn state(&self) -> io::Result<ReadState> {
        Ok(self.state.clone())
    }

    fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64);
        match end.is_some_and(|end| end <= self.state.bytes) {
            true => (self.read)(out, offset),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}
