//! Floats in memory, over [`Lanes`], and loops over vectors of them.

use core::ops::Range;

use super::lanes::{Bounds, LANES, Lanes};
use crate::format::Float;

/// A floating-point type in memory. One that is known when a kernel is compiled, or a [`Float`]:
/// known when it runs, which is slower, and takes far less code.
pub(super) trait Element: Copy {
    fn float(self) -> Float;
    /// Sixteen values.
    fn load<L: Lanes>(self, bytes: &[u8]) -> L;
    fn store<L: Lanes>(self, lanes: L, bytes: &mut [u8]);
    /// Smallest and largest value, or `None` when one is NaN or infinite.
    fn range<L: Lanes>(self, bytes: &[u8]) -> Option<(f32, f32)>;
    /// The largest magnitude, or `None` when a value is NaN or infinite.
    fn magnitude<L: Lanes>(self, bytes: &[u8]) -> Option<f32>;

    /// Bytes of a value.
    #[inline(always)]
    fn size(self) -> usize {
        self.float().size()
    }

    /// Whether f32 holds the product of a value with an integer below 2^9.
    #[inline(always)]
    fn is_short(self) -> bool {
        self.size() == 2
    }
}

/// A floating-point type that is known when a kernel is compiled.
trait Known: Element {
    /// The integer that holds its bits.
    type Bits: Bits;
    /// The bits of infinity: those of finite magnitudes are smaller.
    const INFINITY: Self::Bits;
    fn value(bits: Self::Bits) -> f32;
}

/// The bits of a float: sign and magnitude.
pub(super) trait Bits: Copy + Ord {
    /// The sign bit alone: -0, and the smallest signed number.
    const SIGN: Self;
    fn read(bytes: &[u8], index: usize) -> Self;
    fn without_sign(self) -> Self;
    fn flipped(self) -> Self;
    /// The bounds of `bytes`, whole vectors of 16.
    fn bounds<L: Lanes>(bytes: &[u8]) -> Bounds<Self>;
}

impl<T: Bits> Bounds<T> {
    /// The bounds with one number more.
    #[inline(always)]
    fn with(self, bits: T) -> Self {
        // With the sign flipped, signed numbers compare as unsigned ones.
        let higher = bits.flipped() > self.signed.flipped();
        Self {
            largest: self.largest.max(bits),
            signed: if higher { bits } else { self.signed },
        }
    }
}

/// Evaluates the body with `$element` a float known when a kernel runs, for lanes that are worth it
/// as one of the types.
macro_rules! with_element {
    ($lanes:ident, $float:expr, |$element:ident| $body:expr) => {{
        use $crate::format::Float;
        use $crate::kernel::element::{BF16, F16, F32};
        if $lanes::SPECIALIZED {
            match $float {
                Float::F32 => with_element!(@ $element, F32, $body),
                Float::F16 => with_element!(@ $element, F16, $body),
                Float::BF16 => with_element!(@ $element, BF16, $body),
            }
        } else {
            with_element!(@ $element, $float, $body)
        }
    }};
    (@ $element:ident, $value:expr, $body:expr) => {{
        let $element = $value;
        $body
    }};
}
pub(super) use with_element;

macro_rules! element {
    ($type:ident, $bits:ty, $infinity:literal, $load:ident, $store:ident, $value:expr) => {
        #[derive(Clone, Copy)]
        pub(super) struct $type;

        impl Known for $type {
            type Bits = $bits;
            const INFINITY: $bits = $infinity;
            #[inline(always)]
            fn value(bits: $bits) -> f32 {
                $value(bits)
            }
        }

        impl Element for $type {
            #[inline(always)]
            fn float(self) -> Float {
                Float::$type
            }
            #[inline(always)]
            fn load<L: Lanes>(self, bytes: &[u8]) -> L {
                L::$load(bytes.first_chunk().expect("16 values"))
            }
            #[inline(always)]
            fn store<L: Lanes>(self, lanes: L, bytes: &mut [u8]) {
                lanes.$store(bytes.first_chunk_mut().expect("16 values"));
            }
            #[inline(always)]
            fn range<L: Lanes>(self, bytes: &[u8]) -> Option<(f32, f32)> {
                range::<L, Self>(bytes)
            }
            #[inline(always)]
            fn magnitude<L: Lanes>(self, bytes: &[u8]) -> Option<f32> {
                magnitude::<L, Self>(bytes)
            }
        }
    };
}

