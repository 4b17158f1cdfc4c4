//! The errors of a group from its moments: once codes are chosen, what any scale and bias cost
//! follows from a few sums, so that a row need not be read again after its gain is known.

use super::code::Code;
use super::grid::Grid;
use crate::format::{Encoding, Scheme, Width};
use crate::kernel::sums::{ErrorSums, Moments};

/// Where the error is a smaller part of the signal than this, the moments, which are sums in f32,
/// cancel too far, and a group is measured weight by weight.
const SMALLEST_ERROR: f64 = 1.0 / 256.0;

/// Smaller scales may decode to subnormal weights, which are rounded once more.
const SMALLEST_SCALE: f32 = 1.0e-30;

/// Whether groups of this encoding are measured by moments, which only uniform codes have: 8 bits
/// err too little.
pub fn moments_tell(encoding: Encoding) -> bool {
    encoding.layout().is_some_and(|layout| tell(layout.width))
}

/// Whether groups of codes of this width are measured by moments.
pub(super) const fn tell(width: Width) -> bool {
    match width {
        Width::Two | Width::Four => true,
        Width::Eight => false,
    }
}

impl Moments {
    /// `sum w y`.
    #[inline(always)]
    pub(super) fn product(&self, code: impl Code, grid: Grid) -> f64 {
        let (scale, middle) = centred(code, grid);
        scale * self.product + middle * self.sum
    }

    /// The errors under this grid, or `None` where moments do not tell: `|w - y|^2` is
    /// `|w|^2 - 2 <w, y> + |y|^2`, with `y = scale * u + middle`.
    #[inline(always)]
    pub(super) fn errors(&self, code: impl Code, grid: Grid) -> Option<ErrorSums> {
        let (scale, middle) = centred(code, grid);
        let decoded = scale * scale * self.code_square
            + 2.0 * scale * middle * self.code_sum
            + middle * middle * self.len;
        let error = self.signal - 2.0 * self.product(code, grid) + decoded;
        let told = error > SMALLEST_ERROR * self.signal && grid.scale.abs() > SMALLEST_SCALE;
        told.then_some(ErrorSums {
            signal: self.signal,
            decoded,
            error,
        })
    }
}

/// Scale, and the weight in the middle of the codes.
#[inline(always)]
fn centred(code: impl Code, grid: Grid) -> (f64, f64) {
    let scale = f64::from(grid.scale);
    match code.scheme() {
        Scheme::Symmetric => (scale, 0.0),
        Scheme::Affine => {
            let half = f64::from(code.width().max_code()) / 2.0;
            (scale, f64::from(grid.bias) + scale * half)
        }
    }
}
