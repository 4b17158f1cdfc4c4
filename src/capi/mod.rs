//! ArrowQuant quantizes diffusion-model weights to INT2, INT4 and INT8.
//!
//! What holds for every function:
//!
//! - A call that can fail returns an `aq_status`: AQ_OK (0) or one of the AQ_ERROR codes. Its last
//!   parameter is a pointer to the caller's `aq_error`, which receives code and message, or NULL.
//!   Start with `aq_error err = AQ_INIT(aq_error);`. Errors are stored nowhere else.
//! - Inputs come first, outputs last. Outputs are written only on success.
//! - Structs that may grow begin with `uint32_t struct_size`, the caller's own `sizeof`. Initialize
//!   each with AQ_INIT, as in `aq_run_options options = AQ_INIT(aq_run_options);`, which sets
//!   struct_size, and clears every other field. The library reads and writes no more than
//!   struct_size bytes, and uses the defaults of fields beyond them. In options, 0 or NULL means
//!   the default; where 0 is a meaningful value, the field says how to ask for it. A struct_size of
//!   0 is refused, except in an `aq_error`.
//! - A handle (`aq_config *`, `aq_model *`, ...) is created by a call and freed by the `_free`
//!   function of its kind, which ignores NULL. A freed handle, or one of another kind, is refused
//!   with AQ_ERROR_ARGUMENT, unless its memory has been reused for another handle.
//! - Asking for a tensor, tile, layer, row, timestep or metadata key that does not exist, by name
//!   or by index, is an AQ_ERROR_TENSOR. (A setting that does not exist is an AQ_ERROR_CONFIG.)
//! - A handle passed as `const aq_x *` may be used by several threads at once; one passed as
//!   `aq_x *` by only one thread at a time. Handles may move between threads.
//! - Input strings, paths included, are NUL-terminated UTF-8 on every system. Output strings belong
//!   to the handle that returned them: they are valid until that handle is freed, or changed by a
//!   call that takes it without `const`.
//! - A parameter or field that ends in `_len` counts bytes, and one that ends in `_count` counts
//!   values.
//! - Callbacks run on the thread that made the call; only an aq_fitness_fn may run on others, if
//!   `parallel` is set. Returning false cancels: the call then returns AQ_ERROR_CANCELLED and
//!   leaves no file behind, except complete parts in a folder. (An aq_generation_fn ends the search
//!   instead.) A callback may call the library, but must not change or free what its own call uses,
//!   and must not throw, `longjmp` out or end its thread.
//! - After fork() in a multithreaded process, the child may only exec().
//! - Pointers of type `void *` need no alignment; pointers to other types must be aligned.
//! - A bug in the library does not terminate the caller: it is reported as AQ_ERROR_INTERNAL, with
//!   a message.
//! - AQ_ABI_VERSION and the SONAME change together, with every release that breaks programs built
//!   with an earlier header, before version 1.0 too. As long as they do not change, functions,
//!   constants and their meaning stay, structs only grow at their end, and enumerations and
//!   settings only gain values. A program that loads the library at run time compares
//!   aq_abi_version() with AQ_ABI_VERSION first.
#![allow(non_camel_case_types)] // the names are C's
#![allow(missing_docs)] // of constants whose names say it
#![allow(clippy::missing_safety_doc)] // said once, above, for readers of the header
#![allow(clippy::too_many_arguments)] // lengths beside pointers
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod guard;
pub mod kernels;
pub mod matrix;
pub mod products;
pub mod types;

#[cfg(feature = "std")]
pub mod activation;
#[cfg(feature = "std")]
pub mod analysis;
#[cfg(feature = "std")]
pub mod arrow;
#[cfg(feature = "std")]
pub mod calibration;
#[cfg(feature = "std")]
pub mod config;
#[cfg(feature = "std")]
pub mod evolution;
#[cfg(feature = "std")]
pub mod fold;
#[cfg(feature = "std")]
mod handle;
#[cfg(feature = "std")]
pub mod inputs;
#[cfg(feature = "std")]
pub mod model;
#[cfg(feature = "std")]
pub mod options;
#[cfg(feature = "std")]
pub mod plan;
#[cfg(feature = "std")]
pub mod report;
#[cfg(feature = "std")]
pub mod run;
#[cfg(feature = "std")]
pub mod source;
#[cfg(feature = "std")]
pub mod verification;

/// Nothing is known to panic here, where all arguments are checked; what does is a bug, and stops.
#[cfg(all(feature = "firmware", not(feature = "std")))]
#[panic_handler]
fn halt(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
