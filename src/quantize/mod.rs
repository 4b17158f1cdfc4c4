//! How codes and scales are chosen, over whole rows: the kernels fit and pack one row, this
//! room says from which trials, restores the amplitude, and decides how scales are stored.

mod lsq;
pub mod transform;

use crate::format::{Float, Gain, Layout, Method, Recipe, ScaleDtype};
use crate::kernel::{
    ErrorRow, ErrorSums, Fit, GainSums, KernelTable, Moments, Planes, QuantizeRow, RescaleRow,
    RowFault, Sums, moments_tell,
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

/// Where the planes of the rows go: each as long as the layout says for all rows.
#[derive(Debug)]
pub struct PlanesMut<'a> {
    /// Packed codes.
    pub codes: &'a mut [u8],
    /// Packed scales.
    pub scales: &'a mut [u8],
    /// Packed biases; empty when symmetric.
    pub biases: &'a mut [u8],
}

/// What quantizing some rows came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// Measured on the weights as they decode from the stored planes; zeros if not asked for.
    pub error: ErrorSums,
    /// Largest magnitude of a stored scale.
    pub largest_scale: f32,
    /// Largest magnitude of a weight.
    pub largest_weight: f32,
}

impl Outcome {
    /// Takes in the outcome of the rows that follow.
    pub fn add(&mut self, next: Self) {
        self.error.add(next.error);
        self.largest_scale = self.largest_scale.max(next.largest_scale);
        self.largest_weight = self.largest_weight.max(next.largest_weight);
    }

    /// Whether f16 scales of these rows (a whole tile) lose too much: the largest is subnormal
    /// or zero. Where all weights are zero there is nothing to lose.
    pub fn wants_f32_scales(&self) -> bool {
        const SMALLEST_NORMAL_F16: f32 = 1.0 / 16384.0;
        self.largest_weight > 0.0 && self.largest_scale < SMALLEST_NORMAL_F16
    }
}

/// Why rows cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// A weight is NaN or infinite.
    NonFinite {
        /// Its row, counted from the first one given.
        row: usize,
        /// Its column.
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
    /// The same fault with rows counted from `rows` further up.
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

/// Quantizes whole rows and, where `measure` is set, measures the result. Allocates nothing; may
/// be called on disjoint rows from any number of threads, with the same bytes as in one call.
///
/// `importance` weighs the input channels (`cols` finite numbers >= 0) in the choice of scales
/// and in unit gain.
///
/// # Errors
/// A weight is not finite, or a scale does not fit `scale_dtype`. The planes then hold nothing
/// of use.
///
/// # Panics
/// If a slice is not as long as the layout says.
pub fn quantize_rows(
    table: &KernelTable,
    recipe: &Recipe,
    scale_dtype: ScaleDtype,
    matrix: Matrix<'_>,
    importance: Option<&[f32]>,
    measure: bool,
    planes: PlanesMut<'_>,
) -> Result<Outcome, Fault> {
    let layout = recipe.layout(scale_dtype);
    let cols = matrix.cols;
    let mut outcome = Outcome::default();
    let mut rows = Rows {
        table,
        recipe,
        layout,
        cols,
        float: matrix.float,
        importance,
        measure,
        moments: [Moments::default(); HELD],
    };
    for row in 0..matrix.rows {
        let planes = PlanesMut {
            codes: row_mut(planes.codes, row, layout.code_bytes(cols)),
            scales: row_mut(planes.scales, row, layout.scale_bytes(cols)),
            biases: row_mut(planes.biases, row, layout.bias_bytes(cols)),
        };
        let done = rows.quantize(matrix.row(row), planes);
        outcome.add(done.map_err(|fault| locate(fault, row, matrix))?);
    }
    Ok(outcome)
}

/// Groups of a row whose moments are held between quantizing and measuring it; those of a row of
/// more are taken again.
const HELD: usize = 256;

/// What quantizing one row after the other needs.
struct Rows<'a> {
    table: &'a KernelTable,
    recipe: &'a Recipe,
    layout: Layout,
    cols: usize,
    float: Float,
    importance: Option<&'a [f32]>,
    measure: bool,
    moments: [Moments; HELD],
}

