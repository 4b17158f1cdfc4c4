//! A run under way: tiles are read, quantized and measured by the pool, piece by piece, and
//! written by the calling thread in plan order, into one file or several.

use std::iter::from_fn;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use serde_json::Value;

use super::guide::Calibrator;
use super::job::Job;
use super::ladder::{Ladder, Verdict};
use super::memory::Memory;
use super::options::Options;
use super::output::OutputSums;
use super::pool::{resolve, with_pool};
use super::progress::{Counter, Level, LogFn, say};
use super::report::{Report, TensorReport, TensorTally, TotalTally, summary};
use super::tile::{CalibratedTile, How, Work, set_figures, set_kept_figures, wider};
use crate::error::{Error, Result};
use crate::format::{Recipe, TILE_BYTES, TILE_BYTES_COMPRESSED, rows_per_tile};
use crate::model::choose_table;
use crate::plan::{NO_MIN_COSINE, OnNonFinite, Plan, PlanEntry};
use crate::quantize::{Fault, Outcome, PlanesMut};
use crate::schema::Tile;
use crate::sink::{Buffers, Destination, Footer, ParquetSink};
use crate::source::{self, Source};
use crate::tensor::shortened;

/// Parquet readers refuse a value of 2 GiB or more; the page around it needs a little room.
const LARGEST_PLANE: usize = i32::MAX as usize - 1024;

/// What all files of a run share.
pub(super) struct Engine<'run, 'tell> {
    pub(super) source: &'run dyn Source,
    /// Without the recipes of tensors that turned out not to be finite.
    pub(super) plan: Plan,
    /// One a tensor of the plan.
    pub(super) tallies: Vec<TensorTally>,
    work: Work<'run>,
    memory: Memory,
    pub(super) ladder: Ladder,
    counter: Counter<'run, 'tell>,
    log: Option<LogFn<'tell>>,
    threads: usize,
    started: Instant,
}

impl Engine<'_, '_> {
    /// Starts a run over some entries of a plan that matches its source, and calls `body` to
    /// write them.
    ///
    /// # Errors
    /// The memory limit is too small, a tensor is not finite where that is an error, or as
    /// `body`.
    pub(super) fn run<R>(
        source: &dyn Source,
        plan: &Plan,
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
        let threads = resolve(options.threads);
        let all = jobs(source, plan, calibrator.as_ref(), entries.clone())?;
        let memory = Memory::new(source, plan, &all, threads, calibrator.as_ref(), &options)?;
        drop(all);
        if let Some(because) = &memory.because {
            say(
                &mut options.log,
                Level::Info,
                &format!("streaming: {because}"),
            )?;
        }
        let shared = options.share.is_some_and(|share| share.count > 1);
        let ladder = Ladder::new(plan, shared);
        let done = AtomicUsize::new(0);
        let total = plan.entries[entries.clone()].iter();
        let total = total.map(|entry| entry.source_bytes());
        let counter = Counter::new(&done, total.sum(), options.progress);
        with_pool(options.threads, |pool| {
            let mut engine = Engine {
                source,
                plan: plan.clone(),
                tallies: plan.entries.iter().map(|_| TensorTally::new()).collect(),
                work: Work {
                    source,
                    table,
                    pool,
                    compress: plan.compresses(),
                    done: &done,
                    buffers: Mutex::default(),
                    lost: Mutex::default(),
                    planes: Buffers::new(memory.waiting),
                    calibrator: calibrator.as_ref(),
                },
                memory,
                ladder,
                counter,
                log: options.log,
                threads,
                started,
            };
            body(&mut engine)
        })
    }

    fn keep_non_finite(&mut self, entries: Range<usize>) -> Result<()> {
        if self.plan.on_nonfinite != OnNonFinite::Keep {
            return Ok(());
        }
        let Self { work, counter, .. } = self;
        let (plan, tallies) = (&mut self.plan, &mut self.tallies);
        let budget = self.memory.in_flight;
        let planned: Vec<usize> = plan.entries.iter().map(PlanEntry::bytes).collect();
        work.keep_non_finite(plan, tallies, entries.clone(), budget, || counter.tell())?;
        for i in entries {
            if self.tallies[i].kept_non_finite {
                let kept = self.plan.entries[i].bytes();
                self.ladder.spend(kept.saturating_sub(planned[i]));
                let name = &self.plan.entries[i].tensor.name;
                let message = format!("tensor '{name}' has NaN or infinite weights, kept");
                say(&mut self.log, Level::Warning, &message)?;
            }
        }
        Ok(())
    }

