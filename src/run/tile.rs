//! Makes tiles: their rows are read, quantized and measured piece by piece. A tile is held until
//! it is done, or its pieces are made one by one, to be written in place.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::guide::{Calibrator, Prepared};
use super::job::Job;
use super::ladder::{Gauge, LadderStep, Rung};
use super::output::OutputSums;
use super::pool::{Pool, Pulse};
use super::report::{TensorTally, bits_per_weight, output_cosine};
use crate::calibrate::Weights;
use crate::error::{Error, Result};
use crate::format::{Encoding, Float, Method, Recipe, ScalePolicy, rows_per_piece};
use crate::kernel::{ErrorSums, KernelTable, Planes};
use crate::plan::Plan;
use crate::quantize::transform::{apply_to_weights, measure_transformed_rows};
use crate::quantize::{Fault, Matrix, Outcome, PlanesMut, find_non_finite, quantize_rows};
use crate::schema::{self, Tile};
use crate::sink::{Buffers, PlaneBuffer, TilePlanes};
use crate::source::Source;

/// Read buffers larger than this are not kept for reuse.
const LARGEST_POOLED: usize = 8 << 20;

/// A tile ready to be written.
pub(super) struct Finished {
    pub(super) tensor: usize,
    pub(super) tile: Tile,
    pub(super) planes: TilePlanes,
    pub(super) bytes: usize,
    pub(super) error: ErrorSums,
    pub(super) needed_f32: bool,
    /// Whether the tensor ends with it.
    pub(super) is_last: bool,
    /// Attempts before it that did not reach their cosine.
    pub(super) steps: Vec<LadderStep>,
    /// What was made of the calibration.
    pub(super) calibrated: CalibratedTile,
}

impl Finished {
    /// The cosine that it must reach a threshold with.
    fn cosine(&self) -> (f64, Gauge) {
        match (&self.calibrated.output, &self.calibrated.weights) {
            (Some(sums), Some(weights)) => (output_cosine(sums, weights), Gauge::Output),
            _ => (self.error.cosine(), Gauge::Weight),
        }
    }
}

/// What a calibration came to for a tile.
#[derive(Default)]
pub(super) struct CalibratedTile {
    /// The method that was used, which may not be the planned one.
    pub(super) method: Option<Method>,
    /// The exponent of smoothing, where it was kept.
    pub(super) alpha: Option<f64>,
    /// What the rows of each group of timesteps count for.
    pub(super) weights: Option<Weights>,
    pub(super) output: Option<OutputSums>,
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
    /// Tensors of f64 with values that f32 does not hold.
    pub(super) lost: Mutex<BTreeSet<usize>>,
    /// To quantize into.
    pub(super) planes: Buffers,
    pub(super) calibrator: Option<&'a Calibrator>,
}

/// How the rows of a tensor are quantized.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) encoding: Encoding,
    pub(super) prepared: &'a Prepared,
}

impl How<'_> {
    fn quantize(
        &self,
        table: &KernelTable,
        matrix: Matrix<'_>,
        measure: bool,
        planes: PlanesMut<'_>,
    ) -> std::result::Result<Outcome, Fault> {
        let guide = self.prepared.guide();
        quantize_rows(
            table,
            self.recipe,
            self.encoding,
            matrix,
            guide,
            measure,
            planes,
        )
    }
}

/// A piece of a tile: some of its rows, and where their planes go.
struct Piece<'a> {
    row: usize,
    rows: usize,
    planes: PlanesMut<'a>,
    outcome: &'a mut Option<Result<std::result::Result<Outcome, Fault>>>,
}

