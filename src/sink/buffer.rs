//! Memory for planes, used again from tile to tile: fresh memory costs a page fault every 4 KiB.

use std::sync::{Arc, Mutex};

/// Definition levels of one present value (u32 length, RLE run of one, level 1), then the u32
/// length of the value.
pub(super) const PREFIX: usize = 6 + 4;

/// Smaller buffers are left to the allocator.
const SMALLEST_KEPT: usize = 64 << 10;

/// Buffers waiting to be used again.
#[derive(Debug, Clone)]
pub struct Buffers {
    most: usize,
    waiting: Arc<Mutex<Vec<Vec<u8>>>>,
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
        let mut bytes = self.find(PREFIX + len).unwrap_or_default();
        if bytes.capacity() < PREFIX + len {
            // Zeros that the system hands out cost nothing until they are written over.
            bytes = vec![0; PREFIX + len];
        }
        bytes.resize(PREFIX + len, 0);
        PlaneBuffer {
            bytes,
            origin: self.clone(),
        }
    }

    /// The smallest that is large enough, if it is not far too large.
    fn find(&self, len: usize) -> Option<Vec<u8>> {
        let mut waiting = self.waiting.lock().ok()?;
        let fitting = waiting.iter().enumerate();
        let fitting =
            fitting.filter(|(_, b)| (len..=len.saturating_mul(4)).contains(&b.capacity()));
        let (best, _) = fitting.min_by_key(|(_, buffer)| buffer.capacity())?;
        Some(waiting.swap_remove(best))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() < SMALLEST_KEPT {
            return;
        }
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.push(buffer);
            // Those that waited longest go first.
            let mut kept: usize = waiting.iter().map(Vec::capacity).sum();
            while kept > self.most {
                kept -= waiting.remove(0).capacity();
            }
        }
    }
}

/// A plane being filled, with room in front for what Parquet puts before a value.
#[derive(Debug)]
pub struct PlaneBuffer {
    bytes: Vec<u8>,
    origin: Buffers,
}

impl PlaneBuffer {
    /// The plane.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[PREFIX..]
    }

    /// The plane, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[PREFIX..]
    }

    /// Fills in what comes before the value, whose length is the plane's.
    pub(super) fn write_prefix(&mut self) {
        let len = self.bytes().len() as u32;
        self.bytes[..PREFIX - 4].copy_from_slice(&[2, 0, 0, 0, 2, 1]);
        self.bytes[PREFIX - 4..PREFIX].copy_from_slice(&len.to_le_bytes());
    }
}

/// Prefix and plane.
impl AsRef<[u8]> for PlaneBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PlaneBuffer {
    fn drop(&mut self) {
        self.origin.give_back(std::mem::take(&mut self.bytes));
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
            .map(Vec::capacity)
            .sum();
        assert!((800_000..=1 << 20).contains(&kept), "{kept}");
    }
}
