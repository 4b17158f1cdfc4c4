//! A plan: what is read must be written so that it reads back the same.
#![no_main]

use arrowquant::plan::Plan;
use arrowquant_fuzz::{Random, end_on_panic, json};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(init: end_on_panic(), |text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let Ok(mut plan) = Plan::from_json(text) else {
        return;
    };
    let again = Plan::from_json(&plan.to_json().to_string()).expect("what was written");
    assert_eq!(plan, again);
    let _ = plan.warnings();
    if let Some(entry) = plan.entries.first() {
        let name = entry.tensor.name.clone();
        let _ = plan.set(&name, "bits:8,group:64");
        let _ = plan.set(&name, "keep");
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    arrowquant_fuzz::mutator!(json::mutate, data, size, max_size, seed)
});
