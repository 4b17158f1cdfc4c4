//! Quantizing, decoding and measuring one row, written once over [`Lanes`].

use core::marker::PhantomData;

use super::element::{
    BF16, Code, CodeMap, Element, F16, F32, Int2, Int4, Int8, Pieces, each_block, each_vector,
    range, store,
};
use super::fit::{least_squares, min_max};
use super::group::{
    Decoder, Encoder, Grid, Scaled, Steps, add_product, first, inverse_square, power, sums,
    without_power,
};
use super::lanes::{BLOCK, LANES, Lanes};
use super::{
    CompareRow, DecodeRow, ErrorRow, ErrorSums, Fit, Moments, QuantizeRow, RescaleRow, RowFault,
    Sums, moments,
};
use crate::format::{Float, Format, Layout, ScaleDtype, Scheme};

/// Calls `$function::<$lanes, element, code>` for a float and a format known at run time.
macro_rules! dispatch {
    ($lanes:ident, $float:expr, $format:expr, $function:ident($($arg:expr),*)) => {
        match ($float, $format) {
            (Float::F32, Format::Int2) => $function::<$lanes, F32, Int2>($($arg),*),
            (Float::F32, Format::Int4) => $function::<$lanes, F32, Int4>($($arg),*),
            (Float::F32, Format::Int8) => $function::<$lanes, F32, Int8>($($arg),*),
            (Float::F16, Format::Int2) => $function::<$lanes, F16, Int2>($($arg),*),
            (Float::F16, Format::Int4) => $function::<$lanes, F16, Int4>($($arg),*),
            (Float::F16, Format::Int8) => $function::<$lanes, F16, Int8>($($arg),*),
            (Float::BF16, Format::Int2) => $function::<$lanes, BF16, Int2>($($arg),*),
            (Float::BF16, Format::Int4) => $function::<$lanes, BF16, Int4>($($arg),*),
            (Float::BF16, Format::Int8) => $function::<$lanes, BF16, Int8>($($arg),*),
        }
    };
}

#[inline(always)]
pub(super) fn quantize<L: Lanes>(row: QuantizeRow<'_>) -> Result<f32, RowFault> {
    dispatch!(L, row.float, row.layout.format, quantize_row(row))
}

#[inline(always)]
pub(super) fn decode<L: Lanes>(row: DecodeRow<'_>) {
    dispatch!(L, row.float, row.layout.format, decode_row(row))
}

#[inline(always)]
pub(super) fn error<L: Lanes>(row: ErrorRow<'_>) -> ErrorSums {
    dispatch!(L, row.float, row.layout.format, error_row(row))
}

#[inline(always)]
pub(super) fn compare<L: Lanes>(row: CompareRow<'_>) -> Option<ErrorSums> {
    match row.original.0 {
        Float::F32 => compare_from::<L, F32>(row),
        Float::F16 => compare_from::<L, F16>(row),
        Float::BF16 => compare_from::<L, BF16>(row),
    }
}

/// Where one group lies in its row.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    len: usize,
}

impl Place {
    /// Group `g` of a row.
    #[inline(always)]
    fn new(span: usize, cols: usize, g: usize) -> Self {
        let at = g * span;
        let len = span.min(cols - at);
        Self { at, len }
    }

    #[inline(always)]
    fn weights<'a, E: Element>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.at * E::SIZE..(self.at + self.len) * E::SIZE]
    }

    #[inline(always)]
    fn codes<C: Code>(&self) -> core::ops::Range<usize> {
        C::FORMAT.row_bytes(self.at)..C::FORMAT.row_bytes(self.at + self.len)
    }

    #[inline(always)]
    fn scaled<'a, E: Element>(&self, row: &QuantizeRow<'a>, power: f32) -> Scaled<'a> {
        Scaled {
            bytes: self.weights::<E>(row.weights),
            importance: row.importance.map(|h| &h[self.at..self.at + self.len]),
            len: self.len,
            power,
        }
    }
}

/// The groups of a row in blocks of as many as there are lanes: index of the first, how many.
#[inline(always)]
fn blocks(groups: usize) -> Pieces<LANES> {
    Pieces(0..groups)
}

