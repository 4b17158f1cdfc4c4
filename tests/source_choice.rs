//! Chooses the files of a folder as diffusers and transformers would, with a warning where files
//! are skipped.

use std::path::Path;

use arrowquant::source::{self, OpenOptions, Source};
use serde_json::json;

use crate::common::*;
use crate::source_folders::{pipeline, write, write_sharded};

/// Makes a file of one tensor, which is named after the file.
fn weights(tensor: &str) -> Vec<u8> {
    safetensors(&[f32_tensor(tensor, &[2, 3], &[0.5; 6])])
}

/// Makes a folder of files of one tensor each, given as `NAME: TENSOR`; for an index it is the
/// shard.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let bytes = match name.ends_with(".json") {
            true => json!({"weight_map": {"sharded": content}})
                .to_string()
                .into_bytes(),
            false => weights(content),
        };
        write(&folder.path().join(name), bytes);
    }
    folder
}

fn names(source: &dyn Source) -> Vec<&str> {
    let tensors = source.tensors().iter();
    tensors.map(|tensor| tensor.name.as_str()).collect()
}

fn message(path: &Path) -> String {
    let error = source::open(path).err().expect("refused");
    error.to_string().replace('\\', "/")
}

const WHOLE: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
const SHARD: &str = "diffusion_pytorch_model-00001-of-00001.safetensors";

#[test]
fn the_names_of_diffusers_and_transformers_win() {
    let variant = "diffusion_pytorch_model.safetensors.index.bf16.json";
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[
                (WHOLE, "own"),
                ("sdxl_vae.safetensors", "x"),
                ("a.vae.safetensors", "x"),
            ],
            "own",
        ),
        (
            &[
                ("model.safetensors", "own"),
                ("consolidated.safetensors", "x"),
            ],
            "own",
        ),
        (&[("model.safetensors", "x"), (WHOLE, "own")], "own"),
        // Hidden files.
        (
            &[
                (WHOLE, "own"),
                ("._diffusion_pytorch_model.safetensors", "x"),
            ],
            "own",
        ),
        (
            &[
                ("a.safetensors", "own"),
                ("._a.safetensors", "x"),
                (".b.safetensors", "x"),
            ],
            "own",
        ),
        (
            &[
                ("a.safetensors", "own"),
                ("._a.safetensors.index.json", "gone"),
            ],
            "own",
        ),
        // Files with a variant, whole or in shards, are not those without.
        (
            &[
                (WHOLE, "own"),
                (
                    variant,
                    "diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
                ),
                (
                    "diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
                    "sharded",
                ),
            ],
            "own",
        ),
        (
            &[
                ("a.safetensors", "own"),
                (
                    "a.safetensors.index.bf16.json",
                    "a-00001-of-00001.bf16.safetensors",
                ),
                ("a-00001-of-00001.bf16.safetensors", "sharded"),
            ],
            "own",
        ),
        (
            &[
                (INDEX, SHARD),
                (SHARD, "sharded"),
                ("diffusion_pytorch_model.fp16.safetensors", "x"),
            ],
            "sharded",
        ),
        (
            &[
                (
                    variant,
                    "diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
                ),
                (
                    "diffusion_pytorch_model.bf16-00001-of-00001.safetensors",
                    "sharded",
                ),
            ],
            "sharded",
        ),
        (
            &[
                ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
                ("lora.safetensors", "x"),
            ],
            "fp16",
        ),
        // An index with another name, and its shards, which may have any name.
        (
            &[
                ("unet.safetensors.index.json", "first.safetensors"),
                ("first.safetensors", "sharded"),
                ("lora.safetensors", "x"),
            ],
            "sharded",
        ),
        // One shard of one is the whole model.
        (&[("model-00001-of-00001.safetensors", "all")], "all"),
        // An index that names the whole file.
        (&[(INDEX, WHOLE), (WHOLE, "sharded")], "sharded"),
    ];
    for (files, expected) in cases {
        let folder = folder(files);
        let source = source::open(folder.path()).unwrap_or_else(|e| panic!("{files:?}: {e}"));
        assert_eq!(names(source.as_ref()), [*expected], "{files:?}");
        assert_eq!(source.warnings(), [""; 0], "{files:?}");
    }
}

