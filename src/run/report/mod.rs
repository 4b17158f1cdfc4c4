//! What a run measured.

mod figures;
mod page;
mod step;
mod tally;

use serde::Serialize;

pub(crate) use figures::{bits_per_weight, figures, summary};
pub use step::{Gauge, LadderStep};
pub(crate) use tally::{CalibratedTile, TensorTally, TotalTally};

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
    /// The parts of the output, where it is a folder.
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
    /// Parts that were there already.
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
    /// Name of the encoding, or kept.
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
    /// Cosine of the angle between the outputs, timesteps weighted likewise.
    pub cosine: f64,
    /// The error in each group of timesteps that was seen.
    pub by_time: Vec<OutputErrorAt>,
}

/// The error of a layer's output in one group of timesteps.
#[derive(Debug, Clone, Serialize)]
pub struct OutputErrorAt {
    /// First timestep.
    pub t_begin: u32,
    /// Timestep after the last.
    pub t_end: u32,
    /// Relative squared error, as [`OutputError::error`].
    pub error: f64,
    /// Cosine of the angle between the outputs.
    pub cosine: f64,
}
