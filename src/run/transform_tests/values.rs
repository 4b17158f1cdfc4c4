//! What such files decode to, by plain matrices, and what they say of themselves.

use super::*;
use crate::run::{Options, dequantize_file, verify};
use crate::source::MemorySource;

/// What a row decodes to by the definition, in double precision: each block times the transpose
/// of `diag(signs) H / sqrt(block)`, then each column over its scale.
fn undone(given: &Given, row: &[f32]) -> Vec<f64> {
    let mut weights: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
    if let Some(rotation) = given.rotation {
        let block = rotation.block as usize;
        let entry = |column: usize, j: usize| {
            let hadamard = ((column % block) & j).count_ones() % 2;
            let minus = rotation.signs(column / 64) >> (column % 64) & 1;
            let sign = if (u64::from(hadamard) + minus).is_multiple_of(2) {
                1.0
            } else {
                -1.0
            };
            sign / (block as f64).sqrt()
        };
        let columns = (0..given.cols).map(|column| {
            let values = &row[column / block * block..][..block];
            let terms = values.iter().enumerate();
            terms.map(|(j, x)| f64::from(*x) * entry(column, j)).sum()
        });
        weights = columns.collect();
    }
    if let Some(scale) = given.scale() {
        let pairs = weights.iter_mut().zip(scale);
        pairs.for_each(|(weight, scale)| *weight /= f64::from(scale));
    }
    weights
}

#[test]
fn rows_decode_to_what_they_were() {
    let (_folder, _, model) = opened();
    let table = KernelTable::of(Isa::Scalar).unwrap();
    for (index, given) in given().iter().enumerate() {
        let found = decoded(&model, index, Float::F32);
        let mut expected = Vec::new();
        for (tile, [codes, scales, biases]) in given.tiles() {
            let planes = crate::kernel::Planes {
                codes: &codes,
                scales: &scales,
                biases: &biases,
            };
            for row in 0..tile.row_count {
                let encoding = tile.encoding.unwrap();
                let mut weights = vec![0; given.cols * 4];
                table.decode_row(crate::kernel::DecodeRow {
                    encoding,
                    cols: given.cols,
                    planes: planes.row(encoding, given.cols, row),
                    float: Float::F32,
                    weights: &mut weights,
                });
                expected.extend(undone(given, &floats(Float::F32, &weights)));
            }
        }
        let (mut error, mut signal) = (0.0, 0.0);
        for (i, original) in given.weights().into_iter().enumerate() {
            let difference = (f64::from(found[i]) - expected[i]).abs();
            assert!(difference < 2e-6, "{} at {i}: {}", given.name, found[i]);
            error += (found[i] - original).powi(2);
            signal += original.powi(2);
        }
        // They are what was quantized, too: bounds that no wrong order of columns meets.
        let most = [0.2, 0.02, 0.001][given.recipe.format() as usize];
        assert!(error < most * signal, "{}: {}", given.name, error / signal);
        for float in [Float::F16, Float::BF16] {
            let narrow = decoded(&model, index, float);
            for (i, exact) in found.iter().enumerate() {
                let expected = match float {
                    Float::F16 => half::f16::from_f32(*exact).to_f32(),
                    _ => half::bf16::from_f32(*exact).to_f32(),
                };
                assert_eq!(narrow[i], expected, "{} at {i}", given.name);
            }
        }
    }
}

#[test]
fn products_are_those_of_the_weights_as_they_decode() {
    let (_folder, _, model) = opened();
    for (index, given) in given().iter().enumerate() {
        let batch = 5;
        let x = |i: usize| ((i * 31 + 7) % 67) as f32 / 33.0 - 1.0;
        let x: Vec<f32> = (0..batch * given.cols).map(x).collect();
        let mut y = vec![f32::NAN; batch * given.rows];
        model.matvec(index, &x, &mut y).unwrap();
        let weights = decoded(&model, index, Float::F32);
        for (b, x) in x.chunks(given.cols).enumerate() {
            for (row, weights) in weights.chunks(given.cols).enumerate() {
                let terms = weights.iter().zip(x);
                let terms = terms.map(|(w, x)| f64::from(*w) * f64::from(*x));
                let exact: f64 = terms.sum();
                let found = f64::from(y[b * given.rows + row]);
                assert!(
                    (found - exact).abs() < 1e-4,
                    "{}: {found}, {exact}",
                    given.name
                );
            }
        }
        let mut there = x.clone();
        model.transform_activations(index, &mut there).unwrap();
        assert_eq!(there == x, given.rotation.is_none() && !given.scaled);
    }
}

