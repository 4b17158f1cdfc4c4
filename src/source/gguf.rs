//! GGUF files, versions 2 and 3.
//!
//! Layout, all little-endian: `GGUF`, u32 version, u64 number of tensors, u64 number of keys; the
//! keys, each a string (u64 length, text), u32 type and its value; the tensors, each a name, u32
//! number of dimensions, these as u64 with the innermost first, u32 type, u64 offset of its values
//! from the end of the header, which is rounded up to the alignment. Sizes in a file are checked
//! against the file's size before anything is allocated.

mod blocks;
mod header;
mod parts;
mod reader;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use self::blocks::{MAX_BLOCK, PACKED, PackedType};
use self::header::GgufPlace;
use self::parts::SplitPart;
pub(super) use self::parts::weights_in;
use self::reader::SHAPE_KEY;
use super::file::{FileState, SourceFile};
use super::folder::name_of;
use super::{Source, SourceId};
use crate::error::{Error, Result};
use crate::tensor::{MAX_TENSORS, Shape, TensorInfo};

/// Bytes of packed blocks read at once.
const BLOCK_BYTES: usize = 64 * MAX_BLOCK;

/// A GGUF file, or all parts of a split one. Packed tensors appear as f32, and are decoded while
/// reading.
#[derive(Debug)]
pub struct GgufSource {
    path: PathBuf,
    files: Vec<SourceFile>,
    id: SourceId,
    tensors: Vec<TensorInfo>,
    /// File index of each tensor, and its place in that file.
    places: Vec<(usize, GgufPlace)>,
    metadata: BTreeMap<String, String>,
}

impl GgufSource {
    /// Opens a file; for one part of a split model (`NAME-00001-of-00003.gguf`) also all others.
    /// Text, numbers and booleans in its keys are preserved, lists are not. A tensor whose true
    /// shape is in a key `comfy.gguf.orig_shape.NAME` has that shape.
    ///
    /// # Errors
    /// The file cannot be read or is malformed, a part is missing or does not belong to the others,
    /// or a tensor has an unsupported type.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of_parts(path, parts::open_all(path)?)
    }

    /// Takes a file that is a model by itself.
    pub(super) fn read(file: SourceFile) -> Result<Self> {
        let path = file.path().to_owned();
        Self::of_parts(&path, parts::only(file)?)
    }

    fn of_parts(path: &Path, (parts, hash): (Vec<SplitPart>, Xxh3)) -> Result<Self> {
        let id = SourceId {
            name: name_of(parts[0].file.path()),
            bytes: parts.iter().map(|part| part.file.bytes()).sum(),
            header_hash: format!("{:016x}", hash.digest()),
        };
        let mut source = Self {
            path: path.to_owned(),
            files: Vec::new(),
            id,
            tensors: Vec::new(),
            places: Vec::new(),
            metadata: BTreeMap::new(),
        };
        let mut shapes = BTreeMap::new();
        for (i, part) in parts.into_iter().enumerate() {
            let header = part.header;
            for (tensor, dims) in header.shapes {
                let other = shapes.insert(tensor.clone(), dims.clone());
                if other.is_some_and(|other| other != dims) {
                    let reason = format!("key {SHAPE_KEY}{tensor} is in two parts that differ");
                    return Err(Error::tensor(part.file.path(), &tensor, reason));
                }
            }
            for (info, place) in header.tensors {
                source.tensors.push(info);
                source.places.push((i, place));
            }
            if source.tensors.len() > MAX_TENSORS {
                return Err(Error::file(path, format!("over {MAX_TENSORS} tensors")));
            }
            // The first part has the keys of the model, the others may have none.
            for (key, value) in header.metadata {
                source.metadata.entry(key).or_insert(value);
            }
            source.files.push(part.file);
        }
        source.check_names()?;
        source.reshape(&shapes)?;
        Ok(source)
    }

    /// Checks that no tensor is in two parts.
    fn check_names(&self) -> Result<()> {
        let mut seen = HashMap::new();
        for (i, info) in self.tensors.iter().enumerate() {
            if let Some(other) = seen.insert(&info.name, i) {
                let reason = format!("duplicate name, also in {}", name_of(self.path_of(other)));
                return Err(Error::tensor(self.path_of(i), &info.name, reason));
            }
        }
        Ok(())
    }

    /// Gives tensors their true shapes.
    fn reshape(&mut self, shapes: &BTreeMap<String, Vec<usize>>) -> Result<()> {
        for (i, (file, _)) in self.places.iter().enumerate() {
            let info = &mut self.tensors[i];
            let Some(dims) = shapes.get(&info.name) else {
                continue;
            };
            let shape = Shape::new(dims.clone());
            let shape = shape.filter(|shape| shape.elements() == info.shape.elements());
            let Some(shape) = shape else {
                let reason = format!(
                    "it is stored as {}, which does not have the elements of its shape {dims:?} in \
                     key {SHAPE_KEY}{}",
                    info.shape, info.name
                );
                return Err(Error::tensor(self.files[*file].path(), &info.name, reason));
            };
            info.shape = shape;
        }
        Ok(())
    }
}

impl Source for GgufSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let (file, GgufPlace { start, packed }) = self.places[index];
        let file = &self.files[file];
        let name = &self.tensors[index].name;
        match packed {
            None => file.read(out, start + offset as u64, name),
            Some(packed) => read_packed(file, packed, start, offset, out, name),
        }
    }

    fn path_of(&self, index: usize) -> &Path {
        self.files[self.places[index].0].path()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> SourceId {
        self.id.clone()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn files(&self) -> Vec<FileState> {
        self.files.iter().map(|file| file.state()).collect()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(SourceFile::check_unchanged)
    }

    fn warnings(&self) -> Vec<String> {
        let count = |packed: &PackedType| {
            let kinds = self.places.iter().filter_map(|(_, place)| place.packed);
            kinds.filter(|kind| kind.id == packed.id).count()
        };
        let counts = PACKED.iter().map(|packed| (count(packed), packed.name));
        let counts = counts.filter(|(count, _)| *count > 0);
        let counts: Vec<String> = counts.map(|(n, name)| format!("{n} {name}")).collect();
        if counts.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "weights were quantized before (tensors: {}); quantizing them again adds to their \
             error, start from the original weights if you have them",
            counts.join(", ")
        )]
    }
}

/// Fills `out` with the values of a packed tensor from byte `offset` on. `start` is the position of
/// its blocks in the file.
fn read_packed(
    file: &SourceFile,
    packed: &PackedType,
    start: u64,
    mut offset: usize,
    out: &mut [u8],
    name: &str,
) -> Result<()> {
    let mut buffer = [0; BLOCK_BYTES];
    let most = BLOCK_BYTES / packed.bytes;
    let mut rest = out;
    while !rest.is_empty() {
        let (first, skip) = (offset / packed.value_bytes(), offset % packed.value_bytes());
        let count = (skip + rest.len()).div_ceil(packed.value_bytes()).min(most);
        let blocks = &mut buffer[..count * packed.bytes];
        file.read(blocks, start + (first * packed.bytes) as u64, name)?;
        let len = rest.len().min(count * packed.value_bytes() - skip);
        let (now, later) = rest.split_at_mut(len);
        packed.decode_from(blocks, skip, now);
        rest = later;
        offset += len;
    }
    Ok(())
}
