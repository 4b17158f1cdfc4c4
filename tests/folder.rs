//! Output folders of parts: one model, resumed after interruptions, shared by several runs.

use std::collections::BTreeMap;
use std::path::Path;

use arrowquant::error::Error;
use arrowquant::model::Model;
use arrowquant::run::{self, Level, Options, Progress, Report, Share};
use arrowquant::source;
use serde_json::Value;

use crate::common::*;

/// Writes six matrices, some kept tensors, and one that is not finite.
fn write_model(path: &Path) {
    let mut tensors = Vec::new();
    for i in 0..6u64 {
        let rows = 30 + 10 * i as usize;
        let name = format!("blocks.{i}.weight");
        tensors.push(bf16_tensor(&name, &[rows, 96], &noise(i, rows * 96)));
        tensors.push(f32_tensor(
            &format!("blocks.{i}.bias"),
            &[rows],
            &noise(i, rows),
        ));
    }
    let mut holed = noise(9, 40 * 64);
    holed[77] = f32::INFINITY;
    tensors.push(f32_tensor("holed.weight", &[40, 64], &holed));
    let huge: Vec<f32> = noise(10, 20 * 64).iter().map(|v| v * 1e30).collect();
    tensors.push(f32_tensor("huge.weight", &[20, 64], &huge));
    std::fs::write(path, safetensors(&tensors)).unwrap();
}

const SETTINGS: &[(&str, &str)] = &[("on_nonfinite", "keep"), ("group_size", "32")];

/// A size small enough to divide the model into several parts.
const PART_BYTES: usize = 6000;

fn options<'a>() -> Options<'a> {
    Options {
        part_bytes: PART_BYTES,
        ..Options::default()
    }
}

/// Returns options for making all parts again.
fn restart<'a>() -> Options<'a> {
    Options {
        restart: true,
        ..options()
    }
}

fn run_into(
    input: &Path,
    output: &Path,
    settings: &[(&str, &str)],
    options: Options<'_>,
) -> arrowquant::error::Result<Report> {
    let source = source::open(input)?;
    let plan = run::plan(source.as_ref(), &config(settings))?;
    run::quantize(source.as_ref(), &plan, output, options)
}

/// Returns every file of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| (name.clone(), std::fs::read(folder.join(name)).unwrap());
    names_in(folder).into_iter().map(read).collect()
}

/// Planes and checksum of each tile, by tensor and number.
type Tiles = BTreeMap<(String, usize), (Vec<u8>, Vec<u8>, u64)>;

fn tiles(model: &Model) -> Tiles {
    let mut found = BTreeMap::new();
    for (i, tensor) in model.tensors().iter().enumerate() {
        for tile in 0..tensor.tiles.len() {
            let planes = model.check_tile(i, tile).unwrap();
            let scales = planes.scales().unwrap_or_default().to_vec();
            let checksum = tensor.tiles[tile].tile.checksum;
            let key = (tensor.info.name.clone(), tile);
            found.insert(key, (planes.codes().to_vec(), scales, checksum));
        }
    }
    found
}

/// Returns a report without what differs from run to run.
fn figures(report: &Report) -> Value {
    let mut json = serde_json::json!(report);
    for key in ["seconds", "output", "output_bytes", "parts"] {
        json[key] = Value::Null;
    }
    json
}

#[test]
fn a_folder_is_the_model_of_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let (one, many) = (
        folder.path().join("one.parquet"),
        folder.path().join("many"),
    );
    let of_one = run_into(&input, &one, SETTINGS, options()).unwrap();
    let of_many = run_into(&input, &many, SETTINGS, options()).unwrap();
    assert_eq!(figures(&of_one), figures(&of_many));
    let parts = of_many.parts.unwrap();
    assert!(parts.count > 3 && parts.resumed == 0, "{parts:?}");

    let (one, many) = (Model::open(&one).unwrap(), Model::open(&many).unwrap());
    assert_eq!(tiles(&one), tiles(&many));
    assert_eq!(many.file_bytes() as u64, of_many.output_bytes);
    for (key, value) in one.metadata() {
        let same = match key.as_str() {
            // Entries may be in another order.
            "arrowquant.summary" => {
                let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                parse(value) == parse(&many.metadata()[key])
            }
            _ => many.metadata()[key] == *value,
        };
        assert!(same, "{key}: {value} and {}", many.metadata()[key]);
    }
    let checked = run::verify(&many, None, None, Options::default()).unwrap();
    assert_eq!(checked.failures().count(), 0);
}

