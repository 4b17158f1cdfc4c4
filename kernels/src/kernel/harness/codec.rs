//! The drivers of block codecs, by a codec that only tests have: 32 columns share an f16 scale.

use super::*;
use crate::format::{Choice, Encoding, SPECS};
use crate::kernel::codec::{CODECS, Codec, index};
use crate::kernel::table::CodecTable;

/// Blocks of 32 columns: an f16 scale, then 32 signed bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel) struct Bytes32;

/// Bytes of a block.
const BYTES: usize = 34;

/// Packed codes are numbers from 0 up, which this changes to signed ones.
const SIGN: u8 = 0x80;

impl Codec for Bytes32 {
    const BLOCK: usize = 32;

    #[inline(always)]
    fn new(_: Encoding) -> Self {
        Self
    }

    #[inline(always)]
    fn plane_bytes(self, cols: usize) -> [usize; 3] {
        [cols.div_ceil(Self::BLOCK) * BYTES, 0, 0]
    }

    #[inline(always)]
    fn decode<L: Lanes>(self, row: Planes<'_>, at: usize) -> L {
        let block = &row.codes[at / Self::BLOCK * BYTES..][..BYTES];
        let scale = ScaleDtype::F16.get(block, 0);
        let codes = &block[2 + at % Self::BLOCK..];
        let codes = codes
            .first_chunk()
            .expect("a whole block")
            .map(|code: u8| code ^ SIGN);
        let codes = L::unpack8(&codes).sub(L::splat(f32::from(SIGN)));
        codes.mul(L::splat(scale))
    }

    #[inline(always)]
    fn encode<L: Lanes>(
        self,
        weights: &[f32],
        _: Option<&[f32]>,
        at: usize,
        planes: [&mut [u8]; 3],
    ) -> Result<(), RowFault> {
        let block = &mut planes[0][at / Self::BLOCK * BYTES..][..BYTES];
        let vectors = weights.as_chunks::<LANES>().0;
        let mut largest = L::splat(0.0);
        for vector in vectors {
            largest = largest.max(L::from_array(*vector).abs());
        }
        let largest = largest.to_array().into_iter().fold(0.0, f32::max);
        let scale = ScaleDtype::F16.put(block, 0, largest / 127.0);
        if !(scale * 127.0).is_finite() {
            return Err(RowFault::ScaleOverflow);
        }
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (inverse, sign) = (L::splat(inverse), L::splat(f32::from(SIGN)));
        let mut codes = [L::splat(0.0); BLOCK];
        for (code, vector) in codes.iter_mut().zip(vectors) {
            let exact = L::from_array(*vector).mul(inverse).round().add(sign);
            *code = exact.max(L::splat(1.0)).min(L::splat(255.0));
        }
        let packed = L::pack8(codes).map(|code| code ^ SIGN);
        block[2..].copy_from_slice(&packed[..Self::BLOCK]);
        Ok(())
    }

    #[inline(always)]
    fn rescale<L: Lanes>(self, row: RescaleRow<'_>) -> Result<(), RowFault> {
        for block in row.codes.chunks_exact_mut(BYTES) {
            let scale = ScaleDtype::F16.get(block, 0) * row.gain;
            if !(ScaleDtype::F16.put(block, 0, scale) * 127.0).is_finite() {
                return Err(RowFault::ScaleOverflow);
            }
        }
        Ok(())
    }
}

/// A codec under test: one of blocks, with kernels in every table.
#[derive(Clone, Copy)]
struct Tested {
    name: &'static str,
    /// The place of its kernels.
    index: usize,
    encoding: Encoding,
    /// Columns of a block.
    block: usize,
    /// Bytes of the planes of a row.
    plane_bytes: fn(Encoding, usize) -> [usize; 3],
}

impl Tested {
    fn of(self, table: &KernelTable) -> &CodecTable {
        &table.codecs[self.index]
    }
}

/// The codec of this file, which no encoding leads to, and does not ask for one.
fn own() -> Tested {
    Tested {
        name: "bytes32",
        index: CODECS - 1,
        encoding: layouts().next().unwrap().into(),
        block: Bytes32::BLOCK,
        plane_bytes: |_, cols| Bytes32.plane_bytes(cols),
    }
}

/// Every codec that the drivers drive: that of this file, and those of encodings.
fn driven() -> Vec<Tested> {
    let encodings = SPECS
        .iter()
        .map(|spec| (spec, spec.format.encoding(Choice::DEFAULT)));
    let blocks = encodings.filter(|(_, encoding)| encoding.layout().is_none());
    let tested = blocks.map(|(spec, encoding)| Tested {
        name: spec.name,
        index: index(encoding),
        encoding,
        block: spec.block,
        plane_bytes: Encoding::plane_bytes,
    });
    tested.chain([own()]).collect()
}

