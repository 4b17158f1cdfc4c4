//! The Parquet V2 file: its columns, metadata keys and checksum, defined once for the sink that
//! writes it and the model that reads it. `docs/format.md` describes it for other readers.

pub mod footer;
mod manifest;
pub mod pages;
pub mod read;
mod thrift;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::schema::types::{SchemaDescriptor, Type};
use xxhash_rust::xxh3::Xxh3;

pub use manifest::{
    Fingerprint, MANIFEST, Manifest, ManifestPart, ManifestSource, PartInfo, part_name,
};

use crate::format::{ActivationRange, Encoding, Rotation, Transform};
use crate::tensor::{Dtype, Shape};

/// The version in the footer. Readers refuse a newer one.
pub const FORMAT_VERSION: u32 = 2;

/// The writer's name and version.
pub const GENERATOR: &str = concat!("arrowquant ", env!("CARGO_PKG_VERSION"));

/// Keys of the footer metadata.
pub mod key {
    /// [`super::FORMAT_VERSION`] in decimal.
    pub const FORMAT_VERSION: &str = "arrowquant.format_version";
    /// text, code, image, audio or unknown.
    pub const MODALITY: &str = "arrowquant.modality";
    /// JSON object of the settings that change values, sorted by key.
    pub const CONFIG: &str = "arrowquant.config";
    /// JSON object: base name, size and header hash of the source.
    pub const SOURCE: &str = "arrowquant.source";
    /// JSON object: the source's own metadata, copied.
    pub const SOURCE_METADATA: &str = "arrowquant.source_metadata";
    /// Program and version that wrote the file.
    pub const GENERATOR: &str = "arrowquant.generator";
    /// JSON object: cosine, SQNR and bits per weight, in total and per tensor.
    pub const SUMMARY: &str = "arrowquant.summary";
    /// JSON object, only in a part of a folder: the number of the part, and what is needed to
    /// combine the parts.
    pub const PART: &str = "arrowquant.part";
}

/// Name in the `format` column of a kept tensor.
pub const RAW: &str = "raw";

/// Name of the format of a kept tensor everywhere else: in reports, messages and callers' languages.
pub const KEPT: &str = "kept";

/// The most ranges of timesteps that a tile may have activation parameters for.
pub const MAX_RANGES: usize = 1 << 16;

/// The most bytes that long work processes between callbacks: with a slow disk less than a tenth of
/// a second.
pub const STEP: usize = 4 << 20;

/// Columns by the path of their leaf, in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the paths say it
pub enum Column {
    Name,
    Tile,
    RowStart,
    RowCount,
    Shape,
    SourceDtype,
    Format,
    Scheme,
    GroupSize,
    ScaleDtype,
    Codes,
    Scales,
    Biases,
    InputScale,
    RotationBlock,
    RotationSeed,
    ActivationBegin,
    ActivationEnd,
    ActivationScale,
    ActivationZeroPoint,
    Checksum,
    Cosine,
    SqnrDb,
    BitsPerWeight,
}

impl Column {
    /// All columns in file order.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Name, "name"),
        (Self::Tile, "tile"),
        (Self::RowStart, "row_start"),
        (Self::RowCount, "row_count"),
        (Self::Shape, "shape.list.element"),
        (Self::SourceDtype, "source_dtype"),
        (Self::Format, "format"),
        (Self::Scheme, "scheme"),
        (Self::GroupSize, "group_size"),
        (Self::ScaleDtype, "scale_dtype"),
        (Self::Codes, "codes"),
        (Self::Scales, "scales"),
        (Self::Biases, "biases"),
        (Self::InputScale, "input_scale"),
        (Self::RotationBlock, "rotation.block"),
        (Self::RotationSeed, "rotation.seed"),
        (Self::ActivationBegin, "activation.list.element.t_begin"),
        (Self::ActivationEnd, "activation.list.element.t_end"),
        (Self::ActivationScale, "activation.list.element.scale"),
        (
            Self::ActivationZeroPoint,
            "activation.list.element.zero_point",
        ),
        (Self::Checksum, "checksum"),
        (Self::Cosine, "cosine"),
        (Self::SqnrDb, "sqnr_db"),
        (Self::BitsPerWeight, "bits_per_weight"),
    ];

    /// Returns the path of the leaf.
    pub fn path(self) -> &'static str {
        let row = Self::ALL.iter().find(|row| row.0 == self);
        row.expect("every column has a path").1
    }
}

