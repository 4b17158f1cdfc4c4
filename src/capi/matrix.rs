//! Matrices: the layout of weights in memory.
//!
//! A quantized matrix has up to three planes: packed codes, scales, and, if the scheme is affine,
//! biases. Each plane holds one row after another; docs/format.md has the layout. The columns of
//! some matrices were scaled or rotated before quantization: `input_scale` and `rotation_block`
//! describe this, and every function that takes a matrix accounts for it. Decoding reverses the
//! transformation, and products apply it to the vectors.

use core::ffi::c_void;

use super::guard::{Fault, aq_error, aq_status, bytes, bytes_mut, guard, read, versioned, write};
use super::types::{
    AQ_DTYPE_DEFAULT, AQ_FORMAT_KEPT, AQ_SCHEME_DEFAULT, FLOATS, FORMATS, SCALE_DTYPES, SCHEMES,
    aq_dtype, aq_format, aq_scheme, group_size, table,
};
use crate::format::{Choice, Encoding, Float, Rotation, ScaleDtype, Scheme, Transform};
use crate::kernel::{DecodeRow, KernelTable, Planes, TransformRows, Turn};

/// A matrix of weights, quantized or kept. aq_model_view and aq_quantize_rows fill it in; for
/// planes of your own, start with AQ_INIT(aq_matrix) and set the fields that apply.
///
/// The matrix owns no memory: its planes must remain valid while it is used. The size of the struct
/// changes only with AQ_ABI_VERSION, because other structs contain it; new fields will take the
/// place of `reserved`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_matrix {
    /// sizeof(aq_matrix).
    pub struct_size: u32,
    /// How weights are encoded; AQ_FORMAT_KEPT for weights that are not quantized.
    pub format: aq_format,
    /// Number of weights that share a scale: a multiple of 16 up to 1024, or 0 for a whole row.
    pub group_size: u32,
    /// Default: symmetric. Ignored when kept.
    pub scheme: aq_scheme,
    /// Storage of scales and biases: AQ_DTYPE_F16 (the default) or AQ_DTYPE_F32. Ignored when kept.
    pub scale_dtype: aq_dtype,
    /// Element type of kept values, which are in the codes plane. In a view of a quantized tensor,
    /// the element type in the source; no function here reads it.
    pub dtype: aq_dtype,
    /// Rows of the matrix.
    pub rows: usize,
    /// Weights in a row.
    pub cols: usize,
    /// Packed codes: element i of a row is in byte i * bits / 8 of the row, least significant bits
    /// first. For kept weights, the values themselves. A format that needs no scales has no other
    /// plane.
    pub codes: *const c_void,
    /// Bytes of the codes plane.
    pub codes_len: usize,
    /// Bytes from the start of one row of codes to the next; 0 means that rows are contiguous.
    pub codes_stride: usize,
    /// One scale per group, row after row; NULL when kept.
    pub scales: *const c_void,
    /// Bytes of the scales plane.
    pub scales_len: usize,
    /// Bytes from the start of one row of scales to the next; 0 means that rows are contiguous.
    pub scales_stride: usize,
    /// One bias per group, row after row; NULL unless the scheme is affine.
    pub biases: *const c_void,
    /// Bytes of the biases plane.
    pub biases_len: usize,
    /// Bytes from the start of one row of biases to the next; 0 means that rows are contiguous.
    pub biases_stride: usize,
    /// Factors that columns were multiplied by before quantization, one f16 per column; NULL for
    /// none.
    pub input_scale: *const c_void,
    /// Bytes of input_scale: 2 * cols, or 0.
    pub input_scale_len: usize,
    /// Number of columns that were rotated together, after scaling; 0 for no rotation.
    pub rotation_block: usize,
    /// Seed of the rotation's signs, see docs/format.md.
    pub rotation_seed: u64,
    /// Must be 0.
    pub reserved: [u64; 4],
}

versioned!(aq_matrix {
    struct_size,
    format,
    group_size,
    scheme,
    scale_dtype,
    dtype,
    rows,
    cols,
    codes,
    codes_len,
    codes_stride,
    scales,
    scales_len,
    scales_stride,
    biases,
    biases_len,
    biases_stride,
    input_scale,
    input_scale_len,
    rotation_block,
    rotation_seed,
    reserved
});

