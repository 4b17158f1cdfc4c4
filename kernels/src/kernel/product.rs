//! What callers say of a product: a quantized matrix, and vectors to multiply it with.

use core::ops::Range;

use super::row::Planes;
use crate::format::Encoding;

/// Rows of a quantized matrix, to multiply with vectors.
#[derive(Debug)]
pub struct MatVec<'a> {
    /// What the matrix is stored as.
    pub encoding: Encoding,
    /// Weights in a row.
    pub cols: usize,
    /// The quantized rows.
    pub planes: Planes<'a>,
    /// Which rows of the matrix these are.
    pub rows: Range<usize>,
    /// Vectors of `cols` values, one after the other.
    pub x: &'a [f32],
    /// The products, one vector's after the other's, each with as many values as the matrix has rows;
    /// those of these rows are written.
    pub y: &'a mut [f32],
    /// Rows of the whole matrix.
    pub y_rows: usize,
}

/// Rows of a quantized matrix, to multiply with vectors of bytes.
#[derive(Debug)]
pub struct ByteMatVec<'a> {
    /// What the matrix is stored as.
    pub encoding: Encoding,
    /// Weights in a row.
    pub cols: usize,
    /// The quantized rows.
    pub planes: Planes<'a>,
    /// Which rows of the matrix these are.
    pub rows: Range<usize>,
    /// The vectors, in groups as the encoding has them.
    pub x: Activations<'a>,
    /// The products, as in [`MatVec`].
    pub y: &'a mut [f32],
    /// Rows of the whole matrix.
    pub y_rows: usize,
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
    /// For each group of each vector its scale times the sum of its values.
    pub sums: &'a [f32],
}

/// Where quantized vectors go.
#[derive(Debug)]
pub struct ActivationsMut<'a> {
    /// What the matrix they are for is stored as, which decides their groups and the order of the
    /// values.
    pub encoding: Encoding,
    /// The values: as many as there are inputs.
    pub values: &'a mut [i8],
    /// The scales: as many as there are groups in all vectors.
    pub scales: &'a mut [f32],
    /// The sums: as many as there are scales.
    pub sums: &'a mut [f32],
}
