//! Numbers to bytes and back: `core` only, no I/O, no allocation, no threads.
//!
//! [`KernelTable`] holds one instruction set's kernels as function pointers;
//! [`KernelTable::choose`] picks one at run time. All tables give the same bits: each is the code
//! of `encode.rs`, `errors.rs` and `rows.rs` over that ISA's `Lanes`, and is tested against the
//! scalar one, which is the specification. Products (`dot.rs`) alone may round otherwise.
//! Programs that are built to be fuzzed have the scalar one alone: the others, instrumented, take a
//! quarter of an hour to compile.

mod activations;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx2;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx512;
mod channels;
mod dot;
mod element;
mod encode;
mod errors;
mod feedback;
mod fit;
mod group;
#[cfg(test)]
mod harness;
mod isa;
mod lanes;
mod moments;
#[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
mod neon;
mod rows;
mod scalar;
mod tables;
mod transform;

pub use activations::{ActivationGrid, NonFinite, QuantizeActivations};
pub use isa::{Isa, UnknownIsa};
pub use moments::tell as moments_tell;

use core::ops::Range;

use crate::format::{Float, Layout, Scheme, Transform};

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
    /// What else to find out on the way.
    pub sums: Sums<'a>,
    /// `layout.code_bytes(cols)` bytes.
    pub codes: &'a mut [u8],
    /// `layout.scale_bytes(cols)` bytes.
    pub scales: &'a mut [u8],
    /// `layout.bias_bytes(cols)` bytes.
    pub biases: &'a mut [u8],
}

/// Sums that are taken while a row is quantized, from the values in registers.
#[derive(Debug)]
pub enum Sums<'a> {
    /// None.
    None,
    /// Adds what unit gain follows from.
    Gain(&'a mut GainSums),
    /// Sets the moments of each group, and adds what unit gain follows from.
    Moments(&'a mut [Moments], &'a mut GainSums),
    /// Adds the errors of the weights as they decode: those of [`KernelTable::error_row`].
    Error(&'a mut ErrorSums),
}

/// What unit gain follows from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GainSums {
    /// `sum w^2`.
    pub signal: f64,
    /// `sum w y`, y being the decoded weights.
    pub product: f64,
}

impl GainSums {
    fn add(&mut self, other: Self) {
        self.signal += other.signal;
        self.product += other.product;
    }
}

/// Sums over a group of its weights w and the distance u of their codes from the middle: q - z
/// when symmetric, q - max_code / 2 when affine. Whatever scale and bias the group has in the
/// end, its errors follow from them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// Weights in the group.
    pub len: f64,
    /// `sum w^2`.
    pub signal: f64,
    /// `sum w`; 0 when symmetric.
    pub sum: f64,
    /// `sum w u`.
    pub product: f64,
    /// `sum u`; 0 when symmetric.
    pub code_sum: f64,
    /// `sum u^2`.
    pub code_square: f64,
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
    /// Those of the row's groups, where they are at hand.
    pub moments: Option<&'a [Moments]>,
}

/// Scales and biases to multiply.
#[derive(Debug)]
pub struct RescaleRow<'a> {
    /// How the planes are laid out.
    pub layout: Layout,
    /// The factor.
    pub gain: f32,
    /// Packed scales.
    pub scales: &'a mut [u8],
    /// Packed biases; empty when symmetric.
    pub biases: &'a mut [u8],
}

/// Which way rows go through a [`Transform`] of scales s and a rotation R.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Weights before they are quantized become `(w * s) R`.
    Weights,
    /// Weights as they decode become what they were: `(w R^T) / s`.
    Back,
    /// Activations become `(x / s) R`: their products with weights that were not turned back are
    /// those of the originals.
    Activations,
}

/// Rows to transform in place.
#[derive(Debug)]
pub struct TransformRows<'a> {
    /// What was, or is to be, done to the columns.
    pub transform: Transform<'a>,
    /// Which way.
    pub turn: Turn,
    /// Values in a row.
    pub cols: usize,
    /// Little-endian f32, row after row.
    pub values: &'a mut [u8],
}

