//! A GGUF file: opened, and its values read. One that speaks of parts is the first of two.
#![no_main]

use std::sync::Once;

use arrowquant_fuzz::gguf::{PARTS, second_part};
use arrowquant_fuzz::{end_on_panic, folder, open_source};
use libfuzzer_sys::fuzz_target;

static SECOND: Once = Once::new();

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    let split = file.windows(6).any(|bytes| bytes == b"split.");
    if split {
        SECOND.call_once(|| {
            std::fs::write(folder().join(PARTS[1]), second_part()).expect("room for a file");
        });
    }
    open_source(if split { PARTS[0] } else { "model.gguf" }, file);
});
