//! Does what a plan says: quantizes, decodes and verifies whole files.

mod decode;
mod engine;
mod fold;
mod folder;
mod guide;
mod job;
mod memory;
mod options;
mod output;
mod page;
mod pipeline;
mod pool;
mod progress;
mod report;
mod scales;
mod share;
mod spatial;
mod tile;
#[cfg(test)]
mod transform_tests;
mod verify;

pub use decode::dequantize_file;
pub use fold::{Fold, FoldReport, Folded, fold, fold_file};
pub use folder::merge;
pub use options::{Options, check_not_input};
pub use pipeline::{check_environment, output_bound, plan, quantize, quantize_file, quantize_into};
pub use progress::{Level, LogFn, Progress, ProgressFn};
pub use report::{Parts, Report, TensorReport, Totals};
pub use share::{PART_BYTES, Share};
pub use verify::{TensorCheck, Verification, verify};
