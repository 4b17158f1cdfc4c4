//! What a quantized tensor's inputs must go through: its transform, and static parameters of
//! activations.

use std::ffi::c_char;

use super::guard::{
    Fault, aq_error, aq_status, bytes_mut, check_out, guard, text, versioned, write,
};
use super::handle::borrow;
use super::kernels::check_len;
use super::model::{aq_model, find};
use super::source::at;
use crate::error::Error;

/// Static parameters of a tensor's activations, from a timestep on up to another: an activation x
/// is stored as round(x / scale + zero_point). They are of activations as
/// aq_model_transform_activations makes them, where it changes any.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_activation_params {
    /// sizeof(aq_activation_params).
    pub struct_size: u32,
    /// The first timestep.
    pub t_begin: i32,
    /// The one after the last.
    pub t_end: i32,
    pub scale: f32,
    pub zero_point: f32,
}

versioned!(aq_activation_params {
    struct_size,
    t_begin,
    t_end,
    scale,
    zero_point
});

/// The static parameters of activations that enter the tensor called `tensor` at a timestep.
/// AQ_ERROR_TENSOR when the file has none for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_activation_params(
    model: *const aq_model,
    tensor: *const c_char,
    timestep: i32,
    params: *mut aq_activation_params,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_out(params, "params.struct_size")?;
            let model = &borrow(model)?.model;
            let name = text(tensor, "tensor")?;
            let found = model.activation_params(find(model, name)?, timestep);
            let found = found.ok_or_else(|| {
                let reason = format!("it has no activation parameters for timestep {timestep}");
                Error::tensor(model.path(), name, reason)
            })?;
            let found = aq_activation_params {
                struct_size: 0,
                t_begin: found.t_begin,
                t_end: found.t_end,
                scale: found.scale,
                zero_point: found.zero_point,
            };
            write(params, found, "params.struct_size")
        })
    }
}

/// Makes of `batch` vectors of `cols` activations what the weights of tensor `index` are to be
/// multiplied with as they lie in the file: divided by its input scale, then rotated, in place.
/// Vectors stay as they are where it has neither. aq_model_matvec does so by itself.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_transform_activations(
    model: *const aq_model,
    index: usize,
    x: *mut f32,
    x_count: usize,
    batch: usize,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            let model = &borrow(model)?.model;
            let cols = at(model.tensors(), index, "tensor")?.info.shape.cols();
            let x = bytes_mut(x, x_count, "x")?;
            let expected = cols
                .checked_mul(batch)
                .ok_or(Fault::Argument("batch is too large"))?;
            check_len("x", x.len(), expected)?;
            Ok(model.transform_activations(index, x)?)
        })
    }
}
