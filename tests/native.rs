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
        let mut command = Command::new(&program);
        command.arg(&files).arg(transformed_model());
        let printed = succeed(&mut command, "gcc");
        // It says how much it checked, so that an empty run does not pass.
        let checks: usize = printed
            .trim()
            .strip_suffix(" checks")
            .unwrap()
            .parse()
            .unwrap();
        assert!(checks > 1500, "{checks} checks");
        assert_eq!(names_in(&files.join("out")), ["out.parquet"]);
    }
}

#[test]
fn a_bug_inside_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for link in LINKS {
        let program = folder.path().join("fence");
        build_failing(&root().join("tests/c/fence.c"), link, &program);
        let mut command = Command::new(&program);
        command.arg(demo_model("dit-digits.safetensors"));
        let output = run(command.arg(folder.path().join("out.parquet")), "gcc");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(output.stdout, b"24 checks\n");
        assert_eq!(stderr, "", "no message of a panic");
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
            .arg(folder.path())
            .arg(transformed_model());
        let printed = succeed(&mut command, "g++");
        assert!(printed.starts_with("876 checks"), "{printed}");
    }
}

/// A program of examples/ quantizes the digits model; what it prints.
fn example(program: &mut Command, settings: &[&str], expected: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    let printed = succeed(
        program
            .arg(demo_model("dit-digits.safetensors"))
            .arg(&output)
            .args(settings),
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
    // Not built yet when only some tests are asked for.
    succeed(cargo("build").args(["--example", "quantize"]), "cargo");
    let rust = built().join("examples/quantize");
    let mut others = Vec::new();
    for link in LINKS {
        for (file, standard) in [("quantize.c", "c11"), ("quantize.cpp", "c++17")] {
            let program = folder.path().join(format!("{file}-{link:?}"));
            let source = root().join("examples").join(file);
            build(&source, standard, link, &program);
            others.push(vec![program]);
        }
    }
    others.push(vec![
        crate::python::python().to_owned(),
        root().join("examples/quantize.py"),
    ]);

    let by_settings = [
        (
            &["--bits", "4"][..],
            &[][..],
            "20 tensors quantized, 32 kept: 4.125 bits a weight, cosine 0.99692",
        ),
        (
            &["--bits", "2", "--method", "minmax"],
            &["bit_width=2", "method=minmax"],
            "20 tensors quantized, 32 kept: 2.1",
        ),
    ];
    for (flags, settings, start) in by_settings {
        let output = folder.path().join("cli.parquet");
        let input = demo_model("dit-digits.safetensors");
        let paths = [Path::new("quantize"), &input, &output];
        arrowquant_ok(paths.into_iter().chain(flags.iter().map(Path::new)));
        let expected = std::fs::read(output).unwrap();
        let printed = example(&mut Command::new(&rust), settings, &expected);
        assert!(printed.starts_with(start), "{printed}");
        assert_eq!(printed.lines().count(), 7);
        for program in &others {
            let mut command = Command::new(&program[0]);
            let other = example(command.args(&program[1..]), settings, &expected);
            assert_eq!(other, printed, "{program:?}");
        }
    }
}
