//! Products of matrices with vectors.
//!
//! Vectors are f32 (aq_matvec), or signed bytes (aq_matvec_int8), which aq_quantize_vectors makes
//! from f32; these are also known as dynamic activations. Products start no threads; any number of
//! threads may multiply different rows at once (aq_matrix_rows), each with its own `y`. If columns
//! of the matrix were scaled or rotated, vectors are transformed accordingly, in memory that is
//! allocated for the call.

use super::guard::{Fault, aq_error, aq_status, bytes, bytes_mut, guard};
use super::matrix::{Matrix, aq_matrix, check_len, matrix_len};
#[cfg(feature = "std")]
use super::types::aq_format;
use super::types::table;
#[cfg(feature = "std")]
use crate::format::Encoding;
use crate::kernel::{KernelTable, MatVec};

/// Multiplies a quantized matrix with `batch` vectors: `y[b][r]` is the sum over c of
/// `w[r][c] * x[b][c]`. `x` has batch * cols values, `y` batch * rows. `y` must not overlap an
/// input. Fastest if planes and `x` start at multiples of 64 bytes and rows are contiguous.
///
/// The error of each y is at most 2^-17 times the sum of |w * x|. Unlike all other results,
/// products may differ between instruction sets.
///
/// Fails with AQ_ERROR_TENSOR for a kept matrix. The firmware library, which cannot allocate, also
/// fails with AQ_ERROR_ARGUMENT for scaled or rotated columns: transform the vectors with
/// aq_transform_vectors, and multiply them with a copy of the matrix in which `input_scale` is
/// NULL, and `input_scale_len` and `rotation_block` are 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_matvec(
    matrix: *const aq_matrix,
    x: *const f32,
    x_count: usize,
    batch: usize,
    y: *mut f32,
    y_count: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            let matrix = Matrix::read(matrix)?;
            let encoding = matrix.encoding()?;
            let (x, y) = (bytes(x, x_count, "x")?, bytes_mut(y, y_count, "y")?);
            check_len("x", x.len(), matrix_len(batch, matrix.cols, 1)?)?;
            check_len("y", y.len(), matrix_len(batch, matrix.rows, 1)?)?;
            let table = table()?;
            transformed(&matrix, table, x, |x| {
                matrix.contiguous(|rows, planes| {
                    table.matvec(MatVec {
                        encoding,
                        cols: matrix.cols,
                        planes,
                        rows,
                        x,
                        y: &mut *y,
                        y_rows: matrix.rows,
                    });
                });
                Ok(())
            })
        })
    }
}

/// Transforms `batch` vectors in place: divides them by the matrix's input scale and rotates them,
/// so that they can be multiplied with the planes as stored. If the matrix has neither an input
/// scale nor a rotation, the vectors do not change. Needed only for your own products, and for
/// aq_matvec in the firmware library: other functions do this by themselves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_transform_vectors(
    matrix: *const aq_matrix,
    x: *mut f32,
    x_count: usize,
    batch: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let (transform, cols) = aq_matrix::read_transform(matrix)?;
            let x = bytes_mut(x, x_count, "x")?;
            check_len("x", x.len(), matrix_len(batch, cols, 1)?)?;
            if !transform.is_identity() {
                table()?.transform_activations(transform, cols, x);
            }
            Ok(())
        })
    }
}

/// The group size of an encoding as C knows it.
#[cfg(feature = "std")]
fn group_size(encoding: Encoding) -> u32 {
    encoding.group_size().map_or(0, |size| size.get().into())
}

