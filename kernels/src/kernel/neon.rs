//! The lanes in four 128-bit registers, of little-endian machines.
//!
//! Every intrinsic here is of NEON, and the one instruction beyond it of the dot product extension:
//! tables over these types exist only for machines that were found to have them, and compile them
//! for these features, which is what makes the calls sound. Loads and stores are unaligned, of
//! arrays of their size.

use core::arch::{aarch64::*, asm};

use super::lanes::{BLOCK, Bounds, ByteDot, LANES, Lanes};
use crate::format::Width;

/// Sixteen floats: lanes 0 to 3, 4 to 7, 8 to 11, and 12 to 15.
#[derive(Clone, Copy)]
pub struct Neon(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

/// Calls an intrinsic of the features of this file.
macro_rules! op {
    ($($call:tt)*) => {
        // SAFETY: as the module says.
        unsafe { $($call)* }
    };
}

/// Lanes from a function of each quarter of some arguments.
macro_rules! quarters {
    ($function:path, $($arg:expr),+) => {
        Self(
            op!($function($($arg.0),+)),
            op!($function($($arg.1),+)),
            op!($function($($arg.2),+)),
            op!($function($($arg.3),+)),
        )
    };
}

impl Neon {
    #[inline(always)]
    fn from_bytes(bytes: [uint8x16_t; 4]) -> Self {
        let [a, b, c, d] = bytes;
        op!({
            Self(
                vreinterpretq_f32_u8(a),
                vreinterpretq_f32_u8(b),
                vreinterpretq_f32_u8(c),
                vreinterpretq_f32_u8(d),
            )
        })
    }

    /// Numbers from 0 to 255, rounded half to even, as bytes.
    #[inline(always)]
    fn narrow(self) -> uint8x16_t {
        // Above 2^23 there are no fractions, and the lowest bits hold the integer.
        let Self(a, b, c, d) = self.add(Self::splat(8_388_608.0));
        op!({
            let low = vuzp1q_u16(vreinterpretq_u16_f32(a), vreinterpretq_u16_f32(b));
            let high = vuzp1q_u16(vreinterpretq_u16_f32(c), vreinterpretq_u16_f32(d));
            vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high))
        })
    }

    /// bf16, rounded half to even, in the upper half of 32 bits.
    #[inline(always)]
    fn to_bf16(x: float32x4_t) -> uint16x8_t {
        op!({
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let half = vaddq_u32(odd, vdupq_n_u32(0x7FFF));
            // A NaN is not rounded, which might make it infinite, but made a quiet one.
            let quiet = vorrq_u32(bits, vdupq_n_u32(1 << 22));
            let rounded = vbslq_u32(vceqq_f32(x, x), vaddq_u32(bits, half), quiet);
            vreinterpretq_u16_u32(rounded)
        })
    }

    #[inline(always)]
    fn add_above(
        sum: float32x4_t,
        x: float32x4_t,
        threshold: float32x4_t,
        addend: float32x4_t,
    ) -> float32x4_t {
        op!({
            let addend = vandq_u32(vcgtq_f32(x, threshold), vreinterpretq_u32_f32(addend));
            vaddq_f32(sum, vreinterpretq_f32_u32(addend))
        })
    }

    /// The lowest bytes of all lanes, then those above them, and so on.
    #[inline(always)]
    fn planes(self) -> [uint8x16_t; 4] {
        op!({
            let (a, b) = (vreinterpretq_u8_f32(self.0), vreinterpretq_u8_f32(self.1));
            let (c, d) = (vreinterpretq_u8_f32(self.2), vreinterpretq_u8_f32(self.3));
            let (low_even, low_odd) = (vuzp1q_u8(a, b), vuzp2q_u8(a, b));
            let (high_even, high_odd) = (vuzp1q_u8(c, d), vuzp2q_u8(c, d));
            [
                vuzp1q_u8(low_even, high_even),
                vuzp1q_u8(low_odd, high_odd),
                vuzp2q_u8(low_even, high_even),
                vuzp2q_u8(low_odd, high_odd),
            ]
        })
    }

    /// The lanes with these bytes.
    #[inline(always)]
    fn from_planes([a, b, c, d]: [uint8x16_t; 4]) -> Self {
        op!({
            let low0 = vreinterpretq_u16_u8(vzip1q_u8(a, b));
            let low1 = vreinterpretq_u16_u8(vzip2q_u8(a, b));
            let high0 = vreinterpretq_u16_u8(vzip1q_u8(c, d));
            let high1 = vreinterpretq_u16_u8(vzip2q_u8(c, d));
            Self(
                vreinterpretq_f32_u16(vzip1q_u16(low0, high0)),
                vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
                vreinterpretq_f32_u16(vzip1q_u16(low1, high1)),
                vreinterpretq_f32_u16(vzip2q_u16(low1, high1)),
            )
        })
    }
}

