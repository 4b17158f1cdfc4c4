//! Uniform codes: how many bits they have, and how they are packed.

/// Bits of a uniform code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Width {
    /// 2 bits; symmetric levels are -1.5, -0.5, 0.5 and 1.5 scales.
    Two,
    /// 4 bits; symmetric levels are -8 … 7 scales.
    Four,
    /// 8 bits; symmetric levels are -128 … 127 scales.
    Eight,
}

impl Width {
    /// Every width, the narrowest first.
    pub const ALL: &'static [Self] = &[Self::Two, Self::Four, Self::Eight];

    /// Bits of one code.
    #[inline]
    pub const fn bits(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The width of codes of `bits` bits.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            2 => Some(Self::Two),
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// The largest code, `2^bits - 1`.
    #[inline]
    pub const fn max_code(self) -> u8 {
        ((1u16 << self.bits()) - 1) as u8
    }

    /// The code that decodes to zero in the symmetric scheme (half-integer for 2 bits).
    #[inline]
    pub const fn zero_point(self) -> f32 {
        match self {
            Self::Two => 1.5,
            Self::Four => 8.0,
            Self::Eight => 128.0,
        }
    }

    /// Bytes of one packed row of `cols` codes; rows start on a byte boundary.
    #[inline]
    pub const fn row_bytes(self, cols: usize) -> usize {
        let per_byte = 8 / self.bits();
        cols / per_byte + (!cols.is_multiple_of(per_byte)) as usize
    }
}

/// Packs codes LSB first: element i sits in byte `i*bits/8` at bit `(i*bits) % 8`. The plain
/// statement of the layout, against which the kernels are tested.
///
/// # Panics
/// If `packed` is not `width.row_bytes(codes.len())` long.
///
/// ```
/// use arrowquant_kernels::format::{Width, pack};
///
/// let mut packed = [0; 2];
/// pack(Width::Four, &[1, 2, 15], &mut packed);
/// assert_eq!(packed, [0x21, 0x0F]);
/// ```
pub fn pack(width: Width, codes: &[u8], packed: &mut [u8]) {
    assert_eq!(packed.len(), width.row_bytes(codes.len()));
    packed.fill(0);
    for (i, &code) in codes.iter().enumerate() {
        let bit = i * width.bits();
        packed[bit / 8] |= (code & width.max_code()) << (bit % 8);
    }
}

/// Unpacks what [`pack`] packed.
///
/// # Panics
/// If `packed` is shorter than `width.row_bytes(codes.len())`.
pub fn unpack(width: Width, packed: &[u8], codes: &mut [u8]) {
    for (i, code) in codes.iter_mut().enumerate() {
        let bit = i * width.bits();
        *code = (packed[bit / 8] >> (bit % 8)) & width.max_code();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_lsb_first() {
        let mut packed = [0; 2];
        pack(Width::Two, &[1, 2, 3, 0, 2], &mut packed);
        assert_eq!(packed, [0b00_11_10_01, 0b10]);
        pack(Width::Four, &[0xA, 0x5, 0xF], &mut packed);
        assert_eq!(packed, [0x5A, 0x0F]);
    }

    #[test]
    fn row_sizes_round_up_to_bytes() {
        assert_eq!(Width::Two.row_bytes(5), 2);
        assert_eq!(Width::Four.row_bytes(5), 3);
        assert_eq!(Width::Eight.row_bytes(5), 5);
        assert_eq!(Width::Two.row_bytes(0), 0);
    }

    proptest::proptest! {
        #[test]
        fn packing_round_trips(codes in proptest::collection::vec(0u8..=255, 0..300)) {
            for &width in Width::ALL {
                let codes: Vec<u8> = codes.iter().map(|c| c & width.max_code()).collect();
                let mut packed = vec![0xFF; width.row_bytes(codes.len())];
                pack(width, &codes, &mut packed);
                let mut back = vec![0; codes.len()];
                unpack(width, &packed, &mut back);
                assert_eq!(back, codes);
            }
        }
    }
}