macro_rules! bits {
    ($type:ty, $bounds:ident) => {
        impl Bits for $type {
            const SIGN: Self = 1 << (<$type>::BITS - 1);
            #[inline(always)]
            fn read(bytes: &[u8], index: usize) -> Self {
                const SIZE: usize = size_of::<$type>();
                let bytes = &bytes[index * SIZE..index * SIZE + SIZE];
                Self::from_le_bytes(*bytes.first_chunk().expect("a whole value"))
            }
            #[inline(always)]
            fn without_sign(self) -> Self {
                self & !Self::SIGN
            }
            #[inline(always)]
            fn flipped(self) -> Self {
                self ^ Self::SIGN
            }
            #[inline(always)]
            fn bounds<L: Lanes>(bytes: &[u8]) -> Bounds<Self> {
                L::$bounds(bytes.as_chunks().0)
            }
        }
    };
}

bits!(u16, bounds16);
bits!(u32, bounds32);
element!(F32, u32, 0x7F80_0000, load_f32, store_f32, f32::from_bits);
element!(F16, u16, 0x7C00, load_f16, store_f16, |bits| {
    half::f16::from_bits(bits).to_f32()
});
element!(BF16, u16, 0x7F80, load_bf16, store_bf16, |bits| {
    f32::from_bits(u32::from(bits) << 16)
});

impl Element for Float {
    #[inline(always)]
    fn float(self) -> Float {
        self
    }
    #[inline(always)]
    fn load<L: Lanes>(self, bytes: &[u8]) -> L {
        match self {
            Float::F32 => F32.load(bytes),
            Float::F16 => F16.load(bytes),
            Float::BF16 => BF16.load(bytes),
        }
    }
    #[inline(always)]
    fn store<L: Lanes>(self, lanes: L, bytes: &mut [u8]) {
        match self {
            Float::F32 => F32.store(lanes, bytes),
            Float::F16 => F16.store(lanes, bytes),
            Float::BF16 => BF16.store(lanes, bytes),
        }
    }
    #[inline(always)]
    fn range<L: Lanes>(self, bytes: &[u8]) -> Option<(f32, f32)> {
        match self {
            Float::F32 => F32.range::<L>(bytes),
            Float::F16 => F16.range::<L>(bytes),
            Float::BF16 => BF16.range::<L>(bytes),
        }
    }
    #[inline(always)]
    fn magnitude<L: Lanes>(self, bytes: &[u8]) -> Option<f32> {
        match self {
            Float::F32 => F32.magnitude::<L>(bytes),
            Float::F16 => F16.magnitude::<L>(bytes),
            Float::BF16 => BF16.magnitude::<L>(bytes),
        }
    }
}

