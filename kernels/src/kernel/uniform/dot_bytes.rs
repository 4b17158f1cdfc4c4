//! Products of quantized matrices with vectors of bytes, quantized as they come: codes are
//! multiplied as integers.

use super::code::{Code, layout_of, with_code};
use super::dot::Groups;
use super::place::load_scales;
use crate::format::{GroupSize, Layout, Scheme};
use crate::kernel::activations;
use crate::kernel::element::{Element, F32, Pieces, load_slice};
use crate::kernel::lanes::{ByteDot, LANES, Lanes};
use crate::kernel::product::{Activations, ActivationsMut, ByteMatVec};
use crate::kernel::row::Planes;

#[inline(always)]
pub(crate) fn matvec_bytes<D: ByteDot>(m: ByteMatVec<'_>) {
    with_code!(D, layout_of(m.encoding), |c| matvec_bytes_rows::<D, _>(
        m, c
    ))
}

/// Bytes in a piece of a group.
const SHORT: usize = 32;

/// Bytes in a piece of a group that is a multiple of them.
const LONG: usize = 64;

/// Bytes in a piece of this layout's groups.
#[inline(always)]
fn piece_bytes(layout: Layout, cols: usize) -> usize {
    let bytes = layout.width.row_bytes(layout.group_size.span(cols));
    match bytes.is_multiple_of(LONG) {
        true => LONG,
        false => SHORT,
    }
}

#[inline(always)]
fn matvec_bytes_rows<D: ByteDot, C: Code>(m: ByteMatVec<'_>, code: C) {
    match piece_bytes(layout_of(m.encoding), m.cols) {
        LONG => matvec_pieces::<D::Long, _, LONG>(m, code),
        _ => matvec_pieces::<D, _, SHORT>(m, code),
    }
}

#[inline(always)]
fn matvec_pieces<D: ByteDot, C: Code, const BYTES: usize>(m: ByteMatVec<'_>, code: C) {
    let batch = m.y.len() / m.y_rows;
    let layout = layout_of(m.encoding);
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(m.encoding, m.cols, i);
        // The codes stay in cache, and unpacking them takes no longer than keeping them would.
        for b in 0..batch {
            m.y[b * m.y_rows + row] = byte_dot::<D, _, BYTES>(layout, code, m.cols, planes, m.x, b);
        }
    }
}

/// The product of one row with vector `b`. With `x = t * v` the sum over a group is
/// `s t (sum q v - z sum v)`, or `s t sum q v + m t sum v`.
#[inline(always)]
fn byte_dot<D: ByteDot, C: Code, const BYTES: usize>(
    layout: Layout,
    code: C,
    cols: usize,
    planes: Planes<'_>,
    x: Activations<'_>,
    b: usize,
) -> f32 {
    let values = &x.values[b * cols..(b + 1) * cols];
    let x_groups = layout.group_size.count(cols);
    let groups = Groups::new(layout, cols);
    let piece = BYTES * 8 / code.width().bits();
    let whole = groups.are_whole(piece);
    let mut total = D::Lanes::splat(0.0);
    for (first, count) in Pieces::<LANES>(0..groups.count) {
        let x_scales = match layout.group_size {
            GroupSize::ROW => D::Lanes::splat(x.scales[b]),
            _ => load_slice(x.scales, b * x_groups + first, count),
        };
        let scales = groups.scales::<D::Lanes>(planes.scales, first, count);
        let scales = scales.mul(x_scales).to_array();

        let (start, end) = groups.weights(first, count);
        let values = &values[start..end];
        let codes = &planes.codes[code.bytes(start)..code.bytes(end)];
        if whole {
            // A sum of its own, which stays in a register.
            let mut sum = D::Lanes::splat(0.0);
            let codes = codes.as_chunks().0.chunks_exact(groups.span / piece);
            for ((codes, values), scale) in codes.zip(values.chunks_exact(groups.span)).zip(scales)
            {
                let sums = D::lanes(whole_dot::<D, _, BYTES>(code, codes, values));
                sum = sums.mul_add(D::Lanes::splat(scale), sum);
            }
            total = total.add(sum);
        } else {
            for (g, values) in values.chunks(groups.span).enumerate() {
                let codes = &codes[code.bytes(g * groups.span)..];
                let sums = D::lanes(part_dot::<D, _, BYTES>(code, codes, values));
                total = sums.mul_add(D::Lanes::splat(scales[g]), total);
            }
        }
    }
    // What all values of a group are multiplied with beside the codes.
    let less = D::Lanes::splat(D::offset(code.width()) - layout.zero_point());
    for (first, count) in Pieces::<LANES>(0..x_groups) {
        let dtype = layout.scale_dtype;
        let scales = load_scales::<D::Lanes>(dtype, planes.scales, first, count);
        let mut constants = D::Lanes::from_array(scales).mul(less);
        if code.scheme() == Scheme::Affine {
            let biases = load_scales::<D::Lanes>(dtype, planes.biases, first, count);
            constants = constants.add(D::Lanes::from_array(biases));
        }
        let sums = load_slice(x.sums, b * x_groups + first, count);
        total = constants.mul_add(sums, total);
    }
    total.fold_add()
}

