//! Where weights go: quantized ones to Parquet, decoded ones to safetensors.

mod buffer;
mod destination;
mod parquet;
mod safetensors;
mod staging;

pub(crate) use buffer::{Buffers, PlaneBuffer};
pub(crate) use destination::Destination;
pub(crate) use parquet::{Footer, ParquetSink, TilePlanes};
pub(crate) use safetensors::SafetensorsSink;
pub use staging::StagedFile;
