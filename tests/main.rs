//! Integration tests by subject, in one binary.

mod common;

mod cli;
mod damage;
mod determinism;
mod errors;
mod header;
mod native;
#[cfg(target_os = "linux")]
mod packaging;
mod python;
mod rooms;
mod sources;
mod values;
mod views;
