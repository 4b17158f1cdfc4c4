//! A Parquet file as a source: a table of tensors, or a file of ours whose tensors were kept.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, open_source, parquet};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    open_source("model.parquet", file);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(parquet::mutate, data, size, max_size, seed)
});