/// Sixteen values from element `at`, `n` of them in the row, the others +0.
#[inline(always)]
pub(super) fn load<L: Lanes>(element: impl Element, bytes: &[u8], at: usize, n: usize) -> L {
    let bytes = &bytes[at * element.size()..(at + n) * element.size()];
    if n == LANES {
        element.load(bytes)
    } else {
        let mut padded = [0; LANES * 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        element.load(&padded)
    }
}

/// Writes `n` values from element `at`.
#[inline(always)]
pub(super) fn store<L: Lanes>(
    element: impl Element,
    lanes: L,
    bytes: &mut [u8],
    at: usize,
    n: usize,
) {
    let bytes = &mut bytes[at * element.size()..(at + n) * element.size()];
    if n == LANES {
        element.store(lanes, bytes);
    } else {
        let mut padded = [0; LANES * 4];
        element.store(lanes, &mut padded);
        bytes.copy_from_slice(&padded[..bytes.len()]);
    }
}

/// Sixteen of the numbers from `at`, `n` of them there, the others +0.
#[inline(always)]
pub(super) fn load_slice<L: Lanes>(values: &[f32], at: usize, n: usize) -> L {
    let values = &values[at..at + n];
    match values.first_chunk() {
        Some(whole) => L::from_array(*whole),
        None => {
            let mut padded = [0.0; LANES];
            padded[..n].copy_from_slice(values);
            L::from_array(padded)
        }
    }
}

/// Does something for each vector from `$start` to `$end`: at which offset, and of how many
/// elements. Whole vectors have a loop of their own, which knows that they are whole, so that what
/// the last, shorter one needs does not stand in their way.
macro_rules! each_vector {
    ($start:expr, $end:expr, |$at:ident, $n:ident| $body:expr) => {{
        use $crate::kernel::lanes::LANES;
        let ($at, end) = ($start, $end);
        let whole = $at + (end - $at) / LANES * LANES;
        let mut next = $at;
        while next < whole {
            let ($at, $n) = (next, LANES);
            $body;
            next += LANES;
        }
        if whole < end {
            let ($at, $n) = (whole, end - whole);
            $body;
        }
    }};
}
pub(super) use each_vector;

/// Does what [`each_vector`] does, with a loop for blocks of `BLOCK` vectors before: `$w` is how many there
/// are, and `$n` the elements of the last.
macro_rules! each_block {
    ($start:expr, $end:expr, |$at:ident, $n:ident, $w:ident| $body:expr) => {{
        use $crate::kernel::lanes::{BLOCK, LANES};
        let ($at, end) = ($start, $end);
        let blocks = $at + (end - $at) / (LANES * BLOCK) * (LANES * BLOCK);
        let mut next = $at;
        while next < blocks {
            const $w: usize = BLOCK;
            let ($at, $n) = (next, LANES);
            $body;
            next += LANES * BLOCK;
        }
        $crate::kernel::element::each_vector!(blocks, end, |$at, $n| {
            const $w: usize = 1;
            $body
        });
    }};
}
pub(super) use each_block;

/// Offset and length of each piece of `STEP` elements of a range; the last may be shorter. (Unlike
/// `step_by` it does not divide, which takes longer than the work on a small group.)
pub(super) struct Pieces<const STEP: usize>(pub(super) Range<usize>);

impl<const STEP: usize> Iterator for Pieces<STEP> {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let Range { start, end } = self.0;
        if start >= end {
            return None;
        }
        self.0.start += STEP;
        Some((start, STEP.min(end - start)))
    }
}

/// Smallest and largest value, or `None` when one is NaN or infinite.
///
/// On the bits, which are sign and magnitude. As unsigned numbers the largest is the most
/// negative value where there is any below zero, as signed ones the largest is the highest value
/// where there is any above.
#[inline(always)]
fn range<L: Lanes, E: Known>(bytes: &[u8]) -> Option<(f32, f32)> {
    let Bounds { largest, signed } = bounds::<L, E>(bytes);
    let (mut low, mut high) = (largest, signed);
    // All of one sign: the other end is the smallest magnitude.
    if largest < E::Bits::SIGN {
        low = smallest::<E>(bytes);
    } else if signed >= E::Bits::SIGN {
        high = smallest::<E>(bytes);
    }
    let finite = low.without_sign() < E::INFINITY && high.without_sign() < E::INFINITY;
    // -0 becomes +0.
    finite.then(|| (E::value(low) + 0.0, E::value(high) + 0.0))
}

/// The largest magnitude, or `None` when a value is NaN or infinite: one of the ends of
/// [`range`], whatever the signs.
#[inline(always)]
fn magnitude<L: Lanes, E: Known>(bytes: &[u8]) -> Option<f32> {
    let Bounds { largest, signed } = bounds::<L, E>(bytes);
    let bits = largest.without_sign().max(signed.without_sign());
    (bits < E::INFINITY).then(|| E::value(bits))
}

/// The bounds of the bits of any number of values.
#[inline(always)]
fn bounds<L: Lanes, E: Known>(bytes: &[u8]) -> Bounds<E::Bits> {
    let size = size_of::<E::Bits>();
    let (whole, rest) = bytes.split_at(bytes.len() / (LANES * size) * (LANES * size));
    let mut bounds = E::Bits::bounds::<L>(whole);
    for i in 0..rest.len() / size {
        bounds = bounds.with(E::Bits::read(rest, i));
    }
    bounds
}

/// The smallest bits. Few groups are all of one sign.
#[cold]
#[inline(never)]
fn smallest<E: Known>(bytes: &[u8]) -> E::Bits {
    let bits = (0..bytes.len() / size_of::<E::Bits>()).map(|i| E::Bits::read(bytes, i));
    bits.min().unwrap_or(E::Bits::SIGN)
}
