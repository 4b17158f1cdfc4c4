//! What a calibration says of the inputs of each tensor's layer: which channels and times count for
//! how much, what is done to the channels, and what quantizing does to the outputs.

mod calibrator;
mod choice;
mod output;
mod prepared;
pub(crate) mod scales;
mod spatial;

pub(crate) use calibrator::{Calibrator, WINDOW, info};
pub(crate) use output::{OutputSums, bytes as output_bytes};
pub(crate) use prepared::Prepared;
pub(crate) use spatial::Spatial;

use super::context::Context;
use crate::calibrate::{TimeWeighting, Weights};
use crate::error::{Error, Result};
use crate::format::{Method, Recipe};
use crate::quantize::Factor;

/// What is known of the inputs of a run's tensors.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) calibrator: Option<&'a Calibrator>,
}

impl Inputs<'_> {
    /// What a tensor's channels and times count for, where anything was seen of it: weights of time
    /// groups, and weighted mean squares by channel.
    pub(crate) fn importance(&self, tensor: usize) -> Result<Option<(Weights, Vec<f64>)>> {
        let Some(calibrator) = self.calibrator else {
            return Ok(None);
        };
        let layer = &self.context.source.tensors()[tensor].name;
        let calibration = &calibrator.calibration;
        match calibration.cols(layer) {
            None => return Ok(None),
            Some(cols) if cols == self.context.source.tensors()[tensor].shape.cols() => {}
            // Observed since the run began.
            Some(cols) => {
                let reason = format!("layer '{layer}' has {cols} channels in it");
                return Err(Error::config("calibration", reason));
            }
        }
        let outputs = match calibrator.weighting {
            TimeWeighting::Relative => Some(self.forms_of_weights(tensor)?),
            _ => None,
        };
        let groups = calibrator.calibrated.time_groups;
        let weights =
            calibration.weights(layer, &calibrator.weighting, groups, outputs.as_deref())?;
        let importance = calibration.importance(layer, &weights);
        // Without, nothing but zeros was seen of it, or only at times that count nothing.
        let importance = importance.filter(|h| h.iter().any(|h| *h > 0.0));
        Ok(importance.map(|importance| (weights, importance)))
    }

    /// What the calibration says of a tensor; its inputs are scaled or rotated only where that is
    /// `spatial`.
    pub(crate) fn prepare(
        &self,
        tensor: usize,
        recipe: &Recipe,
        spatial: bool,
    ) -> Result<Prepared> {
        let (Some((weights, importance)), Some(calibrator)) =
            (self.importance(tensor)?, self.calibrator)
        else {
            return Ok(Prepared::default());
        };
        let layer = &self.context.source.tensors()[tensor].name;
        let factor = match recipe.method {
            Method::Gptq => Factor::new(&calibrator.calibration, layer, &weights)
                .map_err(|error| self.cannot_read_calibration(layer, error))?,
            Method::MinMax | Method::Lsq => None,
        };
        let mut prepared = Prepared {
            factor,
            ..Prepared::important(weights, &importance)
        };
        let spatial = match spatial {
            true => self.choose_spatial(tensor, recipe, &prepared)?,
            false => Spatial::default(),
        };
        if !spatial.transform().is_identity() {
            let Prepared {
                factor, importance, ..
            } = prepared.transformed(&spatial).into_owned();
            (prepared.factor, prepared.importance) = (factor, importance);
        }
        prepared.activation = calibrator.activation(layer, &spatial);
        prepared.spatial = spatial;
        Ok(prepared)
    }

    pub(crate) fn cannot_read_calibration(&self, layer: &str, error: std::io::Error) -> Error {
        let reason = format!("layer '{layer}': its temporary file cannot be read: {error}");
        Error::config("calibration", reason)
    }
}
