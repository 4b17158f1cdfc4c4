//! Quantizes a model, opens the result, shows its worst tensors, decodes one, and quantizes a
//! matrix in memory.
//!
//!     cargo run --release --example quantize -- model.safetensors model.parquet
//!
//! Settings may follow, with the keys of docs/configuration.md: bit_width=8 method=minmax.

use std::path::Path;
use std::process::ExitCode;

use arrowquant::error::Result;
use arrowquant::format::{
    Choice, Float, Format, GroupSize, Method, Recipe, ScaleDtype, ScalePolicy, Scheme,
};
use arrowquant::kernel::KernelTable;
use arrowquant::model::Model;
use arrowquant::plan::Config;
use arrowquant::quantize::{Guide, Matrix, PlanesMut, quantize_rows};
use arrowquant::run::{self, Options, Progress};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let [_, input, output, settings @ ..] = &args[..] else {
        eprintln!("usage: quantize IN.safetensors OUT.parquet [KEY=VALUE]...");
        return ExitCode::from(2);
    };
    match work(Path::new(input), Path::new(output), settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error {}: {error}", error.code());
            ExitCode::FAILURE
        }
    }
}

fn work(input: &Path, output: &Path, settings: &[String]) -> Result<()> {
    // From file to file, to 4 bits unless settings say otherwise.
    let mut config = Config::new();
    config.set("bit_width", "4")?;
    for setting in settings {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        config.set(key, value)?;
    }
    let mut show_progress = |progress: Progress| {
        eprint!(
            "\r{:3.0}%",
            100.0 * progress.done as f64 / progress.total as f64
        );
        true // false would cancel
    };
    let options = Options {
        progress: Some(&mut show_progress),
        ..Options::default()
    };
    let report = run::quantize_file(input, output, &config, options)?;
    eprintln!();
    println!(
        "{} tensors quantized, {} kept: {:.3} bits a weight, cosine {:.5}",
        report.total.quantized,
        report.total.kept,
        report.total.bits_per_weight.unwrap_or(f64::NAN),
        report.total.cosine.unwrap_or(f64::NAN),
    );

    // The worst three; kept tensors have no cosine.
    let tensors = report.tensors.iter();
    let mut worst: Vec<(f64, &str)> = tensors
        .filter_map(|t| Some((t.cosine?, t.name.as_str())))
        .collect();
    worst.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (cosine, name) in worst.iter().take(3) {
        println!("{cosine:.5} {name}");
    }

    // The worst one's first row, as it is now.
    let model = Model::open(output)?;
    let index = model.find(worst[0].1).expect("just written");
    let shape = &model.tensors()[index].info.shape;
    let mut row = vec![0; shape.cols() * 4];
    model.dequantize_rows(index, 0..1, Float::F32, &mut row)?;
    let value = |i| Float::F32.get(&row, i);
    let (rows, cols) = (shape.rows(), shape.cols());
    println!(
        "{rows} x {cols}: {:.6} {:.6} {:.6}",
        value(0),
        value(1),
        value(2)
    );

    // The products of its weights with a vector, without decoding them: that row.
    let x: Vec<f32> = (0..cols).map(value).collect();
    let mut y = vec![0.0; rows];
    model.matvec(index, &x, &mut y)?;
    println!("products: {:.4} {:.4} {:.4}", y[0], y[1], y[2]);

    // From memory to memory.
    let (rows, cols) = (4, 64);
    let weights = (0..rows * cols).map(|i| ((i * 37 % 101) as f64 / 50.0 - 1.0) as f32);
    let weights: Vec<u8> = weights.flat_map(f32::to_le_bytes).collect();
    let recipe = Recipe {
        encoding: Format::Int4.encoding(Choice {
            scheme: Scheme::Symmetric,
            group_size: GroupSize::new(32).expect("a group size"),
            scale_dtype: ScaleDtype::F16,
        }),
        method: Method::Lsq,
        gain: Format::Int4.spec().gain,
        scales: ScalePolicy::F16,
    };
    let [codes, scales, _] = recipe.encoding.plane_bytes(cols);
    let (mut codes, mut scales) = (vec![0; rows * codes], vec![0; rows * scales]);
    let matrix = Matrix {
        rows,
        cols,
        float: Float::F32,
        weights: &weights,
    };
    let planes = PlanesMut {
        codes: &mut codes,
        scales: &mut scales,
        biases: &mut [],
    };
    let table = KernelTable::choose().expect("AQ_ISA is not set, or to a name there is");
    let outcome = quantize_rows(
        table,
        &recipe,
        recipe.encoding,
        matrix,
        Guide::None,
        true,
        planes,
    )
    .expect("finite weights of usual size");
    println!(
        "{} bytes to {}: cosine {:.5}, {:.2} dB",
        weights.len(),
        codes.len() + scales.len(),
        outcome.error.cosine(),
        outcome.error.sqnr_db().unwrap_or(f64::INFINITY),
    );
    Ok(())
}
