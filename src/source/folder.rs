//! Finds the files of a folder that are the model: one safetensors file or index, or those of every
//! component of a diffusers pipeline.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::header::UniqueEntries;
use super::index::shards_of;
use super::{links, what};
use crate::error::{Error, Result};

/// The file that names the components of a pipeline.
pub(super) const MODEL_INDEX: &str = "model_index.json";

/// Names that diffusers and transformers give the weights in a folder, which take precedence over
/// all others.
const OWN: [&str; 2] = [DIFFUSERS, TRANSFORMERS];
const DIFFUSERS: &str = "diffusion_pytorch_model";
const TRANSFORMERS: &str = "model";

/// Extensions of weights that are not supported.
const OTHER_WEIGHTS: &[&str] = &["bin", "ckpt", "h5", "msgpack", "onnx", "pt", "pth"];

/// Whether a file is an index that says which tensor is in which shard: `*.safetensors.index.json`,
/// or with a variant, `*.safetensors.index.fp16.json`.
pub(super) fn is_index(path: &Path) -> bool {
    let name = name_of(path);
    name.contains(".safetensors.") && name.contains(".index.") && name.ends_with(".json")
}

/// Returns the folder of a pipeline, if the path is that folder or its index.
pub(super) fn pipeline(path: &Path, is_folder: bool) -> Option<PathBuf> {
    if is_folder {
        // A broken link is an index that is missing.
        return links::is_there(&path.join(MODEL_INDEX)).then(|| path.to_owned());
    }
    if name_of(path) != MODEL_INDEX {
        return None;
    }
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    Some(folder.unwrap_or(Path::new(".")).to_owned())
}

/// The weights of a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FolderWeights {
    /// A safetensors file or an index of several.
    pub(super) path: PathBuf,
    /// A warning about other files beside it.
    pub(super) warning: Option<String>,
}

/// A file of weights, or an index of several.
struct Found {
    path: PathBuf,
    /// Parts of the name between dots, without those that mark a safetensors file or index.
    parts: Vec<String>,
    is_index: bool,
}

impl Found {
    fn new(path: PathBuf) -> Option<Self> {
        let is_index = is_index(&path);
        let is_weights = path.extension().is_some_and(|e| e == "safetensors");
        if !is_index && !is_weights {
            return None;
        }
        let name = name_of(&path);
        let fixed = |part: &&str| match is_index {
            true => ["safetensors", "index", "json"].contains(part),
            false => *part == "safetensors",
        };
        let parts = name.split('.').filter(|part| !fixed(part));
        let parts = parts.map(str::to_owned).collect();
        Some(Self {
            path,
            parts,
            is_index,
        })
    }

    /// Whether the name equals another with one more part between two dots: its variant.
    fn varies(&self, other: &[String]) -> bool {
        let without = |i: usize| {
            let (before, after) = (&self.parts[..i], &self.parts[i + 1..]);
            before.iter().chain(after).eq(other)
        };
        self.parts.len() == other.len() + 1 && (1..self.parts.len()).any(without)
    }

    /// Returns the number of shards in a name such as `model-00001-of-00002`.
    fn shards(&self) -> Option<usize> {
        if self.is_index {
            return None;
        }
        let numbers = self.parts.iter().find_map(|part| {
            let (rest, count) = part.rsplit_once("-of-")?;
            Some((rest.rsplit_once('-')?.1, count))
        });
        let (index, count) = numbers?;
        index.parse::<usize>().ok()?;
        count.parse().ok()
    }
}

/// Finds the weights of a folder; `None` without any. Names used by diffusers and transformers take
/// precedence over other names, those of `library` first; and names without a variant over those
/// with one (`model.fp16.safetensors`). Among other names an index comes first.
///
/// # Errors
/// The folder cannot be listed, contains several models, or shards without their index.
pub(super) fn weights_in(folder: &Path, library: Option<&str>) -> Result<Option<FolderWeights>> {
    let found = list(folder)?.into_iter().filter_map(Found::new);
    let (shards, found): (Vec<_>, Vec<_>) = found.partition(|file| file.shards().is_some());
    let mut own = OWN;
    if library == Some("transformers") {
        own.reverse();
    }
    for name in own {
        let plain = found.iter().filter(|file| file.parts == [name]);
        let plain: Vec<&Found> = plain.collect();
        if !plain.is_empty() {
            return choose(folder, &plain).map(Some);
        }
    }
    for name in own {
        let variants = found.iter().filter(|f| f.varies(&[name.to_owned()]));
        let variants: Vec<&Found> = variants.collect();
        let plain = format!("{name}-");
        let is_plain =
            |shard: &&Found| shard.parts.len() == 1 && shard.parts[0].starts_with(&plain);
        // Shards of a variant may have such names, too.
        let indexes = variants.iter().filter(|variant| variant.is_index);
        let joined = indexes.filter_map(|index| shards_of(&index.path).ok());
        let joined: Vec<String> = joined.flatten().collect();
        let is_joined = |shard: &&Found| joined.contains(&name_of(&shard.path));
        let plain = shards.iter().filter(is_plain);
        let plain: Vec<&Found> = plain.filter(|shard| !is_joined(shard)).collect();
        match (&variants[..], &plain[..]) {
            ([], _) => {}
            (variants, []) => return choose(folder, variants).map(Some),
            (_, shards) => return unjoined(folder, shards).map(Some),
        }
    }
    let is_variant = |file: &&Found| found.iter().any(|other| file.varies(&other.parts));
    let mut main: Vec<&Found> = found.iter().filter(|file| !is_variant(file)).collect();
    let indexes: Vec<_> = main.iter().filter(|f| f.is_index).copied().collect();
    if !found.iter().any(|file| file.is_index) {
        main.extend(&shards);
        main.sort_by(|a, b| a.path.cmp(&b.path));
    } else if !indexes.is_empty() {
        let joined = |file: &&Found| indexes.iter().any(|index| index.parts == file.parts);
        main.retain(joined);
    }
    match &main[..] {
        [] => Ok(None),
        [only] if only.shards().is_some() => unjoined(folder, &main).map(Some),
        main => choose(folder, main).map(Some),
    }
}

