//! Formats and kernels of ArrowQuant: what a quantized row is, and numbers to bytes and back.
//!
//! The crate `arrowquant` re-exports both modules; this one exists so that a change elsewhere does
//! not compile the kernels again. Everything here uses `core` alone.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

pub mod format;
pub mod kernel;
