//! The bytes are the same for any threads and budget, and from any folder.

use std::path::Path;

use arrowquant::run::{self, Options};
use arrowquant::source;

use crate::common::*;

fn bytes_of(input: &Path, settings: &[(&str, &str)], threads: usize, budget: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.parquet");
    let source = source::open(input).unwrap();
    let plan = run::plan(source.as_ref(), &config(settings)).unwrap();
    let options = Options {
        threads,
        budget,
        ..Options::default()
    };
    run::quantize(source.as_ref(), &plan, &output, options).unwrap();
    std::fs::read(output).unwrap()
}

#[test]
fn bytes_do_not_depend_on_threads_or_budget() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<RawTensor> = (0..12)
        .map(|i| {
            let dims: &[usize] = [&[700, 90][..], &[33, 1025], &[90], &[4, 16]][i % 4];
            let values = noise(i as u64, dims.iter().product());
            bf16_tensor(&format!("{i}.weight"), dims, &values)
        })
        .collect();
    let model = folder.path().join("model.safetensors");
    std::fs::write(&model, safetensors(&tensors)).unwrap();
    for settings in [
        &[("bit_width", "2")][..],
        &[("scheme", "affine"), ("compression", "zstd")],
    ] {
        let expected = bytes_of(&model, settings, 1, usize::MAX);
        for threads in [1, 2, 7] {
            for budget in [0, 50_000, usize::MAX] {
                let found = bytes_of(&model, settings, threads, budget);
                assert!(found == expected, "{threads} threads, budget {budget}");
            }
        }
    }
}

#[test]
fn bytes_of_real_models_do_not_depend_on_threads() {
    for name in ["dit-digits.safetensors", "mdlm-python.safetensors"] {
        let model = demo_model(name);
        let expected = bytes_of(&model, &[], 1, usize::MAX);
        for threads in [2, 7] {
            assert!(
                bytes_of(&model, &[], threads, 0) == expected,
                "{name}, {threads} threads"
            );
        }
    }
}

#[test]
fn bytes_of_several_tiles_do_not_depend_on_threads_or_budget() {
    // Compressed tiles hold 16 MiB of codes, so 18 MiB are two tiles; only the second needs f32
    // scales.
    let folder = tempfile::tempdir().unwrap();
    let (rows, cols) = (4608, 4096);
    let mut values: Vec<f32> = (0..rows * cols)
        .map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5)
        .collect();
    values[rows * cols - 1] = 3e38;
    let input = folder.path().join("large.safetensors");
    let tensor = bf16_tensor("large.weight", &[rows, cols], &values);
    std::fs::write(&input, safetensors(&[tensor])).unwrap();
    drop(values);
    let settings = [
        ("bit_width", "8"),
        ("method", "minmax"),
        ("compression", "zstd"),
    ];
    let expected = bytes_of(&input, &settings, 1, 0);
    for (threads, budget) in [(2, 0), (7, usize::MAX)] {
        let found = bytes_of(&input, &settings, threads, budget);
        assert!(found == expected, "{threads} threads");
    }
    let streaming = [&settings[..], &[("streaming_mode", "true")]].concat();
    assert!(
        bytes_of(&input, &streaming, 2, usize::MAX) == expected,
        "streaming"
    );
    let output = folder.path().join("large.parquet");
    std::fs::write(&output, expected).unwrap();
    let model = arrowquant::model::Model::open(&output).unwrap();
    let tiles = model.tensors()[0].tiles.iter();
    let dtypes: Vec<&str> = tiles
        .map(|tile| tile.tile.encoding.unwrap().scale_dtype().unwrap().name())
        .collect();
    assert_eq!(dtypes, ["f16", "f32"]);
}

#[test]
fn bytes_do_not_depend_on_the_folder() {
    let model = demo_model("dit-digits.safetensors");
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().join("with space é");
    std::fs::create_dir(&folder).unwrap();
    let (input, output) = (
        folder.join("dit-digits.safetensors"),
        folder.join("o.parquet"),
    );
    std::fs::copy(&model, &input).unwrap();
    arrowquant_ok(["quantize".as_ref(), input.as_os_str(), output.as_os_str()]);
    assert!(std::fs::read(output).unwrap() == bytes_of(&model, &[], 2, usize::MAX));
}

#[test]
fn a_plan_gives_the_bytes_of_its_settings() {
    let folder = small_model();
    let path = |name: &str| {
        folder
            .path()
            .join(name)
            .into_os_string()
            .into_string()
            .unwrap()
    };
    let flags = [
        "--bits",
        "8",
        "--scheme",
        "affine",
        "--rule",
        "conv.*=bits:2,group:16",
        "--keep",
        "*.mlp.*",
    ];
    let input = path("model.safetensors");
    let json = arrowquant_ok(["plan", &input, "--json"].into_iter().chain(flags));
    std::fs::write(path("plan.json"), json).unwrap();
    arrowquant_ok(
        ["quantize", &input, &path("a.parquet")]
            .into_iter()
            .chain(flags),
    );
    arrowquant_ok([
        "quantize",
        &input,
        &path("b.parquet"),
        "--plan",
        &path("plan.json"),
    ]);
    assert!(std::fs::read(path("a.parquet")).unwrap() == std::fs::read(path("b.parquet")).unwrap());
}
