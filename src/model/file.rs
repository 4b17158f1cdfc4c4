//! The Parquet file under a model: checked columns, and planes as slices of the map.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::Mmap;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use super::TilePlanes;
use crate::error::{self, Error, Result};
use crate::format::{Format, GroupSize, Layout, ScaleDtype, Scheme, UnknownName};
use crate::schema::{Column, FORMAT_VERSION, RAW, Tile, key, parquet_schema};
use crate::tensor::{Dtype, Shape};

/// Row group and row in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    row_group: usize,
    row: usize,
}

/// An open Parquet V2 file.
#[derive(Debug)]
pub(super) struct TileFile {
    path: PathBuf,
    map: Arc<Bytes>,
    parquet: ParquetMetaData,
    metadata: BTreeMap<String, String>,
    /// Position in the file of each column of [`Column::ALL`].
    columns: Vec<usize>,
    /// The row groups whose planes were read last, so that a compressed one is not unpacked
    /// again for every row of it.
    recent: Mutex<VecDeque<(usize, Arc<PlaneColumns>)>>,
}

/// Row groups whose planes are kept at hand; a compressed one has 16 MiB of codes.
const RECENT: usize = 8;

/// Codes, scales and biases of a row group.
type PlaneColumns = [Vec<Option<ByteArray>>; 3];

impl TileFile {
    /// Opens a file, whose planes are then slices of a map of it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Before opening it, which would wait on a pipe.
        let status = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !status.is_file() {
            return Err(Error::file(path, "not a Parquet file: not a file at all"));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the map is read-only; `Model` documents that the file must not be written to.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Self::parse(path, Bytes::from_owner(map))
    }

    /// Reads a file that is in memory; `path` is for messages.
    pub(super) fn parse(path: &Path, map: Bytes) -> Result<Self> {
        if map.len() < 12 {
            return Err(Error::file(path, "not a Parquet file: too short"));
        }
        check_footer_length(path, &map)?;
        let parquet = fenced(path, || ParquetMetaDataReader::new().parse_and_finish(&map))?;
        let mut metadata = BTreeMap::new();
        for entry in parquet
            .file_metadata()
            .key_value_metadata()
            .into_iter()
            .flatten()
        {
            metadata.insert(entry.key.clone(), entry.value.clone().unwrap_or_default());
        }
        check_version(path, &metadata)?;
        let columns = find_columns(path, &parquet)?;
        check_chunks(path, &parquet, map.len())?;
        let rows: i64 = parquet
            .row_groups()
            .iter()
            .map(|group| group.num_rows())
            .sum();
        if rows != parquet.file_metadata().num_rows() {
            let reason = "damaged Parquet file: its row groups lack rows";
            return Err(Error::file(path, reason));
        }
        Ok(Self {
            path: path.to_owned(),
            map: Arc::new(map),
            parquet,
            metadata,
            columns,
            recent: Mutex::default(),
        })
    }

    pub(super) fn map(&self) -> &Bytes {
        &self.map
    }

    pub(super) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Every row of the file, checked one by one.
    pub(super) fn tiles(&self) -> Result<Vec<(Tile, Place)>> {
        let mut tiles = Vec::new();
        for row_group in 0..self.parquet.num_row_groups() {
            let columns = fenced(&self.path, || self.columns_of(row_group))?;
            for row in 0..self.rows(row_group) {
                tiles.push((columns.tile(&self.path, row)?, Place { row_group, row }));
            }
        }
        Ok(tiles)
    }

    /// The planes of one row.
    pub(super) fn planes(&self, tile: &Tile, place: Place) -> Result<TilePlanes> {
        let columns = self
            .plane_columns(place.row_group)
            .map_err(|error| Error::tensor(&self.path, &tile.name, error.to_string()))?;
        let [codes, scales, biases] = [0, 1, 2].map(|i| columns[i][place.row].clone());
        let codes = codes.ok_or_else(|| Error::tensor(&self.path, &tile.name, "no codes"))?;
        Ok(TilePlanes {
            codes,
            scales,
            biases,
        })
    }

