//! Gathers what tiles came to into reports.

use super::figures::{bits_per_weight, output_cosine, output_figures, over_time};
use super::step::{Gauge, LadderStep};
use super::{OutputError, OutputErrorAt, TensorReport, Totals};
use crate::calibrate::Weights;
use crate::calibrate::time::smoothness;
use crate::format::Method;
use crate::kernel::ErrorSums;
use crate::plan::{NO_MIN_COSINE, PlanEntry};
use crate::run::inputs::{Calibrator, OutputSums};
use crate::schema::{KEPT, Tile};

/// What a calibration came to for a tile.
#[derive(Default)]
pub(crate) struct CalibratedTile {
    /// The method that was used, which may not be the planned one.
    pub(crate) method: Option<Method>,
    /// The exponent of smoothing, where it was kept.
    pub(crate) alpha: Option<f64>,
    /// What the rows of each group of timesteps count for.
    pub(crate) weights: Option<Weights>,
    pub(crate) output: Option<OutputSums>,
}

impl CalibratedTile {
    /// Cosine of the layer's outputs, where they were measured.
    pub(crate) fn output_cosine(&self) -> Option<f64> {
        let (sums, weights) = (self.output.as_ref()?, self.weights.as_ref()?);
        Some(output_cosine(sums, weights))
    }
}

/// Gathers a tensor's tiles into its report.
pub(crate) struct TensorTally {
    pub(crate) bytes: usize,
    pub(crate) error: ErrorSums,
    pub(crate) f32_scale_tiles: Vec<u32>,
    pub(crate) kept_non_finite: bool,
    pub(crate) ladder: Vec<LadderStep>,
    pub(crate) below_min_cosine: bool,
    /// Whether its inputs may be scaled or rotated.
    pub(crate) spatial: bool,
    method: Option<Method>,
    alpha: Option<f64>,
    rotation: Option<u32>,
    activation_ranges: usize,
    activation_smoothness: Option<f64>,
    weights: Option<Weights>,
    /// Sums over all tiles so far; none where a tile was not measured.
    output: Option<OutputSums>,
    tiles: usize,
}

impl TensorTally {
    pub(crate) fn new() -> Self {
        Self {
            bytes: 0,
            error: ErrorSums::default(),
            f32_scale_tiles: Vec::new(),
            kept_non_finite: false,
            ladder: Vec::new(),
            below_min_cosine: false,
            spatial: true,
            method: None,
            alpha: None,
            rotation: None,
            activation_ranges: 0,
            activation_smoothness: None,
            weights: None,
            output: None,
            tiles: 0,
        }
    }

    /// Takes in a tile.
    pub(crate) fn add(&mut self, bytes: usize, error: &ErrorSums) {
        self.bytes += bytes;
        self.error.add(*error);
    }

    /// Takes in what a tile says of its inputs.
    pub(crate) fn add_inputs(&mut self, tile: &Tile) {
        self.rotation = tile.rotation.map(|rotation| rotation.block);
        self.activation_ranges = tile.activation.len();
        self.activation_smoothness =
            (!tile.activation.is_empty()).then(|| smoothness(&tile.activation));
    }

    /// Takes in what the calibration came to for a tile.
    pub(crate) fn add_calibrated(&mut self, tile: &CalibratedTile) {
        self.method = self.method.or(tile.method);
        self.alpha = self.alpha.or(tile.alpha);
        if self.weights.is_none() {
            self.weights.clone_from(&tile.weights);
        }
        self.output = match (self.output.take(), &tile.output) {
            (None, output) if self.tiles == 0 => output.clone(),
            (Some(mut total), Some(output)) => {
                for (total, output) in total.iter_mut().zip(output) {
                    total.iter_mut().zip(output).for_each(|(sum, x)| *sum += x);
                }
                Some(total)
            }
            _ => None,
        };
        self.tiles += 1;
    }

    /// Forgets what was measured: the tensor is done again, after an attempt that did not pass.
    /// Inputs may be scaled or rotated this time only if `spatial` is set.
    pub(crate) fn again(&mut self, step: LadderStep, spatial: bool) {
        let mut ladder = std::mem::take(&mut self.ladder);
        ladder.push(step);
        *self = Self {
            ladder,
            spatial,
            ..Self::new()
        };
    }

