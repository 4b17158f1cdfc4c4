//! Runs as callers know them: from a source and a plan to a file, a folder or memory.

use std::path::Path;

use super::engine::{Engine, most_overhead};
use super::folder;
use super::inputs;
use super::measure;
use super::options::{Options, check_not_input};
use super::report::Report;
use crate::error::{Error, MEMORY, Result};
use crate::model::choose_table;
use crate::plan::{Config, Plan};
use crate::sink::{Destination, PARQUET, SinkKind, StagedFile};
use crate::source::{self, Source};
use crate::tensor::Facts;

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
    if options.threads == 0 {
        options.threads = config.threads();
    }
    // The run says again what is to be said of a calibration.
    let measuring = Options {
        log: None,
        ..options.again()
    };
    let plan = plan_with(source.as_ref(), config, measuring)?;
    quantize(source.as_ref(), &plan, output, options)
}

/// The plan for a source, with the threads of `config` where there is something to measure.
///
/// # Errors
/// As [`plan_with`].
pub fn plan(source: &dyn Source, config: &Config) -> Result<Plan> {
    let threads = config.threads();
    plan_with(
        source,
        config,
        Options {
            threads,
            ..Options::default()
        },
    )
}

/// The plan for a source. Where a budget is set, what tensors lose by each format is measured on a
/// sample of their rows, with the threads, progress and log of `options`.
///
/// # Errors
/// As [`Plan::new`]; the calibration or a tensor cannot be read; the budget is impossible; cancelled.
pub fn plan_with(source: &dyn Source, config: &Config, options: Options<'_>) -> Result<Plan> {
    config.check()?;
    let config = known(config)?;
    let mut plan = uniform_plan(source, &config)?;
    if let Some(budget) = config.budget() {
        let open = plan.open(&config);
        let measured = measure::sensitivities(source, &plan, &open, config.seed(), options)?;
        let overhead = most_overhead(source, &plan, &PARQUET);
        plan.spend(&config, budget, &measured, overhead)?;
    }
    Ok(plan)
}

/// The configuration with what its calibration is.
pub(super) fn known(config: &Config) -> Result<Config> {
    let mut config = config.clone();
    if let Some(input) = config.calibration() {
        let info = inputs::info(input)?;
        config.set_calibration_info(info);
    }
    Ok(config)
}

/// The plan before a budget changes it.
pub(super) fn uniform_plan(source: &dyn Source, config: &Config) -> Result<Plan> {
    let tensors = source.tensors().iter().enumerate();
    let tensors = tensors.map(|(i, tensor)| (tensor, source.path_of(i)));
    check_resolved(source)?;
    let unknown = || Facts {
        classes: source.classes(),
        warnings: source.warnings(),
        ..Facts::default()
    };
    let facts = source.facts().cloned().unwrap_or_else(unknown);
    Plan::with_facts(tensors, &facts, config)
}

/// Checks that the tensors of a source are what they seem: f8 weights have no scales beside them,
/// and none are packed, or that is known.
///
/// # Errors
/// The tensors are not; [`source::resolve`] makes them so.
fn check_resolved(source: &dyn Source) -> Result<()> {
    match source::needs_resolving(source) {
        false => Ok(()),
        true => Err(Error::file(
            source.path(),
            "has weights with scales beside them: use the source that source::resolve makes of it",
        )),
    }
}

/// Checks that a source has more than a list of its tensors, and that these are what they seem.
///
/// # Errors
/// It has not, or they are not.
pub(super) fn check_weights(source: &dyn Source) -> Result<()> {
    check_resolved(source)?;
    match source.has_weights() {
        true => Ok(()),
        false => Err(Error::file(
            source.path(),
            "lists tensors without their weights, which can be planned but not quantized",
        )),
    }
}

/// Does a plan: quantizes `source` into the Parquet file `output` if that ends in `.parquet`, and
/// else into a folder of parts, of which each appears whole, with a `manifest.json`. The bytes of
/// a file depend on source and plan alone; those of parts on how they are cut, too.
///
/// A folder belongs to one source and one plan: parts of these that are there already are left as
/// they are, and a run of another into it is refused, unless [`Options::restart`] is set.
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
    check_weights(source)?;
    plan.check_matches(source.tensors())?;
    if options.resume && options.restart {
        let reason = "either resume or restart, not both";
        return Err(Error::config("restart", reason));
    }
    let Some(kind) = SinkKind::of(output)? else {
        return folder::quantize(source, plan, output, options);
    };
    let for_folders = [
        ("resume", options.resume),
        ("restart", options.restart),
        ("part", options.share.is_some()),
    ];
    if let Some((key, _)) = for_folders.into_iter().find(|(_, set)| *set) {
        let reason = format!(
            "'{}' is a single file: name a folder instead",
            output.display()
        );
        return Err(Error::config(key, reason));
    }
    check_not_input(source, output)?;
    let destination = || StagedFile::create(output).map(Destination::File);
    quantize_to(source, plan, kind, output, destination, options)
}

/// Does a plan that matches its source into one destination, which is made once nothing stands
/// against it.
fn quantize_to<'out>(
    source: &dyn Source,
    plan: &Plan,
    kind: &'static SinkKind,
    output: &Path,
    destination: impl FnOnce() -> Result<Destination<'out>>,
    options: Options<'_>,
) -> Result<Report> {
    let all = 0..plan.entries.len();
    Engine::run(source, plan, kind, all.clone(), options, |engine| {
        let bytes = engine.write(all.clone(), destination()?, |_| None)?;
        Ok(engine.report(all, output, bytes))
    })
}

/// Does a plan into memory: the file begins at the beginning of `output`, and is as many bytes long
/// as the report says. [`output_bound`](super::output_bound) bytes are enough.
///
/// # Errors
/// The errors of [`quantize`], or `output` is too small; it then holds nothing of use.
pub fn quantize_into(
    source: &dyn Source,
    plan: &Plan,
    output: &mut [u8],
    options: Options<'_>,
) -> Result<Report> {
    check_weights(source)?;
    plan.check_matches(source.tensors())?;
    quantize_to(
        source,
        plan,
        &PARQUET,
        Path::new(MEMORY),
        move || Ok(Destination::Memory(output)),
        options,
    )
}

/// Checks `AQ_ISA`, the one variable that the library reads.
///
/// # Errors
/// It names no instruction set of this build.
pub fn check_environment() -> Result<()> {
    choose_table().map(drop)
}
