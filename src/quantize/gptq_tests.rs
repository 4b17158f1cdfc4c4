//! Compares GPTQ with a plain f64 implementation using the inverse of the Hessian, as in the paper,
//! followed by plain coordinate descent.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::calibrate::{Activations, Calibration, CalibrationOptions, TimeWeighting};
use crate::format::{Choice, Format, GroupSize, ScaleDtype, ScalePolicy, unpack};
use crate::kernel::{DecodeRow, Isa};

struct Case {
    rows: usize,
    cols: usize,
    recipe: Recipe,
    weights: Vec<f32>,
    inputs: Vec<f32>,
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl Case {
    /// Makes weights, and correlated inputs whose channels differ in size.
    fn new(rows: usize, cols: usize, format: Format, scheme: Scheme, group: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64((rows * cols) as u64);
        let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
        let weights = (0..rows * cols).map(|_| normal() * 0.05).collect();
        let mut inputs = Vec::new();
        for _ in 0..3 * cols {
            let common = normal();
            let channel = |j: usize| 1.0 + (j % 11) as f32 / 3.0;
            inputs.extend((0..cols).map(|j| channel(j) * (0.3 * normal() + common)));
        }
        Self {
            rows,
            cols,
            recipe: Recipe {
                encoding: format.encoding(Choice {
                    scheme,
                    group_size: GroupSize::new(group).unwrap(),
                    scale_dtype: ScaleDtype::F32,
                }),
                method: Method::Gptq,
                gain: Gain::Lsq,
                scales: ScalePolicy::F32,
            },
            weights,
            inputs,
        }
    }

    fn factor(&self) -> Factor {
        let options = CalibrationOptions {
            bins: 10,
            ..CalibrationOptions::default()
        };
        let calibration = Calibration::new(options).unwrap();
        let values = bytes(&self.inputs);
        let x = Activations {
            rows: self.inputs.len() / self.cols,
            cols: self.cols,
            float: Float::F32,
            values: &values,
        };
        calibration.observe("layer.weight", 500, x).unwrap();
        let weights = calibration
            .weights("layer", &TimeWeighting::Rows, 10, None)
            .unwrap();
        Factor::new(&calibration, "layer", &weights)
            .unwrap()
            .unwrap()
    }

    fn quantize(&self, table: &KernelTable, guide: Guide<'_>) -> (Vec<u8>, Vec<f32>, Outcome) {
        let encoding = self.recipe.planned();
        let layout = encoding.layout().unwrap();
        let sizes = encoding.plane_bytes(self.cols);
        let [mut codes, mut scales, mut biases] = sizes.map(|row| vec![0; self.rows * row]);
        let values = bytes(&self.weights);
        let matrix = Matrix {
            rows: self.rows,
            cols: self.cols,
            float: Float::F32,
            weights: &values,
        };
        let planes = PlanesMut {
            codes: &mut codes,
            scales: &mut scales,
            biases: &mut biases,
        };
        let outcome =
            quantize_rows(table, &self.recipe, encoding, matrix, guide, true, planes).unwrap();
        let mut unpacked = vec![0; self.rows * self.cols];
        let mut decoded = vec![0.0f32; self.rows * self.cols];
        let planes = Planes {
            codes: &codes,
            scales: &scales,
            biases: &biases,
        };
        for row in 0..self.rows {
            let planes = planes.row(encoding, self.cols, row);
            let range = row * self.cols..(row + 1) * self.cols;
            unpack(layout.width, planes.codes, &mut unpacked[range.clone()]);
            let mut out = vec![0; self.cols * 4];
            table.decode_row(DecodeRow {
                encoding,
                cols: self.cols,
                planes,
                float: Float::F32,
                weights: &mut out,
            });
            table.widen(Float::F32, &out, &mut decoded[range]);
        }
        (unpacked, decoded, outcome)
    }

    /// Computes `x x^T`, the mean over the inputs.
    fn hessian(&self) -> Vec<Vec<f64>> {
        let n = self.cols;
        let mut h = vec![vec![0.0; n]; n];
        for x in self.inputs.chunks(n) {
            for i in 0..n {
                for j in 0..n {
                    h[i][j] += f64::from(x[i]) * f64::from(x[j]) / (self.inputs.len() / n) as f64;
                }
            }
        }
        h
    }

    /// Computes the squared error of the output.
    fn output_error(&self, decoded: &[f32]) -> f64 {
        let n = self.cols;
        let mut sum = 0.0;
        for x in self.inputs.chunks(n) {
            for row in 0..self.rows {
                let range = row * n..(row + 1) * n;
                let (w, q) = (&self.weights[range.clone()], &decoded[range]);
                let error = (0..n).map(|j| f64::from(x[j]) * f64::from(w[j] - q[j]));
                sum += error.sum::<f64>().powi(2);
            }
        }
        sum
    }
}

/// Inverts a matrix by Gauss-Jordan elimination.
fn inverse(mut a: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut b: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect())
        .collect();
    for i in 0..n {
        let pivot = a[i][i];
        for j in 0..n {
            a[i][j] /= pivot;
            b[i][j] /= pivot;
        }
        for row in (0..n).filter(|row| *row != i) {
            let factor = a[row][i];
            for j in 0..n {
                a[row][j] -= factor * a[i][j];
                b[row][j] -= factor * b[i][j];
            }
        }
    }
    b
}

