//! The ladder: tensors that do not reach their cosine get more bits, and are reported.

use std::path::{Path, PathBuf};

use arrowquant::run::{Report, TensorReport};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::*;

/// Four matrices of the same noise, whose thresholds make each end on another rung: 2 bits reach
/// .94, 4 bits .995 and 8 bits .99998 on such matrices.
const RULES: &str = "a=min_cosine:0.9;b=min_cosine:0.98;c=min_cosine:0.9999;d=min_cosine:0.9999999";

fn model() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let values = noise(5, 200 * 256);
    let tensors = ["a", "b", "c", "d"].map(|name| bf16_tensor(name, &[200, 256], &values));
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, safetensors(&tensors)).unwrap();
    (folder, path)
}

fn tensor<'a>(report: &'a Report, name: &str) -> &'a TensorReport {
    report
        .tensors
        .iter()
        .find(|tensor| tensor.name == name)
        .unwrap()
}

#[test]
fn a_tensor_for_each_rung() {
    let (folder, model) = model();
    let output = folder.path().join("out.parquet");
    let report = quantize(&model, &output, &[("bit_width", "2"), ("rules", RULES)]).unwrap();
    let ends = ["a", "b", "c", "d"].map(|name| tensor(&report, name).format);
    assert_eq!(ends, ["int2", "int4", "int8", "kept"]);
    // The attempts equal runs at these bits without a threshold.
    let uniform = ["2", "4", "8"].map(|bits| {
        let settings = [("bit_width", bits), ("min_cosine", "none")];
        let report = quantize(&model, &output, &settings).unwrap();
        (
            tensor(&report, "d").format.to_owned(),
            tensor(&report, "d").cosine.unwrap(),
        )
    });
    for (name, rungs) in [("a", 0), ("b", 1), ("c", 2), ("d", 3)] {
        let steps = &tensor(&report, name).ladder;
        assert_eq!(steps.len(), rungs, "{name}");
        for (step, (format, cosine)) in steps.iter().zip(&uniform) {
            assert_eq!(
                (step.format.name(), step.cosine),
                (format.as_str(), *cosine),
                "{name}"
            );
            assert!(step.cosine < step.min_cosine);
        }
    }
    assert!(report.tensors.iter().all(|tensor| !tensor.below_min_cosine));
}

#[test]
fn the_program_says_how_often_each_rung_was_taken() {
    let (folder, model) = model();
    let output = folder.path().join("out.parquet");
    let report = folder.path().join("report.json");
    let rules = RULES.split(';').flat_map(|rule| ["--rule", rule]);
    let paths = [
        model.as_os_str(),
        output.as_os_str(),
        "--report".as_ref(),
        report.as_os_str(),
    ];
    let args = ["quantize".as_ref()]
        .into_iter()
        .chain(paths)
        .chain(["--bits=2".as_ref()]);
    let text = arrowquant_ok(args.chain(rules.map(AsRef::as_ref)));
    let line = "ladder: 1 tensor from int2 to int4, 1 tensor from int2 to int8, 1 tensor from int2 to kept";
    assert!(text.contains(line), "{text}");
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let step = &report["tensors"][1]["ladder"][0];
    assert_eq!(
        (&step["format"], &step["measure"]),
        (&"int2".into(), &"weight".into())
    );
}

