//! Rounding columns one after the other, each making up for the errors of those before (GPTQ,
//! Frantar et al. 2022, in the form of LDLQ, Chee et al. 2023, which gives the same codes).
//!
//! With `H = R R^T`, R upper triangular, the error `e H e^T` of a row is the sum over columns k of
//! `R_kk^2 (e_k + sum_{j<k} e_j R_jk / R_kk)^2`. So column k is rounded to what makes its own term
//! smallest, given the errors before it: its target is the weight plus that sum. Nothing need be
//! inverted.
//!
//! [`BUNDLE`] rows go side by side in lanes, as all of them take the same steps.

use core::ops::Range;

use super::code::Code;
use super::grid::Encoder;
use crate::format::{Layout, Scheme};
use crate::kernel::lanes::{LANES, Lanes};

/// Rows that [`Feedback`] quantizes side by side.
pub const BUNDLE: usize = 32;

/// A bundle of rows times a triangular factor.
#[derive(Debug)]
pub struct Projection<'a> {
    /// Weights in a row.
    pub cols: usize,
    /// `cols x cols`, of which what is below the diagonal counts.
    pub factor: &'a [f32],
    /// [`BUNDLE`] weights for each column.
    pub weights: &'a [f32],
    /// The products, in the same order: `weight_k + sum_{j<k} factor_kj weight_j`, added in this order.
    pub out: &'a mut [f32],
}

/// A bundle of rows to quantize column by column, errors being made up for later.
#[derive(Debug)]
pub struct Feedback<'a> {
    /// Width and scheme of the codes.
    pub layout: Layout,
    /// Weights in a row.
    pub cols: usize,
    /// The factor, as in [`Projection`]: what the error of one column adds to the target of a later one.
    pub factor: &'a [f32],
    /// The group of each column.
    pub groups: &'a [u32],
    /// [`BUNDLE`] weights for each column, in the order in which columns are quantized.
    pub weights: &'a [f32],
    /// [`BUNDLE`] reciprocals of scales for each group, 0 where the scale is.
    pub inverses: &'a [f32],
    /// [`BUNDLE`] scales for each group.
    pub scales: &'a [f32],
    /// [`BUNDLE`] biases for each group; not looked at when symmetric.
    pub biases: &'a [f32],
    /// The codes are written here, [`BUNDLE`] for each column.
    pub codes: &'a mut [f32],
    /// Weights less decoded weights are written here, in the same order.
    pub errors: &'a mut [f32],
    /// Targets less decoded weights, likewise: what no later column makes up for.
    pub left: &'a mut [f32],
}

impl Feedback<'_> {
    pub(crate) fn check(&self) {
        let f = self;
        assert_eq!(f.factor.len(), f.cols * f.cols);
        assert_eq!(f.groups.len(), f.cols);
        let each = [&f.codes, &f.errors, &f.left].map(|out| out.len());
        assert_eq!(
            (f.weights.len(), each),
            (f.cols * BUNDLE, [f.cols * BUNDLE; 3])
        );
        assert_eq!(f.inverses.len(), f.scales.len());
        assert!(f.layout.scheme == Scheme::Symmetric || f.biases.len() == f.scales.len());
    }
}

/// Vectors in a bundle.
const WIDTH: usize = BUNDLE / LANES;

/// Columns whose sums are taken together, so that they do not wait for each other.
const PANEL: usize = 4;

/// One value for each row of a bundle.
type Wide<L> = [L; WIDTH];

#[inline(always)]
fn read<L: Lanes>(values: &[f32], column: usize) -> Wide<L> {
    let values = &values[column * BUNDLE..(column + 1) * BUNDLE];
    let mut wide = [L::splat(0.0); WIDTH];
    for (lanes, values) in wide.iter_mut().zip(values.as_chunks().0) {
        *lanes = L::from_array(*values);
    }
    wide
}

#[inline(always)]
fn write<L: Lanes>(wide: Wide<L>, values: &mut [f32], column: usize) {
    let values = &mut values[column * BUNDLE..(column + 1) * BUNDLE];
    for (lanes, values) in wide.into_iter().zip(values.as_chunks_mut().0) {
        *values = lanes.to_array();
    }
}

#[inline(always)]
fn add_product<L: Lanes>(sum: Wide<L>, factor: f32, values: Wide<L>) -> Wide<L> {
    let factor = L::splat(factor);
    let mut sum = sum;
    for (sum, x) in sum.iter_mut().zip(values) {
        *sum = sum.add(x.mul(factor));
    }
    sum
}

/// What the columns before `first` add to those from `first` on: `weights + sum factor * values`,
/// in the order of the columns.
#[inline(always)]
fn panel<L: Lanes, const N: usize>(
    cols: usize,
    factor: &[f32],
    first: usize,
    weights: &[f32],
    values: &[f32],
) -> [Wide<L>; N] {
    let mut sums = [[L::splat(0.0); WIDTH]; N];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = read(weights, first + i);
    }
    add_columns(cols, factor, first, 0..first, values, &mut sums);
    sums
}

