//! A Parquet file as a table: small columns are read completely; in a column of values, each value
//! is located.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{CompressionCodec, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use xxhash_rust::xxh3::xxh3_64;

use super::MAX_HEADER;
use super::file::SourceFile;
use crate::error::{Error, Result};
use crate::schema::footer;
use crate::schema::pages::{self, Page, PageKind, PageLimits};
use crate::schema::read::{self, fenced};
use crate::tensor::{MAX_DIMS, MAX_TENSORS};

/// The most bytes of the decompressed values of a row group, all together.
const MAX_UNPACKED: u64 = 4 << 30;

/// The codecs that the parquet crate is built with.
const CODECS: [CompressionCodec; 3] = [
    CompressionCodec::UNCOMPRESSED,
    CompressionCodec::SNAPPY,
    CompressionCodec::ZSTD,
];

/// An open Parquet file, its footer checked.
#[derive(Debug)]
pub(super) struct Table {
    file: Arc<Chunks>,
    /// XXH3-64 of the footer.
    hash: u64,
    parquet: ParquetMetaData,
}

/// The location of a row group's values.
pub(super) enum Values {
    /// Values in the file: position and length of each.
    Plain(Vec<(u64, usize)>),
    /// Compressed or dictionary-encoded values.
    Packed {
        /// Upper bound on the length of a value.
        longest: u64,
        /// Bytes of memory that reading them takes.
        held: u64,
    },
}

impl Table {
    pub(super) fn read(file: SourceFile) -> Result<Self> {
        let path = file.path();
        let bytes = file.bytes();
        if bytes < 12 {
            return Err(Error::file(path, "not a Parquet file: too short"));
        }
        let (mut front, mut back) = ([0; 4], [0; 8]);
        file.read_header(&mut front, 0)?;
        file.read_header(&mut back, bytes - 8)?;
        let len = read::footer_bytes(path, front, back, bytes)?;
        let damaged = |reason: String| Error::file(path, format!("damaged Parquet file: {reason}"));
        if len as u64 > MAX_HEADER {
            return Err(damaged(format!("a footer of {len} bytes")));
        }
        let mut footer = vec![0; len];
        file.read_header(&mut footer, bytes - 8 - len as u64)?;
        footer::check(&footer).map_err(damaged)?;
        let parquet = fenced(path, || ParquetMetaDataReader::decode_metadata(&footer))?;
        footer::check_chunks(&parquet, bytes).map_err(damaged)?;
        if parquet.file_metadata().num_rows() > MAX_TENSORS as i64 {
            return Err(Error::file(path, format!("over {MAX_TENSORS} rows")));
        }
        Ok(Self {
            file: Arc::new(Chunks(Arc::new(file))),
            hash: xxh3_64(&footer),
            parquet,
        })
    }

