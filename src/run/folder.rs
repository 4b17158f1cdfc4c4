//! A folder of parts instead of one file: for what is to be continued after an interruption, or
//! done by several machines. Each part appears whole; `manifest.json` says what there is.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde_json::json;

use super::engine::{Engine, Ledger};
use super::fingerprint::{sample, settled};
use super::options::{Options, check_not_input};
use super::part::{PartThere, open_part};
use super::progress::{Level, say};
use super::report::{Parts, Report};
use super::share::{PlannedPart, Share, cut};
use crate::error::{Error, Result};
use crate::plan::{Plan, PlanEntry};
use crate::schema::{
    FORMAT_VERSION, Fingerprint, MANIFEST, Manifest, ManifestPart, ManifestSource, PartInfo,
    part_name,
};
use crate::sink::{Destination, PARQUET, StagedFile, remove_stale};
use crate::source::{self, FileState, Source};

/// A folder that a run writes to.
struct Folder<'a> {
    path: &'a Path,
    plan: &'a Plan,
    parts: Vec<PlannedPart>,
    fingerprint: Fingerprint,
    /// Whether this run made it.
    made: bool,
}

/// Does a plan into the folder `output`, or one share of it.
pub(super) fn quantize(
    source: &dyn Source,
    plan: &Plan,
    output: &Path,
    mut options: Options<'_>,
) -> Result<Report> {
    let restart = options.restart;
    let share = options.share.unwrap_or(Share::ALL);
    let part_bytes = options.part_bytes;
    let fingerprint = Fingerprint {
        format_version: FORMAT_VERSION,
        source: source::record(source),
        sample: sample(source)?,
        config: plan.config.clone(),
        tensors: settled(plan),
        compression: plan.compression.name().to_owned(),
        shares: share.count,
        part_bytes,
    };
    let mut folder = Folder {
        path: output,
        plan,
        parts: cut(plan, share.count, part_bytes),
        fingerprint,
        made: false,
    };
    for index in 0..folder.parts.len() {
        check_not_input(source, &folder.part_path(index))?;
    }
    let mine: Vec<usize> = (0..folder.parts.len())
        .filter(|&index| folder.parts[index].share == share.index)
        .collect();
    folder.make()?;
    match restart {
        // Nothing is removed before all else is known to be well.
        true => folder.earlier(source, &mine).map(drop),
        false => folder.claim(source),
    }?;
    let entries = match (mine.first(), mine.last()) {
        (Some(&first), Some(&last)) => {
            folder.parts[first].entries.start..folder.parts[last].entries.end
        }
        _ => 0..0,
    };
    if mine.is_empty()
        && let Some(log) = &mut options.log
    {
        // Cancelling what is nothing makes no difference.
        log(
            Level::Info,
            "this share is empty: there are too few tensors, and they are too large",
        );
    }
    let count = mine.len();
    let mut there = 0;
    for &index in mine.iter().filter(|_| !restart) {
        there += usize::from(folder.read(index)?.is_some());
    }
    if there > 0 {
        let all = there == count;
        let doing = if all {
            "nothing is left to do"
        } else {
            "continuing"
        };
        let message = format!("{doing}: {}", parts_are_there(there, count));
        say(&mut options.log, Level::Notice, &message)?;
    }
    options.resume = there > 0;
    let done = Engine::run(
        source,
        plan,
        &PARQUET,
        entries.clone(),
        options.again(),
        |engine| {
            if restart {
                for path in folder.earlier(source, &mine)? {
                    std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
                }
                folder.claim(source)?;
            }
            let (mut sizes, mut resumed) = (Vec::with_capacity(mine.len()), 0);
            for &index in &mine {
                let part = &folder.parts[index];
                let there = if restart { None } else { folder.read(index)? };
                sizes.push(match there {
                    Some(there) => {
                        resumed += 1;
                        there.restore(&mut engine.ledger, part.entries.clone());
                        engine.skip(part.entries.clone())?;
                        there.bytes
                    }
                    None => {
                        let staged = StagedFile::create(&folder.part_path(index))?;
                        let destination = Destination::File(staged);
                        let info = |ledger: &Ledger<'_>| Some(json!(folder.info(ledger, index)));
                        engine.write(part.entries.clone(), destination, info)?
                    }
                });
            }
            let mut report = engine.report(entries, output, sizes.iter().sum());
            report.parts = Some(Parts {
                count: mine.len(),
                resumed,
            });
            // Those of other shares are for `merge`.
            if share.count == 1 {
                folder.finish(engine, &sizes)?;
            }
            Ok(report)
        },
    );
    if done.is_err() {
        folder.leave();
    }
    if matches!(done, Err(Error::Cancelled)) {
        let is_there = |index: &&usize| folder.part_path(**index).exists();
        let there = mine.iter().filter(is_there).count();
        let message = match there {
            0 => "no part is complete yet: the next run starts over".to_owned(),
            _ => format!(
                "{}: the next run continues with them",
                parts_are_there(there, count)
            ),
        };
        // It is cancelled already.
        let _ = say(&mut options.log, Level::Notice, &message);
    }
    done
}

