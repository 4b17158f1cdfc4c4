//! Ctrl-C: the first asks the programs to stop, and they leave nothing; the second ends them.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::faults::*;
use crate::common::*;
use crate::python::python;

/// A time longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program first reads a header in two calls.
const HEADER: After = After::Calls(3);

/// Returns the command line and the Python package's command.
fn programs() -> [Vec<PathBuf>; 2] {
    let module = ["-m", "arrowquant"].map(PathBuf::from);
    let python = [python().to_owned()].into_iter().chain(module);
    [
        vec![env!("CARGO_BIN_EXE_arrowquant").into()],
        python.collect(),
    ]
}

struct Files {
    folder: TempDir,
    input: PathBuf,
    packed: PathBuf,
    /// A file that appears when a program's calls begin to hang.
    slow: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("m.safetensors");
        let tensor = bf16_tensor("a.weight", &[2000, 1000], &noise(1, 2_000_000));
        std::fs::write(&input, safetensors(&[tensor])).unwrap();
        let packed = folder.path().join("m.parquet");
        quantize(&input, &packed, &[("method", "minmax")]).unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        let slow = folder.path().join("slow");
        Self {
            folder,
            input,
            packed,
            slow,
        }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn start(
        &self,
        program: &[PathBuf],
        args: &[&Path],
        call: Call<'_>,
        after: After,
        ms: u64,
    ) -> Child {
        let _ = std::fs::remove_file(&self.slow);
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).args(args);
        spoil(&mut command, call, after, Then::LastsMs(ms), &self.slow);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A shell that starts the tests in the background makes them ignore the signal.
        // SAFETY: signal may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let started = Instant::now();
        while !self.slow.exists() {
            assert!(started.elapsed() < PATIENCE, "it does not come to work");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

fn send(child: &Child, signal: i32) {
    // SAFETY: the child was not waited for, so the process id is still valid.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Waits for the end; kills a program that does not end.
fn end(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn the_first_stops_the_work_and_leaves_nothing() {
    let files = Files::new();
    let [new, back] = ["new.parquet", "back.safetensors"].map(|name| files.out().join(name));
    let (input, packed) = (files.input.as_path(), files.packed.as_path());
    let (quantize, verify) = (Path::new("quantize"), Path::new("verify"));
    let works: [(&[&Path], Call<'_>, &str, &Path); 3] = [
        (
            &[quantize, input, &new],
            Call::Read("m.safetensors"),
            "quantizing",
            input,
        ),
        (
            &[verify, packed, Path::new("--against"), input],
            Call::Read("m.safetensors"),
            "verifying",
            packed,
        ),
        (
            &[Path::new("dequantize"), packed, &back],
            Call::Write(".arrowquant-"),
            "decoding",
            packed,
        ),
    ];
    std::fs::write(&new, "old").unwrap();
    std::fs::write(&back, "old").unwrap();
    for program in programs() {
        for (args, call, doing, what) in works {
            for (threads, signal) in [("1", libc::SIGINT), ("2", libc::SIGTERM)] {
                let args = [args, &["--threads", threads].map(Path::new)].concat();
                let child = files.start(&program, &args, call, HEADER, 400);
                send(&child, signal);
                let output = end(child);
                let said = stderr(&output);
                assert_eq!(said, format!("stopped: {doing} {}\n", what.display()));
                assert_eq!(output.status.code(), Some(130));
                assert!(output.stdout.is_empty());
                assert_eq!(
                    names_in(&files.out()),
                    ["back.safetensors", "new.parquet"],
                    "{doing}"
                );
                assert_eq!(std::fs::read(&new).unwrap(), b"old");
                assert_eq!(std::fs::read(&back).unwrap(), b"old");
            }
        }
    }
}

#[test]
fn a_stop_says_what_is_left_of_a_folder() {
    let files = Files::new();
    let parts = files.out().join("parts");
    let (quantize, input) = (Path::new("quantize"), files.input.as_path());
    for program in programs() {
        let args = [
            quantize,
            input,
            &parts,
            Path::new("--threads"),
            Path::new("1"),
        ];
        let child = files.start(&program, &args, Call::Read("m.safetensors"), HEADER, 400);
        send(&child, libc::SIGINT);
        let output = end(child);
        let stopped = format!("stopped: quantizing {}", input.display());
        let nothing = "no part is complete yet: the next run starts over";
        assert_eq!(stderr(&output), format!("{nothing}\n{stopped}\n"));
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(names_in(&files.out()), [""; 0]);
    }
}

#[test]
fn the_second_ends_the_program_at_once() {
    let files = Files::new();
    let new = files.out().join("new.parquet");
    let args = [Path::new("quantize"), &files.input, &new];
    for program in programs() {
        let two = [&args[..], &["--threads", "2"].map(Path::new)].concat();
        let ms = 10 * PATIENCE.as_millis() as u64;
        let mut child = files.start(&program, &two, Call::Read("m.safetensors"), HEADER, ms);
        let mut sent = 0;
        while child.try_wait().unwrap().is_none() {
            assert!(sent < 100, "it does not end");
            send(&child, libc::SIGINT);
            sent += 1;
            std::thread::sleep(Duration::from_millis(300));
        }
        assert!(sent > 1, "the first ended it");
        let output = end(child);
        assert_eq!(stderr(&output), "");
        // Python ends by the signal, for which shells report the same number.
        let code = output.status.code();
        assert_eq!(code.or(output.status.signal().map(|s| 128 + s)), Some(130));
        // The next run removes what this one could not.
        assert_eq!(names_in(&files.out()).len(), 1);
        arrowquant_ok(args);
        assert_eq!(names_in(&files.out()), ["new.parquet"]);
        std::fs::remove_file(&new).unwrap();
    }
}

#[test]
fn signals_that_were_to_be_ignored_are() {
    let files = Files::new();
    let new = files.out().join("new.parquet");
    for program in programs() {
        // As nohup does.
        let shell = ["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""].map(PathBuf::from);
        let program = [&shell[..], &program].concat();
        let args = [Path::new("quantize"), &files.input, &new];
        let child = files.start(&program, &args, Call::Read("m.safetensors"), HEADER, 100);
        send(&child, libc::SIGHUP);
        let output = end(child);
        assert!(output.status.success(), "{}", stderr(&output));
        std::fs::remove_file(&new).unwrap();
    }
}

#[test]
fn commands_that_do_no_work_die_as_usual() {
    let files = Files::new();
    let program = [env!("CARGO_BIN_EXE_arrowquant").into()];
    let args = [Path::new("plan"), &files.input];
    let ms = 10 * PATIENCE.as_millis() as u64;
    let reading = Call::Read("m.safetensors");
    let child = files.start(&program, &args, reading, After::Calls(0), ms);
    send(&child, libc::SIGINT);
    assert_eq!(end(child).status.signal(), Some(libc::SIGINT));
}
