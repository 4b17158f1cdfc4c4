//! How one tensor is quantized.

use super::encoding::{Encoding, Format};
use super::method::{Gain, Method, ScalePolicy};

/// How one tensor is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// What it becomes. How its scales are stored is decided by `scales`: see
    /// [`Recipe::planned`].
    pub encoding: Encoding,
    /// How scales are chosen.
    pub method: Method,
    /// Whether amplitude is restored.
    pub gain: Gain,
    /// How scales and biases may be stored.
    pub scales: ScalePolicy,
}

impl Recipe {
    /// The name of the encoding.
    pub const fn format(&self) -> Format {
        self.encoding.format()
    }

    /// The encoding that a plan predicts, and that is tried first: with f16 scales, unless f32 is
    /// forced.
    pub fn planned(&self) -> Encoding {
        let planned = self.scales.planned();
        self.encoding.chosen(|choice| choice.scale_dtype = planned)
    }

    /// The encoding with f32 scales, for tiles whose scales do not fit f16; `None` where there is
    /// no choice, or it is not left open.
    pub fn fallback(&self) -> Option<Encoding> {
        match self.scales {
            ScalePolicy::Auto => self.encoding.with_f32_scales(),
            ScalePolicy::F16 | ScalePolicy::F32 => None,
        }
    }

    /// The recipe with the encoding that the ladder climbs to. A gain that was the default stays
    /// the default.
    pub fn climbed(&self) -> Option<Self> {
        let spec = self.encoding.spec();
        let next = spec.climbs_to?;
        Some(Self {
            encoding: next.encoding(self.encoding.choice()),
            method: next.method(self.method),
            gain: match self.gain == spec.gain {
                true => next.spec().gain,
                false => self.gain,
            },
            ..*self
        })
    }
}