/// Handles shards without an index; a single one is a model if its name says that it is complete.
fn unjoined(folder: &Path, shards: &[&Found]) -> Result<FolderWeights> {
    match shards {
        [only] if only.shards().is_some_and(|count| count > 1) => {
            let reason = format!(
                "contains {}, which is one of {} shards, and no index to join them",
                name_of(&only.path),
                only.shards().unwrap_or_default()
            );
            Err(Error::file(folder, reason))
        }
        shards => choose(folder, shards),
    }
}

/// Chooses among files that are not variants of each other.
fn choose(folder: &Path, found: &[&Found]) -> Result<FolderWeights> {
    match found {
        [only] => Ok(FolderWeights {
            path: only.path.clone(),
            warning: None,
        }),
        [one, other] if one.parts == other.parts => {
            let (index, whole) = match one.is_index {
                true => (one, other),
                false => (other, one),
            };
            index_or_whole(folder, index, whole)
        }
        several => Err(ambiguous(folder, several)),
    }
}

/// Chooses between an index and a whole file with the same name: transformers reads the file,
/// diffusers the index. An index without any of its shards was left behind when they were joined.
fn index_or_whole(folder: &Path, index: &Found, whole: &Found) -> Result<FolderWeights> {
    let (index_name, whole_name) = (name_of(&index.path), name_of(&whole.path));
    let chosen = |file: &Found, warning: Option<String>| {
        Ok(FolderWeights {
            path: file.path.clone(),
            warning: warning.map(|warning| format!("{}: {warning}", folder.display())),
        })
    };
    let shards = shards_of(&index.path);
    if let Ok(shards) = &shards {
        if !shards.is_empty() && shards.iter().all(|shard| *shard == whole_name) {
            return chosen(index, None);
        }
        if !shards
            .iter()
            .any(|shard| links::is_there(&folder.join(shard)))
        {
            let stale = format!("none of the shards in {index_name} exist; {whole_name} is read");
            return chosen(whole, Some(stale));
        }
    }
    if whole.parts.first().is_some_and(|name| name == TRANSFORMERS) {
        let warning = format!(
            "contains {whole_name} and shards with {index_name}; the former is read, as transformers \
             does: to read the latter, use the index"
        );
        return chosen(whole, Some(warning));
    }
    shards?;
    let warning = format!(
        "contains {whole_name} and shards with {index_name}; the latter are read, as diffusers does: \
         to read the former, use the file"
    );
    chosen(index, Some(warning))
}

fn ambiguous(folder: &Path, several: &[&Found]) -> Error {
    let reason = match several.iter().all(|file| file.is_index) {
        true => "contains several indexes, use one of them",
        false => "contains several safetensors files and no index to join them, use one of them",
    };
    let names: Vec<String> = several.iter().map(|file| name_of(&file.path)).collect();
    Error::file(folder, format!("{reason}: {}", names.join(", ")))
}

/// Finds the weights of a folder that is not a pipeline.
///
/// # Errors
/// The errors of [`weights_in`], or there are none.
pub(super) fn only_weights(folder: &Path) -> Result<FolderWeights> {
    if let Some(weights) = weights_in(folder, None)? {
        return Ok(weights);
    }
    let reason = match (what::cache(folder), other_weights(folder)?) {
        (Some(cache), _) => cache,
        (None, Some(other)) => format!("contains {other}, but safetensors are needed"),
        (None, None) => "contains no *.safetensors.index.json, no *.safetensors, no *.gguf and no \
             model_index.json"
            .to_owned(),
    };
    Err(Error::file(folder, reason))
}

