//! Writes the Parquet V2 file of [`crate::schema`], page by page.
//!
//! A binary plane goes from the kernels' buffer to the file as one PLAIN data page: the buffer
//! has room in front for the few bytes Parquet wants before the value. A tile too large to be
//! held is written in place: all sizes are known before, so room is left for its planes, and
//! they come in parts.

mod columns;
mod footer;
pub(super) mod size;

use std::ops::Range;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use self::columns::{Out, Room, body, body_of};
use self::footer::RowGroups;
use super::destination::Destination;
use super::planes::{PackedTile, TileBuffers};
use super::staging::GoOn;
use super::{Footer, OpenTile, Sink, SinkLimits};
use crate::error::{Error, Result};
use crate::format::{Encoding, TILE_BYTES, TILE_BYTES_COMPRESSED};
use crate::schema::{Checksum, Column, STEP, Tile};

/// Kept tensors smaller than this share row groups, each of which costs some 2 KB of footer.
const SHARED_BELOW: usize = 64 << 10;

/// Shared row groups are written when they hold this many bytes.
const SHARED_BYTES: usize = 16 << 20;

/// Readers refuse a value of 2 GiB or more; the page around it needs a little room.
const LARGEST_PLANE: usize = i32::MAX as usize - 1024;

/// The state of a compressor.
const COMPRESSOR: usize = 8 << 20;

/// Columns before the planes, the planes, and those after.
const UP_TO_PLANES: Range<usize> = 0..Column::Biases as usize + 1;
const AFTER_PLANES: Range<usize> = UP_TO_PLANES.end..Column::ALL.len();

/// What a Parquet file can take.
pub(super) fn limits(compress: bool) -> SinkLimits {
    SinkLimits {
        tile_bytes: tile_bytes(compress),
        largest_plane: LARGEST_PLANE,
        // How large a compressed page is, is known too late.
        in_place: !compress,
        gathers_below: SHARED_BELOW,
        gathers: SHARED_BYTES,
        copies: if compress { 2 } else { 1 },
        gathered_copies: if compress { 3 } else { 1 },
        thread_bytes: if compress { COMPRESSOR } else { 0 },
        pack: match compress {
            true => |tile, planes| pack(tile, planes, true),
            false => |tile, planes| pack(tile, planes, false),
        },
    }
}

/// Bytes of codes in a tile.
fn tile_bytes(compress: bool) -> usize {
    match compress {
        true => TILE_BYTES_COMPRESSED,
        false => TILE_BYTES,
    }
}

/// Starts a file.
pub(super) fn create<'a>(
    destination: Destination<'a>,
    compress: bool,
) -> Result<Box<dyn Sink + 'a>> {
    Ok(Box::new(ParquetSink::create(destination, compress)?))
}

/// Makes pages of planes. Small kept ones are compressed later, together.
fn pack(tile: &Tile, planes: TileBuffers, compress: bool) -> std::io::Result<PackedTile> {
    let kept = tile.encoding.is_none();
    let compress = compress && !(kept && planes.codes.bytes().len() < SHARED_BELOW);
    let page = |plane: Option<_>| plane.map(|plane| body_of(plane, true, compress));
    Ok(PackedTile([
        Some(body_of(planes.codes, false, compress)?),
        page(planes.scales).transpose()?,
        page(planes.biases).transpose()?,
    ]))
}

/// Writes tiles in the order given, small kept tensors gathered.
#[derive(Debug)]
pub(crate) struct ParquetSink<'a> {
    out: Out<'a>,
    shared: Vec<(Tile, Bytes)>,
    shared_bytes: usize,
    row_groups: RowGroups,
    /// Where the tensor that is being written begins.
    begin: RewindPoint,
}

/// A place that the file can go back to.
#[derive(Debug, Clone, Copy, Default)]
struct RewindPoint {
    position: u64,
    row_groups: (usize, usize, i64),
}

/// A tile that is being written in place.
struct OpenParquetTile<'sink, 'a> {
    begun: Begun<'sink, 'a>,
    place: TileRoom,
}

/// The room that a tile has in the file, as far as it is filled.
struct TileRoom {
    /// The columns up to the planes.
    chunks: Vec<ColumnChunkMetaData>,
    /// All that it is taken of so far.
    checksum: Checksum,
    /// Codes, scales and biases.
    planes: [Filling; 3],
}

/// The file while a tile is begun: dropped before the tile ends, it goes back to where that began.
struct Begun<'sink, 'a> {
    sink: &'sink mut ParquetSink<'a>,
    start: u64,
    ended: bool,
}

/// A plane that comes in parts.
#[derive(Clone, Copy)]
struct Filling {
    place: u64,
    /// None where the tile has no such plane.
    bytes: Option<usize>,
    filled: usize,
}

