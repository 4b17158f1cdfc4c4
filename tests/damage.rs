//! Truncated or flipped files give an error or the right weights, never a crash or wrong weights.

use std::collections::BTreeMap;
use std::path::Path;

use arrowquant::model::Model;
use arrowquant::run::{self, Options};
use arrowquant::source;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::common::*;

fn quantized(folder: &Path, settings: &[(&str, &str)]) -> Vec<u8> {
    let output = folder.join("m.parquet");
    quantize(&folder.join("model.safetensors"), &output, settings).unwrap();
    std::fs::read(output).unwrap()
}

/// Returns evenly spread positions below `len`, including the first and last ones.
fn positions(len: usize) -> impl Iterator<Item = usize> {
    (0..200).map(move |i| i * (len - 1) / 199)
}

#[test]
fn a_cut_input_is_an_error() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let whole = std::fs::read(&input).unwrap();
    for len in positions(whole.len()) {
        std::fs::write(&input, &whole[..len]).unwrap();
        let output = folder.path().join("m.parquet");
        let error = quantize(&input, &output, &[]).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{len}: {error}");
        assert_eq!(names_in(folder.path()), ["model.safetensors"], "{len}");
    }
}

#[test]
fn an_input_cut_after_it_was_opened_is_an_error() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let source = source::open(&input).unwrap();
    let plan = run::plan(source.as_ref(), &config(&[])).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&input)
        .unwrap()
        .set_len(4000)
        .unwrap();
    let output = folder.path().join("m.parquet");
    let error = run::quantize(source.as_ref(), &plan, &output, Options::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("model.safetensors: tensor 'blocks.0.attn.weight': the file ended early"),
        "{error}"
    );
    assert_eq!(names_in(folder.path()), ["model.safetensors"]);
}

#[test]
fn a_cut_output_is_an_error() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[]);
    let path = folder.path().join("cut.parquet");
    for len in positions(whole.len()) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = Model::open(&path).unwrap_err().to_string();
        assert!(error.contains("cut.parquet"), "{len}: {error}");
    }
}

/// Every tensor by name: shape, dtype and decoded bytes.
type Contents = BTreeMap<String, (Vec<usize>, &'static str, Vec<u8>)>;

/// Returns the contents of the file, or `None` if opening or verifying it finds an error.
fn contents(path: &Path) -> Option<Contents> {
    let model = Model::open(path).ok()?;
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    let checked = run::verify(&model, None, None, options).ok()?;
    if checked.failures().next().is_some() {
        return None;
    }
    let tensors = model.tensors().iter().enumerate().map(|(i, tensor)| {
        let shape = &tensor.info.shape;
        let mut bytes = Vec::new();
        if tensor.info.dtype.float().is_some() {
            bytes.resize(shape.elements() * 4, 0);
            let float = arrowquant::format::Float::F32;
            model
                .dequantize_rows(i, 0..shape.rows(), float, &mut bytes)
                .ok()?;
        } else {
            for tile in 0..tensor.tiles.len() {
                bytes.extend(model.planes(i, tile).ok()?.codes());
            }
        }
        let entry = (shape.dims().to_vec(), tensor.info.dtype.name(), bytes);
        Some((tensor.info.name.clone(), entry))
    });
    tensors.collect()
}

/// Returns the byte ranges of the column chunks of these columns.
fn chunks(bytes: &[u8], columns: &[&str]) -> Vec<(String, std::ops::Range<usize>)> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
    let mut found = Vec::new();
    for group in reader.metadata().row_groups() {
        for chunk in group.columns() {
            let name = chunk.column_path().string();
            if columns.contains(&name.as_str()) {
                let (start, len) = chunk.byte_range();
                found.push((name, start as usize..(start + len) as usize));
            }
        }
    }
    found
}

/// Flips one bit and returns whether unexpected contents are accepted.
fn flip_is_silent(path: &Path, whole: &[u8], at: usize, bit: usize, expected: &Contents) -> bool {
    let mut bytes = whole.to_vec();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
    contents(path).is_some_and(|found| found != *expected)
}