/// Values to compare with others.
#[derive(Debug)]
pub struct CompareRow<'a> {
    /// Little-endian values and their type.
    pub original: (Float, &'a [u8]),
    /// As many values.
    pub decoded: (Float, &'a [u8]),
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

/// As [`MatVec`], with vectors of bytes.
#[derive(Debug)]
pub struct ByteMatVec<'a> {
    /// How the planes are laid out.
    pub layout: Layout,
    /// Weights in a row.
    pub cols: usize,
    /// The quantized rows.
    pub planes: Planes<'a>,
    /// Which rows of the matrix these are.
    pub rows: Range<usize>,
    /// The vectors, in groups of the layout's size.
    pub x: Activations<'a>,
    /// As in [`MatVec`].
    pub y: &'a mut [f32],
    /// Rows of the whole matrix.
    pub y_rows: usize,
}

/// Some rows of activations, to add up by channel.
#[derive(Debug)]
pub struct ChannelSums<'a> {
    /// Element type of `x`.
    pub float: Float,
    /// Channels.
    pub cols: usize,
    /// One row or more of `cols` little-endian values; no more than some hundred, as the sums are
    /// f32.
    pub x: &'a [u8],
    /// The smallest value of each channel is written here.
    pub low: &'a mut [f32],
    /// The largest.
    pub high: &'a mut [f32],
    /// The sum of squares; infinite or NaN where there is such a value, or one too large to be
    /// squared.
    pub squares: &'a mut [f32],
}

/// Rows that [`Feedback`] quantizes side by side.
pub const BUNDLE: usize = 32;

/// A bundle of rows times a triangular factor.
#[derive(Debug)]
pub struct Projection<'a> {
    /// Weights in a row.
    pub cols: usize,
    /// `cols x cols`, of which what is below the diagonal counts.
    pub factor: &'a [f32],
    /// [`BUNDLE`] weights for each column.
    pub weights: &'a [f32],
    /// Likewise: `weight_k + sum_{j<k} factor_kj weight_j`, added in this order.
    pub out: &'a mut [f32],
}

/// A bundle of rows to quantize column by column, errors being made up for later.
#[derive(Debug)]
pub struct Feedback<'a> {
    /// Format and scheme of the codes.
    pub layout: Layout,
    /// Weights in a row.
    pub cols: usize,
    /// As in [`Projection`]: what the error of one column adds to the target of a later one.
    pub factor: &'a [f32],
    /// The group of each column.
    pub groups: &'a [u32],
    /// [`BUNDLE`] weights for each column, in the order in which columns are quantized.
    pub weights: &'a [f32],
    /// [`BUNDLE`] reciprocals of scales for each group, 0 where the scale is.
    pub inverses: &'a [f32],
    /// Likewise the scales.
    pub scales: &'a [f32],
    /// Likewise the biases; not looked at when symmetric.
    pub biases: &'a [f32],
    /// The codes are written here, [`BUNDLE`] for each column.
    pub codes: &'a mut [f32],
    /// Likewise weights less decoded weights.
    pub errors: &'a mut [f32],
    /// Likewise targets less decoded weights: what no later column makes up for.
    pub left: &'a mut [f32],
}

/// Vectors quantized to signed bytes, group by group: `x = scale * value`.
#[derive(Debug, Clone, Copy)]
pub struct Activations<'a> {
    /// One vector after the other, in an order of their own: where the codes of `n` bytes of a row
    /// of the matrix begin, first stand the values for the lowest bits of these bytes, then those
    /// for the next; n is 64 where groups are multiples of that many bytes, else 32, or what is
    /// left of a group.
    pub values: &'a [i8],
    /// For each group of each vector its scale.
    pub scales: &'a [f32],
    /// The same times the sum of the group's values.
    pub sums: &'a [f32],
}

/// Where quantized vectors go.
#[derive(Debug)]
pub struct ActivationsMut<'a> {
    /// That of the matrix they are for: its group size, and its format, which decides the order of
    /// the values.
    pub layout: Layout,
    /// As many as there are inputs.
    pub values: &'a mut [i8],
    /// As many as there are groups in all vectors.
    pub scales: &'a mut [f32],
    /// As many as there are scales.
    pub sums: &'a mut [f32],
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

    /// The cosine as a figure; `None` where the weights are all 0, or too small for their squares,
    /// so that there is nothing to measure.
    pub fn measured_cosine(&self) -> Option<f64> {
        (self.signal > 0.0).then(|| self.cosine())
    }

    /// Signal to quantization noise ratio in dB, or `None` where there is no error.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.error > 0.0).then(|| 10.0 * libm::log10(self.signal / self.error))
    }
}

