//! Status codes and errors.

use core::ffi::c_char;
use core::fmt::{self, Write};
use core::mem::offset_of;

/// Result of a call: AQ_OK, or why it failed.
pub type aq_status = i32;
pub const AQ_OK: aq_status = 0;
/// A setting is unknown or out of range.
pub const AQ_ERROR_CONFIG: aq_status = 1;
/// The operating system refused to open, read or write a file.
pub const AQ_ERROR_IO: aq_status = 2;
/// A file is damaged, incomplete or of the wrong kind.
pub const AQ_ERROR_FILE: aq_status = 3;
/// A tensor is invalid, or cannot be processed as requested; or a requested tensor, tile, layer,
/// row, timestep or metadata key does not exist.
pub const AQ_ERROR_TENSOR: aq_status = 4;
/// A plan does not match its source, or cannot be read.
pub const AQ_ERROR_PLAN: aq_status = 5;
/// A checksum does not match: the data is damaged.
pub const AQ_ERROR_CHECKSUM: aq_status = 6;
/// A callback returned false.
pub const AQ_ERROR_CANCELLED: aq_status = 7;
/// A bug in the library.
pub const AQ_ERROR_INTERNAL: aq_status = 8;
/// An argument is invalid: NULL, a wrong length, a freed handle, text that is not UTF-8.
pub const AQ_ERROR_ARGUMENT: aq_status = 9;

/// Bytes of an error's message, its NUL included.
pub const AQ_MESSAGE_SIZE: usize = 512;

/// Error of a call. Start with AQ_INIT(aq_error); every call that receives it sets code and
/// message, to AQ_OK and "" on success.
#[repr(C)]
pub struct aq_error {
    /// sizeof(aq_error); 0 means the current size.
    pub struct_size: u32,
    /// The status that was returned.
    pub code: aq_status,
    /// Message, in UTF-8: names the file, the tensor and the reason. A message that is too long is
    /// cut in the middle.
    pub message: [c_char; AQ_MESSAGE_SIZE],
}

const _: () = assert!(size_of::<aq_error>() == 520);