/// Computes the upper `u` with `u^T u = a`.
fn upper(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut u = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|k| u[k][i] * u[k][j]).sum();
            u[i][j] = match i == j {
                true => (a[i][i] - sum).sqrt(),
                false => (a[i][j] - sum) / u[i][i],
            };
        }
    }
    u
}

/// Computes the codes of one row by GPTQ with given grids.
fn plain(
    case: &Case,
    h: &[Vec<f64>],
    u: &[Vec<f64>],
    order: &[usize],
    row: usize,
    grids: &[(f64, f64)],
) -> Vec<u8> {
    let n = case.cols;
    let span = case.recipe.encoding.span(n);
    let most = f64::from(case.recipe.format().width().unwrap().max_code());
    let mut w: Vec<f64> = order
        .iter()
        .map(|&j| f64::from(case.weights[row * n + j]))
        .collect();
    let mut codes = vec![0; n];
    for k in 0..n {
        let (scale, bias) = grids[order[k] / span];
        let code = ((w[k] - bias) / scale).round_ties_even().clamp(0.0, most);
        codes[order[k]] = code as u8;
        let error = (w[k] - (scale * code + bias)) / u[k][k];
        for j in k..n {
            w[j] -= error * u[k][j];
        }
    }
    // Each column is rounded twice more, given the errors of all others.
    let decode = |j: usize, code: u8| {
        let (scale, bias) = grids[j / span];
        scale * f64::from(code) + bias
    };
    let mut errors: Vec<f64> = (0..n)
        .map(|j| f64::from(case.weights[row * n + j]) - decode(j, codes[j]))
        .collect();
    for &k in order.iter().chain(order) {
        let others: f64 = (0..n)
            .filter(|j| *j != k)
            .map(|j| h[k][j] * errors[j])
            .sum();
        let w = f64::from(case.weights[row * n + k]);
        let (scale, bias) = grids[k / span];
        let code = ((w + others / h[k][k] - bias) / scale).round_ties_even();
        codes[k] = code.clamp(0.0, most) as u8;
        errors[k] = w - decode(k, codes[k]);
    }
    codes
}

