//! Writes a model with smoothing folded into the weights before its layers: input channels are
//! divided by scales in the norm (or the layer) that they come from, and multiplied in the columns
//! of the layers that read them. In real arithmetic it computes what it did; and any runtime runs it.

mod edits;
mod usable;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use edits::{Edits, RowEdit};
use usable::{nothing_to_fold, usable};

use super::inputs::scales::{self, Largest};
use super::options::{Options, check_not_input, check_safetensors};
use super::pipeline::check_weights;
use super::pool::{Pool, with_pool};
use super::progress::Counter;
use crate::calibrate::Calibration;
use crate::error::{Error, Result};
use crate::format::{Float, rows_per_piece};
use crate::kernel::KernelTable;
use crate::model::choose_table;
use crate::plan::{FoldSet, NotFolded, fold_sets};
use crate::schema::STEP;
use crate::sink::SafetensorsSink;
use crate::source::{self, Source};
use crate::tensor::{Dtype, TensorInfo};

/// What is folded, and into what floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fold {
    /// Channels are divided by `absmax(X)^alpha / absmax(W)^(1-alpha)`: from 0 (weights alone are
    /// evened out) to 1 (inputs alone).
    pub alpha: f64,
    /// What floats become; `None`: what they were, to which folded ones are rounded then.
    pub float: Option<Float>,
}

impl Default for Fold {
    fn default() -> Self {
        Self {
            alpha: 0.5,
            float: None,
        }
    }
}

/// What was folded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoldReport {
    /// The file that was written.
    pub output: String,
    /// The exponent that scales were made with.
    pub alpha: f64,
    /// All sets of layers whose inputs were scaled.
    pub folded: Vec<Folded>,
    /// Sets of known layouts whose inputs were not.
    pub not_folded: Vec<NotFolded>,
}

/// Layers whose inputs were scaled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Folded {
    /// The module that their inputs come from, which divides them now.
    pub before: String,
    /// The weights that read them, and multiply them now.
    pub layers: Vec<String>,
    /// Smallest of the scales that inputs are divided by.
    pub smallest_scale: f32,
    /// Largest of the scales that inputs are divided by.
    pub largest_scale: f32,
}

/// [`fold`] of what [`source::open`] opens.
///
/// # Errors
/// As both.
pub fn fold_file(
    input: &Path,
    calibration: &Calibration,
    output: &Path,
    settings: Fold,
    options: Options<'_>,
) -> Result<FoldReport> {
    let source = source::open(input)?;
    fold(source.as_ref(), calibration, output, settings, options)
}

/// Writes the safetensors file `output` with the tensors of a source, in which the inputs of layers
/// are scaled by what `calibration` has seen of them, wherever names say that this can be made up
/// for before. Names, shapes, dtypes (but for [`Fold::float`]) and metadata stay. The inputs of
/// these layers are others then: what is to calibrate the new model has to run it.
///
/// # Errors
/// Nothing can be folded (the error says why), the calibration is of another model, a tensor cannot
/// be read, weights are too large for their dtype once folded, or the output cannot be written.
pub fn fold(
    source: &dyn Source,
    calibration: &Calibration,
    output: &Path,
    settings: Fold,
    options: Options<'_>,
) -> Result<FoldReport> {
    if !(0.0..=1.0).contains(&settings.alpha) {
        let reason = format!("{} is not from 0 to 1", settings.alpha);
        return Err(Error::config("alpha", reason));
    }
    check_weights(source)?;
    if let Some((tensor, reason)) = source.facts().and_then(|facts| facts.refusal.as_ref()) {
        return Err(Error::tensor(source.path(), tensor, reason));
    }
    check_safetensors(output)?;
    check_not_input(source, output)?;
    let tensors = source.tensors();
    let mut report = FoldReport {
        output: output.display().to_string(),
        alpha: settings.alpha,
        folded: Vec::new(),
        not_folded: Vec::new(),
    };
    let mut sets = Vec::new();
    // What the names of tensors would allow says best what is missing.
    let mut allowed = None;
    for set in fold_sets(tensors) {
        let known = match set {
            Ok(set) => {
                let known = usable(set, tensors, settings.float, calibration)?;
                allowed = allowed.or(known.as_ref().err().cloned());
                known
            }
            Err(not_folded) => Err(not_folded),
        };
        match known {
            Ok(known) => sets.push(known),
            Err(not_folded) => report.not_folded.push(not_folded),
        }
    }
    if sets.is_empty() {
        let example = allowed.as_ref().or(report.not_folded.first());
        return Err(nothing_to_fold(source, example, report.not_folded.len()));
    }
    let infos: Vec<TensorInfo> = tensors.iter().map(|info| written(info, settings)).collect();
    let read = |(set, _): &(FoldSet, _)| set.readers.clone();
    let weighed = sets.iter().flat_map(read).map(|reader| &tensors[reader]);
    let total = weighed.chain(&infos).filter_map(TensorInfo::bytes);
    let done = AtomicUsize::new(0);
    let mut counter = Counter::new(
        &done,
        total.fold(0, usize::saturating_add),
        options.progress,
    );
    let mut work = FoldWork {
        source,
        table: choose_table()?,
        edits: tensors.iter().map(|_| Edits::default()).collect(),
        budget: options.budget,
        done: &done,
    };
    with_pool(options.threads, |pool| {
        for (set, x) in sets {
            let w = work.largest_weights(pool, &set, &mut counter)?;
            let scales = scales::values(&Largest { x, w }.scales(settings.alpha));
            report.folded.push(work.edit(&set, scales.into()));
        }
        let mut sink = SafetensorsSink::create(output, &infos, source.metadata())?;
        work.write(pool, &infos, &mut sink, &mut counter)?;
        source.check_unchanged()?;
        sink.finish(&mut || counter.tell())
    })?;
    Ok(report)
}

