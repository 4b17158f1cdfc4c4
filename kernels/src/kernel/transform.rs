//! Scales and rotations of a matrix's input dimension (docs/format.md), written once over
//! [`Lanes`]: a butterfly adds and subtracts the same two numbers whatever the vectors are.

use super::element::{Element, F16, F32, each_vector, load, store, with_element};
use super::lanes::{LANES, Lanes};
use crate::format::{Float, Rotation, Transform};

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

/// Bytes of a vector.
const BYTES: usize = LANES * 4;

#[inline(always)]
pub(super) fn rows<L: Lanes>(rows: TransformRows<'_>) {
    let TransformRows {
        transform, turn, ..
    } = rows;
    for row in rows.values.chunks_exact_mut((rows.cols * 4).max(1)) {
        match transform.rotation {
            Some(rotation) => rotate::<L>(transform, rotation, turn, row),
            None => each_vector!(0, row.len() / 4, |at, n| {
                let lanes = load(F32, row, at, n);
                store(F32, scale::<L>(transform, turn, lanes, at, n), row, at, n);
            }),
        }
    }
}

#[inline(always)]
pub(super) fn narrow<L: Lanes>(values: &[u8], float: Float, out: &mut [u8]) {
    with_element!(L, float, |element| narrow_to::<L>(values, element, out));
}

#[inline(always)]
fn narrow_to<L: Lanes>(values: &[u8], element: impl Element, out: &mut [u8]) {
    each_vector!(0, values.len() / 4, |at, n| {
        let lanes: L = load(F32, values, at, n);
        store(element, lanes, out, at, n);
    });
}

/// One row, block by block, of which each fits the nearest cache.
#[inline(always)]
fn rotate<L: Lanes>(transform: Transform<'_>, rotation: Rotation, turn: Turn, row: &mut [u8]) {
    let block = rotation.block as usize;
    let norm = L::splat(rotation.norm());
    let span = block.max(LANES);
    for (b, values) in row.chunks_mut(span * 4).enumerate() {
        let (len, start) = (values.len() / 4, b * span);
        each_vector!(0, len, |at, n| {
            let mut lanes: L = load(F32, values, at, n);
            if turn != Turn::Back {
                lanes = scale(transform, turn, lanes, start + at, n);
                lanes = flip(rotation, lanes, start + at);
            }
            store(F32, butterflies_within(block, lanes), values, at, n);
        });
        butterflies_between::<L>(values);
        each_vector!(0, len, |at, n| {
            let mut lanes = load::<L>(F32, values, at, n).mul(norm);
            if turn == Turn::Back {
                lanes = flip(rotation, lanes, start + at);
                lanes = scale(transform, turn, lanes, start + at, n);
            }
            store(F32, lanes, values, at, n);
        });
    }
}

/// Columns from `at` on, scaled. Lanes beyond the `n`th hold nothing of use.
#[inline(always)]
fn scale<L: Lanes>(transform: Transform<'_>, turn: Turn, lanes: L, at: usize, n: usize) -> L {
    let Some(scale) = transform.input_scale else {
        return lanes;
    };
    let scale = load(F16, scale, at, n);
    match turn {
        Turn::Weights => lanes.mul(scale),
        Turn::Back | Turn::Activations => lanes.div(scale),
    }
}

/// Columns from `at` on, a multiple of 16, with their signs.
#[inline(always)]
fn flip<L: Lanes>(rotation: Rotation, lanes: L, at: usize) -> L {
    if rotation.seed == 0 {
        return lanes;
    }
    let signs = (rotation.signs(at / 64) >> (at % 64)) as u32;
    let sign = |i: usize| f32::from_bits(1f32.to_bits() | (signs >> i & 1) << 31);
    lanes.mul(L::from_array(core::array::from_fn(sign)))
}

/// The butterflies of numbers less than 16 apart.
#[inline(always)]
fn butterflies_within<L: Lanes>(block: usize, mut lanes: L) -> L {
    lanes = butterfly::<L, 1>(lanes);
    if block > 2 {
        lanes = butterfly::<L, 2>(lanes);
    }
    if block > 4 {
        lanes = butterfly::<L, 4>(lanes);
    }
    if block > 8 {
        lanes = butterfly::<L, 8>(lanes);
    }
    lanes
}

/// Replaces each pair (a, b) so far apart by a + b and a - b.
#[inline(always)]
fn butterfly<L: Lanes, const DISTANCE: usize>(lanes: L) -> L {
    let sign = |i: usize| if i & DISTANCE == 0 { 1.0 } else { -1.0 };
    let signs = L::from_array(core::array::from_fn(sign));
    // Exact: a product with 1 or -1 is not rounded.
    lanes.mul_add(signs, lanes.exchange::<DISTANCE>())
}

/// The butterflies of numbers 16 apart and more, in a block.
#[inline(always)]
fn butterflies_between<L: Lanes>(block: &mut [u8]) {
    let vectors = block.as_chunks_mut::<BYTES>().0;
    let mut distance = 1;
    while distance < vectors.len() {
        for pair in vectors.chunks_exact_mut(2 * distance) {
            let (low, high) = pair.split_at_mut(distance);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (L::load_f32(low), L::load_f32(high));
                a.add(b).store_f32(low);
                a.sub(b).store_f32(high);
            }
        }
        distance *= 2;
    }
}

pub(super) fn as_bytes_mut(x: &mut [f32]) -> &mut [u8] {
    // SAFETY: any float is four bytes, and any four bytes are one.
    unsafe { core::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), size_of_val(x)) }
}

#[cfg(test)]
pub(super) mod tests;
