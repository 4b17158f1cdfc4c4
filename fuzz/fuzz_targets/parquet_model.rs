//! A quantized file: opened, every plane looked at, decoded, exported.
#![no_main]

use std::sync::Arc;

use arrowquant::format::Float;
use arrowquant::model::{ArrowExport, Model};
use arrowquant_fuzz::{Random, end_on_panic, parquet};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Weights that are decoded; larger tensors would only take time.
const SMALL: usize = 1 << 14;

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    let Ok(model) = Model::from_bytes(file.to_vec()) else {
        return;
    };
    let _ = model.source_metadata();
    for (i, tensor) in model.tensors().iter().enumerate().take(20) {
        for tile in 0..tensor.tiles.len().min(4) {
            let _ = model.planes(i, tile);
            let _ = model.check_tile(i, tile);
        }
        let shape = &tensor.info.shape;
        if shape.elements() > SMALL {
            continue;
        }
        for float in [Float::F32, Float::F16, Float::BF16] {
            let mut out = vec![0; shape.elements() * float.size()];
            let _ = model.dequantize_rows(i, 0..shape.rows(), float, &mut out);
        }
        let (x, mut y) = (vec![1.0; shape.cols()], vec![0.0; shape.rows()]);
        let _ = model.matvec(i, &x, &mut y);
    }
    for batch in ArrowExport::new(Arc::new(model)).take(20) {
        let _ = batch;
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(parquet::mutate, data, size, max_size, seed)
});
