//! GGUF files, versions 2 and 3.
//!
//! Layout, all little-endian: `GGUF`, u32 version, u64 number of tensors, u64 number of keys;
//! the keys, each a string (u64 length, text), u32 type and its value; the tensors, each a name,
//! u32 number of dimensions, these as u64 with the innermost first, u32 type, u64 offset of its
//! values from the end of all this, which is rounded up to the alignment. Nothing is allocated by
//! what a file says before it is checked against the file's size.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::file::{FileState, SourceFile};
use super::folder::name_of;
use super::{MAX_HEADER, Source, SourceId};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, MAX_DIMS, MAX_NAME, MAX_TENSORS, Shape, TensorInfo};

/// Of keys and values that are carried along, together.
const MAX_METADATA: usize = 4 << 20;

/// Of a text that is carried along; longer ones are passed over.
const MAX_VALUE: u64 = 64 << 10;

/// Weights of a Q8_0 block: an f16 scale, then as many i8. Decoded to f32: scale times integer,
/// which is exact.
const BLOCK: usize = 32;
const BLOCK_PACKED: usize = 2 + BLOCK;
const BLOCK_BYTES: usize = 4 * BLOCK;

/// Blocks that are read at once.
const BLOCKS: usize = 256;

/// The types that are read, by their number in the file.
const TYPES: &[(u32, Dtype)] = &[
    (0, Dtype::F32),
    (1, Dtype::F16),
    (Q8_0, Dtype::F32),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

const Q8_0: u32 = 8;

/// Names of those that are not, for messages.
const OTHER_TYPES: &[(u32, &str)] = &[
    (2, "Q4_0"),
    (3, "Q4_1"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// A GGUF file. Q8_0 tensors are f32 here, and unpacked as they are read.
#[derive(Debug)]
pub struct GgufSource {
    file: SourceFile,
    id: SourceId,
    tensors: Vec<TensorInfo>,
    places: Vec<Place>,
    metadata: BTreeMap<String, String>,
}

/// Where a tensor's values are.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    /// In blocks of Q8_0.
    packed: bool,
}

impl Place {
    /// Bytes of the values in the file.
    fn bytes(self, info: &TensorInfo) -> u64 {
        match self.packed {
            true => (info.shape.elements() / BLOCK * BLOCK_PACKED) as u64,
            false => info.bytes().unwrap_or(0) as u64,
        }
    }
}

impl GgufSource {
    /// Opens a file. Text, numbers and truth values of its keys are carried along, lists are not.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, is one part of several, or a tensor is of a type
    /// that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = SourceFile::open(path)?;
        let mut reader = Reader::new(&file);
        if reader.take::<4>()? != *b"GGUF" {
            return Err(reader.refuse("it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let big_endian = (1..=3).contains(&version.swap_bytes());
            let reason = match big_endian {
                true => "big-endian, only little-endian is read".to_owned(),
                false => format!("version {version}, 2 and 3 are read"),
            };
            return Err(reader.refuse(&reason));
        }
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let metadata = read_keys(&mut reader, key_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(text) => {
                let alignment = text.parse().ok().filter(|n: &u32| n.is_power_of_two());
                u64::from(alignment.ok_or_else(|| {
                    reader.refuse(&format!("general.alignment {text} is no power of two"))
                })?)
            }
        };
        let parts = metadata.get("split.count").and_then(|n| n.parse().ok());
        if let Some(parts) = parts.filter(|&parts: &u64| parts > 1) {
            let reason = format!("one of {parts} parts of a model: join them first");
            return Err(Error::file(path, reason));
        }

        reader.check_count(tensor_count, 24, "tensors")?;
        if tensor_count > MAX_TENSORS as u64 {
            return Err(reader.refuse(&format!("over {MAX_TENSORS} tensors")));
        }
        let mut found = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let (info, place) = read_tensor(&mut reader, alignment)?;
            if !names.insert(info.name.clone()) {
                return Err(Error::tensor(path, &info.name, "duplicate name"));
            }
            found.push((info, place));
        }
        let data_start = reader.position.next_multiple_of(alignment);
        let id = SourceId {
            name: name_of(path),
            bytes: file.bytes(),
            header_hash: format!("{:016x}", reader.hash.digest()),
        };
        let (tensors, places) = place(&file, found, data_start)?;
        Ok(Self {
            file,
            id,
            tensors,
            places,
            metadata,
        })
    }
}

/// Text, numbers and truth values of the keys, as text.
fn read_keys(reader: &mut Reader<'_>, count: u64) -> Result<BTreeMap<String, String>> {
    // A key, a type and a byte.
    reader.check_count(count, 13, "keys")?;
    let mut metadata = BTreeMap::new();
    let mut carried = 0;
    for _ in 0..count {
        let key = reader.text("a key")?;
        let kind = reader.u32()?;
        let Some(value) = reader.value(kind, 0)? else {
            continue;
        };
        carried += key.len() + value.len();
        if carried > MAX_METADATA {
            return Err(reader.refuse(&format!("over {MAX_METADATA} bytes of keys")));
        }
        if metadata.insert(key.clone(), value).is_some() {
            return Err(reader.refuse(&format!("key '{key}' is there twice")));
        }
    }
    Ok(metadata)
}

/// One tensor's description; its place is counted from the end of the header yet.
fn read_tensor(reader: &mut Reader<'_>, alignment: u64) -> Result<(TensorInfo, Place)> {
    let name = reader.text("a tensor's name")?;
    let path = reader.file.path();
    let refuse = |reason: String| Error::tensor(path, &name, reason);
    let dim_count = reader.u32()?;
    if dim_count > MAX_DIMS as u32 {
        return Err(refuse(format!(
            "{dim_count} dimensions, at most {MAX_DIMS} can be"
        )));
    }
    let mut dims = Vec::new();
    for _ in 0..dim_count {
        dims.push(reader.u64()?);
    }
    let kind = reader.u32()?;
    let start = reader.u64()?;

    let Some(&(_, dtype)) = TYPES.iter().find(|row| row.0 == kind) else {
        let known = OTHER_TYPES.iter().find(|row| row.0 == kind);
        let kind = known.map_or(format!("of type {kind}"), |row| row.1.to_owned());
        let reason =
            format!("it is {kind}: of GGUF, f32, f16, bf16, Q8_0, i8 to i64 and f64 are read");
        return Err(refuse(reason));
    };
    let packed = kind == Q8_0;
    if packed
        && !dims
            .first()
            .is_some_and(|row| row.is_multiple_of(BLOCK as u64))
    {
        return Err(refuse(format!(
            "shape {dims:?} does not fill blocks of Q8_0"
        )));
    }
    dims.reverse();
    let sizes: Option<Vec<usize>> = dims.iter().map(|&dim| dim.try_into().ok()).collect();
    let shape = sizes.and_then(Shape::new);
    let shape = shape.ok_or_else(|| refuse(format!("shape {dims:?} is too large")))?;
    if !start.is_multiple_of(alignment) {
        return Err(refuse(format!(
            "offset {start} is no multiple of {alignment}"
        )));
    }
    let info = TensorInfo { name, dtype, shape };
    if info.bytes().is_none() {
        let reason = format!("shape {} is too large", info.shape);
        return Err(Error::tensor(path, &info.name, reason));
    }
    Ok((info, Place { start, packed }))
}

/// Puts tensors in the order of their values, and checks that these lie in the file and apart.
fn place(
    file: &SourceFile,
    mut found: Vec<(TensorInfo, Place)>,
    data_start: u64,
) -> Result<(Vec<TensorInfo>, Vec<Place>)> {
    // One without values overlaps nothing.
    found.sort_by_key(|(info, place)| (place.start, place.bytes(info)));
    let data_bytes = file.bytes().saturating_sub(data_start);
    let mut free = 0;
    for (info, place) in &mut found {
        let bytes = place.bytes(info);
        let refuse = |reason: String| Err(Error::tensor(file.path(), &info.name, reason));
        let Some(end) = place
            .start
            .checked_add(bytes)
            .filter(|&end| end <= data_bytes)
        else {
            let (size, start) = (file.bytes(), place.start);
            return refuse(format!(
                "its {bytes} bytes at offset {start} are not all in the file of {size} bytes"
            ));
        };
        if place.start < free && bytes > 0 {
            return refuse(format!(
                "its values at offset {} overlap others",
                place.start
            ));
        }
        free = free.max(end);
        place.start += data_start;
    }
    Ok(found.into_iter().unzip())
}

impl Source for GgufSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let Place { start, packed } = self.places[index];
        let name = &self.tensors[index].name;
        if !packed {
            return self.file.read(out, start + offset as u64, name);
        }
        let mut blocks = [0; BLOCKS * BLOCK_PACKED];
        let mut rest = out;
        let mut offset = offset;
        while !rest.is_empty() {
            let first = offset / BLOCK_BYTES;
            let last = (offset + rest.len()).div_ceil(BLOCK_BYTES);
            let blocks = &mut blocks[..(last - first).min(BLOCKS) * BLOCK_PACKED];
            self.file
                .read(blocks, start + (first * BLOCK_PACKED) as u64, name)?;
            for block in blocks.chunks_exact(BLOCK_PACKED) {
                let values = &unpack(block)[offset % BLOCK_BYTES..];
                let len = values.len().min(rest.len());
                let (now, later) = rest.split_at_mut(len);
                now.copy_from_slice(&values[..len]);
                rest = later;
                offset += len;
            }
        }
        Ok(())
    }

    fn path_of(&self, _index: usize) -> &Path {
        self.file.path()
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn id(&self) -> SourceId {
        self.id.clone()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn files(&self) -> Vec<FileState> {
        vec![self.file.state().clone()]
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }
}

/// The f32 values of a Q8_0 block.
fn unpack(block: &[u8]) -> [u8; BLOCK_BYTES] {
    let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
    let mut values = [0; BLOCK_BYTES];
    for (value, &code) in values.chunks_exact_mut(4).zip(&block[2..]) {
        let code = f32::from(code as i8);
        value.copy_from_slice(&(scale * code).to_le_bytes());
    }
    values
}

/// Reads a header from its beginning on, and hashes it.
struct Reader<'a> {
    file: &'a SourceFile,
    /// In the file, of what is taken next.
    position: u64,
    /// Read ahead; `used` bytes of it are taken.
    buffer: Vec<u8>,
    used: usize,
    hash: Xxh3,
}

impl<'a> Reader<'a> {
    fn new(file: &'a SourceFile) -> Self {
        Self {
            file,
            position: 0,
            buffer: Vec::new(),
            used: 0,
            hash: Xxh3::new(),
        }
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::file(
            self.file.path(),
            format!("not a readable GGUF file: {reason}"),
        )
    }

    /// Bytes that a header may have after those taken.
    fn rest(&self) -> u64 {
        self.file.bytes().min(MAX_HEADER) - self.position
    }

    /// Checks that so many things of at least `least` bytes may follow.
    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<()> {
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.rest() => Ok(()),
            _ => Err(self.refuse(&format!("its header has no room for {count} {what}"))),
        }
    }

    /// Gives the next `count` bytes to `body`, piece by piece.
    fn each_piece(&mut self, count: u64, mut body: impl FnMut(&[u8])) -> Result<()> {
        const AHEAD: u64 = 1 << 16;
        self.check_count(count, 1, "bytes more")?;
        let mut missing = count;
        while missing > 0 {
            if self.used == self.buffer.len() {
                self.buffer.resize(AHEAD.min(self.rest()) as usize, 0);
                self.file.read_header(&mut self.buffer, self.position)?;
                self.used = 0;
            }
            let len = (self.buffer.len() - self.used).min(missing.try_into().unwrap_or(usize::MAX));
            let piece = &self.buffer[self.used..self.used + len];
            self.hash.update(piece);
            body(piece);
            self.used += len;
            self.position += len as u64;
            missing -= len as u64;
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut taken = [0; N];
        let mut at = 0;
        self.each_piece(N as u64, |piece| {
            taken[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        })?;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A key or name.
    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.u64()?;
        if len > MAX_NAME as u64 {
            return Err(self.refuse(&format!("{what} of {len} bytes")));
        }
        self.text_of(len, what)
    }

    fn text_of(&mut self, len: u64, what: &str) -> Result<String> {
        let mut text = Vec::new();
        self.each_piece(len, |piece| text.extend_from_slice(piece))?;
        String::from_utf8(text).map_err(|_| self.refuse(&format!("{what} is not UTF-8")))
    }

    /// A value of type `kind` as text; `None` when it is a list, or a text too long to carry.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<String>> {
        Ok(Some(match kind {
            0 => u8::from_le_bytes(self.take()?).to_string(),
            1 => i8::from_le_bytes(self.take()?).to_string(),
            2 => u16::from_le_bytes(self.take()?).to_string(),
            3 => i16::from_le_bytes(self.take()?).to_string(),
            4 => self.u32()?.to_string(),
            5 => i32::from_le_bytes(self.take()?).to_string(),
            6 => f32::from_le_bytes(self.take()?).to_string(),
            7 => (self.take()? != [0]).to_string(),
            8 => {
                let len = self.u64()?;
                if len > MAX_VALUE {
                    return self.each_piece(len, |_| ()).map(|()| None);
                }
                self.text_of(len, "a value")?
            }
            9 => return self.pass_list(depth).map(|()| None),
            10 => self.u64()?.to_string(),
            11 => i64::from_le_bytes(self.take()?).to_string(),
            12 => f64::from_le_bytes(self.take()?).to_string(),
            other => return Err(self.refuse(&format!("a value of type {other}"))),
        }))
    }

    fn pass_list(&mut self, depth: u32) -> Result<()> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                self.check_count(count, 8, "texts")?;
                for _ in 0..count {
                    let len = self.u64()?;
                    self.each_piece(len, |_| ())?;
                }
                return Ok(());
            }
            9 if depth < 4 => {
                self.check_count(count, 12, "lists")?;
                for _ in 0..count {
                    self.pass_list(depth + 1)?;
                }
                return Ok(());
            }
            _ => return Err(self.refuse(&format!("a list of type {kind}"))),
        };
        self.check_count(count, size, "numbers")?;
        self.each_piece(count * size, |_| ())
    }
}