/// The kernels of one instruction set. Holding a table proves that the machine has it.
#[derive(Debug, Clone, Copy)]
pub struct KernelTable {
    isa: Isa,
    quantize: unsafe fn(QuantizeRow<'_>) -> Result<f32, RowFault>,
    decode: unsafe fn(DecodeRow<'_>),
    error: unsafe fn(ErrorRow<'_>) -> ErrorSums,
    rescale: unsafe fn(RescaleRow<'_>) -> Result<(), RowFault>,
    compare: unsafe fn(CompareRow<'_>) -> Option<ErrorSums>,
    transform: unsafe fn(TransformRows<'_>),
    narrow: unsafe fn(&[u8], Float, &mut [u8]),
    matvec: unsafe fn(MatVec<'_>),
    quantize_activations: unsafe fn(QuantizeActivations<'_>) -> Result<(), usize>,
    quantize_vectors: unsafe fn(&[f32], usize, ActivationsMut<'_>) -> bool,
    matvec_bytes: unsafe fn(ByteMatVec<'_>),
    channel_sums: unsafe fn(ChannelSums<'_>),
    widen: unsafe fn(Float, &[u8], &mut [f32]),
    project: unsafe fn(Projection<'_>),
    feedback: unsafe fn(Feedback<'_>),
    refine: unsafe fn(Feedback<'_>),
}

impl KernelTable {
    /// The table of `isa`, or `None` when this machine lacks it.
    pub fn of(isa: Isa) -> Option<&'static Self> {
        isa.available().then(|| tables::table_of(isa))
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

    /// Quantizes one row and returns the largest magnitude of a weight. The weights are read from
    /// cache after the first time, group by group.
    ///
    /// # Errors
    /// The weights cannot be quantized in this layout; the planes then hold nothing of use.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_row(&self, row: QuantizeRow<'_>) -> Result<f32, RowFault> {
        let QuantizeRow { layout, cols, .. } = row;
        assert_eq!(row.weights.len(), cols * row.float.size());
        assert_eq!(row.importance.map_or(cols, <[f32]>::len), cols);
        if let Sums::Moments(moments, _) = &row.sums {
            assert_eq!(moments.len(), layout.group_size.count(cols));
        }
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
        let groups = row.layout.group_size.count(row.cols);
        assert_eq!(row.moments.map_or(groups, <[Moments]>::len), groups);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.error)(row) }
    }

    /// Multiplies the scales and biases of a row, and rounds them to storage.
    ///
    /// # Errors
    /// One no longer fits its storage, or would decode to infinity.
    ///
    /// # Panics
    /// If the planes are not as long as each other, where there are biases.
    pub fn rescale_row(&self, row: RescaleRow<'_>) -> Result<(), RowFault> {
        if row.layout.scheme == Scheme::Affine {
            assert_eq!(row.scales.len(), row.biases.len());
        }
        // SAFETY: as in `quantize_row`.
        unsafe { (self.rescale)(row) }
    }

    /// Compares two arrays, or returns `None` where one has a NaN or infinity.
    ///
    /// # Panics
    /// If they are not as long as each other.
    pub fn compare(&self, row: CompareRow<'_>) -> Option<ErrorSums> {
        let counts = [row.original, row.decoded].map(|(float, bytes)| {
            assert!(bytes.len().is_multiple_of(float.size()));
            bytes.len() / float.size()
        });
        assert_eq!(counts[0], counts[1]);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.compare)(row) }
    }

    /// Transforms rows in place.
    ///
    /// # Panics
    /// If the transform is not one of such rows, or these are no whole rows.
    pub fn transform_rows(&self, rows: TransformRows<'_>) {
        let row = rows.cols * Float::F32.size();
        assert!(rows.values.len().is_multiple_of(row.max(1)));
        assert!(rows.transform.fits(rows.cols));
        // SAFETY: as in `quantize_row`.
        unsafe { (self.transform)(rows) }
    }

    /// [`Turn::Activations`] of rows of `cols` values.
    ///
    /// # Panics
    /// As [`KernelTable::transform_rows`].
    pub fn transform_activations(&self, transform: Transform<'_>, cols: usize, x: &mut [f32]) {
        self.transform_rows(TransformRows {
            transform,
            turn: Turn::Activations,
            cols,
            values: transform::as_bytes_mut(x),
        });
    }

    /// Rounds f32 values to `float`, half to even.
    ///
    /// # Panics
    /// If there are not as many of both.
    pub fn narrow(&self, values: &[u8], float: Float, out: &mut [u8]) {
        assert_eq!(values.len() % Float::F32.size(), 0);
        assert_eq!(values.len() / Float::F32.size() * float.size(), out.len());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.narrow)(values, float, out) }
    }

    /// Multiplies some rows of a matrix with vectors. Unlike all else the products may differ
    /// between instruction sets, by no more than 2^-17 of `sum |w x|` from the exact ones.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn matvec(&self, m: MatVec<'_>) {
        let cols = m.cols;
        if m.y.is_empty() {
            return;
        }
        let batch = m.y.len() / m.y_rows;
        assert_eq!((m.x.len(), m.y.len()), (batch * cols, batch * m.y_rows));
        assert!(m.rows.end <= m.y_rows);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.matvec)(m) }
    }

    /// Quantizes vectors of `cols` values to signed bytes, for [`KernelTable::matvec_bytes`]: by
    /// group, symmetric, the largest magnitude becoming 127. Returns false where there is a NaN
    /// or infinity.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_vectors(&self, x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool {
        let batch = x.len() / cols.max(1);
        let groups = out.layout.group_size.count(cols);
        assert_eq!(x.len(), batch * cols);
        assert_eq!(
            (out.values.len(), out.scales.len()),
            (x.len(), batch * groups)
        );
        assert_eq!(out.sums.len(), out.scales.len());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.quantize_vectors)(x, cols, out) }
    }

    /// As [`KernelTable::matvec`], with vectors quantized in groups of the layout's size. Codes
    /// and bytes are multiplied exactly; what follows is within 2^-17 of the sum over groups of
    /// the largest magnitude that a code of the group could stand for, times the sum of the
    /// magnitudes of its values.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn matvec_bytes(&self, m: ByteMatVec<'_>) {
        let ByteMatVec {
            layout, cols, x, ..
        } = m;
        if m.y.is_empty() {
            return;
        }
        let batch = m.y.len() / m.y_rows;
        let groups = layout.group_size.count(cols);
        assert_eq!(
            (x.values.len(), x.scales.len()),
            (batch * cols, batch * groups)
        );
        assert_eq!(x.sums.len(), x.scales.len());
        assert_eq!(m.y.len(), batch * m.y_rows);
        assert!(m.rows.end <= m.y_rows);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.matvec_bytes)(m) }
    }

    /// Adds up rows of activations by channel.
    ///
    /// # Panics
    /// If a slice is not as long as its field says, or there is no row.
    pub fn channel_sums(&self, sums: ChannelSums<'_>) {
        let row_bytes = sums.cols * sums.float.size();
        assert!(!sums.x.is_empty() && sums.x.len().is_multiple_of(row_bytes));
        let lengths = [sums.low.len(), sums.high.len(), sums.squares.len()];
        assert_eq!(lengths, [sums.cols; 3]);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.channel_sums)(sums) }
    }

    /// Values as f32.
    ///
    /// # Panics
    /// If there are not as many as `out` holds.
    pub fn widen(&self, float: Float, values: &[u8], out: &mut [f32]) {
        assert_eq!(values.len(), out.len() * float.size());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.widen)(float, values, out) }
    }

    /// Multiplies a bundle of rows with a triangular factor.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn project(&self, p: Projection<'_>) {
        assert_eq!(p.factor.len(), p.cols * p.cols);
        assert_eq!(p.weights.len(), p.cols * BUNDLE);
        assert_eq!(p.out.len(), p.weights.len());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.project)(p) }
    }

    /// Quantizes a bundle of rows, each column making up for the errors of those before it.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn feedback(&self, f: Feedback<'_>) {
        f.check();
        // SAFETY: as in `quantize_row`.
        unsafe { (self.feedback)(f) }
    }

    /// Rounds the columns of a bundle once more, each to what is best given the errors of all
    /// others. `factor` is whole but for its diagonal, which counts as 0: what the error of any
    /// column adds to the target of another. Codes and errors are those of before.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn refine(&self, f: Feedback<'_>) {
        f.check();
        // SAFETY: as in `quantize_row`.
        unsafe { (self.refine)(f) }
    }
}

impl Feedback<'_> {
    fn check(&self) {
        let f = self;
        assert_eq!(f.factor.len(), f.cols * f.cols);
        assert_eq!(f.groups.len(), f.cols);
        let each = [&f.codes, &f.errors, &f.left].map(|out| out.len());
        assert_eq!(
            (f.weights.len(), each),
            (f.cols * BUNDLE, [f.cols * BUNDLE; 3])
        );
        assert_eq!(f.inverses.len(), f.scales.len());
        assert!(f.layout.scheme == Scheme::Symmetric || f.biases.len() == f.scales.len());
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
