//! A ceiling on memory: held as the system measures it, refused when it is too low, and taken by
//! the run itself when memory is short.

use std::path::Path;
use std::process::Command;

use arrowquant::error::Error;
use arrowquant::run::{self, Level, Options, Report};
use arrowquant::source;

use crate::common::*;

/// A matrix of many rows, and a vector that is kept, `mb` megabytes each.
fn write_large(path: &Path, mb: usize) {
    let row = noise(1, 2048);
    let matrix: Vec<f32> = row.iter().copied().cycle().take(mb * 500_000).collect();
    let cols = 2000;
    let tensors = [
        bf16_tensor("embed.weight", &[matrix.len() / cols, cols], &matrix),
        bf16_tensor("table", &[matrix.len()], &matrix),
    ];
    std::fs::write(path, safetensors(&tensors)).unwrap();
}

/// Quantizes by the program; peak resident memory in bytes as the system has it.
#[cfg(target_os = "linux")]
fn peak(input: &Path, output: &Path, flags: &[&str]) -> usize {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arrowquant"));
    command
        .arg("quantize")
        .arg(input)
        .arg(output)
        .arg("--quiet")
        .args(flags);
    let child = command.spawn().unwrap();
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let mut status = 0;
    // SAFETY: plain numbers, of a child that nobody else waits for.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(waited, child.id() as i32);
    assert_eq!(status, 0, "{flags:?}");
    usage.ru_maxrss as usize * 1024
}

/// What a process begins with is that of its parent, so a test's own memory must stay low: the
/// program that makes the model is another test's.
#[cfg(target_os = "linux")]
#[test]
fn the_whole_process_stays_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("large.safetensors");
    let make = std::env::current_exe().unwrap();
    let made = Command::new(make)
        .args(["--exact", "ceiling::a_large_model_is_made"])
        .env("MAKE_LARGE_MODEL", &input)
        .output()
        .unwrap();
    assert!(made.status.success());
    let bytes = std::fs::metadata(&input).unwrap().len() as usize;
    assert!(bytes > 250_000_000);
    let output = |name: &str| folder.path().join(name);
    let held = peak(&input, &output("held.parquet"), &["--bits", "8"]);
    for (limit, flags) in [
        (64_000_000, &["--bits", "8", "--memory-limit", "64MB"][..]),
        (
            64_000_000,
            &["--bits", "8", "--memory-limit", "64MB", "--threads", "7"],
        ),
        (
            48_000_000,
            &["--bits", "8", "--memory-limit", "48MB", "--threads", "1"],
        ),
        (256 << 20, &["--bits", "8", "--streaming"]),
    ] {
        let path = output("limited.parquet");
        let found = peak(&input, &path, flags);
        assert!(found < limit, "{flags:?}: {found}");
        assert!(found < held, "{flags:?}: {found} as without");
        let same = Command::new("cmp")
            .arg(&path)
            .arg(output("held.parquet"))
            .status();
        assert!(same.unwrap().success(), "{flags:?}");
        std::fs::remove_file(path).unwrap();
    }
}

/// Makes the model of the test above in a process of its own; in others, a small one.
#[test]
fn a_large_model_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mb) = match std::env::var_os("MAKE_LARGE_MODEL") {
        Some(path) => (path.into(), 130),
        None => (folder.path().join("m.safetensors"), 1),
    };
    write_large(&path, mb);
    assert_eq!(source::open(&path).unwrap().tensors().len(), 2);
}

fn run(
    settings: &[(&str, &str)],
    free: Option<u64>,
) -> arrowquant::error::Result<(Report, Vec<String>)> {
    let folder = small_model();
    let source = source::open(&folder.path().join("model.safetensors"))?;
    let plan = run::plan(source.as_ref(), &config(settings))?;
    let mut said = Vec::new();
    let mut hear = |_: Level, message: &str| {
        said.push(message.to_owned());
        true
    };
    let options = Options {
        threads: 2,
        free_memory: free,
        log: Some(&mut hear),
        ..Options::default()
    };
    let report = run::quantize(
        source.as_ref(),
        &plan,
        &folder.path().join("o.parquet"),
        options,
    )?;
    Ok((report, said))
}

#[test]
fn too_low_a_ceiling_is_refused_with_the_lowest_that_works() {
    let message = run(&[("memory_limit", "1MB")], None)
        .unwrap_err()
        .to_string();
    let expected = "memory_limit: 1.0 MB is too little for this model with 2 threads, it takes ";
    let least = message
        .strip_prefix(expected)
        .unwrap_or_else(|| panic!("{message}"));
    let (report, _) = run(&[("memory_limit", least)], None).unwrap();
    let number: usize = least.strip_suffix("MB").unwrap().parse().unwrap();
    assert_eq!(report.memory_limit, Some(number * 1_000_000));
    assert!(report.streaming_because.is_none());
    let lower = format!("{}MB", number - 1);
    assert!(run(&[("memory_limit", &lower)], None).is_err());
}

#[test]
fn a_run_that_does_not_fit_streams_by_itself() {
    let (report, said) = run(&[], Some(1 << 40)).unwrap();
    assert!(report.streaming_because.is_none() && report.memory_limit.is_none());
    assert!(said.is_empty(), "{said:?}");
    let (report, said) = run(&[], Some(5_000_000)).unwrap();
    let because = report.streaming_because.unwrap();
    assert!(
        because.contains("of memory, of which 5.0 MB are free"),
        "{because}"
    );
    assert_eq!(said, [format!("streaming: {because}")]);
    assert!(report.memory_limit.is_some());

    let error = run(&[("fail_fast", "true")], Some(5_000_000)).unwrap_err();
    assert!(matches!(error, Error::Config { .. }));
    assert!(
        error.to_string().contains("streaming_mode would take less"),
        "{error}"
    );
    assert!(run(&[("fail_fast", "true")], Some(1 << 40)).is_ok());
    // What is asked for is no failure.
    let settings = [("fail_fast", "true"), ("streaming_mode", "true")];
    assert!(run(&settings, Some(5_000_000)).is_ok());
}

#[test]
fn sizes_are_read_in_any_unit() {
    for (text, bytes) in [
        ("64MB", 64_000_000),
        ("64MiB", 64 << 20),
        ("1GB", 1_000_000_000),
        ("1.5 GiB", 3 << 29),
        ("1000", 1000),
    ] {
        let config = config(&[("memory_limit", text)]);
        assert_eq!(config.memory_limit(), Some(bytes), "{text}");
        let mut again = arrowquant::plan::Config::new();
        again.merge_yaml(&config.to_yaml().unwrap()).unwrap();
        assert_eq!(again.memory_limit(), Some(bytes), "{text}");
    }
    for text in ["", "lots", "-5MB", "64XB"] {
        let message = arrowquant::plan::Config::new()
            .set("memory_limit", text)
            .unwrap_err()
            .to_string();
        let expected = format!("memory_limit: '{text}' is not a size such as 256MB");
        assert!(message.starts_with(&expected), "{message}");
    }
}
