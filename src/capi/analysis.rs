//! aq_analysis: the loss of each tensor in each format.

use std::ffi::c_char;

use super::config::{aq_config, config_or_default};
use super::guard::{aq_error, aq_status, check_put, guard, put};
use super::handle::{Handle, Strings, borrow, free, give};
use super::options::aq_run_options;
use super::source::aq_source;
use crate::run::{self, Analysis};

/// Measured losses of tensors in each format.
pub struct aq_analysis {
    analysis: Analysis,
    strings: Strings,
}

impl Handle for aq_analysis {
    const NAME: &'static str = "aq_analysis";
}

/// Measures the loss of each tensor that can be quantized, on a sample of its rows: in the formats
/// that a budget may choose from ("candidates" of `config`), and in the format that `config` gives
/// it. With a calibration in `config`, the loss is that of the layer's outputs. `config` (NULL for
/// the defaults) and `options` (threads, progress in bytes of the sample, and log) may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_analyze(
    source: *const aq_source,
    config: *const aq_config,
    options: *const aq_run_options,
    analysis: *mut *mut aq_analysis,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(analysis, "analysis")?;
            let (source, config) = (borrow(source)?.source(), config_or_default(config)?);
            let options = aq_run_options::read(options)?.or_threads_of(&config);
            let found = options.with(|options| run::analyze(source, &config, options))?;
            let strings = Strings::default();
            give(
                aq_analysis {
                    analysis: found,
                    strings,
                },
                analysis,
            )
        })
    }
}

/// Writes the analysis as JSON, as `arrowquant analyze --json` does: "tensors" with "name",
/// "sensitive" (why, or null) and "formats", each with "format", "group_size", "scheme", "bytes",
/// "bits_per_weight", "cosine" and "error", which is 1 - cosine^2. The text belongs to the
/// analysis.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_analysis_to_json(
    analysis: *const aq_analysis,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let analysis = borrow(analysis)?;
            let text = serde_json::json!(analysis.analysis).to_string();
            put(json, analysis.strings.lend(&text), "json")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_analysis_free(analysis: *mut aq_analysis) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(analysis)) };
}
