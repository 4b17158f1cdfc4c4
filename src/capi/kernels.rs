//! Kernels over the caller's memory.
//!
//! A quantized matrix is three planes: packed codes, scales, and biases where the scheme is
//! affine. Each holds one row after the other; docs/format.md has the layout. Nothing here
//! allocates or starts threads, and any number of threads may work on different rows at once.

use core::ffi::c_void;

use super::guard::{Fault, aq_error, aq_status, bytes, bytes_mut, guard, put, read};
use super::types::{FLOATS, FORMATS, aq_dtype, aq_format, aq_recipe, table};
use crate::format::{self, Encoding, Width};
use crate::kernel::{DecodeRow, Planes};

/// Bytes of each plane of `rows` rows of `cols` weights: how much memory quantizing them needs.
/// `biases` is 0 for a symmetric scheme.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_plane_sizes(
    recipe: *const aq_recipe,
    rows: usize,
    cols: usize,
    codes: *mut usize,
    scales: *mut usize,
    biases: *mut usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            let sizes = plane_sizes(encoding(recipe)?, rows, cols)?;
            let outputs = [(codes, "codes"), (scales, "scales"), (biases, "biases")];
            if let Some((_, what)) = outputs.iter().find(|output| output.0.is_null()) {
                return Err(Fault::Null(what));
            }
            for ((output, what), size) in outputs.into_iter().zip(sizes) {
                put(output, size, what)?;
            }
            Ok(())
        })
    }
}

/// What quantizing some rows came to, measured on the weights as they decode.
#[cfg(feature = "std")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_quality {
    /// sizeof(aq_quality).
    pub struct_size: u32,
    /// Cosine of the angle between original and decoded weights.
    pub cosine: f64,
    /// Signal to quantization noise ratio in dB; infinite without any error.
    pub sqnr_db: f64,
    /// Scales and biases counted; NaN without weights.
    pub bits_per_weight: f64,
}

#[cfg(feature = "std")]
super::guard::versioned!(aq_quality {
    struct_size,
    cosine,
    sqnr_db,
    bits_per_weight
});

/// Quantizes `rows` rows of `cols` weights (f32, f16 or bf16, row after row).
///
/// `importance` weighs the input channels in the choice of scales: `cols` numbers >= 0, or NULL.
/// Codes, scales and biases must be as long as aq_plane_sizes says, and no output may overlap
/// another or an input. `quality` may be NULL: nothing is measured then, which is faster.
///
/// Fails with AQ_ERROR_TENSOR, naming the row, for a weight that is NaN or infinite, and where
/// the scale dtype does not hold a scale: then choose AQ_DTYPE_F32. The planes then hold nothing
/// of use.
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
    codes: *mut c_void,
    codes_len: usize,
    scales: *mut c_void,
    scales_len: usize,
    biases: *mut c_void,
    biases_len: usize,
    quality: *mut aq_quality,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::{check_out, write};
    use crate::format::Method;
    use crate::quantize::{Guide, Matrix, PlanesMut, quantize_rows};

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let recipe = read(recipe, "recipe")?.read()?;
            if recipe.method == Method::Gptq {
                return Err(Fault::Argument(
                    "method is AQ_METHOD_GPTQ, which needs a calibration: it is for runs",
                ));
            }
            let sizes = plane_sizes(recipe.planned(), rows, cols)?;
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
            let codes = bytes_mut::<u8>(codes.cast(), codes_len, "codes")?;
            let scales = bytes_mut::<u8>(scales.cast(), scales_len, "scales")?;
            let biases = bytes_mut::<u8>(biases.cast(), biases_len, "biases")?;
            check_planes([codes.len(), scales.len(), biases.len()], sizes)?;
            if !quality.is_null() {
                check_out(quality, "quality.struct_size")?;
            }
            // Rows of nothing are not counted through.
            let rows = if cols == 0 { 0 } else { rows };
            let matrix = Matrix {
                rows,
                cols,
                float,
                weights,
            };
            let planes = PlanesMut {
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
            let outcome = quantize_rows(
                table,
                &recipe,
                recipe.planned(),
                matrix,
                guide,
                measure,
                planes,
            )
            .map_err(Fault::Rows)?;
            if !quality.is_null() {
                let bits = sizes.iter().sum::<usize>() as f64 * 8.0;
                let measured = aq_quality {
                    struct_size: 0,
                    cosine: outcome.error.cosine(),
                    sqnr_db: outcome.error.sqnr_db().unwrap_or(f64::INFINITY),
                    bits_per_weight: bits / (rows as f64 * cols as f64),
                };
                write(quality, measured, "quality.struct_size")?;
            }
            Ok(())
        })
    }
}

/// Measures how far `b` is from the original `a`: two arrays of as many values, each f32, f16 or
/// bf16, their lengths in bytes. Both outputs are required.
///
/// `cosine` is that of the angle between them: 1 if neither has a value but 0, and 0 if one of them
/// has none. `sqnr_db` is the signal to quantization noise ratio in dB: infinite without any
/// difference, and minus infinite where only `a` has no value but 0.
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
    use super::guard::check_put;
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

