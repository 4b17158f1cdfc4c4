//! A part of a folder, of which a model is to be made.
#![no_main]

use arrowquant::model::Model;
use arrowquant::run;
use arrowquant_fuzz::{Random, end_on_panic, folder, parquet};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |part: &[u8]| {
    std::fs::write(folder().join("part-00000.parquet"), part).expect("room for a file");
    let _ = std::fs::remove_file(folder().join("manifest.json"));
    if run::merge(folder()).is_ok() {
        Model::open(folder()).expect("a folder that was merged");
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(parquet::mutate, data, size, max_size, seed)
});
