//! Products of quantized matrices with vectors: what an inference runtime spends its time on.
//! With f32 vectors the weights are decoded in registers; with vectors of bytes, quantized as
//! they come, the codes are multiplied as integers.

use super::activations;
use super::element::{Code, Element, F32, Pieces, each_vector, load_slice, with_code};
use super::group::{Decoder, Grid};
use super::lanes::{BLOCK, LANES, Lanes};
use super::rows::load_scales;
use super::{Activations, ActivationsMut, ByteMatVec, MatVec, Planes};
use crate::format::{Format, GroupSize, Layout, Scheme};

/// Whole rows that share one scale are multiplied in pieces of this many weights, the longest that
/// any other group has.
const LONGEST: usize = 1024;

/// The most products that one lane adds up in f32.
const SPAN: usize = 1 << 6;

/// Vectors that are multiplied with a row while it is decoded once.
const BATCH: usize = 4;

#[inline(always)]
pub(super) fn matvec<L: Lanes>(m: MatVec<'_>) {
    with_code!(L, m.layout, |c| matvec_rows::<L, _>(m, c))
}

#[inline(always)]
pub(super) fn matvec_bytes<D: ByteDot>(m: ByteMatVec<'_>) {
    with_code!(D, m.layout, |c| matvec_bytes_rows::<D, _>(m, c))
}

#[inline(always)]
fn matvec_rows<L: Lanes, C: Code>(m: MatVec<'_>, code: C) {
    let MatVec { layout, cols, .. } = m;
    let batch = m.y.len() / m.y_rows;
    let x = |b: usize| &m.x[b * cols..(b + 1) * cols];
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(layout, cols, i);
        let mut b = 0;
        while b < batch {
            if L::SPECIALIZED && batch - b >= BATCH {
                let x = core::array::from_fn(|i| x(b + i));
                let products = dots::<L, _, BATCH, 1>(layout, code, planes, x);
                for (i, product) in products.into_iter().enumerate() {
                    m.y[(b + i) * m.y_rows + row] = product;
                }
                b += BATCH;
                continue;
            }
            let x = [x(b)];
            let [product] = match L::SPECIALIZED {
                // Sums of their own for four vectors in turn, so that none waits for the last.
                true => dots::<L, _, 1, BLOCK>(layout, code, planes, x),
                // Lanes in memory gain nothing from more, and code is dear where they are used.
                false => dots::<L, _, 1, 1>(layout, code, planes, x),
            };
            m.y[b * m.y_rows + row] = product;
            b += 1;
        }
    }
}

/// A row's groups, a whole row in pieces of [`LONGEST`].
#[derive(Clone, Copy)]
struct Groups {
    layout: Layout,
    cols: usize,
    /// Their length.
    span: usize,
    /// How many there are.
    count: usize,
}

impl Groups {
    #[inline(always)]
    fn new(layout: Layout, cols: usize) -> Self {
        let span = layout.group_size.span(cols).clamp(1, LONGEST);
        Self {
            layout,
            cols,
            span,
            count: cols.div_ceil(span),
        }
    }

    /// Whether all are as long, a multiple of `part`.
    #[inline(always)]
    fn are_whole(&self, part: usize) -> bool {
        self.cols.is_multiple_of(self.span) && self.span.is_multiple_of(part)
    }

    /// The weights of `count` groups from the one numbered `first`.
    #[inline(always)]
    fn weights(&self, first: usize, count: usize) -> (usize, usize) {
        let start = first * self.span;
        (start, self.cols.min(start + count * self.span))
    }

    /// Their scales, or their biases, out of that plane.
    #[inline(always)]
    fn scales<L: Lanes>(&self, plane: &[u8], first: usize, count: usize) -> L {
        let dtype = self.layout.scale_dtype;
        match self.layout.group_size {
            GroupSize::ROW => L::splat(load_scales::<L>(dtype, plane, 0, 1)[0]),
            _ => L::from_array(load_scales::<L>(dtype, plane, first, count)),
        }
    }
}

