//! aq_calibration: activation statistics of a model's layers, by timestep.
//!
//! A calibration observes the inputs of each layer, which the caller's own runtime computes, and
//! stores only statistics. For each layer and bin of timesteps these are the range and the sum of
//! squares of each input channel, and a histogram of all values; for each group of bins, the
//! Hessian (the sum of x x^T), which AQ_METHOD_GPTQ needs. Calibrations from several machines can
//! be merged.
//!
//! Layers are named after their weights, with or without ".weight" at the end. Several threads may
//! use a calibration at once, except to free it; threads that observe the same layer take turns.
//! The order of rows affects sums only by rounding, and does not affect counts, ranges and
//! histograms.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::Arc;

use super::config::aq_config;
use super::guard::{
    Fault, aq_error, aq_status, bytes, check_out, check_put, guard, read, text, versioned, write,
};
use super::handle::{Handle, Strings, borrow, borrow_mut, borrow_or, free, give};
use super::source::{at, count};
use super::types::{FLOATS, aq_dtype};
use crate::calibrate::{Activations, Calibration, CalibrationOptions};
use crate::plan::CalibrationInput;

/// Activation statistics of a model's layers, by timestep.
pub struct aq_calibration {
    pub(super) calibration: Arc<Calibration>,
    strings: Strings,
}

impl Handle for aq_calibration {
    const NAME: &'static str = "aq_calibration";
}

/// How a calibration divides timesteps into bins, and what it stores. Start with
/// AQ_INIT(aq_calibration_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_calibration_options {
    /// sizeof(aq_calibration_options).
    pub struct_size: u32,
    /// Number of timesteps of the model, which are numbered from 0: up to 2^20, or 0 for 1000. If
    /// the mask ratio of a text model serves as time, the timestep is the ratio times this number.
    pub timesteps: u32,
    /// Number of bins of timesteps, each with ranges, squares and a histogram: up to 4096, and not
    /// more than timesteps; 0 for 50.
    pub bins: u32,
    /// Not 0: stores no Hessians.
    pub no_hessian: u32,
    /// Number of groups of bins, each with a Hessian; must divide the number of bins; 0 for 10. The
    /// Hessian of a layer with n channels takes 4 n (n + 1) bytes.
    pub hessian_groups: u32,
    /// Maximum bytes of Hessians in memory; the others go to a temporary file. 0 for no limit.
    pub memory_limit: u64,
    /// Folder of the temporary file; NULL for the system's folder for temporary files.
    pub spill_folder: *const c_char,
}

versioned!(aq_calibration_options {
    struct_size,
    timesteps,
    bins,
    no_hessian,
    hessian_groups,
    memory_limit,
    spill_folder,
});

/// Description of an observed layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_layer_info {
    /// sizeof(aq_layer_info).
    pub struct_size: u32,
    /// Name of the layer, without ".weight". Belongs to the calibration.
    pub name: *const c_char,
    /// Bytes of the name without its final NUL.
    pub name_len: usize,
    /// Number of input channels.
    pub cols: usize,
    /// Number of rows observed, at all timesteps.
    pub rows: u64,
}

versioned!(aq_layer_info {
    struct_size,
    name,
    name_len,
    cols,
    rows
});

/// A limit in bytes, where 0 is none.
fn limit(bytes: u64) -> Option<usize> {
    // More than there is address space is no limit.
    usize::try_from(bytes).ok().filter(|&bytes| bytes > 0)
}

impl aq_calibration_options {
    unsafe fn read(options: *const Self) -> Result<CalibrationOptions, Fault> {
        let mut wanted = CalibrationOptions::default();
        if options.is_null() {
            return Ok(wanted);
        }
        // SAFETY: as the caller's.
        let options = unsafe { read(options, "options")? };
        let numbers = [
            (options.timesteps, &mut wanted.timesteps),
            (options.bins, &mut wanted.bins),
            (options.hessian_groups, &mut wanted.hessian_groups),
        ];
        for (given, field) in numbers {
            if given > 0 {
                *field = given;
            }
        }
        wanted.hessian = options.no_hessian == 0;
        wanted.memory_limit = limit(options.memory_limit);
        if !options.spill_folder.is_null() {
            // SAFETY: by the header's conventions it ends in NUL.
            let folder = unsafe { text(options.spill_folder, "options.spill_folder")? };
            wanted.spill_folder = Some(folder.into());
        }
        Ok(wanted)
    }
}

unsafe fn give_calibration(
    calibration: Calibration,
    out: *mut *mut aq_calibration,
) -> Result<(), Fault> {
    let calibration = Arc::new(calibration);
    let strings = Strings::default();
    // SAFETY: as the caller's.
    unsafe {
        give(
            aq_calibration {
                calibration,
                strings,
            },
            out,
        )
    }
}

