//! The small columns of a file, and the checks that make a tile of a row.

use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::format::{Format, GroupSize, Layout, ScaleDtype, Scheme, UnknownName};
use crate::schema::{Column, RAW, Tile};
use crate::tensor::{Dtype, Shape, check_limits};

/// The small columns of a row group, one value a row.
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
    /// Has an input scale or a rotation.
    pub(super) transformed: Vec<bool>,
}

impl Columns {
    /// Row `row`, checked.
    pub(super) fn tile(&self, path: &Path, row: usize) -> Result<Tile> {
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
