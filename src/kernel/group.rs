//! One group of weights: reading it, finding its grid, and mapping between weights and codes.
//! Written once over [`Lanes`].
//!
//! A group is read with its values times a power of two (`Scaled`), which is 1 unless they are
//! so large or small that their squares would leave the range of f32. The power cancels
//! exactly, so weights of any magnitude are quantized as well as weights around 1, as far as f32
//! holds their scales and decoded values.

use super::lanes::{LANES, Lanes};
use crate::format::{Format, Scheme};

/// Sums inside a group run in f32 over this many elements at the most, then go on in f64.
const SUM_SPAN: usize = 1024;

/// A floating-point type in memory.
pub(super) trait Element {
    const SIZE: usize;
    fn load<L: Lanes>(bytes: &[u8]) -> L;
    fn store<L: Lanes>(lanes: L, bytes: &mut [u8]);
}

/// A packed code in memory.
pub(super) trait Code {
    const FORMAT: Format;
    fn pack<L: Lanes>(codes: L, packed: &mut [u8]);
    fn unpack<L: Lanes>(packed: &[u8]) -> L;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;
pub(super) struct Int2;
pub(super) struct Int4;
pub(super) struct Int8;

macro_rules! element {
    ($type:ident, $size:literal, $load:ident, $store:ident) => {
        impl Element for $type {
            const SIZE: usize = $size;
            #[inline(always)]
            fn load<L: Lanes>(bytes: &[u8]) -> L {
                L::$load(bytes.first_chunk().expect("16 values"))
            }
            #[inline(always)]
            fn store<L: Lanes>(lanes: L, bytes: &mut [u8]) {
                lanes.$store(bytes.first_chunk_mut().expect("16 values"));
            }
        }
    };
}

macro_rules! code {
    ($type:ident, $pack:ident, $unpack:ident) => {
        impl Code for $type {
            const FORMAT: Format = Format::$type;
            #[inline(always)]
            fn pack<L: Lanes>(codes: L, packed: &mut [u8]) {
                // The last vector of a row may need fewer bytes; its spare codes are 0.
                let bytes = codes.$pack();
                let n = packed.len().min(bytes.len());
                packed[..n].copy_from_slice(&bytes[..n]);
            }
            #[inline(always)]
            fn unpack<L: Lanes>(packed: &[u8]) -> L {
                let mut bytes = [0; LANES * Self::FORMAT.bits() / 8];
                let n = packed.len().min(bytes.len());
                bytes[..n].copy_from_slice(&packed[..n]);
                L::$unpack(&bytes)
            }
        }
    };
}

element!(F32, 4, load_f32, store_f32);
element!(F16, 2, load_f16, store_f16);
element!(BF16, 2, load_bf16, store_bf16);
code!(Int2, pack2, unpack2);
code!(Int4, pack4, unpack4);
code!(Int8, pack8, unpack8);

/// Sixteen values from element `at`, `n` of them in the row, the others +0.
#[inline(always)]
pub(super) fn load<L: Lanes, E: Element>(bytes: &[u8], at: usize, n: usize) -> L {
    let bytes = &bytes[at * E::SIZE..(at + n) * E::SIZE];
    if n == LANES {
        E::load(bytes)
    } else {
        let mut padded = [0; LANES * 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        E::load(&padded)
    }
}

/// Offset and length of each vector of `range`.
#[inline(always)]
pub(super) fn vectors(range: core::ops::Range<usize>) -> impl Iterator<Item = (usize, usize)> {
    let end = range.end;
    range
        .step_by(LANES)
        .map(move |at| (at, LANES.min(end - at)))
}

/// The ranges in which sums run in f32.
#[inline(always)]
fn spans(len: usize) -> impl Iterator<Item = core::ops::Range<usize>> {
    (0..len)
        .step_by(SUM_SPAN)
        .map(move |at| at..len.min(at + SUM_SPAN))
}

/// Adds the `K` terms of every element of a group: in lanes inside a span, in f64 between spans.
#[inline(always)]
pub(super) fn sums<L: Lanes, const K: usize>(
    len: usize,
    mut terms: impl FnMut(usize, usize) -> [L; K],
) -> [f64; K] {
    let mut totals = [0.0; K];
    for span in spans(len) {
        let mut lanes = [L::splat(0.0); K];
        for (at, n) in vectors(span) {
            let terms = terms(at, n);
            for k in 0..K {
                let term = if n == LANES {
                    terms[k]
                } else {
                    terms[k].blend(n, L::splat(0.0))
                };
                lanes[k] = lanes[k].add(term);
            }
        }
        for k in 0..K {
            totals[k] += f64::from(lanes[k].fold_add());
        }
    }
    totals
}

/// The power of two that brings a group's largest magnitude near 1, or 1 where squares are safe.
#[inline(always)]
pub(super) fn power(magnitude: f32) -> f32 {
    const SAFE: core::ops::RangeInclusive<f32> =
        f32::from_bits((127 - 40) << 23)..=f32::from_bits((127 + 40) << 23);
    if magnitude == 0.0 || SAFE.contains(&magnitude) {
        return 1.0;
    }
    let exponent = (magnitude.to_bits() >> 23 & 0xFF) as i32 - 127;
    // Both ends stay normal numbers, so that dividing by the power is exact as well.
    f32::from_bits(((127 - exponent).clamp(1, 253) as u32) << 23)
}

/// A group of weights, read times a power of two, with the importance of its channels.
pub(super) struct Scaled<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) importance: Option<&'a [f32]>,
    pub(super) len: usize,
    pub(super) power: f32,
}

