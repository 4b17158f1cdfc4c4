//! Sixteen f32 lanes: what an instruction set must offer. Everything in `rows.rs` and `group.rs`
//! is written over this trait, so that every ISA computes the same bits.
//!
//! No operation fuses a multiplication with an addition. Lane i of an accumulator takes the
//! elements i mod 16 of a group, and `fold` adds lanes in one fixed tree: i with i + 8, then
//! i + 4, i + 2, i + 1.

/// Number of lanes.
pub const LANES: usize = 16;

/// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to an integer, half to even, on any ISA
/// and in `core`.
const ROUNDING: f32 = 12_582_912.0;

/// Sixteen f32 values.
pub trait Lanes: Copy {
    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// The lanes in order.
    fn to_array(self) -> [f32; LANES];
    /// From the lanes in order.
    fn from_array(lanes: [f32; LANES]) -> Self;

    /// Sixteen little-endian f32.
    fn load_f32(bytes: &[u8; 64]) -> Self;
    /// Sixteen little-endian f16.
    fn load_f16(bytes: &[u8; 32]) -> Self;
    /// Sixteen little-endian bf16.
    fn load_bf16(bytes: &[u8; 32]) -> Self;
    /// As little-endian f32.
    fn store_f32(self, bytes: &mut [u8; 64]);
    /// As little-endian f16, rounded half to even.
    fn store_f16(self, bytes: &mut [u8; 32]);
    /// As little-endian bf16, rounded half to even.
    fn store_bf16(self, bytes: &mut [u8; 32]);

    /// Lane by lane `self + other`.
    fn add(self, other: Self) -> Self;
    /// Lane by lane `self - other`.
    fn sub(self, other: Self) -> Self;
    /// Lane by lane `self * other`.
    fn mul(self, other: Self) -> Self;
    /// Lane by lane the smaller; of two zeros either, of a number and NaN either.
    fn min(self, other: Self) -> Self;
    /// Lane by lane the larger; of two zeros either, of a number and NaN either.
    fn max(self, other: Self) -> Self;

    /// Integers 0 to 3 as sixteen 2-bit codes, LSB first.
    fn pack2(self) -> [u8; 4];
    /// Integers 0 to 15 as sixteen 4-bit codes, LSB first.
    fn pack4(self) -> [u8; 8];
    /// Integers 0 to 255 as sixteen bytes.
    fn pack8(self) -> [u8; 16];
    /// The inverse of [`Lanes::pack2`].
    fn unpack2(packed: &[u8; 4]) -> Self;
    /// The inverse of [`Lanes::pack4`].
    fn unpack4(packed: &[u8; 8]) -> Self;
    /// The inverse of [`Lanes::pack8`].
    fn unpack8(packed: &[u8; 16]) -> Self;

    /// Rounds |x| < 2^22 to integers, half to even.
    #[inline(always)]
    fn round(self) -> Self {
        self.add(Self::splat(ROUNDING)).sub(Self::splat(ROUNDING))
    }

    /// The first `n` lanes of `self`, the others of `other`.
    #[inline(always)]
    fn blend(self, n: usize, other: Self) -> Self {
        let (a, mut b) = (self.to_array(), other.to_array());
        b[..n].copy_from_slice(&a[..n]);
        Self::from_array(b)
    }

    /// The sum of the lanes.
    #[inline(always)]
    fn fold_add(self) -> f32 {
        fold(self.to_array(), |a, b| a + b)
    }

    /// The smallest lane, never -0.
    #[inline(always)]
    fn fold_min(self) -> f32 {
        fold(self.to_array(), |a, b| if b < a { b } else { a }) + 0.0
    }

    /// The largest lane, never -0.
    #[inline(always)]
    fn fold_max(self) -> f32 {
        fold(self.to_array(), |a, b| if b > a { b } else { a }) + 0.0
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}
