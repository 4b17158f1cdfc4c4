//! aq_fold_report: smoothing folded into the weights before the layers that it is for.
//!
//! The inputs of a layer are divided by a scale for each channel, and its weights multiplied, so that
//! a few large channels take less of the range that rounding has to cover. Where a norm, an adaLN or
//! another layer makes these inputs, its weights can divide them: then a runtime need not know.

use std::ffi::c_char;
use std::path::Path;

use super::calibration::aq_calibration;
use super::guard::{Fault, aq_error, aq_status, guard, put, read, text, versioned};
use super::handle::{Handle, Strings, borrow, free, give};
use super::options::aq_run_options;
use super::types::{AQ_DTYPE_DEFAULT, FLOATS, aq_dtype};
use crate::run::{self, Fold, FoldReport};

/// What was folded.
pub struct aq_fold_report {
    report: FoldReport,
    strings: Strings,
}

impl Handle for aq_fold_report {
    const NAME: &'static str = "aq_fold_report";
}

/// What is folded, and what is written. Set struct_size; the rest may be 0, for the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_fold_options {
    /// sizeof(aq_fold_options).
    pub struct_size: u32,
    /// AQ_DTYPE_F32, _F16 or _BF16: what all floats become. By default each stays what it was, and
    /// weights that were changed are rounded to it; as f32 the model computes what it did.
    pub dtype: aq_dtype,
    /// Channels are divided by absmax(X)^alpha / absmax(W)^(1-alpha). Up to 1; 0 stands for the
    /// default 0.5, and any negative number for an alpha of 0.
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

/// Writes the safetensors file `output` with the tensors of `input`, which is what aq_source_open
/// takes, where the inputs of layers are scaled by what the calibration has seen of them, wherever
/// names say what makes these inputs: in LLaMA-like, LLaDA's and DiT's blocks. Names, shapes, dtypes
/// and metadata stay. `fold_options`, `options` and `report` may be NULL.
///
/// The inputs of these layers are then others: a calibration of the new model is gathered by running
/// it. AQ_ERROR_FILE where nothing can be folded; the message says why.
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

/// All of it as JSON, as `arrowquant fold --json` prints it: what was folded into what, the scales,
/// and what could not be and why. Belongs to the report.
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
