//! Unit gain. Least-squares codes shrink the signal: `<w, q> = |q|^2 < |w|^2`, and the loss of
//! amplitude adds up from layer to layer. Multiplying a row's scales and biases by
//! `|w|^2 / <w, q>` gives it back; codes and cosine stay.

use crate::format::{Layout, Scheme};
use crate::kernel::{RowFault, RowSums};

/// Applies unit gain to one row's stored scales and biases, rounding them to storage again.
pub(super) fn apply(
    layout: Layout,
    sums: RowSums,
    scales: &mut [u8],
    biases: &mut [u8],
) -> Result<(), RowFault> {
    if sums.product <= 0.0 {
        return Ok(());
    }
    let gain = sums.signal / sums.product;
    let dtype = layout.scale_dtype;
    let multiply = |plane: &mut [u8], group| {
        let value = f64::from(dtype.get(plane, group)) * gain;
        dtype.put(plane, group, value as f32)
    };
    for group in 0..scales.len() / dtype.size() {
        let scale = multiply(scales, group);
        let bias = match layout.scheme {
            Scheme::Symmetric => 0.0,
            Scheme::Affine => multiply(biases, group),
        };
        if !layout.decodable(scale, bias) {
            return Err(RowFault::ScaleOverflow);
        }
    }
    Ok(())
}
