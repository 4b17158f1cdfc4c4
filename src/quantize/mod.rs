//! Chooses codes and scales of whole rows: the kernels fit and pack one row; this room provides the
//! trials, restores the amplitude, and decides how scales are stored.

mod factor;
mod gptq;
mod lsq;
pub mod transform;

pub use factor::{Factor, floored};

use crate::format::{Encoding, Float, Gain, Method, Recipe, ScaleDtype, Scheme};
use crate::kernel::{
    BUNDLE, ErrorRow, ErrorSums, Fit, GainSums, KernelTable, Moments, Planes, QuantizeRow,
    RescaleRow, RowFault, Sums, moments_tell,
};

/// Rows of weights, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Weights in a row.
    pub cols: usize,
    /// Element type.
    pub float: Float,
    /// `rows * cols` little-endian values, at any alignment.
    pub weights: &'a [u8],
}

impl<'a> Matrix<'a> {
    fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.cols * self.float.size();
        &self.weights[row * bytes..(row + 1) * bytes]
    }
}

/// The planes of the rows, each with the length given by the layout for all rows.
#[derive(Debug)]
pub struct PlanesMut<'a> {
    /// Packed codes.
    pub codes: &'a mut [u8],
    /// Packed scales.
    pub scales: &'a mut [u8],
    /// Packed biases; empty when symmetric.
    pub biases: &'a mut [u8],
}

/// What is known about the inputs that the rows will be multiplied with.
#[derive(Debug, Clone, Copy)]
pub enum Guide<'a> {
    /// Nothing: all weights count equally.
    None,
    /// Weights of errors by input channel: `cols` finite numbers >= 0, used when choosing scales.
    Importance(&'a [f32]),
    /// The factor that lets channels compensate for each other's errors, for `method: gptq`; of
    /// `cols` channels. Other methods use its importance.
    Factor(&'a Factor),
}

impl<'a> Guide<'a> {
    fn importance(self) -> Option<&'a [f32]> {
        match self {
            Guide::None => None,
            Guide::Importance(importance) => Some(importance),
            Guide::Factor(factor) => Some(factor.importance()),
        }
    }

    /// Returns the bytes needed for quantizing rows of `cols` weights, in addition to their planes.
    pub fn scratch_bytes(method: Method, cols: usize) -> usize {
        match method {
            Method::Gptq => gptq::Bundle::bytes(cols),
            Method::MinMax | Method::Lsq => 0,
        }
    }
}

/// The results of quantizing some rows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Error measured on the weights decoded from the stored planes; zeros if not requested.
    pub error: ErrorSums,
    /// Largest magnitude of a stored scale.
    pub largest_scale: f32,
    /// Largest magnitude of a weight.
    pub largest_weight: f32,
}

impl Outcome {
    /// Adds the results of the rows that follow.
    pub fn add(&mut self, next: Self) {
        self.error.add(next.error);
        self.largest_scale = self.largest_scale.max(next.largest_scale);
        self.largest_weight = self.largest_weight.max(next.largest_weight);
    }

    /// Whether f16 scales of these rows (a whole tile) lose too much: the largest is subnormal or
    /// zero. If all weights are zero, nothing is lost.
    pub fn wants_f32_scales(&self) -> bool {
        const SMALLEST_NORMAL_F16: f32 = 1.0 / 16384.0;
        self.largest_weight > 0.0 && self.largest_scale < SMALLEST_NORMAL_F16
    }
}

/// The reason why rows cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// A weight is NaN or infinite.
    NonFinite {
        /// Row, counted from the first one given.
        row: usize,
        /// Column.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A scale or bias of this row does not fit the scale dtype.
    ScaleOverflow {
        /// The row, counted from the first one given.
        row: usize,
    },
}

impl Fault {
    /// Returns the same fault with row numbers increased by `rows`.
    pub fn moved_down(self, rows: usize) -> Self {
        match self {
            Self::NonFinite { row, col, value } => Self::NonFinite {
                row: row + rows,
                col,
                value,
            },
            Self::ScaleOverflow { row } => Self::ScaleOverflow { row: row + rows },
        }
    }
}

