//! From memory to memory: sources and files in memory.

use std::sync::Arc;

use arrow_array::RecordBatchReader;
use arrowquant::model::{ArrowExport, Model};
use arrowquant::run::{self, Level, Options};
use arrowquant::source::{self, MemorySource, Source};
use arrowquant::tensor::Dtype;
use proptest::prelude::*;

use crate::common::*;

/// Quantizes into memory of the size that is declared sufficient; returns the file.
fn into_memory(source: &dyn Source, settings: &[(&str, &str)]) -> Vec<u8> {
    let plan = run::plan(source, &config(settings)).unwrap();
    let mut file = vec![0xAA; run::output_bound(source, &plan).unwrap()];
    let report = run::quantize_into(source, &plan, &mut file, Options::default()).unwrap();
    // Nothing is written after the end of the file.
    let rest = file.split_off(report.output_bytes as usize);
    assert!(rest.iter().all(|&byte| byte == 0xAA));
    assert_eq!(report.output, "(memory)");
    file
}

#[test]
fn a_file_in_memory_is_the_file_on_disk() {
    for name in ["dit-digits.safetensors", "mdlm-python.safetensors"] {
        for settings in [&[][..], &[("compression", "zstd"), ("bit_width", "2")]] {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("out.parquet");
            quantize(&demo_model(name), &output, settings).unwrap();
            let source = source::open(&demo_model(name)).unwrap();
            let file = into_memory(source.as_ref(), settings);
            assert!(file == std::fs::read(output).unwrap());

            let model = Model::from_bytes(file).unwrap();
            assert_eq!(model.tensors().len(), source.tensors().len());
            for tensor in 0..model.tensors().len() {
                model.check_tile(tensor, 0).unwrap();
            }
        }
    }
}

#[test]
fn too_little_memory_is_an_error() {
    let values = noise(1, 64 * 64);
    let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut source = MemorySource::new();
    source
        .add("w.weight", Dtype::F32, &[64, 64], values.as_slice())
        .unwrap();
    let size = into_memory(&source, &[]).len();
    let plan = run::plan(&source, &config(&[])).unwrap();
    for len in [0, 3, size / 2, size - 1] {
        let mut short = vec![0; len];
        let error = run::quantize_into(&source, &plan, &mut short, Options::default()).unwrap_err();
        assert_eq!(error.code(), 2);
        let message = error.to_string();
        assert!(message.starts_with("(memory): cannot write: "), "{message}");
        assert!(
            message.ends_with("the destination is too small"),
            "{message}"
        );
    }
    let mut exact = vec![0; size];
    run::quantize_into(&source, &plan, &mut exact, Options::default()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// With names of any length and letters, shapes without elements, scales that need f32, and
    /// every setting, no file is longer than predicted.
    #[test]
    fn no_file_is_longer_than_its_bound(
        tensors in proptest::collection::vec(
            ("[a-z\"\\\\\u{1}é.]{0,80}", proptest::collection::vec(0usize..20, 0..5), any::<bool>()),
            0..12,
        ),
        bits in prop_oneof!["2", "4", "8"],
        scheme in prop_oneof!["symmetric", "affine"],
        compression in prop_oneof!["none", "zstd"],
    ) {
        let mut source = MemorySource::new();
        for (i, (name, dims, huge)) in tensors.iter().enumerate() {
            let scale = if *huge { 1e30 } else { 1.0 };
            let values = noise(i as u64, dims.iter().product());
            let values: Vec<u8> = values.iter().flat_map(|v| (v * scale).to_le_bytes()).collect();
            source.add(&format!("{i}{name}"), Dtype::F32, dims, values).unwrap();
        }
        let settings = [
            ("bit_width", bits.as_str()),
            ("scheme", scheme.as_str()),
            ("compression", compression.as_str()),
            ("group_size", "16"),
            ("rules", "*=bits:4,group:16;*a*=bits:8;*b*=keep"),
        ];
        let file = into_memory(&source, &settings);
        let model = Model::from_bytes(file).unwrap();
        prop_assert_eq!(model.tensors().len(), tensors.len());
    }
}

#[test]
fn the_log_tells_what_was_hardly_meant() {
    let mut source = MemorySource::new();
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut holed = noise(1, 64);
    holed[5] = f32::NAN;
    source
        .add("holed.weight", Dtype::F32, &[2, 32], bytes(&holed))
        .unwrap();
    let huge: Vec<f32> = noise(2, 64).iter().map(|v| v * 1e30).collect();
    source
        .add("huge.weight", Dtype::F32, &[2, 32], bytes(&huge))
        .unwrap();
    let settings = [("on_nonfinite", "keep"), ("rules", "typo=keep")];
    let plan = run::plan(&source, &config(&settings)).unwrap();
    let mut file = vec![0; run::output_bound(&source, &plan).unwrap()];
    let expected = [
        (Level::Warning, "rule typo=keep matches no tensor"),
        (
            Level::Warning,
            "tensor 'holed.weight' has NaN or infinite weights, kept",
        ),
        (
            Level::Info,
            "tensor 'huge.weight', tile 0: its scales do not fit f16 and are stored as f32",
        ),
    ];
    for (stop_at, ends_well) in [(1, false), (2, false), (3, false), (4, true)] {
        let mut heard = Vec::new();
        let mut hear = |level, message: &str| {
            heard.push((level, message.to_owned()));
            heard.len() != stop_at
        };
        let options = Options {
            log: Some(&mut hear),
            ..Options::default()
        };
        let result = run::quantize_into(&source, &plan, &mut file, options);
        assert_eq!(result.is_ok(), ends_well);
        assert_eq!(heard.len(), stop_at.min(3));
        for (heard, expected) in heard.iter().zip(expected) {
            assert_eq!((heard.0, heard.1.as_str()), expected);
        }
    }
}

#[test]
fn exported_batches_are_the_views() {
    let folder = small_model();
    let output = folder.path().join("out.parquet");
    quantize(&folder.path().join("model.safetensors"), &output, &[]).unwrap();
    let model = Arc::new(Model::open(&output).unwrap());
    let export = ArrowExport::new(model.clone());
    assert_eq!(export.schema().metadata()["arrowquant.format_version"], "2");
    let batches: Vec<_> = export.map(Result::unwrap).collect();
    assert_eq!(batches.len(), model.tensors().len());
    for (tensor, batch) in batches.iter().enumerate() {
        let planes = model.planes(tensor, 0).unwrap();
        let codes = batch.column_by_name("codes").unwrap().to_data();
        assert_eq!(codes.buffers()[1].as_slice(), planes.codes());
        if !planes.codes().is_empty() {
            assert!(model.is_mapped(codes.buffers()[1].as_slice()));
        }
    }
}