// Other structs contain it, so it must not grow.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<aq_matrix>() == 176);

impl aq_matrix {
    /// The matrix of AQ_INIT.
    #[cfg(feature = "std")]
    pub(super) const INIT: Self = Self {
        struct_size: size_of::<Self>() as u32,
        format: AQ_FORMAT_KEPT,
        group_size: 0,
        scheme: 0,
        scale_dtype: 0,
        dtype: 0,
        rows: 0,
        cols: 0,
        codes: core::ptr::null(),
        codes_len: 0,
        codes_stride: 0,
        scales: core::ptr::null(),
        scales_len: 0,
        scales_stride: 0,
        biases: core::ptr::null(),
        biases_len: 0,
        biases_stride: 0,
        input_scale: core::ptr::null(),
        input_scale_len: 0,
        rotation_block: 0,
        rotation_seed: 0,
        reserved: [0; 4],
    };

    /// A matrix of this encoding, or of kept weights, without planes.
    #[cfg(feature = "std")]
    pub(super) fn of(encoding: Option<Encoding>) -> Self {
        let Some(encoding) = encoding else {
            return Self::INIT;
        };
        Self {
            format: FORMATS.write(encoding.format()),
            group_size: encoding.group_size().map_or(0, |size| size.get().into()),
            scheme: encoding.scheme().map_or(0, |scheme| SCHEMES.write(scheme)),
            scale_dtype: encoding
                .scale_dtype()
                .map_or(0, |dtype| SCALE_DTYPES.write(dtype)),
            ..Self::INIT
        }
    }

    /// The encoding of a quantized matrix.
    pub(super) fn encoding(&self) -> Result<Encoding, Fault> {
        let format = FORMATS.read(self.format)?;
        Ok(format.encoding(Choice {
            scheme: match self.scheme {
                AQ_SCHEME_DEFAULT => Scheme::Symmetric,
                code => SCHEMES.read(code)?,
            },
            group_size: group_size(self.group_size)?,
            scale_dtype: match self.scale_dtype {
                AQ_DTYPE_DEFAULT => ScaleDtype::F16,
                code => SCALE_DTYPES.read(code)?,
            },
        }))
    }

    /// What was done to the columns before quantization.
    unsafe fn transform<'a>(&self) -> Result<Transform<'a>, Fault> {
        let none = self.input_scale.is_null() && self.input_scale_len == 0;
        let input_scale = match none {
            true => None,
            // SAFETY: as the caller's.
            false => Some(unsafe {
                bytes(
                    self.input_scale.cast(),
                    self.input_scale_len,
                    "matrix.input_scale",
                )?
            }),
        };
        let rotation = match self.rotation_block {
            0 => None,
            block => Some(Rotation {
                // A larger number is as wrong.
                block: u32::try_from(block).unwrap_or(u32::MAX),
                seed: self.rotation_seed,
            }),
        };
        let transform = Transform {
            input_scale,
            rotation,
        };
        match transform.fits(self.cols) {
            true => Ok(transform),
            false => Err(Fault::Argument(
                "matrix.input_scale or matrix.rotation_block does not fit its columns",
            )),
        }
    }
}

/// A caller's matrix, checked.
pub(super) struct Matrix<'a> {
    stored: Stored,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) transform: Transform<'a>,
    planes: Planes<'a>,
    /// Bytes of one row in each plane.
    row: [usize; 3],
    /// Bytes from one row to the next.
    strides: [usize; 3],
}

/// What the planes of a matrix hold.
#[derive(Clone, Copy)]
enum Stored {
    Quantized(Encoding),
    Kept(Float),
}