    /// Whether its inputs were scaled or rotated.
    pub(crate) fn transformed(&self) -> bool {
        self.alpha.is_some() || self.rotation.is_some()
    }

    /// The cosine that it must reach a threshold with: of its outputs where they were measured.
    pub(crate) fn cosine(&self) -> (f64, Gauge) {
        match (&self.output, &self.weights) {
            (Some(sums), Some(weights)) => (output_cosine(sums, weights), Gauge::Output),
            _ => (self.error.cosine(), Gauge::Weight),
        }
    }

    fn output(&self, layer: &str, calibrator: Option<&Calibrator>) -> Option<OutputError> {
        let (sums, weights) = (self.output.as_ref()?, self.weights.as_ref()?);
        let groups = calibrator?.calibration.time_groups(layer);
        let (error, cosine) = output_figures(over_time(sums, weights));
        let at = |(i, (t_begin, t_end, _)): (usize, (u32, u32, u64))| {
            let (error, cosine) = output_figures(sums.each_ref().map(|sums| sums[i]));
            OutputErrorAt {
                t_begin,
                t_end,
                error,
                cosine,
            }
        };
        let seen = groups
            .into_iter()
            .enumerate()
            .filter(|(_, group)| group.2 > 0);
        Some(OutputError {
            error,
            cosine,
            by_time: seen.map(at).collect(),
        })
    }

    pub(crate) fn report(
        &self,
        entry: &PlanEntry,
        calibrator: Option<&Calibrator>,
    ) -> TensorReport {
        let recipe = entry.recipe.as_ref();
        let weights = entry.tensor.shape.elements();
        TensorReport {
            name: entry.tensor.name.clone(),
            shape: entry.tensor.shape.dims().to_vec(),
            dtype: entry.tensor.dtype.name(),
            format: recipe.map_or(KEPT, |r| r.format().name()),
            scheme: recipe.and_then(|r| Some(r.encoding.scheme()?.name())),
            group_size: recipe.and_then(|r| Some(r.encoding.group_size()?.get())),
            method: recipe.map(|r| self.method.unwrap_or(r.method).name()),
            gain: recipe.map(|r| r.gain.name()),
            bytes: self.bytes,
            bits_per_weight: bits_per_weight(self.bytes, weights),
            cosine: recipe.and_then(|_| self.error.measured_cosine()),
            sqnr_db: recipe.and_then(|_| self.error.sqnr_db()),
            smoothing: self.alpha,
            rotation: self.rotation,
            activation_ranges: self.activation_ranges,
            activation_smoothness: self.activation_smoothness,
            output: self.output(&entry.tensor.name, calibrator),
            f32_scale_tiles: self.f32_scale_tiles.clone(),
            kept_non_finite: self.kept_non_finite,
            min_cosine: (entry.min_cosine > NO_MIN_COSINE).then_some(entry.min_cosine),
            ladder: self.ladder.clone(),
            below_min_cosine: self.below_min_cosine,
            reason: entry.reason.clone(),
        }
    }
}

/// Adds up what the quantized tensors came to.
#[derive(Default)]
pub(crate) struct TotalTally {
    pub(crate) quantized: usize,
    pub(crate) kept: usize,
    pub(crate) weights: usize,
    pub(crate) bytes: usize,
    pub(crate) error: ErrorSums,
}

impl TotalTally {
    pub(crate) fn add(&mut self, entry: &PlanEntry, tensor: &TensorTally) {
        let weights = entry.tensor.shape.elements();
        self.take(entry.recipe.is_some(), weights, tensor);
    }

    /// Takes in a tensor of so many weights.
    pub(crate) fn take(&mut self, quantized: bool, weights: usize, tensor: &TensorTally) {
        if !quantized {
            self.kept += 1;
            return;
        }
        self.quantized += 1;
        self.weights += weights;
        self.bytes += tensor.bytes;
        self.error.add(tensor.error);
    }

    pub(crate) fn totals(&self) -> Totals {
        let any = self.weights > 0;
        Totals {
            quantized: self.quantized,
            kept: self.kept,
            weights: self.weights,
            bytes: self.bytes,
            bits_per_weight: bits_per_weight(self.bytes, self.weights),
            cosine: any.then(|| self.error.measured_cosine()).flatten(),
            sqnr_db: any.then(|| self.error.sqnr_db()).flatten(),
        }
    }
}
