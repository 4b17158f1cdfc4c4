//! Opens a quantized file, or a folder of them: views in place, decoding, checksums.

mod arrow;
mod columns;
mod decode;
mod file;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parquet::data_type::ByteArray;

use self::decode::Decoder;
use crate::error::{Error, MEMORY, Result};
use crate::format::{ActivationRange, Rotation, Transform, rows_per_piece};
use crate::kernel::{KernelTable, Planes};
use crate::schema::{self, Manifest, Tile, key};
use crate::tensor::TensorInfo;

/// A quantized file, or a folder of parts, mapped into memory.
///
/// Files must not be modified while they are open: replacing one by renaming another over it is
/// safe, writing to it is not.
///
/// ```
/// use std::path::Path;
/// use arrowquant::{format::Float, model::Model};
///
/// let model = Model::open(Path::new("tests/data/transformed.parquet"))?;
/// let info = &model.tensors()[0].info;
/// let mut row = vec![0; info.shape.cols() * 4];
/// model.dequantize_rows(0, 0..1, Float::F32, &mut row)?;
/// # Ok::<(), arrowquant::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    /// A single file, or the parts of a folder.
    files: Vec<file::TileFile>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
}

/// A tensor of a model.
#[derive(Debug)]
pub struct Tensor {
    /// Name, shape, and dtype in the source.
    pub info: TensorInfo,
    /// Tiles, in order.
    pub tiles: Vec<TileRef>,
}

impl Tensor {
    /// Whether the tensor is quantized, rather than kept.
    pub fn is_quantized(&self) -> bool {
        self.tiles.iter().any(|tile| tile.tile.encoding.is_some())
    }

    /// Returns the transform of its columns before quantization, which all tiles share.
    pub fn transform(&self) -> Transform<'_> {
        let tile = self.tiles.first();
        tile.map_or(Transform::default(), |tile| tile.tile.transform())
    }

    /// Returns static activation parameters, in order of timesteps, which all tiles share.
    pub fn activation(&self) -> &[ActivationRange] {
        let tile = self.tiles.first();
        tile.map_or(&[], |tile| &tile.tile.activation)
    }
}

/// A tile and its place in the file.
#[derive(Debug)]
pub struct TileRef {
    /// The tile's row in the file.
    pub tile: Tile,
    /// Index of the file.
    file: usize,
    place: file::PlanePlace,
}

pub use arrow::ArrowExport;

/// The planes of a tile. Those of an uncompressed file are slices of the map, and keep it mapped;
/// those of a compressed one are decompressed, and live as long as this.
#[derive(Debug, Clone)]
pub struct TilePlanes {
    codes: ByteArray,
    scales: Option<ByteArray>,
    biases: Option<ByteArray>,
}

impl TilePlanes {
    /// Packed codes, or the values of a kept tensor.
    pub fn codes(&self) -> &[u8] {
        self.codes.data()
    }

    /// Packed scales; `None` when kept.
    pub fn scales(&self) -> Option<&[u8]> {
        self.scales.as_ref().map(ByteArray::data)
    }

    /// Packed biases; `None` when kept or symmetric.
    pub fn biases(&self) -> Option<&[u8]> {
        self.biases.as_ref().map(ByteArray::data)
    }

    /// Returns the planes in the form that kernels take.
    pub fn as_planes(&self) -> Planes<'_> {
        Planes {
            codes: self.codes(),
            scales: self.scales().unwrap_or_default(),
            biases: self.biases().unwrap_or_default(),
        }
    }
}

impl Model {
    /// Opens a Parquet file written by ArrowQuant, or a folder of parts with its manifest. Reads
    /// footers and small columns, but not the planes, whose checksums are checked by
    /// [`Model::check_tile`].
    ///
    /// # Errors
    /// A file cannot be read, was not written by ArrowQuant, has a newer version, or its columns
    /// contradict each other; a folder has no manifest, or lacks parts.
    pub fn open(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => Self::open_folder(path),
            false => Self::of(path, vec![file::TileFile::open(path)?], None),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let Some(manifest) = Manifest::read(folder)? else {
            return Err(Error::file(folder, "a folder without a manifest.json"));
        };
        if !manifest.complete {
            let reason = "its parts are not complete: run the same command again to resume, or merge all shares";
            return Err(Error::file(folder, reason));
        }
        let mut files = Vec::with_capacity(manifest.parts.len());
        for part in &manifest.parts {
            let path = folder.join(&part.file);
            let file = file::TileFile::open(&path)?;
            if Some(file.0.map().len() as u64) != part.bytes {
                let reason = "not the part in the manifest: its size differs";
                return Err(Error::file(&path, reason));
            }
            files.push(file);
        }
        Self::of(folder, files, Some(manifest.metadata()))
    }

