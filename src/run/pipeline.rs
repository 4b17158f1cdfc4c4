//! The one pipeline: tiles are read, quantized and measured by the pool, piece by piece, and
//! written by the calling thread in plan order, under a byte budget.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::pool::{resolve, with_pool};
use super::progress::{Counter, Level, LogFn, ProgressFn, say};
use super::report::{Report, TensorTally, TotalTally, summary};
use super::tile::{Job, Work};
use crate::error::{Error, MEMORY, Result};
use crate::format::{ScaleDtype, TILE_BYTES, TILE_BYTES_COMPRESSED, rows_per_tile};
use crate::model::choose_table;
use crate::plan::{Compression, Config, OnNonFinite, Plan};
use crate::schema::Tile;
use crate::sink::{Buffers, Destination, Footer, ParquetSink, StagedFile};
use crate::source::{self, Source};

/// Bytes of tiles in flight by default.
const DEFAULT_BUDGET: usize = 1 << 30;

/// Bytes of tiles in flight when streaming.
const STREAMING_BUDGET: usize = 8 << 20;

/// Parquet readers refuse a value of 2 GiB or more; the page around it needs a little room.
const LARGEST_PLANE: usize = i32::MAX as usize - 1024;

/// How a run goes about it; nothing here changes the output.
pub struct Options<'a> {
    /// Threads that quantize; 0 is all of the machine's, 1 starts none.
    pub threads: usize,
    /// Bytes of planes in flight. One tile is always allowed.
    pub budget: usize,
    /// Told how far the run has come.
    pub progress: Option<ProgressFn<'a>>,
    /// Told what is worth telling: what a plan does that was hardly meant, tensors that got
    /// something else than planned.
    pub log: Option<LogFn<'a>>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            threads: 0,
            budget: DEFAULT_BUDGET,
            progress: None,
            log: None,
        }
    }
}

/// Quantizes what [`source::open`] reads into a Parquet file, as `config` wants it, with its
/// threads unless `options` give others.
///
/// # Errors
/// As [`source::open`], [`Plan::new`] and [`quantize`].
pub fn quantize_file(
    input: &Path,
    output: &Path,
    config: &Config,
    mut options: Options<'_>,
) -> Result<Report> {
    let source = source::open(input)?;
    let plan = plan(source.as_ref(), config)?;
    if options.threads == 0 {
        options.threads = config.threads();
    }
    quantize(source.as_ref(), &plan, output, options)
}

/// The plan for a source.
///
/// # Errors
/// As [`Plan::new`].
pub fn plan(source: &dyn Source, config: &Config) -> Result<Plan> {
    let tensors = source.tensors().iter().enumerate();
    Plan::new(
        tensors.map(|(i, tensor)| (tensor, source.path_of(i))),
        config,
    )
}

/// Does a plan: quantizes `source` into the Parquet file `output`. The output's bytes depend on
/// source and plan alone.
///
/// # Errors
/// The plan is not for this source, a tensor cannot be read or quantized, or the output cannot
/// be written. Whatever was at `output` is then untouched, and nothing else is left behind.
pub fn quantize(
    source: &dyn Source,
    plan: &Plan,
    output: &Path,
    options: Options<'_>,
) -> Result<Report> {
    plan.check_matches(source.tensors())?;
    check_output(source, output)?;
    let destination = || StagedFile::create(output).map(Destination::File);
    quantize_to(source, plan, output, destination, options)
}

/// As [`quantize`], into memory: the file begins at the beginning of `output`, and is as many
/// bytes long as the report says. [`output_bound`] bytes are enough.
///
/// # Errors
/// As [`quantize`], or `output` is too small; it then holds nothing of use.
pub fn quantize_into(
    source: &dyn Source,
    plan: &Plan,
    output: &mut [u8],
    options: Options<'_>,
) -> Result<Report> {
    plan.check_matches(source.tensors())?;
    quantize_to(
        source,
        plan,
        Path::new(MEMORY),
        move || Ok(Destination::Memory(output)),
        options,
    )
}

/// Bytes that the file of a plan never exceeds. Scales may turn out to need f32, and how long
/// figures are as text is not known before, so the file is a little smaller.
///
/// # Errors
/// As [`quantize`] before it begins its work.
pub fn output_bound(source: &dyn Source, plan: &Plan) -> Result<usize> {
    /// Page headers, column metadata, figures and padding of a tile; all but its name and shape.
    const TILE: usize = 8 << 10;
    /// The schema, and what else there is once.
    const FOOTER: usize = 16 << 10;
    plan.check_matches(source.tensors())?;
    let compress = plan.compression == Compression::Zstd;
    // Escaped, as in the summary.
    let text = |text: &str| serde_json::json!(text).to_string().len();
    let mut bytes = FOOTER + text(&plan.config.to_string()) + text(&source.id().name);
    for (key, value) in source.metadata() {
        bytes += 2 * (text(key) + text(value)); // quotes are escaped once more
    }
    for job in jobs(source, plan, compress)? {
        let widest = job.recipe.map(|recipe| recipe.layout(ScaleDtype::F32));
        let tile = Tile {
            layout: widest,
            ..job.tile
        };
        let planes: usize = tile.plane_bytes().unwrap_or_default().iter().sum();
        // What zstd may add to what it cannot compress.
        bytes += planes + if compress { planes / 128 } else { 0 };
        bytes += TILE + 2 * text(&tile.name) + 32 * tile.shape.dims().len();
    }
    Ok(bytes)
}

