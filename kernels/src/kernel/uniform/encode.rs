//! Quantizing one row, written once over [`Lanes`].

use super::code::{Code, layout_of, with_code};
use super::errors::{Mapped, decoded_error, error_power, group_moments};
use super::fit::{least_squares, min_max};
use super::grid::{Decoder, Encoder, Grid, Steps};
use super::place::{Place, blocks, check_decodable, store_scales};
use crate::format::Scheme;
use crate::kernel::element::{Element, each_block, with_element};
use crate::kernel::errors::{Pairs, group_error, group_gain};
use crate::kernel::group::{Scaled, first, is_near, power, without_power};
use crate::kernel::lanes::{BLOCK, LANES, Lanes};
use crate::kernel::row::{Fit, QuantizeRow, RowFault, Sums};
use crate::kernel::scalar::Scalar;

#[inline(always)]
pub(crate) fn quantize<L: Lanes>(row: QuantizeRow<'_>) -> Result<f32, RowFault> {
    let layout = layout_of(row.encoding);
    with_element!(L, row.float, |e| with_code!(L, layout, |c| {
        quantize_row::<L, _, _>(row, e, c)
    }))
}

/// Neighbouring groups of a row, as many as there are lanes, or fewer at its end.
struct Block {
    start: usize,
    count: usize,
    /// The ranges of their weights, zeros where there is no group.
    low: [f32; LANES],
    high: [f32; LANES],
    magnitude: [f32; LANES],
}

/// The groups of a row are quantized in blocks: ranges first, then scales all together, then
/// codes, so that groups do not wait for each other's divisions.
#[inline(always)]
fn quantize_row<L: Lanes, E: Element, C: Code>(
    mut row: QuantizeRow<'_>,
    element: E,
    code: C,
) -> Result<f32, RowFault> {
    let groups = layout_of(row.encoding).group_size;
    let span = groups.span(row.cols);
    let mut largest = 0.0f32;
    for (start, count) in blocks(groups.count(row.cols)) {
        let mut block = Block {
            start,
            count,
            low: [0.0; LANES],
            high: [0.0; LANES],
            magnitude: [0.0; LANES],
        };
        for i in 0..count {
            let place = Place::new(span, row.cols, start + i);
            let bytes = place.weights(element, row.weights);
            (block.low[i], block.high[i]) = element.range::<L>(bytes).ok_or(RowFault::NonFinite)?;
        }
        let mut near = true;
        for i in 0..LANES {
            let (low, high) = (-block.low[i], block.high[i]);
            block.magnitude[i] = if high >= low { high } else { low };
            near &= is_near(block.magnitude[i]);
        }
        for magnitude in block.magnitude {
            largest = if magnitude > largest {
                magnitude
            } else {
                largest
            };
        }
        match near {
            true => quantize_block::<L, _, _, false>(&mut row, element, code, &block)?,
            false => quantize_far(&mut row, &block)?,
        }
    }
    Ok(largest)
}

/// Blocks with groups far from 1 are so rare that all tables share the scalar code.
#[cold]
#[inline(never)]
fn quantize_far(row: &mut QuantizeRow<'_>, block: &Block) -> Result<(), RowFault> {
    quantize_block::<Scalar, _, _, true>(row, row.float, layout_of(row.encoding), block)
}

#[inline(always)]
fn quantize_block<L: Lanes, E: Element, C: Code, const FAR: bool>(
    row: &mut QuantizeRow<'_>,
    element: E,
    code: C,
    block: &Block,
) -> Result<(), RowFault> {
    let &Block { start, count, .. } = block;
    let layout = layout_of(row.encoding);
    let mut groups = Groups::<E, C, FAR> {
        element,
        code,
        weights: row.weights,
        importance: row.importance,
        cols: row.cols,
        span: layout.group_size.span(row.cols),
        start,
        powers: [1.0; LANES],
        scales: [0.0; LANES],
        biases: [0.0; LANES],
        inverses: [0.0; LANES],
    };
    if FAR {
        groups.powers = block.magnitude.map(power);
    }
    groups.fit::<L>(row.fit, block);

    // Codes are those for the scale and bias as a reader will see them.
    let dtype = layout.scale_dtype;
    groups.scales = store_scales::<L>(dtype, groups.scales, row.scales, start, count);
    if code.scheme() == Scheme::Affine {
        groups.biases = store_scales::<L>(dtype, groups.biases, row.biases, start, count);
    }
    check_decodable(layout, groups.scales, groups.biases, count)?;
    for i in 0..LANES {
        groups.inverses[i] = groups.near_one(i).inverse();
    }
    groups.encode::<L>(count, row.codes, &mut row.sums);
    Ok(())
}

/// The groups of a block, and what is found for them.
struct Groups<'a, E, C, const FAR: bool> {
    element: E,
    code: C,
    weights: &'a [u8],
    importance: Option<&'a [f32]>,
    cols: usize,
    /// Length of a group.
    span: usize,
    /// The number of the first group.
    start: usize,
    powers: [f32; LANES],
    scales: [f32; LANES],
    biases: [f32; LANES],
    /// The reciprocals of the scales, for weights near 1.
    inverses: [f32; LANES],
}

