//! What a calibration says to each tensor, and whether it is one of this model at all.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::spatial::Spatial;
use crate::calibrate::time::{
    BinRange, Curve, RangeFit, Smoothing, expected_error, optimal, ranges, table, uniform,
};
use crate::calibrate::{Calibration, OwnedBin, TimeWeighting};
use crate::error::{Error, Result};
use crate::format::{ActivationRange, Method};
use crate::plan::{Calibrated, CalibrationInfo, CalibrationInput, Plan, PlanEntry};
use crate::run::progress::{Level, LogFn, say};
use crate::source::Imatrix;
use crate::tensor::TensorInfo;

/// Bits of activations that static ranges are for.
const BITS: u32 = 8;

/// Timesteps on each side of a boundary that it may be smoothed over: each has a range of its own.
pub(crate) const WINDOW: i32 = 4;

/// A longer table of ranges is taken when it leaves less than this of the error.
const WORTH: f64 = 0.99;

/// Bytes of Hessians that a run holds in memory; the rest lies in a temporary file.
const HELD: usize = 1 << 30;

/// Bytes of Hessians that a run holds in memory under a ceiling.
const HELD_UNDER_CEILING: usize = 64 << 20;

/// The calibration of a run.
pub(crate) struct Calibrator {
    pub(crate) calibration: Arc<Calibration>,
    pub(crate) calibrated: Calibrated,
    pub(crate) weighting: TimeWeighting,
}

impl Calibrator {
    /// Whether a layer was observed, and has a Hessian.
    pub(crate) fn knows(&self, layer: &str) -> (bool, bool) {
        let calibration = &self.calibration;
        (
            calibration.cols(layer).is_some(),
            calibration.has_hessian(layer),
        )
    }

    /// Whether smoothing and rotation are tried.
    pub(crate) fn tries_spatial(&self) -> bool {
        self.calibrated.spatial
    }

    /// Static ranges of a layer's input: one for each group of timesteps where that makes smaller
    /// errors than one for all, with smooth boundaries where that makes smaller ones still. None
    /// where inputs were not seen, or are rotated.
    pub(crate) fn activation(&self, layer: &str, spatial: &Spatial) -> Arc<[ActivationRange]> {
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
    pub(crate) fn new(plan: &Plan, log: &mut Option<LogFn<'_>>) -> Result<Option<Self>> {
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
                let reason = "the plan was made with a calibration: pass it again";
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
pub(crate) fn info(input: &CalibrationInput) -> Result<CalibrationInfo> {
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
        let message = "the calibration has no Hessians: using lsq instead of gptq";
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
