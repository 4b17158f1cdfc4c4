//! Compares a kernel table with another, bit for bit, at every length that mixes whole and part
//! vectors, at unaligned offsets, with canary bytes around every output. A new ISA's table is
//! put against the scalar one here; a table with a slightly wrong rounding must be caught.

mod calibration;
pub(super) mod codec;
mod inputs;

use super::codec::codecs;
use super::element::{Element, with_element};
use super::lanes::{BLOCK, Bounds, LANES, Lanes};
use super::scalar::Scalar;
use super::table::CodecTable;
use super::tables::{block_codec, kernel, kernel_by_kind, table, uniform_codec};
use super::uniform::code::{Code, layout_of, with_code};
use super::uniform::errors as uniform_errors;
use super::uniform::{decode, dot, dot_bytes, encode, feedback};
use super::*;
use crate::format::{self, Float, GroupSize, Layout, ScaleDtype, Scheme, Width};
use proptest::prelude::*;

const CANARY: u8 = 0xA5;
const MARGIN: usize = 64;

/// A buffer with canaries on both sides, its middle at any alignment.
pub(super) struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(super) fn new(len: usize, offset: usize) -> Self {
        Self {
            bytes: vec![CANARY; len + 2 * MARGIN],
            start: MARGIN + offset,
            len,
        }
    }

    pub(super) fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    pub(super) fn check(&mut self) -> Result<Vec<u8>, String> {
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
pub(super) fn weights(kind: usize, float: Float, len: usize) -> Vec<u8> {
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
    sums: Wanted,
}

/// Which sums to ask for.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    None,
    Gain,
    Moments,
    Error,
}

/// All that a table makes of a row.
#[derive(Debug, PartialEq, Default)]
struct Written {
    result: Option<Result<f32, RowFault>>,
    planes: [Vec<u8>; 3],
    gain: GainSums,
    moments: Vec<Moments>,
    error: ErrorSums,
    decoded: Vec<u8>,
    errors: ErrorSums,
    compared: Option<ErrorSums>,
    rescaled: Option<Result<(), RowFault>>,
    rescaled_planes: [Vec<u8>; 2],
}

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
    let mut written = Written::default();
    let mut moments = vec![Moments::default(); layout.group_size.count(cols)];
    let result = table.quantize_row(QuantizeRow {
        encoding: layout.into(),
        fit: case.fit,
        cols,
        float,
        weights: source.get(),
        importance: case.importance,
        sums: match case.sums {
            Wanted::None => Sums::None,
            Wanted::Gain => Sums::Gain(&mut written.gain),
            Wanted::Moments => Sums::Moments(&mut moments, &mut written.gain),
            Wanted::Error => Sums::Error(&mut written.error),
        },
        codes: codes.get(),
        scales: scales.get(),
        biases: biases.get(),
    });
    written.result = Some(result);
    let planes = [codes.check()?, scales.check()?, biases.check()?];
    if result.is_err() {
        return Ok(Written {
            result: Some(result),
            ..Default::default()
        });
    }
    let [codes, scales, biases] = &planes;
    let row = Planes {
        codes,
        scales,
        biases,
    };
    written.decoded = decode(table, layout, cols, row, float, offset)?;
    let errors = |moments| {
        table.error_row(ErrorRow {
            encoding: layout.into(),
            cols,
            planes: row,
            float,
            weights,
            moments,
        })
    };
    written.errors = errors(None);
    match case.sums {
        Wanted::Moments if errors(Some(&moments)) != written.errors => {
            return Err("moments taken on the way are not those taken later".to_owned());
        }
        Wanted::Error if layout.width == Width::Eight && written.error != written.errors => {
            return Err("errors taken on the way are not those taken later".to_owned());
        }
        _ => {}
    }
    written.moments = moments;
    written.compared = table.compare(CompareRow {
        original: (float, weights),
        decoded: (float, &written.decoded),
    });
    let mut rescaled = [scales.clone(), biases.clone()];
    let [scales, biases] = &mut rescaled;
    written.rescaled = Some(table.rescale_row(RescaleRow {
        encoding: layout.into(),
        gain: 1.0 / 0.93,
        codes: &mut [],
        scales,
        biases,
    }));
    written.rescaled_planes = rescaled;
    written.planes = planes;
    Ok(written)
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
        encoding: layout.into(),
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