/// Quantizes whole rows and, if `measure` is set, measures the result. Allocates nothing, except
/// once per call with a [`Guide::Factor`]. Any number of threads may call it on disjoint rows; the
/// bytes are the same as in one call.
///
/// `method: gptq` without a factor is `lsq`, with the importance if there is any.
///
/// # Errors
/// A weight is not finite, or a scale does not fit its dtype. The contents of the planes are then
/// undefined.
///
/// # Panics
/// Panics if a slice does not have the length given by the encoding.
///
/// ```
/// use arrowquant::format::{Choice, Float, Format, Gain, GroupSize, Method, Recipe, ScaleDtype, ScalePolicy, Scheme};
/// use arrowquant::{kernel::KernelTable, quantize::{Guide, Matrix, PlanesMut, quantize_rows}};
///
/// let recipe = Recipe {
///     encoding: Format::Int4.encoding(Choice {
///         group_size: GroupSize::ROW,
///         scheme: Scheme::Symmetric,
///         scale_dtype: ScaleDtype::F16,
///     }),
///     scales: ScalePolicy::Auto,
///     method: Method::MinMax,
///     gain: Gain::Lsq,
/// };
/// let weights: Vec<u8> = [-8.0f32, -3.0, 0.0, 7.0].iter().flat_map(|w| w.to_le_bytes()).collect();
/// let matrix = Matrix { rows: 1, cols: 4, float: Float::F32, weights: &weights };
/// let (mut codes, mut scales) = ([0; 2], [0; 2]);
/// let planes = PlanesMut { codes: &mut codes, scales: &mut scales, biases: &mut [] };
/// let table = KernelTable::choose().expect("AQ_ISA names an instruction set");
/// quantize_rows(table, &recipe, recipe.encoding, matrix, Guide::None, false, planes).expect("finite weights");
/// // Codes 0, 5, 8 and 15, from the lowest bits on; a scale of 1 as f16.
/// assert_eq!((codes, scales), ([0x50, 0xF8], [0x00, 0x3C]));
/// ```
pub fn quantize_rows(
    table: &KernelTable,
    recipe: &Recipe,
    encoding: Encoding,
    matrix: Matrix<'_>,
    guide: Guide<'_>,
    measure: bool,
    planes: PlanesMut<'_>,
) -> Result<Outcome, Fault> {
    let cols = matrix.cols;
    let mut outcome = Outcome::default();
    let mut rows = Rows {
        table,
        recipe,
        encoding,
        cols,
        float: matrix.float,
        importance: guide.importance(),
        measure,
        moments: [Moments::default(); HELD],
    };
    let layout = encoding.layout();
    if let (Method::Gptq, Guide::Factor(factor), Some(layout)) = (recipe.method, guide, layout) {
        assert_eq!(factor.cols(), cols);
        let bundle = gptq::Bundle::new(table, factor, layout);
        return feed_back(rows, bundle, matrix, planes);
    }
    let [codes, scales, biases] = encoding.plane_bytes(cols);
    for row in 0..matrix.rows {
        let planes = PlanesMut {
            codes: row_mut(planes.codes, row, codes),
            scales: row_mut(planes.scales, row, scales),
            biases: row_mut(planes.biases, row, biases),
        };
        let done = rows.quantize(matrix.row(row), planes);
        outcome.add(done.map_err(|fault| locate(fault, row, matrix))?);
    }
    Ok(outcome)
}

/// Quantizes rows in bundles, with weights compensating for each other's errors.
fn feed_back(
    mut rows: Rows<'_>,
    mut bundle: gptq::Bundle<'_>,
    matrix: Matrix<'_>,
    planes: PlanesMut<'_>,
) -> Result<Outcome, Fault> {
    let (encoding, cols) = (rows.encoding, rows.cols);
    let [codes, scales, biases] = encoding.plane_bytes(cols);
    let mut outcome = Outcome::default();
    for start in (0..matrix.rows).step_by(BUNDLE) {
        let range = start..matrix.rows.min(start + BUNDLE);
        let slice = |bytes: usize| range.start * bytes..range.end * bytes;
        let some = Matrix {
            rows: range.len(),
            weights: &matrix.weights[slice(cols * matrix.float.size())],
            ..matrix
        };
        let planes = PlanesMut {
            codes: &mut planes.codes[slice(codes)],
            scales: &mut planes.scales[slice(scales)],
            biases: &mut planes.biases[slice(biases)],
        };
        let done = bundle.quantize(&mut rows, some, planes);
        let done = done.map_err(|(row, fault)| locate(fault, start + row, matrix));
        outcome.add(done?);
    }
    Ok(outcome)
}

/// The most groups of a row whose moments are stored between quantizing and measuring it; those of
/// longer rows are computed again.
const HELD: usize = 256;

/// The state for quantizing one row after the other.
struct Rows<'a> {
    table: &'a KernelTable,
    recipe: &'a Recipe,
    encoding: Encoding,
    cols: usize,
    float: Float,
    importance: Option<&'a [f32]>,
    measure: bool,
    moments: [Moments; HELD],
}