impl Work<'_> {
    /// Counts so many bytes of the source as dealt with.
    pub(super) fn advance(&self, bytes: usize) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Makes a tile. One that does not reach its cosine is made again with more bits, if it can be
    /// told from it alone.
    pub(super) fn tile(&self, mut job: Job, pulse: Pulse<'_>) -> Result<Finished> {
        let mut steps = Vec::new();
        loop {
            let mut finished = match job.recipe {
                Some(recipe) => self.quantized_tile(&job, recipe, pulse)?,
                None => self.kept_tile(&job, pulse)?,
            };
            if let Some(recipe) = job.recipe {
                let transformed =
                    finished.tile.rotation.is_some() || finished.tile.input_scale.is_some();
                let cosine = finished.cosine();
                let step = LadderStep::check(&recipe, transformed, cosine, job.min_cosine);
                if let Some(step) = step {
                    let next = Rung::after(&recipe, &step);
                    if job.is_alone(next.recipe.as_ref(), self.compress) {
                        steps.push(step);
                        (job.recipe, job.spatial) = (next.recipe, next.spatial);
                        job.tile.encoding = job.recipe.map(|recipe| recipe.planned());
                        continue;
                    }
                }
            }
            finished.steps = steps;
            return Ok(finished);
        }
    }

    fn kept_tile(&self, job: &Job, pulse: Pulse<'_>) -> Result<Finished> {
        let [len, ..] = job.tile.plane_bytes().unwrap_or_default();
        let mut values = self.planes.take(len);
        // In steps, so that progress is seen.
        for (offset, bytes) in job.kept_steps() {
            if self.pool.stopped() {
                return Err(Error::Cancelled);
            }
            let step = &mut values.bytes_mut()[offset..offset + bytes];
            self.read_kept(job, offset, step)?;
            pulse();
        }
        let mut tile = job.tile.clone();
        tile.checksum = schema::checksum(&tile, values.bytes(), None, None);
        set_kept_figures(&mut tile);
        let planes = TilePlanes::kept(values, self.compress);
        Ok(Finished {
            tensor: job.tensor,
            planes: planes.map_err(Error::io(self.source.path(), "compress"))?,
            bytes: len,
            tile,
            error: ErrorSums::default(),
            needed_f32: false,
            is_last: job.is_last(),
            steps: Vec::new(),
            calibrated: CalibratedTile::default(),
        })
    }

    /// Reads some of the bytes of a kept tile.
    pub(super) fn read_kept(&self, job: &Job, offset: usize, out: &mut [u8]) -> Result<()> {
        let start = job.tile.row_start * job.row_bytes;
        self.source.read(job.tensor, start + offset, out)?;
        self.advance(out.len());
        Ok(())
    }

    /// Quantizes a tile with f16 scales, and again with f32 scales if these do not fit.
    fn quantized_tile(&self, job: &Job, recipe: Recipe, pulse: Pulse<'_>) -> Result<Finished> {
        let tensor = job.tensor;
        let mut tile = job.tile.clone();
        let cols = tile.shape.cols();
        let planned = recipe.planned();
        let rows = tile.row_count;
        let take = |bytes: usize| self.planes.take(rows * bytes);
        let mut codes = take(planned.plane_bytes(cols)[0]);
        let prepared = self.prepare(tensor, &recipe, job.spatial)?;
        if prepared.weights.is_some() {
            pulse(); // that may have taken long
        }
        prepared.describe(&mut tile);
        let mut encoding = planned;
        let (scales, biases, outcome) = loop {
            let [_, scales, biases] = encoding.plane_bytes(cols);
            let (mut scales, mut biases) = (take(scales), take(biases));
            let planes = PlanesMut {
                codes: codes.bytes_mut(),
                scales: scales.bytes_mut(),
                biases: biases.bytes_mut(),
            };
            let how = How {
                recipe: &recipe,
                encoding,
                prepared: &prepared,
            };
            let quantized = self.quantize_pieces(tensor, &tile, how, planes, pulse)?;
            if let Some(wider) = wider(&recipe, encoding, &quantized) {
                encoding = wider;
                continue;
            }
            break match quantized {
                Ok(outcome) => (scales, biases, outcome),
                Err(fault) => return Err(self.explain(tensor, &recipe, fault)),
            };
        };
        let needed_f32 = encoding != planned;
        tile.encoding = Some(encoding);
        let scales = encoding.has_scales().then_some(scales);
        let biases = encoding.has_biases().then_some(biases);
        tile.checksum = schema::checksum(
            &tile,
            codes.bytes(),
            scales.as_ref().map(PlaneBuffer::bytes),
            biases.as_ref().map(PlaneBuffer::bytes),
        );
        let bytes = set_figures(&mut tile, &outcome);
        let output = match prepared.weights {
            None => None,
            Some(_) => {
                let planes = [
                    codes.bytes(),
                    scales.as_ref().map_or(&[], PlaneBuffer::bytes),
                    biases.as_ref().map_or(&[], PlaneBuffer::bytes),
                ];
                let bytes = encoding.plane_bytes(cols);
                self.forms_of_errors(
                    tensor,
                    &tile,
                    &|row, rows, out| {
                        for ((out, plane), bytes) in out.iter_mut().zip(planes).zip(bytes) {
                            out.clear();
                            out.extend_from_slice(&plane[row * bytes..(row + rows) * bytes]);
                        }
                        Ok(())
                    },
                    pulse,
                )?
            }
        };
        let planes = TilePlanes::quantized(codes, scales, biases, self.compress);
        Ok(Finished {
            tensor,
            tile,
            planes: planes.map_err(Error::io(self.source.path(), "compress"))?,
            bytes,
            error: outcome.error,
            needed_f32,
            is_last: job.is_last(),
            steps: Vec::new(),
            calibrated: CalibratedTile {
                method: Some(prepared.method(recipe.method)),
                alpha: prepared.spatial.alpha,
                weights: prepared.weights,
                output,
            },
        })
    }

    /// Quantizes all pieces of a tile. The outer error is of reading, the inner of quantizing;
    /// of several the one of the first piece.
    fn quantize_pieces(
        &self,
        tensor: usize,
        tile: &Tile,
        how: How<'_>,
        planes: PlanesMut<'_>,
        pulse: Pulse<'_>,
    ) -> Result<std::result::Result<Outcome, Fault>> {
        let cols = tile.shape.cols();
        let [codes, scales, biases] = how.encoding.plane_bytes(cols);
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
                    codes: take(&mut rest.codes, rows * codes),
                    scales: take(&mut rest.scales, rows * scales),
                    biases: take(&mut rest.biases, rows * biases),
                },
                outcome,
            });
        }
        self.pool.each(pieces, pulse, |piece| {
            if self.pool.stopped() {
                return;
            }
            let (row, rows) = (piece.row, piece.rows);
            let planes = piece.planes;
            let quantized = self.piece(tensor, row, rows, how, planes);
            *piece.outcome = Some(quantized);
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

    /// Quantizes one piece. The outer error is of reading, the inner of quantizing.
    pub(super) fn piece(
        &self,
        tensor: usize,
        row: usize,
        rows: usize,
        how: How<'_>,
        planes: PlanesMut<'_>,
    ) -> Result<std::result::Result<Outcome, Fault>> {
        let info = &self.source.tensors()[tensor];
        let bytes = rows * info.shape.cols() * info.dtype.bits() / 8;
        let quantized = self.with_rows(tensor, row, rows, |matrix| {
            // A second time with f32 scales is no progress.
            if how.encoding == how.recipe.planned() {
                self.advance(bytes);
            }
            match how.prepared.spatial.transform().is_identity() {
                true => how.quantize(self.table, matrix, true, planes),
                false => self.transformed(how, matrix, planes),
            }
        })?;
        Ok(quantized.map_err(|fault| fault.moved_down(row)))
    }

    /// Quantizes rows whose channels are scaled or rotated first, and measures what they decode to.
    fn transformed(
        &self,
        how: How<'_>,
        matrix: Matrix<'_>,
        planes: PlanesMut<'_>,
    ) -> std::result::Result<Outcome, Fault> {
        let (cols, transform) = (matrix.cols, how.prepared.spatial.transform());
        let mut values = vec![0.0f32; matrix.rows * cols];
        self.table.widen(matrix.float, matrix.weights, &mut values);
        let mut weights: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
        apply_to_weights(self.table, transform, cols, &mut weights);
        let changed = Matrix {
            float: Float::F32,
            weights: &weights,
            ..matrix
        };
        let PlanesMut {
            codes,
            scales,
            biases,
        } = planes;
        let planes = PlanesMut {
            codes: &mut *codes,
            scales: &mut *scales,
            biases: &mut *biases,
        };
        let quantized = how.quantize(self.table, changed, false, planes);
        // A rotation spreads NaN over its block: where it comes from is in the original.
        let mut outcome = quantized.map_err(|fault| match find_non_finite(matrix) {
            Some((row, col, value)) => Fault::NonFinite { row, col, value },
            None => fault,
        })?;
        let planes = Planes {
            codes,
            scales,
            biases,
        };
        let encoding = how.encoding;
        let mut row = vec![0; cols * size_of::<f32>()];
        let error =
            measure_transformed_rows(self.table, encoding, transform, matrix, planes, &mut row);
        outcome.error = error.ok_or(Fault::ScaleOverflow { row: 0 })?;
        Ok(outcome)
    }

    /// Reads rows of a tensor into a pooled buffer, as the kernels take them, and calls `body`
    /// with them.
    pub(super) fn with_rows<R>(
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
        let read = |at, bytes: &mut [u8]| self.source.read(tensor, row * row_bytes + at, bytes);
        if info.dtype.read_floats(&mut buffer, read)? > 0 {
            self.note_lost(tensor);
        }
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

    fn note_lost(&self, tensor: usize) {
        if let Ok(mut lost) = self.lost.lock() {
            lost.insert(tensor);
        }
    }

    /// Whether all values of a tensor are 0.
    pub(super) fn is_zero(&self, tensor: usize) -> Result<bool> {
        let shape = &self.source.tensors()[tensor].shape;
        let step = rows_per_piece(shape.cols());
        for row in (0..shape.rows()).step_by(step) {
            let rows = step.min(shape.rows() - row);
            let zero = |matrix: Matrix<'_>| {
                let count = matrix.rows * matrix.cols;
                (0..count).all(|i| matrix.float.get(matrix.weights, i) == 0.0)
            };
            if !self.with_rows(tensor, row, rows, zero)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Turns tensors with non-finite weights into kept ones, reading all that are to be
    /// quantized once more.
    pub(super) fn keep_non_finite(
        &self,
        plan: &mut Plan,
        tallies: &mut [TensorTally],
        entries: Range<usize>,
        budget: usize,
        tick: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut pieces = Vec::new();
        for tensor in entries {
            let entry = &plan.entries[tensor];
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
            |(tensor, finite), _| {
                tallies[tensor].kept_non_finite |= !finite;
                Ok(())
            },
        )?;
        for (entry, tally) in plan.entries.iter_mut().zip(tallies) {
            if tally.kept_non_finite {
                entry.keep_non_finite();
            }
        }
        Ok(())
    }

    pub(super) fn explain(&self, tensor: usize, recipe: &Recipe, fault: Fault) -> Error {
        let name = &self.source.tensors()[tensor].name;
        let reason = match fault {
            Fault::NonFinite { row, col, value } => {
                let lost = self.lost.lock().is_ok_and(|lost| lost.contains(&tensor));
                let of = if lost { " as f32, of f64" } else { "" };
                format!(
                    "row {row}, column {col} is {value}{of}; on_nonfinite: keep would keep the \
                     tensor"
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

/// The encoding that rows quantized to this one are to be quantized to again, because its scales
/// do not hold what they should.
pub(super) fn wider(
    recipe: &Recipe,
    encoding: Encoding,
    quantized: &std::result::Result<Outcome, Fault>,
) -> Option<Encoding> {
    let wanted = match quantized {
        Ok(outcome) => outcome.wants_f32_scales(),
        Err(fault) => matches!(fault, Fault::ScaleOverflow { .. }),
    };
    let fallback = recipe.fallback().filter(|wider| *wider != encoding);
    fallback.filter(|_| wanted)
}

/// Fills in what was measured of a quantized tile; returns the bytes of its planes.
pub(super) fn set_figures(tile: &mut Tile, outcome: &Outcome) -> usize {
    tile.cosine = outcome.error.measured_cosine().map(|cosine| cosine as f32);
    tile.sqnr_db = outcome.error.sqnr_db().map(|db| db as f32);
    set_kept_figures(tile)
}

/// The same for a kept tile, of which only the size is known.
pub(super) fn set_kept_figures(tile: &mut Tile) -> usize {
    let bytes = tile.stored_bytes();
    let weights = tile.row_count * tile.shape.cols();
    tile.bits_per_weight = bits_per_weight(bytes, weights).map(|bits| bits as f32);
    bytes
}

/// Splits the first `len` bytes off a plane.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (first, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    first
}
