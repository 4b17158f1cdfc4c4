//! Where weights go: quantized ones to Parquet, decoded ones to safetensors.

mod destination;
mod parquet;
mod safetensors;
mod staging;

pub(crate) use destination::Destination;
pub(crate) use parquet::{Footer, ParquetSink, PlaneBuffer, TilePlanes};
pub(crate) use safetensors::SafetensorsSink;
pub use staging::StagedFile;
