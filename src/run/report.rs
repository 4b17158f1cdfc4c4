//! What a run measured.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::guide::Calibrator;
use super::ladder::{Gauge, LadderStep, Rung};
use super::output::OutputSums;
use super::tile::CalibratedTile;
use crate::calibrate::Weights;
use crate::calibrate::time::smoothness;
use crate::format::Method;
use crate::kernel::ErrorSums;
use crate::plan::{NO_MIN_COSINE, PlanEntry};
use crate::schema::{RAW, Tile};
use crate::source::SourceId;

/// Measured result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was quantized.
    pub source: SourceId,
    /// Where to.
    pub output: String,
    /// Size of the file written.
    pub output_bytes: u64,
    /// Bytes of all tensors in the source.
    pub source_bytes: usize,
    /// Over all quantized tensors.
    pub total: Totals,
    /// One entry a tensor, in the order of the plan.
    pub tensors: Vec<TensorReport>,
    /// The ceiling on memory that the run streamed under; none when it did not stream.
    pub memory_limit: Option<usize>,
    /// Why it streamed though nobody asked for it.
    pub streaming_because: Option<String>,
    /// Of an output that is a folder.
    pub parts: Option<Parts>,
    /// Wall time of the run.
    pub seconds: f64,
    /// Threads that worked.
    pub threads: usize,
    /// Kernels that were used.
    pub isa: &'static str,
}

/// The parts that a run was to make.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Parts {
    /// How many.
    pub count: usize,
    /// Those that were there already.
    pub resumed: usize,
}

/// Figures over all quantized tensors.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Totals {
    /// Number of quantized tensors.
    pub quantized: usize,
    /// Number of kept tensors.
    pub kept: usize,
    /// Quantized weights.
    pub weights: usize,
    /// Bytes of their planes.
    pub bytes: usize,
    /// True bits per weight of the quantized tensors, scales and biases counted.
    pub bits_per_weight: Option<f64>,
    /// Cosine over all quantized weights; none where these are all 0.
    pub cosine: Option<f64>,
    /// SQNR over all quantized weights; none without error.
    pub sqnr_db: Option<f64>,
}

/// Measured result of one tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Name in the model.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Element type in the source.
    pub dtype: &'static str,
    /// int2, int4, int8, or raw for a kept tensor.
    pub format: &'static str,
    /// symmetric or affine; none when kept.
    pub scheme: Option<&'static str>,
    /// Weights per scale, 0 for the whole row; none when kept.
    pub group_size: Option<u16>,
    /// minmax, lsq or gptq, as it was used; none when kept.
    pub method: Option<&'static str>,
    /// unit or lsq; none when kept.
    pub gain: Option<&'static str>,
    /// Bytes of its planes.
    pub bytes: usize,
    /// True bits per weight; none without weights.
    pub bits_per_weight: Option<f64>,
    /// Cosine of stored against original weights; none when kept, or when all weights are 0.
    pub cosine: Option<f64>,
    /// Signal to quantization noise; none when kept or without error.
    pub sqnr_db: Option<f64>,
    /// The exponent of smoothing, where input channels are scaled because that made the output's
    /// error smaller.
    pub smoothing: Option<f64>,
    /// Columns in a block of the rotation, where input channels are rotated for that reason.
    pub rotation: Option<u32>,
    /// Static ranges of activations by time: one for all times, one for each group of timesteps, or
    /// with smooth boundaries, whichever makes the smallest rounding errors; 0 where nothing is
    /// known.
    pub activation_ranges: usize,
    /// How smooth these are: 1 less the mean relative jump of the scale from one to the next.
    pub activation_smoothness: Option<f64>,
    /// Error of the layer's output on the calibration's inputs; none where that does not know the
    /// layer.
    pub output: Option<OutputError>,
    /// Tiles whose scales did not fit f16.
    pub f32_scale_tiles: Vec<u32>,
    /// Kept because it holds NaN or infinity, not because the plan says so.
    pub kept_non_finite: bool,
    /// Cosine that it is to reach, of its outputs where they were measured; none for none.
    pub min_cosine: Option<f64>,
    /// Attempts that did not reach it, in order.
    pub ladder: Vec<LadderStep>,
    /// Whether it still does not reach it, as there was no room for more bits.
    pub below_min_cosine: bool,
    /// Why it was treated so.
    pub reason: String,
}

/// How far the output of a layer is from what it was, `X W^T` against `X Q^T`.
#[derive(Debug, Clone, Serialize)]
pub struct OutputError {
    /// `|X W^T - X Q^T|^2 / |X W^T|^2`, timesteps weighted as they were for quantizing.
    pub error: f64,
    /// Cosine of the angle between the outputs, likewise.
    pub cosine: f64,
    /// The same for each group of timesteps that was seen.
    pub by_time: Vec<OutputErrorAt>,
}

/// The same in one group of timesteps.
#[derive(Debug, Clone, Serialize)]
pub struct OutputErrorAt {
    /// First timestep.
    pub t_begin: u32,
    /// Timestep after the last.
    pub t_end: u32,
    /// As in [`OutputError`].
    pub error: f64,
    /// As in [`OutputError`].
    pub cosine: f64,
}

/// Error and cosine from squared outputs: of the weights, of the quantized ones, of the difference.
fn output_figures([weights, decoded, error]: [f64; 3]) -> (f64, f64) {
    let sums = ErrorSums {
        signal: weights,
        decoded,
        error,
    };
    let relative = if error == 0.0 { 0.0 } else { error / weights };
    (relative, sums.cosine())
}

