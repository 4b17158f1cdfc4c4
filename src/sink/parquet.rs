//! Writes the Parquet V2 file of [`crate::schema`], page by page.
//!
//! A binary plane goes from the kernels' buffer to the file as one PLAIN data page: the buffer
//! has room in front for the few bytes Parquet wants before the value. A tile too large to be
//! held is written in place: all sizes are known before, so room is left for its planes, and
//! they come in parts.

use std::ops::Range;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;

use super::buffer::PlaneBuffer;
use super::columns::{Out, Plane, Room};
use super::destination::Destination;
use super::footer::{Footer, RowGroups};
use super::staging::GoOn;
use crate::error::{Error, Result};
use crate::format::Encoding;
use crate::schema::{Checksum, Column, STEP, Tile};

/// Kept tensors smaller than this share row groups, each of which costs some 2 KB of footer.
pub const SHARED_BELOW: usize = 64 << 10;

/// Shared row groups are written when they hold this many bytes.
pub const SHARED_BYTES: usize = 16 << 20;

/// Columns before the planes, the planes, and those after.
const UP_TO_PLANES: Range<usize> = 0..Column::Biases as usize + 1;
const AFTER_PLANES: Range<usize> = UP_TO_PLANES.end..Column::ALL.len();

/// The finished planes of a tile.
#[derive(Debug)]
pub struct TilePlanes {
    codes: Plane,
    scales: Option<Plane>,
    biases: Option<Plane>,
}

impl TilePlanes {
    /// Finishes the planes of a quantized tile, which takes time only when they are compressed.
    ///
    /// # Errors
    /// zstd fails.
    pub fn quantized(
        codes: PlaneBuffer,
        scales: Option<PlaneBuffer>,
        biases: Option<PlaneBuffer>,
        compress: bool,
    ) -> std::io::Result<Self> {
        let small = |plane: Option<PlaneBuffer>| {
            let plane = plane.map(|plane| Plane::of(plane, true, compress));
            plane.transpose()
        };
        Ok(Self {
            codes: Plane::of(codes, false, compress)?,
            scales: small(scales)?,
            biases: small(biases)?,
        })
    }

    /// Finishes the values of a kept tile. Small ones are compressed later, together.
    ///
    /// # Errors
    /// zstd fails.
    pub fn kept(values: PlaneBuffer, compress: bool) -> std::io::Result<Self> {
        let compress = compress && values.bytes().len() >= SHARED_BELOW;
        Ok(Self {
            codes: Plane::of(values, false, compress)?,
            scales: None,
            biases: None,
        })
    }
}

/// Writes tiles in the order given, small kept tensors gathered.
#[derive(Debug)]
pub struct ParquetSink<'a> {
    out: Out<'a>,
    shared: Vec<(Tile, Bytes)>,
    shared_bytes: usize,
    row_groups: RowGroups,
    /// The tile that is being written in place.
    open: Option<OpenTile>,
}

/// Where a file can be gone back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    position: u64,
    row_groups: (usize, usize, i64),
}

/// A tile whose planes come in parts.
struct OpenTile {
    start: u64,
    chunks: Vec<ColumnChunkMetaData>,
    checksum: Checksum,
    /// Codes, scales and biases.
    planes: [Filling; 3],
}

/// A plane that comes in parts.
#[derive(Clone, Copy)]
struct Filling {
    place: u64,
    /// None where the tile has no such plane.
    bytes: Option<usize>,
    filled: usize,
}

impl std::fmt::Debug for OpenTile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OpenTile").field(&self.start).finish()
    }
}

impl<'a> ParquetSink<'a> {
    /// Starts a file.
    ///
    /// # Errors
    /// The destination cannot be written.
    pub fn create(destination: Destination<'a>, compress: bool) -> Result<Self> {
        let mut out = Out::new(destination, compress);
        let magic = out.append(b"PAR1");
        magic.map_err(Error::io(out.target(), "write"))?;
        Ok(Self {
            out,
            shared: Vec::new(),
            shared_bytes: 0,
            row_groups: RowGroups::default(),
            open: None,
        })
    }

    /// Writes one tile, or keeps it for a shared row group. `go_on` is called while that takes
    /// long.
    ///
    /// # Errors
    /// The file cannot be written, or `go_on` fails.
    pub fn write(&mut self, tile: Tile, planes: TilePlanes, go_on: GoOn<'_>) -> Result<()> {
        let codes = &planes.codes;
        if tile.encoding.is_none() && codes.plane_bytes < SHARED_BELOW {
            self.shared_bytes += codes.body.len();
            self.shared.push((tile, planes.codes.body));
            return match self.shared_bytes >= SHARED_BYTES {
                true => self.write_shared(go_on),
                false => Ok(()),
            };
        }
        let planes = [Some(planes.codes), planes.scales, planes.biases];
        let rooms = planes
            .each_ref()
            .map(|plane| plane.as_ref().map(Plane::room));
        let bodies = planes.into_iter().flatten().map(|plane| vec![plane.body]);
        self.write_row_group(&[tile], rooms, &bodies.collect::<Vec<_>>(), go_on)
    }

