//! The Parquet file of a model: checked columns, and planes as slices of the map.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::Mmap;
use parquet::basic::Type as Physical;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::ColumnDescPtr;

use super::TilePlanes;
use super::columns::{Activation, Columns};
use crate::error::{Error, Result};
use crate::schema::pages::{self, Page, PageKind, PageLimits};
use crate::schema::read::{self, Levelled, fenced};
use crate::schema::{Column, MAX_RANGES, Tile, footer, parquet_schema};
use crate::tensor::{MAX_DIMS, MAX_NAME};

/// A row group and a row in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanePlace {
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
    /// Index in the file of each column in [`Column::ALL`].
    columns: Vec<usize>,
    /// Bytes of each of the [`PLANES`] in each row group.
    plane_bytes: Vec<[u64; 3]>,
    /// The row groups whose planes were read last, so that a compressed one is not decompressed
    /// again for every row.
    recent: Mutex<VecDeque<(usize, Arc<PlaneColumns>)>>,
}

/// The number of row groups whose planes are held; a compressed one has 16 MiB of codes.
const RECENT: usize = 8;

const PLANES: [Column; 3] = [Column::Codes, Column::Scales, Column::Biases];

/// The most bytes of the name of a format or similar.
const MAX_WORD: usize = 64;

/// The most bytes of text in a column, in addition to [`TEXT_RATIO`] times those of the file.
const TEXT: usize = 1 << 20;
const TEXT_RATIO: usize = 16;

/// The most bytes of a row group's decompressed planes, in addition to [`UNPACKED_RATIO`] times
/// those of the file. Compressed tiles have 16 MiB of codes.
const UNPACKED: u64 = 32 << 20;
const UNPACKED_RATIO: u64 = 16;

/// Rows of a file, and their places.
pub(super) type Tiles = Vec<(Tile, PlanePlace)>;

/// Codes, scales and biases of a row group.
type PlaneColumns = [Vec<Option<ByteArray>>; 3];

