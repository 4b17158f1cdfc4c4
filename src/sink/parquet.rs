//! Writes the Parquet V2 file of [`crate::schema`], page by page.
//!
//! A binary plane goes from the kernels' buffer to the file as one PLAIN data page: the buffer
//! has room in front for the few bytes Parquet wants before the value. The parquet crate's own
//! column writers, which copy every value twice, write only the small columns.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{CompressionCodec, Encoding};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataWriter,
    RowGroupMetaData,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::{ColumnDescPtr, SchemaDescPtr};
use serde_json::Value;

use super::buffer::{PREFIX, PlaneBuffer};
use super::destination::Destination;
use crate::error::{Error, Result};
use crate::schema::{Column, FORMAT_VERSION, GENERATOR, RAW, Tile, key, parquet_schema};

/// Uncompressed planes larger than this start at a multiple of [`ALIGNMENT`] in the file.
const ALIGNED_FROM: usize = 64 << 10;

/// A cache line, and the widest vector load.
const ALIGNMENT: usize = 64;

/// Kept tensors smaller than this share row groups, each of which costs some 2 KB of footer.
const SMALL: usize = 64 << 10;

/// Shared row groups are written when they hold this many bytes.
const SHARED_BYTES: usize = 16 << 20;

/// Level of `compression: zstd`.
const ZSTD_LEVEL: i32 = 3;

/// The plane as a page of a column, compressed if asked.
///
/// # Errors
/// zstd fails.
fn page(mut buffer: PlaneBuffer, nullable: bool, compress: bool) -> std::io::Result<Plane> {
    let plane_bytes = buffer.bytes().len();
    buffer.write_prefix();
    let body = Bytes::from_owner(buffer).slice(if nullable { 0 } else { PREFIX - 4 }..);
    Plane::new(body, plane_bytes, compress)
}

/// A finished page body.
#[derive(Debug)]
pub struct Plane {
    body: Bytes,
    plane_bytes: usize,
    uncompressed: usize,
}

impl Plane {
    fn new(body: Bytes, plane_bytes: usize, compress: bool) -> std::io::Result<Self> {
        let uncompressed = body.len();
        let body = match compress {
            true => zstd::bulk::compress(&body, ZSTD_LEVEL)?.into(),
            false => body,
        };
        Ok(Self {
            body,
            plane_bytes,
            uncompressed,
        })
    }
}

/// The finished planes of a tile.
#[derive(Debug)]
pub struct TilePlanes {
    codes: Plane,
    scales: Option<Plane>,
    biases: Option<Plane>,
}

impl TilePlanes {
    /// Finishes the planes of a quantized tile, which takes time only when they are compressed.
    ///
    /// # Errors
    /// zstd fails.
    pub fn quantized(
        codes: PlaneBuffer,
        scales: PlaneBuffer,
        biases: Option<PlaneBuffer>,
        compress: bool,
    ) -> std::io::Result<Self> {
        Ok(Self {
            codes: page(codes, false, compress)?,
            scales: Some(page(scales, true, compress)?),
            biases: biases
                .map(|plane| page(plane, true, compress))
                .transpose()?,
        })
    }

    /// Finishes the values of a kept tile. Small ones are compressed later, together.
    ///
    /// # Errors
    /// zstd fails.
    pub fn kept(values: PlaneBuffer, compress: bool) -> std::io::Result<Self> {
        let compress = compress && values.bytes().len() >= SMALL;
        Ok(Self {
            codes: page(values, false, compress)?,
            scales: None,
            biases: None,
        })
    }
}

/// What the footer says of the whole model.
#[derive(Debug, Clone)]
pub struct Footer {
    /// text, image, audio or unknown.
    pub modality: String,
    /// Settings that change values.
    pub config: Value,
    /// Base name, size and header hash of the source.
    pub source: Value,
    /// The source's own metadata.
    pub source_metadata: BTreeMap<String, String>,
    /// Cosine, SQNR and bits per weight, in total and per tensor.
    pub summary: Value,
}

/// Writes tiles in the order given, small kept tensors gathered.
#[derive(Debug)]
pub struct ParquetSink<'a> {
    out: Out<'a>,
    shared: Vec<(Tile, Bytes)>,
    shared_bytes: usize,
    row_groups: Vec<RowGroupMetaData>,
    rows: i64,
}

impl<'a> ParquetSink<'a> {
    /// Starts a file.
    ///
    /// # Errors
    /// The destination cannot be written.
    pub fn create(destination: Destination<'a>, compress: bool) -> Result<Self> {
        let target = destination.path().to_owned();
        let mut out = Out {
            target: target.clone(),
            file: TrackedWrite::new(destination),
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
        };
        let magic = out.file.write_all(b"PAR1");
        magic.map_err(Error::io(&target, "write"))?;
        Ok(Self {
            out,
            shared: Vec::new(),
            shared_bytes: 0,
            row_groups: Vec::new(),
            rows: 0,
        })
    }

