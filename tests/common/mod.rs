//! Shared helpers: files to quantize, and the program.

#[cfg(target_os = "linux")]
pub mod faults;
pub mod memory;
pub mod native;
#[cfg(unix)]
pub mod place;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrowquant::error::Result;
use arrowquant::model::Model;
use arrowquant::plan::Config;
use arrowquant::run::{self, Options, Report};
use arrowquant::source;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A tensor to write: name, safetensors dtype, shape, little-endian values.
pub type RawTensor = (String, &'static str, Vec<usize>, Vec<u8>);

pub fn f32_tensor(name: &str, dims: &[usize], values: &[f32]) -> RawTensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.to_owned(), "F32", dims.to_vec(), bytes)
}

pub fn bf16_tensor(name: &str, dims: &[usize], values: &[f32]) -> RawTensor {
    let bytes = values
        .iter()
        .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
        .collect();
    (name.to_owned(), "BF16", dims.to_vec(), bytes)
}

/// Returns repeatable numbers between -1 and 1, more of them near 0.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * next().abs()).collect()
}

/// Returns the bytes of a safetensors file.
pub fn safetensors(tensors: &[RawTensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, dtype, dims, bytes) in tensors {
        let offsets = [end, end + bytes.len()];
        end += bytes.len();
        let entry = json!({"dtype": dtype, "shape": dims, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let values: Vec<&[u8]> = tensors.iter().map(|tensor| tensor.3.as_slice()).collect();
    with_header(&Value::Object(header).to_string(), &values.concat())
}

/// Returns a safetensors file with this header, valid or not.
pub fn with_header(header: &str, values: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(values);
    file
}

/// Makes a folder with a small model that has every kind of tensor, `model.safetensors`.
pub fn small_model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u8> = (0..10i64).flat_map(i64::to_le_bytes).collect();
    let tensors = [
        bf16_tensor("blocks.0.attn.weight", &[40, 96], &noise(1, 40 * 96)),
        bf16_tensor("blocks.0.attn.bias", &[40], &noise(2, 40)),
        f32_tensor("blocks.0.mlp.weight", &[17, 33], &noise(3, 17 * 33)),
        f32_tensor("conv.weight", &[6, 5, 3, 3], &noise(4, 270)),
        ("position_ids".to_owned(), "I64", vec![1, 10], ids),
        f32_tensor("scale", &[], &[0.5]),
        f32_tensor("empty.weight", &[0, 7], &[]),
    ];
    std::fs::write(
        folder.path().join("model.safetensors"),
        safetensors(&tensors),
    )
    .unwrap();
    folder
}

/// Returns a configuration with these settings.
pub fn config(settings: &[(&str, &str)]) -> Config {
    let mut config = Config::new();
    for (key, value) in settings {
        config.set(key, value).unwrap();
    }
    config
}

/// Quantizes a file through the library, on one thread.
pub fn quantize(input: &Path, output: &Path, settings: &[(&str, &str)]) -> Result<Report> {
    let source = source::open(input)?;
    let plan = run::plan(source.as_ref(), &config(settings))?;
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    run::quantize(source.as_ref(), &plan, output, options)
}

/// Returns the program, without settings from the environment.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arrowquant"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AQ_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program.
pub fn arrowquant<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    program().args(args).output().unwrap()
}

/// Runs the program and expects success; returns what it printed.
pub fn arrowquant_ok<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = arrowquant(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Returns the root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the path of a file whose tensors were scaled and rotated before quantization. It is made
/// in src/run/transform_tests.
pub fn transformed_model() -> PathBuf {
    root().join("tests/data/transformed.parquet")
}

/// Returns the path of a model in the repository.
pub fn demo_model(name: &str) -> PathBuf {
    root().join("examples/models").join(name)
}

/// Returns the names in a folder, sorted.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Returns the values of a tensor.
pub fn values_of(source: &dyn source::Source, tensor: usize) -> Vec<u8> {
    let mut values = vec![0; source.tensors()[tensor].bytes().unwrap()];
    source.read(tensor, 0, &mut values).unwrap();
    values
}

/// Reads a tensor whole and in the parts between `cuts`, and expects the same bytes.
pub fn check_parts(source: &dyn source::Source, tensor: usize, cuts: &[usize]) {
    let whole = values_of(source, tensor);
    let len = whole.len();
    let mut cuts: Vec<usize> = cuts.iter().map(|&cut| cut.min(len)).collect();
    cuts.extend([0, len]);
    cuts.sort();
    for part in cuts.windows(2) {
        let mut bytes = vec![0; part[1] - part[0]];
        source.read(tensor, part[0], &mut bytes).unwrap();
        assert_eq!(bytes, whole[part[0]..part[1]], "{part:?}");
    }
}

/// Quantizes to 8 bits with the program, which then verifies the result against its input.
pub fn quantized_and_verified(input: &Path, output: &Path) -> Model {
    let (input, path) = (input.as_os_str(), output.as_os_str());
    arrowquant_ok(["quantize".as_ref(), input, path, "--bits=8".as_ref()]);
    arrowquant_ok(["verify".as_ref(), path, "--against".as_ref(), input]);
    Model::open(output).unwrap()
}