/// The products of whole pieces.
#[inline(always)]
fn whole_dot<D: ByteDot, C: Code, const BYTES: usize>(
    code: C,
    codes: &[[u8; BYTES]],
    values: &[i8],
) -> D::Sums {
    let phases = 8 / code.width().bits();
    let mut sums = D::zero();
    for (packed, values) in codes.iter().zip(values.chunks_exact(phases * BYTES)) {
        sums = piece_dot::<D, _, BYTES>(code, sums, packed, values);
    }
    sums
}

/// Adds the products of one piece.
#[inline(always)]
fn piece_dot<D: ByteDot, C: Code, const BYTES: usize>(
    code: C,
    mut sums: D::Sums,
    packed: &[u8; BYTES],
    values: &[i8],
) -> D::Sums {
    for phase in 0..8 / code.width().bits() {
        for part in 0..BYTES / D::WIDTH {
            let codes = D::unpack(code.width(), phase, &packed[part * D::WIDTH..][..D::WIDTH]);
            let x = &values[phase * BYTES + part * D::WIDTH..][..D::WIDTH];
            sums = D::add(code.width(), sums, codes, x);
        }
    }
    sums
}

/// The products of codes that may end within a piece.
#[inline(always)]
fn part_dot<D: ByteDot, C: Code, const BYTES: usize>(
    code: C,
    codes: &[u8],
    values: &[i8],
) -> D::Sums {
    const MOST: usize = LONG * 4;
    let phases = 8 / code.width().bits();
    let mut sums = D::zero();
    for (i, values) in values.chunks(phases * BYTES).enumerate() {
        let bytes = code.bytes(values.len());
        let mut packed = [0; BYTES];
        packed[..bytes].copy_from_slice(&codes[i * BYTES..][..bytes]);
        let mut padded = [0; MOST];
        let mut left = values;
        for phase in 0..phases {
            let (some, others) = left.split_at(phase_len(values.len(), phases, phase));
            padded[phase * BYTES..][..some.len()].copy_from_slice(some);
            left = others;
        }
        sums = piece_dot::<D, _, BYTES>(code, sums, &packed, &padded);
    }
    sums
}

/// How many of `n` codes stand at place `phase` of their byte.
#[inline(always)]
fn phase_len(n: usize, phases: usize, phase: usize) -> usize {
    (n + phases - 1 - phase) / phases
}

/// For each group a scale `largest magnitude / 127`, and the scale times the sum of its bytes.
#[inline(always)]
pub(crate) fn quantize_vectors<L: Lanes>(x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool {
    let layout = layout_of(out.encoding);
    let span = layout.group_size.span(cols);
    let groups = layout.group_size.count(cols);
    let phases = 8 / layout.width.bits();
    let piece = piece_bytes(layout, cols) * phases;
    for (b, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for g in 0..groups {
            let (start, end) = (g * span, cols.min((g + 1) * span));
            let x = &x[start..end];
            let values = &mut out.values[b * cols + start..b * cols + end];
            let Some(largest) = F32.magnitude::<L>(activations::as_bytes(x)) else {
                return false;
            };
            let (step, inverse) = activations::steps(largest, 127.0);
            let mut sum = 0;
            for (x, values) in x.chunks(piece).zip(values.chunks_mut(piece)) {
                let ordered = &mut [0; LONG * 4][..x.len()];
                activations::quantize_values::<L>(inverse, F32, activations::as_bytes(x), ordered);
                let mut next = 0;
                for phase in 0..phases {
                    for i in 0..phase_len(x.len(), phases, phase) {
                        values[next] = ordered[i * phases + phase] as i8;
                        next += 1;
                    }
                }
                sum += values.iter().map(|value| i64::from(*value)).sum::<i64>();
            }
            out.scales[b * groups + g] = step;
            out.sums[b * groups + g] = step * sum as f32;
        }
    }
    true
}
