//! aq_fold_report: smoothing folded into the weights of preceding layers.
//!
//! Smoothing divides each input channel of a layer by a scale, and multiplies the weights of that
//! channel by the same scale, so that a few large channels take less of the range that rounding has
//! to cover. If a norm, an adaLN or another layer produces the inputs, the division can be folded
//! into its weights; the runtime then needs no support for smoothing.

use std::ffi::c_char;
use std::path::Path;

use super::calibration::aq_calibration;
use super::guard::{Fault, aq_error, aq_status, guard, put, read, text, versioned};
use super::handle::{Handle, Strings, borrow, free, give};
use super::options::aq_run_options;
use super::types::{AQ_DTYPE_DEFAULT, FLOATS, aq_dtype};
use crate::run::{self, Fold, FoldReport};

/// Result of folding: what was folded, and what was not.
pub struct aq_fold_report {
    report: FoldReport,
    strings: Strings,
}

impl Handle for aq_fold_report {
    const NAME: &'static str = "aq_fold_report";
}

/// Options of folding. Start with AQ_INIT(aq_fold_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_fold_options {
    /// sizeof(aq_fold_options).
    pub struct_size: u32,
    /// Type of all floats in the output: AQ_DTYPE_F32, _F16 or _BF16. By default each tensor has
    /// its original type, to which changed weights are rounded; with f32 the model computes the
    /// same as before.
    pub dtype: aq_dtype,
    /// Exponent of the scales: channels are divided by absmax(X)^alpha / absmax(W)^(1-alpha). At
    /// most 1. 0 means the default 0.5; a negative number means an alpha of 0.
    pub alpha: f64,
}

versioned!(aq_fold_options {
    struct_size,
    dtype,
    alpha
});

impl aq_fold_options {
    unsafe fn read(options: *const Self) -> Result<Fold, Fault> {
        let mut wanted = Fold::default();
        if options.is_null() {
            return Ok(wanted);
        }
        // SAFETY: as the caller's.
        let options = unsafe { read(options, "fold_options")? };
        if options.alpha != 0.0 {
            wanted.alpha = if options.alpha < 0.0 {
                0.0
            } else {
                options.alpha
            };
        }
        if options.dtype != AQ_DTYPE_DEFAULT {
            wanted.float = Some(FLOATS.read(options.dtype)?);
        }
        Ok(wanted)
    }
}

/// Writes a smoothed model: reads `input`, which is anything that aq_source_open takes, and writes
/// the safetensors file `output`, with the inputs of layers scaled according to the calibration.
/// Layers can be smoothed if tensor names tell what produces their inputs: in the blocks of
/// LLaMA-like models, LLaDA and DiT. Names, shapes and metadata do not change, and dtypes only as
/// `fold_options` say. `fold_options`, `options` and `report` may be NULL.
///
/// The inputs of these layers are different in the new model: to calibrate it, run it. Fails with
/// AQ_ERROR_FILE if nothing can be folded; the message says why.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_fold_file(
    input: *const c_char,
    output: *const c_char,
    calibration: *const aq_calibration,
    fold_options: *const aq_fold_options,
    options: *const aq_run_options,
    report: *mut *mut aq_fold_report,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            let input = Path::new(text(input, "input")?);
            let output = Path::new(text(output, "output")?);
            let calibration = &borrow(calibration)?.calibration;
            let fold = aq_fold_options::read(fold_options)?;
            let found = aq_run_options::read(options)?
                .with(|options| run::fold_file(input, calibration, output, fold, options))?;
            if report.is_null() {
                return Ok(());
            }
            let strings = Strings::default();
            give(
                aq_fold_report {
                    report: found,
                    strings,
                },
                report,
            )
        })
    }
}

/// Writes the report as JSON, as `arrowquant fold --json` does: what was folded into what, the
/// scales, and what could not be folded and why. The text belongs to the report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_fold_report_to_json(
    report: *const aq_fold_report,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let report = borrow(report)?;
            let text = serde_json::json!(report.report).to_string();
            put(json, report.strings.lend(&text), "json")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_fold_report_free(report: *mut aq_fold_report) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(report)) };
}