fn parts_are_there(there: usize, count: usize) -> String {
    let parts = if count == 1 { "part" } else { "parts" };
    let are = if there == 1 { "is" } else { "are" };
    format!("{there} of {count} {parts} {are} there")
}

impl Folder<'_> {
    fn part_path(&self, index: usize) -> PathBuf {
        self.path.join(part_name(index))
    }

    /// Makes the folder, or finds one; what killed runs left is removed.
    fn make(&mut self) -> Result<()> {
        match std::fs::create_dir(self.path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made.map_err(Error::io(self.path, "create the folder"))?;
                self.made = true;
            }
        }
        if !self.path.is_dir() {
            let reason = "not a folder, and its name does not end in .parquet";
            return Err(Error::file(self.path, reason));
        }
        remove_stale(self.path);
        Ok(())
    }

    /// Takes the folder for this run, or finds that what is in it belongs to this run.
    fn claim(&self, source: &dyn Source) -> Result<()> {
        let sources: Vec<_> = source.files().iter().map(source_of).collect();
        let mut there = Manifest::read(self.path)?;
        if there.is_none() {
            self.check_parts(&[])?;
            if write(self.path, &self.manifest(source), false)? {
                return Ok(());
            }
            // Another run was faster.
            there = Manifest::read(self.path)?;
        }
        let Some(there) = there else {
            return Ok(());
        };
        let path = self.path.join(MANIFEST);
        if let Some(difference) = self.fingerprint.difference(&there.fingerprint) {
            return Err(another(&path, &difference));
        }
        if there.parts.len() != self.parts.len() {
            let reason = "its parts are cut differently";
            return Err(another(&path, reason));
        }
        // After a merge nothing may be known of the files. Shares are of several machines, whose
        // copies have times of their own.
        for (there, here) in there.sources.iter().zip(&sources) {
            let same_time = self.fingerprint.shares > 1 || there.modified == here.modified;
            if (&there.name, there.bytes) != (&here.name, here.bytes) || !same_time {
                let name = &here.name;
                return Err(another(&path, &format!("{name} has changed since")));
            }
        }
        Ok(())
    }

    /// What is to be removed of an earlier run: of one with as many shares of the same work this
    /// share's parts, as others may be at theirs; else all that its manifest names, which is last.
    ///
    /// # Errors
    /// There are parts of another run that no manifest names, or one is being read.
    fn earlier(&self, source: &dyn Source, mine: &[usize]) -> Result<Vec<PathBuf>> {
        let there = Manifest::read(self.path)?;
        let mut earlier: Vec<PathBuf> = match &there {
            None => Vec::new(),
            Some(there) => {
                let same = self.fingerprint.difference(&there.fingerprint).is_none();
                match same && self.fingerprint.shares > 1 {
                    true => mine.iter().map(|&i| self.part_path(i)).collect(),
                    false => {
                        let all = 0..there.parts.len();
                        let parts = all.map(|i| self.part_path(i));
                        parts.chain([self.path.join(MANIFEST)]).collect()
                    }
                }
            }
        };
        self.check_parts(&earlier)?;
        for path in &earlier {
            check_not_input(source, path)?;
        }
        earlier.retain(|path| path.exists());
        Ok(earlier)
    }

    /// What is to be in the folder.
    fn manifest(&self, source: &dyn Source) -> Manifest {
        let part = |(index, part): (usize, &PlannedPart)| ManifestPart {
            file: part_name(index),
            share: part.share,
            tensors: part.entries.len(),
            bytes: None,
        };
        let parts = self.parts.iter().enumerate().map(part).collect();
        let mut manifest = Manifest::new(self.fingerprint.clone(), parts);
        manifest.sources = source.files().iter().map(source_of).collect();
        manifest.modality = self.plan.modality.name().to_owned();
        manifest.source_metadata = source.metadata().clone();
        manifest
    }

    /// Says that all parts are there, which have these sizes.
    fn finish(&self, engine: &Engine<'_, '_>, sizes: &[u64]) -> Result<()> {
        let mut manifest = self.manifest(engine.source());
        for (part, &bytes) in manifest.parts.iter_mut().zip(sizes) {
            part.bytes = Some(bytes);
        }
        manifest.complete = true;
        manifest.summary = engine.summary(0..self.plan.entries.len());
        write(self.path, &manifest, true).map(drop)
    }

    /// Parts that came without a manifest, from another machine, must be of this run, but for some.
    fn check_parts(&self, others: &[PathBuf]) -> Result<()> {
        for path in parts_in(self.path)? {
            if others.contains(&path) {
                continue;
            }
            let info = open_part(&path)?.0;
            if let Some(difference) = self.fingerprint.difference(&info.fingerprint) {
                return Err(another(&path, &difference));
            }
        }
        Ok(())
    }

    /// A part that is complete. One that cannot be opened is made again; damaged planes are left
    /// to `verify` to find, as they are not read here.
    fn read(&self, index: usize) -> Result<Option<PartThere>> {
        let path = self.part_path(index);
        let Ok((info, model)) = open_part(&path) else {
            return Ok(None);
        };
        if let Some(difference) = self.fingerprint.difference(&info.fingerprint) {
            return Err(another(&path, &difference));
        }
        // Small kept tensors are gathered, so that a file has another order than the plan.
        let entries = &self.plan.entries[self.parts[index].entries.clone()];
        let there = |entry: &PlanEntry| {
            let found = model.find(&entry.tensor.name);
            found.is_some_and(|tensor| model.tensors()[tensor].info == entry.tensor)
        };
        let all = entries.len() == model.tensors().len() && entries.iter().all(there);
        if info.index != index || !all {
            return Ok(None);
        }
        let bytes = model.file_bytes() as u64;
        Ok(Some(PartThere { info, model, bytes }))
    }

    fn info(&self, ledger: &Ledger<'_>, index: usize) -> PartInfo {
        let part = &self.parts[index];
        let (mut sums, mut ladder) = (BTreeMap::new(), BTreeMap::new());
        for i in part.entries.clone() {
            let entry = &ledger.plan.entries[i];
            let tally = &ledger.tallies[i];
            if !tally.ladder.is_empty() || tally.below_min_cosine {
                let steps = json!([tally.ladder, tally.below_min_cosine]);
                ladder.insert(entry.tensor.name.clone(), steps);
            }
            if entry.recipe.is_some() {
                let error = tally.error;
                let sum = [error.signal, error.decoded, error.error];
                sums.insert(entry.tensor.name.clone(), sum);
            }
        }
        PartInfo {
            index,
            count: self.parts.len(),
            share: part.share,
            fingerprint: self.fingerprint.clone(),
            sums,
            ladder,
        }
    }

    /// Leaves no folder without parts behind. Where others do their shares it is theirs, too.
    fn leave(&self) {
        let alone = self.made && self.fingerprint.shares == 1;
        if alone && parts_in(self.path).is_ok_and(|parts| parts.is_empty()) {
            let _ = std::fs::remove_file(self.path.join(MANIFEST));
            let _ = std::fs::remove_dir(self.path);
        }
    }
}