/// Creates an empty calibration. `options` may be NULL for the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_new(
    options: *const aq_calibration_options,
    calibration: *mut *mut aq_calibration,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(calibration, "calibration")?;
            let new = Calibration::new(aq_calibration_options::read(options)?)?;
            give_calibration(new, calibration)
        })
    }
}

/// Reads a file that aq_calibration_save wrote, to use it or to continue observing. Hessians beyond
/// `memory_limit` bytes (0: no limit) go to a file in the system's folder for temporary files.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_load(
    path: *const c_char,
    memory_limit: u64,
    calibration: *mut *mut aq_calibration,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(calibration, "calibration")?;
            let path = Path::new(text(path, "path")?);
            let loaded = Calibration::load(path, limit(memory_limit))?;
            give_calibration(loaded, calibration)
        })
    }
}

/// Writes the calibration to the Parquet file `path`, which appears complete or not at all.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_save(
    calibration: *const aq_calibration,
    path: *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let path = Path::new(text(path, "path")?);
            Ok(borrow(calibration)?.calibration.save(path)?)
        })
    }
}

/// Adds the observations of `from`, another calibration of the same model, to `into`. `from` does
/// not change. Both must have the same timesteps and bins; both or neither must have Hessians, of
/// the same groups; and their schedules must be equal, unless one has none. Counts, ranges and
/// histograms are as if one calibration had observed everything; sums are the same up to rounding.
/// After an error nothing is added, unless a temporary file failed (AQ_ERROR_IO).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_merge(
    into: *const aq_calibration,
    from: *const aq_calibration,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (into, from) = (borrow(into)?, borrow(from)?);
            Ok(into.calibration.merge(&from.calibration)?)
        })
    }
}

/// Sets the noise schedule, which is the fraction of the signal that is left at each timestep:
/// `alphas_count` numbers from 0 to 1, one per timestep, the cumulative products of 1 - beta.
/// Needed only to weight timesteps by their noise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_set_schedule(
    calibration: *const aq_calibration,
    alphas: *const f64,
    alphas_count: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let alphas = bytes(alphas, alphas_count, "alphas")?;
            Ok(borrow(calibration)?.calibration.set_schedule(alphas)?)
        })
    }
}

/// Observes rows of a layer's input at a timestep: `rows` vectors of `cols` input channels, one
/// after another, in the `x_len` bytes at `x`, of AQ_DTYPE_F32, _F16 or _BF16. A row is a token, a
/// pixel or a sample. The input of a convolution must be unfolded first: the channels of a row are
/// the inputs of one output (channels x kernel height x kernel width), in the order of the weight's
/// columns. `x` is not used after the call.
///
/// Fails with AQ_ERROR_CONFIG, and observes nothing, if the timestep is out of range, the layer had
/// another `cols` before, or a value is NaN, infinite or beyond 10^18 (the message says where);
/// with AQ_ERROR_IO if a temporary file cannot be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_observe(
    calibration: *const aq_calibration,
    layer: *const c_char,
    timestep: u32,
    x: *const c_void,
    x_len: usize,
    dtype: aq_dtype,
    rows: usize,
    cols: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let calibration = &borrow(calibration)?.calibration;
            let activations = Activations {
                rows,
                cols,
                float: FLOATS.read(dtype)?,
                values: bytes(x.cast(), x_len, "x")?,
            };
            Ok(calibration.observe(text(layer, "layer")?, timestep, activations)?)
        })
    }
}

/// Returns the number of observed layers; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_count(calibration: *const aq_calibration) -> usize {
    // SAFETY: by the header's conventions.
    unsafe {
        count(calibration, |calibration| {
            calibration.calibration.layers().len()
        })
    }
}

/// Describes layer `index`. Layers are sorted by the bytes of their names, so observing a new layer
/// changes the indices of those after it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_layer(
    calibration: *const aq_calibration,
    index: usize,
    info: *mut aq_layer_info,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let calibration = borrow(calibration)?;
            check_out(info, "info")?;
            let layers = calibration.calibration.layers();
            let found = at(&layers, index, "layer")?;
            let layer = aq_layer_info {
                struct_size: 0,
                name: calibration.strings.lend(&found.name),
                name_len: found.name.len(),
                cols: found.cols,
                rows: found.rows,
            };
            write(info, layer, "info")
        })
    }
}

/// Sets the calibration for runs with this config; NULL for none. The config and its copies hold
/// what they need, so the calibration may be freed first. It is not part of the config's YAML.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_config_set_calibration(
    config: *mut aq_config,
    calibration: *const aq_calibration,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let held = |handle: &aq_calibration| CalibrationInput::Held(handle.calibration.clone());
            let calibration = borrow_or(calibration)?.map(held);
            borrow_mut(config)?.config.set_calibration(calibration);
            Ok(())
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_calibration_free(calibration: *mut aq_calibration) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(calibration)) };
}
