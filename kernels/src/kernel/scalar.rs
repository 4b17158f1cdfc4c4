//! The lanes in plain Rust: the specification of every kernel. What takes much code is a function
//! of its own, or it would be there hundreds of times.

use core::ops::BitXor;

use half::{bf16, f16};

use super::lanes::{BLOCK, Bounds, ByteDot, LANES, Lanes};
use crate::format::{self, Width};

/// Sixteen floats in an array.
#[derive(Debug, Clone, Copy)]
pub struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(core::array::from_fn(|i| f(self.0[i], other.0[i])))
    }

    #[inline(always)]
    fn load<const SIZE: usize>(bytes: &[u8], f: impl Fn([u8; SIZE]) -> f32) -> Self {
        Self(core::array::from_fn(|i| {
            f(core::array::from_fn(|j| bytes[i * SIZE + j]))
        }))
    }

    #[inline(always)]
    fn store<const SIZE: usize>(self, bytes: &mut [u8], f: impl Fn(f32) -> [u8; SIZE]) {
        for (bytes, lane) in bytes.chunks_exact_mut(SIZE).zip(self.0) {
            bytes.copy_from_slice(&f(lane));
        }
    }

    #[inline(never)]
    fn pack<const BYTES: usize>(width: Width, codes: [Self; BLOCK]) -> [u8; BYTES] {
        let codes = codes.map(|codes| codes.round().0.map(|lane| lane as u8));
        let mut packed = [0; BYTES];
        format::pack(width, codes.as_flattened(), &mut packed);
        packed
    }

    #[inline(never)]
    fn look_up(width: Width, table: Self, packed: &[u8]) -> Self {
        Self(unpack::<LANES>(width, packed).map(|code| table.0[usize::from(code)]))
    }
}

/// The bounds of words with this sign bit.
#[inline(always)]
fn bounds<T>(words: impl Iterator<Item = T> + Clone, sign: T) -> Bounds<T>
where
    T: Copy + Ord + BitXor<Output = T> + Default,
{
    let start = Bounds {
        largest: T::default(),
        signed: sign,
    };
    words.fold(start, |bounds, word| Bounds {
        largest: bounds.largest.max(word),
        // With the sign flipped, signed numbers compare as unsigned ones.
        signed: (bounds.signed ^ sign).max(word ^ sign) ^ sign,
    })
}

#[inline(always)]
fn unpack<const COUNT: usize>(width: Width, packed: &[u8]) -> [u8; COUNT] {
    let mut codes = [0; COUNT];
    format::unpack(width, packed, &mut codes);
    codes
}

impl Lanes for Scalar {
    const SPECIALIZED: bool = false;
    const SUMS: usize = 2;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        Self(lanes)
    }

    #[inline(always)]
    fn load_f32(bytes: &[u8; 64]) -> Self {
        Self::load(bytes, f32::from_le_bytes)
    }

    #[inline(never)]
    fn load_f16(bytes: &[u8; 32]) -> Self {
        Self::load(bytes, |b| f16::from_le_bytes(b).to_f32())
    }

    #[inline(always)]
    fn load_bf16(bytes: &[u8; 32]) -> Self {
        // Not through `half`, which would quiet signalling NaNs one by one.
        Self::load(bytes, |[low, high]| f32::from_le_bytes([0, 0, low, high]))
    }

    #[inline(always)]
    fn store_f32(self, bytes: &mut [u8; 64]) {
        self.store(bytes, f32::to_le_bytes);
    }

    #[inline(never)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        self.store(bytes, |x| f16::from_f32(x).to_le_bytes());
    }

    #[inline(never)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        self.store(bytes, |x| bf16::from_f32(x).to_le_bytes());
    }

    #[inline(never)]
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16> {
        let words = words.as_flattened().as_chunks().0;
        bounds(
            words.iter().map(|bytes| u16::from_le_bytes(*bytes)),
            1 << 15,
        )
    }

    #[inline(never)]
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32> {
        let words = words.as_flattened().as_chunks().0;
        bounds(
            words.iter().map(|bytes| u32::from_le_bytes(*bytes)),
            1 << 31,
        )
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if b < a { b } else { a })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self {
        Self(core::array::from_fn(|i| {
            let above = x.0[i] > threshold.0[i];
            self.0[i] + if above { addend.0[i] } else { 0.0 }
        }))
    }

    #[inline(always)]
    fn pack2(codes: [Self; BLOCK]) -> [u8; 16] {
        Self::pack(Width::Two, codes)
    }

    #[inline(always)]
    fn pack4(codes: [Self; BLOCK]) -> [u8; 32] {
        Self::pack(Width::Four, codes)
    }

    #[inline(always)]
    fn pack8(codes: [Self; BLOCK]) -> [u8; 64] {
        Self::pack(Width::Eight, codes)
    }

    #[inline(always)]
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self {
        Self::look_up(Width::Two, table, packed)
    }

    #[inline(always)]
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self {
        Self::look_up(Width::Four, table, packed)
    }

    #[inline(always)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        Self(packed.map(f32::from))
    }
}

impl ByteDot for Scalar {
    type Lanes = Self;
    type Long = Self;
    type Codes = [u8; 32];
    type Sums = [i32; LANES];
    const SPECIALIZED: bool = false;
    const WIDTH: usize = 32;

    #[inline(always)]
    fn zero() -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> Self::Codes {
        core::array::from_fn(|i| packed[i] >> (phase * width.bits()) & width.max_code())
    }

    #[inline(always)]
    fn add(_: Width, sums: Self::Sums, codes: Self::Codes, x: &[i8]) -> Self::Sums {
        let product = |i: usize| i32::from(codes[i]) * i32::from(x[i]);
        core::array::from_fn(|lane| sums[lane] + product(lane) + product(lane + LANES))
    }

    #[inline(always)]
    fn lanes(sums: Self::Sums) -> Self {
        Self(sums.map(|sum| sum as f32))
    }
}
