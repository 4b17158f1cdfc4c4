//! ArrowQuant quantizes diffusion-model weights to INT2, INT4 or INT8.
//!
//! Data flows one way through the modules:
//!
//! ```text
//! source ──> plan ──> run( quantize over kernel ) ──> sink      then: model reads what sink wrote
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`source`] | where weights come from: safetensors, diffusers folders, GGUF, Parquet, memory |
//! | [`plan`] | what each tensor gets, decided before any work |
//! | [`calibrate`] | statistics of activations |
//! | [`quantize`] | chooses codes and scales of rows |
//! | [`kernel`] | numbers to bytes and back, by instruction set |
//! | [`run`] | carries out a plan; decodes and verifies whole files |
//! | [`sink`] | where weights go: the Parquet file, safetensors |
//! | [`model`] | opens a quantized file |
//! | [`mod@format`], [`schema`] | the layout of a quantized tensor, and of the file |
//! | [`tensor`], [`error`] | dtypes and shapes; all errors |
//! | [`capi`] | the C API, declared in `include/arrowquant.h` |
//!
//! The most common task is one call, [`run::quantize_file`]; [`model::Model`] reads the result.
//!
//! ```standalone_crate
//! # let folder = tempfile::tempdir().unwrap();
//! # std::fs::copy("examples/models/dit-digits.safetensors", folder.path().join("in.safetensors")).unwrap();
//! # std::env::set_current_dir(&folder).unwrap();
//! use std::path::Path;
//! use arrowquant::{format::Float, model::Model, plan::Config, run::{self, Options}};
//!
//! # fn main() -> arrowquant::error::Result<()> {
//! let mut config = Config::new();
//! config.set("bit_width", "4")?;
//! let report = run::quantize_file(Path::new("in.safetensors"), Path::new("out.parquet"), &config, Options::default())?;
//! println!("cosine {:?}", report.total.cosine);
//!
//! let model = Model::open(Path::new("out.parquet"))?;
//! let tensor = model.find("blocks.0.attn.qkv.weight").expect("in the model");
//! let mut rows = vec![0; 2 * model.tensors()[tensor].info.shape.cols() * 4];
//! model.dequantize_rows(tensor, 0..2, Float::F32, &mut rows)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`mod@format`] and [`kernel`] use only `core`; without the `std` feature the crate has nothing
//! else.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(missing_docs)]

#[cfg(any(feature = "std", feature = "firmware"))]
pub mod capi;
#[doc(inline)]
pub use arrowquant_kernels::{format, kernel};

#[cfg(feature = "std")]
pub mod calibrate;
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
