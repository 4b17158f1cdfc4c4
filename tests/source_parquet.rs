//! Tensors in Parquet files: tables as others write them, and kept tensors in ArrowQuant files.
//! `tests/python/test_sources.py` tests files of pyarrow and DuckDB.

use std::sync::Arc;

use arrowquant::model::Model;
use arrowquant::source::{self, Source};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use crate::common::*;

const SCHEMA: &str = "message table {
    required binary name (STRING);
    optional group shape (LIST) { repeated group list { optional int64 element; } }
    optional binary dtype (STRING);
    optional binary data;
}";

/// A tensor of a table: name, shape, dtype, values.
type Row = (&'static str, Vec<i64>, &'static str, Option<Vec<u8>>);

fn row(name: &'static str, dims: &[i64], dtype: &'static str, values: &[u8]) -> Row {
    (name, dims.to_vec(), dtype, Some(values.to_vec()))
}

/// Returns two f32 matrices, an empty tensor, a scalar of bf16.
fn rows() -> Vec<Row> {
    let floats = |seed, count| f32_tensor("", &[], &noise(seed, count)).3;
    vec![
        row("a.weight", &[8, 20], "f32", &floats(1, 160)),
        row("b.weight", &[3, 5], "F32", &floats(2, 15)),
        row("empty", &[0, 4], "i64", &[]),
        row("scale", &[], "bf16", &[0x80, 0x3F]),
    ]
}

/// Options for writing a table.
#[derive(Clone, Copy)]
struct Style {
    compression: Compression,
    dictionary: bool,
    version: WriterVersion,
    /// Rows per row group.
    group: usize,
}

const PLAIN: Style = Style {
    compression: Compression::UNCOMPRESSED,
    dictionary: false,
    version: WriterVersion::PARQUET_1_0,
    group: 2,
};

fn styles() -> Vec<Style> {
    let mut styles = Vec::new();
    let zstd = Compression::ZSTD(Default::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        for dictionary in [false, true] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                for group in [1, 3, 100] {
                    styles.push(Style {
                        compression,
                        dictionary,
                        version,
                        group,
                    });
                }
            }
        }
    }
    styles
}

fn table(rows: &[Row], style: Style) -> Vec<u8> {
    let mut properties = WriterProperties::builder()
        .set_compression(style.compression)
        .set_dictionary_enabled(style.dictionary)
        .set_writer_version(style.version);
    if !style.dictionary {
        // Version 2 would write lengths apart from text.
        for column in ["name", "dtype", "data"] {
            let plain = parquet::basic::Encoding::PLAIN;
            properties = properties.set_column_encoding(ColumnPath::from(column), plain);
        }
    }
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).unwrap();
    for rows in rows.chunks(style.group) {
        let mut group = writer.next_row_group().unwrap();
        let names = rows.iter().map(|row| Some(row.0.as_bytes()));
        write_texts(&mut group, names.collect());
        let mut column = group.next_column().unwrap().unwrap();
        let (mut dims, mut levels, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            dims.extend(&row.1);
            levels.extend(row.1.iter().map(|_| 3).chain(row.1.is_empty().then_some(1)));
            starts.extend((0..row.1.len().max(1)).map(|i| i16::from(i > 0)));
        }
        let typed = column.typed::<Int64Type>();
        typed
            .write_batch(&dims, Some(&levels), Some(&starts))
            .unwrap();
        column.close().unwrap();
        let dtypes = rows.iter().map(|row| Some(row.2.as_bytes()));
        write_texts(&mut group, dtypes.collect());
        write_texts(
            &mut group,
            rows.iter().map(|row| row.3.as_deref()).collect(),
        );
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// Writes the next column.
fn write_texts(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: Vec<Option<&[u8]>>) {
    let mut column = group.next_column().unwrap().unwrap();
    let present = values.iter().map(|value| i16::from(value.is_some()));
    let present: Vec<i16> = present.collect();
    let values = values.into_iter().flatten();
    let values: Vec<ByteArray> = values.map(|value| value.to_vec().into()).collect();
    let typed = column.typed::<ByteArrayType>();
    typed.write_batch(&values, Some(&present), None).unwrap();
    column.close().unwrap();
}

fn opened(bytes: &[u8]) -> arrowquant::error::Result<Box<dyn Source>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.parquet");
    std::fs::write(&path, bytes).unwrap();
    source::open(&path)
}