    /// Opens a model as [`Model::open`] does, from a file in memory.
    ///
    /// # Errors
    /// The errors of [`Model::open`].
    pub fn from_bytes(file: impl AsRef<[u8]> + Send + 'static) -> Result<Self> {
        let path = Path::new(MEMORY);
        let file = file::TileFile::parse(path, Bytes::from_owner(file))?;
        Self::of(path, vec![file], None)
    }

    /// Makes a model of these files; without metadata of a manifest, it has that of the files.
    fn of(
        path: &Path,
        opened: Vec<(file::TileFile, file::Tiles)>,
        metadata: Option<BTreeMap<String, String>>,
    ) -> Result<Self> {
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut by_name = HashMap::new();
        let (files, tiles): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let of_file = |(file, tiles): (usize, file::Tiles)| {
            tiles
                .into_iter()
                .map(move |(tile, place)| (file, tile, place))
        };
        for (file, tile, place) in tiles.into_iter().enumerate().flat_map(of_file) {
            let info = TensorInfo {
                name: tile.name.clone(),
                dtype: tile.source_dtype,
                shape: tile.shape.clone(),
            };
            let index = *by_name.entry(tile.name.clone()).or_insert_with(|| {
                let tiles = Vec::new();
                tensors.push(Tensor {
                    info: info.clone(),
                    tiles,
                });
                tensors.len() - 1
            });
            if tensors[index].info != info {
                let reason = "its tiles disagree on shape or dtype";
                return Err(Error::tensor(path, &tile.name, reason));
            }
            let tile = agree(path, &tensors[index], tile)?;
            tensors[index].tiles.push(TileRef { tile, file, place });
        }
        for tensor in &mut tensors {
            tensor.tiles.sort_by_key(|tile| tile.tile.tile);
            check_cover(path, tensor)?;
        }
        let model = Self {
            path: path.to_owned(),
            metadata: metadata.unwrap_or_else(|| files[0].metadata().clone()),
            files,
            tensors,
            by_name,
        };
        model.check_complete()?;
        Ok(model)
    }

    /// Checks that every tensor of the summary exists.
    fn check_complete(&self) -> Result<()> {
        let Some(text) = self.metadata().get(key::SUMMARY) else {
            return Ok(());
        };
        /// The names only, because the rest may be anything.
        #[derive(serde::Deserialize)]
        struct Summary {
            tensors: BTreeMap<String, serde::de::IgnoredAny>,
        }
        let summary: Summary = serde_json::from_str(text).map_err(|error| {
            Error::file(&self.path, format!("{} is damaged: {error}", key::SUMMARY))
        })?;
        let mut names = summary.tensors.keys();
        match names.find(|name| self.find(name).is_none()) {
            Some(name) => Err(Error::tensor(&self.path, name, "missing from the file")),
            None => Ok(()),
        }
    }

    /// Returns the path used to open it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes of the file, or of all parts.
    pub fn file_bytes(&self) -> usize {
        self.files.iter().map(|file| file.map().len()).sum()
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Returns the index of the tensor called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Footer metadata by key (see [`crate::schema::key`]); for a folder it covers all parts.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the source's metadata, such as that of a safetensors file.
    ///
    /// # Errors
    /// The metadata is damaged.
    pub fn source_metadata(&self) -> Result<BTreeMap<String, String>> {
        match self.metadata().get(key::SOURCE_METADATA) {
            Some(text) => serde_json::from_str(text).map_err(|error| {
                let reason = format!("{} is damaged: {error}", key::SOURCE_METADATA);
                Error::file(&self.path, reason)
            }),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Returns the factor of each column of a tensor before quantization, by which inputs are
    /// divided, as little-endian f16; `None` if columns were not scaled.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn input_scale(&self, tensor: usize) -> Option<&[u8]> {
        self.tensors[tensor].transform().input_scale
    }

    /// Returns the rotation of a tensor's columns, applied after scaling.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn rotation(&self, tensor: usize) -> Option<Rotation> {
        self.tensors[tensor].transform().rotation
    }

    /// Returns static activation parameters of a tensor at a timestep, if the file has any for it.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn activation_params(&self, tensor: usize, timestep: i32) -> Option<ActivationRange> {
        let ranges = self.tensors[tensor].activation();
        let next = ranges.partition_point(|range| range.t_end <= timestep);
        ranges.get(next).copied().filter(|r| r.holds(timestep))
    }

    /// Whether `bytes` are part of a mapped file.
    pub fn is_mapped(&self, bytes: &[u8]) -> bool {
        let bytes = bytes.as_ptr_range();
        self.files.iter().any(|file| {
            let map = file.map().as_ptr_range();
            map.start <= bytes.start && bytes.end <= map.end
        })
    }

