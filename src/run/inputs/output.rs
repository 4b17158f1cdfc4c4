//! Errors of a layer's output, `|X W^T - X Q^T|^2 / |X W^T|^2`, from what a calibration knows of its
//! inputs: with `H = X^T X` the squared output of weights A is the sum of `a H a^T` over its rows,
//! or the dot product of H and `A^T A`, which many Hessians can share.

use std::ops::Range;

use super::Inputs;
use crate::calibrate::{Calibration, HESSIAN_BLOCK, add_products, packed_len};
use crate::error::{Error, Result};
use crate::format::Float;
use crate::kernel::Planes;
use crate::quantize::transform::decode_row;
use crate::run::pool::Pulse;
use crate::schema::Tile;

/// Rows of weights that are multiplied at once.
const CHUNK: usize = 128;

/// Squared outputs by group of timesteps: of the weights, of the quantized ones, of their difference.
pub(crate) type OutputSums = [Vec<f64>; 3];

/// Some rows of several matrices, as f32.
type Chunk = Vec<Vec<f32>>;

/// Reads the codes, scales and biases of some rows of a tile: first row, rows, and where to.
pub(crate) type PlaneRows<'a> = &'a (dyn Fn(usize, usize, &mut [Vec<u8>; 3]) -> Result<()> + Sync);

/// What filling a chunk takes beside it.
#[derive(Default)]
struct Scratch {
    row: Vec<u8>,
    planes: [Vec<u8>; 3],
}

/// Bytes of memory that measuring takes, on each thread.
pub(crate) fn bytes(cols: usize) -> usize {
    let block = HESSIAN_BLOCK.min(cols);
    let chunk = 3 * CHUNK * cols * 4;
    chunk.saturating_add(block.saturating_mul(cols).saturating_mul(4 + 3 * 8))
}

