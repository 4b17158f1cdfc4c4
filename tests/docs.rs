//! Commands that the documentation shows print what it says.

use crate::common::*;

/// A command and what it is said to print. In that, a line of `…` stands for any others.
struct Shown {
    command: String,
    printed: Vec<String>,
}

/// The commands in the `console` blocks of a page.
fn shown(page: &str) -> Vec<Shown> {
    let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
    let mut shown: Vec<Shown> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = line == "```console",
            Some(command) if inside => shown.push(Shown {
                command: command.to_owned(),
                printed: Vec::new(),
            }),
            None if inside => shown.last_mut().unwrap().printed.push(line.to_owned()),
            _ => {}
        }
    }
    assert!(!shown.is_empty(), "{page} shows no command");
    shown
}

/// Whether lines are those expected, in which `…` may be any number of them.
fn alike(expected: &[String], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=found.len()).any(|n| alike(rest, &found[n..]))
        }
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, found)| line == first && alike(rest, found)),
    }
}

#[test]
fn commands_print_what_pages_say() {
    for page in ["plans.md"] {
        for Shown { command, printed } in shown(page) {
            let mut words = command.split_whitespace();
            assert_eq!(words.next(), Some("arrowquant"), "{command}");
            // What is written is written elsewhere.
            let folder = tempfile::tempdir().unwrap();
            let words = words.map(|word| match word.ends_with(".parquet") {
                true => folder.path().join(word).into_os_string(),
                false => word.into(),
            });
            let output = program().args(words).current_dir(root()).output().unwrap();
            let found = [output.stdout, output.stderr].concat();
            let found = String::from_utf8(found).unwrap();
            let lines: Vec<&str> = found.lines().collect();
            assert!(
                alike(&printed, &lines),
                "{page}: {command}\nprints\n{found}"
            );
        }
    }
}

#[test]
fn dots_stand_for_any_lines() {
    let lines = |text: &[&str]| text.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    let expected = lines(&["a", "…", "b"]);
    assert!(alike(&expected, &["a", "x", "y", "b"]) && alike(&expected, &["a", "b"]));
    assert!(!alike(&expected, &["a", "b", "c"]) && !alike(&expected, &["x", "b"]));
}
