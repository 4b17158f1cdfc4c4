//! One file, shards, folders, tensors in memory: the same model gives the same planes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use arrowquant::error::Result;
use arrowquant::model::Model;
use arrowquant::plan::Config;
use arrowquant::run::{self, Options};
use arrowquant::source::{self, MemorySource, Source, SourceId};
use arrowquant::tensor::{Dtype, TensorInfo};
use serde_json::json;

use crate::common::*;

/// Writes three tensors, in one file and in two shards.
fn write_both(folder: &std::path::Path) {
    let tensors = [
        bf16_tensor("a.weight", &[8, 64], &noise(1, 512)),
        f32_tensor("b.weight", &[4, 40], &noise(2, 160)),
        f32_tensor("c.bias", &[5], &noise(3, 5)),
    ];
    std::fs::create_dir(folder.join("sharded")).unwrap();
    std::fs::write(folder.join("whole.safetensors"), safetensors(&tensors)).unwrap();
    let shard = |name: &str, tensors: &[RawTensor]| {
        std::fs::write(folder.join("sharded").join(name), safetensors(tensors)).unwrap();
    };
    shard("model-00001-of-00002.safetensors", &tensors[..1]);
    shard("model-00002-of-00002.safetensors", &tensors[1..]);
    let index = json!({
        "metadata": {"total_size": 1},
        "weight_map": {
            "a.weight": "model-00001-of-00002.safetensors",
            "b.weight": "model-00002-of-00002.safetensors",
            "c.bias": "model-00002-of-00002.safetensors",
        },
    });
    let path = folder.join("sharded/model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

fn decoded(model: &Model) -> Vec<(String, Vec<u8>)> {
    let decode = |index: usize| {
        let info = &model.tensors()[index].info;
        let mut out = vec![0; info.shape.elements() * 4];
        let float = arrowquant::format::Float::F32;
        model
            .dequantize_rows(index, 0..info.shape.rows(), float, &mut out)
            .unwrap();
        (info.name.clone(), out)
    };
    (0..model.tensors().len()).map(decode).collect()
}

#[test]
fn shards_give_the_tensors_of_the_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    write_both(folder.path());
    let make = |input: &str, output: &str| {
        let output = folder.path().join(output);
        quantize(&folder.path().join(input), &output, &[]).unwrap();
        Model::open(&output).unwrap()
    };
    let whole = make("whole.safetensors", "whole.parquet");
    let folder_given = make("sharded", "folder.parquet");
    let index_given = make("sharded/model.safetensors.index.json", "index.parquet");
    assert_eq!(decoded(&whole).len(), 3);
    assert_eq!(decoded(&whole), decoded(&folder_given));
    assert_eq!(decoded(&whole), decoded(&index_given));
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes("folder.parquet"), bytes("index.parquet"));
}

#[test]
fn a_folder_with_one_file_needs_no_index() {
    let folder = small_model();
    let source = source::open(folder.path()).unwrap();
    assert_eq!(source.tensors().len(), 7);
    std::fs::copy(
        folder.path().join("model.safetensors"),
        folder.path().join("other.safetensors"),
    )
    .unwrap();
    // The file that transformers would read takes precedence.
    let source = source::open(folder.path()).unwrap();
    assert_eq!(source.path_of(0), folder.path().join("model.safetensors"));
    std::fs::rename(
        folder.path().join("model.safetensors"),
        folder.path().join("more.safetensors"),
    )
    .unwrap();
    let message = source::open(folder.path()).err().unwrap().to_string();
    assert!(
        message.contains("more.safetensors, other.safetensors"),
        "{message}"
    );
}

#[test]
fn tensors_in_memory_are_a_source_like_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (_, _, dims, values) = f32_tensor("w", &[9, 50], &noise(5, 450));
    let mut source = MemorySource::new();
    source
        .add("w", Dtype::F32, &dims, values.as_slice())
        .unwrap();
    let path = folder.path().join("w.safetensors");
    std::fs::write(
        &path,
        safetensors(&[f32_tensor("w", &[9, 50], &noise(5, 450))]),
    )
    .unwrap();

    let plan = run::plan(&source, &Config::new()).unwrap();
    let memory = folder.path().join("memory.parquet");
    run::quantize(&source, &plan, &memory, Options::default()).unwrap();
    let file = folder.path().join("file.parquet");
    quantize(&path, &file, &[]).unwrap();
    assert_eq!(
        decoded(&Model::open(&memory).unwrap()),
        decoded(&Model::open(&file).unwrap())
    );
}

#[test]
fn metadata_of_the_source_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let header = json!({
        "__metadata__": {"architecture": "DiT", "note": "ü"},
        "w": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    });
    let input = folder.path().join("m.safetensors");
    std::fs::write(&input, with_header(&header.to_string(), &[0; 8])).unwrap();
    let output = folder.path().join("m.parquet");
    quantize(&input, &output, &[]).unwrap();
    let back = folder.path().join("back.safetensors");
    arrowquant_ok(["dequantize".as_ref(), output.as_os_str(), back.as_os_str()]);
    let source = source::open(&back).unwrap();
    assert_eq!(source.metadata()["architecture"], "DiT");
    assert_eq!(source.metadata()["note"], "ü");
}

