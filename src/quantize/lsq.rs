//! Trial scales of the `lsq` method: multiples of the scale given by the group's range.
//!
//! Eight are enough: the least-squares scale for a trial's codes corrects differences between
//! trials. They cover the best scales for Gaussian and heavy-tailed groups of 16 to 1024 weights
//! and whole rows: with 2 bits the best grid clips most of a group's range, with 8 bits hardly any.

use crate::format::{Layout, Scheme, Width};

/// Returns the trials for a width and scheme.
pub(super) fn ratios(layout: Layout) -> &'static [f32] {
    match (layout.width, layout.scheme) {
        (Width::Two, Scheme::Symmetric) => &[0.95, 0.72, 0.56, 0.45, 0.37, 0.3, 0.22, 0.14],
        (Width::Two, Scheme::Affine) => &[1.0, 0.82, 0.68, 0.56, 0.46, 0.38, 0.3, 0.2],
        (Width::Four, _) => &[1.03, 0.96, 0.89, 0.81, 0.72, 0.61, 0.49, 0.36],
        (Width::Eight, _) => &[1.008, 1.004, 1.0, 0.996, 0.99, 0.98, 0.965, 0.94],
    }
}
