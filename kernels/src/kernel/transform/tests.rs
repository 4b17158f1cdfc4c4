//! Rotations against plain matrices, and every table against the scalar one.

use proptest::prelude::*;

use super::*;
use crate::kernel::harness::{Guarded, all, weights};
use crate::kernel::{Isa, KernelTable};

/// Scales from 0.5 up, none but the first a power of two.
fn scales(cols: usize) -> Vec<u8> {
    let scale = |i: usize| half::f16::from_f32(0.5 + (i % 37) as f32 * 0.173);
    (0..cols).flat_map(|i| scale(i).to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let count = bytes.len() / 4;
    (0..count).map(|i| Float::F32.get(bytes, i)).collect()
}

fn bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn turned(
    table: &KernelTable,
    (transform, turn): (Transform<'_>, Turn),
    cols: usize,
    values: &[u8],
    offset: usize,
) -> Result<Vec<u8>, String> {
    let mut rows = Guarded::new(values.len(), offset);
    rows.get().copy_from_slice(values);
    table.transform_rows(TransformRows {
        transform,
        turn,
        cols,
        values: rows.get(),
    });
    // A NaN may have any sign and payload.
    let mut rows = rows.check()?;
    for value in rows.as_chunks_mut().0 {
        if f32::from_le_bytes(*value).is_nan() {
            *value = f32::NAN.to_le_bytes();
        }
    }
    Ok(rows)
}

/// Every rotation of rows of `cols`, seeded and not, and none.
fn rotations(cols: usize) -> impl Iterator<Item = Option<Rotation>> {
    let rotation = move |power: u32| {
        let seeds = [0, 0x1234_5678_9ABC_DEF0];
        seeds.map(|seed| Rotation {
            block: 1 << power,
            seed,
        })
    };
    let all = (1..=12).flat_map(rotation);
    all.filter(move |rotation| rotation.fits(cols))
        .map(Some)
        .chain([None])
}

/// The first difference between `table` and `reference`.
pub fn compare(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    let mut lengths = (0..=34).chain([40, 48, 72, 112, 128, 192, 704, 4096, 8192]);
    lengths.try_for_each(|cols| compare_rows(table, reference, cols))
}

/// The first difference between `table` and `reference` in rows of `cols`.
pub fn compare_rows(
    table: &KernelTable,
    reference: &KernelTable,
    cols: usize,
) -> Result<(), String> {
    let mut scales = scales(cols);
    if let Some(scale) = scales.first_chunk_mut() {
        *scale = half::f16::from_bits(1).to_le_bytes(); // the smallest
    }
    // Long rows take long in builds without optimization.
    let kinds = if cols < 4096 { 0..7 } else { 3..5 };
    for kind in kinds {
        let values = weights(kind, Float::F32, 2 * cols);
        for (i, rotation) in rotations(cols).enumerate() {
            let input_scale = ((i + kind) % 3 > 0).then_some(scales.as_slice());
            let transform = Transform {
                input_scale,
                rotation,
            };
            let offset = (i + kind + cols) % 5;
            for turn in [Turn::Weights, Turn::Back, Turn::Activations] {
                let case = (transform, turn);
                let found = turned(table, case, cols, &values, offset)?;
                if found != turned(reference, case, cols, &values, offset)? {
                    let what = format!("{cols} weights of kind {kind}");
                    return Err(format!("{what}: {turn:?} by {rotation:?}"));
                }
            }
        }
        compare_narrowed(table, reference, &values)?;
    }
    Ok(())
}

#[test]
fn tables_transform_as_the_scalar_one() {
    let tables = all();
    for table in &tables[1..] {
        compare(table, tables[0]).unwrap_or_else(|case| panic!("{}: {case}", table.isa().name()));
    }
}

fn compare_narrowed(
    table: &KernelTable,
    reference: &KernelTable,
    values: &[u8],
) -> Result<(), String> {
    for &float in Float::ALL {
        let narrowed = |table: &KernelTable| {
            let mut out = Guarded::new(values.len() / 4 * float.size(), values.len() % 3);
            table.narrow(values, float, out.get());
            out.check()
        };
        if narrowed(table)? != narrowed(reference)? {
            return Err(format!("{} weights to {float}", values.len() / 4));
        }
    }
    Ok(())
}

/// Column `j` of row `i` of `diag(signs) H / sqrt(block)` in double precision, by the
/// definition of H: -1 to the number of bits that both indices have.
fn entry(rotation: Rotation, start: usize, i: usize, j: usize) -> f64 {
    let hadamard = if (i & j).count_ones().is_multiple_of(2) {
        1.0
    } else {
        -1.0
    };
    let column = start + i;
    let minus = rotation.signs(column / 64) >> (column % 64) & 1 == 1;
    let sign = if minus { -1.0 } else { 1.0 };
    sign * hadamard / f64::from(rotation.block).sqrt()
}

/// `row R`, or `row R^T`, with every block a plain product.
fn product(rotation: Rotation, row: &[f64], transposed: bool) -> Vec<f64> {
    let block = rotation.block as usize;
    let mut out = Vec::new();
    for (b, values) in row.chunks(block).enumerate() {
        for j in 0..block {
            let term = |(i, x): (usize, &f64)| match transposed {
                false => x * entry(rotation, b * block, i, j),
                true => x * entry(rotation, b * block, j, i),
            };
            out.push(values.iter().enumerate().map(term).sum());
        }
    }
    out
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(
            difference <= 2e-6 * largest,
            "{what} at {i}: {found}, not {expected}"
        );
    }
}

#[test]
fn rows_are_those_of_the_plain_matrix() {
    for cols in [2, 24, 48, 64, 192, 704, 512] {
        let scale = scales(cols);
        let scale_of = |i| f64::from(Float::F16.get(&scale, i));
        let row = weights(0, Float::F32, cols);
        let exact: Vec<f64> = floats(&row).into_iter().map(f64::from).collect();
        let by = |f: &dyn Fn(f64, f64) -> f64, row: &[f64]| -> Vec<f64> {
            row.iter()
                .enumerate()
                .map(|(i, x)| f(*x, scale_of(i)))
                .collect()
        };
        let (times, over) = (|x: f64, s: f64| x * s, |x: f64, s: f64| x / s);
        for rotation in rotations(cols).flatten() {
            let transform = Transform {
                input_scale: Some(&scale),
                rotation: Some(rotation),
            };
            for (turn, expected) in [
                (Turn::Weights, product(rotation, &by(&times, &exact), false)),
                (
                    Turn::Activations,
                    product(rotation, &by(&over, &exact), false),
                ),
                (Turn::Back, by(&over, &product(rotation, &exact, true))),
            ] {
                for table in all() {
                    let found = turned(table, (transform, turn), cols, &row, 1).unwrap();
                    close(
                        &floats(&found),
                        &expected,
                        &format!("{turn:?} {rotation:?}"),
                    );
                }
            }
        }
    }
}

/// The rows of the identity become those of R, which are orthonormal.
#[test]
fn rotations_are_orthogonal() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    for block in [2, 8, 16, 64, 256] {
        let rotation = Rotation {
            block: block as u32,
            seed: 3,
        };
        let transform = Transform {
            input_scale: None,
            rotation: Some(rotation),
        };
        let mut identity = vec![0.0; block * block];
        (0..block).for_each(|i| identity[i * block + i] = 1.0);
        let rows = turned(
            scalar,
            (transform, Turn::Weights),
            block,
            &bytes(&identity),
            0,
        );
        let rows = floats(&rows.unwrap());
        for (i, a) in rows.chunks(block).enumerate() {
            for (j, b) in rows.chunks(block).enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 1e-6, "{block}: {i}, {j}: {dot}");
            }
        }
    }
}

