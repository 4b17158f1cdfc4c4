//! Who may import whom: data flows one way through the rooms of `src/`.

use std::collections::{BTreeMap, BTreeSet};
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

/// A source file of the library or of its kernels.
struct File {
    path: PathBuf,
    /// Where it lies in its crate, without `.rs` and without `mod`.
    module: Vec<String>,
    /// Whether it is the `mod.rs` of a folder.
    is_front: bool,
    text: String,
}

impl File {
    fn room(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    /// The code that is compiled into the library: neither tests nor comments.
    fn code(&self) -> String {
        let code = self.text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().filter(|l| !l.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_test(&self) -> bool {
        let test = |name: &String| name == "tests" || name == "harness" || name.ends_with("_tests");
        self.module.iter().any(test)
    }
}

/// Every source file of the library and of its kernels.
fn files() -> Vec<File> {
    let mut files = Vec::new();
    for crate_folder in ["src", "kernels/src"] {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join(crate_folder);
        let mut paths = Vec::new();
        sources(&src, &mut paths);
        for path in paths {
            let inside = path.strip_prefix(&src).unwrap().with_extension("");
            let names = inside.components();
            let mut module: Vec<String> = names
                .map(|name| name.as_os_str().to_string_lossy().into_owned())
                .collect();
            let is_front = module.last().is_some_and(|name| name == "mod");
            if is_front || module == ["lib"] {
                module.pop();
            }
            let text = std::fs::read_to_string(&path).unwrap();
            files.push(File {
                path,
                module,
                is_front,
                text,
            });
        }
    }
    files
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
    for file in files() {
        let (room, path) = (file.room(), file.path.display());
        let used = used(&file.text);
        if room == "bin" {
            assert!(used.is_empty(), "{path} reaches into the crate");
            continue;
        }
        if room == "lib" {
            continue;
        }
        let row = MAY_USE.iter().find(|row| row.0 == room);
        let (_, may) = row.unwrap_or_else(|| panic!("{path}: no such room"));
        for other in used {
            assert!(
                other == room || may.contains(&other.as_str()),
                "{path}: {room} may not use {other}"
            );
        }
    }
}

#[test]
fn rooms_are_named_where_they_are_seen() {
    let text = "use crate::plan::Plan;\n// crate::run\nlet x = crate::model::open();";
    let expected = ["model", "plan"].map(str::to_owned);
    assert_eq!(used(text), BTreeSet::from(expected));
    for file in files() {
        let path = file.path.display();
        assert!(!hidden(&file.text), "{path}: write one use line a room");
    }
}

#[test]
fn kernels_are_core_only() {
    for file in files() {
        // CPU detection and the environment are std's, under its feature; tests may use it.
        let exempt = file.is_test() || file.path.ends_with("isa.rs");
        if ["kernel", "format"].contains(&file.room()) && !exempt {
            let path = file.path.display();
            assert!(!file.code().contains("std::"), "{path} uses std");
        }
    }
}

#[test]
fn no_kernel_is_chosen_at_compile_time() {
    for file in files() {
        let path = file.path.display();
        assert!(!file.text.contains("cfg(target_feature"), "{path}");
    }
}

/// The paths that a piece of code names with `use`, braces expanded: `a::{b, c::d}` is `a::b` and
/// `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap();
        return vec![path.trim().trim_end_matches("::self").to_owned()];
    };
    let (before, inside) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    let ends = inside.char_indices().chain([(inside.len(), ',')]);
    for (at, character) in ends {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inside[start..at].trim();
                if !part.is_empty() {
                    found.extend(expanded(part).iter().map(|path| format!("{before}{path}")));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// An absolute path in the crate, part by part.
type CratePath = Vec<String>;

/// What a file names of its own crate, as absolute paths, and the names that its `mod.rs` hands on:
/// name and path.
fn named(file: &File) -> (Vec<CratePath>, Vec<(String, CratePath)>) {
    let uses = Regex::new(r"(?m)^\s*(pub(?:\([a-z ]+\))? )?use ([^;]+);").unwrap();
    let inline = Regex::new(r"\b(?:super|crate)(?:::\w+)+").unwrap();
    let bare = Regex::new(r"\b[a-z_0-9]+(?:::\w+)+").unwrap();
    let parent = match file.is_front || file.module.is_empty() {
        true => file.module.clone(),
        false => file.module[..file.module.len() - 1].to_vec(),
    };
    let absolute = |path: &str| -> Option<Vec<String>> {
        let mut parts: Vec<String> = path.split("::").map(|p| p.trim().to_owned()).collect();
        let first = parts.remove(0);
        let base = match first.as_str() {
            "crate" => Vec::new(),
            // Of a front, `super` leaves the folder.
            "super" if file.is_front => parent[..parent.len() - 1].to_vec(),
            "super" => parent.clone(),
            "self" => file.module.clone(),
            _ if file.is_front => {
                parts.insert(0, first);
                parent.clone()
            }
            _ => return None,
        };
        Some(base.into_iter().chain(parts).collect())
    };
    let code = file.code();
    let (mut paths, mut handed_on) = (Vec::new(), Vec::new());
    for found in uses.captures_iter(&code) {
        for path in expanded(&found[2]).iter().filter_map(|path| absolute(path)) {
            match found.get(1).is_some() && file.is_front {
                true => handed_on.push((path.last().unwrap().clone(), path)),
                false => paths.push(path),
            }
        }
    }
    let rest = uses.replace_all(&code, "");
    let inline = inline.find_iter(&rest).map(|found| found.as_str());
    let bare = bare.find_iter(&rest).map(|found| found.as_str());
    let bare = bare.filter(|path| file.is_front && !path.starts_with("crate"));
    paths.extend(inline.chain(bare).filter_map(absolute));
    (paths, handed_on)
}

/// The files and folders of one folder, and which of these use which.
fn uses_within(folder: &[String], files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let inside: Vec<&File> = files
        .iter()
        .filter(|file| file.module.starts_with(folder) && !file.is_test())
        .collect();
    // Fronts are left out: they name all files, and what they define is the room's vocabulary.
    let node = |file: &File| file.module.get(folder.len()).cloned();
    let nodes: BTreeSet<String> = inside.iter().filter_map(|file| node(file)).collect();
    let front = inside.iter().find(|file| file.module == folder);
    let handed_on: BTreeMap<String, Vec<String>> = front
        .map(|front| named(front).1.into_iter().collect())
        .unwrap_or_default();
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in &inside {
        let Some(from) = node(file) else {
            continue;
        };
        for path in named(file).0 {
            let Some(next) = path.strip_prefix(folder).and_then(<[String]>::first) else {
                continue;
            };
            let handed = handed_on.get(next).and_then(|path| path.get(folder.len()));
            let to = match nodes.contains(next) {
                true => next.clone(),
                false => match handed {
                    Some(to) => to.clone(),
                    None => continue,
                },
            };
            if to != from {
                uses.entry(from.clone()).or_default().insert(to);
            }
        }
    }
    uses
}

/// A way from a file over others back to itself.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(
        uses: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let here = way.last().unwrap().clone();
        for next in uses.get(&here).into_iter().flatten() {
            if let Some(at) = way.iter().position(|name| name == next) {
                return Some(way[at..].to_vec());
            }
            if !done.contains(next) {
                way.push(next.clone());
                if let Some(found) = walk(uses, way, done) {
                    return Some(found);
                }
                way.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    uses.keys()
        .find_map(|name| walk(uses, &mut vec![name.clone()], &mut done))
}

#[test]
fn files_of_a_room_use_each_other_one_way() {
    let files = files();
    let folders = files.iter().filter(|file| file.is_front && !file.is_test());
    let mut found = Vec::new();
    for folder in folders.map(|file| &file.module) {
        if let Some(way) = circle(&uses_within(folder, &files)) {
            found.push(format!("{}: {}", folder.join("/"), way.join(" -> ")));
        }
    }
    assert!(found.is_empty(), "circles:\n{}", found.join("\n"));
}

#[test]
fn circles_are_found() {
    let file = |module: &[&str], is_front: bool, text: &str| File {
        path: PathBuf::new(),
        module: module.iter().map(|name| name.to_string()).collect(),
        is_front,
        text: text.to_owned(),
    };
    let room = ["run".to_owned()];
    let mut files = vec![
        file(
            &["run"],
            true,
            "mod a;\nmod b;\nmod c;\npub use c::{Thing, other};",
        ),
        file(
            &["run", "a"],
            false,
            "use super::b::{X, y::Z};\n// super::c\n",
        ),
        file(&["run", "b"], false, "fn f() -> super::Thing {}"),
        file(&["run", "c", "d"], false, "use crate::plan::a;"),
    ];
    assert_eq!(circle(&uses_within(&room, &files)), None);
    files[3].text = "use crate::run::{a, b as d};".to_owned();
    let way = circle(&uses_within(&room, &files)).unwrap();
    assert_eq!(way, ["a", "b", "c"]);
}
