//! Calibrations as Parquet files: a row for each bin of a layer, and rows for pieces of its
//! Hessians. `docs/calibration.md` describes them for other readers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;
use parquet::basic::{Repetition, Type as Physical};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::{BinStats, Calibration, CalibrationOptions, MAX_COLS, layer_name, lock};
use crate::error::{Error, Result};
use crate::schema::pages::{self, PageLimits};
use crate::schema::read::{self, fenced};
use crate::schema::{footer, group, leaf, list, string};

/// Key of the footer metadata that describes the division of time.
const KEY: &str = "arrowquant.calibration";

/// Version of the format. Readers refuse a newer one.
const VERSION: u32 = 1;

/// Slightly more than the square of a value, or the product of two, can be.
const LARGEST_SQUARE: f64 = 1.01e36;

/// More rows than anyone observes; counts cannot overflow.
const MOST_ROWS: i64 = 1 << 48;

/// Kinds of rows.
const BIN: &str = "bin";
const HESSIAN: &str = "hessian";

/// The most bytes of the pages of a column: a piece of a Hessian has fewer.
const LARGEST: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
struct CalibrationHeader {
    version: u32,
    timesteps: u32,
    bins: u32,
    hessian: bool,
    hessian_groups: u32,
    #[serde(default)]
    schedule: Vec<f64>,
    /// Hash of all observations.
    #[serde(default)]
    hash: String,
}

/// A row of the file.
#[derive(Default)]
struct Row {
    kind: &'static str,
    layer: String,
    cols: i32,
    t_begin: i32,
    t_end: i32,
    /// Rows of activations.
    rows: i64,
    /// First row of a piece of a Hessian.
    first: i32,
    low: Vec<f32>,
    high: Vec<f32>,
    squares: Vec<f64>,
    histogram: Vec<i64>,
    hessian: Vec<f64>,
}

/// Columns, in file order.
const COLUMNS: [&str; 12] = [
    "kind",
    "layer",
    "channels",
    "t_begin",
    "t_end",
    "rows",
    "first_row",
    "low",
    "high",
    "squares",
    "histogram",
    "hessian",
];

fn file_schema() -> Arc<Type> {
    const REQUIRED: Repetition = Repetition::REQUIRED;
    let field = |i: usize| {
        let name = COLUMNS[i];
        let numbers = |kind| list(name, REQUIRED, leaf("element", REQUIRED, kind, None));
        match i {
            0 | 1 => leaf(name, REQUIRED, Physical::BYTE_ARRAY, string()),
            2..=4 | 6 => leaf(name, REQUIRED, Physical::INT32, None),
            5 => leaf(name, REQUIRED, Physical::INT64, None),
            7 | 8 => numbers(Physical::FLOAT),
            10 => numbers(Physical::INT64),
            _ => numbers(Physical::DOUBLE),
        }
    };
    group(
        "calibration",
        REQUIRED,
        (0..COLUMNS.len()).map(field).collect(),
    )
}

/// The next missing row of each Hessian, by layer and group.
type PiecePlaces = BTreeMap<(String, usize), usize>;

