//! How large the file of a plan is, before it is written.

use super::job::jobs;
use crate::error::Result;
use crate::format::{Choice, Format, GroupSize, ScaleDtype, Scheme};
use crate::plan::{NO_MIN_COSINE, OnNonFinite, Plan};
use crate::run::inputs::WINDOW;
use crate::schema::Tile;
use crate::sink::{Outline, OutlineTensor, PARQUET, SinkKind};
use crate::source::{Source, SourceId};
use crate::tensor::Shape;

/// Predicted bytes of the file of a plan: its planes to the byte, and what is beside them to a few
/// hundred bytes a tensor. Compression, scales that turn out to need f32 and tensors that get more
/// bits than planned change it.
pub fn predicted_bytes(source: &dyn Source, plan: &Plan) -> usize {
    let id = source.id();
    let overhead = (PARQUET.overhead)(&outline(source, &id, plan));
    plan.total_bytes().saturating_add(overhead)
}

/// What the file takes beside its planes at most, whatever formats open tensors get.
pub(crate) fn most_overhead(source: &dyn Source, plan: &Plan, kind: &SinkKind) -> u64 {
    let id = source.id();
    (kind.most_overhead)(&outline(source, &id, plan)) as u64
}

/// What the file of a plan is going to hold.
fn outline<'a>(source: &'a dyn Source, id: &'a SourceId, plan: &'a Plan) -> Outline<'a> {
    let groups = |plan: &Plan| plan.calibrated.as_ref().map(|c| c.time_groups as usize);
    let tensors = plan.entries.iter().map(|entry| OutlineTensor {
        name: &entry.tensor.name,
        dims: entry.tensor.shape.dims().len(),
        kept: entry.recipe.is_none(),
        source_bytes: entry.source_bytes(),
        bytes: entry.bytes(),
        inputs: match (&entry.recipe, groups(plan)) {
            (Some(_), Some(groups)) => inputs(&entry.tensor.shape, groups),
            _ => 0,
        },
    });
    Outline {
        config: plan.config.to_string(),
        source: &id.name,
        metadata: source.metadata(),
        compress: plan.compresses(),
        tensors: tensors.collect(),
    }
}

/// Bytes of a row of `cols` weights in whatever encoding the ladder may climb to.
fn largest_row(cols: usize) -> usize {
    let choice = Choice {
        scheme: Scheme::Affine,
        group_size: GroupSize::SMALLEST,
        scale_dtype: ScaleDtype::F32,
    };
    let rows = Format::ALL.iter();
    let rows = rows.map(|format| format.encoding(choice).row_bytes(cols));
    rows.max().unwrap_or(0)
}

/// Input scales, and ranges of activations, at most.
fn inputs(shape: &Shape, time_groups: usize) -> usize {
    let ranges = (1 + 2 * WINDOW as usize) * time_groups;
    2 * shape.cols() + 64 * ranges
}

/// Bytes that the file of a plan never exceeds. Scales may turn out to need f32, and how long
/// figures are as text is not known before, so the file is a little smaller.
///
/// # Errors
/// As [`quantize`](crate::run::quantize) before it begins its work.
pub fn output_bound(source: &dyn Source, plan: &Plan) -> Result<usize> {
    plan.check_matches(source.tensors())?;
    let limits = (PARQUET.limits)(plan.compresses());
    let jobs = jobs(source, plan, &limits, None, 0..plan.entries.len())?;
    let tensors = jobs.iter().map(|job| {
        let widest = job.recipe.map(|recipe| recipe.encoding.with_f32_scales());
        let widest = widest.map_or(job.tile.encoding, |wide| wide.or(job.tile.encoding));
        let tile = Tile {
            encoding: widest,
            ..job.tile.clone()
        };
        let mut planes: usize = tile.plane_bytes().unwrap_or_default().iter().sum();
        // It may have to be kept.
        let entry = &plan.entries[job.tensor];
        let may_be_kept =
            entry.min_cosine > NO_MIN_COSINE || plan.on_nonfinite == OnNonFinite::Keep;
        if entry.recipe.is_some() && may_be_kept {
            let kept = tile.row_count.saturating_mul(job.row_bytes);
            let row = largest_row(tile.shape.cols());
            planes = planes.max(kept).max(row.saturating_mul(tile.row_count));
        }
        let groups = plan.calibrated.as_ref().map(|c| c.time_groups as usize);
        OutlineTensor {
            name: &job.tile.name,
            dims: tile.shape.dims().len(),
            kept: job.recipe.is_none(),
            source_bytes: entry.source_bytes(),
            bytes: planes,
            inputs: groups.map_or(0, |groups| inputs(&tile.shape, groups)),
        }
    });
    let id = source.id();
    Ok((PARQUET.bound)(&Outline {
        config: plan.config.to_string(),
        source: &id.name,
        metadata: source.metadata(),
        compress: plan.compresses(),
        tensors: tensors.collect(),
    }))
}