/// Reads `count` scales (or biases) from the one numbered `first`.
#[inline(always)]
pub(super) fn load_scales<L: Lanes>(
    dtype: ScaleDtype,
    plane: &[u8],
    first: usize,
    count: usize,
) -> [f32; LANES] {
    let values: L = match dtype {
        ScaleDtype::F16 => super::element::load::<L, F16>(plane, first, count),
        ScaleDtype::F32 => super::element::load::<L, F32>(plane, first, count),
    };
    values.to_array()
}

/// Writes scales (or biases) and returns them as rounded to storage.
#[inline(always)]
fn store_scales<L: Lanes>(
    dtype: ScaleDtype,
    values: [f32; LANES],
    plane: &mut [u8],
    first: usize,
    count: usize,
) -> [f32; LANES] {
    let lanes = L::from_array(values);
    match dtype {
        ScaleDtype::F16 => store::<L, F16>(lanes, plane, first, count),
        ScaleDtype::F32 => store::<L, F32>(lanes, plane, first, count),
    }
    load_scales::<L>(dtype, plane, first, count)
}

/// The groups of a row are fitted and encoded in blocks: ranges first, then scales all together,
/// then codes, so that groups do not wait for each other's divisions.
#[inline(always)]
fn quantize_row<L: Lanes, E: Element, C: Code>(mut row: QuantizeRow<'_>) -> Result<f32, RowFault> {
    let QuantizeRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    let mut largest = 0.0f32;
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let mut powers = [1.0; LANES];
        let mut scales = [0.0; LANES];
        let mut biases = [0.0; LANES];
        for i in 0..count {
            let place = Place::new(span, cols, start + i);
            let bytes = place.weights::<E>(row.weights);
            let (low, high) = range::<L, E>(bytes).ok_or(RowFault::NonFinite)?;
            let magnitude = if high >= -low { high } else { -low };
            largest = if magnitude > largest {
                magnitude
            } else {
                largest
            };
            let power = power(magnitude);
            let mut grid = min_max::<C>(layout.scheme, low * power, high * power);
            if let Fit::LeastSquares(ratios) = row.fit {
                let group = place.scaled::<E>(&row, power);
                grid = least_squares::<L, E, C>(&group, layout.scheme, grid, ratios);
            }
            powers[i] = power;
            scales[i] = without_power(grid.scale, power);
            biases[i] = without_power(grid.bias, power);
        }

        // Codes are those for the scale and bias as a reader will see them.
        let dtype = layout.scale_dtype;
        let scales = store_scales::<L>(dtype, scales, row.scales, start, count);
        let biases = match layout.scheme {
            Scheme::Symmetric => [0.0; LANES],
            Scheme::Affine => store_scales::<L>(dtype, biases, row.biases, start, count),
        };
        check_decodable(layout, scales, biases, count)?;
        for i in 0..count {
            let grid = Grid {
                scale: scales[i],
                bias: biases[i],
            };
            let place = Place::new(span, cols, start + i);
            let group = place.scaled::<E>(&row, powers[i]);
            let codes = &mut row.codes[place.codes::<C>()];
            encode_group::<L, E, C>(&group, layout, grid, codes, &mut row.sums, start + i);
        }
    }
    Ok(largest)
}

#[inline(always)]
fn check_decodable(
    layout: Layout,
    scales: [f32; LANES],
    biases: [f32; LANES],
    count: usize,
) -> Result<(), RowFault> {
    let mut decodable = true;
    for i in 0..count {
        decodable &= layout.decodable(scales[i], biases[i]);
    }
    match decodable {
        true => Ok(()),
        false => Err(RowFault::ScaleOverflow),
    }
}

#[inline(always)]
pub(super) fn rescale<L: Lanes>(row: RescaleRow<'_>) -> Result<(), RowFault> {
    let RescaleRow { layout, gain, .. } = row;
    let dtype = layout.scale_dtype;
    for (start, count) in blocks(row.scales.len() / dtype.size()) {
        let mut rescaled = [[0.0; LANES]; 2];
        let planes = [&mut *row.scales, &mut *row.biases];
        let planes = match layout.scheme {
            Scheme::Symmetric => planes.into_iter().take(1),
            Scheme::Affine => planes.into_iter().take(2),
        };
        for (plane, rescaled) in planes.zip(&mut rescaled) {
            let values = load_scales::<L>(dtype, plane, start, count);
            let values = L::from_array(values).mul(L::splat(gain)).to_array();
            *rescaled = store_scales::<L>(dtype, values, plane, start, count);
        }
        check_decodable(layout, rescaled[0], rescaled[1], count)?;
    }
    Ok(())
}

