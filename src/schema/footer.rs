//! Checks a footer's claims before the parquet crate relies on them.
//!
//! The crate allocates as much as a footer claims: one byte of it can stand for a row group of
//! several hundred, and a schema node for any number of children. So the footer is walked before it
//! is parsed, in time and memory proportional to its actual bytes.

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::thrift::{Fault, Field, Kind, Met, walk};

/// The most nodes of a schema; ArrowQuant's has 36.
const MAX_SCHEMA: usize = 1000;

/// The most levels of a schema; ArrowQuant's has 5.
const MAX_LEVELS: usize = 12;

/// The most bytes of a column's name.
const MAX_COLUMN_NAME: usize = 1024;

/// The most entries of the footer's metadata; ArrowQuant writes 7.
const MAX_KEYS: usize = 10_000;

/// The fewest bytes that a row group takes in a footer; ArrowQuant's take about 2 KB.
const ROW_GROUP_BYTES: usize = 64;

pub(super) const EMPTY: &[Field] = &[];
const TIME_UNIT: &[Field] = &[
    (1, Kind::Struct(EMPTY)),
    (2, Kind::Struct(EMPTY)),
    (3, Kind::Struct(EMPTY)),
];
const TIME: &[Field] = &[(1, Kind::Bool), (2, Kind::Struct(TIME_UNIT))];
const LOGICAL_TYPE: &[Field] = &[
    (1, Kind::Struct(EMPTY)),
    (2, Kind::Struct(EMPTY)),
    (3, Kind::Struct(EMPTY)),
    (4, Kind::Struct(EMPTY)),
    (5, Kind::Struct(&[(1, Kind::I32), (2, Kind::I32)])),
    (6, Kind::Struct(EMPTY)),
    (7, Kind::Struct(TIME)),
    (8, Kind::Struct(TIME)),
    (10, Kind::Struct(&[(1, Kind::Byte), (2, Kind::Bool)])),
    (11, Kind::Struct(EMPTY)),
    (12, Kind::Struct(EMPTY)),
    (13, Kind::Struct(EMPTY)),
    (14, Kind::Struct(EMPTY)),
    (15, Kind::Struct(EMPTY)),
    (16, Kind::Struct(&[(1, Kind::Byte)])),
    (17, Kind::Struct(&[(1, Kind::Bytes)])),
    (18, Kind::Struct(&[(1, Kind::Bytes), (2, Kind::I32)])),
    (19, Kind::Struct(EMPTY)),
];
const SCHEMA_ELEMENT: &[Field] = &[
    (1, Kind::I32),
    (2, Kind::I32),
    (3, Kind::I32),
    (4, Kind::Bytes),
    (5, Kind::I32),
    (6, Kind::I32),
    (7, Kind::I32),
    (8, Kind::I32),
    (9, Kind::I32),
    (10, Kind::Struct(LOGICAL_TYPE)),
];
const KEY_VALUE: &[Field] = &[(1, Kind::Bytes), (2, Kind::Bytes)];
pub(super) const STATISTICS: &[Field] = &[
    (1, Kind::Bytes),
    (2, Kind::Bytes),
    (3, Kind::I64),
    (4, Kind::I64),
    (5, Kind::Bytes),
    (6, Kind::Bytes),
    (7, Kind::Bool),
    (8, Kind::Bool),
    (9, Kind::I64),
];
const ENCODING_STATS: &[Field] = &[(1, Kind::I32), (2, Kind::I32), (3, Kind::I32)];
const SIZE_STATISTICS: &[Field] = &[
    (1, Kind::I64),
    (2, Kind::List(&Kind::I64)),
    (3, Kind::List(&Kind::I64)),
];
const BOUNDING_BOX: &[Field] = &[
    (1, Kind::Double),
    (2, Kind::Double),
    (3, Kind::Double),
    (4, Kind::Double),
    (5, Kind::Double),
    (6, Kind::Double),
    (7, Kind::Double),
    (8, Kind::Double),
];
const COLUMN_META: &[Field] = &[
    (1, Kind::I32),
    (2, Kind::List(&Kind::I32)),
    (3, Kind::List(&Kind::Bytes)),
    (4, Kind::I32),
    (5, Kind::I64),
    (6, Kind::I64),
    (7, Kind::I64),
    (8, Kind::List(&Kind::Struct(KEY_VALUE))),
    (9, Kind::I64),
    (10, Kind::I64),
    (11, Kind::I64),
    (12, Kind::Struct(STATISTICS)),
    (13, Kind::List(&Kind::Struct(ENCODING_STATS))),
    (14, Kind::I64),
    (15, Kind::I32),
    (16, Kind::Struct(SIZE_STATISTICS)),
    (
        17,
        Kind::Struct(&[(1, Kind::Struct(BOUNDING_BOX)), (2, Kind::List(&Kind::I32))]),
    ),
];
const COLUMN: &[Field] = &[
    (1, Kind::Bytes),
    (2, Kind::I64),
    (3, Kind::Struct(COLUMN_META)),
    (4, Kind::I64),
    (5, Kind::I32),
    (6, Kind::I64),
    (7, Kind::I32),
];
const ROW_GROUP: &[Field] = &[
    (1, Kind::List(&Kind::Struct(COLUMN))),
    (2, Kind::I64),
    (3, Kind::I64),
    (
        4,
        Kind::List(&Kind::Struct(&[
            (1, Kind::I32),
            (2, Kind::Bool),
            (3, Kind::Bool),
        ])),
    ),
    (5, Kind::I64),
    (6, Kind::I64),
    (7, Kind::I16),
];
const FILE: &[Field] = &[
    (1, Kind::I32),
    (2, Kind::List(&Kind::Struct(SCHEMA_ELEMENT))),
    (3, Kind::I64),
    (4, Kind::List(&Kind::Struct(ROW_GROUP))),
    (5, Kind::List(&Kind::Struct(KEY_VALUE))),
    (6, Kind::Bytes),
    (7, Kind::List(&Kind::Struct(TIME_UNIT))), // column orders: a union of the same kind
];
/// Checks the Thrift encoding of a footer: parsing it then takes memory of a small multiple of its
/// length.
///
/// # Errors
/// Returns what is wrong with it.
pub fn check(footer: &[u8]) -> Result<(), String> {
    let row_groups = footer.len() / ROW_GROUP_BYTES;
    let mut children: Vec<i64> = Vec::new();
    let walked = walk(footer, FILE, &mut |path, met| {
        match (path, met) {
            ([2], Met::List(len)) if len > MAX_SCHEMA => {
                return Err(Fault::Bad(format!("a schema of {len} nodes")));
            }
            ([2], Met::Struct) => children.push(0),
            ([2, 5], Met::Int(count)) => {
                if let Some(last) = children.last_mut() {
                    *last = count;
                }
            }
            ([2, 4], Met::Bytes(len)) if len > MAX_COLUMN_NAME => {
                return Err(Fault::Bad(format!("a column's name of {len} bytes")));
            }
            ([4], Met::List(len)) if len > row_groups => {
                let bytes = footer.len();
                let reason = format!("{len} row groups in a footer of {bytes} bytes");
                return Err(Fault::Bad(reason));
            }
            ([4, 4], Met::List(len)) if len > MAX_SCHEMA => {
                return Err(Fault::Bad(format!("a sort order of {len} columns")));
            }
            ([5], Met::List(len)) if len > MAX_KEYS => {
                return Err(Fault::Bad(format!("{len} metadata keys")));
            }
            _ => {}
        }
        Ok(())
    });
    match walked {
        Ok(_) => check_tree(&children),
        Err(Fault::Short) => Err("the footer is truncated".into()),
        Err(Fault::Bad(reason)) => Err(format!("a malformed footer: {reason}")),
    }
}