/// What a table makes of a row.
#[derive(Debug, PartialEq)]
struct Made {
    result: Result<f32, RowFault>,
    planes: [Vec<u8>; 3],
    gain: GainSums,
    taken: ErrorSums,
    errors: ErrorSums,
    decoded: Vec<u8>,
    decodable: bool,
    rescaled: [Vec<u8>; 3],
}

fn make(table: &KernelTable, tested: Tested, float: Float, weights: &[u8], offset: usize) -> Made {
    let (codec, encoding) = (tested.of(table), tested.encoding);
    let cols = weights.len() / float.size();
    let mut guarded = (tested.plane_bytes)(encoding, cols).map(|len| Guarded::new(len, offset));
    let (mut gain, mut taken) = (GainSums::default(), ErrorSums::default());
    let mut quantize = |sums: Sums<'_>| {
        let [codes, scales, biases] = guarded.each_mut().map(Guarded::get);
        let row = QuantizeRow {
            encoding,
            fit: Fit::MinMax,
            cols,
            float,
            weights,
            importance: None,
            sums,
            codes,
            scales,
            biases,
        };
        // SAFETY: the table is one of this machine, the planes as long as the codec says.
        let result = unsafe { (codec.quantize)(row) };
        (
            result,
            guarded.each_mut().map(|plane| plane.check().unwrap()),
        )
    };
    let (result, made) = quantize(Sums::None);
    if result.is_ok() {
        assert_eq!(quantize(Sums::Gain(&mut gain)), (result, made.clone()));
        assert_eq!(quantize(Sums::Error(&mut taken)), (result, made.clone()));
    }
    let planes = planes_of(&made);
    let mut decoded = Guarded::new(weights.len(), offset);
    let mut rescaled = made.clone();
    let [codes, scales, biases] = rescaled.each_mut().map(|plane| &mut plane[..]);
    // SAFETY: as above.
    let errors = unsafe {
        (codec.decode)(DecodeRow {
            encoding,
            cols,
            planes,
            float,
            weights: decoded.get(),
        });
        let _ = (codec.rescale)(RescaleRow {
            encoding,
            gain: 1.0 / 0.93,
            codes,
            scales,
            biases,
        });
        (codec.error)(ErrorRow {
            encoding,
            cols,
            planes,
            float,
            weights,
            moments: None,
        })
    };
    if result.is_ok() {
        assert_eq!(taken, errors, "{}", tested.name);
    }
    Made {
        result,
        gain,
        taken,
        errors,
        decoded: decoded.check().unwrap(),
        decodable: (codec.decodable)(encoding, cols, planes),
        rescaled,
        planes: made,
    }
}

fn planes_of(planes: &[Vec<u8>; 3]) -> Planes<'_> {
    let [codes, scales, biases] = planes;
    Planes {
        codes,
        scales,
        biases,
    }
}

#[test]
fn block_codecs_are_the_same_everywhere() {
    let scalar = KernelTable::of(Isa::Scalar).unwrap();
    let lengths = (0..=70).chain([127, 128, 129, 703, 1023, 1024, 1025, 2100]);
    for (len, tested) in lengths.flat_map(|len| driven().into_iter().map(move |t| (len, t))) {
        for &float in Float::ALL {
            for kind in 0..7 {
                let weights = weights(kind, float, len);
                let expected = make(scalar, tested, float, &weights, 0);
                for table in others() {
                    let name = format!("{} {}", table.isa().name(), tested.name);
                    let found = make(table, tested, float, &weights, len % 5);
                    assert_eq!(
                        found, expected,
                        "{name}: {len} {float} weights of kind {kind}"
                    );
                }
            }
        }
    }
}

