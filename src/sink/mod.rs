//! Where weights go: quantized ones to Parquet, decoded ones to safetensors.

mod buffer;
mod columns;
mod destination;
mod footer;
mod parquet;
mod safetensors;
mod staging;

pub(crate) use buffer::{Buffers, PlaneBuffer};
pub(crate) use destination::Destination;
pub(crate) use footer::Footer;
pub(crate) use parquet::{Mark, ParquetSink, SHARED_BELOW, SHARED_BYTES, TilePlanes};
pub(crate) use safetensors::SafetensorsSink;
pub use staging::StagedFile;
pub(crate) use staging::{GoOn, remove_stale};
