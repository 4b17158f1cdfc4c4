//! A run under way: tiles are read, quantized and measured by the pool, piece by piece, and
//! written by the calling thread in plan order, into one file or several.

mod held;
mod in_place;
mod job;
mod ladder;
mod ledger;
mod memory;
mod size;
mod tile;

use std::iter::from_fn;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use serde_json::Value;

use self::job::{TileJob, jobs};
pub(crate) use self::ladder::Ladder;
pub(crate) use self::ledger::Ledger;
use self::memory::MemoryPlan;
pub(crate) use self::size::most_overhead;
pub use self::size::{output_bound, predicted_bytes};
use self::tile::TileWork;
#[cfg(test)]
pub(crate) use self::tile::set_figures;
use super::context::Context;
use super::inputs::{Calibrator, Inputs};
use super::options::Options;
use super::pool::{resolve, with_pool};
use super::progress::{Counter, Level, say};
use super::report::Report;
use crate::error::{Error, Result};
use crate::format::rows_per_piece;
use crate::model::choose_table;
use crate::plan::{OnNonFinite, Plan};
use crate::quantize::{Matrix, find_non_finite};
use crate::sink::{Buffers, Destination, Footer, Sink, SinkKind};
use crate::source::{self, Source};

/// What all files of a run share.
pub(super) struct Engine<'run, 'tell> {
    pub(super) ledger: Ledger<'tell>,
    work: TileWork<'run>,
    kind: &'static SinkKind,
    memory: MemoryPlan,
    counter: Counter<'run, 'tell>,
    threads: usize,
    started: Instant,
}

impl Engine<'_, '_> {
    /// Starts a run over some entries of a plan that matches its source, and calls `body` to
    /// write them into files of a kind.
    ///
    /// # Errors
    /// The memory limit is too small, a tensor is not finite where that is an error, or `body`
    /// fails.
    pub(super) fn run<R>(
        source: &dyn Source,
        plan: &Plan,
        kind: &'static SinkKind,
        entries: Range<usize>,
        mut options: Options<'_>,
        body: impl FnOnce(&mut Engine<'_, '_>) -> Result<R>,
    ) -> Result<R> {
        let started = Instant::now();
        for warning in plan.warnings() {
            say(&mut options.log, Level::Warning, &warning)?;
        }
        let table = choose_table()?;
        let calibrator = Calibrator::new(plan, &mut options.log)?;
        let calibrator = calibrator.as_ref();
        let limits = (kind.limits)(plan.compresses());
        for (i, entry) in plan.entries.iter().enumerate() {
            let format = entry.recipe.map(|recipe| recipe.format());
            if let Some(format) = format.filter(|f| !f.spec().sinks.contains(&kind.extension)) {
                let reason = format!(".{} files cannot hold {format}", kind.extension);
                return Err(Error::tensor(source.path_of(i), &entry.tensor.name, reason));
            }
        }
        let threads = resolve(options.threads);
        let all = jobs(source, plan, &limits, calibrator, entries.clone())?;
        let memory = MemoryPlan::new(source, plan, (&all, &limits), threads, calibrator, &options)?;
        drop(all);
        if let Some(because) = &memory.because {
            say(
                &mut options.log,
                Level::Info,
                &format!("streaming: {because}"),
            )?;
        }
        let shared = options.share.is_some_and(|share| share.count > 1);
        let done = AtomicUsize::new(0);
        let total = plan.entries[entries.clone()].iter();
        let total = total.map(|entry| entry.source_bytes());
        let counter = Counter::new(&done, total.sum(), options.progress);
        with_pool(options.threads, |pool| {
            let planes = Buffers::new(memory.waiting);
            let context = Context::new(source, table, pool, planes, &done);
            let inputs = Inputs {
                context: &context,
                calibrator,
            };
            body(&mut Engine {
                ledger: Ledger::new(plan, shared, options.log),
                work: TileWork {
                    context: &context,
                    inputs,
                    limits,
                },
                kind,
                memory,
                counter,
                threads,
                started,
            })
        })
    }

