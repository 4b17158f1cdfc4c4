//! Makes one tile: its rows are read, quantized and measured piece by piece.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pool::{Pool, Pulse};
use super::report::{TensorTally, bits_per_weight};
use crate::error::{Error, Result};
use crate::format::{Recipe, ScaleDtype, ScalePolicy, Scheme, rows_per_piece};
use crate::kernel::{ErrorSums, KernelTable};
use crate::plan::Plan;
use crate::quantize::{Fault, Matrix, Outcome, PlanesMut, find_non_finite, quantize_rows};
use crate::schema::{self, Tile};
use crate::sink::{Buffers, PlaneBuffer, TilePlanes};
use crate::source::Source;

/// Read buffers larger than this are not kept for reuse.
const LARGEST_POOLED: usize = 8 << 20;

/// A tile to make.
pub(super) struct Job {
    pub(super) tensor: usize,
    pub(super) recipe: Option<Recipe>,
    /// Without figures and checksum yet.
    pub(super) tile: Tile,
    /// Of one row in the source; of the whole tensor where its rows are no whole bytes.
    pub(super) row_bytes: usize,
}

impl Job {
    /// Bytes of memory it holds from its beginning until it is written, and a buffer to read
    /// into.
    pub(super) fn cost(&self, compress: bool) -> usize {
        let planes: usize = self.tile.plane_bytes().unwrap_or_default().iter().sum();
        let cols = self.tile.shape.cols();
        let rows = rows_per_piece(cols).min(self.tile.row_count);
        let float = self.recipe.and(self.tile.source_dtype.float());
        let row_bytes = float.map_or(self.row_bytes, |float| cols.saturating_mul(float.size()));
        let buffer = rows.saturating_mul(row_bytes);
        buffer.saturating_add(if compress { 2 * planes } else { planes })
    }
}

/// A tile ready to be written.
pub(super) struct Finished {
    pub(super) tensor: usize,
    pub(super) tile: Tile,
    pub(super) planes: TilePlanes,
    pub(super) bytes: usize,
    pub(super) error: ErrorSums,
    pub(super) needed_f32: bool,
}

/// What all jobs of a run share.
pub(super) struct Work<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) table: &'a KernelTable,
    pub(super) pool: &'a Pool<'a>,
    pub(super) compress: bool,
    pub(super) done: &'a AtomicUsize,
    /// To read into.
    pub(super) buffers: Mutex<Vec<Vec<u8>>>,
    /// To quantize into.
    pub(super) planes: Buffers,
}

/// A piece of a tile: some of its rows, and where their planes go.
struct Piece<'a> {
    row: usize,
    rows: usize,
    planes: PlanesMut<'a>,
    outcome: &'a mut Option<Result<std::result::Result<Outcome, Fault>>>,
}

