//! Python programs that know the format from its description alone read our files.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

/// A virtual environment with the packages the programs need, made once in `target/`.
pub fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join("tests/python/requirements.txt");
    let wanted = std::fs::read(&requirements).unwrap();
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = match cfg!(windows) {
        true => home.join("Scripts/python.exe"),
        false => home.join("bin/python"),
    };
    let stamp = home.join("installed.txt");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    let run = |command: &mut Command, help: &str| {
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; {help}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {stderr}; {help}");
    };
    let system = if cfg!(windows) { "python" } else { "python3" };
    run(
        Command::new(system)
            .args(["-m", "venv", "--clear"])
            .arg(&home),
        "the tests need Python 3 with venv: install python3 and python3-venv",
    );
    run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "-r"])
            .arg(&requirements),
        "the tests need numpy, pyarrow and duckdb from PyPI",
    );
    std::fs::write(stamp, wanted).unwrap();
    python
}

#[test]
fn python_readers_agree_with_us() {
    let output = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_format.py"))
        .arg(env!("CARGO_BIN_EXE_arrowquant"))
        .arg(demo_model("dit-digits.safetensors"))
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    // The program says what it compared, so that an empty run does not pass.
    assert!(stdout.contains("decoded bit for bit: 1296"), "{stdout}");
}