#[test]
fn the_command_line_reads_a_folder_as_it_does_a_file() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let output = folder.path().join("out");
    let back = folder.path().join("back.safetensors");
    let (input, output) = (input.as_os_str(), output.as_os_str());
    let said = arrowquant_ok([
        "quantize".as_ref(),
        input,
        output,
        "--part-size".as_ref(),
        "1KiB".as_ref(),
    ]);
    assert!(said.contains("parts, 0 from an earlier run"), "{said}");
    let shown = arrowquant_ok(["inspect".as_ref(), output]);
    assert!(shown.contains("7 tensors"), "{shown}");
    let verified = arrowquant_ok(["verify".as_ref(), output, "--against".as_ref(), input]);
    assert!(verified.contains("7 tensors verified"), "{verified}");
    arrowquant_ok(["dequantize".as_ref(), output, back.as_os_str()]);
    assert_eq!(source::open(&back).unwrap().tensors().len(), 7);

    let again = |flags: &[&str]| {
        let paths = ["quantize".as_ref(), input, output];
        let flags = ["--part-size", "1KiB"]
            .iter()
            .chain(flags)
            .map(|flag| flag.as_ref());
        let done = arrowquant(paths.into_iter().chain(flags));
        (done.status.code(), stderr(&done))
    };
    let (code, said) = again(&[]);
    assert!(
        code == Some(0) && said.starts_with("nothing is left to do: "),
        "{said}"
    );
    assert_eq!(again(&["--resume", "--quiet"]), (Some(0), String::new()));
    assert_eq!(again(&["--restart"]), (Some(0), String::new()));
    let (code, said) = again(&["--bits", "2"]);
    assert!(code == Some(1) && said.contains("--restart"), "{said}");
    assert_eq!(
        again(&["--bits", "2", "--restart"]),
        (Some(0), String::new())
    );
    assert_eq!(again(&["--resume", "--restart"]).0, Some(2));
}

#[test]
fn what_is_missing_is_made_again_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let output = folder.path().join("out");
    let whole = run_into(&input, &output, SETTINGS, options()).unwrap();
    let expected = files(&output);
    // The default, and the flag that used to be required.
    let mut resume = [false, true].into_iter().cycle().map(|resume| Options {
        resume,
        ..options()
    });
    let count = whole.parts.unwrap().count;
    for spoil in [
        &|_: &Path| {},
        &|out: &Path| std::fs::remove_file(out.join("part-00001.parquet")).unwrap(),
        &|out: &Path| {
            let path = out.join("part-00002.parquet");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        },
        &|out: &Path| std::fs::remove_file(out.join("manifest.json")).unwrap(),
    ] as [&dyn Fn(&Path); 4]
    {
        spoil(&output);
        let modified = |name: &str| {
            let status = std::fs::metadata(output.join(name));
            status.and_then(|status| status.modified()).ok()
        };
        let intact = |name: &&String| {
            name.as_str() != "manifest.json"
                && std::fs::read(output.join(name)).is_ok_and(|bytes| bytes == expected[*name])
        };
        let intact: Vec<&String> = expected.keys().filter(intact).collect();
        let before: Vec<_> = intact.iter().map(|name| modified(name)).collect();
        let again = run_into(&input, &output, SETTINGS, resume.next().unwrap()).unwrap();
        let parts = again.parts.unwrap();
        assert_eq!((parts.count, parts.resumed), (count, intact.len()));
        assert_eq!(figures(&again), figures(&whole));
        let after: Vec<_> = intact.iter().map(|name| modified(name)).collect();
        assert_eq!(before, after);
        let mut found = files(&output);
        // Without a manifest, the times of the source are unknown.
        if found["manifest.json"] != expected["manifest.json"] {
            panic!("{}", String::from_utf8_lossy(&found["manifest.json"]));
        }
        found.retain(|name, bytes| expected[name] != *bytes);
        assert!(found.is_empty(), "{:?}", found.keys());
    }
    // With `restart` everything is done again, with the same bytes.
    let again = run_into(&input, &output, SETTINGS, restart()).unwrap();
    assert_eq!(again.parts.unwrap().resumed, 0);
    assert!(files(&output) == expected);
}