/// Squared outputs over all time, as it is weighted.
fn over_time(sums: &OutputSums, weights: &Weights) -> [f64; 3] {
    sums.each_ref().map(|sums| {
        let weighted = sums.iter().zip(&weights.of_row);
        weighted.map(|(x, weight)| x * weight).sum()
    })
}

/// Cosine of the angle between a layer's outputs.
pub(super) fn output_cosine(sums: &OutputSums, weights: &Weights) -> f64 {
    output_figures(over_time(sums, weights)).1
}

/// Gathers a tensor's tiles into its report.
pub(super) struct TensorTally {
    pub(super) bytes: usize,
    pub(super) error: ErrorSums,
    pub(super) f32_scale_tiles: Vec<u32>,
    pub(super) kept_non_finite: bool,
    pub(super) ladder: Vec<LadderStep>,
    pub(super) below_min_cosine: bool,
    /// Whether its inputs may be scaled or rotated.
    pub(super) spatial: bool,
    method: Option<Method>,
    alpha: Option<f64>,
    rotation: Option<u32>,
    activation_ranges: usize,
    activation_smoothness: Option<f64>,
    weights: Option<Weights>,
    /// Of all tiles so far; none where one was not measured.
    output: Option<OutputSums>,
    tiles: usize,
}

impl TensorTally {
    pub(super) fn new() -> Self {
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
    pub(super) fn add(&mut self, bytes: usize, error: &ErrorSums) {
        self.bytes += bytes;
        self.error.add(*error);
    }

    /// Takes in what a tile says of its inputs.
    pub(super) fn add_inputs(&mut self, tile: &Tile) {
        self.rotation = tile.rotation.map(|rotation| rotation.block);
        self.activation_ranges = tile.activation.len();
        self.activation_smoothness =
            (!tile.activation.is_empty()).then(|| smoothness(&tile.activation));
    }

    /// Takes in what the calibration came to for a tile.
    pub(super) fn add_calibrated(&mut self, tile: CalibratedTile) {
        self.method = self.method.or(tile.method);
        self.alpha = self.alpha.or(tile.alpha);
        self.weights = self.weights.take().or(tile.weights);
        self.output = match (self.output.take(), tile.output) {
            (None, output) if self.tiles == 0 => output,
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
    pub(super) fn again(&mut self, step: LadderStep, next: Rung) {
        let mut ladder = std::mem::take(&mut self.ladder);
        ladder.push(step);
        *self = Self {
            ladder,
            spatial: next.spatial,
            ..Self::new()
        };
    }

    /// Whether its inputs were scaled or rotated.
    pub(super) fn transformed(&self) -> bool {
        self.alpha.is_some() || self.rotation.is_some()
    }

    /// The cosine that it must reach a threshold with: of its outputs where they were measured.
    pub(super) fn cosine(&self) -> (f64, Gauge) {
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

    pub(super) fn report(
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
            format: recipe.map_or(RAW, |r| r.format().name()),
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
pub(super) struct TotalTally {
    pub(super) quantized: usize,
    pub(super) kept: usize,
    pub(super) weights: usize,
    pub(super) bytes: usize,
    pub(super) error: ErrorSums,
}

impl TotalTally {
    pub(super) fn add(&mut self, entry: &PlanEntry, tensor: &TensorTally) {
        let weights = entry.tensor.shape.elements();
        self.take(entry.recipe.is_some(), weights, tensor);
    }

    /// Takes in a tensor of so many weights.
    pub(super) fn take(&mut self, quantized: bool, weights: usize, tensor: &TensorTally) {
        if !quantized {
            self.kept += 1;
            return;
        }
        self.quantized += 1;
        self.weights += weights;
        self.bytes += tensor.bytes;
        self.error.add(tensor.error);
    }

    pub(super) fn totals(&self) -> Totals {
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

/// True bits per weight of so many bytes, or `None` without weights.
pub(super) fn bits_per_weight(bytes: usize, weights: usize) -> Option<f64> {
    (weights > 0).then(|| bytes as f64 * 8.0 / weights as f64)
}

impl Totals {
    /// As they stand in a summary.
    pub(super) fn figures(&self) -> Value {
        summary_entry(self.cosine, self.sqnr_db, self.bits_per_weight)
    }
}

fn summary_entry(cosine: Option<f64>, sqnr_db: Option<f64>, bits: Option<f64>) -> Value {
    json!({"cosine": cosine, "sqnr_db": sqnr_db, "bits_per_weight": bits})
}

/// The summary's entry of a tensor of so many weights.
pub(super) fn figures(quantized: bool, weights: usize, tensor: &TensorTally) -> Value {
    let error = quantized.then_some(&tensor.error);
    summary_entry(
        error.and_then(ErrorSums::measured_cosine),
        error.and_then(ErrorSums::sqnr_db),
        bits_per_weight(tensor.bytes, weights),
    )
}

/// The `arrowquant.summary` of the file: nothing that depends on the machine.
pub(super) fn summary(totals: &Totals, tensors: &[TensorReport]) -> Value {
    let tensors: Map<String, Value> = tensors
        .iter()
        .map(|t| {
            let figures = summary_entry(t.cosine, t.sqnr_db, t.bits_per_weight);
            (t.name.clone(), figures)
        })
        .collect();
    json!({"total": totals.figures(), "tensors": tensors})
}
