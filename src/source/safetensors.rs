//! safetensors files, alone, sharded, or those of a pipeline.
//!
//! Layout: u64 little-endian header length, a JSON object `{name: {dtype, shape,
//! data_offsets}, "__metadata__": {…}}`, then the values without gaps. The header is parsed
//! here rather than by the `safetensors` crate because that one lets a duplicate name win
//! silently and does not say which tensor of which file is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::Xxh3;

use super::file::{FileState, SourceFile};
use super::folder::{self, MODEL_INDEX};
use super::{MAX_HEADER, QuantizationConfig, Source, SourceId, classes};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, MAX_TENSORS, Shape, TensorInfo, check_limits};

/// Shards of a model at most, which are all open at once. The largest that are published have
/// some 200.
const MAX_SHARDS: usize = 1000;

/// Letters of what a file holds instead of a dtype or the like that a message shows.
const SHOWN: usize = 40;

/// One safetensors file, all shards of an index, or all components of a pipeline.
#[derive(Debug)]
pub struct SafetensorsSource {
    path: PathBuf,
    id: SourceId,
    shards: Vec<SourceFile>,
    tensors: Vec<TensorInfo>,
    /// Shard and position in that shard's file of each tensor.
    places: Vec<(usize, u64)>,
    metadata: BTreeMap<String, String>,
    /// That files beside the weights name.
    classes: Vec<String>,
    /// As files beside the weights have it.
    quantization: Vec<QuantizationConfig>,
}

impl SafetensorsSource {
    /// Opens one file.
    ///
    /// # Errors
    /// The file cannot be read or is malformed.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut builder = Builder::new(path);
        builder.add_file(path, "")?;
        builder.source.classes = classes::of_config(path);
        builder.add_quantization(path, "");
        Ok(builder.finish())
    }

    /// Opens the shards of an index (`{"weight_map": {tensor: file}}`), which lie beside it.
    ///
    /// # Errors
    /// The index or a shard cannot be read or is malformed, a tensor is not where the index
    /// says, or two shards hold the same name.
    pub fn open_sharded(index: &Path) -> Result<Self> {
        let mut builder = Builder::new(index);
        builder.add_index(index, "")?;
        builder.source.classes = classes::of_config(index);
        builder.add_quantization(index, "");
        Ok(builder.finish())
    }

    /// Opens all components of a diffusers pipeline: a folder with a `model_index.json`. Names
    /// begin with that of the component and a dot (`transformer.blocks.0.attn.qkv.weight`).
    ///
    /// # Errors
    /// The index is malformed, or a component's weights are missing, ambiguous, malformed or not
    /// safetensors.
    pub fn open_pipeline(folder: &Path) -> Result<Self> {
        let mut builder = Builder::new(folder);
        let text = builder.add_json(&folder.join(MODEL_INDEX), "pipeline's index")?;
        builder.source.classes = classes::of_index(&text);
        for (component, weights) in folder::components(folder, &text)? {
            let prefix = format!("{component}.");
            builder.add_quantization(&weights, &prefix);
            match folder::is_index(&weights) {
                true => builder.add_index(&weights, &prefix)?,
                false => builder.add_file(&weights, &prefix)?,
            }
        }
        Ok(builder.finish())
    }
}

/// A source that files are added to.
struct Builder {
    source: SafetensorsSource,
    hash: Xxh3,
    /// The file of every tensor.
    seen: HashMap<String, PathBuf>,
}

impl Builder {
    /// Of `path`, which gives it its name.
    fn new(path: &Path) -> Self {
        let name = match folder::name_of(path) {
            // `.` has a name, too.
            none if none.is_empty() => path.canonicalize().map(|path| folder::name_of(&path)),
            name => Ok(name),
        };
        Self {
            source: SafetensorsSource {
                path: path.to_owned(),
                id: SourceId {
                    name: name.unwrap_or_default(),
                    bytes: 0,
                    header_hash: String::new(),
                },
                shards: Vec::new(),
                tensors: Vec::new(),
                places: Vec::new(),
                metadata: BTreeMap::new(),
                classes: Vec::new(),
                quantization: Vec::new(),
            },
            hash: Xxh3::new(),
            seen: HashMap::new(),
        }
    }

    /// Takes in what the `config.json` beside weights says of their quantization.
    fn add_quantization(&mut self, weights: &Path, prefix: &str) {
        let found = QuantizationConfig::beside(weights, prefix);
        self.source.quantization.extend(found);
    }

    /// Takes in a file of JSON, and returns its text.
    fn add_json(&mut self, path: &Path, what: &str) -> Result<Vec<u8>> {
        let file = SourceFile::open(path)?;
        if file.bytes() > MAX_HEADER {
            let reason = format!("not a {what}: {} bytes", file.bytes());
            return Err(Error::file(path, reason));
        }
        let mut text = vec![0; file.bytes() as usize];
        file.read_header(&mut text, 0)?;
        self.hash.update(&text);
        self.source.id.bytes += text.len() as u64;
        Ok(text)
    }

