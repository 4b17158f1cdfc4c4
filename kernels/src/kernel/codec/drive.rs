//! What a codec says of an encoding, and all kernels made of that, written once over [`Lanes`].

use crate::format::Encoding;
use crate::kernel::activations;
use crate::kernel::element::{Element, F32, each_vector, load, load_slice, store, with_element};
use crate::kernel::errors::{Pairs, group_error, group_gain, values};
use crate::kernel::group::{first, power, sums};
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::product::{ActivationsMut, ByteMatVec, MatVec};
use crate::kernel::row::{DecodeRow, ErrorRow, Planes, QuantizeRow, RescaleRow, RowFault, Sums};
use crate::kernel::scalar::Scalar;
use crate::kernel::sums::ErrorSums;

/// An encoding in blocks of columns, of which a row has whole ones: the last is filled up.
///
/// Chosen when a kernel is compiled, and compiled for each instruction set: never `dyn`. All
/// methods are `#[inline(always)]`, or they would not be compiled for it.
pub(crate) trait Codec: Copy {
    /// Columns of a block: a multiple of 16, [`LARGEST_BLOCK`] at the most.
    const BLOCK: usize;

    /// The codec of an encoding, which is one of its own.
    fn new(encoding: Encoding) -> Self;

    /// Bytes of each plane of a row.
    fn plane_bytes(self, cols: usize) -> [usize; 3];

    /// Sixteen weights from column `at` on, a multiple of 16.
    fn decode<L: Lanes>(self, row: Planes<'_>, at: usize) -> L;

    /// Encodes the block from column `at` on. There are [`Codec::BLOCK`] finite weights, zeros
    /// beyond the row, and the importance of as many columns as are in the row.
    ///
    /// # Errors
    /// The scales do not fit their storage, or would decode to infinity.
    fn encode<L: Lanes>(
        self,
        weights: &[f32],
        importance: Option<&[f32]>,
        at: usize,
        planes: [&mut [u8]; 3],
    ) -> Result<(), RowFault>;

    /// Multiplies the scales of a row, and rounds them to storage.
    ///
    /// # Errors
    /// One no longer fits, or would decode to infinity.
    fn rescale<L: Lanes>(self, row: RescaleRow<'_>) -> Result<(), RowFault>;
}

/// The most columns that a block may have.
pub(crate) const LARGEST_BLOCK: usize = 256;

/// Columns that are compared together, near a power of two of their own.
const COMPARED: usize = 1024;

/// Weights of a row, and what they decode to, both times a power of two.
struct Decoded<'a, E, C> {
    element: E,
    codec: C,
    weights: &'a [u8],
    planes: Planes<'a>,
    /// The first column.
    start: usize,
    power: f32,
}

impl<L: Lanes, E: Element, C: Codec> Pairs<L> for Decoded<'_, E, C> {
    #[inline(always)]
    fn next<const W: usize>(&mut self, at: usize, n: usize) -> [(L, L); W] {
        let mut pairs = [(L::splat(0.0), L::splat(0.0)); W];
        let group = values(self.element, self.weights, self.power);
        let weights = group.vectors::<L, W>(at, n);
        for (i, x) in weights.into_iter().enumerate() {
            let y = self
                .codec
                .decode::<L>(self.planes, self.start + at + i * LANES);
            // Multiplied once it is decoded: subnormal weights round as for a reader.
            pairs[i] = (x, first(y, n).mul(L::splat(self.power)));
        }
        pairs
    }
}

/// Does something with each piece of a row: its pairs, their number, and the power of two that
/// both are multiplied by.
macro_rules! each_piece {
    ($lanes:ty, $codec:expr, $element:expr, $weights:expr, $planes:expr,
        |$pairs:ident, $len:ident, $power:ident| $body:expr) => {{
        let (element, size) = ($element, $element.size());
        for (i, weights) in $weights.chunks(COMPARED * size).enumerate() {
            // An original may be anything.
            let $power = power(element.magnitude::<$lanes>(weights).unwrap_or(0.0));
            let $len = weights.len() / size;
            let $pairs = Decoded {
                element,
                codec: $codec,
                weights,
                planes: $planes,
                start: i * COMPARED,
                power: $power,
            };
            $body;
        }
    }};
}

