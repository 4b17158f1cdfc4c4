//! The documentation is correct: commands and snippets run, links lead somewhere, and lists of
//! keys, codes and functions are complete.

mod links;
mod lists;
mod page;
mod reference;
mod run;

use crate::common::*;
use page::Page;
use run::Reader;

/// Runs everything on a page.
fn check(path: &'static str) {
    let page = Page::read(path);
    for (line, text) in page.prose() {
        let indented = text.starts_with("    ") && !text.trim_start().starts_with(['-', '|', '*']);
        assert!(!indented, "{path}:{line}: code that nothing runs: {text}");
    }
    let mut reader = Reader::new(&page);
    for block in page.blocks() {
        reader.follow(&block);
    }
}

/// Makes a test for each page, and a list of all pages.
macro_rules! pages {
    ($($name:ident: $path:literal,)*) => {
        pub const PAGES: &[&str] = &[$($path),*];
        $(#[test] fn $name() { check($path); })*
    };
}

pages! {
    readme: "README.md",
    contributing: "CONTRIBUTING.md",
    changelog: "CHANGELOG.md",
    security: "SECURITY.md",
    benches: "benches/README.md",
    bindings_c: "bindings/c/README.md",
    bindings_python: "bindings/python/README.md",
    accuracy: "docs/accuracy.md",
    guide: "docs/guide.md",
    architecture: "docs/architecture.md",
    benchmarks: "docs/benchmarks.md",
    c_api: "docs/c-api.md",
    c_reference: "docs/c-reference.md",
    calibration: "docs/calibration.md",
    configuration: "docs/configuration.md",
    format: "docs/format.md",
    migration: "docs/migration.md",
    plans: "docs/plans.md",
    python: "docs/python.md",
    quickstart: "docs/quickstart.md",
    troubleshooting: "docs/troubleshooting.md",
    models: "examples/models/README.md",
}

#[test]
fn every_page_is_run() {
    for folder in ["", "docs", "benches", "bindings/c", "bindings/python"] {
        for name in names_in(&root().join(folder)) {
            if name.ends_with(".md") {
                let path = format!("{folder}/{name}");
                let path = path.trim_start_matches('/');
                assert!(PAGES.contains(&path), "{path} is not in the list");
            }
        }
    }
}
