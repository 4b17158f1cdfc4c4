//! Decodes planes to weights, and multiplies with them.

use std::ops::Range;

use super::{Model, Tensor, TileRef, choose_table};
use crate::error::{Error, Result};
use crate::format::{Encoding, Float, Transform};
use crate::kernel::{DecodeRow, KernelTable, MatVec, Planes};
use crate::quantize::transform;
use crate::schema::Tile;
use crate::tensor::{Dtype, TensorInfo};

impl Model {
    /// Decodes rows of a tensor (flattened to a matrix) as `float`, little-endian. Kept f32, f16,
    /// bf16 and f8 tensors are converted.
    ///
    /// # Errors
    /// The dtype of the tensor is never quantized, its planes have a wrong size, or a weight is too
    /// large for `float`.
    ///
    /// # Panics
    /// If there is no such tensor or row, or `out` is not as long as the rows.
    pub fn dequantize_rows(
        &self,
        tensor: usize,
        rows: Range<usize>,
        float: Float,
        out: &mut [u8],
    ) -> Result<()> {
        let Tensor { info, tiles } = &self.tensors[tensor];
        let cols = info.shape.cols();
        let row_bytes = cols * float.size();
        assert!(rows.start <= rows.end && rows.end <= info.shape.rows());
        assert_eq!(out.len(), rows.len() * row_bytes);
        for (index, TileRef { tile, .. }) in tiles.iter().enumerate() {
            let start = tile.row_start.max(rows.start);
            let end = (tile.row_start + tile.row_count).min(rows.end);
            if start >= end {
                continue;
            }
            let planes = self.planes(tensor, index)?;
            let out = &mut out[(start - rows.start) * row_bytes..(end - rows.start) * row_bytes];
            match tile.encoding {
                Some(encoding) => {
                    let mut decode = Decoder::new(tile, encoding)?;
                    for row in start..end {
                        let at = (row - start) * row_bytes;
                        let planes = planes.as_planes().row(encoding, cols, row - tile.row_start);
                        let weights = &mut out[at..at + row_bytes];
                        if !decode.row(planes, float, weights) {
                            return Err(self.not_decodable(&info.name, row));
                        }
                    }
                }
                None => {
                    if info.dtype.float().is_none() {
                        let reason = format!(
                            "{} values are never quantized: read their bytes instead",
                            info.dtype
                        );
                        return Err(Error::tensor(&self.path, &info.name, reason));
                    }
                    let kept = cols * info.dtype.bits() / 8;
                    let values = (start - tile.row_start) * kept..(end - tile.row_start) * kept;
                    if !convert(info.dtype, &planes.codes()[values], float, out) {
                        return Err(self.too_large(info, float));
                    }
                    continue;
                }
            }
            let finite = |i| float.get(out, i).is_finite();
            if float != Float::F32 && !(0..out.len() / float.size()).all(finite) {
                return Err(self.too_large(info, float));
            }
        }
        Ok(())
    }

    /// Transforms vectors of activations, stored one after the other, for products with the
    /// quantized weights of a tensor: divides them by its input scale, and rotates them.
    ///
    /// # Errors
    /// `AQ_ISA` is invalid.
    ///
    /// # Panics
    /// Panics if there is no such tensor, or `x` is not whole vectors.
    pub fn transform_activations(&self, tensor: usize, x: &mut [f32]) -> Result<()> {
        let tensor = &self.tensors[tensor];
        let (transform, cols) = (tensor.transform(), tensor.info.shape.cols());
        transform::apply_to_activations(choose_table()?, transform, cols, x);
        Ok(())
    }

