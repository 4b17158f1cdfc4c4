//! What all work of a run shares: the source and how its weights are read, kernels, threads, buffers.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::format::rows_per_piece;
use crate::kernel::KernelTable;
use crate::quantize::Matrix;
use crate::sink::Buffers;
use crate::source::Source;

/// Read buffers larger than this are not kept for reuse.
const LARGEST_POOLED: usize = 8 << 20;

/// What a run works on and with.
pub(crate) struct Context<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) table: &'a KernelTable,
    pub(crate) pool: &'a Pool<'a>,
    /// Buffers to make planes in.
    pub(crate) planes: Buffers,
    /// Bytes of the source that are dealt with.
    done: &'a AtomicUsize,
    /// Buffers to read into.
    buffers: Mutex<Vec<Vec<u8>>>,
    /// Tensors of f64 with values that f32 does not hold.
    lossy: Mutex<BTreeSet<usize>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        source: &'a dyn Source,
        table: &'a KernelTable,
        pool: &'a Pool<'a>,
        planes: Buffers,
        done: &'a AtomicUsize,
    ) -> Self {
        Self {
            source,
            table,
            pool,
            planes,
            done,
            buffers: Mutex::default(),
            lossy: Mutex::default(),
        }
    }

    /// Counts so many bytes of the source as dealt with.
    pub(crate) fn advance(&self, bytes: usize) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether f32 does not hold some f64 values of a tensor that was read.
    pub(crate) fn is_lossy(&self, tensor: usize) -> bool {
        let lossy = self.lossy.lock();
        lossy.is_ok_and(|lossy| lossy.contains(&tensor))
    }

    /// Reads rows of a tensor into a pooled buffer, as the kernels take them, and calls `body`
    /// with them.
    pub(crate) fn with_rows<R>(
        &self,
        tensor: usize,
        row: usize,
        rows: usize,
        body: impl FnOnce(Matrix<'_>) -> R,
    ) -> Result<R> {
        let info = &self.source.tensors()[tensor];
        let float = info.dtype.float().ok_or_else(|| {
            Error::Internal(format!(
                "'{}' is {}, which is never quantized",
                info.name, info.dtype
            ))
        })?;
        let cols = info.shape.cols();
        let row_bytes = cols * info.dtype.bits() / 8;
        let pooled = self
            .buffers
            .lock()
            .ok()
            .and_then(|mut buffers| buffers.pop());
        let mut buffer = pooled.unwrap_or_default();
        buffer.resize(rows * cols * float.size(), 0);
        let read = |at, bytes: &mut [u8]| self.source.read(tensor, row * row_bytes + at, bytes);
        if info.dtype.read_floats(&mut buffer, read)? > 0 {
            self.note_lossy(tensor);
        }
        let result = body(Matrix {
            rows,
            cols,
            float,
            weights: &buffer,
        });
        // One of a very long row is not worth holding on to.
        if buffer.capacity() <= LARGEST_POOLED
            && let Ok(mut buffers) = self.buffers.lock()
        {
            buffers.push(buffer);
        }
        Ok(result)
    }

    fn note_lossy(&self, tensor: usize) {
        if let Ok(mut lossy) = self.lossy.lock() {
            lossy.insert(tensor);
        }
    }

    /// Whether all values of a tensor are 0.
    pub(crate) fn is_zero(&self, tensor: usize) -> Result<bool> {
        let shape = &self.source.tensors()[tensor].shape;
        let step = rows_per_piece(shape.cols());
        for row in (0..shape.rows()).step_by(step) {
            let rows = step.min(shape.rows() - row);
            let zero = |matrix: Matrix<'_>| {
                let count = matrix.rows * matrix.cols;
                (0..count).all(|i| matrix.float.get(matrix.weights, i) == 0.0)
            };
            if !self.with_rows(tensor, row, rows, zero)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
