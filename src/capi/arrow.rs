//! Quantized models as Arrow tables.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};

use super::guard::{aq_error, aq_status, bytes, guard};
use super::handle::borrow;
use super::model::aq_model;
use crate::model::ArrowExport;

/// Exports a model as a stream of record batches of one tile each, with the columns of the file
/// (docs/format.md). Planes are not copied; the stream and every array from it hold the memory that
/// they point to, so the model may be freed before them. `stream` need not be initialized; the
/// caller releases it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_to_arrow(
    model: *const aq_model,
    stream: *mut FFI_ArrowArrayStream,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            bytes(stream, 1, "stream")?;
            let export = Fenced(ArrowExport::new(borrow(model)?.model.clone()));
            stream.write(FFI_ArrowArrayStream::new(Box::new(export)));
            Ok(())
        })
    }
}

/// The stream's functions are called by others: no panic may leave them.
struct Fenced(ArrowExport);

impl Iterator for Fenced {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let failed = |_| Some(Err(ArrowError::ComputeError("internal error".into())));
        catch_unwind(AssertUnwindSafe(|| self.0.next())).unwrap_or_else(failed)
    }
}

impl RecordBatchReader for Fenced {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }
}
