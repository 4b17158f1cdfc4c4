//! The errors of weights against what they decode to, written once over [`Lanes`].

use super::element::{Element, with_element};
use super::group::{Scaled, inverse_square, power, sums};
use super::lanes::Lanes;
use super::row::CompareRow;
use super::sums::{ErrorSums, GainSums};

/// Weights of a group, and what their codes stand for: `W` vectors from element `at`, `n` elements
/// in the last, zeros beyond them.
pub(super) trait Pairs<L> {
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W];
}

/// The errors of pairs of weights that are read times `power`.
#[inline(always)]
pub(super) fn group_error<L: Lanes>(mut pairs: impl Pairs<L>, len: usize, power: f32) -> ErrorSums {
    let [[signal, decoded, error]] = sums!(each_block, L, [3; 1], len, |sums, at, n, W| {
        let pairs = pairs.next::<W>(at, n);
        for (x, y) in pairs {
            let e = x.sub(y);
            sums[0][0] = sums[0][0].add(x.mul(x));
            sums[0][1] = sums[0][1].add(y.mul(y));
            sums[0][2] = sums[0][2].add(e.mul(e));
        }
    });
    let back = inverse_square(power);
    ErrorSums {
        signal: signal * back,
        decoded: decoded * back,
        error: error * back,
    }
}

/// The sums that unit gain follows from, of pairs of weights that are read times `power`.
#[inline(always)]
pub(super) fn group_gain<L: Lanes>(mut pairs: impl Pairs<L>, len: usize, power: f32) -> GainSums {
    let [[signal, product]] = sums!(each_block, L, [2; 1], len, |sums, at, n, W| {
        let pairs = pairs.next::<W>(at, n);
        for (x, y) in pairs {
            sums[0][0] = sums[0][0].add(x.mul(x));
            sums[0][1] = sums[0][1].add(y.mul(x));
        }
    });
    let back = inverse_square(power);
    GainSums {
        signal: signal * back,
        product: product * back,
    }
}

/// All values of `bytes`, read times `power`.
#[inline(always)]
pub(super) fn values<E: Element>(element: E, bytes: &[u8], power: f32) -> Scaled<'_, E, true> {
    Scaled {
        element,
        bytes,
        importance: None,
        len: bytes.len() / element.size(),
        power,
    }
}

#[inline(always)]
pub(super) fn compare<L: Lanes>(row: CompareRow<'_>) -> Option<ErrorSums> {
    with_element!(L, row.original.0, |e| with_element!(
        L,
        row.decoded.0,
        |d| compare_rows::<L, _, _>(row, e, d)
    ))
}

/// Values are compared in pieces of this many, each near its own power of two.
const COMPARED: usize = 1024;

/// The values of two arrays.
struct Zipped<'a, E, D> {
    original: Scaled<'a, E, true>,
    decoded: Scaled<'a, D, true>,
}

impl<L: Lanes, E: Element, D: Element> Pairs<L> for Zipped<'_, E, D> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let original = self.original.vectors::<L, W>(at, n);
        let decoded = self.decoded.vectors::<L, W>(at, n);
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        for i in 0..W {
            pairs[i] = (original[i], decoded[i]);
        }
        pairs
    }
}

#[inline(always)]
fn compare_rows<L: Lanes, E: Element, D: Element>(
    row: CompareRow<'_>,
    e: E,
    d: D,
) -> Option<ErrorSums> {
    let mut totals = ErrorSums::default();
    let pieces = row.original.1.chunks(COMPARED * e.size());
    for (original, decoded) in pieces.zip(row.decoded.1.chunks(COMPARED * d.size())) {
        let magnitude = |(low, high): (f32, f32)| high.max(-low);
        let largest = e.range::<L>(original).map(magnitude)?;
        let largest = largest.max(d.range::<L>(decoded).map(magnitude)?);
        let len = original.len() / e.size();
        let power = power(largest);
        let pairs = Zipped {
            original: values(e, original, power),
            decoded: values(d, decoded, power),
        };
        totals.add(group_error::<L>(pairs, len, power));
    }
    Some(totals)
}