/// Every combination of width, scheme, group size and scale dtype.
fn layouts() -> impl Iterator<Item = Layout> {
    (0..36).map(|case| Layout {
        width: Width::ALL[case % Width::ALL.len()],
        scheme: Scheme::ALL[case / 3 % 2],
        group_size: GroupSize::new([0, 16, 128][case / 6 % 3]).unwrap(),
        scale_dtype: ScaleDtype::ALL[case / 18 % 2],
    })
}

/// Sums that may be asked for, other ones for each case.
fn wanted(layout: Layout, case: usize) -> Wanted {
    match (layout.width, case % 3) {
        (_, 0) => Wanted::None,
        (_, 1) => Wanted::Gain,
        (Width::Eight, _) => Wanted::Error,
        _ => Wanted::Moments,
    }
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
                    let offset = (i + j + len) % 5;
                    let sums = wanted(layout, i + j + len);
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
    for len in [1, 15, 16, 17, 31, 32, 47, 130] {
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
                    sums: Wanted::None,
                };
                let (ours, expected) =
                    (run(table, case, &weights)?, run(reference, case, &weights)?);
                assert_eq!(expected.result, Some(Err(RowFault::NonFinite)));
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
    for table in others() {
        compare(table, scalar).unwrap_or_else(|case| panic!("{}: {case}", table.isa().name()));
    }
}

/// All kernels on a few rows, few enough for Miri: nothing is read or written beside its slice.
#[test]
fn scalar_kernels_keep_to_their_slices() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let importance: Vec<f32> = (0..100).map(|i| (i % 5) as f32 * 0.25).collect();
    // Miri takes seconds for each.
    let step = if cfg!(miri) { 5 } else { 1 };
    for (i, layout) in layouts().enumerate().step_by(step) {
        let (float, len) = (Float::ALL[i % 3], 37 + i);
        for (fit, importance) in [
            (Fit::MinMax, None),
            (Fit::LeastSquares(&[0.9, 0.6]), Some(&importance[..len])),
        ] {
            let case = Case {
                layout,
                fit,
                float,
                importance,
                offset: i % 5,
                sums: wanted(layout, i),
            };
            run(scalar, case, &weights(i % 7, float, len)).unwrap();
        }
        check_products(&[scalar], 2, len, 5, layout, i as u32).unwrap();
    }
    for cols in [24, 33, 64] {
        transform::tests::compare_rows(scalar, scalar, cols).unwrap();
    }
}

/// Tables of this machine beside the scalar one.
fn others() -> impl Iterator<Item = &'static KernelTable> {
    all().into_iter().skip(1)
}

/// Tables of this machine, the scalar one first.
pub(super) fn all() -> Vec<&'static KernelTable> {
    let tables = Isa::ALL.iter().filter_map(|&isa| KernelTable::of(isa));
    tables.collect()
}

/// Any finite value of a float, and often one of few exponents, so that groups are not all of
/// one size.
fn finite(float: Float) -> impl Strategy<Value = Vec<u8>> {
    let bits = (
        any::<u32>(),
        prop_oneof![Just(None), (1u32..254).prop_map(Some)],
    );
    bits.prop_map(move |(bits, exponent)| {
        let exponent = exponent.unwrap_or(120 + bits % 4);
        let bits = bits & 0x807F_FFFF | exponent << 23;
        match float {
            Float::F32 => bits.to_le_bytes().to_vec(),
            Float::BF16 => ((bits >> 16) as u16).to_le_bytes().to_vec(),
            Float::F16 => {
                let half = (bits >> 16) as u16;
                (if half & 0x7C00 == 0x7C00 {
                    half & !0x4000
                } else {
                    half
                })
                .to_le_bytes()
                .to_vec()
            }
        }
    })
}

