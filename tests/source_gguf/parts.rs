//! Split models, and folders with GGUF files.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::shapes::shape;
use super::*;

/// Makes the keys of part `no` (from 0) of `count`, with `tensors` tensors in total.
fn split(no: u16, count: u16, tensors: i32) -> Vec<Vec<u8>> {
    vec![
        key("split.no", 2, &no.to_le_bytes()),
        key("split.count", 2, &count.to_le_bytes()),
        key("split.tensors.count", 5, &tensors.to_le_bytes()),
    ]
}

/// Makes a file with the named f32 tensors, each [2, 4] of numbers from `first` on.
fn part(keys: &[Vec<u8>], names: &[&str], first: f32) -> Vec<u8> {
    let infos = names.iter().enumerate();
    let infos: Vec<Vec<u8>> = infos
        .map(|(i, name)| tensor(name, &[4, 2], 0, 32 * i as u64))
        .collect();
    let values = (0..8 * names.len()).flat_map(|i| (first + i as f32).to_le_bytes());
    gguf(keys, &infos, &values.collect::<Vec<u8>>())
}

fn name(number: usize) -> String {
    format!("m-{number:05}-of-00003.gguf")
}

/// Makes three valid parts: the keys of the model are in the first, which has no tensors.
fn files() -> [Vec<u8>; 3] {
    let mut keys = split(0, 3, 3);
    keys.push(key("general.architecture", 8, &text("flux")));
    keys.push(shape("c.weight", &[8, 1]));
    [
        part(&keys, &[], 0.0),
        part(&split(1, 3, 3), &["a.weight", "b.weight"], 0.0),
        part(&split(2, 3, 3), &["c.weight"], 16.0),
    ]
}

fn folder_of(files: &[Vec<u8>]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (i, file) in files.iter().enumerate() {
        std::fs::write(folder.path().join(name(i + 1)), file).unwrap();
    }
    folder
}

#[test]
fn any_part_opens_all() {
    let folder = folder_of(&files());
    let at = |name: &str| folder.path().join(name);
    let paths: Vec<PathBuf> = (1..4).map(|number| at(&name(number))).collect();
    let mut ids = Vec::new();
    for given in paths.iter().map(PathBuf::as_path).chain([folder.path()]) {
        let source = source::open(given).unwrap();
        let tensors = source.tensors();
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a.weight", "b.weight", "c.weight"]);
        assert_eq!(tensors[2].shape.dims(), [8, 1]);
        for (i, of) in [1, 1, 2].into_iter().enumerate() {
            let expected: Vec<f32> = (8 * i..8 * i + 8).map(|n| n as f32).collect();
            assert_eq!(floats(source.as_ref(), i), expected);
            assert_eq!(source.path_of(i), paths[of]);
        }
        let metadata: Vec<_> = source.metadata().iter().collect();
        assert_eq!(
            metadata,
            [(&"general.architecture".to_owned(), &"flux".to_owned())]
        );
        let read: Vec<PathBuf> = source.files().into_iter().map(|file| file.path).collect();
        assert_eq!(read, paths);
        ids.push(source.id());
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(ids[0].name, name(1));
    let bytes: usize = files().iter().map(Vec::len).sum();
    assert_eq!(ids[0].bytes, bytes as u64);
    // Every header counts: here one letter of a name in the last one differs.
    let mut renamed = files();
    renamed[2] = part(&split(2, 3, 3), &["d.weight"], 16.0);
    let renamed = folder_of(&renamed);
    let other = source::open(&renamed.path().join(name(1))).unwrap().id();
    assert_eq!(other.bytes, ids[0].bytes);
    assert_ne!(other.header_hash, ids[0].header_hash);

    quantized_and_verified(&at(&name(2)), &at("m.parquet"));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let with = |number: usize, file: Vec<u8>| {
        let mut files = files();
        files[number - 1] = file;
        files.to_vec()
    };
    let second = |keys: &[Vec<u8>]| with(2, part(keys, &["a.weight", "b.weight"], 0.0));
    for (files, parts) in [
        (
            files()[..2].to_vec(),
            &["m-00003-of-00003.gguf", "is missing", "one of 3 parts"][..],
        ),
        (
            second(&split(2, 3, 3)),
            &["m-00002-of", "is part 2 of 3 by its name, split.no says 3"],
        ),
        (
            second(&split(1, 2, 3)),
            &[
                "m-00002-of",
                "is one of 3 parts by its name, split.count says 2",
            ],
        ),
        (
            second(&split(1, 3, 3)[..1]),
            &[
                "m-00002-of",
                "is one of 3 parts by its name, but has no key split.count",
            ],
        ),
        (
            second(&split(1, 3, 3)[1..]),
            &["m-00002-of", "has no key split.no"],
        ),
        (
            second(&split(1, 3, 4)),
            &[
                "m-00002-of",
                "all parts have 4 tensors together, they have 3",
            ],
        ),
        (
            second(&split(1, 3, -1)),
            &["m-00002-of", "split.tensors.count -1 is not a count"],
        ),
        (
            with(3, part(&split(2, 3, 3), &["b.weight"], 0.0)),
            &[
                "m-00003-of",
                "'b.weight'",
                "duplicate name, also in m-00002-of-00003.gguf",
            ],
        ),
        (
            with(
                3,
                part(
                    &[&split(2, 3, 3)[..], &[shape("c.weight", &[4, 2])]].concat(),
                    &["c.weight"],
                    0.0,
                ),
            ),
            &["m-00003-of", "'c.weight'", "in two parts that differ"],
        ),
        (
            with(3, part(&split(2, 3, 3), &["c.weight"], 0.0)[..190].to_vec()),
            &["m-00003-of", "'c.weight'", "not all in the file"],
        ),
    ] {
        let folder = folder_of(&files);
        let refused = source::open(&folder.path().join(name(1))).err();
        let message = refused.expect("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "'{part}' is not in: {message}");
        }
    }
}

#[test]
fn names_and_keys_that_disagree() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name: &str, keys: &[Vec<u8>]| {
        let path = folder.path().join(name);
        std::fs::write(&path, part(keys, &["w"], 0.0)).unwrap();
        let opened = source::open(&path);
        std::fs::remove_file(path).unwrap();
        opened.map_err(|error| error.to_string())
    };
    for (name, keys, reason) in [
        (
            "m-00001-of-00002.gguf",
            &[][..],
            "one of 2 parts by its name, but has no key split.count",
        ),
        (
            "m-00001-of-00002.gguf",
            &split(0, 3, 1),
            "one of 2 parts by its name, split.count says 3",
        ),
        (
            "m.gguf",
            &split(0, 3, 1),
            "does not end in -00001-of-00003.gguf",
        ),
        (
            "m-1-of-3.gguf",
            &split(0, 3, 1),
            "does not end in -00001-of-00003.gguf",
        ),
        (
            "m-00004-of-00003.gguf",
            &split(3, 3, 1),
            "does not end in -00001-of-00003.gguf",
        ),
        (
            "m.gguf",
            &split(0, 1001, 1),
            "one of 1001 parts of a model, over the limit of 1000",
        ),
    ] {
        let message = open(name, keys).err().expect("refused");
        assert!(
            message.contains(reason) && message.contains(name),
            "{message}"
        );
    }
    // Whole files, whatever their names.
    for count in [0, 1] {
        for name in ["m.gguf", "m-00001-of-00001.gguf", "m-00002-of-00003.gguf"] {
            let source = open(name, &split(0, count, 1)).unwrap();
            assert_eq!(source.tensors().len(), 1);
            assert!(source.metadata().is_empty());
        }
    }
    assert!(open("m-00001-of-00001.gguf", &[]).is_ok());
}