    /// Tells that some entries are done already.
    pub(super) fn skip(&mut self, entries: Range<usize>) -> Result<()> {
        let bytes = self.plan.entries[entries].iter();
        let bytes = bytes.map(|entry| entry.source_bytes()).sum();
        self.work.advance(bytes);
        self.counter.tell()
    }

    /// Quantizes some entries into one file; `part` is what its footer says of it as a part,
    /// given its tallies. Returns its size in bytes.
    ///
    /// # Errors
    /// A tensor cannot be read or quantized, the source was changed meanwhile, or the
    /// destination cannot be written; it is then left as it was.
    pub(super) fn write(
        &mut self,
        entries: Range<usize>,
        destination: Destination<'_>,
        part: impl FnOnce(&Self) -> Option<Value>,
    ) -> Result<u64> {
        self.keep_non_finite(entries.clone())?;
        let mut sink = ParquetSink::create(destination, self.work.compress)?;
        let mut rest = entries.clone();
        while let Some(again) = self.tensors(rest.clone(), &mut sink)? {
            rest.start = again;
        }
        self.tell_of_values(entries.clone())?;
        self.source.check_unchanged()?;
        let footer = Footer {
            modality: self.plan.modality.name().to_owned(),
            config: self.plan.config.clone(),
            source: source::record(self.source),
            source_metadata: self.source.metadata().clone(),
            summary: self.summary(entries),
            part: part(self),
        };
        let counter = &mut self.counter;
        sink.finish(footer, &mut || counter.tell())
    }

    /// Warns of tensors whose weights are all 0, and of f64 weights that f32 does not hold.
    fn tell_of_values(&mut self, entries: Range<usize>) -> Result<()> {
        let mut zeros = Vec::new();
        let mut lost = Vec::new();
        let lossy = self
            .work
            .lost
            .lock()
            .map(|lost| lost.clone())
            .unwrap_or_default();
        for i in entries {
            let entry = &self.plan.entries[i];
            let name = entry.tensor.name.as_str();
            let tally = &self.tallies[i];
            if entry.recipe.is_some() && tally.error.signal == 0.0 && self.work.is_zero(i)? {
                zeros.push(name);
            }
            if lossy.contains(&i) {
                lost.push(name);
            }
        }
        for (names, what) in [
            (zeros, "all weights are zero (is the file complete?)"),
            (
                lost,
                "f64 weights that f32 does not hold became 0 or infinite",
            ),
        ] {
            if !names.is_empty() {
                let message = shortened(&format!("{what}: {}", names.join(", ")));
                say(&mut self.log, Level::Warning, &message)?;
            }
        }
        Ok(())
    }

    /// Writes some tensors, all of them or up to one that is to be done again from there on, as it
    /// did not reach its cosine; that one is then returned.
    fn tensors(
        &mut self,
        entries: Range<usize>,
        sink: &mut ParquetSink<'_>,
    ) -> Result<Option<usize>> {
        let compress = self.work.compress;
        let mut jobs = jobs(self.source, &self.plan, self.work.calibrator, entries)?;
        for job in &mut jobs {
            job.spatial = self.tallies[job.tensor].spatial;
            let plan = &self.plan;
            // Otherwise it is to be known what the tensors before it take.
            if self.memory.limit.is_none() && plan.room.is_none() && !plan.fail_fast {
                job.min_cosine = self.plan.entries[job.tensor].min_cosine;
            }
        }
        let mut jobs = jobs.into_iter().peekable();
        loop {
            let memory = self.memory.clone();
            let threads = self.threads;
            let held = from_fn(|| jobs.next_if(|job| !memory.in_place(job, compress, threads)));
            if let Some(again) = self.held(held, sink)? {
                return Ok(Some(again));
            }
            let Some(job) = jobs.next() else {
                return Ok(None);
            };
            if job.tile.tile == 0 {
                self.ladder.begin(sink.mark());
            }
            self.in_place(&job, sink)?;
            if job.is_last() && self.judge(job.tensor, sink)? {
                return Ok(Some(job.tensor));
            }
        }
    }