    /// The source of the run.
    pub(super) fn source(&self) -> &dyn Source {
        self.work.context.source
    }

    /// Turns tensors with non-finite weights into kept ones, where the plan says so, reading all
    /// that are to be quantized once more.
    fn keep_non_finite(&mut self, entries: Range<usize>) -> Result<()> {
        if self.ledger.plan.on_nonfinite != OnNonFinite::Keep {
            return Ok(());
        }
        let mut pieces = Vec::new();
        for tensor in entries {
            let entry = &self.ledger.plan.entries[tensor];
            let shape = &entry.tensor.shape;
            let (rows, step) = (shape.rows(), rows_per_piece(shape.cols()));
            if entry.recipe.is_some() {
                pieces.extend((0..rows).step_by(step).map(|row| {
                    let rows = step.min(rows - row);
                    (rows * shape.cols() * 4, (tensor, row, rows))
                }));
            }
        }
        let Self {
            work,
            counter,
            ledger,
            ..
        } = self;
        let context = work.context;
        let mut found: Option<usize> = None;
        context.pool.in_order(
            pieces,
            self.memory.in_flight,
            |(tensor, row, rows), _| {
                let finite = |matrix: Matrix<'_>| find_non_finite(matrix).is_none();
                Ok((tensor, context.with_rows(tensor, row, rows, finite)?))
            },
            || counter.tell(),
            |(tensor, finite), _| {
                // Pieces come tensor by tensor.
                if !finite && found != Some(tensor) {
                    found = Some(tensor);
                    ledger.keep_non_finite(tensor)?;
                }
                Ok(())
            },
        )
    }

    /// Tells that some entries are done already.
    pub(super) fn skip(&mut self, entries: Range<usize>) -> Result<()> {
        let bytes = self.ledger.plan.entries[entries].iter();
        let bytes = bytes.map(|entry| entry.source_bytes()).sum();
        self.work.context.advance(bytes);
        self.counter.tell()
    }

