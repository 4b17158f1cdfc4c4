//! A model, earlier outputs made from it, and commands that must preserve or replace these.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

#[cfg(target_os = "linux")]
use super::faults::*;
use super::*;

/// Returns every file in a folder, with its contents.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(snapshot(&path)),
            false => drop(files.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    files
}

/// A model, its earlier outputs, and the paths for new ones.
pub struct Place {
    pub folder: TempDir,
    pub input: PathBuf,
    /// Quantized to 8 bits before, to be replaced by 4 bits.
    pub output: PathBuf,
    /// Decoded before, to be replaced.
    pub back: PathBuf,
    pub before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Place {
    pub fn new(output: &str) -> Self {
        let folder = small_model();
        // The path that the system shows for an open file.
        let root = folder.path().canonicalize().unwrap();
        let input = root.join("model.safetensors");
        let out = root.join("out");
        std::fs::create_dir(&out).unwrap();
        let (output, back) = (out.join(output), out.join("back.safetensors"));
        arrowquant_ok([
            OsStr::new("quantize"),
            input.as_ref(),
            output.as_ref(),
            "--bits=8".as_ref(),
        ]);
        std::fs::write(&back, "old").unwrap();
        let before = snapshot(&out);
        Self {
            folder,
            input,
            output,
            back,
            before,
        }
    }

    pub fn out(&self) -> &Path {
        self.back.parent().unwrap()
    }

    pub fn quantize(&self) -> Command {
        let mut command = program();
        command.arg("quantize").arg(&self.input).arg(&self.output);
        command
    }

    #[cfg(target_os = "linux")]
    pub fn verify(&self) -> Command {
        let mut command = program();
        command.arg("verify").arg(&self.output);
        command.arg("--against").arg(&self.input);
        command
    }

    pub fn dequantize(&self) -> Command {
        let mut command = program();
        command.arg("dequantize").arg(&self.output).arg(&self.back);
        command
    }

    pub fn assert_intact(&self) {
        assert!(snapshot(self.out()) == self.before, "the output changed");
    }

    /// Expects a command to fail with a one-line message that contains these parts, and to change
    /// nothing.
    #[track_caller]
    pub fn fails(&self, mut command: Command, parts: &[&str]) {
        let done = command.output().unwrap();
        let message = stderr(&done);
        assert_eq!(done.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        self.assert_intact();
    }

    /// Expects failure as `fails` does, for a command whose system calls fail.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn fails_by(
        &self,
        mut command: Command,
        call: Call<'_>,
        after: After,
        errno: i32,
        parts: &[&str],
    ) {
        let fired = self.folder.path().join("fired");
        spoil(&mut command, call, after, Then::Fails(errno), &fired);
        self.fails(command, parts);
        std::fs::remove_file(fired).expect("a call that failed");
    }
}

/// Returns the quantized file that these settings give.
pub fn expected(input: &Path, settings: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("expected.parquet");
    quantize(input, &output, settings).unwrap();
    std::fs::read(output).unwrap()
}

/// Makes a model of two shards and their index, in a new folder.
pub fn shards(folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).unwrap();
    let index = r#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#;
    std::fs::write(folder.join("m.safetensors.index.json"), index).unwrap();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let file = safetensors(&[f32_tensor(name, &[40, 96], &noise(seed, 40 * 96))]);
        std::fs::write(folder.join(format!("{name}.safetensors")), file).unwrap();
    }
    folder.to_owned()
}
