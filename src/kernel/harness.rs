//! Compares a kernel table with another, bit for bit, at every length that mixes whole and part
//! vectors, at unaligned offsets, with canary bytes around every output. A new ISA's table is
//! put against the scalar one here; a table with a slightly wrong rounding must be caught.

use super::lanes::{LANES, Lanes};
use super::scalar::Scalar;
use super::*;
use crate::format::{Float, Format, GroupSize, Layout, ScaleDtype, Scheme};

const CANARY: u8 = 0xA5;
const MARGIN: usize = 64;

/// A buffer with canaries on both sides, its middle at any alignment.
struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(len: usize, offset: usize) -> Self {
        Self {
            bytes: vec![CANARY; len + 2 * MARGIN],
            start: MARGIN + offset,
            len,
        }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    fn check(&mut self) -> Result<Vec<u8>, String> {
        let content = self.get().to_vec();
        self.get().fill(CANARY);
        match self.bytes.iter().position(|&b| b != CANARY) {
            None => Ok(content),
            Some(at) => Err(format!(
                "wrote {} bytes past its slice",
                at as isize - self.start as isize
            )),
        }
    }
}

/// Weights that show differences: normal ones, ties between two codes, tiny, huge and zero.
fn weights(kind: usize, float: Float, len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9u32.wrapping_add(kind as u32 * 77 + len as u32);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut bytes = Vec::new();
    for i in 0..len {
        let x = match kind {
            0 => next() * next() * 0.1,
            // Range 0 to 15: affine int4 scale 1, and every other weight half-way between codes.
            1 => [0.0, 0.5, 1.0, 1.5, 2.5, 15.0, 3.5, 12.5][i % 8],
            2 => next() * 1e-39,
            3 => next() * 3e4,
            4 => next() * 1e30,
            5 => {
                if i % 7 == 3 {
                    -0.0
                } else {
                    0.0
                }
            }
            _ => 0.3,
        };
        match float {
            Float::F32 => bytes.extend(x.to_le_bytes()),
            Float::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            Float::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
        }
    }
    bytes
}

type Written = (Result<RowSums, RowFault>, [Vec<u8>; 4], ErrorSums);

/// What one table makes of one case.
fn run(
    table: &KernelTable,
    layout: Layout,
    fit: Fit<'_>,
    float: Float,
    weights: &[u8],
    importance: Option<&[f32]>,
    offset: usize,
) -> Result<Written, String> {
    let cols = weights.len() / float.size();
    let mut source = Guarded::new(weights.len(), offset);
    source.get().copy_from_slice(weights);
    let mut codes = Guarded::new(layout.code_bytes(cols), offset);
    let mut scales = Guarded::new(layout.scale_bytes(cols), offset + 1);
    let mut biases = Guarded::new(layout.bias_bytes(cols), offset + 2);
    let result = table.quantize_row(QuantizeRow {
        layout,
        fit,
        cols,
        float,
        weights: source.get(),
        importance,
        sums: true,
        codes: codes.get(),
        scales: scales.get(),
        biases: biases.get(),
    });
    let planes = [codes.check()?, scales.check()?, biases.check()?];
    if result.is_err() {
        return Ok((result, Default::default(), ErrorSums::default()));
    }
    let [codes, scales, biases] = planes;
    let row = Planes {
        codes: &codes,
        scales: &scales,
        biases: &biases,
    };
    let mut decoded = Guarded::new(weights.len(), offset);
    table.decode_row(DecodeRow {
        layout,
        cols,
        planes: row,
        float,
        weights: decoded.get(),
    });
    let decoded = decoded.check()?;
    let error = table.error_row(ErrorRow {
        layout,
        cols,
        planes: row,
        float,
        weights,
    });
    Ok((result, [codes, scales, biases, decoded], error))
}