    /// Writes one tile, or keeps it for a shared row group.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, tile: Tile, planes: TilePlanes) -> Result<()> {
        let codes = &planes.codes;
        if tile.layout.is_none() && codes.plane_bytes < SMALL {
            self.shared_bytes += codes.body.len();
            self.shared.push((tile, planes.codes.body));
            return match self.shared_bytes >= SHARED_BYTES {
                true => self.write_shared(),
                false => Ok(()),
            };
        }
        self.write_row_group(&[tile], planes)
    }

    /// Writes the kept tensors gathered so far as one row group.
    fn write_shared(&mut self) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let (tiles, bodies): (Vec<Tile>, Vec<Bytes>) = self.shared.drain(..).unzip();
        self.shared_bytes = 0;
        let codes = Plane::new(bodies.concat().into(), 0, self.out.compresses());
        let planes = TilePlanes {
            codes: codes.map_err(Error::io(&self.out.target, "compress"))?,
            scales: None,
            biases: None,
        };
        self.write_row_group(&tiles, planes)
    }

    fn write_row_group(&mut self, tiles: &[Tile], planes: TilePlanes) -> Result<()> {
        let ordinal = self.row_groups.len();
        let target = self.out.target.clone();
        let row_group = self
            .out
            .row_group(tiles, planes, ordinal)
            .map_err(|error| write_error(&target, error))?;
        self.row_groups.push(row_group);
        self.rows += tiles.len() as i64;
        Ok(())
    }

    /// Writes the footer, and puts a file at its path. Returns its size in bytes.
    ///
    /// # Errors
    /// The file cannot be written or put in place; what was at the path is then as it was.
    pub fn finish(mut self, footer: Footer) -> Result<u64> {
        self.write_shared()?;
        let entries = [
            (key::FORMAT_VERSION, FORMAT_VERSION.to_string()),
            (key::MODALITY, footer.modality),
            (key::CONFIG, footer.config.to_string()),
            (key::SOURCE, footer.source.to_string()),
            (
                key::SOURCE_METADATA,
                serde_json::json!(footer.source_metadata).to_string(),
            ),
            (key::GENERATOR, GENERATOR.to_owned()),
            (key::SUMMARY, footer.summary.to_string()),
        ];
        let entries = entries
            .into_iter()
            .map(|(key, value)| KeyValue::new(key.to_owned(), value))
            .collect();
        let file = FileMetaData::new(
            1,
            self.rows,
            Some(GENERATOR.to_owned()),
            Some(entries),
            self.out.schema.clone(),
            None,
        );
        let metadata = ParquetMetaData::new(file, self.row_groups);
        let target = self.out.target.clone();
        let failed = |error| write_error(&target, error);
        // There are no page indexes, so nothing in the footer depends on where it stands.
        let mut text = Vec::new();
        ParquetMetaDataWriter::new(&mut text, &metadata)
            .finish()
            .map_err(failed)?;
        let mut out = self.out.file;
        // Flushed here, where an error is still one of the file system.
        let written = out.write_all(&text).and_then(|()| out.flush());
        written.map_err(Error::io(&target, "write"))?;
        let bytes = out.bytes_written() as u64;
        out.into_inner().map_err(failed)?.commit()?;
        Ok(bytes)
    }
}

/// The parquet crate hands on errors of the file system, such as a full disk, in a box.
fn write_error(target: &Path, error: ParquetError) -> Error {
    let source = match error {
        ParquetError::External(source) => match source.downcast::<std::io::Error>() {
            Ok(source) => *source,
            Err(source) => std::io::Error::other(source),
        },
        other => std::io::Error::other(other),
    };
    Error::io(target, "write")(source)
}

/// The open file and what all its row groups share.
struct Out<'a> {
    target: PathBuf,
    file: TrackedWrite<Destination<'a>>,
    schema: SchemaDescPtr,
    codec: CompressionCodec,
    small: Arc<WriterProperties>,
}

impl std::fmt::Debug for Out<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Out").field(&self.target).finish()
    }
}