#[test]
fn codes_are_those_of_the_paper() {
    for (rows, cols, format, scheme, group) in [
        (40, 96, Format::Int4, Scheme::Affine, 32),
        (5, 75, Format::Int2, Scheme::Affine, 16),
        (33, 64, Format::Int2, Scheme::Symmetric, 0),
        (64, 300, Format::Int2, Scheme::Symmetric, 128),
        (3, 50, Format::Int8, Scheme::Symmetric, 32),
    ] {
        let case = Case::new(rows, cols, format, scheme, group);
        let table = KernelTable::of(Isa::Scalar).unwrap();
        let factor = case.factor();
        let (codes, decoded, _) = case.quantize(table, Guide::Factor(&factor));
        // The grids are derived from the result: any two codes of a group and their values. A group
        // with a single code does not determine its grid.
        let mut h = case.hessian();
        let mean = (0..cols).map(|i| h[i][i]).sum::<f64>() / cols as f64;
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|&a, &b| h[b][b].total_cmp(&h[a][a]));
        for (i, row) in h.iter_mut().enumerate() {
            row[i] += 0.01 * mean;
        }
        let permuted: Vec<Vec<f64>> = order
            .iter()
            .map(|&i| order.iter().map(|&j| h[i][j]).collect())
            .collect();
        let u = upper(&inverse(permuted));
        let span = case.recipe.encoding.span(cols);
        let mut differ = 0;
        for row in 0..rows {
            let mut grids = Vec::new();
            for start in (0..cols).step_by(span) {
                let group = row * cols + start..row * cols + cols.min(start + span);
                let pairs = codes[group.clone()].iter().zip(&decoded[group]);
                let low = pairs.clone().min_by_key(|pair| pair.0).unwrap();
                let high = pairs.max_by_key(|pair| pair.0).unwrap();
                assert!(high.0 > low.0, "a group of one code");
                let scale = f64::from(high.1 - low.1) / f64::from(high.0 - low.0);
                grids.push((scale, f64::from(*low.1) - scale * f64::from(*low.0)));
            }
            let expected = plain(&case, &h, &u, &order, row, &grids);
            let found = &codes[row * cols..(row + 1) * cols];
            // A tie broken differently changes the codes that follow it.
            differ += usize::from(found != expected);
        }
        assert!(differ * 7 <= rows, "{differ} of {rows} rows differ");
    }
}

#[test]
fn errors_of_the_output_are_far_below_those_of_rounding() {
    for (format, scheme, part) in [
        (Format::Int2, Scheme::Affine, 0.25),
        (Format::Int2, Scheme::Symmetric, 0.5),
        (Format::Int4, Scheme::Affine, 0.3),
    ] {
        let mut case = Case::new(24, 128, format, scheme, 64);
        case.recipe.gain = Gain::Unit;
        let table = KernelTable::of(Isa::Scalar).unwrap();
        let factor = case.factor();
        let guided = case.output_error(&case.quantize(table, Guide::Factor(&factor)).1);
        // Without a factor the method is least squares.
        let rounded = case.output_error(&case.quantize(table, Guide::None).1);
        assert!(
            guided < part * rounded,
            "{format} {scheme}: {guided} of {rounded}"
        );
    }
}

#[test]
fn the_same_on_every_isa_and_however_rows_are_cut() {
    let case = Case::new(70, 83, Format::Int2, Scheme::Affine, 32);
    let factor = case.factor();
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let expected = case.quantize(scalar, Guide::Factor(&factor));
    for table in Isa::ALL.iter().filter_map(|isa| KernelTable::of(*isa)) {
        assert_eq!(
            case.quantize(table, Guide::Factor(&factor)),
            expected,
            "{}",
            table.isa().name()
        );
    }
    let mut rows = Vec::new();
    for start in [0, 1, 34] {
        let end = [1, 34, 70].into_iter().find(|end| *end > start).unwrap();
        let mut part = Case::new(70, 83, Format::Int2, Scheme::Affine, 32);
        part.weights = case.weights[start * 83..end * 83].to_vec();
        part.rows = end - start;
        rows.extend(part.quantize(scalar, Guide::Factor(&factor)).0);
    }
    assert_eq!(rows, expected.0);
}

#[test]
fn weights_of_any_size_are_quantized() {
    let mut case = Case::new(4, 64, Format::Int4, Scheme::Affine, 32);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (i, w) in case.weights.iter_mut().enumerate() {
        *w = match i / 64 {
            0 => 0.0,
            1 => rng.random_range(-1.0e30..1.0e30),
            2 => rng.random_range(-1.0e-30..1.0e-30),
            _ => 1.5, // constant
        };
    }
    let table = KernelTable::choose().unwrap();
    let factor = case.factor();
    let (_, decoded, outcome) = case.quantize(table, Guide::Factor(&factor));
    assert!(decoded.iter().all(|x| x.is_finite()));
    assert!(decoded[..64].iter().all(|x| *x == 0.0));
    assert!(decoded[192..].iter().all(|x| (x - 1.5).abs() < 1e-6));
    assert!(outcome.error.cosine() > 0.99);
}
