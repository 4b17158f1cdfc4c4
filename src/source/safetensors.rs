//! safetensors files: single, sharded, or in a pipeline.
//!
//! Layout: u64 little-endian header length, a JSON object `{name: {dtype, shape,
//! data_offsets}, "__metadata__": {…}}`, then the values without gaps. The header is parsed
//! here rather than by the `safetensors` crate because that one lets a duplicate name win
//! silently and does not say which tensor of which file is wrong.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::file::{FileState, SourceFile};
use super::folder::{self, FolderWeights, MODEL_INDEX};
use super::header::{SafetensorsHeader, shown};
use super::index::{parse_index, read_json};
use super::{QuantizationConfig, Source, SourceId, classes, links};
use crate::error::{Error, Result};
use crate::tensor::{MAX_TENSORS, TensorInfo, check_limits};

/// The most shards of a model, which are all open at once. The largest published models have about
/// 200.
const MAX_SHARDS: usize = 1000;

/// One safetensors file, all shards of an index, or all components of a pipeline.
#[derive(Debug)]
pub struct SafetensorsSource {
    path: PathBuf,
    id: SourceId,
    shards: Vec<SourceFile>,
    tensors: Vec<TensorInfo>,
    /// Shard of each tensor, and position in that shard's file.
    places: Vec<(usize, u64)>,
    metadata: BTreeMap<String, String>,
    /// Class names in the files beside the weights.
    classes: Vec<String>,
    /// Statements in the files beside the weights.
    quantization: Vec<QuantizationConfig>,
    warnings: Vec<String>,
}

impl SafetensorsSource {
    /// Opens one file.
    ///
    /// # Errors
    /// The file cannot be read or is malformed.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut builder = Builder::new(path);
        builder.add_file(path, "", None)?;
        builder.source.classes = classes::of_config(path);
        builder.add_quantization(path, "");
        Ok(builder.finish())
    }

    /// Takes a file of which nothing lies beside.
    pub(super) fn read(file: SourceFile) -> Result<Self> {
        let mut builder = Builder::new(file.path());
        builder.add(file, "", None)?;
        Ok(builder.finish())
    }

    /// Opens the shards of an index (`{"weight_map": {tensor: file}}`), which are in the same
    /// folder.
    ///
    /// # Errors
    /// The index or a shard cannot be read or is malformed, a tensor is not where the index says,
    /// or two shards contain a name that the index does not.
    pub fn open_sharded(index: &Path) -> Result<Self> {
        let mut builder = Builder::new(index);
        builder.add_index(index, "")?;
        builder.source.classes = classes::of_config(index);
        builder.add_quantization(index, "");
        Ok(builder.finish())
    }

    /// Opens the file or index of a folder that `diffusers` and `transformers` would read.
    ///
    /// # Errors
    /// The folder contains none or several; or the errors of [`Self::open_file`] and
    /// [`Self::open_sharded`].
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let FolderWeights { path, warning } = folder::only_weights(folder)?;
        let mut source = match folder::is_index(&path) {
            true => Self::open_sharded(&path)?,
            false => Self::open_file(&path)?,
        };
        source.warnings.extend(warning);
        Ok(source)
    }

    /// Opens all components of a diffusers pipeline, a folder with a `model_index.json`, except
    /// those in `without`. Names begin with the name of the component and a dot
    /// (`transformer.blocks.0.attn.qkv.weight`).
    ///
    /// # Errors
    /// The index is malformed, a component's weights are missing, ambiguous, malformed or not
    /// safetensors, or a component in `without` does not exist.
    pub fn open_pipeline(folder: &Path, without: &[String]) -> Result<Self> {
        let mut builder = Builder::new(folder);
        let text = builder.add_json(&folder.join(MODEL_INDEX), "pipeline's index")?;
        builder.source.classes = classes::of_index(&text, without);
        for (component, weights) in folder::components(folder, &text, without)? {
            let prefix = format!("{component}.");
            let FolderWeights { path, warning } = weights;
            builder.source.warnings.extend(warning);
            builder.add_quantization(&path, &prefix);
            match folder::is_index(&path) {
                true => builder.add_index(&path, &prefix)?,
                false => builder.add_file(&path, &prefix, None)?,
            }
        }
        Ok(builder.finish())
    }
}

/// Maps each tensor of an index to its shard.
type ShardOf<'a> = HashMap<&'a str, &'a str>;

/// A source under construction, to which files are added.
struct Builder {
    source: SafetensorsSource,
    hash: Xxh3,
    /// File of every tensor.
    seen: HashMap<String, PathBuf>,
    /// Tensors skipped in a shard, because an index has them in another one.
    passed_over: Vec<String>,
}

impl Builder {
    /// Starts a source named after `path`.
    fn new(path: &Path) -> Self {
        let name = match folder::name_of(path) {
            // `.` has a name, too.
            none if none.is_empty() => path.canonicalize().map(|path| folder::name_of(&path)),
            name => Ok(name),
        };
        Self {
            source: SafetensorsSource {
                path: path.to_owned(),
                id: SourceId {
                    name: name.unwrap_or_default(),
                    bytes: 0,
                    header_hash: String::new(),
                },
                shards: Vec::new(),
                tensors: Vec::new(),
                places: Vec::new(),
                metadata: BTreeMap::new(),
                classes: Vec::new(),
                quantization: Vec::new(),
                warnings: Vec::new(),
            },
            hash: Xxh3::new(),
            seen: HashMap::new(),
            passed_over: Vec::new(),
        }
    }

