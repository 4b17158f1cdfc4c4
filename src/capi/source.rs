//! aq_source: tensors to quantize, from files or memory.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::OnceLock;

use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};

use super::guard::{
    Fault, aq_error, aq_status, bytes, check_put, guard, read, text, versioned, write,
};
use super::handle::{Handle, Strings, borrow, borrow_mut, free, give};
use super::types::{DTYPES, aq_dtype};
use crate::error::Error;
use crate::source::{self, MemorySource, OpenOptions, Source};
use crate::tensor::TensorInfo;

/// Tensors to quantize.
pub struct aq_source {
    kind: Kind,
    /// The tensors in memory, resolved together since the last was added.
    resolved: OnceLock<Box<dyn Source>>,
    /// Earlier results, which descriptions that were lent may point to.
    before: Vec<Box<dyn Source>>,
    strings: Strings,
}

enum Kind {
    Opened(Box<dyn Source>),
    Memory(MemorySource<'static>),
}

impl Handle for aq_source {
    const NAME: &'static str = "aq_source";
}

impl aq_source {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            resolved: OnceLock::new(),
            before: Vec::new(),
            strings: Strings::default(),
        }
    }

    pub(super) fn source(&self) -> &dyn Source {
        match &self.kind {
            Kind::Opened(source) => source.as_ref(),
            Kind::Memory(source) => {
                let resolve = || source::resolve(Box::new(source.clone()));
                self.resolved.get_or_init(resolve).as_ref()
            }
        }
    }
}

/// Description of a tensor. Pointers belong to the handle that described it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_tensor_info {
    /// sizeof(aq_tensor_info).
    pub struct_size: u32,
    /// Element type in the source.
    pub dtype: aq_dtype,
    /// Name in the model.
    pub name: *const c_char,
    /// Bytes of the name without its final NUL; a name may contain a NUL itself.
    pub name_len: usize,
    /// Dimensions, outermost first.
    pub dims: *const usize,
    /// Number of dimensions; 0 for a scalar.
    pub dims_count: usize,
    /// Rows of the tensor as a matrix: all dimensions but the first are folded into columns.
    pub rows: usize,
    /// Columns of the tensor as a matrix.
    pub cols: usize,
    /// Bytes of the tensor's values in the source.
    pub bytes: usize,
    /// Number of tiles (blocks of whole rows) that store the tensor in a file; 0 in a source.
    pub tiles: usize,
}

versioned!(aq_tensor_info {
    struct_size,
    dtype,
    name,
    name_len,
    dims,
    dims_count,
    rows,
    cols,
    bytes,
    tiles
});

impl aq_tensor_info {
    pub(super) fn of(info: &TensorInfo, tiles: usize, strings: &Strings) -> Self {
        Self {
            struct_size: 0,
            dtype: DTYPES.write(info.dtype),
            name: strings.lend(&info.name),
            name_len: info.name.len(),
            dims: info.shape.dims().as_ptr(),
            dims_count: info.shape.dims().len(),
            rows: info.shape.rows(),
            cols: info.shape.cols(),
            bytes: info.bytes().unwrap_or(0),
            tiles,
        }
    }
}

/// Element `index` of a list, or an error that says what there is.
pub(super) fn at<'a, T>(list: &'a [T], index: usize, what: &'static str) -> Result<&'a T, Fault> {
    let count = list.len();
    list.get(index).ok_or(Fault::NoIndex { what, index, count })
}

/// Options of opening a source. Start with AQ_INIT(aq_open_options).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_open_options {
    /// sizeof(aq_open_options).
    pub struct_size: u32,
    /// Names of pipeline components to leave out. Their folders may be missing.
    pub without: *const *const c_char,
    /// Number of names.
    pub without_count: usize,
}

versioned!(aq_open_options {
    struct_size,
    without,
    without_count
});