/// Pairs of codes of `8 - SHIFT` bits, a byte each, as bytes.
#[inline(always)]
fn join<const SHIFT: i32>(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    op!({
        let (a, b) = (vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b));
        let (a, b) = (vsraq_n_u16::<SHIFT>(a, a), vsraq_n_u16::<SHIFT>(b, b));
        vuzp1q_u8(vreinterpretq_u8_u16(a), vreinterpretq_u8_u16(b))
    })
}

/// Codes from 0 up.
#[inline(always)]
fn clamped(mut codes: [Neon; BLOCK]) -> [Neon; BLOCK] {
    for codes in &mut codes {
        *codes = codes.max(Neon::splat(0.0));
    }
    codes
}

impl Lanes for Neon {
    const SUMS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        let x = op!(vdupq_n_f32(x));
        Self(x, x, x, x)
    }

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        op!({
            vst1q_f32(lanes.as_mut_ptr(), self.0);
            vst1q_f32(lanes[4..].as_mut_ptr(), self.1);
            vst1q_f32(lanes[8..].as_mut_ptr(), self.2);
            vst1q_f32(lanes[12..].as_mut_ptr(), self.3);
        });
        lanes
    }

    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        op!({
            Self(
                vld1q_f32(lanes.as_ptr()),
                vld1q_f32(lanes[4..].as_ptr()),
                vld1q_f32(lanes[8..].as_ptr()),
                vld1q_f32(lanes[12..].as_ptr()),
            )
        })
    }

    #[inline(always)]
    fn load_f32(bytes: &[u8; 64]) -> Self {
        op!({
            Self(
                vld1q_f32(bytes.as_ptr().cast()),
                vld1q_f32(bytes[16..].as_ptr().cast()),
                vld1q_f32(bytes[32..].as_ptr().cast()),
                vld1q_f32(bytes[48..].as_ptr().cast()),
            )
        })
    }

    #[inline(always)]
    fn load_f16(bytes: &[u8; 32]) -> Self {
        op!({
            let low = vreinterpretq_f16_u16(vld1q_u16(bytes.as_ptr().cast()));
            let high = vreinterpretq_f16_u16(vld1q_u16(bytes[16..].as_ptr().cast()));
            Self(
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            )
        })
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8; 32]) -> Self {
        op!({
            let zero = vdupq_n_u16(0);
            let low = vld1q_u16(bytes.as_ptr().cast());
            let high = vld1q_u16(bytes[16..].as_ptr().cast());
            Self(
                vreinterpretq_f32_u16(vzip1q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, low)),
                vreinterpretq_f32_u16(vzip1q_u16(zero, high)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, high)),
            )
        })
    }

    #[inline(always)]
    fn store_f32(self, bytes: &mut [u8; 64]) {
        op!({
            vst1q_f32(bytes.as_mut_ptr().cast(), self.0);
            vst1q_f32(bytes[16..].as_mut_ptr().cast(), self.1);
            vst1q_f32(bytes[32..].as_mut_ptr().cast(), self.2);
            vst1q_f32(bytes[48..].as_mut_ptr().cast(), self.3);
        });
    }

    #[inline(always)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        op!({
            let low = vcvt_high_f16_f32(vcvt_f16_f32(self.0), self.1);
            let high = vcvt_high_f16_f32(vcvt_f16_f32(self.2), self.3);
            vst1q_u16(bytes.as_mut_ptr().cast(), vreinterpretq_u16_f16(low));
            vst1q_u16(bytes[16..].as_mut_ptr().cast(), vreinterpretq_u16_f16(high));
        });
    }

    #[inline(always)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        op!({
            let low = vuzp2q_u16(Self::to_bf16(self.0), Self::to_bf16(self.1));
            let high = vuzp2q_u16(Self::to_bf16(self.2), Self::to_bf16(self.3));
            vst1q_u16(bytes.as_mut_ptr().cast(), low);
            vst1q_u16(bytes[16..].as_mut_ptr().cast(), high);
        });
    }

    #[inline(always)]
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16> {
        op!({
            // Two of each, so that none waits for the last.
            let mut largest = [vdupq_n_u16(0); 2];
            let mut signed = [vdupq_n_s16(i16::MIN); 2];
            for words in words {
                for (i, words) in words.as_chunks::<16>().0.iter().enumerate() {
                    let words = vld1q_u16(words.as_ptr().cast());
                    largest[i] = vmaxq_u16(largest[i], words);
                    signed[i] = vmaxq_s16(signed[i], vreinterpretq_s16_u16(words));
                }
            }
            Bounds {
                largest: vmaxvq_u16(vmaxq_u16(largest[0], largest[1])),
                signed: vmaxvq_s16(vmaxq_s16(signed[0], signed[1])) as u16,
            }
        })
    }

    #[inline(always)]
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32> {
        op!({
            let mut largest = [vdupq_n_u32(0); 2];
            let mut signed = [vdupq_n_s32(i32::MIN); 2];
            for words in words {
                for (i, words) in words.as_chunks::<16>().0.iter().enumerate() {
                    let (i, words) = (i % 2, vld1q_u32(words.as_ptr().cast()));
                    largest[i] = vmaxq_u32(largest[i], words);
                    signed[i] = vmaxq_s32(signed[i], vreinterpretq_s32_u32(words));
                }
            }
            Bounds {
                largest: vmaxvq_u32(vmaxq_u32(largest[0], largest[1])),
                signed: vmaxvq_s32(vmaxq_s32(signed[0], signed[1])) as u32,
            }
        })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        quarters!(vaddq_f32, self, other)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        quarters!(vsubq_f32, self, other)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        quarters!(vmulq_f32, self, other)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        quarters!(vdivq_f32, self, other)
    }

    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self) -> Self {
        match DISTANCE {
            1 => quarters!(vrev64q_f32, self),
            2 => quarters!(vextq_f32::<2>, self, self),
            4 => Self(self.1, self.0, self.3, self.2),
            _ => Self(self.2, self.3, self.0, self.1),
        }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        quarters!(vminq_f32, self, other)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        quarters!(vmaxq_f32, self, other)
    }

    #[inline(always)]
    fn abs(self) -> Self {
        quarters!(vabsq_f32, self)
    }

    #[inline(always)]
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self {
        Self(
            Self::add_above(self.0, x.0, threshold.0, addend.0),
            Self::add_above(self.1, x.1, threshold.1, addend.1),
            Self::add_above(self.2, x.2, threshold.2, addend.2),
            Self::add_above(self.3, x.3, threshold.3, addend.3),
        )
    }

    #[inline(always)]
    fn mul_add(self, other: Self, addend: Self) -> Self {
        quarters!(vfmaq_f32, addend, self, other)
    }

    #[inline(always)]
    fn round(self) -> Self {
        quarters!(vrndnq_f32, self)
    }

    #[inline(always)]
    fn pack2(codes: [Self; BLOCK]) -> [u8; 16] {
        let [a, b, c, d] = clamped(codes);
        let mut packed = [0; 16];
        // Pairs of codes to nibbles, and pairs of these to bytes.
        let low = join::<6>(a.narrow(), b.narrow());
        let high = join::<6>(c.narrow(), d.narrow());
        op!(vst1q_u8(packed.as_mut_ptr(), join::<4>(low, high)));
        packed
    }

    #[inline(always)]
    fn pack4(codes: [Self; BLOCK]) -> [u8; 32] {
        let [a, b, c, d] = clamped(codes);
        let mut packed = [0; 32];
        op!({
            vst1q_u8(packed.as_mut_ptr(), join::<4>(a.narrow(), b.narrow()));
            vst1q_u8(packed[16..].as_mut_ptr(), join::<4>(c.narrow(), d.narrow()));
        });
        packed
    }

    #[inline(always)]
    fn pack8(codes: [Self; BLOCK]) -> [u8; 64] {
        let [a, b, c, d] = clamped(codes);
        let mut packed = [0; 64];
        op!({
            vst1q_u8(packed.as_mut_ptr(), a.narrow());
            vst1q_u8(packed[16..].as_mut_ptr(), b.narrow());
            vst1q_u8(packed[32..].as_mut_ptr(), c.narrow());
            vst1q_u8(packed[48..].as_mut_ptr(), d.narrow());
        });
        packed
    }

    #[inline(always)]
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self {
        // The code at place j of byte k goes to byte 4 j + k, times 4: a lane's first byte.
        const SHIFTS: [i8; 16] = [2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4];
        const PLACES: [u8; 16] = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12];
        const LANE: [u8; 16] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3];
        op!({
            let word = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(*packed)));
            let codes = vshlq_u8(word, vld1q_s8(SHIFTS.as_ptr()));
            let codes = vandq_u8(codes, vdupq_n_u8(0b1100));
            let (places, lane) = (vld1q_u8(PLACES.as_ptr()), vld1q_u8(LANE.as_ptr()));
            let table = vreinterpretq_u8_f32(table.0);
            let mut lanes = [codes; 4];
            for (k, lanes) in lanes.iter_mut().enumerate() {
                let first = vqtbl1q_u8(codes, vaddq_u8(places, vdupq_n_u8(k as u8)));
                *lanes = vqtbl1q_u8(table, vorrq_u8(first, lane));
            }
            Self::from_bytes(lanes)
        })
    }

    #[inline(always)]
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self {
        // Byte by byte: in tables of one register, which are the fastest.
        let [a, b, c, d] = table.planes();
        op!({
            let bytes = vld1_u8(packed.as_ptr());
            let (low, high) = (vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes));
            let codes = vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
            Self::from_planes([
                vqtbl1q_u8(a, codes),
                vqtbl1q_u8(b, codes),
                vqtbl1q_u8(c, codes),
                vqtbl1q_u8(d, codes),
            ])
        })
    }

    #[inline(always)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        op!({
            let bytes = vld1q_u8(packed.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            Self(
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            )
        })
    }

    #[inline(always)]
    fn fold_add(self) -> f32 {
        op!({
            let four = vaddq_f32(vaddq_f32(self.0, self.2), vaddq_f32(self.1, self.3));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        })
    }
}

