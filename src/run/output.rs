//! Errors of a layer's output, `|X W^T - X Q^T|^2 / |X W^T|^2`, from what a calibration knows of its
//! inputs: with `H = X^T X` the squared output of weights A is the sum of `a H a^T` over its rows,
//! or the dot product of H and `A^T A`, which many Hessians can share.

use std::ops::Range;

use super::pool::Pulse;
use super::tile::Work;
use crate::calibrate::{Calibration, HESSIAN_BLOCK, add_products, packed_len};
use crate::error::Result;
use crate::format::Float;
use crate::kernel::{DecodeRow, Planes};
use crate::schema::Tile;

/// Rows of weights that are multiplied at once.
const CHUNK: usize = 128;

/// Squared outputs by group of timesteps: of the weights, of the quantized ones, of their difference.
pub(super) type OutputSums = [Vec<f64>; 3];

/// Rows of weights as f32, `N` of each.
struct Chunk<const N: usize>([Vec<f32>; N]);

/// Bytes of memory that measuring takes, on each thread.
pub(super) fn bytes(cols: usize) -> usize {
    let block = HESSIAN_BLOCK.min(cols);
    let chunk = 3 * CHUNK * cols * 4;
    chunk.saturating_add(block.saturating_mul(cols).saturating_mul(4 + 3 * 8))
}