/// Opens a model to quantize. Reads headers only. f8 weights with scales appear as bf16 tensors,
/// multiplied by their scales; the scales are not tensors of the source. `options` may be NULL.
///
/// - A safetensors file, the `*.safetensors.index.json` of its shards, or a folder with one of
///   these.
/// - The folder of a diffusers pipeline, with its `model_index.json`: all its components, except
///   those in `without`. Tensor names begin with the component's name and a dot
///   (`transformer.blocks.0.attn.qkv.weight`). An unknown component in `without`, or any component
///   if this is not a pipeline, is an error.
/// - A GGUF file, any part of a split one (`NAME-00001-of-00003.gguf`), or a folder with one of
///   these. Tensors are f32, f16, bf16, or packed as Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
///   IQ4_NL or IQ4_XS; packed tensors are read as f32.
/// - A Parquet file: a table with one tensor per row, in columns as aq_source_from_arrow takes them
///   (`data` must be binary), or a file written by this library in which all tensors are kept.
/// - A JSON file that lists tensors without their weights, for plans: `{"dtype": "bf16",
///   "tensors": {"w": [2, 3], "ids": {"shape": [4], "dtype": "i64"}}}`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_open(
    path: *const c_char,
    options: *const aq_open_options,
    source: *mut *mut aq_source,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(source, "source")?;
            let path = Path::new(text(path, "path")?);
            let mut wanted = OpenOptions::default();
            if !options.is_null() {
                let options = read(options, "options")?;
                for &name in bytes(options.without, options.without_count, "options.without")? {
                    let name = text(name, "a name in options.without")?;
                    wanted.without.push(name.to_owned());
                }
            }
            let opened = source::open_with(path, &wanted)?;
            give(aq_source::new(Kind::Opened(opened)), source)
        })
    }
}

/// Creates an empty source, for aq_source_add_tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_new(
    source: *mut *mut aq_source,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(source, "source")?;
            give(aq_source::new(Kind::Memory(MemorySource::new())), source)
        })
    }
}

/// Adds a tensor in the caller's memory. Its values are not copied: they must not change until the
/// source is freed. Any dtype is accepted; tensors of other types than f64, f32, f16, bf16 and f8
/// (e4m3, e5m2) are kept. An f8 weight whose scale is also added, such as `a.weight_scale` beside
/// `a.weight`, becomes one bf16 tensor, as when it is read from a file. Only for sources from
/// aq_source_new or aq_source_from_arrow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_add_tensor(
    source: *mut aq_source,
    name: *const c_char,
    dtype: aq_dtype,
    dims: *const usize,
    dims_count: usize,
    data: *const c_void,
    data_len: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let handle = borrow_mut(source)?;
            let Kind::Memory(source) = &mut handle.kind else {
                return Err(Fault::Argument("tensors cannot be added to an opened file"));
            };
            handle.before.extend(handle.resolved.take());
            let (name, dtype) = (text(name, "name")?, DTYPES.read(dtype)?);
            let dims = bytes(dims, dims_count, "dims")?;
            let data: &'static [u8] = bytes(data.cast(), data_len, "data")?;
            Ok(source.add(name, dtype, dims, data)?)
        })
    }
}

/// Creates a source from the tensors in an Arrow table, without copying values. The table has one
/// tensor per row: `name` a string, `shape` a list of int64, and `data` either binary, with its
/// dtype ("f32", "bf16", ...) in a column `dtype`, or a list of float or half float.
///
/// The library takes ownership of the stream, even if the call fails: the caller must not use or
/// release it any more, and its `release` is NULL afterwards. The stream's arrays are released when
/// the source is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_from_arrow(
    stream: *mut FFI_ArrowArrayStream,
    source: *mut *mut aq_source,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            bytes(stream, 1, "stream")?;
            let stream = FFI_ArrowArrayStream::from_raw(stream);
            check_put(source, "source")?;
            if stream.release().is_none() {
                return Err(Fault::Argument("the stream was released already"));
            }
            // What breaks the rules of the interface is met by assertions there.
            let refuse = |reason: String| Error::File {
                path: "(arrow)".into(),
                reason,
            };
            let read = || {
                let reader = RecordBatchStreamReader::try_new(stream);
                source::from_arrow(reader.map_err(|error| refuse(error.to_string()))?)
            };
            let tensors = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                let reason = "the stream breaks the rules of the Arrow C data interface";
                Err(refuse(reason.to_owned()))
            })?;
            give(aq_source::new(Kind::Memory(tensors)), source)
        })
    }
}

/// Returns the number of tensors; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_count(source: *const aq_source) -> usize {
    // SAFETY: by the header's conventions.
    unsafe { count(source, |source| source.source().tensors().len()) }
}

/// Describes tensor `index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_tensor(
    source: *const aq_source,
    index: usize,
    info: *mut aq_tensor_info,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let source = borrow(source)?;
            let tensor = at(source.source().tensors(), index, "tensor")?;
            let found = aq_tensor_info::of(tensor, 0, &source.strings);
            write(info, found, "info")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_free(source: *mut aq_source) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(source)) };
}

/// Returns a count, which needs no error: 0 for anything but a live handle.
pub(super) unsafe fn count<T: Handle>(handle: *const T, count: impl FnOnce(&T) -> usize) -> usize {
    let mut found = 0;
    // SAFETY: as the caller's.
    unsafe {
        guard(std::ptr::null_mut(), || {
            found = count(borrow(handle)?);
            Ok(())
        })
    };
    found
}
