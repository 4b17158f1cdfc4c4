//! The index of a diffusers folder, beside two components with a tensor each.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, folder, json, shard};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(
    init: {
        end_on_panic();
        for name in ["transformer", "vae"] {
            let component = folder().join(name);
            std::fs::create_dir(&component).expect("room for a folder");
            let path = component.join("diffusion_pytorch_model.safetensors");
            std::fs::write(path, shard(name)).expect("room for a file");
        }
    },
    |text: &[u8]| {
        std::fs::write(folder().join("model_index.json"), text).expect("room for a file");
        let _ = arrowquant::source::open(folder());
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
