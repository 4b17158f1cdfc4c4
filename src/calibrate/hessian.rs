//! `sum x x^T` over the inputs of a layer: summed in f32 over some rows, then in f64; only its
//! lower triangle, row by row. Sums that do not fit into memory are in a temporary file, which is
//! read and written in blocks of rows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use faer::linalg::matmul::matmul as dense_matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef, Par};

/// Rows collected before they are multiplied, so that a Hessian is updated less often.
const PENDING: usize = 256;

/// Rows of a Hessian that are processed at once.
pub const BLOCK: usize = 256;

/// Numbers in the lower triangle of a matrix with `n` rows.
pub const fn packed_len(n: usize) -> usize {
    n * (n + 1) / 2
}

/// Adds `sum x x^T` over rows of `cols` values to some rows of a lower triangle, from `first` on.
/// `products` is scratch memory.
pub fn add_products(
    x: &[f32],
    cols: usize,
    first: usize,
    rows: usize,
    triangle: &mut [f64],
    products: &mut Vec<f32>,
) {
    let x = MatRef::from_row_major_slice(x, x.len() / cols, cols);
    // The rows of the product up to the diagonal: a rectangle, and a triangle at its end.
    let width = first + rows;
    products.resize(rows * width, 0.0);
    let (left, right) =
        MatMut::from_row_major_slice_mut(products, rows, width).split_at_col_mut(first);
    let ours = x.subcols(first, rows);
    dense_matmul(
        left,
        Accum::Replace,
        ours.transpose(),
        x.subcols(0, first),
        1.0,
        Par::Seq,
    );
    matmul(
        right,
        BlockStructure::TriangularLower,
        Accum::Replace,
        ours.transpose(),
        BlockStructure::Rectangular,
        ours,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    let mut rest = triangle;
    for row in 0..rows {
        let found = &products[row * width..][..first + row + 1];
        let (sums, after) = rest.split_at_mut(found.len());
        for (sum, &product) in sums.iter_mut().zip(found) {
            *sum += f64::from(product);
        }
        rest = after;
    }
}

/// The lower triangle of `sum x x^T`.
#[derive(Debug)]
pub struct HessianSums {
    cols: usize,
    count: u64,
    sums: SumsPlace,
    /// Rows that have not been multiplied yet.
    pending: Vec<f32>,
    spill: Arc<Spill>,
    /// Whether the temporary file failed after some sums were written.
    lost: bool,
}

/// The location of the sums.
#[derive(Debug)]
enum SumsPlace {
    /// All sums are 0.
    Nowhere,
    Memory(Vec<f64>),
    /// Stored in the temporary file, at this offset.
    Spilled(u64),
}

impl HessianSums {
    pub(super) fn new(cols: usize, spill: &Arc<Spill>) -> Self {
        Self {
            cols,
            count: 0,
            sums: SumsPlace::Nowhere,
            pending: Vec::new(),
            spill: spill.clone(),
            lost: false,
        }
    }

    /// Rows added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds rows of `cols` values.
    pub(super) fn add(&mut self, rows: &[f32]) -> io::Result<()> {
        self.count += (rows.len() / self.cols) as u64;
        let mut rest = rows;
        while !rest.is_empty() {
            let room = PENDING * self.cols - self.pending.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            if now.len() == PENDING * self.cols {
                self.add_rows(now)?;
            } else {
                self.pending.extend_from_slice(now);
            }
            if self.pending.len() == PENDING * self.cols {
                self.settle()?;
            }
            rest = later;
        }
        Ok(())
    }

    /// Multiplies the collected rows.
    fn settle(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        // The memory is also freed: there may be thousands of layers and groups.
        let pending = std::mem::take(&mut self.pending);
        self.add_rows(&pending)
    }

    fn add_rows(&mut self, pending: &[f32]) -> io::Result<()> {
        let (cols, mut products) = (self.cols, Vec::new());
        self.change(|first, rows, block| {
            add_products(pending, cols, first, rows, block, &mut products);
            Ok(())
        })?;
        Ok(())
    }

    fn sound(&self) -> io::Result<()> {
        match self.lost {
            true => Err(io::Error::other("a temporary file failed before")),
            false => Ok(()),
        }
    }

    /// Changes the sums in blocks of rows: `body` receives the first row, the number of rows, and
    /// their part of the triangle, and its changes are kept.
    fn change(
        &mut self,
        mut body: impl FnMut(usize, usize, &mut [f64]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.sound()?;
        self.lost = true; // until everything has been written
        if let SumsPlace::Nowhere = self.sums {
            self.sums = self.spill.place(packed_len(self.cols))?;
        }
        for first in (0..self.cols).step_by(BLOCK) {
            let rows = BLOCK.min(self.cols - first);
            let range = packed_len(first)..packed_len(first + rows);
            match &mut self.sums {
                SumsPlace::Nowhere => {}
                SumsPlace::Memory(sums) => body(first, rows, &mut sums[range])?,
                SumsPlace::Spilled(offset) => {
                    let place = *offset + range.start as u64 * 8;
                    let mut block = self.spill.read(place, range.len())?;
                    body(first, rows, &mut block)?;
                    self.spill.write(place, &block)?;
                }
            }
        }
        self.lost = false;
        Ok(())
    }

    /// Visits the sums in blocks of rows: `body` receives the first row and its part of the
    /// triangle, each row up to the diagonal. Without observations it is not called.
    ///
    /// # Errors
    /// A temporary file cannot be read or written, or `body` fails.
    pub fn each_block(
        &mut self,
        mut body: impl FnMut(usize, &[f64]) -> io::Result<()>,
    ) -> io::Result<()> {
        for first in (0..self.cols).step_by(BLOCK) {
            self.block(first, |sums| body(first, sums))?;
        }
        Ok(())
    }

    /// Returns the block of rows from `first` on, a multiple of [`BLOCK`].
    ///
    /// # Errors
    /// The errors of [`HessianSums::each_block`].
    pub fn block(
        &mut self,
        first: usize,
        body: impl FnOnce(&[f64]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.settle()?;
        self.sound()?;
        let rows = BLOCK.min(self.cols - first);
        let range = packed_len(first)..packed_len(first + rows);
        match &self.sums {
            SumsPlace::Nowhere => Ok(()),
            SumsPlace::Memory(sums) => body(&sums[range]),
            SumsPlace::Spilled(offset) => {
                let place = offset + range.start as u64 * 8;
                body(&self.spill.read(place, range.len())?)
            }
        }
    }

    pub(super) fn merge(&mut self, other: &mut Self) -> io::Result<()> {
        self.settle()?;
        other.settle()?;
        let (theirs, spill) = (&other.sums, &other.spill);
        if let SumsPlace::Nowhere = theirs {
            return Ok(());
        }
        self.count += other.count;
        self.change(|first, rows, block| {
            let range = packed_len(first)..packed_len(first + rows);
            let read;
            let theirs = match theirs {
                SumsPlace::Nowhere => return Ok(()),
                SumsPlace::Memory(sums) => &sums[range],
                SumsPlace::Spilled(offset) => {
                    read = spill.read(offset + range.start as u64 * 8, range.len())?;
                    &read[..]
                }
            };
            for (sum, &theirs) in block.iter_mut().zip(theirs) {
                *sum += theirs;
            }
            Ok(())
        })
    }

    /// Restores a block of saved sums, of rows from `first` on; preceding ones must have been
    /// restored. Memory grows with the actual data, whatever a file claims.
    pub(super) fn restore(&mut self, first: usize, saved: &[f64]) -> io::Result<()> {
        if let SumsPlace::Nowhere = self.sums {
            self.sums = match self.spill.reserve(packed_len(self.cols))? {
                None => SumsPlace::Memory(Vec::new()),
                Some(offset) => SumsPlace::Spilled(offset),
            };
        }
        match &mut self.sums {
            SumsPlace::Nowhere => Ok(()),
            SumsPlace::Memory(sums) => {
                sums.reserve_exact(saved.len());
                sums.extend_from_slice(saved);
                Ok(())
            }
            SumsPlace::Spilled(offset) => {
                let at = *offset + packed_len(first) as u64 * 8;
                self.spill.write(at, saved)
            }
        }
    }

    /// Returns the row after a piece of `len` numbers from row `first` on, if these are whole rows
    /// of the triangle.
    pub(super) fn after(&self, first: usize, len: usize) -> Option<usize> {
        let mut rest = len;
        for row in first..self.cols {
            rest = rest.checked_sub(row + 1)?;
            if rest == 0 {
                return Some(row + 1);
            }
        }
        None
    }

    pub(super) fn set_count(&mut self, count: u64) {
        self.count = count;
    }
}

/// Memory for Hessians, and the file for those that do not fit.
#[derive(Debug)]
pub(super) struct Spill {
    limit: usize,
    used: AtomicUsize,
    folder: PathBuf,
    file: Mutex<Option<File>>,
}

impl Spill {
    pub(super) fn new(limit: Option<usize>, folder: Option<PathBuf>) -> Self {
        Self {
            limit: limit.unwrap_or(usize::MAX),
            used: AtomicUsize::new(0),
            folder: folder.unwrap_or_else(std::env::temp_dir),
            file: Mutex::new(None),
        }
    }

    /// Folder of the file, for messages.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes of Hessians in memory.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Reserves room for this many zeros.
    fn place(&self, len: usize) -> io::Result<SumsPlace> {
        Ok(match self.reserve(len)? {
            None => SumsPlace::Memory(vec![0.0; len]),
            Some(offset) => SumsPlace::Spilled(offset),
        })
    }

    /// Counts this many numbers as memory if the limit allows it; otherwise returns their offset in
    /// the file.
    fn reserve(&self, len: usize) -> io::Result<Option<u64>> {
        let bytes = len * size_of::<f64>();
        let take = |used: usize| used.checked_add(bytes).filter(|&used| used <= self.limit);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        if taken.is_ok() {
            return Ok(None);
        }
        self.extend(bytes as u64)
            .map(Some)
            .map_err(|error| self.named(error))
    }

    /// Makes the file longer, or creates it; returns where it ended.
    fn extend(&self, bytes: u64) -> io::Result<u64> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = Some(tempfile::tempfile_in(&self.folder)?);
        }
        let file = file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let end = file.seek(SeekFrom::End(0))?;
        file.set_len(end + bytes)?; // a hole, which reads as zeros
        Ok(end)
    }

    fn at<R>(&self, offset: u64, body: impl FnOnce(&mut File) -> io::Result<R>) -> io::Result<R> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let found = file.seek(SeekFrom::Start(offset)).and_then(|_| body(file));
        found.map_err(|error| self.named(error))
    }

    /// Makes the error say that it concerns the temporary file, not the file being saved or loaded.
    fn named(&self, error: io::Error) -> io::Error {
        let folder = self.folder.display();
        io::Error::new(error.kind(), format!("temporary file in {folder}: {error}"))
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<f64>> {
        let mut bytes = vec![0; len * 8];
        self.at(offset, |file| file.read_exact(&mut bytes))?;
        let number = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes);
        Ok(bytes.as_chunks().0.iter().map(number).collect())
    }

    fn write(&self, offset: u64, numbers: &[f64]) -> io::Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.at(offset, |file| file.write_all(&bytes))
    }
}
