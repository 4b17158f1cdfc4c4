//! What calibration and GPTQ add up: against plain loops over f32, in the written order.

use super::*;
use crate::kernel::{BUNDLE, ChannelSums, Feedback, Projection};

/// Lengths that mix whole vectors, panels and what is left of them.
const LENGTHS: [usize; 10] = [1, 3, 4, 7, 15, 16, 17, 31, 64, 75];

/// Repeatable numbers around 0, no two of the same size.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mixed = (i as u32)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(seed.wrapping_mul(40_503));
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(number).collect()
}

fn tables() -> impl Iterator<Item = &'static KernelTable> {
    Isa::ALL.iter().filter_map(|isa| KernelTable::of(*isa))
}

/// Little-endian values of a float, at an odd address.
fn stored(float: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xAA];
    for &x in values {
        match float {
            Float::F32 => bytes.extend(x.to_le_bytes()),
            Float::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            Float::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
        }
    }
    bytes
}

#[test]
fn channels_are_added_up_row_by_row() {
    for (float, cols, rows) in [Float::F32, Float::F16, Float::BF16]
        .into_iter()
        .flat_map(|float| LENGTHS.map(|cols| (float, cols)))
        .flat_map(|(float, cols)| [1, 2, 9].map(|rows| (float, cols, rows)))
    {
        let mut values = numbers(cols as u32, rows * cols);
        values[0] = -0.0;
        let bytes = stored(float, &values);
        let x = &bytes[1..];
        let exact: Vec<f32> = (0..values.len()).map(|i| float.get(x, i)).collect();
        let mut expected = vec![(f32::INFINITY, f32::NEG_INFINITY, 0.0f32); cols];
        for row in exact.chunks(cols) {
            for ((low, high, squares), &x) in expected.iter_mut().zip(row) {
                (*low, *high, *squares) = (low.min(x), high.max(x), *squares + x * x);
            }
        }
        for table in tables() {
            let name = format!("{} {float} {rows} x {cols}", table.isa().name());
            let mut out = [vec![7.0; cols], vec![7.0; cols], vec![7.0; cols]];
            let [low, high, squares] = &mut out;
            table.channel_sums(ChannelSums {
                float,
                cols,
                x,
                low,
                high,
                squares,
            });
            for (i, (low, high, squares)) in expected.iter().enumerate() {
                assert_eq!((out[0][i], out[1][i]), (*low, *high), "{name}");
                assert_eq!(out[2][i].to_bits(), squares.to_bits(), "{name}");
                assert!(out[0][i] != 0.0 || out[0][i].is_sign_positive(), "{name}");
            }
            let mut widened = vec![0.0; exact.len()];
            table.widen(float, x, &mut widened);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&widened), bits(&exact), "{name}");
        }
    }
}

#[test]
fn values_that_are_not_finite_show_in_their_squares() {
    for table in tables() {
        for (bad, at) in [
            (f32::NAN, 3),
            (f32::INFINITY, 20),
            (f32::NEG_INFINITY, 36),
            (2.0e19, 0),
        ] {
            let mut values = numbers(5, 2 * 37);
            values[at] = bad;
            let bytes = stored(Float::F32, &values);
            let mut out = [vec![0.0; 37], vec![0.0; 37], vec![0.0; 37]];
            let [low, high, squares] = &mut out;
            let x = &bytes[1..];
            table.channel_sums(ChannelSums {
                float: Float::F32,
                cols: 37,
                x,
                low,
                high,
                squares,
            });
            let finite: Vec<bool> = out[2].iter().map(|x| x.is_finite()).collect();
            let expected: Vec<bool> = (0..37).map(|i| i != at % 37).collect();
            assert_eq!(finite, expected, "{} {bad}", table.isa().name());
        }
    }
}

/// A factor of which only what is below the diagonal may count.
fn factor(cols: usize) -> Vec<f32> {
    let mut factor = numbers(11, cols * cols);
    for k in 0..cols {
        factor[k * cols + k..(k + 1) * cols].fill(f32::NAN);
    }
    factor
}

#[test]
fn projections_are_added_up_in_order() {
    for cols in LENGTHS {
        let (factor, weights) = (factor(cols), numbers(3, cols * BUNDLE));
        let mut expected = weights.clone();
        for k in 0..cols {
            for j in 0..k {
                for row in 0..BUNDLE {
                    expected[k * BUNDLE + row] += factor[k * cols + j] * weights[j * BUNDLE + row];
                }
            }
        }
        for table in tables() {
            let mut out = vec![7.0; expected.len()];
            table.project(Projection {
                cols,
                factor: &factor,
                weights: &weights,
                out: &mut out,
            });
            assert_eq!(out, expected, "{} {cols}", table.isa().name());
        }
    }
}

