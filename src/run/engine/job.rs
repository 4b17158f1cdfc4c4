//! The tiles that a run is to make, and what each of them takes.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::format::{Float, Method, Recipe, rows_per_piece, rows_per_tile};
use crate::plan::{NO_MIN_COSINE, Plan};
use crate::quantize::{Factor, Guide};
use crate::run::inputs::{Calibrator, output_bytes};
use crate::schema::Tile;
use crate::sink::SinkLimits;
use crate::source::Source;

/// A tile to make.
pub(crate) struct TileJob {
    pub(crate) tensor: usize,
    pub(crate) recipe: Option<Recipe>,
    /// Without figures and checksum yet.
    pub(crate) tile: Tile,
    /// Whether the calibration knows it, and has a Hessian of it.
    pub(crate) known: (bool, bool),
    /// Whether its inputs may be scaled or rotated.
    pub(crate) spatial: bool,
    /// Cosine below which it is done again at once, with more bits; where that has to wait, none.
    pub(crate) min_cosine: f64,
    /// Bytes of one row in the source, or of the whole tensor where a row does not end on a byte.
    pub(crate) row_bytes: usize,
}

/// Bytes of a kept tensor that are read at once.
const KEPT_STEP: usize = 1 << 20;

impl TileJob {
    /// Bytes of memory it holds from its beginning until it is written, and a buffer to read
    /// into.
    pub(crate) fn cost(&self, limits: &SinkLimits) -> usize {
        let planes = self.planes_of(self.tile.row_count);
        planes
            .saturating_mul(limits.copies)
            .saturating_add(self.piece_bytes())
    }

    /// Bytes of memory that a calibration takes beside: a Hessian while it is factored, or its
    /// factor and what measuring takes, on `threads` threads.
    pub(crate) fn guide_cost(&self, threads: usize) -> usize {
        let cols = self.tile.shape.cols();
        let (known, hessian) = self.known;
        let Some(recipe) = self.recipe.filter(|_| known) else {
            return 0;
        };
        let (factor, making) = match recipe.method {
            Method::Gptq if hessian => Factor::bytes(cols),
            _ => (0, 0),
        };
        let scratch = Guide::scratch_bytes(recipe.method, cols).max(output_bytes(cols));
        making.max(factor.saturating_add(threads.saturating_mul(scratch)))
    }

    /// Whether it is the last tile of its tensor.
    pub(crate) fn is_last(&self) -> bool {
        self.tile.row_start + self.tile.row_count == self.tile.shape.rows()
    }

    /// Whether the tensor is one tile, with this recipe as with its own.
    pub(crate) fn is_alone(&self, recipe: Option<&Recipe>, tile_bytes: usize) -> bool {
        let (rows, cols) = (self.tile.shape.rows(), self.tile.shape.cols());
        let row = recipe.map_or(self.row_bytes, |r| r.planned().plane_bytes(cols)[0]);
        self.tile.row_count == rows && rows.saturating_mul(row) <= tile_bytes
    }

    /// Bytes of the planes of one of its pieces.
    pub(crate) fn piece_cost(&self) -> usize {
        match self.recipe {
            Some(_) => self.planes_of(self.piece_rows()),
            None => self.planes_of(self.tile.row_count).min(KEPT_STEP),
        }
    }

    /// Bytes of the buffer that a piece is read into.
    pub(crate) fn piece_bytes(&self) -> usize {
        match self.recipe {
            Some(_) => {
                let float = self.tile.source_dtype.float().map_or(0, Float::size);
                let row = self.tile.shape.cols().saturating_mul(float);
                self.piece_rows().saturating_mul(row)
            }
            None => 0,
        }
    }

    fn piece_rows(&self) -> usize {
        rows_per_piece(self.tile.shape.cols()).min(self.tile.row_count)
    }

    /// Bytes of the planes of some rows, which may turn out to need f32 scales.
    fn planes_of(&self, rows: usize) -> usize {
        let fallback = self.recipe.and_then(|recipe| recipe.fallback());
        let tile = Tile {
            encoding: fallback.or(self.tile.encoding),
            row_count: rows,
            ..self.tile.clone()
        };
        let planes = tile.plane_bytes().unwrap_or_default();
        planes.into_iter().fold(0, usize::saturating_add)
    }

    /// The pieces that a kept tile is read in: offset in the tile, and length.
    pub(crate) fn kept_steps(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [bytes, ..] = self.tile.plane_bytes().unwrap_or_default();
        let step = move |offset: usize| (offset, KEPT_STEP.min(bytes - offset));
        (0..bytes).step_by(KEPT_STEP).map(step)
    }

    /// The pieces that a quantized tile is made in: first row of the tensor, and rows.
    pub(crate) fn row_steps(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (start, count) = (self.tile.row_start, self.tile.row_count);
        let step = rows_per_piece(self.tile.shape.cols());
        let piece = move |row: usize| (start + row, step.min(count - row));
        (0..count).step_by(step).map(piece)
    }
}

/// Cuts some entries into tiles, in plan order.
pub(crate) fn jobs(
    source: &dyn Source,
    plan: &Plan,
    limits: &SinkLimits,
    calibrator: Option<&Calibrator>,
    entries: Range<usize>,
) -> Result<Vec<TileJob>> {
    let mut jobs = Vec::new();
    for tensor in entries {
        let entry = &plan.entries[tensor];
        let info = &entry.tensor;
        let (rows, cols) = (info.shape.rows(), info.shape.cols());
        let row_bits = cols * info.dtype.bits();
        // Rows of sub-byte elements that end inside a byte cannot be cut.
        let whole_rows = row_bits.is_multiple_of(8);
        let row_bytes = if whole_rows {
            row_bits / 8
        } else {
            entry.source_bytes()
        };
        let encoding = entry.recipe.map(|recipe| recipe.planned());
        let code_bytes = encoding.map_or(row_bytes, |encoding| encoding.plane_bytes(cols)[0]);
        let step = match whole_rows {
            true => rows_per_tile(rows, code_bytes, limits.tile_bytes),
            false => rows,
        };
        if rows > 0 && code_bytes > limits.largest_plane {
            let reason = format!(
                "a row of {code_bytes} bytes is too large for one value of the output file"
            );
            return Err(Error::tensor(source.path_of(tensor), &info.name, reason));
        }
        let known = calibrator.map_or((false, false), |c| c.knows(&info.name));
        // An empty tensor has one tile all the same.
        for (number, start) in (0..rows.max(1)).step_by(step.max(1)).enumerate() {
            let count = step.min(rows - start);
            jobs.push(TileJob {
                tensor,
                recipe: entry.recipe,
                known,
                spatial: true,
                min_cosine: NO_MIN_COSINE,
                row_bytes,
                tile: Tile {
                    name: info.name.clone(),
                    tile: number as u32,
                    row_start: start,
                    row_count: count,
                    shape: info.shape.clone(),
                    source_dtype: info.dtype,
                    encoding,
                    input_scale: None,
                    rotation: None,
                    activation: Default::default(),
                    checksum: 0,
                    cosine: None,
                    sqnr_db: None,
                    bits_per_weight: None,
                },
            });
        }
    }
    Ok(jobs)
}
