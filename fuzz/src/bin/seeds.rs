//! Writes the seed corpus: small files of every kind that each target reads, where a fuzzer
//! starts from. Run it in this folder, `cargo run --release --bin seeds`, after the formats have changed.

use std::fs;
use std::path::Path;

use arrowquant::plan::Config;
use arrowquant::run::{self, Options};
use arrowquant::schema::{Fingerprint, Manifest, ManifestPart, part_name};
use arrowquant::source::{MemorySource, Source};
use arrowquant::tensor::Dtype;
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

fn main() {
    let seeds = Path::new("corpus-seeds");
    let write = |target: &str, name: &str, contents: &[u8]| {
        let folder = seeds.join(target);
        fs::create_dir_all(&folder).expect("a writable folder");
        fs::write(folder.join(name), contents).expect("a writable file");
    };

    for (name, file) in safetensors() {
        write("safetensors", name, &file);
    }
    let index = json!({
        "metadata": {"total_size": 4},
        "weight_map": {"a": "a.safetensors", "b": "b.safetensors"},
    });
    write("index", "two-shards", index.to_string().as_bytes());

    let listing = json!({
        "model": "DiT",
        "dtype": "bf16",
        "tensors": {
            "x_embedder.proj.weight": [256, 4, 2, 2],
            "t_embedder.mlp.0.weight": [256, 256],
            "blocks.0.attn.qkv.weight": [768, 256],
            "position_ids": {"shape": [1, 77], "dtype": "i64"},
        },
    });
    write("listing", "dit", listing.to_string().as_bytes());

    let pipeline = json!({
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "Scheduler"],
        "tokenizer": [null, null],
    });
    write(
        "pipeline",
        "two-components",
        pipeline.to_string().as_bytes(),
    );

    let yaml = "deployment_profile: edge\nbit_width: 4\nscheme: affine\nrules:\n- 're:^a\\.=keep'\n\
                - {pattern: 'b*', bits: 8, group: 64}\ngain: &x auto\nscale_dtype: *x\n";
    write("yaml", "every-kind", yaml.as_bytes());
    for (name, rule) in [
        ("glob", "blocks.*.[kv]?=bits:8,group:64\nblocks.0.k1\nx"),
        ("regex", "re:^(a|b+)\\.\\d{1,3}=keep\nbb.12\nc"),
        (
            "name",
            "[[]x[]]=scheme:affine,method:minmax,gain:lsq,scale_dtype:f32\n[x]",
        ),
    ] {
        write("rules", name, rule.as_bytes());
    }

    for (name, file) in arrowquant_fuzz::gguf::seeds() {
        write("gguf", name, &file);
    }
    let folder = arrowquant_fuzz::folder();
    arrowquant_fuzz::parts::write(folder);
    let part = fs::read(folder.join("part-00000.parquet")).expect("a file that was written");
    write("part", "one", &part);
    write("parquet_source", "table", &table());

    let source = tensors();
    for (name, settings) in [
        ("kept", &[("rules", "*=keep")][..]),
        ("affine", &[("scheme", "affine"), ("bit_width", "4")][..]),
        ("packed", &[("compression", "zstd"), ("bit_width", "2")]),
    ] {
        let mut config = Config::new();
        for (key, value) in settings {
            config.set(key, value).expect("a setting");
        }
        if name != "kept" {
            config.set("rules", "re:[xy]=bits:4").expect("a rule");
        }
        let plan = run::plan(&source, &config).expect("a plan");
        let mut file = vec![0; run::output_bound(&source, &plan).expect("few tensors")];
        let options = Options {
            threads: 1,
            ..Options::default()
        };
        let report = run::quantize_into(&source, &plan, &mut file, options).expect("a file");
        file.truncate(report.output_bytes as usize);
        let target = if name == "kept" {
            "parquet_source"
        } else {
            "parquet_model"
        };
        write(target, name, &file);
        if name == "affine" {
            write(
                "manifest",
                "one-part",
                manifest(file.len()).text().as_bytes(),
            );
        }
        write("plan_json", name, plan.to_json().to_string().as_bytes());
    }
}