/// What is written of a tensor.
fn written(info: &TensorInfo, settings: Fold) -> TensorInfo {
    let own = info.dtype.float().and(settings.float);
    TensorInfo {
        dtype: own.map_or(info.dtype, Dtype::from),
        ..info.clone()
    }
}

/// Rows by the first dimension, even of vectors, and values of each.
fn rows_of(info: &TensorInfo) -> (usize, usize) {
    match info.shape.elements() {
        0 => (0, 0),
        elements => {
            let rows = info.shape.dims().first().copied().unwrap_or(1);
            (rows, elements / rows)
        }
    }
}

/// Ranges of rows that one job deals with.
fn pieces(rows: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    let step = rows_per_piece(width);
    (0..rows)
        .step_by(step)
        .map(move |row| row..rows.min(row.saturating_add(step)))
}

/// A part of the output.
enum FoldJob {
    /// Bytes of a tensor as they are.
    Raw { tensor: usize, bytes: Range<usize> },
    /// Some rows, of as many values each, of a tensor of floats.
    Rows {
        tensor: usize,
        rows: Range<usize>,
        width: usize,
    },
}

struct FoldWork<'a> {
    source: &'a dyn Source,
    table: &'static KernelTable,
    /// What is done to each tensor.
    edits: Vec<Edits>,
    budget: usize,
    done: &'a AtomicUsize,
}

