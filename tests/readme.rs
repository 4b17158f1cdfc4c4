//! What the README shows works as it stands.

use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::common::native::*;
use crate::common::*;

/// The code blocks of a language.
fn snippets(language: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = Regex::new(&format!(
        r"(?ms)^```{}\n(.*?)^```$",
        regex::escape(language)
    ))
    .unwrap();
    let snippets: Vec<String> = block
        .captures_iter(&readme)
        .map(|found| found[1].to_owned())
        .collect();
    assert!(!snippets.is_empty(), "no {language} in the README");
    snippets
}

/// Runs a program beside a model; what it prints.
fn beside_a_model(program: impl FnOnce(&Path) -> Command) -> String {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_model("dit-digits.safetensors");
    std::fs::copy(model, folder.path().join("model.safetensors")).unwrap();
    let mut command = program(folder.path());
    let printed = succeed(command.current_dir(folder.path()), "gcc, g++ or python3");
    assert!(folder.path().join("model.parquet").exists());
    printed
}

#[test]
fn c_and_cpp() {
    for (language, standard) in [("c", "c11"), ("cpp", "c++17")] {
        for snippet in snippets(language) {
            for link in LINKS {
                let printed = beside_a_model(|folder| {
                    let source = folder.join(format!("snippet.{language}"));
                    std::fs::write(&source, &snippet).unwrap();
                    build(&source, standard, link, &folder.join("snippet"));
                    Command::new(folder.join("snippet"))
                });
                let expected = if language == "c" {
                    "1536 x 256, 196608 bytes"
                } else {
                    "768 rows"
                };
                assert!(printed.contains(expected), "{printed}");
            }
        }
    }
}

#[test]
fn python() {
    for snippet in snippets("python") {
        let printed = beside_a_model(|folder| {
            std::fs::write(folder.join("snippet.py"), &snippet).unwrap();
            let mut command = Command::new(crate::python::python());
            command.arg("snippet.py");
            command
        });
        assert!(printed.contains("cosine 0.99692"), "{printed}");
        assert!(printed.contains("(768, 256)"), "{printed}");
    }
}

/// The Rust of the README is that of the crate's documentation, which is compiled.
#[test]
fn rust() {
    let library = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let lines = library.lines().filter_map(|line| line.strip_prefix("//!"));
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(line));
    let shown: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
    let shown = shown.join("\n");
    for snippet in snippets("rust") {
        assert!(
            shown.contains(snippet.trim_end()),
            "not in src/lib.rs:\n{snippet}"
        );
    }
}
