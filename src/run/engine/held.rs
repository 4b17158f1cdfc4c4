//! Tiles that are made in memory, on one thread or several, and held until they are written.

use super::job::TileJob;
use super::ladder::Rung;
use super::tile::{Attempt, Finished, How, Target, TileWork};
use crate::error::{Error, Result};
use crate::format::{Encoding, Recipe, rows_per_piece};
use crate::quantize::{Outcome, PlanesMut};
use crate::run::inputs::OutputSums;
use crate::run::pool::Pulse;
use crate::run::report::LadderStep;
use crate::schema::{self, Tile};
use crate::sink::{Buffers, PackedTile, TileBuffers};

/// Memory for the planes of a tile.
struct Held<'a> {
    work: TileWork<'a>,
    planes: TileBuffers,
    pulse: Pulse<'a>,
}

/// A piece of a tile: some of its rows, and where their planes go.
struct Piece<'a> {
    row: usize,
    rows: usize,
    planes: PlanesMut<'a>,
    outcome: &'a mut Option<Attempt>,
}

impl TileWork<'_> {
    /// Makes a tile. One that does not reach its cosine is made again with more bits, if it can be
    /// told from it alone.
    pub(crate) fn tile(
        &self,
        mut job: TileJob,
        pulse: Pulse<'_>,
    ) -> Result<(Finished, PackedTile)> {
        let mut steps = Vec::new();
        loop {
            let Some(recipe) = job.recipe else {
                let (mut finished, packed) = self.kept_tile(&job, pulse)?;
                finished.steps = steps;
                return Ok((finished, packed));
            };
            let (mut finished, planes) = self.quantized_tile(&job, &recipe, pulse)?;
            let transformed =
                finished.tile.rotation.is_some() || finished.tile.input_scale.is_some();
            let cosine = finished.cosine();
            let step = LadderStep::check(&recipe, transformed, cosine, job.min_cosine);
            if let Some(step) = step {
                let next = Rung::after(&recipe, &step);
                if job.is_alone(next.recipe.as_ref(), self.limits.tile_bytes) {
                    steps.push(step);
                    (job.recipe, job.spatial) = (next.recipe, next.spatial);
                    job.tile.encoding = job.recipe.map(|recipe| recipe.planned());
                    continue;
                }
            }
            finished.steps = steps;
            let packed = self.pack(&finished.tile, planes)?;
            return Ok((finished, packed));
        }
    }

    fn quantized_tile(
        &self,
        job: &TileJob,
        recipe: &Recipe,
        pulse: Pulse<'_>,
    ) -> Result<(Finished, TileBuffers)> {
        let prepared = self.prepare(job, recipe, pulse)?;
        let mut held = Held {
            work: *self,
            planes: planes_for(&self.context.planes, &prepared.1),
            pulse,
        };
        let mut finished = self.quantize(job, recipe, prepared, &mut held)?;
        let planes = held.planes;
        finished.tile.checksum = checksum(&finished.tile, &planes);
        Ok((finished, planes))
    }

    fn kept_tile(&self, job: &TileJob, pulse: Pulse<'_>) -> Result<(Finished, PackedTile)> {
        let mut tile = job.tile.clone();
        let mut planes = planes_for(&self.context.planes, &tile);
        // In steps, so that progress is seen.
        for (offset, bytes) in job.kept_steps() {
            if self.context.pool.stopped() {
                return Err(Error::Cancelled);
            }
            let step = &mut planes.codes.bytes_mut()[offset..offset + bytes];
            self.read_kept(job, offset, step)?;
            pulse();
        }
        tile.checksum = checksum(&tile, &planes);
        let packed = self.pack(&tile, planes)?;
        Ok((Finished::kept(job, tile), packed))
    }

    fn pack(&self, tile: &Tile, planes: TileBuffers) -> Result<PackedTile> {
        let packed = (self.limits.pack)(tile, planes);
        packed.map_err(Error::io(self.context.source.path(), "compress"))
    }
}

/// Memory for the planes that a tile has.
fn planes_for(buffers: &Buffers, tile: &Tile) -> TileBuffers {
    let [codes, scales, biases] = tile.plane_bytes().unwrap_or_default();
    let has = |plane: fn(Encoding) -> bool| tile.encoding.is_some_and(plane);
    TileBuffers {
        codes: buffers.take(codes),
        scales: has(Encoding::has_scales).then(|| buffers.take(scales)),
        biases: has(Encoding::has_biases).then(|| buffers.take(biases)),
    }
}

fn checksum(tile: &Tile, planes: &TileBuffers) -> u64 {
    schema::checksum(
        tile,
        planes.codes.bytes(),
        planes.scales.as_ref().map(|plane| plane.bytes()),
        planes.biases.as_ref().map(|plane| plane.bytes()),
    )
}

impl Target for Held<'_> {
    fn restart(&mut self, tile: &Tile) -> Result<()> {
        self.planes = planes_for(&self.work.context.planes, tile);
        Ok(())
    }

    fn quantize(&mut self, job: &TileJob, how: How<'_>) -> Attempt {
        let (work, tile) = (&self.work, &job.tile);
        let cols = tile.shape.cols();
        let step = rows_per_piece(cols);
        let mut outcomes: Vec<_> = (0..tile.row_count).step_by(step).map(|_| None).collect();
        let mut rest = self.planes.bytes_mut();
        let mut pieces = Vec::with_capacity(outcomes.len());
        for (i, outcome) in outcomes.iter_mut().enumerate() {
            let rows = step.min(tile.row_count - i * step);
            let mut bytes = how.encoding.plane_bytes(cols).into_iter();
            let [codes, scales, biases] = rest
                .each_mut()
                .map(|plane| take(plane, rows * bytes.next().unwrap_or(0)));
            pieces.push(Piece {
                row: tile.row_start + i * step,
                rows,
                planes: PlanesMut {
                    codes,
                    scales,
                    biases,
                },
                outcome,
            });
        }
        let pool = work.context.pool;
        pool.each(pieces, self.pulse, |piece| {
            if !pool.stopped() {
                let (row, rows, planes) = (piece.row, piece.rows, piece.planes);
                *piece.outcome = Some(work.piece(job.tensor, row, rows, how, planes));
            }
        });
        // Of several errors that of the first piece counts.
        let mut total = Outcome::default();
        for outcome in outcomes {
            match outcome.unwrap_or(Err(Error::Cancelled))? {
                Ok(outcome) => total.add(outcome),
                Err(fault) => return Ok(Err(fault)),
            }
        }
        Ok(Ok(total))
    }

    fn output(&mut self, job: &TileJob, tile: &Tile) -> Result<Option<OutputSums>> {
        let Some(encoding) = tile.encoding else {
            return Ok(None);
        };
        let planes = self.planes.bytes();
        let bytes = encoding.plane_bytes(tile.shape.cols());
        let read = |row: usize, rows: usize, out: &mut [Vec<u8>; 3]| {
            for ((out, plane), bytes) in out.iter_mut().zip(planes).zip(bytes) {
                out.clear();
                out.extend_from_slice(&plane[row * bytes..(row + rows) * bytes]);
            }
            Ok(())
        };
        let inputs = &self.work.inputs;
        inputs.forms_of_errors(job.tensor, tile, &read, self.pulse)
    }
}

/// Splits the first `len` bytes off a plane.
fn take<'a>(rest: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let (first, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    first
}
