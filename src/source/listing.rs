//! Lists of tensors without their weights, for planning models that are not available: a JSON
//! object `{"model": …, "dtype": "bf16", "tensors": {name: shape}}`, in which a tensor with another
//! dtype is `{"shape": [2, 3], "dtype": "i64"}`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::Xxh3;

use super::file::{FileState, SourceFile};
use super::folder::name_of;
use super::header::UniqueEntries;
use super::{MAX_HEADER, Source, SourceId};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Shape, TensorInfo, check_limits};

/// The most letters of an unknown dtype that a message shows.
const SHOWN: usize = 40;

/// A list of tensors, which have no values to read.
#[derive(Debug)]
pub struct ListingSource {
    file: SourceFile,
    id: SourceId,
    tensors: Vec<TensorInfo>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ListingFile {
    model: Option<String>,
    /// Dtype of tensors without their own.
    dtype: Option<String>,
    tensors: Option<Box<RawValue>>,
}

/// A tensor with its own dtype.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    shape: Vec<usize>,
    dtype: Option<String>,
}

impl ListingSource {
    /// Opens a file; `None` if it is a JSON object without `tensors`.
    ///
    /// # Errors
    /// The file cannot be read or is malformed, a name appears twice, or a tensor's shape or dtype
    /// is invalid.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let file = SourceFile::open(path)?;
        let refuse = |reason: String| Error::file(path, format!("not a list of tensors: {reason}"));
        if file.bytes() > MAX_HEADER {
            return Err(refuse(format!("{} bytes", file.bytes())));
        }
        let mut text = vec![0; file.bytes() as usize];
        file.read_header(&mut text, 0)?;
        let listing: ListingFile =
            serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        let Some(tensors) = listing.tensors else {
            return Ok(None);
        };
        let UniqueEntries::<Box<RawValue>>(entries) =
            serde_json::from_str(tensors.get()).map_err(|error| refuse(error.to_string()))?;
        let tensors = entries.into_iter().map(|(name, value)| {
            let info = tensor(&name, value.get(), listing.dtype.as_deref());
            info.map_err(|reason| Error::tensor(path, &name, reason))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let mut hash = Xxh3::new();
        hash.update(&text);
        let metadata = listing.model.map(|model| ("model".to_owned(), model));
        Ok(Some(Self {
            id: SourceId {
                name: name_of(path),
                bytes: file.bytes(),
                header_hash: format!("{:016x}", hash.digest()),
            },
            file,
            tensors,
            metadata: metadata.into_iter().collect(),
        }))
    }
}

/// Makes a tensor from its entry in the list.
fn tensor(
    name: &str,
    text: &str,
    default: Option<&str>,
) -> std::result::Result<TensorInfo, String> {
    let described = match text.starts_with('[') {
        true => serde_json::from_str(text).map(|shape| Described { shape, dtype: None }),
        false => serde_json::from_str(text),
    };
    let Described { shape: dims, dtype } = described.map_err(|error| error.to_string())?;
    check_limits(name, dims.len())?;
    let dtype = dtype.as_deref().or(default).ok_or("has no dtype")?;
    let known = Dtype::from_name(dtype).or(Dtype::from_safetensors(dtype));
    let known = known.ok_or_else(|| {
        let shown: String = dtype.chars().take(SHOWN).collect();
        format!("unknown dtype '{shown}'")
    })?;
    let too_large = format!("shape {dims:?} is too large");
    let info = TensorInfo {
        name: name.to_owned(),
        dtype: known,
        shape: Shape::new(dims).ok_or(too_large)?,
    };
    match info.bytes() {
        Some(_) => Ok(info),
        None => Err(format!(
            "{known} {} does not fill whole bytes, or is too large",
            info.shape
        )),
    }
}

impl Source for ListingSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, _offset: usize, _out: &mut [u8]) -> Result<()> {
        let name = &self.tensors[index].name;
        let reason = "is only listed here, without its weights";
        Err(Error::tensor(self.path(), name, reason))
    }

    fn path_of(&self, _index: usize) -> &Path {
        self.path()
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
        vec![self.file.state()]
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    fn has_weights(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Option<ListingSource>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.json");
        std::fs::write(&path, text).unwrap();
        ListingSource::open(&path)
    }

    #[test]
    fn shapes_and_dtypes_are_read_in_order() {
        let text = r#"{"model": "m", "modality": "audio", "dtype": "bf16", "tensors": {
            "b": [2, 3], "a": {"shape": [], "dtype": "I64"}, "c": {"shape": [4], "dtype": "f16"},
            "d": {"shape": [1, 0]}}}"#;
        let source = open(text).unwrap().unwrap();
        let listed = source
            .tensors()
            .iter()
            .map(|t| format!("{} {} {}", t.name, t.dtype, t.shape));
        let expected = ["b bf16 [2, 3]", "a i64 []", "c f16 [4]", "d bf16 [1, 0]"];
        assert_eq!(listed.collect::<Vec<_>>(), expected);
        assert!(!source.has_weights());
        assert_eq!(source.metadata()["model"], "m");
        // The modality in the file is for those who check it.
        assert!(source.classes().is_empty());
        let message = source.read(0, 0, &mut [0; 2]).unwrap_err().to_string();
        assert!(
            message.contains("list.json: tensor 'b': is only listed"),
            "{message}"
        );
    }

    #[test]
    fn what_is_no_list_is_told_or_refused() {
        assert!(open(r#"{"weight_map": {}}"#).unwrap().is_none());
        for (text, part) in [
            ("{", "EOF"),
            (r#"{"tensors": []}"#, "names as keys"),
            (r#"{"tensors": {}, "tensors": {}}"#, "duplicate field"),
            (
                r#"{"dtype": "f16", "tensors": {"a": [1], "a": [1]}}"#,
                "'a': duplicate name",
            ),
            (r#"{"tensors": {"a": [1]}}"#, "'a': has no dtype"),
            (
                r#"{"dtype": "f12", "tensors": {"a": [1]}}"#,
                "'a': unknown dtype 'f12'",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": [-1]}}"#,
                "'a': invalid value",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": [1.5]}}"#,
                "'a': invalid type",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": 7}}"#,
                "'a': invalid type",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": {"dtype": "f16"}}}"#,
                "'a': missing field",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": {"shape": [1], "x": 1}}}"#,
                "'a': unknown field",
            ),
            (
                r#"{"dtype": "f16", "tensors": {"a": [4294967296, 4294967296]}}"#,
                "too large",
            ),
            (
                r#"{"dtype": "f4", "tensors": {"a": [3]}}"#,
                "does not fill whole bytes",
            ),
        ] {
            let message = open(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
        let dims = vec!["1"; 65].join(",");
        let text = format!(r#"{{"dtype": "f16", "tensors": {{"a": [{dims}]}}}}"#);
        assert!(
            open(&text)
                .unwrap_err()
                .to_string()
                .contains("65 dimensions")
        );
    }
}