impl Calibration {
    /// Writes the calibration to the Parquet file `path`, which appears complete or not at all.
    ///
    /// # Errors
    /// The file cannot be written, or the temporary file cannot be read.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |error: io::Error| Error::io(path, "write")(error);
        // Symbolic links are followed.
        let target = std::fs::canonicalize(path);
        let target = target.as_deref().unwrap_or(path);
        let parent = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".calibration-");
        let mut options = File::options();
        options.write(true).create_new(true);
        let mut staged = builder
            .make_in(parent, |path| options.open(path))
            .map_err(failed)?;
        self.write(staged.as_file()).map_err(failed)?;
        staged.as_file().sync_all().map_err(failed)?;
        // The standard library supports long paths on Windows, tempfile does not.
        std::fs::rename(staged.path(), target).map_err(failed)?;
        staged.disable_cleanup(true);
        Ok(())
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let header = CalibrationHeader {
            version: VERSION,
            timesteps: self.options.timesteps,
            bins: self.options.bins,
            hessian: self.options.hessian,
            hessian_groups: self.options.hessian_groups,
            schedule: self.schedule(),
            hash: self.hash(),
        };
        let header = KeyValue::new(KEY.to_owned(), serde_json::to_string(&header)?);
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(vec![header]))
            .build();
        let out = io::BufWriter::with_capacity(1 << 20, file);
        let mut writer = SerializedFileWriter::new(out, file_schema(), Arc::new(properties))?;
        for info in self.layers() {
            let Some(layer) = self.find(&info.name) else {
                continue;
            };
            let layer = &mut *lock(&layer);
            let row = |kind, i: usize, count: u32| {
                let (begin, end) = self.options.range(i as u32, count);
                Row {
                    kind,
                    layer: info.name.clone(),
                    cols: info.cols as i32,
                    t_begin: begin as i32,
                    t_end: end as i32,
                    ..Row::default()
                }
            };
            let bins = layer.bins.iter().enumerate();
            let bins = bins.filter_map(|(i, bin)| bin.as_ref().map(|bin| (i, bin)));
            let rows: Vec<Row> = bins
                .map(|(i, bin)| Row {
                    rows: bin.count as i64,
                    low: bin.low.clone(),
                    high: bin.high.clone(),
                    squares: bin.squares.clone(),
                    histogram: bin.histogram.counts().iter().map(|&n| n as i64).collect(),
                    ..row(BIN, i, self.options.bins)
                })
                .collect();
            write_rows(&mut writer, &rows)?;
            for (i, hessian) in layer.hessians.iter_mut().enumerate() {
                let count = hessian.count() as i64;
                hessian.each_block(|first, sums| {
                    let piece = Row {
                        rows: count,
                        first: first as i32,
                        hessian: sums.to_vec(),
                        ..row(HESSIAN, i, self.options.hessian_groups)
                    };
                    write_rows(&mut writer, &[piece])
                })?;
            }
        }
        writer.finish()?;
        writer.inner_mut().flush()
    }

    /// Reads the properties of a file written by [`Calibration::save`]: the hash of its
    /// observations, and whether there are Hessians.
    ///
    /// # Errors
    /// The errors of [`Calibration::load`].
    pub fn peek(path: &Path) -> Result<(String, bool)> {
        let header = CalibrationTable::open(path)?.header;
        Ok((header.hash, header.hessian))
    }

    /// Reads a file written by [`Calibration::save`]. Hessians beyond `memory_limit` bytes go to a
    /// temporary file.
    ///
    /// # Errors
    /// The file cannot be read, is not a calibration, or is damaged.
    pub fn load(path: &Path, memory_limit: Option<usize>) -> Result<Self> {
        let table = CalibrationTable::open(path)?;
        let calibration = Self::new(CalibrationOptions {
            memory_limit,
            ..table.options(path)?
        })?;
        if !table.header.schedule.is_empty() {
            let set = calibration.set_schedule(&table.header.schedule);
            set.map_err(|error| Error::file(path, format!("damaged calibration: {error}")))?;
        }
        let damaged = |layer: &str, reason: &str| {
            let reason = format!("damaged calibration: layer '{layer}': {reason}");
            Error::file(path, reason)
        };
        let mut pieces = PiecePlaces::new();
        for row_group in 0..table.parquet.num_row_groups() {
            for row in fenced(path, || table.rows(row_group))? {
                let layer = row.layer.clone();
                let taken = calibration.restore(row, &mut pieces);
                let taken = taken.map_err(Error::io(path, "read"))?;
                taken.map_err(|reason| damaged(&layer, &reason))?;
            }
            table.forget_pages();
        }
        let whole = |layer: &str, next: usize| calibration.cols(layer) == Some(next);
        let mut pieces = pieces.iter();
        match pieces.find(|((layer, _), next)| !whole(layer, **next)) {
            Some(((layer, _), _)) => Err(damaged(layer, "a Hessian lacks rows")),
            None => Ok(calibration),
        }
    }

    /// Adds a row of a file. The outer error is from a temporary file.
    fn restore(&self, row: Row, pieces: &mut PiecePlaces) -> io::Result<Result<(), String>> {
        let options = &self.options;
        let cols = row.cols as usize;
        let name = layer_name(&row.layer);
        if row.cols < 1
            || cols > MAX_COLS
            || !(0..=MOST_ROWS).contains(&row.rows)
            || name.is_empty()
        {
            return Ok(Err("impossible numbers".to_owned()));
        }
        let is_bin = row.kind == BIN;
        let count = if is_bin {
            options.bins
        } else {
            options.hessian_groups
        };
        let (begin, end) = (i64::from(row.t_begin), i64::from(row.t_end));
        let same = |(first, last): (u32, u32)| (first.into(), last.into()) == (begin, end);
        let place = (0..count).find(|&i| same(options.range(i, count)));
        let Some(place) = place.map(|place| place as usize) else {
            return Ok(Err(format!("there is no bin from {begin} to {end}")));
        };
        let layer = self.layer(name, cols);
        let layer = &mut *lock(&layer);
        if layer.cols != cols {
            return Ok(Err(format!("{cols} channels, and {} before", layer.cols)));
        }
        if is_bin {
            let lengths = [row.low.len(), row.high.len(), row.squares.len()];
            let counts: Vec<u64> = row.histogram.iter().map(|&n| n.max(0) as u64).collect();
            let histogram = Histogram::from_counts(&counts);
            let most = LARGEST_SQUARE * row.rows as f64;
            let finite = row.squares.iter().all(|x| (0.0..=most).contains(x))
                && row.low.iter().chain(&row.high).all(|x| x.is_finite());
            let (Some(histogram), true) = (histogram, lengths == [cols; 3] && finite) else {
                return Ok(Err("sums that are missing or not finite".to_owned()));
            };
            if layer.bins[place].is_some() {
                return Ok(Err(format!("the bin from {begin} appears twice")));
            }
            layer.bins[place] = Some(Box::new(BinStats {
                count: row.rows as u64,
                low: row.low,
                high: row.high,
                squares: row.squares,
                histogram,
            }));
            return Ok(Ok(()));
        }
        let Some(hessian) = layer.hessians.get_mut(place) else {
            return Ok(Err("an unexpected Hessian".to_owned()));
        };
        let next = pieces.entry((name.to_owned(), place)).or_default();
        let first = *next;
        let most = LARGEST_SQUARE * row.rows as f64;
        let finite = row.hessian.iter().all(|x| x.abs() <= most);
        let after = hessian.after(first, row.hessian.len());
        let (Some(after), true) = (after, finite && row.first as usize == first) else {
            let reason = "a piece of a Hessian that does not fit, or is not finite";
            return Ok(Err(reason.to_owned()));
        };
        *next = after;
        hessian.set_count(row.rows as u64);
        hessian.restore(first, &row.hessian)?;
        Ok(Ok(()))
    }
}