/// The products of one row with `B` vectors, each in `U` sums. They run in f32 over a few groups,
/// and in f64 on from there: no lane adds up more than [`SPAN`] products, so that the rounding is
/// below 2^-17 of the sum of magnitudes.
#[inline(always)]
fn dots<L: Lanes, C: Code, const B: usize, const U: usize>(
    layout: Layout,
    code: C,
    planes: Planes<'_>,
    x: [&[f32]; B],
) -> [f32; B] {
    let groups = Groups::new(layout, x[0].len());
    let step = (SPAN * LANES * U / groups.span).min(LANES);
    let whole = L::SPECIALIZED && groups.are_whole(BLOCK * LANES);
    let mut totals = [0.0f64; B];
    let mut first = 0;
    while first < groups.count {
        let count = step.min(groups.count - first);
        let scales = groups.scales::<L>(planes.scales, first, count);
        let biases = match code.scheme() {
            Scheme::Symmetric => L::splat(0.0),
            Scheme::Affine => groups.scales(planes.biases, first, count),
        };
        let (start, end) = groups.weights(first, count);
        let codes = &planes.codes[code.bytes(start)..code.bytes(end)];
        let grids = Grids {
            count,
            span: groups.span,
            scales: scales.to_array(),
            biases: biases.to_array(),
        };
        let mut part = [&x[0][start..end]; B];
        for b in 1..B {
            part[b] = &x[b][start..end];
        }
        let sums = match whole {
            true => grids.dots::<L, _, B, U, true>(code, codes, part),
            false => grids.dots::<L, _, B, U, false>(code, codes, part),
        };
        for b in 0..B {
            totals[b] += f64::from(sums[b].fold_add());
        }
        first += step;
    }
    totals.map(|total| total as f32)
}

/// Some groups of a row.
struct Grids {
    count: usize,
    /// Their length; the last may be shorter.
    span: usize,
    scales: [f32; LANES],
    biases: [f32; LANES],
}

impl Grids {
    /// Their products. `WHOLE` says that all are whole blocks of vectors: the loop then holds
    /// nothing that would keep the sums out of registers.
    #[inline(always)]
    fn dots<L: Lanes, C: Code, const B: usize, const U: usize, const WHOLE: bool>(
        &self,
        code: C,
        codes: &[u8],
        x: [&[f32]; B],
    ) -> [L; B] {
        const WEIGHTS: usize = BLOCK * LANES;
        let bytes = code.bytes(LANES);
        let mut sums = [[L::splat(0.0); U]; B];
        let mut at = 0;
        for i in 0..self.count {
            let grid = Grid {
                scale: self.scales[i],
                bias: self.biases[i],
            };
            let map = Decoder::<L, C>::new(code, grid);
            let end = match WHOLE {
                true => at + self.span,
                false => x[0].len().min(at + self.span),
            };
            while at + WEIGHTS <= end {
                let packed = &codes[code.bytes(at)..][..BLOCK * bytes];
                let mut weights = [L::splat(0.0); BLOCK];
                for i in 0..BLOCK {
                    weights[i] = code.unpack(&map, &packed[i * bytes..(i + 1) * bytes]);
                }
                for b in 0..B {
                    let x = &x[b][at..at + WEIGHTS];
                    for i in 0..BLOCK {
                        let x = load_slice(x, i * LANES, LANES);
                        sums[b][i % U] = weights[i].mul_add(x, sums[b][i % U]);
                    }
                }
                at += WEIGHTS;
            }
            if !WHOLE {
                each_vector!(at, end, |at, n| {
                    let packed = &codes[code.bytes(at)..code.bytes(at + n)];
                    let weights = code.unpack(&map, packed);
                    for b in 0..B {
                        let x = load_slice(x[b], at, n);
                        sums[b][0] = weights.mul_add(x, sums[b][0]);
                    }
                });
                at = end;
            }
        }
        let mut products = [L::splat(0.0); B];
        for b in 0..B {
            products[b] = sums[b][0];
            for sum in &sums[b][1..] {
                products[b] = products[b].add(*sum);
            }
        }
        products
    }
}

