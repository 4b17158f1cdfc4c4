//! Sixteen f32 lanes: what an instruction set must offer. Every kernel is written once over this
//! trait, so that every ISA computes the same bits. Beside it [`ByteDot`]: products of bytes.
//!
//! Nothing that is stored or decoded fuses a multiplication with an addition, but where the
//! product is exact. Lane i of an accumulator takes the elements i mod 16 of a group, and `fold`
//! adds lanes in one fixed tree: i with i + 8, then i + 4, i + 2, i + 1.

use crate::format::Width;

/// Number of lanes.
pub const LANES: usize = 16;

/// Vectors whose codes are packed together, since narrowing takes longest.
pub const BLOCK: usize = 4;

/// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to an integer, half to even, on any ISA
/// and in `core`.
const ROUNDING: f32 = 12_582_912.0;

/// Upper ends of a set of integers.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<T> {
    /// The largest.
    pub largest: T,
    /// The largest when read as signed numbers.
    pub signed: T,
}

/// Sixteen f32 values.
pub trait Lanes: Copy {
    /// Whether kernels are compiled for each float and width, which is worth its code where lanes
    /// are registers.
    const SPECIALIZED: bool = true;
    /// Sums that fit the registers beside what else a loop needs, a power of two.
    const SUMS: usize;

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
    /// Stores the lanes as little-endian f32.
    fn store_f32(self, bytes: &mut [u8; 64]);
    /// Stores the lanes as little-endian f16, rounded half to even.
    fn store_f16(self, bytes: &mut [u8; 32]);
    /// Stores the lanes as little-endian bf16, rounded half to even.
    fn store_bf16(self, bytes: &mut [u8; 32]);

    /// The bounds of 16-bit words.
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16>;
    /// The bounds of 32-bit words.
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32>;

    /// Lane by lane `self + other`.
    fn add(self, other: Self) -> Self;
    /// Lane by lane `self - other`.
    fn sub(self, other: Self) -> Self;
    /// Lane by lane `self * other`.
    fn mul(self, other: Self) -> Self;
    /// Lane by lane `self / other`.
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::from_array(core::array::from_fn(|i| a[i] / b[i]))
    }
    /// Lane i is lane `i ^ DISTANCE`, which is 1, 2, 4 or 8.
    #[inline(always)]
    fn exchange<const DISTANCE: usize>(self) -> Self {
        let lanes = self.to_array();
        Self::from_array(core::array::from_fn(|i| lanes[i ^ DISTANCE]))
    }
    /// Lane by lane the smaller; of two zeros either, of a number and NaN either.
    fn min(self, other: Self) -> Self;
    /// Lane by lane the larger; of two zeros either, of a number and NaN either.
    fn max(self, other: Self) -> Self;

    /// Lane by lane the magnitude.
    fn abs(self) -> Self;
    /// Lane by lane `self + addend` where `x > threshold`, else `self`.
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self;

    /// Lane by lane `self * other + addend`, fused or not. For products that f32 holds exactly,
    /// where that makes no difference, and for products of matrices, where it may.
    #[inline(always)]
    fn mul_add(self, other: Self, addend: Self) -> Self {
        self.mul(other).add(addend)
    }

    /// 64 numbers up to 3, rounded half to even, those below 0 being 0, as 2-bit codes, LSB
    /// first.
    fn pack2(codes: [Self; BLOCK]) -> [u8; 16];
    /// 64 such numbers up to 15, as 4-bit codes.
    fn pack4(codes: [Self; BLOCK]) -> [u8; 32];
    /// 64 such numbers up to 255, as bytes.
    fn pack8(codes: [Self; BLOCK]) -> [u8; 64];
    /// The lanes of `table` that sixteen 2-bit codes name. Lane i + 4 of it is lane i.
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self;
    /// The lanes of `table` that sixteen 4-bit codes name.
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self;
    /// Sixteen bytes as numbers.
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
        let mut lanes = self.to_array();
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Products of codes and signed bytes.
///
/// Codes are not brought into order: in a piece of some bytes those in the lowest bits are
/// multiplied first, then those in the next, and so on. The values of the vector stand in that
/// order, which `quantize_vectors` gives them.
pub trait ByteDot {
    /// The lanes the sums end in.
    type Lanes: Lanes;
    /// What multiplies pieces of 64 bytes; this one multiplies pieces of 32.
    type Long: ByteDot;
    /// Codes, one a byte.
    type Codes: Copy;
    /// Sums of products, 32 bits wide.
    type Sums: Copy;
    /// Whether products are compiled for each width, as in [`Lanes::SPECIALIZED`].
    const SPECIALIZED: bool = true;
    /// Bytes that are taken at once.
    const WIDTH: usize;

    /// What codes of `width` are read less by, so that they are signed.
    #[inline(always)]
    fn offset(_width: Width) -> f32 {
        0.0
    }
    /// No sum yet.
    fn zero() -> Self::Sums;
    /// The codes at bit `BITS * phase` of `WIDTH` bytes. (Shifts are constants once this is
    /// inlined.)
    fn unpack(width: Width, phase: usize, packed: &[u8]) -> Self::Codes;
    /// Adds the products of codes of `width`, less its offset, with `WIDTH` values, each -127 to
    /// 127.
    fn add(width: Width, sums: Self::Sums, codes: Self::Codes, x: &[i8]) -> Self::Sums;
    /// The sums, in any order.
    fn lanes(sums: Self::Sums) -> Self::Lanes;
}
