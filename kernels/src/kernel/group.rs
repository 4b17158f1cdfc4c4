//! One group of weights: reading it, adding up over it, and mapping between weights and codes.
//!
//! A group is read with its values times a power of two (`Scaled`), which is 1 unless they are
//! so large or small that their squares would leave the range of f32. The power cancels
//! exactly, so weights of any magnitude are quantized as well as weights around 1, as far as f32
//! holds their scales and decoded values.

use super::element::{self, Code, CodeMap, Element, load, load_slice};
use super::lanes::{LANES, Lanes};
use crate::format::{Format, Scheme};

/// Sums inside a group run in f32 over this many elements at the most, then go on in f64.
const SUM_SPAN: usize = 1024;

/// Adds up `T` times `K` sums over a group: in lanes inside a span, in f64 between spans. The
/// body adds to `sums` what `n` elements from `at` contribute; where that is fewer than a vector,
/// the lanes beyond get nothing but zeros.
///
/// A macro, not a function of a closure, since only what is inlined into a kernel is compiled for
/// its instruction set, and closures cannot be forced to be.
macro_rules! sums {
    ($lanes:ty, [$k:expr; $t:expr], $len:expr, |$sums:ident $(, $place:ident)+| $body:block) => {{
        let mut totals = [[0.0f64; $k]; $t];
        for (start, len) in $crate::kernel::group::spans($len) {
            let mut $sums = [[<$lanes>::splat(0.0); $k]; $t];
            $crate::kernel::group::each!(start, start + len, |$($place),+| $body);
            for t in 0..$t {
                for k in 0..$k {
                    totals[t][k] += f64::from($sums[t][k].fold_add());
                }
            }
        }
        totals
    }};
}
pub(super) use sums;

/// By vectors, or by blocks of them where the body asks for their number.
macro_rules! each {
    ($start:expr, $end:expr, |$at:ident, $n:ident| $body:expr) => {
        $crate::kernel::element::each_vector!($start, $end, |$at, $n| $body)
    };
    ($start:expr, $end:expr, |$at:ident, $n:ident, $w:ident| $body:expr) => {
        $crate::kernel::element::each_block!($start, $end, |$at, $n, $w| $body)
    };
}
pub(super) use each;

/// Where sums run in f32: offset and length.
#[inline(always)]
pub(super) fn spans(len: usize) -> element::Pieces<SUM_SPAN> {
    element::Pieces(0..len)
}

/// `x` with zeros in the lanes from `n` on.
#[inline(always)]
pub(super) fn first<L: Lanes>(x: L, n: usize) -> L {
    if n == LANES {
        x
    } else {
        x.blend(n, L::splat(0.0))
    }
}

/// Whether the squares of a group with this largest magnitude are safe as they are.
#[inline(always)]
pub(super) fn is_near(magnitude: f32) -> bool {
    const LOWEST: u32 = (127 - 40) << 23;
    const HIGHEST: u32 = (127 + 40) << 23;
    magnitude == 0.0 || (LOWEST..=HIGHEST).contains(&magnitude.to_bits())
}

/// The power of two that brings a group's largest magnitude near 1, or 1 where squares are safe.
#[inline(always)]
pub(super) fn power(magnitude: f32) -> f32 {
    #[cold]
    fn other(magnitude: f32) -> f32 {
        let exponent = (magnitude.to_bits() >> 23 & 0xFF) as i32 - 127;
        // Both ends stay normal numbers, so that dividing by the power is exact as well.
        f32::from_bits(((127 - exponent).clamp(1, 253) as u32) << 23)
    }
    if is_near(magnitude) {
        1.0
    } else {
        other(magnitude)
    }
}

/// `x / power`, exact but where it leaves the normal numbers.
#[inline(always)]
pub(super) fn without_power(x: f32, power: f32) -> f32 {
    (f64::from(x) / f64::from(power)) as f32
}

/// What sums of squares are multiplied with to be rid of `power`.
#[inline(always)]
pub(super) fn inverse_square(power: f32) -> f64 {
    #[cold]
    fn divided(power: f32) -> f64 {
        1.0 / (f64::from(power) * f64::from(power))
    }
    if power == 1.0 { 1.0 } else { divided(power) }
}

/// A group of weights, read times a power of two, with the importance of its channels. `FAR` says
/// that the power may be another than 1.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a, E, const FAR: bool> {
    pub(super) element: E,
    pub(super) bytes: &'a [u8],
    pub(super) importance: Option<&'a [f32]>,
    pub(super) len: usize,
    pub(super) power: f32,
}

impl<E: Element, const FAR: bool> Scaled<'_, E, FAR> {
    #[inline(always)]
    pub(super) fn load<L: Lanes>(&self, at: usize, n: usize) -> L {
        let [x] = self.vectors::<L, 1>(at, n);
        x
    }

    /// `W` vectors from element `at`, with `n` elements in the last.
    #[inline(always)]
    pub(super) fn vectors<L: Lanes, const W: usize>(&self, at: usize, n: usize) -> [L; W] {
        // Bounds are checked once for all.
        let size = self.element.size();
        let bytes = &self.bytes[at * size..][..((W - 1) * LANES + n) * size];
        let mut vectors = [L::splat(0.0); W];
        for (i, x) in vectors.iter_mut().enumerate() {
            *x = load(self.element, bytes, i * LANES, n);
            if FAR {
                *x = x.mul(L::splat(self.power));
            }
        }
        vectors
    }

    /// `x` times the importance of its channels.
    #[inline(always)]
    pub(super) fn weigh<L: Lanes>(&self, x: L, at: usize, n: usize) -> L {
        match self.importance {
            None => x,
            Some(importance) => x.mul(load_slice(importance, at, n)),
        }
    }
}

