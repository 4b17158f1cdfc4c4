//! Full disks, changing files, links, two runs at once: a clear error or a right result, and what
//! was there before is as it was.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use arrowquant::error::Result;
use arrowquant::model::Model;
use arrowquant::run::{self, Options};
use arrowquant::source;
use tempfile::TempDir;

#[cfg(target_os = "linux")]
use crate::common::faults::*;
use crate::common::*;

/// Outputs for all of which this holds.
const OUTPUTS: [&str; 1] = ["model.parquet"];

/// Every file under a folder, and what is in it.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

/// A model, what was made of it some time, and what is to be made now.
struct Place {
    folder: TempDir,
    input: PathBuf,
    /// Quantized to 8 bits once, and to be to 4.
    output: PathBuf,
    /// Decoded once, and to be again.
    back: PathBuf,
    before: BTreeMap<PathBuf, Vec<u8>>,
}

impl Place {
    fn new(output: &str) -> Self {
        let folder = small_model();
        // The path that the system shows of an open file.
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

    fn out(&self) -> &Path {
        self.back.parent().unwrap()
    }

    fn quantize(&self) -> Command {
        let mut command = program();
        command.arg("quantize").arg(&self.input).arg(&self.output);
        command
    }

    fn verify(&self) -> Command {
        let mut command = program();
        command.arg("verify").arg(&self.output);
        command.arg("--against").arg(&self.input);
        command
    }

    fn dequantize(&self) -> Command {
        let mut command = program();
        command.arg("dequantize").arg(&self.output).arg(&self.back);
        command
    }

    fn assert_intact(&self) {
        assert!(snapshot(self.out()) == self.before, "the output changed");
    }

    /// A command fails in one line that holds these parts, and leaves all as it was.
    #[track_caller]
    fn fails(&self, mut command: Command, parts: &[&str]) {
        let done = command.output().unwrap();
        let message = stderr(&done);
        assert_eq!(done.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        self.assert_intact();
    }

    /// The same, of a command for which system calls fail.
    #[cfg(target_os = "linux")]
    #[track_caller]
    fn fails_by(
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

/// What a quantized file of these settings would be.
fn expected(input: &Path, settings: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("expected.parquet");
    quantize(input, &output, settings).unwrap();
    std::fs::read(output).unwrap()
}

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

/// What was written may not come to the disk, which only waiting for it shows.
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

/// A limit on file sizes, as quotas of some systems are.
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
    // The model itself was done.
    assert!(std::fs::read(&place.output).unwrap() == expected(&place.input, &[]));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fails_while_it_is_read() {
    for output in OUTPUTS {
        let place = Place::new(output);
        let call = Call::Read("model.safetensors");
        let reason = "cannot read: Input/output error";
        for calls in [0, 1, 2, 4] {
            let named = ["model.safetensors", reason];
            let tensor = ["model.safetensors: tensor '", reason];
            // The header is read in two calls.
            let parts = if calls < 2 { &named } else { &tensor };
            for command in [place.quantize(), place.verify()] {
                place.fails_by(command, call, After::Calls(calls), libc::EIO, parts);
            }
        }
    }
}

/// The same for somebody who is not root, who may do anything.
fn as_nobody(place: &Place, mut command: Command) -> Command {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return command;
    }
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    open(place.folder.path(), 0o755);
    // Nobody may not enter the folder where it was built.
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

        // With a place to write to, the report is what fails.
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
    // SAFETY: the name ends in a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    place.fails(with(&pipe), &["pipe.parquet", "it is no file"]);

    let mut gguf = with(&place.out().join("m.gguf"));
    let done = gguf.output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("m.gguf' does not end in .parquet"));
    place.assert_intact();
}

/// Quantizes and, once it is at work, does something; the result.
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

/// Has a file be last written to so long ago.
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
            // Into the same file, not another of the same name.
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
            // Or when all has been read already.
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

/// A model of two shards and their index, in a new folder.
fn shards(folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).unwrap();
    let index = r#"{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}"#;
    std::fs::write(folder.join("m.safetensors.index.json"), index).unwrap();
    for (seed, name) in [(1, "a"), (2, "b")] {
        let file = safetensors(&[f32_tensor(name, &[40, 96], &noise(seed, 40 * 96))]);
        std::fs::write(folder.join(format!("{name}.safetensors")), file).unwrap();
    }
    folder.to_owned()
}

#[test]
fn an_input_may_be_a_link_and_shards_too() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let links = folder.path().join("links");
    std::fs::create_dir(&links).unwrap();
    let link = links.join("model.safetensors");
    symlink("../model.safetensors", &link).unwrap();
    assert!(expected(&link, &[]) == expected(&input, &[]));

