//! Scales and rotations of the input dimension, around the kernels: weights are transformed
//! before they are quantized, and what decodes is turned back; or activations are transformed
//! instead.

use super::{Matrix, measure_rows};
use crate::format::{Encoding, Float, Transform};
use crate::kernel::{CompareRow, DecodeRow, ErrorSums, KernelTable, Planes, TransformRows, Turn};

/// Makes `(w * s) R` of rows of `cols` weights, little-endian f32, before they are quantized.
///
/// # Panics
/// If the transform does not fit `cols`, or these are no whole rows.
pub fn apply_to_weights(
    table: &KernelTable,
    transform: Transform<'_>,
    cols: usize,
    weights: &mut [u8],
) {
    turn(table, (transform, Turn::Weights), cols, weights);
}

/// Makes `(w R^T) / s` of rows as they decode, little-endian f32: weights as they were.
///
/// # Panics
/// As [`apply_to_weights`].
pub fn undo_on_weights(
    table: &KernelTable,
    transform: Transform<'_>,
    cols: usize,
    weights: &mut [u8],
) {
    turn(table, (transform, Turn::Back), cols, weights);
}

/// Makes `(x / s) R` of vectors of `cols` activations: their products with transformed weights are
/// those of `x` with the original ones.
///
/// # Panics
/// As [`apply_to_weights`].
pub fn apply_to_activations(
    table: &KernelTable,
    transform: Transform<'_>,
    cols: usize,
    x: &mut [f32],
) {
    if !transform.is_identity() {
        table.transform_activations(transform, cols, x);
    }
}

fn turn(
    table: &KernelTable,
    (transform, turn): (Transform<'_>, Turn),
    cols: usize,
    rows: &mut [u8],
) {
    if !transform.is_identity() {
        table.transform_rows(TransformRows {
            transform,
            turn,
            cols,
            values: rows,
        });
    }
}

/// Decodes one quantized row as f32, and undoes the transform. False where a weight is not finite,
/// which only a transform can bring about.
///
/// # Panics
/// If the transform does not fit `cols`, or a slice is not as long as the encoding says.
pub fn decode_row(
    table: &KernelTable,
    encoding: Encoding,
    transform: Transform<'_>,
    cols: usize,
    planes: Planes<'_>,
    weights: &mut [u8],
) -> bool {
    table.decode_row(DecodeRow {
        encoding,
        cols,
        planes,
        float: Float::F32,
        weights,
    });
    undo_on_weights(table, transform, cols, weights);
    transform.is_identity() || is_finite(weights)
}

/// As [`super::measure_rows`], of weights that were transformed: they are compared with the
/// originals as they decode, the transform undone, as f32. `None` where one is not finite then.
/// `decoded` is room for one row of f32.
///
/// # Panics
/// As [`decode_row`].
pub fn measure_transformed_rows(
    table: &KernelTable,
    encoding: Encoding,
    transform: Transform<'_>,
    matrix: Matrix<'_>,
    planes: Planes<'_>,
    decoded: &mut [u8],
) -> Option<ErrorSums> {
    if transform.is_identity() {
        return Some(measure_rows(table, encoding, matrix, planes));
    }
    let cols = matrix.cols;
    let mut sums = ErrorSums::default();
    for row in 0..matrix.rows {
        let planes = planes.row(encoding, cols, row);
        decode_row(table, encoding, transform, cols, planes, decoded);
        sums.add(table.compare(CompareRow {
            original: (matrix.float, matrix.row(row)),
            decoded: (Float::F32, decoded),
        })?);
    }
    Some(sums)
}

fn is_finite(weights: &[u8]) -> bool {
    let weights = weights.as_chunks().0.iter();
    // The largest of all magnitudes, as bits: those of infinity and NaN are larger still.
    let magnitudes = weights.map(|bytes| u32::from_le_bytes(*bytes) & 0x7FFF_FFFF);
    magnitudes.fold(0, u32::max) < f32::INFINITY.to_bits()
}