#[test]
fn tables_of_every_style_are_read() {
    for style in styles() {
        let source = opened(&table(&rows(), style)).unwrap();
        for (index, (name, dims, dtype, bytes)) in rows().iter().enumerate() {
            let info = &source.tensors()[index];
            assert_eq!(info.name, *name);
            assert_eq!(info.dtype.name(), dtype.to_lowercase());
            let found: Vec<i64> = info.shape.dims().iter().map(|&dim| dim as i64).collect();
            assert_eq!(found, *dims);
            assert_eq!(values_of(source.as_ref(), index), *bytes.as_ref().unwrap());
        }
        assert_eq!(source.tensors().len(), 4);
        assert_eq!(source.files().len(), 1);
        // Uncompressed values need no memory. (Version 2 also leaves values uncompressed if they do
        // not become smaller.)
        let plain = style.compression == Compression::UNCOMPRESSED && !style.dictionary;
        if plain || style.version == WriterVersion::PARQUET_1_0 {
            assert_eq!(source.held_bytes() == 0, plain);
        }
        assert!(source.held_bytes() < 20_000);
    }
}

#[test]
fn a_table_is_quantized_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (i, style) in styles().into_iter().enumerate().step_by(5) {
        let (input, output) = (
            at(&format!("{i}.parquet")),
            at(&format!("{i}-int8.parquet")),
        );
        std::fs::write(&input, table(&rows(), style)).unwrap();
        let model = quantized_and_verified(&input, &output);
        assert!(model.tensors()[model.find("b.weight").unwrap()].is_quantized());
    }
}

#[test]
fn kept_tensors_of_our_own_files_are_read() {
    let folder = small_model();
    let at = |name: &str| folder.path().join(name);
    let original = source::open(&at("model.safetensors")).unwrap();
    for compression in ["none", "zstd"] {
        let kept = at("kept.parquet");
        let settings = [("rules", "*=keep"), ("compression", compression)];
        quantize(&at("model.safetensors"), &kept, &settings).unwrap();
        let found = source::open(&kept).unwrap();
        assert_eq!(found.tensors().len(), original.tensors().len());
        for (index, info) in original.tensors().iter().enumerate() {
            let place = found
                .tensors()
                .iter()
                .position(|other| other == info)
                .unwrap();
            let expected = values_of(original.as_ref(), index);
            assert_eq!(values_of(found.as_ref(), place), expected, "{}", info.name);
        }
        assert_eq!(found.held_bytes() == 0, compression == "none");

        // Quantizing it gives the same result as the original.
        let (direct, again) = (at("direct.parquet"), at("again.parquet"));
        quantize(&at("model.safetensors"), &direct, &[]).unwrap();
        quantize(&kept, &again, &[]).unwrap();
        let (direct, again) = (Model::open(&direct).unwrap(), Model::open(&again).unwrap());
        for (index, tensor) in direct.tensors().iter().enumerate() {
            let other = again.find(&tensor.info.name).unwrap();
            let (planes, others) = (direct.planes(index, 0), again.planes(other, 0));
            assert_eq!(planes.unwrap().codes(), others.unwrap().codes());
        }
    }
    let quantized = at("direct.parquet");
    let message = source::open(&quantized).err().unwrap().to_string();
    for part in [
        "direct.parquet",
        "blocks.0.attn.weight",
        "quantized (int4): dequantize",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn metadata_of_our_own_files_is_that_of_their_source() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let header = r#"{"__metadata__":{"architecture":"DiT"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    std::fs::write(at("m.safetensors"), with_header(header, &[0; 8])).unwrap();
    quantize(&at("m.safetensors"), &at("m.parquet"), &[]).unwrap();
    let source = source::open(&at("m.parquet")).unwrap();
    assert_eq!(
        source.metadata().iter().collect::<Vec<_>>(),
        [(&"architecture".to_owned(), &"DiT".to_owned())]
    );
}

#[test]
fn a_tensor_of_several_tiles_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Tiles have 16 MiB when compressed.
    let ids: Vec<u8> = (0..9i32 << 19).flat_map(i32::to_le_bytes).collect();
    let tensor = ("ids".to_owned(), "I32", vec![9 << 9, 1 << 10], ids.clone());
    std::fs::write(at("m.safetensors"), safetensors(&[tensor])).unwrap();
    quantize(
        &at("m.safetensors"),
        &at("m.parquet"),
        &[("compression", "zstd")],
    )
    .unwrap();
    assert_eq!(
        Model::open(&at("m.parquet")).unwrap().tensors()[0]
            .tiles
            .len(),
        2
    );
    let source = source::open(&at("m.parquet")).unwrap();
    assert!(values_of(source.as_ref(), 0) == ids);
    check_parts(
        source.as_ref(),
        0,
        &[5, (16 << 20) - 1, (16 << 20) + 7, 17 << 20],
    );
}

