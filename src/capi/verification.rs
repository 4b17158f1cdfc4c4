//! aq_verification: the result of checking a file.

use std::ffi::c_char;

use super::guard::{aq_error, aq_status, check_put, guard, put};
use super::handle::{Handle, Strings, borrow, borrow_or, free, give};
use super::model::aq_model;
use super::options::aq_run_options;
use super::source::aq_source;
use crate::run::{self, Verification};

/// Result of checking a file.
pub struct aq_verification {
    verification: Verification,
    strings: Strings,
}

impl Handle for aq_verification {
    const NAME: &'static str = "aq_verification";
}

/// Checks every checksum of a model. If `original` is not NULL, also checks that both have the same
/// tensors, that kept tensors are equal, that quantized tensors are as close to the original as the
/// file says, and that no cosine is below `min_cosine` (NaN or -1 for no such check). `options` may
/// be NULL.
///
/// AQ_OK means that the checks were carried out, not that they passed: `failures` counts the
/// tensors with a problem. `verification` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_verify(
    model: *const aq_model,
    original: *const aq_source,
    min_cosine: f64,
    options: *const aq_run_options,
    failures: *mut usize,
    verification: *mut *mut aq_verification,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(failures, "failures")?;
            let model = &borrow(model)?.model;
            let original = borrow_or(original)?.map(|source| source.source());
            let least = (!min_cosine.is_nan()).then_some(min_cosine);
            let found = aq_run_options::read(options)?
                .with(|options| run::verify(model, original, least, options))?;
            put(failures, found.failures().count(), "failures")?;
            if verification.is_null() {
                return Ok(());
            }
            let strings = Strings::default();
            give(
                aq_verification {
                    verification: found,
                    strings,
                },
                verification,
            )
        })
    }
}

/// Writes the result as JSON, as `arrowquant verify --json` does: "tensors" with "name", "problem"
/// (or null), "cosine" and "sqnr_db". The text belongs to the verification.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_verification_to_json(
    verification: *const aq_verification,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let verification = borrow(verification)?;
            let text = serde_json::json!(verification.verification).to_string();
            put(json, verification.strings.lend(&text), "json")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_verification_free(verification: *mut aq_verification) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(verification)) };
}
