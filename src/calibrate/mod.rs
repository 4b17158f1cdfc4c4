//! What activations say: statistics that a model's own runtime gathers, and what follows from them.

pub mod histogram;
pub mod time;
