//! GPTQ over whole rows: grids are fixed first (static groups), columns are rounded in the order of
//! their importance and compensate for the errors of those before, and each row keeps the grid with
//! the smallest error in the layer's output.

use super::factor::Factor;
use super::{Matrix, Outcome, PlanesMut, Rows, largest_scale, row_mut};
use crate::format::{self, Gain, Layout, Scheme};
use crate::kernel::{
    BUNDLE, ErrorRow, Feedback, KernelTable, Planes, Projection, RescaleRow, RowFault,
};

/// Grids tried for each row: multiples of the scales that rounding alone would choose. The range of
/// a group may be too wide if many columns compensate for a clipped weight, and the least-squares
/// scale is too small if they compensate for rounding, but not for clipping.
const fn multiples(scheme: Scheme) -> &'static [f32] {
    match scheme {
        Scheme::Affine => &[1.0, 0.9, 0.8, 0.7],
        Scheme::Symmetric => &[1.0, 1.15, 1.3, 1.45, 1.6],
    }
}

/// Number of times that all columns are rounded again. More give no measurable gain.
const PASSES: usize = 2;

/// Rows with a largest weight outside this range are so far from 1 that products would leave f32:
/// they are rounded one weight at a time.
const NEAR: std::ops::Range<f32> = 1.0e-12..1.0e12;

/// Buffers for one bundle of rows; one value for each row and column, in quantizing order.
pub(super) struct Bundle<'a> {
    table: &'a KernelTable,
    factor: &'a Factor,
    layout: Layout,
    groups: Vec<u32>,
    weights: Vec<f32>,
    projected: Vec<f32>,
    codes: Vec<f32>,
    errors: Vec<f32>,
    left: Vec<f32>,
    grids: Grids,
    /// Codes of each row with its best grid.
    best_codes: Vec<f32>,
    best_errors: Vec<f32>,
    best_grids: Grids,
    /// One row, in memory order.
    row: Vec<f32>,
    row_codes: Vec<u8>,
}

/// Scale and bias of each group of each row of a bundle.
#[derive(Clone, Default)]
struct Grids {
    scales: Vec<f32>,
    inverses: Vec<f32>,
    biases: Vec<f32>,
}

/// The results of a row with its best grid so far.
#[derive(Clone, Copy)]
struct Best {
    /// `e H e^T`.
    error: f64,
    /// `w H e^T`.
    product: f64,
}

impl<'a> Bundle<'a> {
    pub(super) fn new(table: &'a KernelTable, factor: &'a Factor, layout: Layout) -> Self {
        let cols = factor.cols;
        let span = layout.group_size.span(cols) as u32;
        let values = || vec![0.0; cols * BUNDLE];
        Self {
            table,
            factor,
            layout,
            groups: factor.order.iter().map(|column| column / span).collect(),
            weights: values(),
            projected: values(),
            codes: values(),
            errors: values(),
            left: values(),
            grids: Grids::default(),
            best_codes: values(),
            best_errors: values(),
            best_grids: Grids::default(),
            row: vec![0.0; cols],
            row_codes: vec![0; cols],
        }
    }

    /// Returns the bytes of the buffers for rows of `cols` weights, with the smallest groups.
    pub(super) fn bytes(cols: usize) -> usize {
        let values = 7 * BUNDLE + 6 * BUNDLE / 16;
        cols.saturating_mul(values * 4 + 16)
    }

