//! Activations to integers: the input of a layer at run time, row by row (token by token).

use super::element::{Element, each_block, load, load_slice, with_element};
use super::lanes::{BLOCK, LANES, Lanes};
use crate::format::{Float, GroupSize, Width};

/// Activations to quantize.
#[derive(Debug)]
pub struct QuantizeActivations<'a> {
    /// Element type of `x`.
    pub float: Float,
    /// Values in a row.
    pub cols: usize,
    /// Rows of `cols` little-endian values.
    pub x: &'a [u8],
    /// What the values of each column are divided by first, `cols` normal numbers above 0; `None`
    /// is 1 everywhere.
    pub input_scale: Option<&'a [f32]>,
    /// Gives the bits of a value.
    pub width: Width,
    /// What values are multiples of.
    pub grid: ActivationGrid<'a>,
    /// The quantized values, one a byte: as many as there are in `x`, in the same order.
    pub values: &'a mut [u8],
}

/// How activations are quantized. All of it is f32, in this order, rounded half to even.
#[derive(Debug)]
pub enum ActivationGrid<'a> {
    /// By the largest magnitude of each group of a row, `a`: with `top` = 127 or 7, or 1 for two
    /// bits, `value = round(x * (top / a))`, as signed bytes, stands for `value * (a / top)`.
    /// Groups with no magnitude above 1e-30 become zeros.
    Dynamic {
        /// Values that share a scale. The last group of a row may be shorter.
        group_size: GroupSize,
        /// `a / top`, or 0 for zeros: row by row, as many as there are groups.
        scales: &'a mut [f32],
    },
    /// By one scale for all: `value = clamp(round(x * (1 / scale) + zero_point), 0, 2^bits - 1)`, as
    /// unsigned bytes, stands for `(value - zero_point) * scale`. It is 1 / scale, rounded to f32,
    /// that `x` is multiplied by.
    Static {
        /// Distance of two levels: a normal number above 0.
        scale: f32,
        /// Where 0 is, in levels; finite, no integer.
        zero_point: f32,
    },
}

/// A value that cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NonFinite {
    /// In which row it is,
    pub row: usize,
    /// and in which column.
    pub col: usize,
    /// NaN or infinite: as it is in `x`, or once it is divided.
    pub value: f32,
}

/// Groups with no magnitude above this count as zeros.
const SMALLEST: f32 = 1.0e-30;

/// What becomes of values before they are quantized.
trait Input: Copy {
    /// Sixteen values of a row from column `at`, of which there are `n`.
    fn load<L: Lanes>(self, element: impl Element, row: &[u8], at: usize, n: usize) -> L;
    /// The largest magnitude from column `start` to `end`, or `None` when a value is NaN or
    /// infinite.
    fn magnitude<L: Lanes>(
        self,
        element: impl Element,
        row: &[u8],
        start: usize,
        end: usize,
    ) -> Option<f32>;
}

/// Values that are taken as they are.
#[derive(Clone, Copy)]
struct Plain;

/// Values that are divided by their column's scale.
#[derive(Clone, Copy)]
struct Divided<'a>(&'a [f32]);

impl Input for Plain {
    #[inline(always)]
    fn load<L: Lanes>(self, element: impl Element, row: &[u8], at: usize, n: usize) -> L {
        load(element, row, at, n)
    }

    #[inline(always)]
    fn magnitude<L: Lanes>(
        self,
        element: impl Element,
        row: &[u8],
        start: usize,
        end: usize,
    ) -> Option<f32> {
        element.magnitude::<L>(&row[start * element.size()..end * element.size()])
    }
}

impl Input for Divided<'_> {
    #[inline(always)]
    fn load<L: Lanes>(self, element: impl Element, row: &[u8], at: usize, n: usize) -> L {
        let x: L = load(element, row, at, n);
        let scale = load_slice::<L>(self.0, at, n);
        match n {
            LANES => x.div(scale),
            // Lanes beyond the row are 0 / 1.
            _ => x.div(scale.blend(n, L::splat(1.0))),
        }
    }

    #[inline(always)]
    fn magnitude<L: Lanes>(
        self,
        element: impl Element,
        row: &[u8],
        start: usize,
        end: usize,
    ) -> Option<f32> {
        // A NaN might get lost among magnitudes.
        Plain.magnitude::<L>(element, row, start, end)?;
        let mut largest = [L::splat(0.0); BLOCK];
        each_block!(start, end, |at, n, W| {
            for (w, largest) in largest.iter_mut().take(W).enumerate() {
                let x: L = self.load(element, row, at + w * LANES, n);
                *largest = largest.max(x.abs());
            }
        });
        let largest = largest.map(|lanes| lanes.to_array().into_iter().fold(0.0, f32::max));
        let largest = largest.into_iter().fold(0.0, f32::max);
        largest.is_finite().then_some(largest)
    }
}

