//! Models that are split into several GGUF files, `NAME-00001-of-00003.gguf` and so on. Each part
//! has its own header, whose keys give its number and how many parts there are.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::header::{GgufHeader, Split};
use crate::error::{Error, Result};
use crate::source::file::SourceFile;
use crate::source::folder::{list, name_of};

/// The most parts of a model, which are all open at once.
const MAX_PARTS: u64 = 1000;

/// One file of a model.
#[derive(Debug)]
pub(super) struct SplitPart {
    pub(super) file: SourceFile,
    pub(super) header: GgufHeader,
}

impl SplitPart {
    fn open(path: &Path, hash: &mut Xxh3) -> Result<Self> {
        Self::read(SourceFile::open(path)?, hash)
    }

    fn read(file: SourceFile, hash: &mut Xxh3) -> Result<Self> {
        let header = GgufHeader::read(&file, hash)?;
        Ok(Self { file, header })
    }
}

/// Takes a file that is a model by itself, and the hash of its header.
///
/// # Errors
/// The file is malformed, or one part of several.
pub(super) fn only(file: SourceFile) -> Result<(Vec<SplitPart>, Xxh3)> {
    let mut hash = Xxh3::new();
    let part = SplitPart::read(file, &mut hash)?;
    match part.header.split.count {
        Some(count) if count > 1 => {
            let reason = format!("one of {count} parts, and the others cannot be found from it");
            Err(Error::file(part.file.path(), reason))
        }
        _ => Ok((vec![part], hash)),
    }
}

/// Opens all parts of the model that the file `path` belongs to, in order, and returns them with
/// the hash of their headers.
pub(super) fn open_all(path: &Path) -> Result<(Vec<SplitPart>, Xxh3)> {
    let mut hash = Xxh3::new();
    let given = SplitPart::open(path, &mut hash)?;
    let Some(paths) = paths(path, &given.header.split)? else {
        return Ok((vec![given], hash));
    };
    drop(given);
    // All headers are hashed again from the first one, so that any part gives the same hash.
    let mut hash = Xxh3::new();
    let mut parts = Vec::new();
    let count = paths.len() as u64;
    for (i, part_path) in paths.iter().enumerate() {
        if matches!(part_path.try_exists(), Ok(false)) {
            let given = name_of(path);
            let reason = format!("is missing: {given} is one of {count} parts, and all are needed");
            return Err(Error::file(part_path, reason));
        }
        let part = SplitPart::open(part_path, &mut hash)?;
        check(&part.header.split, i as u64, count)
            .map_err(|reason| Error::file(part_path, reason))?;
        parts.push(part);
    }
    let tensors = parts.iter().map(|part| part.header.tensors.len() as u64);
    let tensors = tensors.sum::<u64>();
    for part in &parts {
        if let Some(said) = part.header.split.tensors.filter(|&said| said != tensors) {
            let reason = format!(
                "says in split.tensors.count that all parts have {said} tensors together, they \
                 have {tensors}"
            );
            return Err(Error::file(part.file.path(), reason));
        }
    }
    Ok((parts, hash))
}

/// Checks that a part's keys agree with its name.
fn check(split: &Split, i: u64, count: u64) -> std::result::Result<(), String> {
    if split.count != Some(count) {
        return Err(match split.count {
            Some(other) => {
                format!("is one of {count} parts by its name, split.count says {other}")
            }
            None => format!("is one of {count} parts by its name, but has no key split.count"),
        });
    }
    match split.no {
        Some(no) if no == i => Ok(()),
        Some(no) => Err(format!(
            "is part {} of {count} by its name, split.no says {}",
            i + 1,
            no.saturating_add(1)
        )),
        None => Err("is one of several parts, but has no key split.no".to_owned()),
    }
}

/// Returns the paths of all parts of a split model; `None` if the file is a whole one.
fn paths(path: &Path, split: &Split) -> Result<Option<Vec<PathBuf>>> {
    let file_name = name_of(path);
    let name = PartName::parse(&file_name);
    let refuse = |reason: String| Err(Error::file(path, reason));
    match (split.count, name) {
        (Some(0 | 1), _) => Ok(None),
        (None, Some(name)) if name.count > 1 => refuse(format!(
            "is one of {} parts by its name, but has no key split.count: give it another name if \
             it is a whole model",
            name.count
        )),
        (None, _) => Ok(None),
        (Some(count), _) if count > MAX_PARTS => refuse(format!(
            "one of {count} parts of a model, over the limit of {MAX_PARTS}"
        )),
        (Some(count), Some(name)) if name.count == count => {
            let part = |number| path.with_file_name(PartName { number, ..name }.to_string());
            Ok(Some((1..=count).map(part).collect()))
        }
        (Some(count), Some(name)) => refuse(format!(
            "is one of {} parts by its name, split.count says {count}",
            name.count
        )),
        (Some(count), None) => refuse(format!(
            "one of {count} parts of a model, but its name does not end in \
             -00001-of-{count:05}.gguf or the like, so that the others cannot be found"
        )),
    }
}

/// The numbers in the name of a part.
#[derive(Clone, Copy, PartialEq)]
struct PartName<'a> {
    model: &'a str,
    /// Number of the part, from 1.
    number: u64,
    count: u64,
}

impl<'a> PartName<'a> {
    fn parse(file_name: &'a str) -> Option<Self> {
        let (rest, count) = file_name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        let name = Self {
            model,
            number,
            count,
        };
        let right = (1..=count).contains(&number) && name.to_string() == file_name;
        right.then_some(name)
    }
}

impl std::fmt::Display for PartName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            model,
            number,
            count,
        } = self;
        write!(f, "{model}-{number:05}-of-{count:05}.gguf")
    }
}

/// Finds the one GGUF file of a folder, or one part of its one split model; `None` without any.
///
/// # Errors
/// The folder cannot be listed, or contains several models.
pub(in crate::source) fn weights_in(folder: &Path) -> Result<Option<PathBuf>> {
    let mut models: Vec<(String, PathBuf)> = Vec::new();
    for path in list(folder)? {
        let name = name_of(&path);
        if name.starts_with('.') || path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let model = match PartName::parse(&name) {
            Some(part) => PartName { number: 1, ..part }.to_string(),
            None => name,
        };
        if !models.iter().any(|(other, _)| *other == model) {
            models.push((model, path));
        }
    }
    match &models[..] {
        [] => Ok(None),
        [(_, path)] => Ok(Some(path.clone())),
        _ => {
            let names: Vec<&str> = models.iter().map(|(name, _)| name.as_str()).collect();
            let reason = format!(
                "contains several GGUF files, use one of them: {}",
                names.join(", ")
            );
            Err(Error::file(folder, reason))
        }
    }
}