    /// Quantizes up to [`BUNDLE`] rows into planes for these rows.
    pub(super) fn quantize(
        &mut self,
        rows: &mut Rows<'_>,
        matrix: Matrix<'_>,
        planes: PlanesMut<'_>,
    ) -> Result<Outcome, (usize, RowFault)> {
        let (layout, cols, count) = (self.layout, self.factor.cols, matrix.rows);
        let PlanesMut {
            codes,
            scales,
            biases,
        } = planes;
        let plane =
            |row: usize, plane: &'_ [u8], bytes: usize| plane[row * bytes..][..bytes].to_vec();
        // Plain rounding gives the grids, and is kept if nothing better is found.
        let mut total = Outcome::default();
        let mut near = [true; BUNDLE];
        for (row, near) in near.iter_mut().enumerate().take(count) {
            let planes = PlanesMut {
                codes: row_mut(codes, row, layout.code_bytes(cols)),
                scales: row_mut(scales, row, layout.scale_bytes(cols)),
                biases: row_mut(biases, row, layout.bias_bytes(cols)),
            };
            let outcome = rows
                .grid(matrix.row(row), planes)
                .map_err(|fault| (row, fault))?;
            total.largest_weight = total.largest_weight.max(outcome);
            *near = NEAR.contains(&outcome);
        }
        let first_scales: Vec<Vec<u8>> = (0..count)
            .map(|row| plane(row, scales, layout.scale_bytes(cols)))
            .collect();
        let first_biases: Vec<Vec<u8>> = (0..count)
            .map(|row| plane(row, biases, layout.bias_bytes(cols)))
            .collect();
        self.load(matrix, &near);
        let signal = self.project();
        let mut best = [Best {
            error: f64::INFINITY,
            product: 0.0,
        }; BUNDLE];
        for &multiple in multiples(layout.scheme) {
            self.load_grids(&first_scales, &first_biases, multiple);
            self.feed_back();
            let found = self.results();
            if self.best_grids.scales.is_empty() {
                self.best_grids.clone_from(&self.grids);
            }
            for row in (0..count).filter(|&row| near[row]) {
                if found[row].error < best[row].error {
                    best[row] = found[row];
                    self.keep(row);
                }
            }
        }
        self.refine(count, &near, &mut best);
        for row in (0..count).filter(|&row| best[row].error.is_finite()) {
            self.store(
                row,
                PlanesMut {
                    codes: row_mut(codes, row, layout.code_bytes(cols)),
                    scales: row_mut(scales, row, layout.scale_bytes(cols)),
                    biases: row_mut(biases, row, layout.bias_bytes(cols)),
                },
            );
        }
        self.best_grids = Grids::default();
        for row in 0..count {
            let codes = row_mut(codes, row, layout.code_bytes(cols));
            let scales = row_mut(scales, row, layout.scale_bytes(cols));
            let biases = row_mut(biases, row, layout.bias_bytes(cols));
            // `w H q^T`; unknown for rows that were only rounded.
            let product = signal[row] - best[row].product;
            if rows.recipe.gain == Gain::Unit && near[row] && product > 0.0 {
                let gain = (signal[row] / product) as f32;
                let scaled = RescaleRow {
                    encoding: layout.into(),
                    gain,
                    codes: &mut *codes,
                    scales: &mut *scales,
                    biases: &mut *biases,
                };
                self.table
                    .rescale_row(scaled)
                    .map_err(|fault| (row, fault))?;
            }
            total.largest_scale = total
                .largest_scale
                .max(largest_scale(Some(layout.scale_dtype), scales));
            if rows.measure {
                total.error.add(self.table.error_row(ErrorRow {
                    encoding: layout.into(),
                    cols,
                    planes: Planes {
                        codes,
                        scales,
                        biases,
                    },
                    float: matrix.float,
                    weights: matrix.row(row),
                    moments: None,
                }));
            }
        }
        Ok(total)
    }

    /// Loads the weights, in quantizing order; missing rows, and rows far from 1, are zeros.
    fn load(&mut self, matrix: Matrix<'_>, near: &[bool; BUNDLE]) {
        self.weights.fill(0.0);
        for row in (0..matrix.rows).filter(|&row| near[row]) {
            self.table
                .widen(matrix.float, matrix.row(row), &mut self.row);
            for (k, &column) in self.factor.order.iter().enumerate() {
                self.weights[k * BUNDLE + row] = self.row[column as usize];
            }
        }
    }

    /// Loads the grids of all rows, multiplied around their middles and rounded to storage.
    fn load_grids(&mut self, scales: &[Vec<u8>], biases: &[Vec<u8>], multiple: f32) {
        let groups = self.layout.group_size.count(self.factor.cols);
        let dtype = self.layout.scale_dtype;
        let half = f32::from(self.layout.width.max_code()) / 2.0;
        let affine = self.layout.scheme == Scheme::Affine;
        let Grids {
            scales: to_scales,
            inverses,
            biases: to_biases,
        } = &mut self.grids;
        for plane in [&mut *to_scales, &mut *inverses, &mut *to_biases] {
            plane.clear();
            plane.resize(groups * BUNDLE, 0.0);
        }
        let mut rounded = [0; 4];
        for (row, scales) in scales.iter().enumerate() {
            for group in 0..groups {
                let at = group * BUNDLE + row;
                let first = dtype.get(scales, group);
                let scale = dtype.put(&mut rounded, 0, first * multiple);
                to_scales[at] = scale;
                inverses[at] = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                if affine {
                    let middle = dtype.get(&biases[row], group) + first * half;
                    let bias = if multiple == 1.0 {
                        dtype.get(&biases[row], group)
                    } else {
                        dtype.put(&mut rounded, 0, middle - scale * half)
                    };
                    to_biases[at] = bias;
                }
            }
        }
    }

