//! The kinds of files that a run writes. A new one is a row here and a file beside.

use std::path::Path;

use super::{Destination, Outline, Sink, SinkLimits, parquet};
use crate::error::{Error, Result};

/// A kind of file.
#[derive(Debug)]
pub(crate) struct SinkKind {
    /// The end of its name, by which `SPECS` names it, too.
    pub(crate) extension: &'static str,
    /// What it can take, with or without compression.
    pub(crate) limits: fn(compress: bool) -> SinkLimits,
    /// What a file takes beside its planes: about, and at most.
    pub(crate) overhead: fn(&Outline<'_>) -> usize,
    pub(crate) most_overhead: fn(&Outline<'_>) -> usize,
    /// Bytes that a file never exceeds.
    pub(crate) bound: fn(&Outline<'_>) -> usize,
    /// Starts a file.
    pub(crate) create: for<'a> fn(Destination<'a>, bool) -> Result<Box<dyn Sink + 'a>>,
}

/// Parquet, the native format, and that of the parts of a folder.
pub(crate) static PARQUET: SinkKind = SinkKind {
    extension: "parquet",
    limits: parquet::limits,
    overhead: parquet::size::overhead,
    most_overhead: parquet::size::most_overhead,
    bound: parquet::size::bound,
    create: parquet::create,
};

/// All kinds.
static KINDS: &[&SinkKind] = &[&PARQUET];

/// Ends of names that are those of models in formats that are not written: nobody means a folder by
/// such a name.
const OTHERS: &[&str] = &[
    "bin",
    "ckpt",
    "gguf",
    "json",
    "onnx",
    "pt",
    "pth",
    "safetensors",
    "yaml",
];

impl SinkKind {
    /// The kind of file that a name stands for; `None` for a folder of parts.
    ///
    /// # Errors
    /// The name is that of a model in another format.
    pub(crate) fn of(output: &Path) -> Result<Option<&'static Self>> {
        let extension = output.extension().unwrap_or_default().to_string_lossy();
        let kind = KINDS.iter().find(|kind| kind.extension == extension);
        if kind.is_none() && OTHERS.contains(&extension.as_ref()) {
            let reason = format!(
                "'{}' does not end in .parquet, and is not a name for a folder",
                output.display()
            );
            return Err(Error::config("output", reason));
        }
        Ok(kind.copied())
    }
}
