//! Edge values: zero, constant, NaN, infinite, too large for f16, subnormal.

use std::path::Path;

use arrowquant::format::{Float, ScaleDtype};
use arrowquant::model::Model;
use arrowquant::run::Report;

use crate::common::*;

const FORMATS: [&str; 3] = ["2", "4", "8"];
const SCHEMES: [&str; 2] = ["symmetric", "affine"];
const METHODS: [&str; 2] = ["minmax", "lsq"];

/// Quantizes one f32 matrix of 4 rows in every format, scheme and method, and passes on each
/// result: the model, its weights as f32, the report.
fn every_way(values: &[f32], mut check: impl FnMut(&str, &Model, &[f32], &Report)) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let cols = values.len() / 4;
    std::fs::write(&input, safetensors(&[f32_tensor("w", &[4, cols], values)])).unwrap();
    let output = folder.path().join("m.parquet");
    for bits in FORMATS {
        for scheme in SCHEMES {
            for method in METHODS {
                let settings = [
                    ("bit_width", bits),
                    ("scheme", scheme),
                    ("method", method),
                    ("group_size", "32"),
                ];
                let report = quantize(&input, &output, &settings).unwrap();
                let model = Model::open(&output).unwrap();
                let decoded = decode(&model);
                check(
                    &format!("int{bits} {scheme} {method}"),
                    &model,
                    &decoded,
                    &report,
                );
            }
        }
    }
}

fn decode(model: &Model) -> Vec<f32> {
    let shape = &model.tensors()[0].info.shape;
    let mut bytes = vec![0; shape.elements() * 4];
    model
        .dequantize_rows(0, 0..shape.rows(), Float::F32, &mut bytes)
        .unwrap();
    (0..shape.elements())
        .map(|i| Float::F32.get(&bytes, i))
        .collect()
}

fn scale_dtype(model: &Model) -> ScaleDtype {
    let encoding = model.tensors()[0].tiles[0].tile.encoding.unwrap();
    encoding.scale_dtype().unwrap()
}

#[test]
fn zeros_decode_to_zeros() {
    every_way(&[0.0; 4 * 50], |case, model, decoded, report| {
        assert!(decoded.iter().all(|&y| y == 0.0), "{case}");
        let tile = &model.tensors()[0].tiles[0].tile;
        // There is no angle to measure.
        assert_eq!((tile.cosine, tile.sqnr_db), (None, None), "{case}");
        assert_eq!(report.tensors[0].cosine, None, "{case}");
        assert_eq!(scale_dtype(model), ScaleDtype::F16, "{case}");
    });
}

#[test]
fn zero_groups_among_others_decode_to_zeros() {
    let mut values = noise(1, 4 * 64);
    values[64..96].fill(0.0);
    every_way(&values, |case, _, decoded, _| {
        assert!(decoded[64..96].iter().all(|&y| y == 0.0), "{case}");
        assert!(decoded[96..].iter().any(|&y| y != 0.0), "{case}");
    });
}

#[test]
fn a_constant_decodes_to_itself_as_stored() {
    // Not exact in f16: 0.1 is stored as f32, because the scale of an affine constant is 0.
    every_way(&[0.1; 4 * 40], |case, model, decoded, _| {
        for &y in decoded {
            assert!((y - 0.1).abs() < 1e-4, "{case}: {y}");
        }
        if case.contains("affine") {
            assert_eq!(scale_dtype(model), ScaleDtype::F32, "{case}");
            assert!(decoded.iter().all(|&y| y == 0.1), "{case}");
        }
    });
}

#[test]
fn weights_beyond_f16_get_f32_scales_and_the_report_says_so() {
    let mut values = noise(2, 4 * 64);
    values[70] = 3e8;
    every_way(&values, |case, model, decoded, report| {
        assert_eq!(scale_dtype(model), ScaleDtype::F32, "{case}");
        assert_eq!(report.tensors[0].f32_scale_tiles, [0], "{case}");
        assert!(
            (decoded[70] / 3e8 - 1.0).abs() < 0.35,
            "{case}: {}",
            decoded[70]
        );
        assert!(decoded.iter().all(|y| y.is_finite()), "{case}");
    });
}

#[test]
fn tiny_and_subnormal_weights_are_quantized_with_f32_scales() {
    for magnitude in [1e-6, 1e-30, 1e-39, 1e-41] {
        let values: Vec<f32> = noise(3, 4 * 64).iter().map(|v| v * magnitude).collect();
        every_way(&values, |case, model, _, report| {
            assert_eq!(scale_dtype(model), ScaleDtype::F32, "{case} {magnitude}");
            let least = if case.starts_with("int2") { 0.75 } else { 0.97 };
            let cosine = report.tensors[0].cosine.unwrap();
            assert!(cosine > least, "{case} {magnitude}: {cosine}");
        });
    }
}

#[test]
fn tiny_rows_in_an_ordinary_tile_keep_f16_scales() {
    let mut values = noise(4, 4 * 64);
    values[..64].iter_mut().for_each(|v| *v *= 1e-12);
    every_way(&values, |case, model, decoded, _| {
        assert_eq!(scale_dtype(model), ScaleDtype::F16, "{case}");
        assert!(decoded[..64].iter().all(|y| y.abs() < 1e-6), "{case}");
    });
}