proptest! {
    /// Any finite weights, lengths, offsets and layouts.
    #[test]
    fn any_row_is_quantized_as_by_scalar(
        (float, weights) in (0usize..3).prop_flat_map(|f| {
            let float = Float::ALL[f];
            (Just(float), prop::collection::vec(finite(float), 0..700))
        }),
        layout in 0usize..36,
        fit in 0usize..3,
        offset in 0usize..8,
    ) {
        let layout = layouts().nth(layout).unwrap();
        let importance: Vec<f32> = (0..weights.len()).map(|i| (i % 7) as f32 * 0.5).collect();
        let weights = weights.concat();
        for sums in 0..3 {
            let case = Case {
                layout,
                fit: [Fit::MinMax, Fit::LeastSquares(&[0.9, 0.6, 0.4])][fit.min(1)],
                float,
                importance: (fit == 2).then_some(importance.as_slice()),
                offset,
                sums: wanted(layout, sums),
            };
            let scalar = run(KernelTable::of(Isa::Scalar).unwrap(), case, &weights).unwrap();
            for table in others() {
                let found = run(table, case, &weights).unwrap();
                prop_assert_eq!(&found, &scalar, "{}: {:?}", table.isa().name(), case);
            }
        }
    }

    /// Products of any matrix with some vectors, as exact as said, for every table.
    #[test]
    fn products_are_as_exact_as_said(
        rows in 1usize..4,
        cols in 1usize..700,
        batch in 1usize..7,
        layout in 0usize..36,
        seed in any::<u32>(),
    ) {
        let layout = layouts().nth(layout).unwrap();
        check_products(&all(), rows, cols, batch, layout, seed)?;
    }
}

#[test]
fn products_of_long_rows_are_as_exact_as_said() {
    for (i, layout) in layouts().enumerate() {
        check_products(&all(), 1, 20_000, 1, layout, i as u32).unwrap();
    }
}

fn check_products(
    tables: &[&KernelTable],
    rows: usize,
    cols: usize,
    batch: usize,
    layout: Layout,
    seed: u32,
) -> Result<(), TestCaseError> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut codes = vec![0; rows * layout.code_bytes(cols)];
    for byte in &mut codes {
        *byte = match seed % 2 {
            0 => (next() * 128.0) as i8 as u8,
            // Small weights of large codes, which cancel where their zero point is left in.
            _ => 0x80u8.wrapping_add_signed((next() * 2.0) as i8),
        };
    }
    let mut plane = |bytes: usize, middle: f32| {
        let mut plane = vec![0; bytes];
        for i in 0..bytes / layout.scale_dtype.size() {
            layout.scale_dtype.put(&mut plane, i, middle + next());
        }
        plane
    };
    let scales = plane(rows * layout.scale_bytes(cols), 0.1);
    let biases = plane(rows * layout.bias_bytes(cols), -5.0);
    let planes = Planes {
        codes: &codes,
        scales: &scales,
        biases: &biases,
    };
    let x: Vec<f32> = (0..batch * cols).map(|_| next()).collect();
    let groups = layout.group_size.count(cols);
    let span = layout.group_size.span(cols);
    for table in tables {
        let (mut y, mut y_bytes) = (vec![f32::NAN; batch * rows], vec![f32::NAN; batch * rows]);
        table.matvec(MatVec {
            encoding: layout.into(),
            cols,
            planes,
            rows: 0..rows,
            x: &x,
            y: &mut y,
            y_rows: rows,
        });
        let mut values = vec![0; x.len()];
        let (mut steps, mut sums) = (vec![0.0; batch * groups], vec![0.0; batch * groups]);
        let out = ActivationsMut {
            encoding: layout.into(),
            values: &mut values,
            scales: &mut steps,
            sums: &mut sums,
        };
        prop_assert!(table.quantize_vectors(&x, cols, out));
        table.matvec_bytes(ByteMatVec {
            encoding: layout.into(),
            cols,
            planes,
            rows: 0..rows,
            x: Activations {
                values: &values,
                scales: &steps,
                sums: &sums,
            },
            y: &mut y_bytes,
            y_rows: rows,
        });
        for row in 0..rows {
            let planes = planes.row(layout.into(), cols, row);
            let weights = decode(table, layout, cols, planes, Float::F32, 0).unwrap();
            let mut unpacked = vec![0; cols];
            format::unpack(layout.width, planes.codes, &mut unpacked);
            for b in 0..batch {
                let (mut exact, mut magnitude) = (0.0, 0.0);
                let (mut bytes_exact, mut bytes_magnitude) = (0.0, 0.0);
                for g in 0..groups {
                    let places = g * span..cols.min((g + 1) * span);
                    let x = &x[b * cols..(b + 1) * cols];
                    // As it is defined: the largest magnitude becomes 127.
                    let largest = x[places.clone()].iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    // The largest magnitude that a code could stand for.
                    let scale = layout.scale_dtype.get(planes.scales, g);
                    let bias = match layout.scheme {
                        Scheme::Symmetric => 0.0,
                        Scheme::Affine => layout.scale_dtype.get(planes.biases, g),
                    };
                    let of = |code: f32| (scale * (code - layout.zero_point()) + bias).abs();
                    let most = of(0.0).max(of(f32::from(layout.width.max_code())));
                    let mut all = 0.0;
                    for i in places {
                        let w = f64::from(Float::F32.get(&weights, i));
                        exact += w * f64::from(x[i]);
                        magnitude += (w * f64::from(x[i])).abs();
                        let value = f64::from((x[i] * (127.0 / largest)).round_ties_even());
                        let value = value * f64::from(largest / 127.0);
                        bytes_exact += w * value;
                        all += value.abs();
                    }
                    bytes_magnitude += f64::from(most) * all;
                }
                let (found, found_bytes) = (y[b * rows + row], y_bytes[b * rows + row]);
                let name = table.isa().name();
                prop_assert!(
                    (f64::from(found) - exact).abs() <= magnitude / 131_072.0,
                    "{name} {layout:?} {rows}x{cols} batch {batch}: {found}, exactly {exact}"
                );
                prop_assert!(
                    (f64::from(found_bytes) - bytes_exact).abs() <= bytes_magnitude / 131_072.0,
                    "{name} {layout:?} {rows}x{cols} batch {batch}: bytes {found_bytes}, exactly {bytes_exact}"
                );
            }
        }
    }
    Ok(())
}