#[test]
fn block_codecs_quantize_measure_and_decode() {
    let len = 1000;
    let bytes = weights(0, Float::F32, len);
    let float = |bytes: &[u8]| -> Vec<f32> { (0..len).map(|i| Float::F32.get(bytes, i)).collect() };
    let original = float(&bytes);
    for table in all() {
        let made = make(table, own(), Float::F32, &bytes, 0);
        let decoded = float(&made.decoded);
        let mut sums = ErrorSums::default();
        for (i, (w, y)) in original.iter().zip(&decoded).enumerate() {
            let block = &made.planes[0][i / 32 * BYTES..][..BYTES];
            let code = f32::from(block[2 + i % 32] as i8);
            let scale = ScaleDtype::F16.get(block, 0);
            assert_eq!(*y, code * scale);
            assert!((w - y).abs() <= 0.51 * scale.max(1e-7), "{w} {y} {scale}");
            let (w, y) = (f64::from(*w), f64::from(*y));
            sums.signal += w * w;
            sums.decoded += y * y;
            sums.error += (w - y) * (w - y);
        }
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
        assert!(near(made.errors.signal, sums.signal) && near(made.errors.error, sums.error));
        assert!(near(made.gain.signal, sums.signal) && made.decodable);
        assert_eq!(
            made.result,
            Ok(original.iter().fold(0.0f32, |a, w| a.max(w.abs())))
        );
        let (before, after) = (
            ScaleDtype::F16.get(&made.planes[0], 0),
            ScaleDtype::F16.get(&made.rescaled[0], 0),
        );
        assert!((after / before - 1.0 / 0.93).abs() < 1e-3);
    }
}

#[test]
fn block_codecs_refuse_what_is_not_finite_or_too_large() {
    for table in all() {
        let mut bytes = weights(0, Float::F32, 50);
        bytes[4 * 40..4 * 41].copy_from_slice(&f32::NAN.to_le_bytes());
        let result = make(table, own(), Float::F32, &bytes, 0).result;
        assert_eq!(result, Err(RowFault::NonFinite));
        let result = make(table, own(), Float::F32, &weights(4, Float::F32, 50), 0).result;
        assert_eq!(result, Err(RowFault::ScaleOverflow));
    }
}

#[test]
fn block_codecs_multiply() {
    let (rows, batch) = (3, 2);
    let lengths = [1, 15, 16, 31, 32, 33, 64, 700, 5000];
    for (cols, tested) in lengths
        .into_iter()
        .flat_map(|cols| driven().into_iter().map(move |t| (cols, t)))
    {
        let (encoding, block) = (tested.encoding, tested.block);
        let x: Vec<f32> = (0..batch * cols)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0)
            .collect();
        for table in all() {
            let name = format!("{} {}", table.isa().name(), tested.name);
            let weights = |row: usize| weights(row % 2, Float::F32, cols);
            let made = |row: usize| make(table, tested, Float::F32, &weights(row), 0);
            let made: Vec<Made> = (0..rows).map(made).collect();
            let plane = |i: usize| {
                made.iter()
                    .flat_map(|made| made.planes[i].clone())
                    .collect()
            };
            let planes: [Vec<u8>; 3] = [plane(0), plane(1), plane(2)];
            let planes = planes_of(&planes);
            let groups = cols.div_ceil(block);
            let (mut y, mut y_bytes) = (vec![0.0; rows * batch], vec![0.0; rows * batch]);
            let mut values = vec![0; batch * cols];
            let (mut scales, mut sums) = (vec![0.0; batch * groups], vec![0.0; batch * groups]);
            // SAFETY: the table is one of this machine; lengths are those of rows and columns.
            unsafe {
                (tested.of(table).matvec)(MatVec {
                    encoding,
                    cols,
                    planes,
                    rows: 0..rows,
                    x: &x,
                    y: &mut y,
                    y_rows: rows,
                });
                let out = ActivationsMut {
                    encoding,
                    values: &mut values,
                    scales: &mut scales,
                    sums: &mut sums,
                };
                assert!((tested.of(table).quantize_vectors)(&x, cols, out));
                (tested.of(table).matvec_bytes)(ByteMatVec {
                    encoding,
                    cols,
                    planes,
                    rows: 0..rows,
                    x: Activations {
                        values: &values,
                        scales: &scales,
                        sums: &sums,
                    },
                    y: &mut y_bytes,
                    y_rows: rows,
                });
            }
            for (row, made) in made.iter().enumerate() {
                for b in 0..batch {
                    let (mut exact, mut of_bytes, mut magnitude) = (0.0, 0.0, 0.0);
                    for i in 0..cols {
                        let w = f64::from(Float::F32.get(&made.decoded, i));
                        let step = f64::from(scales[b * groups + i / block]);
                        let product = w * f64::from(x[b * cols + i]);
                        exact += product;
                        of_bytes += w * step * f64::from(values[b * cols + i]);
                        magnitude += product.abs();
                    }
                    let near = |found: f32, exact: f64| {
                        (f64::from(found) - exact).abs() <= magnitude / 131_072.0 + 1e-12
                    };
                    let at = b * rows + row;
                    assert!(near(y[at], exact), "{name} {cols}: {} {exact}", y[at]);
                    assert!(
                        near(y_bytes[at], of_bytes),
                        "{name} {cols}: {} {of_bytes}",
                        y_bytes[at]
                    );
                }
            }
        }
    }
}
