//! A configuration: what is read must be written so that it reads back the same.
#![no_main]

use arrowquant::plan::Config;
use arrowquant_fuzz::end_on_panic;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: end_on_panic(), |text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let mut config = Config::new();
    if config.merge_yaml(text).is_err() {
        return;
    }
    let written = config.to_yaml().expect("plain settings");
    let mut again = Config::new();
    again.merge_yaml(&written).expect("what was written");
    assert_eq!(config.to_json(), again.to_json());
});
