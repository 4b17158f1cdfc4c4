//! aq_model: an open quantized file.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::guard::{
    Fault, aq_error, aq_status, bytes, bytes_mut, check_put, guard, put, text, versioned, write,
};
use super::handle::{Handle, Strings, borrow, free, give};
use super::matrix::{aq_matrix, check_len};
use super::options::aq_run_options;
use super::source::{aq_tensor_info, at, count};
use super::types::*;
use crate::error::Error;
use crate::model::{Model, TilePlanes};
use crate::run;

/// An open quantized file. Any number of threads may use it.
pub struct aq_model {
    pub(super) model: Arc<Model>,
    strings: Strings,
    /// Planes that were unpacked for a view.
    unpacked: Mutex<BTreeMap<(usize, usize), TilePlanes>>,
}

impl Handle for aq_model {
    const NAME: &'static str = "aq_model";
}

/// Some rows of a tensor, without copying them. Pointers are valid until the model is freed. They
/// point into the file's memory map; if the file is compressed, its planes are decompressed into
/// memory when first viewed. In uncompressed files planes over 64 KiB are aligned to 64 bytes;
/// other planes need not be aligned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_tensor_view {
    /// sizeof(aq_tensor_view).
    pub struct_size: u32,
    /// Index in the tensor of the first row.
    pub row_start: usize,
    /// The rows, for products and decoding: `&view.matrix` can be passed to both.
    pub matrix: aq_matrix,
    /// XXH3-64 of the tile, see docs/format.md.
    pub checksum: u64,
    /// Cosine as measured when the file was written; NaN when kept.
    pub cosine: f64,
    /// SQNR as measured when the file was written, in dB; infinite if there is no error, NaN when
    /// kept.
    pub sqnr_db: f64,
    /// Bits per weight, including scales and biases; NaN if there are no weights.
    pub bits_per_weight: f64,
}

versioned!(aq_tensor_view {
    struct_size,
    row_start,
    matrix,
    checksum,
    cosine,
    sqnr_db,
    bits_per_weight
});

/// Called once, on any thread, when the library no longer uses the caller's memory.
pub type aq_release_fn = Option<unsafe extern "C" fn(user_data: *mut c_void)>;

/// The caller's memory that a model is opened in.
struct Borrowed {
    data: &'static [u8],
    release: aq_release_fn,
    user_data: *mut c_void,
}

// SAFETY: by the header's conventions `release` may be called by any thread.
unsafe impl Send for Borrowed {}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        self.data
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: the caller's function, called as the header says.
            unsafe { release(self.user_data) };
        }
    }
}

unsafe fn give_model(model: Model, out: *mut *mut aq_model) -> Result<(), Fault> {
    let model = aq_model {
        model: Arc::new(model),
        strings: Strings::default(),
        unpacked: Mutex::default(),
    };
    // SAFETY: as the caller's.
    unsafe { give(model, out) }
}

/// Opens a Parquet file written by this library, or a folder of parts, and maps it into memory.
/// While it is open, the file may be replaced by another, but must not be written to. Reads footers
/// only; aq_model_verify checks checksums.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_open(
    path: *const c_char,
    model: *mut *mut aq_model,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(model, "model")?;
            give_model(Model::open(Path::new(text(path, "path")?))?, model)
        })
    }
}

/// Opens a file in memory, which must not change until `release` is called, or, if that is NULL,
/// until the model and every Arrow array exported from it are freed.
///
/// `release` is called exactly once, even if the call fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_open_memory(
    data: *const c_void,
    data_len: usize,
    release: aq_release_fn,
    user_data: *mut c_void,
    model: *mut *mut aq_model,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let mut file = Borrowed {
                data: &[],
                release,
                user_data,
            };
            check_put(model, "model")?;
            file.data = bytes(data.cast(), data_len, "data")?;
            give_model(Model::from_bytes(file)?, model)
        })
    }
}

/// Returns the number of tensors; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_count(model: *const aq_model) -> usize {
    // SAFETY: by the header's conventions.
    unsafe { count(model, |model| model.model.tensors().len()) }
}

