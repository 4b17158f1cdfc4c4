//! The kernels of each encoding: which there are, and what a new one has to say.
//!
//! Uniform codes (`kernel/uniform`) have kernels of their own, written for speed. Any other
//! encoding implements [`Codec`] in a file of this folder: how to decode sixteen weights, how to
//! encode a block, and how to multiply its scales. The drivers in `drive.rs` make all kernels of
//! that, for each instruction set. A new encoding `Q8_0` is `q8_0.rs`, and here its `mod`, its
//! number in [`index`], and its line in [`codecs`].

#[cfg_attr(
    not(test),
    allow(dead_code, reason = "without a codec only tests use it")
)]
mod drive;

#[cfg_attr(
    not(test),
    allow(unused_imports, reason = "without a codec only tests use it")
)]
pub(super) use drive::*;

use crate::format::Encoding;

/// The place of an encoding's kernels in a table.
#[inline]
pub(super) const fn index(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Uniform(_) => UNIFORM,
    }
}

/// The place of the kernels of uniform codes.
pub(super) const UNIFORM: usize = 0;

/// How many encodings have kernels of their own; in tests one more, for the drivers.
pub(super) const CODECS: usize = 1 + cfg!(test) as usize;

/// The kernels of every encoding over some lanes, in the order of [`index`]. (Expanded in
/// `tables.rs`, which has the macros that compile them.)
macro_rules! codecs {
    ($lanes:ty, $bytes:ty $(, $features:literal)?) => {
        [
            uniform_codec!($lanes, $bytes $(, $features)?),
            #[cfg(test)]
            block_codec!($lanes, $crate::kernel::harness::codec::Bytes32 $(, $features)?),
        ]
    };
}
pub(super) use codecs;