/// Builds the Parquet schema.
pub fn parquet_schema() -> SchemaDescriptor {
    const REQUIRED: Repetition = Repetition::REQUIRED;
    const OPTIONAL: Repetition = Repetition::OPTIONAL;
    let element = |repetition, physical| leaf("element", repetition, physical, None);
    let string = string();
    let unsigned = Some(LogicalType::integer(64, false));
    let fields = vec![
        leaf("name", REQUIRED, Physical::BYTE_ARRAY, string.clone()),
        leaf("tile", REQUIRED, Physical::INT32, None),
        leaf("row_start", REQUIRED, Physical::INT64, None),
        leaf("row_count", REQUIRED, Physical::INT64, None),
        list("shape", REQUIRED, element(REQUIRED, Physical::INT64)),
        leaf(
            "source_dtype",
            REQUIRED,
            Physical::BYTE_ARRAY,
            string.clone(),
        ),
        leaf("format", REQUIRED, Physical::BYTE_ARRAY, string.clone()),
        leaf("scheme", OPTIONAL, Physical::BYTE_ARRAY, string.clone()),
        leaf("group_size", OPTIONAL, Physical::INT32, None),
        leaf("scale_dtype", OPTIONAL, Physical::BYTE_ARRAY, string),
        leaf("codes", REQUIRED, Physical::BYTE_ARRAY, None),
        leaf("scales", OPTIONAL, Physical::BYTE_ARRAY, None),
        leaf("biases", OPTIONAL, Physical::BYTE_ARRAY, None),
        leaf("input_scale", OPTIONAL, Physical::BYTE_ARRAY, None),
        group(
            "rotation",
            OPTIONAL,
            vec![
                leaf("block", REQUIRED, Physical::INT32, None),
                leaf("seed", REQUIRED, Physical::INT64, unsigned.clone()),
            ],
        ),
        list(
            "activation",
            OPTIONAL,
            group(
                "element",
                REQUIRED,
                vec![
                    leaf("t_begin", REQUIRED, Physical::INT32, None),
                    leaf("t_end", REQUIRED, Physical::INT32, None),
                    leaf("scale", REQUIRED, Physical::FLOAT, None),
                    leaf("zero_point", REQUIRED, Physical::FLOAT, None),
                ],
            ),
        ),
        leaf("checksum", REQUIRED, Physical::INT64, unsigned),
        leaf("cosine", OPTIONAL, Physical::FLOAT, None),
        leaf("sqnr_db", OPTIONAL, Physical::FLOAT, None),
        leaf("bits_per_weight", OPTIONAL, Physical::FLOAT, None),
    ];
    let root = Type::group_type_builder("arrowquant")
        .with_fields(fields)
        .build()
        .expect("a valid schema");
    SchemaDescriptor::new(Arc::new(root))
}

pub(crate) fn leaf(
    name: &str,
    repetition: Repetition,
    physical: Physical,
    logical: Option<LogicalType>,
) -> Arc<Type> {
    let builder = Type::primitive_type_builder(name, physical)
        .with_repetition(repetition)
        .with_logical_type(logical);
    Arc::new(builder.build().expect("a valid leaf"))
}

pub(crate) fn group(name: &str, repetition: Repetition, fields: Vec<Arc<Type>>) -> Arc<Type> {
    let builder = Type::group_type_builder(name)
        .with_repetition(repetition)
        .with_fields(fields);
    Arc::new(builder.build().expect("a valid group"))
}

/// Returns the logical type of text.
pub(crate) fn string() -> Option<LogicalType> {
    Some(LogicalType::String)
}

