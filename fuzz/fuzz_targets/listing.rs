//! A list of tensors without their weights, and the plan for it.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, folder, json};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(
    init: {
        end_on_panic();
    },
    |text: &[u8]| {
        let path = folder().join("list.json");
        std::fs::write(&path, text).expect("room for a file");
        if let Ok(source) = arrowquant::source::open(&path) {
            let _ = arrowquant::run::plan(source.as_ref(), &arrowquant::plan::Config::new());
        }
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