#[test]
fn files_of_every_kind_are_watched() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    let mut gguf = b"GGUF\x03\0\0\0".to_vec();
    gguf.extend([0; 16]);
    std::fs::write(at("m.gguf"), gguf).unwrap();
    let settings = [("rules", "*=keep")];
    quantize(&at("model.safetensors"), &at("m.parquet"), &settings).unwrap();
    for name in ["model.safetensors", "m.gguf", "m.parquet"] {
        let source = source::open(&at(name)).unwrap();
        source.check_unchanged().unwrap();
        let [file] = &source.files()[..] else {
            panic!("one file");
        };
        assert_eq!(file.path, at(name));
        let mut longer = std::fs::read(at(name)).unwrap();
        assert_eq!(file.bytes, longer.len() as u64);
        longer.push(0);
        std::fs::write(at(name), longer).unwrap();
        let message = source.check_unchanged().unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
        assert!(
            message.contains("was changed while it was read"),
            "{message}"
        );
    }
}

/// A source to be read in order, which records the order of reads.
struct InTurn {
    tensors: MemorySource<'static>,
    read: Mutex<Vec<usize>>,
}

impl Source for InTurn {
    fn tensors(&self) -> &[TensorInfo] {
        self.tensors.tensors()
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let mut read = self.read.lock().unwrap();
        if read.last() != Some(&index) {
            read.push(index);
        }
        self.tensors.read(index, offset, out)
    }

    fn path_of(&self, index: usize) -> &Path {
        self.tensors.path_of(index)
    }

    fn path(&self) -> &Path {
        self.tensors.path()
    }

    fn id(&self) -> SourceId {
        self.tensors.id()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        self.tensors.metadata()
    }

    fn in_turn(&self) -> bool {
        true
    }
}

#[test]
fn packed_tensors_are_read_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("m.parquet");
    let mut tensors = MemorySource::new();
    let (_, _, dims, values) = f32_tensor("", &[64, 4096], &noise(1, 64 * 4096));
    for i in 0..12 {
        let name = format!("{i}.weight");
        tensors
            .add(&name, Dtype::F32, &dims, values.clone())
            .unwrap();
    }
    let source = InTurn {
        tensors,
        read: Mutex::default(),
    };
    let options = || Options {
        threads: 4,
        ..Options::default()
    };
    let plan = run::plan(&source, &config(&[("method", "minmax")])).unwrap();
    run::quantize(&source, &plan, &output, options()).unwrap();
    let turns: Vec<usize> = (0..12).collect();
    assert_eq!(*source.read.lock().unwrap(), turns);
    source.read.lock().unwrap().clear();
    let model = Model::open(&output).unwrap();
    let found = run::verify(&model, Some(&source), None, options()).unwrap();
    assert_eq!(found.failures().count(), 0);
    assert_eq!(*source.read.lock().unwrap(), turns);
}

/// Reads a model through a function, as callers do whose weights are elsewhere.
#[test]
fn a_caller_reads_the_bytes() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use source::ReadFn;

    let path = demo_model("dit-digits.safetensors");
    let bytes = Arc::new(std::fs::read(&path).unwrap());
    let read = Arc::new(AtomicU64::new(0));
    let (of, counted) = (bytes.clone(), read.clone());
    let reader = ReadFn::new(bytes.len() as u64, None, move |out, offset| {
        out.copy_from_slice(&of[offset as usize..][..out.len()]);
        counted.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    });
    let name = Path::new("dit-digits.safetensors");
    let here = source::open_reader(name, Box::new(reader)).unwrap();
    // Opening reads the header alone.
    assert!(read.load(Ordering::Relaxed) < bytes.len() as u64 / 100);
    let there = source::open(&path).unwrap();
    assert_eq!(here.tensors(), there.tensors());
    assert_eq!(here.id(), there.id());
    for tensor in 0..here.tensors().len() {
        assert!(values_of(here.as_ref(), tensor) == values_of(there.as_ref(), tensor));
    }
    here.check_unchanged().unwrap();
}

#[test]
fn what_a_caller_cannot_read_is_an_error_that_names_it() {
    use source::ReadFn;

    let name = Path::new("elsewhere.safetensors");
    let text = |error: arrowquant::error::Error| error.to_string();
    let fails = |_: &mut [u8], _: u64| Err(std::io::Error::other("no connection"));
    let failed = source::open_reader(name, Box::new(ReadFn::new(100, None, fails)));
    let message = text(failed.err().unwrap());
    assert!(message.contains("elsewhere.safetensors"), "{message}");
    assert!(message.contains("no connection"), "{message}");
    let zeros = |out: &mut [u8], _: u64| {
        out.fill(0);
        Ok(())
    };
    let name = Path::new("elsewhere.bin");
    let failed = source::open_reader(name, Box::new(ReadFn::new(100, None, zeros)));
    let message = text(failed.err().unwrap());
    assert!(
        message.contains("not a safetensors, GGUF or Parquet file"),
        "{message}"
    );
    assert!(message.contains("begins with zeros"), "{message}");
}