/// Builds a list in the three levels of the Parquet specification.
pub(crate) fn list(name: &str, repetition: Repetition, element: Arc<Type>) -> Arc<Type> {
    let builder = Type::group_type_builder(name)
        .with_repetition(repetition)
        .with_converted_type(ConvertedType::LIST)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![group("list", Repetition::REPEATED, vec![element])]);
    Arc::new(builder.build().expect("a valid list"))
}

/// A row of the file, without its planes: some whole rows of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// Tensor name.
    pub name: String,
    /// Number of this tile in its tensor, from 0.
    pub tile: u32,
    /// First row of the matrix in this tile.
    pub row_start: usize,
    /// Rows of the matrix in this tile.
    pub row_count: usize,
    /// Shape of the whole tensor.
    pub shape: Shape,
    /// Element type in the source.
    pub source_dtype: Dtype,
    /// Encoding of the quantized weights, or `None` when kept as `source_dtype`.
    pub encoding: Option<Encoding>,
    /// Factor of each column before quantization, as in [`Transform::input_scale`]; the same for
    /// every tile of a tensor. Only when quantized.
    pub input_scale: Option<Bytes>,
    /// Rotation of the columns before quantization; the same for every tile of a tensor. Only when
    /// quantized.
    pub rotation: Option<Rotation>,
    /// Static activation parameters, in order of timesteps and without overlap; the same for every
    /// tile of a tensor.
    pub activation: Arc<[ActivationRange]>,
    /// See [`checksum`].
    pub checksum: u64,
    /// Measured cosine; `None` when kept.
    pub cosine: Option<f32>,
    /// Measured SQNR; `None` when kept or without error.
    pub sqnr_db: Option<f32>,
    /// Bits per weight, including scales and biases; `None` without weights.
    pub bits_per_weight: Option<f32>,
}

impl Tile {
    /// Returns the transform that decoding must undo.
    pub fn transform(&self) -> Transform<'_> {
        Transform {
            input_scale: self.input_scale.as_deref(),
            rotation: self.rotation,
        }
    }

    /// Returns the bytes of the planes.
    pub fn bytes(&self) -> usize {
        let planes = self.plane_bytes().unwrap_or_default();
        planes.into_iter().fold(0, usize::saturating_add)
    }

    /// Returns the bytes of the planes and the input scales.
    pub fn stored_bytes(&self) -> usize {
        let scales = self.input_scale.as_ref().map_or(0, Bytes::len);
        self.bytes().saturating_add(scales)
    }

    /// Returns the bytes that the codes, scales and biases of this tile must have, or `None` if a
    /// kept tensor's rows do not fill whole bytes or a size overflows.
    pub fn plane_bytes(&self) -> Option<[usize; 3]> {
        let cols = self.shape.cols();
        match self.encoding {
            Some(encoding) => {
                let [codes, scales, biases] = encoding.plane_bytes(cols);
                let times = |row: usize| self.row_count.checked_mul(row);
                Some([times(codes)?, times(scales)?, times(biases)?])
            }
            None => {
                let weights = self.row_count.checked_mul(cols)?;
                let bits = weights.checked_mul(self.source_dtype.bits())?;
                bits.is_multiple_of(8).then_some([bits / 8, 0, 0])
            }
        }
    }
}

/// Computes XXH3-64 over everything that decoding a tile depends on. Each field is preceded by its
/// length in bytes as u64 (an absent field is only `u64::MAX`), and all numbers are little-endian:
/// name, tile u32, row start u64, row count u64, shape (u64 each), source dtype, format, scheme,
/// group size u32, scale dtype, rotation (block u32, seed u64), activation (begin and end i32,
/// scale and zero point f32, of each range), codes, scales, biases, input scale.
pub fn checksum(tile: &Tile, codes: &[u8], scales: Option<&[u8]>, biases: Option<&[u8]>) -> u64 {
    let planes = [Some(codes), scales, biases];
    let Ok(sum) = checksum_in_steps(tile, planes, |_| Ok::<(), Infallible>(()));
    sum
}

