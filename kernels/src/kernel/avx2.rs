//! The lanes in two 256-bit registers.
//!
//! Every intrinsic here is of AVX2, FMA or F16C: tables over these types exist only for machines
//! that were found to have them, and compile them for these features, which is what makes the
//! calls sound. Loads and stores are unaligned, of arrays of their size.

use core::arch::x86_64::*;

use super::lanes::{BLOCK, Bounds, ByteDot, LANES, Lanes};
use crate::format::Width;

/// Sixteen floats: lanes 0 to 7, and 8 to 15.
#[derive(Clone, Copy)]
pub struct Avx2(pub(super) __m256, pub(super) __m256);

/// Calls an intrinsic of the features of this file.
macro_rules! op {
    ($($call:tt)*) => {
        // SAFETY: as the module says.
        unsafe { $($call)* }
    };
}

/// Lanes from a function of each half of some arguments.
macro_rules! halves {
    ($function:path, $($arg:expr),+) => {
        Self(op!($function($($arg.0),+)), op!($function($($arg.1),+)))
    };
}

impl Avx2 {
    /// The codes of two vectors as bytes in order; negative ones saturate at 0.
    #[inline(always)]
    fn narrow(a: Self, b: Self) -> __m256i {
        op!({
            let low = _mm256_packus_epi32(_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(a.1));
            let high = _mm256_packus_epi32(_mm256_cvtps_epi32(b.0), _mm256_cvtps_epi32(b.1));
            // Four bytes from each quarter vector, in each half of the register.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order)
        })
    }

    /// Eight lanes of 16 bits each, shifted to the upper half of 32.
    #[inline(always)]
    fn widen(words: __m128i) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(
            _mm256_cvtepu16_epi32(words)
        )))
    }

    /// bf16, rounded half to even, in the upper half of 32 bits.
    #[inline(always)]
    fn to_bf16(x: __m256) -> __m256i {
        op!({
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
            // A NaN is not rounded, which might make it infinite, but made a quiet one.
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
            let rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, nan);
            _mm256_srli_epi32::<16>(rounded)
        })
    }

    /// The lanes of a table that eight 4-bit codes name.
    #[inline(always)]
    fn entries(table: Self, packed: [u8; 4]) -> __m256 {
        op!({
            let word = _mm256_set1_epi32(i32::from_le_bytes(packed));
            let index = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let low = _mm256_permutevar8x32_ps(table.0, index);
            let high = _mm256_permutevar8x32_ps(table.1, index);
            // The fourth bit decides, as the sign.
            let choice = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            _mm256_blendv_ps(low, high, choice)
        })
    }
}

/// What the bounds of words take. With some bits flipped, the bound that is wanted becomes the smallest.
impl Avx2 {
    #[inline(always)]
    pub(super) fn least_word(words: __m256i, flip: u16) -> u16 {
        op!({
            let words = _mm256_xor_si256(words, _mm256_set1_epi16(flip as i16));
            let high = _mm256_extracti128_si256::<1>(words);
            let least = _mm_minpos_epu16(_mm_min_epu16(_mm256_castsi256_si128(words), high));
            _mm_cvtsi128_si32(least) as u16 ^ flip
        })
    }

    #[inline(always)]
    fn least_double(words: __m256i, flip: u32) -> u32 {
        op!({
            let words = _mm256_xor_si256(words, _mm256_set1_epi32(flip as i32));
            let high = _mm256_extracti128_si256::<1>(words);
            let four = _mm_min_epu32(_mm256_castsi256_si128(words), high);
            let two = _mm_min_epu32(four, _mm_unpackhi_epi64(four, four));
            let one = _mm_min_epu32(two, _mm_shuffle_epi32::<1>(two));
            _mm_cvtsi128_si32(one) as u32 ^ flip
        })
    }
}

