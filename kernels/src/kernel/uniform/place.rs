//! Where the groups of a row lie, and their scales and biases: the ground floor of the uniform
//! kernels.

use super::code::Code;
use super::grid::Grid;
use crate::format::{Layout, ScaleDtype, Scheme};
use crate::kernel::element::{self, Element, F16, F32, Pieces};
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::row::{Planes, RowFault};

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
        ScaleDtype::F16 => element::load(F16, plane, first, count),
        ScaleDtype::F32 => element::load(F32, plane, first, count),
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
        ScaleDtype::F16 => element::store(F16, lanes, plane, first, count),
        ScaleDtype::F32 => element::store(F32, lanes, plane, first, count),
    }
    load_scales::<L>(dtype, plane, first, count)
}

/// Checks that all codes of the first `count` groups decode to finite weights.
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

/// The grids of `count` groups from the one numbered `first`.
#[inline(always)]
pub(super) fn grids<L: Lanes>(
    planes: Planes<'_>,
    layout: Layout,
    first: usize,
    count: usize,
) -> [Grid; LANES] {
    let scales = load_scales::<L>(layout.scale_dtype, planes.scales, first, count);
    let biases = match layout.scheme {
        Scheme::Symmetric => [0.0; LANES],
        Scheme::Affine => load_scales::<L>(layout.scale_dtype, planes.biases, first, count),
    };
    core::array::from_fn(|i| Grid {
        scale: scales[i],
        bias: biases[i],
    })
}
