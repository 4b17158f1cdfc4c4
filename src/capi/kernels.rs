//! Quantizing the caller's rows, and comparing values.
//!
//! Any number of threads may work on different rows at once.

use core::ffi::c_void;

#[cfg(feature = "std")]
use super::guard::bytes;
use super::guard::{Fault, aq_error, aq_status, guard, read, versioned, write};
use super::matrix::matrix_len;
#[cfg(feature = "std")]
use super::matrix::{aq_matrix, check_len};
use super::types::aq_recipe;
#[cfg(feature = "std")]
use super::types::{FLOATS, aq_dtype, table};
use crate::format::Encoding;

/// Memory for the planes of a matrix that is about to be quantized. aq_plane_sizes sets the
/// lengths; the caller sets the pointers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_planes {
    /// sizeof(aq_planes).
    pub struct_size: u32,
    /// Room for the codes.
    pub codes: *mut c_void,
    /// Bytes of the codes.
    pub codes_len: usize,
    /// Room for the scales.
    pub scales: *mut c_void,
    /// Bytes of the scales.
    pub scales_len: usize,
    /// Room for the biases; NULL unless the scheme is affine.
    pub biases: *mut c_void,
    /// Bytes of the biases; 0 unless the scheme is affine.
    pub biases_len: usize,
}

versioned!(aq_planes {
    struct_size,
    codes,
    codes_len,
    scales,
    scales_len,
    biases,
    biases_len
});

/// Sets the lengths in `planes` to those that `rows` rows of `cols` weights need, and leaves its
/// pointers unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plane_sizes(
    recipe: *const aq_recipe,
    rows: usize,
    cols: usize,
    planes: *mut aq_planes,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            let given = read(planes, "planes")?;
            let encoding = read(recipe, "recipe")?.read()?.planned();
            let [codes_len, scales_len, biases_len] = plane_sizes(encoding, rows, cols)?;
            let sized = aq_planes {
                codes_len,
                scales_len,
                biases_len,
                ..given
            };
            write(planes, sized, "planes")
        })
    }
}

/// Quality of quantized rows, measured on the decoded weights.
#[cfg(feature = "std")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_quality {
    /// sizeof(aq_quality).
    pub struct_size: u32,
    /// Cosine of the angle between original and decoded weights.
    pub cosine: f64,
    /// Signal-to-quantization-noise ratio in dB; infinite if there is no error.
    pub sqnr_db: f64,
    /// Bits per weight, including scales and biases; NaN if there are no weights.
    pub bits_per_weight: f64,
}

#[cfg(feature = "std")]
versioned!(aq_quality {
    struct_size,
    cosine,
    sqnr_db,
    bits_per_weight
});