impl Inputs<'_> {
    /// Squared outputs of a tensor's weights, by group of timesteps.
    pub(crate) fn forms_of_weights(&self, tensor: usize) -> Result<Vec<f64>> {
        let rows = self.context.source.tensors()[tensor].shape.rows();
        let fill =
            |row, chunk: &mut Chunk, _: &mut Scratch| self.read_rows(tensor, row, &mut chunk[0]);
        let mut forms = self.forms(tensor, 0..rows, 1, &|| {}, fill)?;
        Ok(forms.pop().unwrap_or_default())
    }

    /// Squared outputs of some matrices with the columns of a tensor, by matrix and group of
    /// timesteps.
    pub(crate) fn forms_of_matrices(
        &self,
        tensor: usize,
        matrices: &[Vec<f32>],
    ) -> Result<Vec<Vec<f64>>> {
        let cols = self.context.source.tensors()[tensor].shape.cols();
        let rows = matrices.first().map_or(0, |matrix| matrix.len() / cols);
        let mut forms = Vec::with_capacity(matrices.len());
        // No more at once than for errors, as each takes a block of products.
        for some in matrices.chunks(3) {
            let fill = |row: usize, chunk: &mut Chunk, _: &mut Scratch| {
                for (out, matrix) in chunk.iter_mut().zip(some) {
                    let len = out.len();
                    out.copy_from_slice(&matrix[row * cols..][..len]);
                }
                Ok(())
            };
            forms.extend(self.forms(tensor, 0..rows, some.len(), &|| {}, fill)?);
        }
        Ok(forms)
    }

    /// Squared outputs of a tile, of what it decodes to, and of the difference.
    pub(crate) fn forms_of_errors(
        &self,
        tensor: usize,
        tile: &Tile,
        planes_of: PlaneRows<'_>,
        pulse: Pulse<'_>,
    ) -> Result<Option<OutputSums>> {
        let Some(encoding) = tile.encoding else {
            return Ok(None);
        };
        let cols = tile.shape.cols();
        let rows = tile.row_start..tile.row_start + tile.row_count;
        let fill = |row: usize, chunk: &mut Chunk, scratch: &mut Scratch| {
            let [weights, decoded, error] = &mut chunk[..] else {
                return Ok(());
            };
            self.read_rows(tensor, row, weights)?;
            let Scratch { row: bytes, planes } = scratch;
            planes_of(row - tile.row_start, weights.len() / cols, planes)?;
            let [codes, scales, biases] = planes.each_ref().map(|plane| &plane[..]);
            let planes = Planes {
                codes,
                scales,
                biases,
            };
            bytes.resize(cols * 4, 0);
            for (i, decoded) in decoded.chunks_exact_mut(cols).enumerate() {
                let (table, planes) = (self.context.table, planes.row(encoding, cols, i));
                decode_row(table, encoding, tile.transform(), cols, planes, bytes);
                table.widen(Float::F32, bytes, decoded);
            }
            for ((error, w), q) in error.iter_mut().zip(&*weights).zip(&*decoded) {
                *error = w - q;
            }
            Ok(())
        };
        let forms = self.forms(tensor, rows, 3, pulse, fill)?;
        Ok(forms.try_into().ok())
    }

    fn read_rows(&self, tensor: usize, row: usize, out: &mut [f32]) -> Result<()> {
        let cols = self.context.source.tensors()[tensor].shape.cols();
        self.context
            .with_rows(tensor, row, out.len() / cols, |matrix| {
                self.context.table.widen(matrix.float, matrix.weights, out);
            })
    }

    /// The sums of `a H a^T` over some rows, for `count` matrices and each group of timesteps.
    fn forms(
        &self,
        tensor: usize,
        rows: Range<usize>,
        count: usize,
        pulse: Pulse<'_>,
        fill: impl Fn(usize, &mut Chunk, &mut Scratch) -> Result<()> + Sync,
    ) -> Result<Vec<Vec<f64>>> {
        let info = &self.context.source.tensors()[tensor];
        let (layer, cols) = (&info.name, info.shape.cols());
        let Some(calibrator) = self.calibrator else {
            return Ok(Vec::new());
        };
        let calibration = &calibrator.calibration;
        let squares = calibration.squares(layer);
        // With the squares of channels alone, channels are taken to have nothing in common.
        let whole = calibration.has_hessian(layer);
        let step = if whole { HESSIAN_BLOCK } else { cols.max(1) };
        let each = |body: &mut dyn FnMut(&Chunk)| self.each_chunk(&rows, cols, count, &fill, body);
        let mut found: Vec<_> = (0..cols).step_by(step).map(|first| (first, None)).collect();
        let jobs: Vec<_> = found.iter_mut().collect();
        self.context.pool.each(jobs, pulse, |(first, found)| {
            let block = *first..cols.min(*first + step);
            let forms = match whole {
                true => self.hessian_forms(calibration, layer, block, cols, count, each),
                false => diagonal_forms(&squares, cols, count, each),
            };
            *found = Some(forms);
        });
        let mut total = vec![vec![0.0; squares.len()]; count];
        for (_, forms) in found {
            let forms = forms.unwrap_or(Err(Error::Cancelled))?;
            for (total, forms) in total.iter_mut().zip(forms) {
                total.iter_mut().zip(forms).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(total)
    }

    /// What some rows of the Hessians contribute.
    fn hessian_forms(
        &self,
        calibration: &Calibration,
        layer: &str,
        block: Range<usize>,
        cols: usize,
        count: usize,
        each: impl Fn(&mut dyn FnMut(&Chunk)) -> Result<()>,
    ) -> Result<Vec<Vec<f64>>> {
        let len = packed_len(block.end) - packed_len(block.start);
        let mut products = vec![vec![0.0; len]; count];
        let mut scratch = Vec::new();
        each(&mut |chunk| {
            for (matrix, products) in chunk.iter().zip(&mut products) {
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
        let mut forms = vec![vec![0.0; groups]; count];
        let read = calibration.hessian_block(layer, block.start, |group, sums| {
            for (products, forms) in products.iter().zip(&mut forms) {
                forms[group] = dot_of_triangles(sums, products, block.start);
            }
        });
        read.map_err(|error| self.cannot_read_calibration(layer, error))?;
        Ok(forms)
    }

    fn each_chunk(
        &self,
        rows: &Range<usize>,
        cols: usize,
        count: usize,
        fill: &(impl Fn(usize, &mut Chunk, &mut Scratch) -> Result<()> + Sync),
        body: &mut dyn FnMut(&Chunk),
    ) -> Result<()> {
        let mut chunk = vec![Vec::new(); count];
        let mut scratch = Scratch::default();
        for row in rows.clone().step_by(CHUNK) {
            if self.context.pool.stopped() {
                return Err(Error::Cancelled);
            }
            let some = CHUNK.min(rows.end - row);
            chunk
                .iter_mut()
                .for_each(|matrix| matrix.resize(some * cols, 0.0));
            fill(row, &mut chunk, &mut scratch)?;
            body(&chunk);
        }
        Ok(())
    }
}

fn diagonal_forms(
    squares: &[Vec<f64>],
    cols: usize,
    count: usize,
    each: impl Fn(&mut dyn FnMut(&Chunk)) -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    let mut sums = vec![vec![0.0; cols]; count];
    each(&mut |chunk| {
        for (matrix, sums) in chunk.iter().zip(&mut sums) {
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
    Ok(sums.iter().map(form).collect())
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