impl FoldWork<'_> {
    /// Notes what scaling does to each tensor.
    fn edit(&mut self, set: &FoldSet, scales: Arc<[f32]>) -> Folded {
        for writer in &set.writers {
            self.edits[writer.tensor].rows.push(RowEdit {
                rows: writer.rows.clone(),
                one_plus: writer.one_plus,
                scales: scales.clone(),
            });
        }
        for &reader in &set.readers {
            self.edits[reader].columns = Some(scales.clone());
        }
        let name = |&reader: &usize| self.source.tensors()[reader].name.clone();
        Folded {
            before: set.before.clone(),
            layers: set.readers.iter().map(name).collect(),
            smallest_scale: scales.iter().copied().fold(f32::INFINITY, f32::min),
            largest_scale: scales.iter().copied().fold(0.0, f32::max),
        }
    }

    /// Some rows, changed as far as that is decided.
    fn rows(&self, tensor: usize, rows: Range<usize>, width: usize) -> Result<Vec<f32>> {
        let info = &self.source.tensors()[tensor];
        let float = info.dtype.float().ok_or_else(|| {
            Error::Internal(format!("'{}' of {} is folded", info.name, info.dtype))
        })?;
        let count = rows.len() * width;
        let offset = rows.start * width * info.dtype.bits() / 8;
        let mut bytes = vec![0; count * float.size()];
        let read = |at, bytes: &mut [u8]| self.source.read(tensor, offset + at, bytes);
        info.dtype.read_floats(&mut bytes, read)?;
        let mut values = vec![0.0; count];
        self.table.widen(float, &bytes, &mut values);
        self.edits[tensor].apply(rows.start, width, &mut values);
        Ok(values)
    }

    /// The largest magnitude of each column in all weights that read a set's channels.
    fn largest_weights(
        &self,
        pool: &Pool<'_>,
        set: &FoldSet,
        counter: &mut Counter<'_, '_>,
    ) -> Result<Vec<f64>> {
        let tensors = self.source.tensors();
        let pieces_of = |&reader: &usize| {
            let pieces = pieces(tensors[reader].shape.rows(), set.channels);
            pieces.map(move |rows| (reader, rows))
        };
        let cost = |rows: &Range<usize>| rows.len() * set.channels * 2 * size_of::<f32>();
        let jobs = set.readers.iter().flat_map(pieces_of);
        let mut largest = vec![0.0f32; set.channels];
        pool.in_order(
            jobs.map(|(reader, rows)| (cost(&rows), (reader, rows))),
            self.budget,
            |(reader, rows), _| {
                let mut largest = vec![0.0f32; set.channels];
                let bytes = rows.len() * set.channels * tensors[reader].dtype.bits() / 8;
                for row in self
                    .rows(reader, rows, set.channels)?
                    .chunks_exact(set.channels)
                {
                    for (largest, w) in largest.iter_mut().zip(row) {
                        *largest = largest.max(w.abs());
                        // A maximum passes NaN over.
                        if w.is_nan() {
                            *largest = f32::INFINITY;
                        }
                    }
                }
                if largest.iter().any(|x| x.is_infinite()) {
                    let (path, name) = (self.source.path_of(reader), &tensors[reader].name);
                    return Err(Error::tensor(path, name, "has NaN or infinite weights"));
                }
                Ok((largest, bytes))
            },
            || counter.tell(),
            |(found, bytes), _| {
                self.done.fetch_add(bytes, Ordering::Relaxed);
                for (largest, found) in largest.iter_mut().zip(found) {
                    *largest = largest.max(found);
                }
                Ok(())
            },
        )?;
        Ok(largest.into_iter().map(f64::from).collect())
    }

    /// Writes all tensors.
    fn write(
        &self,
        pool: &Pool<'_>,
        infos: &[TensorInfo],
        sink: &mut SafetensorsSink,
        counter: &mut Counter<'_, '_>,
    ) -> Result<()> {
        let jobs = infos.iter().enumerate();
        let jobs = jobs.flat_map(|(tensor, info)| self.jobs(tensor, info));
        pool.in_order(
            jobs,
            self.budget,
            |job, _| match job {
                FoldJob::Raw { tensor, bytes } => {
                    let mut out = vec![0; bytes.len()];
                    self.source.read(tensor, bytes.start, &mut out)?;
                    Ok(out)
                }
                FoldJob::Rows {
                    tensor,
                    rows,
                    width,
                } => self.folded(tensor, rows, width, &infos[tensor]),
            },
            || counter.tell(),
            |bytes, _| {
                self.done.fetch_add(bytes.len(), Ordering::Relaxed);
                sink.write(&bytes)
            },
        )
    }

    /// The parts of a tensor, and the bytes that each takes meanwhile.
    fn jobs(&self, tensor: usize, target: &TensorInfo) -> Vec<(usize, FoldJob)> {
        let info = &self.source.tensors()[tensor];
        if info.dtype == target.dtype && self.edits[tensor].are_none() {
            let len = info.bytes().unwrap_or(0);
            let part = |start| {
                let bytes = start..len.min(start + STEP);
                (bytes.len(), FoldJob::Raw { tensor, bytes })
            };
            return (0..len).step_by(STEP).map(part).collect();
        }
        let (rows, width) = match self.edits[tensor].are_none() {
            // Rows are all the same then, and some are very long.
            true => (info.shape.elements(), 1),
            false => rows_of(info),
        };
        let job = |rows: Range<usize>| {
            let cost = rows.len() * width * 3 * size_of::<f32>();
            let job = FoldJob::Rows {
                tensor,
                rows,
                width,
            };
            (cost, job)
        };
        pieces(rows, width).map(job).collect()
    }

    /// Some rows as they are written.
    fn folded(
        &self,
        tensor: usize,
        rows: Range<usize>,
        width: usize,
        target: &TensorInfo,
    ) -> Result<Vec<u8>> {
        let first = rows.start * width;
        let values = self.rows(tensor, rows, width)?;
        let float = target.dtype.float().unwrap_or(Float::F32);
        let bytes: Vec<u8> = values.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut out = vec![0; values.len() * float.size()];
        self.table.narrow(&bytes, float, &mut out);
        let edited = !self.edits[tensor].are_none();
        let lost =
            |i: &usize| !float.get(&out, *i).is_finite() && (edited || values[*i].is_finite());
        if let Some(i) = (0..values.len()).find(lost) {
            let (value, place) = (values[i], first + i);
            let reason = format!("value {place} would be {value}, which {float} does not hold");
            let path = self.source.path_of(tensor);
            return Err(Error::tensor(path, &target.name, reason));
        }
        Ok(out)
    }
}