/// Why a call failed, before it is told to the caller.
pub(super) enum Fault {
    /// The named argument is NULL.
    Null(&'static str),
    /// The named argument is not aligned to its type.
    Unaligned(&'static str),
    /// The named argument has the wrong length.
    Length {
        what: &'static str,
        expected: usize,
        found: usize,
    },
    /// The named struct does not begin with its size.
    NoSize(&'static str),
    /// The named argument or field has a value that it cannot have.
    Value {
        what: &'static str,
        found: i64,
        allowed: &'static str,
    },
    /// Rows of the named plane would overlap.
    Stride {
        what: &'static str,
        row: usize,
        found: usize,
    },
    /// A matrix does not have these rows.
    NoRows {
        start: usize,
        count: usize,
        rows: usize,
    },
    /// A tensor cannot be treated as asked.
    Tensor(&'static str),
    /// Nothing has the index that was asked for.
    #[cfg(feature = "std")]
    NoIndex {
        what: &'static str,
        index: usize,
        count: usize,
    },
    /// Nothing has the name that was asked for.
    #[cfg(feature = "std")]
    NoName { what: &'static str, name: String },
    /// Something else about the arguments.
    Argument(&'static str),
    /// AQ_ISA names no instruction set.
    Isa,
    /// Rows cannot be quantized.
    #[cfg(feature = "std")]
    Rows(crate::quantize::Fault),
    #[cfg(feature = "std")]
    Engine(crate::error::Error),
}

impl Fault {
    fn status(&self) -> aq_status {
        match self {
            Self::Tensor(_) | Self::NoRows { .. } => AQ_ERROR_TENSOR,
            #[cfg(feature = "std")]
            Self::NoIndex { .. } | Self::NoName { .. } => AQ_ERROR_TENSOR,
            Self::Null(_)
            | Self::Unaligned(_)
            | Self::Length { .. }
            | Self::Stride { .. }
            | Self::NoSize(_)
            | Self::Value { .. }
            | Self::Argument(_) => AQ_ERROR_ARGUMENT,
            Self::Isa => AQ_ERROR_CONFIG,
            #[cfg(feature = "std")]
            Self::Rows(_) => AQ_ERROR_TENSOR,
            #[cfg(feature = "std")]
            Self::Engine(error) => error.code(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null(what) => write!(f, "{what} is NULL"),
            Self::Unaligned(what) => write!(f, "{what} is not aligned to its type"),
            Self::Length {
                what,
                expected,
                found,
            } => write!(f, "{what} has length {found}, expected {expected}"),
            Self::NoSize(what) => {
                write!(f, "{what}.struct_size is 0: start with AQ_INIT")
            }
            Self::Stride { what, row, found } => write!(
                f,
                "{what} has a stride of {found} bytes, less than the {row} bytes of a row"
            ),
            Self::NoRows { start, count, rows } => write!(
                f,
                "there are no {count} rows from row {start} on: the matrix has {rows}"
            ),
            #[cfg(feature = "std")]
            Self::NoIndex { what, index, count } => {
                write!(f, "there is no {what} {index}: there are {count}")
            }
            #[cfg(feature = "std")]
            Self::NoName { what, name } => write!(f, "there is no {what} '{name}'"),
            Self::Value {
                what,
                found,
                allowed,
            } => write!(f, "{what} is {found}, expected {allowed}"),
            Self::Argument(text) | Self::Tensor(text) => f.write_str(text),
            Self::Isa => write!(f, "AQ_ISA {}", crate::kernel::UnknownIsa),
            #[cfg(feature = "std")]
            Self::Rows(crate::quantize::Fault::NonFinite { row, col, value }) => {
                write!(f, "row {row}, column {col} is {value}")
            }
            #[cfg(feature = "std")]
            Self::Rows(crate::quantize::Fault::ScaleOverflow { row }) => write!(
                f,
                "row {row} has weights so large that the scale dtype does not hold its scales or decoded values"
            ),
            #[cfg(feature = "std")]
            Self::Engine(error) => error.fmt(f),
        }
    }
}

#[cfg(feature = "std")]
impl From<crate::error::Error> for Fault {
    fn from(error: crate::error::Error) -> Self {
        Self::Engine(error)
    }
}

/// Calls `body`, and reports its result to the caller.
pub(super) unsafe fn guard(
    err: *mut aq_error,
    body: impl FnOnce() -> Result<(), Fault>,
) -> aq_status {
    let fault = fence::catch(body).err();
    let status = fault.as_ref().map_or(AQ_OK, Fault::status);
    if !err.is_null() {
        // SAFETY: it is not null, so by the header's conventions an `aq_error` of the caller's.
        unsafe { tell(err, status, fault.as_ref()) };
    }
    status
}

/// Writes as much of code and message as the caller's struct has room for.
unsafe fn tell(err: *mut aq_error, code: aq_status, fault: Option<&Fault>) {
    // SAFETY: the caller's struct has at least this field; it need not be aligned.
    let size = match unsafe { (&raw const (*err).struct_size).read_unaligned() } as usize {
        0 => size_of::<aq_error>(),
        size => size.min(size_of::<aq_error>()),
    };
    if size >= offset_of!(aq_error, message) {
        // SAFETY: the field is within the size the caller states.
        unsafe { (&raw mut (*err).code).write_unaligned(code) };
    }
    let room = size.saturating_sub(offset_of!(aq_error, message));
    if room == 0 {
        return;
    }
    let mut text = Text {
        bytes: [0; AQ_MESSAGE_SIZE],
        len: 0,
        room: room - 1,
    };
    if let Some(fault) = fault {
        text.take(fault);
    }
    // SAFETY: `len` is less than `room`, so message and NUL are within the size the caller
    // states.
    unsafe {
        let message = (&raw mut (*err).message).cast::<u8>();
        message.copy_from_nonoverlapping(text.bytes.as_ptr(), text.len + 1);
    }
}

/// Text of whole characters, always followed by NUL.
struct Text {
    bytes: [u8; AQ_MESSAGE_SIZE],
    len: usize,
    room: usize,
}

impl Text {
    /// Takes in a message; one that is too long keeps its beginning and its end, which says why.
    #[cfg(feature = "std")]
    fn take(&mut self, fault: &Fault) {
        const GAP: &str = " ... ";
        let message = fault.to_string();
        if message.len() <= self.room || self.room < 8 * GAP.len() {
            let _ = self.write_str(&message);
            return;
        }
        let half = (self.room - GAP.len()) / 2;
        let head = message.floor_char_boundary(half);
        let tail = message.ceil_char_boundary(message.len() - half);
        for part in [&message[..head], GAP, &message[tail..]] {
            let _ = self.write_str(part);
        }
    }

    /// Takes in a message, as far as it fits; those of the kernels are short.
    #[cfg(not(feature = "std"))]
    fn take(&mut self, fault: &Fault) {
        let _ = write!(self, "{fault}");
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            // A NUL within would end the message.
            let char = if char == '\0' { '\u{FFFD}' } else { char };
            let end = self.len + char.len_utf8();
            if end > self.room {
                return Err(fmt::Error);
            }
            char.encode_utf8(&mut self.bytes[self.len..end]);
            self.len = end;
        }
        Ok(())
    }
}

#[cfg(feature = "std")]
mod fence {
    use std::any::Any;
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
    use std::sync::Once;

    use super::Fault;
    use crate::error::{Error, panics_are_quiet};

    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
        static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
    }

    /// Calls `body`; a panic becomes an error, with the place it came from, and is not printed.
    pub fn catch(body: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let hook = take_hook();
            set_hook(Box::new(move |panic| {
                if GUARDED.get() || panics_are_quiet() {
                    remember(panic.location().map(|place| format!(" at {place}")));
                } else {
                    hook(panic);
                }
            }));
        });
        // A callback may call the library again.
        let before = GUARDED.replace(true);
        remember(None);
        let result = catch_unwind(AssertUnwindSafe(body));
        GUARDED.set(before);
        result.unwrap_or_else(|panic| {
            let place = PLACE
                .try_with(RefCell::take)
                .ok()
                .flatten()
                .unwrap_or_default();
            let message = format!("{}{place}", text(panic.as_ref()));
            Err(Error::Internal(message).into())
        })
    }

    /// Remembers where a panic came from. Handles are freed at the end of a thread, too, when its
    /// variables are gone already.
    fn remember(place: Option<String>) {
        let _ = PLACE.try_with(|remembered| remembered.replace(place));
    }

    fn text(panic: &(dyn Any + Send)) -> &str {
        let text = panic.downcast_ref::<&str>().copied();
        text.or(panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("panic")
    }
}

#[cfg(not(feature = "std"))]
mod fence {
    use super::Fault;

    /// Calls `body`. There is no unwinding without the standard library, and no way to panic
    /// that a test knows of.
    pub fn catch(body: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
        body()
    }
}

/// Fails with AQ_ERROR_INTERNAL and `message` (NULL: none), in the same way as any bug in the library
/// would. No C function: tests build a library of their own that exports it (tests/c/fail.rs).
///
/// # Safety
/// As for C functions.
#[cfg(feature = "std")]
#[doc(hidden)]
#[allow(clippy::panic)] // is what it is for
pub unsafe fn fail(message: *const c_char, err: *mut aq_error) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || match message.is_null() {
            true => panic!("asked to fail"),
            false => panic!("{}", text(message, "message")?),
        })
    }
}

/// Borrows the caller's memory to read; NULL is no memory at all.
pub(super) unsafe fn bytes<'a, T>(
    data: *const T,
    len: usize,
    what: &'static str,
) -> Result<&'a [T], Fault> {
    check_memory(data, len, what)?;
    match len {
        0 => Ok(&[]),
        // SAFETY: by the header's conventions `len` values are there.
        _ => Ok(unsafe { core::slice::from_raw_parts(data, len) }),
    }
}