    /// Whether a tensor that is written is to be done again.
    fn judge(&mut self, tensor: usize, sink: &mut ParquetSink<'_>) -> Result<bool> {
        judge(
            &mut self.ladder,
            self.source,
            (&mut self.plan, &mut self.tallies),
            tensor,
            sink,
            &mut self.log,
        )
    }

    /// Writes tiles that are held until they are done; as [`Engine::tensors`].
    fn held(
        &mut self,
        jobs: impl Iterator<Item = Job>,
        sink: &mut ParquetSink<'_>,
    ) -> Result<Option<usize>> {
        let source = self.source;
        let mut again = None;
        let Self {
            work,
            counter,
            tallies,
            plan,
            ladder,
            log,
            ..
        } = self;
        let (compress, threads) = (work.compress, self.threads);
        // Without a budget one job is in flight, whose pieces take all threads.
        let budget = match work.source.in_turn() {
            true => 0,
            false => self.memory.in_flight,
        };
        let done = work.pool.in_order(
            jobs.map(|job| {
                (
                    job.cost(compress).saturating_add(job.guide_cost(threads)),
                    job,
                )
            }),
            budget,
            |job, pulse| work.tile(job, pulse),
            || counter.tell(),
            |finished, go_on| {
                let tensor = finished.tensor;
                let tally = &mut tallies[tensor];
                let entry = &mut plan.entries[tensor];
                for step in finished.steps {
                    let (next, message) = Ladder::take(entry, step);
                    tally.again(step, next);
                    say(log, Level::Info, &message)?;
                }
                tally.add(finished.bytes, &finished.error);
                tally.add_inputs(&finished.tile);
                tally.add_calibrated(finished.calibrated);
                if finished.needed_f32 {
                    widened(tally, &finished.tile, log)?;
                }
                if finished.tile.tile == 0 {
                    ladder.begin(sink.mark());
                }
                sink.write(finished.tile, finished.planes, go_on)?;
                if finished.is_last && judge(ladder, source, (plan, tallies), tensor, sink, log)? {
                    again = Some(tensor);
                    // Ends the work on what follows.
                    return Err(Error::Cancelled);
                }
                Ok(())
            },
        );
        match again {
            Some(_) => Ok(again),
            None => done.map(|()| None),
        }
    }

    /// Writes a tile piece by piece into the place that it has in the file.
    fn in_place(&mut self, job: &Job, sink: &mut ParquetSink<'_>) -> Result<()> {
        match job.recipe {
            Some(recipe) => self.quantized_in_place(job, &recipe, sink),
            None => self.kept_in_place(job, sink),
        }
    }

    fn kept_in_place(&mut self, job: &Job, sink: &mut ParquetSink<'_>) -> Result<()> {
        let Self { work, counter, .. } = self;
        sink.begin(&job.tile)?;
        work.pool.in_order(
            job.kept_steps().map(|step| (step.1, step)),
            self.memory.in_flight,
            |(offset, len), _| {
                let mut values = work.planes.take(len);
                work.read_kept(job, offset, values.bytes_mut())?;
                Ok(values)
            },
            || counter.tell(),
            |values, _| sink.fill([values.bytes(), &[], &[]]),
        )?;
        let mut tile = job.tile.clone();
        let bytes = set_kept_figures(&mut tile);
        self.tallies[job.tensor].add(bytes, &Default::default());
        sink.end(tile)
    }

