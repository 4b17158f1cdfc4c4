//! The C library with one function more: a bug inside, on purpose.
//!
//! The library that is shipped has no function that fails, yet tests must see that a panic inside
//! comes out as an error: in C and C++ programs, linked shared and static, and beside other libraries
//! in Rust. They link with this one, whose other functions are those of the crate.

use std::ffi::{c_char, c_int};

// Its C functions are exported, too.
pub use arrowquant::capi;
use arrowquant::capi::guard::aq_error;

/// Fails with AQ_ERROR_INTERNAL and a message, or none for NULL.
///
/// # Safety
/// The message is text that ends in NUL, and `err` an `aq_error` or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_fail(message: *const c_char, err: *mut aq_error) -> c_int {
    // SAFETY: as the caller's.
    unsafe { arrowquant::capi::guard::fail(message, err) }
}
