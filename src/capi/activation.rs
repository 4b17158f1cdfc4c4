//! Quantizing activations, for products that the caller computes: the input of a layer, row by row
//! (token by token), in plain order. Nothing here allocates or starts threads, and any number of
//! threads may call it at once.

use core::ffi::c_void;

use super::guard::{Fault, aq_error, aq_status, bytes, bytes_mut, guard, read, versioned};
use super::matrix::{check_len, matrix_len};
use super::types::{FLOATS, aq_dtype, group_size, table};
use crate::format::Width;
use crate::kernel::{ActivationGrid, QuantizeActivations};

/// How activations are quantized: with dynamic scales, from their own magnitudes, if `scale` is 0;
/// otherwise with this static scale and zero point. Start with AQ_INIT(aq_activation_options).
#[cfg(feature = "std")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_activation_options {
    /// sizeof(aq_activation_options).
    pub struct_size: u32,
    /// Bits of a value: 4, or 8 (the default).
    pub bits: u32,
    /// Dynamic only: values of a row that share a scale, a multiple of 16 up to 1024, or 0 for a
    /// whole row. The last group of a row may be shorter.
    pub group_size: u32,
    /// Static scale, a normal number above 0; 0 for dynamic scales.
    pub scale: f32,
    /// Zero point of a static scale: any finite number.
    pub zero_point: f32,
    /// Divisors of the columns, applied first: normal numbers above 0, or NULL for none.
    pub input_scale: *const f32,
    /// Number of divisors: `cols`, or 0.
    pub input_scale_count: usize,
}

versioned!(aq_activation_options {
    struct_size,
    bits,
    group_size,
    scale,
    zero_point,
    input_scale,
    input_scale_count
});

/// Quantizes `rows` rows of `cols` activations (f32, f16 or bf16), `x_len` bytes, to `rows * cols`
/// values of one byte each, in the same order. With `options` NULL: 8 bits, one scale per row.
///
/// Dynamic: let `a` be the largest magnitude of a group, and `top` 127, or 7 for 4 bits. Values are
/// int8, `round(x * (top / a))`, and represent `value * (a / top)`. `scales` receives rows * groups
/// numbers, `a / top` each, where groups is ceil(cols / group_size), or 1 for a group_size of 0. A
/// group without magnitudes above 1e-30 gets zeros, and the scale 0.
///
/// Static: values are uint8, `clamp(round(x * (1 / scale) + zero_point), 0, 2^bits - 1)`, and
/// represent `(value - zero_point) * scale`. There are no `scales`: pass NULL and 0.
///
/// `round` rounds half to even. All arithmetic is f32, with each operation rounded, so results are
/// the same on every machine. Outputs must not overlap each other or an input.
///
/// Fails with AQ_ERROR_TENSOR, naming row and column, for a value that is NaN or infinite, or, with
/// dynamic scales, becomes so when divided by `input_scale`. The contents of the outputs are then
/// undefined.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_quantize_activations(
    x: *const c_void,
    x_len: usize,
    dtype: aq_dtype,
    rows: usize,
    cols: usize,
    options: *const aq_activation_options,
    values: *mut c_void,
    values_len: usize,
    scales: *mut f32,
    scales_count: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let float = FLOATS.read(dtype)?;
            let options = match options.is_null() {
                true => DEFAULTS,
                false => read(options, "options")?,
            };
            let x = bytes::<u8>(x.cast(), x_len, "x")?;
            check_len("x", x.len(), matrix_len(rows, cols, float.size())?)?;
            let values = bytes_mut::<u8>(values.cast(), values_len, "values")?;
            check_len("values", values.len(), matrix_len(rows, cols, 1)?)?;
            let scales = bytes_mut(scales, scales_count, "scales")?;
            let input_scale = options.input_scale(cols)?;
            let grid = options.grid(scales, rows, cols)?;
            let quantized = table()?.quantize_activations(QuantizeActivations {
                float,
                cols,
                x,
                input_scale,
                width: options.width()?,
                grid,
                values,
            });
            quantized.map_err(|fault| {
                Fault::Rows(crate::quantize::Fault::NonFinite {
                    row: fault.row,
                    col: fault.col,
                    value: fault.value,
                })
            })
        })
    }
}

const DEFAULTS: aq_activation_options = aq_activation_options {
    struct_size: 0,
    bits: 0,
    group_size: 0,
    scale: 0.0,
    zero_point: 0.0,
    input_scale: core::ptr::null(),
    input_scale_count: 0,
};

impl aq_activation_options {
    fn width(&self) -> Result<Width, Fault> {
        match self.bits {
            0 | 8 => Ok(Width::Eight),
            4 => Ok(Width::Four),
            bits => Err(Fault::Value {
                what: "bits",
                found: bits.into(),
                allowed: "4 or 8",
            }),
        }
    }

    fn grid<'a>(
        &self,
        scales: &'a mut [f32],
        rows: usize,
        cols: usize,
    ) -> Result<ActivationGrid<'a>, Fault> {
        let &Self {
            scale, zero_point, ..
        } = self;
        if scale == 0.0 {
            let group_size = group_size(self.group_size)?;
            let groups = matrix_len(rows, group_size.count(cols), 1)?;
            check_len("scales", scales.len(), groups)?;
            return Ok(ActivationGrid::Dynamic { group_size, scales });
        }
        if !(scale.is_normal() && scale > 0.0) {
            return Err(Fault::Argument("scale is no normal number above 0"));
        }
        if !zero_point.is_finite() {
            return Err(Fault::Argument("zero_point is NaN or infinite"));
        }
        if self.group_size != 0 {
            return Err(Fault::Argument("a static scale has no group_size"));
        }
        check_len("scales", scales.len(), 0)?;
        Ok(ActivationGrid::Static { scale, zero_point })
    }

    /// # Safety
    /// By the header's conventions.
    unsafe fn input_scale<'a>(&self, cols: usize) -> Result<Option<&'a [f32]>, Fault> {
        if self.input_scale.is_null() && self.input_scale_count == 0 {
            return Ok(None);
        }
        // SAFETY: as the caller's.
        let scale = unsafe { bytes(self.input_scale, self.input_scale_count, "input_scale")? };
        check_len("input_scale", scale.len(), cols)?;
        match scale.iter().all(|s| s.is_normal() && *s > 0.0) {
            true => Ok(Some(scale)),
            false => Err(Fault::Argument(
                "input_scale has a number that is no normal one above 0",
            )),
        }
    }
}
