//! What callers say of a row: what is to be quantized, decoded, measured or compared.

use core::ops::Range;

use super::sums::{ErrorSums, GainSums, Moments};
use crate::format::{Encoding, Float};

/// How a group's scale and bias are found.
#[derive(Debug, Clone, Copy)]
pub enum Fit<'a> {
    /// From the range of the group.
    MinMax,
    /// Least squares from trial scales: the range's scale times each of these ratios.
    LeastSquares(&'a [f32]),
}

/// One row to quantize.
#[derive(Debug)]
pub struct QuantizeRow<'a> {
    /// What it becomes.
    pub encoding: Encoding,
    /// How scales are found.
    pub fit: Fit<'a>,
    /// Number of weights.
    pub cols: usize,
    /// Element type of `weights`.
    pub float: Float,
    /// `cols` little-endian values.
    pub weights: &'a [u8],
    /// Importance of each input channel, `cols` finite numbers >= 0; `None` is 1 everywhere.
    pub importance: Option<&'a [f32]>,
    /// What else to find out on the way.
    pub sums: Sums<'a>,
    /// The codes: as many bytes as `encoding.plane_bytes(cols)` says.
    pub codes: &'a mut [u8],
    /// The scales, likewise.
    pub scales: &'a mut [u8],
    /// The biases, likewise.
    pub biases: &'a mut [u8],
}

/// Sums that are taken while a row is quantized, from the values in registers.
#[derive(Debug)]
pub enum Sums<'a> {
    /// Takes no sums.
    None,
    /// Adds what unit gain follows from.
    Gain(&'a mut GainSums),
    /// Sets the moments of each group, and adds what unit gain follows from.
    Moments(&'a mut [Moments], &'a mut GainSums),
    /// Adds the errors of the weights as they decode: those of [`KernelTable::error_row`](super::KernelTable::error_row).
    Error(&'a mut ErrorSums),
}

/// Why a row cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFault {
    /// A weight is NaN or infinite.
    NonFinite,
    /// A scale or bias does not fit the scale dtype, or would decode to infinity.
    ScaleOverflow,
}

/// The planes of one quantized row.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a> {
    /// Packed codes.
    pub codes: &'a [u8],
    /// Packed scales; empty where codes hold them.
    pub scales: &'a [u8],
    /// Packed biases; empty where there are none.
    pub biases: &'a [u8],
}

impl<'a> Planes<'a> {
    /// The planes of one of these rows.
    ///
    /// # Panics
    /// If the planes hold no such row.
    pub fn row(&self, encoding: Encoding, cols: usize, row: usize) -> Self {
        self.rows(encoding, cols, row..row + 1)
    }

    /// The planes of some of these rows.
    ///
    /// # Panics
    /// If the planes hold no such rows.
    pub fn rows(&self, encoding: Encoding, cols: usize, rows: Range<usize>) -> Self {
        let slice = |plane: &'a [u8], bytes: usize| &plane[rows.start * bytes..rows.end * bytes];
        let [codes, scales, biases] = encoding.plane_bytes(cols);
        Self {
            codes: slice(self.codes, codes),
            scales: slice(self.scales, scales),
            biases: slice(self.biases, biases),
        }
    }

    pub(super) fn check(&self, encoding: Encoding, cols: usize) {
        let found = [self.codes, self.scales, self.biases].map(<[u8]>::len);
        assert_eq!(found, encoding.plane_bytes(cols));
    }
}

/// One row to decode.
#[derive(Debug)]
pub struct DecodeRow<'a> {
    /// What the row is stored as.
    pub encoding: Encoding,
    /// Number of weights.
    pub cols: usize,
    /// The quantized row.
    pub planes: Planes<'a>,
    /// Element type of `weights`.
    pub float: Float,
    /// `cols` values are written here; f16 and bf16 are the f32 result rounded half to even.
    pub weights: &'a mut [u8],
}

/// One row to compare with its original.
#[derive(Debug)]
pub struct ErrorRow<'a> {
    /// What the row is stored as.
    pub encoding: Encoding,
    /// Number of weights.
    pub cols: usize,
    /// The quantized row.
    pub planes: Planes<'a>,
    /// Element type of `weights`.
    pub float: Float,
    /// The original row.
    pub weights: &'a [u8],
    /// The moments of the row's groups, where they are at hand.
    pub moments: Option<&'a [Moments]>,
}

/// Scales and biases to multiply.
#[derive(Debug)]
pub struct RescaleRow<'a> {
    /// What the row is stored as.
    pub encoding: Encoding,
    /// The factor.
    pub gain: f32,
    /// Packed codes, which hold the scales of some encodings.
    pub codes: &'a mut [u8],
    /// Packed scales.
    pub scales: &'a mut [u8],
    /// Packed biases; empty where there are none.
    pub biases: &'a mut [u8],
}

/// Values to compare with others.
#[derive(Debug)]
pub struct CompareRow<'a> {
    /// Little-endian values and their type.
    pub original: (Float, &'a [u8]),
    /// Values and their type, as many.
    pub decoded: (Float, &'a [u8]),
}