/// Returns the byte ranges of the planes of an uncompressed file.
fn planes(whole: &[u8], path: &Path) -> Vec<std::ops::Range<usize>> {
    let model = Model::open(path).unwrap();
    let mut found = Vec::new();
    for tensor in 0..model.tensors().len() {
        let planes = model.planes(tensor, 0).unwrap();
        for plane in [Some(planes.codes()), planes.scales(), planes.biases()]
            .into_iter()
            .flatten()
        {
            if !plane.is_empty() {
                let at = whole
                    .windows(plane.len())
                    .position(|window| window == plane)
                    .unwrap();
                found.push(at..at + plane.len());
            }
        }
    }
    found
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_plane_is_caught() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[("scheme", "affine")]);
    let path = folder.path().join("flipped.parquet");
    std::fs::write(&path, &whole).unwrap();
    let mut flipped = 0;
    for plane in planes(&whole, &path) {
        for at in plane.clone() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (flipped % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert!(contents(&path).is_none(), "byte {at} of plane {plane:?}");
            flipped += 1;
        }
    }
    assert!(flipped > 2700, "{flipped}");
}

#[test]
fn dequantize_of_a_flipped_file_is_right_or_an_error() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[]);
    let path = folder.path().join("flipped.parquet");
    let back = folder.path().join("back.safetensors");
    let run = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let done = arrowquant(["dequantize".as_ref(), path.as_os_str(), back.as_os_str()]);
        (done.status.code(), stderr(&done))
    };
    assert_eq!(run(&whole).0, Some(0));
    let expected = std::fs::read(&back).unwrap();
    let header = 8 + u64::from_le_bytes(expected[..8].try_into().unwrap()) as usize;
    let columns = [
        "shape.list.element",
        "row_count",
        "row_start",
        "name",
        "group_size",
        "scales",
        "codes",
        "scale_dtype",
        "tile",
    ];
    for (column, range) in chunks(&whole, &columns) {
        for at in range.clone().step_by(1 + range.len() / 12) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let (code, message) = run(&bytes);
            let case = format!("{column} at {at}: {message}");
            match code {
                // Only metadata of the source may differ.
                Some(0) => {
                    let found = std::fs::read(&back).unwrap();
                    assert!(found.ends_with(&expected[header..]), "{case}");
                }
                Some(1) => assert_eq!(message.lines().count(), 1, "{case}"),
                _ => panic!("{case}"),
            }
            assert!(
                !names_in(folder.path())
                    .iter()
                    .any(|name| name.ends_with(".partial"))
            );
        }
    }
}

#[test]
fn a_lost_tensor_is_an_error() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[]);
    let path = folder.path().join("lost.parquet");
    // A tensor's name in its column and in the summary: changing only one loses the tensor.
    let name = b"blocks.0.attn.weight";
    let places: Vec<usize> = (0..whole.len() - name.len())
        .filter(|&at| whole[at..].starts_with(name))
        .collect();
    assert_eq!(places.len(), 2);
    let mut bytes = whole.clone();
    bytes[places[1]] = b'c';
    std::fs::write(&path, &bytes).unwrap();
    let error = Model::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("tensor 'clocks.0.attn.weight': missing from the file"),
        "{error}"
    );
}

/// Flips every bit of the footer: a missing or changed tensor must be detected.
#[test]
fn no_flipped_bit_in_the_footer_passes_for_right() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[]);
    let path = folder.path().join("flipped.parquet");
    std::fs::write(&path, &whole).unwrap();
    let expected = contents(&path).unwrap();
    let tail: [u8; 4] = whole[whole.len() - 8..whole.len() - 4].try_into().unwrap();
    let footer = whole.len() - 8 - u32::from_le_bytes(tail) as usize;
    for at in footer..whole.len() {
        assert!(
            !flip_is_silent(&path, &whole, at, at % 8, &expected),
            "byte {at}"
        );
    }
}

