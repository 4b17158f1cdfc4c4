//! The errors of a quantized row: by the moments of its groups, or weight by weight.

use super::code::{Code, CodeMap, layout_of};
use super::grid::{Decoder, Grid, Steps, add_product};
use super::moments;
use super::place::{Place, blocks, grids};
use crate::format::Scheme;
use crate::kernel::element::Element;
use crate::kernel::errors::{Pairs, group_error, values};
use crate::kernel::group::{Scaled, first, inverse_square, power, sums};
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::row::ErrorRow;
use crate::kernel::sums::{ErrorSums, Moments};

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

/// Pairs whose weights are decoded, and multiplied then: subnormal ones round as for a reader.
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
            let [[a, b, c]] = sums!(each_block, L, [3; 1], len, |sums, at, n, W| {
                let pairs = pairs.next::<W>(at, n);
                for (x, u) in pairs {
                    add_moments(element, &mut sums[0], x, u);
                }
            });
            [a, b, c, 0.0, 0.0]
        }
        Scheme::Affine => {
            let [totals] = sums!(each_block, L, [5; 1], len, |sums, at, n, W| {
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
pub(crate) fn error_row<L: Lanes, E: Element, C: Code>(
    row: ErrorRow<'_>,
    element: E,
    code: C,
) -> ErrorSums {
    let ErrorRow { encoding, cols, .. } = row;
    let layout = layout_of(encoding);
    let span = layout.group_size.span(cols);
    let mut totals = ErrorSums::default();
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = grids::<L>(row.planes, layout, start, count);
        for (i, &grid) in grids[..count].iter().enumerate() {
            let place = Place::new(span, cols, start + i);
            let weights = place.weights(element, row.weights);
            let packed = &row.planes.codes[place.codes(code)];
            let mut told = None;
            if moments::tell(code.width()) {
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
