//! JSON files beside weights: the index that says which shard each tensor is in.

use std::collections::BTreeSet;
use std::path::Path;

use super::file::SourceFile;
use super::header::{UniqueEntries, shown};
use super::{MAX_HEADER, what};
use crate::error::{Error, Result};

/// Reads the text of a JSON object; `what` says what the file is, for messages.
///
/// # Errors
/// The file cannot be read, is too large, or does not begin like an object.
pub(super) fn read_json(path: &Path, what: &str) -> Result<Vec<u8>> {
    let file = SourceFile::open(path)?;
    if file.bytes() > MAX_HEADER {
        let reason = format!("not a {what}: {} bytes", file.bytes());
        return Err(Error::file(path, reason));
    }
    let mut text = vec![0; file.bytes() as usize];
    file.read_header(&mut text, 0)?;
    if !text.trim_ascii_start().starts_with(b"{") {
        let reason = || "not a JSON object".to_owned();
        return Err(what::refuse(&file, &format!("a {what}"), reason));
    }
    Ok(text)
}

/// Returns the shards that an index names.
///
/// # Errors
/// The index cannot be read or is malformed.
pub(super) fn shards_of(index: &Path) -> Result<BTreeSet<String>> {
    let text = read_json(index, "safetensors index")?;
    let weight_map = parse_index(index, &text)?;
    Ok(weight_map.into_iter().map(|(_, shard)| shard).collect())
}

/// Parses tensors and their shards, which are plain file names.
pub(super) fn parse_index(path: &Path, text: &[u8]) -> Result<Vec<(String, String)>> {
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

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: UniqueEntries<String>,
}