    /// Reads what the `config.json` beside weights says about their quantization.
    fn add_quantization(&mut self, weights: &Path, prefix: &str) {
        let found = QuantizationConfig::beside(weights, prefix);
        self.source.quantization.extend(found);
    }

    /// Reads a JSON file, and returns its text.
    fn add_json(&mut self, path: &Path, what: &str) -> Result<Vec<u8>> {
        let text = read_json(path, what)?;
        self.hash.update(&text);
        self.source.id.bytes += text.len() as u64;
        Ok(text)
    }

    /// Adds a safetensors file with a prefix for its names, except tensors that an index has in
    /// another shard.
    fn add_file(&mut self, path: &Path, prefix: &str, index: Option<&ShardOf<'_>>) -> Result<()> {
        self.add(SourceFile::open(path)?, prefix, index)
    }

    fn add(&mut self, file: SourceFile, prefix: &str, index: Option<&ShardOf<'_>>) -> Result<()> {
        let path = &file.path().to_owned();
        if self.source.shards.len() == MAX_SHARDS {
            let reason = format!("over {MAX_SHARDS} files, which would all be open at once");
            return Err(Error::file(&self.source.path, reason));
        }
        let header = SafetensorsHeader::read(file)?;
        self.hash.update(&header.text);
        let source = &mut self.source;
        source.id.bytes += header.file.bytes();
        for (key, value) in header.metadata {
            source.metadata.entry(key).or_insert(value);
        }
        let shard = source.shards.len();
        source.shards.push(header.file);
        let own = path.file_name();
        for entry in header.entries {
            let listed = index.and_then(|index| index.get(entry.info.name.as_str()));
            if listed.is_some_and(|shard| own != Some(shard.as_ref())) {
                self.passed_over.push(entry.info.name);
                continue;
            }
            let name = format!("{prefix}{}", entry.info.name);
            check_limits(&name, 0).map_err(|reason| Error::file(path, reason))?;
            if let Some(other) = self.seen.insert(name.clone(), path.to_owned()) {
                let reason = format!("duplicate, also in {}", other.display());
                return Err(Error::tensor(path, &name, reason));
            }
            source.tensors.push(TensorInfo { name, ..entry.info });
            source.places.push((shard, header.data_start + entry.start));
        }
        if source.tensors.len() > MAX_TENSORS {
            let reason = format!("over {MAX_TENSORS} tensors in its shards");
            return Err(Error::file(&source.path, reason));
        }
        Ok(())
    }

    /// Adds an index and its shards.
    fn add_index(&mut self, index: &Path, prefix: &str) -> Result<()> {
        let text = self.add_json(index, "safetensors index")?;
        let weight_map = parse_index(index, &text)?;
        let mut first_of_shard: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            first_of_shard.entry(shard).or_insert(tensor);
        }
        if first_of_shard.len() > MAX_SHARDS {
            let shards = first_of_shard.len();
            let reason = format!("{shards} shards exceed the limit of {MAX_SHARDS}");
            return Err(Error::file(index, reason));
        }

        let folder = index.parent().unwrap_or(Path::new(""));
        let shard_of: ShardOf<'_> = weight_map
            .iter()
            .map(|(tensor, shard)| (tensor.as_str(), shard.as_str()))
            .collect();
        for (shard, tensor) in first_of_shard {
            let path = folder.join(shard);
            if !path.exists() {
                let missing = links::broken_link(&path).unwrap_or("missing".to_owned());
                let reason = format!("its shard {} is {missing}", path.display());
                return Err(Error::tensor(index, tensor, reason));
            }
            self.add_file(&path, prefix, Some(&shard_of))?;
        }
        for (tensor, shard) in &weight_map {
            match self.seen.get(&format!("{prefix}{tensor}")) {
                Some(path) if path.file_name() == Some(shard.as_ref()) => {}
                _ => {
                    let reason = format!("the index says {shard}, which does not contain it");
                    return Err(Error::tensor(index, tensor, reason));
                }
            }
        }
        self.tell_passed_over(index);
        Ok(())
    }

    /// Warns once about tensors that are in more shards than their index says.
    fn tell_passed_over(&mut self, index: &Path) {
        let passed_over = std::mem::take(&mut self.passed_over);
        let Some(first) = passed_over.iter().min() else {
            return;
        };
        let count = match passed_over.len() {
            1 => "a tensor is".to_owned(),
            count => format!("{count} tensors are"),
        };
        let index = index.display();
        self.source.warnings.push(format!(
            "{index}: {count} in another shard, too ('{}'): read from the one that the index names",
            shown(first)
        ));
    }

    fn finish(mut self) -> SafetensorsSource {
        self.source.id.header_hash = format!("{:016x}", self.hash.digest());
        self.source
    }
}

impl Source for SafetensorsSource {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        let (shard, start) = self.places[index];
        let name = &self.tensors[index].name;
        self.shards[shard].read(out, start + offset as u64, name)
    }

    fn path_of(&self, index: usize) -> &Path {
        self.shards[self.places[index].0].path()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> SourceId {
        self.id.clone()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn classes(&self) -> Vec<String> {
        let mut classes = classes::of_metadata(&self.metadata);
        classes.extend(self.classes.iter().cloned());
        classes
    }

    fn quantization(&self) -> Vec<QuantizationConfig> {
        self.quantization.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn files(&self) -> Vec<FileState> {
        self.shards.iter().map(|file| file.state()).collect()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(SourceFile::check_unchanged)
    }
}
