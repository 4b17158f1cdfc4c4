//! Dtypes, shapes and tensor descriptions, read from files or given by callers.

mod f8;
mod facts;

use std::fmt;

pub use facts::{Facts, shortened};

use crate::format::Float;

/// Element type of a source tensor, named as in safetensors (lower case).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names say it
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    F6E2M3,
    F6E3M2,
    F4,
    C64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

/// Rows of dtype, ArrowQuant's name, the name in a safetensors header, bits per element.
const DTYPES: &[(Dtype, &str, &str, usize)] = &[
    (Dtype::F64, "f64", "F64", 64),
    (Dtype::F32, "f32", "F32", 32),
    (Dtype::F16, "f16", "F16", 16),
    (Dtype::BF16, "bf16", "BF16", 16),
    (Dtype::F8E4M3, "f8_e4m3", "F8_E4M3", 8),
    (Dtype::F8E5M2, "f8_e5m2", "F8_E5M2", 8),
    (Dtype::F8E4M3Fnuz, "f8_e4m3fnuz", "F8_E4M3FNUZ", 8),
    (Dtype::F8E5M2Fnuz, "f8_e5m2fnuz", "F8_E5M2FNUZ", 8),
    (Dtype::F8E8M0, "f8_e8m0", "F8_E8M0", 8),
    (Dtype::F6E2M3, "f6_e2m3", "F6_E2M3", 6),
    (Dtype::F6E3M2, "f6_e3m2", "F6_E3M2", 6),
    (Dtype::F4, "f4", "F4", 4),
    (Dtype::C64, "c64", "C64", 64),
    (Dtype::I64, "i64", "I64", 64),
    (Dtype::I32, "i32", "I32", 32),
    (Dtype::I16, "i16", "I16", 16),
    (Dtype::I8, "i8", "I8", 8),
    (Dtype::U64, "u64", "U64", 64),
    (Dtype::U32, "u32", "U32", 32),
    (Dtype::U16, "u16", "U16", 16),
    (Dtype::U8, "u8", "U8", 8),
    (Dtype::Bool, "bool", "BOOL", 8),
];

impl Dtype {
    /// Returns every dtype.
    pub fn all() -> impl Iterator<Item = Self> {
        DTYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Dtype, &'static str, &'static str, usize) {
        DTYPES
            .iter()
            .find(|row| row.0 == self)
            .expect("every dtype has a row")
    }

    /// The name in quantized files and reports.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        self.row().2
    }

    /// Bits of one element.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Returns the dtype with this name in quantized files.
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Returns the dtype with this name in a safetensors header.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The float type that the kernels read, or `None` for dtypes that are never quantized. It
    /// represents f8 values exactly; f64 values are rounded to f32.
    pub fn float(self) -> Option<Float> {
        match self {
            Self::F64 | Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::BF16 => Some(Float::BF16),
            _ => f8::table(self).map(|_| Float::BF16),
        }
    }

    /// Whether values must be converted to [`Dtype::float`]: f8 and f64.
    pub fn is_converted(self) -> bool {
        self == Self::F64 || f8::table(self).is_some()
    }

    /// Fills `out` with values converted to [`Dtype::float`]. `read` receives a number of bytes to
    /// skip and a buffer to fill with the source's values after them. Returns how many f64 values
    /// are too large or too small for f32: they become infinite, or 0.
    ///
    /// # Errors
    /// Returns the error of `read`.
    pub fn read_floats<E>(
        self,
        out: &mut [u8],
        mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        if self == Self::F64 {
            return read_f64(out, read);
        }
        let Some(table) = f8::table(self) else {
            return read(0, out).map(|()| 0);
        };
        // The source's values fill the second half: widening goes from the first value on, so none
        // is overwritten before it is read.
        let values = out.len() / 2;
        read(0, &mut out[values..])?;
        for i in 0..values {
            let wide = table[usize::from(out[values + i])];
            out[2 * i..2 * i + 2].copy_from_slice(&wide.to_le_bytes());
        }
        Ok(0)
    }

    /// Returns whether value `index` of little-endian `bytes` is finite.
    ///
    /// # Panics
    /// Panics as [`Dtype::value`] does.
    pub fn is_finite(self, bytes: &[u8], index: usize) -> bool {
        match self {
            Self::F64 => f64::from_le_bytes(bytes.as_chunks().0[index]).is_finite(),
            _ => self.value(bytes, index).is_finite(),
        }
    }

    /// Returns value `index` of little-endian `bytes`.
    ///
    /// # Panics
    /// If this dtype has no [`Dtype::float`], or `bytes` is shorter than `index + 1` values.
    pub fn value(self, bytes: &[u8], index: usize) -> f32 {
        match (f8::table(self), self.float()) {
            (Some(table), _) => half::bf16::from_bits(table[usize::from(bytes[index])]).to_f32(),
            _ if self == Self::F64 => f64::from_le_bytes(bytes.as_chunks().0[index]) as f32,
            (None, Some(float)) => float.get(bytes, index),
            (None, None) => panic!("{self} values are never floats"),
        }
    }
}