impl<'a> Matrix<'a> {
    /// Reads and checks a caller's matrix.
    pub(super) unsafe fn read(matrix: *const aq_matrix) -> Result<Self, Fault> {
        // SAFETY: as the caller's, here and below.
        let matrix = unsafe { read(matrix, "matrix")? };
        matrix.check_reserved()?;
        let stored = match matrix.format {
            AQ_FORMAT_KEPT => Stored::Kept(kept_float(matrix.dtype)?),
            _ => Stored::Quantized(matrix.encoding()?),
        };
        let (rows, cols) = (matrix.rows, matrix.cols);
        // Then no size of a row overflows.
        matrix_len(rows.max(1), cols, size_of::<f32>())?;
        let row = match stored {
            Stored::Quantized(encoding) => encoding.plane_bytes(cols),
            Stored::Kept(float) => [cols * float.size(), 0, 0],
        };
        let given = [
            (matrix.codes, matrix.codes_len, matrix.codes_stride),
            (matrix.scales, matrix.scales_len, matrix.scales_stride),
            (matrix.biases, matrix.biases_len, matrix.biases_stride),
        ];
        let mut planes: [&[u8]; 3] = [&[]; 3];
        let mut strides = row;
        for (i, (data, len, stride)) in given.into_iter().enumerate() {
            let what = PLANES[i];
            if stride != 0 {
                strides[i] = stride;
            }
            // SAFETY: as the caller's.
            planes[i] = unsafe { bytes(data.cast(), len, what)? };
            check_plane(what, len, rows, row[i], strides[i])?;
        }
        Ok(Self {
            stored,
            rows,
            cols,
            // SAFETY: as the caller's.
            transform: unsafe { matrix.transform()? },
            planes: Planes {
                codes: planes[0],
                scales: planes[1],
                biases: planes[2],
            },
            row,
            strides,
        })
    }

    /// The encoding, for what only a quantized matrix can do.
    pub(super) fn encoding(&self) -> Result<Encoding, Fault> {
        match self.stored {
            Stored::Quantized(encoding) => Ok(encoding),
            Stored::Kept(_) => Err(Fault::Tensor(
                "the matrix is kept, not quantized: decode it with aq_dequantize_rows",
            )),
        }
    }

    /// A number that two matrices share if their columns were scaled and rotated alike; 0 for not
    /// at all.
    #[cfg(feature = "std")]
    pub(super) fn transform_id(&self) -> u64 {
        if self.transform.is_identity() {
            return 0;
        }
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(self.transform.input_scale.unwrap_or_default());
        if let Some(Rotation { block, seed }) = self.transform.rotation {
            hash.update(&block.to_le_bytes());
            hash.update(&seed.to_le_bytes());
        }
        hash.digest().max(1)
    }

    /// The planes of one row.
    fn row(&self, row: usize) -> Planes<'a> {
        let part = |plane: &'a [u8], i: usize| &plane[row * self.strides[i]..][..self.row[i]];
        Planes {
            codes: part(self.planes.codes, 0),
            scales: part(self.planes.scales, 1),
            biases: part(self.planes.biases, 2),
        }
    }

    /// Calls `each` with rows that are contiguous in all planes: all of them, or one by one.
    pub(super) fn contiguous(&self, mut each: impl FnMut(core::ops::Range<usize>, Planes<'a>)) {
        if self.strides == self.row {
            return each(0..self.rows, self.planes);
        }
        for row in 0..self.rows {
            each(row..row + 1, self.row(row));
        }
    }

    /// Decodes all rows as `float` into memory of their size.
    fn decode(&self, float: Float, weights: &mut [u8]) -> Result<(), Fault> {
        let table = table()?;
        let mut narrow = Narrow::new(self, float)?;
        for (row, out) in weights
            .chunks_exact_mut((self.cols * float.size()).max(1))
            .enumerate()
        {
            let planes = self.row(row);
            match self.stored {
                Stored::Kept(from) => convert(table, from, planes.codes, float, out),
                Stored::Quantized(encoding) => narrow.write(table, float, out, |float, out| {
                    table.decode_row(DecodeRow {
                        encoding,
                        cols: self.cols,
                        planes,
                        float,
                        weights: out,
                    });
                    if !self.transform.is_identity() {
                        table.transform_rows(TransformRows {
                            transform: self.transform,
                            turn: Turn::Back,
                            cols: self.cols,
                            values: out,
                        });
                    }
                }),
            }
        }
        Ok(())
    }
}

/// Room for a row of f32, where a transform has to be undone before values are narrowed.
struct Narrow {
    #[cfg(feature = "std")]
    row: Vec<u8>,
}

