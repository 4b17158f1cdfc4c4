//! Where weights come from. A [`Source`] lists tensors and reads any part of one by position;
//! nothing is memory-mapped and no file is read completely.

mod arrow;
mod classes;
mod file;
mod folder;
mod gguf;
mod header;
mod imatrix;
mod index;
mod links;
mod listing;
mod memory;
mod parquet;
mod quantization;
mod read;
mod resolve;
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
pub use quantization::QuantizationConfig;
pub use read::{ReadAt, ReadFn, ReadState};
pub(crate) use resolve::needs_resolving;
pub use resolve::resolve;
pub use safetensors::SafetensorsSource;

use self::file::SourceFile;
use self::folder::MODEL_INDEX;
use crate::error::{Error, Result};
use crate::tensor::{Facts, TensorInfo};

/// The most bytes of a header: the limit of safetensors itself.
const MAX_HEADER: u64 = 100_000_000;

/// What identifies a source in the files made from it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SourceId {
    /// Base name of the file (of the index, when sharded; of the folder, when a pipeline), without
    /// its folder, so that the output does not depend on the location of the input.
    pub name: String,
    /// Total bytes of all files.
    pub bytes: u64,
    /// XXH3-64 over the headers (the footer of Parquet), in hexadecimal.
    pub header_hash: String,
}

/// Returns what files record about a source: its [`SourceId`], and `notes` on how its tensors were
/// converted before quantization, if any were.
pub fn record(source: &dyn Source) -> serde_json::Value {
    let mut record = serde_json::json!(source.id());
    let notes = source.facts().map(Facts::notes).unwrap_or_default();
    if !notes.is_empty() {
        record["notes"] = notes.into();
    }
    record
}

/// Tensors that can be read in parts, from several threads at once.
pub trait Source: Send + Sync {
    /// All tensors, in the best order for reading.
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

    /// The path that was opened, for messages.
    fn path(&self) -> &Path;

    /// The record of this source in files.
    fn id(&self) -> SourceId;

    /// Key and value text that came with the tensors, sorted by key.
    fn metadata(&self) -> &std::collections::BTreeMap<String, String>;

    /// What its files call the model: class and architecture names, and `modality: audio` if they
    /// state it directly.
    fn classes(&self) -> Vec<String> {
        classes::of_metadata(self.metadata())
    }

    /// Warnings for the user, one sentence each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Previous quantization of the weights, as stated by its files.
    fn quantization(&self) -> Vec<QuantizationConfig> {
        Vec::new()
    }

    /// What is known about the tensors beyond their descriptions; `None` before [`resolve`].
    fn facts(&self) -> Option<&Facts> {
        None
    }

    /// Whether its tensors can be read, rather than only listed.
    fn has_weights(&self) -> bool {
        true
    }

    /// The state of its files when they were opened; none when it is in memory.
    fn files(&self) -> Vec<FileState> {
        Vec::new()
    }

    /// Checks that no file has changed since it was opened.
    ///
    /// # Errors
    /// One has; the error names it.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// The most bytes of memory that reading takes, in addition to the caller's: values held
    /// decompressed.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Whether tensors are better read one after the other: if only some decompressed values fit
    /// into memory, parallel reads would evict each other's.
    fn in_turn(&self) -> bool {
        false
    }
}

/// Options for opening a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Components to leave out, if the path is a pipeline.
    pub without: Vec<String>,
}

/// Opens a source, and resolves tensors that belong together ([`resolve`]):
///
/// - a safetensors file, or the `*.safetensors.index.json` of its shards;
/// - a GGUF file, or any part of a split one ([`GgufSource`]): tensors of f32, f16, bf16, Q4_0,
///   Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL and IQ4_XS;
/// - a folder with one of these;
/// - the folder of a diffusers pipeline, with its `model_index.json`: all its components;
/// - a Parquet file: a table of tensors, or an ArrowQuant file of kept tensors;
/// - a JSON file that lists tensors without their weights ([`ListingSource`]), for plans.
///
/// # Errors
/// The path does not exist or is none of these, or its contents are malformed.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    open_with(path, &OpenOptions::default())
}

/// Opens a source as [`open`] does, with options.
///
/// # Errors
/// The errors of [`open`]; or a component to be left out does not exist, or the path is not a
/// pipeline.
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>> {
    open_files(path, options).map(resolve)
}

