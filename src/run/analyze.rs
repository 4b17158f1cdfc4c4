//! What tensors lose by each way to store them, as a report.

use std::time::Instant;

use serde::Serialize;

use super::measure::sensitivities;
use super::options::Options;
use super::pipeline::{known, uniform_plan};
use crate::error::Result;
use crate::format::Recipe;
use crate::plan::{Basis, Config, Measured, Plan, Sensitivity};
use crate::source::{Source, SourceId};

/// Part of the tensors that count as sensitive though they reach their cosine: those that lose most
/// for each bit that is saved.
const SENSITIVE: f64 = 0.1;

/// What each tensor loses by each way to store it, measured on a sample of its rows.
#[derive(Debug, Clone, Serialize)]
pub struct Analysis {
    /// What was looked at.
    pub source: SourceId,
    /// What the sample was drawn by.
    pub seed: u64,
    /// The tensors that can be quantized, in the order of the source.
    pub tensors: Vec<TensorAnalysis>,
    /// Wall time.
    pub seconds: f64,
}

/// What one tensor loses by each way to store it.
#[derive(Debug, Clone, Serialize)]
pub struct TensorAnalysis {
    /// Name in the model.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Weights in all.
    pub weights: usize,
    /// Rows that were tried.
    pub sampled_rows: usize,
    /// What errors are of.
    pub basis: Basis,
    /// Why it is sensitive, if it is.
    pub sensitive: Option<String>,
    /// One entry a way to store it.
    pub formats: Vec<FormatAnalysis>,
}

/// What a tensor loses by one way to store it.
#[derive(Debug, Clone, Serialize)]
pub struct FormatAnalysis {
    /// int2, int4, int8 or keep.
    pub format: &'static str,
    /// Weights per scale; none when kept.
    pub group_size: Option<u16>,
    /// symmetric or affine; none when kept.
    pub scheme: Option<&'static str>,
    /// Bytes of its planes.
    pub bytes: usize,
    /// Bits of its planes per weight.
    pub bits_per_weight: f64,
    /// Cosine of the angle to the original.
    pub cosine: f64,
    /// `1 - cosine^2`, the relative squared error once the amplitude is right.
    pub error: f64,
}

/// Measures what the tensors of a source lose by the ways to store them that `config` allows.
///
/// # Errors
/// As [`plan_with`](super::plan_with).
pub fn analyze(source: &dyn Source, config: &Config, options: Options<'_>) -> Result<Analysis> {
    let started = Instant::now();
    let config = known(config)?;
    let plan = uniform_plan(source, &config)?;
    let mut open = plan.open(&config);
    // The plan's own way, too.
    for open in &mut open {
        let own = plan.entries[open.tensor].recipe;
        if !open.ways.contains(&own) {
            open.ways.push(own);
        }
    }
    let measured = sensitivities(source, &plan, &open, config.seed(), options)?;
    let mut tensors: Vec<TensorAnalysis> = measured.iter().map(|s| tensor(&plan, s)).collect();
    mark(&plan, &measured, &mut tensors);
    Ok(Analysis {
        source: source.id(),
        seed: config.seed(),
        tensors,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn tensor(plan: &Plan, sensitivity: &Sensitivity) -> TensorAnalysis {
    let entry = &plan.entries[sensitivity.tensor];
    let info = &entry.tensor;
    let weights = info.shape.elements();
    let format = |m: &Measured| {
        let recipe = m.recipe.as_ref();
        let bytes = entry.bytes_as(recipe);
        FormatAnalysis {
            format: recipe.map_or("keep", |r| r.format().name()),
            group_size: recipe.and_then(|r| Some(r.encoding.group_size()?.get())),
            scheme: recipe.and_then(|r| Some(r.encoding.scheme()?.name())),
            bytes,
            bits_per_weight: bytes as f64 * 8.0 / weights as f64,
            cosine: m.cosine,
            error: m.error,
        }
    };
    TensorAnalysis {
        name: info.name.clone(),
        shape: info.shape.dims().to_vec(),
        weights,
        sampled_rows: sensitivity.rows,
        basis: sensitivity.basis,
        sensitive: None,
        formats: sensitivity.measured.iter().map(format).collect(),
    }
}

/// Finds the sensitive ones: those that with the plan's own recipe do not reach their cosine, and
/// those that lose most for each bit that it saves.
fn mark(plan: &Plan, measured: &[Sensitivity], tensors: &mut [TensorAnalysis]) {
    let mut lost: Vec<(f64, usize)> = Vec::new();
    for (i, sensitivity) in measured.iter().enumerate() {
        let entry = &plan.entries[sensitivity.tensor];
        let recipe: Option<&Recipe> = entry.recipe.as_ref();
        let Some(own) = sensitivity.of(recipe) else {
            continue;
        };
        let format = recipe.map_or("keep", |recipe| recipe.format().name());
        if own.cosine < entry.min_cosine {
            let (cosine, least) = (own.cosine, entry.min_cosine);
            let why = format!("cosine {cosine:.4} at {format}, below min_cosine {least}");
            tensors[i].sensitive = Some(why);
        }
        let saved = entry.source_bytes().saturating_sub(entry.bytes()) as f64 * 8.0;
        let saved = saved / tensors[i].weights as f64;
        if saved > 0.0 {
            lost.push((own.error / saved, i));
        }
    }
    let count = (lost.len() as f64 * SENSITIVE).ceil() as usize;
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    for &(error, i) in lost.iter().take(count) {
        let why = || format!("among the {count} that lose most, {error:.5} for each bit saved");
        tensors[i].sensitive.get_or_insert_with(why);
    }
}
