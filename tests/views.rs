//! Planes are returned in place, as slices of the map.

use arrowquant::format::Float;
use arrowquant::model::Model;

use crate::common::*;

/// Makes a model with planes over 64 KiB: codes of 150 KiB and more, scales of 75 KiB.
fn large(folder: &std::path::Path, settings: &[(&str, &str)]) -> Model {
    let input = folder.join("large.safetensors");
    let tensors = [
        bf16_tensor("odd.weight", &[3, 5], &noise(1, 15)),
        bf16_tensor("a.weight", &[1200, 512], &noise(2, 1200 * 512)),
        bf16_tensor("b.weight", &[1201, 511], &noise(3, 1201 * 511)),
        f32_tensor("kept.pos_embed", &[1, 300, 64], &noise(4, 300 * 64)),
    ];
    std::fs::write(&input, safetensors(&tensors)).unwrap();
    let output = folder.join("large.parquet");
    quantize(&input, &output, settings).unwrap();
    Model::open(&output).unwrap()
}

#[test]
fn uncompressed_planes_are_slices_of_the_map_and_large_ones_aligned() {
    for bits in ["2", "4", "8"] {
        let folder = tempfile::tempdir().unwrap();
        let settings = [
            ("bit_width", bits),
            ("group_size", "16"),
            ("scheme", "affine"),
        ];
        let model = large(folder.path(), &settings);
        let mut large = 0;
        for tensor in 0..model.tensors().len() {
            let planes = model.planes(tensor, 0).unwrap();
            let all = [Some(planes.codes()), planes.scales(), planes.biases()];
            for plane in all.into_iter().flatten() {
                assert!(model.is_mapped(plane));
                if plane.len() > 64 << 10 {
                    assert_eq!(plane.as_ptr() as usize % 64, 0);
                    large += 1;
                }
            }
            // The address is the same each time: nothing is copied.
            assert_eq!(
                model.planes(tensor, 0).unwrap().codes().as_ptr(),
                planes.codes().as_ptr()
            );
        }
        assert!(large >= 7, "{large} planes over 64 KiB");
    }
}

#[test]
fn views_outlive_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(folder.path(), &[]);
    let planes = model.planes(1, 0).unwrap();
    let copy = planes.codes().to_vec();
    drop(model);
    assert_eq!(planes.codes(), copy);
}

#[test]
fn compressed_planes_hold_the_same_bytes() {
    let (plain, packed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plain = large(plain.path(), &[]);
    let packed = large(packed.path(), &[("compression", "zstd")]);
    for (i, tensor) in plain.tensors().iter().enumerate() {
        let j = packed.find(&tensor.info.name).unwrap();
        let (a, b) = (plain.planes(i, 0).unwrap(), packed.planes(j, 0).unwrap());
        assert_eq!((a.codes(), a.scales()), (b.codes(), b.scales()));
        packed.check_tile(j, 0).unwrap();
    }
    let codes = packed.planes(1, 0).unwrap();
    assert!(!packed.is_mapped(codes.codes()));
}

#[test]
fn any_rows_in_any_float_are_those_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let model = large(folder.path(), &[("bit_width", "2")]);
    let index = model.find("b.weight").unwrap();
    let shape = &model.tensors()[index].info.shape;
    let (rows, cols) = (shape.rows(), shape.cols());
    for &float in Float::ALL {
        let row_bytes = cols * float.size();
        let mut whole = vec![0; rows * row_bytes];
        model
            .dequantize_rows(index, 0..rows, float, &mut whole)
            .unwrap();
        for range in [0..0, 0..1, 5..9, 1200..1201] {
            let mut part = vec![0; range.len() * row_bytes];
            model
                .dequantize_rows(index, range.clone(), float, &mut part)
                .unwrap();
            assert!(part == whole[range.start * row_bytes..range.end * row_bytes]);
        }
        // Narrower floats are the f32 result rounded half to even.
        let mut exact = vec![0; rows * cols * 4];
        model
            .dequantize_rows(index, 0..rows, Float::F32, &mut exact)
            .unwrap();
        for i in (0..rows * cols).step_by(97) {
            let exact = Float::F32.get(&exact, i);
            let expected = match float {
                Float::F32 => exact,
                Float::F16 => half::f16::from_f32(exact).to_f32(),
                Float::BF16 => half::bf16::from_f32(exact).to_f32(),
            };
            assert_eq!(float.get(&whole, i), expected);
        }
    }
}