#[test]
fn an_interrupted_run_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let whole = folder.path().join("whole");
    run_into(&input, &whole, SETTINGS, options()).unwrap();
    let expected = files(&whole);
    for threads in [1, 2] {
        for stop_at in 1..20 {
            let output = folder.path().join("out");
            let mut calls = 0;
            let mut stop = |_: Progress| {
                calls += 1;
                calls != stop_at
            };
            let stopped = run_into(
                &input,
                &output,
                SETTINGS,
                Options {
                    threads,
                    progress: Some(&mut stop),
                    ..options()
                },
            );
            if stopped.is_ok() {
                break;
            }
            assert!(matches!(stopped, Err(Error::Cancelled)));
            // Complete parts, or no folder at all.
            let there = output.exists();
            for name in if there { names_in(&output) } else { Vec::new() } {
                assert!(!name.contains("partial"), "{name}");
                if name.starts_with("part-") {
                    assert!(std::fs::read(output.join(&name)).unwrap() == expected[&name]);
                }
            }
            if there {
                let message = Model::open(&output).unwrap_err().to_string();
                assert!(
                    message.contains("not complete: run the same command again"),
                    "{message}"
                );
            }
            run_into(&input, &output, SETTINGS, options()).unwrap();
            assert!(files(&output) == expected, "stopped at {stop_at}");
            std::fs::remove_dir_all(&output).unwrap();
        }
    }
}

#[test]
fn another_run_is_refused_and_the_difference_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let output = folder.path().join("out");
    run_into(&input, &output, SETTINGS, options()).unwrap();
    let expected = files(&output);
    let refused = |settings: &[(&str, &str)], resume: bool, part_bytes: usize, parts: &[&str]| {
        let options = Options {
            resume,
            part_bytes,
            ..Options::default()
        };
        let message = run_into(&input, &output, settings, options)
            .unwrap_err()
            .to_string()
            .replace('\\', "/");
        for part in [&["out/manifest.json: from another run: "], parts].concat() {
            assert!(message.contains(part), "{message}");
        }
        assert!(files(&output) == expected);
    };
    let more = |key, value| [SETTINGS, &[(key, value)]].concat();
    for resume in [false, true] {
        let bits = more("bit_width", "2");
        let difference = "config.bit_width is 4 there and 2 here";
        refused(&bits, resume, PART_BYTES, &[difference]);
    }
    let zstd = more("compression", "zstd");
    refused(&zstd, true, PART_BYTES, &["compression is \"none\" there"]);
    refused(
        SETTINGS,
        true,
        PART_BYTES + 1,
        &["part_bytes is 6000 there"],
    );
    // Other weights with the same header.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    let file = std::fs::File::options().write(true).open(&input).unwrap();
    file.set_modified(later).unwrap();
    refused(
        SETTINGS,
        true,
        PART_BYTES,
        &["m.safetensors has changed since"],
    );
    // Other weights with the same header.
    let original = std::fs::read(&input).unwrap();
    let mut bytes = original.clone();
    let end = bytes.len() - 2500;
    bytes[end..].fill(0x11);
    std::fs::write(&input, &bytes).unwrap();
    refused(SETTINGS, true, PART_BYTES, &["sample is \""]);
    // Another header.
    let mut bytes = original;
    let at = bytes
        .windows(4)
        .position(|window| window == b"hole")
        .unwrap();
    bytes[at] = b'H';
    std::fs::write(&input, bytes).unwrap();
    refused(SETTINGS, true, PART_BYTES, &["source.header_hash is"]);
}