    /// Writes the kept tensors gathered so far as one row group.
    fn write_shared(&mut self, go_on: GoOn<'_>) -> Result<()> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let (tiles, bodies): (Vec<Tile>, Vec<Bytes>) = self.shared.drain(..).unzip();
        let bytes = std::mem::take(&mut self.shared_bytes);
        if self.out.compresses() {
            let codes = Plane::new(bodies.concat().into(), 0, true);
            let codes = codes.map_err(Error::io(self.out.target(), "compress"))?;
            let rooms = [Some(codes.room()), None, None];
            return self.write_row_group(&tiles, rooms, &[vec![codes.body]], go_on);
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

    /// Begins a tile of an uncompressed file whose planes come in parts. Of the tile, what comes
    /// before its planes in the file, and what the checksum is of, must be right: all but the
    /// checksum and figures.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&mut self, tile: &Tile) -> Result<()> {
        let start = self.out.position;
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
        self.open = Some(OpenTile {
            start,
            chunks,
            checksum,
            planes: sizes.map(|bytes| Filling {
                place: bytes.and_then(|_| places.next()).unwrap_or_default(),
                bytes,
                filled: 0,
            }),
        });
        Ok(())
    }

    /// Writes the next rows of the tile begun.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// If no tile was begun, or these are more bytes than it has.
    pub fn fill(&mut self, planes: [&[u8]; 3]) -> Result<()> {
        let open = self.open.as_mut().expect("a tile begun");
        for (room, bytes) in open.planes.iter_mut().zip(planes) {
            assert!(bytes.len() <= room.bytes.unwrap_or(0) - room.filled);
            let written = self.out.put(bytes, room.place + room.filled as u64);
            written.map_err(Error::io(self.out.target(), "write"))?;
            room.filled += bytes.len();
        }
        open.checksum.bytes(planes[0]);
        Ok(())
    }

    /// Reads back some bytes of the planes of the tile begun: from where, and where to.
    ///
    /// # Errors
    /// The file cannot be read.
    ///
    /// # Panics
    /// If no tile was begun.
    pub fn read_planes(&self, from: [usize; 3], out: [&mut [u8]; 3]) -> Result<()> {
        let open = self.open.as_ref().expect("a tile begun");
        for ((room, from), out) in open.planes.iter().zip(from).zip(out) {
            let read = self.out.read_back(out, room.place + from as u64);
            read.map_err(Error::io(self.out.target(), "read back"))?;
        }
        Ok(())
    }

    /// Gives up the tile begun: what comes next takes its place.
    ///
    /// # Panics
    /// If no tile was begun.
    pub fn rewind(&mut self) {
        self.out.position = self.open.take().expect("a tile begun").start;
    }

    /// Where the file is now.
    pub fn mark(&self) -> Mark {
        Mark {
            position: self.out.position,
            row_groups: self.row_groups.mark(),
        }
    }

    /// Gives up all row groups written since a mark: what comes next takes their place. Tensors that
    /// wait to share a row group are not among them.
    pub fn rewind_to(&mut self, mark: Mark) {
        self.out.position = mark.position;
        self.row_groups.rewind(mark.row_groups);
    }

    /// Ends the tile begun, which is now known with its figures; the checksum is filled in.
    ///
    /// # Errors
    /// The file cannot be written, or what was written cannot be read back.
    ///
    /// # Panics
    /// If no tile was begun, or rows of it are missing.
    pub fn end(&mut self, mut tile: Tile) -> Result<()> {
        let mut open = self.open.take().expect("a tile begun");
        // The checksum takes in one plane after the other, so those that came beside the codes
        // are read back.
        let mut buffer = vec![0; 256 << 10];
        for (i, room) in open.planes.into_iter().enumerate() {
            assert_eq!(room.filled, room.bytes.unwrap_or(0));
            if i == 0 {
                continue;
            }
            open.checksum.plane(room.bytes);
            for done in (0..room.filled).step_by(buffer.len()) {
                let len = buffer.len().min(room.filled - done);
                let part = &mut buffer[..len];
                let read = self.out.read_back(part, room.place + done as u64);
                read.map_err(Error::io(self.out.target(), "read back"))?;
                open.checksum.bytes(part);
            }
        }
        tile.checksum = open.checksum.finish();
        let (rest, _) = self.columns(AFTER_PLANES, &[tile], [None, None, None])?;
        open.chunks.extend(rest);
        self.end_row_group(open.start, 1, open.chunks)
    }

    /// Writes the footer, and puts a file at its path; `pulse` is called while that takes long.
    /// Returns its size in bytes.
    ///
    /// # Errors
    /// The file cannot be written or put in place, or `pulse` fails; what was at the path is then
    /// as it was.
    pub fn finish(mut self, footer: Footer, go_on: GoOn<'_>) -> Result<u64> {
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
