//! What tensors lose by each way to store them, on a sample of their rows: what budgets and searches
//! go by.

use std::sync::atomic::AtomicUsize;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::context::Context;
use super::inputs::{Calibrator, Inputs, Prepared, Spatial};
use super::options::{DEFAULT_BUDGET, Options};
use super::pool::{Pulse, resolve, with_pool};
use super::progress::Counter;
use crate::error::{Error, Result};
use crate::format::{Gain, Method, Recipe};
use crate::kernel::ErrorSums;
use crate::model::choose_table;
use crate::plan::{Basis, Measured, Open, Plan, Sensitivity};
use crate::sink::Buffers;
use crate::source::Source;

/// Part of a tensor's weights that is quantized for all of its ways together.
const SHARE: f64 = 0.08;

/// Rows that are tried however few that would be.
const FEWEST: usize = 4;

/// Weights that are tried with each way however many that would be, where rows are no longer:
/// enough to know errors to some percent, in a small part of the time that quantizing takes.
const MOST: usize = 1 << 14;

/// Columns that are tried where there is nothing to read but a shape.
const WIDEST: usize = 1 << 18;

/// Measures what the open tensors of a plan lose by each of their ways.
///
/// # Errors
/// A tensor or the calibration cannot be read, or the run is cancelled.
pub(super) fn sensitivities(
    source: &dyn Source,
    plan: &Plan,
    open: &[Open],
    seed: u64,
    mut options: Options<'_>,
) -> Result<Vec<Sensitivity>> {
    let calibrator = Calibrator::new(plan, &mut options.log)?;
    let table = choose_table()?;
    let done = AtomicUsize::new(0);
    let job = |open: &Open| {
        let (rows, cols) = sample_size(source, plan, open);
        rows.saturating_mul(cols).saturating_mul(size_of::<f32>())
    };
    let total = open.iter().map(job).fold(0, usize::saturating_add);
    let budget = match (source.in_turn(), plan.memory_limit) {
        (true, _) => 0,
        (false, Some(limit)) => usize::try_from(limit / 4).unwrap_or(usize::MAX),
        (false, None) => options.budget,
    };
    let mut counter = Counter::new(&done, total, options.progress);
    with_pool(resolve(options.threads), |pool| {
        let context = Context::new(source, table, pool, Buffers::new(0), &done);
        let inputs = Inputs {
            context: &context,
            calibrator: calibrator.as_ref(),
        };
        let mut found = Vec::with_capacity(open.len());
        pool.in_order(
            open.iter().map(|open| (job(open).saturating_mul(3), open)),
            budget.min(DEFAULT_BUDGET),
            |open, pulse| inputs.sensitivity(plan, open, seed, pulse),
            || counter.tell(),
            |sensitivity, _| {
                found.push(sensitivity);
                Ok(())
            },
        )?;
        Ok(found)
    })
}

/// Rows of a tensor that are tried, and columns: all of them, if they are to be read.
fn sample_size(source: &dyn Source, plan: &Plan, open: &Open) -> (usize, usize) {
    let shape = &plan.entries[open.tensor].tensor.shape;
    let (rows, mut cols) = (shape.rows(), shape.cols());
    if !source.has_weights() {
        cols = cols.min(WIDEST);
    }
    let share = rows as f64 * SHARE / open.ways.len() as f64;
    let sampled = (share as usize).min(MOST / cols.max(1));
    (sampled.max(FEWEST).min(rows), cols)
}

/// Rows of a tensor, one from each of so many equal parts.
fn sample(rows: usize, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let place = |i: usize| {
        let edge = |i: usize| (i as u128 * rows as u128 / count as u128) as usize;
        let (start, end) = (edge(i), edge(i + 1));
        start + (random.next_u64() % (end - start) as u64) as usize
    };
    (0..count).map(place).collect()
}

/// Numbers of a normal distribution (Box and Muller 1958).
fn gaussian(count: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut number = |_| {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - uniform()));
        (radius * libm::cos(std::f64::consts::TAU * uniform())) as f32
    };
    (0..count).map(&mut number).collect()
}

