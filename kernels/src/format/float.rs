//! Floating-point types in memory: of weights, and of scales.

use super::names::named;

/// How scales and biases are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleDtype {
    /// IEEE half precision, the usual case.
    F16,
    /// IEEE single precision, for tiles whose scales do not fit f16.
    F32,
}

named!(ScaleDtype, "scale_dtype", { F16 => "f16", F32 => "f32" });

impl ScaleDtype {
    /// Bytes of one scale.
    pub const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Reads scale `index` of a packed plane.
    ///
    /// # Panics
    /// If the plane is shorter than `index + 1` scales.
    #[inline(always)]
    pub fn get(self, plane: &[u8], index: usize) -> f32 {
        match self {
            Self::F16 => {
                let at = index * 2;
                half::f16::from_le_bytes([plane[at], plane[at + 1]]).to_f32()
            }
            Self::F32 => {
                let at = index * 4;
                f32::from_le_bytes([plane[at], plane[at + 1], plane[at + 2], plane[at + 3]])
            }
        }
    }

    /// Writes scale `index` of a packed plane and returns the value as rounded to storage
    /// (infinite when it does not fit f16).
    ///
    /// # Panics
    /// If the plane is shorter than `index + 1` scales.
    #[inline(always)]
    pub fn put(self, plane: &mut [u8], index: usize, value: f32) -> f32 {
        match self {
            Self::F16 => {
                let rounded = half::f16::from_f32(value);
                plane[index * 2..index * 2 + 2].copy_from_slice(&rounded.to_le_bytes());
                rounded.to_f32()
            }
            Self::F32 => {
                plane[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes());
                value
            }
        }
    }
}

/// A floating-point type the kernels read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
}

named!(Float, "dtype", { F32 => "f32", F16 => "f16", BF16 => "bf16" });

impl Float {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Reads value `index` of little-endian `bytes`.
    ///
    /// # Panics
    /// If `bytes` is shorter than `index + 1` values.
    pub fn get(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F16 => ScaleDtype::F16.get(bytes, index),
            Self::F32 => ScaleDtype::F32.get(bytes, index),
            Self::BF16 => {
                half::bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32()
            }
        }
    }
}
