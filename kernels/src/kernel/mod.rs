//! Numbers to bytes and back: `core` only, no I/O, no allocation, no threads.
//!
//! [`KernelTable`] holds one instruction set's kernels as function pointers;
//! [`KernelTable::choose`] picks one at run time. All tables give the same bits: each is the same
//! code over that ISA's `Lanes`, and is tested against the scalar one, which is the specification.
//! Products alone may round otherwise. Programs that are built to be fuzzed have the scalar table
//! alone: the others, instrumented, take a quarter of an hour to compile.

mod activations;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx2;
#[cfg(all(feature = "std", target_arch = "x86_64", not(fuzzing)))]
mod avx512;
mod channels;
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