#[test]
fn a_model_says_what_was_done_to_it() {
    let (_folder, _, model) = opened();
    for (index, given) in given().iter().enumerate() {
        let tensor = &model.tensors()[index];
        assert_eq!(tensor.info.name, given.name);
        assert_eq!(model.rotation(index), given.rotation);
        let scale = model.input_scale(index);
        assert_eq!(scale.map(|scale| floats(Float::F16, scale)), given.scale());
        assert_eq!(tensor.activation(), given.activation);
    }
    let both = &given()[0].activation;
    for (timestep, expected) in [
        (-1, None),
        (0, Some(both[0])),
        (299, Some(both[0])),
        (300, Some(both[1])),
        (998, Some(both[1])),
        (999, None),
    ] {
        assert_eq!(model.activation_params(0, timestep), expected, "{timestep}");
    }
    assert_eq!(model.activation_params(1, 0), None);
    let kept = model.find("kept").unwrap();
    assert_eq!(
        model.activation_params(kept, 0),
        Some(range(0, 1, 2.0, 3.0))
    );
    assert_eq!(decoded(&model, kept, Float::F32), [1.0, -2.0, 0.5]);
}

fn original(change: f32) -> MemorySource<'static> {
    let mut source = MemorySource::new();
    for given in given() {
        let mut weights = given.weights();
        weights[3] += change;
        let dims = [given.rows, given.cols];
        let values = bytes(&weights);
        source.add(given.name, Dtype::F32, &dims, values).unwrap();
    }
    let values = bytes(&[1.0, -2.0, 0.5]);
    source.add("kept", Dtype::F32, &[3], values).unwrap();
    source
}

#[test]
fn figures_are_of_the_weights_in_their_own_space() {
    let (_folder, _, model) = opened();
    let checked = verify(&model, Some(&original(0.0)), None, Options::default()).unwrap();
    assert_eq!(checked.failures().count(), 0, "{checked:?}");
    for (index, given) in given().iter().enumerate() {
        let found = decoded(&model, index, Float::F32);
        let pairs = || found.iter().zip(given.weights());
        let sum = |term: fn(f64, f64) -> f64| -> f64 {
            pairs()
                .map(|(y, w)| term(f64::from(*y), f64::from(w)))
                .sum()
        };
        let cosine = sum(|y, w| y * w) / (sum(|y, _| y * y) * sum(|_, w| w * w)).sqrt();
        let sqnr = 10.0 * (sum(|_, w| w * w) / sum(|y, w| (w - y).powi(2))).log10();
        let check = &checked.tensors[index];
        assert!(
            (check.cosine.unwrap() - cosine).abs() < 1e-6,
            "{}",
            given.name
        );
        assert!(
            (check.sqnr_db.unwrap() - sqnr).abs() < 1e-4,
            "{}",
            given.name
        );
        let tile = &model.tensors()[index].tiles[0].tile;
        if given.step == given.rows {
            assert_eq!(
                tile.cosine,
                check.cosine.map(|c| c as f32),
                "{}",
                given.name
            );
        }
    }
    let other = verify(&model, Some(&original(1.0)), None, Options::default()).unwrap();
    assert_eq!(other.failures().count(), given().len(), "{other:?}");
    let infinite = verify(&model, Some(&original(f32::NAN)), None, Options::default()).unwrap();
    assert_eq!(infinite.failures().count(), given().len());
}

#[test]
fn a_file_is_decoded_as_its_rows_are() {
    let (folder, _, model) = opened();
    let output = folder.path().join("b.safetensors");
    dequantize_file(&model, &output, None, Options::default()).unwrap();
    let source = crate::source::open(&output).unwrap();
    for (index, info) in source.tensors().iter().enumerate() {
        let tensor = model.find(&info.name).unwrap();
        let mut values = vec![0; info.bytes().unwrap()];
        source.read(index, 0, &mut values).unwrap();
        assert_eq!(
            floats(Float::F32, &values),
            decoded(&model, tensor, Float::F32)
        );
    }
}
