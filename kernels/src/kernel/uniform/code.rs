//! Packed uniform codes in memory, over [`Lanes`].

use crate::format::{Format, Layout, Scheme};
use crate::kernel::lanes::{BLOCK, LANES, Lanes};

/// A packed code in memory, and what it counts from. One that is known when a kernel is compiled,
/// or a [`Layout`].
pub(crate) trait Code: Copy {
    fn format(self) -> Format;
    fn scheme(self) -> Scheme;
    /// Writes the codes, or as many as there is room for.
    fn pack<L: Lanes>(self, codes: [L; BLOCK], packed: &mut [u8]);
    /// `map` of sixteen codes, or of as many as there are.
    fn unpack<L: Lanes>(self, map: &impl CodeMap<L>, packed: &[u8]) -> L;

    /// Bytes of `count` codes.
    #[inline(always)]
    fn bytes(self, count: usize) -> usize {
        self.format().row_bytes(count)
    }
}

/// What codes are turned into.
pub(crate) trait CodeMap<L> {
    fn of(&self, codes: L) -> L;
    /// `of` the codes 0, 1, 2 and on, as far as there are such.
    fn table(&self) -> L;
}

/// Evaluates the body with `$code` the codes of a layout known when a kernel runs, for lanes that
/// are worth it as one of the types.
macro_rules! with_code {
    ($lanes:ident, $layout:expr, |$code:ident| $body:expr) => {{
        use $crate::format::{Format, Scheme};
        use $crate::kernel::uniform::code as types;
        if $lanes::SPECIALIZED {
            match ($layout.format, $layout.scheme) {
                (Format::Int2, Scheme::Symmetric) => with_code!(@ $code, types::Int2, $body),
                (Format::Int2, Scheme::Affine) => with_code!(@ $code, types::Int2Affine, $body),
                (Format::Int4, Scheme::Symmetric) => with_code!(@ $code, types::Int4, $body),
                (Format::Int4, Scheme::Affine) => with_code!(@ $code, types::Int4Affine, $body),
                (Format::Int8, Scheme::Symmetric) => with_code!(@ $code, types::Int8, $body),
                (Format::Int8, Scheme::Affine) => with_code!(@ $code, types::Int8Affine, $body),
            }
        } else {
            with_code!(@ $code, $layout, $body)
        }
    }};
    (@ $code:ident, $value:expr, $body:expr) => {{
        let $code = $value;
        $body
    }};
}
pub(crate) use with_code;

macro_rules! code {
    ($type:ident, $format:ident, $scheme:ident, $pack:ident, |$map:ident, $packed:ident| $unpack:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $type;

        impl Code for $type {
            #[inline(always)]
            fn format(self) -> Format {
                Format::$format
            }
            #[inline(always)]
            fn scheme(self) -> Scheme {
                Scheme::$scheme
            }
            #[inline(always)]
            fn pack<L: Lanes>(self, codes: [L; BLOCK], packed: &mut [u8]) {
                let bytes = L::$pack(codes);
                match packed.first_chunk_mut() {
                    Some(whole) => *whole = bytes,
                    None => packed.copy_from_slice(&bytes[..packed.len()]),
                }
            }
            #[inline(always)]
            fn unpack<L: Lanes>(self, $map: &impl CodeMap<L>, packed: &[u8]) -> L {
                let $packed = &match packed.first_chunk() {
                    Some(whole) => *whole,
                    None => {
                        let mut bytes = [0; LANES * Format::$format.bits() / 8];
                        bytes[..packed.len()].copy_from_slice(packed);
                        bytes
                    }
                };
                $unpack
            }
        }
    };
}

code!(Int2, Int2, Symmetric, pack2, |map, packed| L::look_up2(
    map.table(),
    packed
));
code!(Int4, Int4, Symmetric, pack4, |map, packed| L::look_up4(
    map.table(),
    packed
));
code!(Int8, Int8, Symmetric, pack8, |map, packed| map
    .of(L::unpack8(packed)));
code!(Int2Affine, Int2, Affine, pack2, |map, packed| L::look_up2(
    map.table(),
    packed
));
code!(Int4Affine, Int4, Affine, pack4, |map, packed| L::look_up4(
    map.table(),
    packed
));
code!(Int8Affine, Int8, Affine, pack8, |map, packed| map
    .of(L::unpack8(packed)));

impl Code for Layout {
    #[inline(always)]
    fn format(self) -> Format {
        self.format
    }
    #[inline(always)]
    fn scheme(self) -> Scheme {
        self.scheme
    }
    #[inline(always)]
    fn pack<L: Lanes>(self, codes: [L; BLOCK], packed: &mut [u8]) {
        match self.format {
            Format::Int2 => Int2.pack(codes, packed),
            Format::Int4 => Int4.pack(codes, packed),
            Format::Int8 => Int8.pack(codes, packed),
        }
    }
    #[inline(always)]
    fn unpack<L: Lanes>(self, map: &impl CodeMap<L>, packed: &[u8]) -> L {
        match self.format {
            Format::Int2 => Int2.unpack(map, packed),
            Format::Int4 => Int4.unpack(map, packed),
            Format::Int8 => Int8.unpack(map, packed),
        }
    }
}