/// Borrows the caller's memory to write; NULL is no memory at all.
pub(super) unsafe fn bytes_mut<'a, T>(
    data: *mut T,
    len: usize,
    what: &'static str,
) -> Result<&'a mut [T], Fault> {
    check_memory(data, len, what)?;
    match len {
        0 => Ok(&mut []),
        // SAFETY: by the header's conventions `len` values are there, and nothing else uses
        // them meanwhile.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(data, len) }),
    }
}

fn check_memory<T>(data: *const T, len: usize, what: &'static str) -> Result<(), Fault> {
    if len == 0 {
        return Ok(());
    }
    if data.is_null() {
        return Err(Fault::Null(what));
    }
    if !data.is_aligned() {
        return Err(Fault::Unaligned(what));
    }
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(Fault::Argument("a length is larger than any memory")),
    }
}

/// Reads a text of the caller's.
#[cfg(feature = "std")]
pub(super) unsafe fn text<'a>(text: *const c_char, what: &'static str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(Fault::Null(what));
    }
    // SAFETY: by the header's conventions it ends in NUL.
    let text = unsafe { core::ffi::CStr::from_ptr(text) };
    text.to_str().map_err(|error| {
        let at = error.valid_up_to();
        crate::error::Error::Argument(format!("{what} is not UTF-8 from byte {at} on")).into()
    })
}

/// A struct of the C API that begins with its size and may grow at its end.
///
/// # Safety
/// The type is plain data, and all bytes zero are a value of it.
pub(super) unsafe trait Versioned: Copy {
    /// Where each field ends.
    const ENDS: &'static [usize];
}

/// Where a field ends that begins at `offset`.
pub(super) const fn end_of<T, F>(offset: usize, _field: fn(&T) -> &F) -> usize {
    offset + size_of::<F>()
}

