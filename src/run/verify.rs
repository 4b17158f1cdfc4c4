//! Checks a quantized file: its checksums, and what it says against the original.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use super::options::Options;
use super::pipeline::check_weights;
use super::pool::{Pool, Pulse, with_pool};
use super::progress::Counter;
use crate::error::{Error, Result};
use crate::format::{Float, rows_per_piece};
use crate::kernel::{ErrorSums, KernelTable};
use crate::model::{Model, choose_table};
use crate::quantize::Matrix;
use crate::quantize::transform::measure_transformed_rows;
use crate::schema::{STEP, Tile};
use crate::source::Source;

/// Measured and stored cosines further apart than this are not of the same weights.
const COSINE_SLACK: f64 = 1e-5;

/// What checking a file found.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// One entry a tensor, in file order; then those the file lacks.
    pub tensors: Vec<TensorCheck>,
}

/// What checking one tensor found.
#[derive(Debug, Clone, Serialize)]
pub struct TensorCheck {
    /// Name in the model.
    pub name: String,
    /// Measured against the original; none without one, and for kept tensors.
    pub cosine: Option<f64>,
    /// Measured against the original; none without one, and for kept tensors.
    pub sqnr_db: Option<f64>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

impl Verification {
    /// The tensors with a problem.
    pub fn failures(&self) -> impl Iterator<Item = &TensorCheck> {
        self.tensors
            .iter()
            .filter(|tensor| tensor.problem.is_some())
    }
}

/// Checks every tile's checksum. With an original, also that both hold the same tensors, that
/// kept ones are equal, that quantized ones are as close to it as the file says, and no cosine
/// is below `min_cosine`.
///
/// # Errors
/// The original cannot be read or only lists its tensors, or changes meanwhile. What is wrong with the file is in the result.
pub fn verify(
    model: &Model,
    original: Option<&dyn Source>,
    min_cosine: Option<f64>,
    options: Options<'_>,
) -> Result<Verification> {
    original.map_or(Ok(()), check_weights)?;
    let table = choose_table()?;
    let theirs = original.map_or(&[][..], |source| source.tensors());
    let theirs = theirs.iter().enumerate();
    let partners: HashMap<&str, usize> = theirs.map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut jobs = Vec::new();
    let mut checks = Vec::new();
    for (tensor, entry) in model.tensors().iter().enumerate() {
        let info = &entry.info;
        let partner = partners.get(info.name.as_str()).copied();
        let problem = match (original, partner) {
            (Some(_), None) => Some("the original has no such tensor".to_owned()),
            (Some(source), Some(index)) if source.tensors()[index] != *info => {
                let other = &source.tensors()[index];
                let found = format!("{} {}", other.dtype, other.shape);
                Some(format!(
                    "the original is {found}, not {} {}",
                    info.dtype, info.shape
                ))
            }
            _ => None,
        };
        let partner = partner.filter(|_| problem.is_none());
        jobs.extend((0..entry.tiles.len()).map(|tile| VerifyJob {
            tensor,
            tile,
            partner,
        }));
        checks.push(Check {
            error: ErrorSums::default(),
            problem,
        });
    }
    let done = AtomicUsize::new(0);
    // A damaged file may claim any size.
    let sizes = jobs.iter().map(|job| job.bytes(model));
    let total = sizes.fold(0, usize::saturating_add);
    let mut counter = Counter::new(&done, total, options.progress);
    with_pool(options.threads, |pool| {
        let work = VerifyWork {
            model,
            table,
            original,
            pool,
            done: &done,
        };
        let in_turn = original.is_some_and(Source::in_turn);
        pool.in_order(
            jobs.into_iter().map(|job| (usize::from(in_turn), job)),
            if in_turn { 0 } else { options.budget },
            |job, pulse| Ok((job.tensor, work.check(&job, pulse)?)),
            || counter.tell(),
            |(tensor, checked): (usize, Check), _| {
                checks[tensor].error.add(checked.error);
                let problem = checks[tensor].problem.take().or(checked.problem);
                checks[tensor].problem = problem;
                Ok(())
            },
        )
    })?;
    original.map_or(Ok(()), |source| source.check_unchanged())?;

    let mut tensors: Vec<TensorCheck> = model
        .tensors()
        .iter()
        .zip(checks)
        .map(|(tensor, check)| {
            let measured = tensor.is_quantized() && original.is_some() && check.problem.is_none();
            let cosine = measured.then(|| check.error.measured_cosine()).flatten();
            let low = cosine
                .zip(min_cosine)
                .filter(|(cosine, least)| cosine < least);
            TensorCheck {
                name: tensor.info.name.clone(),
                cosine,
                sqnr_db: if measured {
                    check.error.sqnr_db()
                } else {
                    None
                },
                problem: check
                    .problem
                    .or(low.map(|(cosine, least)| format!("cosine {cosine:.6} is below {least}"))),
            }
        })
        .collect();
    for missing in original.map_or(&[][..], |source| source.tensors()) {
        if model.find(&missing.name).is_none() {
            tensors.push(TensorCheck {
                name: missing.name.clone(),
                cosine: None,
                sqnr_db: None,
                problem: Some("the file lacks this tensor of the original".to_owned()),
            });
        }
    }
    Ok(Verification { tensors })
}

struct VerifyJob {
    tensor: usize,
    tile: usize,
    /// The tensor's index in the original.
    partner: Option<usize>,
}

impl VerifyJob {
    fn tile<'a>(&self, model: &'a Model) -> &'a Tile {
        &model.tensors()[self.tensor].tiles[self.tile].tile
    }

    /// Bytes that its check reads, of the planes and of the original.
    fn bytes(&self, model: &Model) -> usize {
        let tile = self.tile(model);
        let original = match self.partner {
            Some(_) => tile.row_count * tile.shape.cols() * tile.source_dtype.bits() / 8,
            None => 0,
        };
        tile.bytes().saturating_add(original)
    }
}

