//! The triangular factor of a layer's Hessian, which lets columns compensate for the errors of
//! others.

use std::io;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par, Spec};

use crate::calibrate::{Calibration, Weights};

/// Share of the mean diagonal that is added to it: a Hessian of few samples is singular.
const DAMPING: f64 = 0.01;

/// Number of tenfold increases of damping before correlations between columns are ignored.
const ATTEMPTS: usize = 12;

/// A layer's damped Hessian H as `R R^T`, with R upper triangular, and its columns in the order in
/// which they are quantized: by falling diagonal, so that the most important ones are rounded first
/// and all others compensate for them (act-order).
#[derive(Debug, Clone)]
pub struct Factor {
    pub(super) cols: usize,
    /// The columns in order.
    pub(super) order: Vec<u32>,
    /// `R_jk / R_kk` in row k and column j < k; zeros from the diagonal on.
    pub(super) matrix: Vec<f32>,
    /// `H_jk / H_kk` of the damped Hessian in row k and column j: the optimal change of column k,
    /// given the errors of all others.
    pub(super) whole: Vec<f32>,
    /// `R_kk^2`: the remainder of a unit error in column k after all later ones have compensated
    /// for it.
    pub(super) pivots: Vec<f64>,
    /// The weighted mean square of each input channel.
    pub(super) importance: Vec<f32>,
    /// Number added to the diagonal, relative to its mean.
    damping: f64,
}

impl Factor {
    /// Computes the factor of a layer's Hessian, weighted over time, or returns `None` if the
    /// calibration has none. Every Hessian has a factor: damping is raised tenfold until it can be
    /// factored.
    ///
    /// # Errors
    /// A temporary file of the calibration cannot be read.
    pub fn new(
        calibration: &Calibration,
        layer: &str,
        weights: &Weights,
    ) -> io::Result<Option<Self>> {
        let Some(importance) = calibration.importance(layer, weights) else {
            return Ok(None);
        };
        let order = falling(&importance);
        let mut square = Square::new(order.len());
        let place = square.places(&order);
        let found = calibration.each_hessian_block(layer, |group, first, sums| {
            let weight = weights.of_row[group];
            let mut rest = sums;
            let mut row = first;
            while !rest.is_empty() {
                let (values, after) = rest.split_at(row + 1);
                for (column, &value) in values.iter().enumerate() {
                    square.add(place[row], place[column], weight * value);
                }
                (rest, row) = (after, row + 1);
            }
        })?;
        Ok(found.then(|| square.factor(order, &importance)))
    }

    /// Returns the factor for inputs whose channels are divided by `scales`: `R` with its rows
    /// divided.
    pub fn scaled(&self, scales: &[f32]) -> Self {
        let scale: Vec<f32> = self
            .order
            .iter()
            .map(|&column| scales[column as usize])
            .collect();
        let mut scaled = self.clone();
        for (k, row) in scaled.matrix.chunks_exact_mut(self.cols).enumerate() {
            for (x, s) in row[..k].iter_mut().zip(&scale) {
                *x *= scale[k] / s;
            }
            for (x, s) in scaled.whole[k * self.cols..].iter_mut().zip(&scale) {
                *x *= scale[k] / s;
            }
            scaled.pivots[k] /= f64::from(scale[k]) * f64::from(scale[k]);
        }
        for (h, s) in scaled.importance.iter_mut().zip(scales) {
            *h /= s * s;
        }
        scaled
    }

    /// Input channels.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number added to the diagonal, relative to its mean.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// The weighted mean square of each input channel.
    pub fn importance(&self) -> &[f32] {
        &self.importance
    }

    /// Returns the bytes of the factor for this many channels, and those needed while computing it.
    pub fn bytes(cols: usize) -> (usize, usize) {
        let square = cols.saturating_mul(cols);
        (square.saturating_mul(8), square.saturating_mul(16))
    }
}

/// The least importance of a channel, relative to the mean: a group of unused channels would
/// otherwise have no scale.
const LEAST_IMPORTANCE: f64 = 1.0e-6;

/// Returns importance relative to its mean, as used for weighting scales.
pub fn floored(importance: &[f64]) -> Vec<f32> {
    let mean = importance.iter().sum::<f64>() / importance.len() as f64;
    let relative = |&h: &f64| if mean > 0.0 { h / mean } else { 1.0 };
    importance
        .iter()
        .map(|h| relative(h).max(LEAST_IMPORTANCE) as f32)
        .collect()
}