/// Adds `sum factor * values` over some columns to the sums of those from `first` on.
#[inline(always)]
fn add_columns<L: Lanes, const N: usize>(
    cols: usize,
    factor: &[f32],
    first: usize,
    columns: Range<usize>,
    values: &[f32],
    sums: &mut [Wide<L>; N],
) {
    let mut rows = [&factor[..0]; N];
    for i in 0..N {
        rows[i] = &factor[(first + i) * cols..][columns.clone()];
    }
    for (at, j) in columns.enumerate() {
        let x = read::<L>(values, j);
        for i in 0..N {
            sums[i] = add_product(sums[i], rows[i][at], x);
        }
    }
}

/// Does something for panels of columns, and for what is left of them one by one.
macro_rules! each_panel {
    ($cols:expr, |$first:ident, $n:ident| $body:expr) => {{
        let whole = $cols / PANEL * PANEL;
        let mut $first = 0;
        while $first < whole {
            const $n: usize = PANEL;
            $body;
            $first += PANEL;
        }
        while $first < $cols {
            const $n: usize = 1;
            $body;
            $first += 1;
        }
    }};
}

#[inline(always)]
pub(crate) fn project<L: Lanes>(p: Projection<'_>) {
    each_panel!(p.cols, |first, N| {
        let sums = panel::<L, N>(p.cols, p.factor, first, p.weights, p.weights);
        for (i, mut sum) in sums.into_iter().enumerate() {
            for before in 0..i {
                let factor = p.factor[(first + i) * p.cols + first + before];
                sum = add_product(sum, factor, read(p.weights, first + before));
            }
            write(sum, p.out, first + i);
        }
    });
}

#[inline(always)]
pub(crate) fn feedback<L: Lanes>(mut f: Feedback<'_>) {
    each_panel!(f.cols, |first, N| {
        let sums = panel::<L, N>(f.cols, f.factor, first, f.weights, f.errors);
        for (i, mut sum) in sums.into_iter().enumerate() {
            let column = first + i;
            for before in 0..i {
                let factor = f.factor[column * f.cols + first + before];
                sum = add_product(sum, factor, read(f.errors, first + before));
            }
            round::<L>(&mut f, column, sum);
        }
    });
}

/// Rounds every column once more, to what is best given the errors of all others, before and after
/// it: `factor` is whole here.
#[inline(always)]
pub(crate) fn refine<L: Lanes>(mut f: Feedback<'_>) {
    each_panel!(f.cols, |first, N| {
        let mut sums = panel::<L, N>(f.cols, f.factor, first, f.weights, f.errors);
        let after = first + N..f.cols;
        add_columns(f.cols, f.factor, first, after, f.errors, &mut sums);
        for (i, mut sum) in sums.into_iter().enumerate() {
            for other in (0..N).filter(|other| *other != i) {
                let factor = f.factor[(first + i) * f.cols + first + other];
                sum = add_product(sum, factor, read(f.errors, first + other));
            }
            round::<L>(&mut f, first + i, sum);
        }
    });
}

/// Rounds a column to its targets.
#[inline(always)]
fn round<L: Lanes>(f: &mut Feedback<'_>, column: usize, targets: Wide<L>) {
    // The sums take nearly all the time, whatever the code.
    let code = f.layout;
    let group = f.groups[column] as usize;
    let weights = read::<L>(f.weights, column);
    let inverse = read::<L>(f.inverses, group);
    let scale = read::<L>(f.scales, group);
    let bias = match code.scheme() {
        Scheme::Symmetric => [L::splat(0.0); WIDTH],
        Scheme::Affine => read::<L>(f.biases, group),
    };
    let mut codes = [L::splat(0.0); WIDTH];
    let (mut errors, mut left) = (codes, codes);
    for v in 0..WIDTH {
        let encoder = Encoder::of_lanes(code, inverse[v], bias[v]);
        codes[v] = encoder.codes(encoder.exact(targets[v]));
        let y = decode(code, codes[v], scale[v], bias[v]);
        errors[v] = weights[v].sub(y);
        left[v] = targets[v].sub(y);
    }
    write(codes, f.codes, column);
    write(errors, f.errors, column);
    write(left, f.left, column);
}

/// Decodes as the decoder does: in f32, multiplied, then added.
#[inline(always)]
fn decode<L: Lanes>(code: impl Code, codes: L, scale: L, bias: L) -> L {
    match code.scheme() {
        Scheme::Symmetric => {
            let zero_point = L::splat(code.width().zero_point());
            codes.sub(zero_point).mul(scale)
        }
        Scheme::Affine => codes.mul(scale).add(bias),
    }
}
