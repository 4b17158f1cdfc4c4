//! Products of quantized matrices with vectors of f32, what an inference runtime spends its time
//! on: weights are decoded in registers.

use super::code::{Code, layout_of, with_code};
use super::grid::{Decoder, Grid};
use super::place::load_scales;
use crate::format::{GroupSize, Layout, Scheme};
use crate::kernel::element::{each_vector, load_slice};
use crate::kernel::lanes::{BLOCK, LANES, Lanes};
use crate::kernel::product::MatVec;
use crate::kernel::row::Planes;

/// Whole rows that share one scale are multiplied in pieces of this many weights, the longest that
/// any other group has.
const LONGEST: usize = 1024;

/// The most products that one lane adds up in f32.
const SPAN: usize = 1 << 6;

/// Vectors that are multiplied with a row while it is decoded once.
const BATCH: usize = 4;

#[inline(always)]
pub(crate) fn matvec<L: Lanes>(m: MatVec<'_>) {
    with_code!(L, layout_of(m.encoding), |c| matvec_rows::<L, _>(m, c))
}

#[inline(always)]
fn matvec_rows<L: Lanes, C: Code>(m: MatVec<'_>, code: C) {
    let MatVec { encoding, cols, .. } = m;
    let layout = layout_of(encoding);
    let batch = m.y.len() / m.y_rows;
    let x = |b: usize| &m.x[b * cols..(b + 1) * cols];
    for (i, row) in m.rows.enumerate() {
        let planes = m.planes.row(encoding, cols, i);
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
pub(super) struct Groups {
    layout: Layout,
    cols: usize,
    /// Length of a group.
    pub(super) span: usize,
    /// Number of groups.
    pub(super) count: usize,
}

impl Groups {
    #[inline(always)]
    pub(super) fn new(layout: Layout, cols: usize) -> Self {
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
    pub(super) fn are_whole(&self, part: usize) -> bool {
        self.cols.is_multiple_of(self.span) && self.span.is_multiple_of(part)
    }

    /// The weights of `count` groups from the one numbered `first`.
    #[inline(always)]
    pub(super) fn weights(&self, first: usize, count: usize) -> (usize, usize) {
        let start = first * self.span;
        (start, self.cols.min(start + count * self.span))
    }

    /// The scales of such groups, or their biases, out of that plane.
    #[inline(always)]
    pub(super) fn scales<L: Lanes>(&self, plane: &[u8], first: usize, count: usize) -> L {
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

/// The grids of some groups of a row.
struct Grids {
    count: usize,
    /// Length of a group; the last may be shorter.
    span: usize,
    scales: [f32; LANES],
    biases: [f32; LANES],
}

impl Grids {
    /// The products of the groups. `WHOLE` says that all are whole blocks of vectors: the loop then holds
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