impl Work<'_> {
    pub(super) fn tile(&self, job: Job, pulse: Pulse<'_>) -> Result<Finished> {
        match job.recipe {
            Some(recipe) => self.quantized_tile(job, recipe, pulse),
            None => self.kept_tile(job, pulse),
        }
    }

    fn kept_tile(&self, job: Job, pulse: Pulse<'_>) -> Result<Finished> {
        let mut tile = job.tile;
        let [len, ..] = tile.plane_bytes().unwrap_or_default();
        let mut values = self.planes.take(len);
        // In steps, so that progress is seen.
        let start = tile.row_start * job.row_bytes;
        for (i, step) in values.bytes_mut().chunks_mut(8 << 20).enumerate() {
            if self.pool.stopped() {
                return Err(Error::Cancelled);
            }
            self.source.read(job.tensor, start + i * (8 << 20), step)?;
            self.done.fetch_add(step.len(), Ordering::Relaxed);
            pulse();
        }
        tile.checksum = schema::checksum(&tile, values.bytes(), None, None);
        let weights = tile.row_count * tile.shape.cols();
        tile.bits_per_weight = bits_per_weight(len, weights).map(|bits| bits as f32);
        let planes = TilePlanes::kept(values, self.compress);
        Ok(Finished {
            tensor: job.tensor,
            planes: planes.map_err(Error::io(self.source.path(), "compress"))?,
            bytes: len,
            tile,
            error: ErrorSums::default(),
            needed_f32: false,
        })
    }

    /// Quantizes a tile with f16 scales, and again with f32 scales if these do not fit.
    fn quantized_tile(&self, job: Job, recipe: Recipe, pulse: Pulse<'_>) -> Result<Finished> {
        let Job {
            tensor, mut tile, ..
        } = job;
        let cols = tile.shape.cols();
        let mut codes = self
            .planes
            .take(tile.row_count * recipe.format.row_bytes(cols));
        let mut scale_dtype = recipe.planned_layout().scale_dtype;
        let auto = recipe.scales == ScalePolicy::Auto;
        let (scales, biases, outcome) = loop {
            let layout = recipe.layout(scale_dtype);
            let mut scales = self.planes.take(tile.row_count * layout.scale_bytes(cols));
            let mut biases = self.planes.take(tile.row_count * layout.bias_bytes(cols));
            let planes = PlanesMut {
                codes: codes.bytes_mut(),
                scales: scales.bytes_mut(),
                biases: biases.bytes_mut(),
            };
            let may_widen = auto && scale_dtype == ScaleDtype::F16;
            match self.quantize_pieces(tensor, &tile, &recipe, scale_dtype, planes, pulse)? {
                Err(Fault::ScaleOverflow { .. }) if may_widen => scale_dtype = ScaleDtype::F32,
                Err(fault) => return Err(self.explain(tensor, &recipe, fault)),
                Ok(outcome) if may_widen && outcome.wants_f32_scales() => {
                    scale_dtype = ScaleDtype::F32;
                }
                Ok(outcome) => break (scales, biases, outcome),
            }
        };
        tile.layout = Some(recipe.layout(scale_dtype));
        let biases = (recipe.scheme == Scheme::Affine).then_some(biases);
        tile.checksum = schema::checksum(
            &tile,
            codes.bytes(),
            Some(scales.bytes()),
            biases.as_ref().map(PlaneBuffer::bytes),
        );
        let bytes = tile.plane_bytes().unwrap_or_default().iter().sum();
        tile.cosine = Some(outcome.error.cosine() as f32);
        tile.sqnr_db = outcome.error.sqnr_db().map(|db| db as f32);
        tile.bits_per_weight =
            bits_per_weight(bytes, tile.row_count * cols).map(|bits| bits as f32);
        let planes = TilePlanes::quantized(codes, scales, biases, self.compress);
        Ok(Finished {
            tensor,
            tile,
            planes: planes.map_err(Error::io(self.source.path(), "compress"))?,
            bytes,
            error: outcome.error,
            needed_f32: auto && scale_dtype == ScaleDtype::F32,
        })
    }

    /// Quantizes all pieces of a tile. The outer error is of reading, the inner of quantizing;
    /// of several the one of the first piece.
    fn quantize_pieces(
        &self,
        tensor: usize,
        tile: &Tile,
        recipe: &Recipe,
        scale_dtype: ScaleDtype,
        planes: PlanesMut<'_>,
        pulse: Pulse<'_>,
    ) -> Result<std::result::Result<Outcome, Fault>> {
        let layout = recipe.layout(scale_dtype);
        let cols = tile.shape.cols();
        let step = rows_per_piece(cols);
        let mut outcomes: Vec<_> = (0..tile.row_count).step_by(step).map(|_| None).collect();
        let mut rest = planes;
        let mut pieces = Vec::with_capacity(outcomes.len());
        for (i, outcome) in outcomes.iter_mut().enumerate() {
            let rows = step.min(tile.row_count - i * step);
            pieces.push(Piece {
                row: tile.row_start + i * step,
                rows,
                planes: PlanesMut {
                    codes: take(&mut rest.codes, rows * layout.code_bytes(cols)),
                    scales: take(&mut rest.scales, rows * layout.scale_bytes(cols)),
                    biases: take(&mut rest.biases, rows * layout.bias_bytes(cols)),
                },
                outcome,
            });
        }
        let row_bytes = cols * tile.source_dtype.bits() / 8;
        // A second time with f32 scales is no progress.
        let counts = scale_dtype == recipe.planned_layout().scale_dtype;
        self.pool.each(pieces, pulse, |piece| {
            if self.pool.stopped() {
                return;
            }
            let (row, rows) = (piece.row, piece.rows);
            let quantized = self.with_rows(tensor, row, rows, |matrix| {
                if counts {
                    self.done.fetch_add(rows * row_bytes, Ordering::Relaxed);
                }
                quantize_rows(
                    self.table,
                    recipe,
                    scale_dtype,
                    matrix,
                    None,
                    true,
                    piece.planes,
                )
            });
            *piece.outcome = Some(quantized.map(|outcome| outcome.map_err(|f| f.moved_down(row))));
        });
        let mut total = Outcome::default();
        for outcome in outcomes {
            match outcome.unwrap_or(Err(Error::Cancelled))? {
                Ok(outcome) => total.add(outcome),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        Ok(Ok(total))
    }

    /// Reads rows of a tensor into a pooled buffer, as the kernels take them, and calls `body`
    /// with them.
    fn with_rows<R>(
        &self,
        tensor: usize,
        row: usize,
        rows: usize,
        body: impl FnOnce(Matrix<'_>) -> R,
    ) -> Result<R> {
        let info = &self.source.tensors()[tensor];
        let float = info.dtype.float().ok_or_else(|| {
            Error::Internal(format!(
                "'{}' is {}, which is never quantized",
                info.name, info.dtype
            ))
        })?;
        let cols = info.shape.cols();
        let row_bytes = cols * info.dtype.bits() / 8;
        let pooled = self
            .buffers
            .lock()
            .ok()
            .and_then(|mut buffers| buffers.pop());
        let mut buffer = pooled.unwrap_or_default();
        buffer.resize(rows * cols * float.size(), 0);
        let read = |bytes: &mut [u8]| self.source.read(tensor, row * row_bytes, bytes);
        info.dtype.read_floats(&mut buffer, read)?;
        let result = body(Matrix {
            rows,
            cols,
            float,
            weights: &buffer,
        });
        // One of a very long row is not worth holding on to.
        if buffer.capacity() <= LARGEST_POOLED
            && let Ok(mut buffers) = self.buffers.lock()
        {
            buffers.push(buffer);
        }
        Ok(result)
    }

    /// Turns tensors with non-finite weights into kept ones, reading all that are to be
    /// quantized once more.
    pub(super) fn keep_non_finite(
        &self,
        plan: &mut Plan,
        tallies: &mut [TensorTally],
        budget: usize,
        tick: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut pieces = Vec::new();
        for (tensor, entry) in plan.entries.iter().enumerate() {
            let shape = &entry.tensor.shape;
            let (rows, step) = (shape.rows(), rows_per_piece(shape.cols()));
            if entry.recipe.is_some() {
                pieces.extend((0..rows).step_by(step).map(|row| {
                    let rows = step.min(rows - row);
                    (rows * shape.cols() * 4, (tensor, row, rows))
                }));
            }
        }
        self.pool.in_order(
            pieces,
            budget,
            |(tensor, row, rows), _| {
                let finite = |matrix: Matrix<'_>| find_non_finite(matrix).is_none();
                Ok((tensor, self.with_rows(tensor, row, rows, finite)?))
            },
            tick,
            |(tensor, finite)| {
                tallies[tensor].kept_non_finite |= !finite;
                Ok(())
            },
        )?;
        for (entry, tally) in plan.entries.iter_mut().zip(tallies) {
            if tally.kept_non_finite {
                entry.recipe = None;
                entry.reason = "has NaN or infinite weights".to_owned();
            }
        }
        Ok(())
    }

    fn explain(&self, tensor: usize, recipe: &Recipe, fault: Fault) -> Error {
        let name = &self.source.tensors()[tensor].name;
        let reason = match fault {
            Fault::NonFinite { row, col, value } => {
                format!(
                    "row {row}, column {col} is {value}; on_nonfinite: keep would keep the tensor"
                )
            }
            Fault::ScaleOverflow { row } => {
                let held = match recipe.scales {
                    ScalePolicy::F16 => "f16",
                    ScalePolicy::Auto | ScalePolicy::F32 => "f32",
                };
                format!(
                    "row {row} has weights so large that {held} does not hold its scales or decoded values"
                )
            }
        };
        Error::tensor(self.source.path_of(tensor), name, reason)
    }
}

/// Splits the first `len` bytes off a plane.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (first, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    first
}