    pub(super) fn file(&self) -> &SourceFile {
        &self.file.0
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn metadata(&self) -> BTreeMap<String, String> {
        read::metadata(&self.parquet)
    }

    pub(super) fn row_groups(&self) -> usize {
        self.parquet.num_row_groups()
    }

    pub(super) fn rows(&self, group: usize) -> usize {
        self.parquet.row_group(group).num_rows() as usize // checked when opened
    }

    /// Returns the column called `name`, of text or binary values.
    pub(super) fn bytes_column(&self, name: &str) -> Result<usize> {
        self.find(name, &[Physical::BYTE_ARRAY], 0)
            .ok_or_else(|| self.lacks(name, "text or binary values"))
    }

    /// Returns the column called `name`, of whole numbers.
    pub(super) fn numbers_column(&self, name: &str) -> Result<usize> {
        self.find(name, &[Physical::INT32, Physical::INT64], 0)
            .ok_or_else(|| self.lacks(name, "whole numbers"))
    }

    /// Returns the column called `name`, of lists of whole numbers.
    pub(super) fn lists_column(&self, name: &str) -> Result<usize> {
        self.find(name, &[Physical::INT32, Physical::INT64], 1)
            .ok_or_else(|| self.lacks(name, "lists of whole numbers"))
    }

    fn find(&self, name: &str, physical: &[Physical], lists: i16) -> Option<usize> {
        let columns = self.parquet.file_metadata().schema_descr().columns();
        columns.iter().position(|column| {
            column.path().parts()[0] == name
                && physical.contains(&column.physical_type())
                && column.max_rep_level() == lists
                && (lists == 1 || column.path().parts().len() == 1)
        })
    }

    fn lacks(&self, name: &str, what: &str) -> Error {
        let reason = format!("the table has no column '{name}' of {what}");
        Error::file(self.file().path(), reason)
    }

    /// Reads a text column of a row group.
    pub(super) fn texts(&self, group: usize, column: usize) -> Result<Vec<Option<ByteArray>>> {
        let chunk = self.chunk(group, column);
        self.pages(
            group,
            column,
            PageLimits::texts(self.rows(group) as u64, chunk),
        )?;
        self.decoded::<ByteArrayType>(group, column)
    }

    /// Reads a number column of a row group.
    pub(super) fn numbers(&self, group: usize, column: usize) -> Result<Vec<Option<i64>>> {
        self.pages(group, column, PageLimits::numbers(self.rows(group) as u64))?;
        Ok(match self.chunk(group, column).column_type() {
            Physical::INT32 => {
                let values = self.decoded::<Int32Type>(group, column)?;
                values
                    .into_iter()
                    .map(|value| value.map(i64::from))
                    .collect()
            }
            _ => self.decoded::<Int64Type>(group, column)?,
        })
    }

    /// Reads a list column of a row group; lists that are null, or contain a null, are `None`.
    pub(super) fn lists(&self, group: usize, column: usize) -> Result<Vec<Option<Vec<i64>>>> {
        let rows = self.rows(group);
        let most = (rows * MAX_DIMS) as u64;
        let limits = PageLimits::numbers(most.min(self.file().bytes()));
        self.pages(group, column, limits)?;
        let chunk = self.chunk(group, column);
        let path = self.file().path();
        let (values, levels, starts) = match chunk.column_type() {
            Physical::INT32 => {
                let (values, levels, starts) =
                    fenced(path, || read::column::<Int32Type>(&self.file, chunk, rows))?;
                (values.into_iter().map(i64::from).collect(), levels, starts)
            }
            _ => fenced(path, || read::column::<Int64Type>(&self.file, chunk, rows))?,
        };
        let schema = self.parquet.file_metadata().schema_descr();
        // At a lower level the list itself is null; at this level it is empty.
        let root = schema.get_column_root(column).get_basic_info();
        let empty = i16::from(root.repetition() == Repetition::OPTIONAL);
        let full = chunk.column_descr().max_def_level();
        let mut values = values.into_iter();
        let mut lists: Vec<Option<Vec<i64>>> = Vec::with_capacity(rows);
        for (level, start) in levels.into_iter().zip(starts) {
            if start == 0 {
                lists.push(Some(Vec::new()));
            }
            let value = if level == full { values.next() } else { None };
            match (lists.last_mut(), value) {
                (Some(Some(list)), Some(value)) => list.push(value),
                (Some(list), None) if level != empty => *list = None,
                _ => {}
            }
        }
        lists.resize_with(rows, || None);
        Ok(lists)
    }

    fn decoded<T: DataType>(&self, group: usize, column: usize) -> Result<Vec<Option<T::T>>> {
        let (chunk, rows) = (self.chunk(group, column), self.rows(group));
        let read = || read::column::<T>(&self.file, chunk, rows);
        let (values, levels, _) = fenced(self.file().path(), read)?;
        let full = chunk.column_descr().max_def_level();
        let mut values = values.into_iter();
        let mut values: Vec<Option<T::T>> = match full {
            0 => values.map(Some).collect(),
            _ => {
                let of = |level| if level == full { values.next() } else { None };
                levels.into_iter().map(of).collect()
            }
        };
        values.resize_with(rows, || None);
        Ok(values)
    }

    /// Locates the values of a row group, which have `expected` bytes in total.
    pub(super) fn locate(&self, group: usize, column: usize, expected: u64) -> Result<Values> {
        let chunk = self.chunk(group, column);
        let pages = self.pages(group, column, PageLimits::bytes(expected, self.rows(group)))?;
        let data = || {
            pages
                .iter()
                .filter(|page| page.kind != PageKind::Dictionary)
        };
        if data().all(|page| page.plain && !page.packed) {
            let optional = chunk.column_descr().max_def_level() > 0;
            let mut places = Vec::new();
            for page in data() {
                self.values_in(page, optional, &mut places)?;
            }
            return Ok(Values::Plain(places));
        }
        let unpacked: u64 = pages.iter().map(|page| page.unpacked as u64).sum();
        let largest = pages.iter().map(|page| page.bytes as u64).max();
        if unpacked > MAX_UNPACKED {
            let reason = format!(
                "row group {group} decompresses to {unpacked} bytes, over the limit of {MAX_UNPACKED}: \
                 write smaller row groups, or without compression and dictionary"
            );
            return Err(Error::file(self.file().path(), reason));
        }
        Ok(Values::Packed {
            longest: unpacked,
            held: unpacked + largest.unwrap_or(0),
        })
    }

    /// Returns position and length of each value of a page; each is preceded by its length in 4
    /// bytes.
    fn values_in(&self, page: &Page, optional: bool, found: &mut Vec<(u64, usize)>) -> Result<()> {
        let end = page.start + page.bytes as u64;
        let mut at = page.start + page.levels as u64;
        let refuse = || {
            let reason = "a value is null or damaged";
            Error::file(self.file().path(), reason)
        };
        let length = |at: u64| {
            let mut length = [0; 4];
            if at > end || end - at < 4 {
                return Err(refuse());
            }
            self.file().read_header(&mut length, at)?;
            let length = u32::from_le_bytes(length);
            match u64::from(length) <= end - at - 4 {
                true => Ok(length),
                false => Err(refuse()),
            }
        };
        if optional && page.kind == PageKind::Data {
            at += 4 + u64::from(length(at)?); // the levels, which say that nothing is null
        }
        for _ in 0..page.values {
            let len = length(at)?;
            found.push((at + 4, len as usize));
            at += 4 + u64::from(len);
        }
        match at == end {
            true => Ok(()),
            false => Err(refuse()),
        }
    }

    /// Reads all values of a row group, decompressed; `None` if some are null.
    pub(super) fn unpack(&self, group: usize, column: usize) -> Result<Option<Vec<ByteArray>>> {
        self.file().check_unchanged()?;
        let values = self.decoded::<ByteArrayType>(group, column)?;
        Ok(values.into_iter().collect())
    }

    /// Returns the pages of a column from their headers, which are checked against everything
    /// known.
    fn pages(&self, group: usize, column: usize, limits: PageLimits) -> Result<Vec<Page>> {
        let chunk = self.chunk(group, column);
        let mut read =
            |out: &mut [u8], at: u64| self.file().read_header(out, at).map_err(io::Error::other);
        let refuse = |reason: String| {
            let reason = format!(
                "column {} of row group {group}: {reason}",
                chunk.column_path()
            );
            Error::file(self.file().path(), reason)
        };
        let codec = chunk.compression_codec();
        if !CODECS.contains(&codec) {
            return Err(refuse(format!(
                "{codec:?} is not supported (expected one of {CODECS:?})"
            )));
        }
        let pages = pages::walk(chunk, limits, &mut read).map_err(refuse)?;
        let data = pages
            .iter()
            .filter(|page| page.kind != PageKind::Dictionary);
        let values: usize = data.map(|page| page.values).sum();
        match self.rows(group) {
            rows if values >= rows => Ok(pages),
            rows => Err(refuse(format!("{values} of {rows} rows"))),
        }
    }

    fn chunk(&self, group: usize, column: usize) -> &ColumnChunkMetaData {
        self.parquet.row_group(group).column(column)
    }
}

/// The file as the parquet crate reads it.
#[derive(Debug)]
struct Chunks(Arc<SourceFile>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.bytes()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let position = start.min(self.0.bytes());
        let file = self.0.clone();
        Ok(BufReader::new(From { file, position }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        // The page's header has been checked.
        let mut bytes = vec![0; length];
        let read = self.0.read_header(&mut bytes, start);
        read.map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(bytes.into())
    }
}

/// A view of the file from a position on.
struct From {
    file: Arc<SourceFile>,
    position: u64,
}

impl Read for From {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = self.file.bytes() - self.position;
        let len = out.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let read = self.file.read_header(&mut out[..len], self.position);
        read.map_err(io::Error::other)?;
        self.position += len as u64;
        Ok(len)
    }
}
