//! Integration tests by subject, in one binary.

mod common;

mod architectures;
mod budget;
mod calibrated;
mod cancel;
mod ceiling;
mod cli;
#[cfg(target_os = "linux")]
mod ctrl_c;
mod damage;
mod determinism;
#[cfg(unix)]
mod docs;
mod errors;
mod faults;
mod firmware;
mod fold;
mod folder;
mod header;
mod hostile;
mod imatrix;
mod kill;
mod ladder;
mod memory;
mod native;
#[cfg(target_os = "linux")]
mod packaging;
mod packed;
mod paths;
mod python;
mod reference;
mod rooms;
mod search;
mod source_choice;
mod source_f8;
mod source_folders;
mod source_gguf;
mod source_parquet;
mod source_what;
mod sources;
mod values;
mod views;
mod words;