/// The first 16 of some bytes, and the next.
#[inline(always)]
fn halves<T>(bytes: &[T]) -> (&[T; 16], &[T; 16]) {
    match bytes.as_chunks().0 {
        [low, high, ..] => (low, high),
        _ => panic!("32 bytes"),
    }
}

impl ByteDot for Neon {
    type Lanes = Self;
    type Long = Self;
    type Codes = (int8x16_t, int8x16_t);
    type Sums = (int32x4_t, int32x4_t);
    const WIDTH: usize = 32;

    #[inline(always)]
    fn offset(width: Width) -> f32 {
        match width {
            Width::Two | Width::Four => 0.0,
            Width::Eight => 128.0,
        }
    }

    #[inline(always)]
    fn zero() -> Self::Sums {
        op!((vdupq_n_s32(0), vdupq_n_s32(0)))
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> Self::Codes {
        let (low, high) = halves(packed);
        (
            signed_codes(width, phase, op!(vld1q_u8(low.as_ptr()))),
            signed_codes(width, phase, op!(vld1q_u8(high.as_ptr()))),
        )
    }

    #[inline(always)]
    fn add(_: Width, sums: Self::Sums, codes: Self::Codes, x: &[i8]) -> Self::Sums {
        op!({
            let (low, high) = halves(x);
            let x = (vld1q_s8(low.as_ptr()), vld1q_s8(high.as_ptr()));
            // Two products, each 128 * 127 at the most, fit 16 bits.
            let low = vmull_s8(vget_low_s8(codes.0), vget_low_s8(x.0));
            let low = vmlal_s8(low, vget_low_s8(codes.1), vget_low_s8(x.1));
            let high = vmlal_high_s8(vmull_high_s8(codes.0, x.0), codes.1, x.1);
            (vpadalq_s16(sums.0, low), vpadalq_s16(sums.1, high))
        })
    }

    #[inline(always)]
    fn lanes(sums: Self::Sums) -> Self {
        op!({
            let zero = vdupq_n_f32(0.0);
            Self(vcvtq_f32_s32(sums.0), vcvtq_f32_s32(sums.1), zero, zero)
        })
    }
}

/// The codes at bit `BITS * phase`, less the offset of `width`.
#[inline(always)]
fn signed_codes(width: Width, phase: usize, bytes: uint8x16_t) -> int8x16_t {
    op!({
        let bytes = match phase * width.bits() {
            0 => bytes,
            2 => vshrq_n_u8::<2>(bytes),
            4 => vshrq_n_u8::<4>(bytes),
            _ => vshrq_n_u8::<6>(bytes),
        };
        vreinterpretq_s8_u8(match width {
            Width::Two | Width::Four => vandq_u8(bytes, vdupq_n_u8(width.max_code())),
            Width::Eight => veorq_u8(bytes, vdupq_n_u8(0x80)),
        })
    })
}

/// Byte products by the dot product extension.
pub struct Dotprod;

/// For each lane the sum, and the products of four bytes of `a` and `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: what `vdotq_s32` does, which is not stable yet; registers only.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl ByteDot for Dotprod {
    type Lanes = Neon;
    type Long = Self;
    type Codes = <Neon as ByteDot>::Codes;
    type Sums = <Neon as ByteDot>::Sums;
    const WIDTH: usize = 32;