/// Implements [`Dtype::read_floats`] for f64.
fn read_f64<E>(
    out: &mut [u8],
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<usize, E> {
    const VALUES: usize = 1 << 10;
    let mut buffer = [0; VALUES * 8];
    let mut lost = 0;
    for (i, out) in out.chunks_mut(VALUES * 4).enumerate() {
        let values = &mut buffer[..2 * out.len()];
        read(i * VALUES * 8, values)?;
        for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
            let value = f64::from_le_bytes(*value);
            let narrow = value as f32;
            lost += usize::from(
                narrow.is_infinite() && value.is_finite() || narrow == 0.0 && value != 0.0,
            );
            *out = narrow.to_le_bytes();
        }
    }
    Ok(lost)
}

impl From<Float> for Dtype {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::F16 => Self::F16,
            Float::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Dimensions of a tensor whose element count is known to fit `usize` (and `i64`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: Vec<usize>,
    elements: usize,
}

impl Shape {
    /// Makes a shape, or returns `None` if its element count overflows.
    pub fn new(dims: Vec<usize>) -> Option<Self> {
        // Zero dimensions must not hide an overflow of the others, because rows and cols multiply
        // them.
        let mut product = 1usize;
        for &dim in &dims {
            product = product.checked_mul(dim.max(1))?;
        }
        i64::try_from(product).ok()?;
        let elements = dims.iter().product();
        Some(Self { dims, elements })
    }

    /// The dimensions, outermost first; none for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of elements: 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Rows of the matrix that the tensor is quantized as: all dimensions except the first are
    /// flattened into columns, and a vector or scalar is one row. 0 without elements.
    pub fn rows(&self) -> usize {
        match self.elements {
            0 => 0,
            _ if self.dims.len() < 2 => 1,
            _ => self.dims[0],
        }
    }

    /// Columns of the matrix that the tensor is quantized as. 0 without elements.
    pub fn cols(&self) -> usize {
        match self.rows() {
            0 => 0,
            rows => self.elements / rows,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(usize::to_string).collect();
        f.pad(&format!("[{}]", dims.join(", ")))
    }
}

/// The most bytes of a tensor's name, in any file.
pub const MAX_NAME: usize = 64 << 10;

/// The most dimensions of a tensor, in any file; PyTorch and numpy allow 64.
pub const MAX_DIMS: usize = 64;

/// The most tensors of a model. The largest published ones have about 100,000.
pub const MAX_TENSORS: usize = 500_000;

/// Checks a tensor's name and number of dimensions against these limits.
///
/// # Errors
/// Returns which limit is exceeded.
pub fn check_limits(name: &str, dims: usize) -> Result<(), String> {
    let bytes = name.len();
    if bytes > MAX_NAME {
        return Err(format!(
            "a tensor name of {bytes} bytes exceeds the limit of {MAX_NAME}"
        ));
    }
    if dims > MAX_DIMS {
        return Err(format!("{dims} dimensions exceed the limit of {MAX_DIMS}"));
    }
    Ok(())
}

/// A tensor's description, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the model.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Shape,
}

impl TensorInfo {
    /// Bytes of the values, or `None` if sub-byte elements do not fill whole bytes or the product
    /// overflows.
    pub fn bytes(&self) -> Option<usize> {
        let bits = self.shape.elements().checked_mul(self.dtype.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_keeps_the_first_dimension() {
        let shape = |dims: &[usize]| Shape::new(dims.to_vec()).unwrap();
        let conv = shape(&[320, 4, 3, 3]);
        assert_eq!(
            (conv.rows(), conv.cols(), conv.elements()),
            (320, 36, 11520)
        );
        let vector = shape(&[7]);
        assert_eq!((vector.rows(), vector.cols()), (1, 7));
        let scalar = shape(&[]);
        assert_eq!((scalar.rows(), scalar.cols(), scalar.elements()), (1, 1, 1));
        let empty = shape(&[3, 0]);
        assert_eq!((empty.rows(), empty.cols(), empty.elements()), (0, 0, 0));
        assert_eq!(shape(&[1 << 62, 0]).rows(), 0);
        assert_eq!(shape(&[0, 1 << 62]).cols(), 0);
    }

    #[test]
    fn overflowing_shapes_are_refused_even_when_empty() {
        assert_eq!(Shape::new(vec![usize::MAX, 2]), None);
        assert_eq!(Shape::new(vec![0, usize::MAX, 2]), None);
        assert_eq!(Shape::new(vec![1 << 63]), None);
    }

    #[test]
    fn names_round_trip() {
        for row in DTYPES {
            assert_eq!(Dtype::from_name(row.0.name()), Some(row.0));
            assert_eq!(
                Dtype::from_safetensors(row.0.safetensors_name()),
                Some(row.0)
            );
        }
    }
}