/// Decodes `rows` rows of `cols` weights as f32, f16 or bf16 (the f32 result rounded half to
/// even). Lengths as for aq_quantize_rows; no output may overlap an input. Whatever the planes
/// hold is decoded: scales that make no finite weights are not looked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_dequantize_rows(
    recipe: *const aq_recipe,
    codes: *const c_void,
    codes_len: usize,
    scales: *const c_void,
    scales_len: usize,
    biases: *const c_void,
    biases_len: usize,
    rows: usize,
    cols: usize,
    dtype: aq_dtype,
    weights: *mut c_void,
    weights_len: usize,
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
            let float = FLOATS.read(dtype)?;
            let weights = bytes_mut::<u8>(weights.cast(), weights_len, "weights")?;
            check_len(
                "weights",
                weights.len(),
                matrix_len(rows, cols, float.size())?,
            )?;
            let table = table()?;
            let weights = weights.chunks_exact_mut((cols * float.size()).max(1));
            for (row, weights) in weights.enumerate() {
                let planes = planes.row(encoding, cols, row);
                table.decode_row(DecodeRow {
                    encoding,
                    cols,
                    planes,
                    float,
                    weights,
                });
            }
            Ok(())
        })
    }
}

/// Packs `count` codes of one row, one a byte in, into the layout of a codes plane. Bits of a code
/// above the format's are passed over. `packed` has ceil(count * bits / 8) bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_pack(
    format: aq_format,
    codes: *const u8,
    count: usize,
    packed: *mut c_void,
    packed_len: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let width = uniform(format)?;
            let codes = bytes(codes, count, "codes")?;
            let packed = bytes_mut(packed.cast(), packed_len, "packed")?;
            check_len("packed", packed.len(), width.row_bytes(count))?;
            format::pack(width, codes, packed);
            Ok(())
        })
    }
}

/// Unpacks what aq_pack packed: one row of a codes plane.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_unpack(
    format: aq_format,
    packed: *const c_void,
    packed_len: usize,
    codes: *mut u8,
    count: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let width = uniform(format)?;
            let packed = bytes(packed.cast(), packed_len, "packed")?;
            let codes = bytes_mut(codes, count, "codes")?;
            check_len("packed", packed.len(), width.row_bytes(count))?;
            format::unpack(width, packed, codes);
            Ok(())
        })
    }
}

/// The width of a format of uniform codes.
fn uniform(format: aq_format) -> Result<Width, Fault> {
    let width = FORMATS.read(format)?.width();
    width.ok_or(Fault::Argument("format has no uniform codes to pack"))
}

pub(super) unsafe fn encoding(recipe: *const aq_recipe) -> Result<Encoding, Fault> {
    // SAFETY: as the caller's.
    Ok(unsafe { read(recipe, "recipe")? }.read()?.planned())
}

/// The planes of a matrix of (rows, cols), by address and length, each of the length it must have.
pub(super) unsafe fn planes<'a>(
    encoding: Encoding,
    (rows, cols): (usize, usize),
    codes: (*const c_void, usize),
    scales: (*const c_void, usize),
    biases: (*const c_void, usize),
) -> Result<Planes<'a>, Fault> {
    // SAFETY: as the caller's.
    let planes = unsafe {
        Planes {
            codes: bytes(codes.0.cast(), codes.1, "codes")?,
            scales: bytes(scales.0.cast(), scales.1, "scales")?,
            biases: bytes(biases.0.cast(), biases.1, "biases")?,
        }
    };
    let found = [planes.codes.len(), planes.scales.len(), planes.biases.len()];
    check_planes(found, plane_sizes(encoding, rows, cols)?)?;
    Ok(planes)
}

/// Bytes of the planes of a matrix.
fn plane_sizes(encoding: Encoding, rows: usize, cols: usize) -> Result<[usize; 3], Fault> {
    // Then no size of a row overflows.
    matrix_len(rows.max(1), cols, 1)?;
    let row = encoding.plane_bytes(cols);
    let mut sizes = [0; 3];
    for (size, row) in sizes.iter_mut().zip(row) {
        *size = matrix_len(rows, row, 1)?;
    }
    Ok(sizes)
}

pub(super) fn matrix_len(rows: usize, cols: usize, size: usize) -> Result<usize, Fault> {
    let len = rows.checked_mul(cols).and_then(|len| len.checked_mul(size));
    len.filter(|&len| len <= isize::MAX as usize)
        .ok_or(Fault::Argument("rows * cols is larger than any memory"))
}

fn check_planes(found: [usize; 3], expected: [usize; 3]) -> Result<(), Fault> {
    let whats = ["codes", "scales", "biases"];
    for ((what, found), expected) in whats.into_iter().zip(found).zip(expected) {
        check_len(what, found, expected)?;
    }
    Ok(())
}

/// The named argument must be as long as this.
pub(super) fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), Fault> {
    match found == expected {
        true => Ok(()),
        false => Err(Fault::Length {
            what,
            expected,
            found,
        }),
    }
}