/// Computes [`checksum`] of codes, scales and biases in steps. `step` receives the number of bytes
/// processed, at most [`STEP`] at once.
///
/// # Errors
/// Returns the error of `step`, which stops the computation.
pub fn checksum_in_steps<E>(
    tile: &Tile,
    planes: [Option<&[u8]>; 3],
    mut step: impl FnMut(usize) -> Result<(), E>,
) -> Result<u64, E> {
    let mut checksum = Checksum::new(tile);
    for plane in planes {
        checksum.plane(plane.map(<[u8]>::len));
        for part in plane.unwrap_or_default().chunks(STEP) {
            checksum.bytes(part);
            step(part.len())?;
        }
    }
    Ok(checksum.finish())
}

/// A [`checksum`] of planes that arrive in parts.
pub struct Checksum {
    sum: Xxh3,
    /// Hashed after the planes.
    input_scale: Option<Bytes>,
}

impl Checksum {
    /// Hashes the fields before the planes.
    pub fn new(tile: &Tile) -> Self {
        let dims = tile.shape.dims().iter();
        let shape: Vec<u8> = dims.flat_map(|&dim| (dim as u64).to_le_bytes()).collect();
        let encoding = tile.encoding;
        let group_size = encoding.and_then(Encoding::group_size);
        let group_size = group_size.map(|size| u32::from(size.get()).to_le_bytes());
        let scheme = encoding.and_then(Encoding::scheme);
        let scale_dtype = encoding.and_then(Encoding::scale_dtype);

        let rotation = tile.rotation.map(rotation_bytes);
        let activation = (!tile.activation.is_empty()).then(|| activation_bytes(&tile.activation));
        let mut checksum = Self {
            sum: Xxh3::new(),
            input_scale: tile.input_scale.clone(),
        };
        let mut field = |bytes: Option<&[u8]>| {
            checksum.plane(bytes.map(<[u8]>::len));
            checksum.bytes(bytes.unwrap_or_default());
        };
        field(Some(tile.name.as_bytes()));
        field(Some(&tile.tile.to_le_bytes()));
        field(Some(&(tile.row_start as u64).to_le_bytes()));
        field(Some(&(tile.row_count as u64).to_le_bytes()));
        field(Some(&shape));
        field(Some(tile.source_dtype.name().as_bytes()));
        field(Some(encoding.map_or(RAW, Encoding::name).as_bytes()));
        field(scheme.map(|scheme| scheme.name().as_bytes()));
        field(group_size.as_ref().map(|g| g.as_slice()));
        field(scale_dtype.map(|dtype| dtype.name().as_bytes()));
        field(rotation.as_ref().map(|r| r.as_slice()));
        field(activation.as_deref());
        checksum
    }

    /// Begins the next plane, of `len` bytes; `None` if the tile does not have it. The order is
    /// codes, scales, biases.
    pub fn plane(&mut self, len: Option<usize>) {
        let len = len.map_or(u64::MAX, |len| len as u64);
        self.sum.update(&len.to_le_bytes());
    }

    /// Hashes the next bytes of the plane.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.sum.update(bytes);
    }

    /// Returns the checksum, after all planes.
    pub fn finish(mut self) -> u64 {
        let input_scale = self.input_scale.take();
        self.plane(input_scale.as_ref().map(Bytes::len));
        self.bytes(&input_scale.unwrap_or_default());
        self.sum.digest()
    }
}

fn rotation_bytes(rotation: Rotation) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&rotation.block.to_le_bytes());
    bytes[4..].copy_from_slice(&rotation.seed.to_le_bytes());
    bytes
}

fn activation_bytes(ranges: &[ActivationRange]) -> Vec<u8> {
    let bytes = |range: &ActivationRange| {
        [
            range.t_begin.to_le_bytes(),
            range.t_end.to_le_bytes(),
            range.scale.to_le_bytes(),
            range.zero_point.to_le_bytes(),
        ]
    };
    let fields: Vec<_> = ranges.iter().map(bytes).collect();
    fields.as_flattened().as_flattened().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_the_leaves_of_the_schema() {
        let schema = parquet_schema();
        let leaves: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let paths: Vec<&str> = Column::ALL.iter().map(|row| row.1).collect();
        assert_eq!(leaves, paths);
        for (i, row) in Column::ALL.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
        }
    }
}