/// Describes tensor `index`; tensors are in the order of the file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_tensor(
    model: *const aq_model,
    index: usize,
    info: *mut aq_tensor_info,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = borrow(model)?;
            let tensor = at(model.model.tensors(), index, "tensor")?;
            let found = aq_tensor_info::of(&tensor.info, tensor.tiles.len(), &model.strings);
            write(info, found, "info")
        })
    }
}

/// Finds the index of the tensor called `name`. Fails with AQ_ERROR_TENSOR if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_find(
    model: *const aq_model,
    name: *const c_char,
    index: *mut usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(index, "index")?;
            let model = &borrow(model)?.model;
            let name = text(name, "name")?;
            put(index, find(model, name)?, "index")
        })
    }
}

/// The index of the tensor called `name`.
pub(super) fn find(model: &Model, name: &str) -> Result<usize, Error> {
    let missing = || Error::tensor(model.path(), name, "there is no such tensor");
    model.find(name).ok_or_else(missing)
}

/// Views tile `tile` of tensor `index`. Most tensors have one tile; `tiles` of aq_tensor_info is
/// the number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_view(
    model: *const aq_model,
    index: usize,
    tile: usize,
    view: *mut aq_tensor_view,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            super::guard::check_out(view, "view")?;
            write(view, borrow(model)?.view(index, tile)?, "view")
        })
    }
}

impl aq_model {
    /// Pointers of the view last as long as `self`.
    fn view(&self, index: usize, number: usize) -> Result<aq_tensor_view, Fault> {
        let tensor = at(self.model.tensors(), index, "tensor")?;
        let tile = &at(&tensor.tiles, number, "tile")?.tile;
        let planes = self.planes(index, number)?;
        let place = |plane: Option<&[u8]>| match plane {
            Some(plane) => (plane.as_ptr().cast::<c_void>(), plane.len()),
            None => (std::ptr::null(), 0),
        };
        let stride = |len: usize| match len.checked_div(tile.row_count) {
            Some(stride) if stride * tile.row_count == len => stride,
            _ => 0,
        };
        let (codes, codes_len) = place(Some(planes.codes()));
        let (scales, scales_len) = place(planes.scales());
        let (biases, biases_len) = place(planes.biases());
        let (input_scale, input_scale_len) = place(tile.input_scale.as_deref());
        let rotation = tile.rotation;
        let encoding = tile.encoding;
        let cosine = tile.cosine.map(f64::from);
        let matrix = aq_matrix {
            dtype: DTYPES.write(tile.source_dtype),
            rows: tile.row_count,
            cols: tile.shape.cols(),
            codes,
            codes_len,
            codes_stride: stride(codes_len),
            scales,
            scales_len,
            scales_stride: stride(scales_len),
            biases,
            biases_len,
            biases_stride: stride(biases_len),
            input_scale,
            input_scale_len,
            rotation_block: rotation.map_or(0, |rotation| rotation.block as usize),
            rotation_seed: rotation.map_or(0, |rotation| rotation.seed),
            ..aq_matrix::of(encoding)
        };
        Ok(aq_tensor_view {
            struct_size: 0,
            row_start: tile.row_start,
            matrix,
            checksum: tile.checksum,
            cosine: cosine.unwrap_or(f64::NAN),
            sqnr_db: super::report::decibels(cosine, tile.sqnr_db.map(f64::from)),
            bits_per_weight: tile.bits_per_weight.map_or(f64::NAN, f64::from),
        })
    }

    /// The planes of a tile, in the memory map or kept by the handle.
    fn planes(&self, index: usize, tile: usize) -> Result<TilePlanes, Fault> {
        let unpacked = || self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(planes) = unpacked().get(&(index, tile)) {
            return Ok(planes.clone());
        }
        let planes = self.model.planes(index, tile)?;
        let all = [Some(planes.codes()), planes.scales(), planes.biases()];
        let mapped = |plane: &[u8]| plane.is_empty() || self.model.is_mapped(plane);
        if all.into_iter().flatten().all(mapped) {
            return Ok(planes);
        }
        // Whichever thread was first: its planes may have been lent.
        Ok(unpacked().entry((index, tile)).or_insert(planes).clone())
    }
}