impl Work<'_> {
    /// Squared outputs of a tensor's weights, by group of timesteps.
    pub(super) fn forms_of_weights(&self, tensor: usize) -> Result<[Vec<f64>; 1]> {
        let rows = self.source.tensors()[tensor].shape.rows();
        self.forms(tensor, 0..rows, &|| {}, |row, Chunk([weights]), _| {
            self.read_rows(tensor, row, weights)
        })
    }

    /// Squared outputs of a tile and of its errors.
    pub(super) fn forms_of_errors(
        &self,
        tensor: usize,
        tile: &Tile,
        planes: Planes<'_>,
        pulse: Pulse<'_>,
    ) -> Result<Option<OutputSums>> {
        let Some(layout) = tile.layout else {
            return Ok(None);
        };
        let cols = tile.shape.cols();
        let rows = tile.row_start..tile.row_start + tile.row_count;
        let fill =
            |row: usize, Chunk([weights, decoded, error]): &mut Chunk<3>, bytes: &mut Vec<u8>| {
                self.read_rows(tensor, row, weights)?;
                bytes.resize(cols * 4, 0);
                for (i, decoded) in decoded.chunks_exact_mut(cols).enumerate() {
                    self.table.decode_row(DecodeRow {
                        layout,
                        cols,
                        planes: planes.row(layout, cols, row + i - tile.row_start),
                        float: Float::F32,
                        weights: bytes,
                    });
                    self.table.widen(Float::F32, bytes, decoded);
                }
                for ((error, w), q) in error.iter_mut().zip(&*weights).zip(&*decoded) {
                    *error = w - q;
                }
                Ok(())
            };
        self.forms(tensor, rows, pulse, fill).map(Some)
    }

    fn read_rows(&self, tensor: usize, row: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.source.tensors()[tensor].shape.cols();
        self.with_rows(tensor, row, out.len() / cols, |matrix| {
            self.table.widen(matrix.float, matrix.weights, out);
        })
    }

    /// The sums of `a H a^T` over some rows, for `N` matrices and each group of timesteps.
    fn forms<const N: usize>(
        &self,
        tensor: usize,
        rows: Range<usize>,
        pulse: Pulse<'_>,
        fill: impl Fn(usize, &mut Chunk<N>, &mut Vec<u8>) -> Result<()> + Sync,
    ) -> Result<[Vec<f64>; N]> {
        let info = &self.source.tensors()[tensor];
        let (layer, cols) = (&info.name, info.shape.cols());
        let Some(calibrator) = self.calibrator else {
            return Ok(std::array::from_fn(|_| Vec::new()));
        };
        let calibration = &calibrator.calibration;
        let squares = calibration.squares(layer);
        // With the squares of channels alone, channels are taken to have nothing in common.
        let whole = calibration.has_hessian(layer);
        let step = if whole { HESSIAN_BLOCK } else { cols.max(1) };
        let mut found: Vec<_> = (0..cols).step_by(step).map(|first| (first, None)).collect();
        let jobs: Vec<_> = found.iter_mut().collect();
        self.pool.each(jobs, pulse, |(first, found)| {
            let block = *first..cols.min(*first + step);
            let forms = match whole {
                true => self.hessian_forms(calibration, layer, &rows, block, cols, &fill),
                false => self.diagonal_forms(&squares, &rows, cols, &fill),
            };
            *found = Some(forms);
        });
        let mut total = std::array::from_fn(|_| vec![0.0; squares.len()]);
        for (_, forms) in found {
            let forms: [Vec<f64>; N] = forms.unwrap_or(Err(crate::error::Error::Cancelled))?;
            for (total, forms) in total.iter_mut().zip(forms) {
                total.iter_mut().zip(forms).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(total)
    }

    /// What some rows of the Hessians contribute.
    fn hessian_forms<const N: usize>(
        &self,
        calibration: &Calibration,
        layer: &str,
        rows: &Range<usize>,
        block: Range<usize>,
        cols: usize,
        fill: impl Fn(usize, &mut Chunk<N>, &mut Vec<u8>) -> Result<()>,
    ) -> Result<[Vec<f64>; N]> {
        let len = packed_len(block.end) - packed_len(block.start);
        let mut products: [Vec<f64>; N] = std::array::from_fn(|_| vec![0.0; len]);
        let mut scratch = Vec::new();
        self.each_chunk(rows, cols, fill, |Chunk(matrices)| {
            for (matrix, products) in matrices.iter().zip(&mut products) {
                add_products(
                    matrix,
                    cols,
                    block.start,
                    block.len(),
                    products,
                    &mut scratch,
                );
            }
        })?;
        let groups = calibration.options().hessian_groups as usize;
        let mut forms = std::array::from_fn(|_| vec![0.0; groups]);
        let read = calibration.hessian_block(layer, block.start, |group, sums| {
            for (products, forms) in products.iter().zip(&mut forms) {
                forms[group] = dot_of_triangles(sums, products, block.start);
            }
        });
        read.map_err(|error| self.cannot_read_calibration(error))?;
        Ok(forms)
    }

    fn diagonal_forms<const N: usize>(
        &self,
        squares: &[Vec<f64>],
        rows: &Range<usize>,
        cols: usize,
        fill: impl Fn(usize, &mut Chunk<N>, &mut Vec<u8>) -> Result<()>,
    ) -> Result<[Vec<f64>; N]> {
        let mut sums: [Vec<f64>; N] = std::array::from_fn(|_| vec![0.0; cols]);
        self.each_chunk(rows, cols, fill, |Chunk(matrices)| {
            for (matrix, sums) in matrices.iter().zip(&mut sums) {
                for row in matrix.chunks_exact(cols) {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += f64::from(x) * f64::from(x);
                    }
                }
            }
        })?;
        let form = |sums: &Vec<f64>| {
            let dot = |squares: &Vec<f64>| squares.iter().zip(sums).map(|(h, a)| h * a).sum();
            squares.iter().map(dot).collect()
        };
        Ok(sums.each_ref().map(form))
    }

    fn each_chunk<const N: usize>(
        &self,
        rows: &Range<usize>,
        cols: usize,
        fill: impl Fn(usize, &mut Chunk<N>, &mut Vec<u8>) -> Result<()>,
        mut body: impl FnMut(&Chunk<N>),
    ) -> Result<()> {
        let mut chunk = Chunk(std::array::from_fn(|_| Vec::new()));
        let mut bytes = Vec::new();
        for row in rows.clone().step_by(CHUNK) {
            if self.pool.stopped() {
                return Err(crate::error::Error::Cancelled);
            }
            let count = CHUNK.min(rows.end - row);
            chunk
                .0
                .iter_mut()
                .for_each(|matrix| matrix.resize(count * cols, 0.0));
            fill(row, &mut chunk, &mut bytes)?;
            body(&chunk);
        }
        Ok(())
    }
}

/// The dot product of two symmetric matrices, as far as some rows of their lower triangles and
/// their mirror images go.
fn dot_of_triangles(a: &[f64], b: &[f64], first: usize) -> f64 {
    let (mut sum, mut at, mut row) = (0.0, 0, first);
    while at < a.len() {
        let end = at + row;
        let off: f64 = a[at..end].iter().zip(&b[at..end]).map(|(a, b)| a * b).sum();
        sum += 2.0 * off + a[end] * b[end];
        (at, row) = (end + 1, row + 1);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triangles_stand_for_whole_matrices() {
        // Rows 1 and 2 of [[1, 2, 4], [2, 3, 5], [4, 5, 6]] with themselves: what is left of the
        // sum of all squares without the first diagonal number.
        let rows = [2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(
            dot_of_triangles(&rows, &rows, 1),
            2.0 * (4.0 + 16.0 + 25.0) + 9.0 + 36.0
        );
        assert_eq!(dot_of_triangles(&[7.0], &[2.0], 0), 14.0);
    }
}
