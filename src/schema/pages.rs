//! Checks the pages of a column chunk before the parquet crate decodes them.
//!
//! The crate allocates as much as page headers claim: a header of 20 bytes can claim 2 GiB to
//! decompress, or a dictionary of as many values. So the headers are walked first, in time and
//! memory proportional to their actual bytes.

use std::io;

use parquet::basic::{CompressionCodec, Type as Physical};
use parquet::file::metadata::ColumnChunkMetaData;

use super::footer::{EMPTY, STATISTICS, range};
use super::thrift::{self, Field, Met, ThriftFault, ThriftKind};

/// The most bytes of a page header; statistics make them long.
const MAX_HEADER: usize = 256 << 10;

const PAGE_HEADER: &[Field] = &[
    (1, ThriftKind::I32),
    (2, ThriftKind::I32),
    (3, ThriftKind::I32),
    (4, ThriftKind::I32),
    (
        5,
        ThriftKind::Struct(&[
            (1, ThriftKind::I32),
            (2, ThriftKind::I32),
            (3, ThriftKind::I32),
            (4, ThriftKind::I32),
            (5, ThriftKind::Struct(STATISTICS)),
        ]),
    ),
    (6, ThriftKind::Struct(EMPTY)),
    (
        7,
        ThriftKind::Struct(&[
            (1, ThriftKind::I32),
            (2, ThriftKind::I32),
            (3, ThriftKind::Bool),
        ]),
    ),
    (
        8,
        ThriftKind::Struct(&[
            (1, ThriftKind::I32),
            (2, ThriftKind::I32),
            (3, ThriftKind::I32),
            (4, ThriftKind::I32),
            (5, ThriftKind::I32),
            (6, ThriftKind::I32),
            (7, ThriftKind::Bool),
            (8, ThriftKind::Struct(STATISTICS)),
        ]),
    ),
];

/// The contents of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Values that data pages refer to.
    Dictionary,
    /// Levels, each kind preceded by its length, and values, compressed together.
    Data,
    /// Uncompressed levels, then values, compressed separately.
    DataV2,
}

/// A page of a column chunk, as described by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Kind of contents.
    pub kind: PageKind,
    /// Offset in the file of the contents, after the header.
    pub start: u64,
    /// Bytes of the contents in the file.
    pub bytes: usize,
    /// Bytes of the contents in memory.
    pub unpacked: usize,
    /// Whether the contents are compressed.
    pub packed: bool,
    /// Bytes of the levels before the values, in version 2.
    pub levels: usize,
    /// Number of values, including nulls.
    pub values: usize,
    /// Whether the bytes of the page are the values themselves, rather than, for example,
    /// dictionary indexes.
    pub plain: bool,
}

/// The most that the pages of a chunk may hold in total, from what is known about the column.
#[derive(Debug, Clone, Copy)]
pub struct PageLimits {
    /// Values, including nulls.
    pub values: u64,
    /// Bytes after decompression.
    pub unpacked: u64,
}

/// Bytes that any column may have after decompression, in addition to its values.
const SMALL: u64 = 64 << 10;

impl PageLimits {
    /// Limits for a column of numbers: each in a dictionary, its index, and its levels.
    pub fn numbers(values: u64) -> Self {
        Self {
            values,
            unpacked: SMALL + 32 * values,
        }
    }

    /// Limits for a column of names and similar text.
    pub fn texts(rows: u64, chunk: &ColumnChunkMetaData) -> Self {
        Self {
            values: rows,
            unpacked: SMALL + 256 * rows + 64 * chunk.compressed_size().unsigned_abs(),
        }
    }

    /// Limits for a column whose values have `bytes` in total: once, again in a dictionary, their
    /// lengths and levels.
    pub fn bytes(bytes: u64, rows: usize) -> Self {
        let rows = rows as u64;
        Self {
            values: rows,
            unpacked: SMALL.saturating_add(bytes.saturating_mul(2)) + 32 * rows,
        }
    }
}

/// Fills its buffer from an offset in a file.
pub type ReadPart<'a> = dyn FnMut(&mut [u8], u64) -> io::Result<()> + 'a;

