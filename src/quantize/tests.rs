use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, StudentT};

use super::*;
use crate::format::{self, Choice, Format, GroupSize, ScalePolicy, Scheme, Width};
use crate::kernel::DecodeRow;

struct Quantized {
    encoding: Encoding,
    cols: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    outcome: Outcome,
}

impl Quantized {
    fn planes(&self) -> Planes<'_> {
        Planes {
            codes: &self.codes,
            scales: &self.scales,
            biases: &self.biases,
        }
    }

    fn decode(&self) -> Vec<f32> {
        let rows = self
            .codes
            .len()
            .checked_div(self.encoding.plane_bytes(self.cols)[0])
            .unwrap_or(0);
        let mut values = Vec::new();
        for row in 0..rows {
            let mut bytes = vec![0; self.cols * 4];
            table().decode_row(DecodeRow {
                encoding: self.encoding,
                cols: self.cols,
                planes: self.planes().row(self.encoding, self.cols, row),
                float: Float::F32,
                weights: &mut bytes,
            });
            values.extend((0..self.cols).map(|i| Float::F32.get(&bytes, i)));
        }
        values
    }
}

fn table() -> &'static KernelTable {
    KernelTable::choose().unwrap()
}

fn recipe(format: Format, scheme: Scheme, method: Method, group_size: u64) -> Recipe {
    Recipe {
        encoding: format.encoding(Choice {
            scheme,
            group_size: GroupSize::new(group_size).unwrap(),
            scale_dtype: ScaleDtype::F16,
        }),
        method,
        gain: Gain::Lsq,
        scales: ScalePolicy::Auto,
    }
}

fn quantize(
    weights: &[f32],
    cols: usize,
    recipe: &Recipe,
    scale_dtype: ScaleDtype,
    importance: Option<&[f32]>,
) -> Result<Quantized, Fault> {
    let bytes: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
    let rows = weights.len().checked_div(cols).unwrap_or(0);
    let encoding = recipe
        .encoding
        .chosen(|choice| choice.scale_dtype = scale_dtype);
    let [codes, scales, biases] = encoding.plane_bytes(cols);
    let mut quantized = Quantized {
        encoding,
        cols,
        codes: vec![0; rows * codes],
        scales: vec![0; rows * scales],
        biases: vec![0; rows * biases],
        outcome: Outcome::default(),
    };
    let matrix = Matrix {
        rows,
        cols,
        float: Float::F32,
        weights: &bytes,
    };
    let planes = PlanesMut {
        codes: &mut quantized.codes,
        scales: &mut quantized.scales,
        biases: &mut quantized.biases,
    };
    quantized.outcome = quantize_rows(
        table(),
        recipe,
        encoding,
        matrix,
        importance.map_or(Guide::None, Guide::Importance),
        true,
        planes,
    )?;
    Ok(quantized)
}

fn gaussian(count: usize) -> Vec<f32> {
    StandardNormal
        .sample_iter(ChaCha8Rng::seed_from_u64(1))
        .take(count)
        .collect()
}

fn student_t5(count: usize) -> Vec<f32> {
    let distribution = StudentT::new(5.0f32).unwrap();
    distribution
        .sample_iter(ChaCha8Rng::seed_from_u64(2))
        .take(count)
        .collect()
}

/// Number of weights for the figures below.
const MANY: usize = 1 << 22;

fn relative_mse(weights: &[f32], recipe: &Recipe) -> f64 {
    let error = quantize(weights, 4096, recipe, ScaleDtype::F16, None)
        .unwrap()
        .outcome
        .error;
    error.error / error.signal
}

/// Checks that results are at most `slack` worse than the prototype's, given as relative MSE by
/// group size.
fn reproduces(
    weights: &[f32],
    format: Format,
    scheme: Scheme,
    method: Method,
    slack: f64,
    figures: &[(u64, f64)],
) {
    for &(group_size, expected) in figures {
        let found = relative_mse(weights, &recipe(format, scheme, method, group_size));
        assert!(
            found <= expected * (1.0 + slack),
            "{format} {scheme} {method} g{group_size}: {found:.5}, expected {expected}"
        );
    }
}

#[test]
fn int2_reproduces_the_figures_on_gaussian_weights() {
    let weights = gaussian(MANY);
    let lsq = [(256, 0.118), (128, 0.116), (64, 0.113), (32, 0.107)];
    reproduces(
        &weights,
        Format::Int2,
        Scheme::Symmetric,
        Method::Lsq,
        0.02,
        &lsq,
    );
    let minmax = [(128, 0.251)];
    reproduces(
        &weights,
        Format::Int2,
        Scheme::Affine,
        Method::MinMax,
        0.02,
        &minmax,
    );
}