    /// Scales are taken to fit f16. When the last piece shows that they do not, what was written
    /// is written over: that is rare, and cheaper than to look at every tile first.
    fn quantized_in_place(
        &mut self,
        job: &Job,
        recipe: &Recipe,
        sink: &mut ParquetSink<'_>,
    ) -> Result<()> {
        let planned = recipe.planned();
        let mut encoding = planned;
        let mut tile = job.tile.clone();
        let prepared = self.work.prepare(job.tensor, recipe, job.spatial)?;
        prepared.describe(&mut tile);
        let outcome = loop {
            tile.encoding = Some(encoding);
            sink.begin(&tile)?;
            let how = How {
                recipe,
                encoding,
                prepared: &prepared,
            };
            let quantized = self.pieces(job, how, sink)?;
            if let Some(wider) = wider(recipe, encoding, &quantized) {
                encoding = wider;
                sink.rewind();
                continue;
            }
            break quantized.map_err(|fault| self.work.explain(job.tensor, recipe, fault))?;
        };
        let bytes = set_figures(&mut tile, &outcome);
        let output = match prepared.weights {
            None => None,
            Some(_) => self.output_in_place(job, &tile, sink)?,
        };
        let tally = &mut self.tallies[job.tensor];
        tally.add(bytes, &outcome.error);
        tally.add_inputs(&tile);
        tally.add_calibrated(CalibratedTile {
            method: Some(prepared.method(recipe.method)),
            alpha: prepared.spatial.alpha,
            weights: prepared.weights,
            output,
        });
        if encoding != planned {
            widened(tally, &tile, &mut self.log)?;
        }
        sink.end(tile)
    }