impl Scaled<'_> {
    #[inline(always)]
    pub(super) fn load<L: Lanes, E: Element>(&self, at: usize, n: usize) -> L {
        load::<L, E>(self.bytes, at, n).mul(L::splat(self.power))
    }

    /// `x` times the importance of its channels.
    #[inline(always)]
    pub(super) fn weigh<L: Lanes>(&self, x: L, at: usize, n: usize) -> L {
        let Some(importance) = self.importance else {
            return x;
        };
        let mut h = [0.0; LANES];
        h[..n].copy_from_slice(&importance[at..at + n]);
        x.mul(L::from_array(h))
    }
}

/// Smallest and largest value of a group, or `None` when one is NaN or infinite.
#[inline(always)]
pub(super) fn range<L: Lanes, E: Element>(bytes: &[u8], len: usize) -> Option<(f32, f32)> {
    let first = load::<L, E>(bytes, 0, len.min(LANES)).to_array()[0];
    let (mut low, mut high) = (L::splat(first), L::splat(first));
    let mut probe = L::splat(0.0);
    for (at, n) in vectors(0..len) {
        let mut x = load::<L, E>(bytes, at, n);
        if n < LANES {
            x = x.blend(n, L::splat(first));
        }
        low = low.min(x);
        high = high.max(x);
        // 0 for a finite x, NaN otherwise; NaN stays.
        probe = probe.add(x.sub(x));
    }
    (probe.fold_add() == 0.0).then(|| (low.fold_min(), high.fold_max()))
}

/// A scale and bias, and with them the map from weights to codes.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) bias: f32,
}

/// Turns weights into codes: `clamp((x - bias) / scale + zero_point)`, rounded half to even, by
/// multiplication with the reciprocal. A scale of 0 gives the code nearest zero.
pub(super) struct Encoder<L> {
    bias: L,
    inverse: L,
    zero_point: L,
    max_code: L,
}

impl<L: Lanes> Encoder<L> {
    #[inline(always)]
    pub(super) fn new<C: Code>(grid: Grid, zero_point: f32) -> Self {
        let inverse = if grid.scale == 0.0 {
            0.0
        } else {
            1.0 / grid.scale
        };
        Self {
            bias: L::splat(grid.bias),
            inverse: L::splat(inverse),
            zero_point: L::splat(zero_point),
            max_code: L::splat(f32::from(C::FORMAT.max_code())),
        }
    }

    #[inline(always)]
    pub(super) fn codes(&self, x: L) -> L {
        let exact = x.sub(self.bias).mul(self.inverse).add(self.zero_point);
        exact.max(L::splat(0.0)).min(self.max_code).round()
    }
}

/// Turns codes into weights: `scale * (q - z)`, or `scale * q + bias`.
pub(super) struct Decoder<L> {
    scheme: Scheme,
    scale: L,
    bias: L,
    zero_point: L,
}

impl<L: Lanes> Decoder<L> {
    #[inline(always)]
    pub(super) fn new<C: Code>(grid: Grid, scheme: Scheme) -> Self {
        Self {
            scheme,
            scale: L::splat(grid.scale),
            bias: L::splat(grid.bias),
            zero_point: L::splat(C::FORMAT.zero_point()),
        }
    }

