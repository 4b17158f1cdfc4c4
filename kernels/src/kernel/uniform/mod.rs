//! The kernels of uniform codes: 2, 4 or 8 bits, a scale and perhaps a bias for each group.

pub(super) mod code;
pub(super) mod decode;
pub(super) mod dot;
pub(super) mod dot_bytes;
pub(super) mod encode;
pub(super) mod errors;
pub(super) mod feedback;
mod fit;
mod grid;
mod moments;
mod place;

pub use feedback::{BUNDLE, Feedback, Projection};
pub use moments::moments_tell;
