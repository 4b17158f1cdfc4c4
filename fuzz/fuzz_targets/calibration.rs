//! A calibration: loaded, or refused.
#![no_main]

use arrowquant::calibrate::Calibration;
use arrowquant_fuzz::{Random, end_on_panic, folder, parquet};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    let path = folder().join("calibration.parquet");
    std::fs::write(&path, file).expect("room for a file");
    let Ok(calibration) = Calibration::load(&path, Some(1 << 20)) else {
        return;
    };
    for layer in calibration.layers() {
        let _ = calibration.bin_ranges(&layer.name, None);
        let _ = calibration.squares(&layer.name);
    }
    let _ = calibration.hash();
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(parquet::mutate, data, size, max_size, seed)
});
