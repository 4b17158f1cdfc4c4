//! Scales of input channels, by the largest magnitudes of activations and weights.

use bytes::Bytes;
use half::f16;

/// How far scales go from 1, so that f16 holds all of them.
const FARTHEST: f64 = 4096.0;

/// The largest magnitudes of each channel, of activations and of weights.
pub(crate) struct Largest {
    pub(crate) x: Vec<f64>,
    pub(crate) w: Vec<f64>,
}

impl Largest {
    /// Scales with exponent `alpha`, around 1; those of channels without any value are 1.
    pub(crate) fn scales(&self, alpha: f64) -> Bytes {
        let scale = |(&x, &w): (&f64, &f64)| match x > 0.0 && w > 0.0 {
            true => Some(libm::pow(x, alpha) / libm::pow(w, 1.0 - alpha)),
            false => None,
        };
        let scales: Vec<Option<f64>> = self.x.iter().zip(&self.w).map(scale).collect();
        let known = || scales.iter().flatten().copied();
        let (low, high) = (
            known().fold(f64::INFINITY, f64::min),
            known().fold(0.0, f64::max),
        );
        let middle = libm::sqrt(low * high);
        let bytes = scales.iter().flat_map(|scale| {
            let scale = scale.map_or(1.0, |scale| scale / middle);
            f16::from_f64(scale.clamp(1.0 / FARTHEST, FARTHEST)).to_le_bytes()
        });
        bytes.collect()
    }
}

/// Scales as numbers.
pub(crate) fn values(scales: &[u8]) -> Vec<f32> {
    let scales = scales.as_chunks().0.iter();
    scales
        .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_those_of_the_paper_around_one() {
        let largest = Largest {
            x: vec![16.0, 1.0, 0.0, 4.0],
            w: vec![1.0, 4.0, 3.0, 0.0],
        };
        let scales = |alpha| values(&largest.scales(alpha));
        // sqrt(16 / 1) and sqrt(1 / 4), divided by the root of their product.
        let middle = 2.0f32.sqrt();
        let near = |a: f32, b: f32| (a - b).abs() < 1e-3 * b;
        let found = scales(0.5);
        assert!(
            near(found[0], 4.0 / middle) && near(found[1], 0.5 / middle),
            "{found:?}"
        );
        assert_eq!(found[2..], [1.0, 1.0]);
        assert_eq!(scales(0.0)[..2], [2.0, 0.5]); // 1 and 1/4
        assert_eq!(scales(1.0)[..2], [4.0, 0.25]); // 16 and 1
    }
}