    fn plane_columns(&self, row_group: usize) -> Result<Arc<PlaneColumns>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, columns)) = recent().iter().find(|(group, _)| *group == row_group) {
            return Ok(columns.clone());
        }
        let columns = fenced(&self.path, || {
            Ok(Arc::new([
                self.read::<ByteArrayType>(row_group, Column::Codes)?,
                self.read::<ByteArrayType>(row_group, Column::Scales)?,
                self.read::<ByteArrayType>(row_group, Column::Biases)?,
            ]))
        })?;
        let mut recent = recent();
        recent.truncate(RECENT - 1);
        recent.push_front((row_group, columns.clone()));
        Ok(columns)
    }

    fn columns_of(&self, group: usize) -> Result<Columns, ParquetError> {
        let input_scales = self.read::<ByteArrayType>(group, Column::InputScale)?;
        let rotations = self.read::<Int32Type>(group, Column::RotationBlock)?;
        Ok(Columns {
            names: self.text(group, Column::Name)?,
            tiles: self.read::<Int32Type>(group, Column::Tile)?,
            row_starts: self.read::<Int64Type>(group, Column::RowStart)?,
            row_counts: self.read::<Int64Type>(group, Column::RowCount)?,
            shapes: self.shapes(group)?,
            source_dtypes: self.text(group, Column::SourceDtype)?,
            formats: self.text(group, Column::Format)?,
            schemes: self.text(group, Column::Scheme)?,
            group_sizes: self.read::<Int32Type>(group, Column::GroupSize)?,
            scale_dtypes: self.text(group, Column::ScaleDtype)?,
            checksums: self.read::<Int64Type>(group, Column::Checksum)?,
            cosines: self.read::<FloatType>(group, Column::Cosine)?,
            sqnrs: self.read::<FloatType>(group, Column::SqnrDb)?,
            bits: self.read::<FloatType>(group, Column::BitsPerWeight)?,
            transformed: (input_scales.iter().zip(&rotations))
                .map(|(scale, rotation)| scale.is_some() || rotation.is_some())
                .collect(),
        })
    }

    fn text(&self, group: usize, column: Column) -> Result<Vec<Option<String>>, ParquetError> {
        let values = self.read::<ByteArrayType>(group, column)?;
        let text = |value: ByteArray| value.as_utf8().map(str::to_owned);
        values
            .into_iter()
            .map(|value| value.map(text).transpose())
            .collect()
    }

    /// The values of a flat column of a row group.
    fn read<T: DataType>(
        &self,
        group: usize,
        column: Column,
    ) -> Result<Vec<Option<T::T>>, ParquetError> {
        let (values, levels, _) = self.read_levels::<T>(group, column)?;
        let max_level = self.max_definition(group, column);
        let mut values = values.into_iter();
        let mut values: Vec<Option<T::T>> = match max_level {
            0 => values.map(Some).collect(),
            _ => levels
                .iter()
                .map(|&level| (level == max_level).then(|| values.next()).flatten())
                .collect(),
        };
        values.resize_with(self.rows(group), || None);
        Ok(values)
    }

    /// The dimensions of every tensor of a row group.
    fn shapes(&self, group: usize) -> Result<Vec<Vec<i64>>, ParquetError> {
        let (values, levels, starts) = self.read_levels::<Int64Type>(group, Column::Shape)?;
        let max_level = self.max_definition(group, Column::Shape);
        let mut values = values.into_iter();
        let mut shapes: Vec<Vec<i64>> = Vec::new();
        for (&level, &start) in levels.iter().zip(&starts) {
            if start == 0 {
                shapes.push(Vec::new());
            }
            if level == max_level
                && let (Some(shape), Some(dim)) = (shapes.last_mut(), values.next())
            {
                shape.push(dim);
            }
        }
        shapes.resize_with(self.rows(group), Vec::new);
        Ok(shapes)
    }

    /// Values, definition levels and repetition levels of a column of a row group.
    #[allow(clippy::type_complexity)]
    fn read_levels<T: DataType>(
        &self,
        group: usize,
        column: Column,
    ) -> Result<(Vec<T::T>, Vec<i16>, Vec<i16>), ParquetError> {
        let rows = self.rows(group);
        let chunk = self
            .parquet
            .row_group(group)
            .column(self.columns[column as usize]);
        let pages = SerializedPageReader::new(self.map.clone(), chunk, rows, None)?;
        let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages));
        let mut reader: ColumnReaderImpl<T> = get_typed_column_reader(reader);
        let (mut values, mut levels, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        let (read, _, _) =
            reader.read_records(rows, Some(&mut levels), Some(&mut starts), &mut values)?;
        if read != rows {
            let what = format!("column {} has {read} of {rows} rows", column.path());
            return Err(ParquetError::General(what));
        }
        Ok((values, levels, starts))
    }

    fn rows(&self, group: usize) -> usize {
        self.parquet.row_group(group).num_rows() as usize // checked when opened
    }

    fn max_definition(&self, group: usize, column: Column) -> i16 {
        let chunk = self
            .parquet
            .row_group(group)
            .column(self.columns[column as usize]);
        chunk.column_descr().max_def_level()
    }
}