    // As in the caches of model hubs: names of hashes, and a folder of links to them.
    let plain = shards(&folder.path().join("plain"));
    let (blobs, hub) = (folder.path().join("blobs"), folder.path().join("hub"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir(&hub).unwrap();
    for (i, name) in names_in(&plain).into_iter().enumerate() {
        std::fs::copy(plain.join(&name), blobs.join(format!("0{i}"))).unwrap();
        symlink(format!("../blobs/0{i}"), hub.join(name)).unwrap();
    }
    assert!(expected(&hub, &[]) == expected(&plain, &[]));
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().unwrap().is_symlink()
}

#[test]
fn an_output_that_is_a_link_stays_one() {
    let place = Place::new("model.parquet");
    let root = place.folder.path();
    let wanted = expected(&place.input, &[]);
    let quantize = |output: &Path| quantize(&place.input, output, &[]);

    // Through a link, a chain of them, and a folder that is one.
    let (link, chain) = (root.join("link.parquet"), root.join("chain.parquet"));
    symlink("out/model.parquet", &link).unwrap();
    symlink(&link, &chain).unwrap();
    symlink("out", root.join("folder")).unwrap();
    for output in [&link, &chain, &root.join("folder/model.parquet")] {
        std::fs::write(&place.output, "old").unwrap();
        quantize(output).unwrap();
        assert!(is_link(&link) && is_link(&chain) && is_link(&root.join("folder")));
        assert!(!is_link(&place.output));
        assert!(std::fs::read(&place.output).unwrap() == wanted);
        assert_eq!(names_in(place.out()), ["back.safetensors", "model.parquet"]);
    }

    // To where nothing is yet.
    let dangling = root.join("dangling.parquet");
    symlink("out/new.parquet", &dangling).unwrap();
    quantize(&dangling).unwrap();
    assert!(is_link(&dangling));
    assert!(std::fs::read(place.out().join("new.parquet")).unwrap() == wanted);

    // What is decoded, and reports.
    let back = root.join("back.safetensors");
    symlink("out/back.safetensors", &back).unwrap();
    arrowquant_ok([OsStr::new("dequantize"), link.as_ref(), back.as_ref()]);
    assert!(is_link(&back));
    source::open(&place.back).unwrap();

    // In a circle, and into nowhere.
    let (a, b) = (root.join("a.parquet"), root.join("b.parquet"));
    symlink("b.parquet", &a).unwrap();
    symlink("a.parquet", &b).unwrap();
    let message = quantize(&a).unwrap_err().to_string();
    assert!(message.contains("a.parquet: cannot write here: it is a link"));
    let nowhere = root.join("nowhere.parquet");
    symlink("none/m.parquet", &nowhere).unwrap();
    let message = quantize(&nowhere).unwrap_err().to_string();
    assert!(message.contains("there is no folder"), "{message}");
}

#[test]
fn a_failed_run_through_a_link_changes_nothing() {
    let place = Place::new("model.parquet");
    let link = place.folder.path().join("link.parquet");
    symlink("out/model.parquet", &link).unwrap();
    std::fs::write(&place.input, "no model").unwrap();
    quantize(&place.input, &link, &[]).unwrap_err();
    assert!(is_link(&link));
    place.assert_intact();
}

#[test]
fn neither_the_input_nor_the_output_is_overwritten_through_a_link() {
    let place = Place::new("model.parquet");
    let link = place.folder.path().join("link.parquet");
    symlink(&place.input, &link).unwrap();
    let error = quantize(&place.input, &link, &[]).unwrap_err().to_string();
    assert!(error.contains("would be overwritten"), "{error}");
    source::open(&place.input).unwrap();

    let report = place.folder.path().join("report.json");
    symlink(&place.output, &report).unwrap();
    let mut command = place.quantize();
    let done = command.arg("--report").arg(report).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("is the output"));
    place.assert_intact();
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

/// Does all there is with paths of these names.
fn all_commands(folder: &Path, name: impl Fn(&str) -> PathBuf) {
    let folder = folder.join(name(""));
    std::fs::create_dir(&folder).unwrap();
    let path = |extension: &str| folder.join(name(extension));
    let [input, output, yaml] = ["safetensors", "parquet", "yaml"].map(path);
    let [report, back] = [path("json"), folder.join("back.safetensors")];
    let tensors = [f32_tensor("a.weight", &[40, 96], &noise(1, 40 * 96))];
    std::fs::write(&input, safetensors(&tensors)).unwrap();
    std::fs::write(&yaml, "bit_width: 8\n").unwrap();
    let run = |args: &[&Path]| arrowquant_ok(args.iter().map(|arg| arg.as_os_str()));
    let [config, to, against] = ["--config", "--report", "--against"].map(Path::new);
    run(&[Path::new("plan"), &input, config, &yaml]);
    let quantize = Path::new("quantize");
    run(&[quantize, &input, &output, config, &yaml, to, &report]);
    run(&[Path::new("verify"), &output, against, &input]);
    run(&[Path::new("inspect"), &output]);
    run(&[Path::new("dequantize"), &output, &back]);
    let text = std::fs::read_to_string(report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["output"], output.display().to_string());
    assert_eq!(Model::open(&output).unwrap().tensors().len(), 1);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 5);
}

#[test]
fn paths_of_any_script_and_with_spaces() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "mit Leerzeichen",
        "Gewichte äöü",
        "モデル 重み",
        "🙂",
        "a'b\"c%d\\e",
        "-x",
    ] {
        all_commands(folder.path(), |extension| {
            Path::new(name).with_added_extension(extension)
        });
    }
}

/// Names on Linux are bytes.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let name = Path::new(OsStr::from_bytes(b"no\xfftext"));
    all_commands(folder.path(), |extension| {
        name.with_added_extension(extension)
    });
}