pub(super) fn another(path: &Path, difference: &str) -> Error {
    let reason = format!(
        "from another run: {difference}; continue with the same source and settings, choose \
         another folder, or use --restart, which removes the other run's parts"
    );
    Error::file(path, reason)
}

fn source_of(file: &FileState) -> ManifestSource {
    let name = file.path.file_name().unwrap_or_default();
    let since = file
        .modified
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let modified = since.map(|t| format!("{}.{:09}", t.as_secs(), t.subsec_nanos()));
    ManifestSource {
        name: name.to_string_lossy().into_owned(),
        bytes: file.bytes,
        modified,
    }
}

/// The paths of all parts in a folder, in order.
pub(super) fn parts_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let path = entry.map_err(Error::io(folder, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("part-") && name.ends_with(".parquet") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Writes a manifest; false when there must be none yet, and is.
pub(super) fn write(folder: &Path, manifest: &Manifest, replace: bool) -> Result<bool> {
    let mut file = StagedFile::create(&folder.join(MANIFEST))?;
    let written = file.write_at(manifest.text().as_bytes(), 0);
    written.map_err(Error::io(file.target(), "write"))?;
    if replace {
        file.commit()?;
        return Ok(true);
    }
    match file.commit_new() {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(false),
        done => done.map(|()| true),
    }
}
