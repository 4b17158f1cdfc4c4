//! Budgets: plans obey sizes and bits, choose well within them, and impossible ones are refused.

use std::path::Path;

use arrowquant::format::Format;
use arrowquant::plan::Plan;
use arrowquant::run::{self, Options};
use arrowquant::source;
use serde_json::Value;

use crate::common::*;

const MODELS: &[&str] = &["dit-digits.safetensors", "mdlm-python.safetensors"];

fn plan(model: &Path, settings: &[(&str, &str)]) -> Plan {
    let source = source::open(model).unwrap();
    run::plan(source.as_ref(), &config(settings)).unwrap()
}

/// Returns the bytes of planes in a file, and of the whole file.
fn sizes(path: &Path) -> (usize, u64) {
    let text = arrowquant_ok(["inspect".as_ref(), path.as_os_str(), "--json".as_ref()]);
    let file: Value = serde_json::from_str(&text).unwrap();
    let tensors = file["tensors"].as_array().unwrap().iter();
    let planes: u64 = tensors
        .map(|tensor| tensor["bytes"].as_u64().unwrap())
        .sum();
    (planes as usize, std::fs::metadata(path).unwrap().len())
}

#[test]
fn predicted_sizes_are_those_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    for model in MODELS {
        let model = demo_model(model);
        let source = source::open(&model).unwrap();
        for settings in [
            &[("bit_width", "2")][..],
            &[("bit_width", "8"), ("scheme", "affine")],
            &[("avg_bits", "3.5")],
            &[("mixed_precision", "true"), ("min_cosine", "0.99")],
        ] {
            let plan = run::plan(source.as_ref(), &config(settings)).unwrap();
            let predicted = run::predicted_bytes(source.as_ref(), &plan);
            run::quantize(source.as_ref(), &plan, &output, Options::default()).unwrap();
            let (planes, file) = sizes(&output);
            assert_eq!(planes, plan.total_bytes(), "{settings:?}");
            let apart = (predicted as f64 / file as f64 - 1.0).abs();
            assert!(apart < 0.01, "{settings:?}: {predicted} and {file}");
        }
    }
}

#[test]
fn files_are_no_larger_than_they_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    for model in MODELS {
        let model = demo_model(model);
        let largest = std::fs::metadata(&model).unwrap().len();
        let mut before = f64::INFINITY;
        for percent in [20, 25, 40, 60, 100] {
            let most = largest * percent / 100;
            let report = quantize(&model, &output, &[("max_size", &format!("{most}B"))]).unwrap();
            let file = std::fs::metadata(&output).unwrap().len();
            assert!(file <= most, "{percent} %: {file} of {most}");
            // The remainder is less than the smallest step needs, or everything is kept.
            assert!(
                file > most * 97 / 100 || percent == 100,
                "{percent} %: {file} of {most}"
            );
            let lost = 1.0 - report.total.cosine.unwrap_or(1.0);
            assert!(lost < before, "{percent} %: {lost} of {before}");
            before = lost;
        }
    }
}

#[test]
fn bits_on_average_are_no_more_than_they_may_be() {
    for model in MODELS {
        let model = demo_model(model);
        for most in [2.1, 2.5, 3.0, 4.3, 7.0] {
            let plan = plan(&model, &[("avg_bits", &most.to_string())]);
            let open = plan
                .entries
                .iter()
                .filter(|e| e.reason.starts_with("budget"));
            let (mut bits, mut weights) = (0.0, 0.0);
            for entry in open {
                // Computed from rows, columns and the group's scales, as in format.md.
                let (rows, cols) = (entry.tensor.shape.rows(), entry.tensor.shape.cols());
                weights += (rows * cols) as f64;
                bits += match entry.recipe {
                    None => (rows * cols * 16) as f64,
                    Some(recipe) => {
                        let groups = recipe.encoding.groups(cols);
                        let planes = if recipe.encoding.has_biases() { 32 } else { 16 };
                        let codes = (cols * recipe.format().spec().bits).div_ceil(8) * 8;
                        (rows * (codes + groups * planes)) as f64
                    }
                };
            }
            let found = bits / weights;
            assert!(found <= most && found > most - 0.05, "{most}: {found}");
        }
    }
}

#[test]
fn the_smallest_that_reaches_a_cosine() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    let model = demo_model("mdlm-python.safetensors");
    let mut before = 0;
    for least in [0.9, 0.945, 0.9955, 0.9995] {
        let settings = [
            ("mixed_precision", "true"),
            ("min_cosine", &least.to_string()),
        ];
        let report = quantize(&model, &output, &settings).unwrap();
        for tensor in report
            .tensors
            .iter()
            .filter(|tensor| tensor.format != "kept")
        {
            assert!(tensor.cosine.unwrap() >= least, "{least}: {}", tensor.name);
        }
        let bytes: usize = report.tensors.iter().map(|tensor| tensor.bytes).sum();
        assert!(bytes > before, "{least}: {bytes} and {before}");
        before = bytes;
    }
    // The result costs no more than the format that surely reaches the cosine.
    assert!(before <= plan(&model, &[("bit_width", "8")]).total_bytes());
}