    /// Takes in a safetensors file, whose names get the prefix.
    fn add_file(&mut self, path: &Path, prefix: &str) -> Result<()> {
        if self.source.shards.len() == MAX_SHARDS {
            let reason = format!("over {MAX_SHARDS} files, which would all be open at once");
            return Err(Error::file(&self.source.path, reason));
        }
        let header = Header::read(path)?;
        self.hash.update(&header.text);
        let source = &mut self.source;
        source.id.bytes += header.file.bytes();
        for (key, value) in header.metadata {
            source.metadata.entry(key).or_insert(value);
        }
        let shard = source.shards.len();
        source.shards.push(header.file);
        for entry in header.entries {
            let name = format!("{prefix}{}", entry.info.name);
            check_limits(&name, 0).map_err(|reason| Error::file(path, reason))?;
            if let Some(other) = self.seen.insert(name.clone(), path.to_owned()) {
                let reason = format!("duplicate, also in {}", other.display());
                return Err(Error::tensor(path, &name, reason));
            }
            source.tensors.push(TensorInfo { name, ..entry.info });
            source.places.push((shard, header.data_start + entry.start));
        }
        if source.tensors.len() > MAX_TENSORS {
            let reason = format!("over {MAX_TENSORS} tensors in its shards");
            return Err(Error::file(&source.path, reason));
        }
        Ok(())
    }

    /// Takes in an index and its shards.
    fn add_index(&mut self, index: &Path, prefix: &str) -> Result<()> {
        let text = self.add_json(index, "safetensors index")?;
        let weight_map = parse_index(index, &text)?;
        let mut first_of_shard: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            first_of_shard.entry(shard).or_insert(tensor);
        }
        if first_of_shard.len() > MAX_SHARDS {
            let shards = first_of_shard.len();
            let reason = format!("{shards} shards, at most {MAX_SHARDS} are read");
            return Err(Error::file(index, reason));
        }

