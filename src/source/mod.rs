//! Where weights come from. A [`Source`] lists tensors and reads any part of one by position;
//! nothing is mapped and no file is read whole.

mod arrow;
mod file;
mod memory;
mod safetensors;

use std::path::{Path, PathBuf};

pub use arrow::from_arrow;
pub use file::FileState;
pub use memory::{MemorySource, Values};
pub use safetensors::SafetensorsSource;

use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// What identifies a source in the files made from it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SourceId {
    /// Base name of the file (of the index, when sharded): no folder, so that the output does
    /// not depend on where the input lies.
    pub name: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// XXH3-64 over the headers, in hexadecimal.
    pub header_hash: String,
}

impl SourceId {
    /// As files record it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self)
    }
}

/// Tensors that can be read in parts, from several threads at once.
pub trait Source: Send + Sync {
    /// All tensors, in the order in which they are best read.
    fn tensors(&self) -> &[TensorInfo];

    /// Fills `out` with the bytes of tensor `index` from byte `offset` on.
    ///
    /// # Errors
    /// The read fails or ends early; the error names file and tensor.
    ///
    /// # Panics
    /// If the tensor has no such bytes.
    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()>;

    /// The file that holds tensor `index`, for messages.
    fn path_of(&self, index: usize) -> &Path;

    /// The file or folder that was opened, for messages.
    fn path(&self) -> &Path;

    /// What to record of this source.
    fn id(&self) -> SourceId;

    /// Key and value text that came with the tensors, sorted by key.
    fn metadata(&self) -> &std::collections::BTreeMap<String, String>;

    /// The files behind it, as they were when they were opened; none when it is in memory.
    fn files(&self) -> Vec<FileState> {
        Vec::new()
    }

    /// Checks that no file has been written to since it was opened.
    ///
    /// # Errors
    /// One has; the error names it.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that reading takes at most, beside the caller's: where values are packed
    /// in the file, those that are held unpacked.
    fn held_bytes(&self) -> usize {
        0
    }
}

/// Opens a safetensors file, or a folder with a `*.safetensors.index.json` or a single
/// safetensors file.
///
/// # Errors
/// The path does not exist or is none of these, or its contents are malformed.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "open"))?;
    let source = if metadata.is_dir() {
        match model_in_folder(path)? {
            found if is_index(&found) => SafetensorsSource::open_sharded(&found)?,
            found => SafetensorsSource::open_file(&found)?,
        }
    } else if is_index(path) {
        SafetensorsSource::open_sharded(path)?
    } else {
        SafetensorsSource::open_file(path)?
    };
    Ok(Box::new(source))
}

fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(".safetensors.index.json")
}

/// The one index of a folder, or else its one safetensors file.
fn model_in_folder(folder: &Path) -> Result<PathBuf> {
    let mut indexes = Vec::new();
    let mut files = Vec::new();
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "list"))?;
    for entry in entries {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        if is_index(&path) {
            indexes.push(path);
        } else if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    let indexes_found = !indexes.is_empty();
    for mut found in [indexes, files] {
        match found.len() {
            0 => continue,
            1 => return Ok(found.remove(0)),
            _ => {
                found.sort();
                let names: Vec<_> = found
                    .iter()
                    .filter_map(|path| path.file_name())
                    .map(|name| name.to_string_lossy())
                    .collect();
                let reason = match indexes_found {
                    true => "holds several indexes, name one",
                    false => "holds several safetensors files and no index to join them, name one",
                };
                return Err(Error::file(
                    folder,
                    format!("{reason}: {}", names.join(", ")),
                ));
            }
        }
    }
    Err(Error::file(
        folder,
        "holds no *.safetensors.index.json and no *.safetensors",
    ))
}
