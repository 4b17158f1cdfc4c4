//! How codes and scales are chosen, over whole rows: the kernels fit and pack one row, this
//! room says from which trials, restores the amplitude, and decides how scales are stored.

mod gain;
mod lsq;

use crate::format::{Float, Gain, Layout, Method, Recipe, ScaleDtype};
use crate::kernel::{ErrorRow, ErrorSums, Fit, KernelTable, Planes, QuantizeRow, RowFault};

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
    /// Measured on the weights as they decode from the stored planes.
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

/// Quantizes whole rows and measures the result. Allocates nothing; may be called on disjoint
/// rows from any number of threads, with the same bytes as in one call.
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
    planes: PlanesMut<'_>,
) -> Result<Outcome, Fault> {
    let layout = recipe.layout(scale_dtype);
    let cols = matrix.cols;
    let mut outcome = Outcome::default();
    for row in 0..matrix.rows {
        let codes = row_mut(planes.codes, row, layout.code_bytes(cols));
        let scales = row_mut(planes.scales, row, layout.scale_bytes(cols));
        let biases = row_mut(planes.biases, row, layout.bias_bytes(cols));
        let weights = matrix.row(row);
        let sums = table
            .quantize_row(QuantizeRow {
                layout,
                fit: fit(recipe),
                cols,
                float: matrix.float,
                weights,
                importance,
                sums: recipe.gain == Gain::Unit,
                codes,
                scales,
                biases,
            })
            .map_err(|fault| locate(fault, row, matrix))?;
        if recipe.gain == Gain::Unit {
            gain::apply(layout, sums, scales, biases)
                .map_err(|fault| locate(fault, row, matrix))?;
        }
        outcome.largest_weight = outcome.largest_weight.max(sums.largest);
        for group in 0..layout.group_size.count(cols) {
            let scale = scale_dtype.get(scales, group).abs();
            outcome.largest_scale = outcome.largest_scale.max(scale);
        }
        outcome.error.add(table.error_row(ErrorRow {
            layout,
            cols,
            planes: Planes {
                codes,
                scales,
                biases,
            },
            float: matrix.float,
            weights,
        }));
    }
    Ok(outcome)
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