    /// Quantizes some entries into one file; `part` is what its footer says of it as a part,
    /// given their tallies. Returns its size in bytes.
    ///
    /// # Errors
    /// A tensor cannot be read or quantized, the source was changed meanwhile, or the
    /// destination cannot be written; it is then left as it was.
    pub(super) fn write(
        &mut self,
        entries: Range<usize>,
        destination: Destination<'_>,
        part: impl FnOnce(&Ledger<'_>) -> Option<Value>,
    ) -> Result<u64> {
        self.keep_non_finite(entries.clone())?;
        let compress = self.ledger.plan.compresses();
        let mut sink = (self.kind.create)(destination, compress)?;
        let mut rest = entries.clone();
        while let Some(again) = self.tensors(rest.clone(), sink.as_mut())? {
            rest.start = again;
        }
        let context = self.work.context;
        self.ledger.tell_of_values(context, entries.clone())?;
        let source = context.source;
        source.check_unchanged()?;
        let footer = Footer {
            modality: self.ledger.plan.modality.name().to_owned(),
            config: self.ledger.plan.config.clone(),
            source: source::record(source),
            source_metadata: source.metadata().clone(),
            summary: self.summary(entries),
            part: part(&self.ledger),
        };
        let counter = &mut self.counter;
        sink.finish(footer, &mut || counter.tell())
    }

    /// Writes some tensors, all of them or up to one that is to be done again from there on, as it
    /// did not reach its cosine; that one is then returned.
    fn tensors(&mut self, entries: Range<usize>, sink: &mut dyn Sink) -> Result<Option<usize>> {
        let (limits, threads) = (self.work.limits, self.threads);
        let memory = self.memory.clone();
        let calibrator = self.work.inputs.calibrator;
        let source = self.work.context.source;
        let plan = &self.ledger.plan;
        // A tensor climbs by itself, before it is written, unless what it may take depends on the
        // tensors before it.
        let climbs_alone = memory.limit.is_none() && plan.room.is_none() && !plan.fail_fast;
        let mut jobs = jobs(source, plan, &limits, calibrator, entries)?;
        for job in &mut jobs {
            job.spatial = self.ledger.tallies[job.tensor].spatial;
            if climbs_alone {
                job.min_cosine = plan.entries[job.tensor].min_cosine;
            }
        }
        let mut jobs = jobs.into_iter().peekable();
        loop {
            let held = from_fn(|| jobs.next_if(|job| !memory.in_place(job, &limits, threads)));
            if let Some(again) = self.held(held, sink)? {
                return Ok(Some(again));
            }
            let Some(job) = jobs.next() else {
                return Ok(None);
            };
            if self.in_place(&job, sink)? {
                return Ok(Some(job.tensor));
            }
        }
    }

    /// Writes tiles that are held until they are done, all of them or up to a tensor that is to be
    /// done again; that one is then returned.
    fn held(
        &mut self,
        jobs: impl Iterator<Item = TileJob>,
        sink: &mut dyn Sink,
    ) -> Result<Option<usize>> {
        let Self {
            work,
            counter,
            ledger,
            ..
        } = self;
        let (limits, threads, source) = (work.limits, self.threads, work.context.source);
        // Without a budget one job is in flight, whose pieces take all threads.
        let budget = match source.in_turn() {
            true => 0,
            false => self.memory.in_flight,
        };
        let cost = |job: &TileJob| job.cost(&limits).saturating_add(job.guide_cost(threads));
        let done = work.context.pool.in_order_until(
            jobs.map(|job| (cost(&job), job)),
            budget,
            |job, pulse| work.tile(job, pulse),
            || counter.tell(),
            |(finished, planes), go_on| {
                let (tensor, is_last) = (finished.tensor, finished.is_last);
                ledger.take(&finished)?;
                if finished.tile.tile == 0 {
                    sink.begin_tensor();
                }
                sink.write(finished.tile, planes, go_on)?;
                Ok(match is_last && ledger.judge(source, tensor, sink)? {
                    true => ControlFlow::Break(tensor),
                    false => ControlFlow::Continue(()),
                })
            },
        )?;
        Ok(done.break_value())
    }

    /// Writes a tile piece by piece into the place that it has in the file, and tells whether its
    /// tensor is to be done again.
    fn in_place(&mut self, job: &TileJob, sink: &mut dyn Sink) -> Result<bool> {
        let Self {
            work,
            counter,
            ledger,
            ..
        } = self;
        if job.tile.tile == 0 {
            sink.begin_tensor();
        }
        let guided = job.guide_cost(self.threads);
        let budget = self.memory.in_flight.saturating_sub(guided);
        let take = |finished: &_| ledger.take(finished);
        work.in_place(job, sink, budget, counter, take)?;
        Ok(job.is_last() && ledger.judge(work.context.source, job.tensor, sink)?)
    }

    /// What some entries came to, as files record it.
    pub(super) fn summary(&self, entries: Range<usize>) -> Value {
        let calibrator = self.work.inputs.calibrator;
        self.ledger.summary(entries, calibrator)
    }

    /// The report of a run over some entries.
    pub(super) fn report(&self, entries: Range<usize>, output: &Path, bytes: u64) -> Report {
        let source_bytes = self.ledger.plan.entries[entries.clone()].iter();
        let context = self.work.context;
        Report {
            source: context.source.id(),
            output: output.display().to_string(),
            output_bytes: bytes,
            source_bytes: source_bytes.map(|entry| entry.source_bytes()).sum(),
            total: self.ledger.total(entries.clone()).totals(),
            tensors: self.ledger.reports(entries, self.work.inputs.calibrator),
            memory_limit: self.memory.limit,
            streaming_because: self.memory.because.clone(),
            parts: None,
            seconds: self.started.elapsed().as_secs_f64(),
            threads: self.threads,
            isa: context.table.isa().name(),
        }
    }
}
