//! Runs as callers know them: from a source and a plan to a file, a folder or memory.

use std::path::Path;

use super::engine::{Engine, jobs};
use super::folder::{self, PART_BYTES, Share};
use super::memory::DEFAULT_BUDGET;
use super::progress::{LogFn, ProgressFn};
use super::report::Report;
use crate::error::{Error, MEMORY, Result};
use crate::format::ScaleDtype;
use crate::model::choose_table;
use crate::plan::{Config, Plan};
use crate::schema::Tile;
use crate::sink::{Destination, StagedFile};
use crate::source::{self, Source};

/// How a run goes about it; nothing here changes what tensors become.
pub struct Options<'a> {
    /// Threads that quantize; 0 is all of the machine's, 1 starts none.
    pub threads: usize,
    /// Bytes of planes in flight, where the plan sets no limit that asks for less.
    pub budget: usize,
    /// Bytes of memory that are free; `None` asks the machine. A run that would take more
    /// streams.
    pub free_memory: Option<u64>,
    /// Into a folder: goes on with the parts that are there.
    pub resume: bool,
    /// Into a folder: does this share of the work only. [`merge`](super::merge) makes one model
    /// of all.
    pub share: Option<Share>,
    /// Into a folder: bytes of planes after which a part ends.
    pub part_bytes: usize,
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
            free_memory: None,
            resume: false,
            share: None,
            part_bytes: PART_BYTES,
            progress: None,
            log: None,
        }
    }
}

/// Quantizes what [`source::open`] opens into a Parquet file or a folder of parts, as `config`
/// wants it, with its threads unless `options` give others.
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

/// Does a plan: quantizes `source` into the Parquet file `output` if that ends in `.parquet`, and
/// else into a folder of parts, of which each appears whole, with a `manifest.json`. The bytes of
/// a file depend on source and plan alone; those of parts on how they are cut, too.
///
/// A folder belongs to one source and one plan: a run of another into it is refused. With
/// [`Options::resume`] the parts that are there already are left as they are.
///
/// # Errors
/// The plan is not for this source, the memory limit is too small, a tensor cannot be read or
/// quantized, a file of the source was changed meanwhile, or the output cannot be written.
/// Whatever was at `output` is then untouched, and nothing but whole parts is left behind.
pub fn quantize(
    source: &dyn Source,
    plan: &Plan,
    output: &Path,
    options: Options<'_>,
) -> Result<Report> {
    plan.check_matches(source.tensors())?;
    if !is_file(output)? {
        return folder::quantize(source, plan, output, options);
    }
    if options.resume || options.share.is_some() {
        let key = if options.resume { "resume" } else { "part" };
        let reason = format!(
            "'{}' is one file, which is done at once: name a folder",
            output.display()
        );
        return Err(Error::config(key, reason));
    }
    check_not_input(source, output)?;
    let destination = || StagedFile::create(output).map(Destination::File);
    quantize_to(source, plan, output, destination, options)
}

/// Whether an output is one file, not a folder of parts.
///
/// # Errors
/// It is called as a model of another format: nobody means a folder by that.
fn is_file(output: &Path) -> Result<bool> {
    const OTHERS: &[&str] = &[
        "bin",
        "ckpt",
        "gguf",
        "json",
        "onnx",
        "pt",
        "pth",
        "safetensors",
        "yaml",
    ];
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    if OTHERS.contains(&extension.as_ref()) {
        let reason = format!(
            "'{}' does not end in .parquet, nor is it a name for a folder",
            output.display()
        );
        return Err(Error::config("output", reason));
    }
    Ok(extension == "parquet")
}

/// Does a plan that matches its source into one destination, which is made once nothing stands
/// against it.
fn quantize_to<'out>(
    source: &dyn Source,
    plan: &Plan,
    output: &Path,
    destination: impl FnOnce() -> Result<Destination<'out>>,
    options: Options<'_>,
) -> Result<Report> {
    let all = 0..plan.entries.len();
    Engine::run(source, plan, all.clone(), options, |engine| {
        let bytes = engine.write(all.clone(), destination()?, |_| None)?;
        Ok(engine.report(all, output, bytes))
    })
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
    let compress = plan.compresses();
    // Escaped, as in the summary.
    let text = |text: &str| serde_json::json!(text).to_string().len();
    let mut bytes = FOOTER + text(&plan.config.to_string()) + text(&source.id().name);
    for (key, value) in source.metadata() {
        bytes += 2 * (text(key) + text(value)); // quotes are escaped once more
    }
    for job in jobs(source, plan, 0..plan.entries.len())? {
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

/// Checks `AQ_ISA`, the one variable that the library reads.
///
/// # Errors
/// It names no instruction set of this build.
pub fn check_environment() -> Result<()> {
    choose_table().map(drop)
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