impl Rows<'_> {
    /// Finds the grids of a row for GPTQ, and rounds to them; returns the largest magnitude of a
    /// weight.
    fn grid(&self, weights: &[u8], planes: PlanesMut<'_>) -> Result<f32, RowFault> {
        let fit = match self.encoding.scheme() {
            // Least squares clips weights in favour of all others, but here the others compensate
            // for rounding, not for clipping.
            Some(Scheme::Affine) => Fit::MinMax,
            _ => fit(self.recipe.method, self.encoding),
        };
        self.table.quantize_row(QuantizeRow {
            encoding: self.encoding,
            fit,
            cols: self.cols,
            float: self.float,
            weights,
            importance: self.importance,
            sums: Sums::None,
            codes: planes.codes,
            scales: planes.scales,
            biases: planes.biases,
        })
    }

    fn quantize(&mut self, weights: &[u8], planes: PlanesMut<'_>) -> Result<Outcome, RowFault> {
        let Self { encoding, cols, .. } = *self;
        let PlanesMut {
            codes,
            scales,
            biases,
        } = planes;
        let unit_gain = self.recipe.gain == Gain::Unit;
        let mut gain = GainSums::default();
        let mut error = ErrorSums::default();
        let moments = self.moments.get_mut(..encoding.groups(cols));
        let few_bits = moments_tell(encoding);
        let mut held = false;
        let sums = match moments {
            Some(moments) if few_bits && (self.measure || unit_gain) => {
                held = true;
                Sums::Moments(moments, &mut gain)
            }
            _ if unit_gain => Sums::Gain(&mut gain),
            _ if self.measure && !few_bits => Sums::Error(&mut error),
            _ => Sums::None,
        };
        let measured = matches!(sums, Sums::Error(_));
        let largest_weight = self.table.quantize_row(QuantizeRow {
            encoding,
            fit: fit(self.recipe.method, encoding),
            cols,
            float: self.float,
            weights,
            importance: self.importance,
            sums,
            codes,
            scales,
            biases,
        })?;
        // Least-squares codes shrink the signal: `<w, q> = |q|^2 < |w|^2`, and the loss of
        // amplitude adds up from layer to layer. Unit gain restores it; codes and cosine do not
        // change.
        if unit_gain && gain.product > 0.0 {
            self.table.rescale_row(RescaleRow {
                encoding,
                gain: (gain.signal / gain.product) as f32,
                codes,
                scales,
                biases,
            })?;
        }
        if self.measure && !measured {
            error = self.table.error_row(ErrorRow {
                encoding,
                cols,
                planes: Planes {
                    codes,
                    scales,
                    biases,
                },
                float: self.float,
                weights,
                moments: held.then(|| &self.moments[..encoding.groups(cols)]),
            });
        }
        Ok(Outcome {
            error,
            largest_scale: largest_scale(encoding.scale_dtype(), scales),
            largest_weight,
        })
    }
}

/// Compares quantized rows with their originals, on the decoded weights; the sums are the same as
/// those reported by quantizing the rows.
///
/// # Panics
/// Panics if a slice does not have the length given by the encoding.
pub fn measure_rows(
    table: &KernelTable,
    encoding: Encoding,
    matrix: Matrix<'_>,
    planes: Planes<'_>,
) -> ErrorSums {
    let cols = matrix.cols;
    let mut sums = ErrorSums::default();
    for row in 0..matrix.rows {
        sums.add(table.error_row(ErrorRow {
            encoding,
            cols,
            planes: planes.row(encoding, cols, row),
            float: matrix.float,
            weights: matrix.row(row),
            moments: None,
        }));
    }
    sums
}

/// Returns the first weight that is NaN or infinite, as row, column and value.
pub fn find_non_finite(matrix: Matrix<'_>) -> Option<(usize, usize, f32)> {
    (0..matrix.rows * matrix.cols)
        .map(|i| (i, matrix.float.get(matrix.weights, i)))
        .find(|(_, value)| !value.is_finite())
        .map(|(i, value)| (i / matrix.cols, i % matrix.cols, value))
}

fn fit(method: Method, encoding: Encoding) -> Fit<'static> {
    match (method, encoding.layout()) {
        (Method::MinMax, _) | (_, None) => Fit::MinMax,
        (Method::Lsq | Method::Gptq, Some(layout)) => Fit::LeastSquares(lsq::ratios(layout)),
    }
}

/// Returns the largest magnitude in a plane of finite scales: the one with the largest bits,
/// ignoring the sign. 0 if there is no such plane.
fn largest_scale(dtype: Option<ScaleDtype>, scales: &[u8]) -> f32 {
    match dtype {
        None => 0.0,
        Some(ScaleDtype::F16) => {
            let bits = scales
                .as_chunks()
                .0
                .iter()
                .map(|bytes| u16::from_le_bytes(*bytes));
            half::f16::from_bits(bits.fold(0, |most, bits| most.max(bits & 0x7FFF))).to_f32()
        }
        Some(ScaleDtype::F32) => {
            let bits = scales
                .as_chunks()
                .0
                .iter()
                .map(|bytes| u32::from_le_bytes(*bytes));
            f32::from_bits(bits.fold(0, |most, bits| most.max(bits & 0x7FFF_FFFF)))
        }
    }
}

fn row_mut(plane: &mut [u8], row: usize, bytes: usize) -> &mut [u8] {
    &mut plane[row * bytes..(row + 1) * bytes]
}

fn locate(fault: RowFault, row: usize, matrix: Matrix<'_>) -> Fault {
    let one = Matrix {
        rows: 1,
        weights: matrix.row(row),
        ..matrix
    };
    match (fault, find_non_finite(one)) {
        (RowFault::NonFinite, Some((_, col, value))) => Fault::NonFinite { row, col, value },
        _ => Fault::ScaleOverflow { row },
    }
}

#[cfg(test)]
mod gptq_tests;
#[cfg(test)]
mod tests;