impl TileFile {
    /// Opens a file and maps it; planes are slices of the map. Returns its rows as well.
    pub(super) fn open(path: &Path) -> Result<(Self, Tiles)> {
        // Checked before opening, which would block on a pipe.
        let status = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !status.is_file() {
            return Err(Error::file(path, "not a Parquet file: not a file"));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the map is read-only; `Model` documents that the file must not be written to.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Self::parse(path, Bytes::from_owner(map))
    }

    /// Reads a file in memory, and its rows; `path` is for messages.
    pub(super) fn parse(path: &Path, map: Bytes) -> Result<(Self, Tiles)> {
        let damaged = |reason: String| Error::file(path, format!("damaged Parquet file: {reason}"));
        footer::check(find_footer(path, &map)?).map_err(damaged)?;
        let parquet = fenced(path, || ParquetMetaDataReader::new().parse_and_finish(&map))?;
        let metadata = read::metadata(&parquet);
        read::check_version(path, &metadata)?;
        let columns = find_columns(path, &parquet)?;
        footer::check_chunks(&parquet, map.len() as u64).map_err(damaged)?;
        let mut file = Self {
            path: path.to_owned(),
            map: Arc::new(map),
            parquet,
            metadata,
            columns,
            plane_bytes: Vec::new(),
            recent: Mutex::default(),
        };
        let mut tiles = Vec::new();
        for row_group in 0..file.parquet.num_row_groups() {
            let plane_bytes = file.read_tiles(row_group, &mut tiles)?;
            file.check_planes(row_group, plane_bytes).map_err(damaged)?;
            file.plane_bytes.push(plane_bytes);
        }
        Ok((file, tiles))
    }

    pub(super) fn map(&self) -> &Bytes {
        &self.map
    }

    pub(super) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads and checks every row of a row group. Returns the bytes that its planes must have.
    fn read_tiles(&self, row_group: usize, tiles: &mut Tiles) -> Result<[u64; 3]> {
        let columns = fenced(&self.path, || self.columns_of(row_group))?;
        let mut sums = [0u64; 3];
        for row in 0..self.rows(row_group) {
            let tile = columns.tile(&self.path, row)?;
            let bytes = tile.plane_bytes().unwrap_or_default(); // checked with the tile
            sums = [0, 1, 2].map(|i| sums[i].saturating_add(bytes[i] as u64));
            tiles.push((tile, PlanePlace { row_group, row }));
        }
        Ok(sums)
    }

    /// Checks, without reading them, that the pages of a row group's planes have as many bytes as
    /// the rows require.
    fn check_planes(&self, row_group: usize, plane_bytes: [u64; 3]) -> Result<(), String> {
        let mut unpacked = 0;
        for (column, bytes) in PLANES.into_iter().zip(plane_bytes) {
            let pages = self.pages(
                row_group,
                column,
                PageLimits::bytes(bytes, self.rows(row_group)),
            )?;
            let of_column = |reason: String| format!("column {}: {reason}", column.path());
            // Equal planes may share a dictionary entry.
            let plain = pages
                .iter()
                .all(|page| page.plain && page.kind != PageKind::Dictionary);
            let held: u64 = pages.iter().map(|page| page.unpacked as u64).sum();
            if plain && held < bytes {
                let reason = format!("its pages hold {held} bytes of {bytes}");
                return Err(of_column(reason));
            }
            let packed = pages.iter().filter(|page| page.packed);
            unpacked += packed.map(|page| page.unpacked as u64).sum::<u64>();
        }
        let file = self.map.len() as u64;
        match unpacked <= UNPACKED + UNPACKED_RATIO * file {
            true => Ok(()),
            false => Err(format!(
                "planes that decompress to {unpacked} bytes in a file of {file}"
            )),
        }
    }

    /// Returns the planes of one row.
    pub(super) fn planes(&self, tile: &Tile, place: PlanePlace) -> Result<TilePlanes> {
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
            let [codes, scales, biases] =
                PLANES.map(|column| self.read::<ByteArrayType>(row_group, column));
            Ok(Arc::new([codes?, scales?, biases?]))
        })?;
        let mut recent = recent();
        recent.truncate(RECENT - 1);
        recent.push_front((row_group, columns.clone()));
        Ok(columns)
    }

    fn columns_of(&self, group: usize) -> Result<Columns, ParquetError> {
        Ok(Columns {
            names: self.text(group, Column::Name, MAX_NAME)?,
            tiles: self.read::<Int32Type>(group, Column::Tile)?,
            row_starts: self.read::<Int64Type>(group, Column::RowStart)?,
            row_counts: self.read::<Int64Type>(group, Column::RowCount)?,
            shapes: self.lists::<Int64Type>(group, Column::Shape)?,
            source_dtypes: self.text(group, Column::SourceDtype, MAX_WORD)?,
            formats: self.text(group, Column::Format, MAX_WORD)?,
            schemes: self.text(group, Column::Scheme, MAX_WORD)?,
            group_sizes: self.read::<Int32Type>(group, Column::GroupSize)?,
            scale_dtypes: self.text(group, Column::ScaleDtype, MAX_WORD)?,
            checksums: self.read::<Int64Type>(group, Column::Checksum)?,
            cosines: self.read::<FloatType>(group, Column::Cosine)?,
            sqnrs: self.read::<FloatType>(group, Column::SqnrDb)?,
            bits: self.read::<FloatType>(group, Column::BitsPerWeight)?,
            input_scales: self.bytes(group, Column::InputScale, usize::MAX)?,
            rotation_blocks: self.read::<Int32Type>(group, Column::RotationBlock)?,
            rotation_seeds: self.read::<Int64Type>(group, Column::RotationSeed)?,
            activation: Activation {
                begins: self.lists::<Int32Type>(group, Column::ActivationBegin)?,
                ends: self.lists::<Int32Type>(group, Column::ActivationEnd)?,
                scales: self.lists::<FloatType>(group, Column::ActivationScale)?,
                zero_points: self.lists::<FloatType>(group, Column::ActivationZeroPoint)?,
            },
        })
    }

    /// Reads a text column with at most `longest` bytes per value.
    fn text(
        &self,
        group: usize,
        column: Column,
        longest: usize,
    ) -> Result<Vec<Option<String>>, ParquetError> {
        let text = |value: ByteArray| value.as_utf8().map(str::to_owned);
        self.bytes(group, column, longest)?
            .into_iter()
            .map(|value| value.map(text).transpose())
            .collect()
    }

    /// Reads a column of values with at most `longest` bytes each, few enough to be copied.
    fn bytes(
        &self,
        group: usize,
        column: Column,
        longest: usize,
    ) -> Result<Vec<Option<ByteArray>>, ParquetError> {
        let values = self.read::<ByteArrayType>(group, column)?;
        // A dictionary has one value for any number of rows.
        let lengths = || values.iter().flatten().map(ByteArray::len);
        if lengths().any(|length| length > longest) {
            let what = format!("column {} has a value over {longest} bytes", column.path());
            return Err(ParquetError::General(what));
        }
        if lengths().sum::<usize>() > TEXT + TEXT_RATIO * self.map.len() {
            let what = format!("column {} has more bytes than the file", column.path());
            return Err(ParquetError::General(what));
        }
        Ok(values)
    }

    /// Reads a flat column of a row group.
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

    /// Reads a list column of a row group, one list per row.
    fn lists<T: DataType>(
        &self,
        group: usize,
        column: Column,
    ) -> Result<Vec<Vec<T::T>>, ParquetError> {
        let (values, levels, starts) = self.read_levels::<T>(group, column)?;
        let max_level = self.max_definition(group, column);
        let mut values = values.into_iter();
        let mut lists: Vec<Vec<T::T>> = Vec::new();
        for (&level, &start) in levels.iter().zip(&starts) {
            if start == 0 {
                lists.push(Vec::new());
            }
            if level == max_level
                && let (Some(list), Some(value)) = (lists.last_mut(), values.next())
            {
                list.push(value);
            }
        }
        lists.resize_with(self.rows(group), Vec::new);
        Ok(lists)
    }

    /// Reads values, definition levels and repetition levels of a column of a row group.
    fn read_levels<T: DataType>(
        &self,
        group: usize,
        column: Column,
    ) -> Result<Levelled<T::T>, ParquetError> {
        let rows = self.rows(group);
        let chunk = self.chunk(group, column);
        let limits = self.limits(group, column);
        self.pages(group, column, limits)
            .map_err(ParquetError::General)?;
        read::column::<T>(&self.map, chunk, rows)
    }

    /// Returns the pages of a column from their headers, which are checked against everything
    /// known.
    fn pages(&self, group: usize, column: Column, limits: PageLimits) -> Result<Vec<Page>, String> {
        let mut read = |out: &mut [u8], at: u64| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let rest = self.map.get(at..).unwrap_or_default();
            let found = rest.get(..out.len());
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let chunk = self.chunk(group, column);
        let of_column = |reason| format!("column {}: {reason}", column.path());
        let pages = pages::walk(chunk, limits, &mut read).map_err(of_column)?;
        let data = pages
            .iter()
            .filter(|page| page.kind != PageKind::Dictionary);
        let values: usize = data.map(|page| page.values).sum();
        match values >= self.rows(group) {
            true => Ok(pages),
            false => {
                let rows = self.rows(group);
                Err(of_column(format!("{values} of {rows} rows")))
            }
        }
    }

    /// Returns the limits of a column of a row group.
    fn limits(&self, group: usize, column: Column) -> PageLimits {
        let rows = self.rows(group) as u64;
        let file = self.map.len() as u64;
        let chunk = self.chunk(group, column);
        match column {
            Column::Codes | Column::Scales | Column::Biases => {
                let place = PLANES.iter().position(|plane| *plane == column);
                let bytes = place.map_or(0, |i| self.plane_bytes[group][i]);
                PageLimits::bytes(bytes, self.rows(group))
            }
            // A scalar also has a value. No real tensor has so many dimensions that run-length
            // encoding makes them shorter than a byte each.
            Column::Shape => PageLimits::numbers((rows * MAX_DIMS as u64).min(file)),
            // Nor does a real tile have so many ranges of timesteps.
            Column::ActivationBegin
            | Column::ActivationEnd
            | Column::ActivationScale
            | Column::ActivationZeroPoint => {
                PageLimits::numbers(rows.saturating_mul(MAX_RANGES as u64).min(file))
            }
            _ if chunk.column_type() == Physical::BYTE_ARRAY => PageLimits::texts(rows, chunk),
            _ => PageLimits::numbers(rows),
        }
    }

    fn chunk(&self, group: usize, column: Column) -> &ColumnChunkMetaData {
        self.parquet
            .row_group(group)
            .column(self.columns[column as usize])
    }

    fn rows(&self, group: usize) -> usize {
        self.parquet.row_group(group).num_rows() as usize // checked when opened
    }

    fn max_definition(&self, group: usize, column: Column) -> i16 {
        self.chunk(group, column).column_descr().max_def_level()
    }
}

/// Returns the footer, which must be within the file.
fn find_footer<'a>(path: &Path, map: &'a [u8]) -> Result<&'a [u8]> {
    let (Some(front), Some(back)) = (map.first_chunk(), map.last_chunk()) else {
        return Err(Error::file(path, "not a Parquet file: too short"));
    };
    let length = read::footer_bytes(path, *front, *back, map.len() as u64)?;
    Ok(&map[map.len() - 8 - length..map.len() - 8])
}

/// Finds columns by name, so that a file may have more of them or in another order.
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
