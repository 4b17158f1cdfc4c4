//! Scales and rotations of the input dimension, around the kernels: weights are transformed before
//! quantization, and either decoded weights are transformed back, or activations are transformed.

use super::{Matrix, measure_rows};
use crate::format::{Encoding, Float, Transform};
use crate::kernel::{CompareRow, DecodeRow, ErrorSums, KernelTable, Planes, TransformRows, Turn};

/// Computes `(w * s) R` for rows of `cols` weights, little-endian f32, before quantization.
///
/// # Panics
/// Panics if the transform does not fit `cols`, or the weights are not whole rows.
pub fn apply_to_weights(
    table: &KernelTable,
    transform: Transform<'_>,
    cols: usize,
    weights: &mut [u8],
) {
    turn(table, (transform, Turn::Weights), cols, weights);
}

/// Computes `(w R^T) / s` for decoded rows, little-endian f32: the original weights.
///
/// # Panics
/// Panics as [`apply_to_weights`] does.
pub fn undo_on_weights(
    table: &KernelTable,
    transform: Transform<'_>,
    cols: usize,
    weights: &mut [u8],
) {
    turn(table, (transform, Turn::Back), cols, weights);
}

/// Computes `(x / s) R` for vectors of `cols` activations: their products with transformed weights
/// are those of `x` with the original weights.
///
/// # Panics
/// Panics as [`apply_to_weights`] does.
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

/// Decodes one quantized row as f32, and undoes the transform. False if a weight is not finite,
/// which only a transform can cause.
///
/// # Panics
/// Panics if the transform does not fit `cols`, or a slice does not have the length given by the
/// encoding.
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

/// Measures rows as [`super::measure_rows`] does, for transformed weights: the decoded weights,
/// with the transform undone, are compared with the originals in f32. `None` if one is not finite
/// then. `decoded` has room for one row of f32.
///
/// # Panics
/// Panics as [`decode_row`] does.
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
    // The largest of all magnitudes, as bits: infinity and NaN have larger ones still.
    let magnitudes = weights.map(|bytes| u32::from_le_bytes(*bytes) & 0x7FFF_FFFF);
    magnitudes.fold(0, u32::max) < f32::INFINITY.to_bits()
}
