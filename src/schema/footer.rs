//! Checks a footer's claims before the parquet crate relies on them.
//!
//! The crate allocates as much as a footer claims: one byte of it can stand for a row group of
//! several hundred, and a schema node for any number of children. So the footer is walked before it
//! is parsed, in time and memory proportional to its actual bytes.

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::thrift::{Field, Met, ThriftFault, ThriftKind, walk};

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
    (1, ThriftKind::Struct(EMPTY)),
    (2, ThriftKind::Struct(EMPTY)),
    (3, ThriftKind::Struct(EMPTY)),
];
const TIME: &[Field] = &[(1, ThriftKind::Bool), (2, ThriftKind::Struct(TIME_UNIT))];
const LOGICAL_TYPE: &[Field] = &[
    (1, ThriftKind::Struct(EMPTY)),
    (2, ThriftKind::Struct(EMPTY)),
    (3, ThriftKind::Struct(EMPTY)),
    (4, ThriftKind::Struct(EMPTY)),
    (
        5,
        ThriftKind::Struct(&[(1, ThriftKind::I32), (2, ThriftKind::I32)]),
    ),
    (6, ThriftKind::Struct(EMPTY)),
    (7, ThriftKind::Struct(TIME)),
    (8, ThriftKind::Struct(TIME)),
    (
        10,
        ThriftKind::Struct(&[(1, ThriftKind::Byte), (2, ThriftKind::Bool)]),
    ),
    (11, ThriftKind::Struct(EMPTY)),
    (12, ThriftKind::Struct(EMPTY)),
    (13, ThriftKind::Struct(EMPTY)),
    (14, ThriftKind::Struct(EMPTY)),
    (15, ThriftKind::Struct(EMPTY)),
    (16, ThriftKind::Struct(&[(1, ThriftKind::Byte)])),
    (17, ThriftKind::Struct(&[(1, ThriftKind::Bytes)])),
    (
        18,
        ThriftKind::Struct(&[(1, ThriftKind::Bytes), (2, ThriftKind::I32)]),
    ),
    (19, ThriftKind::Struct(EMPTY)),
];
const SCHEMA_ELEMENT: &[Field] = &[
    (1, ThriftKind::I32),
    (2, ThriftKind::I32),
    (3, ThriftKind::I32),
    (4, ThriftKind::Bytes),
    (5, ThriftKind::I32),
    (6, ThriftKind::I32),
    (7, ThriftKind::I32),
    (8, ThriftKind::I32),
    (9, ThriftKind::I32),
    (10, ThriftKind::Struct(LOGICAL_TYPE)),
];
const KEY_VALUE: &[Field] = &[(1, ThriftKind::Bytes), (2, ThriftKind::Bytes)];
pub(super) const STATISTICS: &[Field] = &[
    (1, ThriftKind::Bytes),
    (2, ThriftKind::Bytes),
    (3, ThriftKind::I64),
    (4, ThriftKind::I64),
    (5, ThriftKind::Bytes),
    (6, ThriftKind::Bytes),
    (7, ThriftKind::Bool),
    (8, ThriftKind::Bool),
    (9, ThriftKind::I64),
];
const ENCODING_STATS: &[Field] = &[
    (1, ThriftKind::I32),
    (2, ThriftKind::I32),
    (3, ThriftKind::I32),
];
const SIZE_STATISTICS: &[Field] = &[
    (1, ThriftKind::I64),
    (2, ThriftKind::List(&ThriftKind::I64)),
    (3, ThriftKind::List(&ThriftKind::I64)),
];
const BOUNDING_BOX: &[Field] = &[
    (1, ThriftKind::Double),
    (2, ThriftKind::Double),
    (3, ThriftKind::Double),
    (4, ThriftKind::Double),
    (5, ThriftKind::Double),
    (6, ThriftKind::Double),
    (7, ThriftKind::Double),
    (8, ThriftKind::Double),
];
const COLUMN_META: &[Field] = &[
    (1, ThriftKind::I32),
    (2, ThriftKind::List(&ThriftKind::I32)),
    (3, ThriftKind::List(&ThriftKind::Bytes)),
    (4, ThriftKind::I32),
    (5, ThriftKind::I64),
    (6, ThriftKind::I64),
    (7, ThriftKind::I64),
    (8, ThriftKind::List(&ThriftKind::Struct(KEY_VALUE))),
    (9, ThriftKind::I64),
    (10, ThriftKind::I64),
    (11, ThriftKind::I64),
    (12, ThriftKind::Struct(STATISTICS)),
    (13, ThriftKind::List(&ThriftKind::Struct(ENCODING_STATS))),
    (14, ThriftKind::I64),
    (15, ThriftKind::I32),
    (16, ThriftKind::Struct(SIZE_STATISTICS)),
    (
        17,
        ThriftKind::Struct(&[
            (1, ThriftKind::Struct(BOUNDING_BOX)),
            (2, ThriftKind::List(&ThriftKind::I32)),
        ]),
    ),
];
const COLUMN: &[Field] = &[
    (1, ThriftKind::Bytes),
    (2, ThriftKind::I64),
    (3, ThriftKind::Struct(COLUMN_META)),
    (4, ThriftKind::I64),
    (5, ThriftKind::I32),
    (6, ThriftKind::I64),
    (7, ThriftKind::I32),
];
const ROW_GROUP: &[Field] = &[
    (1, ThriftKind::List(&ThriftKind::Struct(COLUMN))),
    (2, ThriftKind::I64),
    (3, ThriftKind::I64),
    (
        4,
        ThriftKind::List(&ThriftKind::Struct(&[
            (1, ThriftKind::I32),
            (2, ThriftKind::Bool),
            (3, ThriftKind::Bool),
        ])),
    ),
    (5, ThriftKind::I64),
    (6, ThriftKind::I64),
    (7, ThriftKind::I16),
];
const FILE: &[Field] = &[
    (1, ThriftKind::I32),
    (2, ThriftKind::List(&ThriftKind::Struct(SCHEMA_ELEMENT))),
    (3, ThriftKind::I64),
    (4, ThriftKind::List(&ThriftKind::Struct(ROW_GROUP))),
    (5, ThriftKind::List(&ThriftKind::Struct(KEY_VALUE))),
    (6, ThriftKind::Bytes),
    (7, ThriftKind::List(&ThriftKind::Struct(TIME_UNIT))), // column orders: a union of the same kind
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
                return Err(ThriftFault::Bad(format!("a schema of {len} nodes")));
            }
            ([2], Met::Struct) => children.push(0),
            ([2, 5], Met::Int(count)) => {
                if let Some(last) = children.last_mut() {
                    *last = count;
                }
            }
            ([2, 4], Met::Bytes(len)) if len > MAX_COLUMN_NAME => {
                return Err(ThriftFault::Bad(format!("a column's name of {len} bytes")));
            }
            ([4], Met::List(len)) if len > row_groups => {
                let bytes = footer.len();
                let reason = format!("{len} row groups in a footer of {bytes} bytes");
                return Err(ThriftFault::Bad(reason));
            }
            ([4, 4], Met::List(len)) if len > MAX_SCHEMA => {
                return Err(ThriftFault::Bad(format!("a sort order of {len} columns")));
            }
            ([5], Met::List(len)) if len > MAX_KEYS => {
                return Err(ThriftFault::Bad(format!("{len} metadata keys")));
            }
            _ => {}
        }
        Ok(())
    });
    match walked {
        Ok(_) => check_tree(&children),
        Err(ThriftFault::Short) => Err("the footer is truncated".into()),
        Err(ThriftFault::Bad(reason)) => Err(format!("a malformed footer: {reason}")),
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