/// Writes the codes of a group, and takes the sums that are wanted on the way.
#[inline(always)]
fn encode_group<L: Lanes, E: Element, C: Code>(
    group: &Scaled<'_>,
    layout: Layout,
    grid: Grid,
    packed: &mut [u8],
    wanted: &mut Sums<'_>,
    index: usize,
) {
    let scheme = layout.scheme;
    let near_one = Grid {
        scale: grid.scale * group.power,
        bias: grid.bias * group.power,
    };
    let mut codes = Encoding::<L, E, C> {
        group,
        encoder: Encoder::new::<C>(near_one, scheme),
        scheme,
        packed,
        types: PhantomData,
    };
    match wanted {
        Sums::None => codes.write(),
        Sums::Moments(moments, gain) => {
            let map = Steps::new::<C>(scheme);
            let pairs = Mapped { codes, map };
            let found = group_moments::<L, E>(pairs, group.len, group.power, scheme);
            gain.signal += found.signal;
            gain.product += found.product(layout, grid);
            moments[index] = found;
        }
        Sums::Gain(gain) => {
            let decoder = Decoder::<L>::new::<C>(near_one, scheme);
            let [[signal, product]] = sums!(L, [2; 1], group.len, |sums, at, n, W| {
                let pairs = codes.next::<W>(at, n);
                for (i, (x, code)) in pairs.into_iter().enumerate() {
                    let y = first(decoder.of(code), n);
                    let weighted = group.weigh(x, at + i * LANES, n);
                    sums[0][0] = sums[0][0].add(x.mul(weighted));
                    sums[0][1] = sums[0][1].add(y.mul(weighted));
                }
            });
            let back = inverse_square(group.power);
            gain.signal += signal * back;
            gain.product += product * back;
        }
        Sums::Error(error) => {
            let map = Decoder::<L>::new::<C>(grid, scheme);
            if group.power == 1.0 && error_power::<L, E>(grid, group.bytes) == 1.0 {
                error.add(group_error(Mapped { codes, map }, group.len, 1.0));
            } else {
                codes.write();
                let packed = codes.packed;
                error.add(decoded_error::<L, E, C>(
                    grid,
                    scheme,
                    group.bytes,
                    group.len,
                    packed,
                ));
            }
        }
    }
}

/// Weights of a group, and what their codes stand for: `W` vectors from element `at`, `n` elements
/// in the last, zeros beyond them.
trait Pairs<L> {
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W];
}

/// Writes codes, and hands them on.
struct Encoding<'a, L, E, C> {
    group: &'a Scaled<'a>,
    encoder: Encoder<L>,
    scheme: Scheme,
    packed: &'a mut [u8],
    types: PhantomData<(E, C)>,
}

impl<L: Lanes, E: Element, C: Code> Encoding<'_, L, E, C> {
    #[inline(always)]
    fn write(&mut self) {
        each_block!(0, self.group.len, |at, n, W| self.next::<W>(at, n));
    }
}

impl<L: Lanes, E: Element, C: Code> Pairs<L> for Encoding<'_, L, E, C> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        let mut codes = [L::splat(0.0); BLOCK];
        for i in 0..W {
            let x = self.group.load::<L, E>(at + i * LANES, n);
            let exact = self.encoder.exact(self.scheme, x);
            codes[i] = first(exact, n); // spare bits are zero
            pairs[i] = (x, self.encoder.codes(exact));
        }
        let end = at + (W - 1) * LANES + n;
        let bytes = C::FORMAT.row_bytes(at)..C::FORMAT.row_bytes(end);
        C::pack(codes, &mut self.packed[bytes]);
        pairs
    }
}