    /// What the tile begun does to the layer's output, from its planes as they are in the file.
    fn output_in_place(
        &mut self,
        job: &Job,
        tile: &Tile,
        sink: &ParquetSink<'_>,
    ) -> Result<Option<OutputSums>> {
        let cols = tile.shape.cols();
        let Some(bytes) = tile.encoding.map(|encoding| encoding.plane_bytes(cols)) else {
            return Ok(None);
        };
        let read = |row: usize, rows: usize, out: &mut [Vec<u8>; 3]| {
            for (out, bytes) in out.iter_mut().zip(bytes) {
                out.resize(rows * bytes, 0);
            }
            sink.read_planes(
                bytes.map(|bytes| row * bytes),
                out.each_mut().map(|out| &mut out[..]),
            )
        };
        let (work, counter) = (&self.work, &mut self.counter);
        let mut found = None;
        work.pool.in_order(
            [(0, ())],
            0,
            |(), pulse| work.forms_of_errors(job.tensor, tile, &read, pulse),
            || counter.tell(),
            |sums, _| {
                found = sums;
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// Quantizes the pieces of a tile into the place begun. The outer error is of reading and
    /// writing, the inner of quantizing.
    fn pieces(
        &mut self,
        job: &Job,
        how: How<'_>,
        sink: &mut ParquetSink<'_>,
    ) -> Result<Result<Outcome, Fault>> {
        let Self { work, counter, .. } = self;
        let cols = job.tile.shape.cols();
        let sizes = how.encoding.plane_bytes(cols);
        let cost = job.piece_cost() + job.piece_bytes();
        let budget = self
            .memory
            .in_flight
            .saturating_sub(job.guide_cost(self.threads));
        let mut total = Outcome::default();
        let mut found = None;
        let done = work.pool.in_order(
            job.row_steps().map(|piece| (cost, piece)),
            budget,
            |(row, rows), _| {
                let take = |bytes: usize| work.planes.take(rows * bytes);
                let [mut codes, mut scales, mut biases] = sizes.map(take);
                let planes = PlanesMut {
                    codes: codes.bytes_mut(),
                    scales: scales.bytes_mut(),
                    biases: biases.bytes_mut(),
                };
                let outcome = work.piece(job.tensor, row, rows, how, planes)?;
                Ok((outcome, [codes, scales, biases]))
            },
            || counter.tell(),
            |(outcome, planes), _| match outcome {
                Ok(outcome) => {
                    total.add(outcome);
                    sink.fill(planes.each_ref().map(|plane| plane.bytes()))
                }
                // Ends the work on this tile.
                Err(fault) => {
                    found = Some(fault);
                    Err(Error::Cancelled)
                }
            },
        );
        match found {
            Some(fault) => Ok(Err(fault)),
            None => done.map(|()| Ok(total)),
        }
    }

    /// What some entries came to together.
    pub(super) fn total(&self, entries: Range<usize>) -> TotalTally {
        let mut total = TotalTally::default();
        for i in entries {
            total.add(&self.plan.entries[i], &self.tallies[i]);
        }
        total
    }

    /// What some entries came to, each.
    fn reports(&self, entries: Range<usize>) -> Vec<TensorReport> {
        let calibrator = self.work.calibrator;
        let report = |i: usize| self.tallies[i].report(&self.plan.entries[i], calibrator);
        entries.map(report).collect()
    }

    /// The same as files record it.
    pub(super) fn summary(&self, entries: Range<usize>) -> Value {
        summary(
            &self.total(entries.clone()).totals(),
            &self.reports(entries),
        )
    }

    /// The report of a run over some entries.
    pub(super) fn report(&self, entries: Range<usize>, output: &Path, bytes: u64) -> Report {
        let source_bytes = self.plan.entries[entries.clone()].iter();
        Report {
            source: self.source.id(),
            output: output.display().to_string(),
            output_bytes: bytes,
            source_bytes: source_bytes.map(|entry| entry.source_bytes()).sum(),
            total: self.total(entries.clone()).totals(),
            tensors: self.reports(entries),
            memory_limit: self.memory.limit,
            streaming_because: self.memory.because.clone(),
            parts: None,
            seconds: self.started.elapsed().as_secs_f64(),
            threads: self.threads,
            isa: self.work.table.isa().name(),
        }
    }
}

/// Whether a tensor that is written is to be done again; the file is then as before it.
fn judge(
    ladder: &mut Ladder,
    source: &dyn Source,
    (plan, tallies): (&mut Plan, &mut [TensorTally]),
    tensor: usize,
    sink: &mut ParquetSink<'_>,
    log: &mut Option<LogFn<'_>>,
) -> Result<bool> {
    let (entry, tally) = (&mut plan.entries[tensor], &mut tallies[tensor]);
    let (verdict, message) = ladder.judge(source, tensor, entry, tally)?;
    if let Some(message) = message {
        let level = match verdict {
            Verdict::Again => Level::Info,
            Verdict::Passed => Level::Warning,
        };
        say(log, level, &message)?;
    }
    match verdict {
        Verdict::Passed => Ok(false),
        Verdict::Again => {
            if let Some(mark) = ladder.rewind_to() {
                sink.rewind_to(mark);
            }
            Ok(true)
        }
    }
}

/// Notes that the scales of a tile did not fit f16.
fn widened(tally: &mut TensorTally, tile: &Tile, log: &mut Option<LogFn<'_>>) -> Result<()> {
    tally.f32_scale_tiles.push(tile.tile);
    let Tile { name, tile, .. } = tile;
    let message =
        format!("tensor '{name}', tile {tile}: f16 does not hold its scales, stored as f32");
    say(log, Level::Info, &message)
}

/// Cuts some entries into tiles, in plan order.
pub(super) fn jobs(
    source: &dyn Source,
    plan: &Plan,
    calibrator: Option<&Calibrator>,
    entries: Range<usize>,
) -> Result<Vec<Job>> {
    let tile_bytes = match plan.compresses() {
        true => TILE_BYTES_COMPRESSED,
        false => TILE_BYTES,
    };
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
            true => rows_per_tile(rows, code_bytes, tile_bytes),
            false => rows,
        };
        if rows > 0 && code_bytes > LARGEST_PLANE {
            let reason = format!("a row of {code_bytes} bytes is too large for a Parquet value");
            return Err(Error::tensor(source.path_of(tensor), &info.name, reason));
        }
        let known = calibrator.map_or((false, false), |c| c.knows(&info.name));
        // An empty tensor has one tile all the same.
        for (number, start) in (0..rows.max(1)).step_by(step.max(1)).enumerate() {
            let count = step.min(rows - start);
            jobs.push(Job {
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