struct Check {
    error: ErrorSums,
    problem: Option<String>,
}

/// Told the bytes that were dealt with; its error ends the check.
type Step<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// What all checks of a run share.
struct VerifyWork<'a> {
    model: &'a Model,
    table: &'a KernelTable,
    original: Option<&'a dyn Source>,
    pool: &'a Pool<'a>,
    done: &'a AtomicUsize,
}

impl VerifyWork<'_> {
    fn check(&self, job: &VerifyJob, pulse: Pulse<'_>) -> Result<Check> {
        let mut left = job.bytes(self.model);
        let mut step = |bytes: usize| {
            let bytes = bytes.min(left);
            left -= bytes;
            self.done.fetch_add(bytes, Ordering::Relaxed);
            self.pool.go_on(pulse)
        };
        let check = self.tile(job, &mut step)?;
        // What a problem kept from being read.
        step(usize::MAX)?;
        Ok(check)
    }

    fn tile(&self, job: &VerifyJob, step: Step<'_>) -> Result<Check> {
        let mut check = Check {
            error: ErrorSums::default(),
            problem: None,
        };
        let tile = job.tile(self.model);
        let planes = match (self.model).check_tile_in_steps(job.tensor, job.tile, step) {
            Ok(planes) => planes,
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(Error::Checksum { tile, .. }) => {
                check.problem = Some(format!(
                    "checksum of tile {tile} does not match, the data is damaged"
                ));
                return Ok(check);
            }
            Err(error) => {
                check.problem = Some(error.to_string());
                return Ok(check);
            }
        };
        let (Some(source), Some(partner)) = (self.original, job.partner) else {
            return Ok(check);
        };

        let mut buffer = Vec::new();
        let (Some(encoding), Some(float)) = (tile.encoding, tile.source_dtype.float()) else {
            // Kept: equal byte for byte.
            let codes = planes.codes();
            let start = codes.len().checked_div(tile.row_count).unwrap_or(0) * tile.row_start;
            for (i, part) in codes.chunks(STEP).enumerate() {
                buffer.resize(part.len(), 0);
                read(source, partner, start + i * STEP, &mut buffer, step)?;
                if buffer != part {
                    check.problem = Some("kept, but not equal to the original".to_owned());
                    return Ok(check);
                }
            }
            return Ok(check);
        };
        let cols = tile.shape.cols();
        let row_bytes = cols * tile.source_dtype.bits() / 8;
        let piece = rows_per_piece(cols);
        let transform = tile.transform();
        let mut decoded = match transform.is_identity() {
            true => Vec::new(),
            false => vec![0; cols * Float::F32.size()],
        };
        for row in (0..tile.row_count).step_by(piece) {
            let rows = piece.min(tile.row_count - row);
            buffer.resize(rows * cols * float.size(), 0);
            let offset = (tile.row_start + row) * row_bytes;
            let fill = |at, bytes: &mut [u8]| read(source, partner, offset + at, bytes, &mut *step);
            tile.source_dtype.read_floats(&mut buffer, fill)?;
            let matrix = Matrix {
                rows,
                cols,
                float,
                weights: &buffer,
            };
            let planes = planes.as_planes().rows(encoding, cols, row..row + rows);
            let (table, decoded) = (self.table, &mut decoded);
            // It has been checked that weights decode to finite numbers; the original's may be none.
            match measure_transformed_rows(table, encoding, transform, matrix, planes, decoded) {
                Some(sums) => check.error.add(sums),
                None => {
                    check.problem = Some("the original is not finite".to_owned());
                    return Ok(check);
                }
            }
        }
        let measured = check.error.cosine();
        match tile.cosine {
            // All weights are 0.
            None if check.error.measured_cosine().is_none() => {}
            Some(stored) if (f64::from(stored) - measured).abs() <= COSINE_SLACK => {}
            stored => {
                let stored = stored.map_or("none".to_owned(), |cosine| format!("{cosine:.6}"));
                check.problem = Some(format!(
                    "cosine to the original is {measured:.6}, the file says {stored}: is this the original?"
                ));
            }
        }
        Ok(check)
    }
}

/// Fills `out` from a tensor's byte `offset` on.
fn read(
    source: &dyn Source,
    tensor: usize,
    offset: usize,
    out: &mut [u8],
    step: Step<'_>,
) -> Result<()> {
    for (i, part) in out.chunks_mut(STEP).enumerate() {
        source.read(tensor, offset + i * STEP, part)?;
        step(part.len())?;
    }
    Ok(())
}
