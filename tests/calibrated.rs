//! Quantizing with a calibration: its effect on weights, the models it fits, and the report.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrowquant::calibrate::{Activations, Calibration, CalibrationOptions};
use arrowquant::error::{Error, Result};
use arrowquant::format::Float;
use arrowquant::model::Model;
use arrowquant::plan::CalibrationInput;
use arrowquant::run::{self, Level, Options, Report, TensorReport};
use arrowquant::source;
use tempfile::TempDir;

use crate::common::*;

const COLS: usize = 192;
const ROWS: usize = 70;
const TIMESTEPS: u32 = 100;

/// A model of two matrices, and their inputs at two timesteps: channels are correlated, a few are
/// large, and late inputs are a tenth as large.
struct Case {
    folder: TempDir,
    weights: Vec<f32>,
    early: Vec<f32>,
    late: Vec<f32>,
}

fn inputs(seed: u64, rows: usize, size: f32) -> Vec<f32> {
    let own = noise(seed, rows * COLS);
    let common = noise(seed + 1, rows);
    let value = |i: usize| {
        let channel = if i % COLS % 37 == 5 {
            20.0
        } else {
            1.0 + (i % COLS % 5) as f32
        };
        size * channel * (0.3 * own[i] + common[i / COLS])
    };
    (0..rows * COLS).map(value).collect()
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let weights = noise(1, ROWS * COLS);
        let tensors = [
            f32_tensor("blocks.0.fc.weight", &[ROWS, COLS], &weights),
            f32_tensor("blocks.0.other.weight", &[16, 64], &noise(2, 16 * 64)),
        ];
        std::fs::write(
            folder.path().join("model.safetensors"),
            safetensors(&tensors),
        )
        .unwrap();
        Self {
            folder,
            weights,
            early: inputs(10, 300, 1.0),
            late: inputs(20, 300, 0.1),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn calibration(&self) -> Calibration {
        let calibration = calibration(true);
        observe(&calibration, "blocks.0.fc", 3, COLS, &self.early);
        observe(&calibration, "blocks.0.fc.weight", 97, COLS, &self.late);
        calibration
    }

    fn run(&self, calibration: Calibration, settings: &[(&str, &str)]) -> Result<Report> {
        self.run_with(Some(Arc::new(calibration)), settings, "out.parquet", 1)
    }

    fn run_with(
        &self,
        calibration: Option<Arc<Calibration>>,
        settings: &[(&str, &str)],
        output: &str,
        threads: usize,
    ) -> Result<Report> {
        let mut config = config(settings);
        if let Some(calibration) = calibration {
            config.set_calibration(Some(CalibrationInput::Held(calibration)));
        }
        let source = source::open(&self.path("model.safetensors"))?;
        let plan = run::plan(source.as_ref(), &config)?;
        let options = Options {
            threads,
            ..Options::default()
        };
        run::quantize(source.as_ref(), &plan, &self.path(output), options)
    }

    /// Returns the decoded weights of the first matrix.
    fn decoded(&self, output: &str) -> Vec<f32> {
        let model = Model::open(&self.path(output)).unwrap();
        let mut bytes = vec![0; ROWS * COLS * 4];
        model
            .dequantize_rows(0, 0..ROWS, Float::F32, &mut bytes)
            .unwrap();
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    }

    /// Returns the squared outputs of some weights on inputs.
    fn squared_output(&self, x: &[f32], weights: impl Fn(usize) -> f64) -> f64 {
        let mut sum = 0.0;
        for x in x.chunks(COLS) {
            for row in 0..ROWS {
                let products = (0..COLS).map(|j| f64::from(x[j]) * weights(row * COLS + j));
                sum += products.sum::<f64>().powi(2);
            }
        }
        sum
    }
}

fn calibration(hessian: bool) -> Calibration {
    let options = CalibrationOptions {
        timesteps: TIMESTEPS,
        bins: 20,
        hessian,
        hessian_groups: 10,
        ..CalibrationOptions::default()
    };
    Calibration::new(options).unwrap()
}

fn observe(calibration: &Calibration, layer: &str, t: u32, cols: usize, x: &[f32]) {
    let values: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let rows = x.len() / cols;
    let float = Float::F32;
    let x = Activations {
        rows,
        cols,
        float,
        values: &values,
    };
    calibration.observe(layer, t, x).unwrap();
}

fn first(report: &Report) -> &TensorReport {
    &report.tensors[0]
}

fn error(report: &Report) -> f64 {
    first(report).output.as_ref().unwrap().error
}

#[test]
fn it_changes_the_method_and_lowers_errors_of_the_output() {
    let case = Case::new();
    for bits in ["2", "4"] {
        let settings = |method| {
            [
                ("bit_width", bits),
                ("method", method),
                ("enable_spatial", "false"),
            ]
        };
        let gptq = case
            .run(case.calibration(), &[("bit_width", bits)])
            .unwrap();
        assert_eq!(first(&gptq).method, Some("gptq"));
        let lsq = case.run(case.calibration(), &settings("lsq")).unwrap();
        let minmax = case.run(case.calibration(), &settings("minmax")).unwrap();
        assert!(
            error(&gptq) < 0.5 * error(&lsq),
            "{} {}",
            error(&gptq),
            error(&lsq)
        );
        assert!(error(&lsq) < error(&minmax));
        // The cosine of weights is lower in exchange.
        assert!(first(&gptq).cosine < first(&lsq).cosine);
    }
}

#[test]
fn errors_of_the_output_are_what_the_inputs_make_of_the_file() {
    let case = Case::new();
    for settings in [
        &[("bit_width", "2"), ("time_weighting", "equal")][..],
        &[
            ("bit_width", "4"),
            ("method", "lsq"),
            ("enable_time_aware", "false"),
        ],
    ] {
        let report = case.run(case.calibration(), settings).unwrap();
        let decoded = case.decoded("out.parquet");
        let w = |i: usize| f64::from(case.weights[i]);
        let q = |i: usize| f64::from(decoded[i]);
        let output = first(&report).output.as_ref().unwrap();
        let mut ratios = Vec::new();
        for (x, found) in [&case.early, &case.late].into_iter().zip(&output.by_time) {
            let [weights, quantized, error] = [
                case.squared_output(x, w),
                case.squared_output(x, q),
                case.squared_output(x, |i| w(i) - q(i)),
            ];
            let close = |found: f64, expected: f64| (found - expected).abs() < 1e-3 * expected;
            assert!(close(found.error, error / weights), "{found:?}");
            let product = (weights + quantized - error) / 2.0;
            assert!(
                close(found.cosine, product / (weights * quantized).sqrt()),
                "{found:?}"
            );
            ratios.push((error, weights));
        }
        let times: Vec<_> = output
            .by_time
            .iter()
            .map(|at| (at.t_begin, at.t_end))
            .collect();
        assert_eq!(times, [(0, 10), (90, 100)]);
        // There are as many early rows as late ones, so weighting groups equally weights rows
        // equally.
        let expected = (ratios[0].0 + ratios[1].0) / (ratios[0].1 + ratios[1].1);
        assert!((output.error - expected).abs() < 1e-3 * expected);
    }
}

#[test]
fn weights_of_time_move_errors_to_where_they_count_least() {
    let case = Case::new();
    let at = |weights: &str| {
        let settings = [
            ("bit_width", "2"),
            ("time_weighting", weights),
            ("num_time_groups", "2"),
        ];
        let report = case.run(case.calibration(), &settings).unwrap();
        let output = first(&report).output.clone().unwrap();
        (output.by_time[0].error, output.by_time[1].error)
    };
    let (early, late) = (at("1,0"), at("0,1"));
    assert!(
        early.0 < 0.7 * late.0 && late.1 < 0.7 * early.1,
        "{early:?} {late:?}"
    );
    // Late timesteps have a hundredth of the squared output, which `relative` compensates for.
    assert!(at("relative").1 < at("equal").1);
}

#[test]
fn a_tensor_that_was_not_seen_is_done_without() {
    let case = Case::new();
    let report = case.run(case.calibration(), &[("bit_width", "4")]).unwrap();
    let other = &report.tensors[1];
    assert_eq!(other.method, Some("lsq"));
    assert!(other.output.is_none() && other.activation_ranges == 0);
    // The bytes are the same as without a calibration.
    let bytes = |output| std::fs::read(case.path(output)).unwrap();
    let without = case
        .run_with(None, &[("bit_width", "4")], "plain.parquet", 1)
        .unwrap();
    assert_eq!(without.tensors[1].cosine, other.cosine);
    assert_ne!(bytes("plain.parquet"), bytes("out.parquet"));

    let mut config = config(&[("bit_width", "4")]);
    config.set_calibration(Some(CalibrationInput::Held(Arc::new(case.calibration()))));
    let source = source::open(&case.path("model.safetensors")).unwrap();
    let plan = run::plan(source.as_ref(), &config).unwrap();
    let mut warnings = Vec::new();
    let mut hear = |level, text: &str| {
        if level == Level::Warning {
            warnings.push(text.to_owned());
        }
        true
    };
    let options = Options {
        log: Some(&mut hear),
        ..Options::default()
    };
    run::quantize(
        source.as_ref(),
        &plan,
        &case.path("logged.parquet"),
        options,
    )
    .unwrap();
    assert_eq!(
        warnings,
        ["1 of 2 tensors to quantize are not in the calibration: blocks.0.other.weight"]
    );
}

fn refused(result: Result<Report>) -> String {
    match result {
        Err(error @ Error::Config { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_of_another_model_is_refused_by_shape_or_name() {
    let case = Case::new();
    let other = calibration(true);
    observe(&other, "blocks.0.fc", 0, 64, &noise(1, 640));
    let reason = refused(case.run(other, &[]));
    assert!(
        reason.contains("'blocks.0.fc.weight' has 64 channels in it, and 192 in the model"),
        "{reason}"
    );

    let other = calibration(true);
    observe(&other, "layers.7.up_proj", 0, 64, &noise(1, 640));
    let reason = refused(case.run(other, &[]));
    assert!(
        reason.contains("'layers.7.up_proj'") && reason.contains("'blocks.0.fc.weight'"),
        "{reason}"
    );
    assert!(!case.path("out.parquet").exists());

    let reason = refused(case.run_with(None, &[("method", "gptq")], "out.parquet", 1));
    assert!(reason.contains("requires a calibration"), "{reason}");
    let snr = [("time_weighting", "snr")];
    assert!(refused(case.run(case.calibration(), &snr)).contains("schedule"));
}

#[test]
fn a_file_is_as_good_as_one_in_memory_whatever_threads_and_ceiling() {
    let case = Case::new();
    let saved = case.path("calibration.parquet");
    case.calibration().save(&saved).unwrap();
    let held = Arc::new(case.calibration());
    case.run_with(Some(held.clone()), &[("bit_width", "2")], "held.parquet", 1)
        .unwrap();
    let expected = std::fs::read(case.path("held.parquet")).unwrap();
    case.run_with(Some(held), &[("bit_width", "2")], "threads.parquet", 3)
        .unwrap();
    assert!(std::fs::read(case.path("threads.parquet")).unwrap() == expected);
    let file = ("calibration", saved.to_str().unwrap());
    for more in [
        ("on_nonfinite", "error"),
        ("streaming_mode", "true"),
        ("memory_limit", "64MB"),
    ] {
        let settings = [("bit_width", "2"), file, more];
        case.run_with(None, &settings, "file.parquet", 2).unwrap();
        assert!(
            std::fs::read(case.path("file.parquet")).unwrap() == expected,
            "{more:?}"
        );
    }
    // A plan records its path, and detects a replaced file.
    let source = source::open(&case.path("model.safetensors")).unwrap();
    let plan = run::plan(source.as_ref(), &config(&[("bit_width", "2"), file])).unwrap();
    let again = arrowquant::plan::Plan::from_json(&plan.to_json().to_string()).unwrap();
    assert_eq!(again, plan);
    let other = calibration(true);
    observe(&other, "blocks.0.fc", 0, COLS, &case.early);
    other.save(&saved).unwrap();
    let run = run::quantize(
        source.as_ref(),
        &again,
        &case.path("no.parquet"),
        Options::default(),
    );
    assert!(refused(run).contains("with which the plan was made"));
}

#[test]
fn without_hessians_importance_weighs_the_scales() {
    let case = Case::new();
    let seen = calibration(false);
    observe(&seen, "blocks.0.fc", 3, COLS, &case.early);
    let report = case
        .run(seen, &[("bit_width", "2"), ("enable_spatial", "false")])
        .unwrap();
    assert_eq!(first(&report).method, Some("lsq"));
    let weighed = case.decoded("out.parquet");
    case.run_with(None, &[("bit_width", "2")], "plain.parquet", 1)
        .unwrap();
    let plain = case.decoded("plain.parquet");
    // Weighted by the squares of channels, as if these were not correlated.
    let square = |j: usize| {
        case.early
            .iter()
            .skip(j)
            .step_by(COLS)
            .map(|x| f64::from(x * x))
            .sum::<f64>()
    };
    let squares: Vec<f64> = (0..COLS).map(square).collect();
    let error = |decoded: &[f32]| -> f64 {
        let terms = (0..ROWS * COLS)
            .map(|i| squares[i % COLS] * f64::from(decoded[i] - case.weights[i]).powi(2));
        terms.sum()
    };
    assert!(error(&weighed) < error(&plain));
    let reported = first(&report).output.as_ref().unwrap().error;
    let all: f64 = (0..ROWS * COLS)
        .map(|i| squares[i % COLS] * f64::from(case.weights[i]).powi(2))
        .sum();
    assert!(
        (reported - error(&weighed) / all).abs() < 1e-5 * reported,
        "{reported}"
    );
}

#[test]
fn an_importance_matrix_of_llama_cpp_is_a_calibration() {
    let case = Case::new();
    let path = case.path("imatrix.dat");
    let mut bytes = 1i32.to_le_bytes().to_vec();
    let name = b"blocks.0.fc.weight";
    bytes.extend((name.len() as i32).to_le_bytes());
    bytes.extend(name);
    bytes.extend(1i32.to_le_bytes());
    bytes.extend((COLS as i32).to_le_bytes());
    let squares: Vec<f32> = (0..COLS)
        .map(|j| if j % 3 == 0 { 100.0 } else { 1.0 })
        .collect();
    bytes.extend(squares.iter().flat_map(|x| x.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let settings = [("bit_width", "2"), ("calibration", path.to_str().unwrap())];
    let report = case.run_with(None, &settings, "out.parquet", 1).unwrap();
    assert_eq!(first(&report).method, Some("lsq"));
    let weighed = case.decoded("out.parquet");
    case.run_with(None, &[("bit_width", "2")], "plain.parquet", 1)
        .unwrap();
    let plain = case.decoded("plain.parquet");
    let error = |decoded: &[f32]| -> f64 {
        let important = (0..ROWS * COLS).filter(|i| (i % COLS).is_multiple_of(3));
        important
            .map(|i| f64::from(decoded[i] - case.weights[i]).powi(2))
            .sum()
    };
    assert!(
        error(&weighed) < 0.995 * error(&plain),
        "{} {}",
        error(&weighed),
        error(&plain)
    );
}

#[test]
fn channels_are_smoothed_or_rotated_only_where_that_helps() {
    let case = Case::new();
    let run = |spatial, method| {
        let settings = [
            ("bit_width", "4"),
            ("method", method),
            ("enable_spatial", spatial),
            ("group_size", "64"),
        ];
        case.run(case.calibration(), &settings).unwrap()
    };
    for method in ["lsq", "minmax", "gptq"] {
        let (with, without) = (run("true", method), run("false", method));
        let tensor = first(&with);
        let kept = tensor.smoothing.is_some() || tensor.rotation.is_some();
        assert!(!kept || error(&with) < error(&without), "{method}");
        // Least squares benefits from large channels.
        assert!(kept || method == "gptq", "{method}");
        assert!(first(&without).smoothing.is_none() && first(&without).rotation.is_none());
    }
    run("true", "lsq");
    let model = Model::open(&case.path("out.parquet")).unwrap();
    let tile = &model.tensors()[0].tiles[0].tile;
    assert!(tile.input_scale.is_some() || tile.rotation.is_some());
}

#[test]
fn static_ranges_of_activations_are_kept_by_time() {
    let case = Case::new();
    let settings = [
        ("bit_width", "4"),
        ("num_time_groups", "5"),
        ("enable_spatial", "false"),
    ];
    let report = case.run(case.calibration(), &settings).unwrap();
    assert!(first(&report).activation_ranges > 1);
    let model = Model::open(&case.path("out.parquet")).unwrap();
    let at = |t: i32| model.activation_params(0, t).unwrap();
    let largest = |x: &[f32]| x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    // Steps of a 255th of the range, which may be clipped slightly.
    for (t, x) in [(3, &case.early), (97, &case.late)] {
        let found = at(t);
        assert!(found.t_begin <= t && t < found.t_end);
        let range = found.scale * 255.0;
        let widest = 2.0 * largest(x);
        assert!(
            range > 0.3 * widest && range < 1.01 * widest,
            "{found:?} {widest}"
        );
    }
    assert!(at(3).scale > 5.0 * at(97).scale);
    // Windows does not replace a mapped file.
    drop(model);
    let one = [
        ("bit_width", "4"),
        ("enable_time_aware", "false"),
        ("enable_spatial", "false"),
    ];
    let report = case.run(case.calibration(), &one).unwrap();
    assert_eq!(first(&report).activation_ranges, 1);
}

#[test]
fn the_command_line_takes_one() {
    let case = Case::new();
    let saved = case.path("calibration.parquet");
    case.calibration().save(&saved).unwrap();
    let (input, output) = (case.path("model.safetensors"), case.path("cli.parquet"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let report = path(&case.path("report.json"));
    let printed = arrowquant_ok([
        "quantize",
        &path(&input),
        &path(&output),
        "--bits=2",
        "--calibration",
        &path(&saved),
        "--time-weighting=equal",
        "--report",
        &report,
    ]);
    assert!(
        printed.contains("relative squared error of outputs"),
        "{printed}"
    );
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["tensors"][0]["method"], "gptq");
    assert!(report["tensors"][0]["output"]["error"].as_f64().unwrap() > 0.0);
    arrowquant_ok(["verify", &path(&output), "--against", &path(&input)]);
    let missing = arrowquant([
        "quantize",
        &path(&input),
        "x.parquet",
        "--calibration",
        "none.parquet",
    ]);
    assert!(
        stderr(&missing).contains("none.parquet"),
        "{}",
        stderr(&missing)
    );
}