    /// Returns the planes of a tile, without copying if the file is uncompressed.
    ///
    /// # Errors
    /// The length of the planes contradicts the columns.
    ///
    /// # Panics
    /// If there is no such tensor or tile.
    pub fn planes(&self, tensor: usize, tile: usize) -> Result<TilePlanes> {
        let TileRef { tile, file, place } = &self.tensors[tensor].tiles[tile];
        let planes = self.files[*file].planes(tile, *place)?;
        let found = [Some(planes.codes()), planes.scales(), planes.biases()];
        let found = found.map(|plane| plane.map_or(0, <[u8]>::len));
        if tile.plane_bytes() != Some(found) {
            let reason = format!("planes of {found:?} bytes do not fit its shape and format");
            return Err(Error::tensor(&self.path, &tile.name, reason));
        }
        Ok(planes)
    }

    /// Checks a tile's checksum over its planes and everything that decoding depends on, and that
    /// its scales decode to finite weights; returns the planes.
    ///
    /// # Errors
    /// The checksum does not match, or a scale is not finite.
    ///
    /// # Panics
    /// If there is no such tensor or tile.
    pub fn check_tile(&self, tensor: usize, tile: usize) -> Result<TilePlanes> {
        self.check_tile_in_steps(tensor, tile, &mut |_| Ok(()))
    }

    /// Checks a tile as [`Model::check_tile`] does. `step` receives the bytes of planes processed,
    /// at most a few MiB at once.
    ///
    /// # Errors
    /// The errors of [`Model::check_tile`], and of `step`, which stops the check.
    ///
    /// # Panics
    /// Panics as [`Model::check_tile`] does.
    pub fn check_tile_in_steps(
        &self,
        tensor: usize,
        tile: usize,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<TilePlanes> {
        let planes = self.planes(tensor, tile)?;
        let tile = &self.tensors[tensor].tiles[tile].tile;
        let parts = [Some(planes.codes()), planes.scales(), planes.biases()];
        let found = schema::checksum_in_steps(tile, parts, &mut *step)?;
        if found != tile.checksum {
            return Err(Error::Checksum {
                path: self.path.clone(),
                tensor: tile.name.clone(),
                tile: tile.tile,
            });
        }
        if let Some(encoding) = tile.encoding {
            let cols = tile.shape.cols();
            let row = |row| planes.as_planes().row(encoding, cols, row);
            let piece = rows_per_piece(cols);
            let mut decode = Decoder::new(tile, encoding)?;
            for start in (0..tile.row_count).step_by(piece) {
                let mut rows = start..tile.row_count.min(start + piece);
                let fails = |&i: &usize| !decode.is_finite(row(i));
                if let Some(row) = rows.find(fails) {
                    return Err(self.not_decodable(&tile.name, tile.row_start + row));
                }
                step(0)?;
            }
        }
        Ok(planes)
    }
}

/// Checks that a tile agrees with the preceding tiles of its tensor, and shares common data with
/// them in memory.
fn agree(path: &Path, tensor: &Tensor, tile: Tile) -> Result<Tile> {
    let Some(TileRef { tile: first, .. }) = tensor.tiles.first() else {
        return Ok(tile);
    };
    if first.transform() != tile.transform() || first.activation != tile.activation {
        let reason = "its tiles disagree on input scale, rotation or activation";
        return Err(Error::tensor(path, &tile.name, reason));
    }
    Ok(Tile {
        input_scale: first.input_scale.clone(),
        activation: first.activation.clone(),
        ..tile
    })
}

/// Returns the kernels in use, or an error about `AQ_ISA`.
pub(crate) fn choose_table() -> Result<&'static KernelTable> {
    KernelTable::choose().map_err(|error| Error::config("AQ_ISA", error.to_string()))
}

/// Checks that tiles follow each other and cover every row once.
fn check_cover(path: &Path, tensor: &Tensor) -> Result<()> {
    let mut next_row = 0;
    for (i, TileRef { tile, .. }) in tensor.tiles.iter().enumerate() {
        if tile.tile as usize != i || tile.row_start != next_row {
            let reason = format!("tile {i} is missing or does not follow the one before it");
            return Err(Error::tensor(path, &tensor.info.name, reason));
        }
        next_row += tile.row_count;
    }
    if next_row != tensor.info.shape.rows() {
        let rows = tensor.info.shape.rows();
        let reason = format!("its tiles hold {next_row} of {rows} rows");
        return Err(Error::tensor(path, &tensor.info.name, reason));
    }
    Ok(())
}
