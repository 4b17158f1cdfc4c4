//! Multiplies f8 weights by their scales while reading.

use super::blocks::Blocks;
use crate::error::Result;
use crate::source::Source;
use crate::tensor::Dtype;

/// Number of weights multiplied at once.
const CHUNK: usize = 16 << 10;

/// Number of scales read at once.
const WINDOW: usize = 4 << 10;

/// An f8 weight and its scale.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) weight: usize,
    pub(super) scale: usize,
    pub(super) blocks: Blocks,
}

/// The type of true weights. It has the range of f32, and its rounding error of at most 2^-9 of a
/// value is small compared with that of f8, at least 2^-4.
pub(super) const TRUE: Dtype = Dtype::BF16;

impl Scaled {
    /// Fills `out` with true weights from byte `offset` on: each value times its scale in f32,
    /// rounded to bf16 (half to even).
    ///
    /// # Errors
    /// Returns the errors of [`Source::read`].
    pub(super) fn read(&self, source: &dyn Source, offset: usize, out: &mut [u8]) -> Result<()> {
        let dtype = source.tensors()[self.weight].dtype;
        let values: [f32; 256] = std::array::from_fn(|code| dtype.value(&[code as u8], 0));
        let mut scales = Scales::new(source, self.scale);
        let mut codes = vec![0; CHUNK.min(out.len() / 2 + 2)];
        let (cols, run) = (self.blocks.cols(), self.blocks.run());
        let (mut offset, mut rest) = (offset, out);
        while !rest.is_empty() {
            let first = offset / 2;
            let count = (offset + rest.len()).div_ceil(2) - first;
            let codes = &mut codes[..count.min(CHUNK)];
            source.read(self.weight, first, codes)?;
            let mut at = 0;
            while at < codes.len() {
                let (row, col) = ((first + at) / cols, (first + at) % cols);
                let len = (run - col % run).min(cols - col).min(codes.len() - at);
                let scale = scales.get(self.blocks.first_scale(row) + col / run)?;
                let codes = &codes[at..at + len];
                // Both ends of the requested range may be within a value.
                let skip = if at == 0 { offset % 2 } else { 0 };
                let bytes = (2 * len - skip).min(rest.len());
                let (now, later) = rest.split_at_mut(bytes);
                let truth = |code: u8| {
                    half::bf16::from_f32(values[usize::from(code)] * scale).to_le_bytes()
                };
                if skip == 0 && bytes == 2 * len {
                    for (out, &code) in now.as_chunks_mut().0.iter_mut().zip(codes) {
                        *out = truth(code);
                    }
                } else {
                    let truths = codes.iter().flat_map(|&code| truth(code)).skip(skip);
                    now.iter_mut()
                        .zip(truths)
                        .for_each(|(out, byte)| *out = byte);
                }
                rest = later;
                offset += bytes;
                at += len;
            }
        }
        Ok(())
    }
}

/// Scales, read in windows of neighbours.
struct Scales<'a> {
    source: &'a dyn Source,
    index: usize,
    first: usize,
    window: Vec<u8>,
}

impl<'a> Scales<'a> {
    fn new(source: &'a dyn Source, index: usize) -> Self {
        Self {
            source,
            index,
            first: 0,
            window: Vec::new(),
        }
    }

    fn get(&mut self, scale: usize) -> Result<f32> {
        let info = &self.source.tensors()[self.index];
        let size = info.dtype.bits() / 8;
        let held = self.window.len() / size;
        if scale < self.first || scale - self.first >= held {
            let count = WINDOW.min(info.shape.elements() - scale);
            self.window.resize(count * size, 0);
            self.source
                .read(self.index, scale * size, &mut self.window)?;
            self.first = scale;
        }
        Ok(scale_of(info.dtype, &self.window, scale - self.first))
    }
}

/// Whether scales may have this type.
pub(super) fn is_scale(dtype: Dtype) -> bool {
    matches!(
        dtype,
        Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8E8M0 | Dtype::U8
    )
}

/// Returns scale `index` of `bytes`. 8-bit scales are E8M0: 2 to the power of the byte minus 127,
/// and NaN for 255.
fn scale_of(dtype: Dtype, bytes: &[u8], index: usize) -> f32 {
    match dtype {
        Dtype::F8E8M0 | Dtype::U8 => match bytes[index] {
            // This power is below the smallest normal f32.
            0 => f32::from_bits(0x0040_0000),
            255 => f32::NAN,
            exponent => f32::from_bits(u32::from(exponent) << 23),
        },
        dtype => dtype.value(bytes, index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e8m0_scales_are_powers_of_two() {
        for (byte, power) in [(0, -127), (1, -126), (127, 0), (130, 3), (254, 127)] {
            let expected = libm::exp2(f64::from(power)) as f32;
            assert_eq!(scale_of(Dtype::F8E8M0, &[byte], 0), expected, "{byte}");
        }
        assert!(scale_of(Dtype::U8, &[255], 0).is_nan());
    }
}
