//! How documentation comments begin: the first line of each names its subject.

use std::path::{Path, PathBuf};

use crate::common::root;

/// Words that no documentation comment may begin with, as they point to a subject elsewhere.
const WORDS: &[&str] = &["Of", "The same", "Those", "They", "Its", "Likewise"];

/// Adds the files below a folder that have the extension, in order of their paths.
fn find(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            find(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// First lines of runs of `///` and `//!` lines, with their line numbers.
fn comments(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut before = "";
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let mark = ["///", "//!"].into_iter().find(|&m| line.starts_with(m));
        let mark = mark.filter(|_| !line.starts_with("////")).unwrap_or("");
        if !mark.is_empty() && mark != before {
            found.push((i + 1, line[mark.len()..].trim_start_matches('<').trim()));
        }
        before = mark;
    }
    found
}

/// First lines of docstrings, with their line numbers.
fn docstrings(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (i, line) in text.lines().enumerate() {
        let marks = line.matches("\"\"\"").count();
        if !inside {
            let first = line.trim_start().trim_start_matches(['r', 'f']);
            if let Some(first) = first.strip_prefix("\"\"\"") {
                found.push((i + 1, first.trim_end_matches("\"\"\"").trim()));
            }
        }
        inside ^= marks % 2 == 1;
    }
    found
}

/// The word of [`WORDS`] that a line begins with.
fn begins(line: &str) -> Option<&'static str> {
    WORDS.iter().copied().find(|&word| {
        let rest = line.strip_prefix(word);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

#[test]
fn doc_comments_name_their_subject() {
    let root = root();
    let mut files = Vec::new();
    find(&root.join("src"), "rs", &mut files);
    find(&root.join("kernels/src"), "rs", &mut files);
    files.push(root.join("include/arrowquant.hpp"));
    find(&root.join("bindings/python/arrowquant"), "py", &mut files);
    assert!(files.len() > 100, "{} files", files.len());

    let mut wrong = Vec::new();
    let mut read = 0;
    for file in files {
        let path = file.strip_prefix(root).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let firsts = match path.extension() {
            Some(python) if python == "py" => docstrings(&text),
            _ => comments(&text),
        };
        read += firsts.len();
        for (line, first) in firsts {
            if let Some(word) = begins(first) {
                wrong.push(format!(
                    "{}:{line}: begins with '{word}': {first}",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(read > 500, "{read} comments");
}

#[test]
fn first_lines_are_found() {
    let text = "//! A file.\n//! Of it.\n\n/// Of a code.\n/// More.\nfn f() {}\n    /// They do.\n//// no\n";
    let firsts = comments(text);
    let expected = [(1, "A file."), (4, "Of a code."), (7, "They do.")];
    assert_eq!(firsts, expected);
    let wrong: Vec<_> = firsts.iter().map(|(_, first)| begins(first)).collect();
    assert_eq!(wrong, [None, Some("Of"), Some("They")]);

    let text = "\"\"\"A file.\"\"\"\ndef f():\n    \"\"\"The same for f,\n    Of more.\n    \"\"\"\n    x = 1\n";
    assert_eq!(docstrings(text), [(1, "A file."), (3, "The same for f,")]);
    assert_eq!(begins("Often"), None);
    assert_eq!(begins("The sameness"), None);
    assert_eq!(begins("The same, but"), Some("The same"));
}
