//! Who may import whom: data flows one way through the rooms of `src/`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Each room and the rooms it may use, beside itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &["tensor", "format"]),
    ("tensor", &["error", "format"]),
    ("format", &["error", "tensor"]),
    ("schema", &["format", "tensor", "error"]),
    ("kernel", &["format"]),
    (
        "calibrate",
        &["kernel", "schema", "format", "tensor", "error"],
    ),
    (
        "quantize",
        &["kernel", "calibrate", "format", "tensor", "error"],
    ),
    ("source", &["schema", "tensor", "error"]),
    ("plan", &["calibrate", "format", "tensor", "error"]),
    ("sink", &["schema", "format", "tensor", "error"]),
    (
        "model",
        &["schema", "kernel", "quantize", "format", "tensor", "error"],
    ),
    (
        "capi",
        &[
            "schema",
            "kernel",
            "calibrate",
            "quantize",
            "source",
            "plan",
            "run",
            "model",
            "format",
            "tensor",
            "error",
        ],
    ),
    (
        "run",
        &[
            "schema",
            "kernel",
            "calibrate",
            "quantize",
            "source",
            "plan",
            "sink",
            "model",
            "format",
            "tensor",
            "error",
        ],
    ),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Room and text of every source file of the library.
fn files() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let room = |path: &Path| {
        let first = path
            .strip_prefix(&src)
            .unwrap()
            .components()
            .next()
            .unwrap();
        let name = first.as_os_str().to_string_lossy().into_owned();
        name.strip_suffix(".rs").unwrap_or(&name).to_owned()
    };
    paths
        .into_iter()
        .map(|path| {
            (
                room(&path),
                path.clone(),
                std::fs::read_to_string(&path).unwrap(),
            )
        })
        .collect()
}

/// The rooms that a file names after `crate::`, in `use` lines and in paths.
fn used(text: &str) -> BTreeSet<String> {
    let room = Regex::new(r"\bcrate::(\w+)").unwrap();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let named = code.flat_map(|line| room.captures_iter(line).map(|found| found[1].to_owned()));
    named.collect()
}

/// Ways to name a room that [`used`] does not see.
fn hidden(text: &str) -> bool {
    text.contains("crate::{") || text.contains("super::super")
}

#[test]
fn rooms_use_only_those_below_them() {
    for (room, path, text) in files() {
        let used = used(&text);
        if room == "bin" {
            assert!(used.is_empty(), "{} reaches into the crate", path.display());
            continue;
        }
        if room == "lib" {
            continue;
        }
        let row = MAY_USE.iter().find(|row| row.0 == room);
        let (_, may) = row.unwrap_or_else(|| panic!("{}: no such room", path.display()));
        for other in used {
            assert!(
                other == room || may.contains(&other.as_str()),
                "{}: {room} may not use {other}",
                path.display()
            );
        }
    }
}

#[test]
fn rooms_are_named_where_they_are_seen() {
    let text = "use crate::plan::Plan;\n// crate::run\nlet x = crate::model::open();";
    let expected = ["model", "plan"].map(str::to_owned);
    assert_eq!(used(text), BTreeSet::from(expected));
    for (_, path, text) in files() {
        assert!(
            !hidden(&text),
            "{}: write one use line a room",
            path.display()
        );
    }
}

#[test]
fn kernels_are_core_only() {
    for (room, path, text) in files() {
        // CPU detection and the environment are std's, under its feature; tests may use it.
        let exempt = ["isa.rs", "harness.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        if (room == "kernel" || room == "format") && !exempt {
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            assert!(!code.contains("std::"), "{} uses std", path.display());
        }
    }
}

#[test]
fn no_kernel_is_chosen_at_compile_time() {
    for (_, path, text) in files() {
        assert!(!text.contains("cfg(target_feature"), "{}", path.display());
    }
}
