//! A safetensors file: opened, and its values read.
#![no_main]

use arrowquant_fuzz::{Random, end_on_panic, safetensors};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    let folder = arrowquant_fuzz::folder();
    let path = folder.join("model.safetensors");
    std::fs::write(&path, file).expect("room for a file");
    let Ok(source) = arrowquant::source::open(&path) else {
        return;
    };
    for (i, tensor) in source.tensors().iter().enumerate() {
        let bytes = tensor.bytes().expect("checked when opened");
        let mut out = vec![0; bytes.min(1 << 16)];
        source.read(i, bytes - out.len(), &mut out).expect("inside the file");
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(safetensors::mutate, data, size, max_size, seed)
});