/// A matrix, and what is kept.
fn tensors() -> MemorySource<'static> {
    let mut source = MemorySource::new();
    let values = |count: usize| -> Vec<u8> {
        let value = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0).to_le_bytes();
        (0..count).flat_map(value).collect()
    };
    let mut add = |name: &str, dtype, dims: &[usize], values: Vec<u8>| {
        source
            .add(name, dtype, dims, values)
            .expect("a right tensor");
    };
    add("x", Dtype::F32, &[3, 40], values(120));
    add("bias", Dtype::F32, &[5], values(5));
    add("scalar", Dtype::F32, &[], values(1));
    add("ids", Dtype::I64, &[2, 1, 1], vec![1; 16]);
    add("empty", Dtype::F32, &[0, 7], Vec::new());
    source
}

/// Files with tensors and metadata, and without.
fn safetensors() -> Vec<(&'static str, Vec<u8>)> {
    let source = tensors();
    let mut header = serde_json::Map::new();
    let mut values = Vec::new();
    for (i, tensor) in source.tensors().iter().enumerate() {
        let start = values.len();
        values.resize(start + tensor.bytes().expect("whole bytes"), 0);
        source.read(i, 0, &mut values[start..]).expect("in memory");
        let entry = json!({
            "dtype": tensor.dtype.safetensors_name(),
            "shape": tensor.shape.dims(),
            "data_offsets": [start, values.len()],
        });
        header.insert(tensor.name.clone(), entry);
    }
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let file = |header: &str, values: &[u8]| {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), values].concat()
    };
    let text = serde_json::Value::Object(header).to_string();
    vec![
        ("every-kind", file(&text, &values)),
        ("nothing", file("{}", &[])),
    ]
}

/// A table of two tensors, one of them compressed well.
fn table() -> Vec<u8> {
    let schema = "message table {
        required binary name (STRING);
        required group shape (LIST) { repeated group list { required int64 element; } }
        required binary dtype (STRING);
        required binary data;
    }";
    let schema = parse_message_type(schema).expect("a schema");
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let properties = properties.build().into();
    let mut file = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut file, schema.into(), properties).expect("a file");
    let mut group = writer.next_row_group().expect("a row group");
    let bytes = |values: [&[u8]; 2]| values.map(|value| ByteArray::from(value.to_vec()));
    let mut texts = [
        bytes([b"a", b"b"]),
        bytes([b"f32", b"u8"]),
        bytes([&[0; 16], &[7; 3]]),
    ]
    .into_iter();
    let mut column = 0;
    while let Some(mut writer) = group.next_column().expect("a column") {
        if column == 1 {
            let writer = writer.typed::<Int64Type>();
            writer
                .write_batch(&[2, 2, 3], Some(&[1; 3]), Some(&[0, 1, 0]))
                .expect("shapes");
        } else {
            let values = texts.next().expect("three columns");
            let writer = writer.typed::<ByteArrayType>();
            writer.write_batch(&values, None, None).expect("texts");
        }
        writer.close().expect("a whole column");
        column += 1;
    }
    group.close().expect("a whole row group");
    writer.close().expect("a whole file");
    file
}

/// The manifest of a folder with one part of so many bytes.
fn manifest(bytes: usize) -> Manifest {
    let fingerprint = Fingerprint {
        format_version: 2,
        source: json!({"name": "m.safetensors", "bytes": 1000}),
        tensors: String::new(),
        sample: String::new(),
        config: json!({"bit_width": 4}),
        compression: "none".into(),
        shares: 1,
        part_bytes: 1 << 20,
    };
    let part = ManifestPart {
        file: part_name(0),
        share: 1,
        tensors: 5,
        bytes: Some(bytes as u64),
    };
    let mut manifest = Manifest::new(fingerprint, vec![part]);
    manifest.complete = true;
    manifest.modality = "image".into();
    manifest.summary = json!({"total": {"cosine": 0.5}, "tensors": {"x": {"cosine": 0.5}}});
    manifest
}