impl<E: Element, C: Code, const FAR: bool> Groups<'_, E, C, FAR> {
    #[inline(always)]
    fn group(&self, i: usize) -> Scaled<'_, E, FAR> {
        let place = Place::new(self.span, self.cols, self.start + i);
        Scaled {
            element: self.element,
            bytes: place.weights(self.element, self.weights),
            importance: self.importance.map(|h| &h[place.at..][..place.len]),
            len: place.len,
            power: self.powers[i],
        }
    }

    #[inline(always)]
    fn grid(&self, i: usize) -> Grid {
        Grid {
            scale: self.scales[i],
            bias: self.biases[i],
        }
    }

    /// The grid of the group as it is read.
    #[inline(always)]
    fn near_one(&self, i: usize) -> Grid {
        Grid {
            scale: self.scales[i] * self.powers[i],
            bias: self.biases[i] * self.powers[i],
        }
    }

    /// Finds scales and biases.
    #[inline(always)]
    fn fit<L: Lanes>(&mut self, fit: Fit<'_>, block: &Block) {
        for i in 0..LANES {
            let (low, high) = (
                block.low[i] * self.powers[i],
                block.high[i] * self.powers[i],
            );
            let grid = min_max(self.code, low, high);
            (self.scales[i], self.biases[i]) = (grid.scale, grid.bias);
        }
        if let Fit::LeastSquares(ratios) = fit {
            for i in 0..block.count {
                let group = self.group(i);
                let grid = least_squares::<L, _, _, FAR>(&group, self.code, self.grid(i), ratios);
                (self.scales[i], self.biases[i]) = (grid.scale, grid.bias);
            }
        }
        if FAR {
            for i in 0..LANES {
                self.scales[i] = without_power(self.scales[i], self.powers[i]);
                self.biases[i] = without_power(self.biases[i], self.powers[i]);
            }
        }
    }

    #[inline(always)]
    fn encoding<'p, L: Lanes>(
        &'p self,
        i: usize,
        codes: &'p mut [u8],
    ) -> Encoding<'p, L, E, C, FAR> {
        let place = Place::new(self.span, self.cols, self.start + i);
        Encoding {
            group: self.group(i),
            code: self.code,
            encoder: Encoder::new(self.code, self.inverses[i], self.near_one(i).bias),
            packed: &mut codes[place.codes(self.code)],
        }
    }

    /// Writes the codes, and takes the sums that are wanted on the way.
    #[inline(always)]
    fn encode<L: Lanes>(&self, count: usize, codes: &mut [u8], wanted: &mut Sums<'_>) {
        let (element, code) = (self.element, self.code);
        match wanted {
            Sums::None => {
                for i in 0..count {
                    self.encoding::<L>(i, codes).write();
                }
            }
            Sums::Moments(moments, gain) => {
                for i in 0..count {
                    let (len, power) = (self.group(i).len, self.powers[i]);
                    let (codes, map) = (self.encoding(i, codes), Steps::new(code));
                    let pairs = Mapped { codes, map };
                    let found = group_moments::<L, _, _>(element, code, pairs, len, power);
                    gain.signal += found.signal;
                    gain.product += found.product(code, self.grid(i));
                    moments[self.start + i] = found;
                }
            }
            Sums::Gain(gain) => {
                for i in 0..count {
                    let pairs = Mapped {
                        codes: self.encoding(i, codes),
                        map: Decoder::<L, C>::new(code, self.near_one(i)),
                    };
                    let Scaled { len, power, .. } = self.group(i);
                    gain.add(group_gain::<L>(pairs, len, power));
                }
            }
            Sums::Error(error) => {
                for i in 0..count {
                    let (grid, group) = (self.grid(i), self.group(i));
                    let mut codes = self.encoding(i, codes);
                    if !FAR && error_power::<L>(element, grid, group.bytes) == 1.0 {
                        let map = Decoder::<L, C>::new(code, grid);
                        error.add(group_error(Mapped { codes, map }, group.len, 1.0));
                    } else {
                        codes.write();
                        let packed = &*codes.packed;
                        error.add(decoded_error::<L, _, _>(
                            element,
                            code,
                            grid,
                            group.bytes,
                            packed,
                        ));
                    }
                }
            }
        }
    }
}

/// Writes codes, and hands them on.
struct Encoding<'a, L, E, C, const FAR: bool> {
    group: Scaled<'a, E, FAR>,
    code: C,
    encoder: Encoder<L, C>,
    packed: &'a mut [u8],
}

impl<L: Lanes, E: Element, C: Code, const FAR: bool> Encoding<'_, L, E, C, FAR> {
    #[inline(always)]
    fn write(&mut self) {
        each_block!(0, self.group.len, |at, n, W| self.next::<W>(at, n));
    }
}

impl<L: Lanes, E: Element, C: Code, const FAR: bool> Pairs<L> for Encoding<'_, L, E, C, FAR> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        let mut codes = [L::splat(0.0); BLOCK];
        let weights = self.group.vectors::<L, W>(at, n);
        for (i, x) in weights.into_iter().enumerate() {
            let exact = self.encoder.exact(x);
            codes[i] = first(exact, n); // spare bits are zero
            pairs[i] = (x, self.encoder.codes(exact));
        }
        let len = self.code.bytes((W - 1) * LANES + n);
        self.code
            .pack(codes, &mut self.packed[self.code.bytes(at)..][..len]);
        pairs
    }
}
