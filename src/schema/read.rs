//! Steps shared by all readers of Parquet files: find the footer, read a checked column, and turn
//! panics of the parquet crate into errors.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::{FORMAT_VERSION, key};
use crate::error::{self, Error, Result};

/// Calls `read` and turns panics into errors. The parquet crate aims to return errors for malformed
/// files, but may still panic.
///
/// # Errors
/// `read` fails or panics.
pub fn fenced<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match error::quiet_panics(|| catch_unwind(AssertUnwindSafe(read))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::file(
            path,
            format!("cannot read as Parquet: {error}"),
        )),
        Err(_) => Err(Error::file(path, "damaged Parquet file")),
    }
}

/// Returns the bytes of the footer, which end 8 bytes before the end of the file, from the first 4
/// and last 8 bytes of a file of `file_bytes`.
///
/// # Errors
/// The file is not Parquet, or its footer is not within the file.
pub fn footer_bytes(path: &Path, front: [u8; 4], back: [u8; 8], file_bytes: u64) -> Result<usize> {
    let [a, b, c, d, magic @ ..] = back;
    if front != *b"PAR1" || magic != *b"PAR1" {
        return Err(Error::file(path, "not a Parquet file, or truncated"));
    }
    let length = u32::from_le_bytes([a, b, c, d]);
    if file_bytes < 12 || u64::from(length) > file_bytes - 12 {
        let reason = format!("damaged Parquet file: a footer of {length} bytes");
        return Err(Error::file(path, reason));
    }
    Ok(length as usize)
}

/// Returns the footer's metadata by key.
pub fn metadata(parquet: &ParquetMetaData) -> BTreeMap<String, String> {
    let entries = parquet.file_metadata().key_value_metadata();
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| (entry.key.clone(), entry.value.clone().unwrap_or_default()))
        .collect()
}

/// Checks that the format version in this metadata is supported.
///
/// # Errors
/// The version is not supported, or the file was not written by ArrowQuant.
pub fn check_version(path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    let Some(version) = metadata.get(key::FORMAT_VERSION) else {
        let reason = format!(
            "not written by ArrowQuant: its footer has no {}",
            key::FORMAT_VERSION
        );
        return Err(Error::file(path, reason));
    };
    match version.parse::<u32>() {
        Ok(FORMAT_VERSION) => Ok(()),
        Ok(newer) if newer > FORMAT_VERSION => Err(Error::file(
            path,
            format!("format version {newer} is too new (expected at most {FORMAT_VERSION})"),
        )),
        _ => Err(Error::file(
            path,
            format!("format version '{version}' is not readable"),
        )),
    }
}

/// Values, definition levels and repetition levels.
pub type Levelled<T> = (Vec<T>, Vec<i16>, Vec<i16>);

/// Decodes a column of a row group of `rows`, whose pages have been checked
/// ([`super::pages::walk`]).
///
/// # Errors
/// The column cannot be decoded, or has a different number of rows.
pub fn column<T: DataType>(
    file: &Arc<impl ChunkReader + 'static>,
    chunk: &ColumnChunkMetaData,
    rows: usize,
) -> Result<Levelled<T::T>, ParquetError> {
    let pages = SerializedPageReader::new(file.clone(), chunk, rows, None)?;
    let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages));
    let mut reader: ColumnReaderImpl<T> = get_typed_column_reader(reader);
    let (mut values, mut levels, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    let (read, _, _) =
        reader.read_records(rows, Some(&mut levels), Some(&mut starts), &mut values)?;
    if read != rows {
        let path = chunk.column_path();
        let what = format!("column {path} has {read} of {rows} rows");
        return Err(ParquetError::General(what));
    }
    Ok((values, levels, starts))
}
