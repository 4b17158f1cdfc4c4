//! Independent Python readers of the format, and the tests of the Python package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::native::*;
use crate::common::*;

/// Returns Python in a virtual environment in `target/`, with the packages that the tests need and
/// the arrowquant package.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let requirements = root().join("tests/python/requirements.txt");
        let wanted = std::fs::read(&requirements).unwrap();
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let python = match cfg!(windows) {
            true => home.join("Scripts/python.exe"),
            false => home.join("bin/python"),
        };
        let stamp = home.join("installed.txt");
        if std::fs::read(&stamp).is_ok_and(|installed| installed != wanted) || !stamp.exists() {
            let system = if cfg!(windows) { "python" } else { "python3" };
            let mut make = Command::new(system);
            make.args(["-m", "venv", "--clear"]).arg(&home);
            succeed(&mut make, "python3 (3.9 or newer) with python3-venv");
            let mut install = Command::new(&python);
            install
                .args(["-m", "pip", "install", "--quiet", "-r"])
                .arg(&requirements);
            succeed(
                &mut install,
                "python3-venv, and from PyPI those of tests/python/requirements.txt",
            );
            std::fs::write(stamp, wanted).unwrap();
        }
        // The arrowquant package is always reinstalled, with the library that was just built.
        let mut install = Command::new(&python);
        install.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-build-isolation",
            "--no-deps",
        ]);
        install
            .args(["--force-reinstall", "--no-index"])
            .arg(root().join("bindings/python"));
        install.env("ARROWQUANT_LIBRARY", library(&shared()));
        succeed(&mut install, "python3-venv");
        python
    })
}

#[test]
fn the_package_does_what_it_says() {
    let mut pytest = Command::new(python());
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .arg(root().join("tests/python"));
    pytest.env("ARROWQUANT_CLI", env!("CARGO_BIN_EXE_arrowquant"));
    // The forward passes use their own threads.
    pytest.env("OPENBLAS_NUM_THREADS", "1");
    let printed = succeed(&mut pytest, "python3");
    let passed = regex::Regex::new(r"(\d+) passed")
        .unwrap()
        .captures(&printed);
    let passed: usize = passed.unwrap()[1].parse().unwrap();
    assert!(passed > 50 && !printed.contains("skipped"), "{printed}");
}

#[test]
fn python_readers_agree_with_us() {
    let output = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_format.py"))
        .arg(env!("CARGO_BIN_EXE_arrowquant"))
        .arg(demo_model("dit-digits.safetensors"))
        .arg(transformed_model())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    // The script prints the number of comparisons, so an empty run does not pass.
    assert!(stdout.contains("decoded bit for bit: 1296"), "{stdout}");
    assert!(stdout.contains("undone bit for bit: 5"), "{stdout}");
}