impl<'a> ParquetSink<'a> {
    /// Starts a file.
    ///
    /// # Errors
    /// The destination cannot be written.
    pub(crate) fn create(destination: Destination<'a>, compress: bool) -> Result<Self> {
        let mut out = Out::new(destination, compress);
        let magic = out.append(b"PAR1");
        magic.map_err(Error::io(out.target(), "write"))?;
        Ok(Self {
            out,
            shared: Vec::new(),
            shared_bytes: 0,
            row_groups: RowGroups::default(),
            begin: RewindPoint::default(),
        })
    }

    /// Writes the kept tensors gathered so far as one row group.
    fn write_shared(&mut self, go_on: GoOn<'_>) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let (tiles, bodies): (Vec<Tile>, Vec<Bytes>) = self.shared.drain(..).unzip();
        let bytes = std::mem::take(&mut self.shared_bytes);
        if self.out.compresses() {
            let codes = body(bodies.concat().into(), 0, true);
            let codes = codes.map_err(Error::io(self.out.target(), "compress"))?;
            let rooms = [Some(Room::for_body(&codes)), None, None];
            return self.write_row_group(&tiles, rooms, &[vec![codes.bytes]], go_on);
        }
        // One after the other they are the body.
        let rooms = [Some(Room::shared(bytes)), None, None];
        self.write_row_group(&tiles, rooms, &[bodies], go_on)
    }

    /// Writes a row group whose planes are held: the bodies of each, one after the other.
    fn write_row_group(
        &mut self,
        tiles: &[Tile],
        rooms: [Option<Room>; 3],
        bodies: &[Vec<Bytes>],
        go_on: GoOn<'_>,
    ) -> Result<()> {
        let start = self.out.position;
        let (chunks, places) = self.columns(0..Column::ALL.len(), tiles, rooms)?;
        for (bodies, mut place) in bodies.iter().zip(places) {
            // In steps, as a disk that cannot follow makes each wait.
            for part in bodies.iter().flat_map(|body| body.chunks(STEP)) {
                let written = self.out.put(part, place);
                written.map_err(Error::io(self.out.target(), "write"))?;
                place += part.len() as u64;
                go_on()?;
            }
        }
        self.end_row_group(start, tiles.len(), chunks)
    }

    /// Writes some columns of a row group, with room for its codes, scales and biases.
    fn columns(
        &mut self,
        columns: Range<usize>,
        tiles: &[Tile],
        rooms: [Option<Room>; 3],
    ) -> Result<(Vec<ColumnChunkMetaData>, Vec<u64>)> {
        let [mut codes, mut scales, mut biases] = rooms;
        let written = self.out.columns(columns, tiles, |column| match column {
            Column::Codes => codes.take(),
            Column::Scales => scales.take(),
            Column::Biases => biases.take(),
            _ => None,
        });
        written.map_err(|error| self.out.failed(error))
    }

    /// Writes what comes before the planes of a tile, and leaves room for these.
    fn make_room(&mut self, tile: &Tile) -> Result<TileRoom> {
        let [codes, scales, biases] = tile.plane_bytes().unwrap_or_default();
        let encoding = tile.encoding;
        let there = |bytes: usize, there: bool| there.then_some(bytes);
        let sizes = [
            Some(codes),
            there(scales, encoding.is_some_and(Encoding::has_scales)),
            there(biases, biases > 0),
        ];
        let rooms = [0, 1, 2].map(|i| sizes[i].map(|bytes| Room::of(bytes, i > 0)));
        let (chunks, places) = self.columns(UP_TO_PLANES, std::slice::from_ref(tile), rooms)?;
        let mut places = places.into_iter();
        let mut checksum = Checksum::new(tile);
        checksum.plane(sizes[0]);
        Ok(TileRoom {
            chunks,
            checksum,
            planes: sizes.map(|bytes| Filling {
                place: bytes.and_then(|_| places.next()).unwrap_or_default(),
                bytes,
                filled: 0,
            }),
        })
    }

    fn end_row_group(
        &mut self,
        start: u64,
        rows: usize,
        chunks: Vec<ColumnChunkMetaData>,
    ) -> Result<()> {
        let ordinal = self.row_groups.count();
        let row_group = self.out.row_group(start, ordinal, rows, chunks);
        let pushed = row_group.and_then(|row_group| self.row_groups.push(row_group));
        pushed.map_err(|error| self.out.failed(error))
    }
}

