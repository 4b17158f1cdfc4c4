//! Packed types. `tests/python/test_gguf.py` compares every bit pattern of their blocks with the
//! package `gguf`; here are blocks whose values can be computed by hand.

use super::*;

/// Number, name, weights and bytes of a block.
const TYPES: [(u32, &str, usize, usize); 12] = [
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (20, "IQ4_NL", 32, 18),
    (23, "IQ4_XS", 256, 136),
];

fn f16(value: f32) -> Vec<u8> {
    half::f16::from_f32(value).to_le_bytes().to_vec()
}

/// Makes a file with one tensor `w`.
fn file_of(kind: u32, dims: &[u64], blocks: &[u8]) -> Vec<u8> {
    gguf(&[], &[tensor("w", dims, kind, 0)], blocks)
}

/// Returns the values of one row of blocks.
fn decoded(kind: u32, blocks: &[u8]) -> Vec<f32> {
    let &(_, _, weights, bytes) = TYPES.iter().find(|row| row.0 == kind).unwrap();
    let row = (blocks.len() / bytes * weights) as u64;
    let source = opened(&file_of(kind, &[row], blocks)).unwrap();
    floats(source.as_ref(), 0)
}

/// Checks each value of a block against `value`, which receives its position.
fn check(kind: u32, block: &[Vec<u8>], value: impl Fn(usize) -> f32) {
    let values = decoded(kind, &block.concat());
    assert!(!values.is_empty());
    for (i, found) in values.into_iter().enumerate() {
        assert_eq!(
            found.to_bits(),
            value(i).to_bits(),
            "type {kind}, weight {i}"
        );
    }
}

/// Returns `count` bytes whose low halves count up from 0 to 15 and whose high halves count down.
fn up_and_down(count: u8) -> Vec<u8> {
    (0..count)
        .map(|i| (i % 16) | ((15 - i % 16) << 4))
        .collect()
}

#[test]
fn blocks_of_32() {
    // Weights 0 to 15 have the codes 0 to 15, and 16 to 31 the codes 15 to 0.
    let code = |i: usize| if i < 16 { i } else { 31 - i } as f32;
    let qs = up_and_down(16);
    check(2, &[f16(0.5), qs.clone()], |i| 0.5 * (code(i) - 8.0));
    check(3, &[f16(2.0), f16(-1.0), qs.clone()], |i| {
        2.0 * code(i) - 1.0
    });
    // The fifth bit is set for the second half, and for weight 1.
    let high = 0xFFFF_0002u32.to_le_bytes().to_vec();
    let fifth = |i: usize| if i == 1 || i >= 16 { 16.0 } else { 0.0 };
    check(6, &[f16(-3.0), high.clone(), qs.clone()], |i| {
        -3.0 * (code(i) + fifth(i) - 16.0)
    });
    check(7, &[f16(0.25), f16(8.0), high, qs.clone()], |i| {
        0.25 * (code(i) + fifth(i)) + 8.0
    });
    let values = [
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ];
    check(20, &[f16(2.0), qs], |i| {
        2.0 * values[code(i) as usize] as f32
    });
}

/// Returns the 12 bytes of scales and minima of Q4_K and Q5_K.
fn six_bits(scales: [u8; 8], mins: [u8; 8]) -> Vec<u8> {
    let low = |of: [u8; 8]| [0, 1, 2, 3].map(|i| of[i] | of[i + 4] >> 4 << 6);
    let both = [4, 5, 6, 7].map(|i: usize| scales[i] & 15 | mins[i] << 4);
    [low(scales), low(mins), both].concat()
}

#[test]
fn blocks_of_256() {
    // Four codes of 2 bits per byte: rows of 32 weights have the codes 0, 1, 2, 3, 0, 1, 2, 3.
    let scales = (0..16).map(|s| s | (15 - s) << 4).collect();
    check(10, &[scales, vec![0xE4; 64], f16(1.0), f16(0.5)], |i| {
        let (scale, code) = ((i / 16) as f32, (i / 32 % 4) as f32);
        scale * code - 0.5 * (15.0 - scale)
    });
    // Scale `s` is 4 * s - 32; every code is 3, reduced by 4 in even rows.
    let low = [0x00, 0x44, 0x88, 0xCC].repeat(2);
    let high = vec![0xE4; 4];
    check(
        11,
        &[vec![0xAA; 32], vec![0xFF; 64], low, high, f16(-1.0)],
        |i| {
            let (scale, code) = (4.0 * (i / 16) as f32 - 32.0, [-1.0, 3.0][i / 32 % 2]);
            -scale * code
        },
    );

    let scales = [0, 9, 18, 27, 36, 45, 54, 63];
    let factors = six_bits(scales, [63, 54, 45, 36, 27, 18, 9, 0]);
    let (d, dmin) = (f16(0.5), f16(2.0));
    let qs = up_and_down(128);
    let code = |i: usize| [i % 16, 15 - i % 16][i / 32 % 2] as f32;
    let value = |i: usize, code: f32| {
        let scale = f32::from(scales[i / 32]);
        0.5 * scale * code - 2.0 * (63.0 - scale)
    };
    let block = [d.clone(), dmin.clone(), factors.clone(), qs.clone()];
    check(12, &block, |i| value(i, code(i)));
    // Bit `s` of `qh` belongs to row `s`: here to rows 1 and 6.
    let fifth = |i: usize| {
        if [1, 6].contains(&(i / 32)) {
            16.0
        } else {
            0.0
        }
    };
    let block = [d, dmin, factors, vec![0x42; 32], qs];
    check(13, &block, |i| value(i, code(i) + fifth(i)));

    // In each half, rows 0 and 1 are in low halves of bytes, rows 2 and 3 in high ones; the high
    // bits of row `r` are `r`.
    let scales: Vec<u8> = (0..16).map(|s| (s - 8i8) as u8).collect();
    check(
        14,
        &[up_and_down(128), vec![0xE4; 64], scales, f16(0.25)],
        |i| {
            let row = i / 32 % 4;
            let code = [i % 16, 15 - i % 16][row / 2] + 16 * row;
            0.25 * ((i / 16) as f32 - 8.0) * (code as f32 - 32.0)
        },
    );

    // Scale `b` is 9 * b - 32; rows of 32 are like blocks of IQ4_NL.
    let scale = |b: usize| 9 * b as u16;
    let high: u16 = (0..8).map(|b| (scale(b) >> 4) << (2 * b)).sum();
    let low = (0..4).map(|b| (scale(2 * b) & 15 | (scale(2 * b + 1) & 15) << 4) as u8);
    let block = [
        f16(1.0),
        high.to_le_bytes().to_vec(),
        low.collect(),
        vec![0xF0; 128],
    ];
    check(23, &block, |i| {
        let value = if i % 32 < 16 { -127.0 } else { 113.0 };
        (f32::from(scale(i / 32)) - 32.0) * value
    });
}