#[test]
fn fail_fast_names_tensor_value_and_threshold() {
    let (folder, model) = model();
    let output = folder.path().join("out.parquet");
    let settings = [("bit_width", "2"), ("rules", RULES), ("fail_fast", "true")];
    let message = quantize(&model, &output, &settings)
        .unwrap_err()
        .to_string();
    let free = [("bit_width", "2"), ("min_cosine", "none")];
    assert!(!output.exists());
    let report = quantize(&model, &output, &free).unwrap();
    let measured = format!("cosine is {:.4}", tensor(&report, "b").cosine.unwrap());
    for part in [
        "model.safetensors",
        "tensor 'b'",
        &measured,
        "below min_cosine 0.98",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

fn quantized(model: &Path, output: &Path, flags: &[&str]) -> Vec<u8> {
    let paths = [
        "quantize".as_ref(),
        model.as_os_str(),
        output.as_os_str(),
        "--quiet".as_ref(),
    ];
    let rules = RULES.split(';').flat_map(|rule| ["--rule", rule]);
    let flags = flags.iter().copied().chain(rules).map(AsRef::as_ref);
    arrowquant_ok(paths.into_iter().chain(flags));
    match output.is_dir() {
        true => Vec::new(),
        false => std::fs::read(output).unwrap(),
    }
}

#[test]
fn the_same_bytes_in_every_mode() {
    let (folder, model) = model();
    let output = folder.path().join("out.parquet");
    let expected = quantized(&model, &output, &["--bits=2", "--threads=1"]);
    for flags in [
        &["--threads=2"][..],
        &["--threads=2", "--memory-limit=64MB"],
        &["--threads=1", "--streaming"],
    ] {
        let found = quantized(&model, &output, &[&["--bits=2"], flags].concat());
        assert!(found == expected, "{flags:?}");
    }
    let verified = arrowquant_ok([
        "verify".as_ref(),
        output.as_os_str(),
        "--against".as_ref(),
        model.as_os_str(),
        "--min-cosine=0.9".as_ref(),
    ]);
    assert!(verified.contains("4 tensors verified"), "{verified}");
}

#[test]
fn a_tensor_of_several_tiles_is_done_again_as_a_whole() {
    // 20 M weights: one tile at 2 bits, two at 8, three when kept; compressed tiles have 16 MiB.
    let folder = tempfile::tempdir().unwrap();
    let (rows, cols) = (10_000, 2_000);
    let row = noise(6, cols * 50);
    let values: Vec<f32> = row.iter().copied().cycle().take(rows * cols).collect();
    let tensors = [
        bf16_tensor("before", &[50, cols], &row),
        bf16_tensor("d", &[rows, cols], &values),
        bf16_tensor("behind", &[50, cols], &row),
    ];
    let model = folder.path().join("model.safetensors");
    std::fs::write(&model, safetensors(&tensors)).unwrap();
    let output = folder.path().join("out.parquet");
    for rule in ["c", "d"] {
        let rule = RULES
            .split(';')
            .find(|text| text.starts_with(rule))
            .unwrap();
        let rule = rule.replacen(rule.split('=').next().unwrap(), "d", 1);
        let settings = [
            ("bit_width", "2"),
            ("compression", "zstd"),
            ("rules", rule.as_str()),
        ];
        let report = quantize(&model, &output, &settings).unwrap();
        let whole = std::fs::read(&output).unwrap();
        let limited = [&settings[..], &[("memory_limit", "220MB")]].concat();
        quantize(&model, &output, &limited).unwrap();
        assert!(std::fs::read(&output).unwrap() == whole);
        let text = arrowquant_ok(["inspect".as_ref(), output.as_os_str(), "--json".as_ref()]);
        let file: Value = serde_json::from_str(&text).unwrap();
        let tensor = &file["tensors"][1];
        let expected = match tensor["format"].as_str() {
            Some("int8") => ("int8", 2, 2),
            _ => ("kept", 3, 3),
        };
        let steps = report.tensors[1].ladder.len();
        let found = (
            tensor["format"].as_str().unwrap(),
            tensor["tiles"].as_u64().unwrap(),
            steps,
        );
        assert_eq!(found, expected);
        arrowquant_ok([
            "verify".as_ref(),
            output.as_os_str(),
            "--against".as_ref(),
            model.as_os_str(),
        ]);
    }
}

#[test]
fn steps_survive_an_interrupted_run_into_a_folder() {
    let (folder, model) = model();
    let output = folder.path().join("parts");
    let flags = ["--bits=2", "--part-size=10kB"];
    quantized(&model, &output, &flags);
    let names = names_in(&output);
    let parts: Vec<Vec<u8>> = names
        .iter()
        .map(|name| std::fs::read(output.join(name)).unwrap())
        .collect();
    // As if it had ended after the second part.
    std::fs::remove_file(output.join("part-00002.parquet")).unwrap();
    let report = folder.path().join("report.json");
    let flags = [&flags[..], &["--report", report.to_str().unwrap()]].concat();
    quantized(&model, &output, &flags);
    for (name, bytes) in names.iter().zip(parts) {
        assert!(std::fs::read(output.join(name)).unwrap() == bytes, "{name}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let steps: Vec<usize> = tensors
        .iter()
        .map(|t| t["ladder"].as_array().unwrap().len())
        .collect();
    let formats: Vec<&str> = tensors
        .iter()
        .map(|t| t["format"].as_str().unwrap())
        .collect();
    assert_eq!(
        (steps, formats),
        (vec![0, 1, 2, 3], vec!["int2", "int4", "int8", "kept"])
    );
}

#[test]
fn a_budget_leaves_no_room_to_climb() {
    let (folder, model) = model();
    let output = folder.path().join("out.parquet");
    // All at 2 bits, plus about 3 kB: `b` and others stay below their thresholds.
    let most = 200 * 256 * 4 / 4 + 4 * 200 * 2 * 2 + 16_000;
    let most = format!("{most}B");
    let settings = [
        ("max_size", most.as_str()),
        ("candidates", "int2:128"),
        ("rules", RULES),
    ];
    let report = quantize(&model, &output, &settings).unwrap();
    let size = std::fs::metadata(&output).unwrap().len();
    assert!(
        format!("{size}B").len() <= most.len() && size < 200 * 256 * 2,
        "{size}"
    );
    let below = ["a", "b", "c", "d"].map(|name| tensor(&report, name).below_min_cosine);
    assert_eq!(below, [false, true, true, true]);
}