#[test]
fn int4_reproduces_the_figures_on_gaussian_weights() {
    let weights = gaussian(MANY);
    let lsq = [(256, 0.0103), (128, 0.0094), (64, 0.0082), (32, 0.0067)];
    reproduces(
        &weights,
        Format::Int4,
        Scheme::Symmetric,
        Method::Lsq,
        0.02,
        &lsq,
    );
    let minmax = [(256, 0.0119), (128, 0.0100), (64, 0.0080), (32, 0.0061)];
    reproduces(
        &weights,
        Format::Int4,
        Scheme::Affine,
        Method::MinMax,
        0.02,
        &minmax,
    );
}

#[test]
fn affine_lsq_reproduces_three_rounds_of_alternation() {
    let gaussian = gaussian(MANY);
    let heavy = student_t5(MANY);
    for (weights, format, slack, expected) in [
        (&gaussian, Format::Int2, 0.02, 0.1129),
        (&gaussian, Format::Int4, 0.02, 0.0086),
        (&heavy, Format::Int2, 0.10, 0.174),
    ] {
        let figures = [(128, expected)];
        reproduces(
            weights,
            format,
            Scheme::Affine,
            Method::Lsq,
            slack,
            &figures,
        );
    }
}

#[test]
fn int8_reproduces_the_figures_on_gaussian_weights() {
    let minmax = [(128, 10f64.powf(-4.46)), (32, 10f64.powf(-4.67))];
    reproduces(
        &gaussian(MANY),
        Format::Int8,
        Scheme::Affine,
        Method::MinMax,
        0.02,
        &minmax,
    );
}

#[test]
fn int2_reproduces_the_figures_on_heavy_tails() {
    let weights = student_t5(MANY);
    reproduces(
        &weights,
        Format::Int2,
        Scheme::Affine,
        Method::MinMax,
        0.10,
        &[(128, 0.44)],
    );
    reproduces(
        &weights,
        Format::Int2,
        Scheme::Symmetric,
        Method::Lsq,
        0.10,
        &[(128, 0.186)],
    );
}

#[test]
fn lsq_is_never_worse_than_minmax_on_average() {
    for weights in [gaussian(1 << 18), student_t5(1 << 18)] {
        for &format in Format::ALL {
            for &scheme in Scheme::ALL {
                for group_size in [16, 64, 128, 1024, 0] {
                    let [lsq, minmax] = [Method::Lsq, Method::MinMax].map(|method| {
                        relative_mse(&weights, &recipe(format, scheme, method, group_size))
                    });
                    assert!(
                        lsq <= minmax,
                        "{format} {scheme} g{group_size}: {lsq} > {minmax}"
                    );
                }
            }
        }
    }
}

#[test]
fn unit_gain_restores_the_amplitude_and_keeps_codes_and_cosine() {
    let weights = gaussian(64 * 512);
    for &scheme in Scheme::ALL {
        let mut recipe = recipe(Format::Int2, scheme, Method::Lsq, 128);
        let plain = quantize(&weights, 512, &recipe, ScaleDtype::F16, None).unwrap();
        recipe.gain = Gain::Unit;
        let unit = quantize(&weights, 512, &recipe, ScaleDtype::F16, None).unwrap();
        assert_eq!(unit.codes, plain.codes);
        let (a, b) = (unit.outcome.error.cosine(), plain.outcome.error.cosine());
        assert!((a - b).abs() < 1e-4, "{a} {b}");
        for (w, y) in weights.chunks(512).zip(unit.decode().chunks(512)) {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
            };
            let gain = dot(w, y) / dot(w, w);
            assert!((gain - 1.0).abs() < 1e-3, "{gain}");
        }
        // relMSE becomes 1 / cosine^2 - 1.
        let error = unit.outcome.error;
        let expected = 1.0 / (error.cosine() * error.cosine()) - 1.0;
        assert!((error.error / error.signal / expected - 1.0).abs() < 0.01);
    }
}

#[test]
fn importance_lowers_the_error_of_the_channels_it_weighs() {
    let weights = student_t5(64 * 512);
    let importance: Vec<f32> = (0..512)
        .map(|i| if i % 16 == 0 { 100.0 } else { 0.1 })
        .collect();
    for &scheme in Scheme::ALL {
        let recipe = recipe(Format::Int2, scheme, Method::Lsq, 128);
        let error_of = |importance| {
            let quantized = quantize(&weights, 512, &recipe, ScaleDtype::F16, importance).unwrap();
            let pairs = weights.iter().zip(quantized.decode());
            pairs
                .step_by(16)
                .map(|(w, y)| f64::from((w - y) * (w - y)))
                .sum::<f64>()
        };
        let (with, without) = (error_of(Some(importance.as_slice())), error_of(None));
        assert!(with < 0.7 * without, "{scheme}: {with} {without}");
    }
}