/// Undefined values are the same NaN on every machine, whatever NaN the file has.
#[test]
fn factors_that_are_not_finite() {
    let mut codes = [3; 32];
    codes[5] = 0;
    let of = |bits: u16| {
        let mut block = bits.to_le_bytes().to_vec();
        block.extend(codes);
        decoded(8, &block)
    };
    let infinite = of(0xFC00);
    assert_eq!(infinite[0], f32::NEG_INFINITY);
    assert_eq!(infinite[5].to_bits(), 0x7FC0_0000);
    for bits in [0x7C01, 0xFE00, 0xFFFF] {
        assert!(of(bits).iter().all(|value| value.to_bits() == 0x7FC0_0000));
    }
}

#[test]
fn shapes_of_packed_tensors() {
    for (kind, name, weights, bytes) in TYPES {
        let row = weights as u64;
        // Any number of dimensions, and no values at all.
        for dims in [
            &[row][..],
            &[2 * row, 3],
            &[row, 1, 2, 1, 3],
            &[row, 0],
            &[0, 4],
        ] {
            let count = dims.iter().product::<u64>() as usize / weights;
            let source = opened(&file_of(kind, dims, &vec![1; count * bytes])).unwrap();
            let shape: Vec<usize> = dims.iter().rev().map(|&dim| dim as usize).collect();
            assert_eq!(source.tensors()[0].shape.dims(), shape);
            assert_eq!(source.tensors()[0].dtype, Dtype::F32);
            assert_eq!(floats(source.as_ref(), 0).len(), count * weights);
        }
        let reason = format!("does not fill blocks of {name}");
        for dims in [&[row / 2, 2][..], &[row + 1], &[]] {
            let message = opened(&file_of(kind, dims, &vec![1; 2 * bytes])).err();
            let message = message.expect("refused").to_string();
            let parts = ["m.gguf: tensor 'w'", &reason];
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let cut = opened(&file_of(kind, &[2 * row], &vec![1; 2 * bytes - 1])).err();
        let message = cut.expect("refused").to_string();
        let reason = format!("its {} bytes at offset 0 are not all", 2 * bytes);
        assert!(message.contains(&reason), "{message}");
    }
}

#[test]
fn whoever_quantizes_is_told_what_was_quantized_before() {
    let infos = [
        tensor("a", &[256], 12, 0),
        tensor("b", &[32], 8, 160),
        tensor("c", &[256], 12, 224),
        tensor("d", &[8], 1, 384),
    ];
    let source = opened(&gguf(&[], &infos, &[0; 416])).unwrap();
    let warnings = source.warnings();
    let [warning] = &warnings[..] else {
        panic!("one warning: {warnings:?}");
    };
    let start = "weights were quantized before (tensors: 1 Q8_0, 2 Q4_K);";
    assert!(warning.starts_with(start), "{warning}");
    let plain = gguf(&[], &[tensor("d", &[8], 1, 0)], &[0; 32]);
    assert!(opened(&plain).unwrap().warnings().is_empty());
}

proptest::proptest! {
    /// Many more blocks than are read at once.
    #[test]
    fn any_parts_make_the_whole(
        kind in 0usize..TYPES.len(),
        count in 1usize..60_000,
        seed in proptest::num::u64::ANY,
        cuts in proptest::collection::vec(0usize..240_000, 0..6),
    ) {
        let (kind, _, weights, bytes) = TYPES[kind];
        let count = count.div_ceil(weights);
        let blocks: Vec<u8> = noise(seed, count * bytes).iter().map(|v| v.to_bits() as u8).collect();
        let info = tensor("w", &[weights as u64, count as u64], kind, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, gguf(&[], &[info], &blocks)).unwrap();
        check_parts(source::open(&path).unwrap().as_ref(), 0, &cuts);
    }
}
