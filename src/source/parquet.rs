//! Tensors in a Parquet file: in a table with one per row, or kept ones in an ArrowQuant file.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use parquet::data_type::ByteArray;

use super::file::{FileState, SourceFile};
use super::folder::name_of;
use super::table::{Table, Values};
use super::{Source, SourceId, classes};
use crate::error::{Error, Result};
use crate::schema::{RAW, key, read};
use crate::tensor::{Dtype, Shape, TensorInfo, check_limits};

/// The most bytes of decompressed row groups in memory; a single one is always held.
const HELD: u64 = 256 << 20;

/// The most bytes of a metadata value that is preserved; longer ones are ignored.
const MAX_VALUE: usize = 64 << 10;

/// A Parquet file of tensors.
#[derive(Debug)]
pub struct ParquetSource {
    table: Table,
    /// The column with the values.
    column: usize,
    id: SourceId,
    tensors: Vec<TensorInfo>,
    /// Parts of each tensor, in order.
    parts: Vec<Vec<ValuePart>>,
    metadata: BTreeMap<String, String>,
    /// Modality recorded in an ArrowQuant file.
    modality: Option<String>,
    /// Decompressed size of each row group that must be decompressed.
    packed: Vec<Option<u64>>,
    /// The most recently decompressed row groups, newest first.
    unpacked: Mutex<VecDeque<(usize, Vec<ByteArray>)>>,
}

/// Some whole rows of a tensor: a value of the table.
#[derive(Debug)]
struct ValuePart {
    tile: usize,
    row_start: usize,
    row_count: usize,
    /// Offset and number of bytes in the tensor.
    offset: usize,
    bytes: usize,
    place: PartPlace,
}

#[derive(Debug)]
enum PartPlace {
    /// Stored in the file at this position.
    Plain(u64),
    /// Compressed, at this row group and row.
    Packed(usize, usize),
}

