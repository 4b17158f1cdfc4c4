//! A GGUF file: opened, and its values read.
#![no_main]

use arrowquant_fuzz::{end_on_panic, open_source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: end_on_panic(), |file: &[u8]| {
    open_source("model.gguf", file);
});