/// Returns the log messages of a run, and its result.
fn told(
    input: &Path,
    output: &Path,
    stop_at: usize,
    options: Options<'_>,
) -> (Vec<String>, arrowquant::error::Result<Report>) {
    let mut said = Vec::new();
    let mut log = |level: Level, message: &str| {
        if level == Level::Notice {
            said.push(message.to_owned());
        }
        true
    };
    let mut calls = 0;
    let mut progress = |_: Progress| {
        calls += 1;
        calls != stop_at
    };
    let options = Options {
        threads: 1,
        progress: Some(&mut progress),
        log: Some(&mut log),
        ..options
    };
    let done = run_into(input, output, SETTINGS, options);
    (said, done)
}

#[test]
fn a_run_says_what_it_goes_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let output = folder.path().join("out");
    let never = usize::MAX;
    let (said, done) = told(&input, &output, never, options());
    let count = done.unwrap().parts.unwrap().count;
    assert_eq!(said, [""; 0]);
    let expected = files(&output);
    let (said, done) = told(&input, &output, never, options());
    let all = format!("nothing is left to do: {count} of {count} parts are there");
    assert_eq!(said, [all]);
    assert_eq!(done.unwrap().parts.unwrap().resumed, count);
    // A damaged part does not count as existing.
    std::fs::write(output.join("part-00000.parquet"), "damaged").unwrap();
    let (said, _) = told(&input, &output, never, options());
    assert_eq!(
        said,
        [format!(
            "continuing: {} of {count} parts are there",
            count - 1
        )]
    );
    assert!(files(&output) == expected);
    let (said, done) = told(&input, &output, never, restart());
    assert_eq!((said.len(), done.unwrap().parts.unwrap().resumed), (0, 0));
    assert!(files(&output) == expected);
    // After a stop, the message says how much is done.
    std::fs::remove_dir_all(&output).unwrap();
    let (said, done) = told(&input, &output, 1, options());
    assert!(matches!(done, Err(Error::Cancelled)));
    assert_eq!(said, ["no part is complete yet: the next run starts over"]);
    assert!(!output.exists());
    let mut stop_at = 2;
    loop {
        let (said, done) = told(&input, &output, stop_at, options());
        if done.is_ok() {
            panic!("it never stopped between two parts");
        }
        if output.exists() {
            let there = names_in(&output)
                .iter()
                .filter(|name| name.starts_with("part-"))
                .count();
            let are = if there == 1 { "is" } else { "are" };
            let text =
                format!("{there} of {count} parts {are} there: the next run continues with them");
            assert_eq!(said, [text]);
            break;
        }
        stop_at += 1;
    }
}

