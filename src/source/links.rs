//! Paths that are links to nothing, as interrupted downloads leave them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Whether something exists at a path, even a broken link.
pub(super) fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Describes the target of a broken link, for messages.
pub(super) fn broken_link(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let there = path.parent().unwrap_or(Path::new("")).join(&target);
    if there.exists() {
        return None;
    }
    let mut part = there.into_os_string();
    part.push(".incomplete");
    let more = match PathBuf::from(part).exists() {
        true => "; there is an .incomplete file: finish the download",
        false => "",
    };
    let target = target.display();
    Some(format!("a link to {target}, which does not exist{more}"))
}

/// Makes the error for a file of weights that could not be opened, which names the target of a
/// broken link.
pub(super) fn cannot_open(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |error| match broken_link(path) {
        Some(link) if error.kind() == ErrorKind::NotFound => Error::file(path, link),
        _ => Error::io(path, "open")(error),
    }
}
