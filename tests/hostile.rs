//! Malicious files: each gives an error that says what is wrong, in memory bounded by the file's
//! size, or its actual contents.

use std::path::Path;
use std::sync::Arc;

use arrowquant::format::Float;
use arrowquant::model::{ArrowExport, Model};
use arrowquant::plan::{Config, Pattern, Plan, Rule};
use arrowquant::run;
use arrowquant::source;
use bytes::Bytes;
use parquet::basic::{CompressionCodec, Encoding};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::file::metadata::{
    ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter,
};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use serde_json::json;

use crate::common::memory::peak;
use crate::common::*;

/// Returns the bytes that reading a file of this size may take: those of ArrowQuant's largest
/// tables and pools, and a multiple.
fn bound(file: usize) -> usize {
    (4 << 20) + 24 * file
}

/// Expects an error with these words, in bounded memory.
#[track_caller]
fn refused<T>(file: usize, read: impl FnOnce() -> arrowquant::error::Result<T>, words: &[&str]) {
    let (result, taken) = peak(|| read().map(drop).map_err(|error| error.to_string()));
    let message = result.expect_err("an error");
    for word in words {
        assert!(message.contains(word), "{word}: {:.300}", message);
    }
    assert!(
        taken <= bound(file),
        "{taken} bytes for {file}: {message:.300}"
    );
}

/// Opens a file written as `name` in a folder.
#[track_caller]
fn refused_source(name: &str, contents: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    refused(contents.len(), || source::open(&path), words);
}

#[track_caller]
fn refused_header(header: &str, values: &[u8], words: &[&str]) {
    refused_source("m.safetensors", &with_header(header, values), words);
}

#[track_caller]
fn refused_model(file: Vec<u8>, words: &[&str]) {
    refused(file.len(), move || Model::from_bytes(file), words);
}

#[test]
fn safetensors_headers_of_any_length() {
    for length in [1 << 60, u64::MAX, 100_000_001, 9] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(b"{}      ");
        let words = [&format!("a header of {length} bytes in a file of 16")[..]];
        refused_source("m.safetensors", &file, &words);
    }
}

#[test]
fn safetensors_offsets_that_overlap_or_overflow() {
    let entry =
        |start: u64, end: u64| json!({"dtype": "U8", "shape": [4], "data_offsets": [start, end]});
    let header = |a, b| json!({"a": a, "b": b}).to_string();
    for (a, b, words) in [
        (entry(0, 4), entry(2, 6), "overlap those before"),
        (entry(0, 4), entry(0, 4), "overlap those before"),
        (entry(0, 4), entry(u64::MAX - 3, 3), "do not match shape"),
        (entry(0, 4), entry(4, u64::MAX), "past the end of the data"),
        (entry(0, 4), entry(8, 4), "do not match shape"),
    ] {
        refused_header(
            &header(a, b),
            &[0; 8],
            &["m.safetensors", "tensor '", words],
        );
    }
    let huge = json!({"a": {"dtype": "U8", "shape": [1u64 << 63, 2], "data_offsets": [0, 0]}});
    refused_header(&huge.to_string(), &[], &["is too large"]);
    let deep = json!({"a": {"dtype": "U8", "shape": vec![1; 65], "data_offsets": [0, 1]}});
    refused_header(
        &deep.to_string(),
        &[0],
        &["65 dimensions exceed the limit of 64"],
    );
}

#[test]
fn safetensors_headers_of_a_million_tensors() {
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let entries: Vec<String> = (0..1_000_000).map(|i| format!("\"{i}\":{entry}")).collect();
    let header = format!("{{{}}}", entries.join(","));
    refused_header(&header, &[], &["m.safetensors", "over 500000 tensors"]);
}

/// Makes a GGUF file that claims this many keys and tensors, followed by these bytes.
fn gguf(keys: u64, tensors: u64, rest: &[u8]) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), keys.to_le_bytes()].concat();
    [&b"GGUF\x03\0\0\0"[..], &counts, rest].concat()
}

fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn gguf_headers_of_many_small_things() {
    let scalar = |name: &str, kind: u32| {
        let mut info = gguf_text(name);
        info.extend(1u32.to_le_bytes());
        info.extend(0u64.to_le_bytes());
        info.extend(kind.to_le_bytes());
        info.extend(0u64.to_le_bytes());
        info
    };
    let count = 100_000;
    let mut infos: Vec<u8> = (0..count)
        .flat_map(|i| scalar(&i.to_string(), 12))
        .collect();
    infos.extend(scalar("last", 15));
    let file = gguf(0, count + 1, &infos);
    refused_source("m.gguf", &file, &["m.gguf: tensor 'last': it is Q8_K"]);

    // A shape of a missing tensor is ignored, but not without limit.
    let shape = |name: u64| {
        let mut key = gguf_text(&format!("comfy.gguf.orig_shape.{name}"));
        key.extend([9u32, 5, 1, 0, 7].map(u32::to_le_bytes).concat());
        key
    };
    let keys: Vec<u8> = (0..4 * count).flat_map(shape).collect();
    let words = ["m.gguf: not a readable GGUF file: over 4194304 bytes of keys"];
    refused_source("m.gguf", &gguf(4 * count, 0, &keys), &words);
    for list in [9u32, 5] {
        let mut key = gguf_text("comfy.gguf.orig_shape.w");
        key.extend([9, list, u32::MAX, u32::MAX].map(u32::to_le_bytes).concat());
        let words = ["m.gguf: tensor 'w': key comfy.gguf.orig_shape.w"];
        refused_source("m.gguf", &gguf(1, 0, &key), &words);
    }
}

#[test]
fn names_of_a_mebibyte() {
    let name = "n".repeat(1 << 20);
    let words = ["a tensor name of 1048576 bytes exceeds the limit of 65536"];
    let entry = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
    refused_header(&json!({ &name: entry }).to_string(), &[], &words);
    let index = json!({"weight_map": { &name: "a.safetensors" }}).to_string();
    refused_source("m.safetensors.index.json", index.as_bytes(), &words);
    let entry = json!({"name": name, "shape": [1], "dtype": "f32", "format": "keep"});
    let plan = plan(&[entry], json!({}));
    refused(plan.len(), || Plan::from_json(&plan), &words);
    let mut memory = source::MemorySource::new();
    let added = memory.add(&name, arrowquant::tensor::Dtype::U8, &[0], Vec::new());
    assert!(added.unwrap_err().to_string().contains(words[0]));
}

#[test]
fn indexes_of_more_shards_than_can_be() {
    let map: serde_json::Map<_, _> = (0..1001)
        .map(|i| (i.to_string(), format!("{i}.safetensors").into()))
        .collect();
    let index = json!({ "weight_map": map }).to_string();
    let words = ["1001 shards exceed the limit of 1000"];
    refused_source("m.safetensors.index.json", index.as_bytes(), &words);
}

/// Makes a plan with these tensors and settings.
fn plan(tensors: &[serde_json::Value], config: serde_json::Value) -> String {
    json!({"arrowquant_plan": 1, "compression": "none", "config": config, "tensors": tensors})
        .to_string()
}

#[test]
fn yaml_that_expands() {
    let refused = |text: String, word: &str| {
        refused(
            text.len(),
            || Config::new().merge_yaml(&text),
            &["YAML", word],
        );
    };
    // Each list contains the previous one nine times.
    let mut text = "a0: &a0 [x]\n".to_owned();
    for i in 1..10 {
        let alias = format!("*a{},", i - 1).repeat(9);
        text += &format!("a{i}: &a{i} [{alias}]\n");
    }
    refused(text, "budget breached");
    // One long text, many times.
    let aliases = "*a,".repeat(90);
    refused(
        format!("a: &a {}\nrules: [{aliases}]\n", "x".repeat(100_000)),
        "budget breached",
    );
    refused("[".repeat(100_000), "");
    refused("a: ".repeat(100_000), "");
}