    #[inline(always)]
    fn offset(width: Width) -> f32 {
        Neon::offset(width)
    }

    #[inline(always)]
    fn zero() -> Self::Sums {
        Neon::zero()
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> Self::Codes {
        Neon::unpack(width, phase, packed)
    }

    #[inline(always)]
    fn add(_: Width, sums: Self::Sums, codes: Self::Codes, x: &[i8]) -> Self::Sums {
        op!({
            let (low, high) = halves(x);
            let x = (vld1q_s8(low.as_ptr()), vld1q_s8(high.as_ptr()));
            (dot(sums.0, codes.0, x.0), dot(sums.1, codes.1, x.1))
        })
    }

    #[inline(always)]
    fn lanes(sums: Self::Sums) -> Neon {
        <Neon as ByteDot>::lanes(sums)
    }
}

#[cfg(test)]
mod tests {
    use core::array::from_fn;
    use std::arch::is_aarch64_feature_detected;

    use half::f16;

    use super::*;
    use crate::kernel::scalar::Scalar;

    struct Random(u64);

    impl Random {
        fn bits(&mut self) -> u32 {
            let product = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = product.wrapping_add(1);
            (self.0 >> 32) as u32
        }

        fn bytes<const N: usize>(&mut self) -> [u8; N] {
            from_fn(|_| self.bits() as u8)
        }

