//! Decoding a row, and multiplying its scales.

use super::code::{Code, layout_of};
use super::grid::Decoder;
use super::place::{Place, blocks, check_decodable, grids, load_scales, store_scales};
use crate::format::{Encoding, Scheme};
use crate::kernel::element::{Element, each_vector, store};
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::row::{DecodeRow, Planes, RescaleRow, RowFault};

#[inline(always)]
pub(crate) fn decode_row<L: Lanes, E: Element, C: Code>(row: DecodeRow<'_>, element: E, code: C) {
    let DecodeRow { encoding, cols, .. } = row;
    let layout = layout_of(encoding);
    let span = layout.group_size.span(cols);
    for (start, count) in blocks(layout.group_size.count(cols)) {
        let grids = grids::<L>(row.planes, layout, start, count);
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

#[inline(always)]
pub(crate) fn rescale<L: Lanes>(row: RescaleRow<'_>) -> Result<(), RowFault> {
    let RescaleRow { encoding, gain, .. } = row;
    let layout = layout_of(encoding);
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

/// Whether every code that a row may hold decodes to a finite f32.
pub(crate) fn decodable(encoding: Encoding, _cols: usize, row: Planes<'_>) -> bool {
    let layout = layout_of(encoding);
    let dtype = layout.scale_dtype;
    let bias = |group| match layout.scheme {
        Scheme::Symmetric => 0.0,
        Scheme::Affine => dtype.get(row.biases, group),
    };
    (0..row.scales.len() / dtype.size())
        .all(|group| layout.decodable(dtype.get(row.scales, group), bias(group)))
}