const HALF_UP: u8 = 0;
const FOLD_IN_ORDER: u8 = 1;
const NAN_BLIND: u8 = 2;
const CLAMPED_F16: u8 = 3;
const DIVIDES_BY_MULTIPLYING: u8 = 4;

/// Scalar lanes with one operation done wrong. Never inlined, or four tables more would take a
/// minute to compile.
#[derive(Clone, Copy)]
struct Faulty<const FAULT: u8>(Scalar);

impl<const FAULT: u8> Faulty<FAULT> {
    fn rounded(codes: [Self; BLOCK]) -> [Scalar; BLOCK] {
        codes
            .map(|codes| Scalar::from_array(codes.to_array().map(|x| x.max(0.0))))
            .map(|codes| Self(codes).round().0)
    }
}

impl<const FAULT: u8> Lanes for Faulty<FAULT> {
    const SPECIALIZED: bool = false;
    const SUMS: usize = 2;

    #[inline(never)]
    fn round(self) -> Self {
        match FAULT {
            HALF_UP => Self::from_array(self.to_array().map(|x| (x + 0.5).floor())),
            _ => Self(self.0.round()),
        }
    }

    #[inline(never)]
    fn bounds16(words: &[[u8; 32]]) -> Bounds<u16> {
        let mut words = words.to_vec();
        if FAULT == NAN_BLIND {
            let all = words.as_flattened_mut().as_chunks_mut::<2>().0;
            for word in all.iter_mut().filter(|word| word[1] & 0x7C == 0x7C) {
                *word = [0, 0];
            }
        }
        Scalar::bounds16(&words)
    }

    #[inline(never)]
    fn bounds32(words: &[[u8; 64]]) -> Bounds<u32> {
        Scalar::bounds32(words)
    }

    #[inline(never)]
    fn abs(self) -> Self {
        Self(self.0.abs())
    }

    #[inline(never)]
    fn add_where_above(self, x: Self, threshold: Self, addend: Self) -> Self {
        Self(self.0.add_where_above(x.0, threshold.0, addend.0))
    }

    #[inline(never)]
    fn fold_add(self) -> f32 {
        match FAULT {
            FOLD_IN_ORDER => self.to_array().iter().sum(),
            _ => self.0.fold_add(),
        }
    }

