//! Where weights come from. A [`Source`] lists tensors and reads any part of one by position;
//! nothing is mapped and no file is read whole.

mod arrow;
mod classes;
mod file;
mod folder;
mod gguf;
mod header;
mod imatrix;
mod listing;
mod memory;
mod parquet;
mod safetensors;
mod table;
mod what;

use std::path::Path;

pub use arrow::from_arrow;
pub use file::FileState;
pub use gguf::GgufSource;
pub use imatrix::Imatrix;
pub use listing::ListingSource;
pub use memory::{MemorySource, Values};
pub use parquet::ParquetSource;
pub use safetensors::SafetensorsSource;

use self::file::SourceFile;
use self::folder::MODEL_INDEX;
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// Of a header in bytes: the limit that safetensors itself has.
const MAX_HEADER: u64 = 100_000_000;

/// What identifies a source in the files made from it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SourceId {
    /// Base name of the file (of the index, when sharded; of the folder, when a pipeline): no
    /// more, so that the output does not depend on where the input lies.
    pub name: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// XXH3-64 over the headers (the footer of Parquet), in hexadecimal.
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

    /// What its files call the model: names of classes and architectures, and `modality: audio`
    /// where they say it outright.
    fn classes(&self) -> Vec<String> {
        classes::of_metadata(self.metadata())
    }

    /// Whether its tensors can be read, and are not just listed.
    fn has_weights(&self) -> bool {
        true
    }

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

    /// What to tell whoever quantizes these tensors: a sentence each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Bytes of memory that reading takes at most, beside the caller's: where values are packed
    /// in the file, those that are held unpacked.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Whether tensors are better read one after the other: when what they are unpacked from is
    /// not held for all of them, each would drop what the others need.
    fn in_turn(&self) -> bool {
        false
    }
}

/// What to open of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Components to leave out, where the path is that of a pipeline.
    pub without: Vec<String>,
}

/// Opens what weights come in:
///
/// - a safetensors file, or the `*.safetensors.index.json` of its shards;
/// - a folder with one of these;
/// - the folder of a diffusers pipeline, with its `model_index.json`: all its components;
/// - a GGUF file of f32, f16, bf16 and Q8_0 tensors;
/// - a Parquet file: a table of tensors, or one of ours whose tensors were kept;
/// - a JSON file that lists tensors without their weights ([`ListingSource`]), for plans.
///
/// # Errors
/// The path does not exist or is none of these, or its contents are malformed.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    open_with(path, &OpenOptions::default())
}

/// Opens what [`open`] does, but not all of it.
///
/// # Errors
/// As [`open`]; or components are to be left out of what is no pipeline, or has none of that name.
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>> {
    let metadata = std::fs::metadata(path).map_err(what::cannot_open(path))?;
    if let Some(folder) = folder::pipeline(path, metadata.is_dir()) {
        let without = &options.without;
        let source = SafetensorsSource::open_pipeline(&folder, without)?;
        return Ok(Box::new(source));
    }
    if !options.without.is_empty() {
        let reason = format!(
            "'{}' is no pipeline with a {MODEL_INDEX}: it has no components to leave out",
            path.display()
        );
        return Err(Error::config("without", reason));
    }
    if metadata.is_dir() {
        return Ok(Box::new(SafetensorsSource::open_folder(path)?));
    }
    let weights = path;
    if folder::is_index(weights) {
        return Ok(Box::new(SafetensorsSource::open_sharded(weights)?));
    }
    match kind(weights)? {
        Kind::Safetensors => Ok(Box::new(SafetensorsSource::open_file(weights)?)),
        Kind::Gguf => Ok(Box::new(GgufSource::open(weights)?)),
        Kind::Parquet => Ok(Box::new(ParquetSource::open(weights)?)),
        Kind::Json if let Some(listing) = ListingSource::open(weights)? => Ok(Box::new(listing)),
        Kind::Json | Kind::Unknown => {
            let reason = "weights are read from safetensors, GGUF and Parquet files, folders of \
                          shards and diffusers folders, and this is none of them";
            let what = what::is(&SourceFile::open(weights)?)?;
            let what = what.map_or(String::new(), |what| format!("{what}; "));
            Err(Error::file(path, format!("{what}{reason}")))
        }
    }
}

/// Kinds of files.
enum Kind {
    Safetensors,
    Gguf,
    Parquet,
    Json,
    Unknown,
}

/// What a file begins as, or else is called.
fn kind(path: &Path) -> Result<Kind> {
    let file = SourceFile::open(path)?;
    let mut start = [0; 9];
    let len = file.bytes().min(start.len() as u64) as usize;
    file.read_header(&mut start[..len], 0)?;
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    Ok(match (&start, extension.as_ref()) {
        ([b'G', b'G', b'U', b'F', ..], _) => Kind::Gguf,
        ([b'P', b'A', b'R', b'1', ..], _) => Kind::Parquet,
        // The length before a safetensors header has zeros, as it is nowhere near 2^64.
        ([.., b'{'], _) if start.contains(&0) => Kind::Safetensors,
        (_, "safetensors") => Kind::Safetensors,
        (_, "gguf" | "parquet") if let Some(what) = what::is(&file)? => {
            let gguf = extension == "gguf";
            let expected = if gguf { "readable GGUF" } else { "Parquet" };
            let reason = format!("not a {expected} file but {what}");
            return Err(Error::file(path, reason));
        }
        (_, "gguf") => Kind::Gguf,
        (_, "parquet") => Kind::Parquet,
        _ if !start.contains(&0) && start.trim_ascii_start().starts_with(b"{") => Kind::Json,
        ([.., b'{'], _) => Kind::Safetensors,
        _ => Kind::Unknown,
    })
}
