//! Memory for planes, used again from tile to tile: fresh memory costs a page fault every 4 KiB.

use std::sync::{Arc, Mutex};

use memmap2::MmapMut;

/// Definition levels of one present value (u32 length, RLE run of one, level 1), then the u32
/// length of the value.
pub(super) const PREFIX: usize = 6 + 4;

/// Smaller buffers are left to the allocator.
const SMALLEST_KEPT: usize = 64 << 10;

/// A buffer may be so many times as large as what it is used for.
const WASTE: usize = 2;

/// Memory of the system's: what is given back, or not used yet, costs nothing.
#[derive(Debug)]
enum BufferMemory {
    Small(Vec<u8>),
    Mapped(MmapMut),
}

impl BufferMemory {
    /// Memory that holds anything.
    fn new(len: usize) -> Self {
        if len >= SMALLEST_KEPT
            && let Ok(map) = MmapMut::map_anon(len)
        {
            return Self::Mapped(map);
        }
        Self::Small(vec![0; len])
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// Buffers waiting to be used again.
#[derive(Debug, Clone)]
pub struct Buffers {
    most: usize,
    waiting: Arc<Mutex<Vec<BufferMemory>>>,
}

impl Buffers {
    /// Keeps up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            waiting: Arc::default(),
        }
    }

    /// A buffer for a plane of `len` bytes, which hold anything.
    pub fn take(&self, len: usize) -> PlaneBuffer {
        let len = PREFIX + len;
        PlaneBuffer {
            memory: self.find(len).unwrap_or_else(|| BufferMemory::new(len)),
            len,
            origin: self.clone(),
        }
    }

    /// The smallest that is large enough, if it is not far too large.
    fn find(&self, len: usize) -> Option<BufferMemory> {
        let mut waiting = self.waiting.lock().ok()?;
        let fitting = waiting
            .iter()
            .map(|memory| memory.bytes().len())
            .enumerate();
        let fitting = fitting.filter(|(_, size)| (len..=len.saturating_mul(WASTE)).contains(size));
        let (best, _) = fitting.min_by_key(|&(_, size)| size)?;
        Some(waiting.swap_remove(best))
    }

    fn give_back(&self, memory: BufferMemory) {
        if memory.bytes().len() < SMALLEST_KEPT {
            return;
        }
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.push(memory);
            // Those that waited longest go first.
            let mut kept: usize = waiting.iter().map(|memory| memory.bytes().len()).sum();
            while kept > self.most {
                kept -= waiting.remove(0).bytes().len();
            }
        }
    }
}

/// A plane being filled, with room in front for what Parquet puts before a value.
#[derive(Debug)]
pub struct PlaneBuffer {
    memory: BufferMemory,
    /// Bytes of prefix and plane; the memory may be larger.
    len: usize,
    origin: Buffers,
}

impl PlaneBuffer {
    /// The plane.
    pub fn bytes(&self) -> &[u8] {
        &self.as_ref()[PREFIX..]
    }

    /// The plane, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[PREFIX..self.len]
    }

    /// Fills in what comes before the value, whose length is the plane's.
    pub(super) fn write_prefix(&mut self) {
        let prefix = prefix(self.bytes().len());
        self.memory.bytes_mut()[..PREFIX].copy_from_slice(&prefix);
    }
}

/// What comes before a value of `len` bytes: its definition level, unless the column is
/// required, then its length.
pub(super) fn prefix(len: usize) -> [u8; PREFIX] {
    let mut prefix = [2, 0, 0, 0, 2, 1, 0, 0, 0, 0];
    prefix[PREFIX - 4..].copy_from_slice(&(len as u32).to_le_bytes());
    prefix
}

/// Prefix and plane.
impl AsRef<[u8]> for PlaneBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory.bytes()[..self.len]
    }
}

impl Drop for PlaneBuffer {
    fn drop(&mut self) {
        let none = BufferMemory::Small(Vec::new());
        self.origin
            .give_back(std::mem::replace(&mut self.memory, none));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_up_to_a_limit() {
        let buffers = Buffers::new(1 << 20);
        let first = buffers.take(300_000);
        let place = first.bytes().as_ptr();
        drop(first);
        assert_eq!(buffers.take(200_000).bytes().as_ptr(), place);
        assert_eq!(buffers.take(200_000).bytes().len(), 200_000);
        // A small plane does not hold on to a large buffer.
        assert_ne!(buffers.take(10).bytes().as_ptr(), place);
        let held: Vec<_> = (0..5).map(|_| buffers.take(400_000)).collect();
        drop(held);
        let kept: usize = buffers
            .waiting
            .lock()
            .unwrap()
            .iter()
            .map(|memory| memory.bytes().len())
            .sum();
        assert!((800_000..=1 << 20).contains(&kept), "{kept}");
    }
}
