//! The lanes in one 512-bit register.
//!
//! Every intrinsic here is of AVX-512 F, BW or VL (VNNI where said): tables over these types exist
//! only for machines that were found to have them, and compile them for these features, which is
//! what makes the calls sound. Loads and stores are unaligned, of arrays of their size.

use core::arch::x86_64::*;

use super::avx2::{Avx2, load_bytes};
use super::lanes::{BLOCK, Bounds, ByteDot, LANES, Lanes};
use crate::format::Width;

/// Sixteen floats. `VBMI` says that there are its instructions, too.
#[derive(Clone, Copy)]
pub struct Avx512<const VBMI: bool>(__m512);

/// Calls an intrinsic of the features of this file.
macro_rules! op {
    ($($call:tt)*) => {
        // SAFETY: as the module says.
        unsafe { $($call)* }
    };
}

impl<const VBMI: bool> Avx512<VBMI> {
    #[inline(always)]
    fn halves(self) -> Avx2 {
        op!({
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0));
            Avx2(_mm512_castps512_ps256(self.0), _mm256_castpd_ps(high))
        })
    }
}

/// The halves of a register.
#[inline(always)]
fn halves_of(words: __m512i) -> (__m256i, __m256i) {
    op!((
        _mm512_castsi512_si256(words),
        _mm512_extracti64x4_epi64::<1>(words)
    ))
}

/// Codes as bytes, negative ones saturating at 0: in each quarter of the register, four from each vector in turn.
#[inline(always)]
fn narrow<const VBMI: bool>([a, b, c, d]: [Avx512<VBMI>; BLOCK]) -> __m512i {
    op!({
        let low = _mm512_packus_epi32(_mm512_cvtps_epi32(a.0), _mm512_cvtps_epi32(b.0));
        let high = _mm512_packus_epi32(_mm512_cvtps_epi32(c.0), _mm512_cvtps_epi32(d.0));
        _mm512_packus_epi16(low, high)
    })
}

/// From that order to the vectors' own.
#[inline(always)]
fn order32() -> __m512i {
    op!(_mm512_setr_epi32(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15
    ))
}

impl<const VBMI: bool> Lanes for Avx512<VBMI> {
    const SUMS: usize = 16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(op!(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        op!(_mm512_storeu_ps(lanes.as_mut_ptr(), self.0));
        lanes
    }

    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        Self(op!(_mm512_loadu_ps(lanes.as_ptr())))
    }