#[test]
fn patterns_that_expand() {
    for (pattern, word) in [
        ("re:(a{1000}){1000}", "exceeds size limit"),
        ("re:((a{100}){100}){100}", "exceeds size limit"),
        (r"re:\w{1000}", "exceeds size limit"),
        (&format!("re:{}", "(".repeat(4000)), ""),
        (&format!("re:{}", "a".repeat(5000)), "too long: 5003 bytes"),
        (&"*a".repeat(101), "over 100 times *"),
        (&"*a".repeat(50_000), "too long: 100000 bytes"),
    ] {
        let rule = format!("{pattern}=keep");
        refused(
            rule.len(),
            || rule.parse::<Rule>(),
            &["rule '", "pattern: ", word],
        );
    }
    // A regular expression counts as ten patterns of a thousand.
    let rules = (0..101).map(|i| format!("re:^a{i}=keep"));
    let rules = rules.collect::<Vec<_>>().join(";");
    let set = |rules: &str| Config::new().set("rules", rules);
    refused(rules.len(), || set(&rules), &["over 1000 patterns"]);
    // The number of rules for single names is not limited.
    let names: Vec<String> = (0..20_000).map(|i| format!("a{i}=keep")).collect();
    set(&names.join(";")).unwrap();
    // As many stars as allowed, with the name that takes longest.
    let pattern: Pattern = ("*a".repeat(100) + "b").parse().unwrap();
    assert!(!pattern.matches(&"a".repeat(65_536)));
}

#[test]
fn plans_with_a_rule_for_every_tensor() {
    let tensors: Vec<_> = (0..5000)
        .map(
            |i| json!({"name": format!("t{i}"), "shape": [2, 2], "dtype": "f32", "format": "keep"}),
        )
        .collect();
    // Each entry differs from the settings, and so becomes a rule; then each rule exists already.
    let first = Plan::from_json(&plan(&tensors, json!({}))).unwrap();
    assert_eq!(first.config["rules"].as_array().unwrap().len(), 5000);
    assert_eq!(
        first,
        Plan::from_json(&first.to_json().to_string()).unwrap()
    );
    let twice = plan(&[tensors[0].clone(), tensors[0].clone()], json!({}));
    refused(
        twice.len(),
        || Plan::from_json(&twice),
        &["tensor 't0': duplicate name"],
    );
}

/// Makes a quantized file.
fn quantized(settings: &[(&str, &str)]) -> Vec<u8> {
    let folder = small_model();
    let output = folder.path().join("m.parquet");
    quantize(&folder.path().join("model.safetensors"), &output, settings).unwrap();
    std::fs::read(output).unwrap()
}

/// Replaces the footer of a file, and adds `more` after its pages.
fn with_footer(file: &[u8], more: &[u8], metadata: &ParquetMetaData) -> Vec<u8> {
    let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap());
    let mut out = file[..file.len() - 8 - length as usize].to_vec();
    out.extend(more);
    ParquetMetaDataWriter::new(&mut out, metadata)
        .finish()
        .unwrap();
    out
}

fn metadata(file: &[u8]) -> ParquetMetaData {
    ParquetMetaDataReader::new()
        .parse_and_finish(&Bytes::copy_from_slice(file))
        .unwrap()
}

/// Replaces the pages in a column of the file's first row group.
fn with_pages(
    file: &[u8],
    column: &str,
    codec: CompressionCodec,
    pages: Vec<CompressedPage>,
) -> Vec<u8> {
    let metadata = metadata(file);
    let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap());
    let start = file.len() - 8 - length as usize;
    let mut out = TrackedWrite::new(Vec::new());
    let mut places = Vec::new();
    let mut values = 0;
    for page in pages {
        let data = page.page_type() != parquet::basic::PageType::DICTIONARY_PAGE;
        values += if data { page.num_values() } else { 0 };
        let written = SerializedPageWriter::new(&mut out)
            .write_page(page)
            .unwrap();
        places.push((data, start as i64 + written.offset as i64));
    }
    let more = out.into_inner().unwrap();
    let place = |data| {
        places
            .iter()
            .find(|place| place.0 == data)
            .map(|place| place.1)
    };
    let change = |chunk: &ColumnChunkMetaData| {
        if chunk.column_path().string() != column {
            return chunk.clone();
        }
        let builder = chunk.clone().into_builder();
        builder
            .set_compression_codec(codec)
            .set_num_values(i64::from(values))
            .set_total_compressed_size(more.len() as i64)
            .set_data_page_offset(place(true).unwrap())
            .set_dictionary_page_offset(place(false))
            .build()
            .unwrap()
    };
    let mut groups = metadata.row_groups().to_vec();
    let chunks = groups[0].columns().iter().map(change).collect();
    groups[0] = groups[0]
        .clone()
        .into_builder()
        .set_column_metadata(chunks)
        .build()
        .unwrap();
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    with_footer(file, &more, &metadata)
}

