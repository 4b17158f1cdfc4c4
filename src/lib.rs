//! ArrowQuant quantizes the weights of diffusion models to INT2, INT4 and INT8.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod format;
pub mod kernel;

#[cfg(feature = "std")]
pub mod error;
#[cfg(feature = "std")]
pub mod model;
#[cfg(feature = "std")]
pub mod plan;
#[cfg(feature = "std")]
pub mod quantize;
#[cfg(feature = "std")]
pub mod run;
#[cfg(feature = "std")]
pub mod schema;
#[cfg(feature = "std")]
pub mod sink;
#[cfg(feature = "std")]
pub mod source;
#[cfg(feature = "std")]
pub mod tensor;
