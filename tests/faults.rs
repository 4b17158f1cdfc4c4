//! Full disks, changing files, links, two runs at once: a clear error or a right result, and
//! earlier outputs are unchanged.
#![cfg(unix)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use arrowquant::error::Result;
use arrowquant::model::Model;
use arrowquant::run::{self, Options};
use arrowquant::source;

#[cfg(target_os = "linux")]
use crate::common::faults::*;
use crate::common::place::*;
use crate::common::*;

/// Outputs that are checked.
const OUTPUTS: [&str; 1] = ["model.parquet"];

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_becomes_full_or_fails_while_it_is_written_to() {
    let reasons = [
        (libc::ENOSPC, "No space left on device"),
        (libc::EDQUOT, "quota exceeded"),
        (libc::EIO, "Input/output error"),
    ];
    for output in OUTPUTS {
        let place = Place::new(output);
        let out = place.out().to_str().unwrap();
        for (errno, reason) in reasons {
            for bytes in [0, 10, 3000] {
                let (call, after) = (Call::Write(out), After::Bytes(bytes));
                let parts = [output, "cannot write", reason];
                place.fails_by(place.quantize(), call, after, errno, &parts);
                let parts = ["back.safetensors", "cannot write", reason];
                place.fails_by(place.dequantize(), call, after, errno, &parts);
            }
        }
    }
}

/// Written data may not reach the disk, which is only noticed when waiting for it.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fails_when_it_is_waited_for() {
    let reasons = [
        (libc::ENOSPC, "No space left on device"),
        (libc::EIO, "Input/output error"),
    ];
    for output in OUTPUTS {
        let place = Place::new(output);
        let (call, after) = (Call::Sync(place.out().to_str().unwrap()), After::Calls(0));
        for (errno, reason) in reasons {
            place.fails_by(place.quantize(), call, after, errno, &[output, reason]);
            let parts = ["back.safetensors", reason];
            place.fails_by(place.dequantize(), call, after, errno, &parts);
        }
    }
}

/// A limit on file sizes, like quotas on some systems.
#[test]
fn a_file_that_may_not_grow() {
    let place = Place::new("model.parquet");
    let limited = |command: Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 1; trap '' XFSZ; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    let parts = ["model.parquet: cannot write: File too large"];
    let mut quantize = place.quantize();
    quantize.arg("--bits=8");
    place.fails(limited(quantize), &parts);
    let parts = ["back.safetensors: cannot write: File too large"];
    place.fails(limited(place.dequantize()), &parts);
}

#[cfg(target_os = "linux")]
#[test]
fn a_report_that_cannot_be_written() {
    let place = Place::new("model.parquet");
    let reports = place.folder.path().canonicalize().unwrap().join("reports");
    std::fs::create_dir(&reports).unwrap();
    let report = reports.join("report.json");
    std::fs::write(&report, "old").unwrap();
    let fired = place.folder.path().join("fired");
    let call = Call::Write(reports.to_str().unwrap());
    let mut command = place.quantize();
    command.arg("--report").arg(&report);
    let then = Then::Fails(libc::ENOSPC);
    spoil(&mut command, call, After::Bytes(100), then, &fired);
    let done = command.output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let message = stderr(&done);
    assert!(message.contains("report.json: cannot write: No space left"));
    assert!(fired.exists());
    assert_eq!(std::fs::read(&report).unwrap(), b"old");
    assert_eq!(names_in(&reports), ["report.json"]);
    // The model itself was written.
    assert!(std::fs::read(&place.output).unwrap() == expected(&place.input, &[]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fails_while_it_is_read() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let call = Call::Read("model.safetensors");
        let reason = "cannot read: Input/output error";
        for calls in [0, 1, 3, 5] {
            let named = ["model.safetensors", reason];
            let tensor = ["model.safetensors: tensor '", reason];
            // Detecting the kind of file and reading its header takes three calls.
            let parts = if calls < 3 { &named } else { &tensor };
            for command in [place.quantize(), place.verify()] {
                place.fails_by(command, call, After::Calls(calls), libc::EIO, parts);
            }
        }
    }
}

/// Makes a command run without root's privileges.
fn as_nobody(place: &Place, mut command: Command) -> Command {
    // SAFETY: returns a number.
    if unsafe { libc::geteuid() } != 0 {
        return command;
    }
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    open(place.folder.path(), 0o755);
    // The user nobody cannot enter the build folder.
    let program = place.folder.path().join("arrowquant");
    if !program.exists() {
        std::fs::copy(command.get_program(), &program).unwrap();
        open(&program, 0o755);
    }
    let args: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
    command = Command::new(program);
    command.args(args).uid(65534).gid(65534);
    command
}

#[test]
fn what_one_may_not_read_or_write() {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    for output in OUTPUTS {
        let place = Place::new(output);
        mode(&place.input, 0o644);
        mode(place.out(), 0o555);
        let denied = "Permission denied";
        let parts = [output, "cannot create a temporary file beside it", denied];
        place.fails(as_nobody(&place, place.quantize()), &parts);
        let parts = ["back.safetensors", "cannot create a temporary file", denied];
        place.fails(as_nobody(&place, place.dequantize()), &parts);

        // If the folder is writable, only the report fails.
        let open = place.folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        mode(&open, 0o777);
        let mut command = program();
        command.arg("quantize").arg(&place.input);
        command.arg(open.join(output)).arg("--report");
        command.arg(place.out().join("report.json"));
        place.fails(as_nobody(&place, command), &["report.json", denied]);
        assert_eq!(names_in(&open), [""; 0]);

        mode(place.out(), 0o755);
        mode(&place.input, 0);
        let parts = ["model.safetensors: cannot open", denied];
        place.fails(as_nobody(&place, place.quantize()), &parts);
        mode(&place.input, 0o644);
    }
}

#[test]
fn outputs_that_cannot_be() {
    let place = Place::new("model.parquet");
    let with = |output: &Path| {
        let mut command = program();
        command.arg("quantize").arg(&place.input).arg(output);
        command
    };
    let nowhere = place.out().join("none/m.parquet");
    place.fails(with(&nowhere), &["m.parquet", "there is no folder"]);
    let in_a_file = place.output.join("m.parquet");
    place.fails(with(&in_a_file), &["m.parquet", "there is no folder"]);

    let taken = place.folder.path().join("folder.parquet");
    std::fs::create_dir(&taken).unwrap();
    place.fails(with(&taken), &["folder.parquet", "it is a folder"]);

    let pipe = place.folder.path().join("pipe.parquet");
    let name = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: the name is NUL-terminated.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    place.fails(with(&pipe), &["pipe.parquet", "it is not a regular file"]);

    let mut gguf = with(&place.out().join("m.gguf"));
    let done = gguf.output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("m.gguf' does not end in .parquet"));
    place.assert_intact();
}