#[test]
fn scales_that_are_not_finite_are_refused_under_a_right_checksum() {
    use arrowquant::schema;
    let folder = tempfile::tempdir().unwrap();
    let tensor = f32_tensor("w", &[4, 64], &noise(1, 256));
    std::fs::write(
        folder.path().join("model.safetensors"),
        safetensors(&[tensor]),
    )
    .unwrap();
    let mut whole = quantized(folder.path(), &[]);
    let path = folder.path().join("m.parquet");
    let model = Model::open(&path).unwrap();
    let planes = model.planes(0, 0).unwrap();
    let (codes, mut scales) = (planes.codes().to_vec(), planes.scales().unwrap().to_vec());
    let tile = model.tensors()[0].tiles[0].tile.clone();
    drop((planes, model));
    let mut replace = |old: &[u8], new: &[u8]| {
        let at = whole
            .windows(old.len())
            .position(|window| window == old)
            .unwrap();
        whole[at..at + new.len()].copy_from_slice(new);
    };
    let old = scales.clone();
    scales[4..6].copy_from_slice(&half::f16::NAN.to_le_bytes());
    replace(&old, &scales);
    let checksum = schema::checksum(&tile, &codes, Some(&scales), None);
    replace(&tile.checksum.to_le_bytes(), &checksum.to_le_bytes());
    std::fs::write(&path, &whole).unwrap();
    let model = Model::open(&path).unwrap();
    let expected = "tensor 'w': row 2 has a scale that decodes to infinity";
    assert!(
        model
            .check_tile(0, 0)
            .unwrap_err()
            .to_string()
            .contains(expected)
    );
    let float = arrowquant::format::Float::F32;
    let error = model
        .dequantize_rows(0, 0..4, float, &mut [0; 4 * 64 * 4])
        .unwrap_err();
    assert!(error.to_string().contains(expected));
}

#[test]
fn no_flipped_bit_in_a_compressed_plane_passes_for_right() {
    let folder = small_model();
    let whole = quantized(
        folder.path(),
        &[("scheme", "affine"), ("compression", "zstd")],
    );
    let path = folder.path().join("flipped.parquet");
    std::fs::write(&path, &whole).unwrap();
    let expected = contents(&path).unwrap();
    for (column, range) in chunks(&whole, &["codes", "scales", "biases"]) {
        for at in range.clone().step_by(1 + range.len() / 100) {
            let bit = at % 8;
            assert!(
                !flip_is_silent(&path, &whole, at, bit, &expected),
                "{column} at {at}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_in_a_column_that_decoding_depends_on_is_caught() {
    let columns = [
        "name",
        "tile",
        "row_start",
        "row_count",
        "shape.list.element",
        "source_dtype",
        "format",
        "scheme",
        "group_size",
        "scale_dtype",
        "checksum",
        "input_scale",
        "rotation.block",
        "rotation.seed",
        "activation.list.element.t_begin",
    ];
    let folder = small_model();
    let whole = quantized(folder.path(), &[]);
    let path = folder.path().join("flipped.parquet");
    std::fs::write(&path, &whole).unwrap();
    let expected = contents(&path).unwrap();
    for (column, range) in chunks(&whole, &columns) {
        for at in range {
            let bit = at % 8;
            assert!(
                !flip_is_silent(&path, &whole, at, bit, &expected),
                "{column} at {at}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_gives_an_error_or_the_right_weights() {
    let folder = small_model();
    let whole = quantized(folder.path(), &[("bit_width", "2")]);
    let path = folder.path().join("flipped.parquet");
    std::fs::write(&path, &whole).unwrap();
    let expected = contents(&path).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let bit = at / 7 % 8;
        assert!(
            !flip_is_silent(&path, &whole, at, bit, &expected),
            "byte {at}, bit {bit}"
        );
    }
}
