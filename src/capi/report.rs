//! aq_report: the measurements of a run.

use std::ffi::c_char;

use super::guard::{aq_error, aq_status, guard, put, versioned, write};
use super::handle::{Handle, Strings, borrow, free};
use super::source::{at, count};
use super::types::{AQ_FORMAT_KEPT, FORMATS, aq_format};
use crate::format::Format;
use crate::run::{Report, TensorReport};

/// Measurements of a run, on the weights as decoded from the file.
pub struct aq_report {
    report: Report,
    strings: Strings,
}

impl Handle for aq_report {
    const NAME: &'static str = "aq_report";
}

impl aq_report {
    pub(super) fn new(report: Report) -> Self {
        let strings = Strings::default();
        Self { report, strings }
    }
}

/// Totals of a run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_report_total {
    /// sizeof(aq_report_total).
    pub struct_size: u32,
    /// Number of working threads.
    pub threads: u32,
    /// Number of quantized tensors.
    pub quantized: usize,
    /// Number of kept tensors.
    pub kept: usize,
    /// Bytes of all tensors in the source.
    pub source_bytes: u64,
    /// Bytes of the file.
    pub output_bytes: u64,
    /// Number of quantized weights.
    pub weights: u64,
    /// Bytes of the planes of quantized tensors.
    pub bytes: u64,
    /// Bits per quantized weight, including scales and biases; NaN if there are none.
    pub bits_per_weight: f64,
    /// Cosine over all quantized tensors; NaN if there are none.
    pub cosine: f64,
    /// Signal-to-quantization-noise ratio over all quantized tensors, in dB; infinite if there is
    /// no error, NaN if there are no quantized tensors.
    pub sqnr_db: f64,
    /// Wall time in seconds.
    pub seconds: f64,
}

versioned!(aq_report_total {
    struct_size,
    threads,
    quantized,
    kept,
    source_bytes,
    output_bytes,
    weights,
    bytes,
    bits_per_weight,
    cosine,
    sqnr_db,
    seconds
});

/// Measurements of one tensor. Strings belong to the report.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_tensor_report {
    /// sizeof(aq_tensor_report).
    pub struct_size: u32,
    /// AQ_FORMAT_KEPT for a tensor that was kept.
    pub format: aq_format,
    pub name: *const c_char,
    /// Bytes of the name without its final NUL.
    pub name_len: usize,
    /// Reason for this format, in a few words.
    pub reason: *const c_char,
    /// Bytes of the tensor's planes.
    pub bytes: usize,
    /// Bits per weight, including scales and biases; NaN if there are no weights.
    pub bits_per_weight: f64,
    /// Cosine of the angle between original and decoded weights; NaN when kept, or when all weights
    /// are 0.
    pub cosine: f64,
    /// Signal-to-quantization-noise ratio in dB; infinite if there is no error, NaN if the cosine
    /// is NaN.
    pub sqnr_db: f64,
    /// Number of tiles whose scales did not fit f16 and are f32.
    pub f32_scale_tiles: usize,
    /// Relative squared error of the layer's output on the calibration's inputs, |X W - X Q|^2 / |X
    /// W|^2, with timesteps weighted as in quantization; NaN if no calibration covers this layer.
    /// The report's JSON also has it by time.
    pub output_error: f64,
    /// Cosine of the angle between the original and the quantized layer's outputs; NaN if
    /// `output_error` is NaN.
    pub output_cosine: f64,
    /// Required cosine, of the layer's outputs if the calibration covers the layer, else of the
    /// weights. NaN for none.
    pub min_cosine: f64,
    /// Number of attempts that did not reach the required cosine, before the final format. The
    /// report's JSON lists their measurements as "ladder".
    pub ladder_steps: usize,
    /// Not 0: still below the required cosine, because the budget left no room for more bits.
    pub below_min_cosine: u32,
}

versioned!(aq_tensor_report {
    struct_size,
    format,
    name,
    name_len,
    reason,
    bytes,
    bits_per_weight,
    cosine,
    sqnr_db,
    f32_scale_tiles,
    output_error,
    output_cosine,
    min_cosine,
    ladder_steps,
    below_min_cosine
});

/// SQNR as the API states it: infinite if something was measured and found without error.
pub(super) fn decibels(cosine: Option<f64>, sqnr_db: Option<f64>) -> f64 {
    match cosine {
        None => f64::NAN,
        Some(_) => sqnr_db.unwrap_or(f64::INFINITY),
    }
}

/// Returns the number of tensors; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_count(report: *const aq_report) -> usize {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe { count(report, |report| report.report.tensors.len()) }
}

/// Gets the measurements of tensor `index`; tensors are in the order of the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_tensor(
    report: *const aq_report,
    index: usize,
    entry: *mut aq_tensor_report,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let report = borrow(report)?;
            let tensor: &TensorReport = at(&report.report.tensors, index, "tensor")?;
            let found = aq_tensor_report {
                struct_size: 0,
                format: (tensor.format.parse::<Format>())
                    .map_or(AQ_FORMAT_KEPT, |f| FORMATS.write(f)),
                name: report.strings.lend(&tensor.name),
                name_len: tensor.name.len(),
                reason: report.strings.lend(&tensor.reason),
                bytes: tensor.bytes,
                bits_per_weight: tensor.bits_per_weight.unwrap_or(f64::NAN),
                cosine: tensor.cosine.unwrap_or(f64::NAN),
                sqnr_db: decibels(tensor.cosine, tensor.sqnr_db),
                f32_scale_tiles: tensor.f32_scale_tiles.len(),
                output_error: tensor
                    .output
                    .as_ref()
                    .map_or(f64::NAN, |output| output.error),
                output_cosine: tensor
                    .output
                    .as_ref()
                    .map_or(f64::NAN, |output| output.cosine),
                min_cosine: tensor.min_cosine.unwrap_or(f64::NAN),
                ladder_steps: tensor.ladder.len(),
                below_min_cosine: tensor.below_min_cosine.into(),
            };
            write(entry, found, "entry")
        })
    }
}

/// Gets the measurements over all tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_totals(
    report: *const aq_report,
    total: *mut aq_report_total,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let report = &borrow(report)?.report;
            let totals = &report.total;
            let found = aq_report_total {
                struct_size: 0,
                threads: report.threads as u32,
                quantized: totals.quantized,
                kept: totals.kept,
                source_bytes: report.source_bytes as u64,
                output_bytes: report.output_bytes,
                weights: totals.weights as u64,
                bytes: totals.bytes as u64,
                bits_per_weight: totals.bits_per_weight.unwrap_or(f64::NAN),
                cosine: totals.cosine.unwrap_or(f64::NAN),
                sqnr_db: decibels(totals.cosine, totals.sqnr_db),
                seconds: report.seconds,
            };
            write(total, found, "total")
        })
    }
}

/// Writes the report as JSON, as `arrowquant quantize --report` does. The text belongs to the
/// report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_to_json(
    report: *const aq_report,
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

/// Writes the report as a self-contained HTML page, as `arrowquant quantize --report out.html`
/// does. The text belongs to the report.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_to_html(
    report: *const aq_report,
    html: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let report = borrow(report)?;
            let text = report.report.to_html();
            put(html, report.strings.lend(&text), "html")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_report_free(report: *mut aq_report) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(report)) };
}
