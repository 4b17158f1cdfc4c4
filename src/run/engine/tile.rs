//! Makes tiles: their rows are read, quantized and measured piece by piece, into a [`Target`] in
//! memory or in the file.

use super::job::TileJob;
use crate::error::{Error, Result};
use crate::format::{Encoding, Float, Recipe, ScalePolicy};
use crate::kernel::{ErrorSums, KernelTable, Planes};
use crate::quantize::transform::{apply_to_weights, measure_transformed_rows};
use crate::quantize::{Fault, Matrix, Outcome, PlanesMut, find_non_finite, quantize_rows};
use crate::run::context::Context;
use crate::run::inputs::{Inputs, OutputSums, Prepared};
use crate::run::pool::Pulse;
use crate::run::report::{CalibratedTile, Gauge, LadderStep, bits_per_weight};
use crate::schema::Tile;
use crate::sink::SinkLimits;

/// What quantizing came to: the outer error is of reading and writing, the inner of the weights.
pub(crate) type Attempt = Result<std::result::Result<Outcome, Fault>>;

/// A tile that is made; its planes are where they were made.
pub(crate) struct Finished {
    pub(crate) tensor: usize,
    pub(crate) tile: Tile,
    pub(crate) bytes: usize,
    pub(crate) error: ErrorSums,
    /// Whether its scales did not fit the planned dtype.
    pub(crate) needed_f32: bool,
    /// Whether the tensor ends with it.
    pub(crate) is_last: bool,
    /// Attempts before it that did not reach their cosine.
    pub(crate) steps: Vec<LadderStep>,
    /// What was made of the calibration.
    pub(crate) calibrated: CalibratedTile,
}

impl Finished {
    /// A kept tile, of which nothing is measured but its size.
    pub(crate) fn kept(job: &TileJob, mut tile: Tile) -> Self {
        Self {
            tensor: job.tensor,
            bytes: set_kept_figures(&mut tile),
            tile,
            error: ErrorSums::default(),
            needed_f32: false,
            is_last: job.is_last(),
            steps: Vec::new(),
            calibrated: CalibratedTile::default(),
        }
    }

    /// The cosine that it must reach a threshold with.
    pub(crate) fn cosine(&self) -> (f64, Gauge) {
        match self.calibrated.output_cosine() {
            Some(cosine) => (cosine, Gauge::Output),
            None => (self.error.cosine(), Gauge::Weight),
        }
    }
}

/// Where the planes of a tile are made.
pub(crate) trait Target {
    /// Starts anew, with another layout of the tile.
    ///
    /// # Errors
    /// The file cannot be written.
    fn restart(&mut self, tile: &Tile) -> Result<()>;

    /// Quantizes all rows of the tile.
    ///
    /// # Errors
    /// The weights cannot be read or quantized, or the file cannot be written.
    fn quantize(&mut self, job: &TileJob, how: How<'_>) -> Attempt;

    /// Measures what the planes do to the layer's output.
    ///
    /// # Errors
    /// The weights, the calibration or the planes cannot be read.
    fn output(&mut self, job: &TileJob, tile: &Tile) -> Result<Option<OutputSums>>;
}

/// How the rows of a tensor are quantized.
#[derive(Clone, Copy)]
pub(crate) struct How<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) encoding: Encoding,
    pub(crate) prepared: &'a Prepared,
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

/// What makes the tiles of a run.
#[derive(Clone, Copy)]
pub(crate) struct TileWork<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) inputs: Inputs<'a>,
    pub(crate) limits: SinkLimits,
}

