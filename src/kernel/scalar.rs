//! The lanes in plain Rust: the specification of every kernel.

use half::{bf16, f16};

use super::lanes::{LANES, Lanes};
use crate::format::{self, Format};

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

    #[inline(always)]
    fn pack<const BYTES: usize>(self, format: Format) -> [u8; BYTES] {
        let mut packed = [0; BYTES];
        format::pack(format, &self.0.map(|lane| lane as u8), &mut packed);
        packed
    }

    #[inline(always)]
    fn unpack(format: Format, packed: &[u8]) -> Self {
        let mut codes = [0; LANES];
        format::unpack(format, packed, &mut codes);
        Self(codes.map(f32::from))
    }
}

impl Lanes for Scalar {
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

    #[inline(always)]
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

    #[inline(always)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        self.store(bytes, |x| f16::from_f32(x).to_le_bytes());
    }

    #[inline(always)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        self.store(bytes, |x| bf16::from_f32(x).to_le_bytes());
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
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if b < a { b } else { a })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn pack2(self) -> [u8; 4] {
        self.pack(Format::Int2)
    }

    #[inline(always)]
    fn pack4(self) -> [u8; 8] {
        self.pack(Format::Int4)
    }

    #[inline(always)]
    fn pack8(self) -> [u8; 16] {
        self.pack(Format::Int8)
    }

    #[inline(always)]
    fn unpack2(packed: &[u8; 4]) -> Self {
        Self::unpack(Format::Int2, packed)
    }

    #[inline(always)]
    fn unpack4(packed: &[u8; 8]) -> Self {
        Self::unpack(Format::Int4, packed)
    }

    #[inline(always)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        Self::unpack(Format::Int8, packed)
    }
}
