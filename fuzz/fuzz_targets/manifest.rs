//! The manifest of a folder of parts, beside a part: what is read must be written so that it
//! reads back the same.
#![no_main]

use std::path::Path;

use arrowquant::model::Model;
use arrowquant::schema::{MANIFEST, Manifest, part_name};
use arrowquant_fuzz::{Random, end_on_panic, folder, json};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

const PART: &[u8] = include_bytes!("../corpus-seeds/parquet_model/affine");

fuzz_target!(
    init: {
        end_on_panic();
        std::fs::write(folder().join(part_name(0)), PART).expect("room for a file");
    },
    |text: &[u8]| {
        let path = Path::new(MANIFEST);
        if let Ok(manifest) = Manifest::parse(path, text) {
            let again = Manifest::parse(path, manifest.text().as_bytes());
            assert_eq!(manifest, again.expect("what was written"));
            let _ = manifest.fingerprint.difference(&manifest.fingerprint);
        }
        std::fs::write(folder().join(MANIFEST), text).expect("room for a file");
        let _ = Model::open(folder());
    }
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