/// Quantizes, or returns the row with a NaN or infinity.
#[inline(always)]
pub(super) fn quantize<L: Lanes>(a: QuantizeActivations<'_>) -> Result<(), usize> {
    with_element!(L, a.float, |e| match a.input_scale {
        None => quantize_rows::<L>(a, e, Plain),
        Some(scale) => quantize_rows::<L>(a, e, Divided(scale)),
    })
}

#[inline(always)]
fn quantize_rows<L: Lanes>(
    a: QuantizeActivations<'_>,
    element: impl Element,
    input: impl Input,
) -> Result<(), usize> {
    let cols = a.cols;
    let rows = a.x.chunks_exact((cols * element.size()).max(1));
    let rows = rows.zip(a.values.chunks_exact_mut(cols.max(1))).enumerate();
    match a.grid {
        ActivationGrid::Dynamic { group_size, scales } => {
            let (span, groups) = (group_size.span(cols), group_size.count(cols));
            let top = top(a.width);
            for (r, (row, values)) in rows {
                for g in 0..groups {
                    let (start, end) = (g * span, cols.min((g + 1) * span));
                    let largest = input.magnitude::<L>(element, row, start, end).ok_or(r)?;
                    let (step, inverse) = steps(largest, top);
                    scales[r * groups + g] = step;
                    quantize_group::<L>(inverse, element, input, row, start, end, values);
                }
            }
        }
        ActivationGrid::Static { scale, zero_point } => {
            let (inverse, zero_point) = (L::splat(1.0 / scale), L::splat(zero_point));
            let highest = L::splat(f32::from(a.width.max_code()));
            for (r, (row, values)) in rows {
                Plain.magnitude::<L>(element, row, 0, cols).ok_or(r)?;
                each_block!(0, cols, |at, n, W| {
                    let mut codes = [L::splat(0.0); BLOCK];
                    for (w, code) in codes.iter_mut().take(W).enumerate() {
                        let x: L = input.load(element, row, at + w * LANES, n);
                        let exact = x.mul(inverse).add(zero_point);
                        *code = exact.max(L::splat(0.0)).min(highest);
                    }
                    put(L::pack8(codes), &mut values[at..at + (W - 1) * LANES + n]);
                });
            }
        }
    }
    Ok(())
}

/// The largest value of a signed code.
#[inline(always)]
fn top(width: Width) -> f32 {
    f32::from(width.max_code() / 2)
}

/// The scale of a group, and what its values are multiplied by.
#[inline(always)]
pub(super) fn steps(largest: f32, top: f32) -> (f32, f32) {
    match largest > SMALLEST {
        true => (largest / top, top / largest),
        false => (0.0, 0.0),
    }
}

/// Columns `start` to `end` of a row. No product rounds to more than `top`, the largest being at
/// most `top * (1 + 2^-23)`.
#[inline(always)]
fn quantize_group<L: Lanes>(
    inverse: f32,
    element: impl Element,
    input: impl Input,
    row: &[u8],
    start: usize,
    end: usize,
    values: &mut [u8],
) {
    /// Codes are packed as numbers from 0 up, which this changes to signed ones.
    const SIGN: u8 = 0x80;
    let (inverse, offset) = (L::splat(inverse), L::splat(f32::from(SIGN)));
    each_block!(start, end, |at, n, W| {
        let mut codes = [L::splat(0.0); BLOCK];
        for (w, code) in codes.iter_mut().take(W).enumerate() {
            let x: L = input.load(element, row, at + w * LANES, n);
            // Rounded before it is moved, which would round it otherwise.
            *code = x.mul(inverse).round().add(offset);
        }
        let packed = L::pack8(codes).map(|byte| byte ^ SIGN);
        put(packed, &mut values[at..at + (W - 1) * LANES + n]);
    });
}

/// Quantizes a slice.
#[inline(always)]
pub(super) fn quantize_values<L: Lanes>(
    inverse: f32,
    element: impl Element,
    x: &[u8],
    values: &mut [u8],
) {
    quantize_group::<L>(inverse, element, Plain, x, 0, values.len(), values);
}

/// The first of some bytes.
#[inline(always)]
fn put(bytes: [u8; BLOCK * LANES], out: &mut [u8]) {
    match out.first_chunk_mut() {
        Some(whole) => *whole = bytes,
        None => out.copy_from_slice(&bytes[..out.len()]),
    }
}

/// Floats as the bytes that they are in memory.
#[inline(always)]
pub(super) fn as_bytes(x: &[f32]) -> &[u8] {
    // SAFETY: any float is four bytes.
    unsafe { core::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}
