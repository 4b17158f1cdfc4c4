//! Where weights go. Runs write quantized tiles into a sink, whose kind follows from the name of the
//! output; decoded weights go to safetensors.

mod buffer;
mod destination;
mod kind;
mod outline;
mod parquet;
mod planes;
mod safetensors;
mod staging;

use std::collections::BTreeMap;

use serde_json::Value;

pub(crate) use buffer::Buffers;
pub(crate) use destination::Destination;
pub(crate) use kind::{PARQUET, SinkKind};
pub(crate) use outline::{Outline, OutlineTensor};
pub(crate) use planes::{PackedTile, TileBuffers};
pub(crate) use safetensors::SafetensorsSink;
pub use staging::StagedFile;
pub(crate) use staging::{GoOn, remove_stale};

use crate::error::Result;
use crate::schema::Tile;

/// What a sink can take, which a run is cut by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SinkLimits {
    /// Bytes of codes in a tile (one row may pass it).
    pub(crate) tile_bytes: usize,
    /// Bytes of the largest plane.
    pub(crate) largest_plane: usize,
    /// Whether tiles can be written in place, piece by piece ([`Sink::open`]).
    pub(crate) in_place: bool,
    /// Kept tensors of fewer bytes are gathered, and held until there is enough.
    pub(crate) gathers_below: usize,
    /// Bytes that are gathered.
    pub(crate) gathers: usize,
    /// Times that the bytes of a tile are held while it is packed.
    pub(crate) copies: usize,
    /// Times that gathered bytes are held while they are written.
    pub(crate) gathered_copies: usize,
    /// Bytes of memory that packing takes on each thread.
    pub(crate) thread_bytes: usize,
    /// Makes the planes of a tile ready to be written. Called on any thread, as it may take long.
    pub(crate) pack: fn(&Tile, TileBuffers) -> std::io::Result<PackedTile>,
}

impl SinkLimits {
    /// Whether a tensor is gathered with others.
    pub(crate) fn gathers(&self, kept: bool, bytes: usize) -> bool {
        kept && bytes < self.gathers_below
    }
}

/// A file that a run writes, tile by tile in plan order.
pub(crate) trait Sink {
    /// Writes one tile. `go_on` is called while that takes long.
    ///
    /// # Errors
    /// The file cannot be written, or `go_on` fails.
    fn write(&mut self, tile: Tile, planes: PackedTile, go_on: GoOn<'_>) -> Result<()>;

    /// Opens a place for a tile whose planes come in parts. All of the tile but its checksum and
    /// figures must be known.
    ///
    /// # Errors
    /// The file cannot be written.
    fn open<'sink>(&'sink mut self, tile: &Tile) -> Result<Box<dyn OpenTile + 'sink>>;

    /// Notes that a tensor begins.
    fn begin_tensor(&mut self);

    /// Gives up what was written since a tensor began: what comes next takes its place.
    fn undo_tensor(&mut self);

    /// Ends the file and puts it in its place; `go_on` is called while that takes long. Returns its
    /// size in bytes.
    ///
    /// # Errors
    /// The file cannot be written or put in place, or `go_on` fails; what was there is then as it
    /// was.
    fn finish(self: Box<Self>, footer: Footer, go_on: GoOn<'_>) -> Result<u64>;
}

/// A tile that is written in place. Dropped before its end it is given up: what comes next takes
/// its place.
pub(crate) trait OpenTile: Sync {
    /// Starts anew, with another layout of the tile.
    ///
    /// # Errors
    /// The file cannot be written.
    fn restart(&mut self, tile: &Tile) -> Result<()>;

    /// Writes the next rows: codes, scales and biases.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// If these are more bytes than the tile has.
    fn fill(&mut self, planes: [&[u8]; 3]) -> Result<()>;

    /// Reads back some bytes of the planes: from where, and where to.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read_planes(&self, from: [usize; 3], out: [&mut [u8]; 3]) -> Result<()>;

    /// Ends the tile, which is now known with its figures; the checksum is filled in.
    ///
    /// # Errors
    /// The file cannot be written, or what was written cannot be read back.
    ///
    /// # Panics
    /// If rows are missing.
    fn end(self: Box<Self>, tile: Tile) -> Result<()>;
}

/// What a file says of the whole model.
#[derive(Debug, Clone)]
pub(crate) struct Footer {
    /// text, code, image, audio or unknown.
    pub(crate) modality: String,
    /// Settings that change values.
    pub(crate) config: Value,
    /// Base name, size and header hash of the source.
    pub(crate) source: Value,
    /// The source's own metadata.
    pub(crate) source_metadata: BTreeMap<String, String>,
    /// Cosine, SQNR and bits per weight, in total and per tensor.
    pub(crate) summary: Value,
    /// In a part of a folder, which it is.
    pub(crate) part: Option<Value>,
}
