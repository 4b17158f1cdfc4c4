//! Smoothing folded into the weights before a layer: the model computes the same as before, checked
//! with forward passes in f64.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrowquant::calibrate::{Activations, Calibration, CalibrationOptions};
use arrowquant::error::{Error, Result};
use arrowquant::format::Float;
use arrowquant::run::{self, Fold, FoldReport, Options};
use arrowquant::source;
use arrowquant::tensor::Dtype;
use tempfile::TempDir;

use crate::common::*;

/// Rows of a matrix.
type Rows = Vec<Vec<f64>>;

/// Receives the inputs of each layer.
type Observe<'a> = &'a mut dyn FnMut(&str, &Rows);

/// A model's values by name, with their shapes.
#[derive(Clone, PartialEq, Debug)]
struct Weights(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Weights {
    fn read(path: &Path) -> Self {
        let source = source::open(path).unwrap();
        let tensors = source.tensors().iter().enumerate();
        let values = tensors
            .filter(|(_, info)| info.dtype.float().is_some())
            .map(|(i, info)| {
                let bytes = values_of(source.as_ref(), i);
                let values = (0..info.shape.elements())
                    .map(|i| f64::from(info.dtype.value(&bytes, i)))
                    .collect();
                (info.name.clone(), (info.shape.dims().to_vec(), values))
            });
        Self(values.collect())
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.0[name].1
    }

    fn linear(&self, layer: &str, x: &Rows, observe: Observe<'_>) -> Rows {
        observe(layer, x);
        let weight = self.get(&format!("{layer}.weight"));
        let bias = self.0.get(&format!("{layer}.bias")).map(|bias| &bias.1);
        let row = |x: &Vec<f64>| {
            let sums = weight.chunks(x.len()).enumerate().map(|(i, w)| {
                let sum: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                sum + bias.map_or(0.0, |bias| bias[i])
            });
            sums.collect()
        };
        x.iter().map(row).collect()
    }
}

fn zip(a: &Rows, b: &Rows, f: impl Fn(f64, f64) -> f64) -> Rows {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect();
    a.iter().zip(b).map(row).collect()
}

/// Computes attention with one head.
fn attend(q: &Rows, k: &Rows, v: &Rows) -> Rows {
    let row = |q: &Vec<f64>| {
        let score = |k: &Vec<f64>| {
            let product: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            (product / (q.len() as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = k.iter().map(score).collect();
        let all: f64 = scores.iter().sum();
        let mix = |j: usize| scores.iter().zip(v).map(|(s, v)| s * v[j]).sum::<f64>() / all;
        (0..v[0].len()).map(mix).collect()
    };
    q.iter().map(row).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The module names in one block of a LLaMA-like model.
struct Llama {
    norms: [&'static str; 2],
    /// q, k, v, o, gate, up, down.
    layers: [&'static str; 7],
}

const LLAMA: Llama = Llama {
    norms: [
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    ],
    layers: [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
    ],
};

const LLADA: Llama = Llama {
    norms: [
        "model.transformer.blocks.0.attn_norm",
        "model.transformer.blocks.0.ff_norm",
    ],
    layers: [
        "model.transformer.blocks.0.q_proj",
        "model.transformer.blocks.0.k_proj",
        "model.transformer.blocks.0.v_proj",
        "model.transformer.blocks.0.attn_out",
        "model.transformer.blocks.0.ff_proj",
        "model.transformer.blocks.0.up_proj",
        "model.transformer.blocks.0.ff_out",
    ],
};

impl Llama {
    fn tensors(&self, hidden: usize, inner: usize) -> Vec<RawTensor> {
        let norm = |seed| -> Vec<f32> {
            // A few channels are large.
            let values = noise(seed, hidden).into_iter().enumerate();
            values
                .map(|(j, x)| if j % 7 == 3 { 9.0 } else { 1.0 } * (1.2 + x))
                .collect()
        };
        let [a, b] = self.norms.map(|name| format!("{name}.weight"));
        let mut tensors = vec![
            f32_tensor("embed.weight", &[3, hidden], &noise(9, 3 * hidden)),
            f32_tensor(&a, &[hidden], &norm(10)),
            f32_tensor(&b, &[hidden], &norm(11)),
        ];
        for (i, layer) in self.layers.iter().enumerate() {
            let (rows, cols) = match i {
                4 | 5 => (inner, hidden),
                6 => (hidden, inner),
                _ => (hidden, hidden),
            };
            let weight: Vec<f32> = noise(20 + i as u64, rows * cols)
                .into_iter()
                .map(|x| x / (cols as f32).sqrt())
                .collect();
            tensors.push(f32_tensor(
                &format!("{layer}.weight"),
                &[rows, cols],
                &weight,
            ));
            if matches!(i, 0 | 2 | 5) {
                let bias = noise(40 + i as u64, rows);
                tensors.push(f32_tensor(&format!("{layer}.bias"), &[rows], &bias));
            }
        }
        let steps = (0..4i64).flat_map(i64::to_le_bytes).collect();
        tensors.push(("steps".to_owned(), "I64", vec![4], steps));
        tensors
    }

    fn forward(&self, weights: &Weights, x: &Rows, observe: Observe<'_>) -> Rows {
        let norm = |name: &str, x: &Rows| -> Rows {
            let scale = weights.get(&format!("{name}.weight"));
            let row = |x: &Vec<f64>| {
                let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                let by = 1.0 / (square + 1e-6).sqrt();
                x.iter().zip(scale).map(|(x, s)| x * by * s).collect()
            };
            x.iter().map(row).collect()
        };
        let [q, k, v, o, gate, up, down] = self.layers;
        let n = norm(self.norms[0], x);
        let mut linear = |layer: &str, x: &Rows| weights.linear(layer, x, observe);
        let (q, k, v) = (linear(q, &n), linear(k, &n), linear(v, &n));
        let x = zip(x, &linear(o, &attend(&q, &k, &v)), |x, y| x + y);
        let n = norm(self.norms[1], &x);
        let inner = zip(&linear(gate, &n), &linear(up, &n), |g, u| silu(g) * u);
        zip(&x, &linear(down, &inner), |x, y| x + y)
    }
}

const HIDDEN: usize = 12;

/// Makes one block of a DiT with five condition channels.
fn dit() -> Vec<RawTensor> {
    let mut tensors = Vec::new();
    let layers = [
        ("attn.qkv", 3 * HIDDEN, HIDDEN),
        ("attn.proj", HIDDEN, HIDDEN),
        ("mlp.fc1", 20, HIDDEN),
        ("mlp.fc2", HIDDEN, 20),
        ("adaLN_modulation.1", 6 * HIDDEN, 5),
    ];
    for (i, (layer, rows, cols)) in layers.into_iter().enumerate() {
        let (weight, bias) = (noise(i as u64, rows * cols), noise(50 + i as u64, rows));
        // Scales of some channels are large, and so are some columns.
        let bias: Vec<f32> = (bias.into_iter().enumerate())
            .map(|(j, x)| if i == 4 && j % 5 == 2 { 8.0 + x } else { x })
            .collect();
        let [w, b] = ["weight", "bias"].map(|end| format!("blocks.7.{layer}.{end}"));
        tensors.push(f32_tensor(&w, &[rows, cols], &weight));
        tensors.push(f32_tensor(&b, &[rows], &bias));
    }
    tensors
}

fn dit_forward(weights: &Weights, x: &Rows, condition: &Rows, observe: Observe<'_>) -> Rows {
    let mut linear = |layer: &str, x: &Rows| {
        let layer = format!("blocks.7.{layer}");
        weights.linear(&layer, x, observe)
    };
    let six = linear("adaLN_modulation.1", condition);
    let part = |i: usize| -> Rows {
        let row = |row: &Vec<f64>| row[i * HIDDEN..][..HIDDEN].to_vec();
        six.iter().map(row).collect()
    };
    let modulate = |x: &Rows, shift: Rows, scale: Rows| -> Rows {
        let norm = |x: &Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let by = 1.0 / (variance + 1e-6).sqrt();
            x.iter().map(|x| (x - mean) * by).collect()
        };
        let x: Rows = x.iter().map(norm).collect();
        zip(&zip(&x, &scale, |x, s| x * (1.0 + s)), &shift, |x, s| x + s)
    };
    let qkv = linear("attn.qkv", &modulate(x, part(0), part(1)));
    let [q, k, v] = [0, 1, 2].map(|i| -> Rows {
        let row = |row: &Vec<f64>| row[i * HIDDEN..][..HIDDEN].to_vec();
        qkv.iter().map(row).collect()
    });
    let out = zip(
        &linear("attn.proj", &attend(&q, &k, &v)),
        &part(2),
        |x, g| x * g,
    );
    let x = zip(x, &out, |x, y| x + y);
    let inner = linear("mlp.fc1", &modulate(&x, part(3), part(4)));
    let gelu = |x: &Vec<f64>| {
        let tanh = |x: f64| (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh();
        x.iter().map(|&x| 0.5 * x * (1.0 + tanh(x))).collect()
    };
    let inner: Rows = inner.iter().map(gelu).collect();
    let out = zip(&linear("mlp.fc2", &inner), &part(5), |x, g| x * g);
    zip(&x, &out, |x, y| x + y)
}

fn rows(seed: u64, count: usize, width: usize) -> Rows {
    let values = noise(seed, count * width);
    let row = |row: &[f32]| row.iter().map(|&x| 3.0 * f64::from(x)).collect();
    values.chunks(width).map(row).collect()
}

fn empty_calibration() -> Calibration {
    let options = CalibrationOptions {
        timesteps: 10,
        bins: 5,
        hessian: false,
        ..CalibrationOptions::default()
    };
    Calibration::new(options).unwrap()
}

fn observe(calibration: &Calibration, layer: &str, x: &Rows) {
    let values: Vec<u8> = (x.iter().flatten())
        .flat_map(|x| (*x as f32).to_le_bytes())
        .collect();
    let activations = Activations {
        rows: x.len(),
        cols: x[0].len(),
        float: Float::F32,
        values: &values,
    };
    calibration.observe(layer, 3, activations).unwrap();
}

/// Returns the largest difference, relative to the largest value.
fn difference(a: &Rows, b: &Rows) -> f64 {
    let largest = |rows: &Rows| rows.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
    let differences = zip(a, b, |a, b| a - b);
    largest(&differences) / largest(b)
}

/// A model in a folder, and the inputs of its layers.
struct Case {
    folder: TempDir,
    calibration: Calibration,
}

impl Case {
    fn new(tensors: &[RawTensor]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = safetensors(tensors);
        // With metadata, as written by PyTorch.
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&file[8..8 + length]).unwrap();
        let with_metadata = header.replacen('{', r#"{"__metadata__":{"format":"pt","a":"b"},"#, 1);
        std::fs::write(
            folder.path().join("model.safetensors"),
            with_header(&with_metadata, &file[8 + length..]),
        )
        .unwrap();
        Self {
            folder,
            calibration: empty_calibration(),
        }
    }

    /// Makes a LLaMA-like model and runs it.
    fn llama(model: &Llama, hidden: usize, inner: usize) -> Self {
        Self::llama_of(model, &model.tensors(hidden, inner), hidden)
    }

    fn llama_of(model: &Llama, tensors: &[RawTensor], hidden: usize) -> Self {
        let case = Self::new(tensors);
        let mut see = |layer: &str, x: &Rows| observe(&case.calibration, layer, x);
        model.forward(&case.weights("model"), &rows(1, 6, hidden), &mut see);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    fn weights(&self, name: &str) -> Weights {
        Weights::read(&self.path(name))
    }

    fn fold(&self, settings: Fold) -> Result<FoldReport> {
        self.fold_on(settings, 1, "out")
    }

    fn fold_on(&self, settings: Fold, threads: usize, output: &str) -> Result<FoldReport> {
        let options = Options {
            threads,
            ..Options::default()
        };
        run::fold_file(
            &self.path("model"),
            &self.calibration,
            &self.path(output),
            settings,
            options,
        )
    }

    /// Returns outputs before and after folding.
    fn outputs(&self, model: &Llama, hidden: usize) -> [Rows; 2] {
        ["model", "out"].map(|name| {
            let x = rows(2, 5, hidden);
            model.forward(&self.weights(name), &x, &mut |_, _| ())
        })
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn llama_like_models_compute_what_they_did() {
    // The larger one is changed in several pieces.
    for (model, hidden, inner) in [(LLAMA, 12, 20), (LLADA, 12, 20), (LLAMA, 60, 6000)] {
        let case = Case::llama(&model, hidden, inner);
        for alpha in [0.5, 0.9] {
            let report = case.fold(Fold { alpha, float: None }).unwrap();
            assert!(report.not_folded.is_empty(), "{report:?}");
            let before: Vec<&str> = report.folded.iter().map(|set| &set.before[..]).collect();
            let [_, _, v, _, _, up, _] = model.layers;
            assert_eq!(before, [v, up, model.norms[0], model.norms[1]]);
            for set in &report.folded {
                assert!(set.largest_scale > 1.5 * set.smallest_scale, "{set:?}");
            }
            let [expected, found] = case.outputs(&model, hidden);
            let difference = difference(&found, &expected);
            assert!(difference < 1e-5, "{alpha}: {difference}");
        }
    }
}

#[test]
fn scales_are_those_of_the_formula_and_shared_by_all_readers() {
    let case = Case::llama(&LLAMA, HIDDEN, 20);
    let alpha = 0.7;
    case.fold(Fold { alpha, float: None }).unwrap();
    let (before, after) = (case.weights("model"), case.weights("out"));
    let [q, k, v, ..] = LLAMA.layers.map(|layer| format!("{layer}.weight"));
    let norm = format!("{}.weight", LLAMA.norms[0]);
    let mut x = [0.0f64; HIDDEN];
    let mut see = |layer: &str, rows: &Rows| {
        if format!("{layer}.weight") == q {
            for row in rows {
                x.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
            }
        }
    };
    LLAMA.forward(&before, &rows(1, 6, HIDDEN), &mut see);
    // Rows of v have been divided before, by the scale of its values, which o reads.
    let of_values: Vec<f64> = (0..HIDDEN)
        .map(|i| {
            let bias = "model.layers.0.self_attn.v_proj.bias";
            before.get(bias)[i] / after.get(bias)[i]
        })
        .collect();
    let column = |name: &str, j: usize| -> f64 {
        let values = before.get(name).chunks(HIDDEN).enumerate();
        let value = |(i, row): (usize, &[f64])| match name == v {
            true => (row[j] / of_values[i]).abs(),
            false => row[j].abs(),
        };
        values.map(value).fold(0.0, f64::max)
    };
    let formula: Vec<f64> = (0..HIDDEN)
        .map(|j| {
            let w = [&q, &k, &v].map(|name| column(name, j));
            x[j].powf(alpha) / w.into_iter().fold(0.0, f64::max).powf(1.0 - alpha)
        })
        .collect();
    let largest = formula.iter().copied().fold(0.0, f64::max);
    let smallest = formula.iter().copied().fold(f64::INFINITY, f64::min);
    let near = |a: f64, b: f64, by: f64| (a / b - 1.0).abs() < by;
    for (j, formula) in formula.iter().enumerate() {
        let scale = before.get(&norm)[j] / after.get(&norm)[j];
        let expected = formula / (largest * smallest).sqrt();
        // Scales have the precision of f16.
        assert!(near(scale, expected, 1e-3), "{j}: {scale} {expected}");
        for name in [&q, &k] {
            for i in 0..HIDDEN {
                let place = i * HIDDEN + j;
                let times = after.get(name)[place] / before.get(name)[place];
                assert!(near(times, scale, 1e-6), "{name} {i} {j}");
            }
        }
    }
    // Tensors that no layer reads are unchanged.
    for name in ["embed.weight", "model.layers.0.self_attn.q_proj.bias"] {
        assert_eq!(before.get(name), after.get(name));
    }
}

#[test]
fn dit_computes_what_it_did() {
    let mut case = Case::new(&dit());
    case.calibration = empty_calibration();
    let forward = |name: &str, seed: u64, observe: Observe<'_>| {
        let (x, condition) = (rows(seed, 6, HIDDEN), rows(seed + 1, 6, 5));
        dit_forward(&case.weights(name), &x, &condition, observe)
    };
    forward("model", 1, &mut |layer, x| {
        observe(&case.calibration, layer, x);
    });
    let report = case.fold(Fold::default()).unwrap();
    assert_eq!((report.folded.len(), report.not_folded.len()), (3, 0));
    let adaln = |set: &run::Folded| set.before == "blocks.7.adaLN_modulation.1";
    assert_eq!(report.folded.iter().filter(|set| adaln(set)).count(), 2);
    let (expected, found) = (
        forward("model", 5, &mut |_, _| ()),
        forward("out", 5, &mut |_, _| ()),
    );
    assert!(difference(&found, &expected) < 1e-5);
    // Gates are unchanged, unlike the tensors before them.
    let (before, after) = (case.weights("model"), case.weights("out"));
    let rows = |weights: &Weights, section: usize| {
        let bias = weights.get("blocks.7.adaLN_modulation.1.bias");
        bias[section * HIDDEN..][..HIDDEN].to_vec()
    };
    for section in 0..6 {
        let same = rows(&before, section) == rows(&after, section);
        assert_eq!(same, matches!(section, 2 | 5), "{section}");
    }
}

#[test]
fn all_but_the_values_stays() {
    let tensors: Vec<RawTensor> = LLAMA
        .tensors(HIDDEN, 20)
        .into_iter()
        .map(|(name, dtype, dims, bytes)| match dtype {
            "F32" => {
                let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                bf16_tensor(&name, &dims, &values.collect::<Vec<_>>())
            }
            _ => (name, dtype, dims, bytes),
        })
        .collect();
    let case = Case::llama_of(&LLAMA, &tensors, HIDDEN);
    let source = source::open(&case.path("model")).unwrap();
    let check = |dtype: Dtype| {
        let out = source::open(&case.path("out")).unwrap();
        assert_eq!(out.metadata(), source.metadata());
        assert_eq!(out.metadata()["format"], "pt");
        assert_eq!(out.tensors().len(), source.tensors().len());
        for (i, (out_info, info)) in out.tensors().iter().zip(source.tensors()).enumerate() {
            assert_eq!((&out_info.name, &out_info.shape), (&info.name, &info.shape));
            let expected = match info.dtype {
                Dtype::I64 => Dtype::I64,
                _ => dtype,
            };
            assert_eq!(out_info.dtype, expected);
            if info.dtype == Dtype::I64 {
                assert_eq!(values_of(out.as_ref(), i), values_of(source.as_ref(), i));
            }
        }
        let [expected, found] = case.outputs(&LLAMA, HIDDEN);
        difference(&found, &expected)
    };
    case.fold(Fold::default()).unwrap();
    // Rounded a second time.
    let rounded = check(Dtype::BF16);
    assert!(rounded > 1e-5 && rounded < 0.02, "{rounded}");
    let float = Some(Float::F32);
    case.fold(Fold { alpha: 0.5, float }).unwrap();
    let exact = check(Dtype::F32);
    assert!(exact < 1e-5, "{exact}");
}

#[test]
fn threads_and_budgets_change_no_byte() {
    let case = Case::llama(&LLAMA, 60, 6000);
    case.fold(Fold::default()).unwrap();
    let expected = std::fs::read(case.path("out")).unwrap();
    case.fold_on(Fold::default(), 3, "threads").unwrap();
    assert!(std::fs::read(case.path("threads")).unwrap() == expected);
    let mut steps = Vec::new();
    let mut tell = |progress: run::Progress| {
        steps.push((progress.done, progress.total));
        true
    };
    let options = Options {
        threads: 2,
        budget: 0,
        progress: Some(&mut tell),
        ..Options::default()
    };
    let (input, output) = (case.path("model"), case.path("budget"));
    run::fold_file(&input, &case.calibration, &output, Fold::default(), options).unwrap();
    assert!(std::fs::read(&output).unwrap() == expected);
    let (done, total) = *steps.last().unwrap();
    assert_eq!(done, total);
    assert!(steps.len() > 10);
    // If cancelled while writing, the existing file remains.
    std::fs::write(&output, "before").unwrap();
    let mut stop = |progress: run::Progress| progress.done < total - 100_000;
    let options = Options {
        threads: 1,
        progress: Some(&mut stop),
        ..Options::default()
    };
    let result = run::fold_file(&input, &case.calibration, &output, Fold::default(), options);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(std::fs::read(&output).unwrap(), b"before");
}

#[test]
fn sets_that_do_not_fit_are_left_and_named() {
    // Two heads share values.
    let mut tensors = LLAMA.tensors(HIDDEN, 20);
    for name in ["k_proj.weight", "v_proj.weight", "v_proj.bias"] {
        let tensor = tensors.iter_mut().find(|t| t.0.ends_with(name)).unwrap();
        tensor.2[0] = HIDDEN / 2;
        tensor.3.truncate(tensor.3.len() / 2);
    }
    let case = Case::new(&tensors);
    let layers = LLAMA.layers.iter().take(6);
    for layer in layers {
        observe(&case.calibration, layer, &rows(1, 4, HIDDEN));
    }
    let report = case.fold(Fold::default()).unwrap();
    assert_eq!(report.folded.len(), 2);
    let [values, up] = &report.not_folded[..] else {
        panic!("{report:?}");
    };
    assert!(values.before.ends_with("v_proj"));
    assert!(
        values
            .reason
            .contains("shape [6, 12] does not have 12 rows")
    );
    assert!(up.before.ends_with("up_proj"));
    assert!(up.reason.contains("has not seen the inputs of") && up.reason.contains("down_proj"));
    // If the norm is not folded, its weight is unchanged.
    let (before, after) = (case.weights("model"), case.weights("out"));
    let unchanged = |name: &str| before.get(name) == after.get(name);
    assert!(unchanged("model.layers.0.mlp.down_proj.weight"));
    assert!(unchanged("model.layers.0.self_attn.v_proj.bias"));
    assert!(!unchanged("model.layers.0.input_layernorm.weight"));
}

#[test]
fn f8_is_folded_where_it_becomes_another_float() {
    let mut tensors = LLAMA.tensors(HIDDEN, 20);
    let q = tensors.iter_mut().find(|t| t.0.ends_with("q_proj.weight"));
    let q = q.unwrap();
    (q.1, q.3) = ("F8_E4M3", (0..144).map(|i| 0x28 + i % 16).collect());
    let case = Case::llama_of(&LLAMA, &tensors, HIDDEN);
    let report = case.fold(Fold::default()).unwrap();
    let [attention] = &report.not_folded[..] else {
        panic!("{report:?}");
    };
    assert!(attention.reason.contains("q_proj.weight' is f8_e4m3"));
    let float = Some(Float::F32);
    let report = case.fold(Fold { alpha: 0.5, float }).unwrap();
    assert!(report.not_folded.is_empty());
    let [expected, found] = case.outputs(&LLAMA, HIDDEN);
    assert!(difference(&found, &expected) < 1e-5);
}

#[test]
fn what_cannot_be_folded_is_an_error_that_says_why() {
    let case = Case::llama(&LLAMA, HIDDEN, 20);
    let fold = |calibration: &Calibration, input: &str, output: PathBuf, alpha| {
        let settings = Fold { alpha, float: None };
        let input = case.path(input);
        run::fold_file(&input, calibration, &output, settings, Options::default())
    };
    let out = || case.path("new");
    let seen = &case.calibration;
    assert!(refused(fold(seen, "model", out(), 1.5)).contains("1.5 is not from 0 to 1"));
    assert!(refused(fold(seen, "model", out(), f64::NAN)).contains("alpha"));
    let other = case.folder.path().join("out.parquet");
    assert!(refused(fold(seen, "model", other, 0.5)).contains("does not end in .safetensors"));
    let same = case.path("model");
    assert!(refused(fold(seen, "model", same, 0.5)).contains("would be overwritten"));
    let none = refused(fold(&empty_calibration(), "model", out(), 0.5));
    assert!(
        none.contains("model.safetensors") && none.contains("has not seen"),
        "{none}"
    );
    let wrong = empty_calibration();
    observe(&wrong, LLAMA.layers[0], &rows(1, 4, HIDDEN + 1));
    let error = refused(fold(&wrong, "model", out(), 0.5));
    assert!(
        error.contains("13 channels in it, and 12 in the model"),
        "{error}"
    );
    let squares = [1.0f32; HIDDEN];
    let imatrix = Calibration::of_mean_squares([(LLAMA.layers[3], &squares[..])]).unwrap();
    assert!(refused(fold(&imatrix, "model", out(), 0.5)).contains("no ranges"));
    let plain = [f32_tensor("fc.weight", &[4, 4], &noise(1, 16))];
    std::fs::write(case.path("plain"), safetensors(&plain)).unwrap();
    let error = refused(fold(seen, "plain", out(), 0.5));
    assert!(
        error.contains("plain.safetensors") && error.contains("LLaMA"),
        "{error}"
    );
    // Values that do not fit f16, in a folded and in an unfolded weight.
    for name in ["input_layernorm.weight", "embed.weight"] {
        let mut large = LLAMA.tensors(HIDDEN, 20);
        let tensor = large.iter_mut().find(|t| t.0.ends_with(name)).unwrap();
        tensor.3[8..12].copy_from_slice(&3e8f32.to_le_bytes());
        std::fs::write(case.path("large"), safetensors(&large)).unwrap();
        let settings = Fold {
            alpha: 0.5,
            float: Some(Float::F16),
        };
        let input = case.path("large");
        let error = run::fold_file(&input, seen, &out(), settings, Options::default());
        let error = refused(error);
        assert!(
            error.contains(name) && error.contains("value 2 would be"),
            "{error}"
        );
    }
    let mut broken = LLAMA.tensors(HIDDEN, 20);
    let k = broken.iter_mut().find(|t| t.0.ends_with("k_proj.weight"));
    k.unwrap().3[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(case.path("broken"), safetensors(&broken)).unwrap();
    let error = refused(fold(seen, "broken", out(), 0.5));
    assert!(error.contains("k_proj.weight': has NaN"), "{error}");
    assert!(!out().exists());
}

#[test]
fn the_command_line_folds() {
    let case = Case::llama(&LLAMA, HIDDEN, 20);
    let saved = case.folder.path().join("calibration.parquet");
    case.calibration.save(&saved).unwrap();
    let [input, output] = ["model", "out"].map(|name| case.path(name).display().to_string());
    let saved = saved.display().to_string();
    let printed = arrowquant_ok(["fold", &input, &output, "--calibration", &saved]);
    assert!(printed.contains("q_proj, self_attn.k_proj"), "{printed}");
    assert!(printed.contains("4 sets of layers"), "{printed}");
    let [expected, found] = case.outputs(&LLAMA, HIDDEN);
    assert!(difference(&found, &expected) < 1e-5);
    let json = arrowquant_ok([
        "fold",
        &input,
        &output,
        "--calibration",
        &saved,
        "--alpha=0.8",
        "--dtype=bf16",
        "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["alpha"], 0.8);
    assert_eq!(json["folded"][2]["before"], LLAMA.norms[0]);
    assert!(json["folded"][2]["largest_scale"].as_f64().unwrap() > 1.0);
    let failed = arrowquant(["fold", &input, &output, "--calibration", "none.parquet"]);
    assert!(stderr(&failed).contains("none.parquet"));
    let usage = arrowquant([
        "fold",
        &input,
        &output,
        "--calibration",
        &saved,
        "--dtype=i8",
    ]);
    assert_eq!(usage.status.code(), Some(2));
}
