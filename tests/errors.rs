//! Bad input gives an error that names the file, the tensor and the reason, and leaves nothing.

use std::path::Path;

use arrowquant::source;
use serde_json::{Value, json};

use crate::common::*;

/// Returns the error of opening these bytes as a safetensors file.
fn open_error(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    source::open(&path).err().expect("an error").to_string()
}

fn header_error(header: Value, data_bytes: usize) -> String {
    open_error(&with_header(&header.to_string(), &vec![0; data_bytes]))
}

fn entry(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn malformed_headers() {
    let file = "bad.safetensors";
    assert_names(&open_error(b""), &[file, "an empty file"]);
    assert_names(
        &open_error(b"\x07\0\0\0\0\0\0"),
        &[file, "7 bytes are too short"],
    );
    assert_names(
        &open_error(&u64::MAX.to_le_bytes()),
        &[file, "18446744073709551615"],
    );
    assert_names(&open_error(&with_header("{", b"")), &[file, "EOF"]);
    assert_names(&open_error(&with_header("[]", b"")), &[file, "object"]);
    assert_names(&open_error(&with_header("\u{fffd}", b"")), &[file]);
    let metadata = json!({"__metadata__": {"a": 1}});
    assert_names(&header_error(metadata, 0), &[file, "__metadata__"]);
}

#[test]
fn malformed_tensors() {
    let cases: &[(Value, usize, &str)] = &[
        (
            json!({"w": entry("F32", &[4], [0, 20])}),
            16,
            "past the end of the data at 16",
        ),
        (
            json!({"w": entry("F32", &[5], [0, 16])}),
            16,
            "do not match shape [5] of f32",
        ),
        (
            json!({"w": entry("F32", &[4], [16, 0])}),
            16,
            "bytes 16 to 0",
        ),
        (
            json!({"w": entry("F99", &[4], [0, 16])}),
            16,
            "unknown dtype 'F99'",
        ),
        (
            json!({"w": entry("F32", &[1 << 62, 16], [0, 16])}),
            16,
            "too large",
        ),
        (
            json!({"w": entry("F4", &[3], [0, 1])}),
            1,
            "do not match shape [3] of f4",
        ),
        (
            json!({"w": {"dtype": "F32", "shape": [4]}}),
            16,
            "data_offsets",
        ),
        (
            json!({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
            16,
            "-4",
        ),
        (json!({"w": 3}), 0, "invalid type"),
        (
            json!({"a": entry("F32", &[4], [0, 16]), "w": entry("F32", &[4], [8, 24])}),
            24,
            "overlap",
        ),
        (
            json!({"a": entry("F32", &[4], [0, 16]), "w": entry("F32", &[1], [20, 24])}),
            24,
            "gap",
        ),
    ];
    for (header, bytes, reason) in cases {
        let message = header_error(header.clone(), *bytes);
        assert_names(&message, &["bad.safetensors", "tensor 'w'", reason]);
    }
    let message = header_error(json!({"w": entry("F32", &[4], [0, 16])}), 17);
    assert_names(
        &message,
        &["bad.safetensors", "1 bytes follow the last tensor"],
    );
}

#[test]
fn duplicate_names() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let header = format!(r#"{{"w":{entry},"w":{entry}}}"#);
    let message = open_error(&with_header(&header, &[0]));
    assert_names(
        &message,
        &["bad.safetensors", "tensor 'w'", "duplicate name"],
    );
    let twice = r#"{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    let message = open_error(&with_header(twice, &[0]));
    assert_names(
        &message,
        &["bad.safetensors", "tensor 'w'", "duplicate field `dtype`"],
    );
}

/// Makes a folder with two shards of one tensor each and this index, and returns the error.
fn sharded_error(index: &str, spoil: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let file = safetensors(&[f32_tensor(name, &[2], &[1.0, 2.0])]);
        std::fs::write(folder.path().join(format!("{name}.safetensors")), file).unwrap();
    }
    std::fs::write(folder.path().join("m.safetensors.index.json"), index).unwrap();
    spoil(folder.path());
    source::open(folder.path())
        .err()
        .expect("an error")
        .to_string()
}

#[test]
fn malformed_shards() {
    let index = |map: Value| json!({ "weight_map": map }).to_string();
    let good = index(json!({"a": "a.safetensors", "b": "b.safetensors"}));
    let name = "m.safetensors.index.json";

    let message = sharded_error(&good, |folder| {
        std::fs::remove_file(folder.join("b.safetensors")).unwrap()
    });
    assert_names(
        &message,
        &[name, "tensor 'b'", "shard", "b.safetensors is missing"],
    );

    let message = sharded_error(&good, |folder| {
        std::fs::copy(folder.join("a.safetensors"), folder.join("b.safetensors")).unwrap();
    });
    assert_names(&message, &[name, "tensor 'b'", "does not contain it"]);

    let swapped = index(json!({"a": "b.safetensors", "b": "b.safetensors"}));
    assert_names(
        &sharded_error(&swapped, |_| ()),
        &[name, "tensor 'a'", "does not contain it"],
    );

    let outside = index(json!({"a": "../a.safetensors"}));
    assert_names(
        &sharded_error(&outside, |_| ()),
        &[name, "tensor 'a'", "not a plain file name"],
    );

    let twice = r#"{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}"#;
    assert_names(
        &sharded_error(twice, |_| ()),
        &[name, "tensor 'a'", "duplicate name"],
    );

    assert_names(&sharded_error("{}", |_| ()), &[name, "weight_map"]);

    let message = sharded_error(&good, |folder| {
        let path = folder.join("b.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert_names(
        &message,
        &["b.safetensors", "tensor 'b'", "the download is incomplete"],
    );
}

#[test]
fn inputs_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| source::open(path).err().expect("an error").to_string();
    assert_names(
        &open(&folder.path().join("none.safetensors")),
        &["none.safetensors", "cannot open"],
    );
    assert_names(
        &open(folder.path()),
        &["contains no *.safetensors.index.json"],
    );
}

#[test]
fn a_failed_run_leaves_the_old_output_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut values = noise(1, 64 * 64);
    values[64 * 63] = f32::NAN;
    let tensors = [
        f32_tensor("good", &[64, 64], &noise(2, 4096)),
        f32_tensor("bad", &[64, 64], &values),
    ];
    let input = folder.path().join("m.safetensors");
    std::fs::write(&input, safetensors(&tensors)).unwrap();
    let output = folder.path().join("m.parquet");
    std::fs::write(&output, "old").unwrap();
    quantize(&input, &output, &[]).unwrap_err();
    assert_eq!(std::fs::read(&output).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["m.parquet", "m.safetensors"]);
}

#[test]
fn an_empty_tensor_of_huge_dimensions_is_no_work() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let header = json!({"w": entry("F32", &[1 << 62, 0], [0, 0])});
    std::fs::write(&input, with_header(&header.to_string(), &[])).unwrap();
    let output = folder.path().join("m.parquet");
    let back = folder.path().join("b.safetensors");
    for rules in ["", "*=bits:4"] {
        quantize(&input, &output, &[("rules", rules)]).unwrap();
        arrowquant_ok([
            "verify".as_ref(),
            output.as_os_str(),
            "--against".as_ref(),
            input.as_os_str(),
        ]);
        arrowquant_ok(["dequantize".as_ref(), output.as_os_str(), back.as_os_str()]);
        assert_eq!(
            source::open(&back).unwrap().tensors(),
            source::open(&input).unwrap().tensors()
        );
    }
}

#[test]
fn files_that_are_no_quantized_model() {
    use arrowquant::model::Model;
    let folder = small_model();
    let error = |bytes: &[u8]| {
        let path = folder.path().join("x.parquet");
        std::fs::write(&path, bytes).unwrap();
        Model::open(&path).unwrap_err().to_string()
    };
    assert_names(&error(b""), &["x.parquet", "too short"]);
    assert_names(&error(&[7; 100]), &["x.parquet", "not a Parquet file"]);
    let mut huge_footer = b"PAR1".to_vec();
    huge_footer.extend([0xFF, 0xFF, 0xFF, 0x7F]);
    huge_footer.extend(b"PAR1");
    assert_names(
        &error(&huge_footer),
        &["x.parquet", "footer of 2147483647 bytes"],
    );
    let open = |path: &Path| Model::open(path).unwrap_err().to_string();
    assert_names(&open(folder.path()), &["a folder without a manifest.json"]);
    assert_names(
        &open(&folder.path().join("none.parquet")),
        &["none.parquet", "cannot open"],
    );
}

/// Replaces text in a file's footer by text of the same length, and opens it.
fn open_patched(from: &str, to: &str) -> String {
    assert_eq!(from.len(), to.len());
    let folder = small_model();
    let output = folder.path().join("m.parquet");
    quantize(&folder.path().join("model.safetensors"), &output, &[]).unwrap();
    let mut bytes = std::fs::read(&output).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|&at| bytes[at..].starts_with(from.as_bytes()))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(&output, bytes).unwrap();
    arrowquant::model::Model::open(&output)
        .unwrap_err()
        .to_string()
}

#[test]
fn newer_and_foreign_files() {
    // The footer stores the key, a type byte and a length byte before the value.
    let version = |digit: char| format!("arrowquant.format_version\u{18}\u{1}{digit}");
    let message = open_patched(&version('2'), &version('3'));
    assert_names(
        &message,
        &["format version 3 is too new (expected at most 2)"],
    );
    assert_names(
        &open_patched(&version('2'), &version('x')),
        &["'x' is not readable"],
    );
    let message = open_patched("arrowquant.format_version", "arrowquant.format_versiun");
    assert_names(&message, &["not written by ArrowQuant"]);
    assert_names(
        &open_patched("source_dtype", "source_dtypo"),
        &["no column source_dtype"],
    );
}
