//! Products of quantized matrices with vectors: what an inference runtime spends its time on.
//! With f32 vectors the weights are decoded in registers; with vectors of bytes, quantized as
//! they come, the codes are multiplied as integers.

use super::element::{
    Code, CodeMap, F32, Int2, Int4, Int8, Pieces, each_vector, load_slice, range,
};
use super::group::{Decoder, Grid, table_codes};
use super::lanes::{BLOCK, LANES, Lanes};
use super::rows::load_scales;
use super::{Activations, ActivationsMut, ByteMatVec, MatVec};
use crate::format::{Format, GroupSize, Layout, Scheme};

/// Whole rows that share one scale are multiplied in pieces of this many weights, the longest that
/// any other group has.
const LONGEST: usize = 1024;

/// Vectors that are multiplied with a row while it is decoded once.
const BATCH: usize = 4;

macro_rules! dispatch {
    ($m:ident, $function:ident, $lanes:ident) => {
        match $m.layout.format {
            Format::Int2 => $function::<$lanes, Int2>($m),
            Format::Int4 => $function::<$lanes, Int4>($m),
            Format::Int8 => $function::<$lanes, Int8>($m),
        }
    };
}

#[inline(always)]
pub(super) fn matvec<L: Lanes>(m: MatVec<'_>) {
    dispatch!(m, matvec_rows, L);
}

#[inline(always)]
pub(super) fn matvec_bytes<D: ByteDot>(m: ByteMatVec<'_>) {
    dispatch!(m, matvec_bytes_rows, D);
}

#[inline(always)]
fn matvec_rows<L: Lanes, C: Code>(m: MatVec<'_>) {
    let MatVec { layout, cols, .. } = m;
    let batch = m.y.len() / m.y_rows;
    let x = |b: usize| &m.x[b * cols..(b + 1) * cols];
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(layout, cols, i);
        let mut b = 0;
        while b < batch {
            if batch - b >= BATCH {
                let x = core::array::from_fn(|i| x(b + i));
                let products = dots::<L, C, BATCH, 1>(layout, planes, x);
                for (i, product) in products.into_iter().enumerate() {
                    m.y[(b + i) * m.y_rows + row] = product;
                }
                b += BATCH;
            } else {
                // Sums of their own for four vectors in turn, so that none waits for the last.
                let [product] = dots::<L, C, 1, BLOCK>(layout, planes, [x(b)]);
                m.y[b * m.y_rows + row] = product;
                b += 1;
            }
        }
    }
}

/// The groups of a row, a whole row in pieces of [`LONGEST`], in blocks of as many as there are
/// lanes: index of the first group, how many, and their length.
#[inline(always)]
fn blocks(layout: Layout, cols: usize) -> (usize, Pieces<LANES>) {
    let span = layout.group_size.span(cols).min(LONGEST);
    (span, Pieces(0..cols.div_ceil(span)))
}

/// The grids of a block of [`blocks`].
#[inline(always)]
fn grids<L: Lanes>(
    planes: super::Planes<'_>,
    layout: Layout,
    first: usize,
    count: usize,
) -> [Grid; LANES] {
    match layout.group_size {
        GroupSize::ROW => [planes.grids::<L>(layout, 0, 1)[0]; LANES],
        _ => planes.grids::<L>(layout, first, count),
    }
}

/// The products of one row with `B` vectors, each in `U` sums a group. Sums run in f32 over a
/// block of groups, and in f64 from block to block: no lane adds up more than 2^7 products, so
/// that the rounding is below 2^-17 of the sum of magnitudes.
#[inline(always)]
fn dots<L: Lanes, C: Code, const B: usize, const U: usize>(
    layout: Layout,
    planes: super::Planes<'_>,
    x: [&[f32]; B],
) -> [f32; B] {
    let cols = x[0].len();
    let centred = Centred::<L>::new::<C>();
    let mut totals = [0.0f64; B];
    let (span, blocks) = blocks(layout, cols);
    let whole = cols.is_multiple_of(span) && span.is_multiple_of(BLOCK * LANES);
    for (first, count) in blocks {
        let grids = grids::<L>(planes, layout, first, count);
        let block = Groups {
            grids: &grids[..count],
            centred: &centred,
            scheme: layout.scheme,
            start: first * span,
            span,
        };
        let sums = match whole {
            true => block.dots::<C, B, U, true>(planes.codes, x),
            false => block.dots::<C, B, U, false>(planes.codes, x),
        };
        for b in 0..B {
            totals[b] += f64::from(sums[b].fold_add());
        }
    }
    totals.map(|total| total as f32)
}