impl Rows<'_> {
    fn quantize(&mut self, weights: &[u8], planes: PlanesMut<'_>) -> Result<Outcome, RowFault> {
        let Self { layout, cols, .. } = *self;
        let PlanesMut {
            codes,
            scales,
            biases,
        } = planes;
        let unit_gain = self.recipe.gain == Gain::Unit;
        let mut gain = GainSums::default();
        let mut error = ErrorSums::default();
        let moments = self.moments.get_mut(..layout.group_size.count(cols));
        let few_bits = moments_tell(layout.format);
        let mut held = false;
        let sums = match moments {
            Some(moments)
                if few_bits && (self.measure || unit_gain) && self.importance.is_none() =>
            {
                held = true;
                Sums::Moments(moments, &mut gain)
            }
            _ if unit_gain => Sums::Gain(&mut gain),
            _ if self.measure && !few_bits => Sums::Error(&mut error),
            _ => Sums::None,
        };
        let measured = matches!(sums, Sums::Error(_));
        let largest_weight = self.table.quantize_row(QuantizeRow {
            layout,
            fit: fit(self.recipe),
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
        // amplitude adds up from layer to layer. Unit gain gives it back; codes and cosine stay.
        if unit_gain && gain.product > 0.0 {
            self.table.rescale_row(RescaleRow {
                layout,
                gain: (gain.signal / gain.product) as f32,
                scales,
                biases,
            })?;
        }
        if self.measure && !measured {
            error = self.table.error_row(ErrorRow {
                layout,
                cols,
                planes: Planes {
                    codes,
                    scales,
                    biases,
                },
                float: self.float,
                weights,
                moments: held.then(|| &self.moments[..layout.group_size.count(cols)]),
            });
        }
        Ok(Outcome {
            error,
            largest_scale: largest_scale(layout.scale_dtype, scales),
            largest_weight,
        })
    }
}

/// Compares quantized rows with their originals, on the weights as decoded; the sums are those
/// that quantizing the same rows reported.
///
/// # Panics
/// If a slice is not as long as the layout says.
pub fn measure_rows(
    table: &KernelTable,
    layout: Layout,
    matrix: Matrix<'_>,
    planes: Planes<'_>,
) -> ErrorSums {
    let cols = matrix.cols;
    let mut sums = ErrorSums::default();
    for row in 0..matrix.rows {
        sums.add(table.error_row(ErrorRow {
            layout,
            cols,
            planes: planes.row(layout, cols, row),
            float: matrix.float,
            weights: matrix.row(row),
            moments: None,
        }));
    }
    sums
}

/// The first weight that is NaN or infinite, as row, column and value.
pub fn find_non_finite(matrix: Matrix<'_>) -> Option<(usize, usize, f32)> {
    (0..matrix.rows * matrix.cols)
        .map(|i| (i, matrix.float.get(matrix.weights, i)))
        .find(|(_, value)| !value.is_finite())
        .map(|(i, value)| (i / matrix.cols, i % matrix.cols, value))
}

fn fit(recipe: &Recipe) -> Fit<'static> {
    match recipe.method {
        Method::MinMax => Fit::MinMax,
        Method::Lsq => Fit::LeastSquares(lsq::ratios(recipe.format, recipe.scheme)),
    }
}

/// The largest magnitude in a plane of finite scales: that of the largest bits but the sign.
fn largest_scale(dtype: ScaleDtype, scales: &[u8]) -> f32 {
    match dtype {
        ScaleDtype::F16 => {
            let bits = scales
                .as_chunks()
                .0
                .iter()
                .map(|bytes| u16::from_le_bytes(*bytes));
            half::f16::from_bits(bits.fold(0, |most, bits| most.max(bits & 0x7FFF))).to_f32()
        }
        ScaleDtype::F32 => {
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
mod tests;
