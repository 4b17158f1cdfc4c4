//! Packed blocks of weights in GGUF files, and their f32 values.
//!
//! A block is 32 or 256 weights of one row. Its fields follow each other without gaps, all
//! little-endian: `d`, `m` and `dmin` are f16 factors, `qs` are codes of 2 or 4 bits, `qh` and `ql`
//! the high and low bits of longer codes, `scales` small integers that each belong to a sub-block
//! of 16 or 32 weights.
//!
//! Products and sums are each rounded to f32, as in the package `gguf` and the scalar code of ggml.

use half::f16;

/// One packed type.
#[derive(Debug)]
pub(super) struct PackedType {
    /// Type number in files.
    pub(super) id: u32,
    pub(super) name: &'static str,
    /// Weights of a block.
    pub(super) weights: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// Decodes whole blocks into the bytes of their values.
    decode: fn(blocks: &[u8], values: &mut [u8]),
}

/// The most bytes of a block, and of its values.
pub(super) const MAX_BLOCK: usize = 210;
const MAX_VALUES: usize = 4 * 256;

/// Makes rows of the table; the decoder's type must agree with the sizes.
macro_rules! packed {
    ($($id:literal $name:ident $weights:literal $bytes:literal $decode:ident;)*) => {
        &[$({
            const _: () = assert!($bytes <= MAX_BLOCK && 4 * $weights <= MAX_VALUES);
            PackedType {
                id: $id,
                name: stringify!($name),
                weights: $weights,
                bytes: $bytes,
                decode: |blocks, values| each::<$bytes, $weights>(blocks, values, $decode),
            }
        }),*]
    };
}

/// The supported packed types: number, name, weights and bytes of a block, decoder.
pub(super) const PACKED: &[PackedType] = packed! {
    2  Q4_0   32  18  q4_0;
    3  Q4_1   32  20  q4_1;
    6  Q5_0   32  22  q5_0;
    7  Q5_1   32  24  q5_1;
    8  Q8_0   32  34  q8_0;
    10 Q2_K   256 84  q2_k;
    11 Q3_K   256 110 q3_k;
    12 Q4_K   256 144 q4_k;
    13 Q5_K   256 176 q5_k;
    14 Q6_K   256 210 q6_k;
    20 IQ4_NL 32  18  iq4_nl;
    23 IQ4_XS 256 136 iq4_xs;
};

impl PackedType {
    /// Bytes of a block's values.
    pub(super) fn value_bytes(&self) -> usize {
        4 * self.weights
    }

    /// Fills `out` with the values of `blocks` from byte `skip` on.
    pub(super) fn decode_from(&self, blocks: &[u8], skip: usize, mut out: &mut [u8]) {
        let mut blocks = blocks;
        if skip > 0 {
            let (first, later) = blocks.split_at(self.bytes);
            let len = out.len().min(self.value_bytes() - skip);
            let (begun, rest) = out.split_at_mut(len);
            self.decode_part(first, skip, begun);
            (blocks, out) = (later, rest);
        }
        let whole = out.len() / self.value_bytes();
        let (whole_blocks, last) = blocks.split_at(whole * self.bytes);
        let (values, rest) = out.split_at_mut(whole * self.value_bytes());
        (self.decode)(whole_blocks, values);
        if !rest.is_empty() {
            self.decode_part(&last[..self.bytes], 0, rest);
        }
    }

    /// Fills `out` with a part of one block's values.
    fn decode_part(&self, block: &[u8], skip: usize, out: &mut [u8]) {
        let mut values = [0; MAX_VALUES];
        (self.decode)(block, &mut values[..self.value_bytes()]);
        out.copy_from_slice(&values[skip..skip + out.len()]);
    }
}

/// Decodes block after block with `one`.
#[inline(always)]
fn each<const BYTES: usize, const WEIGHTS: usize>(
    blocks: &[u8],
    values: &mut [u8],
    one: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let mut floats = [0.0; WEIGHTS];
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    for (block, values) in blocks.iter().zip(values.chunks_exact_mut(4 * WEIGHTS)) {
        one(block, &mut floats);
        for (bytes, value) in values.as_chunks_mut::<4>().0.iter_mut().zip(floats) {
            // The bits of a NaN from an infinite or undefined factor differ between machines.
            let value = if value.is_nan() { f32::NAN } else { value };
            *bytes = value.to_le_bytes();
        }
    }
}