impl ParquetSource {
    /// Opens a file that is either
    ///
    /// - a table with one tensor per row, with the columns of [`super::from_arrow`]: `name` text,
    ///   `shape` lists of int64 or int32, `dtype` text, `data` binary; or
    /// - an ArrowQuant file whose tensors were all kept.
    ///
    /// Values are read in place if they are neither compressed nor dictionary-encoded; otherwise a
    /// whole row group is decompressed.
    ///
    /// # Errors
    /// The file cannot be read, is malformed or neither of these, a tensor is quantized, or a row
    /// is not a tensor.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(SourceFile::open(path)?)
    }

    /// Opens a file as [`ParquetSource::open`] does.
    pub(super) fn read(file: SourceFile) -> Result<Self> {
        let path = &file.path().to_owned();
        let table = Table::read(file)?;
        let id = SourceId {
            name: name_of(path),
            bytes: table.file().bytes(),
            header_hash: format!("{:016x}", table.hash()),
        };
        let mut metadata = table.metadata();
        let ours = metadata.contains_key(key::FORMAT_VERSION);
        let modality = metadata.get(key::MODALITY).cloned().filter(|_| ours);
        if ours {
            read::check_version(path, &metadata)?;
            let text = metadata
                .get(key::SOURCE_METADATA)
                .map_or("{}", String::as_str);
            metadata = serde_json::from_str(text).map_err(|error| {
                let reason = format!("{} is damaged: {error}", key::SOURCE_METADATA);
                Error::file(path, reason)
            })?;
        } else {
            metadata.retain(|key, value| key != "ARROW:schema" && value.len() <= MAX_VALUE);
        }
        let column = table.bytes_column(if ours { "codes" } else { "data" })?;
        let mut source = Self {
            packed: vec![None; table.row_groups()],
            table,
            column,
            id,
            tensors: Vec::new(),
            parts: Vec::new(),
            metadata,
            modality,
            unpacked: Mutex::default(),
        };
        let mut by_name = HashMap::new();
        for group in 0..source.table.row_groups() {
            let rows = match ours {
                true => source.read_tiles(group, &mut by_name)?,
                false => source.read_rows(group, &mut by_name)?,
            };
            source.locate(group, &rows)?;
        }
        for index in 0..source.tensors.len() {
            source.check_cover(index)?;
        }
        Ok(source)
    }

    /// Reads the rows of a plain table. Returns the tensor of each, and its number of preceding
    /// parts.
    fn read_rows(
        &mut self,
        group: usize,
        by_name: &mut HashMap<String, usize>,
    ) -> Result<Vec<(usize, usize)>> {
        let table = &self.table;
        let names = table.texts(group, table.bytes_column("name")?)?;
        let shapes = table.lists(group, table.lists_column("shape")?)?;
        let dtypes = table.texts(group, table.bytes_column("dtype")?)?;
        let mut rows = Vec::with_capacity(names.len());
        for ((name, dims), dtype) in names.iter().zip(shapes).zip(&dtypes) {
            let dtype = text(dtype);
            let known = Dtype::from_name(dtype).or(Dtype::from_safetensors(dtype));
            let info = self.info(name, dims, known.ok_or(dtype))?;
            let count = info.shape.rows();
            let row = self.push(info, 0, 0..count, by_name)?;
            if row.1 > 0 {
                let name = &self.tensors[row.0].name;
                return Err(Error::tensor(self.path(), name, "duplicate name"));
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Reads the rows of an ArrowQuant file, as [`Self::read_rows`] does.
    fn read_tiles(
        &mut self,
        group: usize,
        by_name: &mut HashMap<String, usize>,
    ) -> Result<Vec<(usize, usize)>> {
        let table = &self.table;
        let texts = |name: &str| table.texts(group, table.bytes_column(name)?);
        let numbers = |name: &str| table.numbers(group, table.numbers_column(name)?);
        let (names, dtypes, formats) = (texts("name")?, texts("source_dtype")?, texts("format")?);
        let (tiles, starts) = (numbers("tile")?, numbers("row_start")?);
        let counts = numbers("row_count")?;
        let shapes = table.lists(group, table.lists_column("shape")?)?;
        let mut rows = Vec::with_capacity(names.len());
        for (row, dims) in shapes.into_iter().enumerate() {
            let dtype = text(&dtypes[row]);
            let info = self.info(&names[row], dims, Dtype::from_name(dtype).ok_or(dtype))?;
            let refuse = |reason: String| Error::tensor(self.path(), &info.name, reason);
            match text(&formats[row]) {
                RAW => {}
                format => {
                    let reason = format!("it is quantized ({format}): dequantize the file first");
                    return Err(refuse(reason));
                }
            }
            let number = |value: Option<i64>| value.and_then(|value| usize::try_from(value).ok());
            let (tile, start, count) = (tiles[row], starts[row], counts[row]);
            let numbers = number(tile).zip(number(start)).zip(number(count));
            let Some(((tile, start), count)) = numbers else {
                return Err(refuse("its tile or rows are null or negative".to_owned()));
            };
            let Some(end) = start
                .checked_add(count)
                .filter(|&end| end <= info.shape.rows())
            else {
                return Err(refuse(format!(
                    "tile {tile} is not in shape {}",
                    info.shape
                )));
            };
            rows.push(self.push(info, tile, start..end, by_name)?);
        }
        Ok(rows)
    }

    /// Makes a tensor's description from a row; an unknown dtype is given as spelled.
    fn info(
        &self,
        name: &Option<ByteArray>,
        dims: Option<Vec<i64>>,
        dtype: Result<Dtype, &str>,
    ) -> Result<TensorInfo> {
        let name = name.as_ref().and_then(|name| name.as_utf8().ok());
        let name =
            name.ok_or_else(|| Error::file(self.path(), "a row's name is null, or not text"))?;
        let dim_count = dims.as_ref().map_or(0, Vec::len);
        let limits = check_limits(name, dim_count);
        limits.map_err(|reason| Error::file(self.path(), reason))?;
        let refuse = |reason: &str| Error::tensor(self.path(), name, reason);
        let dims = dims.map(|dims| dims.into_iter().map(usize::try_from).collect());
        let Some(Ok(dims)) = dims else {
            return Err(refuse(
                "its shape is null, or has a null or a negative number",
            ));
        };
        let info = TensorInfo {
            name: name.to_owned(),
            dtype: dtype.map_err(|dtype| refuse(&format!("unknown dtype '{dtype:.40}'")))?,
            shape: Shape::new(dims).ok_or_else(|| refuse("its shape is too large"))?,
        };
        match info.bytes() {
            Some(_) => Ok(info),
            None => Err(refuse("it does not fill whole bytes, or is too large")),
        }
    }

    /// Adds a part of a tensor, and with its first part the tensor. The place is set later.
    fn push(
        &mut self,
        info: TensorInfo,
        tile: usize,
        rows: std::ops::Range<usize>,
        by_name: &mut HashMap<String, usize>,
    ) -> Result<(usize, usize)> {
        let row_bits = info.shape.cols() * info.dtype.bits(); // fits, as that of all rows does
        let bits = [rows.start, rows.len()].map(|rows| rows * row_bits);
        if bits.iter().any(|bits| !bits.is_multiple_of(8)) {
            let reason = format!("tile {tile} does not begin and end with a byte");
            return Err(Error::tensor(self.path(), &info.name, reason));
        }
        let part = ValuePart {
            tile,
            row_start: rows.start,
            row_count: rows.len(),
            offset: bits[0] / 8,
            bytes: bits[1] / 8,
            place: PartPlace::Plain(0),
        };
        let index = match by_name.get(&info.name) {
            Some(&index) => index,
            None => {
                by_name.insert(info.name.clone(), self.tensors.len());
                self.tensors.push(info.clone());
                self.parts.push(Vec::new());
                self.tensors.len() - 1
            }
        };
        if self.tensors[index] != info {
            let reason = "its rows disagree on shape or dtype";
            return Err(Error::tensor(self.path(), &info.name, reason));
        }
        self.parts[index].push(part);
        Ok((index, self.parts[index].len() - 1))
    }

    /// Locates the values of a row group with these rows.
    fn locate(&mut self, group: usize, rows: &[(usize, usize)]) -> Result<()> {
        let expected = rows
            .iter()
            .map(|&(tensor, part)| self.parts[tensor][part].bytes as u64);
        let expected = expected.fold(0u64, u64::saturating_add);
        match self.table.locate(group, self.column, expected)? {
            Values::Packed { longest, held } => {
                self.packed[group] = Some(held);
                for (row, &(tensor, part)) in rows.iter().enumerate() {
                    // The actual length is only known after decompression, but memory is reserved
                    // before that.
                    let bytes = self.parts[tensor][part].bytes;
                    if bytes as u64 > longest {
                        let what = format!("its row group decompresses to {longest} bytes");
                        let reason = format!("null or too short: {what}, it alone takes {bytes}");
                        return Err(Error::tensor(
                            self.path(),
                            &self.tensors[tensor].name,
                            reason,
                        ));
                    }
                    self.parts[tensor][part].place = PartPlace::Packed(group, row);
                }
            }
            Values::Plain(places) => {
                for (&(tensor, part), (start, len)) in rows.iter().zip(places) {
                    self.check_length(tensor, self.parts[tensor][part].bytes, len)?;
                    self.parts[tensor][part].place = PartPlace::Plain(start);
                }
            }
        }
        Ok(())
    }

    fn check_length(&self, tensor: usize, expected: usize, found: usize) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        let TensorInfo { name, dtype, shape } = &self.tensors[tensor];
        let reason = format!("{found} bytes, but shape {shape} of {dtype} takes {expected}");
        Err(Error::tensor(self.path(), name, reason))
    }

    /// Checks that parts follow each other and cover the tensor.
    fn check_cover(&mut self, tensor: usize) -> Result<()> {
        let parts = &mut self.parts[tensor];
        parts.sort_by_key(|part| part.tile);
        let mut next = 0;
        for (i, part) in parts.iter().enumerate() {
            if part.tile != i || part.row_start != next {
                next = usize::MAX;
                break;
            }
            next += part.row_count;
        }
        let info = &self.tensors[tensor];
        match next == info.shape.rows() {
            true => Ok(()),
            false => Err(Error::tensor(
                self.path(),
                &info.name,
                "a tile is missing or does not follow the one before it",
            )),
        }
    }

    /// Returns the decompressed size of all row groups that must be decompressed.
    fn packed_bytes(&self) -> u64 {
        let packed = self.packed.iter().flatten();
        packed.fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// Calls `body` with a compressed value.
    fn with_unpacked(
        &self,
        (group, row): (usize, usize),
        tensor: usize,
        body: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let bytes = |group: usize| self.packed[group].unwrap_or(0);
        // Other threads wait: only one may decompress at a time.
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if !unpacked.iter().any(|held| held.0 == group) {
            while !unpacked.is_empty() {
                let held: u64 = unpacked.iter().map(|held| bytes(held.0)).sum();
                if held.saturating_add(bytes(group)) <= HELD {
                    break;
                }
                unpacked.pop_back();
            }
            let values = self.table.unpack(group, self.column)?;
            let values = values.ok_or_else(|| {
                let reason = format!("a value in its row group {group} is null");
                Error::tensor(self.path(), &self.tensors[tensor].name, reason)
            })?;
            unpacked.push_front((group, values));
        }
        let held = unpacked.iter().find(|held| held.0 == group);
        let value = held.and_then(|held| held.1.get(row));
        body(value.map_or(&[], ByteArray::data))
    }
}

/// Returns a text; empty when null or not UTF-8.
fn text(value: &Option<ByteArray>) -> &str {
    let text = value.as_ref().and_then(|value| value.as_utf8().ok());
    text.unwrap_or_default()
}

impl Source for ParquetSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let parts = &self.parts[index];
        let first = parts.partition_point(|part| part.offset + part.bytes <= offset);
        let (mut rest, mut offset) = (out, offset);
        for part in &parts[first..] {
            if rest.is_empty() {
                break;
            }
            let start = offset - part.offset;
            let (now, later) = rest.split_at_mut(rest.len().min(part.bytes - start));
            offset += now.len();
            rest = later;
            match part.place {
                PartPlace::Plain(at) => {
                    let name = &self.tensors[index].name;
                    self.table.file().read(now, at + start as u64, name)?;
                }
                PartPlace::Packed(group, row) => {
                    self.with_unpacked((group, row), index, |value| {
                        self.check_length(index, part.bytes, value.len())?;
                        now.copy_from_slice(&value[start..start + now.len()]);
                        Ok(())
                    })?;
                }
            }
        }
        assert!(rest.is_empty(), "the tensor has no such bytes");
        Ok(())
    }

    fn path_of(&self, _index: usize) -> &Path {
        self.path()
    }

    fn path(&self) -> &Path {
        self.table.file().path()
    }

    fn id(&self) -> SourceId {
        self.id.clone()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn classes(&self) -> Vec<String> {
        let modality = self.modality.as_deref().and_then(classes::modality);
        let source = classes::of_metadata(&self.metadata);
        modality.into_iter().chain(source).collect()
    }

    fn files(&self) -> Vec<FileState> {
        vec![self.table.file().state()]
    }

    fn check_unchanged(&self) -> Result<()> {
        SourceFile::check_unchanged(self.table.file())
    }

    fn held_bytes(&self) -> usize {
        let largest = self.packed.iter().flatten().max().copied().unwrap_or(0);
        let held = self.packed_bytes().min(largest.max(HELD));
        held.try_into().unwrap_or(usize::MAX)
    }

    fn in_turn(&self) -> bool {
        self.packed_bytes() > HELD
    }
}
