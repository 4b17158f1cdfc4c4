//! Which files of a folder are the model: one safetensors file or index, or those of every
//! component of a diffusers pipeline.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::safetensors::UniqueEntries;
use crate::error::{Error, Result};

/// The file that names the components of a pipeline.
pub(super) const MODEL_INDEX: &str = "model_index.json";

/// Weights that are not read.
const OTHER_WEIGHTS: &[&str] = &["bin", "ckpt", "h5", "msgpack", "onnx", "pt", "pth"];

/// Whether a file tells which tensor is in which shard: `*.safetensors.index.json`, or with a
/// variant, `*.safetensors.index.fp16.json`.
pub(super) fn is_index(path: &Path) -> bool {
    let name = name_of(path);
    name.contains(".safetensors.") && name.contains(".index.") && name.ends_with(".json")
}

/// The one index of a folder, or else its one safetensors file; `None` without any. A variant
/// (`model.fp16.safetensors`) counts only where what it is a variant of is not there.
///
/// # Errors
/// The folder cannot be listed, or holds several.
pub(super) fn weights_in(folder: &Path) -> Result<Option<PathBuf>> {
    let files = list(folder)?;
    let (indexes, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| is_index(file));
    let is_weights = |file: &PathBuf| file.extension().is_some_and(|e| e == "safetensors");
    let weights = others.into_iter().filter(is_weights).collect();
    for (found, reason) in [
        (indexes, "holds several indexes, name one"),
        (
            weights,
            "holds several safetensors files and no index to join them, name one",
        ),
    ] {
        let is_variant = |file: &&PathBuf| found.iter().any(|other| varies(file, other));
        let main: Vec<&PathBuf> = found.iter().filter(|file| !is_variant(file)).collect();
        match main[..] {
            [] => continue,
            [only] => return Ok(Some(only.clone())),
            _ => {
                let names: Vec<String> = main.iter().map(|file| name_of(file)).collect();
                let reason = format!("{reason}: {}", names.join(", "));
                return Err(Error::file(folder, reason));
            }
        }
    }
    Ok(None)
}

/// Whether `file` is named as `other` with one more part between two dots.
fn varies(file: &Path, other: &Path) -> bool {
    let (file, other) = (name_of(file), name_of(other));
    let (file, other): (Vec<_>, Vec<_>) = (file.split('.').collect(), other.split('.').collect());
    let without = |i: usize| file[..i].iter().chain(&file[i + 1..]).eq(&other);
    file.len() == other.len() + 1 && (1..file.len()).any(without)
}

/// Name and weights of every component of a pipeline that has weights, sorted by name. `text`
/// is that of the folder's [`MODEL_INDEX`].
///
/// # Errors
/// The text is malformed, or a component's weights are missing, ambiguous or not safetensors.
pub(super) fn components(folder: &Path, text: &[u8]) -> Result<Vec<(String, PathBuf)>> {
    let index = folder.join(MODEL_INDEX);
    let refuse = |reason: String| Error::file(&index, reason);
    let UniqueEntries::<Value>(entries) = serde_json::from_slice(text)
        .map_err(|error| refuse(format!("not a pipeline's index: {error}")))?;
    let mut found = Vec::new();
    for (name, value) in entries {
        // A component is `[library, class]`, `[null, null]` where it is left out; the rest are
        // settings of the pipeline.
        let Some([Value::String(_), Value::String(class), ..]) =
            value.as_array().map(Vec::as_slice)
        else {
            continue;
        };
        if name.starts_with('_') {
            continue;
        }
        if name_of(Path::new(&name)) != name {
            return Err(refuse(format!(
                "component '{name}' is no plain folder name"
            )));
        }
        if let Some(weights) = weights_of_component(&folder.join(&name), class)? {
            found.push((name, weights));
        }
    }
    if found.is_empty() {
        return Err(refuse("names no component that has weights".to_owned()));
    }
    found.sort();
    Ok(found)
}

/// The weights in a component's folder; `None` for a tokenizer, scheduler or the like.
fn weights_of_component(folder: &Path, class: &str) -> Result<Option<PathBuf>> {
    let weightless = ["Tokenizer", "Scheduler", "Processor", "Extractor"];
    let weightless = weightless.iter().any(|part| class.contains(part));
    if weightless && !folder.exists() {
        return Ok(None);
    }
    if let Some(weights) = weights_in(folder)? {
        return Ok(Some(weights));
    }
    let files = list(folder)?;
    let is_other = |file: &&PathBuf| {
        OTHER_WEIGHTS
            .iter()
            .any(|&e| file.extension() == Some(e.as_ref()))
    };
    if let Some(other) = files.iter().find(is_other) {
        let reason = format!("holds {}, but safetensors are needed", name_of(other));
        return Err(Error::file(folder, reason));
    }
    // Every model has its settings there; one without weights was copied in part.
    if !weightless && folder.join("config.json").exists() {
        let reason = format!("holds no weights of its {class}, safetensors are needed");
        return Err(Error::file(folder, reason));
    }
    Ok(None)
}

/// The files of a folder, sorted.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let refuse = || Error::io(folder, "list");
    let entries = std::fs::read_dir(folder).map_err(refuse())?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.map_err(refuse())?.path());
    }
    files.sort();
    Ok(files)
}

/// The last part of a path; empty for one like `..`.
pub(super) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