/// Returns the pages of a column chunk, from their headers. The chunk must be within the file
/// ([`super::footer::check_chunks`]).
///
/// # Errors
/// A page is malformed, is not within the chunk, has an encoding whose size in memory is not known
/// in advance, or exceeds `limits`.
pub fn walk(
    chunk: &ColumnChunkMetaData,
    limits: PageLimits,
    read: &mut ReadPart<'_>,
) -> Result<Vec<Page>, String> {
    let (mut at, mut left) =
        range(chunk).ok_or("it starts or ends before the start of the file")?;
    let mut pages: Vec<Page> = Vec::new();
    let (mut values, mut unpacked) = (0u64, 0u64);
    while left > 0 {
        let (header, len) = read_header(at, left, read)?;
        (at, left) = (at + len as u64, left - len as u64);
        let page = header.page(chunk, at, left)?;
        (at, left) = (at + page_bytes(&header)?, left - page_bytes(&header)?);
        let Some(page) = page else {
            continue; // an index, which is not read
        };
        match page.kind {
            PageKind::Dictionary if !pages.is_empty() => {
                return Err("a dictionary follows other pages".into());
            }
            PageKind::Dictionary => {}
            _ if !page.plain && is_dictionary(header.encoding) && !starts_with(&pages) => {
                return Err("values refer to a missing dictionary".into());
            }
            _ => values += page.values as u64,
        }
        if page.packed {
            unpacked += page.unpacked as u64;
        }
        if values > limits.values {
            let most = limits.values;
            return Err(format!(
                "its pages have {values} values (at most {most} are possible)"
            ));
        }
        if unpacked > limits.unpacked {
            let most = limits.unpacked;
            let reason = "its pages decompress to more than the rows can hold";
            return Err(format!("{reason}: {unpacked} bytes of {most}"));
        }
        pages.push(page);
    }
    Ok(pages)
}

fn starts_with(pages: &[Page]) -> bool {
    pages
        .first()
        .is_some_and(|page| page.kind == PageKind::Dictionary)
}

/// Encodings by their numbers in the format.
mod encoding {
    pub const PLAIN: i64 = 0;
    pub const PLAIN_DICTIONARY: i64 = 2;
    pub const RLE: i64 = 3;
    pub const BIT_PACKED: i64 = 4;
    pub const DELTA_BINARY_PACKED: i64 = 5;
    pub const RLE_DICTIONARY: i64 = 8;
    pub const BYTE_STREAM_SPLIT: i64 = 9;
}

fn is_dictionary(code: i64) -> bool {
    code == encoding::PLAIN_DICTIONARY || code == encoding::RLE_DICTIONARY
}

/// The fields of a page header, -1 if absent.
#[derive(Debug, Clone, Copy)]
struct PageHeader {
    kind: i64,
    unpacked: i64,
    bytes: i64,
    /// The field number of the struct with the details; 0 if there is none, -1 if there are
    /// several.
    details: i16,
    values: i64,
    encoding: i64,
    levels: [i64; 2],
    nulls: i64,
    packed: bool,
}

fn page_bytes(header: &PageHeader) -> Result<u64, String> {
    u64::try_from(header.bytes).map_err(|_| "a page without a size".into())
}

/// Reads a page header, and returns it with its length.
fn read_header(at: u64, left: u64, read: &mut ReadPart<'_>) -> Result<(PageHeader, usize), String> {
    const FIRST: usize = 128;
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_HEADER);
    let mut bytes = vec![0; FIRST.min(most)];
    loop {
        read(&mut bytes, at).map_err(|error| format!("cannot read a page header: {error}"))?;
        match parse_header(&bytes) {
            Ok(parsed) => return Ok(parsed),
            Err(ThriftFault::Short) if bytes.len() < most => {
                bytes.resize(most.min(bytes.len() * 4), 0)
            }
            Err(ThriftFault::Short) => return Err("a page header is truncated".into()),
            Err(ThriftFault::Bad(reason)) => {
                return Err(format!("a malformed page header: {reason}"));
            }
        }
    }
}

fn parse_header(bytes: &[u8]) -> Result<(PageHeader, usize), ThriftFault> {
    let mut header = PageHeader {
        kind: -1,
        unpacked: -1,
        bytes: -1,
        details: 0,
        values: -1,
        encoding: -1,
        levels: [-1; 2],
        nulls: -1,
        packed: true,
    };
    let len = thrift::walk(bytes, PAGE_HEADER, &mut |path, met| {
        match (path, met) {
            ([1], Met::Int(value)) => header.kind = value,
            ([2], Met::Int(value)) => header.unpacked = value,
            ([3], Met::Int(value)) => header.bytes = value,
            (&[field @ 5..=8], Met::Struct) => {
                header.details = if header.details == 0 { field } else { -1 };
            }
            ([5 | 7 | 8, 1], Met::Int(value)) => header.values = value,
            ([5 | 7, 2] | [8, 4], Met::Int(value)) => header.encoding = value,
            ([5, 3] | [8, 5], Met::Int(value)) => header.levels[0] = value,
            ([5, 4] | [8, 6], Met::Int(value)) => header.levels[1] = value,
            ([8, 2], Met::Int(value)) => header.nulls = value,
            ([8, 7], Met::Bool(value)) => header.packed = value,
            _ => {}
        }
        Ok(())
    })?;
    Ok((header, len))
}

