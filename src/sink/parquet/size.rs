//! How large a Parquet file is, before it is written.

use super::{SHARED_BELOW, SHARED_BYTES, tile_bytes};
use crate::format::TILE_BYTES_COMPRESSED;
use crate::sink::Outline;
use crate::sink::outline::escaped;

/// A row group: pages, their headers, its part of the footer, and the tensor's figures.
const GROUP: usize = 1910;

/// What a file takes beside its planes: measured on files of one and of many tensors, of which
/// more than these are rare.
pub(crate) fn overhead(outline: &Outline<'_>) -> usize {
    /// The schema, and what else there is once.
    const FILE: usize = 950;
    /// A tensor in a row group that it shares.
    const SHARING: usize = 136;
    /// Bytes before planes that are aligned.
    const PADDING: usize = 64;
    let mut bytes: usize = FILE + outline.config.len() + escaped(outline.source);
    for (key, value) in outline.metadata {
        bytes += escaped(key) + escaped(value) + 2;
    }
    let mut shared = 0;
    for tensor in &outline.tensors {
        // The name, in its column and with the figures.
        bytes += 2 * escaped(tensor.name);
        if tensor.kept && tensor.source_bytes < SHARED_BELOW {
            bytes += SHARING;
            shared += tensor.source_bytes;
            continue;
        }
        // Larger tensors come in several tiles, but what those take is lost in them.
        bytes += GROUP;
        bytes += if tensor.bytes > SHARED_BELOW {
            PADDING
        } else {
            0
        };
        bytes += tensor.inputs;
    }
    bytes.saturating_add(shared.div_ceil(SHARED_BYTES) * GROUP)
}

/// What a file takes beside its planes at most, whatever formats its tensors get.
pub(crate) fn most_overhead(outline: &Outline<'_>) -> usize {
    /// Planes that are aligned, of which a tensor has up to three, and longer numbers in the footer.
    const SLACK: usize = 3 * 64 + 48;
    let tile = tile_bytes(outline.compress);
    let tensors = outline.tensors.iter();
    let more = tensors.map(|tensor| SLACK + tensor.source_bytes.max(tensor.bytes) / tile * GROUP);
    more.fold(overhead(outline), usize::saturating_add)
}

/// Bytes that a file never exceeds, of tiles whose planes take no more than is said.
pub(crate) fn bound(outline: &Outline<'_>) -> usize {
    /// Page headers, column metadata, figures and padding of a tile; all but its name and shape.
    const TILE: usize = 8 << 10;
    /// The schema, and what else there is once.
    const FOOTER: usize = 16 << 10;
    let mut bytes = FOOTER + escaped(&outline.config) + escaped(outline.source);
    for (key, value) in outline.metadata {
        bytes += 2 * (escaped(key) + escaped(value)); // quotes are escaped once more
    }
    for tile in &outline.tensors {
        let planes = tile.bytes;
        // What zstd may add to what it cannot compress.
        bytes += planes + if outline.compress { planes / 128 } else { 0 };
        // Kept, it may be cut into more tiles.
        let tiles = 1 + planes / TILE_BYTES_COMPRESSED;
        bytes += tiles * TILE + 2 * tiles * escaped(tile.name) + 32 * tile.dims;
        bytes += tile.inputs;
    }
    bytes
}
