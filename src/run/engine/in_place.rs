//! Tiles too large to be held: their pieces are written where they belong in the file.

use std::ops::ControlFlow;

use super::job::TileJob;
use super::tile::{Attempt, Finished, How, Target, TileWork};
use crate::error::Result;
use crate::quantize::{Outcome, PlanesMut};
use crate::run::inputs::OutputSums;
use crate::run::progress::Counter;
use crate::schema::Tile;
use crate::sink::{OpenTile, Sink};

/// A tile that is made in the file.
struct InPlace<'a, 'done, 'tell> {
    work: TileWork<'a>,
    tile: Box<dyn OpenTile + 'a>,
    counter: &'a mut Counter<'done, 'tell>,
    /// Bytes of planes in flight.
    budget: usize,
}

impl TileWork<'_> {
    /// Makes a tile in the file, with so many bytes of planes in flight. The tile is ended once
    /// `take` has looked at it.
    pub(crate) fn in_place(
        &self,
        job: &TileJob,
        sink: &mut dyn Sink,
        budget: usize,
        counter: &mut Counter<'_, '_>,
        take: impl FnOnce(&Finished) -> Result<()>,
    ) -> Result<()> {
        if let Some(recipe) = &job.recipe {
            let prepared = self.prepare(job, recipe, &|| ())?;
            let mut target = InPlace {
                work: *self,
                tile: sink.open(&prepared.1)?,
                counter,
                budget,
            };
            let finished = self.quantize(job, recipe, prepared, &mut target)?;
            take(&finished)?;
            return target.tile.end(finished.tile);
        }
        let mut tile = sink.open(&job.tile)?;
        self.context.pool.in_order(
            job.kept_steps().map(|step| (step.1, step)),
            budget,
            |(offset, len), _| {
                let mut values = self.context.planes.take(len);
                self.read_kept(job, offset, values.bytes_mut())?;
                Ok(values)
            },
            || counter.tell(),
            |values, _| tile.fill([values.bytes(), &[], &[]]),
        )?;
        let finished = Finished::kept(job, job.tile.clone());
        take(&finished)?;
        tile.end(finished.tile)
    }
}

impl Target for InPlace<'_, '_, '_> {
    fn restart(&mut self, tile: &Tile) -> Result<()> {
        self.tile.restart(tile)
    }

    fn quantize(&mut self, job: &TileJob, how: How<'_>) -> Attempt {
        let Self {
            work,
            tile,
            counter,
            budget,
        } = self;
        let bytes = how.encoding.plane_bytes(job.tile.shape.cols());
        let cost = job.piece_cost() + job.piece_bytes();
        let mut total = Outcome::default();
        let done = work.context.pool.in_order_until(
            job.row_steps().map(|piece| (cost, piece)),
            *budget,
            |(row, rows), _| {
                let mut made = bytes.map(|bytes| work.context.planes.take(rows * bytes));
                let [codes, scales, biases] = made.each_mut().map(|plane| plane.bytes_mut());
                let planes = PlanesMut {
                    codes,
                    scales,
                    biases,
                };
                let outcome = work.piece(job.tensor, row, rows, how, planes)?;
                Ok((outcome, made))
            },
            || counter.tell(),
            |(outcome, planes), _| match outcome {
                Ok(outcome) => {
                    total.add(outcome);
                    tile.fill(planes.each_ref().map(|plane| plane.bytes()))?;
                    Ok(ControlFlow::Continue(()))
                }
                Err(fault) => Ok(ControlFlow::Break(fault)),
            },
        )?;
        Ok(match done {
            ControlFlow::Continue(()) => Ok(total),
            ControlFlow::Break(fault) => Err(fault),
        })
    }

    fn output(&mut self, job: &TileJob, tile: &Tile) -> Result<Option<OutputSums>> {
        let Some(encoding) = tile.encoding else {
            return Ok(None);
        };
        let bytes = encoding.plane_bytes(tile.shape.cols());
        let open = &self.tile;
        let read = |row: usize, rows: usize, out: &mut [Vec<u8>; 3]| {
            for (out, bytes) in out.iter_mut().zip(bytes) {
                out.resize(rows * bytes, 0);
            }
            open.read_planes(
                bytes.map(|bytes| row * bytes),
                out.each_mut().map(|out| &mut out[..]),
            )
        };
        let (work, counter) = (&self.work, &mut self.counter);
        let mut found = None;
        // A job of its own, so that progress is told meanwhile.
        work.context.pool.in_order(
            [(0, ())],
            0,
            |(), pulse| work.inputs.forms_of_errors(job.tensor, tile, &read, pulse),
            || counter.tell(),
            |sums, _| {
                found = sums;
                Ok(())
            },
        )?;
        Ok(found)
    }
}