fn data_page(body: Vec<u8>, unpacked: usize, values: u32, encoding: Encoding) -> CompressedPage {
    let page = Page::DataPage {
        buf: body.into(),
        num_values: values,
        encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    CompressedPage::new(page, unpacked)
}

#[test]
fn footers_of_any_length() {
    let file = quantized(&[]);
    for length in [0x7FFF_FFFF, u32::MAX, file.len() as u32 - 11] {
        let mut forged = file.clone();
        let at = file.len() - 8;
        forged[at..at + 4].copy_from_slice(&length.to_le_bytes());
        refused_model(forged, &[&format!("a footer of {length} bytes")]);
    }
}

/// Makes a file that is only a footer.
fn footer_alone(footer: &[u8]) -> Vec<u8> {
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", footer, &length, b"PAR1"].concat()
}

#[test]
fn footers_of_more_than_they_hold() {
    let count = [0xFF, 0xFF, 0xFF, 0xFF, 0x07]; // 2^31 - 1
    let root = [0x48, 0x01, b'r', 0x15, 0x02, 0x00]; // named r, of one column
    let schema = [
        &[0x15, 0x02, 0x19, 0x2C][..],
        &root,
        &[0x48, 0x01, b'c', 0x00],
    ]
    .concat();
    for (footer, words) in [
        // Many row groups, keys and schema nodes, none of which exist.
        (
            [&schema[..], &[0x16, 0x00, 0x19, 0xFC], &count].concat(),
            "the footer is truncated",
        ),
        (
            [&schema[..], &[0x16, 0x00, 0x29, 0xFC], &count].concat(),
            "the footer is truncated",
        ),
        (
            [&[0x15, 0x02, 0x19, 0xFC][..], &count].concat(),
            "the footer is truncated",
        ),
        // Entries of one byte each.
        (
            [
                &schema[..],
                &[0x16, 0x00, 0x19, 0xFC, 0x80, 0x80, 0x40],
                &[0; 1 << 20],
            ]
            .concat(),
            "1048576 row groups in a footer of",
        ),
        (
            [
                &[0x15, 0x02, 0x19, 0xFC, 0x80, 0x80, 0x40][..],
                &[0; 1 << 20],
            ]
            .concat(),
            "1048576 nodes",
        ),
        // A node with more children than there are nodes.
        (
            [
                &[0x15, 0x02, 0x19, 0x1C, 0x55, 0xFE][..],
                &count[1..],
                &[0x00, 0x00],
            ]
            .concat(),
            "which are missing",
        ),
        // Each node is the only child of the previous one.
        (
            [
                &[0x15, 0x02, 0x19, 0xFC, 0x64][..],
                &[0x55, 0x02, 0x00].repeat(99),
                &[0x00, 0x00],
            ]
            .concat(),
            "nested too deep",
        ),
        // A list in place of a number would be read as a number.
        (vec![0x19, 0xFC, 0xFF, 0xFF, 0x03, 0x00], "another type"),
    ] {
        refused_model(
            footer_alone(&footer),
            &["(memory): damaged Parquet file: ", words],
        );
    }
}

#[test]
fn row_counts_that_cannot_be() {
    let file = quantized(&[]);
    // The number of rows of the whole file is written as the sum of these.
    let forge = |rows: i64| {
        let metadata = metadata(&file);
        let mut groups = metadata.row_groups().to_vec();
        groups[0] = groups[0]
            .clone()
            .into_builder()
            .set_num_rows(rows)
            .build()
            .unwrap();
        with_footer(
            &file,
            &[],
            &metadata.into_builder().set_row_groups(groups).build(),
        )
    };
    refused_model(forge(1 << 40), &["rows in a file of"]);
    refused_model(forge(i64::MAX / 2), &["rows in a file of"]);
    refused_model(forge(file.len() as i64 / 8 + 1), &["rows in a file of"]);
    refused_model(forge(-1), &["a negative number of rows"]);
    refused_model(forge(2), &["1 of 2 rows"]);
    refused_model(forge(0), &["values (at most 0 are possible)"]);
}

#[test]
fn zstd_bombs() {
    let file = quantized(&[]);
    let zeros = |bytes: usize| zstd::bulk::compress(&vec![0; bytes], 1).unwrap();
    // Pages that claim 2 GiB with 1 GiB present, and 1 GiB.
    let bomb = zeros(1 << 30);
    assert!(bomb.len() < 1 << 17);
    for column in [
        "name",
        "codes",
        "scales",
        "checksum",
        "shape.list.element",
        "input_scale",
    ] {
        for (claimed, body) in [(0x7FFF_FFFF, &bomb), (1 << 30, &bomb)] {
            let page = data_page(body.clone(), claimed, 1, Encoding::PLAIN);
            let forged = with_pages(&file, column, CompressionCodec::ZSTD, vec![page]);
            refused_model(forged, &[column, "decompress to more than"]);
        }
    }
    // A page that claims less than it decompresses to.
    let page = data_page(bomb, 100, 1, Encoding::PLAIN);
    refused_model(
        with_pages(&file, "name", CompressionCodec::ZSTD, vec![page]),
        &["Parquet"],
    );
}

#[test]
fn planes_that_no_file_of_the_size_has() {
    // A row of 64 MiB of zeros, which compresses to almost nothing: more than is decompressed from
    // such a small file.
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    let header = json!({"w": {"dtype": "U8", "shape": [1, 1 << 26], "data_offsets": [0, 1 << 26]}});
    let header = header.to_string();
    let file = std::fs::File::create(&input).unwrap();
    std::io::Write::write_all(&mut &file, &with_header(&header, &[])).unwrap();
    file.set_len(8 + header.len() as u64 + (1 << 26)).unwrap();
    let output = folder.path().join("m.parquet");
    quantize(&input, &output, &[("compression", "zstd")]).unwrap();
    let packed = std::fs::read(&output).unwrap();
    assert!(packed.len() < 20_000);
    refused_model(
        packed,
        &["planes that decompress to 67108868 bytes in a file of"],
    );
}

#[test]
fn shapes_by_run_lengths() {
    let file = quantized(&[]);
    let values: u32 = 130_000_000;
    let run = |value: u8, count: u32| {
        let mut bytes = Vec::new();
        let mut rest = u64::from(count) << 1;
        while rest > 0x7F {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.extend([rest as u8, value]);
        bytes
    };
    let levels = |bytes: Vec<u8>| [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat();
    // One list of this many ones.
    let repetition = levels([run(0, 1), run(1, values - 1)].concat());
    let definition = levels(run(1, values));
    let body = [repetition, definition, vec![1], run(0, values)].concat();
    let dictionary = Page::DictionaryPage {
        buf: 1i64.to_le_bytes().to_vec().into(),
        num_values: 1,
        encoding: Encoding::PLAIN,
        is_sorted: false,
    };
    let length = body.len();
    assert!(length < 100);
    let pages = vec![
        CompressedPage::new(dictionary, 8),
        data_page(body, length, values, Encoding::RLE_DICTIONARY),
    ];
    let column = "shape.list.element";
    let forged = with_pages(&file, column, CompressionCodec::UNCOMPRESSED, pages);
    refused_model(
        forged,
        &[column, "130000000 values (at most 64 are possible)"],
    );
}

#[test]
fn dictionaries_of_more_than_they_hold() {
    let file = quantized(&[]);
    let page = |values| {
        let page = Page::DictionaryPage {
            buf: vec![0; 100].into(),
            num_values: values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        vec![
            CompressedPage::new(page, 100),
            data_page(vec![1, 2, 0], 3, 1, Encoding::RLE_DICTIONARY),
        ]
    };
    let forged = with_pages(
        &file,
        "name",
        CompressionCodec::UNCOMPRESSED,
        page(0x7FFF_FFFF),
    );
    refused_model(
        forged,
        &["column name: a dictionary of 2147483647 values in 100 bytes"],
    );
    // One long name in a dictionary, for many rows.
    let plain = with_pages(&file, "name", CompressionCodec::UNCOMPRESSED, page(25));
    assert!(Model::from_bytes(plain).is_err());
}

#[test]
fn columns_that_share_bytes() {
    let file = quantized(&[]);
    let metadata = metadata(&file);
    let groups = vec![metadata.row_groups()[0].clone(); 500];
    let old = metadata.file_metadata();
    let file_metadata = parquet::file::metadata::FileMetaData::new(
        1,
        500,
        None,
        old.key_value_metadata().cloned(),
        old.schema_descr_ptr(),
        None,
    );
    let forged = with_footer(&file, &[], &ParquetMetaData::new(file_metadata, groups));
    let length = forged.len();
    let error = Model::from_bytes(forged).unwrap_err().to_string();
    assert!(
        error.contains("share bytes") || error.contains("rows in a file"),
        "{length}: {error}"
    );
}

/// Processes a file according to its name, as the fuzz targets do.
fn replay(path: &Path) {
    let contents = std::fs::read(path).unwrap();
    let text = || String::from_utf8_lossy(&contents).into_owned();
    let name = path.file_name().unwrap().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    match name.split('-').next().unwrap() {
        "parquet" => {
            let Ok(model) = Model::from_bytes(contents) else {
                return;
            };
            let _ = model.source_metadata();
            for (i, tensor) in model.tensors().iter().enumerate().take(20) {
                for tile in 0..tensor.tiles.len().min(4) {
                    let _ = model.planes(i, tile);
                    let _ = model.check_tile(i, tile);
                }
                let shape = &tensor.info.shape;
                if shape.elements() <= 1 << 14 {
                    let mut out = vec![0; shape.elements() * 4];
                    let _ = model.dequantize_rows(i, 0..shape.rows(), Float::F32, &mut out);
                }
            }
            ArrowExport::new(Arc::new(model)).take(20).for_each(drop);
        }
        "safetensors" => {
            let path = folder.path().join("m.safetensors");
            std::fs::write(&path, &contents).unwrap();
            let _ = source::open(&path);
        }
        "part" => {
            std::fs::write(folder.path().join("part-00000.parquet"), &contents).unwrap();
            if run::merge(folder.path()).is_ok() {
                Model::open(folder.path()).unwrap();
            }
        }
        "manifest" => {
            std::fs::write(folder.path().join("manifest.json"), &contents).unwrap();
            let _ = Model::open(folder.path());
        }
        "index" => {
            let path = folder.path().join("m.safetensors.index.json");
            std::fs::write(&path, &contents).unwrap();
            let _ = source::open(&path);
        }
        "yaml" => {
            let mut config = Config::new();
            if config.merge_yaml(&text()).is_ok() {
                let mut again = Config::new();
                again.merge_yaml(&config.to_yaml().unwrap()).unwrap();
                assert_eq!(config.to_json(), again.to_json());
            }
        }
        "plan" => {
            if let Ok(plan) = Plan::from_json(&text()) {
                let again = Plan::from_json(&plan.to_json().to_string()).unwrap();
                assert_eq!(plan, again);
            }
        }
        "rule" => {
            let text = text();
            let (rule, names) = text.split_once('\n').unwrap_or((&text, ""));
            if let Ok(rule) = rule.parse::<Rule>() {
                let again: Rule = rule.to_string().parse().unwrap();
                assert_eq!(rule.to_string(), again.to_string());
                for name in names.lines() {
                    assert_eq!(rule.pattern.matches(name), again.pattern.matches(name));
                }
            }
        }
        _ => panic!("{name}: nothing is known of such files"),
    }
}

#[test]
fn files_that_were_made_to_harm_do_none() {
    let folder = root().join("tests/data/hostile");
    let names = names_in(&folder);
    assert!(!names.is_empty());
    for name in names {
        let path = folder.join(&name);
        let bytes = std::fs::metadata(&path).unwrap().len() as usize;
        let ((), taken) = peak(|| replay(&path));
        assert!(
            taken <= bound(bytes) + (64 << 20),
            "{name}: {taken} bytes of {bytes}"
        );
    }
}
