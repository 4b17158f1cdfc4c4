//! Static quantization of activations.

/// Static quantization of a layer's input at the timesteps from `t_begin` to before `t_end`:
/// `q = x / scale + zero_point`, rounded and clamped to the codes there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationRange {
    /// The first timestep.
    pub t_begin: i32,
    /// The first timestep after them.
    pub t_end: i32,
    /// Distance of two levels; finite and above 0.
    pub scale: f32,
    /// Where 0 is, in levels; finite, no integer.
    pub zero_point: f32,
}

impl ActivationRange {
    /// Whether `t` is one of its timesteps.
    pub const fn holds(&self, t: i32) -> bool {
        self.t_begin <= t && t < self.t_end
    }

    /// Whether it may be in a file.
    pub const fn is_valid(&self) -> bool {
        0 <= self.t_begin
            && self.t_begin < self.t_end
            && self.scale > 0.0
            && self.scale.is_finite()
            && self.zero_point.is_finite()
    }
}