/// Implements [`Versioned`] for a struct, all of whose fields are listed in order.
macro_rules! versioned {
    ($type:ident { $($field:ident),+ $(,)? }) => {
        // Does not compile where a field is missing.
        const _: fn($type) = |$type { $($field: _),+ }| ();

        // SAFETY: numbers and nullable pointers only.
        unsafe impl $crate::capi::guard::Versioned for $type {
            const ENDS: &'static [usize] = &[$(
                $crate::capi::guard::end_of(core::mem::offset_of!($type, $field), |s: &$type| &s.$field)
            ),+];
        }
    };
}
pub(super) use versioned;

/// Bytes of `T` that a caller's struct of `size` bytes has, in whole fields.
fn known<T: Versioned>(size: u32, what: &'static str) -> Result<usize, Fault> {
    if size == 0 {
        return Err(Fault::NoSize(what));
    }
    let ends = T::ENDS.iter().copied();
    Ok(ends
        .take_while(|&end| end <= size as usize)
        .last()
        .unwrap_or(0))
}

/// Reads the caller's struct; fields that it does not have are zero.
pub(super) unsafe fn read<T: Versioned>(from: *const T, what: &'static str) -> Result<T, Fault> {
    if from.is_null() {
        return Err(Fault::Null(what));
    }
    // SAFETY: every such struct begins with its size.
    let size = unsafe { from.cast::<u32>().read_unaligned() };
    let known = known::<T>(size, what)?;
    // SAFETY: zero is a value of `T`, and the caller's struct has `known` bytes, no more than
    // `T`.
    unsafe {
        let mut value: T = core::mem::zeroed();
        (&raw mut value)
            .cast::<u8>()
            .copy_from_nonoverlapping(from.cast(), known);
        Ok(value)
    }
}

/// Checks that the caller's struct can be written, before the work whose result it will hold.
pub(super) unsafe fn check_out<T: Versioned>(to: *mut T, what: &'static str) -> Result<(), Fault> {
    if to.is_null() {
        return Err(Fault::Null(what));
    }
    // SAFETY: every such struct begins with its size.
    known::<T>(unsafe { to.cast::<u32>().read_unaligned() }, what).map(drop)
}

/// Writes the fields that the caller's struct has, except its size.
pub(super) unsafe fn write<T: Versioned>(
    to: *mut T,
    value: T,
    what: &'static str,
) -> Result<(), Fault> {
    // SAFETY: as the caller's; it begins with its size, and has `known` bytes.
    unsafe {
        check_out(to, what)?;
        let known = known::<T>(to.cast::<u32>().read_unaligned(), what)?;
        let fields = size_of::<u32>()..known.max(size_of::<u32>());
        to.cast::<u8>().add(fields.start).copy_from_nonoverlapping(
            (&raw const value).cast::<u8>().add(fields.start),
            fields.len(),
        );
    }
    Ok(())
}

/// Writes one output.
#[cfg(feature = "std")]
pub(super) unsafe fn put<T>(to: *mut T, value: T, what: &'static str) -> Result<(), Fault> {
    check_put(to, what)?;
    // SAFETY: it is not null, so the caller's, and writable.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Checks that an output can be written, before the work whose result it will hold.
#[cfg(feature = "std")]
pub(super) fn check_put<T>(to: *mut T, what: &'static str) -> Result<(), Fault> {
    match to.is_null() {
        true => Err(Fault::Null(what)),
        false => Ok(()),
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn errors_have_the_numbers_of_the_header() {
        let text = || "x".to_owned();
        let path = || std::path::PathBuf::from("x");
        let (tensor, reason) = (text(), text());
        let source = std::io::Error::other("x");
        let (action, tile) = ("x", 0);
        let of = |error: Error| error.code();
        assert_eq!(of(Error::config("x", "x")), AQ_ERROR_CONFIG);
        let io = Error::Io {
            path: path(),
            action,
            source,
        };
        assert_eq!(of(io), AQ_ERROR_IO);
        let file = Error::File {
            path: path(),
            reason: text(),
        };
        assert_eq!(of(file), AQ_ERROR_FILE);
        let of_tensor = Error::Tensor {
            path: path(),
            tensor,
            reason,
        };
        assert_eq!(of(of_tensor), AQ_ERROR_TENSOR);
        assert_eq!(of(Error::Plan(text())), AQ_ERROR_PLAN);
        let damaged = Error::Checksum {
            path: path(),
            tensor: text(),
            tile,
        };
        assert_eq!(of(damaged), AQ_ERROR_CHECKSUM);
        assert_eq!(of(Error::Cancelled), AQ_ERROR_CANCELLED);
        assert_eq!(of(Error::Internal(text())), AQ_ERROR_INTERNAL);
        assert_eq!(of(Error::Argument(text())), AQ_ERROR_ARGUMENT);
    }
}