/// Calls `multiply` with the vectors as the planes of the matrix need them.
#[cfg(feature = "std")]
fn transformed(
    matrix: &Matrix<'_>,
    table: &KernelTable,
    x: &[f32],
    multiply: impl FnOnce(&[f32]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if matrix.transform.is_identity() {
        return multiply(x);
    }
    let mut copy = x.to_vec();
    table.transform_activations(matrix.transform, matrix.cols, &mut copy);
    multiply(&copy)
}

/// Calls `multiply` with the vectors, which nothing can be done to without an allocator.
#[cfg(not(feature = "std"))]
fn transformed(
    matrix: &Matrix<'_>,
    _: &KernelTable,
    x: &[f32],
    multiply: impl FnOnce(&[f32]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    match matrix.transform.is_identity() {
        true => multiply(x),
        false => Err(Fault::Argument(
            "the matrix has an input scale or a rotation: call aq_transform_vectors on the \
             vectors, and multiply with a copy of the matrix without them",
        )),
    }
}

/// Vectors of signed bytes, and the kind of matrix that they are for. The caller sets the pointers
/// and counts of values, scales and sums; aq_quantize_vectors sets the rest.
#[cfg(feature = "std")]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_vectors {
    /// sizeof(aq_vectors).
    pub struct_size: u32,
    /// Format of the matrix, which decides the order of the values.
    pub format: aq_format,
    /// Group size of the matrix.
    pub group_size: u32,
    /// Values in a vector.
    pub cols: usize,
    /// Number of vectors.
    pub batch: usize,
    /// Identifies how the vectors were scaled and rotated for the matrix; 0 if they were not.
    pub transform: u64,
    /// Room for batch * cols values, in an internal order. No value is -128.
    pub values: *mut i8,
    /// Number of values.
    pub values_count: usize,
    /// Room for batch * groups scales, where groups is ceil(cols / group_size), or 1 for a
    /// group_size of 0: x is about scale * value.
    pub scales: *mut f32,
    /// Number of scales.
    pub scales_count: usize,
    /// Room for batch * groups sums, each the scale of a group times the sum of its values.
    pub sums: *mut f32,
    /// Number of sums.
    pub sums_count: usize,
}

#[cfg(feature = "std")]
super::guard::versioned!(aq_vectors {
    struct_size,
    format,
    group_size,
    cols,
    batch,
    transform,
    values,
    values_count,
    scales,
    scales_count,
    sums,
    sums_count
});

/// Quantizes `batch` vectors to signed bytes, for aq_matvec_int8 with this matrix, or with any
/// other that has the same cols, format, group_size, input scale and rotation. The planes are not
/// read.
///
/// Vectors are first transformed as the matrix requires. In each group of a vector, values are then
/// scaled so that the largest magnitude becomes 127, and rounded half to even. Outputs must not
/// overlap each other or the input.
///
/// Fails with AQ_ERROR_ARGUMENT for a NaN or infinity; the contents of the outputs are then
/// undefined.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_quantize_vectors(
    matrix: *const aq_matrix,
    x: *const f32,
    x_count: usize,
    batch: usize,
    vectors: *mut aq_vectors,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::{read, write};
    use super::types::FORMATS;
    use crate::kernel::ActivationsMut;

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let matrix = Matrix::read(matrix)?;
            let encoding = matrix.encoding()?;
            let given = read(vectors, "vectors")?;
            let x = bytes(x, x_count, "x")?;
            let values = bytes_mut(given.values, given.values_count, "vectors.values")?;
            let scales = bytes_mut(given.scales, given.scales_count, "vectors.scales")?;
            let sums = bytes_mut(given.sums, given.sums_count, "vectors.sums")?;
            let cols = matrix.cols;
            let count = matrix_len(batch, cols, 1)?;
            check_len("x", x.len(), count)?;
            check_len("vectors.values", values.len(), count)?;
            let groups = matrix_len(batch, encoding.groups(cols), 1)?;
            check_len("vectors.scales", scales.len(), groups)?;
            check_len("vectors.sums", sums.len(), groups)?;
            let table = table()?;
            transformed(&matrix, table, x, |x| {
                let out = ActivationsMut {
                    encoding,
                    values,
                    scales,
                    sums,
                };
                match table.quantize_vectors(x, cols, out) {
                    true => Ok(()),
                    false => Err(Fault::Argument("x has a NaN or an infinity")),
                }
            })?;
            let made = aq_vectors {
                format: FORMATS.write(encoding.format()),
                group_size: group_size(encoding),
                cols,
                batch,
                transform: matrix.transform_id(),
                ..given
            };
            write(vectors, made, "vectors")
        })
    }
}

/// Multiplies a quantized matrix with vectors from aq_quantize_vectors, as aq_matvec does with f32.
/// Codes and values are multiplied as integers, with the CPU's integer dot-product instructions if
/// it has them (AVX-512 VNNI, NEON dot products).
///
/// The integer products are exact. For w and x as quantized, the error of each y is at most 2^-17
/// times the sum over groups of max |w| * sum |x|, where max |w| is the largest magnitude that a
/// code of the group can represent. The error of quantizing x, up to half a scale for each value,
/// is additional.
///
/// Fails with AQ_ERROR_ARGUMENT for vectors that were made for another kind of matrix.
#[cfg(feature = "std")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_matvec_int8(
    matrix: *const aq_matrix,
    vectors: *const aq_vectors,
    y: *mut f32,
    y_count: usize,
    err: *mut aq_error,
) -> aq_status {
    use super::guard::read;
    use super::types::FORMATS;
    use crate::kernel::{Activations, ByteMatVec};

    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let matrix = Matrix::read(matrix)?;
            let encoding = matrix.encoding()?;
            let vectors = read(vectors, "vectors")?;
            let cols = matrix.cols;
            let made_for = (vectors.format, vectors.group_size, vectors.cols);
            let format = FORMATS.write(encoding.format());
            if made_for != (format, group_size(encoding), cols) {
                return Err(Fault::Argument(
                    "vectors were quantized for a matrix of another format, group size or cols",
                ));
            }
            if vectors.transform != matrix.transform_id() {
                return Err(Fault::Argument(
                    "vectors were quantized for a matrix with another input scale or rotation",
                ));
            }
            let batch = vectors.batch;
            let x = Activations {
                values: bytes(vectors.values, vectors.values_count, "vectors.values")?,
                scales: bytes(vectors.scales, vectors.scales_count, "vectors.scales")?,
                sums: bytes(vectors.sums, vectors.sums_count, "vectors.sums")?,
            };
            let y = bytes_mut(y, y_count, "y")?;
            let count = matrix_len(batch, cols, 1)?;
            check_len("vectors.values", x.values.len(), count)?;
            let groups = matrix_len(batch, encoding.groups(cols), 1)?;
            check_len("vectors.scales", x.scales.len(), groups)?;
            check_len("vectors.sums", x.sums.len(), groups)?;
            check_len("y", y.len(), matrix_len(batch, matrix.rows, 1)?)?;
            let table = table()?;
            matrix.contiguous(|rows, planes| {
                table.matvec_bytes(ByteMatVec {
                    encoding,
                    cols,
                    planes,
                    rows,
                    x,
                    y: &mut *y,
                    y_rows: matrix.rows,
                });
            });
            Ok(())
        })
    }
}
