//! Files that people have instead of weights: each is identified, wherever it is.

use std::path::Path;

use arrowquant::source;
use serde_json::json;

use crate::common::*;
use crate::source_folders::write;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid \
                       sha256:abababababababababababababababababababababababababababababababab\n\
                       size 4903233032\n";

fn message(path: &Path) -> String {
    let error = source::open(path).err().expect("refused");
    error.to_string().replace('\\', "/")
}

fn model() -> Vec<u8> {
    safetensors(&[f32_tensor("blocks.0.weight", &[4, 8], &noise(1, 32))])
}

/// Returns the places where a file may be, each with the path to open and the path of the file.
fn places(folder: &Path, content: &[u8]) -> Vec<(std::path::PathBuf, String)> {
    let at = |path: &str| folder.join(path);
    let mut places = Vec::new();
    for name in ["m.safetensors", "m.gguf", "m.parquet", "m.ckpt", "m"] {
        write(&at("file").join(name), content);
        places.push((at("file").join(name), name.to_owned()));
    }
    write(&at("folder/model.safetensors"), content);
    places.push((at("folder"), "folder/model.safetensors".to_owned()));
    let index = json!({"weight_map": {"a": "a.safetensors"}}).to_string();
    write(&at("shards/model.safetensors.index.json"), index);
    write(&at("shards/a.safetensors"), content);
    places.push((at("shards"), "shards/a.safetensors".to_owned()));
    write(&at("index/model.safetensors.index.json"), content);
    places.push((at("index"), "index/model.safetensors.index.json".to_owned()));
    let index = json!({"unet": ["diffusers", "UNet2DConditionModel"]}).to_string();
    write(&at("pipe/model_index.json"), index);
    write(
        &at("pipe/unet/diffusion_pytorch_model.safetensors"),
        content,
    );
    let file = "pipe/unet/diffusion_pytorch_model.safetensors";
    places.push((at("pipe"), file.to_owned()));
    write(&at("named/model_index.json"), content);
    places.push((at("named"), "named/model_index.json".to_owned()));
    places
}

#[test]
fn what_a_file_is_is_said_wherever_it_is_met() {
    // The first entry of a zip file, as written by torch.save.
    let pickled = b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pklFB\x0d\0ZZZZ";
    let cases: [(&[u8], &[&str]); 9] = [
        (POINTER.as_bytes(), &["a git-lfs pointer", "git lfs pull"]),
        (
            b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
            &["an HTML page", "Sign in"],
        ),
        (
            b"Invalid username or password.",
            &["text", "Invalid username"],
        ),
        (
            pickled,
            &["a zip archive of pickles", "convert it to safetensors"],
        ),
        (
            b"\x80\x02}q\0X\x01\0\0\0wq\x01.",
            &["a pickle", "convert it to safetensors"],
        ),
        (&[0, 5, 0x16, 7, 0, 2, 0, 0, 77], &["an AppleDouble file"]),
        (b"\x28\xb5\x2f\xfd\0\0\0\0\0\0\0\0", &["compressed by zstd"]),
        (&[0; 3000], &["begins with zeros", "incomplete"]),
        (b"", &["an empty file"]),
    ];
    for (content, parts) in cases {
        let folder = tempfile::tempdir().unwrap();
        for (path, file) in places(folder.path(), content) {
            let said = message(&path);
            for part in parts.iter().chain([&file.as_str()]) {
                assert!(said.contains(part), "{file}: {part} is not in: {said}");
            }
        }
    }
}

#[test]
fn an_answer_in_json_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let answer = br#"{"error":"Unauthorized","message":"log in to download this"}"#;
    for name in ["m.safetensors", "m.gguf", "m.json"] {
        let path = folder.path().join(name);
        std::fs::write(&path, answer).unwrap();
        let said = message(&path);
        assert!(
            said.contains("JSON text") && said.contains("Unauthorized"),
            "{said}"
        );
    }
    // As an index, the message says what is wrong with it.
    let index = folder.path().join("m.safetensors.index.json");
    std::fs::write(&index, answer).unwrap();
    let said = message(&index);
    assert!(
        said.contains("not a safetensors index") && said.contains("weight_map"),
        "{said}"
    );
}