/// Finds name and weights of every component of a pipeline that has weights, sorted by name, except
/// those in `without`. `text` is the contents of the folder's [`MODEL_INDEX`].
///
/// # Errors
/// The text is malformed; a component's weights are missing, ambiguous or not safetensors; or a
/// component in `without` does not exist.
pub(super) fn components(
    folder: &Path,
    text: &[u8],
    without: &[String],
) -> Result<Vec<(String, FolderWeights)>> {
    let index = folder.join(MODEL_INDEX);
    let refuse = |reason: String| Error::file(&index, reason);
    let UniqueEntries::<Value>(entries) = serde_json::from_slice(text)
        .map_err(|error| refuse(format!("not a pipeline's index: {error}")))?;
    let parts: Vec<(&str, &[Value])> = entries
        .iter()
        .filter(|(name, _)| !name.starts_with('_'))
        .filter_map(|(name, value)| Some((name.as_str(), value.as_array()?.as_slice())))
        .collect();
    if let Some(other) = without
        .iter()
        .find(|name| !parts.iter().any(|part| part.0 == **name))
    {
        let names: Vec<&str> = parts.iter().map(|part| part.0).collect();
        let reason = format!(
            "'{other}' is not a component of {}, which has {}",
            folder.display(),
            names.join(", ")
        );
        return Err(Error::config("without", reason));
    }
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, value) in parts {
        // A component is `[library, class]`, or `[null, null]` if it is left out; other entries are
        // settings of the pipeline.
        let [Value::String(library), Value::String(class), ..] = value else {
            continue;
        };
        if without.iter().any(|other| other == name) {
            continue;
        }
        if name_of(Path::new(name)) != name {
            return Err(refuse(format!(
                "component '{name}' is not a plain folder name"
            )));
        }
        match weights_of_component(&folder.join(name), name, library, class)? {
            Component::Weights(weights) => found.push((name.to_owned(), weights)),
            Component::Weightless => {}
            Component::Missing => missing.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(refuse(not_there(&missing)));
    }
    if found.is_empty() {
        return Err(refuse("names no component that has weights".to_owned()));
    }
    found.sort();
    Ok(found)
}

/// Describes components whose folders are missing.
fn not_there(missing: &[&str]) -> String {
    let flags: Vec<String> = missing.iter().map(|n| format!("--without {n}")).collect();
    let (noun, are, them) = match missing {
        [_] => ("component", "is", "it"),
        _ => ("components", "are", "them"),
    };
    let missing = missing.join(", ");
    format!(
        "{noun} {missing} {are} missing: download {them}, leave {them} out ({}), or use the folder \
         of a single component",
        flags.join(" ")
    )
}

enum Component {
    Weights(FolderWeights),
    /// A component without weights, such as a tokenizer or scheduler.
    Weightless,
    Missing,
}

fn weights_of_component(
    folder: &Path,
    name: &str,
    library: &str,
    class: &str,
) -> Result<Component> {
    let weightless = ["Tokenizer", "Scheduler", "Processor", "Extractor"];
    let weightless = weightless.iter().any(|part| class.contains(part));
    if !folder.exists() {
        return match links::broken_link(folder) {
            _ if weightless => Ok(Component::Weightless),
            Some(link) => Err(Error::file(folder, link)),
            None => Ok(Component::Missing),
        };
    }
    if let Some(weights) = weights_in(folder, Some(library))? {
        return Ok(Component::Weights(weights));
    }
    if !weightless && list(folder)?.is_empty() {
        return Ok(Component::Missing);
    }
    let hint = format!("convert its weights, or leave it out with --without {name}");
    if let Some(other) = other_weights(folder)? {
        let reason = format!("contains {other}, but safetensors are needed: {hint}");
        return Err(Error::file(folder, reason));
    }
    // Every model has its settings there; one without weights was copied in part.
    if !weightless && folder.join("config.json").exists() {
        let reason = format!(
            "contains no weights of its {class}, safetensors are needed: download them, or leave it \
             out with --without {name}"
        );
        return Err(Error::file(folder, reason));
    }
    Ok(Component::Weightless)
}

/// Returns the name of a file of unsupported weights.
fn other_weights(folder: &Path) -> Result<Option<String>> {
    let is_other = |file: &&PathBuf| {
        let extension = file.extension().unwrap_or_default();
        OTHER_WEIGHTS.iter().any(|&other| extension == other)
    };
    Ok(list(folder)?
        .iter()
        .find(is_other)
        .map(|file| name_of(file)))
}

/// Lists the files of a folder, sorted, except hidden ones: macOS leaves `._NAME` beside a file on
/// foreign disks.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let refuse = || Error::io(folder, "list");
    let entries = std::fs::read_dir(folder).map_err(refuse())?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.map_err(refuse())?.path());
    }
    files.retain(|file| !name_of(file).starts_with('.'));
    files.sort();
    Ok(files)
}

/// Returns the last part of a path; empty for one like `..`.
pub(super) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