fn write_rows<W: Write + Send>(
    writer: &mut SerializedFileWriter<W>,
    rows: &[Row],
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut group = writer.next_row_group()?;
    let text = |text: &str| ByteArray::from(text);
    one::<ByteArrayType, W>(&mut group, rows.iter().map(|row| text(row.kind)).collect())?;
    one::<ByteArrayType, W>(
        &mut group,
        rows.iter().map(|row| text(&row.layer)).collect(),
    )?;
    one::<Int32Type, W>(&mut group, rows.iter().map(|row| row.cols).collect())?;
    one::<Int32Type, W>(&mut group, rows.iter().map(|row| row.t_begin).collect())?;
    one::<Int32Type, W>(&mut group, rows.iter().map(|row| row.t_end).collect())?;
    one::<Int64Type, W>(&mut group, rows.iter().map(|row| row.rows).collect())?;
    one::<Int32Type, W>(&mut group, rows.iter().map(|row| row.first).collect())?;
    many::<FloatType, W>(&mut group, rows.iter().map(|row| &row.low[..]))?;
    many::<FloatType, W>(&mut group, rows.iter().map(|row| &row.high[..]))?;
    many::<DoubleType, W>(&mut group, rows.iter().map(|row| &row.squares[..]))?;
    many::<Int64Type, W>(&mut group, rows.iter().map(|row| &row.histogram[..]))?;
    many::<DoubleType, W>(&mut group, rows.iter().map(|row| &row.hessian[..]))?;
    group.close()?;
    Ok(())
}

/// Writes the next column, with one value per row.
fn one<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: Vec<T::T>,
) -> io::Result<()> {
    let column = group.next_column()?;
    let mut column = column.ok_or(io::ErrorKind::InvalidInput)?;
    column.typed::<T>().write_batch(&values, None, None)?;
    column.close()?;
    Ok(())
}

