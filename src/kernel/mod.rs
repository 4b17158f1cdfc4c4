//! Numbers to bytes and back: `core` only, no I/O, no allocation, no threads.
//!
//! [`KernelTable`] holds one instruction set's kernels as function pointers;
//! [`KernelTable::choose`] picks one at run time. All tables give the same bits: each is the code
//! of `rows.rs` and `group.rs` over that ISA's `Lanes`, and is tested against the scalar one,
//! which is the specification.

mod group;
#[cfg(test)]
mod harness;
mod isa;
pub(crate) mod lanes;
mod rows;
pub(crate) mod scalar;

pub use isa::{Isa, UnknownIsa};

use core::ops::Range;

use crate::format::{Float, Layout};
use lanes::Lanes;

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
    /// Where codes, scales and biases go.
    pub layout: Layout,
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
    /// Whether to compute the sums of [`RowSums`].
    pub sums: bool,
    /// `layout.code_bytes(cols)` bytes.
    pub codes: &'a mut [u8],
    /// `layout.scale_bytes(cols)` bytes.
    pub scales: &'a mut [u8],
    /// `layout.bias_bytes(cols)` bytes.
    pub biases: &'a mut [u8],
}

/// What is found out about a row while it is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RowSums {
    /// Largest magnitude of a weight.
    pub largest: f32,
    /// `sum h w^2`, if asked for.
    pub signal: f64,
    /// `sum h w y`, y being the decoded weights, if asked for.
    pub product: f64,
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
    /// Packed scales.
    pub scales: &'a [u8],
    /// Packed biases; empty when symmetric.
    pub biases: &'a [u8],
}

/// One row to decode.
#[derive(Debug)]
pub struct DecodeRow<'a> {
    /// How the planes are laid out.
    pub layout: Layout,
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
    /// How the planes are laid out.
    pub layout: Layout,
    /// Number of weights.
    pub cols: usize,
    /// The quantized row.
    pub planes: Planes<'a>,
    /// Element type of `weights`.
    pub float: Float,
    /// The original row.
    pub weights: &'a [u8],
}

/// One row to multiply with a vector.
#[derive(Debug)]
pub struct DotRow<'a> {
    /// How the planes are laid out.
    pub layout: Layout,
    /// The quantized row.
    pub planes: Planes<'a>,
    /// As many values as the row has weights.
    pub x: &'a [f32],
}

/// Some rows of a quantized matrix, to multiply with vectors.
#[derive(Debug)]
pub struct MatVec<'a> {
    /// How the planes are laid out.
    pub layout: Layout,
    /// Weights in a row.
    pub cols: usize,
    /// The quantized rows.
    pub planes: Planes<'a>,
    /// Which rows of the matrix these are.
    pub rows: Range<usize>,
    /// Vectors of `cols` values, one after the other.
    pub x: &'a [f32],
    /// Their products, one after the other, each with as many values as the matrix has rows;
    /// those of these rows are written.
    pub y: &'a mut [f32],
    /// Rows of the whole matrix.
    pub y_rows: usize,
}

/// Sums from which cosine and SQNR follow; they add up over groups, rows and tiles.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ErrorSums {
    /// `|w|^2` of the original.
    pub signal: f64,
    /// `|y|^2` of the decoded weights.
    pub decoded: f64,
    /// `|w - y|^2`.
    pub error: f64,
}

impl ErrorSums {
    /// Adds another row's or tile's sums.
    pub fn add(&mut self, other: Self) {
        self.signal += other.signal;
        self.decoded += other.decoded;
        self.error += other.error;
    }

    /// Cosine of the angle between original and decoded weights. Zero against zero is 1, zero
    /// against anything else 0.
    pub fn cosine(&self) -> f64 {
        if self.error == 0.0 {
            return 1.0;
        }
        let norms = libm::sqrt(self.signal) * libm::sqrt(self.decoded);
        if norms == 0.0 {
            return 0.0;
        }
        // <w, y> from |w - y|^2 = |w|^2 - 2 <w, y> + |y|^2: no cancellation near cosine 1.
        let product = (self.signal + self.decoded - self.error) / 2.0;
        (product / norms).clamp(-1.0, 1.0)
    }

    /// Signal to quantization noise ratio in dB, or `None` where there is no error.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.error > 0.0).then(|| 10.0 * libm::log10(self.signal / self.error))
    }
}