#[test]
fn an_index_and_a_whole_file_are_told() {
    let shard = "model-00001-of-00001.safetensors";
    let index = "model.safetensors.index.json";
    let stale = "none of the shards in";
    for (files, expected, parts) in [
        // transformers looks for the file first, diffusers for the index.
        (
            [
                ("model.safetensors", "whole"),
                (index, shard),
                (shard, "sharded"),
            ]
            .as_slice(),
            "whole",
            ["as transformers does", "model.safetensors and shards"],
        ),
        (
            &[(WHOLE, "whole"), (INDEX, SHARD), (SHARD, "sharded")],
            "sharded",
            [
                "as diffusers does",
                "diffusion_pytorch_model.safetensors and shards",
            ],
        ),
        (
            &[("model.safetensors", "whole"), (index, shard)],
            "whole",
            [stale, "model.safetensors is read"],
        ),
        (
            &[(WHOLE, "whole"), (INDEX, SHARD)],
            "whole",
            [stale, "diffusion_pytorch_model.safetensors is read"],
        ),
        (
            &[
                ("a.safetensors", "whole"),
                ("a.safetensors.index.json", "b.safetensors"),
            ],
            "whole",
            [stale, "a.safetensors is read"],
        ),
    ] {
        let folder = folder(files);
        let source = source::open(folder.path()).unwrap();
        assert_eq!(names(source.as_ref()), [expected], "{files:?}");
        let [warning] = &source.warnings()[..] else {
            panic!("{:?}", source.warnings());
        };
        let place = folder.path().display().to_string();
        for part in parts.into_iter().chain([place.as_str()]) {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
    // Only some of the shards: the intention is unclear, and half a model is not read.
    let both = folder(&[(WHOLE, "whole"), (SHARD, "sharded")]);
    let map =
        json!({"sharded": SHARD, "other": "diffusion_pytorch_model-00002-of-00002.safetensors"});
    write(
        &both.path().join(INDEX),
        json!({"weight_map": map}).to_string(),
    );
    assert!(
        message(both.path()).contains("is missing"),
        "{}",
        message(both.path())
    );
}

#[test]
fn what_is_not_clear_is_refused() {
    let missing = "model-00001-of-00002.safetensors";
    for (files, part) in [
        (
            [("a.safetensors", "a"), ("b.safetensors", "b")].as_slice(),
            "contains several safetensors files and no index to join them, use one of them: a.safetensors, \
             b.safetensors",
        ),
        (
            &[
                ("a.safetensors.index.json", "a"),
                ("b.safetensors.index.json", "b"),
            ],
            "contains several indexes, use one of them",
        ),
        (
            &[
                ("diffusion_pytorch_model.fp16.safetensors", "a"),
                ("diffusion_pytorch_model.bf16.safetensors", "b"),
            ],
            "use one of them",
        ),
        // Half a model is refused.
        (
            &[(missing, "a")],
            "contains model-00001-of-00002.safetensors, which is one of 2 shards, and no index",
        ),
        (
            &[(missing, "a"), ("model-00002-of-00002.safetensors", "b")],
            "no index to join them",
        ),
        (
            &[(missing, "a"), ("model.fp16.safetensors", "b")],
            "contains model-00001-of-00002.safetensors, which is one of 2 shards",
        ),
        (
            &[
                (missing, "a"),
                ("model-00002-of-00002.safetensors", "b"),
                (
                    "model.safetensors.index.fp16.json",
                    "model.fp16-00001-of-00001.safetensors",
                ),
                ("model.fp16-00001-of-00001.safetensors", "sharded"),
            ],
            "no index to join them, use one of them: model-00001-of-00002.safetensors, model-00002",
        ),
    ] {
        let folder = folder(files);
        let message = message(folder.path());
        assert!(message.contains(part), "{files:?}: {message}");
    }
}

#[test]
fn the_index_decides_which_shard_a_tensor_is_read_from() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = |name: &str, value: f32| f32_tensor(name, &[1, 2], &[value; 2]);
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let first = [
        tensor("a", 1.0),
        tensor("tied", 2.0),
        tensor("unlisted", 3.0),
    ];
    let second = [tensor("b", 4.0), tensor("tied", 5.0)];
    write(&folder.path().join(shards[0]), safetensors(&first));
    write(&folder.path().join(shards[1]), safetensors(&second));
    let index = folder.path().join("model.safetensors.index.json");
    let map = |tied: usize| json!({"a": shards[0], "b": shards[1], "tied": shards[tied]});
    for (tied, expected) in [(0, 2.0f32), (1, 5.0)] {
        write(&index, json!({"weight_map": map(tied)}).to_string());
        let source = source::open(folder.path()).unwrap();
        let mut sorted = names(source.as_ref());
        sorted.sort();
        assert_eq!(sorted, ["a", "b", "tied", "unlisted"]);
        let at = source
            .tensors()
            .iter()
            .position(|t| t.name == "tied")
            .unwrap();
        let values = values_of(source.as_ref(), at);
        assert_eq!(values[..4], expected.to_le_bytes());
        assert_eq!(source.path_of(at), folder.path().join(shards[tied]));
        let [warning] = &source.warnings()[..] else {
            panic!("{:?}", source.warnings());
        };
        assert!(
            warning.contains("a tensor is in another shard, too ('tied')"),
            "{warning}"
        );
    }
    // A name that is not in the index may only be in one shard.
    let second = [tensor("b", 4.0), tensor("unlisted", 5.0)];
    write(&folder.path().join(shards[1]), safetensors(&second));
    write(&index, json!({"weight_map": map(0)}).to_string());
    assert!(message(folder.path()).contains("tensor 'unlisted': duplicate"));
}

#[test]
fn a_component_has_the_names_of_its_library() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let index = json!({
        "_class_name": "P",
        "text_encoder": ["transformers", "T5EncoderModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    });
    write(&at("model_index.json"), index.to_string());
    write(&at("._model_index.json"), [0, 5, 0x16, 7]);
    for component in ["text_encoder", "unet"] {
        write(
            &at(component).join("model.safetensors"),
            weights("transformers"),
        );
        write(&at(component).join(WHOLE), weights("diffusers"));
        write(&at(component).join("._model.safetensors"), [0, 5, 0x16, 7]);
    }
    let source = source::open(folder.path()).unwrap();
    assert_eq!(
        names(source.as_ref()),
        ["text_encoder.transformers", "unet.diffusers"]
    );
}

fn without(components: &[&str]) -> OpenOptions {
    let without = components.iter().map(|name| name.to_string()).collect();
    OpenOptions { without }
}

#[test]
fn components_that_are_missing_can_be_left_out() {
    let folder = pipeline();
    let at = |path: &str| folder.path().join(path);
    let all = source::open(folder.path()).unwrap();
    std::fs::remove_dir_all(at("text_encoder")).unwrap();
    std::fs::remove_dir_all(at("vae")).unwrap();
    // As left by a download that was stopped at once.
    std::fs::create_dir(at("vae")).unwrap();
    let said = message(folder.path());
    for part in [
        "model_index.json: components text_encoder, vae are missing",
        "--without text_encoder --without vae",
        "the folder of a single component",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let some = source::open_with(folder.path(), &without(&["vae", "text_encoder"])).unwrap();
    let expected: Vec<&str> = names(all.as_ref())
        .into_iter()
        .filter(|name| !name.starts_with("vae.") && !name.starts_with("text_encoder."))
        .collect();
    assert_eq!(expected.len(), 5);
    assert_eq!(names(some.as_ref()), expected);
    assert_ne!(some.id(), all.id());
    assert!(
        some.classes()
            .contains(&"FluxTransformer2DModel".to_owned())
    );
    assert!(!some.classes().contains(&"AutoencoderKL".to_owned()));

    // An existing component; by the index's path; twice; and one without weights.
    let index = at("model_index.json");
    let options = without(&["vae", "text_encoder", "transformer", "vae", "scheduler"]);
    let less = source::open_with(&index, &options).unwrap();
    assert_eq!(names(less.as_ref()), &expected[..2]);

    // Components that cannot be left out.
    let refused = |path: &Path, components: &[&str]| {
        let error = source::open_with(path, &without(components))
            .err()
            .expect("refused");
        assert_eq!(error.code(), 1, "{error}");
        error.to_string()
    };
    let said = refused(folder.path(), &["unet"]);
    assert!(
        said.contains("without: 'unet' is not a component of"),
        "{said}"
    );
    assert!(
        said.contains("text_encoder, text_encoder_2, tokenizer"),
        "{said}"
    );
    assert!(said.contains("transformer, vae"), "{said}");
    for path in [at("transformer"), at("flux1-dev.safetensors")] {
        let said = refused(&path, &["vae"]);
        assert!(
            said.contains("is not a pipeline with a model_index.json"),
            "{said}"
        );
    }
}

#[test]
fn the_command_line_leaves_components_out() {
    let folder = pipeline();
    let at = |path: &str| folder.path().join(path);
    std::fs::remove_dir_all(at("vae")).unwrap();
    write(&at("vae/diffusion_pytorch_model.bin"), b"\x80\x02}q\0.");
    let output = folder.path().join("out.parquet");
    let input = folder.path().to_str().unwrap();
    let output = output.to_str().unwrap();
    let refused = arrowquant(["quantize", input, output]);
    let said = stderr(&refused);
    assert!(
        said.contains(
            "contains diffusion_pytorch_model.bin, but safetensors are needed: convert its \
                       weights, or leave it out with --without vae"
        ),
        "{said}"
    );
    let flags = ["--without", "vae", "--without", "text_encoder"];
    let some = |command: &[&str]| arrowquant_ok([command, &flags].concat());
    some(&["quantize", input, output]);
    let verified = some(&["verify", output, "--against", input]);
    assert!(verified.contains("5 tensors verified"), "{verified}");
    assert!(some(&["plan", input]).contains("text_encoder_2.shared.weight"));
    some(&["analyze", input]);
    let plan = folder.path().join("plan.json");
    let short = ["--population", "2", "--generations", "1"];
    some(&[&["evolve", input, plan.to_str().unwrap()], &short[..]].concat());
    let unknown = arrowquant(["plan", input, "--without", "unet"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).starts_with("error: --without: 'unet' is not a component"));
}

#[test]
fn a_pipeline_warns_of_its_components() {
    let folder = pipeline();
    let vae = folder.path().join("vae");
    let tensor = bf16_tensor("decoder.conv_in.weight", &[4, 27], &noise(1, 108));
    write_sharded(&vae, "diffusion_pytorch_model", &[tensor]);
    let source = source::open(folder.path()).unwrap();
    let [warning] = &source.warnings()[..] else {
        panic!("{:?}", source.warnings());
    };
    assert!(
        warning.contains("vae: contains diffusion_pytorch_model.safetensors"),
        "{warning}"
    );
    assert_eq!(source.files().len(), 7);
}