fn open_files(path: &Path, options: &OpenOptions) -> Result<Box<dyn Source>> {
    let metadata = std::fs::metadata(path).map_err(links::cannot_open(path))?;
    if let Some(folder) = folder::pipeline(path, metadata.is_dir()) {
        let without = &options.without;
        let source = SafetensorsSource::open_pipeline(&folder, without)?;
        return Ok(Box::new(source));
    }
    if !options.without.is_empty() {
        let reason = format!(
            "'{}' is not a pipeline with a {MODEL_INDEX}: it has no components to leave out",
            path.display()
        );
        return Err(Error::config("without", reason));
    }
    if metadata.is_dir() {
        if folder::weights_in(path, None)?.is_none()
            && let Some(weights) = gguf::weights_in(path)?
        {
            return Ok(Box::new(GgufSource::open(&weights)?));
        }
        return Ok(Box::new(SafetensorsSource::open_folder(path)?));
    }
    let weights = path;
    if folder::is_index(weights) {
        return Ok(Box::new(SafetensorsSource::open_sharded(weights)?));
    }
    match kind(&SourceFile::open(weights)?)? {
        FileKind::Safetensors => Ok(Box::new(SafetensorsSource::open_file(weights)?)),
        FileKind::Gguf => Ok(Box::new(GgufSource::open(weights)?)),
        FileKind::Parquet => Ok(Box::new(ParquetSource::open(weights)?)),
        FileKind::Json if let Some(listing) = ListingSource::open(weights)? => {
            Ok(Box::new(listing))
        }
        FileKind::Json | FileKind::Unknown => {
            let reason = "weights are read from safetensors, GGUF and Parquet files, folders of \
                          shards and diffusers folders, and this is none of them";
            let what = what::is(&SourceFile::open(weights)?)?;
            let what = what.map_or(String::new(), |what| format!("{what}; "));
            Err(Error::file(path, format!("{what}{reason}")))
        }
    }
}

/// Opens the bytes that a reader reads as one file: safetensors, GGUF (not one part of several) or
/// Parquet. `path` is its name, in messages and in what files record of their source.
///
/// # Errors
/// The bytes cannot be read, are malformed, or are none of these.
pub fn open_reader(path: &Path, reader: Box<dyn ReadAt>) -> Result<Box<dyn Source>> {
    let file = SourceFile::over(path, reader)?;
    Ok(resolve(match kind(&file)? {
        FileKind::Safetensors => Box::new(SafetensorsSource::read(file)?),
        FileKind::Gguf => Box::new(GgufSource::read(file)?),
        FileKind::Parquet => Box::new(ParquetSource::read(file)?),
        FileKind::Json | FileKind::Unknown => {
            let reason = || "no weights are read from it".to_owned();
            let expected = "a safetensors, GGUF or Parquet file";
            return Err(what::refuse(&file, expected, reason));
        }
    }))
}

/// The kind of a file.
enum FileKind {
    Safetensors,
    Gguf,
    Parquet,
    Json,
    Unknown,
}

/// Detects the kind of a file from its first bytes, or else its name.
fn kind(file: &SourceFile) -> Result<FileKind> {
    let path = file.path();
    let mut start = [0; 9];
    let len = file.bytes().min(start.len() as u64) as usize;
    file.read_header(&mut start[..len], 0)?;
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    Ok(match (&start, extension.as_ref()) {
        ([b'G', b'G', b'U', b'F', ..], _) => FileKind::Gguf,
        ([b'P', b'A', b'R', b'1', ..], _) => FileKind::Parquet,
        // The length before a safetensors header has zeros, because it is far below 2^64.
        ([.., b'{'], _) if start.contains(&0) => FileKind::Safetensors,
        (_, "safetensors") => FileKind::Safetensors,
        (_, "gguf" | "parquet") if let Some(what) = what::is(file)? => {
            let gguf = extension == "gguf";
            let expected = if gguf { "readable GGUF" } else { "Parquet" };
            let reason = format!("not a {expected} file but {what}");
            return Err(Error::file(path, reason));
        }
        (_, "gguf") => FileKind::Gguf,
        (_, "parquet") => FileKind::Parquet,
        _ if !start.contains(&0) && start.trim_ascii_start().starts_with(b"{") => FileKind::Json,
        ([.., b'{'], _) => FileKind::Safetensors,
        _ => FileKind::Unknown,
    })
}
