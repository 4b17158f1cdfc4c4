//! What a quantized tensor is: its encoding, the sizes of its planes, tiles and packing.
//!
//! [`Encoding`] is what a matrix is stored as, and answers every question about it. [`Format`] is
//! its name; all that is known of a format stands in one row of [`SPECS`]. `core` only, like the
//! kernels that work on it. The byte layout is described for readers in other languages in
//! `docs/format.md`.

mod activation;
mod encoding;
mod float;
mod layout;
mod method;
mod names;
mod recipe;
mod tiles;
mod transform;
mod width;

pub use activation::ActivationRange;
pub use encoding::{Choice, Encoding, Format, SPECS, Spec};
pub use float::{Float, ScaleDtype};
pub use layout::{GroupSize, Layout, Scheme};
pub use method::{Gain, Method, ScalePolicy};
pub use names::UnknownName;
pub use recipe::Recipe;
pub use tiles::{PIECE_WEIGHTS, TILE_BYTES, TILE_BYTES_COMPRESSED, rows_per_piece, rows_per_tile};
pub use transform::{MAX_ROTATION, Rotation, Transform};
pub use width::{Width, pack, unpack};
