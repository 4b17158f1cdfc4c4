//! The small columns of a file, and the checks that turn a row into a tile.

use std::path::Path;
use std::str::FromStr;

use bytes::Bytes;
use parquet::data_type::ByteArray;

use crate::error::{Error, Result};
use crate::format::{
    ActivationRange, Choice, Encoding, Format, GroupSize, Rotation, ScaleDtype, Scheme, UnknownName,
};
use crate::schema::{Column, MAX_RANGES, RAW, Tile};
use crate::tensor::{Dtype, Shape, check_limits};

/// The small columns of a row group, one value per row.
pub(super) struct Columns {
    pub(super) names: Vec<Option<String>>,
    pub(super) tiles: Vec<Option<i32>>,
    pub(super) row_starts: Vec<Option<i64>>,
    pub(super) row_counts: Vec<Option<i64>>,
    pub(super) shapes: Vec<Vec<i64>>,
    pub(super) source_dtypes: Vec<Option<String>>,
    pub(super) formats: Vec<Option<String>>,
    pub(super) schemes: Vec<Option<String>>,
    pub(super) group_sizes: Vec<Option<i32>>,
    pub(super) scale_dtypes: Vec<Option<String>>,
    pub(super) checksums: Vec<Option<i64>>,
    pub(super) cosines: Vec<Option<f32>>,
    pub(super) sqnrs: Vec<Option<f32>>,
    pub(super) bits: Vec<Option<f32>>,
    pub(super) input_scales: Vec<Option<ByteArray>>,
    pub(super) rotation_blocks: Vec<Option<i32>>,
    pub(super) rotation_seeds: Vec<Option<i64>>,
    pub(super) activation: Activation,
}

/// The lists of activation parameters, one per row.
pub(super) struct Activation {
    pub(super) begins: Vec<Vec<i32>>,
    pub(super) ends: Vec<Vec<i32>>,
    pub(super) scales: Vec<Vec<f32>>,
    pub(super) zero_points: Vec<Vec<f32>>,
}

impl Columns {
    /// Makes the tile of a row, after checks.
    pub(super) fn tile(&self, path: &Path, row: usize) -> Result<Tile> {
        let name = self.names[row].clone().unwrap_or_default();
        let refuse = |reason: String| Error::tensor(path, &name, reason);
        let number = |value: Option<i64>, column: Column| {
            value
                .and_then(|value| usize::try_from(value).ok())
                .ok_or_else(|| refuse(format!("{} is null or negative", column.path())))
        };
        check_limits(&name, self.shapes[row].len()).map_err(refuse)?;
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
        let encoding = match self.formats[row].as_deref() {
            Some(RAW) => None,
            _ => Some(self.encoding(row).map_err(refuse)?),
        };
        if encoding.is_some() && source_dtype.float().is_none() {
            return Err(refuse(format!("{source_dtype} cannot have been quantized")));
        }
        let tile = Tile {
            tile: tile as u32,
            row_start,
            row_count,
            shape,
            source_dtype,
            encoding,
            input_scale: self.input_scale(row),
            rotation: self.rotation(row).map_err(refuse)?,
            activation: self.activation.of(row).map_err(refuse)?.into(),
            checksum: self.checksums[row].unwrap_or_default() as u64,
            cosine: self.cosines[row],
            sqnr_db: self.sqnrs[row],
            bits_per_weight: self.bits[row],
            name: name.clone(),
        };
        check_transform(&tile).map_err(refuse)?;
        match tile.plane_bytes() {
            Some(_) => Ok(tile),
            None => Err(refuse("its planes do not fill whole bytes".into())),
        }
    }

    /// Returns the input scale, unchecked.
    fn input_scale(&self, row: usize) -> Option<Bytes> {
        let scale = self.input_scales[row].as_ref();
        scale.map(|scale| Bytes::copy_from_slice(scale.data()))
    }

    fn rotation(&self, row: usize) -> Result<Option<Rotation>, String> {
        match (self.rotation_blocks[row], self.rotation_seeds[row]) {
            (None, None) => Ok(None),
            (Some(block), Some(seed)) => Ok(Some(Rotation {
                block: u32::try_from(block).unwrap_or(0), // refused later
                seed: seed as u64,
            })),
            _ => Err("its rotation has no block or no seed".to_owned()),
        }
    }

    fn encoding(&self, row: usize) -> Result<Encoding, String> {
        let format = parse::<Format>(&self.formats[row])?;
        if !format.spec().has_choices {
            return Ok(format.encoding(Choice::DEFAULT));
        }
        let group_size = self.group_sizes[row].and_then(|size| u64::try_from(size).ok());
        Ok(format.encoding(Choice {
            scheme: parse::<Scheme>(&self.schemes[row])?,
            group_size: group_size
                .and_then(GroupSize::new)
                .ok_or("its group size is not allowed")?,
            scale_dtype: parse::<ScaleDtype>(&self.scale_dtypes[row])?,
        }))
    }
}

impl Activation {
    /// Returns the ranges of a row: none if the list is null or empty.
    fn of(&self, row: usize) -> Result<Vec<ActivationRange>, String> {
        let (begins, ends) = (&self.begins[row], &self.ends[row]);
        let (scales, zero_points) = (&self.scales[row], &self.zero_points[row]);
        let count = begins.len();
        let lens = [ends.len(), scales.len(), zero_points.len()];
        if lens != [count; 3] || count > MAX_RANGES {
            return Err("its activation parameters are damaged, or too many".to_owned());
        }
        let ranges = (0..count).map(|i| ActivationRange {
            t_begin: begins[i],
            t_end: ends[i],
            scale: scales[i],
            zero_point: zero_points[i],
        });
        let ranges: Vec<_> = ranges.collect();
        if let Some(bad) = ranges.iter().find(|range| !range.is_valid()) {
            return Err(format!("it has activation parameters {bad:?}"));
        }
        match ranges.is_sorted_by(|a, b| a.t_end <= b.t_begin) {
            true => Ok(ranges),
            false => Err("its activation parameters are not in order of timesteps".to_owned()),
        }
    }
}

/// Checks that the transform can be undone.
fn check_transform(tile: &Tile) -> Result<(), String> {
    let (transform, cols) = (tile.transform(), tile.shape.cols());
    match tile.encoding {
        None if !transform.is_identity() => {
            Err("it is kept, but has an input scale or a rotation".to_owned())
        }
        _ if transform.rotation.is_some_and(|r| !r.fits(cols)) => {
            let block = tile.rotation.map_or(0, |rotation| rotation.block);
            Err(format!("{cols} columns cannot be rotated by {block}"))
        }
        _ if !transform.fits(cols) => Err(format!(
            "its input scale is not a finite f16 above 0 for each of {cols} columns"
        )),
        _ => Ok(()),
    }
}

fn parse<T: FromStr<Err = UnknownName>>(text: &Option<String>) -> Result<T, String> {
    let text = text.as_deref().unwrap_or("null");
    text.parse()
        .map_err(|error: UnknownName| format!("'{text}': {error}"))
}