impl Out<'_> {
    fn compresses(&self) -> bool {
        self.codec != CompressionCodec::UNCOMPRESSED
    }

    fn row_group(
        &mut self,
        tiles: &[Tile],
        planes: TilePlanes,
        ordinal: usize,
    ) -> Result<RowGroupMetaData, ParquetError> {
        let TilePlanes {
            codes,
            scales,
            biases,
        } = planes;
        let start = self.file.bytes_written();
        let (mut codes, mut scales, mut biases) = (Some(codes), scales, biases);
        let mut chunks = Vec::with_capacity(Column::ALL.len());
        for (i, &(column, _)) in Column::ALL.iter().enumerate() {
            let descriptor = self.schema.column(i);
            let plane = match column {
                Column::Codes => codes.take(),
                Column::Scales => scales.take(),
                Column::Biases => biases.take(),
                _ => None,
            };
            chunks.push(match plane {
                Some(plane) => self.plane(descriptor, plane, tiles.len())?,
                None => self.small(descriptor, column, tiles)?,
            });
        }
        let uncompressed = chunks
            .iter()
            .map(ColumnChunkMetaData::uncompressed_size)
            .sum();
        RowGroupMetaData::builder(self.schema.clone())
            .set_num_rows(tiles.len() as i64)
            .set_total_byte_size(uncompressed)
            .set_file_offset(start as i64)
            .set_ordinal(ordinal.try_into().unwrap_or(i32::MAX))
            .set_column_metadata(chunks)
            .build()
    }

    /// One page that holds a plane (or those of a shared row group) as it is.
    fn plane(
        &mut self,
        descriptor: ColumnDescPtr,
        plane: Plane,
        rows: usize,
    ) -> Result<ColumnChunkMetaData, ParquetError> {
        let page = || {
            let page = Page::DataPage {
                buf: plane.body.clone(),
                num_values: rows as u32,
                encoding: Encoding::PLAIN,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            CompressedPage::new(page, plane.uncompressed)
        };
        if !self.compresses() && plane.plane_bytes > ALIGNED_FROM {
            // The header's length is only known once written, so it is written to nowhere first.
            let mut nowhere = TrackedWrite::new(std::io::sink());
            let written = SerializedPageWriter::new(&mut nowhere).write_page(page())?;
            let before_plane = written.bytes_written as usize - plane.plane_bytes;
            let padding = (self.file.bytes_written() + before_plane).wrapping_neg() % ALIGNMENT;
            self.file.write_all(&[0; ALIGNMENT][..padding])?;
        }
        let written = SerializedPageWriter::new(&mut self.file).write_page(page())?;
        ColumnChunkMetaData::builder(descriptor)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_compression_codec(self.codec)
            .set_num_values(rows as i64)
            .set_total_compressed_size(written.compressed_size as i64)
            .set_total_uncompressed_size(written.uncompressed_size as i64)
            .set_data_page_offset(written.offset as i64)
            .build()
    }

    /// A column of small values, one a tile.
    fn small(
        &mut self,
        descriptor: ColumnDescPtr,
        column: Column,
        tiles: &[Tile],
    ) -> Result<ColumnChunkMetaData, ParquetError> {
        let page_writer = Box::new(SerializedPageWriter::new(&mut self.file));
        let mut writer = get_column_writer(descriptor, self.small.clone(), page_writer);
        write_values(&mut writer, column, tiles)?;
        Ok(writer.close()?.metadata)
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
            // Repetition levels belong to lists, which are all absent here.
            let repetition = vec![0; levels.len()];
            writer.write_batch(&present, Some(&levels), Some(&repetition))?;
        }};
    }
    let text = |text: &str| ByteArray::from(text);
    let layout = |tile: &Tile| tile.layout;
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
            Some(text(layout(t).map_or(RAW, |l| l.format.name())))
        }),
        Column::Scheme => write!(ByteArrayColumnWriter, |t: &Tile| {
            layout(t).map(|l| text(l.scheme.name()))
        }),
        Column::GroupSize => write!(Int32ColumnWriter, |t: &Tile| {
            layout(t).map(|l| i32::from(l.group_size.get()))
        }),
        Column::ScaleDtype => write!(ByteArrayColumnWriter, |t: &Tile| {
            layout(t).map(|l| text(l.scale_dtype.name()))
        }),
        Column::Checksum => write!(Int64ColumnWriter, |t: &Tile| Some(t.checksum as i64)),
        Column::Cosine => write!(FloatColumnWriter, |t: &Tile| t.cosine),
        Column::SqnrDb => write!(FloatColumnWriter, |t: &Tile| t.sqnr_db),
        Column::BitsPerWeight => write!(FloatColumnWriter, |t: &Tile| t.bits_per_weight),
        // Planes that a tile has not, and what this version does not write yet.
        Column::Codes | Column::Scales | Column::Biases | Column::InputScale => {
            write!(ByteArrayColumnWriter, |_| None::<ByteArray>)
        }
        Column::RotationBlock | Column::ActivationBegin | Column::ActivationEnd => {
            write!(Int32ColumnWriter, |_| None::<i32>)
        }
        Column::RotationSeed => write!(Int64ColumnWriter, |_| None::<i64>),
        Column::ActivationScale | Column::ActivationZeroPoint => {
            write!(FloatColumnWriter, |_| None::<f32>)
        }
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
        let mut repetition = vec![1; levels.len()];
        repetition[0] = 0;
        writer.write_batch(&dims, Some(&levels), Some(&repetition))?;
    }
    Ok(())
}