/// Returns channels by falling importance; if several are equal, the first comes first.
fn falling(importance: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..importance.len() as u32).collect();
    order.sort_by(|&a, &b| importance[b as usize].total_cmp(&importance[a as usize]));
    order
}

/// A symmetric matrix with its columns in reverse order: its lower Cholesky factor is the upper one
/// of the original matrix.
struct Square {
    n: usize,
    /// Column by column; only numbers on and below the diagonal count.
    numbers: Vec<f64>,
    diagonal: Vec<f64>,
}

impl Square {
    fn new(n: usize) -> Self {
        Self {
            n,
            numbers: vec![0.0; n * n],
            diagonal: vec![0.0; n],
        }
    }

    /// Returns the position of each channel in a matrix in reverse order.
    fn places(&self, order: &[u32]) -> Vec<usize> {
        let mut places = vec![0; self.n];
        for (k, &column) in order.iter().enumerate() {
            places[column as usize] = self.n - 1 - k;
        }
        places
    }

    fn add(&mut self, a: usize, b: usize, value: f64) {
        match a == b {
            true => self.diagonal[a] += value,
            false => self.numbers[a.max(b) + a.min(b) * self.n] += value,
        }
    }

    fn factor(mut self, order: Vec<u32>, importance: &[f64]) -> Factor {
        let n = self.n;
        let mean = self.diagonal.iter().sum::<f64>() / n as f64;
        let mean = if mean > 0.0 && mean.is_finite() {
            mean
        } else {
            1.0
        };
        // An unused channel is not correlated with others.
        for x in &mut self.diagonal {
            *x = if *x > 0.0 { *x } else { mean };
        }
        // The factorization overwrites the numbers.
        let mut whole = self.in_order();
        let mut damping = DAMPING;
        let mut attempts = 0;
        while !self.cholesky(&whole, damping * mean, attempts < ATTEMPTS) {
            damping *= 10.0;
            attempts += 1;
            if attempts > ATTEMPTS {
                // If not even the diagonal is finite, every channel counts equally.
                self.diagonal.fill(mean);
            }
        }
        for (k, row) in whole.chunks_exact_mut(n).enumerate() {
            let diagonal = self.diagonal[n - 1 - k] + damping * mean;
            row.iter_mut()
                .for_each(|x| *x = (f64::from(*x) / diagonal) as f32);
            row[k] = 0.0;
        }
        let mut matrix = vec![0.0f32; n * n];
        let mut pivots = vec![0.0; n];
        for (k, row) in matrix.chunks_exact_mut(n).enumerate() {
            // Row k of the factor, from right to left, is a column here, from the diagonal down.
            let column = &self.numbers[(n - 1 - k) * n..(n - k) * n];
            let pivot = column[n - 1 - k];
            pivots[k] = pivot * pivot;
            for (j, out) in row[..k].iter_mut().enumerate() {
                *out = (column[n - 1 - j] / pivot) as f32;
            }
        }
        Factor {
            cols: n,
            order,
            matrix,
            whole,
            pivots,
            importance: floored(importance),
            damping,
        }
    }

    /// Returns the off-diagonal numbers, columns in order.
    fn in_order(&self) -> Vec<f32> {
        let n = self.n;
        let mut whole = vec![0.0f32; n * n];
        each_tile(n, |row, column| {
            let number = self.numbers[row + column * n] as f32;
            whole[(n - 1 - row) * n + n - 1 - column] = number;
            whole[(n - 1 - column) * n + n - 1 - row] = number;
        });
        whole
    }

    /// Factors the matrix with `added` on its diagonal, or only that diagonal.
    fn cholesky(&mut self, whole: &[f32], added: f64, all: bool) -> bool {
        let n = self.n;
        each_tile(n, |row, column| {
            let number = f64::from(whole[(n - 1 - row) * n + n - 1 - column]);
            self.numbers[row + column * n] = if all { number } else { 0.0 };
        });
        for (i, x) in self.diagonal.iter().enumerate() {
            self.numbers[i + i * n] = x + added;
        }
        let square = MatMut::from_column_major_slice_mut(&mut self.numbers, n, n);
        let params = Spec::default();
        let mut scratch = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, params));
        let stack = MemStack::new(&mut scratch);
        let factored = cholesky_in_place(square, Default::default(), Par::Seq, stack, params);
        let finite =
            |i: usize| self.numbers[i + i * n].is_finite() && self.numbers[i + i * n] > 0.0;
        factored.is_ok() && (0..n).all(finite)
    }
}