#[test]
fn restarting_removes_what_an_earlier_run_left_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let fresh = folder.path().join("fresh");
    run_into(&input, &fresh, SETTINGS, options()).unwrap();
    let expected = files(&fresh);
    let output = folder.path().join("out");
    // Other settings, with more parts and files that are not parts.
    let other = [SETTINGS, &[("bit_width", "8")]].concat();
    let more = run_into(&input, &output, &other, options()).unwrap();
    assert!(more.parts.unwrap().count > expected.len());
    std::fs::write(output.join("notes.txt"), "mine").unwrap();
    let before = files(&output);
    let message = run_into(&input, &output, SETTINGS, options())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("config.bit_width is 8 there and 4 here"),
        "{message}"
    );
    assert!(message.contains("--restart"), "{message}");
    assert!(files(&output) == before);
    let done = run_into(&input, &output, SETTINGS, restart()).unwrap();
    assert_eq!(done.parts.unwrap().resumed, 0);
    let mut found = files(&output);
    assert_eq!(found.remove("notes.txt").unwrap(), b"mine");
    assert!(found == expected);

    // A part that the manifest does not name is not removed.
    run_into(&input, &fresh, &other, restart()).unwrap();
    std::fs::copy(
        fresh.join("part-00000.parquet"),
        output.join("part-00099.parquet"),
    )
    .unwrap();
    let before = files(&output);
    let message = run_into(&input, &output, SETTINGS, restart())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("part-00099.parquet: from another run"),
        "{message}"
    );
    assert!(files(&output) == before);
    std::fs::remove_file(output.join("part-00099.parquet")).unwrap();
    // Without a manifest nothing is removed, and parts of another run are refused.
    std::fs::remove_file(output.join("manifest.json")).unwrap();
    let message = run_into(&input, &output, &other, restart())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("part-00000.parquet: from another run"),
        "{message}"
    );
    run_into(&input, &output, SETTINGS, restart()).unwrap();
    std::fs::remove_file(output.join("notes.txt")).unwrap();
    assert!(files(&output) == expected);

    // Both options at once, and a single file.
    let both = Options {
        resume: true,
        ..restart()
    };
    let message = run_into(&input, &output, SETTINGS, both)
        .unwrap_err()
        .to_string();
    assert!(message.contains("either resume or restart"), "{message}");
    let file = folder.path().join("one.parquet");
    let message = run_into(&input, &file, SETTINGS, restart())
        .unwrap_err()
        .to_string();
    assert!(message.contains("name a folder"), "{message}");
}

#[test]
fn restarting_a_share_leaves_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let output = folder.path().join("out");
    let share = |k, of, settings: &[(&str, &str)], options: Options<'_>| {
        let share = Some(Share::new(k, of).unwrap());
        run_into(&input, &output, settings, Options { share, ..options }).unwrap()
    };
    share(1, 2, SETTINGS, options());
    share(2, 2, SETTINGS, options());
    let expected = files(&output);
    let mine = share(1, 2, SETTINGS, options()).parts.unwrap();
    assert_eq!(mine.count, mine.resumed);
    assert!(mine.count < expected.len() - 1);
    std::fs::write(output.join("part-00000.parquet"), "damaged").unwrap();
    assert_eq!(share(1, 2, SETTINGS, restart()).parts.unwrap().resumed, 0);
    assert!(files(&output) == expected);
    let theirs = share(2, 2, SETTINGS, options()).parts.unwrap();
    assert_eq!(
        (theirs.count, theirs.resumed),
        (expected.len() - 1 - mine.count, theirs.count)
    );
    // Other work has no parts here any more.
    share(1, 3, SETTINGS, restart());
    let parts = names_in(&output)
        .into_iter()
        .filter(|name| name.starts_with("part-"));
    assert!(parts.count() < expected.len() - 1);
    share(2, 3, SETTINGS, restart());
    share(3, 3, SETTINGS, restart());
    run::merge(&output).unwrap();
    assert_eq!(Model::open(&output).unwrap().tensors().len(), 14);
}

