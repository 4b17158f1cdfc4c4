//! What is done to the input dimension of a matrix before it is quantized.

/// The largest block that columns are rotated by.
pub const MAX_ROTATION: u32 = 4096;

/// A Hadamard rotation of the input dimension, block by block: `R = diag(signs) H / sqrt(block)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rotation {
    /// Columns that are rotated together: a power of two from 2 to [`MAX_ROTATION`] that divides
    /// the columns.
    pub block: u32,
    /// What the signs follow from; 0 is all plus.
    pub seed: u64,
}

impl Rotation {
    /// The rotation of the largest block that rows of `cols` allow, if there is one.
    pub const fn largest(cols: usize, seed: u64) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(2) {
            return None;
        }
        let power = cols.trailing_zeros();
        let most = MAX_ROTATION.trailing_zeros();
        let block = 1 << if power < most { power } else { most };
        Some(Self { block, seed })
    }

    /// Whether rows of `cols` can be rotated by it.
    pub const fn fits(self, cols: usize) -> bool {
        let block = self.block;
        block.is_power_of_two()
            && block >= 2
            && block <= MAX_ROTATION
            && cols > 0
            && cols.is_multiple_of(block as usize)
    }

    /// `1 / sqrt(block)` as f32.
    pub const fn norm(self) -> f32 {
        let power = self.block.trailing_zeros();
        let whole = 1.0 / (1u64 << (power / 2)) as f32;
        match power % 2 {
            0 => whole,
            _ => whole * core::f32::consts::FRAC_1_SQRT_2,
        }
    }

    /// The signs of columns `64 * word` to `64 * word + 63`, from the lowest bit on; a set one is
    /// minus. They are the outputs of SplitMix64.
    pub const fn signs(self, word: usize) -> u64 {
        if self.seed == 0 {
            return 0;
        }
        let step = (word as u64).wrapping_add(1);
        let mut z = (self.seed).wrapping_add(step.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// What was done to the input dimension of a matrix before it was quantized; decoding undoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transform<'a> {
    /// What each column was multiplied by, before it was rotated: little-endian f16, finite and
    /// above 0.
    pub input_scale: Option<&'a [u8]>,
    /// How columns were rotated.
    pub rotation: Option<Rotation>,
}

impl Transform<'_> {
    /// Whether there is nothing to undo.
    pub const fn is_identity(&self) -> bool {
        self.input_scale.is_none() && self.rotation.is_none()
    }

    /// Whether it is one of rows of `cols`.
    pub fn fits(&self, cols: usize) -> bool {
        self.rotation.is_none_or(|rotation| rotation.fits(cols))
            && self
                .input_scale
                .is_none_or(|scale| is_input_scale(scale, cols))
    }
}

/// Whether these are scales of `cols` columns.
fn is_input_scale(scale: &[u8], cols: usize) -> bool {
    let values = scale.as_chunks::<2>().0.iter();
    // Bits of numbers above 0 that are not infinite.
    let valid = |bytes: &[u8; 2]| (1..0x7C00).contains(&u16::from_le_bytes(*bytes));
    scale.len() / 2 == cols && scale.len().is_multiple_of(2) && values.into_iter().all(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_divide_the_columns() {
        let block = |cols| Rotation::largest(cols, 1).map(|rotation| rotation.block);
        for (cols, expected) in [
            (0, None),
            (1, None),
            (705, None),
            (2, Some(2)),
            (24, Some(8)),
            (704, Some(64)),
            (4096, Some(4096)),
            (3 * 8192, Some(4096)),
        ] {
            assert_eq!(block(cols), expected, "{cols}");
            let fits = |rotation: Rotation| rotation.fits(cols);
            assert!(Rotation::largest(cols, 1).is_none_or(fits), "{cols}");
        }
        for (block, cols) in [
            (0, 8),
            (1, 8),
            (3, 9),
            (16, 8),
            (8192, 8192),
            (2, 0),
            (8, 12),
        ] {
            assert!(!Rotation { block, seed: 0 }.fits(cols), "{block} of {cols}");
        }
        for power in 1..=12 {
            let norm = Rotation::norm(Rotation {
                block: 1 << power,
                seed: 0,
            });
            assert_eq!(norm, (1.0 / f64::from(1 << power).sqrt()) as f32);
        }
    }

    /// The outputs of SplitMix64 for this seed, as its author published them.
    #[test]
    fn signs_are_those_of_splitmix64() {
        let rotation = Rotation {
            block: 64,
            seed: 1_234_567,
        };
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!([0, 1, 2, 3, 4].map(|word| rotation.signs(word)), published);
        assert_eq!(
            Rotation {
                seed: 0,
                ..rotation
            }
            .signs(3),
            0
        );
    }
}
