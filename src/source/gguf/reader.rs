//! Reads a GGUF header from its beginning.

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::source::MAX_HEADER;
use crate::source::file::SourceFile;
use crate::tensor::{MAX_DIMS, MAX_NAME};

/// The most bytes of a text value that is preserved; longer ones are ignored.
const MAX_VALUE: u64 = 64 << 10;

/// The prefix of keys with a tensor's true shape, followed by its name. ComfyUI tools store tensors
/// in other shapes if theirs does not fill blocks.
pub(super) const SHAPE_KEY: &str = "comfy.gguf.orig_shape.";

/// Type numbers of values.
const I32: u32 = 5;
const LIST: u32 = 9;

/// Reads a header from its beginning, and hashes it.
pub(super) struct GgufReader<'a> {
    pub(super) file: &'a SourceFile,
    /// Position in the file of the next byte.
    pub(super) position: u64,
    /// Bytes read ahead, of which `used` have been consumed.
    buffer: Vec<u8>,
    used: usize,
    hash: &'a mut Xxh3,
}

impl<'a> GgufReader<'a> {
    pub(super) fn new(file: &'a SourceFile, hash: &'a mut Xxh3) -> Self {
        Self {
            file,
            position: 0,
            buffer: Vec::new(),
            used: 0,
            hash,
        }
    }

    pub(super) fn refuse(&self, reason: &str) -> Error {
        Error::file(
            self.file.path(),
            format!("not a readable GGUF file: {reason}"),
        )
    }

    /// Returns the most bytes that the header may still have.
    fn rest(&self) -> u64 {
        self.file.bytes().min(MAX_HEADER) - self.position
    }

    /// Checks that there is room for this many items of at least `least` bytes.
    pub(super) fn check_count(&self, count: u64, least: u64, what: &str) -> Result<()> {
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest() => Ok(()),
            _ => Err(self.refuse(&format!("its header has no room for {count} {what}"))),
        }
    }

    /// Passes the next `count` bytes to `body`, piece by piece.
    fn each_piece(&mut self, count: u64, mut body: impl FnMut(&[u8])) -> Result<()> {
        const AHEAD: u64 = 1 << 16;
        self.check_count(count, 1, "bytes more")?;
        let mut missing = count;
        while missing > 0 {
            if self.used == self.buffer.len() {
                self.buffer.resize(AHEAD.min(self.rest()) as usize, 0);
                self.file.read_header(&mut self.buffer, self.position)?;
                self.used = 0;
            }
            let len = (self.buffer.len() - self.used).min(missing.try_into().unwrap_or(usize::MAX));
            let piece = &self.buffer[self.used..self.used + len];
            self.hash.update(piece);
            body(piece);
            self.used += len;
            self.position += len as u64;
            missing -= len as u64;
        }
        Ok(())
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut taken = [0; N];
        let mut at = 0;
        self.each_piece(N as u64, |piece| {
            taken[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        })?;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Reads a key or name.
    pub(super) fn text(&mut self, what: &str) -> Result<String> {
        let len = self.u64()?;
        if len > MAX_NAME as u64 {
            return Err(self.refuse(&format!("{what} of {len} bytes")));
        }
        self.text_of(len, what)
    }

    fn text_of(&mut self, len: u64, what: &str) -> Result<String> {
        let mut text = Vec::new();
        self.each_piece(len, |piece| text.extend_from_slice(piece))?;
        String::from_utf8(text).map_err(|_| self.refuse(&format!("{what} is not UTF-8")))
    }

    /// Reads a value of type `kind` as text; `None` for a list, or a text that is too long.
    pub(super) fn value(&mut self, kind: u32, depth: u32) -> Result<Option<String>> {
        Ok(Some(match kind {
            0 => u8::from_le_bytes(self.take()?).to_string(),
            1 => i8::from_le_bytes(self.take()?).to_string(),
            2 => u16::from_le_bytes(self.take()?).to_string(),
            3 => i16::from_le_bytes(self.take()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.take()?).to_string(),
            6 => f32::from_le_bytes(self.take()?).to_string(),
            7 => (self.take()? != [0]).to_string(),
            8 => {
                let len = self.u64()?;
                if len > MAX_VALUE {
                    return self.each_piece(len, |_| ()).map(|()| None);
                }
                self.text_of(len, "a value")?
            }
            LIST => return self.pass_list(depth).map(|()| None),
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.take()?).to_string(),
            12 => f64::from_le_bytes(self.take()?).to_string(),
            other => return Err(self.refuse(&format!("a value of type {other}"))),
        }))
    }

    /// Reads the dimensions of `tensor` from a value of type `kind`, outermost first.
    pub(super) fn shape(&mut self, kind: u32, tensor: &str) -> Result<Vec<usize>> {
        let path = self.file.path();
        let refuse = |reason: String| {
            let reason = format!("key {SHAPE_KEY}{tensor} {reason}");
            Err(Error::tensor(path, tensor, reason))
        };
        let element = if kind == LIST { self.u32()? } else { kind };
        if (kind, element) != (LIST, I32) {
            return refuse("is not a list of i32".to_owned());
        }
        let count = self.u64()?;
        if count > MAX_DIMS as u64 {
            return refuse(format!(
                "has {count} dimensions, which exceed the limit of {MAX_DIMS}"
            ));
        }
        let mut dims = Vec::new();
        for _ in 0..count {
            let dim = i32::from_le_bytes(self.take()?);
            match usize::try_from(dim) {
                Ok(dim) => dims.push(dim),
                Err(_) => return refuse(format!("has a dimension of {dim}")),
            }
        }
        Ok(dims)
    }

    fn pass_list(&mut self, depth: u32) -> Result<()> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                self.check_count(count, 8, "texts")?;
                for _ in 0..count {
                    let len = self.u64()?;
                    self.each_piece(len, |_| ())?;
                }
                return Ok(());
            }
            LIST if depth < 4 => {
                self.check_count(count, 12, "lists")?;
                for _ in 0..count {
                    self.pass_list(depth + 1)?;
                }
                return Ok(());
            }
            _ => return Err(self.refuse(&format!("a list of type {kind}"))),
        };
        self.check_count(count, size, "numbers")?;
        self.each_piece(count * size, |_| ())
    }
}
