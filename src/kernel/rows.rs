//! Quantizing, decoding and measuring one row, group by group, written once over [`Lanes`].

use super::group::{
    BF16, Code, Decoder, Element, Encoder, F16, F32, Grid, Int2, Int4, Int8, Scaled,
    least_squares_affine, least_squares_symmetric, min_max, power, range, sums, vectors,
};
use super::lanes::{LANES, Lanes};
use super::{DecodeRow, DotRow, ErrorRow, ErrorSums, Fit, QuantizeRow, RowFault, RowSums};
use crate::format::{Float, Format, Scheme};

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
pub(super) fn quantize<L: Lanes>(row: QuantizeRow<'_>) -> Result<RowSums, RowFault> {
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
pub(super) fn dot<L: Lanes>(row: DotRow<'_>) -> f32 {
    match row.layout.format {
        Format::Int2 => dot_row::<L, Int2>(row),
        Format::Int4 => dot_row::<L, Int4>(row),
        Format::Int8 => dot_row::<L, Int8>(row),
    }
}

#[inline(always)]
fn quantize_row<L: Lanes, E: Element, C: Code>(row: QuantizeRow<'_>) -> Result<RowSums, RowFault> {
    let QuantizeRow { layout, cols, .. } = row;
    let zero_point = layout.zero_point();
    let span = layout.group_size.span(cols);
    let mut totals = RowSums::default();
    for g in 0..layout.group_size.count(cols) {
        let at = g * span;
        let len = span.min(cols - at);
        let bytes = &row.weights[at * E::SIZE..(at + len) * E::SIZE];
        let (low, high) = range::<L, E>(bytes, len).ok_or(RowFault::NonFinite)?;
        let magnitude = if high >= -low { high } else { -low };
        totals.largest = totals.largest.max(magnitude);
        let power = power(magnitude);
        let group = Scaled {
            bytes,
            importance: row.importance.map(|h| &h[at..at + len]),
            len,
            power,
        };

        let start = min_max::<C>(layout.scheme, low * power, high * power);
        let grid = match (row.fit, layout.scheme) {
            (Fit::MinMax, _) => start,
            (Fit::LeastSquares(ratios), Scheme::Symmetric) => {
                least_squares_symmetric::<L, E, C>(&group, start, ratios)
            }
            (Fit::LeastSquares(ratios), Scheme::Affine) => {
                least_squares_affine::<L, E, C>(&group, start, ratios)
            }
        };

        // Codes are those for the scale and bias as a reader will see them.
        let unscaled = |x: f32| (f64::from(x) / f64::from(power)) as f32;
        let mut stored = Grid {
            scale: layout.scale_dtype.put(row.scales, g, unscaled(grid.scale)),
            bias: 0.0,
        };
        if layout.scheme == Scheme::Affine {
            stored.bias = layout.scale_dtype.put(row.biases, g, unscaled(grid.bias));
        }
        if !layout.decodable(stored.scale, stored.bias) {
            return Err(RowFault::ScaleOverflow);
        }
        let near_one = Grid {
            scale: stored.scale * power,
            bias: stored.bias * power,
        };
        let encoder = Encoder::<L>::new::<C>(near_one, zero_point);
        let packed = &mut row.codes[C::FORMAT.row_bytes(at)..C::FORMAT.row_bytes(at + len)];
        if row.sums {
            let decoder = Decoder::<L>::new::<C>(near_one, layout.scheme);
            let [signal, product] = sums(len, |at, n| {
                let x = group.load::<L, E>(at, n);
                let codes = encode::<L, C>(&encoder, x, at, n, packed);
                let weighted = group.weigh(x, at, n);
                [x.mul(weighted), decoder.weights(codes).mul(weighted)]
            });
            let back = 1.0 / (f64::from(power) * f64::from(power));
            totals.signal += signal * back;
            totals.product += product * back;
        } else {
            for (at, n) in vectors(0..len) {
                encode::<L, C>(&encoder, group.load::<L, E>(at, n), at, n, packed);
            }
        }
    }
    Ok(totals)
}

/// Writes the codes of `n` weights at element `at` of the group, and returns them.
#[inline(always)]
fn encode<L: Lanes, C: Code>(
    encoder: &Encoder<L>,
    x: L,
    at: usize,
    n: usize,
    packed: &mut [u8],
) -> L {
    let mut codes = encoder.codes(x);
    if n < LANES {
        codes = codes.blend(n, L::splat(0.0)); // spare bits are zero
    }
    C::pack(codes, &mut packed[C::FORMAT.row_bytes(at)..]);
    codes
}

#[inline(always)]
fn decode_row<L: Lanes, E: Element, C: Code>(row: DecodeRow<'_>) {
    let DecodeRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    for g in 0..layout.group_size.count(cols) {
        let at = g * span;
        let len = span.min(cols - at);
        let grid = row.planes.grid(layout, g);
        let decoder = Decoder::<L>::new::<C>(grid, layout.scheme);
        let packed = &row.planes.codes[C::FORMAT.row_bytes(at)..C::FORMAT.row_bytes(at + len)];
        let out = &mut row.weights[at * E::SIZE..(at + len) * E::SIZE];
        for (at, n) in vectors(0..len) {
            let weights = decoder.weights(C::unpack(&packed[C::FORMAT.row_bytes(at)..]));
            let out = &mut out[at * E::SIZE..(at + n) * E::SIZE];
            if n == LANES {
                E::store::<L>(weights, out);
            } else {
                let mut padded = [0; LANES * 4];
                E::store::<L>(weights, &mut padded);
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }
}

#[inline(always)]
fn error_row<L: Lanes, E: Element, C: Code>(row: ErrorRow<'_>) -> ErrorSums {
    let ErrorRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    let mut totals = ErrorSums::default();
    for g in 0..layout.group_size.count(cols) {
        let at = g * span;
        let len = span.min(cols - at);
        let grid = row.planes.grid(layout, g);
        let bytes = &row.weights[at * E::SIZE..(at + len) * E::SIZE];
        let magnitude = match grid.scale.abs().max(grid.bias.abs()) {
            // Weights too small for their scale dtype: what is lost counts at its own size.
            0.0 => range::<L, E>(bytes, len).map_or(0.0, |(low, high)| high.max(-low)),
            stored => stored,
        };
        let power = power(magnitude);
        let group = Scaled {
            bytes,
            importance: None,
            len,
            power,
        };
        let decoder = Decoder::<L>::new::<C>(grid, layout.scheme);
        let packed = &row.planes.codes[C::FORMAT.row_bytes(at)..C::FORMAT.row_bytes(at + len)];
        let [signal, decoded, error] = sums(len, |at, n| {
            let x = group.load::<L, E>(at, n);
            // Decoded first and multiplied then: subnormal weights round as for a reader.
            let y = decoder.weights(C::unpack(&packed[C::FORMAT.row_bytes(at)..]));
            let y = y.mul(L::splat(power));
            let e = x.sub(y);
            [x.mul(x), y.mul(y), e.mul(e)]
        });
        let back = 1.0 / (f64::from(power) * f64::from(power));
        totals.add(ErrorSums {
            signal: signal * back,
            decoded: decoded * back,
            error: error * back,
        });
    }
    totals
}

#[inline(always)]
fn dot_row<L: Lanes, C: Code>(row: DotRow<'_>) -> f32 {
    let DotRow { layout, x, .. } = row;
    let span = layout.group_size.span(x.len());
    let mut total = 0.0;
    for (g, x) in x.chunks(span).enumerate() {
        let decoder = Decoder::<L>::new::<C>(row.planes.grid(layout, g), layout.scheme);
        let packed = &row.planes.codes[C::FORMAT.row_bytes(g * span)..];
        let [product] = sums(x.len(), |at, n| {
            let mut lanes = [0.0; LANES];
            lanes[..n].copy_from_slice(&x[at..at + n]);
            let weights = decoder.weights(C::unpack(&packed[C::FORMAT.row_bytes(at)..]));
            [weights.mul(L::from_array(lanes))]
        });
        total += product;
    }
    total as f32
}

impl super::Planes<'_> {
    #[inline(always)]
    fn grid(&self, layout: crate::format::Layout, group: usize) -> Grid {
        Grid {
            scale: layout.scale_dtype.get(self.scales, group),
            bias: match layout.scheme {
                Scheme::Symmetric => 0.0,
                Scheme::Affine => layout.scale_dtype.get(self.biases, group),
            },
        }
    }
}
