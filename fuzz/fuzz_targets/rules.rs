//! A rule on the first line, and names that it may match on the others.
#![no_main]

use arrowquant::plan::{Pattern, Rule};
use arrowquant_fuzz::end_on_panic;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: end_on_panic(), |text: &[u8]| {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let (rule, names) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(rule) = rule.parse::<Rule>() else {
        return;
    };
    let again: Rule = rule.to_string().parse().expect("what was written");
    assert_eq!(rule.to_string(), again.to_string());
    for name in names.lines().take(10) {
        assert_eq!(rule.pattern.matches(name), again.pattern.matches(name));
        if let Ok(literal) = Pattern::literal(name) {
            assert!(literal.matches(name));
        }
    }
});