/// By hand: [1, 2, 3, 4] is [10, -2, -4, 0] / 2 after butterflies; no signs are flipped.
#[test]
fn four_numbers() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let scale = [1.0, 2.0, 1.0, 0.5].map(|s| half::f16::from_f32(s).to_le_bytes());
    let scale = scale.concat();
    let rotation = Some(Rotation { block: 4, seed: 0 });
    let transform = Transform {
        input_scale: Some(&scale),
        rotation,
    };
    for (turn, row, expected) in [
        (Turn::Weights, [1.0, 1.0, 3.0, 8.0], [5.0, -1.0, -2.0, 0.0]),
        (
            Turn::Activations,
            [1.0, 4.0, 3.0, 2.0],
            [5.0, -1.0, -2.0, 0.0],
        ),
        (Turn::Back, [5.0, -1.0, -2.0, 0.0], [1.0, 1.0, 3.0, 8.0]),
    ] {
        let found = turned(scalar, (transform, turn), 4, &bytes(&row), 0).unwrap();
        assert_eq!(floats(&found), expected, "{turn:?}");
    }
}

#[test]
#[should_panic(expected = "fits")]
fn a_rotation_of_other_rows_is_refused() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let rotation = Some(Rotation { block: 8, seed: 0 });
    let transform = Transform {
        input_scale: None,
        rotation,
    };
    turned(scalar, (transform, Turn::Weights), 12, &[0; 48], 0).unwrap();
}

proptest! {
    /// Any shape: there and back, and the same product with activations.
    #[test]
    fn back_is_back_and_products_stay(
        cols in 1usize..600,
        power in 0u32..13,
        seed in any::<u64>(),
        scaled in any::<bool>(),
    ) {
        let block = Rotation::largest(cols, seed).map(|largest| Rotation {
            block: largest.block.min(1 << power).max(2),
            ..largest
        });
        prop_assert_eq!(block.is_none(), cols % 2 == 1);
        let scale = scales(cols);
        let transform = Transform { input_scale: scaled.then_some(&scale), rotation: block };
        let table = KernelTable::choose().unwrap();
        let (w, x) = (weights(0, Float::F32, cols), weights(3, Float::F32, cols + 1));
        let x = &x[4..];
        let there = turned(table, (transform, Turn::Weights), cols, &w, 0).unwrap();
        let back = turned(table, (transform, Turn::Back), cols, &there, 0).unwrap();
        let exact: Vec<f64> = floats(&w).into_iter().map(f64::from).collect();
        close(&floats(&back), &exact, "back");
        let mut activations = floats(x);
        table.transform_activations(transform, cols, &mut activations);
        let dot = |a: &[f32], b: &[f32]| -> (f64, f64) {
            let terms = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()))
        };
        let (expected, magnitude) = dot(&floats(&w), &floats(x));
        let (found, rotated) = dot(&floats(&there), &activations);
        prop_assert!((found - expected).abs() <= 1e-5 * (magnitude + rotated));
    }
}
