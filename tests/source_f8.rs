//! f8 tensors are quantized like the same values in bf16.

use arrowquant::format::Float;
use arrowquant::model::Model;
use arrowquant::run::{self, Options, Progress};
use arrowquant::source;
use arrowquant::tensor::Dtype;

use crate::common::*;

/// Returns the finite value of an e4m3 code, by definition: 4 bits of exponent with bias 7, 3 of
/// mantissa, all ones NaN.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code >> 7 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

/// Makes this many codes of weights around 0.
fn codes(count: usize) -> Vec<u8> {
    let nearest = |value: f32| {
        let distance = |code: &u8| (e4m3(*code) - value).abs();
        let finite = (0..=255).filter(|code| code & 0x7F != 0x7F);
        finite
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .unwrap()
    };
    noise(1, count).into_iter().map(nearest).collect()
}

fn f8(name: &str, dims: &[usize], codes: &[u8]) -> RawTensor {
    (name.to_owned(), "F8_E4M3", dims.to_vec(), codes.to_vec())
}

#[test]
fn f8_gives_the_planes_of_the_same_values_in_bf16() {
    let folder = tempfile::tempdir().unwrap();
    let codes = codes(50 * 70);
    let values: Vec<f32> = codes.iter().map(|&code| e4m3(code)).collect();
    let narrow = folder.path().join("narrow.safetensors");
    let tensors = [
        f8("w", &[50, 70], &codes),
        f8("norm.weight", &[70], &codes[..70]),
    ];
    std::fs::write(&narrow, safetensors(&tensors)).unwrap();
    let wide = folder.path().join("wide.safetensors");
    std::fs::write(&wide, safetensors(&[bf16_tensor("w", &[50, 70], &values)])).unwrap();
    let make = |input: &std::path::Path, bits: &str| {
        let output = input.with_extension("parquet");
        let settings = [("bit_width", bits), ("scheme", "affine")];
        let report = quantize(input, &output, &settings).unwrap();
        (Model::open(&output).unwrap(), report)
    };
    for bits in ["2", "4", "8"] {
        let (model, report) = make(&narrow, bits);
        let (expected, expected_report) = make(&wide, bits);
        let w = model.find("w").unwrap();
        let (found, wanted) = (model.planes(w, 0).unwrap(), expected.planes(0, 0).unwrap());
        assert_eq!(found.codes(), wanted.codes());
        assert_eq!(found.scales(), wanted.scales());
        assert_eq!(found.biases(), wanted.biases());
        assert_eq!(report.total.cosine, expected_report.total.cosine);
        assert_eq!(model.tensors()[w].info.dtype, Dtype::F8E4M3);
        let source = source::open(&narrow).unwrap();
        let checked =
            run::verify(&model, Some(source.as_ref()), Some(0.5), Options::default()).unwrap();
        assert_eq!(checked.failures().count(), 0);
    }

    // Kept f8 tensors are converted if floats are requested.
    let (model, _) = make(&narrow, "4");
    let norm = model.find("norm.weight").unwrap();
    let mut floats = vec![0; 70 * 4];
    model
        .dequantize_rows(norm, 0..1, Float::F32, &mut floats)
        .unwrap();
    let floats: Vec<f32> = (0..70).map(|i| Float::F32.get(&floats, i)).collect();
    assert_eq!(floats, values[..70]);

    // By default types are unchanged, but decoded weights would lose precision in f8.
    let back = folder.path().join("back.safetensors");
    run::dequantize_file(&model, &back, None, Options::default()).unwrap();
    let back = source::open(&back).unwrap();
    let read = |name: &str| {
        let of_name = |tensor: &arrowquant::tensor::TensorInfo| tensor.name == name;
        let index = back.tensors().iter().position(of_name).unwrap();
        (back.tensors()[index].dtype, values_of(back.as_ref(), index))
    };
    assert_eq!(read("norm.weight"), (Dtype::F8E4M3, codes[..70].to_vec()));
    let w = model.find("w").unwrap();
    let mut decoded = vec![0; 50 * 70 * 2];
    model
        .dequantize_rows(w, 0..50, Float::BF16, &mut decoded)
        .unwrap();
    assert_eq!(read("w"), (Dtype::BF16, decoded));
}

#[test]
fn f8_that_is_no_number_is_named_or_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, code, value) in [
        ("F8_E4M3", 0xFF, "NaN"),
        ("F8_E5M2", 0xFC, "-inf"),
        ("F8_E4M3FNUZ", 0x80, "NaN"),
        ("F8_E5M2FNUZ", 0x80, "NaN"),
    ] {
        let mut codes = vec![0x38; 3 * 20];
        codes[2 * 20 + 7] = code;
        let input = folder.path().join("m.safetensors");
        let tensor = ("w".to_owned(), dtype, vec![3, 20], codes.clone());
        std::fs::write(&input, safetensors(&[tensor])).unwrap();
        let output = folder.path().join("m.parquet");
        let message = quantize(&input, &output, &[]).unwrap_err().to_string();
        let expected = format!("m.safetensors: tensor 'w': row 2, column 7 is {value}");
        assert!(message.contains(&expected), "{message}");
        quantize(&input, &output, &[("on_nonfinite", "keep")]).unwrap();
        let model = Model::open(&output).unwrap();
        assert_eq!(model.planes(0, 0).unwrap().codes(), codes);
    }
}

#[test]
fn progress_counts_bytes_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let tensors = ["a", "b"].map(|name| f8(name, &[50, 70], &codes(3500)));
    std::fs::write(&input, safetensors(&tensors)).unwrap();
    let mut seen = Vec::new();
    let mut progress = |progress: Progress| {
        seen.push((progress.done, progress.total));
        true
    };
    let options = Options {
        threads: 1,
        progress: Some(&mut progress),
        ..Options::default()
    };
    let output = folder.path().join("m.parquet");
    run::quantize_file(&input, &output, &config(&[]), options).unwrap();
    assert!(seen.contains(&(3500, 7000)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(7000, 7000)));
}

#[test]
fn weights_with_scales_are_the_same_in_any_parts() {
    let (rows, cols) = (37, 70);
    let codes = codes(rows * cols);
    // Blocks of 16 x 32, the last ones of which are shorter.
    let scales: Vec<f32> = (0..3 * 3).map(|i| 0.3 + 1.7 * i as f32).collect();
    let scale_bytes: Vec<u8> = scales
        .iter()
        .flat_map(|scale| scale.to_le_bytes())
        .collect();
    let mut memory = source::MemorySource::new();
    let add =
        |memory: &mut source::MemorySource<'static>, name: &str, dtype, dims: &[usize], values| {
            memory.add(name, dtype, dims, values).unwrap();
        };
    add(
        &mut memory,
        "a.weight",
        Dtype::F8E4M3,
        &[rows, cols],
        codes.clone(),
    );
    add(
        &mut memory,
        "a.weight_scale",
        Dtype::F32,
        &[3, 3],
        scale_bytes,
    );
    let source = source::resolve(Box::new(memory));
    assert_eq!(source.tensors().len(), 1);
    let expected = (0..rows * cols).flat_map(|i| {
        let scale = scales[i / cols / 16 * 3 + i % cols / 32];
        half::bf16::from_f32(e4m3(codes[i]) * scale).to_le_bytes()
    });
    assert_eq!(values_of(source.as_ref(), 0), expected.collect::<Vec<u8>>());
    let bytes = 2 * rows * cols;
    check_parts(
        source.as_ref(),
        0,
        &[0, 1, 2, 63, 64, 65, 139, 140, 141, 2239, bytes - 1, bytes],
    );
}
