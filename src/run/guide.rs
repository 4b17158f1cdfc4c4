//! What a calibration says to each tensor, and whether it is one of this model at all.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::progress::{Level, LogFn, say};
use super::spatial::Spatial;
use super::tile::Work;
use crate::calibrate::time::{
    BinRange, Curve, RangeFit, Smoothing, expected_error, optimal, ranges, table, uniform,
};
use crate::calibrate::{Calibration, OwnedBin, TimeWeighting, Weights};
use crate::error::{Error, Result};
use crate::format::{ActivationRange, Method, Recipe};
use crate::plan::{Calibrated, CalibrationInfo, CalibrationInput, Plan, PlanEntry};
use crate::quantize::{Factor, Guide, floored};
use crate::schema::Tile;
use crate::source::Imatrix;
use crate::tensor::TensorInfo;

/// Of static ranges.
const BITS: u32 = 8;

/// Timesteps on each side of a boundary that it may be smoothed over: each has a range of its own.
pub(super) const WINDOW: i32 = 4;

/// A longer table of ranges is taken when it leaves less than this of the error.
const WORTH: f64 = 0.99;

/// Bytes of Hessians that a run holds in memory; the rest lies in a temporary file.
const HELD: usize = 1 << 30;

/// The same where a ceiling is set.
const HELD_UNDER_CEILING: usize = 64 << 20;

/// The calibration of a run.
pub(super) struct Calibrator {
    pub(super) calibration: Arc<Calibration>,
    calibrated: Calibrated,
    weighting: TimeWeighting,
}

/// What is known of one tensor's inputs.
#[derive(Default, Clone)]
pub(super) struct Prepared {
    factor: Option<Factor>,
    importance: Option<Vec<f32>>,
    /// What the rows of each group of timesteps count for; none when not calibrated.
    pub(super) weights: Option<Weights>,
    /// What is done to the input channels.
    pub(super) spatial: Spatial,
    /// Static ranges of the inputs.
    pub(super) activation: Arc<[ActivationRange]>,
}

impl Prepared {
    /// What mean squares by channel say.
    pub(super) fn important(weights: Weights, mean_squares: &[f64]) -> Self {
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
    pub(super) fn transformed(&self, spatial: &Spatial) -> Cow<'_, Prepared> {
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

    pub(super) fn guide(&self) -> Guide<'_> {
        match (&self.factor, &self.importance) {
            (Some(factor), _) => Guide::Factor(factor),
            (None, Some(importance)) => Guide::Importance(importance),
            (None, None) => Guide::None,
        }
    }

    /// Notes in a tile what its inputs go through.
    pub(super) fn describe(&self, tile: &mut Tile) {
        tile.input_scale.clone_from(&self.spatial.input_scale);
        tile.rotation = self.spatial.rotation;
        tile.activation = self.activation.clone();
    }

    /// The method that comes of one: GPTQ takes a Hessian.
    pub(super) fn method(&self, method: Method) -> Method {
        match (method, &self.factor) {
            (Method::Gptq, None) => Method::Lsq,
            _ => method,
        }
    }
}

impl Calibrator {
    /// Whether a layer was observed, and has a Hessian.
    pub(super) fn knows(&self, layer: &str) -> (bool, bool) {
        let calibration = &self.calibration;
        (
            calibration.cols(layer).is_some(),
            calibration.has_hessian(layer),
        )
    }

    /// Whether smoothing and rotation are tried.
    pub(super) fn tries_spatial(&self) -> bool {
        self.calibrated.spatial
    }

    /// Static ranges of a layer's input: one for each group of timesteps where that makes smaller
    /// errors than one for all, with smooth boundaries where that makes smaller ones still. None
    /// where inputs were not seen, or are rotated.
    fn activation(&self, layer: &str, spatial: &Spatial) -> Arc<[ActivationRange]> {
        let scales = spatial.scales();
        let bins = self.calibration.bin_ranges(layer, scales.as_deref());
        if spatial.rotation.is_some() || bins.is_empty() {
            return Arc::default();
        }
        let bins: Vec<BinRange<'_>> = bins.iter().map(OwnedBin::as_range).collect();
        let fit = RangeFit::SquaredError;
        let timesteps = self.calibration.options().timesteps as i32;
        let groups = match self.calibrated.time_aware {
            // Ranges alone are enough to find boundaries by, and a hundred times as fast.
            true => optimal(
                &bins,
                self.calibrated.time_groups as usize,
                RangeFit::MinMax,
                BITS,
            ),
            false => uniform(timesteps, 1),
        };
        let several = ranges(&bins, &groups, fit, BITS);
        let shortest = groups.iter().map(|group| group.end - group.start).min();
        let smoothing = Smoothing {
            window: shortest.unwrap_or(0) / 2,
            curve: Curve::Linear,
        };
        // Of tables that are equally good the shortest.
        let tables = [
            table(
                &ranges(&bins, &uniform(timesteps, 1), fit, BITS),
                None,
                BITS,
            ),
            table(&several, None, BITS),
            table(&several, Some(smoothing), BITS),
        ];
        let error = |rows: &Vec<ActivationRange>| expected_error(&bins, rows, BITS);
        let mut best = 0;
        for i in 1..tables.len() {
            if error(&tables[i]) < WORTH * error(&tables[best]) {
                best = i;
            }
        }
        tables[best].clone().into()
    }

