//! The tiles that a run is to make, and what each of them takes.

use super::output;
use crate::format::{Float, Method, Recipe, TILE_BYTES, TILE_BYTES_COMPRESSED, rows_per_piece};
use crate::quantize::{Factor, Guide};
use crate::schema::Tile;

/// A tile to make.
pub(super) struct Job {
    pub(super) tensor: usize,
    pub(super) recipe: Option<Recipe>,
    /// Without figures and checksum yet.
    pub(super) tile: Tile,
    /// Whether the calibration knows it, and has a Hessian of it.
    pub(super) known: (bool, bool),
    /// Whether its inputs may be scaled or rotated.
    pub(super) spatial: bool,
    /// Cosine below which it is done again at once, with more bits; where that has to wait, none.
    pub(super) min_cosine: f64,
    /// Of one row in the source; of the whole tensor where its rows are no whole bytes.
    pub(super) row_bytes: usize,
}

/// Bytes of a kept tensor that are read at once.
const KEPT_STEP: usize = 1 << 20;

impl Job {
    /// Bytes of memory it holds from its beginning until it is written, and a buffer to read
    /// into.
    pub(super) fn cost(&self, compress: bool) -> usize {
        let planes = self.planes_of(self.tile.row_count);
        let copies = if compress { 2 } else { 1 };
        planes
            .saturating_mul(copies)
            .saturating_add(self.piece_bytes())
    }

    /// Bytes of memory that a calibration takes beside: a Hessian while it is factored, or its
    /// factor and what measuring takes, on `threads` threads.
    pub(super) fn guide_cost(&self, threads: usize) -> usize {
        let cols = self.tile.shape.cols();
        let (known, hessian) = self.known;
        let Some(recipe) = self.recipe.filter(|_| known) else {
            return 0;
        };
        let (factor, making) = match recipe.method {
            Method::Gptq if hessian => Factor::bytes(cols),
            _ => (0, 0),
        };
        let scratch = Guide::scratch_bytes(recipe.method, cols).max(output::bytes(cols));
        making.max(factor.saturating_add(threads.saturating_mul(scratch)))
    }

    /// Whether it is the last tile of its tensor.
    pub(super) fn is_last(&self) -> bool {
        self.tile.row_start + self.tile.row_count == self.tile.shape.rows()
    }

    /// Whether the tensor is one tile, with this recipe as with its own.
    pub(super) fn is_alone(&self, recipe: Option<&Recipe>, compress: bool) -> bool {
        let (rows, cols) = (self.tile.shape.rows(), self.tile.shape.cols());
        let row = recipe.map_or(self.row_bytes, |r| r.planned().plane_bytes(cols)[0]);
        let most = match compress {
            true => TILE_BYTES_COMPRESSED,
            false => TILE_BYTES,
        };
        self.tile.row_count == rows && rows.saturating_mul(row) <= most
    }

    /// The same for one of its pieces.
    pub(super) fn piece_cost(&self) -> usize {
        match self.recipe {
            Some(_) => self.planes_of(self.piece_rows()),
            None => self.planes_of(self.tile.row_count).min(KEPT_STEP),
        }
    }

    /// Bytes of the buffer that a piece is read into.
    pub(super) fn piece_bytes(&self) -> usize {
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
    pub(super) fn kept_steps(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [bytes, ..] = self.tile.plane_bytes().unwrap_or_default();
        let step = move |offset: usize| (offset, KEPT_STEP.min(bytes - offset));
        (0..bytes).step_by(KEPT_STEP).map(step)
    }

    /// The pieces that a quantized tile is made in: first row of the tensor, and rows.
    pub(super) fn row_steps(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (start, count) = (self.tile.row_start, self.tile.row_count);
        let step = rows_per_piece(self.tile.shape.cols());
        let piece = move |row: usize| (start + row, step.min(count - row));
        (0..count).step_by(step).map(piece)
    }
}
