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

/// One row to put through a table.
#[derive(Debug, Clone, Copy)]
struct Case<'a> {
    layout: Layout,
    fit: Fit<'a>,
    float: Float,
    importance: Option<&'a [f32]>,
    /// From an aligned address.
    offset: usize,
    sums: bool,
}

type Written = (Result<RowSums, RowFault>, [Vec<u8>; 4], ErrorSums);

/// What one table makes of one case.
fn run(table: &KernelTable, case: Case<'_>, weights: &[u8]) -> Result<Written, String> {
    let Case {
        layout,
        float,
        offset,
        ..
    } = case;
    let cols = weights.len() / float.size();
    let mut source = Guarded::new(weights.len(), offset);
    source.get().copy_from_slice(weights);
    let mut codes = Guarded::new(layout.code_bytes(cols), offset);
    let mut scales = Guarded::new(layout.scale_bytes(cols), offset + 1);
    let mut biases = Guarded::new(layout.bias_bytes(cols), offset + 2);
    let result = table.quantize_row(QuantizeRow {
        layout,
        fit: case.fit,
        cols,
        float,
        weights: source.get(),
        importance: case.importance,
        sums: case.sums,
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
    let decoded = decode(table, layout, cols, row, float, offset)?;
    let error = table.error_row(ErrorRow {
        layout,
        cols,
        planes: row,
        float,
        weights,
    });
    Ok((result, [codes, scales, biases, decoded], error))
}

fn decode(
    table: &KernelTable,
    layout: Layout,
    cols: usize,
    planes: Planes<'_>,
    float: Float,
    offset: usize,
) -> Result<Vec<u8>, String> {
    let mut decoded = Guarded::new(cols * float.size(), offset);
    table.decode_row(DecodeRow {
        layout,
        cols,
        planes,
        float,
        weights: decoded.get(),
    });
    decoded.check()
}

/// The first difference between `table` and `reference`.
fn compare(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    compare_quantizing(table, reference)?;
    compare_decoding(table, reference)?;
    compare_non_finite(table, reference)
}

/// Every combination of format, scheme, group size and scale dtype.
fn layouts() -> impl Iterator<Item = Layout> {
    (0..36).map(|case| Layout {
        format: Format::ALL[case % 3],
        scheme: Scheme::ALL[case / 3 % 2],
        group_size: GroupSize::new([0, 16, 128][case / 6 % 3]).unwrap(),
        scale_dtype: ScaleDtype::ALL[case / 18 % 2],
    })
}

fn compare_quantizing(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    let lengths = (0..=70).chain([127, 128, 129, 145, 703, 1023, 1024, 1025, 2100]);
    for len in lengths {
        let importance: Vec<f32> = (0..len).map(|i| (i % 5) as f32 * 0.25).collect();
        let fits = [
            (Fit::MinMax, None),
            (Fit::LeastSquares(&[0.9, 0.6, 0.4]), None),
            (Fit::LeastSquares(&[0.9, 0.6]), Some(importance.as_slice())),
        ];
        for (&float, kind) in Float::ALL
            .iter()
            .flat_map(|f| (0..7).map(move |kind| (f, kind)))
        {
            let weights = weights(kind, float, len);
            for (i, layout) in layouts().enumerate() {
                for (j, (fit, importance)) in fits.into_iter().enumerate() {
                    let (offset, sums) = ((i + j + len) % 5, (i + len) % 2 == 0);
                    let case = Case {
                        layout,
                        fit,
                        float,
                        importance,
                        offset,
                        sums,
                    };
                    if run(table, case, &weights)? != run(reference, case, &weights)? {
                        return Err(format!("{len} weights of kind {kind}: {case:?}"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Any codes under any scales, decoded to any float: overflow, underflow and rounding.
fn compare_decoding(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    let scales = [1.0f32, -0.3, 65504.0, 1e-7, 0.0, 3e30, 1e-40, 0.1];
    for len in (0..=40).chain([127, 300]) {
        for (layout, &float) in layouts().flat_map(|l| Float::ALL.iter().map(move |f| (l, f))) {
            let mut codes = vec![0; layout.code_bytes(len)];
            for (i, byte) in codes.iter_mut().enumerate() {
                *byte = (i * 167 + len * 31) as u8;
            }
            let plane = |shift: usize, bytes: usize| {
                let mut plane = vec![0; bytes];
                for i in 0..bytes / layout.scale_dtype.size() {
                    layout
                        .scale_dtype
                        .put(&mut plane, i, scales[(i + shift + len) % scales.len()]);
                }
                plane
            };
            let scales = plane(0, layout.scale_bytes(len));
            let biases = plane(3, layout.bias_bytes(len));
            let planes = Planes {
                codes: &codes,
                scales: &scales,
                biases: &biases,
            };
            let result = |table| decode(table, layout, len, planes, float, len % 4);
            if result(table)? != result(reference)? {
                return Err(format!(
                    "{len} weights of kind random codes: {layout:?} to {float}"
                ));
            }
        }
    }
    Ok(())
}

/// One NaN or infinity at any place of a vector or tail.
fn compare_non_finite(table: &KernelTable, reference: &KernelTable) -> Result<(), String> {
    let layout = layouts().next().unwrap();
    for len in [1, 15, 16, 17, 31, 47, 130] {
        for (&float, bad) in Float::ALL
            .iter()
            .flat_map(|f| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(move |bad| (f, bad)))
        {
            for at in 0..len {
                let mut weights = weights(0, float, len);
                let place = &mut weights[at * float.size()..(at + 1) * float.size()];
                match float {
                    Float::F32 => place.copy_from_slice(&bad.to_le_bytes()),
                    Float::F16 => place.copy_from_slice(&half::f16::from_f32(bad).to_le_bytes()),
                    Float::BF16 => place.copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes()),
                }
                let (fit, importance) = (Fit::MinMax, None);
                let case = Case {
                    layout,
                    fit,
                    float,
                    importance,
                    offset: at % 3,
                    sums: false,
                };
                let (ours, expected) =
                    (run(table, case, &weights)?, run(reference, case, &weights)?);
                assert_eq!(expected.0, Err(RowFault::NonFinite));
                if ours != expected {
                    return Err(format!(
                        "{bad} at {at} of {len} weights of kind 0: {case:?}"
                    ));
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

const HALF_UP: u8 = 0;
const FOLD_IN_ORDER: u8 = 1;
const NAN_BLIND: u8 = 2;
const CLAMPED_F16: u8 = 3;

/// Scalar lanes with one operation done wrong.
#[derive(Clone, Copy)]
struct Faulty<const FAULT: u8>(Scalar);

impl<const FAULT: u8> Lanes for Faulty<FAULT> {
    fn round(self) -> Self {
        match FAULT {
            HALF_UP => Self::from_array(self.to_array().map(|x| (x + 0.5).floor())),
            _ => Self(self.0.round()),
        }
    }

    fn fold_add(self) -> f32 {
        match FAULT {
            FOLD_IN_ORDER => self.to_array().iter().sum(),
            _ => self.0.fold_add(),
        }
    }

    fn sub(self, other: Self) -> Self {
        let difference = self.0.sub(other.0);
        match FAULT {
            NAN_BLIND => {
                let sighted = |x: f32| if x.is_nan() { 0.0 } else { x };
                Self(Scalar::from_array(difference.to_array().map(sighted)))
            }
            _ => Self(difference),
        }
    }

    fn store_f16(self, bytes: &mut [u8; 32]) {
        match FAULT {
            CLAMPED_F16 => self.0.min(Scalar::splat(65504.0)).store_f16(bytes),
            _ => self.0.store_f16(bytes),
        }
    }

    fn splat(x: f32) -> Self {
        Self(Scalar::splat(x))
    }

    fn from_array(lanes: [f32; LANES]) -> Self {
        Self(Scalar::from_array(lanes))
    }

    fn to_array(self) -> [f32; LANES] {
        self.0.to_array()
    }

    fn load_f32(bytes: &[u8; 64]) -> Self {
        Self(Scalar::load_f32(bytes))
    }

    fn load_f16(bytes: &[u8; 32]) -> Self {
        Self(Scalar::load_f16(bytes))
    }

    fn load_bf16(bytes: &[u8; 32]) -> Self {
        Self(Scalar::load_bf16(bytes))
    }

    fn store_f32(self, bytes: &mut [u8; 64]) {
        self.0.store_f32(bytes);
    }

    fn store_bf16(self, bytes: &mut [u8; 32]) {
        self.0.store_bf16(bytes);
    }

    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0))
    }

    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0))
    }

    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    fn pack2(self) -> [u8; 4] {
        self.0.pack2()
    }

    fn pack4(self) -> [u8; 8] {
        self.0.pack4()
    }

    fn pack8(self) -> [u8; 16] {
        self.0.pack8()
    }

    fn unpack2(packed: &[u8; 4]) -> Self {
        Self(Scalar::unpack2(packed))
    }

    fn unpack4(packed: &[u8; 8]) -> Self {
        Self(Scalar::unpack4(packed))
    }

    fn unpack8(packed: &[u8; 16]) -> Self {
        Self(Scalar::unpack8(packed))
    }
}

/// What the harness says of lanes with this fault.
fn caught<const FAULT: u8>() -> String {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = KernelTable::portable::<Faulty<FAULT>>(Isa::Scalar);
    compare(&faulty, scalar).unwrap_err()
}

#[test]
fn the_harness_catches_a_wrong_rounding() {
    assert!(caught::<HALF_UP>().contains("weights of kind"));
}

#[test]
fn the_harness_catches_another_order_of_addition() {
    assert!(caught::<FOLD_IN_ORDER>().contains("weights of kind"));
}

#[test]
fn the_harness_catches_a_table_blind_to_nan() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = KernelTable::portable::<Faulty<NAN_BLIND>>(Isa::Scalar);
    let difference = compare_non_finite(&faulty, scalar).unwrap_err();
    assert!(
        difference.starts_with("NaN at 0 of 1 weights"),
        "{difference}"
    );
}

#[test]
fn the_harness_catches_an_f16_that_does_not_overflow() {
    assert!(caught::<CLAMPED_F16>().contains("random codes"));
}

#[test]
fn the_harness_catches_a_write_past_the_end() {
    let mut buffer = Guarded::new(3, 1);
    buffer.bytes[MARGIN + 4] = 0;
    assert_eq!(buffer.check().unwrap_err(), "wrote 3 bytes past its slice");
}