fn with_bad_value(folder: &Path, dtype: &str, bad: f32) -> std::path::PathBuf {
    let mut values = noise(5, 6 * 70);
    values[3 * 70 + 17] = bad;
    let bad = match dtype {
        "bf16" => bf16_tensor("bad.weight", &[6, 70], &values),
        _ => f32_tensor("bad.weight", &[6, 70], &values),
    };
    let good = f32_tensor("good.weight", &[6, 70], &noise(6, 420));
    let input = folder.join("m.safetensors");
    std::fs::write(&input, safetensors(&[good, bad])).unwrap();
    input
}

#[test]
fn nan_and_infinity_are_errors_that_name_tensor_row_and_column() {
    for (bad, shown) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        for dtype in ["f32", "bf16"] {
            for method in METHODS {
                let folder = tempfile::tempdir().unwrap();
                let input = with_bad_value(folder.path(), dtype, bad);
                let output = folder.path().join("m.parquet");
                let error = quantize(&input, &output, &[("method", method)]).unwrap_err();
                let message = error.to_string();
                let expected =
                    format!("m.safetensors: tensor 'bad.weight': row 3, column 17 is {shown}");
                assert!(message.contains(&expected), "{message}");
                assert_eq!(names_in(folder.path()), ["m.safetensors"]);
            }
        }
    }
}

#[test]
fn tensors_with_nan_are_kept_if_asked() {
    let folder = tempfile::tempdir().unwrap();
    let input = with_bad_value(folder.path(), "bf16", f32::NAN);
    let output = folder.path().join("m.parquet");
    let report = quantize(&input, &output, &[("on_nonfinite", "keep")]).unwrap();
    let kept = report
        .tensors
        .iter()
        .find(|t| t.name == "bad.weight")
        .unwrap();
    assert_eq!(
        (kept.format, kept.reason.as_str()),
        ("kept", "has NaN or infinite weights")
    );
    let model = Model::open(&output).unwrap();
    let index = model.find("bad.weight").unwrap();
    let source = arrowquant::source::open(&input).unwrap();
    let mut original = vec![0; 6 * 70 * 2];
    source.read(1, 0, &mut original).unwrap();
    assert_eq!(model.planes(index, 0).unwrap().codes(), original);
    assert_eq!(
        model.tensors()[model.find("good.weight").unwrap()].tiles[0]
            .tile
            .encoding
            .unwrap()
            .name(),
        "int4"
    );
}

#[test]
fn forced_f16_scales_that_overflow_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let mut values = noise(7, 64);
    values[40] = 1e7;
    std::fs::write(&input, safetensors(&[f32_tensor("w", &[2, 32], &values)])).unwrap();
    let output = folder.path().join("m.parquet");
    let error = quantize(&input, &output, &[("scale_dtype", "f16")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tensor 'w': row 1 has weights too large for f16 scales or decoded values"),
        "{error}"
    );
    quantize(&input, &output, &[("scale_dtype", "f32")]).unwrap();
    assert_eq!(scale_dtype(&Model::open(&output).unwrap()), ScaleDtype::F32);
}

#[test]
fn figures_of_subnormal_weights_are_those_of_what_decodes() {
    // 1e-45 is the smallest subnormal: half of it, which int2 would need, rounds to zero.
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    std::fs::write(
        &input,
        safetensors(&[f32_tensor("w.weight", &[1, 32], &[1e-45; 32])]),
    )
    .unwrap();
    let output = folder.path().join("m.parquet");
    let settings = [
        ("bit_width", "2"),
        ("method", "minmax"),
        ("gain", "lsq"),
        ("min_cosine", "none"),
    ];
    let report = quantize(&input, &output, &settings).unwrap();
    let decoded = decode(&Model::open(&output).unwrap());
    let alike = decoded.iter().all(|&y| y == 1e-45);
    assert_eq!(
        report.tensors[0].cosine,
        Some(if alike { 1.0 } else { 0.0 })
    );
    assert!(alike || decoded.iter().all(|&y| y == 0.0));
}

#[test]
fn weights_that_forced_f16_scales_lose_are_measured_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    std::fs::write(
        &input,
        safetensors(&[f32_tensor("w", &[2, 32], &[1e-42; 64])]),
    )
    .unwrap();
    let output = folder.path().join("m.parquet");
    let settings = [("scale_dtype", "f16"), ("min_cosine", "none")];
    let report = quantize(&input, &output, &settings).unwrap();
    assert_eq!(report.tensors[0].cosine, Some(0.0));
    assert_eq!(report.tensors[0].sqnr_db, Some(0.0));
}

#[test]
fn decoding_to_f16_refuses_what_f16_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let values: Vec<f32> = noise(8, 64).iter().map(|v| v * 1e6).collect();
    std::fs::write(&input, safetensors(&[f32_tensor("w", &[2, 32], &values)])).unwrap();
    let output = folder.path().join("m.parquet");
    quantize(&input, &output, &[]).unwrap();
    let model = Model::open(&output).unwrap();
    let error = model
        .dequantize_rows(0, 0..2, Float::F16, &mut [0; 128])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("'w': a weight is too large for f16"),
        "{error}"
    );
    model
        .dequantize_rows(0, 0..2, Float::BF16, &mut [0; 128])
        .unwrap();
}
