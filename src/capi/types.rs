//! Versions, and the numbers that name formats and dtypes.

use core::ffi::c_char;

use super::guard::{Fault, versioned};
use crate::format::{
    Choice, Float, Format, Gain, GroupSize, Method, Recipe, SPECS, ScaleDtype, ScalePolicy, Scheme,
};
use crate::kernel::KernelTable;
#[cfg(feature = "std")]
use crate::tensor::Dtype;

/// Version of the binary interface, and number of the SONAME. Changes with every release that
/// breaks programs built with an earlier header, before version 1.0 too.
pub const AQ_ABI_VERSION: u32 = 1;

/// Encoding of a tensor's weights.
pub type aq_format = i32;
/// Not quantized: the values are kept as they were.
pub const AQ_FORMAT_KEPT: aq_format = 0;
pub const AQ_FORMAT_INT2: aq_format = 2;
pub const AQ_FORMAT_INT4: aq_format = 4;
pub const AQ_FORMAT_INT8: aq_format = 8;

/// Whether groups have a bias beside their scale.
pub type aq_scheme = i32;
pub const AQ_SCHEME_DEFAULT: aq_scheme = 0;
/// Without bias: w = scale * (q - z), where z is 1.5, 8 or 128 for 2, 4 or 8 bits. The default.
pub const AQ_SCHEME_SYMMETRIC: aq_scheme = 1;
/// With bias: w = scale * q + bias.
pub const AQ_SCHEME_AFFINE: aq_scheme = 2;

/// How scales are chosen.
pub type aq_method = i32;
pub const AQ_METHOD_DEFAULT: aq_method = 0;
/// Scales from the range of each group.
pub const AQ_METHOD_MINMAX: aq_method = 1;
/// Scales by least squares over trial scales. The default.
pub const AQ_METHOD_LSQ: aq_method = 2;
/// GPTQ: each column compensates for the rounding of earlier ones, using a calibration's Hessian.
/// Only for runs, not for aq_quantize_rows.
pub const AQ_METHOD_GPTQ: aq_method = 3;

/// Whether the amplitude that rows lose by rounding is restored.
pub type aq_gain = i32;
/// AQ_GAIN_UNIT for 2 and 4 bits, AQ_GAIN_LSQ for 8.
pub const AQ_GAIN_DEFAULT: aq_gain = 0;
/// Multiplies each row's scales so that rounding does not change its amplitude.
pub const AQ_GAIN_UNIT: aq_gain = 1;
/// Leaves scales as the method chose them.
pub const AQ_GAIN_LSQ: aq_gain = 2;

/// Type of an element; all values are little-endian.
pub type aq_dtype = i32;
pub const AQ_DTYPE_DEFAULT: aq_dtype = 0;
pub const AQ_DTYPE_F32: aq_dtype = 1;
pub const AQ_DTYPE_F16: aq_dtype = 2;
pub const AQ_DTYPE_BF16: aq_dtype = 3;
pub const AQ_DTYPE_F64: aq_dtype = 4;
pub const AQ_DTYPE_F8_E4M3: aq_dtype = 5;
pub const AQ_DTYPE_F8_E5M2: aq_dtype = 6;
pub const AQ_DTYPE_F8_E4M3FNUZ: aq_dtype = 7;
pub const AQ_DTYPE_F8_E5M2FNUZ: aq_dtype = 8;
pub const AQ_DTYPE_F8_E8M0: aq_dtype = 9;
pub const AQ_DTYPE_F6_E2M3: aq_dtype = 10;
pub const AQ_DTYPE_F6_E3M2: aq_dtype = 11;
pub const AQ_DTYPE_F4: aq_dtype = 12;
pub const AQ_DTYPE_C64: aq_dtype = 13;
pub const AQ_DTYPE_I64: aq_dtype = 14;
pub const AQ_DTYPE_I32: aq_dtype = 15;
pub const AQ_DTYPE_I16: aq_dtype = 16;
pub const AQ_DTYPE_I8: aq_dtype = 17;
pub const AQ_DTYPE_U64: aq_dtype = 18;
pub const AQ_DTYPE_U32: aq_dtype = 19;
pub const AQ_DTYPE_U16: aq_dtype = 20;
pub const AQ_DTYPE_U8: aq_dtype = 21;
pub const AQ_DTYPE_BOOL: aq_dtype = 22;

/// Returns the library's version, such as "0.1.0". The string is static.
#[unsafe(no_mangle)]
pub extern "C" fn aq_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Returns the library's AQ_ABI_VERSION. A program that loads the library at run time must first
/// compare this number with the AQ_ABI_VERSION of its header, and use the library only if they are
/// equal.
#[unsafe(no_mangle)]
pub extern "C" fn aq_abi_version() -> u32 {
    AQ_ABI_VERSION
}

