//! Where weights go: quantized ones to Parquet, decoded ones to safetensors.

mod parquet;
mod safetensors;
mod staging;

pub use parquet::{Footer, ParquetSink, Plane, PlaneBuffer, TilePlanes};
pub use safetensors::SafetensorsSink;
pub use staging::StagedFile;
