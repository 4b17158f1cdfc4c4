//! The library without the standard library decodes to the same bits.

use std::io::Write;
use std::process::{Command, Stdio};

use arrowquant::format::{
    Choice, Float, Format, GroupSize, Method, Recipe, ScaleDtype, ScalePolicy, Scheme,
};
use arrowquant::kernel::{DecodeRow, Isa, KernelTable, MatVec, Planes};
use arrowquant::quantize::{Guide, Matrix, PlanesMut, quantize_rows};

use crate::common::native::*;
use crate::common::*;

const ROWS: usize = 3;

/// Returns the input of a quantized matrix, and its expected output.
fn case(recipe: Recipe, float: Float, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let table = KernelTable::of(Isa::Scalar).unwrap();
    let encoding = recipe.encoding;
    let layout = encoding.layout().unwrap();
    let weights = noise(cols as u64, ROWS * cols);
    let weights: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    let mut codes = vec![0; ROWS * layout.code_bytes(cols)];
    let mut scales = vec![0; ROWS * layout.scale_bytes(cols)];
    let mut biases = vec![0; ROWS * layout.bias_bytes(cols)];
    let matrix = Matrix {
        rows: ROWS,
        cols,
        float: Float::F32,
        weights: &weights,
    };
    let planes = PlanesMut {
        codes: &mut codes,
        scales: &mut scales,
        biases: &mut biases,
    };
    quantize_rows(table, &recipe, encoding, matrix, Guide::None, false, planes).unwrap();

    // The constants in the header.
    let scheme = match layout.scheme {
        Scheme::Symmetric => 1,
        Scheme::Affine => 2,
    };
    let dtype = match float {
        Float::F32 => 1,
        Float::F16 => 2,
        Float::BF16 => 3,
    };
    let scales_are = match layout.scale_dtype {
        ScaleDtype::F32 => 1,
        ScaleDtype::F16 => 2,
    };
    let numbers = [
        layout.width.bits(),
        layout.group_size.get().into(),
        scheme,
        scales_are,
        dtype,
        ROWS,
        cols,
        codes.len(),
        scales.len(),
        biases.len(),
    ];
    let numbers = numbers.iter().flat_map(|&n| (n as u64).to_le_bytes());
    let input = numbers.chain([&codes, &scales, &biases].into_iter().flatten().copied());

    let planes = Planes {
        codes: &codes,
        scales: &scales,
        biases: &biases,
    };
    let x: Vec<f32> = (0..cols).map(|i| (i + 1) as f32).collect();
    let mut decoded = Vec::new();
    for row in 0..ROWS {
        let planes = planes.row(encoding, cols, row);
        let mut weights = vec![0; cols * float.size()];
        table.decode_row(DecodeRow {
            encoding,
            cols,
            planes,
            float,
            weights: &mut weights,
        });
        decoded.extend(weights);
    }
    let mut y = [0.0; ROWS];
    table.matvec(MatVec {
        encoding,
        cols,
        planes,
        rows: 0..ROWS,
        x: &x,
        y: &mut y,
        y_rows: ROWS,
    });
    let products = y.map(f32::to_le_bytes).concat();
    (input.collect(), [decoded, products].concat())
}

#[test]
fn the_firmware_library_decodes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    // A separate folder, because it is built with other features than these tests.
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("firmware");
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(root())
        .args(["rustc", "--quiet", "--lib", "--no-default-features"]);
    build.args([
        "--features",
        "firmware",
        "--crate-type",
        "staticlib",
        "--profile",
        "firmware",
    ]);
    build.arg("--target-dir").arg(&target);
    // Instrumented code would need the standard library.
    build
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    build
        .env_remove("LLVM_PROFILE_FILE")
        .env_remove("RUSTC_WRAPPER");
    succeed(&mut build, "cargo");
    let program = folder.path().join("firmware");
    let mut compile = compiler("c11");
    compile
        .arg(root().join("tests/c/firmware.c"))
        .arg("-o")
        .arg(&program);
    compile.arg(target.join("firmware/libarrowquant.a"));
    succeed(&mut compile, "gcc");

    let (mut input, mut expected, mut cases) = (Vec::new(), Vec::new(), 0);
    for &format in Format::ALL {
        for &scheme in Scheme::ALL {
            for &scale_dtype in ScaleDtype::ALL {
                for &float in Float::ALL {
                    for (group_size, cols) in [(16, 1), (16, 31), (128, 300), (0, 77), (64, 128)] {
                        let recipe = Recipe {
                            encoding: format.encoding(Choice {
                                scheme,
                                group_size: GroupSize::new(group_size).unwrap(),
                                scale_dtype,
                            }),
                            method: Method::Lsq,
                            gain: format.spec().gain,
                            scales: ScalePolicy::Auto,
                        };
                        let (given, wanted) = case(recipe, float, cols);
                        input.extend(given);
                        expected.extend(wanted);
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 180);
    let mut running = Command::new(&program);
    running
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = running.spawn().unwrap();
    let mut stdin = running.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = running.wait_with_output().unwrap();
    writer.join().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(output.stdout == expected, "other bits");
    assert_eq!(stderr, "x has length 3, expected 4\n");
}