#[test]
fn shares_of_several_processes_make_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let one = folder.path().join("one.parquet");
    run_into(&input, &one, SETTINGS, options()).unwrap();
    for shares in [1, 4, 30] {
        let output = folder.path().join(format!("shares-{shares}"));
        let children: Vec<_> = (1..=shares)
            .map(|k| {
                std::process::Command::new(env!("CARGO_BIN_EXE_arrowquant"))
                    .args(["quantize".as_ref(), input.as_os_str(), output.as_os_str()])
                    .args(["--on-nonfinite", "keep", "--group-size", "32", "--quiet"])
                    .args(["--part", &format!("{k}/{shares}")])
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        if shares > 1 {
            assert!(Model::open(&output).is_err());
        }
        let merged = arrowquant_ok(["merge".as_ref(), output.as_os_str(), "--json".as_ref()]);
        let merged: Value = serde_json::from_str(&merged).unwrap();
        let (one, many) = (Model::open(&one).unwrap(), Model::open(&output).unwrap());
        assert_eq!(tiles(&one), tiles(&many));
        let summary: Value = serde_json::from_str(&one.metadata()["arrowquant.summary"]).unwrap();
        assert_eq!(merged["cosine"], summary["total"]["cosine"]);
    }
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let share = |k, output: &Path, settings: &[(&str, &str)]| {
        let share = Share::new(k, 3).unwrap();
        let options = Options {
            share: Some(share),
            ..options()
        };
        run_into(&input, output, settings, options).unwrap();
    };
    let output = folder.path().join("out");
    let message = |output: &Path| run::merge(output).unwrap_err().to_string();
    assert!(message(&output).contains("out: not a folder of parts"));
    share(1, &output, SETTINGS);
    // Another machine has its own copy.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    let file = std::fs::File::options().write(true).open(&input).unwrap();
    file.set_modified(later).unwrap();
    share(3, &output, SETTINGS);
    let missing = message(&output);
    assert!(
        missing.contains(" is missing") && missing.contains("part-0000"),
        "{missing}"
    );
    // A share with other settings, copied here.
    let other = folder.path().join("other");
    share(2, &other, &[("on_nonfinite", "keep"), ("group_size", "64")]);
    let copied: Vec<String> = names_in(&other)
        .into_iter()
        .filter(|n| n.contains("part-"))
        .collect();
    assert!(!copied.is_empty());
    for name in &copied {
        std::fs::copy(other.join(name), output.join(name)).unwrap();
    }
    let message_of_both = message(&output);
    assert!(
        message_of_both.contains("config.group_size is"),
        "{message_of_both}"
    );
    assert!(message_of_both.contains(&copied[0]), "{message_of_both}");
    // The right part, in the place of another.
    share(2, &folder.path().join("right"), SETTINGS);
    for name in &copied {
        std::fs::copy(folder.path().join("right").join(name), output.join(name)).unwrap();
    }
    let (first, second) = ("part-00000.parquet", copied[0].as_str());
    let kept = std::fs::read(output.join(first)).unwrap();
    std::fs::copy(output.join(second), output.join(first)).unwrap();
    assert!(
        message(&output).contains("it says that it is part"),
        "{}",
        message(&output)
    );
    std::fs::write(output.join(first), kept).unwrap();
    // Without the manifests, as if only parts were copied from other machines.
    std::fs::remove_file(output.join("manifest.json")).unwrap();
    run::merge(&output).unwrap();
    assert_eq!(Model::open(&output).unwrap().tensors().len(), 14);
}

#[test]
fn two_runs_into_one_folder_at_once_are_both_right() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let alone = folder.path().join("alone");
    run_into(&input, &alone, SETTINGS, options()).unwrap();
    let expected = files(&alone);
    for round in 0..5 {
        let output = folder.path().join(format!("out-{round}"));
        let both: Vec<_> = std::thread::scope(|scope| {
            let run = || run_into(&input, &output, SETTINGS, options()).map(drop);
            let runs = [scope.spawn(run), scope.spawn(run)];
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert!(both.iter().all(Result::is_ok), "{both:?}");
        assert!(files(&output) == expected);
        // Of different settings at most one succeeds, and the folder is never mixed.
        let output = folder.path().join(format!("mixed-{round}"));
        let run = |bits: &'static str| {
            let settings = [SETTINGS, &[("bit_width", bits)]].concat();
            run_into(&input, &output, &settings, options()).map(drop)
        };
        let both: Vec<_> = std::thread::scope(|scope| {
            let runs = ["2", "8"].map(|bits| scope.spawn(|| run(bits)));
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        assert_eq!(both.iter().filter(|run| run.is_ok()).count(), 1, "{both:?}");
        Model::open(&output).unwrap();
    }
}

#[test]
fn outputs_that_cannot_be_a_folder() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let taken = folder.path().join("taken");
    std::fs::write(&taken, "mine").unwrap();
    let message = |output: &Path| {
        run_into(&input, output, &[], options())
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(&taken).contains("taken: not a folder"),
        "{}",
        message(&taken)
    );
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
    let deep = folder.path().join("no/such");
    assert!(
        message(&deep).contains("such: cannot create the folder"),
        "{}",
        message(&deep)
    );
    // A part that is not from ArrowQuant.
    let strange = folder.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("part-00000.parquet"), "mine").unwrap();
    assert!(message(&strange).contains("part-00000.parquet: not a Parquet file"));
    assert_eq!(names_in(&strange), ["part-00000.parquet"]);
    // A single file is finished at once.
    let file = folder.path().join("one.parquet");
    for options in [
        Options {
            resume: true,
            ..options()
        },
        Options {
            share: Some(Share::new(1, 2).unwrap()),
            ..options()
        },
    ] {
        let error = run_into(&input, &file, &[], options).unwrap_err();
        assert!(error.to_string().contains("name a folder"), "{error}");
    }
}

#[test]
fn a_failed_run_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("m.safetensors");
    write_model(&input);
    let output = folder.path().join("out");
    let first = [("rules", "blocks.*=keep;*=bits:4")];
    let options = Options {
        part_bytes: usize::MAX,
        ..Options::default()
    };
    let message = run_into(&input, &output, &first, options)
        .unwrap_err()
        .to_string();
    assert!(message.contains("'holed.weight'"), "{message}");
    assert_eq!(names_in(folder.path()), ["m.safetensors"]);
}