/// A block of groups of a row.
struct Groups<'a, L> {
    grids: &'a [Grid],
    centred: &'a Centred<L>,
    scheme: Scheme,
    start: usize,
    span: usize,
}

impl<L: Lanes> Groups<'_, L> {
    /// Their products with `B` vectors. `WHOLE` says that all groups are whole blocks of vectors:
    /// the loop then holds nothing that would keep the sums out of registers.
    #[inline(always)]
    fn dots<C: Code, const B: usize, const U: usize, const WHOLE: bool>(
        &self,
        codes: &[u8],
        x: [&[f32]; B],
    ) -> [L; B] {
        let mut sums = [L::splat(0.0); B];
        let mut start = self.start;
        for grid in self.grids {
            let end = match WHOLE {
                true => start + self.span,
                false => x[0].len().min(start + self.span),
            };
            let codes = &codes[C::FORMAT.row_bytes(start)..C::FORMAT.row_bytes(end)];
            let x = x.map(|x| &x[start..end]);
            match self.scheme {
                // The scale once for all.
                Scheme::Symmetric => {
                    let products = group_dots::<L, C, B, U, WHOLE>(self.centred, codes, x);
                    for b in 0..B {
                        sums[b] = products[b].mul_add(L::splat(grid.scale), sums[b]);
                    }
                }
                // Decoded whole: scale and bias may cancel.
                Scheme::Affine => {
                    let decoder = Decoder::<L>::new::<C>(*grid, self.scheme);
                    let products = group_dots::<L, C, B, U, WHOLE>(&decoder, codes, x);
                    for b in 0..B {
                        sums[b] = sums[b].add(products[b]);
                    }
                }
            }
            start = end;
        }
        sums
    }
}