/// The small columns of a row group, one value a row.
struct Columns {
    names: Vec<Option<String>>,
    tiles: Vec<Option<i32>>,
    row_starts: Vec<Option<i64>>,
    row_counts: Vec<Option<i64>>,
    shapes: Vec<Vec<i64>>,
    source_dtypes: Vec<Option<String>>,
    formats: Vec<Option<String>>,
    schemes: Vec<Option<String>>,
    group_sizes: Vec<Option<i32>>,
    scale_dtypes: Vec<Option<String>>,
    checksums: Vec<Option<i64>>,
    cosines: Vec<Option<f32>>,
    sqnrs: Vec<Option<f32>>,
    bits: Vec<Option<f32>>,
    /// Has an input scale or a rotation.
    transformed: Vec<bool>,
}

impl Columns {
    /// Row `row`, checked.
    fn tile(&self, path: &Path, row: usize) -> Result<Tile> {
        let name = self.names[row].clone().unwrap_or_default();
        let refuse = |reason: String| Error::tensor(path, &name, reason);
        let number = |value: Option<i64>, column: Column| {
            value
                .and_then(|value| usize::try_from(value).ok())
                .ok_or_else(|| refuse(format!("{} is null or negative", column.path())))
        };
        if self.transformed[row] {
            return Err(refuse(
                "it was rotated or smoothed, which this version cannot undo".into(),
            ));
        }
        let dims = self.shapes[row]
            .iter()
            .map(|&dim| number(Some(dim), Column::Shape));
        let shape = Shape::new(dims.collect::<Result<_>>()?)
            .ok_or_else(|| refuse("its shape is too large".into()))?;
        let row_start = number(self.row_starts[row], Column::RowStart)?;
        let row_count = number(self.row_counts[row], Column::RowCount)?;
        if row_start > shape.rows() || row_count > shape.rows() - row_start {
            let reason = format!("{row_count} rows from {row_start} on are not in shape {shape}");
            return Err(refuse(reason));
        }
        let tile = number(self.tiles[row].map(i64::from), Column::Tile)?;
        let dtype = self.source_dtypes[row].as_deref().unwrap_or_default();
        let source_dtype =
            Dtype::from_name(dtype).ok_or_else(|| refuse(format!("unknown dtype '{dtype}'")))?;
        let layout = match self.formats[row].as_deref() {
            Some(RAW) => None,
            _ => Some(self.layout(row).map_err(refuse)?),
        };
        if layout.is_some() && source_dtype.float().is_none() {
            return Err(refuse(format!("{source_dtype} cannot have been quantized")));
        }
        let tile = Tile {
            tile: tile as u32,
            row_start,
            row_count,
            shape,
            source_dtype,
            layout,
            checksum: self.checksums[row].unwrap_or_default() as u64,
            cosine: self.cosines[row],
            sqnr_db: self.sqnrs[row],
            bits_per_weight: self.bits[row],
            name: name.clone(),
        };
        match tile.plane_bytes() {
            Some(_) => Ok(tile),
            None => Err(refuse("its planes cannot have whole bytes".into())),
        }
    }

