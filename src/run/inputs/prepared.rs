//! What a calibration says of one tensor, ready for the kernels.

use std::borrow::Cow;
use std::sync::Arc;

use super::spatial::Spatial;
use crate::calibrate::Weights;
use crate::format::{ActivationRange, Method};
use crate::quantize::{Factor, Guide, floored};
use crate::schema::Tile;

/// What is known of one tensor's inputs.
#[derive(Default, Clone)]
pub(crate) struct Prepared {
    pub(crate) factor: Option<Factor>,
    pub(crate) importance: Option<Vec<f32>>,
    /// What the rows of each group of timesteps count for; none when not calibrated.
    pub(crate) weights: Option<Weights>,
    /// What is done to the input channels.
    pub(crate) spatial: Spatial,
    /// Static ranges of the inputs.
    pub(crate) activation: Arc<[ActivationRange]>,
}

impl Prepared {
    /// What mean squares by channel say.
    pub(crate) fn important(weights: Weights, mean_squares: &[f64]) -> Self {
        // The roots: squares, by which errors of the output would be least if channels had nothing
        // in common, are worse for a model as a whole (docs/benchmarks.md).
        let roots: Vec<f64> = mean_squares.iter().map(|h| h.sqrt()).collect();
        Self {
            importance: Some(floored(&roots)),
            weights: Some(weights),
            ..Self::default()
        }
    }

    /// What is known of inputs that are divided by scales, or rotated.
    pub(crate) fn transformed(&self, spatial: &Spatial) -> Cow<'_, Prepared> {
        let scales = match (spatial.rotation, spatial.scales()) {
            (None, None) => return Cow::Borrowed(self),
            // What channels have is spread over all of a block.
            (Some(_), _) => return Cow::Owned(Self::default()),
            (None, Some(scales)) => scales,
        };
        let importance = |h: &Vec<f32>| h.iter().zip(&scales).map(|(h, s)| h / s).collect();
        Cow::Owned(Self {
            factor: self.factor.as_ref().map(|factor| factor.scaled(&scales)),
            importance: self.importance.as_ref().map(importance),
            ..Self::default()
        })
    }

    pub(crate) fn guide(&self) -> Guide<'_> {
        match (&self.factor, &self.importance) {
            (Some(factor), _) => Guide::Factor(factor),
            (None, Some(importance)) => Guide::Importance(importance),
            (None, None) => Guide::None,
        }
    }

    /// Notes in a tile what its inputs go through.
    pub(crate) fn describe(&self, tile: &mut Tile) {
        tile.input_scale.clone_from(&self.spatial.input_scale);
        tile.rotation = self.spatial.rotation;
        tile.activation = self.activation.clone();
    }

    /// The method that comes of one: GPTQ takes a Hessian.
    pub(crate) fn method(&self, method: Method) -> Method {
        match (method, &self.factor) {
            (Method::Gptq, None) => Method::Lsq,
            _ => method,
        }
    }
}
