//! Does what a plan says: quantizes, decodes and verifies whole files.

mod analyze;
mod context;
mod decode;
mod engine;
mod fingerprint;
mod fold;
mod folder;
mod inputs;
mod measure;
mod merge;
mod options;
mod part;
mod pipeline;
mod pool;
mod progress;
mod report;
mod search;
mod share;
#[cfg(test)]
mod transform_tests;
mod verify;

pub use analyze::{Analysis, FormatAnalysis, TensorAnalysis, analyze};
pub use decode::dequantize_file;
pub use engine::{output_bound, predicted_bytes};
pub use fold::{Fold, FoldReport, Folded, fold, fold_file};
pub use merge::merge;
pub use options::{Options, check_not_input};
pub use pipeline::{check_environment, plan, plan_with, quantize, quantize_file, quantize_into};
pub use progress::{Level, LogFn, Progress, ProgressFn};
pub use report::{Gauge, LadderStep, Parts, Report, TensorReport, Totals};
pub use search::{Evolution, Fitness, Parallel, Search, Serial, evolve};
pub use share::{PART_BYTES, Share};
pub use verify::{TensorCheck, Verification, verify};
