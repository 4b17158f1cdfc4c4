//! One model of a folder of parts that several runs made.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::folder::{another, parts_in, write};
use super::part::{open_part, tally_of};
use super::report::{TotalTally, Totals, figures};
use crate::error::{Error, Result};
use crate::schema::{Manifest, ManifestPart, PartInfo, key, part_name};
use crate::sink::remove_stale;

/// Checks that all parts of a folder are there and belong together, and writes its manifest,
/// after which the folder is one model. Returns the figures over all of it.
///
/// # Errors
/// A part is missing or damaged, or of another run; the message names it.
pub fn merge(folder: &Path) -> Result<Totals> {
    if !folder.is_dir() {
        return Err(Error::file(folder, "not a folder of parts"));
    }
    remove_stale(folder);
    let there: HashSet<PathBuf> = parts_in(folder)?.into_iter().collect();
    let at = |index: usize| folder.join(part_name(index));
    if !there.contains(&at(0)) {
        return Err(Error::file(folder, "contains no part-00000.parquet"));
    }
    // What a part says there are may be any number.
    let (first, model) = open_part(&at(0))?;
    let PartInfo {
        fingerprint, count, ..
    } = first;
    let modality = model.metadata().get(key::MODALITY).cloned();
    let source_metadata = model.source_metadata()?;
    drop(model);
    if let Some(index) = (0..count).find(|&index| !there.contains(&at(index))) {
        let reason = format!("of {count} parts {} is missing", part_name(index));
        return Err(Error::file(folder, reason));
    }
    let own: HashSet<PathBuf> = (0..count).map(at).collect();
    if let Some(stray) = there.iter().filter(|&path| !own.contains(path)).min() {
        return Err(Error::file(stray, format!("not one of the {count} parts")));
    }
    let mut total = TotalTally::default();
    let mut summary = serde_json::Map::new();
    let mut listing = Vec::with_capacity(count);
    let mut names = HashSet::new();
    for (index, path) in (0..count).map(|index| (index, at(index))) {
        let path = &path;
        let (info, model) = open_part(path)?;
        if let Some(difference) = fingerprint.difference(&info.fingerprint) {
            return Err(another(path, &difference));
        }
        if (info.index, info.count) != (index, count) {
            let (index, count) = (info.index + 1, info.count);
            let reason = format!("it says that it is part {index} of {count}");
            return Err(Error::file(path, reason));
        }
        for tensor in model.tensors() {
            let name = &tensor.info.name;
            if !names.insert(name.clone()) {
                return Err(Error::tensor(path, name, "is also in another part"));
            }
            let quantized = tensor.tiles.iter().any(|tile| tile.tile.encoding.is_some());
            let weights = tensor.info.shape.elements();
            let tally = tally_of(tensor, &info);
            total.take(quantized, weights, &tally);
            summary.insert(
                name.clone(),
                figures(quantized, weights, tally.bytes, &tally.error),
            );
        }
        listing.push(ManifestPart {
            file: part_name(index),
            share: info.share,
            tensors: model.tensors().len(),
            bytes: Some(model.file_bytes() as u64),
        });
    }
    let totals = total.totals();
    let mut manifest = Manifest::new(fingerprint, listing);
    manifest.complete = true;
    manifest.sources = Manifest::read(folder)?.map_or(Vec::new(), |there| there.sources);
    manifest.modality = modality.unwrap_or_default();
    manifest.source_metadata = source_metadata;
    manifest.summary = json!({"total": totals.figures(), "tensors": summary});
    write(folder, &manifest, true)?;
    Ok(totals)
}
