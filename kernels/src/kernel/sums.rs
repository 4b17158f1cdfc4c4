//! Sums over weights and what they decode to: what gain, cosine and SQNR follow from.

/// The sums that unit gain follows from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GainSums {
    /// `sum w^2`.
    pub signal: f64,
    /// `sum w y`, y being the decoded weights.
    pub product: f64,
}

impl GainSums {
    pub(super) fn add(&mut self, other: Self) {
        self.signal += other.signal;
        self.product += other.product;
    }
}

/// Sums over a group of its weights w and the distance u of their codes from the middle: q - z
/// when symmetric, q - max_code / 2 when affine. Whatever scale and bias the group has in the
/// end, its errors follow from them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// Weights in the group.
    pub len: f64,
    /// `sum w^2`.
    pub signal: f64,
    /// `sum w`; 0 when symmetric.
    pub sum: f64,
    /// `sum w u`.
    pub product: f64,
    /// `sum u`; 0 when symmetric.
    pub code_sum: f64,
    /// `sum u^2`.
    pub code_square: f64,
}

/// Sums from which cosine and SQNR follow; they add up over groups, rows and tiles.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ErrorSums {
    /// `|w|^2` of the original.
    pub signal: f64,
    /// `|y|^2` of the decoded weights.
    pub decoded: f64,
    /// `|w - y|^2`.
    pub error: f64,
}

impl ErrorSums {
    /// Adds another row's or tile's sums.
    pub fn add(&mut self, other: Self) {
        self.signal += other.signal;
        self.decoded += other.decoded;
        self.error += other.error;
    }

    /// Cosine of the angle between original and decoded weights. Zero against zero is 1, zero
    /// against anything else 0.
    pub fn cosine(&self) -> f64 {
        if self.error == 0.0 {
            return 1.0;
        }
        let norms = libm::sqrt(self.signal) * libm::sqrt(self.decoded);
        if norms == 0.0 {
            return 0.0;
        }
        // <w, y> from |w - y|^2 = |w|^2 - 2 <w, y> + |y|^2: no cancellation near cosine 1.
        let product = (self.signal + self.decoded - self.error) / 2.0;
        (product / norms).clamp(-1.0, 1.0)
    }

    /// The cosine as a figure; `None` where the weights are all 0, or too small for their squares,
    /// so that there is nothing to measure.
    pub fn measured_cosine(&self) -> Option<f64> {
        (self.signal > 0.0).then(|| self.cosine())
    }

    /// Signal to quantization noise ratio in dB, or `None` where there is no error.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.error > 0.0).then(|| 10.0 * libm::log10(self.signal / self.error))
    }
}