#[test]
fn importance_of_one_changes_nothing_and_of_zero_breaks_nothing() {
    let weights = gaussian(4 * 200);
    for &format in Format::ALL {
        for &scheme in Scheme::ALL {
            let mut recipe = recipe(format, scheme, Method::Lsq, 64);
            recipe.gain = Gain::Unit;
            let plain = quantize(&weights, 200, &recipe, ScaleDtype::F16, None).unwrap();
            let ones =
                quantize(&weights, 200, &recipe, ScaleDtype::F16, Some(&[1.0; 200])).unwrap();
            assert_eq!((&plain.codes, &plain.scales), (&ones.codes, &ones.scales));
            let zeros =
                quantize(&weights, 200, &recipe, ScaleDtype::F16, Some(&[0.0; 200])).unwrap();
            assert!(zeros.outcome.error.cosine() > 0.85);
        }
    }
}

#[test]
fn extreme_values_get_the_extreme_code_and_ties_the_positive_one() {
    let mut weights = vec![0.25f32; 16];
    (weights[3], weights[9]) = (2.0, -2.0);
    let recipe = recipe(Format::Int4, Scheme::Symmetric, Method::MinMax, 16);
    let quantized = quantize(&weights, 16, &recipe, ScaleDtype::F16, None).unwrap();
    assert_eq!(ScaleDtype::F16.get(&quantized.scales, 0), -0.25);
    let mut codes = [0; 16];
    format::unpack(Width::Four, &quantized.codes, &mut codes);
    assert_eq!((codes[3], codes[9], codes[0]), (0, 15, 7));
    let decoded = quantized.decode();
    assert_eq!((decoded[3], decoded[9], decoded[0]), (2.0, -1.75, 0.25));
}

#[test]
fn codes_round_half_to_even() {
    // Affine int4 over 0 … 15: scale 1, bias 0, codes are the rounded weights.
    let weights = [
        0.0f32, 0.5, 1.5, 2.5, 3.5, 4.5, 14.5, 15.0, 1.0, 2.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0,
    ];
    let recipe = recipe(Format::Int4, Scheme::Affine, Method::MinMax, 16);
    let quantized = quantize(&weights, 16, &recipe, ScaleDtype::F16, None).unwrap();
    let mut codes = [0; 16];
    format::unpack(Width::Four, &quantized.codes, &mut codes);
    assert_eq!(codes, [0, 0, 2, 2, 4, 4, 14, 15, 1, 2, 7, 8, 9, 10, 11, 12]);
}

