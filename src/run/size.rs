//! How large the file of a plan is, before it is written.

use super::engine::jobs;
use super::guide::WINDOW;
use crate::error::Result;
use crate::format::{
    Choice, Format, GroupSize, ScaleDtype, Scheme, TILE_BYTES, TILE_BYTES_COMPRESSED,
};
use crate::plan::{NO_MIN_COSINE, OnNonFinite, Plan};
use crate::schema::Tile;
use crate::sink::{SHARED_BELOW, SHARED_BYTES};
use crate::source::Source;
use crate::tensor::Shape;

/// Bytes of text as it stands in JSON.
fn escaped(text: &str) -> usize {
    serde_json::json!(text).to_string().len()
}

/// Predicted bytes of the file of a plan: its planes to the byte, and what is beside them to a few
/// hundred bytes a tensor. Compression, scales that turn out to need f32 and tensors that get more
/// bits than planned change it.
pub fn predicted_bytes(source: &dyn Source, plan: &Plan) -> usize {
    plan.total_bytes().saturating_add(overhead(source, plan))
}

/// What the file takes beside its planes at most, whatever formats open tensors get.
pub(super) fn most_overhead(source: &dyn Source, plan: &Plan) -> u64 {
    /// Planes that are aligned, of which a tensor has up to three, and longer numbers in the footer.
    const SLACK: usize = 3 * 64 + 48;
    let tile = match plan.compresses() {
        true => TILE_BYTES_COMPRESSED,
        false => TILE_BYTES,
    };
    let tensors = plan.entries.iter();
    let more = tensors.map(|entry| SLACK + entry.source_bytes().max(entry.bytes()) / tile * GROUP);
    more.fold(overhead(source, plan), usize::saturating_add) as u64
}

/// A row group: pages, their headers, its part of the footer, and the tensor's figures.
const GROUP: usize = 1910;

/// What the file takes beside its planes: measured on files of one and of many tensors, of which
/// more than these are rare.
pub(super) fn overhead(source: &dyn Source, plan: &Plan) -> usize {
    /// The schema, and what else there is once.
    const FILE: usize = 950;
    /// A tensor in a row group that it shares.
    const SHARING: usize = 136;
    /// Bytes before planes that are aligned.
    const PADDING: usize = 64;
    let mut bytes: usize = FILE + plan.config.to_string().len() + escaped(&source.id().name);
    for (key, value) in source.metadata() {
        bytes += escaped(key) + escaped(value) + 2;
    }
    let mut shared = 0;
    for entry in &plan.entries {
        // The name, in its column and with the figures.
        bytes += 2 * escaped(&entry.tensor.name);
        if entry.recipe.is_none() && entry.source_bytes() < SHARED_BELOW {
            bytes += SHARING;
            shared += entry.source_bytes();
            continue;
        }
        // Larger tensors come in several tiles, but what those take is lost in them.
        bytes += GROUP;
        bytes += if entry.bytes() > SHARED_BELOW {
            PADDING
        } else {
            0
        };
        if let (Some(_), Some(calibrated)) = (&entry.recipe, &plan.calibrated) {
            bytes += inputs(&entry.tensor.shape, calibrated.time_groups as usize);
        }
    }
    bytes.saturating_add(shared.div_ceil(SHARED_BYTES) * GROUP)
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
/// As [`quantize`](super::quantize) before it begins its work.
pub fn output_bound(source: &dyn Source, plan: &Plan) -> Result<usize> {
    /// Page headers, column metadata, figures and padding of a tile; all but its name and shape.
    const TILE: usize = 8 << 10;
    /// The schema, and what else there is once.
    const FOOTER: usize = 16 << 10;
    plan.check_matches(source.tensors())?;
    let compress = plan.compresses();
    let mut bytes = FOOTER + escaped(&plan.config.to_string()) + escaped(&source.id().name);
    for (key, value) in source.metadata() {
        bytes += 2 * (escaped(key) + escaped(value)); // quotes are escaped once more
    }
    for job in jobs(source, plan, None, 0..plan.entries.len())? {
        let widest = job.recipe.map(|recipe| recipe.encoding.with_f32_scales());
        let widest = widest.map_or(job.tile.encoding, |wide| wide.or(job.tile.encoding));
        let tile = Tile {
            encoding: widest,
            ..job.tile
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
        // What zstd may add to what it cannot compress.
        bytes += planes + if compress { planes / 128 } else { 0 };
        // Kept, it may be cut into more tiles.
        let tiles = 1 + planes / TILE_BYTES_COMPRESSED;
        bytes += tiles * TILE + 2 * tiles * escaped(&tile.name) + 32 * tile.shape.dims().len();
        if let Some(calibrated) = &plan.calibrated {
            bytes += inputs(&tile.shape, calibrated.time_groups as usize);
        }
    }
    Ok(bytes)
}