    /// Multiplies the weights with the factor; returns `w H w^T` of each row.
    fn project(&mut self) -> [f64; BUNDLE] {
        self.table.project(Projection {
            cols: self.factor.cols,
            factor: &self.factor.matrix,
            weights: &self.weights,
            out: &mut self.projected,
        });
        let mut signal = [0.0; BUNDLE];
        for (pivot, values) in self.factor.pivots.iter().zip(self.projected.chunks(BUNDLE)) {
            for (sum, &x) in signal.iter_mut().zip(values) {
                *sum += pivot * f64::from(x) * f64::from(x);
            }
        }
        signal
    }

    fn feed_back(&mut self) {
        self.table.feedback(Feedback {
            layout: self.layout,
            cols: self.factor.cols,
            factor: &self.factor.matrix,
            groups: &self.groups,
            weights: &self.weights,
            inverses: &self.grids.inverses,
            scales: &self.grids.scales,
            biases: &self.grids.biases,
            codes: &mut self.codes,
            errors: &mut self.errors,
            left: &mut self.left,
        });
    }

    /// Records the results of a row.
    fn keep(&mut self, row: usize) {
        for (best, found) in [
            (&mut self.best_codes, &self.codes),
            (&mut self.best_errors, &self.errors),
            (&mut self.best_grids.scales, &self.grids.scales),
            (&mut self.best_grids.inverses, &self.grids.inverses),
            (&mut self.best_grids.biases, &self.grids.biases),
        ] {
            copy_row(row, found, best);
        }
    }

    /// Rounds all columns again with the best grids, now that the errors of later columns are known
    /// as well. (Coordinate descent: no step increases the error.)
    fn refine(&mut self, count: usize, near: &[bool; BUNDLE], best: &mut [Best; BUNDLE]) {
        self.codes.clone_from(&self.best_codes);
        self.errors.clone_from(&self.best_errors);
        for _ in 0..PASSES {
            self.table.refine(Feedback {
                layout: self.layout,
                cols: self.factor.cols,
                factor: &self.factor.whole,
                groups: &self.groups,
                weights: &self.weights,
                inverses: &self.best_grids.inverses,
                scales: &self.best_grids.scales,
                biases: &self.best_grids.biases,
                codes: &mut self.codes,
                errors: &mut self.errors,
                left: &mut self.left,
            });
        }
        // The remaining errors, multiplied with the factor as the weights were.
        self.table.project(Projection {
            cols: self.factor.cols,
            factor: &self.factor.matrix,
            weights: &self.errors,
            out: &mut self.left,
        });
        let found = self.results();
        for row in (0..count).filter(|&row| near[row]) {
            // Rounding can make it slightly larger.
            if found[row].error < best[row].error {
                best[row] = found[row];
                copy_row(row, &self.codes, &mut self.best_codes);
            }
        }
    }

    /// Computes `e H e^T` and `w H e^T` of each row.
    fn results(&self) -> [Best; BUNDLE] {
        let mut found = [Best {
            error: 0.0,
            product: 0.0,
        }; BUNDLE];
        let values = self.left.chunks(BUNDLE).zip(self.projected.chunks(BUNDLE));
        for (pivot, (left, projected)) in self.factor.pivots.iter().zip(values) {
            for (row, found) in found.iter_mut().enumerate() {
                let weighted = pivot * f64::from(left[row]);
                found.error += weighted * f64::from(left[row]);
                found.product += weighted * f64::from(projected[row]);
            }
        }
        found
    }

    /// Writes the best codes and grids of a row.
    fn store(&mut self, row: usize, planes: PlanesMut<'_>) {
        for (k, &column) in self.factor.order.iter().enumerate() {
            self.row_codes[column as usize] = self.best_codes[k * BUNDLE + row] as u8;
        }
        format::pack(self.layout.width, &self.row_codes, planes.codes);
        let dtype = self.layout.scale_dtype;
        for group in 0..self.layout.group_size.count(self.factor.cols) {
            let at = group * BUNDLE + row;
            dtype.put(planes.scales, group, self.best_grids.scales[at]);
            if self.layout.scheme == Scheme::Affine {
                dtype.put(planes.biases, group, self.best_grids.biases[at]);
            }
        }
    }
}

/// Copies the values of one row of a bundle.
fn copy_row(row: usize, from: &[f32], to: &mut [f32]) {
    let from = from[row..].iter().step_by(BUNDLE);
    for (to, from) in to[row..].iter_mut().step_by(BUNDLE).zip(from) {
        *to = *from;
    }
}
