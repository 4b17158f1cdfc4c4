//! How a matrix of uniform codes is laid out: groups, scales and biases.

use core::fmt;

use super::float::ScaleDtype;
use super::names::named;
use super::width::Width;

/// Whether a group has a bias beside its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `w = scale * (q - z)`, z fixed for each width.
    Symmetric,
    /// `w = scale * q + bias`.
    Affine,
}

named!(Scheme, "scheme", { Symmetric => "symmetric", Affine => "affine" });

/// Weights that share one scale: 16 to 1024 in steps of 16, or 0 for the whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupSize(u16);

impl GroupSize {
    /// One group for the whole row.
    pub const ROW: Self = Self(0);

    /// The smallest groups.
    pub const SMALLEST: Self = Self(16);

    /// A group size of format.md, or `None` for any other number.
    pub const fn new(size: u64) -> Option<Self> {
        if size.is_multiple_of(16) && size <= 1024 {
            Some(Self(size as u16))
        } else {
            None
        }
    }

    /// The number as stored: 0 for the whole row.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Length of all groups of a row of `cols` weights but the last, never 0.
    #[inline]
    pub const fn span(self, cols: usize) -> usize {
        if self.0 > 0 {
            self.0 as usize
        } else if cols > 0 {
            cols
        } else {
            1
        }
    }

    /// Groups in a row of `cols` weights; the last may be short.
    #[inline]
    pub const fn count(self, cols: usize) -> usize {
        cols.div_ceil(self.span(cols))
    }
}

impl fmt::Display for GroupSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a matrix of uniform codes is laid out: everything that decoding needs beside the planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Bits of the codes.
    pub width: Width,
    /// With or without biases.
    pub scheme: Scheme,
    /// Weights per scale.
    pub group_size: GroupSize,
    /// Storage of scales and biases.
    pub scale_dtype: ScaleDtype,
}

impl Layout {
    /// Bytes of a row's codes, scales and biases.
    #[inline]
    pub const fn plane_bytes(&self, cols: usize) -> [usize; 3] {
        [
            self.code_bytes(cols),
            self.scale_bytes(cols),
            self.bias_bytes(cols),
        ]
    }

    /// Bytes of the codes of one row.
    #[inline]
    pub const fn code_bytes(&self, cols: usize) -> usize {
        self.width.row_bytes(cols)
    }

    /// Bytes of the scales of one row.
    #[inline]
    pub const fn scale_bytes(&self, cols: usize) -> usize {
        self.group_size.count(cols) * self.scale_dtype.size()
    }

    /// Bytes of the biases of one row: 0 when symmetric.
    #[inline]
    pub const fn bias_bytes(&self, cols: usize) -> usize {
        match self.scheme {
            Scheme::Symmetric => 0,
            Scheme::Affine => self.scale_bytes(cols),
        }
    }

    /// Bytes of all planes of one row.
    #[inline]
    pub const fn row_bytes(&self, cols: usize) -> usize {
        self.code_bytes(cols) + self.scale_bytes(cols) + self.bias_bytes(cols)
    }

    /// Whether every code of a group with this scale and bias decodes to a finite f32.
    #[inline(always)]
    pub fn decodable(&self, scale: f32, bias: f32) -> bool {
        let top = f32::from(self.width.max_code());
        match self.scheme {
            // Code 0 lies as far from zero as any.
            Scheme::Symmetric => (scale * self.width.zero_point()).is_finite(),
            Scheme::Affine => {
                let product = scale * top;
                product.is_finite() && bias.is_finite() && (product + bias).is_finite()
            }
        }
    }

    /// The value of symmetric code 0 in scales, subtracted before scaling; 0 when affine.
    #[inline]
    pub const fn zero_point(&self) -> f32 {
        match self.scheme {
            Scheme::Symmetric => self.width.zero_point(),
            Scheme::Affine => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_sizes_of_the_format_and_no_others() {
        for allowed in [0, 16, 32, 48, 128, 288, 1024] {
            assert_eq!(
                GroupSize::new(allowed).map(GroupSize::get),
                Some(allowed as u16)
            );
        }
        for refused in [1, 8, 17, 100, 1040, 1 << 40] {
            assert_eq!(GroupSize::new(refused), None);
        }
        assert_eq!(GroupSize::new(128).unwrap().count(704), 6);
        assert_eq!(GroupSize::ROW.count(704), 1);
        assert_eq!(GroupSize::ROW.count(0), 0);
    }
}