/// Does a plan that matches its source, into a destination that is made once nothing stands
/// against it.
fn quantize_to<'out>(
    source: &dyn Source,
    plan: &Plan,
    output: &Path,
    destination: impl FnOnce() -> Result<Destination<'out>>,
    mut options: Options<'_>,
) -> Result<Report> {
    let started = Instant::now();
    for warning in plan.warnings() {
        say(&mut options.log, Level::Warning, &warning)?;
    }
    if plan.streaming {
        options.budget = options.budget.min(STREAMING_BUDGET);
    }
    let table = choose_table()?;
    let compress = plan.compression == Compression::Zstd;
    let done = AtomicUsize::new(0);
    let mut counter = Counter::new(&done, plan.source_bytes(), options.progress);

    with_pool(options.threads, |pool| {
        let mut plan = plan.clone();
        let work = Work {
            source,
            table,
            pool,
            compress,
            done: &done,
            buffers: Mutex::default(),
            planes: Buffers::new(options.budget / 4),
        };
        let mut tallies: Vec<TensorTally> =
            plan.entries.iter().map(|_| TensorTally::new()).collect();
        if plan.on_nonfinite == OnNonFinite::Keep {
            work.keep_non_finite(&mut plan, &mut tallies, options.budget, || counter.tell())?;
            for (entry, tally) in plan.entries.iter().zip(&tallies) {
                if tally.kept_non_finite {
                    let name = &entry.tensor.name;
                    let message = format!("tensor '{name}' has NaN or infinite weights, kept");
                    say(&mut options.log, Level::Warning, &message)?;
                }
            }
        }
        let jobs = jobs(source, &plan, compress)?;

        let mut sink = ParquetSink::create(destination()?, compress)?;
        // Without a budget one job is in flight, whose pieces take all threads.
        let budget = if source.in_turn() { 0 } else { options.budget };
        pool.in_order(
            jobs.into_iter().map(|job| (job.cost(compress), job)),
            budget,
            |job, pulse| work.tile(job, pulse),
            || counter.tell(),
            |finished| {
                let tally = &mut tallies[finished.tensor];
                tally.bytes += finished.bytes;
                tally.error.add(finished.error);
                if finished.needed_f32 {
                    tally.f32_scale_tiles.push(finished.tile.tile);
                    let Tile { name, tile, .. } = &finished.tile;
                    let message = format!(
                        "tensor '{name}', tile {tile}: f16 does not hold its scales, stored as f32"
                    );
                    say(&mut options.log, Level::Info, &message)?;
                }
                sink.write(finished.tile, finished.planes)
            },
        )?;

        let mut total = TotalTally::default();
        let mut tensors = Vec::with_capacity(plan.entries.len());
        for (entry, tally) in plan.entries.iter().zip(tallies) {
            total.add(entry, &tally);
            tensors.push(tally.report(entry));
        }
        let total = total.totals();
        let output_bytes = sink.finish(Footer {
            modality: plan.modality.name().to_owned(),
            config: plan.config.clone(),
            source: serde_json::to_value(source.id()).expect("plain data"),
            source_metadata: source.metadata().clone(),
            summary: summary(&total, &tensors),
        })?;
        Ok(Report {
            source: source.id(),
            output: output.display().to_string(),
            output_bytes,
            source_bytes: plan.source_bytes(),
            total,
            tensors,
            seconds: started.elapsed().as_secs_f64(),
            threads: resolve(options.threads),
            isa: table.isa().name(),
        })
    })
}

/// Checks `AQ_ISA`, the one variable that the library reads.
///
/// # Errors
/// It names no instruction set of this build.
pub fn check_environment() -> Result<()> {
    choose_table().map(drop)
}

fn check_output(source: &dyn Source, output: &Path) -> Result<()> {
    if output
        .extension()
        .is_none_or(|extension| extension != "parquet")
    {
        let reason = format!("'{}' does not end in .parquet", output.display());
        return Err(Error::config("output", reason));
    }
    check_not_input(source, output)
}

/// Refuses a path to write to that is one of the files being read.
///
/// # Errors
/// It is one of them.
pub fn check_not_input(source: &dyn Source, output: &Path) -> Result<()> {
    // A file that does not exist yet is no input.
    let Ok(output) = output.canonicalize() else {
        return Ok(());
    };
    for i in 0..source.tensors().len() {
        if source
            .path_of(i)
            .canonicalize()
            .is_ok_and(|input| input == output)
        {
            return Err(Error::file(
                &output,
                "would be overwritten while it is read",
            ));
        }
    }
    Ok(())
}

/// Cuts every tensor into tiles, in plan order.
fn jobs(source: &dyn Source, plan: &Plan, compress: bool) -> Result<Vec<Job>> {
    let tile_bytes = if compress {
        TILE_BYTES_COMPRESSED
    } else {
        TILE_BYTES
    };
    let mut jobs = Vec::new();
    for (tensor, entry) in plan.entries.iter().enumerate() {
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
        let layout = entry.recipe.map(|recipe| recipe.planned_layout());
        let code_bytes = layout.map_or(row_bytes, |layout| layout.code_bytes(cols));
        let step = match whole_rows {
            true => rows_per_tile(rows, code_bytes, tile_bytes),
            false => rows,
        };
        if rows > 0 && code_bytes > LARGEST_PLANE {
            let reason = format!("a row of {code_bytes} bytes is too large for a Parquet value");
            return Err(Error::tensor(source.path_of(tensor), &info.name, reason));
        }
        // An empty tensor has one tile all the same.
        for (number, start) in (0..rows.max(1)).step_by(step.max(1)).enumerate() {
            let count = step.min(rows - start);
            jobs.push(Job {
                tensor,
                recipe: entry.recipe,
                row_bytes,
                tile: Tile {
                    name: info.name.clone(),
                    tile: number as u32,
                    row_start: start,
                    row_count: count,
                    shape: info.shape.clone(),
                    source_dtype: info.dtype,
                    layout,
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