impl TileWork<'_> {
    /// What the calibration says of a tile that is to be quantized, and the tile with what of that
    /// is stored.
    pub(crate) fn prepare(
        &self,
        job: &TileJob,
        recipe: &Recipe,
        pulse: Pulse<'_>,
    ) -> Result<(Prepared, Tile)> {
        let prepared = self.inputs.prepare(job.tensor, recipe, job.spatial)?;
        if prepared.weights.is_some() {
            pulse(); // that may have taken long
        }
        let mut tile = job.tile.clone();
        prepared.describe(&mut tile);
        Ok((prepared, tile))
    }

    /// Quantizes a tile into a target that has room for it. Scales are taken to fit the planned
    /// dtype. When that shows not to be so, all is done again with f32 scales: that is rare, and
    /// cheaper than to look at every tile first.
    pub(crate) fn quantize(
        &self,
        job: &TileJob,
        recipe: &Recipe,
        (prepared, mut tile): (Prepared, Tile),
        target: &mut dyn Target,
    ) -> Result<Finished> {
        let planned = recipe.planned();
        let mut encoding = planned;
        let outcome = loop {
            let how = How {
                recipe,
                encoding,
                prepared: &prepared,
            };
            let quantized = target.quantize(job, how)?;
            let Some(wider) = wider(recipe, encoding, &quantized) else {
                break quantized.map_err(|fault| self.explain(job.tensor, recipe, fault))?;
            };
            encoding = wider;
            tile.encoding = Some(encoding);
            target.restart(&tile)?;
        };
        let bytes = set_figures(&mut tile, &outcome);
        let output = match prepared.weights {
            None => None,
            Some(_) => target.output(job, &tile)?,
        };
        Ok(Finished {
            tensor: job.tensor,
            tile,
            bytes,
            error: outcome.error,
            needed_f32: encoding != planned,
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

    /// Reads some of the bytes of a kept tile.
    pub(crate) fn read_kept(&self, job: &TileJob, offset: usize, out: &mut [u8]) -> Result<()> {
        let start = job.tile.row_start * job.row_bytes;
        self.context.source.read(job.tensor, start + offset, out)?;
        self.context.advance(out.len());
        Ok(())
    }

    /// Quantizes one piece. The outer error is of reading, the inner of quantizing.
    pub(crate) fn piece(
        &self,
        tensor: usize,
        row: usize,
        rows: usize,
        how: How<'_>,
        planes: PlanesMut<'_>,
    ) -> Attempt {
        let info = &self.context.source.tensors()[tensor];
        let bytes = rows * info.shape.cols() * info.dtype.bits() / 8;
        let quantized = self.context.with_rows(tensor, row, rows, |matrix| {
            // A second time with f32 scales is no progress.
            if how.encoding == how.recipe.planned() {
                self.context.advance(bytes);
            }
            match how.prepared.spatial.transform().is_identity() {
                true => how.quantize(self.context.table, matrix, true, planes),
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
        self.context
            .table
            .widen(matrix.float, matrix.weights, &mut values);
        let mut weights: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
        apply_to_weights(self.context.table, transform, cols, &mut weights);
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
        let quantized = how.quantize(self.context.table, changed, false, planes);
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
        let error = measure_transformed_rows(
            self.context.table,
            encoding,
            transform,
            matrix,
            planes,
            &mut row,
        );
        outcome.error = error.ok_or(Fault::ScaleOverflow { row: 0 })?;
        Ok(outcome)
    }

    pub(crate) fn explain(&self, tensor: usize, recipe: &Recipe, fault: Fault) -> Error {
        let name = &self.context.source.tensors()[tensor].name;
        let reason = match fault {
            Fault::NonFinite { row, col, value } => {
                let lost = self.context.is_lossy(tensor);
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
                format!("row {row} has weights too large for {held} scales or decoded values")
            }
        };
        Error::tensor(self.context.source.path_of(tensor), name, reason)
    }
}

/// The encoding that rows quantized to this one are to be quantized to again, because its scales
/// do not hold what they should.
fn wider(
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
pub(crate) fn set_figures(tile: &mut Tile, outcome: &Outcome) -> usize {
    tile.cosine = outcome.error.measured_cosine().map(|cosine| cosine as f32);
    tile.sqnr_db = outcome.error.sqnr_db().map(|db| db as f32);
    set_kept_figures(tile)
}

/// Fills in the size of a tile, which is all that is known of a kept one; returns its bytes.
pub(crate) fn set_kept_figures(tile: &mut Tile) -> usize {
    let bytes = tile.stored_bytes();
    let weights = tile.row_count * tile.shape.cols();
    tile.bits_per_weight = bits_per_weight(bytes, weights).map(|bits| bits as f32);
    bytes
}