#[test]
fn weights_of_any_magnitude_are_quantized_as_well_as_ordinary_ones() {
    let ordinary = gaussian(8 * 256);
    for &format in Format::ALL {
        for &scheme in Scheme::ALL {
            for &method in Method::ALL {
                let mut recipe = recipe(format, scheme, method, 64);
                recipe.gain = Gain::Unit;
                // A power of two changes no figure.
                let expected = quantize(&ordinary, 256, &recipe, ScaleDtype::F32, None).unwrap();
                for exponent in [-120, -60, 60, 120] {
                    let scaled: Vec<f32> =
                        ordinary.iter().map(|w| w * 2f32.powi(exponent)).collect();
                    let found = quantize(&scaled, 256, &recipe, ScaleDtype::F32, None).unwrap();
                    let (found, expected) = (found.outcome.error, expected.outcome.error);
                    let case = format!("{format} {scheme} {method} 2^{exponent}");
                    assert!((found.cosine() - expected.cosine()).abs() < 1e-6, "{case}");
                    let (found, expected) = (found.sqnr_db().unwrap(), expected.sqnr_db().unwrap());
                    assert!(
                        (found - expected).abs() < 0.01,
                        "{case}: {found} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_scale_that_does_not_fit_is_a_fault_that_names_the_row() {
    let mut weights = vec![0.1f32; 3 * 32];
    weights[2 * 32 + 5] = 1e6;
    let recipe = recipe(Format::Int4, Scheme::Symmetric, Method::MinMax, 32);
    let fault = |dtype| quantize(&weights, 32, &recipe, dtype, None).err();
    assert_eq!(
        fault(ScaleDtype::F16),
        Some(Fault::ScaleOverflow { row: 2 })
    );
    assert_eq!(fault(ScaleDtype::F32), None);
    weights[2 * 32 + 5] = f32::INFINITY;
    let fault = quantize(&weights, 32, &recipe, ScaleDtype::F32, None).err();
    let value = f32::INFINITY;
    assert_eq!(
        fault,
        Some(Fault::NonFinite {
            row: 2,
            col: 5,
            value
        })
    );
}

#[test]
fn nothing_decodes_to_infinity_near_the_end_of_f32() {
    for extreme in [f32::MAX, f32::MAX / 2.0, f32::MAX / 300.0] {
        let weights: Vec<f32> = (0..64)
            .map(|i| if i % 3 == 0 { -extreme } else { extreme })
            .collect();
        for &format in Format::ALL {
            for &scheme in Scheme::ALL {
                for &method in Method::ALL {
                    for &gain in Gain::ALL {
                        let recipe = Recipe {
                            gain,
                            ..recipe(format, scheme, method, 32)
                        };
                        match quantize(&weights, 64, &recipe, ScaleDtype::F32, None) {
                            Ok(quantized) => {
                                assert!(quantized.decode().iter().all(|y| y.is_finite()))
                            }
                            Err(fault) => assert_eq!(fault, Fault::ScaleOverflow { row: 0 }),
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    /// For any shape, format, scheme and group size, decoding equals the formula of the format on
    /// the unpacked codes, and the error of minmax is at most about half a step.
    #[test]
    fn decoding_follows_the_format(
        rows in 0usize..4,
        cols in 0usize..300,
        groups in 0u64..10,
        case in 0usize..24,
        seed in any::<u64>(),
    ) {
        let recipe = Recipe {
            gain: Gain::ALL[case / 12 % 2],
            ..recipe(Format::ALL[case % Format::ALL.len()], Scheme::ALL[case / 3 % 2], Method::ALL[case / 6 % 2], groups * 16)
        };
        let normal: rand_distr::Normal<f32> = rand_distr::Normal::new(0.02, 0.5).unwrap();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let weights: Vec<f32> = normal.sample_iter(rng).take(rows * cols).collect();
        let quantized = quantize(&weights, cols, &recipe, ScaleDtype::F16, None).unwrap();
        let layout = quantized.encoding.layout().unwrap();
        let decoded = quantized.decode();
        for row in 0..rows {
            let planes = quantized.planes().row(layout.into(), cols, row);
            let mut codes = vec![0; cols];
            format::unpack(layout.width, planes.codes, &mut codes);
            for col in 0..cols {
                let group = col / layout.group_size.span(cols);
                let scale = ScaleDtype::F16.get(planes.scales, group);
                let code = f32::from(codes[col]);
                let expected = match layout.scheme {
                    Scheme::Symmetric => scale * (code - layout.width.zero_point()),
                    Scheme::Affine => scale * code + ScaleDtype::F16.get(planes.biases, group),
                };
                let weight = weights[row * cols + col];
                prop_assert_eq!(decoded[row * cols + col].to_bits(), expected.to_bits());
                if recipe.method == Method::MinMax && recipe.gain == Gain::Lsq {
                    // 4 and 8 bits lack the last level on one side; f16 rounds scale and bias.
                    let steps = if layout.scheme == Scheme::Symmetric && layout.width != Width::Two { 1.0 } else { 0.5 };
                    let bound = (steps + 0.2) * scale.abs() + 3e-3;
                    prop_assert!((weight - expected).abs() <= bound, "{} {} {}", weight, expected, scale);
                }
            }
        }
        // The sums are those of a plain f64 computation.
        let pairs = || weights.iter().zip(&decoded).map(|(&w, &y)| (f64::from(w), f64::from(y)));
        let signal: f64 = pairs().map(|(w, _)| w * w).sum();
        let error: f64 = pairs().map(|(w, y)| (w - y) * (w - y)).sum();
        let sums = quantized.outcome.error;
        prop_assert!((sums.signal - signal).abs() <= 1e-5 * signal);
        prop_assert!((sums.error - error).abs() <= 1e-4 * error + 1e-12);
    }

    /// Rows may be split anywhere: the bytes are the same as in one call.
    #[test]
    fn rows_are_independent(cut in 0usize..6, cols in 1usize..80, case in 0usize..6) {
        let recipe = Recipe {
            gain: Gain::Unit,
            ..recipe(Format::ALL[case % Format::ALL.len()], Scheme::ALL[case / 3], Method::Lsq, 32)
        };
        let weights = gaussian(5 * cols);
        let cut = cut.min(5) * cols;
        let whole = quantize(&weights, cols, &recipe, ScaleDtype::F16, None).unwrap();
        let parts = [&weights[..cut], &weights[cut..]]
            .map(|part| quantize(part, cols, &recipe, ScaleDtype::F16, None).unwrap());
        prop_assert_eq!([&parts[0].codes[..], &parts[1].codes[..]].concat(), whole.codes);
        prop_assert_eq!([&parts[0].scales[..], &parts[1].scales[..]].concat(), whole.scales);
        prop_assert_eq!([&parts[0].biases[..], &parts[1].biases[..]].concat(), whole.biases);
    }
}
