//! aq_source: tensors to quantize, from files or memory.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

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
        let strings = Strings::default();
        Self { kind, strings }
    }

    pub(super) fn source(&self) -> &dyn Source {
        match &self.kind {
            Kind::Opened(source) => source.as_ref(),
            Kind::Memory(source) => source,
        }
    }
}

/// A tensor's description. Pointers belong to the handle it was asked of.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_tensor_info {
    /// sizeof(aq_tensor_info).
    pub struct_size: u32,
    /// Element type in the source.
    pub dtype: aq_dtype,
    /// Name in the model.
    pub name: *const c_char,
    /// Bytes of the name without its final NUL: a name may hold a NUL, too.
    pub name_len: usize,
    /// `n_dims` dimensions, outermost first.
    pub dims: *const usize,
    /// Number of dimensions; 0 for a scalar.
    pub n_dims: usize,
    /// Rows of the matrix it is quantized as: all dimensions but the first fold into columns.
    pub rows: usize,
    /// Columns of that matrix.
    pub cols: usize,
    /// Bytes of its values in the source.
    pub bytes: usize,
    /// Tiles it is stored in, each of some whole rows; 0 for a tensor of a source.
    pub tiles: usize,
}

versioned!(aq_tensor_info {
    struct_size,
    dtype,
    name,
    name_len,
    dims,
    n_dims,
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
            n_dims: info.shape.dims().len(),
            rows: info.shape.rows(),
            cols: info.shape.cols(),
            bytes: info.bytes().unwrap_or(0),
            tiles,
        }
    }
}

/// Element `index` of a list, or an error that says what there is.
pub(super) fn at<'a, T>(list: &'a [T], index: usize, what: &str) -> Result<&'a T, Fault> {
    list.get(index).ok_or_else(|| {
        let count = list.len();
        Error::Argument(format!("there is no {what} {index}: there are {count}")).into()
    })
}

/// Opens what weights come in. Reads headers only.
///
/// - A safetensors file, the `*.safetensors.index.json` of its shards, or a folder with one of
///   these.
/// - The folder of a diffusers pipeline, with its `model_index.json`: all its components. Names
///   begin with that of the component and a dot (`transformer.blocks.0.attn.qkv.weight`).
/// - A GGUF file of f32, f16, bf16 and Q8_0 tensors; the latter are f32 here.
/// - A Parquet file: a table with one tensor a row, in columns as aq_source_from_arrow takes them
///   (`data` binary), or a file of ours whose tensors were all kept.
/// - A JSON file that lists tensors without their weights, for plans: `{"dtype": "bf16",
///   "tensors": {"w": [2, 3], "ids": {"shape": [4], "dtype": "i64"}}}`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_open(
    path: *const c_char,
    source: *mut *mut aq_source,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions, here and in all that follow.
    unsafe {
        guard(err, || {
            check_put(source, "source")?;
            let opened = source::open(Path::new(text(path, "path")?))?;
            give(aq_source::new(Kind::Opened(opened)), source)
        })
    }
}

/// What to open of a path. Zero all, and set struct_size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_open_options {
    /// sizeof(aq_open_options).
    pub struct_size: u32,
    /// `n_without` names of components to leave out, where the path is that of a pipeline.
    pub without: *const *const c_char,
    pub n_without: usize,
}

versioned!(aq_open_options {
    struct_size,
    without,
    n_without
});

/// As aq_source_open, but not all of it: a component that is left out may be missing. To leave out
/// what is no component, or of what is no pipeline, is an error. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_open_with(
    path: *const c_char,
    options: *const aq_open_options,
    source: *mut *mut aq_source,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_put(source, "source")?;
            let path = Path::new(text(path, "path")?);
            let mut wanted = OpenOptions::default();
            if !options.is_null() {
                let options = read(options, "options.struct_size")?;
                for &name in bytes(options.without, options.n_without, "options.without")? {
                    let name = text(name, "a name in options.without")?;
                    wanted.without.push(name.to_owned());
                }
            }
            let opened = source::open_with(path, &wanted)?;
            give(aq_source::new(Kind::Opened(opened)), source)
        })
    }
}

/// Makes a source without tensors, to which aq_source_add_tensor adds some.
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

/// Adds a tensor that lies in the caller's memory. Its values are not copied: they must stay as
/// they are until the source is freed. Any dtype may be given; what is no f32, f16, bf16 or f8
/// (e4m3, e5m2) is kept as it is. Only for sources from aq_source_new or aq_source_from_arrow.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_add_tensor(
    source: *mut aq_source,
    name: *const c_char,
    dtype: aq_dtype,
    dims: *const usize,
    n_dims: usize,
    data: *const c_void,
    data_len: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let Kind::Memory(source) = &mut borrow_mut(source)?.kind else {
                return Err(Fault::Argument("tensors cannot be added to an opened file"));
            };
            let (name, dtype) = (text(name, "name")?, DTYPES.read(dtype)?);
            let dims = bytes(dims, n_dims, "dims")?;
            let data: &'static [u8] = bytes(data.cast(), data_len, "data")?;
            Ok(source.add(name, dtype, dims, data)?)
        })
    }
}

/// Makes a source of the tensors in an Arrow table, whose values are not copied. One tensor a row:
/// `name` a string, `shape` a list of int64, and `data` either binary, with its dtype ("f32",
/// "bf16", ...) in a column `dtype`, or a list of float or half float.
///
/// The stream is taken: it must not be used or released any more, whether the call succeeds or
/// not, and its `release` is NULL after it. Its arrays are released when the source is freed.
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

/// The number of tensors; 0 for NULL.
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
            write(info, found, "info.struct_size")
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_source_free(source: *mut aq_source) {
    // SAFETY: by the header's conventions.
    unsafe { guard(std::ptr::null_mut(), || free(source)) };
}

/// A number that needs no error: 0 for what is no handle.
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
