//! Packed uniform codes in memory, over [`Lanes`].

use crate::format::{Encoding, Layout, Scheme, Width};
use crate::kernel::lanes::{BLOCK, LANES, Lanes};

/// The layout of a uniform matrix. Nothing else is given to the kernels of this folder.
#[inline(always)]
pub(crate) fn layout_of(encoding: Encoding) -> Layout {
    encoding.layout().expect("a uniform encoding")
}

/// A packed code in memory, and what it counts from. One that is known when a kernel is compiled,
/// or a [`Layout`].
pub(crate) trait Code: Copy {
    fn width(self) -> Width;
    fn scheme(self) -> Scheme;
    /// Writes the codes, or as many as there is room for.
    fn pack<L: Lanes>(self, codes: [L; BLOCK], packed: &mut [u8]);
    /// `map` of sixteen codes, or of as many as there are.
    fn unpack<L: Lanes>(self, map: &impl CodeMap<L>, packed: &[u8]) -> L;

    /// Bytes of `count` codes.
    #[inline(always)]
    fn bytes(self, count: usize) -> usize {
        self.width().row_bytes(count)
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
        use $crate::format::{Scheme, Width};
        use $crate::kernel::uniform::code as types;
        if $lanes::SPECIALIZED {
            match ($layout.width, $layout.scheme) {
                (Width::Two, Scheme::Symmetric) => with_code!(@ $code, types::Int2, $body),
                (Width::Two, Scheme::Affine) => with_code!(@ $code, types::Int2Affine, $body),
                (Width::Four, Scheme::Symmetric) => with_code!(@ $code, types::Int4, $body),
                (Width::Four, Scheme::Affine) => with_code!(@ $code, types::Int4Affine, $body),
                (Width::Eight, Scheme::Symmetric) => with_code!(@ $code, types::Int8, $body),
                (Width::Eight, Scheme::Affine) => with_code!(@ $code, types::Int8Affine, $body),
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
    ($type:ident, $width:ident, $scheme:ident, $pack:ident, |$map:ident, $packed:ident| $unpack:expr) => {
        #[derive(Clone, Copy)]
        pub(crate) struct $type;

        impl Code for $type {
            #[inline(always)]
            fn width(self) -> Width {
                Width::$width
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
                        let mut bytes = [0; LANES * Width::$width.bits() / 8];
                        bytes[..packed.len()].copy_from_slice(packed);
                        bytes
                    }
                };
                $unpack
            }
        }
    };
}

code!(Int2, Two, Symmetric, pack2, |map, packed| L::look_up2(
    map.table(),
    packed
));
code!(Int4, Four, Symmetric, pack4, |map, packed| L::look_up4(
    map.table(),
    packed
));
code!(Int8, Eight, Symmetric, pack8, |map, packed| map
    .of(L::unpack8(packed)));
code!(Int2Affine, Two, Affine, pack2, |map, packed| L::look_up2(
    map.table(),
    packed
));
code!(Int4Affine, Four, Affine, pack4, |map, packed| L::look_up4(
    map.table(),
    packed
));
code!(Int8Affine, Eight, Affine, pack8, |map, packed| map
    .of(L::unpack8(packed)));

impl Code for Layout {
    #[inline(always)]
    fn width(self) -> Width {
        self.width
    }
    #[inline(always)]
    fn scheme(self) -> Scheme {
        self.scheme
    }
    #[inline(always)]
    fn pack<L: Lanes>(self, codes: [L; BLOCK], packed: &mut [u8]) {
        match self.width {
            Width::Two => Int2.pack(codes, packed),
            Width::Four => Int4.pack(codes, packed),
            Width::Eight => Int8.pack(codes, packed),
        }
    }
    #[inline(always)]
    fn unpack<L: Lanes>(self, map: &impl CodeMap<L>, packed: &[u8]) -> L {
        match self.width {
            Width::Two => Int2.unpack(map, packed),
            Width::Four => Int4.unpack(map, packed),
            Width::Eight => Int8.unpack(map, packed),
        }
    }
}
