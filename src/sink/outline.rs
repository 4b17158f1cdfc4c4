//! What a file is going to hold, as far as its size depends on it.

use std::collections::BTreeMap;

/// A file to be.
pub(crate) struct Outline<'a> {
    /// Settings that the file records, as JSON.
    pub(crate) config: String,
    /// Base name of the source.
    pub(crate) source: &'a str,
    /// The source's own metadata.
    pub(crate) metadata: &'a BTreeMap<String, String>,
    pub(crate) compress: bool,
    pub(crate) tensors: Vec<OutlineTensor<'a>>,
}

/// A tensor of such a file, or a tile of it.
pub(crate) struct OutlineTensor<'a> {
    pub(crate) name: &'a str,
    /// Number of dimensions.
    pub(crate) dims: usize,
    pub(crate) kept: bool,
    /// Bytes in the source.
    pub(crate) source_bytes: usize,
    /// Bytes of the planes.
    pub(crate) bytes: usize,
    /// Bytes of what is said of its inputs, at most.
    pub(crate) inputs: usize,
}

/// Bytes of text as it stands in JSON.
pub(crate) fn escaped(text: &str) -> usize {
    serde_json::json!(text).to_string().len()
}
