//! The manifest of a folder of parts, beside its part.
#![no_main]

use arrowquant::model::Model;
use arrowquant_fuzz::{Random, end_on_panic, folder, json, parts};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(
    init: {
        end_on_panic();
        parts::write(folder());
    },
    |text: &[u8]| {
        std::fs::write(folder().join("manifest.json"), text).expect("room for a file");
        if let Ok(model) = Model::open(folder()) {
            let _ = model.source_metadata();
            let _ = model.check_tile(0, 0);
        }
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
