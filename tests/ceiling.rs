//! Memory limits: respected as measured by the system, refused when too low, and set by the run
//! itself when memory is short.

#[cfg(target_os = "linux")]
use std::path::Path;
#[cfg(target_os = "linux")]
use std::process::Command;

#[cfg(target_os = "linux")]
use arrowquant::calibrate::{Activations, Calibration, CalibrationOptions};
use arrowquant::error::Error;
#[cfg(target_os = "linux")]
use arrowquant::format::Float;
use arrowquant::run::{self, Level, Options, Report};
use arrowquant::source;

#[cfg(target_os = "linux")]
use crate::common::native::succeed;
use crate::common::*;

/// A matrix of many rows, and a vector that is kept, `mb` megabytes each.
#[cfg(target_os = "linux")]
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

/// Quantizes with the program; returns the peak resident memory measured by the system. Another
/// program starts it, because the system counts the memory of the parent.
#[cfg(target_os = "linux")]
fn peak(input: &Path, output: &Path, flags: &[&str]) -> usize {
    let mut python = Command::new("python3");
    python
        .args(["-I", "-S"])
        .arg(root().join("benches/child.py"))
        .args([env!("CARGO_BIN_EXE_arrowquant"), "quantize"])
        .args([input, output])
        .arg("--quiet")
        .args(flags);
    let printed = succeed(&mut python, "python3");
    let measured: serde_json::Value = serde_json::from_str(&printed).unwrap();
    measured["peak_bytes"].as_u64().unwrap() as usize
}

#[cfg(target_os = "linux")]
#[test]
fn the_whole_process_stays_under_it() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("large.safetensors");
    write_large(&input, 60);
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
        let same = std::fs::read(&path).unwrap() == std::fs::read(output("held.parquet")).unwrap();
        assert!(same, "{flags:?}");
        std::fs::remove_file(path).unwrap();
    }
}

/// The Hessian of a layer as wide as in large models, and its factor, also stay within the limit.
#[cfg(target_os = "linux")]
#[test]
fn a_wide_hessian_stays_under_it() {
    const COLS: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = noise(1, 32 * COLS);
    let tensors = [bf16_tensor("layer.weight", &[32, COLS], &weights)];
    std::fs::write(path("wide.safetensors"), safetensors(&tensors)).unwrap();
    let calibration = Calibration::new(CalibrationOptions {
        bins: 2,
        hessian_groups: 2,
        ..CalibrationOptions::default()
    });
    let calibration = calibration.unwrap();
    let values: Vec<u8> = noise(2, 8 * COLS)
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    for timestep in [0, 999] {
        let float = Float::F32;
        let x = Activations {
            rows: 8,
            cols: COLS,
            float,
            values: &values,
        };
        calibration.observe("layer", timestep, x).unwrap();
    }
    calibration.save(&path("calibration.parquet")).unwrap();
    drop(calibration);
    let file = path("calibration.parquet");
    let flags = [
        "--bits=2",
        "--spatial=false",
        "--calibration",
        file.to_str().unwrap(),
    ];
    let limited = |limit| [&flags[..], &["--threads=1", "--memory-limit", limit]].concat();
    let found = peak(
        &path("wide.safetensors"),
        &path("out.parquet"),
        &limited("512MB"),
    );
    assert!(found < 512_000_000, "{found}");
    // A square of f64 and two of f32 are needed.
    let too_low = [
        "quantize".into(),
        path("wide.safetensors"),
        path("low.parquet"),
    ];
    let mut program = program();
    program.args(too_low).args(limited("256MB"));
    let output = program.output().unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("memory_limit") && message.contains("it needs at least"),
        "{message}"
    );
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
    let expected =
        "memory_limit: 1.0 MB is too small for this model with 2 threads; it needs at least ";
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
        because.contains("of memory, but only 5.0 MB are free"),
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
    // Requested streaming is not a failure.
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
        let expected =
            format!("memory_limit: invalid value '{text}' (expected a size such as 256MB");
        assert!(message.starts_with(&expected), "{message}");
    }
}