    #[inline(always)]
    pub(super) fn weights(&self, codes: L) -> L {
        match self.scheme {
            Scheme::Symmetric => codes.sub(self.zero_point).mul(self.scale),
            Scheme::Affine => codes.mul(self.scale).add(self.bias),
        }
    }
}

/// The grid of `Method::MinMax` for a group between `low` and `high`.
#[inline(always)]
pub(super) fn min_max<C: Code>(scheme: Scheme, low: f32, high: f32) -> Grid {
    match scheme {
        Scheme::Affine => Grid {
            scale: (high - low) / f32::from(C::FORMAT.max_code()),
            bias: low,
        },
        // The value of largest magnitude gets the extreme code; of two equal ones the positive.
        Scheme::Symmetric => {
            let extreme = if high >= -low { high } else { low };
            let scale = match C::FORMAT {
                Format::Int2 => extreme.abs() / C::FORMAT.zero_point(),
                Format::Int4 | Format::Int8 => -extreme / C::FORMAT.zero_point(),
            };
            Grid { scale, bias: 0.0 }
        }
    }
}

/// Least squares, symmetric: for each trial scale take the codes d = q - z, whose best scale is
/// `sum h x d / sum h d^2`; keep the trial that explains most of the group.
#[inline(always)]
pub(super) fn least_squares_symmetric<L: Lanes, E: Element, C: Code>(
    group: &Scaled<'_>,
    start: Grid,
    ratios: &[f32],
) -> Grid {
    let zero_point = C::FORMAT.zero_point();
    let mut best = start;
    let mut best_explained = 0.0;
    for ratio in ratios {
        let trial = Grid {
            scale: start.scale * ratio,
            bias: 0.0,
        };
        let encoder = Encoder::<L>::new::<C>(trial, zero_point);
        let [product, square] = sums(group.len, |at, n| {
            let x = group.load::<L, E>(at, n);
            let d = encoder.codes(x).sub(encoder.zero_point);
            let weighted = group.weigh(d, at, n);
            [x.mul(weighted), d.mul(weighted)]
        });
        if square > 0.0 && product * product / square > best_explained {
            best_explained = product * product / square;
            best.scale = (product / square) as f32;
        }
    }
    best
}

/// Rounds that go on from the best affine trial, taking codes and solving again.
const REFINEMENTS: usize = 2;

/// Least squares, affine: for each shrunk range take the codes and solve the 2x2 normal
/// equations for scale and bias; keep the trial that explains most of the group, and go on
/// alternating from there. Codes and
/// weights are centred first, so that nothing cancels when the group lies far from zero.
#[inline(always)]
pub(super) fn least_squares_affine<L: Lanes, E: Element, C: Code>(
    group: &Scaled<'_>,
    start: Grid,
    ratios: &[f32],
) -> Grid {
    let half_codes = f32::from(C::FORMAT.max_code()) / 2.0;
    let middle = start.bias + start.scale * half_codes;
    let mut best = start;
    let mut best_explained = f64::NEG_INFINITY;
    for round in 0..ratios.len() + REFINEMENTS {
        let trial = match ratios.get(round) {
            Some(ratio) => Grid {
                scale: start.scale * ratio,
                bias: middle - start.scale * ratio * half_codes,
            },
            None => best,
        };
        let encoder = Encoder::<L>::new::<C>(trial, 0.0);
        let [h, hx, hu, hux, huu] = sums(group.len, |at, n| {
            let x = group.load::<L, E>(at, n);
            let u = encoder.codes(x).sub(L::splat(half_codes));
            let x = x.sub(L::splat(middle));
            let one = group.weigh(L::splat(1.0), at, n);
            let weighted = group.weigh(u, at, n);
            [one, x.mul(one), weighted, x.mul(weighted), u.mul(weighted)]
        });
        let determinant = h * huu - hu * hu;
        if determinant <= 0.0 {
            continue;
        }
        let slope = (h * hux - hu * hx) / determinant;
        let offset = (hx - slope * hu) / h;
        let explained = slope * hux + offset * hx;
        if slope > 0.0 && explained > best_explained {
            best_explained = explained;
            best = Grid {
                scale: slope as f32,
                bias: (f64::from(middle) + offset - slope * f64::from(half_codes)) as f32,
            };
        }
    }
    best
}
