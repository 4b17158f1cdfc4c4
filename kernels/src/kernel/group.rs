//! One group of weights: reading it, and adding up over it.
//!
//! A group is read with its values times a power of two (`Scaled`), which is 1 unless they are
//! so large or small that their squares would leave the range of f32. The power cancels
//! exactly, so weights of any magnitude are quantized as well as weights around 1, as far as f32
//! holds their scales and decoded values.

use super::element::{Element, Pieces, load, load_slice};
use super::lanes::{LANES, Lanes};

/// Sums inside a group run in f32 over this many elements at the most, then go on in f64.
const SUM_SPAN: usize = 1024;

/// Adds up `T` times `K` sums over a group: in lanes inside a span, in f64 between spans. Returns
/// `[[f64; K]; T]`.
///
/// `$each` is the loop, `each_vector` or `each_block` (element.rs). The body adds to `sums` what
/// `n` elements from `at` contribute; where that is fewer than a vector, the lanes beyond get
/// nothing but zeros. With `each_block` it is also told how many vectors there are, `W`.
///
/// A macro, not a function of a closure, since only what is inlined into a kernel is compiled for
/// its instruction set, and closures cannot be forced to be.
macro_rules! sums {
    ($each:ident, $lanes:ty, [$k:expr; $t:expr], $len:expr, |$sums:ident $(, $place:ident)+| $body:block) => {{
        let mut totals = [[0.0f64; $k]; $t];
        for (start, len) in $crate::kernel::group::spans($len) {
            let mut $sums = [[<$lanes>::splat(0.0); $k]; $t];
            $crate::kernel::element::$each!(start, start + len, |$($place),+| $body);
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

/// Where sums run in f32: offset and length.
#[inline(always)]
pub(super) fn spans(len: usize) -> Pieces<SUM_SPAN> {
    Pieces(0..len)
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