        let folder = index.parent().unwrap_or(Path::new(""));
        for (shard, tensor) in first_of_shard {
            let path = folder.join(shard);
            if !path.exists() {
                let reason = format!("its shard {} is missing", path.display());
                return Err(Error::tensor(index, tensor, reason));
            }
            self.add_file(&path, prefix)?;
        }
        for (tensor, shard) in &weight_map {
            match self.seen.get(&format!("{prefix}{tensor}")) {
                Some(path) if path.file_name() == Some(shard.as_ref()) => {}
                _ => {
                    let reason = format!("the index says {shard}, which does not hold it");
                    return Err(Error::tensor(index, tensor, reason));
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> SafetensorsSource {
        self.source.id.header_hash = format!("{:016x}", self.hash.digest());
        self.source
    }
}

impl Source for SafetensorsSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let (shard, start) = self.places[index];
        let name = &self.tensors[index].name;
        self.shards[shard].read(out, start + offset as u64, name)
    }

    fn path_of(&self, index: usize) -> &Path {
        self.shards[self.places[index].0].path()
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

    fn classes(&self) -> Vec<String> {
        let mut classes = classes::of_metadata(&self.metadata);
        classes.extend(self.classes.iter().cloned());
        classes
    }

    fn quantization(&self) -> Vec<QuantizationConfig> {
        self.quantization.clone()
    }

    fn files(&self) -> Vec<FileState> {
        self.shards
            .iter()
            .map(|file| file.state().clone())
            .collect()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(SourceFile::check_unchanged)
    }
}

/// One tensor of a header, checked.
struct Entry {
    info: TensorInfo,
    /// Offset of its values from the end of the header.
    start: u64,
}

/// A file's header, checked against the file's size.
struct Header {
    file: SourceFile,
    text: Vec<u8>,
    data_start: u64,
    /// In the order of their values.
    entries: Vec<Entry>,
    metadata: BTreeMap<String, String>,
}

impl Header {
    fn read(path: &Path) -> Result<Self> {
        let file = SourceFile::open(path)?;
        let file_bytes = file.bytes();
        let refuse =
            |reason: String| Error::file(path, format!("not a safetensors file: {reason}"));
        if file_bytes < 8 {
            return Err(refuse(format!("{file_bytes} bytes are too few")));
        }
        let mut length = [0; 8];
        file.read_header(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > file_bytes - 8 {
            return Err(refuse(format!(
                "a header of {length} bytes in a file of {file_bytes}"
            )));
        }
        let mut text = vec![0; length as usize];
        file.read_header(&mut text, 8)?;
        let data_start = 8 + length;
        let (raw, metadata) = parse_header(path, &text)?;
        let entries = check_entries(path, raw, file_bytes - data_start)?;
        Ok(Self {
            file,
            text,
            data_start,
            entries,
            metadata,
        })
    }
}

/// The tensors of a header by name, and its metadata.
type RawHeader = (Vec<(String, RawEntry)>, BTreeMap<String, String>);

fn parse_header(path: &Path, text: &[u8]) -> Result<RawHeader> {
    let refuse = |reason: String| Error::file(path, format!("not a safetensors file: {reason}"));
    let UniqueEntries::<Box<RawValue>>(fields) =
        serde_json::from_slice(text).map_err(|error| refuse(error.to_string()))?;
    let mut raw = Vec::with_capacity(fields.len());
    let mut metadata = BTreeMap::new();
    for (name, value) in fields {
        if name == "__metadata__" {
            let parsed: Option<_> = serde_json::from_str(value.get())
                .map_err(|error| refuse(format!("__metadata__: {error}")))?;
            metadata = parsed.unwrap_or_default();
        } else {
            let entry: RawEntry = serde_json::from_str(value.get())
                .map_err(|error| Error::tensor(path, &name, error.to_string()))?;
            raw.push((name, entry));
        }
    }
    Ok((raw, metadata))
}

/// Tensors and the shards that hold them, which are plain file names.
fn parse_index(path: &Path, text: &[u8]) -> Result<Vec<(String, String)>> {
    let parsed: IndexFile = serde_json::from_slice(text)
        .map_err(|error| Error::file(path, format!("not a safetensors index: {error}")))?;
    for (tensor, shard) in &parsed.weight_map.0 {
        let name = Path::new(shard);
        if name.file_name() != Some(name.as_os_str()) {
            let reason = format!("shard '{}' is not a plain file name", shown(shard));
            return Err(Error::tensor(path, tensor, reason));
        }
    }
    Ok(parsed.weight_map.0)
}

/// The start of a text that may be of any length.
fn shown(text: &str) -> String {
    let mut letters = text.chars();
    let start: String = letters.by_ref().take(SHOWN).collect();
    match letters.next() {
        Some(_) => start + "…",
        None => start,
    }
}

/// Checks dtypes, shapes and places: values follow each other without gap or overlap and fill
/// the file.
fn check_entries(path: &Path, raw: Vec<(String, RawEntry)>, data_bytes: u64) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let refuse = |reason: String| Err(Error::tensor(path, &name, reason));
        let Some(dtype) = Dtype::from_safetensors(&entry.dtype) else {
            return refuse(format!("unknown dtype '{}'", shown(&entry.dtype)));
        };
        if let Err(reason) = check_limits(&name, entry.shape.len()) {
            return refuse(reason);
        }
        let Some(shape) = Shape::new(entry.shape.clone()) else {
            return refuse(format!("shape {:?} is too large", entry.shape));
        };
        let [start, end] = entry.data_offsets;
        if end > data_bytes {
            return refuse(format!(
                "its values end at byte {end}, past the end of the data at {data_bytes}"
            ));
        }
        let info = TensorInfo {
            name: name.clone(),
            dtype,
            shape,
        };
        let bytes = info.bytes().map(|bytes| bytes as u64);
        if start > end || bytes != Some(end - start) {
            return refuse(format!(
                "bytes {start} to {end} do not hold shape {} of {dtype}",
                info.shape
            ));
        }
        entries.push(Entry { info, start });
    }
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (e.start, e.info.bytes());
        key(a)
            .cmp(&key(b))
            .then_with(|| a.info.name.cmp(&b.info.name))
    });
    let mut end = 0;
    for entry in &entries {
        if entry.start != end {
            let what = if entry.start < end {
                "overlap"
            } else {
                "leave a gap after"
            };
            let reason = format!("its values at byte {} {what} those before it", entry.start);
            return Err(Error::tensor(path, &entry.info.name, reason));
        }
        end += entry.info.bytes().unwrap_or(0) as u64;
    }
    if end != data_bytes {
        let reason = format!("{} bytes follow the last tensor", data_bytes - end);
        return Err(Error::file(path, reason));
    }
    Ok(entries)
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: UniqueEntries<String>,
}

/// The entries of a JSON object, in which every key may stand once.
pub(super) struct UniqueEntries<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueEntries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for EntryVisitor<V> {
            type Value = UniqueEntries<V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with names as keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = HashSet::new();
                let mut entries = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, V>()? {
                    check_limits(&name, 0).map_err(A::Error::custom)?;
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("over {MAX_TENSORS} tensors")));
                    }
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor '{name}': duplicate name")));
                    }
                    entries.push((name, value));
                }
                Ok(UniqueEntries(entries))
            }
        }

        deserializer.deserialize_map(EntryVisitor(PhantomData))
    }
}
