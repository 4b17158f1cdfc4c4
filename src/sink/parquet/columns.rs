//! The column chunks of a row group. Planes are one PLAIN page each, put straight into the file;
//! the small columns are written by the parquet crate's column writers, in memory first, so that
//! where a chunk lies is known here alone.

use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;
use parquet::basic::{CompressionCodec, Encoding};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::{ColumnDescPtr, SchemaDescPtr};

use crate::error::{Error, Result};
use crate::format::Encoding as Stored;
use crate::schema::{Column, RAW, Tile, parquet_schema};
use crate::sink::buffer::{PREFIX, PlaneBuffer, prefix};
use crate::sink::destination::Destination;
use crate::sink::planes::Body;

/// Uncompressed planes larger than this start at a multiple of [`ALIGNMENT`] in the file.
const ALIGNED_FROM: usize = 64 << 10;

/// A cache line, and the widest vector load.
const ALIGNMENT: u64 = 64;

/// Level of `compression: zstd`.
const ZSTD_LEVEL: i32 = 3;

/// The body of a page, compressed if asked.
///
/// # Errors
/// zstd fails.
pub(super) fn body(bytes: Bytes, plane_bytes: usize, compress: bool) -> io::Result<Body> {
    let uncompressed = bytes.len();
    let bytes = match compress {
        true => zstd::bulk::compress(&bytes, ZSTD_LEVEL)?.into(),
        false => bytes,
    };
    Ok(Body {
        bytes,
        plane_bytes,
        uncompressed,
    })
}

/// The body of the page of a whole plane.
///
/// # Errors
/// zstd fails.
pub(super) fn body_of(mut plane: PlaneBuffer, nullable: bool, compress: bool) -> io::Result<Body> {
    let plane_bytes = plane.bytes().len();
    plane.write_prefix();
    let bytes = Bytes::from_owner(plane).slice(before(nullable)..);
    body(bytes, plane_bytes, compress)
}

/// Where in a prefix the value of a column begins.
fn before(nullable: bool) -> usize {
    if nullable { 0 } else { PREFIX - 4 }
}

/// Room for what stands in the place of a plane.
pub(super) struct Room {
    /// What comes first.
    begin: Bytes,
    /// Bytes that are put there later.
    pub(super) bytes: usize,
    /// Before compression; as many bytes when there is none.
    uncompressed: usize,
    /// Bytes at the end that are aligned when they are many.
    plane_bytes: usize,
}

impl Room {
    /// For a plane that comes in parts.
    pub(super) fn of(bytes: usize, nullable: bool) -> Self {
        let begin = Bytes::copy_from_slice(&prefix(bytes)[before(nullable)..]);
        Self {
            uncompressed: begin.len() + bytes,
            begin,
            bytes,
            plane_bytes: bytes,
        }
    }

    /// For the finished planes of several tiles.
    pub(super) fn shared(bytes: usize) -> Self {
        Self {
            begin: Bytes::new(),
            bytes,
            uncompressed: bytes,
            plane_bytes: 0,
        }
    }
    /// For a body that is there.
    pub(super) fn for_body(body: &Body) -> Self {
        Self {
            begin: Bytes::new(),
            bytes: body.bytes.len(),
            uncompressed: body.uncompressed,
            plane_bytes: body.plane_bytes,
        }
    }
}

/// The open file and what all its row groups share.
pub(super) struct Out<'a> {
    destination: Destination<'a>,
    /// Where the next chunk goes.
    pub(super) position: u64,
    pub(super) schema: SchemaDescPtr,
    codec: CompressionCodec,
    small: Arc<WriterProperties>,
}

impl std::fmt::Debug for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Out").field(&self.target()).finish()
    }
}

impl<'a> Out<'a> {
    pub(super) fn new(destination: Destination<'a>, compress: bool) -> Self {
        Self {
            destination,
            position: 0,
            schema: Arc::new(parquet_schema()),
            codec: match compress {
                true => CompressionCodec::ZSTD,
                false => CompressionCodec::UNCOMPRESSED,
            },
            small: Arc::new(
                WriterProperties::builder()
                    .set_dictionary_enabled(false)
                    .set_statistics_enabled(EnabledStatistics::None)
                    .build(),
            ),
        }
    }

    pub(super) fn target(&self) -> &Path {
        self.destination.path()
    }