    /// That of a plan, read where it is a file.
    ///
    /// # Errors
    /// The file cannot be read, is not the one that the plan was made with, or is of another model.
    pub(super) fn new(plan: &Plan, log: &mut Option<LogFn<'_>>) -> Result<Option<Self>> {
        let Some(calibrated) = plan.calibrated.clone() else {
            return Ok(None);
        };
        let held = match plan.memory_limit.is_some() || plan.streaming {
            true => HELD_UNDER_CEILING,
            false => HELD,
        };
        let calibration = match &calibrated.input {
            Some(CalibrationInput::Held(held)) => held.clone(),
            Some(CalibrationInput::File(path)) => Arc::new(load(path, Some(held))?),
            None => {
                let reason = "the plan was made with one: give it again";
                return Err(Error::config("calibration", reason));
            }
        };
        let hash = calibration.hash();
        if hash != calibrated.info.hash {
            let reason = format!(
                "{hash} is not {}, with which the plan was made",
                calibrated.info.hash
            );
            return Err(Error::config("calibration", reason));
        }
        check_model(&calibration, plan, log)?;
        Ok(Some(Self {
            weighting: calibrated.weighting(&calibration.schedule()),
            calibration,
            calibrated,
        }))
    }
}

/// What plans are made by, without reading all of a calibration.
///
/// # Errors
/// It cannot be read.
pub(super) fn info(input: &CalibrationInput) -> Result<CalibrationInfo> {
    let (hash, hessians) = match input {
        CalibrationInput::File(path) if is_imatrix(path)? => (load(path, None)?.hash(), false),
        CalibrationInput::File(path) => match Calibration::peek(path)? {
            // Written by another program.
            (hash, hessians) if hash.is_empty() => (load(path, Some(HELD))?.hash(), hessians),
            found => found,
        },
        CalibrationInput::Held(held) => (held.hash(), held.has_hessians()),
    };
    Ok(CalibrationInfo { hash, hessians })
}

/// Reads a calibration, or an importance matrix of llama.cpp.
fn load(path: &Path, memory_limit: Option<usize>) -> Result<Calibration> {
    if !is_imatrix(path)? {
        return Calibration::load(path, memory_limit);
    }
    let imatrix = Imatrix::read(path)?;
    let layers = imatrix.layers.iter();
    Calibration::of_mean_squares(layers.map(|(name, squares)| (&name[..], &squares[..])))
}

/// Calibrations are Parquet files, importance matrices are not.
fn is_imatrix(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let read = file.take(4).read_to_end(&mut magic);
    read.map_err(Error::io(path, "read"))?;
    Ok(magic != b"PAR1")
}

/// Tensors that a warning names.
const NAMED: usize = 3;

/// A calibration of another model is refused: by the shape of a layer, or when no layer has the
/// name of a tensor.
fn check_model(calibration: &Calibration, plan: &Plan, log: &mut Option<LogFn<'_>>) -> Result<()> {
    let (mut calibrated, mut unseen) = (0, Vec::new());
    let quantized = || plan.entries.iter().filter(|entry| entry.recipe.is_some());
    for TensorInfo { name, shape, .. } in quantized().map(|entry| &entry.tensor) {
        match calibration.cols(name) {
            Some(cols) if cols != shape.cols() => {
                let reason = format!(
                    "not of this model: layer '{name}' has {cols} channels in it, and {} in the model",
                    shape.cols()
                );
                return Err(Error::config("calibration", reason));
            }
            Some(_) => calibrated += 1,
            None => unseen.push(name.as_str()),
        }
    }
    let all = quantized().count();
    if calibrated == 0 && all > 0 {
        let seen = calibration.layers();
        let first = seen.first().map_or("none at all", |layer| &layer.name);
        let tensor = quantized().next().map_or("", |entry| &entry.tensor.name);
        let reason = format!(
            "not of this model: none of its layers (the first is '{first}') has the name of a \
             tensor to quantize (such as '{tensor}')"
        );
        return Err(Error::config("calibration", reason));
    }
    let gptq = |entry: &PlanEntry| entry.recipe.is_some_and(|r| r.method == Method::Gptq);
    if !calibration.has_hessians() && plan.entries.iter().any(gptq) {
        let message = "the calibration has no Hessians: lsq instead of gptq";
        say(log, Level::Warning, message)?;
    }
    if calibrated < all {
        let more = if unseen.len() > NAMED { ", …" } else { "" };
        let message = format!(
            "{} of {all} tensors to quantize are not in the calibration: {}{more}",
            unseen.len(),
            unseen[..unseen.len().min(NAMED)].join(", ")
        );
        say(log, Level::Warning, &message)?;
    }
    Ok(())
}

impl Work<'_> {
    /// What a tensor's channels and times count for, where anything was seen of it: weights of time
    /// groups, and weighted mean squares by channel.
    pub(super) fn importance(&self, tensor: usize) -> Result<Option<(Weights, Vec<f64>)>> {
        let Some(calibrator) = self.calibrator else {
            return Ok(None);
        };
        let layer = &self.source.tensors()[tensor].name;
        let calibration = &calibrator.calibration;
        match calibration.cols(layer) {
            None => return Ok(None),
            Some(cols) if cols == self.source.tensors()[tensor].shape.cols() => {}
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
    pub(super) fn prepare(
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
        let layer = &self.source.tensors()[tensor].name;
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

    pub(super) fn cannot_read_calibration(&self, layer: &str, error: std::io::Error) -> Error {
        let reason = format!("layer '{layer}': its temporary file cannot be read: {error}");
        Error::config("calibration", reason)
    }
}
