//! Programs whose system calls fail or hang, through a preloaded library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::native::{compiler, succeed};
use super::root;

/// The affected calls, on files whose paths contain a text.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    Read(&'a str),
    Write(&'a str),
    Sync(&'a str),
}

/// The number of calls or bytes that succeed first.
#[derive(Debug, Clone, Copy)]
pub enum After {
    Calls(u64),
    Bytes(u64),
}

/// What then happens to every call.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    Fails(i32),
    LastsMs(u64),
}

/// Makes the calls of a program fail or hang; `fired` is a file that appears with the first fault.
pub fn spoil(command: &mut Command, call: Call<'_>, after: After, then: Then, fired: &Path) {
    let (call, path) = match call {
        Call::Read(path) => ("read", path),
        Call::Write(path) => ("write", path),
        Call::Sync(path) => ("sync", path),
    };
    command
        .env("LD_PRELOAD", library())
        .env("FAULT_CALL", call)
        .env("FAULT_PATH", path)
        .env("FAULT_FIRED", fired);
    match after {
        After::Calls(calls) => command.env("FAULT_CALLS", calls.to_string()),
        After::Bytes(bytes) => command.env("FAULT_BYTES", bytes.to_string()),
    };
    match then {
        Then::Fails(errno) => command.env("FAULT_ERRNO", errno.to_string()),
        Then::LastsMs(ms) => command.env("FAULT_MS", ms.to_string()),
    };
}

/// Returns the path of tests/c/faults.c, compiled.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
        // Another process may be using the existing one.
        let fresh = library.with_extension(std::process::id().to_string());
        let mut compile = compiler("gnu11");
        compile.args(["-shared", "-fPIC", "-o"]).arg(&fresh);
        succeed(compile.arg(root().join("tests/c/faults.c")), "gcc");
        std::fs::rename(fresh, &library).unwrap();
        library
    })
}
