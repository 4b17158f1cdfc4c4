//! Does what a plan says: quantizes, decodes and verifies whole files.

mod analyze;
mod decode;
mod engine;
mod fold;
mod folder;
mod guide;
mod job;
mod ladder;
mod measure;
mod memory;
mod merge;
mod options;
mod output;
mod page;
mod part;
mod pipeline;
mod pool;
mod progress;
mod report;
mod scales;
mod search;
mod share;
mod size;
mod spatial;
mod tile;
#[cfg(test)]
mod transform_tests;
mod verify;

pub use analyze::{Analysis, FormatAnalysis, TensorAnalysis, analyze};
pub use decode::dequantize_file;
pub use fold::{Fold, FoldReport, Folded, fold, fold_file};
pub use ladder::{Gauge, LadderStep};
pub use merge::merge;
pub use options::{Options, check_not_input};
pub use pipeline::{check_environment, plan, plan_with, quantize, quantize_file, quantize_into};
pub use progress::{Level, LogFn, Progress, ProgressFn};
pub use report::{Parts, Report, TensorReport, Totals};
pub use search::{Evolution, Fitness, Parallel, Search, Serial, evolve};
pub use share::{PART_BYTES, Share};
pub use size::{output_bound, predicted_bytes};
pub use verify::{TensorCheck, Verification, verify};