#[test]
fn rules_and_settings_narrow_what_is_chosen() {
    let model = demo_model("mdlm-python.safetensors");
    let settings = [
        ("avg_bits", "3.2"),
        ("group_size", "64"),
        ("scheme", "symmetric"),
        (
            "rules",
            "lm_head.weight=bits:8;*.q_proj.weight=keep;*.k_proj.weight=group:32",
        ),
    ];
    let plan = plan(&model, &settings);
    let mut formats = std::collections::BTreeSet::new();
    for entry in &plan.entries {
        let name = &entry.tensor.name;
        let Some(recipe) = entry.recipe else {
            continue;
        };
        assert!(!name.ends_with("q_proj.weight"));
        let size = if name.ends_with("k_proj.weight") {
            32
        } else {
            64
        };
        assert_eq!(
            (
                recipe.encoding.group_size().unwrap().get(),
                recipe.encoding.scheme().unwrap().name()
            ),
            (size, "symmetric"),
            "{name}"
        );
        match name == "lm_head.weight" {
            true => assert_eq!(recipe.format(), Format::Int8),
            false => drop(formats.insert(recipe.format())),
        }
    }
    assert!(formats.contains(&Format::Int2) && formats.contains(&Format::Int4));
}

#[test]
fn a_plan_is_the_same_on_any_threads_and_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let model = demo_model("mdlm-python.safetensors");
    let outputs = ["1", "2", "json"].map(|name| folder.path().join(format!("{name}.parquet")));
    for (output, threads) in outputs.iter().zip(["1", "2"]) {
        let args = ["--avg-bits=3", "--quiet", "--threads", threads];
        let args = args.map(AsRef::as_ref);
        let files = ["quantize".as_ref(), model.as_os_str(), output.as_os_str()];
        arrowquant_ok([&files[..], &args[..]].concat());
    }
    let json = arrowquant_ok([
        "plan".as_ref(),
        model.as_os_str(),
        "--avg-bits=3".as_ref(),
        "--json".as_ref(),
    ]);
    let path = folder.path().join("plan.json");
    std::fs::write(&path, json).unwrap();
    arrowquant_ok([
        "quantize".as_ref(),
        model.as_os_str(),
        outputs[2].as_os_str(),
        "--quiet".as_ref(),
        "--plan".as_ref(),
        path.as_os_str(),
    ]);
    let bytes = outputs.map(|output| std::fs::read(output).unwrap());
    assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2]);
}

#[test]
fn impossible_budgets_are_refused_with_the_arithmetic() {
    // 7,000,000,000 weights in 70 matrices.
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("seven.json");
    let tensors: serde_json::Map<String, Value> = (0..70)
        .map(|i| {
            (
                format!("layers.{i}.weight"),
                serde_json::json!([10_000, 10_000]),
            )
        })
        .collect();
    let text = serde_json::json!({"model": "seven", "dtype": "bf16", "tensors": tensors});
    std::fs::write(&list, text.to_string()).unwrap();
    let refused = |args: &[&str]| {
        let output = arrowquant([&["plan", list.to_str().unwrap()], args].concat());
        assert_eq!(output.status.code(), Some(2));
        stderr(&output)
    };
    let message = refused(&["--max-size=35MB", "--min-cosine=0.70"]);
    // 10,000 rows of 2,500 bytes and a scale, 70 times: 1.75 GB. 35 MB are 0.04 bits per weight,
    // and sqrt(1 - 2^-0.08) = 0.23; 0.70 needs -0.5 log2(1 - 0.49) = 0.486 bits, 425 MB.
    for part in [
        "max_size: 35.0 MB is too small",
        "the smallest possible with the allowed formats is 1.8 GB",
        "7000000000 weights to quantize at 2.002 bits each",
        "0.04 bits per weight, at which iid Gaussian weights cannot exceed cosine 0.23 in any format",
        "for 0.70 they need 0.486 bits, 425.0 MB",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = refused(&["--avg-bits=3", "--min-cosine=0.99"]);
    for part in [
        "avg_bits: 3 bits is too small",
        "if every tensor must reach its min_cosine, 2.00",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = refused(&["--max-size=2GB", "--candidates=int4:128"]);
    assert!(message.contains("is 3.6 GB"), "{message}"); // 4.125 bits each
}

#[test]
fn what_an_analysis_says_is_what_quantizing_finds() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    let chart = folder.path().join("chart.png");
    let model = demo_model("dit-digits.safetensors");
    let text = arrowquant_ok([
        "analyze".as_ref(),
        model.as_os_str(),
        "--json".as_ref(),
        "--chart".as_ref(),
        chart.as_os_str(),
    ]);
    let analysis: Value = serde_json::from_str(&text).unwrap();
    assert!(std::fs::read(chart).unwrap().starts_with(b"\x89PNG"));
    let tensors = analysis["tensors"].as_array().unwrap();
    let mut sensitive = 0;
    for bits in ["2", "4", "8"] {
        let settings = [("bit_width", bits), ("min_cosine", "none"), ("gain", "lsq")];
        let report = quantize(&model, &output, &settings).unwrap();
        for tensor in report
            .tensors
            .iter()
            .filter(|tensor| tensor.format != "kept")
        {
            let found = tensors
                .iter()
                .find(|t| t["name"] == tensor.name.as_str())
                .unwrap();
            let same = |f: &&Value| {
                f["format"] == tensor.format && f["group_size"] == 128 && f["scheme"] == "symmetric"
            };
            let found = found["formats"]
                .as_array()
                .unwrap()
                .iter()
                .find(same)
                .unwrap();
            let [sampled, all] = [found["cosine"].as_f64().unwrap(), tensor.cosine.unwrap()];
            // Measured on a few rows, whose errors differ by some tenths.
            assert!(
                (1.0 - sampled) < 2.0 * (1.0 - all) && (1.0 - sampled) > 0.5 * (1.0 - all),
                "{}",
                tensor.name
            );
            assert_eq!(found["bytes"].as_u64().unwrap() as usize, tensor.bytes);
        }
    }
    for tensor in tensors {
        sensitive += usize::from(!tensor["sensitive"].is_null());
    }
    assert_eq!(sensitive, tensors.len().div_ceil(10));
}