#[test]
fn what_is_no_tensor_is_named() {
    let with = |row: Row| {
        let mut all = rows();
        all.push(row);
        all
    };
    let null = |name| (name, vec![2], "f32", None);
    for (rows, parts) in [
        (
            with(row("w", &[2], "f32", &[0; 7])),
            &["'w'", "7 bytes, but shape [2] of f32 takes 8"][..],
        ),
        (
            with(row("w", &[-2], "f32", &[0; 8])),
            &["'w'", "a negative number"],
        ),
        (
            with(row("w", &[1 << 40, 1 << 40], "f32", &[])),
            &["'w'", "too large"],
        ),
        (
            with(row("w", &[2], "f33", &[0; 8])),
            &["'w'", "unknown dtype 'f33'"],
        ),
        (
            with(row("a.weight", &[2], "f32", &[0; 8])),
            &["'a.weight'", "disagree"],
        ),
        (
            with(row("scale", &[], "bf16", &[0; 2])),
            &["'scale'", "duplicate name"],
        ),
        (with(null("w")), &["null"]),
    ] {
        for style in styles() {
            let read = |source: Box<dyn Source>| {
                // The length of a compressed value is only known after decompression.
                let last = source.tensors().len() - 1;
                let mut values = vec![0; source.tensors()[last].bytes().unwrap()];
                source.read(last, 0, &mut values)
            };
            let message = opened(&table(&rows, style))
                .and_then(read)
                .unwrap_err()
                .to_string();
            for part in parts.iter().chain(&["m.parquet"]) {
                assert!(message.contains(part), "'{part}' is not in: {message}");
            }
        }
    }
}

#[test]
fn tables_of_something_else_say_what_is_missing() {
    let schema = "message table { required int32 x; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<Int32Type>()
        .write_batch(&[1], None, None)
        .unwrap();
    column.close().unwrap();
    group.close().unwrap();
    let message = opened(&writer.into_inner().unwrap())
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("m.parquet: the table has no column 'data'"),
        "{message}"
    );
}

/// If it is truncated anywhere, or any byte is changed, a file is refused or is another valid one,
/// without a panic.
#[test]
fn any_damage_is_survived() {
    let zstd = Style {
        compression: Compression::ZSTD(Default::default()),
        dictionary: true,
        ..PLAIN
    };
    let small = vec![
        row("a", &[2, 3], "f16", &[7; 12]),
        row("b", &[4], "u8", &[9; 4]),
    ];
    for style in [PLAIN, zstd] {
        let whole = table(&small, style);
        for end in 0..whole.len() {
            assert!(opened(&whole[..end]).is_err(), "{end} bytes");
        }
        for at in 0..whole.len() {
            for change in [1, 0x80, 0xFF] {
                let mut changed = whole.clone();
                changed[at] ^= change;
                let Ok(source) = opened(&changed) else {
                    continue;
                };
                for index in 0..source.tensors().len() {
                    let len = source.tensors()[index].bytes().unwrap();
                    let _ = source.read(index, 0, &mut vec![0; len]);
                }
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_parts_make_the_whole(
        style in 0usize..36,
        cuts in proptest::collection::vec(0usize..640, 0..6),
    ) {
        let source = opened(&table(&rows(), styles()[style])).unwrap();
        for index in 0..4 {
            check_parts(source.as_ref(), index, &cuts);
        }
    }
}
