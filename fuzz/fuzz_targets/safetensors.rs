//! A safetensors file: opened, and its values read.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, open_source, safetensors};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    open_source("model.safetensors", file);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(safetensors::mutate, data, size, max_size, seed)
});