/// Quantizes, changes something once it is working, and returns the result.
fn quantize_while(input: &Path, output: &Path, threads: usize, change: impl Fn()) -> Result<()> {
    let source = source::open(input).unwrap();
    let plan = run::plan(source.as_ref(), &config(&[])).unwrap();
    let mut calls = 0;
    let mut tell = |_| {
        calls += 1;
        if calls == 1 {
            change();
        }
        true
    };
    let options = Options {
        threads,
        progress: Some(&mut tell),
        ..Options::default()
    };
    let result = run::quantize(source.as_ref(), &plan, output, options);
    assert!(calls > 0);
    result.map(drop)
}

/// Sets a file's modification time to this long ago.
fn age(path: &Path, seconds: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let then = SystemTime::now() - Duration::from_secs(seconds);
    file.set_modified(then).unwrap();
}

#[test]
fn an_input_that_is_written_to_meanwhile() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let whole = std::fs::read(&place.input).unwrap();
        let write = |bytes: &[u8]| {
            // Written into the same file, not replaced by another with the same name.
            use std::io::Write;
            let mut options = std::fs::File::options();
            let mut file = options.write(true).open(&place.input).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            file.write_all(bytes).unwrap();
        };
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        let longer = [&whole[..], b"more"].concat();
        let changed = "model.safetensors: was changed while it was read";
        let early = "the file ended early, was it changed?";
        let changes: [(&dyn Fn(), &[&str]); 4] = [
            (&|| write(&other), &[changed]),
            (&|| age(&place.input, 10), &[changed]),
            (&|| write(&longer), &[changed]),
            // Even if everything has been read already.
            (&|| write(&whole[..2000]), &[early, changed]),
        ];
        for (change, reasons) in changes {
            for threads in [1, 2] {
                write(&whole);
                age(&place.input, 3600);
                let result = quantize_while(&place.input, &place.output, threads, change);
                let message = result.unwrap_err().to_string();
                assert!(message.contains("model.safetensors"), "{message}");
                let said = reasons.iter().any(|reason| message.contains(reason));
                assert!(said, "{message}");
                place.assert_intact();
            }
        }
    }
}

#[test]
fn a_shard_that_is_written_to_meanwhile() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let model = shards(&place.folder.path().join("sharded"));
        let shard = model.join("b.safetensors");
        for threads in [1, 2] {
            age(&shard, 3600);
            let result = quantize_while(&model, &place.output, threads, || age(&shard, 5));
            let message = result.unwrap_err().to_string();
            assert!(message.contains("b.safetensors: was changed"), "{message}");
            place.assert_intact();
        }
    }
}

#[test]
fn an_input_that_is_replaced_meanwhile_is_read_to_its_end() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let wanted = expected(&place.input, &[]);
        let other = place.folder.path().join("other");
        let replace = || {
            std::fs::write(&other, "another model").unwrap();
            std::fs::rename(&other, &place.input).unwrap();
        };
        quantize_while(&place.input, &place.output, 1, replace).unwrap();
        assert!(std::fs::read(&place.output).unwrap() == wanted);
    }
}

#[test]
fn an_original_that_is_written_to_while_it_is_compared() {
    let place = Place::new("model.parquet");
    age(&place.input, 3600);
    let source = source::open(&place.input).unwrap();
    let model = Model::open(&place.output).unwrap();
    let mut tell = |_| {
        age(&place.input, 5);
        true
    };
    let options = Options {
        progress: Some(&mut tell),
        ..Options::default()
    };
    let error = run::verify(&model, Some(source.as_ref()), None, options).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("model.safetensors: was changed"),
        "{message}"
    );
}

#[test]
fn two_runs_to_the_same_output_at_once() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let settings = ["2", "4"];
        let wanted = settings.map(|bits| expected(&place.input, &[("bit_width", bits)]));
        for _ in 0..8 {
            let start = |bits| {
                let mut command = place.quantize();
                command.args(["--bits", bits, "--threads", "2"]);
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                command.spawn().unwrap()
            };
            for run in settings.map(start) {
                let done = run.wait_with_output().unwrap();
                assert!(done.status.success(), "{}", stderr(&done));
            }
            let made = std::fs::read(&place.output).unwrap();
            assert!(wanted.contains(&made), "neither of the two");
            assert_eq!(names_in(place.out()).len(), place.before.len());
        }
    }
}