/// Checks the schema's tree, given as the number of children of each node, parents first.
fn check_tree(children: &[i64]) -> Result<(), String> {
    // The number of children still to come, for each open node.
    let mut open: Vec<i64> = Vec::new();
    for (i, &count) in children.iter().enumerate() {
        if count < 0 || count > (children.len() - i - 1) as i64 {
            return Err(format!("a column has {count} children, which are missing"));
        }
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if count > 0 {
            open.push(count);
        }
        if open.len() > MAX_LEVELS {
            return Err("columns are nested too deeply".into());
        }
    }
    Ok(())
}

/// Checks that the column chunks are within the file and do not overlap, and that there are no more
/// rows than the bytes can hold: each row has a checksum of 8 bytes.
///
/// # Errors
/// Returns what is wrong.
pub fn check_chunks(parquet: &ParquetMetaData, file_bytes: u64) -> Result<(), String> {
    let mut chunk_bytes = 0u64;
    let mut rows = 0u64;
    for row_group in parquet.row_groups() {
        for chunk in row_group.columns() {
            let (start, bytes) =
                range(chunk).ok_or("a column starts or ends before the start of the file")?;
            if start > file_bytes || bytes > file_bytes - start {
                return Err("a column lies outside the file".into());
            }
            chunk_bytes = chunk_bytes.saturating_add(bytes);
        }
        let count = u64::try_from(row_group.num_rows()).map_err(|_| "a negative number of rows")?;
        rows = rows.saturating_add(count);
    }
    if chunk_bytes > file_bytes {
        return Err("columns share bytes of the file".into());
    }
    if rows > file_bytes / 8 {
        return Err(format!("{rows} rows in a file of {file_bytes} bytes"));
    }
    if i64::try_from(rows) != Ok(parquet.file_metadata().num_rows()) {
        let claimed = parquet.file_metadata().num_rows();
        return Err(format!("its row groups have {rows} of {claimed} rows"));
    }
    Ok(())
}

/// Returns the start and length of a column chunk, as the parquet crate computes them.
pub(super) fn range(chunk: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let start = chunk.dictionary_page_offset();
    let start = u64::try_from(start.unwrap_or(chunk.data_page_offset())).ok()?;
    let bytes = u64::try_from(chunk.compressed_size()).ok()?;
    Some((start, bytes))
}