impl Lanes for Avx2 {
    const SUMS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let x = op!(_mm256_set1_ps(x));
        Self(x, x)
    }

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        op!({
            _mm256_storeu_ps(lanes.as_mut_ptr(), self.0);
            _mm256_storeu_ps(lanes[8..].as_mut_ptr(), self.1);
        });
        lanes
    }

    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        Self(
            op!(_mm256_loadu_ps(lanes.as_ptr())),
            op!(_mm256_loadu_ps(lanes[8..].as_ptr())),
        )
    }

    #[inline(always)]
    fn load_f32(bytes: &[u8; 64]) -> Self {
        Self(
            op!(_mm256_loadu_ps(bytes.as_ptr().cast())),
            op!(_mm256_loadu_ps(bytes[32..].as_ptr().cast())),
        )
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8; 32]) -> Self {
        Self(
            op!(_mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast()))),
            op!(_mm256_cvtph_ps(_mm_loadu_si128(
                bytes[16..].as_ptr().cast()
            ))),
        )
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8; 32]) -> Self {
        Self(
            Self::widen(op!(_mm_loadu_si128(bytes.as_ptr().cast()))),
            Self::widen(op!(_mm_loadu_si128(bytes[16..].as_ptr().cast()))),
        )
    }

    #[inline(always)]
    fn store_f32(self, bytes: &mut [u8; 64]) {
        op!({
            _mm256_storeu_ps(bytes.as_mut_ptr().cast(), self.0);
            _mm256_storeu_ps(bytes[32..].as_mut_ptr().cast(), self.1);
        });
    }

    #[inline(always)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        op!({
            _mm_storeu_si128(
                bytes.as_mut_ptr().cast(),
                _mm256_cvtps_ph::<NEAREST>(self.0),
            );
            _mm_storeu_si128(
                bytes[16..].as_mut_ptr().cast(),
                _mm256_cvtps_ph::<NEAREST>(self.1),
            );
        });
    }

    #[inline(always)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        op!({
            let words = _mm256_packus_epi32(Self::to_bf16(self.0), Self::to_bf16(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), words);
        });
    }

    #[inline(always)]
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16> {
        op!({
            let mut largest = _mm256_setzero_si256();
            let mut signed = _mm256_set1_epi16(i16::MIN);
            for words in words {
                let words = _mm256_loadu_si256(words.as_ptr().cast());
                largest = _mm256_max_epu16(largest, words);
                signed = _mm256_max_epi16(signed, words);
            }
            Bounds {
                largest: Self::least_word(largest, u16::MAX),
                signed: Self::least_word(signed, i16::MAX as u16),
            }
        })
    }

    #[inline(always)]
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32> {
        op!({
            let mut largest = _mm256_setzero_si256();
            let mut signed = _mm256_set1_epi32(i32::MIN);
            for words in words.as_flattened().as_chunks::<32>().0 {
                let words = _mm256_loadu_si256(words.as_ptr().cast());
                largest = _mm256_max_epu32(largest, words);
                signed = _mm256_max_epi32(signed, words);
            }
            Bounds {
                largest: Self::least_double(largest, u32::MAX),
                signed: Self::least_double(signed, i32::MAX as u32),
            }
        })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        halves!(_mm256_add_ps, self, other)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        halves!(_mm256_sub_ps, self, other)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        halves!(_mm256_mul_ps, self, other)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        halves!(_mm256_div_ps, self, other)
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self) -> Self {
        match DISTANCE {
            1 => halves!(_mm256_permute_ps::<0b10_11_00_01>, self),
            2 => halves!(_mm256_permute_ps::<0b01_00_11_10>, self),
            4 => halves!(_mm256_permute2f128_ps::<1>, self, self),
            _ => Self(self.1, self.0),
        }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        halves!(_mm256_min_ps, self, other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        halves!(_mm256_max_ps, self, other)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        let magnitude = op!(_mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX)));
        Self(
            op!(_mm256_and_ps(self.0, magnitude)),
            op!(_mm256_and_ps(self.1, magnitude)),
        )
    }

    #[inline(always)]
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self {
        op!({
            let low = _mm256_cmp_ps::<_CMP_GT_OQ>(x.0, threshold.0);
            let high = _mm256_cmp_ps::<_CMP_GT_OQ>(x.1, threshold.1);
            Self(
                _mm256_add_ps(self.0, _mm256_and_ps(low, addend.0)),
                _mm256_add_ps(self.1, _mm256_and_ps(high, addend.1)),
            )
        })
    }

    #[inline(always)]
    fn mul_add(self, other: Self, addend: Self) -> Self {
        halves!(_mm256_fmadd_ps, self, other, addend)
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        halves!(_mm256_round_ps::<NEAREST>, self)
    }

    #[inline(always)]
    fn pack2([a, b, c, d]: [Self; BLOCK]) -> [u8; 16] {
        let mut packed = [0; 16];
        op!({
            // Pairs of codes to nibbles, and pairs of these to bytes.
            let (to_nibbles, to_bytes) =
                (_mm256_set1_epi16(0x0401), _mm256_set1_epi32(0x0010_0001));
            let low = _mm256_maddubs_epi16(Self::narrow(a, b), to_nibbles);
            let high = _mm256_maddubs_epi16(Self::narrow(c, d), to_nibbles);
            let words = _mm256_packus_epi32(
                _mm256_madd_epi16(low, to_bytes),
                _mm256_madd_epi16(high, to_bytes),
            );
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packus_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(packed.as_mut_ptr().cast(), bytes);
        });
        packed
    }

    #[inline(always)]
    fn pack4([a, b, c, d]: [Self; BLOCK]) -> [u8; 32] {
        let mut packed = [0; 32];
        op!({
            let pairs = _mm256_set1_epi16(0x1001);
            let low = _mm256_maddubs_epi16(Self::narrow(a, b), pairs);
            let high = _mm256_maddubs_epi16(Self::narrow(c, d), pairs);
            let bytes = _mm256_packus_epi16(low, high);
            let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes);
            _mm256_storeu_si256(packed.as_mut_ptr().cast(), bytes);
        });
        packed
    }

    #[inline(always)]
    fn pack8([a, b, c, d]: [Self; BLOCK]) -> [u8; 64] {
        let mut packed = [0; 64];
        op!({
            _mm256_storeu_si256(packed.as_mut_ptr().cast(), Self::narrow(a, b));
            _mm256_storeu_si256(packed[32..].as_mut_ptr().cast(), Self::narrow(c, d));
        });
        packed
    }

    #[inline(always)]
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self {
        op!({
            let word = _mm256_set1_epi32(i32::from_le_bytes(*packed));
            let low = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
            let high = _mm256_srlv_epi32(word, _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30));
            // Three bits count; the one above a code does not matter to the table.
            Self(
                _mm256_permutevar8x32_ps(table.0, low),
                _mm256_permutevar8x32_ps(table.0, high),
            )
        })
    }

    #[inline(always)]
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = *packed;
        Self(
            Self::entries(table, [a, b, c, d]),
            Self::entries(table, [e, f, g, h]),
        )
    }

    #[inline(always)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        op!({
            let bytes = _mm_loadu_si128(packed.as_ptr().cast());
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))),
            )
        })
    }

    #[inline(always)]
    fn fold_add(self) -> f32 {
        op!({
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
}

/// The first 32 of them.
#[inline(always)]
pub(super) fn load_bytes<T>(bytes: &[T]) -> __m256i {
    const { assert!(size_of::<T>() == 1) };
    let bytes: &[T; 32] = bytes.first_chunk().expect("32 bytes");
    op!(_mm256_loadu_si256(bytes.as_ptr().cast()))
}

impl ByteDot for Avx2 {
    type Lanes = Self;
    type Long = Self;
    type Codes = __m256i;
    type Sums = __m256i;
    const WIDTH: usize = 32;

    #[inline(always)]
    fn zero() -> __m256i {
        op!(_mm256_setzero_si256())
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> __m256i {
        op!({
            let bytes = load_bytes(packed);
            let shift = _mm_cvtsi32_si128((phase * width.bits()) as i32);
            // Bits that come from the next byte are masked.
            let mask = _mm256_set1_epi8(width.max_code() as i8);
            _mm256_and_si256(_mm256_srl_epi16(bytes, shift), mask)
        })
    }

    #[inline(always)]
    fn add(width: Width, sums: __m256i, codes: __m256i, x: &[i8]) -> __m256i {
        op!({
            let products = match width {
                // Two products of a code below 16 fit 16 bits.
                Width::Two | Width::Four => {
                    let pairs = _mm256_maddubs_epi16(codes, load_bytes(x));
                    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
                }
                Width::Eight => {
                    let x = load_bytes(x);
                    let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
                    _mm256_add_epi32(
                        _mm256_madd_epi16(
                            _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes)),
                            _mm256_cvtepi8_epi16(low),
                        ),
                        _mm256_madd_epi16(
                            _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(codes)),
                            _mm256_cvtepi8_epi16(high),
                        ),
                    )
                }
            };
            _mm256_add_epi32(sums, products)
        })
    }

    #[inline(always)]
    fn lanes(sums: __m256i) -> Self {
        Self(op!(_mm256_cvtepi32_ps(sums)), op!(_mm256_setzero_ps()))
    }
}
