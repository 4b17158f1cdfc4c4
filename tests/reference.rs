//! Files stay byte for byte what they were, on every instruction set. After a change that is meant to
//! alter them, `UPDATE_REFERENCE=1 cargo test --release reference` writes the hashes anew.

use std::process::Command;

use arrowquant::kernel::Isa;

use crate::common::native::succeed;
use crate::common::*;

/// What the program makes in every way there is, with the kernels of an instruction set.
fn hashes(isa: Isa) -> String {
    let python = if cfg!(windows) { "python" } else { "python3" };
    let mut command = Command::new(python);
    command
        .arg(root().join("tests/reference.py"))
        .arg(program().get_program())
        .env("AQ_ISA", isa.name());
    // Line by line, as Windows ends lines in its own way.
    let found = succeed(&mut command, "python3");
    found.lines().map(|line| format!("{line}\n")).collect()
}

/// The lines of one text that another does not have.
fn changed<'a>(found: &'a str, expected: &'a str) -> Vec<&'a str> {
    let only =
        |a: &'a str, b: &'a str| a.lines().filter(move |line| !b.lines().any(|l| l == *line));
    only(found, expected).chain(only(expected, found)).collect()
}

#[test]
fn files_are_what_they_were() {
    let path = root().join("tests/data/reference.txt");
    let found = hashes(Isa::detect());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(changed(&found, &expected), [""; 0]);
}

#[test]
fn files_are_the_same_on_every_instruction_set() {
    let path = root().join("tests/data/reference.txt");
    let expected = std::fs::read_to_string(path).unwrap();
    for &isa in Isa::ALL.iter().filter(|isa| isa.available()) {
        if isa != Isa::detect() {
            assert_eq!(changed(&hashes(isa), &expected), [""; 0], "{}", isa.name());
        }
    }
}