/// The products of a group, its codes mapped to numbers.
#[inline(always)]
fn group_dots<L: Lanes, C: Code, const B: usize, const U: usize, const WHOLE: bool>(
    map: &impl CodeMap<L>,
    codes: &[u8],
    x: [&[f32]; B],
) -> [L; B] {
    const WEIGHTS: usize = BLOCK * LANES;
    let mut sums = [[L::splat(0.0); U]; B];
    let bytes = C::FORMAT.row_bytes(LANES);
    let blocks = x[0].len() / WEIGHTS;
    let rest = &codes[blocks * BLOCK * bytes..];
    let mut at = 0;
    for packed in codes.chunks_exact(BLOCK * bytes).take(blocks) {
        let mut weights = [L::splat(0.0); BLOCK];
        for i in 0..BLOCK {
            weights[i] = C::unpack(map, &packed[i * bytes..(i + 1) * bytes]);
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
        each_vector!(0, x[0].len() - at, |next, n| {
            let weights = C::unpack(map, &rest[C::FORMAT.row_bytes(next)..]);
            for b in 0..B {
                let x = load_slice(x[b], at + next, n);
                sums[b][0] = weights.mul_add(x, sums[b][0]);
            }
        });
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

/// Turns codes into their distance from zero, `q - z`.
struct Centred<L> {
    zero_point: L,
    table: L,
}

impl<L: Lanes> Centred<L> {
    #[inline(always)]
    fn new<C: Code>() -> Self {
        let zero_point = L::splat(C::FORMAT.zero_point());
        let table = L::from_array(table_codes(C::FORMAT)).sub(zero_point);
        Self { zero_point, table }
    }
}

impl<L: Lanes> CodeMap<L> for Centred<L> {
    #[inline(always)]
    fn of(&self, codes: L) -> L {
        codes.sub(self.zero_point)
    }

    #[inline(always)]
    fn table(&self) -> L {
        self.table
    }
}

/// Bytes of codes that are multiplied together.
pub(super) const BYTES: usize = 32;

/// Products of codes and signed bytes.
///
/// Codes are not brought into order: those in the lowest bits of 32 bytes are multiplied first, then
/// those in the next, and so on. The bytes of the vector stand in that order, which
/// [`quantize_activations`] gives them.
pub trait ByteDot {
    /// The lanes the sums end in.
    type Lanes: Lanes;
    /// 32 codes, one a byte.
    type Codes: Copy;
    /// Sums of products, 32 bits wide.
    type Sums: Copy;

    /// What codes of `format` are read less by, so that they are signed.
    #[inline(always)]
    fn offset(_format: Format) -> f32 {
        0.0
    }
    /// No sum yet.
    fn zero() -> Self::Sums;
    /// The codes at bit `BITS * phase` of each byte. (Shifts are constants once this is inlined.)
    fn unpack(format: Format, phase: usize, packed: &[u8; BYTES]) -> Self::Codes;
    /// Adds the products of codes of `format`, less its offset, with `x`, each -127 to 127.
    fn add(format: Format, sums: Self::Sums, codes: Self::Codes, x: &[i8; BYTES]) -> Self::Sums;
    /// The sums, in any order.
    fn lanes(sums: Self::Sums) -> Self::Lanes;
}

/// Codes in a piece: as many as fill [`BYTES`] bytes.
#[inline(always)]
const fn piece_len<C: Code>() -> usize {
    BYTES * 8 / C::FORMAT.bits()
}

#[inline(always)]
fn matvec_bytes_rows<D: ByteDot, C: Code>(m: ByteMatVec<'_>) {
    let ByteMatVec {
        layout, cols, x, ..
    } = m;
    let batch = m.y.len() / m.y_rows;
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(layout, cols, i);
        // The codes stay in cache, and unpacking them takes no longer than keeping them would.
        for b in 0..batch {
            m.y[b * m.y_rows + row] = byte_dot::<D, C>(layout, cols, planes, x, b);
        }
    }
}

/// The product of one row with vector `b`. With `x = t * v` the sum over a group is
/// `s t (sum q v - z sum v)`, or `s t sum q v + m t sum v`.
#[inline(always)]
fn byte_dot<D: ByteDot, C: Code>(
    layout: Layout,
    cols: usize,
    planes: super::Planes<'_>,
    x: Activations<'_>,
    b: usize,
) -> f32 {
    let values = &x.values[b * cols..(b + 1) * cols];
    let x_groups = layout.group_size.count(cols);
    let offset = D::offset(C::FORMAT);
    let (span, blocks) = blocks(layout, cols);
    let whole = cols.is_multiple_of(span) && span.is_multiple_of(piece_len::<C>());
    let mut total = D::Lanes::splat(0.0);
    for (first, count) in blocks {
        let grids = grids::<D::Lanes>(planes, layout, first, count);
        let mut scales = [0.0; LANES];
        for (i, grid) in grids[..count].iter().enumerate() {
            let group = match layout.group_size {
                GroupSize::ROW => 0,
                _ => first + i,
            };
            scales[i] = grid.scale * x.scales[b * x_groups + group];
        }

        let (start, end) = (first * span, cols.min((first + count) * span));
        let values = &values[start..end];
        let codes = &planes.codes[C::FORMAT.row_bytes(start)..C::FORMAT.row_bytes(end)];
        if whole {
            // A sum of its own, which stays in a register.
            let mut sum = D::Lanes::splat(0.0);
            let codes = codes.as_chunks().0.chunks_exact(span / piece_len::<C>());
            for ((codes, values), scale) in codes.zip(values.chunks_exact(span)).zip(scales) {
                let sums = whole_dot::<D, C>(codes, values);
                sum = D::lanes(sums).mul_add(D::Lanes::splat(scale), sum);
            }
            total = total.add(sum);
        } else {
            for (g, values) in values.chunks(span).enumerate() {
                let sums = part_dot::<D, C>(&codes[C::FORMAT.row_bytes(g * span)..], values);
                total = D::lanes(sums).mul_add(D::Lanes::splat(scales[g]), total);
            }
        }
    }
    // What all values of a group are multiplied with beside the codes.
    let zero_point = match layout.scheme {
        Scheme::Symmetric => C::FORMAT.zero_point(),
        Scheme::Affine => 0.0,
    };
    let less = D::Lanes::splat(offset - zero_point);
    for (first, count) in Pieces::<LANES>(0..x_groups) {
        let dtype = layout.scale_dtype;
        let scales = load_scales::<D::Lanes>(dtype, planes.scales, first, count);
        let mut constants = D::Lanes::from_array(scales).mul(less);
        if layout.scheme == Scheme::Affine {
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
fn whole_dot<D: ByteDot, C: Code>(codes: &[[u8; BYTES]], values: &[i8]) -> D::Sums {
    let mut sums = D::zero();
    for (packed, values) in codes.iter().zip(values.chunks_exact(piece_len::<C>())) {
        for phase in 0..8 / C::FORMAT.bits() {
            let codes = D::unpack(C::FORMAT, phase, packed);
            let x = values[phase * BYTES..]
                .first_chunk()
                .expect("a whole piece");
            sums = D::add(C::FORMAT, sums, codes, x);
        }
    }
    sums
}

/// The products of codes that may end within a piece.
#[inline(always)]
fn part_dot<D: ByteDot, C: Code>(codes: &[u8], values: &[i8]) -> D::Sums {
    let phases = 8 / C::FORMAT.bits();
    let mut sums = D::zero();
    for (i, values) in values.chunks(piece_len::<C>()).enumerate() {
        let codes = &codes[i * BYTES..];
        let mut packed = [0; BYTES];
        let bytes = C::FORMAT.row_bytes(values.len());
        packed[..bytes].copy_from_slice(&codes[..bytes]);
        let mut left = values;
        for phase in 0..phases {
            let mut x = [0; BYTES];
            let (some, others) = left.split_at(phase_len(values.len(), phases, phase));
            x[..some.len()].copy_from_slice(some);
            left = others;
            sums = D::add(C::FORMAT, sums, D::unpack(C::FORMAT, phase, &packed), &x);
        }
    }
    sums
}

/// How many of `n` codes stand at place `phase` of their byte.
#[inline(always)]
fn phase_len(n: usize, phases: usize, phase: usize) -> usize {
    (n + phases - 1 - phase) / phases
}

/// Groups of a vector with no magnitude above this count as zeros.
const SMALLEST: f32 = 1.0e-30;

#[inline(always)]
pub(super) fn quantize_activations<L: Lanes>(
    x: &[f32],
    cols: usize,
    out: ActivationsMut<'_>,
) -> bool {
    match out.layout.format {
        Format::Int2 => quantize_vectors::<L, Int2>(x, cols, out),
        Format::Int4 => quantize_vectors::<L, Int4>(x, cols, out),
        Format::Int8 => quantize_vectors::<L, Int8>(x, cols, out),
    }
}

/// For each group a scale `largest magnitude / 127`, and the scale times the sum of its bytes.
#[inline(always)]
fn quantize_vectors<L: Lanes, C: Code>(x: &[f32], cols: usize, out: ActivationsMut<'_>) -> bool {
    let span = out.layout.group_size.span(cols);
    let groups = out.layout.group_size.count(cols);
    for (b, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for g in 0..groups {
            let (start, end) = (g * span, cols.min((g + 1) * span));
            let x = &x[start..end];
            let values = &mut out.values[b * cols + start..b * cols + end];
            let Some((low, high)) = range::<L, F32>(as_bytes(x)) else {
                return false;
            };
            let largest = high.max(-low);
            let (step, inverse) = match largest > SMALLEST {
                true => (largest / 127.0, 127.0 / largest),
                false => (0.0, 0.0),
            };
            let mut sum = 0;
            let pieces = x.chunks(piece_len::<C>());
            for (x, values) in pieces.zip(values.chunks_mut(piece_len::<C>())) {
                let phases = 8 / C::FORMAT.bits();
                let mut next = 0;
                for phase in 0..phases {
                    for i in 0..phase_len(x.len(), phases, phase) {
                        let exact = x[i * phases + phase] * inverse;
                        let value = libm::rintf(exact.clamp(-127.0, 127.0));
                        values[next] = value as i8;
                        sum += value as i64;
                        next += 1;
                    }
                }
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