    pub(super) fn into_destination(self) -> Destination<'a> {
        self.destination
    }

    pub(super) fn compresses(&self) -> bool {
        self.codec != CompressionCodec::UNCOMPRESSED
    }

    /// Writes what comes next.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes into a place that was reserved.
    pub(super) fn put(&mut self, bytes: &[u8], place: u64) -> io::Result<()> {
        self.destination.write_at(bytes, place)
    }

    /// Drops what lies behind the end, of row groups that were given up.
    pub(super) fn cut(&mut self) -> io::Result<()> {
        self.destination.cut(self.position)
    }

    pub(super) fn read_back(&self, bytes: &mut [u8], place: u64) -> io::Result<()> {
        self.destination.read_at(bytes, place)
    }

    /// Turns an error of the parquet crate, which hands on those of the file system in a box,
    /// such as a full disk, into one that names the file.
    pub(super) fn failed(&self, error: ParquetError) -> Error {
        let source = match error {
            ParquetError::External(source) => match source.downcast::<io::Error>() {
                Ok(source) => *source,
                Err(source) => io::Error::other(source),
            },
            other => io::Error::other(other),
        };
        Error::io(self.target(), "write")(source)
    }

    /// Writes some columns of a row group; `room` gives that of planes, which are put there later.
    /// Returns the chunks of the columns, and where each room begins.
    pub(super) fn columns(
        &mut self,
        columns: Range<usize>,
        tiles: &[Tile],
        mut room: impl FnMut(Column) -> Option<Room>,
    ) -> Result<(Vec<ColumnChunkMetaData>, Vec<u64>), ParquetError> {
        let (mut chunks, mut places) = (Vec::with_capacity(columns.len()), Vec::new());
        for i in columns {
            let (column, _) = Column::ALL[i];
            let descriptor = self.schema.column(i);
            chunks.push(match room(column) {
                Some(room) => {
                    let (chunk, place) = self.plane(descriptor, room, tiles.len())?;
                    places.push(place);
                    chunk
                }
                None => self.small(descriptor, column, tiles)?,
            });
        }
        Ok((chunks, places))
    }

    /// The row group of all these chunks.
    pub(super) fn row_group(
        &self,
        start: u64,
        ordinal: usize,
        rows: usize,
        chunks: Vec<ColumnChunkMetaData>,
    ) -> Result<RowGroupMetaData, ParquetError> {
        let sizes = chunks.iter().map(ColumnChunkMetaData::uncompressed_size);
        RowGroupMetaData::builder(self.schema.clone())
            .set_num_rows(rows as i64)
            .set_total_byte_size(sizes.sum())
            .set_file_offset(start as i64)
            .set_ordinal(ordinal.try_into().unwrap_or(i32::MAX))
            .set_column_metadata(chunks)
            .build()
    }

    /// The page of a plane (or of those of a shared row group), but for the plane.
    fn plane(
        &mut self,
        descriptor: ColumnDescPtr,
        room: Room,
        rows: usize,
    ) -> Result<(ColumnChunkMetaData, u64), ParquetError> {
        // Only its length counts: untouched, it takes no memory.
        let body = MmapMut::map_anon((room.begin.len() + room.bytes).max(1))?;
        let body = Bytes::from_owner(body.make_read_only()?);
        let body = body.slice(..room.begin.len() + room.bytes);
        let body_bytes = body.len();
        let page = Page::DataPage {
            buf: body,
            num_values: rows as u32,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let mut head = TrackedWrite::new(Head::default());
        let written = SerializedPageWriter::new(&mut head)
            .write_page(CompressedPage::new(page, room.uncompressed))?;
        let mut header = head.into_inner()?.0;
        header.truncate(written.bytes_written as usize - body_bytes);
        if !self.compresses() && room.plane_bytes > ALIGNED_FROM {
            let before_plane = header.len() + body_bytes - room.plane_bytes;
            let padding = (self.position + before_plane as u64).wrapping_neg() % ALIGNMENT;
            self.append(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        let offset = self.position;
        self.append(&header)?;
        self.append(&room.begin)?;
        let place = self.position;
        self.position += room.bytes as u64;
        let chunk = ColumnChunkMetaData::builder(descriptor)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_compression_codec(self.codec)
            .set_num_values(rows as i64)
            .set_total_compressed_size(written.compressed_size as i64)
            .set_total_uncompressed_size(written.uncompressed_size as i64)
            .set_data_page_offset(offset as i64)
            .build()?;
        Ok((chunk, place))
    }

    fn small(
        &mut self,
        descriptor: ColumnDescPtr,
        column: Column,
        tiles: &[Tile],
    ) -> Result<ColumnChunkMetaData, ParquetError> {
        let mut pages = TrackedWrite::new(Vec::new());
        let page_writer = Box::new(SerializedPageWriter::new(&mut pages));
        let mut writer = get_column_writer(descriptor, self.small.clone(), page_writer);
        write_values(&mut writer, column, tiles)?;
        let chunk = writer.close()?.metadata;
        let offset = chunk.data_page_offset() + self.position as i64;
        self.append(&pages.into_inner()?)?;
        chunk.into_builder().set_data_page_offset(offset).build()
    }
}

/// Keeps the first bytes that are written to it, more than a page header ever has.
#[derive(Default)]
struct Head(Vec<u8>);

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = 256 - self.0.len();
        self.0.extend(&bytes[..room.min(bytes.len())]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the values of `column`: absent ones have definition level 0.
fn write_values(
    writer: &mut ColumnWriter<'_>,
    column: Column,
    tiles: &[Tile],
) -> Result<(), ParquetError> {
    /// Writes one optional value a tile.
    macro_rules! write {
        ($kind:ident, $value:expr) => {{
            let ColumnWriter::$kind(writer) = writer else {
                return Err(ParquetError::General(format!(
                    "{column:?} has another type"
                )));
            };
            let values: Vec<Option<_>> = tiles.iter().map($value).collect();
            let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
            let present: Vec<_> = values.into_iter().flatten().collect();
            writer.write_batch(&present, Some(&levels), None)?;
        }};
    }
    /// Writes one list a tile, of a value for each range of timesteps; an empty one is null.
    macro_rules! write_ranges {
        ($kind:ident, $value:expr) => {{
            let ColumnWriter::$kind(writer) = writer else {
                return Err(ParquetError::General(format!(
                    "{column:?} has another type"
                )));
            };
            /// Definition level of a value: of the list, and of an element.
            const PRESENT: i16 = 2;
            for tile in tiles {
                let values: Vec<_> = tile.activation.iter().map($value).collect();
                let level = if values.is_empty() { 0 } else { PRESENT };
                let levels = vec![level; values.len().max(1)];
                writer.write_batch(&values, Some(&levels), Some(&repetition(levels.len())))?;
            }
        }};
    }
    let text = |text: &str| ByteArray::from(text);
    let encoding = |tile: &Tile| tile.encoding;
    match column {
        Column::Name => write!(ByteArrayColumnWriter, |t: &Tile| Some(text(&t.name))),
        Column::Tile => write!(Int32ColumnWriter, |t: &Tile| Some(t.tile as i32)),
        Column::RowStart => write!(Int64ColumnWriter, |t: &Tile| Some(t.row_start as i64)),
        Column::RowCount => write!(Int64ColumnWriter, |t: &Tile| Some(t.row_count as i64)),
        Column::Shape => return write_shapes(writer, tiles),
        Column::SourceDtype => {
            write!(ByteArrayColumnWriter, |t: &Tile| Some(text(
                t.source_dtype.name()
            )))
        }
        Column::Format => write!(ByteArrayColumnWriter, |t: &Tile| {
            Some(text(encoding(t).map_or(RAW, Stored::name)))
        }),
        Column::Scheme => write!(ByteArrayColumnWriter, |t: &Tile| {
            encoding(t).and_then(Stored::scheme).map(|s| text(s.name()))
        }),
        Column::GroupSize => write!(Int32ColumnWriter, |t: &Tile| {
            encoding(t)
                .and_then(Stored::group_size)
                .map(|g| i32::from(g.get()))
        }),
        Column::ScaleDtype => write!(ByteArrayColumnWriter, |t: &Tile| {
            encoding(t)
                .and_then(Stored::scale_dtype)
                .map(|d| text(d.name()))
        }),
        Column::Checksum => write!(Int64ColumnWriter, |t: &Tile| Some(t.checksum as i64)),
        Column::Cosine => write!(FloatColumnWriter, |t: &Tile| t.cosine),
        Column::SqnrDb => write!(FloatColumnWriter, |t: &Tile| t.sqnr_db),
        Column::BitsPerWeight => write!(FloatColumnWriter, |t: &Tile| t.bits_per_weight),
        // Planes that a tile has not.
        Column::Codes | Column::Scales | Column::Biases => {
            write!(ByteArrayColumnWriter, |_| None::<ByteArray>)
        }
        Column::InputScale => write!(ByteArrayColumnWriter, |t: &Tile| {
            t.input_scale.clone().map(ByteArray::from)
        }),
        Column::RotationBlock => write!(Int32ColumnWriter, |t: &Tile| {
            t.rotation.map(|r| r.block as i32)
        }),
        Column::RotationSeed => write!(Int64ColumnWriter, |t: &Tile| {
            t.rotation.map(|r| r.seed as i64)
        }),
        Column::ActivationBegin => write_ranges!(Int32ColumnWriter, |range| range.t_begin),
        Column::ActivationEnd => write_ranges!(Int32ColumnWriter, |range| range.t_end),
        Column::ActivationScale => write_ranges!(FloatColumnWriter, |range| range.scale),
        Column::ActivationZeroPoint => write_ranges!(FloatColumnWriter, |range| range.zero_point),
    }
    Ok(())
}

/// A scalar's shape is an empty list: definition level 0.
fn write_shapes(writer: &mut ColumnWriter<'_>, tiles: &[Tile]) -> Result<(), ParquetError> {
    let ColumnWriter::Int64ColumnWriter(writer) = writer else {
        return Err(ParquetError::General("shape has another type".into()));
    };
    for tile in tiles {
        let dims: Vec<i64> = tile.shape.dims().iter().map(|&dim| dim as i64).collect();
        let levels = vec![i16::from(!dims.is_empty()); dims.len().max(1)];
        writer.write_batch(&dims, Some(&levels), Some(&repetition(levels.len())))?;
    }
    Ok(())
}

/// The repetition levels of one list: all but the first of its values go on with it.
fn repetition(values: usize) -> Vec<i16> {
    (0..values).map(|i| i16::from(i > 0)).collect()
}
