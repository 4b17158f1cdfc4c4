//! Decoding and rescaling one row, and what all rows have in common. Kernels are written once
//! over [`Lanes`].

use super::element::{
    Code, Element, F16, F32, Pieces, each_vector, store, with_code, with_element,
};
use super::group::{Decoder, Grid};
use super::lanes::{LANES, Lanes};
use super::{CompareRow, DecodeRow, ErrorSums, QuantizeRow, RescaleRow, RowFault, encode, errors};
use crate::format::{Layout, ScaleDtype, Scheme};

#[inline(always)]
pub(super) fn quantize<L: Lanes>(row: QuantizeRow<'_>) -> Result<f32, RowFault> {
    with_element!(L, row.float, |e| with_code!(L, row.layout, |c| {
        encode::quantize_row::<L, _, _>(row, e, c)
    }))
}

#[inline(always)]
pub(super) fn compare<L: Lanes>(row: CompareRow<'_>) -> Option<ErrorSums> {
    with_element!(L, row.original.0, |e| with_element!(
        L,
        row.decoded.0,
        |d| errors::compare_rows::<L, _, _>(row, e, d)
    ))
}

/// Where one group lies in its row.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Place {
    /// Group `g` of a row.
    #[inline(always)]
    pub(super) fn new(span: usize, cols: usize, g: usize) -> Self {
        let at = g * span;
        let len = span.min(cols - at);
        Self { at, len }
    }

    #[inline(always)]
    pub(super) fn weights<'a>(&self, element: impl Element, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.at * element.size()..(self.at + self.len) * element.size()]
    }

    #[inline(always)]
    pub(super) fn codes(&self, code: impl Code) -> core::ops::Range<usize> {
        code.bytes(self.at)..code.bytes(self.at + self.len)
    }
}

/// The groups of a row in blocks of as many as there are lanes: index of the first, how many.
#[inline(always)]
pub(super) fn blocks(groups: usize) -> Pieces<LANES> {
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
        ScaleDtype::F16 => super::element::load(F16, plane, first, count),
        ScaleDtype::F32 => super::element::load(F32, plane, first, count),
    };
    values.to_array()
}

/// Writes scales (or biases) and returns them as rounded to storage.
#[inline(always)]
pub(super) fn store_scales<L: Lanes>(
    dtype: ScaleDtype,
    values: [f32; LANES],
    plane: &mut [u8],
    first: usize,
    count: usize,
) -> [f32; LANES] {
    let lanes = L::from_array(values);
    match dtype {
        ScaleDtype::F16 => store(F16, lanes, plane, first, count),
        ScaleDtype::F32 => store(F32, lanes, plane, first, count),
    }
    load_scales::<L>(dtype, plane, first, count)
}

#[inline(always)]
pub(super) fn check_decodable(
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

#[inline(always)]
pub(super) fn decode_row<L: Lanes, E: Element, C: Code>(row: DecodeRow<'_>, element: E, code: C) {
    let DecodeRow { layout, cols, .. } = row;
    let span = layout.group_size.span(cols);
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = row.planes.grids::<L>(layout, start, count);
        for (i, grid) in grids[..count].iter().enumerate() {
            let place = Place::new(span, cols, start + i);
            let decoder = Decoder::<L, C>::new(code, *grid);
            let packed = &row.planes.codes[place.codes(code)];
            let out = &mut row.weights[place.at * element.size()..][..place.len * element.size()];
            each_vector!(0, place.len, |at, n| {
                let weights = code.unpack(&decoder, &packed[code.bytes(at)..]);
                store(element, weights, out, at, n);
            });
        }
    }
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
