//! The kernels of one instruction set as function pointers, and what is checked before each call.

use super::activations::{ActivationGrid, NonFinite, QuantizeActivations};
use super::channels::ChannelSums;
use super::codec::{self, CODECS};
use super::isa::Isa;
use super::product::{ActivationsMut, ByteMatVec, MatVec};
use super::row::{
    CompareRow, DecodeRow, ErrorRow, Planes, QuantizeRow, RescaleRow, RowFault, Sums,
};
use super::sums::{ErrorSums, Moments};
use super::transform::{TransformRows, Turn, as_bytes_mut};
use super::uniform::{BUNDLE, Feedback, Projection};
use crate::format::{Encoding, Float, Transform};

/// The kernels of one instruction set. Holding a table proves that the machine has it.
#[derive(Debug, Clone, Copy)]
pub struct KernelTable {
    pub(super) isa: Isa,
    pub(super) codecs: [CodecTable; CODECS],
    pub(super) compare: unsafe fn(CompareRow<'_>) -> Option<ErrorSums>,
    pub(super) transform: unsafe fn(TransformRows<'_>),
    pub(super) narrow: unsafe fn(&[u8], Float, &mut [u8]),
    pub(super) quantize_activations: unsafe fn(QuantizeActivations<'_>) -> Result<(), usize>,
    pub(super) channel_sums: unsafe fn(ChannelSums<'_>),
    pub(super) widen: unsafe fn(Float, &[u8], &mut [f32]),
    pub(super) project: unsafe fn(Projection<'_>),
    pub(super) feedback: unsafe fn(Feedback<'_>),
    pub(super) refine: unsafe fn(Feedback<'_>),
}

/// The kernels of one instruction set for one encoding, or for all of a kind.
#[derive(Debug, Clone, Copy)]
pub(super) struct CodecTable {
    pub(super) quantize: unsafe fn(QuantizeRow<'_>) -> Result<f32, RowFault>,
    pub(super) decode: unsafe fn(DecodeRow<'_>),
    pub(super) error: unsafe fn(ErrorRow<'_>) -> ErrorSums,
    pub(super) rescale: unsafe fn(RescaleRow<'_>) -> Result<(), RowFault>,
    pub(super) matvec: unsafe fn(MatVec<'_>),
    pub(super) quantize_vectors: unsafe fn(&[f32], usize, ActivationsMut<'_>) -> bool,
    pub(super) matvec_bytes: unsafe fn(ByteMatVec<'_>),
    /// Needs no instruction set.
    pub(super) decodable: fn(Encoding, usize, Planes<'_>) -> bool,
}

impl KernelTable {
    /// Whose kernels these are.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    #[inline]
    fn codec(&self, encoding: Encoding) -> &CodecTable {
        &self.codecs[codec::index(encoding)]
    }

    /// Quantizes one row and returns the largest magnitude of a weight. The weights are read from
    /// cache after the first time, group by group.
    ///
    /// # Errors
    /// The weights cannot be quantized in this encoding; the planes then hold nothing of use.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_row(&self, row: QuantizeRow<'_>) -> Result<f32, RowFault> {
        let QuantizeRow { encoding, cols, .. } = row;
        assert_eq!(row.weights.len(), cols * row.float.size());
        assert_eq!(row.importance.map_or(cols, <[f32]>::len), cols);
        if let Sums::Moments(moments, _) = &row.sums {
            assert!(encoding.layout().is_some());
            assert_eq!(moments.len(), encoding.groups(cols));
        }
        let planes = Planes {
            codes: row.codes,
            scales: row.scales,
            biases: row.biases,
        };
        planes.check(encoding, cols);
        // SAFETY: a table exists only where its ISA was detected; lengths are checked above.
        unsafe { (self.codec(row.encoding).quantize)(row) }
    }

    /// Decodes one row.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn decode_row(&self, row: DecodeRow<'_>) {
        assert_eq!(row.weights.len(), row.cols * row.float.size());
        row.planes.check(row.encoding, row.cols);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.codec(row.encoding).decode)(row) }
    }

    /// Compares one quantized row with its original, on the weights as decoded.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn error_row(&self, row: ErrorRow<'_>) -> ErrorSums {
        assert_eq!(row.weights.len(), row.cols * row.float.size());
        row.planes.check(row.encoding, row.cols);
        let groups = row.encoding.groups(row.cols);
        assert_eq!(row.moments.map_or(groups, <[Moments]>::len), groups);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.codec(row.encoding).error)(row) }
    }

    /// Whether a row decodes to finite weights; if codes are uniform, whatever they are.
    ///
    /// # Panics
    /// If the planes are not as long as the encoding says.
    pub fn decodable(&self, encoding: Encoding, cols: usize, planes: Planes<'_>) -> bool {
        planes.check(encoding, cols);
        (self.codec(encoding).decodable)(encoding, cols, planes)
    }

    /// Multiplies the scales and biases of a row, and rounds them to storage.
    ///
    /// # Errors
    /// One no longer fits its storage, or would decode to infinity.
    ///
    /// # Panics
    /// If the planes are not as long as each other, where there are biases.
    pub fn rescale_row(&self, row: RescaleRow<'_>) -> Result<(), RowFault> {
        if row.encoding.has_biases() {
            assert_eq!(row.scales.len(), row.biases.len());
        }
        // SAFETY: as in `quantize_row`.
        unsafe { (self.codec(row.encoding).rescale)(row) }
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
    /// If the transform is not one of such rows, or these are no whole rows.
    pub fn transform_activations(&self, transform: Transform<'_>, cols: usize, x: &mut [f32]) {
        self.transform_rows(TransformRows {
            transform,
            turn: Turn::Activations,
            cols,
            values: as_bytes_mut(x),
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
        unsafe { (self.codec(m.encoding).matvec)(m) }
    }

    /// Quantizes vectors of `cols` values to signed bytes, for [`KernelTable::matvec_bytes`]: by
    /// group, symmetric, the largest magnitude becoming 127. Returns false where there is a NaN
    /// or infinity.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_vectors(&self, x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool {
        let batch = x.len() / cols.max(1);
        let groups = out.encoding.groups(cols);
        assert_eq!(x.len(), batch * cols);
        assert_eq!(
            (out.values.len(), out.scales.len()),
            (x.len(), batch * groups)
        );
        assert_eq!(out.sums.len(), out.scales.len());
        // SAFETY: as in `quantize_row`.
        unsafe { (self.codec(out.encoding).quantize_vectors)(x, cols, out) }
    }

    /// Multiplies as [`KernelTable::matvec`] does, with vectors quantized in groups as the encoding has them. Codes
    /// and bytes are multiplied exactly; what follows is within 2^-17 of the sum over groups of
    /// the largest magnitude that a code of the group could stand for, times the sum of the
    /// magnitudes of its values.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn matvec_bytes(&self, m: ByteMatVec<'_>) {
        let ByteMatVec {
            encoding, cols, x, ..
        } = m;
        if m.y.is_empty() {
            return;
        }
        let batch = m.y.len() / m.y_rows;
        let groups = encoding.groups(cols);
        assert_eq!(
            (x.values.len(), x.scales.len()),
            (batch * cols, batch * groups)
        );
        assert_eq!(x.sums.len(), x.scales.len());
        assert_eq!(m.y.len(), batch * m.y_rows);
        assert!(m.rows.end <= m.y_rows);
        // SAFETY: as in `quantize_row`.
        unsafe { (self.codec(m.encoding).matvec_bytes)(m) }
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

    /// Quantizes activations.
    ///
    /// # Errors
    /// A value is NaN or infinite, or, where the grid is dynamic, becomes so when divided by its
    /// column's `input_scale`. Then `values` and scales hold nothing of use.
    ///
    /// # Panics
    /// If a slice is not as long as its field says.
    pub fn quantize_activations(&self, a: QuantizeActivations<'_>) -> Result<(), NonFinite> {
        let QuantizeActivations { float, cols, .. } = a;
        let (x, input_scale) = (a.x, a.input_scale);
        let rows = a.values.len() / cols.max(1);
        assert_eq!(
            (x.len(), a.values.len()),
            (rows * cols * float.size(), rows * cols)
        );
        assert_eq!(input_scale.map_or(cols, <[f32]>::len), cols);
        if let ActivationGrid::Dynamic { group_size, scales } = &a.grid {
            assert_eq!(scales.len(), rows * group_size.count(cols));
        }
        // SAFETY: as in `quantize_row`.
        let quantized = unsafe { (self.quantize_activations)(a) };
        quantized.map_err(|row| {
            let value = |col: usize| {
                float.get(x, row * cols + col) / input_scale.map_or(1.0, |scale| scale[col])
            };
            let found = (0..cols).find(|col| !value(*col).is_finite());
            let col = found.unwrap_or(0);
            NonFinite {
                row,
                col,
                value: value(col),
            }
        })
    }
}
