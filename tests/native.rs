//! Programs in C and C++ that use the library as a stranger's would.

use std::path::Path;
use std::process::Command;

use crate::common::native::*;
use crate::common::*;

#[test]
fn the_contract_holds() {
    for link in LINKS {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("contract");
        let files = folder.path().join("files");
        std::fs::create_dir(&files).unwrap();
        build(&root().join("tests/c/contract.c"), "gnu11", link, &program);
        let printed = succeed(Command::new(&program).arg(&files), "gcc");
        // It says how much it checked, so that an empty run does not pass.
        let checks: usize = printed
            .trim()
            .strip_suffix(" checks")
            .unwrap()
            .parse()
            .unwrap();
        assert!(checks > 700, "{checks} checks");
        assert_eq!(names_in(&files.join("out")), ["out.parquet"]);
    }
}

#[test]
fn the_wrapper_for_cpp_adds_handles_exceptions_and_views() {
    for (link, standard) in [(Link::Shared, "c++17"), (Link::Static, "c++20")] {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("wrapper");
        build(
            &root().join("tests/c/wrapper.cpp"),
            standard,
            link,
            &program,
        );
        let mut command = Command::new(&program);
        command
            .arg(demo_model("dit-digits.safetensors"))
            .arg(folder.path());
        let printed = succeed(&mut command, "g++");
        assert!(printed.starts_with("803 checks"), "{printed}");
    }
}

/// A program of examples/ quantizes the digits model; what it prints.
fn example(program: &mut Command, expected: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    let printed = succeed(
        program
            .arg(demo_model("dit-digits.safetensors"))
            .arg(&output),
        "gcc",
    );
    assert!(
        std::fs::read(output).unwrap() == expected,
        "{program:?} wrote other bytes"
    );
    printed
}

#[test]
fn the_examples_do_the_same_in_every_language() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("cli.parquet");
    let input = demo_model("dit-digits.safetensors");
    arrowquant_ok([
        Path::new("quantize"),
        input.as_path(),
        &output,
        Path::new("--bits"),
        Path::new("4"),
    ]);
    let expected = std::fs::read(output).unwrap();

    // Not built yet when only some tests are asked for.
    succeed(cargo("build").args(["--example", "quantize"]), "cargo");
    let rust = built().join("examples/quantize");
    let rust = example(&mut Command::new(rust), &expected);
    assert!(
        rust.starts_with("23 tensors quantized, 29 kept: 4.126 bits a weight, cosine 0.99695"),
        "{rust}"
    );
    assert_eq!(rust.lines().count(), 6);
    for link in LINKS {
        for (file, standard) in [("quantize.c", "c11"), ("quantize.cpp", "c++17")] {
            let program = folder.path().join(format!("{file}-{link:?}"));
            build(
                &root().join("examples").join(file),
                standard,
                link,
                &program,
            );
            assert_eq!(
                example(&mut Command::new(program), &expected),
                rust,
                "{file} {link:?}"
            );
        }
    }
    let python = crate::python::python();
    let mut script = Command::new(python);
    script.arg(root().join("examples/quantize.py"));
    assert_eq!(example(&mut script, &expected), rust);
}