/// `sum + x * steps`, for whole steps or half ones counted double: integers below 2^9.
#[inline(always)]
pub(super) fn add_product<L: Lanes>(element: impl Element, sum: L, x: L, steps: L) -> L {
    if element.is_short() {
        x.mul_add(steps, sum)
    } else {
        sum.add(x.mul(steps))
    }
}

/// A scale and bias, and with them the map from weights to codes.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) bias: f32,
}

impl Grid {
    /// The reciprocal of the scale; 0 for a scale of 0, which gives the code nearest zero.
    #[inline(always)]
    pub(super) fn inverse(self) -> f32 {
        if self.scale == 0.0 {
            0.0
        } else {
            1.0 / self.scale
        }
    }
}

/// Turns weights into codes: `clamp((x - bias) / scale + zero_point)`, rounded half to even, by
/// multiplication with the reciprocal.
#[derive(Clone, Copy)]
pub(super) struct Encoder<L, C> {
    bias: L,
    inverse: L,
    zero_point: L,
    max_code: L,
    code: C,
}

impl<L: Lanes, C: Code> Encoder<L, C> {
    /// For a bias and the reciprocal of a scale.
    #[inline(always)]
    pub(super) fn new(code: C, inverse: f32, bias: f32) -> Self {
        Self::of_lanes(code, L::splat(inverse), L::splat(bias))
    }

    /// The same where every lane has its own.
    #[inline(always)]
    pub(super) fn of_lanes(code: C, inverse: L, bias: L) -> Self {
        Self {
            bias,
            inverse,
            zero_point: L::splat(code.format().zero_point()),
            max_code: L::splat(f32::from(code.format().max_code())),
            code,
        }
    }

    /// The codes before rounding, none above the largest; those below 0 count as 0.
    #[inline(always)]
    pub(super) fn exact(&self, x: L) -> L {
        let exact = match self.code.scheme() {
            Scheme::Symmetric => x.mul(self.inverse).add(self.zero_point),
            Scheme::Affine => x.sub(self.bias).mul(self.inverse),
        };
        exact.min(self.max_code)
    }

    /// The codes.
    #[inline(always)]
    pub(super) fn codes(&self, exact: L) -> L {
        exact.max(L::splat(0.0)).round()
    }
}

/// Twice the distance of codes from the middle of their scheme, `2 * (q - z)` or
/// `2 * q - max_code`: integers below 2^9, so that products with short floats, and sums of their
/// squares, are exact.
#[derive(Clone, Copy)]
pub(super) struct Steps<L> {
    middle: L,
    table: L,
}

impl<L: Lanes> Steps<L> {
    #[inline(always)]
    pub(super) fn new(code: impl Code) -> Self {
        let middle = match code.scheme() {
            Scheme::Symmetric => 2.0 * code.format().zero_point(),
            Scheme::Affine => f32::from(code.format().max_code()),
        };
        let mut steps = Self {
            middle: L::splat(-middle),
            table: L::splat(0.0),
        };
        steps.table = steps.of(L::from_array(table_codes(code.format())));
        steps
    }
}

impl<L: Lanes> CodeMap<L> for Steps<L> {
    #[inline(always)]
    fn of(&self, codes: L) -> L {
        codes.mul_add(L::splat(2.0), self.middle)
    }

    #[inline(always)]
    fn table(&self) -> L {
        self.table
    }
}

/// The codes that lanes of a table stand for.
#[inline(always)]
pub(super) const fn table_codes(format: Format) -> [f32; LANES] {
    const FOUR: [f32; LANES] = [
        0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0,
    ];
    const SIXTEEN: [f32; LANES] = [
        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    ];
    match format {
        Format::Int2 => FOUR,
        Format::Int4 | Format::Int8 => SIXTEEN,
    }
}

/// Turns codes into weights: `scale * (q - z)`, or `scale * q + bias`.
#[derive(Clone, Copy)]
pub(super) struct Decoder<L, C> {
    scale: L,
    bias: L,
    zero_point: L,
    table: L,
    code: C,
}

impl<L: Lanes, C: Code> Decoder<L, C> {
    #[inline(always)]
    pub(super) fn new(code: C, grid: Grid) -> Self {
        let mut decoder = Self {
            scale: L::splat(grid.scale),
            bias: L::splat(grid.bias),
            zero_point: L::splat(code.format().zero_point()),
            table: L::splat(0.0),
            code,
        };
        decoder.table = decoder.of(L::from_array(table_codes(code.format())));
        decoder
    }
}

impl<L: Lanes, C: Code> CodeMap<L> for Decoder<L, C> {
    #[inline(always)]
    fn of(&self, codes: L) -> L {
        match self.code.scheme() {
            Scheme::Symmetric => codes.sub(self.zero_point).mul(self.scale),
            Scheme::Affine => codes.mul(self.scale).add(self.bias),
        }
    }

    #[inline(always)]
    fn table(&self) -> L {
        self.table
    }
}
