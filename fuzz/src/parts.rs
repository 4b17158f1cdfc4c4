//! A small folder of parts.

use std::path::Path;

use arrowquant::plan::Config;
use arrowquant::run::{self, Options};
use arrowquant::source::MemorySource;
use arrowquant::tensor::Dtype;

/// Writes a folder of one part, with a matrix and a vector.
pub fn write(folder: &Path) {
    let mut source = MemorySource::new();
    let values: Vec<u8> = (0..120u8)
        .flat_map(|i| f32::from(i % 7).to_le_bytes())
        .collect();
    let added = source.add("x.weight", Dtype::F32, &[3, 40], values);
    added.expect("a right tensor");
    let added = source.add("x.bias", Dtype::F32, &[3], vec![0; 12]);
    added.expect("a right tensor");
    let plan = run::plan(&source, &Config::new()).expect("a plan");
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    run::quantize(&source, &plan, folder, options).expect("room for a part");
}
