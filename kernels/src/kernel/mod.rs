//! Numbers to bytes and back: `core` only, no I/O, no allocation, no threads.
//!
//! [`KernelTable`] holds one instruction set's kernels as function pointers;
//! [`KernelTable::choose`] picks one at run time. All tables give the same bits: each is the same
//! code over that ISA's `Lanes`, and is tested against the scalar one, which is the specification.
//! Products alone may round otherwise. Programs that are built to be fuzzed have the scalar table
//! alone: the others, instrumented, take a quarter of an hour to compile.
//!
//! # How to read a kernel
//!
//! A kernel is written once, over sixteen f32 lanes (`lanes.rs`), and compiled for every instruction
//! set (`tables.rs`). So it is generic over `L: Lanes`, over the float that weights are
//! (`E: Element`), and over the codes (`C: Code`); all of it is `#[inline(always)]` into one function
//! that is compiled for the features of the instruction set. What is not inlined would not be.
//!
//! Take the errors of a group (`group_error` in `errors.rs`), three sums over pairs of a weight x and
//! what it decodes to, y:
//!
//! ```text
//! let [[signal, decoded, error]] = sums!(each_block, L, [3; 1], len, |sums, at, n, W| {
//!     for (x, y) in pairs.next::<W>(at, n) {
//!         let e = x.sub(y);
//!         sums[0][0] = sums[0][0].add(x.mul(x));
//!         sums[0][1] = sums[0][1].add(y.mul(y));
//!         sums[0][2] = sums[0][2].add(e.mul(e));
//!     }
//! });
//! ```
//!
//! By hand, for 150 weights of bf16 and 4-bit codes, this is:
//!
//! 1. `sums!` makes 1 x 3 sums of sixteen lanes, all 0. They run in f32 over at most 1024 elements
//!    (there would be a second round from element 1024 on), which keeps their rounding small.
//! 2. `each_block!` walks from element 0 to 150 in blocks of four vectors of sixteen: `at` is 0 and
//!    64, `W` is 4 and `n` 16, the elements of the last vector. What is left, 128 to 150, goes vector
//!    by vector, with `W` 1: `at` 128 with `n` 16, then `at` 144 with `n` 6. Four vectors go together
//!    since packing and unpacking codes is cheaper so; `each_vector!` is the same without blocks. The
//!    body is compiled three times, so that the two loops over whole vectors need not ask for `n`.
//! 3. `pairs.next` loads the weights and decodes the codes of these elements, and makes both 0 in
//!    lanes from `n` on, which then add nothing.
//! 4. Lane i has now added the elements i mod 16, on each instruction set alike. `fold_add` adds the
//!    lanes by one fixed tree, and the result goes on in f64: from there on sums are added in the
//!    order of groups, rows and tiles. Hence the same bits everywhere.
//!
//! `with_element!` and `with_code!` are where `E` and `C` come from: a `match` on what the caller said,
//! each arm of which is the body with a type of its own. Lanes that are an array in memory
//! (`SPECIALIZED` is false) get one body for all, which asks at run time: they are slow anyway, and
//! small.
//!
//! Where to look next: `uniform/encode.rs` quantizes a row, `uniform/dot.rs` multiplies one;
//! `codec/mod.rs` says what another encoding takes.

mod activations;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx2;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx512;
mod channels;
mod codec;
mod element;
mod errors;
mod group;
#[cfg(test)]
mod harness;
mod isa;
mod lanes;
#[cfg(all(feature = "std", target_arch = "aarch64", not(fuzzing)))]
mod neon;
mod product;
mod row;
mod scalar;
mod sums;
mod table;
mod tables;
mod transform;
mod uniform;

pub use activations::{ActivationGrid, NonFinite, QuantizeActivations};
pub use channels::ChannelSums;
pub use isa::{Isa, UnknownIsa};
pub use product::{Activations, ActivationsMut, ByteMatVec, MatVec};
pub use row::{
    CompareRow, DecodeRow, ErrorRow, Fit, Planes, QuantizeRow, RescaleRow, RowFault, Sums,
};
pub use sums::{ErrorSums, GainSums, Moments};
pub use table::KernelTable;
pub use transform::{TransformRows, Turn};
pub use uniform::{BUNDLE, Feedback, Projection, moments_tell};