/// Returns the name of the instruction set in use: the best of this machine, or a weaker one
/// selected by the environment variable AQ_ISA. The names are "scalar"; on x86-64 also "avx2",
/// "avx512" and "avx512vnni"; on AArch64 also "neon" and "neon-dotprod". If AQ_ISA is set to
/// anything else, the name is "unknown", and calls that need kernels fail with AQ_ERROR_CONFIG. The
/// string is static.
#[unsafe(no_mangle)]
pub extern "C" fn aq_isa_name() -> *const c_char {
    let name = KernelTable::choose().map(|table| table.isa().c_name());
    name.unwrap_or(c"unknown").as_ptr()
}

pub(super) fn table() -> Result<&'static KernelTable, Fault> {
    KernelTable::choose().map_err(|_| Fault::Isa)
}

/// The constants of a kind, and their values in Rust.
pub(super) struct Codes<T: 'static> {
    what: &'static str,
    allowed: &'static str,
    rows: &'static [(i32, T)],
}

impl<T: Copy + PartialEq> Codes<T> {
    pub(super) fn read(&self, code: i32) -> Result<T, Fault> {
        let row = self.rows.iter().find(|row| row.0 == code);
        row.map(|row| row.1).ok_or(Fault::Value {
            what: self.what,
            found: code.into(),
            allowed: self.allowed,
        })
    }

    /// Every value has a row (tested).
    #[cfg(feature = "std")]
    pub(super) fn write(&self, value: T) -> i32 {
        let row = self.rows.iter().find(|row| row.1 == value);
        row.map_or(0, |row| row.0)
    }
}

/// Constants as the table of formats has them; those of this file are compared with it.
const FORMAT_CODES: [(i32, Format); SPECS.len()] = {
    let mut codes = [(0, SPECS[0].format); SPECS.len()];
    let mut i = 0;
    while i < codes.len() {
        codes[i] = (SPECS[i].c_code, SPECS[i].format);
        i += 1;
    }
    codes
};

pub(super) static FORMATS: Codes<Format> = Codes {
    what: "format",
    allowed: "AQ_FORMAT_INT2, _INT4 or _INT8",
    rows: &FORMAT_CODES,
};

pub(super) static SCHEMES: Codes<Scheme> = Codes {
    what: "scheme",
    allowed: "an AQ_SCHEME constant",
    rows: &[
        (AQ_SCHEME_SYMMETRIC, Scheme::Symmetric),
        (AQ_SCHEME_AFFINE, Scheme::Affine),
    ],
};

pub(super) static METHODS: Codes<Method> = Codes {
    what: "method",
    allowed: "an AQ_METHOD constant",
    rows: &[
        (AQ_METHOD_MINMAX, Method::MinMax),
        (AQ_METHOD_LSQ, Method::Lsq),
        (AQ_METHOD_GPTQ, Method::Gptq),
    ],
};

pub(super) static GAINS: Codes<Gain> = Codes {
    what: "gain",
    allowed: "an AQ_GAIN constant",
    rows: &[(AQ_GAIN_UNIT, Gain::Unit), (AQ_GAIN_LSQ, Gain::Lsq)],
};

pub(super) static FLOATS: Codes<Float> = Codes {
    what: "dtype",
    allowed: "AQ_DTYPE_F32, _F16 or _BF16",
    rows: &[
        (AQ_DTYPE_F32, Float::F32),
        (AQ_DTYPE_F16, Float::F16),
        (AQ_DTYPE_BF16, Float::BF16),
    ],
};

pub(super) static SCALE_DTYPES: Codes<ScaleDtype> = Codes {
    what: "scale_dtype",
    allowed: "AQ_DTYPE_F16 or _F32",
    rows: &[
        (AQ_DTYPE_F16, ScaleDtype::F16),
        (AQ_DTYPE_F32, ScaleDtype::F32),
    ],
};