/// The values of 4-bit codes of IQ4_NL and IQ4_XS.
const IQ4: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Returns the f16 at byte `at` of a block.
#[inline(always)]
fn factor(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(field(block, at)).to_f32()
}

/// Returns the field at byte `at` of a block.
#[inline(always)]
fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let field = block[at..].first_chunk();
    *field.expect("a block has all its fields")
}

/// Decodes `d`, `qs[16]`: `d * (q - 8)`.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = factor(block, 0);
    nibbles(field(block, 2), out, |_, q| d * f32::from(q as i8 - 8));
}

/// Decodes `d`, `m`, `qs[16]`: `d * q + m`.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (factor(block, 0), factor(block, 2));
    nibbles(field(block, 4), out, |_, q| d * f32::from(q) + m);
}

/// Decodes `d`, `qh` of 32 bits, `qs[16]`: `d * (q - 16)`.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = factor(block, 0);
    let high = fifth_bits(field(block, 2));
    nibbles(field(block, 6), out, |i, q| {
        d * f32::from((q | high[i]) as i8 - 16)
    });
}

/// Decodes `d`, `m`, `qh` of 32 bits, `qs[16]`: `d * q + m`.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (factor(block, 0), factor(block, 2));
    let high = fifth_bits(field(block, 4));
    nibbles(field(block, 8), out, |i, q| d * f32::from(q | high[i]) + m);
}

/// Decodes `d`, `qs[32]` of i8: `d * q`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = factor(block, 0);
    let qs: [u8; 32] = field(block, 2);
    for (out, q) in out.iter_mut().zip(qs) {
        *out = d * f32::from(q as i8);
    }
}

/// Decodes `d`, `qs[16]`: `d` times the value of the code.
fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = factor(block, 0);
    nibbles(field(block, 2), out, |_, q| d * IQ4[usize::from(q)]);
}

/// Returns the 4-bit codes of a block of 32: the low halves of all bytes, then the high halves.
#[inline(always)]
fn nibbles(qs: [u8; 16], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    for (i, q) in qs.into_iter().enumerate() {
        out[i] = value(i, q & 15);
        out[i + 16] = value(i + 16, q >> 4);
    }
}

/// Returns the bits of a word, each as the fifth bit of a code.
#[inline(always)]
fn fifth_bits(word: [u8; 4]) -> [u8; 32] {
    std::array::from_fn(|i| (word[i / 8] >> (i % 8) & 1) << 4)
}

/// Decodes `scales[16]`, `qs[64]`, `d`, `dmin`. The factor of a sub-block of 16 is `d` times the
/// low half of its scale, and `dmin` times the high half is subtracted.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (factor(block, 80), factor(block, 82));
    let qs: [[u8; 32]; 2] = [field(block, 16), field(block, 48)];
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (qs, shift) = (&qs[row / 4], 2 * (row % 4));
        let halves = qs.as_chunks::<16>().0.iter().zip(out.as_chunks_mut().0);
        for ((qs, out), scale) in halves.zip(&block[2 * row..]) {
            let out: &mut [f32; 16] = out;
            let (scale, min) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
            for (out, q) in out.iter_mut().zip(qs) {
                *out = scale * f32::from(q >> shift & 3) - min;
            }
        }
    }
}