    #[inline(never)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0))
    }

    #[inline(never)]
    fn store_f16(self, bytes: &mut [u8; 32]) {
        match FAULT {
            CLAMPED_F16 => self.0.min(Scalar::splat(65504.0)).store_f16(bytes),
            _ => self.0.store_f16(bytes),
        }
    }

    #[inline(never)]
    fn splat(x: f32) -> Self {
        Self(Scalar::splat(x))
    }

    #[inline(never)]
    fn from_array(lanes: [f32; LANES]) -> Self {
        Self(Scalar::from_array(lanes))
    }

    #[inline(never)]
    fn to_array(self) -> [f32; LANES] {
        self.0.to_array()
    }

    #[inline(never)]
    fn load_f32(bytes: &[u8; 64]) -> Self {
        Self(Scalar::load_f32(bytes))
    }

    #[inline(never)]
    fn load_f16(bytes: &[u8; 32]) -> Self {
        Self(Scalar::load_f16(bytes))
    }

    #[inline(never)]
    fn load_bf16(bytes: &[u8; 32]) -> Self {
        Self(Scalar::load_bf16(bytes))
    }

    #[inline(never)]
    fn store_f32(self, bytes: &mut [u8; 64]) {
        self.0.store_f32(bytes);
    }

    #[inline(never)]
    fn store_bf16(self, bytes: &mut [u8; 32]) {
        self.0.store_bf16(bytes);
    }

    #[inline(never)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0))
    }

    #[inline(never)]
    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0))
    }

    #[inline(never)]
    fn div(self, other: Self) -> Self {
        match FAULT {
            DIVIDES_BY_MULTIPLYING => self.mul(Self(Scalar::splat(1.0).div(other.0))),
            _ => Self(self.0.div(other.0)),
        }
    }

    #[inline(never)]
    fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    #[inline(never)]
    fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    #[inline(never)]
    fn pack2(codes: [Self; BLOCK]) -> [u8; 16] {
        Scalar::pack2(Self::rounded(codes))
    }

    #[inline(never)]
    fn pack4(codes: [Self; BLOCK]) -> [u8; 32] {
        Scalar::pack4(Self::rounded(codes))
    }

    #[inline(never)]
    fn pack8(codes: [Self; BLOCK]) -> [u8; 64] {
        Scalar::pack8(Self::rounded(codes))
    }

    #[inline(never)]
    fn look_up2(table: Self, packed: &[u8; 4]) -> Self {
        Self(Scalar::look_up2(table.0, packed))
    }

    #[inline(never)]
    fn look_up4(table: Self, packed: &[u8; 8]) -> Self {
        Self(Scalar::look_up4(table.0, packed))
    }

    #[inline(never)]
    fn unpack8(packed: &[u8; 16]) -> Self {
        Self(Scalar::unpack8(packed))
    }
}

/// What the harness says of a wrong table.
fn caught(faulty: &KernelTable) -> String {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    compare(faulty, scalar).unwrap_err()
}

#[test]
fn the_harness_catches_a_wrong_rounding() {
    assert!(caught(&table!(Isa::Scalar, Faulty<HALF_UP>, Scalar)).contains("weights of kind"));
}

#[test]
fn the_harness_catches_another_order_of_addition() {
    assert!(
        caught(&table!(Isa::Scalar, Faulty<FOLD_IN_ORDER>, Scalar)).contains("weights of kind")
    );
}

#[test]
fn the_harness_catches_a_table_blind_to_nan() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = &table!(Isa::Scalar, Faulty<NAN_BLIND>, Scalar);
    let difference = compare_non_finite(faulty, scalar).unwrap_err();
    assert!(
        difference.starts_with("NaN at 0 of 16 weights"),
        "{difference}"
    );
}

#[test]
fn the_harness_catches_an_f16_that_does_not_overflow() {
    assert!(caught(&table!(Isa::Scalar, Faulty<CLAMPED_F16>, Scalar)).contains("weights of kind"));
}

#[test]
fn the_harness_catches_a_division_that_rounds_twice() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let faulty = &table!(Isa::Scalar, Faulty<DIVIDES_BY_MULTIPLYING>, Scalar);
    let difference = transform::tests::compare(faulty, scalar).unwrap_err();
    assert!(difference.contains("Back by"), "{difference}");
}

#[test]
fn the_harness_catches_a_write_past_the_end() {
    let mut buffer = Guarded::new(3, 1);
    buffer.bytes[MARGIN + 4] = 0;
    assert_eq!(buffer.check().unwrap_err(), "wrote 3 bytes past its slice");
}
