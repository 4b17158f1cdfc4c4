//! Runs killed at random moments leave no partial files, and can be resumed.

use std::process::Command;

use crate::common::native::*;
use crate::common::*;

/// CI kills more runs, and longer ones.
#[test]
fn a_killed_run_leaves_what_was_there_or_what_is_to_be() {
    let mut kill = Command::new(if cfg!(windows) { "python" } else { "python3" });
    kill.arg(root().join("tests/kill.py"))
        .arg(env!("CARGO_BIN_EXE_arrowquant"))
        .args(["--kills", "8", "--seconds", "0.7"]);
    let printed = succeed(&mut kill, "python3");
    let result: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(result["kills"], 8);
    // Kills that come too late prove nothing.
    assert!(result["landed"].as_u64().unwrap() >= 4, "{printed}");
}