/// Decodes `hmask[32]`, `qs[64]`, `scales[12]`, `d`. The factor of a sub-block of 16 is `d * (scale
/// - 32)`; if a code's bit in `hmask` is not set, the code is reduced by 4.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = factor(block, 108);
    let high: [u8; 32] = field(block, 0);
    let qs: [[u8; 32]; 2] = [field(block, 32), field(block, 64)];
    // The low 4 bits of 16 scales, then the high 2 bits, four scales apart.
    let packed: [u8; 12] = field(block, 96);
    let scales: [f32; 16] = std::array::from_fn(|i| {
        let low = packed[i % 8] >> (4 * (i / 8)) & 15;
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        d * f32::from((low | high << 4) as i8 - 32)
    });
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (qs, shift) = (&qs[row / 4], 2 * (row % 4));
        for (i, out) in out.iter_mut().enumerate() {
            let q = (qs[i] >> shift & 3) | (high[i] >> row & 1) << 2;
            *out = scales[2 * row + i / 16] * f32::from(q as i8 - 4);
        }
    }
}

/// Decodes `d`, `dmin`, `scales[12]`, `qs[128]`. The factor of a sub-block of 32 is `d` times its
/// scale, and `dmin` times its minimum is subtracted.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let factors = scales_and_mins(block);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let qs: [u8; 32] = field(block, 16 + i / 2 * 32);
        let ((scale, min), shift) = (factors[i], i % 2 * 4);
        for (out, q) in out.iter_mut().zip(qs) {
            *out = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// Decodes `d`, `dmin`, `scales[12]`, `qh[32]`, `qs[128]`: like Q4_K, with bit `i` of `qh` as the
/// fifth bit of a code in sub-block `i`.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let factors = scales_and_mins(block);
    let high: [u8; 32] = field(block, 16);
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let qs: [u8; 32] = field(block, 48 + i / 2 * 32);
        let ((scale, min), shift) = (factors[i], i % 2 * 4);
        for ((out, q), high) in out.iter_mut().zip(qs).zip(high) {
            let q = (q >> shift & 15) | (high >> i & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// Returns the factor and the subtrahend of each sub-block of Q4_K and Q5_K: `d` and `dmin` times
/// integers of 6 bits. Each of the first four is in the low bits of a byte; the low 4 bits of the
/// others share a byte, and their high 2 bits are above those of the first four.
#[inline(always)]
fn scales_and_mins(block: &[u8]) -> [(f32, f32); 8] {
    let (d, dmin) = (factor(block, 0), factor(block, 2));
    let [scales, mins, both]: [[u8; 4]; 3] = [field(block, 4), field(block, 8), field(block, 12)];
    std::array::from_fn(|i| {
        let (scale, min) = match i {
            0..4 => (scales[i] & 63, mins[i] & 63),
            _ => {
                let both = both[i - 4];
                let (scale, min) = (scales[i - 4] >> 6, mins[i - 4] >> 6);
                (both & 15 | scale << 4, both >> 4 | min << 4)
            }
        };
        (d * f32::from(scale), dmin * f32::from(min))
    })
}

/// Decodes `ql[128]`, `qh[64]`, `scales[16]` of i8, `d`: codes of 6 bits, `d * scale * (q - 32)`
/// with a scale for each 16.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = factor(block, 208);
    let scales: [u8; 16] = field(block, 192);
    for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, row_of_half) = (row / 4, row % 4);
        let low: [u8; 32] = field(block, 64 * half + row_of_half % 2 * 32);
        let high: [u8; 32] = field(block, 128 + 32 * half);
        let (low_shift, high_shift) = (row_of_half / 2 * 4, 2 * row_of_half);
        for (i, out) in out.iter_mut().enumerate() {
            let q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
            let scale = d * f32::from(scales[2 * row + i / 16] as i8);
            *out = scale * f32::from(q as i8 - 32);
        }
    }
}

/// Decodes `d`, `scales_h` of 16 bits, `scales_l[4]`, `qs[128]`. The factor of a sub-block of 32 is
/// `d * (scale - 32)`, whose scale has 4 bits in `scales_l` and 2 in `scales_h`.
fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = factor(block, 0);
    let high = u16::from_le_bytes(field(block, 2));
    for (i, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
        let scale = low | ((high >> (2 * i) & 3) as u8) << 4;
        let scale = d * f32::from(scale as i8 - 32);
        nibbles(field(block, 8 + 16 * i), out, |_, q| {
            scale * IQ4[usize::from(q)]
        });
    }
}