#[test]
fn a_download_that_was_cut_says_how_much_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let whole = model();
    let header = whole.len() - 4 * 32;
    for len in [9, header / 2, header - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let said = message(&path);
        let part = format!("the download is incomplete ({len} of more than {header} bytes");
        assert!(said.contains(&part), "{said}");
    }
    for values in [0, 1, 127] {
        std::fs::write(&path, &whole[..header + values]).unwrap();
        let said = message(&path);
        let part = format!("the download is incomplete ({values} of 128 bytes of values");
        assert!(
            said.contains(&part) && said.contains("'blocks.0.weight'"),
            "{said}"
        );
    }
    std::fs::write(&path, &whole).unwrap();
    assert!(source::open(&path).is_ok());
    // A complete file with wrong offsets is not an incomplete download.
    let header = json!({"w": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}).to_string();
    std::fs::write(&path, with_header(&header, &[0; 5])).unwrap();
    assert!(message(&path).contains("leave a gap"), "{}", message(&path));
}

#[cfg(unix)]
#[test]
fn links_to_nothing_name_where_they_lead() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let link = |target: &str, path: &str| {
        std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        symlink(target, at(path)).unwrap();
    };
    let check = |path: &str, parts: &[&str]| {
        let said = message(&at(path));
        for part in parts {
            assert!(said.contains(part), "{path}: {part} is not in: {said}");
        }
    };
    let gone = "a link to ../blobs/gone, which does not exist";
    link("../blobs/gone", "files/m.safetensors");
    check("files/m.safetensors", &["files/m.safetensors: ", gone]);
    check("files", &["files/m.safetensors: ", gone]);
    link("../blobs/gone", "pipe/model_index.json");
    check("pipe", &["pipe/model_index.json: ", gone]);
    let index = json!({"weight_map": {"a": "a.safetensors"}}).to_string();
    write(&at("shards/model.safetensors.index.json"), index);
    link("../blobs/gone", "shards/a.safetensors");
    check("shards", &["'a'", "shards/a.safetensors is ", gone]);
    let index = json!({"vae": ["diffusers", "AutoencoderKL"]}).to_string();
    write(&at("whole/model_index.json"), index);
    link("../blobs/gone", "whole/vae");
    check("whole", &["whole/vae: ", gone]);
    // An unfinished download.
    write(&at("blobs/gone.incomplete"), "half");
    check("files", &[gone, "there is an .incomplete file"]);
    // A valid link stands for its target.
    write(&at("blobs/there"), model());
    link("../blobs/there", "good/m.safetensors");
    assert!(source::open(&at("good")).is_ok());
}

#[test]
fn a_cache_says_where_its_weights_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let hub = "hub/models--org--name";
    for commit in ["0123", "4567"] {
        let file = format!("{hub}/snapshots/{commit}/model.safetensors");
        write(&at(&file), model());
    }
    std::fs::create_dir(at(hub).join("blobs")).unwrap();
    write(&at(hub).join("refs/main"), "4567\n");
    let said = message(&at(hub));
    let main = "the cache of a repository; its weights are in ";
    assert!(said.contains(main), "{said}");
    assert!(
        said.contains("models--org--name/snapshots/4567: use that"),
        "{said}"
    );
    assert!(source::open(&at(hub).join("snapshots/4567")).is_ok());
    let said = message(&at("hub"));
    assert!(
        said.contains("a cache of repositories (models--org--name)"),
        "{said}"
    );
    // An outdated refs/main.
    write(&at(hub).join("refs/main"), "89ab");
    let said = message(&at(hub));
    assert!(
        said.contains("use one of ") && said.contains("snapshots/0123, "),
        "{said}"
    );
    std::fs::remove_dir_all(at(hub).join("snapshots/0123")).unwrap();
    assert!(message(&at(hub)).contains("snapshots/4567: use that"));
    std::fs::remove_dir_all(at(hub).join("snapshots/4567")).unwrap();
    assert!(message(&at(hub)).contains("without a downloaded snapshot"));
}

#[test]
fn weights_of_other_kinds_in_a_folder_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(message(folder.path()).contains("contains no *.safetensors.index.json"));
    write(&folder.path().join("pytorch_model.bin"), b"\x80\x02.");
    let said = message(folder.path());
    assert!(
        said.contains("contains pytorch_model.bin, but safetensors are needed"),
        "{said}"
    );
}