impl PageHeader {
    /// Returns the page whose contents start at `start`, with `left` more bytes in the chunk.
    /// `None` for an index page.
    fn page(
        &self,
        chunk: &ColumnChunkMetaData,
        start: u64,
        left: u64,
    ) -> Result<Option<Page>, String> {
        let size = |value: i64, what: &str| {
            usize::try_from(value).map_err(|_| format!("a page without {what}"))
        };
        let bytes = size(self.bytes, "its size")?;
        let unpacked = size(self.unpacked, "its size in memory")?;
        if bytes as u64 > left {
            return Err(format!("a page of {bytes} bytes, but only {left} are left"));
        }
        let (kind, details) = match self.kind {
            0 => (PageKind::Data, 5),
            1 => return Ok(None),
            2 => (PageKind::Dictionary, 7),
            3 => (PageKind::DataV2, 8),
            other => return Err(format!("a page of unknown type {other}")),
        };
        if self.details != details {
            return Err("a page header does not match the page's type".into());
        }
        // The levels are checked with the encoding.
        let [definition, repetition] = self.levels.map(|len| usize::try_from(len).ok());
        let levels = definition.zip(repetition);
        let levels = levels.and_then(|(definition, repetition)| definition.checked_add(repetition));
        let page = Page {
            kind,
            start,
            bytes,
            unpacked,
            packed: chunk.compression_codec() != CompressionCodec::UNCOMPRESSED && self.packed,
            levels: match kind {
                PageKind::DataV2 => levels.unwrap_or(0),
                _ => 0,
            },
            values: size(self.values, "a number of values")?,
            plain: self.encoding == encoding::PLAIN,
        };
        if !page.packed && bytes != unpacked {
            let reason = "bytes, but is not compressed";
            return Err(format!("a page of {bytes} bytes has {unpacked} {reason}"));
        }
        self.check_encoding(&page, chunk.column_type())?;
        Ok(Some(page))
    }

    fn check_encoding(&self, page: &Page, physical: Physical) -> Result<(), String> {
        let text = physical == Physical::BYTE_ARRAY;
        let known = match (page.kind, self.encoding) {
            (_, encoding::PLAIN | encoding::PLAIN_DICTIONARY) => true,
            (PageKind::Dictionary, _) => false,
            (_, encoding::RLE_DICTIONARY) => true,
            (_, encoding::DELTA_BINARY_PACKED | encoding::BYTE_STREAM_SPLIT) => !text,
            _ => false,
        };
        if !known {
            // Delta-encoded text needs memory for its lengths, which are only known after decoding.
            let encoding = match self.encoding {
                6 => "DELTA_LENGTH_BYTE_ARRAY".to_owned(),
                7 => "DELTA_BYTE_ARRAY".to_owned(),
                other => other.to_string(),
            };
            return Err(format!(
                "encoding {encoding} of {physical} is not supported"
            ));
        }
        match page.kind {
            PageKind::Dictionary => {
                let least = if physical == Physical::INT64 { 8 } else { 4 };
                if page.values > page.unpacked / least {
                    let (values, bytes) = (page.values, page.unpacked);
                    return Err(format!("a dictionary of {values} values in {bytes} bytes"));
                }
            }
            PageKind::Data => {
                let allowed = [encoding::RLE, encoding::BIT_PACKED];
                if !self.levels.iter().all(|code| allowed.contains(code)) {
                    return Err("an unknown encoding of levels".into());
                }
            }
            PageKind::DataV2 => {
                let [definition, repetition] = self.levels;
                let levels = definition.saturating_add(repetition);
                if definition < 0 || repetition < 0 || levels > self.unpacked.min(self.bytes) {
                    return Err(format!("levels of {levels} bytes exceed the page"));
                }
                if !(0..=self.values).contains(&self.nulls) {
                    return Err("more nulls than values".into());
                }
            }
        }
        Ok(())
    }
}
