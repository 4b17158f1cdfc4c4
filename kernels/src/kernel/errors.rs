//! Sums over pairs of weights and what they decode to, written once over [`Lanes`].

use super::element::{Code, CodeMap, Element};
use super::group::{Decoder, Grid, Scaled, Steps, add_product, first, inverse_square, power, sums};
use super::lanes::{LANES, Lanes};
use super::rows::{Place, blocks};
use super::{CompareRow, ErrorRow, ErrorSums, Moments, moments};
use crate::format::Scheme;

/// Weights of a group, and what their codes stand for: `W` vectors from element `at`, `n` elements
/// in the last, zeros beyond them.
pub(super) trait Pairs<L> {
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W];
}

/// What freshly written codes are turned into.
pub(super) struct Mapped<P, M> {
    pub(super) codes: P,
    pub(super) map: M,
}

impl<L: Lanes, P: Pairs<L>, M: CodeMap<L>> Pairs<L> for Mapped<P, M> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = self.codes.next::<W>(at, n);
        for (_, y) in &mut pairs {
            *y = first(self.map.of(*y), n);
        }
        pairs
    }
}

/// What codes in memory are turned into.
struct Unpacked<'a, M, E, C> {
    group: Scaled<'a, E, true>,
    code: C,
    map: M,
    packed: &'a [u8],
}

impl<L: Lanes, M: CodeMap<L>, E: Element, C: Code> Pairs<L> for Unpacked<'_, M, E, C> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        let weights = self.group.vectors::<L, W>(at, n);
        let len = self.code.bytes((W - 1) * LANES + n);
        let packed = &self.packed[self.code.bytes(at)..][..len];
        for (i, x) in weights.into_iter().enumerate() {
            let codes = self
                .code
                .unpack(&self.map, &packed[self.code.bytes(i * LANES)..]);
            pairs[i] = (x, first(codes, n));
        }
        pairs
    }
}

/// The same, the weights decoded, and multiplied then: subnormal ones round as for a reader.
struct Times<P> {
    pairs: P,
    power: f32,
}

impl<L: Lanes, P: Pairs<L>> Pairs<L> for Times<P> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = self.pairs.next::<W>(at, n);
        for (_, y) in &mut pairs {
            *y = y.mul(L::splat(self.power));
        }
        pairs
    }
}

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

/// The moments of weights, read times `power`, and half steps.
#[inline(always)]
pub(super) fn group_moments<L: Lanes, E: Element, C: Code>(
    element: E,
    code: C,
    mut pairs: impl Pairs<L>,
    len: usize,
    power: f32,
) -> Moments {
    let [signal, product, square, sum, code_sum] = match code.scheme() {
        Scheme::Symmetric => {
            let [[a, b, c]] = sums!(L, [3; 1], len, |sums, at, n, W| {
                let pairs = pairs.next::<W>(at, n);
                for (x, u) in pairs {
                    add_moments(element, &mut sums[0], x, u);
                }
            });
            [a, b, c, 0.0, 0.0]
        }
        Scheme::Affine => {
            let [totals] = sums!(L, [5; 1], len, |sums, at, n, W| {
                let pairs = pairs.next::<W>(at, n);
                for (x, u) in pairs {
                    add_moments(element, &mut sums[0], x, u);
                    sums[0][3] = sums[0][3].add(x);
                    sums[0][4] = sums[0][4].add(u);
                }
            });
            totals
        }
    };
    let back = match power {
        1.0 => 1.0,
        power => 1.0 / f64::from(power),
    };
    Moments {
        len: len as f64,
        signal: signal * inverse_square(power),
        sum: sum * back,
        // From half steps to steps.
        product: product * back * 0.5,
        code_sum: code_sum * 0.5,
        code_square: square * 0.25,
    }
}

#[inline(always)]
fn add_moments<L: Lanes>(element: impl Element, sums: &mut [L], x: L, u: L) {
    sums[0] = sums[0].add(x.mul(x));
    sums[1] = add_product(element, sums[1], x, u);
    sums[2] = u.mul_add(u, sums[2]);
}

/// The moments of a group that is quantized already: those that quantizing it gave.
#[inline(always)]
fn decoded_moments<L: Lanes, E: Element, C: Code>(
    element: E,
    code: C,
    weights: &[u8],
    packed: &[u8],
) -> Moments {
    let magnitude = element
        .range::<L>(weights)
        .map_or(0.0, |(low, high)| high.max(-low));
    let power = power(magnitude);
    let pairs = Unpacked {
        group: values(element, weights, power),
        map: Steps::<L>::new(code),
        packed,
        code,
    };
    let len = pairs.group.len;
    group_moments::<L, _, _>(element, code, pairs, len, power)
}

/// Each group by its moments where they tell, weight by weight otherwise.
#[inline(always)]
pub(super) fn error_row<L: Lanes, E: Element, C: Code>(
    row: ErrorRow<'_>,
    element: E,
    code: C,
) -> ErrorSums {
    let ErrorRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    let mut totals = ErrorSums::default();
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = row.planes.grids::<L>(layout, start, count);
        for (i, &grid) in grids[..count].iter().enumerate() {
            let place = Place::new(span, cols, start + i);
            let weights = place.weights(element, row.weights);
            let packed = &row.planes.codes[place.codes(code)];
            let mut told = None;
            if moments::tell(code.format()) {
                let moments = match row.moments {
                    Some(moments) => moments[start + i],
                    None => decoded_moments::<L, _, _>(element, code, weights, packed),
                };
                told = moments.errors(code, grid);
            }
            totals.add(match told {
                Some(errors) => errors,
                None => decoded_error::<L, _, _>(element, code, grid, weights, packed),
            });
        }
    }
    totals
}

/// What the errors of a group with this grid are computed times.
#[inline(always)]
pub(super) fn error_power<L: Lanes>(element: impl Element, grid: Grid, weights: &[u8]) -> f32 {
    power(match grid.scale.abs().max(grid.bias.abs()) {
        // Weights too small for their scale dtype: what is lost counts at its own size.
        0.0 => element
            .range::<L>(weights)
            .map_or(0.0, |(low, high)| high.max(-low)),
        stored => stored,
    })
}

/// The errors of one group as it decodes.
#[inline(always)]
pub(super) fn decoded_error<L: Lanes, E: Element, C: Code>(
    element: E,
    code: C,
    grid: Grid,
    weights: &[u8],
    packed: &[u8],
) -> ErrorSums {
    let power = error_power::<L>(element, grid, weights);
    let pairs = Unpacked {
        group: values(element, weights, power),
        map: Decoder::<L, C>::new(code, grid),
        packed,
        code,
    };
    let len = pairs.group.len;
    group_error(Times { pairs, power }, len, power)
}

/// The errors of pairs of weights that are read times `power`.
#[inline(always)]
pub(super) fn group_error<L: Lanes>(mut pairs: impl Pairs<L>, len: usize, power: f32) -> ErrorSums {
    let [[signal, decoded, error]] = sums!(L, [3; 1], len, |sums, at, n, W| {
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

/// Values are compared in pieces of this many, each near its own power of two.
const COMPARED: usize = 1024;

#[inline(always)]
pub(super) fn compare_rows<L: Lanes, E: Element, D: Element>(
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

#[inline(always)]
fn values<E: Element>(element: E, bytes: &[u8], power: f32) -> Scaled<'_, E, true> {
    Scaled {
        element,
        bytes,
        importance: None,
        len: bytes.len() / element.size(),
        power,
    }
}