/// Full and failing disks, at several moments: complete parts remain, and the run resumes.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_failed_is_continued() {
    use crate::common::faults::*;

    let folder = tempfile::tempdir().unwrap();
    // The path that the system shows for an open file.
    let root = folder.path().canonicalize().unwrap();
    let input = root.join("m.safetensors");
    write_model(&input);
    let run = |output: &Path, more: &[&str]| {
        let mut command = program();
        command.arg("quantize").arg(&input).arg(output).args(more);
        command.args(["--on-nonfinite=keep", "--group-size=32", "--part-size=6000"]);
        command.args(["--quiet", "--threads=1"]);
        command
    };
    let whole = root.join("whole");
    assert!(run(&whole, &[]).status().unwrap().success());
    let expected = files(&whole);
    let output = root.join("out");
    let text = output.to_str().unwrap();
    for (call, after, errno, reason) in [
        (
            Call::Write(text),
            After::Bytes(0),
            libc::ENOSPC,
            "No space left on device",
        ),
        (
            Call::Write(text),
            After::Bytes(9000),
            libc::ENOSPC,
            "No space left on device",
        ),
        (
            Call::Write(text),
            After::Bytes(25000),
            libc::EIO,
            "Input/output error",
        ),
        (
            Call::Sync(text),
            After::Calls(4),
            libc::EIO,
            "Input/output error",
        ),
        (
            Call::Read("m.safetensors"),
            After::Calls(25),
            libc::EIO,
            "cannot read",
        ),
    ] {
        let fired = root.join("fired");
        let mut command = run(&output, &[]);
        spoil(&mut command, call, after, Then::Fails(errno), &fired);
        let done = command.output().unwrap();
        let message = stderr(&done);
        assert_eq!(done.status.code(), Some(1), "{call:?}: {message}");
        assert!(message.contains(reason), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        std::fs::remove_file(fired).expect("a call that failed");
        if output.exists() {
            for (name, bytes) in files(&output) {
                assert!(
                    name == "manifest.json" || bytes == expected[&name],
                    "{name}"
                );
            }
        }
        assert!(run(&output, &[]).status().unwrap().success());
        assert!(files(&output) == expected, "{call:?}");
        std::fs::remove_dir_all(&output).unwrap();
    }
}