/// The first case in which `table` differs from `reference`.
fn compare(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    let lengths = (0..=70).chain([127, 128, 129, 145, 703, 1023, 1024, 1025, 2100]);
    for len in lengths {
        let importance: Vec<f32> = (0..len).map(|i| (i % 5) as f32 * 0.25).collect();
        for &float in Float::ALL {
            for kind in 0..7 {
                let weights = weights(kind, float, len);
                for case in 0..Format::ALL.len() * 2 * 2 * 3 * 2 {
                    let layout = Layout {
                        format: Format::ALL[case % 3],
                        scheme: Scheme::ALL[case / 3 % 2],
                        group_size: GroupSize::new([0, 16, 128][case / 6 % 3]).unwrap(),
                        scale_dtype: ScaleDtype::ALL[case / 18 % 2],
                    };
                    let (fit, importance) = match (case / 36 % 2, len % 2) {
                        (0, _) => (Fit::MinMax, None),
                        (_, 0) => (Fit::LeastSquares(&[0.9, 0.6, 0.4]), None),
                        _ => (Fit::LeastSquares(&[0.9, 0.6]), Some(importance.as_slice())),
                    };
                    let result =
                        |table| run(table, layout, fit, float, &weights, importance, len % 4);
                    let (ours, expected) = (result(table)?, result(reference)?);
                    if ours != expected {
                        return Err(format!(
                            "{len} weights of kind {kind} in {float}, {layout:?}, {fit:?}"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_table_of_this_machine_equals_scalar() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    for table in Isa::ALL.iter().filter_map(|&isa| KernelTable::of(isa)) {
        compare(table, scalar).unwrap_or_else(|case| panic!("{}: {case}", table.isa().name()));
    }
}

/// Scalar lanes with one operation done wrong.
macro_rules! faulty_lanes {
    ($name:ident { $($wrong:item)* }) => {
        #[derive(Clone, Copy)]
        struct $name(Scalar);

        impl Lanes for $name {
            fn splat(x: f32) -> Self { Self(Scalar::splat(x)) }
            fn from_array(lanes: [f32; LANES]) -> Self { Self(Scalar::from_array(lanes)) }
            fn to_array(self) -> [f32; LANES] { self.0.to_array() }
            fn load_f32(b: &[u8; 64]) -> Self { Self(Scalar::load_f32(b)) }
            fn load_f16(b: &[u8; 32]) -> Self { Self(Scalar::load_f16(b)) }
            fn load_bf16(b: &[u8; 32]) -> Self { Self(Scalar::load_bf16(b)) }
            fn store_f32(self, b: &mut [u8; 64]) { self.0.store_f32(b) }
            fn store_f16(self, b: &mut [u8; 32]) { self.0.store_f16(b) }
            fn store_bf16(self, b: &mut [u8; 32]) { self.0.store_bf16(b) }
            fn add(self, o: Self) -> Self { Self(self.0.add(o.0)) }
            fn sub(self, o: Self) -> Self { Self(self.0.sub(o.0)) }
            fn mul(self, o: Self) -> Self { Self(self.0.mul(o.0)) }
            fn min(self, o: Self) -> Self { Self(self.0.min(o.0)) }
            fn max(self, o: Self) -> Self { Self(self.0.max(o.0)) }
            fn pack2(self) -> [u8; 4] { self.0.pack2() }
            fn pack4(self) -> [u8; 8] { self.0.pack4() }
            fn pack8(self) -> [u8; 16] { self.0.pack8() }
            fn unpack2(b: &[u8; 4]) -> Self { Self(Scalar::unpack2(b)) }
            fn unpack4(b: &[u8; 8]) -> Self { Self(Scalar::unpack4(b)) }
            fn unpack8(b: &[u8; 16]) -> Self { Self(Scalar::unpack8(b)) }
            $($wrong)*
        }
    };
}

faulty_lanes!(HalfUp {
    fn round(self) -> Self {
        Self::from_array(self.to_array().map(|x| (x + 0.5).floor()))
    }
});

faulty_lanes!(SequentialFold {
    fn fold_add(self) -> f32 {
        self.to_array().iter().sum()
    }
});

#[test]
fn the_harness_catches_a_wrong_rounding() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = KernelTable::portable::<HalfUp>(Isa::Scalar);
    let difference = compare(&faulty, scalar).unwrap_err();
    assert!(difference.contains("weights of kind"), "{difference}");
}

#[test]
fn the_harness_catches_another_order_of_addition() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = KernelTable::portable::<SequentialFold>(Isa::Scalar);
    compare(&faulty, scalar).unwrap_err();
}

#[test]
fn the_harness_catches_a_write_past_the_end() {
    let mut buffer = Guarded::new(3, 1);
    buffer.bytes[MARGIN + 4] = 0;
    assert_eq!(buffer.check().unwrap_err(), "wrote 3 bytes past its slice");
}