    fn layout(&self, row: usize) -> Result<Layout, String> {
        let group_size = self.group_sizes[row].and_then(|size| u64::try_from(size).ok());
        Ok(Layout {
            format: parse::<Format>(&self.formats[row])?,
            scheme: parse::<Scheme>(&self.schemes[row])?,
            group_size: group_size
                .and_then(GroupSize::new)
                .ok_or("its group size is not allowed")?,
            scale_dtype: parse::<ScaleDtype>(&self.scale_dtypes[row])?,
        })
    }
}

fn parse<T: FromStr<Err = UnknownName>>(text: &Option<String>) -> Result<T, String> {
    let text = text.as_deref().unwrap_or("null");
    text.parse()
        .map_err(|error: UnknownName| format!("'{text}': {error}"))
}

/// The parquet crate returns errors for malformed files by policy; where it still panics, that
/// is an error too.
fn fenced<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match error::quiet_panics(|| catch_unwind(AssertUnwindSafe(read))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::file(
            path,
            format!("cannot read as Parquet: {error}"),
        )),
        Err(_) => Err(Error::file(path, "damaged Parquet file")),
    }
}

/// The footer must lie in the file before anything is allocated for it.
fn check_footer_length(path: &Path, map: &[u8]) -> Result<()> {
    let (front, back) = (&map[..4], &map[map.len() - 8..]);
    if front != b"PAR1" || &back[4..] != b"PAR1" {
        return Err(Error::file(path, "not a Parquet file, or cut short"));
    }
    let length = u32::from_le_bytes([back[0], back[1], back[2], back[3]]);
    if length as usize > map.len() - 12 {
        let reason = format!("damaged Parquet file: a footer of {length} bytes");
        return Err(Error::file(path, reason));
    }
    Ok(())
}

fn check_version(path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
    let Some(version) = metadata.get(key::FORMAT_VERSION) else {
        let reason = format!(
            "not written by ArrowQuant: no {} in its footer",
            key::FORMAT_VERSION
        );
        return Err(Error::file(path, reason));
    };
    match version.parse::<u32>() {
        Ok(FORMAT_VERSION) => Ok(()),
        Ok(newer) if newer > FORMAT_VERSION => Err(Error::file(
            path,
            format!(
                "format version {newer} is newer than {FORMAT_VERSION}, which this program reads"
            ),
        )),
        _ => Err(Error::file(
            path,
            format!("format version '{version}' is not readable"),
        )),
    }
}

/// Columns by name, so that a file may have more of them or in another order.
fn find_columns(path: &Path, parquet: &ParquetMetaData) -> Result<Vec<usize>> {
    let expected = parquet_schema();
    let found = parquet.file_metadata().schema_descr();
    let find = |i: usize| {
        let wanted = expected.column(i);
        let same = |c: &ColumnDescPtr| {
            c.path() == wanted.path()
                && c.physical_type() == wanted.physical_type()
                && c.max_rep_level() == wanted.max_rep_level()
        };
        found.columns().iter().position(same).ok_or_else(|| {
            let (name, kind) = (wanted.path().string(), wanted.physical_type());
            Error::file(
                path,
                format!("not readable: no column {name} of type {kind}"),
            )
        })
    };
    (0..Column::ALL.len()).map(find).collect()
}

/// Every column chunk must lie in the file, and there cannot be more rows than bytes.
fn check_chunks(path: &Path, parquet: &ParquetMetaData, file_bytes: usize) -> Result<()> {
    let file_bytes = file_bytes as i64;
    for row_group in parquet.row_groups() {
        let chunks = row_group.columns().iter().all(|chunk| {
            let start = chunk
                .dictionary_page_offset()
                .unwrap_or(chunk.data_page_offset());
            let len = chunk.compressed_size();
            start >= 0 && len >= 0 && start <= file_bytes && len <= file_bytes - start
        });
        if !chunks || !(0..=file_bytes).contains(&row_group.num_rows()) {
            let reason = "damaged Parquet file: a column lies outside the file";
            return Err(Error::file(path, reason));
        }
    }
    Ok(())
}