#[inline(always)]
pub(crate) fn quantize<L: Lanes, C: Codec>(row: QuantizeRow<'_>) -> Result<f32, RowFault> {
    with_element!(L, row.float, |e| quantize_row::<L, C, _>(row, e))
}

#[inline(always)]
fn quantize_row<L: Lanes, C: Codec, E: Element>(
    mut row: QuantizeRow<'_>,
    element: E,
) -> Result<f32, RowFault> {
    let codec = C::new(row.encoding);
    let mut largest = 0.0;
    let mut block = [0.0; LARGEST_BLOCK];
    let block = &mut block[..C::BLOCK];
    for at in (0..row.cols).step_by(C::BLOCK) {
        let len = C::BLOCK.min(row.cols - at);
        let bytes = &row.weights[at * element.size()..(at + len) * element.size()];
        let magnitude = element.magnitude::<L>(bytes).ok_or(RowFault::NonFinite)?;
        largest = if magnitude > largest {
            magnitude
        } else {
            largest
        };
        block[len..].fill(0.0);
        each_vector!(0, len, |i, n| {
            let x: L = load(element, bytes, i, n);
            block[i..i + n].copy_from_slice(&x.to_array()[..n]);
        });
        let importance = row.importance.map(|h| &h[at..at + len]);
        let planes = [&mut *row.codes, &mut *row.scales, &mut *row.biases];
        codec.encode::<L>(block, importance, at, planes)?;
    }
    let planes = Planes {
        codes: row.codes,
        scales: row.scales,
        biases: row.biases,
    };
    match &mut row.sums {
        Sums::None => {}
        Sums::Moments(..) => unreachable!("only uniform codes have moments"),
        Sums::Gain(gain) => {
            each_piece!(
                L,
                codec,
                element,
                row.weights,
                planes,
                |pairs, len, power| {
                    gain.add(group_gain::<L>(pairs, len, power));
                }
            );
        }
        Sums::Error(error) => {
            each_piece!(
                L,
                codec,
                element,
                row.weights,
                planes,
                |pairs, len, power| {
                    error.add(group_error::<L>(pairs, len, power));
                }
            );
        }
    }
    Ok(largest)
}

#[inline(always)]
pub(crate) fn error<L: Lanes, C: Codec>(row: ErrorRow<'_>) -> ErrorSums {
    with_element!(L, row.float, |e| {
        let codec = C::new(row.encoding);
        let mut total = ErrorSums::default();
        each_piece!(L, codec, e, row.weights, row.planes, |pairs, len, power| {
            total.add(group_error::<L>(pairs, len, power));
        });
        total
    })
}

#[inline(always)]
pub(crate) fn decode<L: Lanes, C: Codec>(row: DecodeRow<'_>) {
    with_element!(L, row.float, |e| {
        let codec = C::new(row.encoding);
        each_vector!(0, row.cols, |at, n| {
            store(e, codec.decode::<L>(row.planes, at), row.weights, at, n);
        });
    });
}

/// Whether all weights of a row are finite.
pub(crate) fn decodable<C: Codec>(encoding: Encoding, cols: usize, row: Planes<'_>) -> bool {
    let codec = C::new(encoding);
    let weights = |at: usize| codec.decode::<Scalar>(row, at).to_array();
    let finite = |at: usize| {
        weights(at)[..LANES.min(cols - at)]
            .iter()
            .all(|w| w.is_finite())
    };
    (0..cols).step_by(LANES).all(finite)
}

