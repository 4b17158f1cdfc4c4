//! Does what a plan says: quantizes, decodes and verifies whole files.

mod decode;
mod engine;
mod folder;
mod memory;
mod pipeline;
mod pool;
mod progress;
mod report;
mod tile;
mod verify;

pub use decode::dequantize_file;
pub use folder::{PART_BYTES, Share, merge};
pub use pipeline::{
    Options, check_environment, check_not_input, output_bound, plan, quantize, quantize_file,
    quantize_into,
};
pub use progress::{Level, LogFn, Progress, ProgressFn};
pub use report::{Parts, Report, TensorReport, Totals};
pub use verify::{TensorCheck, Verification, verify};
