//! Runs: from a source to a file, a folder or the caller's memory.

use std::ffi::{c_char, c_void};
use std::path::Path;

use super::config::{aq_config, config_or_default};
use super::guard::{Fault, aq_error, aq_status, bytes_mut, check_put, guard, put, text};
use super::handle::{borrow, give};
use super::options::aq_run_options;
use super::plan::aq_plan;
use super::report::aq_report;
use super::source::aq_source;
use crate::run::{self, Report};

/// Gives the report to a caller who wants it.
unsafe fn give_report(found: Report, report: *mut *mut aq_report) -> Result<(), Fault> {
    if report.is_null() {
        return Ok(());
    }
    // SAFETY: as the caller's.
    unsafe { give(aq_report::new(found), report) }
}

/// Quantizes `input`, anything that aq_source_open takes, into `output`: opens, plans and runs in
/// one call. `config`, `options` and `report` may be NULL.
///
/// An output that ends in ".parquet" is one file, which appears complete at its path, or not at
/// all; its bytes depend only on input and settings. Any other output is a folder of parts with a
/// manifest.json: each part appears complete, and after an interruption the same run continues with
/// the existing parts. A folder belongs to one source and one set of settings; another run into it
/// is refused, unless `restart` is set.
///
/// With a budget ("max_size", "avg_bits", "mixed_precision") progress covers first the measuring,
/// then the run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_quantize_file(
    input: *const c_char,
    output: *const c_char,
    config: *const aq_config,
    options: *const aq_run_options,
    report: *mut *mut aq_report,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let input = Path::new(text(input, "input")?);
            let output = Path::new(text(output, "output")?);
            let config = config_or_default(config)?;
            let found = aq_run_options::read(options)?
                .with(|options| run::quantize_file(input, output, &config, options))?;
            give_report(found, report)
        })
    }
}

/// Runs a plan: quantizes its source into the file or folder `output`, as aq_quantize_file does.
/// `options` and `report` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_run(
    plan: *const aq_plan,
    source: *const aq_source,
    output: *const c_char,
    options: *const aq_run_options,
    report: *mut *mut aq_report,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (source, plan) = (borrow(source)?.source(), &borrow(plan)?.plan);
            let output = Path::new(text(output, "output")?);
            let found = aq_run_options::read(options)?
                .with(|options| run::quantize(source, plan, output, options))?;
            give_report(found, report)
        })
    }
}

/// Gets an upper bound of the file's bytes: enough memory for aq_plan_run_into.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_size_bound(
    plan: *const aq_plan,
    source: *const aq_source,
    size: *mut usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (source, plan) = (borrow(source)?.source(), &borrow(plan)?.plan);
            put(size, run::output_bound(source, plan)?, "size")
        })
    }
}

/// Runs a plan into the caller's memory: writes the same bytes as to a file, and sets `written` to
/// their number. Fails with AQ_ERROR_IO if `output` is too small; after any failure its contents
/// are undefined. `output` must not overlap the tensors of the source. aq_model_open_memory opens
/// the result without copying it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_run_into(
    plan: *const aq_plan,
    source: *const aq_source,
    options: *const aq_run_options,
    output: *mut c_void,
    output_len: usize,
    written: *mut usize,
    report: *mut *mut aq_report,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (source, plan) = (borrow(source)?.source(), &borrow(plan)?.plan);
            let output = bytes_mut(output.cast(), output_len, "output")?;
            check_put(written, "written")?;
            let found = aq_run_options::read(options)?
                .with(|options| run::quantize_into(source, plan, output, options))?;
            put(written, found.output_bytes as usize, "written")?;
            give_report(found, report)
        })
    }
}

/// Merges the parts that several runs with `part` wrote to a folder into one model: checks that all
/// parts exist and belong together, and writes the manifest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_merge(folder: *const c_char, err: *mut aq_error) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            run::merge(Path::new(text(folder, "folder")?))?;
            Ok(())
        })
    }
}