#[test]
fn errors_are_fed_back_column_by_column() {
    for ((cols, width), scheme) in LENGTHS
        .into_iter()
        .flat_map(|cols| [Width::Two, Width::Four, Width::Eight].map(|width| (cols, width)))
        .flat_map(|case| [Scheme::Symmetric, Scheme::Affine].map(|scheme| (case, scheme)))
    {
        let layout = Layout {
            width,
            scheme,
            group_size: GroupSize::ROW,
            scale_dtype: ScaleDtype::F32,
        };
        let (factor, weights) = (factor(cols), numbers(3, cols * BUNDLE));
        // Two groups by turns; a scale of 0 has a reciprocal of 0.
        let groups: Vec<u32> = (0..cols as u32).map(|k| k % 2).collect();
        let span = f32::from(width.max_code());
        let mut scales: Vec<f32> = numbers(9, 2 * BUNDLE)
            .iter()
            .map(|x| (1.2 + x) / span)
            .collect();
        scales[5] = 0.0;
        let inverses: Vec<f32> = scales
            .iter()
            .map(|&s| if s == 0.0 { 0.0 } else { 1.0 / s })
            .collect();
        let biases: Vec<f32> = numbers(8, 2 * BUNDLE)
            .iter()
            .map(|x| 0.2 * x - 0.7)
            .collect();

        let zeros = || vec![0.0f32; cols * BUNDLE];
        let (mut codes, mut errors, mut left) = (zeros(), zeros(), zeros());
        for k in 0..cols {
            for row in 0..BUNDLE {
                let mut target = weights[k * BUNDLE + row];
                for j in 0..k {
                    target += factor[k * cols + j] * errors[j * BUNDLE + row];
                }
                let grid = groups[k] as usize * BUNDLE + row;
                let zero_point = width.zero_point();
                let exact = match scheme {
                    Scheme::Symmetric => target * inverses[grid] + zero_point,
                    Scheme::Affine => (target - biases[grid]) * inverses[grid],
                };
                let code = exact.clamp(0.0, span).round_ties_even();
                let decoded = match scheme {
                    Scheme::Symmetric => (code - zero_point) * scales[grid],
                    Scheme::Affine => code * scales[grid] + biases[grid],
                };
                let at = k * BUNDLE + row;
                (codes[at], errors[at], left[at]) = (code, weights[at] - decoded, target - decoded);
            }
        }
        for table in tables() {
            let (mut found_codes, mut found_errors, mut found_left) = (zeros(), zeros(), zeros());
            table.feedback(Feedback {
                layout,
                cols,
                factor: &factor,
                groups: &groups,
                weights: &weights,
                inverses: &inverses,
                scales: &scales,
                biases: &biases,
                codes: &mut found_codes,
                errors: &mut found_errors,
                left: &mut found_left,
            });
            let name = format!("{} {cols} {width:?} {scheme}", table.isa().name());
            assert_eq!(found_codes, codes, "{name}");
            assert_eq!(found_errors, errors, "{name}");
            assert_eq!(found_left, left, "{name}");
        }
    }
}

#[test]
fn columns_are_rounded_again_given_all_others() {
    for cols in LENGTHS {
        let layout = Layout {
            width: Width::Two,
            scheme: Scheme::Affine,
            group_size: GroupSize::ROW,
            scale_dtype: ScaleDtype::F32,
        };
        let mut factor = numbers(11, cols * cols);
        for k in 0..cols {
            factor[k * cols + k] = f32::NAN; // does not count
        }
        let (weights, first) = (numbers(3, cols * BUNDLE), numbers(4, cols * BUNDLE));
        let groups = vec![0; cols];
        let scales: Vec<f32> = numbers(9, BUNDLE).iter().map(|x| (1.2 + x) / 3.0).collect();
        let inverses: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let biases: Vec<f32> = numbers(8, BUNDLE).iter().map(|x| 0.2 * x - 0.7).collect();

        let mut errors = first.clone();
        let mut codes = vec![0.0f32; cols * BUNDLE];
        let mut left = codes.clone();
        for k in 0..cols {
            // Columns go in fours as long as there are four; those of its own four come last.
            let panel = match k < cols / 4 * 4 {
                true => k / 4 * 4..k / 4 * 4 + 4,
                false => k..k + 1,
            };
            let before = (0..panel.start).chain(panel.end..cols);
            let order: Vec<usize> = before.chain(panel.filter(|j| *j != k)).collect();
            for row in 0..BUNDLE {
                let at = k * BUNDLE + row;
                let mut target = weights[at];
                for &j in &order {
                    target += factor[k * cols + j] * errors[j * BUNDLE + row];
                }
                let exact = (target - biases[row]) * inverses[row];
                codes[at] = exact.clamp(0.0, 3.0).round_ties_even();
                let decoded = codes[at] * scales[row] + biases[row];
                (errors[at], left[at]) = (weights[at] - decoded, target - decoded);
            }
        }
        for table in tables() {
            let zeros = || vec![0.0f32; cols * BUNDLE];
            let (mut found_codes, mut found_errors, mut found_left) =
                (zeros(), first.clone(), zeros());
            table.refine(Feedback {
                layout,
                cols,
                factor: &factor,
                groups: &groups,
                weights: &weights,
                inverses: &inverses,
                scales: &scales,
                biases: &biases,
                codes: &mut found_codes,
                errors: &mut found_errors,
                left: &mut found_left,
            });
            let name = format!("{} {cols}", table.isa().name());
            assert_eq!(found_codes, codes, "{name}");
            assert_eq!(found_errors, errors, "{name}");
            assert_eq!(found_left, left, "{name}");
        }
    }
}