#[test]
fn a_part_that_changes_is_noticed() {
    let folder = folder_of(&files());
    let source = source::open(&folder.path().join(name(1))).unwrap();
    source.check_unchanged().unwrap();
    let last = std::fs::File::options()
        .write(true)
        .open(folder.path().join(name(3)))
        .unwrap();
    last.set_modified(SystemTime::now() + Duration::from_secs(60))
        .unwrap();
    let message = source.check_unchanged().expect_err("changed").to_string();
    assert!(message.contains("m-00003-of-00003.gguf"), "{message}");
}

#[test]
fn a_folder_with_one_model_is_that_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = |path: &Path| source::open(path).map_err(|error| error.to_string());
    let message = open(folder.path()).err().expect("nothing there");
    assert!(
        message.contains("no *.safetensors, no *.gguf and no model_index.json"),
        "{message}"
    );
    std::fs::write(at("m.gguf"), small()).unwrap();
    std::fs::write(at("._m.gguf"), b"of another system").unwrap();
    std::fs::write(at("notes.txt"), b"").unwrap();
    let source = open(folder.path()).unwrap();
    assert_eq!(
        (source.tensors().len(), source.id().name.as_str()),
        (2, "m.gguf")
    );
    assert_eq!(source.id(), open(&at("m.gguf")).unwrap().id());

    for (i, file) in files().iter().enumerate() {
        std::fs::write(at(&name(i + 1)), file).unwrap();
    }
    let message = open(folder.path()).err().expect("two models");
    let names = "contains several GGUF files, use one of them: m-00001-of-00003.gguf, m.gguf";
    assert!(message.contains(names), "{message}");
    std::fs::remove_file(at("m.gguf")).unwrap();
    std::fs::remove_file(at(&name(1))).unwrap();
    let message = open(folder.path()).err().expect("a part is missing");
    assert!(
        message.contains("m-00001-of-00003.gguf: is missing"),
        "{message}"
    );

    // If there are safetensors, they take precedence.
    let weights = safetensors(&[f32_tensor("w", &[2], &[1.0, 2.0])]);
    std::fs::write(at("model.safetensors"), weights).unwrap();
    assert_eq!(open(folder.path()).unwrap().id().name, "model.safetensors");
}
