//! aq_plan: the format of each tensor, chosen before any work.

use std::ffi::c_char;

use super::config::{aq_config, config_or_default};
use super::guard::{aq_error, aq_status, check_put, guard, put, text, versioned, write};
use super::handle::{Handle, Strings, borrow, borrow_mut, free, give};
use super::options::aq_run_options;
use super::source::{aq_source, at, count};
use super::types::*;
use crate::format::{Encoding, Recipe, ScalePolicy};
use crate::plan::{NO_MIN_COSINE, Plan, PlanEntry};
use crate::run;

/// Formats chosen for the tensors of a source.
pub struct aq_plan {
    pub(super) plan: Plan,
    strings: Strings,
}

impl Handle for aq_plan {
    const NAME: &'static str = "aq_plan";
}

impl aq_plan {
    pub(super) fn new(plan: Plan) -> Self {
        let strings = Strings::default();
        Self { plan, strings }
    }
}

/// Plan for one tensor. Strings belong to the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_tensor_plan {
    /// sizeof(aq_tensor_plan).
    pub struct_size: u32,
    /// Format; AQ_FORMAT_KEPT for a tensor that is kept, with 0 in the next five fields.
    pub format: aq_format,
    /// Number of weights that share a scale; 0 for a whole row.
    pub group_size: u32,
    pub scheme: aq_scheme,
    /// Storage of scales: AQ_DTYPE_F16 or AQ_DTYPE_F32, or AQ_DTYPE_DEFAULT, which is f16, except
    /// f32 in tiles that need it.
    pub scale_dtype: aq_dtype,
    pub method: aq_method,
    pub gain: aq_gain,
    pub name: *const c_char,
    /// Bytes of the name without its final NUL.
    pub name_len: usize,
    /// Reason for this format, in a few words.
    pub reason: *const c_char,
    /// Bytes of the tensor's values in the source.
    pub source_bytes: usize,
    /// Predicted bytes of the tensor's planes.
    pub bytes: usize,
    /// Predicted bits per weight; NaN if there are no weights.
    pub bits_per_weight: f64,
    /// Required cosine, of the layer's outputs if the calibration covers the layer, else of the
    /// weights; a tensor below it gets more bits. NaN for none.
    pub min_cosine: f64,
}

versioned!(aq_tensor_plan {
    struct_size,
    format,
    group_size,
    scheme,
    scale_dtype,
    method,
    gain,
    name,
    name_len,
    reason,
    source_bytes,
    bytes,
    bits_per_weight,
    min_cosine
});

impl aq_tensor_plan {
    fn of(entry: &PlanEntry, strings: &Strings) -> Self {
        let recipe = entry.recipe.as_ref();
        let encoding = recipe.map(Recipe::planned);
        Self {
            struct_size: 0,
            format: recipe.map_or(AQ_FORMAT_KEPT, |r| FORMATS.write(r.format())),
            group_size: (encoding.and_then(Encoding::group_size))
                .map_or(0, |size| size.get().into()),
            scheme: (encoding.and_then(Encoding::scheme)).map_or(0, |s| SCHEMES.write(s)),
            scale_dtype: recipe.map_or(0, scale_dtype),
            method: recipe.map_or(0, |r| METHODS.write(r.method)),
            gain: recipe.map_or(0, |r| GAINS.write(r.gain)),
            name: strings.lend(&entry.tensor.name),
            name_len: entry.tensor.name.len(),
            reason: strings.lend(&entry.reason),
            source_bytes: entry.source_bytes(),
            bytes: entry.bytes(),
            bits_per_weight: entry.bits_per_weight().unwrap_or(f64::NAN),
            min_cosine: match entry.min_cosine > NO_MIN_COSINE {
                true => entry.min_cosine,
                false => f64::NAN,
            },
        }
    }
}

fn scale_dtype(recipe: &Recipe) -> aq_dtype {
    match recipe.scales {
        ScalePolicy::Auto => AQ_DTYPE_DEFAULT,
        ScalePolicy::F16 => AQ_DTYPE_F16,
        ScalePolicy::F32 => AQ_DTYPE_F32,
    }
}

/// Plans for the tensors of a source. `config` (NULL for the defaults) and `options` may be NULL.
/// The plan needs none of its inputs afterwards.
///
/// With a budget ("max_size", "avg_bits", "mixed_precision"), first measures the loss of each
/// tensor in each format, on a sample of its rows, with the threads, progress (in bytes of the
/// sample) and log of `options`. Fails with AQ_ERROR_CONFIG for a budget that no plan fits; the
/// message has the arithmetic.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_new(
    source: *const aq_source,
    config: *const aq_config,
    options: *const aq_run_options,
    plan: *mut *mut aq_plan,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(plan, "plan")?;
            let (source, config) = (borrow(source)?.source(), config_or_default(config)?);
            let options = aq_run_options::read(options)?.or_threads_of(&config);
            let made = options.with(|options| run::plan_with(source, &config, options))?;
            give(aq_plan::new(made), plan)
        })
    }
}

/// Returns the number of tensors; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_count(plan: *const aq_plan) -> usize {
    // SAFETY: by the header's conventions.
    unsafe { count(plan, |plan| plan.plan.entries.len()) }
}

/// Gets the plan for tensor `index`; tensors are in the order of the source.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_tensor(
    plan: *const aq_plan,
    index: usize,
    entry: *mut aq_tensor_plan,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let plan = borrow(plan)?;
            let found = at(&plan.plan.entries, index, "tensor")?;
            write(entry, aq_tensor_plan::of(found, &plan.strings), "entry")
        })
    }
}

/// Predicts the bytes of the file that a run will write: planes exactly, everything else to a few
/// hundred bytes per tensor. The size changes with compression, with scales that turn out to need
/// f32, and with tensors that get more bits to reach their cosine. Fails with AQ_ERROR_PLAN if the
/// plan does not match `source`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_file_bytes(
    plan: *const aq_plan,
    source: *const aq_source,
    bytes: *mut u64,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (source, plan) = (borrow(source)?.source(), &borrow(plan)?.plan);
            plan.check_matches(source.tensors())?;
            put(bytes, run::predicted_bytes(source, plan) as u64, "bytes")
        })
    }
}

/// Changes the plan for one tensor: `settings` is "keep", or a list such as "bits:8,group:64", of
/// any of bits, group, scheme, method, gain, scale_dtype and min_cosine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_set(
    plan: *mut aq_plan,
    tensor: *const c_char,
    settings: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let plan = borrow_mut(plan)?;
            plan.plan
                .set(text(tensor, "tensor")?, text(settings, "settings")?)?;
            plan.strings.clear();
            Ok(())
        })
    }
}

/// Writes the plan as JSON, as `arrowquant plan --json` does, with "modality", "evidence" (the
/// reasons for the modality), "warnings" and all tensors. The text belongs to the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_to_json(
    plan: *const aq_plan,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let plan = borrow(plan)?;
            put(
                json,
                plan.strings.lend(&plan.plan.to_json().to_string()),
                "json",
            )
        })
    }
}

/// Reads a plan from JSON, edited or not.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_from_json(
    json: *const c_char,
    plan: *mut *mut aq_plan,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(plan, "plan")?;
            give(aq_plan::new(Plan::from_json(text(json, "json")?)?), plan)
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plan_free(plan: *mut aq_plan) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(plan)) };
}