        /// Values of any magnitude, alike in magnitude, or special.
        fn finite(&mut self) -> f32 {
            let any = f32::from_bits(self.bits());
            match self.bits() % 4 {
                0 => [0.0, -0.0, 1e-45, -1e-40, f32::MAX, f32::MIN][self.bits() as usize % 6],
                1 if any.is_finite() => any,
                _ => self.eighth(-1000, 1000),
            }
        }

        /// A whole number of eighths.
        fn eighth(&mut self, low: i32, high: i32) -> f32 {
            (8 * low + (self.bits() % (8 * (high - low) + 1) as u32) as i32) as f32 / 8.0
        }

        /// Anything, half-way between two shorter floats, or next to that.
        fn longer(&mut self) -> f32 {
            let bits = self.bits();
            let nearby = self.bits() % 3;
            let tie = match bits % 4 {
                0 => return f32::from_bits(self.bits()),
                1 => 65520.0,
                2 => f32::from_bits(bits & 0xFF7F_0000 | 0x8000),
                _ => {
                    let half = |bits| f16::from_bits(bits).to_f32();
                    let lower = (bits >> 16) as u16 % 0x7BFF;
                    (half(lower) + half(lower + 1)) / 2.0
                }
            };
            f32::from_bits(tie.to_bits() + nearby - 1)
        }
    }