#[cfg(feature = "std")]
pub(super) static DTYPES: Codes<Dtype> = Codes {
    what: "dtype",
    allowed: "an AQ_DTYPE constant",
    rows: &[
        (AQ_DTYPE_F32, Dtype::F32),
        (AQ_DTYPE_F16, Dtype::F16),
        (AQ_DTYPE_BF16, Dtype::BF16),
        (AQ_DTYPE_F64, Dtype::F64),
        (AQ_DTYPE_F8_E4M3, Dtype::F8E4M3),
        (AQ_DTYPE_F8_E5M2, Dtype::F8E5M2),
        (AQ_DTYPE_F8_E4M3FNUZ, Dtype::F8E4M3Fnuz),
        (AQ_DTYPE_F8_E5M2FNUZ, Dtype::F8E5M2Fnuz),
        (AQ_DTYPE_F8_E8M0, Dtype::F8E8M0),
        (AQ_DTYPE_F6_E2M3, Dtype::F6E2M3),
        (AQ_DTYPE_F6_E3M2, Dtype::F6E3M2),
        (AQ_DTYPE_F4, Dtype::F4),
        (AQ_DTYPE_C64, Dtype::C64),
        (AQ_DTYPE_I64, Dtype::I64),
        (AQ_DTYPE_I32, Dtype::I32),
        (AQ_DTYPE_I16, Dtype::I16),
        (AQ_DTYPE_I8, Dtype::I8),
        (AQ_DTYPE_U64, Dtype::U64),
        (AQ_DTYPE_U32, Dtype::U32),
        (AQ_DTYPE_U16, Dtype::U16),
        (AQ_DTYPE_U8, Dtype::U8),
        (AQ_DTYPE_BOOL, Dtype::Bool),
    ],
};

/// How weights are quantized. Start with AQ_INIT(aq_recipe), then set format and group_size; fields
/// left at 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_recipe {
    /// sizeof(aq_recipe).
    pub struct_size: u32,
    /// AQ_FORMAT_INT2, AQ_FORMAT_INT4 or AQ_FORMAT_INT8.
    pub format: aq_format,
    /// Number of weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row.
    pub group_size: u32,
    pub scheme: aq_scheme,
    /// Storage of scales and biases: AQ_DTYPE_F16 (the default) or AQ_DTYPE_F32.
    pub scale_dtype: aq_dtype,
    pub method: aq_method,
    pub gain: aq_gain,
}

versioned!(aq_recipe {
    struct_size,
    format,
    group_size,
    scheme,
    scale_dtype,
    method,
    gain
});

/// A caller's group size.
pub(super) fn group_size(size: u32) -> Result<GroupSize, Fault> {
    GroupSize::new(size.into()).ok_or(Fault::Value {
        what: "group_size",
        found: size.into(),
        allowed: "0 or a multiple of 16 up to 1024",
    })
}

impl aq_recipe {
    pub(super) fn read(&self) -> Result<Recipe, Fault> {
        let format = FORMATS.read(self.format)?;
        let scale_dtype = match self.scale_dtype {
            AQ_DTYPE_DEFAULT => ScaleDtype::F16,
            code => SCALE_DTYPES.read(code)?,
        };
        let choice = Choice {
            scheme: match self.scheme {
                AQ_SCHEME_DEFAULT => Scheme::Symmetric,
                code => SCHEMES.read(code)?,
            },
            group_size: group_size(self.group_size)?,
            scale_dtype,
        };
        Ok(Recipe {
            encoding: format.encoding(choice),
            method: match self.method {
                AQ_METHOD_DEFAULT => Method::Lsq,
                code => METHODS.read(code)?,
            },
            gain: match self.gain {
                AQ_GAIN_DEFAULT => format.spec().gain,
                code => GAINS.read(code)?,
            },
            scales: match scale_dtype {
                ScaleDtype::F16 => ScalePolicy::F16,
                ScaleDtype::F32 => ScalePolicy::F32,
            },
        })
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    fn all_written<T: Copy + PartialEq>(codes: &Codes<T>, all: &[T]) {
        assert_eq!(codes.rows.len(), all.len());
        for &value in all {
            let code = codes.write(value);
            assert!(codes.read(code).is_ok_and(|read| read == value));
        }
        assert!(codes.read(0).is_err() && codes.read(-1).is_err() && codes.read(99).is_err());
    }

    #[test]
    fn every_value_has_a_constant() {
        all_written(&FORMATS, Format::ALL);
        let constants = [AQ_FORMAT_INT2, AQ_FORMAT_INT4, AQ_FORMAT_INT8];
        assert_eq!(constants, SPECS.each_ref().map(|spec| spec.c_code));
        all_written(&SCHEMES, Scheme::ALL);
        all_written(&METHODS, Method::ALL);
        all_written(&GAINS, Gain::ALL);
        all_written(&FLOATS, Float::ALL);
        all_written(&SCALE_DTYPES, ScaleDtype::ALL);
        let dtypes: Vec<Dtype> = Dtype::all().collect();
        all_written(&DTYPES, &dtypes);
    }
}
