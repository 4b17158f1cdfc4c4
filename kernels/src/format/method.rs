//! How scales are chosen.

use super::float::ScaleDtype;
use super::names::named;

/// How a group's scale (and bias) is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// From the range of the group.
    MinMax,
    /// Least squares over trial scales: the default without calibration.
    Lsq,
    /// Columns make up for each other's errors, as a calibration's Hessian says how; the default
    /// with one.
    Gptq,
}

named!(Method, "method", { MinMax => "minmax", Lsq => "lsq", Gptq => "gptq" });

/// Whether the loss of amplitude of a row is made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gain {
    /// A row's scales and biases are multiplied by `|w|^2 / <w, q>`.
    Unit,
    /// Scales stay as the method chose them.
    Lsq,
}

named!(Gain, "gain", { Unit => "unit", Lsq => "lsq" });

/// Which scale storage a run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScalePolicy {
    /// f16, and f32 for the tiles that need it.
    Auto,
    /// f16 only: a scale that does not fit is an error.
    F16,
    /// f32 always.
    F32,
}

named!(ScalePolicy, "scale_dtype", { Auto => "auto", F16 => "f16", F32 => "f32" });

impl ScalePolicy {
    /// What scales are stored as at first: f16, unless f32 is forced.
    pub const fn planned(self) -> ScaleDtype {
        match self {
            Self::F32 => ScaleDtype::F32,
            Self::Auto | Self::F16 => ScaleDtype::F16,
        }
    }
}
