//! Whether a tensor's input channels are scaled or rotated before it is quantized: what is best for
//! a sample of its rows, by the error that this makes in the layer's output.

use super::Inputs;
use super::prepared::Prepared;
use super::scales::Largest;
use super::spatial::{Spatial, candidates};
use crate::calibrate::Weights;
use crate::error::{Error, Result};
use crate::format::{Float, Recipe};
use crate::kernel::{ChannelSums, Planes};
use crate::quantize::transform::{apply_to_weights, decode_row};
use crate::quantize::{Matrix, PlanesMut, quantize_rows};

/// Rows that all transforms are tried on: a bundle of GPTQ.
const SAMPLE: usize = 32;

/// Rows that the best one is then compared with none on.
const CONFIRMED: usize = 128;

/// A transform is kept when it leaves less than this of the error: a sample tells no smaller gains.
const WORTH: f64 = 0.99;

/// Squared errors of the output that a transform leaves, timesteps weighted.
struct Score {
    /// Error of the quantized weights.
    weights: f64,
    /// Error that rounding activations to 8 bits would add.
    noise: f64,
}

impl Score {
    fn total(&self) -> f64 {
        self.weights + self.noise
    }
}

impl Inputs<'_> {
    /// The transform that is best for a tensor; none where none is worth it.
    pub(crate) fn choose_spatial(
        &self,
        tensor: usize,
        recipe: &Recipe,
        prepared: &Prepared,
    ) -> Result<Spatial> {
        let none = Spatial::default();
        let Some(weights) = &prepared.weights else {
            return Ok(none);
        };
        let Some(calibrator) = self.calibrator.filter(|c| c.tries_spatial()) else {
            return Ok(none);
        };
        let info = &self.context.source.tensors()[tensor];
        let cols = info.shape.cols();
        let Some(x) = calibrator.calibration.largest(&info.name) else {
            return Ok(none);
        };
        let largest = Largest {
            x: x.iter().map(|&x| f64::from(x)).collect(),
            w: self.largest_weights(tensor)?,
        };
        let candidates = candidates(prepared.method(recipe.method), cols, &largest);
        let score = |some: &[Spatial], rows: usize| {
            self.score_candidates(tensor, recipe, (prepared, weights), some, rows)
        };
        let scores = score(&candidates, SAMPLE)?;
        let mut best = 0;
        for i in 1..scores.len() {
            if scores[i].total() < scores[best].total() {
                best = i;
            }
        }
        if best == 0 {
            return Ok(none);
        }
        // A few rows are enough to choose by, and more of them to be sure.
        let chosen = &candidates[best];
        let scores = score(&[none.clone(), chosen.clone()], CONFIRMED)?;
        let better = scores[1].total() < WORTH * scores[0].total();
        match better && scores[1].weights <= scores[0].weights {
            true => Ok(chosen.clone()),
            false => Ok(none),
        }
    }

    /// What some transforms come to for `most` rows of a tensor.
    fn score_candidates(
        &self,
        tensor: usize,
        recipe: &Recipe,
        (prepared, weights): (&Prepared, &Weights),
        candidates: &[Spatial],
        most: usize,
    ) -> Result<Vec<Score>> {
        let info = &self.context.source.tensors()[tensor];
        let cols = info.shape.cols();
        let rows = sample(info.shape.rows(), most);
        let mut sampled = vec![0.0f32; rows.len() * cols];
        for (&row, out) in rows.iter().zip(sampled.chunks_exact_mut(cols)) {
            self.context.with_rows(tensor, row, 1, |matrix| {
                self.context.table.widen(matrix.float, matrix.weights, out);
            })?;
        }
        let mut errors = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            if self.context.pool.stopped() {
                return Err(Error::Cancelled);
            }
            // What cannot be quantized so is no candidate.
            let errors_of = self.sample_errors(candidate, recipe, prepared, cols, &sampled);
            errors.push(errors_of.unwrap_or_else(|| vec![f32::MAX.sqrt(); sampled.len()]));
        }
        let forms = self.forms_of_matrices(tensor, &errors)?;
        let score = |(forms, candidate): (&Vec<f64>, &Spatial)| Score {
            weights: forms.iter().zip(&weights.of_row).map(|(x, w)| x * w).sum(),
            noise: self.activation_noise(&info.name, weights, candidate, cols, &sampled),
        };
        Ok(forms.iter().zip(candidates).map(score).collect())
    }

    /// The largest magnitude of each column.
    fn largest_weights(&self, tensor: usize) -> Result<Vec<f64>> {
        const ROWS: usize = 256;
        let shape = &self.context.source.tensors()[tensor].shape;
        let cols = shape.cols();
        let mut largest = vec![0.0f64; cols];
        let (mut low, mut high, mut squares) = (vec![0.0; cols], vec![0.0; cols], vec![0.0; cols]);
        for row in (0..shape.rows()).step_by(ROWS) {
            let count = ROWS.min(shape.rows() - row);
            self.context.with_rows(tensor, row, count, |matrix| {
                self.context.table.channel_sums(ChannelSums {
                    float: matrix.float,
                    cols,
                    x: matrix.weights,
                    low: &mut low,
                    high: &mut high,
                    squares: &mut squares,
                });
            })?;
            for (largest, (low, high)) in largest.iter_mut().zip(low.iter().zip(&high)) {
                *largest = largest.max(f64::from(high.max(-low)));
            }
        }
        Ok(largest)
    }

    /// `w - q` of the sample, both as they were before the transform; `None` where it cannot be
    /// quantized.
    pub(crate) fn sample_errors(
        &self,
        spatial: &Spatial,
        recipe: &Recipe,
        prepared: &Prepared,
        cols: usize,
        sampled: &[f32],
    ) -> Option<Vec<f32>> {
        let rows = sampled.len() / cols;
        let transform = spatial.transform();
        let guide = prepared.transformed(spatial);
        let mut weights: Vec<u8> = sampled.iter().flat_map(|w| w.to_le_bytes()).collect();
        apply_to_weights(self.context.table, transform, cols, &mut weights);
        let encoding = recipe.encoding;
        let encoding = encoding.with_f32_scales().unwrap_or(encoding);
        let sizes = encoding.plane_bytes(cols);
        let [mut codes, mut scales, mut biases] = sizes.map(|bytes| vec![0; rows * bytes]);
        let matrix = Matrix {
            rows,
            cols,
            float: Float::F32,
            weights: &weights,
        };
        let planes = PlanesMut {
            codes: &mut codes,
            scales: &mut scales,
            biases: &mut biases,
        };
        let quantized = quantize_rows(
            self.context.table,
            recipe,
            encoding,
            matrix,
            guide.guide(),
            false,
            planes,
        );
        quantized.ok()?;
        let planes = Planes {
            codes: &codes,
            scales: &scales,
            biases: &biases,
        };
        let mut errors = sampled.to_vec();
        let (mut decoded, mut values) = (vec![0; cols * 4], vec![0.0; cols]);
        for (row, errors) in errors.chunks_exact_mut(cols).enumerate() {
            let (table, planes) = (self.context.table, planes.row(encoding, cols, row));
            if !decode_row(table, encoding, transform, cols, planes, &mut decoded) {
                return None;
            }
            self.context.table.widen(Float::F32, &decoded, &mut values);
            errors
                .iter_mut()
                .zip(&values)
                .for_each(|(error, q)| *error -= q);
        }
        Some(errors)
    }

    /// What rounding activations to 8 bits would add, as far as ranges tell: each is off by up to
    /// half a step of a grid that spans the largest channel.
    fn activation_noise(
        &self,
        layer: &str,
        weights: &Weights,
        spatial: &Spatial,
        cols: usize,
        sampled: &[f32],
    ) -> f64 {
        let Some(calibrator) = self.calibrator else {
            return 0.0;
        };
        let ones = || vec![1.0; cols];
        let scales = spatial.scales().unwrap_or_else(ones);
        let steps = calibrator.calibration.largest_by_group(layer, &scales);
        let square = |row: &[f32]| -> f64 {
            let scaled = row
                .iter()
                .zip(&scales)
                .map(|(w, s)| f64::from(*w) * f64::from(*s));
            scaled.map(|x| x * x).sum()
        };
        let squares: f64 = sampled.chunks_exact(cols).map(square).sum();
        let mut noise = 0.0;
        for ((largest, mean_square, count), weight) in steps.into_iter().zip(&weights.of_row) {
            // A rotated vector is about Gaussian: 1 in 16,000 values is over four deviations.
            let largest = match spatial.rotation {
                Some(_) => 4.0 * mean_square.sqrt(),
                None => largest,
            };
            let step = largest / 127.0;
            noise += weight * count as f64 * step * step / 12.0;
        }
        noise * squares
    }
}

/// Rows spread evenly over a matrix.
fn sample(rows: usize, most: usize) -> Vec<usize> {
    let count = most.min(rows);
    (0..count)
        .map(|i| (2 * i + 1) * rows / (2 * count))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread() {
        assert_eq!(sample(3, 32), [0, 1, 2]);
        assert_eq!(sample(64, 32)[..3], [1, 3, 5]);
        assert_eq!(sample(6400, 32)[31], 6300);
        assert!(sample(0, 32).is_empty());
    }
}
