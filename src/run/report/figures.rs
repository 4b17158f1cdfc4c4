//! Figures from sums, and as files record them.

use serde_json::{Map, Value, json};

use super::{TensorReport, Totals};
use crate::calibrate::Weights;
use crate::kernel::ErrorSums;
use crate::run::inputs::OutputSums;

/// Error and cosine from squared outputs: of the weights, of the quantized ones, of the difference.
pub(crate) fn output_figures([weights, decoded, error]: [f64; 3]) -> (f64, f64) {
    let sums = ErrorSums {
        signal: weights,
        decoded,
        error,
    };
    let relative = if error == 0.0 { 0.0 } else { error / weights };
    (relative, sums.cosine())
}

/// Squared outputs over all time, as it is weighted.
pub(crate) fn over_time(sums: &OutputSums, weights: &Weights) -> [f64; 3] {
    sums.each_ref().map(|sums| {
        let weighted = sums.iter().zip(&weights.of_row);
        weighted.map(|(x, weight)| x * weight).sum()
    })
}

/// Cosine of the angle between a layer's outputs.
pub(crate) fn output_cosine(sums: &OutputSums, weights: &Weights) -> f64 {
    output_figures(over_time(sums, weights)).1
}

/// True bits per weight of so many bytes, or `None` without weights.
pub(crate) fn bits_per_weight(bytes: usize, weights: usize) -> Option<f64> {
    (weights > 0).then(|| bytes as f64 * 8.0 / weights as f64)
}

impl Totals {
    /// The figures of a summary.
    pub(crate) fn figures(&self) -> Value {
        summary_entry(self.cosine, self.sqnr_db, self.bits_per_weight)
    }
}

fn summary_entry(cosine: Option<f64>, sqnr_db: Option<f64>, bits: Option<f64>) -> Value {
    json!({"cosine": cosine, "sqnr_db": sqnr_db, "bits_per_weight": bits})
}

/// The summary's entry of a tensor of so many weights.
pub(crate) fn figures(quantized: bool, weights: usize, bytes: usize, error: &ErrorSums) -> Value {
    let error = quantized.then_some(error);
    summary_entry(
        error.and_then(ErrorSums::measured_cosine),
        error.and_then(ErrorSums::sqnr_db),
        bits_per_weight(bytes, weights),
    )
}

/// The `arrowquant.summary` of the file: nothing that depends on the machine.
pub(crate) fn summary(totals: &Totals, tensors: &[TensorReport]) -> Value {
    let tensors: Map<String, Value> = tensors
        .iter()
        .map(|t| {
            let figures = summary_entry(t.cosine, t.sqnr_db, t.bits_per_weight);
            (t.name.clone(), figures)
        })
        .collect();
    json!({"total": totals.figures(), "tensors": tensors})
}