    /// What operations make of random lanes, each beside its name.
    fn results<L: Lanes>(seed: u64) -> Vec<(&'static str, Vec<u32>)> {
        // One NaN is as good as another.
        let bits = |x: f32| if x.is_nan() { f32::NAN } else { x }.to_bits();
        let exactly = |lanes: L| lanes.to_array().map(bits).to_vec();
        // One zero is as good as the other.
        let as_number = |lanes: L| lanes.to_array().map(|x| bits(x + 0.0)).to_vec();
        let bytes = |bytes: &[u8]| bytes.iter().map(|&byte| byte.into()).collect();

        let random = &mut Random(seed);
        let [a, b, c, d] = from_fn(|_| L::from_array(from_fn(|_| random.finite())));
        let mut results = vec![
            ("add", exactly(a.add(b))),
            ("sub", exactly(a.sub(b))),
            ("mul", exactly(a.mul(b))),
            ("div", exactly(a.div(b))),
            ("exchange 1", exactly(a.exchange::<1>())),
            ("exchange 2", exactly(a.exchange::<2>())),
            ("exchange 4", exactly(a.exchange::<4>())),
            ("exchange 8", exactly(a.exchange::<8>())),
            ("min", as_number(a.min(b))),
            ("max", as_number(a.max(b))),
            ("abs", exactly(a.abs())),
            ("add_where_above", as_number(a.add_where_above(b, c, d))),
            ("fold_add", vec![bits(a.fold_add())]),
        ];

        let [a, b, c] = from_fn(|_| L::from_array(from_fn(|_| random.eighth(-500, 500))));
        results.push(("mul_add of short numbers", exactly(a.mul_add(b, c))));
        results.push(("round", as_number(a.round())));
        let large = L::from_array(from_fn(|_| random.eighth(1 - (1 << 22), (1 << 22) - 1)));
        results.push(("round large numbers", as_number(large.round())));

        let lanes = L::from_array(from_fn(|_| random.longer()));
        let (mut whole, mut half) = ([0; 64], [0; 32]);
        lanes.store_f32(&mut whole);
        results.push(("store_f32", bytes(&whole)));
        lanes.store_f16(&mut half);
        results.push(("store_f16", bytes(&half)));
        lanes.store_bf16(&mut half);
        results.push(("store_bf16", bytes(&half)));
        results.push(("load_f32", exactly(L::load_f32(&random.bytes()))));
        // All there are, one seed after the other.
        let words = from_fn(|i| (seed as u16 * 16 + i as u16 / 2).to_le_bytes()[i % 2]);
        results.push(("load_f16", exactly(L::load_f16(&words))));
        results.push(("load_bf16", exactly(L::load_bf16(&words))));

        let words: Vec<[u8; 64]> = (0..seed % 6).map(|_| random.bytes()).collect();
        let of = L::bounds32(&words);
        results.push(("bounds32", vec![of.largest, of.signed]));
        let of = L::bounds16(words.as_flattened().as_chunks().0);
        let bounds = [of.largest, of.signed].map(u32::from);
        results.push(("bounds16", bounds.to_vec()));

        // Some below 0.
        let mut codes = |max| from_fn(|_| L::from_array(from_fn(|_| random.eighth(-3, max))));
        results.push(("pack2", bytes(&L::pack2(codes(3)))));
        results.push(("pack4", bytes(&L::pack4(codes(15)))));
        results.push(("pack8", bytes(&L::pack8(codes(255)))));
        let table: [f32; LANES] = from_fn(|_| random.finite());
        let four = L::from_array(from_fn(|i| table[i % 4]));
        results.push(("look_up2", exactly(L::look_up2(four, &random.bytes()))));
        let table = L::from_array(table);
        results.push(("look_up4", exactly(L::look_up4(table, &random.bytes()))));
        results.push(("unpack8", exactly(L::unpack8(&random.bytes()))));
        results
    }

    #[test]
    fn every_operation_equals_scalar() {
        for seed in 0..4096 {
            for (ours, scalar) in results::<Neon>(seed).iter().zip(results::<Scalar>(seed)) {
                assert_eq!(*ours, scalar, "seed {seed}");
            }
        }
    }

    /// A sum of products by `D`, of codes not less the offset.
    fn dot_product<D: ByteDot>(width: Width, random: &mut Random) -> f32 {
        let mut sums = D::zero();
        let mut correction = 0.0;
        for phase in (0..8 / width.bits()).chain([0, 0]) {
            // The extremes are frequent.
            let packed = random.bytes::<32>().map(|byte| match byte % 4 {
                0 => 0,
                1 => 255,
                _ => byte,
            });
            let x = random.bytes::<32>().map(|byte| match byte % 4 {
                0 => -127,
                1 => 127,
                _ => (byte as i8).max(-127),
            });
            sums = D::add(width, sums, D::unpack(width, phase, &packed), &x);
            correction += D::offset(width) * x.map(f32::from).iter().sum::<f32>();
        }
        D::lanes(sums).fold_add() + correction
    }

    fn dot_products_equal_scalar<D: ByteDot>() {
        for seed in 0..1000 {
            for &width in Width::ALL {
                let ours = dot_product::<D>(width, &mut Random(seed));
                let scalar = dot_product::<Scalar>(width, &mut Random(seed));
                assert_eq!(ours, scalar, "{width:?}, seed {seed}");
            }
        }
    }

    #[test]
    fn byte_products_equal_scalar() {
        dot_products_equal_scalar::<Neon>();
        if is_aarch64_feature_detected!("dotprod") {
            dot_products_equal_scalar::<Dotprod>();
        }
    }
}