/// What freshly written codes are turned into.
struct Mapped<P, M> {
    codes: P,
    map: M,
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
    group: Scaled<'a>,
    map: M,
    packed: &'a [u8],
    types: PhantomData<(E, C)>,
}

impl<L: Lanes, M: CodeMap<L>, E: Element, C: Code> Pairs<L> for Unpacked<'_, M, E, C> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        for (i, pair) in pairs.iter_mut().enumerate() {
            let at = at + i * LANES;
            let codes = C::unpack(&self.map, &self.packed[C::FORMAT.row_bytes(at)..]);
            *pair = (self.group.load::<L, E>(at, n), first(codes, n));
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
    original: Scaled<'a>,
    decoded: Scaled<'a>,
    types: PhantomData<(E, D)>,
}

impl<L: Lanes, E: Element, D: Element> Pairs<L> for Zipped<'_, E, D> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        for (i, pair) in pairs.iter_mut().enumerate() {
            let at = at + i * LANES;
            *pair = (
                self.original.load::<L, E>(at, n),
                self.decoded.load::<L, D>(at, n),
            );
        }
        pairs
    }
}

/// The moments of weights, read times `power`, and half steps.
#[inline(always)]
fn group_moments<L: Lanes, E: Element>(
    mut pairs: impl Pairs<L>,
    len: usize,
    power: f32,
    scheme: Scheme,
) -> Moments {
    let [signal, product, square, sum, code_sum] = match scheme {
        Scheme::Symmetric => {
            let [[a, b, c]] = sums!(L, [3; 1], len, |sums, at, n, W| {
                let pairs = pairs.next::<W>(at, n);
                for (x, u) in pairs {
                    add_moments::<L, E>(&mut sums[0], x, u);
                }
            });
            [a, b, c, 0.0, 0.0]
        }
        Scheme::Affine => {
            let [totals] = sums!(L, [5; 1], len, |sums, at, n, W| {
                let pairs = pairs.next::<W>(at, n);
                for (x, u) in pairs {
                    add_moments::<L, E>(&mut sums[0], x, u);
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
fn add_moments<L: Lanes, E: Element>(sums: &mut [L], x: L, u: L) {
    sums[0] = sums[0].add(x.mul(x));
    sums[1] = add_product::<L, E>(sums[1], x, u);
    sums[2] = u.mul_add(u, sums[2]);
}

/// The moments of a group that is quantized already: those that quantizing it gave.
#[inline(always)]
fn decoded_moments<L: Lanes, E: Element, C: Code>(
    scheme: Scheme,
    weights: &[u8],
    len: usize,
    packed: &[u8],
) -> Moments {
    let magnitude = range::<L, E>(weights).map_or(0.0, |(low, high)| high.max(-low));
    let power = power(magnitude);
    let pairs = Unpacked::<_, E, C> {
        group: Scaled {
            bytes: weights,
            importance: None,
            len,
            power,
        },
        map: Steps::<L>::new::<C>(scheme),
        packed,
        types: PhantomData,
    };
    group_moments::<L, E>(pairs, len, power, scheme)
}

#[inline(always)]
fn decode_row<L: Lanes, E: Element, C: Code>(row: DecodeRow<'_>) {
    let DecodeRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = row.planes.grids::<L>(layout, start, count);
        for (i, grid) in grids[..count].iter().enumerate() {
            let place = Place::new(span, cols, start + i);
            let decoder = Decoder::<L>::new::<C>(*grid, layout.scheme);
            let packed = &row.planes.codes[place.codes::<C>()];
            let out = &mut row.weights[place.at * E::SIZE..(place.at + place.len) * E::SIZE];
            each_vector!(0, place.len, |at, n| {
                let weights = C::unpack(&decoder, &packed[C::FORMAT.row_bytes(at)..]);
                store::<L, E>(weights, out, at, n);
            });
        }
    }
}

/// Each group by its moments where they tell, weight by weight otherwise.
#[inline(always)]
fn error_row<L: Lanes, E: Element, C: Code>(row: ErrorRow<'_>) -> ErrorSums {
    let ErrorRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    let mut totals = ErrorSums::default();
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = row.planes.grids::<L>(layout, start, count);
        for (i, &grid) in grids[..count].iter().enumerate() {
            let place = Place::new(span, cols, start + i);
            let weights = place.weights::<E>(row.weights);
            let packed = &row.planes.codes[place.codes::<C>()];
            let mut told = None;
            if moments::measure(C::FORMAT) {
                let moments = match row.moments {
                    Some(moments) => moments[start + i],
                    None => decoded_moments::<L, E, C>(layout.scheme, weights, place.len, packed),
                };
                told = moments.errors(layout, grid);
            }
            totals.add(match told {
                Some(errors) => errors,
                None => decoded_error::<L, E, C>(grid, layout.scheme, weights, place.len, packed),
            });
        }
    }
    totals
}

/// What the errors of a group with this grid are computed times.
#[inline(always)]
fn error_power<L: Lanes, E: Element>(grid: Grid, weights: &[u8]) -> f32 {
    power(match grid.scale.abs().max(grid.bias.abs()) {
        // Weights too small for their scale dtype: what is lost counts at its own size.
        0.0 => range::<L, E>(weights).map_or(0.0, |(low, high)| high.max(-low)),
        stored => stored,
    })
}

/// The errors of one group as it decodes.
#[inline(always)]
fn decoded_error<L: Lanes, E: Element, C: Code>(
    grid: Grid,
    scheme: Scheme,
    weights: &[u8],
    len: usize,
    packed: &[u8],
) -> ErrorSums {
    let power = error_power::<L, E>(grid, weights);
    let pairs = Unpacked::<_, E, C> {
        group: Scaled {
            bytes: weights,
            importance: None,
            len,
            power,
        },
        map: Decoder::<L>::new::<C>(grid, scheme),
        packed,
        types: PhantomData,
    };
    group_error(Times { pairs, power }, len, power)
}

/// The errors of pairs of weights that are read times `power`.
#[inline(always)]
fn group_error<L: Lanes>(mut pairs: impl Pairs<L>, len: usize, power: f32) -> ErrorSums {
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

#[inline(always)]
fn compare_from<L: Lanes, E: Element>(row: CompareRow<'_>) -> Option<ErrorSums> {
    match row.decoded.0 {
        Float::F32 => compare_rows::<L, E, F32>(row),
        Float::F16 => compare_rows::<L, E, F16>(row),
        Float::BF16 => compare_rows::<L, E, BF16>(row),
    }
}

/// Values are compared in pieces of this many, each near its own power of two.
const COMPARED: usize = 1024;

#[inline(always)]
fn compare_rows<L: Lanes, E: Element, D: Element>(row: CompareRow<'_>) -> Option<ErrorSums> {
    let mut totals = ErrorSums::default();
    let pieces = row.original.1.chunks(COMPARED * E::SIZE);
    for (original, decoded) in pieces.zip(row.decoded.1.chunks(COMPARED * D::SIZE)) {
        let magnitude = |(low, high): (f32, f32)| high.max(-low);
        let largest = range::<L, E>(original).map(magnitude)?;
        let largest = largest.max(range::<L, D>(decoded).map(magnitude)?);
        let len = original.len() / E::SIZE;
        let power = power(largest);
        let scaled = |bytes| Scaled {
            bytes,
            importance: None,
            len,
            power,
        };
        let pairs = Zipped::<E, D> {
            original: scaled(original),
            decoded: scaled(decoded),
            types: PhantomData,
        };
        totals.add(group_error::<L>(pairs, len, power));
    }
    Some(totals)
}

impl super::Planes<'_> {
    /// The grids of `count` groups from the one numbered `first`.
    #[inline(always)]
    pub(super) fn grids<L: Lanes>(
        &self,
        layout: Layout,
        first: usize,
        count: usize,
    ) -> [Grid; LANES] {
        let scales = load_scales::<L>(layout.scale_dtype, self.scales, first, count);
        let biases = match layout.scheme {
            Scheme::Symmetric => [0.0; LANES],
            Scheme::Affine => load_scales::<L>(layout.scale_dtype, self.biases, first, count),
        };
        core::array::from_fn(|i| Grid {
            scale: scales[i],
            bias: biases[i],
        })
    }
}
