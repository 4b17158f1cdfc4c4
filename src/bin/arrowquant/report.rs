//! Report files of a run: `quantize --report`.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};

use arrowquant::error::{Error, Result};
use arrowquant::run::{self, Report};
use arrowquant::schema::MANIFEST;
use arrowquant::sink::StagedFile;
use arrowquant::source::Source;

use super::show;

/// Creates the report files of a run, none of which may be another file of the run.
pub fn create(paths: &[PathBuf], source: &dyn Source, output: &Path) -> Result<Vec<StagedFile>> {
    let refused = |path: &Path, reason: &str| Error::Config {
        key: "--report".into(),
        reason: format!("'{}' {reason}", path.display()),
    };
    for (i, path) in paths.iter().enumerate() {
        if same_file(path, output) {
            return Err(refused(path, "is the output"));
        }
        if is_of_folder(path, output) {
            return Err(refused(path, "is for a file of the output"));
        }
        if paths[..i].iter().any(|before| same_file(path, before)) {
            return Err(refused(path, "is given twice"));
        }
        run::check_not_input(source, path)?;
    }
    let files = paths.iter().map(|path| StagedFile::create(path));
    files.collect()
}

/// Writes the report into each file: a page if the name ends in .html, else JSON.
pub fn write(files: Vec<StagedFile>, report: &Report) -> Result<()> {
    for mut file in files {
        let text = match is_page(file.target()) {
            true => report.to_html(),
            false => show::json(&serde_json::json!(report)),
        };
        let written = file.write_all(text.as_bytes());
        written.map_err(|source| Error::Io {
            path: file.target().to_owned(),
            action: "write",
            source,
        })?;
        file.commit()?;
    }
    Ok(())
}

fn is_page(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ending.eq_ignore_ascii_case("html") || ending.eq_ignore_ascii_case("htm")
}

/// Whether a path is a part or the manifest of an output folder.
fn is_of_folder(path: &Path, output: &Path) -> bool {
    let name = as_compared(path.file_name().unwrap_or_default());
    let name = name.to_string_lossy();
    let reserved = name == MANIFEST || name.starts_with("part-") && name.ends_with(".parquet");
    reserved
        && path
            .parent()
            .is_some_and(|folder| same_file(folder, output))
}

/// Whether two paths, which may not exist yet, are the same file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let resolved = |path: &Path| {
        if let Ok(path) = path.canonicalize() {
            let name = as_compared(path.file_name()?);
            return Some((path.parent()?.to_owned(), name));
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        Some((folder.canonicalize().ok()?, as_compared(path.file_name()?)))
    };
    resolved(a).is_some_and(|a| Some(a) == resolved(b))
}

/// Returns a name as file systems compare it: on Windows and macOS they ignore case.
fn as_compared(name: &OsStr) -> OsString {
    match cfg!(any(windows, target_os = "macos")) {
        true => name.to_ascii_lowercase(),
        false => name.to_owned(),
    }
}