#[inline(always)]
pub(crate) fn rescale<L: Lanes, C: Codec>(row: RescaleRow<'_>) -> Result<(), RowFault> {
    C::new(row.encoding).rescale::<L>(row)
}

/// The row numbered `row` of some.
#[inline(always)]
fn row_of<C: Codec>(codec: C, planes: Planes<'_>, cols: usize, row: usize) -> Planes<'_> {
    let [codes, scales, biases] = codec.plane_bytes(cols);
    Planes {
        codes: &planes.codes[row * codes..][..codes],
        scales: &planes.scales[row * scales..][..scales],
        biases: &planes.biases[row * biases..][..biases],
    }
}

/// Products in f32 over as many columns as [`sums`] adds up in lanes, 64 in each, and in f64 from
/// there on.
#[inline(always)]
pub(crate) fn matvec<L: Lanes, C: Codec>(m: MatVec<'_>) {
    let (codec, cols) = (C::new(m.encoding), m.cols);
    let batch = m.y.len() / m.y_rows;
    for (i, row) in m.rows.enumerate() {
        let planes = row_of(codec, m.planes, cols, i);
        for b in 0..batch {
            let x = &m.x[b * cols..(b + 1) * cols];
            let [[sum]] = sums!(each_vector, L, [1; 1], cols, |sums, at, n| {
                let weights = first(codec.decode::<L>(planes, at), n);
                sums[0][0] = weights.mul_add(load_slice(x, at, n), sums[0][0]);
            });
            m.y[b * m.y_rows + row] = sum as f32;
        }
    }
}

/// Vectors for [`matvec_bytes`], whose values stand in the order of the columns.
#[inline(always)]
pub(crate) fn quantize_vectors<L: Lanes, C: Codec>(
    x: &[f32],
    cols: usize,
    out: ActivationsMut<'_>,
) -> bool {
    let groups = cols.div_ceil(C::BLOCK);
    for (b, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for (g, x) in x.chunks(C::BLOCK).enumerate() {
            let bytes = activations::as_bytes(x);
            let Some(largest) = F32.magnitude::<L>(bytes) else {
                return false;
            };
            let (step, inverse) = activations::steps(largest, 127.0);
            let ordered = &mut [0; LARGEST_BLOCK][..x.len()];
            activations::quantize_values::<L>(inverse, F32, bytes, ordered);
            let values = &mut out.values[b * cols + g * C::BLOCK..][..x.len()];
            let mut sum = 0;
            for (value, byte) in values.iter_mut().zip(ordered) {
                *value = *byte as i8;
                sum += i32::from(*value);
            }
            out.scales[b * groups + g] = step;
            out.sums[b * groups + g] = step * sum as f32;
        }
    }
    true
}

#[inline(always)]
pub(crate) fn matvec_bytes<L: Lanes, C: Codec>(m: ByteMatVec<'_>) {
    let (codec, cols) = (C::new(m.encoding), m.cols);
    let batch = m.y.len() / m.y_rows;
    let groups = cols.div_ceil(C::BLOCK);
    for (i, row) in m.rows.enumerate() {
        let planes = row_of(codec, m.planes, cols, i);
        for b in 0..batch {
            let values = &m.x.values[b * cols..(b + 1) * cols];
            let mut total = 0.0f64;
            for (g, values) in values.chunks(C::BLOCK).enumerate() {
                let mut sum = L::splat(0.0);
                each_vector!(0, values.len(), |at, n| {
                    let mut x = [0.0; LANES];
                    for (x, value) in x.iter_mut().zip(&values[at..at + n]) {
                        *x = f32::from(*value);
                    }
                    let weights = first(codec.decode::<L>(planes, g * C::BLOCK + at), n);
                    sum = weights.mul_add(L::from_array(x), sum);
                });
                total += f64::from(sum.fold_add()) * f64::from(m.x.scales[b * groups + g]);
            }
            m.y[b * m.y_rows + row] = total as f32;
        }
    }
}
