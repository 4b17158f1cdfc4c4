//! The map between weights and uniform codes: a scale, a bias, and what follows from them.

use super::code::{Code, CodeMap};
use crate::format::{Scheme, Width};
use crate::kernel::element::Element;
use crate::kernel::lanes::{LANES, Lanes};

/// `sum + x * steps`, for whole steps or half ones counted double: integers below 2^9.
#[inline(always)]
pub(super) fn add_product<L: Lanes>(element: impl Element, sum: L, x: L, steps: L) -> L {
    if element.is_short() {
        x.mul_add(steps, sum)
    } else {
        sum.add(x.mul(steps))
    }
}

/// A scale and bias, and with them the map from weights to codes.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) bias: f32,
}

impl Grid {
    /// The reciprocal of the scale; 0 for a scale of 0, which gives the code nearest zero.
    #[inline(always)]
    pub(super) fn inverse(self) -> f32 {
        if self.scale == 0.0 {
            0.0
        } else {
            1.0 / self.scale
        }
    }
}

/// Turns weights into codes: `clamp((x - bias) / scale + zero_point)`, rounded half to even, by
/// multiplication with the reciprocal.
#[derive(Clone, Copy)]
pub(super) struct Encoder<L, C> {
    bias: L,
    inverse: L,
    zero_point: L,
    max_code: L,
    code: C,
}

impl<L: Lanes, C: Code> Encoder<L, C> {
    /// For a bias and the reciprocal of a scale.
    #[inline(always)]
    pub(super) fn new(code: C, inverse: f32, bias: f32) -> Self {
        Self::of_lanes(code, L::splat(inverse), L::splat(bias))
    }

    /// For a bias and a reciprocal in every lane.
    #[inline(always)]
    pub(super) fn of_lanes(code: C, inverse: L, bias: L) -> Self {
        Self {
            bias,
            inverse,
            zero_point: L::splat(code.width().zero_point()),
            max_code: L::splat(f32::from(code.width().max_code())),
            code,
        }
    }

    /// The codes before rounding, none above the largest; those below 0 count as 0.
    #[inline(always)]
    pub(super) fn exact(&self, x: L) -> L {
        let exact = match self.code.scheme() {
            Scheme::Symmetric => x.mul(self.inverse).add(self.zero_point),
            Scheme::Affine => x.sub(self.bias).mul(self.inverse),
        };
        exact.min(self.max_code)
    }

    /// The codes.
    #[inline(always)]
    pub(super) fn codes(&self, exact: L) -> L {
        exact.max(L::splat(0.0)).round()
    }
}

/// Twice the distance of codes from the middle of their scheme, `2 * (q - z)` or
/// `2 * q - max_code`: integers below 2^9, so that products with short floats, and sums of their
/// squares, are exact.
#[derive(Clone, Copy)]
pub(super) struct Steps<L> {
    middle: L,
    table: L,
}

impl<L: Lanes> Steps<L> {
    #[inline(always)]
    pub(super) fn new(code: impl Code) -> Self {
        let middle = match code.scheme() {
            Scheme::Symmetric => 2.0 * code.width().zero_point(),
            Scheme::Affine => f32::from(code.width().max_code()),
        };
        let mut steps = Self {
            middle: L::splat(-middle),
            table: L::splat(0.0),
        };
        steps.table = steps.of(L::from_array(table_codes(code.width())));
        steps
    }
}

impl<L: Lanes> CodeMap<L> for Steps<L> {
    #[inline(always)]
    fn of(&self, codes: L) -> L {
        codes.mul_add(L::splat(2.0), self.middle)
    }

    #[inline(always)]
    fn table(&self) -> L {
        self.table
    }
}

/// The codes that lanes of a table stand for.
#[inline(always)]
pub(super) const fn table_codes(width: Width) -> [f32; LANES] {
    const FOUR: [f32; LANES] = [
        0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0,
    ];
    const SIXTEEN: [f32; LANES] = [
        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    ];
    match width {
        Width::Two => FOUR,
        Width::Four | Width::Eight => SIXTEEN,
    }
}

/// Turns codes into weights: `scale * (q - z)`, or `scale * q + bias`.
#[derive(Clone, Copy)]
pub(super) struct Decoder<L, C> {
    scale: L,
    bias: L,
    zero_point: L,
    table: L,
    code: C,
}

impl<L: Lanes, C: Code> Decoder<L, C> {
    #[inline(always)]
    pub(super) fn new(code: C, grid: Grid) -> Self {
        let mut decoder = Self {
            scale: L::splat(grid.scale),
            bias: L::splat(grid.bias),
            zero_point: L::splat(code.width().zero_point()),
            table: L::splat(0.0),
            code,
        };
        decoder.table = decoder.of(L::from_array(table_codes(code.width())));
        decoder
    }
}

impl<L: Lanes, C: Code> CodeMap<L> for Decoder<L, C> {
    #[inline(always)]
    fn of(&self, codes: L) -> L {
        match self.code.scheme() {
            Scheme::Symmetric => codes.sub(self.zero_point).mul(self.scale),
            Scheme::Affine => codes.mul(self.scale).add(self.bias),
        }
    }

    #[inline(always)]
    fn table(&self) -> L {
        self.table
    }
}
