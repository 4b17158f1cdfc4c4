//! Links, and names in any script: links give right results, and stay links.
#![cfg(unix)]

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use arrowquant::model::Model;
use arrowquant::source;

use crate::common::place::*;
use crate::common::*;

#[test]
fn an_input_may_be_a_link_and_shards_too() {
    let folder = small_model();
    let input = folder.path().join("model.safetensors");
    let links = folder.path().join("links");
    std::fs::create_dir(&links).unwrap();
    let link = links.join("model.safetensors");
    symlink("../model.safetensors", &link).unwrap();
    assert!(expected(&link, &[]) == expected(&input, &[]));

    // As in the caches of model hubs: files named by hash, and a folder of links to them.
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

    // Through a link, a chain of links, and a linked folder.
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

    // To a target that does not exist yet.
    let dangling = root.join("dangling.parquet");
    symlink("out/new.parquet", &dangling).unwrap();
    quantize(&dangling).unwrap();
    assert!(is_link(&dangling));
    assert!(std::fs::read(place.out().join("new.parquet")).unwrap() == wanted);

    // Decoded files, and reports.
    let back = root.join("back.safetensors");
    symlink("out/back.safetensors", &back).unwrap();
    arrowquant_ok([OsStr::new("dequantize"), link.as_ref(), back.as_ref()]);
    assert!(is_link(&back));
    source::open(&place.back).unwrap();

    // In a circle, and to a missing folder.
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

/// Runs every command with paths of these names.
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

/// Names on Linux are arbitrary bytes.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let name = Path::new(OsStr::from_bytes(b"no\xfftext"));
    all_commands(folder.path(), |extension| {
        name.with_added_extension(extension)
    });
}