#[cfg(feature = "std")]
impl Narrow {
    fn new(matrix: &Matrix<'_>, float: Float) -> Result<Self, Fault> {
        let needed = float != Float::F32 && !matrix.transform.is_identity();
        let len = if needed {
            matrix.cols * Float::F32.size()
        } else {
            0
        };
        Ok(Self { row: vec![0; len] })
    }

    /// Lets `decode` write a row, by way of f32 where that is needed.
    fn write(
        &mut self,
        table: &KernelTable,
        float: Float,
        out: &mut [u8],
        decode: impl FnOnce(Float, &mut [u8]),
    ) {
        if self.row.is_empty() {
            return decode(float, out);
        }
        decode(Float::F32, &mut self.row);
        table.narrow(&self.row, float, out);
    }
}

#[cfg(not(feature = "std"))]
impl Narrow {
    fn new(matrix: &Matrix<'_>, float: Float) -> Result<Self, Fault> {
        match float == Float::F32 || matrix.transform.is_identity() {
            true => Ok(Self {}),
            false => Err(Fault::Argument(
                "a matrix with an input scale or a rotation decodes only as f32 without an allocator",
            )),
        }
    }

    fn write(
        &mut self,
        _: &KernelTable,
        float: Float,
        out: &mut [u8],
        decode: impl FnOnce(Float, &mut [u8]),
    ) {
        decode(float, out);
    }
}

/// Converts kept values, narrower ones rounded half to even.
fn convert(table: &KernelTable, from: Float, values: &[u8], to: Float, out: &mut [u8]) {
    const COUNT: usize = 64;
    if from == to {
        return out.copy_from_slice(values);
    }
    let parts = values.chunks(COUNT * from.size());
    for (values, out) in parts.zip(out.chunks_mut(COUNT * to.size())) {
        let count = values.len() / from.size();
        let (mut wide, mut raw) = ([0f32; COUNT], [0u8; COUNT * 4]);
        table.widen(from, values, &mut wide[..count]);
        for (raw, value) in raw.chunks_exact_mut(4).zip(wide) {
            raw.copy_from_slice(&value.to_le_bytes());
        }
        table.narrow(&raw[..count * 4], to, out);
    }
}

impl aq_matrix {
    /// What was done to the columns of a caller's matrix, and how many there are; the planes may be
    /// anything.
    pub(super) unsafe fn read_transform<'a>(
        matrix: *const Self,
    ) -> Result<(Transform<'a>, usize), Fault> {
        // SAFETY: as the caller's.
        unsafe {
            let matrix = read(matrix, "matrix")?;
            matrix.check_reserved()?;
            Ok((matrix.transform()?, matrix.cols))
        }
    }

    /// A field of a newer library may change what the planes mean.
    fn check_reserved(&self) -> Result<(), Fault> {
        match self.reserved == [0; 4] {
            true => Ok(()),
            false => Err(Fault::Argument(
                "matrix.reserved is not 0: start with AQ_INIT, or use a newer library",
            )),
        }
    }
}

/// The element type of kept weights, as far as kernels read it.
fn kept_float(dtype: aq_dtype) -> Result<Float, Fault> {
    FLOATS.read(dtype).map_err(|_| {
        Fault::Tensor(
            "kernels read kept weights of f32, f16 and bf16 only: use aq_model_dequantize_rows",
        )
    })
}

const PLANES: [&str; 3] = ["matrix.codes", "matrix.scales", "matrix.biases"];

/// Checks that a plane of `len` bytes has `rows` rows of `row` bytes, `stride` bytes apart.
fn check_plane(
    what: &'static str,
    len: usize,
    rows: usize,
    row: usize,
    stride: usize,
) -> Result<(), Fault> {
    if stride < row {
        return Err(Fault::Stride {
            what,
            row,
            found: stride,
        });
    }
    let most = matrix_len(rows, stride, 1)?;
    // Behind the last row there need be no gap.
    let least = most - if most > 0 { stride - row } else { 0 };
    match (least..=most).contains(&len) {
        true => Ok(()),
        false => Err(Fault::Length {
            what,
            expected: least,
            found: len,
        }),
    }
}

