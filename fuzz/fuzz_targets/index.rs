//! The index of a sharded model, beside two shards with the tensors `a` and `b`.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, folder, json, shard};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(
    init: {
        end_on_panic();
        for name in ["a", "b"] {
            let path = folder().join(format!("{name}.safetensors"));
            std::fs::write(path, shard(name)).expect("room for a file");
        }
    },
    |text: &[u8]| {
        let index = folder().join("model.safetensors.index.json");
        std::fs::write(&index, text).expect("room for a file");
        let _ = arrowquant::source::open(&index);
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