/// Products of codes and signed bytes.
///
/// Codes are not brought into order: in a piece of some bytes those in the lowest bits are
/// multiplied first, then those in the next, and so on. The values of the vector stand in that
/// order, which [`quantize_vectors`] gives them.
pub trait ByteDot {
    /// The lanes the sums end in.
    type Lanes: Lanes;
    /// The same for pieces of [`LONG`] bytes.
    type Long: ByteDot;
    /// Codes, one a byte.
    type Codes: Copy;
    /// Sums of products, 32 bits wide.
    type Sums: Copy;
    /// As [`Lanes::SPECIALIZED`].
    const SPECIALIZED: bool = true;
    /// Bytes that are taken at once.
    const WIDTH: usize;

    /// What codes of `format` are read less by, so that they are signed.
    #[inline(always)]
    fn offset(_format: Format) -> f32 {
        0.0
    }
    /// No sum yet.
    fn zero() -> Self::Sums;
    /// The codes at bit `BITS * phase` of `WIDTH` bytes. (Shifts are constants once this is
    /// inlined.)
    fn unpack(format: Format, phase: usize, packed: &[u8]) -> Self::Codes;
    /// Adds the products of codes of `format`, less its offset, with `WIDTH` values, each -127 to
    /// 127.
    fn add(format: Format, sums: Self::Sums, codes: Self::Codes, x: &[i8]) -> Self::Sums;
    /// The sums, in any order.
    fn lanes(sums: Self::Sums) -> Self::Lanes;
}

/// Bytes in a piece of a group.
const SHORT: usize = 32;

/// Bytes in a piece of a group that is a multiple of them.
const LONG: usize = 64;

/// Bytes in a piece of this layout's groups.
#[inline(always)]
fn piece_bytes(layout: Layout, cols: usize) -> usize {
    let bytes = layout.format.row_bytes(layout.group_size.span(cols));
    match bytes.is_multiple_of(LONG) {
        true => LONG,
        false => SHORT,
    }
}

#[inline(always)]
fn matvec_bytes_rows<D: ByteDot, C: Code>(m: ByteMatVec<'_>, code: C) {
    match piece_bytes(m.layout, m.cols) {
        LONG => matvec_pieces::<D::Long, _, LONG>(m, code),
        _ => matvec_pieces::<D, _, SHORT>(m, code),
    }
}

#[inline(always)]
fn matvec_pieces<D: ByteDot, C: Code, const BYTES: usize>(m: ByteMatVec<'_>, code: C) {
    let batch = m.y.len() / m.y_rows;
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(m.layout, m.cols, i);
        // The codes stay in cache, and unpacking them takes no longer than keeping them would.
        for b in 0..batch {
            m.y[b * m.y_rows + row] =
                byte_dot::<D, _, BYTES>(m.layout, code, m.cols, planes, m.x, b);
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
    let piece = BYTES * 8 / code.format().bits();
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
    let less = D::Lanes::splat(D::offset(code.format()) - layout.zero_point());
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
    let phases = 8 / code.format().bits();
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
    for phase in 0..8 / code.format().bits() {
        for part in 0..BYTES / D::WIDTH {
            let codes = D::unpack(code.format(), phase, &packed[part * D::WIDTH..][..D::WIDTH]);
            let x = &values[phase * BYTES + part * D::WIDTH..][..D::WIDTH];
            sums = D::add(code.format(), sums, codes, x);
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
    let phases = 8 / code.format().bits();
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
pub(super) fn quantize_vectors<L: Lanes>(x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool {
    let layout = out.layout;
    let span = layout.group_size.span(cols);
    let groups = layout.group_size.count(cols);
    let phases = 8 / layout.format.bits();
    let piece = piece_bytes(layout, cols) * phases;
    for (b, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for g in 0..groups {
            let (start, end) = (g * span, cols.min((g + 1) * span));
            let x = &x[start..end];
            let values = &mut out.values[b * cols + start..b * cols + end];
            let Some(largest) = F32.magnitude::<L>(as_bytes(x)) else {
                return false;
            };
            let (step, inverse) = activations::steps(largest, 127.0);
            let mut sum = 0;
            for (x, values) in x.chunks(piece).zip(values.chunks_mut(piece)) {
                let ordered = &mut [0; LONG * 4][..x.len()];
                activations::quantize_values::<L>(inverse, F32, as_bytes(x), ordered);
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

#[inline(always)]
fn as_bytes(x: &[f32]) -> &[u8] {
    // SAFETY: any float is four bytes.
    unsafe { core::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}
