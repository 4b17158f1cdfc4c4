//! Importance matrices written by the package `gguf`.

use std::process::Command;

use arrowquant::model::Model;
use arrowquant::source::Imatrix;

use crate::common::*;
use crate::python::python;

const PROGRAM: &str = r#"
import sys
import gguf
import numpy as np

writer = gguf.GGUFWriter(sys.argv[1], "")
writer.add_type("imatrix")
writer.add_array("imatrix.datasets", ["wiki.txt", "code.txt"])
writer.add_uint32("imatrix.chunk_count", 5)
writer.add_uint32("imatrix.chunk_size", 512)
f32 = lambda *values: np.array(values, np.float32)
writer.add_tensor("blk.0.attn_q.weight.in_sum2", f32([10, 0, 25]))
writer.add_tensor("blk.0.attn_q.weight.counts", f32([10]))
writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", f32([2, 4], [9, 9], [3, 6]))
writer.add_tensor("blk.0.ffn_up_exps.weight.counts", f32([2], [0], [3]))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"#;

#[test]
fn importance_of_the_gguf_package_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.gguf");
    let mut write = Command::new(python());
    native::succeed(write.args(["-c", PROGRAM]).arg(&path), "python3");
    let imatrix = Imatrix::read(&path).unwrap();
    let names: Vec<&str> = imatrix.layers.keys().map(String::as_str).collect();
    assert_eq!(names, ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"]);
    assert_eq!(imatrix.find("blk.0.attn_q"), Some(&[1.0, 0.0, 2.5][..]));
    let experts = [1.0, 2.0, 1.0, 1.0, 1.0, 2.0];
    assert_eq!(imatrix.find("blk.0.ffn_up_exps.weight"), Some(&experts[..]));
}

/// Importance matrices lack the ranges of inputs, by which smoothing and rotation are chosen.
#[test]
fn importance_alone_transforms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (rows, cols) = (64, 256);
    let weights: Vec<f32> = noise(5, rows * cols)
        .iter()
        .enumerate()
        .map(outlier)
        .collect();
    let model = safetensors(&[f32_tensor("a.weight", &[rows, cols], &weights)]);
    std::fs::write(at("model.safetensors"), model).unwrap();
    let mut matrix = Vec::new();
    for number in [1, 8] {
        matrix.extend(i32::to_le_bytes(number));
    }
    matrix.extend(b"a.weight");
    for number in [1, cols as i32] {
        matrix.extend(i32::to_le_bytes(number));
    }
    let squares = (0..cols).map(|i| if i % 32 == 0 { 900.0f32 } else { 1.0 });
    matrix.extend(squares.flat_map(f32::to_le_bytes));
    std::fs::write(at("imatrix.dat"), matrix).unwrap();

    let path = at("imatrix.dat").into_os_string().into_string().unwrap();
    for bits in ["2", "4"] {
        let settings = [("bit_width", bits), ("calibration", &path)];
        let output = at("out.parquet");
        quantize(&at("model.safetensors"), &output, &settings).unwrap();
        let model = Model::open(&output).unwrap();
        let tile = &model.tensors()[0].tiles[0].tile;
        assert!(tile.rotation.is_none() && tile.input_scale.is_none());
    }
}

fn outlier((i, w): (usize, &f32)) -> f32 {
    if i % 32 == 0 { 20.0 * w } else { *w }
}
