//! Static parameters of activations.

use super::guard::{aq_error, aq_status, check_out, guard, versioned, write};
use super::handle::borrow;
use super::model::aq_model;
use super::source::at;
use crate::error::Error;

/// Static parameters of a tensor's activations, for a range of timesteps: an activation x is stored
/// as round(x / scale + zero_point). If the tensor has an input scale or a rotation, the parameters
/// apply to activations that aq_transform_vectors has transformed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aq_activation_params {
    /// sizeof(aq_activation_params).
    pub struct_size: u32,
    /// The first timestep.
    pub t_begin: i32,
    /// The timestep after the last.
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

/// Finds the static parameters of the input activations of tensor `index` at a timestep. Fails with
/// AQ_ERROR_TENSOR if the file has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aq_model_activation_params(
    model: *const aq_model,
    index: usize,
    timestep: i32,
    params: *mut aq_activation_params,
    err: *mut aq_error,
) -> aq_status {
    // SAFETY: by the header's conventions.
    unsafe {
        guard(err, || {
            check_out(params, "params")?;
            let model = &borrow(model)?.model;
            let tensor = at(model.tensors(), index, "tensor")?;
            let found = model.activation_params(index, timestep);
            let found = found.ok_or_else(|| {
                let reason = format!("it has no activation parameters for timestep {timestep}");
                Error::tensor(model.path(), &tensor.info.name, reason)
            })?;
            let found = aq_activation_params {
                struct_size: 0,
                t_begin: found.t_begin,
                t_end: found.t_end,
                scale: found.scale,
                zero_point: found.zero_point,
            };
            write(params, found, "params")
        })
    }
}