/// Decodes `rows` rows of tensor `index`, from `row_start` on, as f32, f16 or bf16. `weights` has
/// rows * cols values. Kept f64, f32, f16, bf16 and f8 tensors are converted. Fails with
/// AQ_ERROR_TENSOR if the tensor has no such rows, or if its values are not floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_dequantize_rows(
    model: *const aq_model,
    index: usize,
    row_start: usize,
    rows: usize,
    dtype: aq_dtype,
    weights: *mut c_void,
    weights_len: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = &borrow(model)?.model;
            let shape = &at(model.tensors(), index, "tensor")?.info.shape;
            let float = FLOATS.read(dtype)?;
            let end = row_start
                .checked_add(rows)
                .filter(|&end| end <= shape.rows());
            let end = end.ok_or(Fault::NoRows {
                start: row_start,
                count: rows,
                rows: shape.rows(),
            })?;
            let weights = bytes_mut(weights.cast(), weights_len, "weights")?;
            let expected = rows * shape.cols() * float.size();
            check_len("weights", weights.len(), expected)?;
            Ok(model.dequantize_rows(index, row_start..end, float, weights)?)
        })
    }
}

/// Multiplies all tiles of tensor `index` (rows x cols) with `batch` vectors, as aq_matvec does.
/// `x` has batch * cols values, `y` batch * rows. Fails with AQ_ERROR_TENSOR for a kept tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_matvec(
    model: *const aq_model,
    index: usize,
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
            let model = &borrow(model)?.model;
            let tensor = at(model.tensors(), index, "tensor")?;
            let (rows, cols) = (tensor.info.shape.rows(), tensor.info.shape.cols());
            let (x, y) = (bytes(x, x_count, "x")?, bytes_mut(y, y_count, "y")?);
            for (what, found, size) in [("x", x.len(), cols), ("y", y.len(), rows)] {
                let expected = size
                    .checked_mul(batch)
                    .ok_or(Fault::Argument("batch is too large"))?;
                check_len(what, found, expected)?;
            }
            Ok(model.matvec(index, x, y)?)
        })
    }
}

/// Decodes all tensors into the safetensors file `output`, with the original names, shapes and
/// metadata. Floats become `dtype` (f32, f16 or bf16). With AQ_DTYPE_DEFAULT they have the type
/// that they had in the source, except that quantized f8 tensors become bf16. Tensors of other
/// types do not change. Checks every checksum. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_dequantize(
    model: *const aq_model,
    output: *const c_char,
    dtype: aq_dtype,
    options: *const aq_run_options,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = &borrow(model)?.model;
            let output = Path::new(text(output, "output")?);
            let float = match dtype {
                AQ_DTYPE_DEFAULT => None,
                dtype => Some(FLOATS.read(dtype)?),
            };
            aq_run_options::read(options)?
                .with(|options| run::dequantize_file(model, output, float, options))
        })
    }
}

/// Finds the value of `key` in the file's footer, for example of "arrowquant.config"
/// (docs/format.md). Fails with AQ_ERROR_TENSOR if there is no such key. The value belongs to the
/// model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_metadata(
    model: *const aq_model,
    key: *const c_char,
    value: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = borrow(model)?;
            let key = text(key, "key")?;
            let found = model
                .model
                .metadata()
                .get(key)
                .ok_or_else(|| Fault::NoName {
                    what: "key",
                    name: key.to_owned(),
                })?;
            put(value, model.strings.lend(found), "value")
        })
    }
}

/// Writes the file's footer as a JSON object of keys and strings. The text belongs to the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_metadata_to_json(
    model: *const aq_model,
    json: *mut *const c_char,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = borrow(model)?;
            let text = serde_json::json!(model.model.metadata()).to_string();
            put(json, model.strings.lend(&text), "json")
        })
    }
}

/// Closes the file. Arrow streams and arrays that were exported from it keep what they need.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_free(model: *mut aq_model) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(model)) };
}
