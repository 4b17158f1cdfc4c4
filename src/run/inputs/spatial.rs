//! What can be done to a tensor's input channels before it is quantized: smoothing (Xiao et al. 2022)
//! multiplies column j of the weights with `absmax(X_j)^a / absmax(W_j)^(1-a)` and divides the
//! activations by it; a Hadamard rotation spreads what a few channels carry over all of a block.

use bytes::Bytes;

use super::scales::{Largest, values};
use crate::format::{Method, Rotation, Transform};

/// Seed of the signs of rotations: without any, the first column of a block would take all its mean.
const SEED: u64 = 1;

/// What is done to the input channels of a tensor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spatial {
    pub(crate) input_scale: Option<Bytes>,
    pub(crate) rotation: Option<Rotation>,
    /// The exponent that the scales were made with.
    pub(crate) alpha: Option<f64>,
}

impl Spatial {
    pub(crate) fn transform(&self) -> Transform<'_> {
        Transform {
            input_scale: self.input_scale.as_deref(),
            rotation: self.rotation,
        }
    }

    /// The scales as numbers.
    pub(crate) fn scales(&self) -> Option<Vec<f32>> {
        self.input_scale.as_deref().map(values)
    }
}

/// The rotation that is tried: of the largest blocks there are, if they are worth it.
fn rotation(cols: usize) -> Option<Rotation> {
    const SMALLEST: u32 = 16;
    Rotation::largest(cols, SEED).filter(|rotation| rotation.block >= SMALLEST)
}

/// What is tried: nothing first.
pub(crate) fn candidates(method: Method, cols: usize, largest: &Largest) -> Vec<Spatial> {
    // GPTQ takes long, and has other means to spare channels: a coarse search will do. It would
    // take another factor, too, for rotated channels.
    let steps = match method {
        Method::Gptq => 4,
        Method::MinMax | Method::Lsq => 20,
    };
    let mut candidates = vec![Spatial::default()];
    let known = largest
        .x
        .iter()
        .zip(&largest.w)
        .any(|(x, w)| *x > 0.0 && *w > 0.0);
    if known {
        candidates.extend((0..=steps).map(|step| {
            let alpha = f64::from(step) / f64::from(steps);
            Spatial {
                input_scale: Some(largest.scales(alpha)),
                rotation: None,
                alpha: Some(alpha),
            }
        }));
    }
    if let Some(rotation) = rotation(cols).filter(|_| method != Method::Gptq) {
        candidates.push(Spatial {
            rotation: Some(rotation),
            ..Spatial::default()
        });
    }
    candidates
}
