//! Importance matrices as the package `gguf` writes them.

use std::process::Command;

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