/// Visits all places below the diagonal, in tiles that stay in cache whichever way they are read.
fn each_tile(n: usize, mut body: impl FnMut(usize, usize)) {
    const TILE: usize = 64;
    for columns in (0..n).step_by(TILE) {
        for rows in (columns..n).step_by(TILE) {
            for column in columns..n.min(columns + TILE) {
                for row in rows.max(column + 1)..n.min(rows + TILE) {
                    body(row, column);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(n: usize, h: impl Fn(usize, usize) -> f64) -> Factor {
        let importance: Vec<f64> = (0..n).map(|i| h(i, i)).collect();
        let order = falling(&importance);
        let mut square = Square::new(n);
        let place = square.places(&order);
        for i in 0..n {
            for j in 0..=i {
                square.add(place[i], place[j], h(i, j));
            }
        }
        square.factor(order, &importance)
    }

    /// Computes `R R^T` in the original order of columns.
    fn product(factor: &Factor) -> Vec<Vec<f64>> {
        let n = factor.cols;
        let r = |j: usize, k: usize| {
            let root = factor.pivots[k].sqrt();
            match j.cmp(&k) {
                std::cmp::Ordering::Less => f64::from(factor.matrix[k * n + j]) * root,
                std::cmp::Ordering::Equal => root,
                std::cmp::Ordering::Greater => 0.0,
            }
        };
        let mut found = vec![vec![0.0; n]; n];
        for (a, &i) in factor.order.iter().enumerate() {
            for (b, &j) in factor.order.iter().enumerate() {
                found[i as usize][j as usize] = (0..n).map(|k| r(a, k) * r(b, k)).sum();
            }
        }
        found
    }

    #[test]
    fn its_product_is_the_damped_hessian() {
        // Gaussian bumps and a falling diagonal.
        let h = |i: usize, j: usize| {
            let (a, b) = (1.0 + i as f64 % 7.0, 1.0 + j as f64 % 7.0);
            a * b * (-(i as f64 - j as f64).powi(2) / 8.0).exp()
        };
        // More than the factorization processes at once.
        let n = 267;
        let factor = factor(n, h);
        assert_eq!(factor.damping(), 0.01);
        let mean = (0..n).map(|i| h(i, i)).sum::<f64>() / n as f64;
        for (i, row) in product(&factor).iter().enumerate() {
            for (j, found) in row.iter().enumerate() {
                let expected = h(i, j) + if i == j { 0.01 * mean } else { 0.0 };
                assert!(
                    (found - expected).abs() < 1e-5 * mean,
                    "{i} {j}: {found} {expected}"
                );
            }
        }
        for (k, row) in factor.whole.chunks(n).enumerate() {
            for (j, &found) in row.iter().enumerate() {
                let (a, b) = (factor.order[k] as usize, factor.order[j] as usize);
                let expected = h(a, b) / (h(a, a) + 0.01 * mean);
                let expected = if j == k { 0.0 } else { expected };
                assert!(
                    (f64::from(found) - expected).abs() < 1e-6,
                    "{k} {j}: {found} {expected}"
                );
            }
        }
        let diagonal: Vec<f64> = factor
            .order
            .iter()
            .map(|&i| h(i as usize, i as usize))
            .collect();
        assert!(diagonal.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn any_hessian_has_one() {
        let ones = factor(40, |_, _| 1.0); // one sample
        let none = factor(40, |_, _| 0.0);
        let steep = factor(40, |i, j| {
            if i == j {
                1000f64.powf(i as f64 / 39.0)
            } else {
                0.0
            }
        });
        let wrong = factor(40, |i, j| if i == j { 1.0 } else { 50.0 }); // not even semidefinite
        for factor in [&ones, &none, &steep, &wrong] {
            assert!(factor.matrix.iter().all(|x| x.is_finite()));
            assert!(factor.pivots.iter().all(|x| x.is_finite() && *x > 0.0));
        }
        assert!(wrong.damping() > 10.0);
    }
}