    #[inline(always)]
    fn load_f32(bytes: &[u8; 64]) -> Self {
        Self(op!(_mm512_loadu_ps(bytes.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8; 32]) -> Self {
        Self(op!(_mm512_cvtph_ps(_mm256_loadu_si256(
            bytes.as_ptr().cast()
        ))))
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8; 32]) -> Self {
        op!({
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        })
    }

    #[inline(always)]
    fn store_f32(self, bytes: &mut [u8; 64]) {
        op!(_mm512_storeu_ps(bytes.as_mut_ptr().cast(), self.0));
    }

    #[inline(always)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        op!({
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), halves);
        });
    }

    #[inline(always)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        op!({
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
            // A NaN is not rounded, which might make it infinite, but made a quiet one.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
            let rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), nan, quiet);
            let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), words);
        });
    }

    #[inline(always)]
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16> {
        op!({
            let (pairs, rest) = words.as_chunks::<2>();
            let mut largest = _mm512_setzero_si512();
            let mut signed = _mm512_set1_epi16(i16::MIN);
            for pair in pairs {
                let words = _mm512_loadu_si512(pair.as_ptr().cast());
                largest = _mm512_max_epu16(largest, words);
                signed = _mm512_max_epi16(signed, words);
            }
            for words in rest {
                let words = _mm512_broadcast_i64x4(_mm256_loadu_si256(words.as_ptr().cast()));
                largest = _mm512_max_epu16(largest, words);
                signed = _mm512_max_epi16(signed, words);
            }
            let (low, high) = halves_of(largest);
            let largest = _mm256_max_epu16(low, high);
            let (low, high) = halves_of(signed);
            Bounds {
                largest: Avx2::least_word(largest, u16::MAX),
                signed: Avx2::least_word(_mm256_max_epi16(low, high), i16::MAX as u16),
            }
        })
    }

    #[inline(always)]
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32> {
        op!({
            let mut largest = _mm512_setzero_si512();
            let mut signed = _mm512_set1_epi32(i32::MIN);
            for words in words {
                let words = _mm512_loadu_si512(words.as_ptr().cast());
                largest = _mm512_max_epu32(largest, words);
                signed = _mm512_max_epi32(signed, words);
            }
            Bounds {
                largest: _mm512_reduce_max_epu32(largest),
                signed: _mm512_reduce_max_epi32(signed) as u32,
            }
        })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(op!(_mm512_add_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(op!(_mm512_sub_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(op!(_mm512_mul_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(op!(_mm512_div_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self) -> Self {
        Self(op!(match DISTANCE {
            1 => _mm512_permute_ps::<0b10_11_00_01>(self.0),
            2 => _mm512_permute_ps::<0b01_00_11_10>(self.0),
            4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(self.0, self.0),
            _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(self.0, self.0),
        }))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Self(op!(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(op!(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(op!(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self {
        op!({
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x.0, threshold.0);
            Self(_mm512_mask_add_ps(self.0, above, self.0, addend.0))
        })
    }

    #[inline(always)]
    fn mul_add(self, other: Self, addend: Self) -> Self {
        Self(op!(_mm512_fmadd_ps(self.0, other.0, addend.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(op!(_mm512_roundscale_ps::<NEAREST>(self.0)))
    }

    #[inline(always)]
    fn pack2(codes: [Self; BLOCK]) -> [u8; 16] {
        let mut packed = [0; 16];
        op!({
            // Pairs of codes to nibbles, and pairs of these to bytes.
            let nibbles = _mm512_maddubs_epi16(narrow(codes), _mm512_set1_epi16(0x0401));
            let bytes = _mm512_madd_epi16(nibbles, _mm512_set1_epi32(0x0010_0001));
            // In each quarter one byte from each of four vectors: bring these together.
            let bytes = _mm512_packus_epi32(bytes, bytes);
            let bytes = _mm512_packus_epi16(bytes, bytes);
            let firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let bytes = _mm512_castsi512_si128(_mm512_permutexvar_epi32(firsts, bytes));
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm_storeu_si128(packed.as_mut_ptr().cast(), _mm_shuffle_epi8(bytes, order));
        });
        packed
    }

    #[inline(always)]
    fn pack4(codes: [Self; BLOCK]) -> [u8; 32] {
        let mut packed = [0; 32];
        op!({
            let bytes = _mm512_maddubs_epi16(narrow(codes), _mm512_set1_epi16(0x1001));
            let bytes = _mm512_packus_epi16(bytes, bytes);
            // Two bytes from each of four vectors in each quarter.
            let order = _mm512_set_epi16(
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 27, 19, 11, 3, 26, 18, 10, 2, 25,
                17, 9, 1, 24, 16, 8, 0,
            );
            let bytes = _mm512_castsi512_si256(_mm512_permutexvar_epi16(order, bytes));
            _mm256_storeu_si256(packed.as_mut_ptr().cast(), bytes);
        });
        packed
    }

    #[inline(always)]
    fn pack8(codes: [Self; BLOCK]) -> [u8; 64] {
        let mut packed = [0; 64];
        op!({
            let bytes = _mm512_permutexvar_epi32(order32(), narrow(codes));
            _mm512_storeu_si512(packed.as_mut_ptr().cast(), bytes);
        });
        packed
    }

    #[inline(always)]
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self {
        op!({
            let shifts =
                _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let word = _mm512_set1_epi32(i32::from_le_bytes(*packed));
            // Four bits count; those above a code do not matter to the table.
            Self(_mm512_permutexvar_ps(
                _mm512_srlv_epi32(word, shifts),
                table.0,
            ))
        })
    }

    #[inline(always)]
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self {
        op!({
            // Four bits of each lane count.
            let codes = if VBMI {
                let all = _mm512_set1_epi64(i64::from_le_bytes(*packed));
                // The bit at which each lane's lowest byte begins.
                let starts = _mm512_setr_epi64(
                    4 << 32,
                    8 | 12 << 32,
                    16 | 20 << 32,
                    24 | 28 << 32,
                    32 | 36 << 32,
                    40 | 44 << 32,
                    48 | 52 << 32,
                    56 | 60 << 32,
                );
                _mm512_multishift_epi64_epi8(starts, all)
            } else {
                let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(packed.as_ptr().cast()));
                _mm512_or_si512(bytes, _mm512_slli_epi64::<28>(bytes))
            };
            Self(_mm512_permutexvar_ps(codes, table.0))
        })
    }

    #[inline(always)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        op!({
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(packed.as_ptr().cast()));
            Self(_mm512_cvtepi32_ps(codes))
        })
    }

    #[inline(always)]
    fn fold_add(self) -> f32 {
        self.halves().fold_add()
    }
}

/// Byte products by VNNI in half the register, for groups too short to fill it.
pub struct VnniBytes;

/// Byte products by VNNI in the whole register.
pub struct VnniLong;

impl ByteDot for VnniBytes {
    type Lanes = Avx512<false>;
    type Long = VnniLong;
    type Codes = __m256i;
    type Sums = __m256i;
    const WIDTH: usize = 32;

    #[inline(always)]
    fn zero() -> __m256i {
        <Avx2 as ByteDot>::zero()
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> __m256i {
        <Avx2 as ByteDot>::unpack(width, phase, packed)
    }

    #[inline(always)]
    fn add(_: Width, sums: __m256i, codes: __m256i, x: &[i8]) -> __m256i {
        op!(_mm256_dpbusd_epi32(sums, codes, load_bytes(x)))
    }

    #[inline(always)]
    fn lanes(sums: __m256i) -> Avx512<false> {
        Avx512(op!(_mm512_cvtepi32_ps(_mm512_zextsi256_si512(sums))))
    }
}

/// The first 64 of them.
#[inline(always)]
fn load_long<T>(bytes: &[T]) -> __m512i {
    const { assert!(size_of::<T>() == 1) };
    let bytes: &[T; 64] = bytes.first_chunk().expect("64 bytes");
    op!(_mm512_loadu_si512(bytes.as_ptr().cast()))
}

impl ByteDot for VnniLong {
    type Lanes = Avx512<false>;
    type Long = Self;
    type Codes = __m512i;
    type Sums = __m512i;
    const WIDTH: usize = 64;

    #[inline(always)]
    fn zero() -> __m512i {
        op!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> __m512i {
        op!({
            let shift = _mm_cvtsi32_si128((phase * width.bits()) as i32);
            // Bits that come from the next byte are masked.
            let mask = _mm512_set1_epi8(width.max_code() as i8);
            _mm512_and_si512(_mm512_srl_epi16(load_long(packed), shift), mask)
        })
    }

    #[inline(always)]
    fn add(_: Width, sums: __m512i, codes: __m512i, x: &[i8]) -> __m512i {
        op!(_mm512_dpbusd_epi32(sums, codes, load_long(x)))
    }

    #[inline(always)]
    fn lanes(sums: __m512i) -> Avx512<false> {
        Avx512(op!(_mm512_cvtepi32_ps(sums)))
    }
}