/// The kernels of one instruction set. Holding a table proves that the machine has it.
#[derive(Debug)]
pub struct KernelTable {
    isa: Isa,
    quantize: unsafe fn(QuantizeRow<'_>) -> Result<RowSums, RowFault>,
    decode: unsafe fn(DecodeRow<'_>),
    error: unsafe fn(ErrorRow<'_>) -> ErrorSums,
    dot: unsafe fn(DotRow<'_>) -> f32,
}

impl KernelTable {
    /// The table over lanes that any machine of this architecture has.
    pub(crate) const fn portable<L: Lanes>(isa: Isa) -> Self {
        Self {
            isa,
            quantize: rows::quantize::<L>,
            decode: rows::decode::<L>,
            error: rows::error::<L>,
            dot: rows::dot::<L>,
        }
    }

    /// The table of `isa`, or `None` when this machine lacks it.
    pub fn of(isa: Isa) -> Option<&'static Self> {
        static SCALAR: KernelTable = KernelTable::portable::<scalar::Scalar>(Isa::Scalar);
        match isa {
            Isa::Scalar => Some(&SCALAR),
        }
    }

    /// The best table of this machine, lowered by `AQ_ISA` where that is set.
    ///
    /// # Errors
    /// `AQ_ISA` names no instruction set of this build.
    pub fn choose() -> Result<&'static Self, UnknownIsa> {
        Self::of(Isa::choose()?).ok_or(UnknownIsa)
    }

    /// Whose kernels these are.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Quantizes one row; group by group the weights are read from cache.
    ///
    /// # Errors
    /// The weights cannot be quantized in this layout; the planes then hold nothing of use.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_row(&self, row: QuantizeRow<'_>) -> Result<RowSums, RowFault> {
        let QuantizeRow { layout, cols, .. } = row;
        assert_eq!(row.weights.len(), cols * row.float.size());
        assert_eq!(row.importance.map_or(cols, <[f32]>::len), cols);
        let planes = Planes {
            codes: row.codes,
            scales: row.scales,
            biases: row.biases,
        };
        planes.check(layout, cols);
        // SAFETY: a table exists only where its ISA was detected; lengths are checked above.
        unsafe { (self.quantize)(row) }
    }

    /// Decodes one row.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn decode_row(&self, row: DecodeRow<'_>) {
        assert_eq!(row.weights.len(), row.cols * row.float.size());
        row.planes.check(row.layout, row.cols);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.decode)(row) }
    }

    /// Compares one quantized row with its original, on the weights as decoded.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn error_row(&self, row: ErrorRow<'_>) -> ErrorSums {
        assert_eq!(row.weights.len(), row.cols * row.float.size());
        row.planes.check(row.layout, row.cols);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.error)(row) }
    }

    /// The dot product of one quantized row with a vector. Unlike all else it may differ between
    /// instruction sets, by no more than 2^-17 of `sum |w x|` from the exact one.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn dot_row(&self, row: DotRow<'_>) -> f32 {
        row.planes.check(row.layout, row.x.len());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.dot)(row) }
    }

    /// Multiplies some rows of a matrix with vectors; each product is that of
    /// [`KernelTable::dot_row`].
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn matvec(&self, m: MatVec<'_>) {
        let MatVec { layout, cols, .. } = m;
        if m.y.is_empty() {
            return;
        }
        let batch = m.y.len() / m.y_rows;
        assert_eq!((m.x.len(), m.y.len()), (batch * cols, batch * m.y_rows));
        for (i, row) in m.rows.enumerate() {
            let planes = m.planes.row(layout, cols, i);
            for b in 0..batch {
                let x = &m.x[b * cols..(b + 1) * cols];
                m.y[b * m.y_rows + row] = self.dot_row(DotRow { layout, planes, x });
            }
        }
    }
}

impl<'a> Planes<'a> {
    /// The planes of one of these rows.
    ///
    /// # Panics
    /// If the planes hold no such row.
    pub fn row(&self, layout: Layout, cols: usize, row: usize) -> Self {
        self.rows(layout, cols, row..row + 1)
    }

    /// The planes of some of these rows.
    ///
    /// # Panics
    /// If the planes hold no such rows.
    pub fn rows(&self, layout: Layout, cols: usize, rows: Range<usize>) -> Self {
        let slice = |plane: &'a [u8], bytes: usize| &plane[rows.start * bytes..rows.end * bytes];
        Self {
            codes: slice(self.codes, layout.code_bytes(cols)),
            scales: slice(self.scales, layout.scale_bytes(cols)),
            biases: slice(self.biases, layout.bias_bytes(cols)),
        }
    }

    fn check(&self, layout: Layout, cols: usize) {
        assert_eq!(self.codes.len(), layout.code_bytes(cols));
        assert_eq!(self.scales.len(), layout.scale_bytes(cols));
        assert_eq!(self.biases.len(), layout.bias_bytes(cols));
    }
}