/// Writes the next column, with a list of values per row.
fn many<'a, T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    lists: impl Iterator<Item = &'a [T::T]>,
) -> io::Result<()>
where
    T::T: 'a,
{
    let column = group.next_column()?;
    let mut column = column.ok_or(io::ErrorKind::InvalidInput)?;
    for list in lists {
        // An empty list has definition level 0; the first value of a list has repetition level 0.
        let levels = vec![i16::from(!list.is_empty()); list.len().max(1)];
        let mut starts = vec![1; levels.len()];
        starts[0] = 0;
        column
            .typed::<T>()
            .write_batch(list, Some(&levels), Some(&starts))?;
    }
    column.close()?;
    Ok(())
}

/// The mapped pages of a file, as the owner of bytes.
struct Pages(Arc<Mmap>);

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// An open calibration file, after its footer has been checked.
struct CalibrationTable {
    map: Arc<Bytes>,
    pages: Arc<Mmap>,
    parquet: ParquetMetaData,
    header: CalibrationHeader,
    columns: [usize; COLUMNS.len()],
}

impl CalibrationTable {
    fn open(path: &Path) -> Result<Self> {
        let status = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
        if !status.is_file() || status.len() < 12 {
            return Err(Error::file(
                path,
                "not a calibration: too short, or not a file",
            ));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        // SAFETY: the map is read-only; files are replaced by renaming, never modified.
        let pages = unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        let pages = Arc::new(pages);
        let map = Bytes::from_owner(Pages(pages.clone()));
        let damaged = |reason: String| Error::file(path, format!("damaged calibration: {reason}"));
        let (front, back) = (map.first_chunk(), map.last_chunk());
        let (Some(front), Some(back)) = (front, back) else {
            return Err(damaged("too short".into()));
        };
        let length = read::footer_bytes(path, *front, *back, map.len() as u64)?;
        footer::check(&map[map.len() - 8 - length..map.len() - 8]).map_err(damaged)?;
        let parquet = fenced(path, || ParquetMetaDataReader::new().parse_and_finish(&map))?;
        footer::check_chunks(&parquet, map.len() as u64).map_err(damaged)?;
        let metadata: BTreeMap<String, String> = read::metadata(&parquet);
        let Some(header) = metadata.get(KEY) else {
            return Err(Error::file(
                path,
                format!("not a calibration: its footer has no {KEY}"),
            ));
        };
        let header: CalibrationHeader =
            serde_json::from_str(header).map_err(|error| damaged(format!("{KEY}: {error}")))?;
        if header.version != VERSION {
            let reason = format!(
                "version {} is not supported (expected {VERSION})",
                header.version
            );
            return Err(Error::file(path, reason));
        }
        let schema = parquet.file_metadata().schema_descr();
        let wanted = parquet::schema::types::SchemaDescriptor::new(file_schema());
        let mut columns = [0; COLUMNS.len()];
        for (i, column) in columns.iter_mut().enumerate() {
            let wanted = wanted.column(i);
            let same = |c: &parquet::schema::types::ColumnDescPtr| {
                c.path() == wanted.path()
                    && c.physical_type() == wanted.physical_type()
                    && c.max_rep_level() == wanted.max_rep_level()
                    && c.max_def_level() == wanted.max_def_level()
            };
            let found = schema.columns().iter().position(same);
            *column = found.ok_or_else(|| damaged(format!("no column {}", COLUMNS[i])))?;
        }
        Ok(Self {
            map: Arc::new(map),
            pages,
            header,
            columns,
            parquet,
        })
    }

    /// Releases the pages that were read, which would count as memory of this process.
    fn forget_pages(&self) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: pages of a read-only map of a file are read again when needed. If the system
            // refuses, they stay.
            let _ = unsafe { self.pages.unchecked_advise(advice) };
        }
        #[cfg(not(unix))]
        let _ = &self.pages;
    }

    fn options(&self, path: &Path) -> Result<CalibrationOptions> {
        let CalibrationHeader {
            timesteps,
            bins,
            hessian,
            hessian_groups,
            ref schedule,
            ..
        } = self.header;
        let options = CalibrationOptions {
            timesteps,
            bins,
            hessian,
            hessian_groups,
            ..CalibrationOptions::default()
        };
        let right = schedule.is_empty() || schedule.len() == timesteps as usize;
        match options.check() {
            Ok(()) if right => Ok(options),
            Ok(()) => Err(Error::file(path, "damaged calibration: its schedule")),
            Err(error) => Err(Error::file(path, format!("damaged calibration: {error}"))),
        }
    }

    fn rows(&self, row_group: usize) -> Result<Vec<Row>, ParquetError> {
        let text = |value: ByteArray| value.as_utf8().map(str::to_owned);
        let kinds = self.one::<ByteArrayType>(row_group, 0)?;
        let layers = self.one::<ByteArrayType>(row_group, 1)?;
        let [cols, begins, ends, firsts] =
            [2, 3, 4, 6].map(|column| self.one::<Int32Type>(row_group, column));
        let (cols, begins, ends, firsts) = (cols?, begins?, ends?, firsts?);
        let rows = self.one::<Int64Type>(row_group, 5)?;
        let mut low = self.many::<FloatType>(row_group, 7)?;
        let mut high = self.many::<FloatType>(row_group, 8)?;
        let mut squares = self.many::<DoubleType>(row_group, 9)?;
        let mut histograms = self.many::<Int64Type>(row_group, 10)?;
        let mut hessians = self.many::<DoubleType>(row_group, 11)?;
        let mut found = Vec::with_capacity(rows.len());
        for (i, (kind, layer)) in kinds.into_iter().zip(layers).enumerate() {
            found.push(Row {
                kind: match text(kind)?.as_str() {
                    BIN => BIN,
                    HESSIAN => HESSIAN,
                    _ => continue, // of a later version
                },
                layer: text(layer)?,
                cols: cols[i],
                t_begin: begins[i],
                t_end: ends[i],
                rows: rows[i],
                first: firsts[i],
                low: std::mem::take(&mut low[i]),
                high: std::mem::take(&mut high[i]),
                squares: std::mem::take(&mut squares[i]),
                histogram: std::mem::take(&mut histograms[i]),
                hessian: std::mem::take(&mut hessians[i]),
            });
        }
        Ok(found)
    }

    fn one<T: DataType>(&self, row_group: usize, column: usize) -> Result<Vec<T::T>, ParquetError> {
        Ok(self.column::<T>(row_group, column)?.0)
    }

    fn many<T: DataType>(
        &self,
        row_group: usize,
        column: usize,
    ) -> Result<Vec<Vec<T::T>>, ParquetError> {
        let (values, levels, starts) = self.column::<T>(row_group, column)?;
        let rows = self.parquet.row_group(row_group).num_rows() as usize;
        let mut lists: Vec<Vec<T::T>> = Vec::with_capacity(rows);
        let mut values = values.into_iter();
        for (&level, &start) in levels.iter().zip(&starts) {
            if start == 0 {
                lists.push(Vec::new());
            }
            if level > 0
                && let (Some(list), Some(value)) = (lists.last_mut(), values.next())
            {
                list.push(value);
            }
        }
        lists.resize_with(rows, Vec::new);
        Ok(lists)
    }

    fn column<T: DataType>(
        &self,
        row_group: usize,
        column: usize,
    ) -> Result<read::Levelled<T::T>, ParquetError> {
        let group = self.parquet.row_group(row_group);
        let chunk = group.column(self.columns[column]);
        // Without a dictionary, as in ArrowQuant's files, no value is shorter than a byte.
        let bytes = (self.map.len() as u64).min(LARGEST);
        let limits = match chunk.column_type() {
            Physical::BYTE_ARRAY => PageLimits::texts(group.num_rows() as u64, chunk),
            _ => PageLimits::numbers(bytes),
        };
        let mut read = |out: &mut [u8], at: u64| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let found = self.map.get(at..).and_then(|rest| rest.get(..out.len()));
            out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        pages::walk(chunk, limits, &mut read).map_err(ParquetError::General)?;
        let rows = group.num_rows() as usize;
        let found = read::column::<T>(&self.map, chunk, rows)?;
        // All columns are required: one value per row, except in lists.
        match chunk.column_descr().max_rep_level() == 0 && found.0.len() != rows {
            true => Err(ParquetError::General(format!(
                "{} does not have one value per row",
                COLUMNS[column]
            ))),
            false => Ok(found),
        }
    }
}