impl Sink for ParquetSink<'_> {
    /// Writes a tile, or keeps it for a shared row group.
    fn write(&mut self, tile: Tile, planes: PackedTile, go_on: GoOn<'_>) -> Result<()> {
        let PackedTile(planes) = planes;
        if let [Some(values), None, None] = &planes
            && tile.encoding.is_none()
            && values.plane_bytes < SHARED_BELOW
        {
            self.shared_bytes += values.bytes.len();
            self.shared.push((tile, values.bytes.clone()));
            return match self.shared_bytes >= SHARED_BYTES {
                true => self.write_shared(go_on),
                false => Ok(()),
            };
        }
        let rooms = planes
            .each_ref()
            .map(|plane| plane.as_ref().map(Room::for_body));
        let bodies = planes.into_iter().flatten().map(|plane| vec![plane.bytes]);
        self.write_row_group(&[tile], rooms, &bodies.collect::<Vec<_>>(), go_on)
    }

    fn open<'sink>(&'sink mut self, tile: &Tile) -> Result<Box<dyn OpenTile + 'sink>> {
        let begun = Begun {
            start: self.out.position,
            sink: self,
            ended: false,
        };
        let place = begun.sink.make_room(tile)?;
        Ok(Box::new(OpenParquetTile { begun, place }))
    }

    fn begin_tensor(&mut self) {
        self.begin = RewindPoint {
            position: self.out.position,
            row_groups: self.row_groups.mark(),
        };
    }

    /// Gives up all row groups of the tensor. Tensors that wait to share one are not among them.
    fn undo_tensor(&mut self) {
        self.out.position = self.begin.position;
        self.row_groups.rewind(self.begin.row_groups);
    }

    fn finish(mut self: Box<Self>, footer: Footer, go_on: GoOn<'_>) -> Result<u64> {
        self.write_shared(go_on)?;
        let schema = self.out.schema.clone();
        let written = self.row_groups.finish(footer, schema, &mut |bytes| {
            self.out.append(bytes).map_err(ParquetError::from)
        });
        written.map_err(|error| self.out.failed(error))?;
        let bytes = self.out.position;
        let cut = self.out.cut();
        cut.map_err(Error::io(self.out.target(), "write"))?;
        self.out.into_destination().commit(go_on)?;
        Ok(bytes)
    }
}

impl OpenTile for OpenParquetTile<'_, '_> {
    fn restart(&mut self, tile: &Tile) -> Result<()> {
        self.begun.sink.out.position = self.begun.start;
        self.place = self.begun.sink.make_room(tile)?;
        Ok(())
    }

    fn fill(&mut self, planes: [&[u8]; 3]) -> Result<()> {
        for (room, bytes) in self.place.planes.iter_mut().zip(planes) {
            assert!(bytes.len() <= room.bytes.unwrap_or(0) - room.filled);
            let place = room.place + room.filled as u64;
            let file = &mut self.begun.sink.out;
            let written = file.put(bytes, place);
            written.map_err(Error::io(file.target(), "write"))?;
            room.filled += bytes.len();
        }
        self.place.checksum.bytes(planes[0]);
        Ok(())
    }

    fn read_planes(&self, from: [usize; 3], out: [&mut [u8]; 3]) -> Result<()> {
        let file = &self.begun.sink.out;
        for ((room, from), out) in self.place.planes.iter().zip(from).zip(out) {
            let read = file.read_back(out, room.place + from as u64);
            read.map_err(Error::io(file.target(), "read back"))?;
        }
        Ok(())
    }

    fn end(self: Box<Self>, mut tile: Tile) -> Result<()> {
        let OpenParquetTile { mut begun, place } = *self;
        let TileRoom {
            mut chunks,
            mut checksum,
            planes,
        } = place;
        // The checksum takes in one plane after the other, so those that came beside the codes
        // are read back.
        let mut buffer = vec![0; 256 << 10];
        for (i, room) in planes.into_iter().enumerate() {
            assert_eq!(room.filled, room.bytes.unwrap_or(0));
            if i == 0 {
                continue;
            }
            checksum.plane(room.bytes);
            for done in (0..room.filled).step_by(buffer.len()) {
                let len = buffer.len().min(room.filled - done);
                let part = &mut buffer[..len];
                let file = &begun.sink.out;
                let read = file.read_back(part, room.place + done as u64);
                read.map_err(Error::io(file.target(), "read back"))?;
                checksum.bytes(part);
            }
        }
        tile.checksum = checksum.finish();
        let (rest, _) = begun
            .sink
            .columns(AFTER_PLANES, &[tile], [None, None, None])?;
        chunks.extend(rest);
        begun.ended = true;
        begun.sink.end_row_group(begun.start, 1, chunks)
    }
}

impl Drop for Begun<'_, '_> {
    fn drop(&mut self) {
        if !self.ended {
            self.sink.out.position = self.start;
        }
    }
}