/// The product of sizes, or an error where no memory holds as much.
pub(super) fn matrix_len(rows: usize, cols: usize, size: usize) -> Result<usize, Fault> {
    let len = rows.checked_mul(cols).and_then(|len| len.checked_mul(size));
    len.filter(|&len| len <= isize::MAX as usize)
        .ok_or(Fault::Argument("rows * cols is larger than any memory"))
}

/// Checks the length of the named argument.
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

/// Sets `part` to `rows` rows of `matrix`, from `row_start` on. The planes are shared, not copied.
/// `part` may be `matrix` itself. Use this to decode or multiply in pieces, for example one piece
/// per thread.
///
/// Fails with AQ_ERROR_TENSOR if the matrix has no such rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_matrix_rows(
    matrix: *const aq_matrix,
    row_start: usize,
    rows: usize,
    part: *mut aq_matrix,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            let whole = read(matrix, "matrix")?;
            whole.check_reserved()?;
            let end = row_start.checked_add(rows).filter(|&end| end <= whole.rows);
            if end.is_none() {
                return Err(Fault::NoRows {
                    start: row_start,
                    count: rows,
                    rows: whole.rows,
                });
            }
            let given = [
                (whole.codes, whole.codes_len, whole.codes_stride),
                (whole.scales, whole.scales_len, whole.scales_stride),
                (whole.biases, whole.biases_len, whole.biases_stride),
            ];
            // The bytes of a row of kept values follow from the plane: their type may be any.
            let row = match whole.format {
                AQ_FORMAT_KEPT => {
                    let whole_rows = whole.codes_len.checked_rem(whole.rows) == Some(0);
                    if whole.codes_stride == 0 && whole.rows > 0 && !whole_rows {
                        return Err(Fault::Tensor("rows of the matrix are not whole bytes"));
                    }
                    [whole.codes_len.checked_div(whole.rows).unwrap_or(0), 0, 0]
                }
                _ => {
                    matrix_len(whole.rows.max(1), whole.cols, size_of::<f32>())?;
                    whole.encoding()?.plane_bytes(whole.cols)
                }
            };
            let mut cut = [(core::ptr::null(), 0, 0); 3];
            for (i, (data, len, stride)) in given.into_iter().enumerate() {
                let data = bytes::<u8>(data.cast(), len, PLANES[i])?;
                let stride = if stride == 0 { row[i] } else { stride };
                if whole.format != AQ_FORMAT_KEPT {
                    check_plane(PLANES[i], len, whole.rows, row[i], stride)?;
                }
                let start = data.len().min(row_start.saturating_mul(stride));
                let len = (data.len() - start).min(rows.saturating_mul(stride));
                if !data.is_empty() {
                    cut[i] = (data[start..].as_ptr().cast::<c_void>(), len, stride);
                }
            }
            let [codes, scales, biases] = cut;
            let found = aq_matrix {
                rows,
                codes: codes.0,
                codes_len: codes.1,
                codes_stride: codes.2,
                scales: scales.0,
                scales_len: scales.1,
                scales_stride: scales.2,
                biases: biases.0,
                biases_len: biases.1,
                biases_stride: biases.2,
                ..whole
            };
            write(part, found, "part")
        })
    }
}

/// Decodes a matrix as f32, f16 or bf16; f16 and bf16 are the f32 result, rounded half to even.
/// `weights` has room for rows * cols values, which are `weights_len` bytes, and must not overlap
/// the matrix.
///
/// Scaling and rotation of columns are undone. Kept weights of f32, f16 and bf16 are converted; for
/// other kept types call aq_model_dequantize_rows. The contents of planes are not checked: scales
/// that are not finite give weights that are not finite.
///
/// Allocates nothing, except one row if a matrix with scaled or rotated columns is decoded as f16
/// or bf16. The firmware library refuses this case with AQ_ERROR_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_dequantize_rows(
    matrix: *const aq_matrix,
    dtype: aq_dtype,
    weights: *mut c_void,
    weights_len: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let matrix = Matrix::read(matrix)?;
            let float = FLOATS.read(dtype)?;
            let weights = bytes_mut::<u8>(weights.cast(), weights_len, "weights")?;
            let expected = matrix_len(matrix.rows, matrix.cols, float.size())?;
            check_len("weights", weights.len(), expected)?;
            matrix.decode(float, weights)
        })
    }
}
