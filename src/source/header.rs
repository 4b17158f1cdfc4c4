//! The header of a safetensors file, and JSON objects whose keys are tensor names.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::file::SourceFile;
use super::{MAX_HEADER, what};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, MAX_TENSORS, Shape, TensorInfo, check_limits};

/// The most letters of an invalid dtype or similar text that a message shows.
const SHOWN: usize = 40;

/// One tensor of a header, after checks.
pub(super) struct Entry {
    pub(super) info: TensorInfo,
    /// Offset of the values from the end of the header.
    pub(super) start: u64,
}

/// A file's header, checked against the file's size.
pub(super) struct SafetensorsHeader {
    pub(super) file: SourceFile,
    pub(super) text: Vec<u8>,
    pub(super) data_start: u64,
    /// Entries in the order of their values.
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl SafetensorsHeader {
    pub(super) fn read(file: SourceFile) -> Result<Self> {
        let path = file.path();
        let file_bytes = file.bytes();
        let refuse = |reason: String| what::refuse(&file, "a safetensors file", || reason);
        let mut length = [0; 8];
        if file_bytes < 8 {
            return Err(refuse(format!("{file_bytes} bytes are too short")));
        }
        file.read_header(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        if length <= MAX_HEADER && length > file_bytes - 8 && what::is(&file)?.is_none() {
            let least = 8 + length;
            let reason = format!(
                "a header of {length} bytes in a file of {file_bytes}: the download is incomplete \
                 ({file_bytes} of more than {least} bytes)"
            );
            return Err(refuse(reason));
        }
        if length > MAX_HEADER || length > file_bytes - 8 {
            return Err(refuse(format!(
                "a header of {length} bytes in a file of {file_bytes}"
            )));
        }
        let mut text = vec![0; length as usize];
        file.read_header(&mut text, 8)?;
        let data_start = 8 + length;
        // If the file is something else, the message says so instead of describing its header.
        if !text.starts_with(b"{")
            && let Some(what) = what::is(&file)?
        {
            return Err(Error::file(
                path,
                format!("not a safetensors file but {what}"),
            ));
        }
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

/// The tensors of a header, with names, and its metadata.
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

/// Returns the start of a text of any length.
pub(super) fn shown(text: &str) -> String {
    let mut letters = text.chars();
    let start: String = letters.by_ref().take(SHOWN).collect();
    match letters.next() {
        Some(_) => start + "…",
        None => start,
    }
}

/// Checks dtypes, shapes and offsets: values must follow each other without gap or overlap and fill
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
        let info = TensorInfo {
            name: name.clone(),
            dtype,
            shape,
        };
        let bytes = info.bytes().map(|bytes| bytes as u64);
        let fits = start <= end && bytes == Some(end - start);
        if end > data_bytes && !fits {
            return refuse(format!(
                "its values end at byte {end}, past the end of the data at {data_bytes}"
            ));
        }
        if !fits {
            return refuse(format!(
                "bytes {start} to {end} do not match shape {} of {dtype}",
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
    let cut = |entry: &&Entry| entry.start + entry.info.bytes().unwrap_or(0) as u64 > data_bytes;
    if let Some(entry) = entries.iter().find(cut) {
        let reason = format!(
            "its values are truncated: the download is incomplete ({data_bytes} of {end} bytes \
             of values)"
        );
        return Err(Error::tensor(path, &entry.info.name, reason));
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

/// The entries of a JSON object, in which every key may appear once.
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