    /// Multiplies a quantized tensor (flattened to rows x cols) with vectors of `cols` values, one
    /// after the other in `x`; `y` has `rows` values for each. If columns were scaled or rotated,
    /// the vectors are transformed, not the weights.
    ///
    /// # Errors
    /// The tensor is not quantized, or its planes have a wrong size.
    ///
    /// # Panics
    /// Panics if there is no such tensor, or `x` and `y` do not have the same number of vectors.
    pub fn matvec(&self, tensor: usize, x: &[f32], y: &mut [f32]) -> Result<()> {
        let table = choose_table()?;
        let Tensor { info, tiles } = &self.tensors[tensor];
        let mut transformed = Vec::new();
        let x = match self.tensors[tensor].transform().is_identity() {
            true => x,
            false => {
                transformed.extend_from_slice(x);
                self.transform_activations(tensor, &mut transformed)?;
                &transformed
            }
        };
        for (number, TileRef { tile, .. }) in tiles.iter().enumerate() {
            let Some(encoding) = tile.encoding else {
                return Err(Error::tensor(&self.path, &info.name, "it is not quantized"));
            };
            let planes = self.planes(tensor, number)?;
            table.matvec(MatVec {
                encoding,
                cols: info.shape.cols(),
                planes: planes.as_planes(),
                rows: tile.row_start..tile.row_start + tile.row_count,
                x,
                y: &mut *y,
                y_rows: info.shape.rows(),
            });
        }
        Ok(())
    }

    pub(super) fn not_decodable(&self, tensor: &str, row: usize) -> Error {
        let reason = format!("row {row} has a scale that decodes to infinity");
        Error::tensor(&self.path, tensor, reason)
    }

    fn too_large(&self, info: &TensorInfo, float: Float) -> Error {
        let reason = format!("a weight is too large for {float}, use f32");
        Error::tensor(&self.path, &info.name, reason)
    }
}

/// Decodes rows of a quantized tile, and undoes the transform of its columns.
pub(super) struct Decoder<'a> {
    table: &'static KernelTable,
    encoding: Encoding,
    transform: Transform<'a>,
    cols: usize,
    /// An intermediate row of f32; empty if there is nothing to undo.
    row: Vec<u8>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tile: &'a Tile, encoding: Encoding) -> Result<Self> {
        let (transform, cols) = (tile.transform(), tile.shape.cols());
        let len = if transform.is_identity() { 0 } else { cols };
        Ok(Self {
            table: choose_table()?,
            encoding,
            transform,
            cols,
            row: vec![0; len * Float::F32.size()],
        })
    }

    /// Writes a row as `float`. False if a weight is not finite before conversion.
    fn row(&mut self, planes: Planes<'_>, float: Float, weights: &mut [u8]) -> bool {
        if !self.transform.is_identity() {
            let finite = self.is_finite(planes);
            self.table.narrow(&self.row, float, weights);
            return finite;
        }
        self.table.decode_row(DecodeRow {
            encoding: self.encoding,
            cols: self.cols,
            planes,
            float,
            weights,
        });
        self.decodable(planes)
    }

    /// Whether all codes of a row decode to finite numbers, and undoing the transform keeps them
    /// finite.
    pub(super) fn is_finite(&mut self, planes: Planes<'_>) -> bool {
        let decodable = self.decodable(planes);
        let (table, encoding, row) = (self.table, self.encoding, &mut self.row);
        decodable
            && (self.transform.is_identity()
                || transform::decode_row(table, encoding, self.transform, self.cols, planes, row))
    }

    /// Whether every code of a row decodes to a finite f32, as in any file that ArrowQuant writes.
    fn decodable(&self, planes: Planes<'_>) -> bool {
        self.table.decodable(self.encoding, self.cols, planes)
    }
}

/// Converts kept values, rounding half to even where the result is narrower. False if a finite
/// value became infinite.
fn convert(from: Dtype, values: &[u8], to: Float, out: &mut [u8]) -> bool {
    if from == to.into() {
        out.copy_from_slice(values);
        return true;
    }
    let mut fits = true;
    for (i, out) in out.chunks_exact_mut(to.size()).enumerate() {
        let value = from.value(values, i);
        match to {
            Float::F32 => out.copy_from_slice(&value.to_le_bytes()),
            Float::F16 => out.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            Float::BF16 => out.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        }
        fits &= to.get(out, 0).is_finite() || !from.is_finite(values, i);
    }
    fits
}