/// Quantizes `rows` rows of `cols` weights (f32, f16 or bf16, row after row) into `planes`, whose
/// lengths must be as set by aq_plane_sizes.
///
/// `importance` weights the input channels in the choice of scales: `cols` numbers >= 0, or NULL.
/// `matrix` receives the result, for products and decoding; it points to the planes. `quality`
/// receives the measurements. Both may be NULL; without `quality` nothing is measured, which is
/// faster. Outputs must not overlap each other or an input.
///
/// Fails with AQ_ERROR_TENSOR, naming the row, for a weight that is NaN or infinite, and if the
/// scale dtype cannot hold a scale: then choose AQ_DTYPE_F32. After a failure the contents of the
/// planes are undefined.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_quantize_rows(
    recipe: *const aq_recipe,
    weights: *const c_void,
    weights_len: usize,
    dtype: aq_dtype,
    rows: usize,
    cols: usize,
    importance: *const f32,
    planes: *const aq_planes,
    matrix: *mut aq_matrix,
    quality: *mut aq_quality,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::{bytes_mut, check_out};
    use crate::format::Method;
    use crate::quantize::{Guide, Matrix, PlanesMut, quantize_rows};

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let recipe = read(recipe, "recipe")?.read()?;
            if recipe.method == Method::Gptq {
                return Err(Fault::Argument(
                    "method AQ_METHOD_GPTQ requires a calibration: it is for runs only",
                ));
            }
            let encoding = recipe.planned();
            let sizes = plane_sizes(encoding, rows, cols)?;
            let float = FLOATS.read(dtype)?;
            let weights = bytes::<u8>(weights.cast(), weights_len, "weights")?;
            check_len(
                "weights",
                weights.len(),
                matrix_len(rows, cols, float.size())?,
            )?;
            let count = if importance.is_null() { 0 } else { cols };
            let importance = bytes(importance, count, "importance")?;
            if !importance.iter().all(|h| h.is_finite() && *h >= 0.0) {
                return Err(Fault::Argument("importance has a number that is not >= 0"));
            }
            let given = read(planes, "planes")?;
            let codes = bytes_mut::<u8>(given.codes.cast(), given.codes_len, "planes.codes")?;
            let scales = bytes_mut::<u8>(given.scales.cast(), given.scales_len, "planes.scales")?;
            let biases = bytes_mut::<u8>(given.biases.cast(), given.biases_len, "planes.biases")?;
            check_len("planes.codes", codes.len(), sizes[0])?;
            check_len("planes.scales", scales.len(), sizes[1])?;
            check_len("planes.biases", biases.len(), sizes[2])?;
            if !matrix.is_null() {
                check_out(matrix, "matrix")?;
            }
            if !quality.is_null() {
                check_out(quality, "quality")?;
            }
            // Rows of nothing are not counted through.
            let filled = if cols == 0 { 0 } else { rows };
            let weights = Matrix {
                rows: filled,
                cols,
                float,
                weights,
            };
            let outputs = PlanesMut {
                codes,
                scales,
                biases,
            };
            let guide = match importance.is_empty() {
                true => Guide::None,
                false => Guide::Importance(importance),
            };
            let measure = !quality.is_null();
            let table = table()?;
            let outcome = quantize_rows(table, &recipe, encoding, weights, guide, measure, outputs)
                .map_err(Fault::Rows)?;
            if !matrix.is_null() {
                let [codes_stride, scales_stride, biases_stride] = encoding.plane_bytes(cols);
                let made = aq_matrix {
                    rows,
                    cols,
                    dtype,
                    codes: given.codes,
                    codes_len: given.codes_len,
                    codes_stride,
                    scales: given.scales,
                    scales_len: given.scales_len,
                    scales_stride,
                    biases: given.biases,
                    biases_len: given.biases_len,
                    biases_stride,
                    ..aq_matrix::of(Some(encoding))
                };
                write(matrix, made, "matrix")?;
            }
            if !quality.is_null() {
                let bits = sizes.iter().sum::<usize>() as f64 * 8.0;
                let measured = aq_quality {
                    struct_size: 0,
                    cosine: outcome.error.cosine(),
                    sqnr_db: outcome.error.sqnr_db().unwrap_or(f64::INFINITY),
                    bits_per_weight: bits / (filled as f64 * cols as f64),
                };
                write(quality, measured, "quality")?;
            }
            Ok(())
        })
    }
}

/// Compares `b` with the original `a`: two arrays with the same number of values, each of f32, f16
/// or bf16. Lengths are in bytes. Both outputs are required.
///
/// `cosine` is the cosine of the angle between them: 1 if both are all zeros, and 0 if only one is.
/// `sqnr_db` is the signal-to-quantization-noise ratio in dB: infinite if there is no difference,
/// and minus infinity if only `a` is all zeros.
///
/// Fails with AQ_ERROR_ARGUMENT for a NaN or infinity.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_compare(
    a: *const c_void,
    a_len: usize,
    a_dtype: aq_dtype,
    b: *const c_void,
    b_len: usize,
    b_dtype: aq_dtype,
    cosine: *mut f64,
    sqnr_db: *mut f64,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::{check_put, put};
    use crate::kernel::CompareRow;

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (original, decoded) = (FLOATS.read(a_dtype)?, FLOATS.read(b_dtype)?);
            let a = bytes::<u8>(a.cast(), a_len, "a")?;
            let b = bytes::<u8>(b.cast(), b_len, "b")?;
            let count = a.len() / original.size();
            check_len("a", a.len(), count * original.size())?;
            check_len("b", b.len(), matrix_len(1, count, decoded.size())?)?;
            check_put(cosine, "cosine")?;
            check_put(sqnr_db, "sqnr_db")?;
            let sums = table()?.compare(CompareRow {
                original: (original, a),
                decoded: (decoded, b),
            });
            let sums = sums.ok_or(Fault::Argument("a or b has a NaN or an infinity"))?;
            put(cosine, sums.cosine(), "cosine")?;
            put(sqnr_db, sums.sqnr_db().unwrap_or(f64::INFINITY), "sqnr_db")
        })
    }
}

/// Bytes of the planes of a matrix.
fn plane_sizes(encoding: Encoding, rows: usize, cols: usize) -> Result<[usize; 3], Fault> {
    // Then no size of a row overflows.
    matrix_len(rows.max(1), cols, 1)?;
    let mut sizes = [0; 3];
    for (size, row) in sizes.iter_mut().zip(encoding.plane_bytes(cols)) {
        *size = matrix_len(rows, row, 1)?;
    }
    Ok(sizes)
}