impl Inputs<'_> {
    fn sensitivity(
        &self,
        plan: &Plan,
        open: &Open,
        seed: u64,
        pulse: Pulse<'_>,
    ) -> Result<Sensitivity> {
        let tensor = open.tensor;
        let shape = &plan.entries[tensor].tensor.shape;
        let (rows, cols) = sample_size(self.context.source, plan, open);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(tensor as u64);
        let mut prepared = Prepared::default();
        let (basis, squares, weights) = match self.context.source.has_weights() {
            true => {
                let rows = sample(shape.rows(), rows, &mut random);
                let mut weights = vec![0.0; rows.len() * cols];
                for (out, row) in weights.chunks_exact_mut(cols).zip(rows) {
                    self.context.with_rows(tensor, row, 1, |matrix| {
                        self.context.table.widen(matrix.float, matrix.weights, out);
                    })?;
                }
                let (basis, squares) = match self.importance(tensor)? {
                    Some((times, squares)) => {
                        prepared = Prepared::important(times, &squares);
                        (Basis::Outputs, Some(squares))
                    }
                    None => (Basis::Weights, None),
                };
                (basis, squares, weights)
            }
            false => {
                let weights = gaussian(rows * cols, &mut random);
                (Basis::Gaussian, None, weights)
            }
        };
        let mut measured = Vec::with_capacity(open.ways.len());
        for recipe in &open.ways {
            let found = match recipe {
                None => None,
                Some(recipe) => {
                    let decoded = self.decoded(recipe, &prepared, cols, &weights);
                    Some(sums(&weights, decoded.as_deref(), squares.as_deref()))
                }
            };
            let cosine = found.map_or(1.0, |sums| sums.cosine());
            measured.push(Measured {
                recipe: *recipe,
                error: found.map_or(0.0, |_| 1.0 - cosine * cosine),
                cosine,
            });
            pulse();
            if self.context.pool.stopped() {
                return Err(Error::Cancelled);
            }
        }
        self.context.advance(rows * cols * size_of::<f32>());
        Ok(Sensitivity {
            tensor,
            basis,
            rows,
            measured,
        })
    }

    /// What quantizing the sample decodes to; `None` where it cannot be done.
    fn decoded(
        &self,
        recipe: &Recipe,
        prepared: &Prepared,
        cols: usize,
        weights: &[f32],
    ) -> Option<Vec<f32>> {
        let recipe = Recipe {
            // GPTQ takes a factor of the Hessian, which takes longer than this is to take.
            method: match recipe.method {
                Method::Gptq => Method::Lsq,
                method => method,
            },
            // What a cosine does not see.
            gain: Gain::Lsq,
            ..*recipe
        };
        let errors = self.sample_errors(&Spatial::default(), &recipe, prepared, cols, weights)?;
        Some(weights.iter().zip(&errors).map(|(w, e)| w - e).collect())
    }
}

/// Squares of weights, of what they decode to and of the difference, channels weighted by the mean
/// squares of their inputs: of outputs, if channels had nothing in common.
fn sums(weights: &[f32], decoded: Option<&[f32]>, squares: Option<&[f64]>) -> ErrorSums {
    let Some(decoded) = decoded else {
        // As if nothing were left.
        return ErrorSums {
            signal: 1.0,
            decoded: 0.0,
            error: 1.0,
        };
    };
    let mut sums = ErrorSums::default();
    let cols = squares.map_or(weights.len().max(1), <[f64]>::len);
    for (w, q) in weights.chunks(cols).zip(decoded.chunks(cols)) {
        for (i, (&w, &q)) in w.iter().zip(q).enumerate() {
            let h = squares.map_or(1.0, |squares| squares[i]);
            let (w, q) = (f64::from(w), f64::from(q));
            sums.signal += h * w * w;
            sums.decoded += h * q * q;
            sums.error += h * (w - q) * (w - q);
        }
    }
    sums
}
