//! Products of quantized matrices with vectors.
//!
//! The vectors are f32 (aq_matvec), or signed bytes that aq_quantize_vectors makes of f32
//! (aq_matvec_int8), which is also called dynamic activations. (For bytes in plain order, for
//! products of your own, see aq_quantize_activations.) Planes are those of the kernels
//! above; nothing here allocates or starts threads either, and any number of threads may work on
//! different rows at once, each with a y of its own.

use core::ffi::c_void;

use super::guard::{aq_error, aq_status, bytes, bytes_mut, guard};
use super::kernels::{check_len, encoding, matrix_len, planes};
use super::types::{aq_recipe, table};
use crate::kernel::MatVec;

/// Multiplies a quantized matrix of `rows` rows of `cols` weights with `batch` vectors: `y[b][r]` is
/// the sum over c of `w[r][c] * x[b][c]`. `x` has batch * cols values, `y` batch * rows. `y` may not
/// overlap an input. Fastest where planes and `x` begin at multiples of 64 bytes; that is not needed.
///
/// Each y is within 2^-17 of the sum of |w * x| of the exact one; unlike all else, this and
/// aq_matvec_int8 may differ between instruction sets.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_matvec(
    recipe: *const aq_recipe,
    codes: *const c_void,
    codes_len: usize,
    scales: *const c_void,
    scales_len: usize,
    biases: *const c_void,
    biases_len: usize,
    rows: usize,
    cols: usize,
    x: *const f32,
    x_count: usize,
    batch: usize,
    y: *mut f32,
    y_count: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let encoding = encoding(recipe)?;
            let planes = planes(
                encoding,
                (rows, cols),
                (codes, codes_len),
                (scales, scales_len),
                (biases, biases_len),
            )?;
            let (x, y) = (bytes(x, x_count, "x")?, bytes_mut(y, y_count, "y")?);
            check_len("x", x.len(), matrix_len(batch, cols, 1)?)?;
            check_len("y", y.len(), matrix_len(batch, rows, 1)?)?;
            table()?.matvec(MatVec {
                encoding,
                cols,
                planes,
                rows: 0..rows,
                x,
                y,
                y_rows: rows,
            });
            Ok(())
        })
    }
}

/// Quantizes `batch` vectors to signed bytes, for aq_matvec_int8 with any matrix of the same `cols`
/// whose recipe has the same format and group_size; the rest of `recipe` does not matter.
///
/// The groups of a vector are those of a row of the matrix: ceil(cols / group_size), or one for a
/// group_size of 0. In each the largest magnitude becomes 127, all others in proportion, rounded
/// half to even. There are batch * cols `values`, in an order that depends on the recipe and cols, and
/// batch * groups `scales` (x is about scale * value) and `sums` (scale * the sum of the group's
/// values). No output may overlap another or the input.
///
/// Fails with AQ_ERROR_ARGUMENT for a NaN or infinity. The outputs then hold nothing of use.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_quantize_vectors(
    recipe: *const aq_recipe,
    x: *const f32,
    x_count: usize,
    cols: usize,
    batch: usize,
    values: *mut i8,
    values_count: usize,
    scales: *mut f32,
    scales_count: usize,
    sums: *mut f32,
    sums_count: usize,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::Fault;
    use crate::kernel::ActivationsMut;

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let encoding = encoding(recipe)?;
            let x = bytes(x, x_count, "x")?;
            let values = bytes_mut(values, values_count, "values")?;
            let scales = bytes_mut(scales, scales_count, "scales")?;
            let sums = bytes_mut(sums, sums_count, "sums")?;
            let count = matrix_len(batch, cols, 1)?;
            check_len("x", x.len(), count)?;
            check_len("values", values.len(), count)?;
            let groups = matrix_len(batch, encoding.groups(cols), 1)?;
            check_len("scales", scales.len(), groups)?;
            check_len("sums", sums.len(), groups)?;
            let out = ActivationsMut {
                encoding,
                values,
                scales,
                sums,
            };
            match table()?.quantize_vectors(x, cols, out) {
                true => Ok(()),
                false => Err(Fault::Argument("x has a NaN or an infinity")),
            }
        })
    }
}

/// As aq_matvec, with vectors that aq_quantize_vectors made: counts are as there, and no value
/// is -128. Codes and values are multiplied as integers, by the CPU's own instructions for that
/// where it has some (AVX-512 VNNI, NEON's dot products).
///
/// These products are exact, and each y is within 2^-17 of the sum over groups of largest |w| times
/// sum of |x|, for w and x as quantized, of the exact one; the largest |w| is that which a code of
/// the group could stand for. What x lost when it was quantized, up to half a scale for each value,
/// comes on top.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_matvec_int8(
    recipe: *const aq_recipe,
    codes: *const c_void,
    codes_len: usize,
    scales: *const c_void,
    scales_len: usize,
    biases: *const c_void,
    biases_len: usize,
    rows: usize,
    cols: usize,
    x_values: *const i8,
    x_values_count: usize,
    x_scales: *const f32,
    x_scales_count: usize,
    x_sums: *const f32,
    x_sums_count: usize,
    batch: usize,
    y: *mut f32,
    y_count: usize,
    err: *mut aq_error,
) -> aq_status {
    use crate::kernel::{Activations, ByteMatVec};

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let encoding = encoding(recipe)?;
            let planes = planes(
                encoding,
                (rows, cols),
                (codes, codes_len),
                (scales, scales_len),
                (biases, biases_len),
            )?;
            let x = Activations {
                values: bytes(x_values, x_values_count, "x_values")?,
                scales: bytes(x_scales, x_scales_count, "x_scales")?,
                sums: bytes(x_sums, x_sums_count, "x_sums")?,
            };
            let y = bytes_mut(y, y_count, "y")?;
            check_len("x_values", x.values.len(), matrix_len(batch, cols, 1)?)?;
            let groups = matrix_len(batch, encoding.groups(cols), 1)?;
            check_len("x_scales", x.scales.len(), groups)?;
            check_len("x_sums", x.sums.len(), groups)?;
            check_len("y", y.len(), matrix_len(batch, rows, 1)?)?;
            table()?.matvec_bytes(ByteMatVec {
                encoding,
                cols,
                planes,
                rows: 0..rows,
                x,
                y,
                y_rows: rows,
            });
            Ok(())
        })
    }
}
