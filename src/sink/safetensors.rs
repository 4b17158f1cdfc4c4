//! Writes a safetensors file, values streamed in the order of its header.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::staging::{GoOn, StagedFile};
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// The name in a header that is no tensor.
const METADATA: &str = "__metadata__";

/// A safetensors file being written.
#[derive(Debug)]
pub struct SafetensorsSink {
    file: StagedFile,
    missing: usize,
}

impl SafetensorsSink {
    /// Starts a file that appears at `target` when finished, and writes its header.
    ///
    /// # Errors
    /// The target cannot be written.
    pub fn create(
        target: &Path,
        tensors: &[TensorInfo],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert(METADATA.to_owned(), json!(metadata));
        }
        let mut end = 0;
        if tensors.iter().any(|tensor| tensor.name == METADATA) {
            let reason = "safetensors cannot hold a tensor of this name";
            return Err(Error::tensor(target, METADATA, reason));
        }
        for tensor in tensors {
            let start = end;
            end += tensor.bytes().unwrap_or(0);
            let entry = json!({
                "dtype": tensor.dtype.safetensors_name(),
                "shape": tensor.shape.dims(),
                "data_offsets": [start, end],
            });
            header.insert(tensor.name.clone(), entry);
        }
        let mut text = Value::Object(header).to_string();
        // Values start at a multiple of 8 bytes.
        text.extend(std::iter::repeat_n(' ', text.len().wrapping_neg() % 8));
        let mut sink = Self {
            file: StagedFile::create(target)?,
            missing: end,
        };
        sink.put(&(text.len() as u64).to_le_bytes())?;
        sink.put(text.as_bytes())?;
        Ok(sink)
    }

    /// Writes the values that come next.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// If these are more values than the header announced.
    pub fn write(&mut self, values: &[u8]) -> Result<()> {
        self.missing = self
            .missing
            .checked_sub(values.len())
            .expect("values of the header");
        self.put(values)
    }

    /// Syncs the file and puts it at its path; `go_on` is called meanwhile.
    ///
    /// # Errors
    /// The file cannot be put in place, or `go_on` fails; the target is then as it was.
    ///
    /// # Panics
    /// If values are missing.
    pub fn finish(self, go_on: GoOn<'_>) -> Result<()> {
        assert_eq!(self.missing, 0);
        self.file.commit_with(go_on)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(Error::io(self.file.target(), "write"))
    }
}
