//! Folders of diffusers pipelines, as published on the hub.

use std::path::Path;

use arrowquant::source;
use arrowquant::tensor::Dtype;
use serde_json::{Value, json};

use crate::common::*;

pub fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Writes shards of one tensor each, and their index.
pub fn write_sharded(folder: &Path, stem: &str, tensors: &[RawTensor]) {
    let mut weight_map = serde_json::Map::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let shard = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, tensors.len());
        weight_map.insert(tensor.0.clone(), json!(shard));
        write(
            &folder.join(shard),
            safetensors(std::slice::from_ref(tensor)),
        );
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    let name = format!("{stem}.safetensors.index.json");
    write(&folder.join(name), index.to_string());
}

fn flux_index() -> Value {
    json!({
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.30.0.dev0",
        "requires_safety_checker": true,
        "feature_extractor": [null, null],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// Makes a small pipeline with the layout of FLUX.1.
pub fn pipeline() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    write(&at("model_index.json"), flux_index().to_string());
    write(&at("README.md"), "# FLUX");
    write(&at("flux1-dev.safetensors"), "the same weights once more");
    write(&at("scheduler/scheduler_config.json"), "{}");
    write(&at("tokenizer/tokenizer_config.json"), "{}");
    write(&at("tokenizer/vocab.json"), "{}");
    // tokenizer_2 was not downloaded.
    write(&at("text_encoder/config.json"), "{}");
    let clip = bf16_tensor(
        "text_model.encoder.layers.0.mlp.fc1.weight",
        &[8, 64],
        &noise(1, 512),
    );
    write(&at("text_encoder/model.safetensors"), safetensors(&[clip]));
    write(&at("text_encoder_2/config.json"), "{}");
    let t5 = [
        bf16_tensor("shared.weight", &[32, 40], &noise(2, 1280)),
        bf16_tensor(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            &[32, 4],
            &noise(3, 128),
        ),
    ];
    write_sharded(&at("text_encoder_2"), "model", &t5);
    write(&at("transformer/config.json"), "{}");
    let transformer = [
        bf16_tensor("x_embedder.weight", &[24, 16], &noise(4, 384)),
        bf16_tensor(
            "time_text_embed.timestep_embedder.linear_1.weight",
            &[24, 32],
            &noise(5, 768),
        ),
        bf16_tensor(
            "single_transformer_blocks.0.attn.norm_q.weight",
            &[24],
            &noise(6, 24),
        ),
    ];
    write_sharded(&at("transformer"), "diffusion_pytorch_model", &transformer);
    write(&at("vae/config.json"), "{}");
    let vae =
        |noise: &[f32]| safetensors(&[f32_tensor("decoder.conv_in.weight", &[4, 3, 3, 3], noise)]);
    write(
        &at("vae/diffusion_pytorch_model.safetensors"),
        vae(&noise(7, 108)),
    );
    write(
        &at("vae/diffusion_pytorch_model.fp16.safetensors"),
        vae(&[0.0; 108]),
    );
    folder
}

const NAMES: [&str; 7] = [
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight",
    "text_encoder_2.shared.weight",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "transformer.x_embedder.weight",
    "transformer.time_text_embed.timestep_embedder.linear_1.weight",
    "transformer.single_transformer_blocks.0.attn.norm_q.weight",
    "vae.decoder.conv_in.weight",
];

fn opened(path: &Path) -> Vec<String> {
    let source = source::open(path).unwrap();
    let tensors = source.tensors().iter();
    tensors.map(|tensor| tensor.name.clone()).collect()
}

fn refused(path: &Path, parts: &[&str]) {
    let message = source::open(path).err().expect("refused").to_string();
    let message = message.replace('\\', "/");
    for part in parts {
        assert!(message.contains(part), "'{part}' is not in: {message}");
    }
}

#[test]
fn a_pipeline_is_quantized_and_verified_whole() {
    let folder = pipeline();
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("flux.parquet");
    let model = quantized_and_verified(folder.path(), &output);
    // Kept tensors are consecutive, whichever component they belong to.
    let kept = [NAMES[2], NAMES[3], NAMES[4], NAMES[5], NAMES[6]];
    for name in NAMES {
        let tensor = &model.tensors()[model.find(name).unwrap()];
        assert_ne!(tensor.is_quantized(), kept.contains(&name), "{name}");
    }
    assert_eq!(model.tensors().len(), NAMES.len());
    assert_eq!(model.metadata()["arrowquant.modality"], "image");
    let origin: Value = serde_json::from_str(&model.metadata()["arrowquant.source"]).unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(origin["name"], name);

    // The values are those of the file without a variant.
    let vae = model.find(NAMES[6]).unwrap();
    let mut decoded = vec![0; 108 * 4];
    let float = arrowquant::format::Float::F32;
    model
        .dequantize_rows(vae, 0..4, float, &mut decoded)
        .unwrap();
    for (i, value) in noise(7, 108).into_iter().enumerate() {
        assert!((float.get(&decoded, i) - value).abs() < 0.01, "{i}");
    }
}

#[test]
fn a_component_is_a_model_of_its_own() {
    let folder = pipeline();
    assert_eq!(opened(folder.path()), NAMES);
    assert_eq!(opened(&folder.path().join("model_index.json")), NAMES);
    for (component, count) in [("transformer", 3), ("vae", 1), ("text_encoder_2", 2)] {
        let prefix = format!("{component}.");
        let its = NAMES.iter().filter_map(|name| name.strip_prefix(&prefix));
        let its: Vec<&str> = its.collect();
        assert_eq!(its.len(), count);
        assert_eq!(opened(&folder.path().join(component)), its);
    }
}

#[cfg(unix)]
#[test]
fn files_may_be_links_into_a_cache() {
    let folder = pipeline();
    let blobs = tempfile::tempdir().unwrap();
    for component in ["transformer", "vae", "text_encoder", "text_encoder_2"] {
        let component = folder.path().join(component);
        for name in names_in(&component) {
            let blob = blobs
                .path()
                .join(format!("{}-{name}", names_in(blobs.path()).len()));
            std::fs::rename(component.join(&name), &blob).unwrap();
            std::os::unix::fs::symlink(&blob, component.join(&name)).unwrap();
        }
    }
    assert_eq!(opened(folder.path()), NAMES);
}

#[test]
fn a_variant_counts_where_there_is_nothing_else() {
    let folder = pipeline();
    let at = |path: &str| folder.path().join(path);
    std::fs::remove_file(at("vae/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(opened(folder.path()), NAMES);
    let fp16 = at("vae/diffusion_pytorch_model.fp16.safetensors");
    std::fs::copy(&fp16, at("vae/diffusion_pytorch_model.ema.safetensors")).unwrap();
    let both = "diffusion_pytorch_model.ema.safetensors, diffusion_pytorch_model.fp16.safetensors";
    refused(folder.path(), &["vae: ", both]);

    // Sharded variants have their own index.
    let folder = pipeline();
    let at = |path: &str| folder.path().join(path);
    let other =
        json!({"weight_map": {"x": "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"}});
    let index = at("transformer/diffusion_pytorch_model.safetensors.index.fp16.json");
    write(&index, other.to_string());
    assert_eq!(opened(folder.path()), NAMES);
    let main = at("transformer/diffusion_pytorch_model.safetensors.index.json");
    std::fs::rename(main, index).unwrap();
    assert_eq!(opened(folder.path()), NAMES);
}

#[test]
fn what_is_missing_is_named() {
    type Damage = fn(&Path);
    let damages: [(Damage, &[&str]); 7] = [
        (
            |folder| {
                let vae = folder.join("vae");
                std::fs::remove_dir_all(&vae).unwrap();
                write(&vae.join("diffusion_pytorch_model.bin"), "pickled");
            },
            &["vae: contains diffusion_pytorch_model.bin, but safetensors are needed"],
        ),
        (
            |folder| std::fs::remove_dir_all(folder.join("vae")).unwrap(),
            &[
                "model_index.json: component vae is missing",
                "--without vae",
            ],
        ),
        (
            |folder| std::fs::remove_file(folder.join("text_encoder/model.safetensors")).unwrap(),
            &["text_encoder: contains no weights of its CLIPTextModel"],
        ),
        (
            |folder| {
                let shard = "text_encoder_2/model-00002-of-00002.safetensors";
                std::fs::remove_file(folder.join(shard)).unwrap();
            },
            &[
                "relative_attention_bias",
                "model-00002-of-00002.safetensors is missing",
            ],
        ),
        (
            |folder| {
                let wrong = ("w".to_owned(), "F99", vec![1], vec![0]);
                write(
                    &folder.join("text_encoder/model.safetensors"),
                    safetensors(&[wrong]),
                );
            },
            &[
                "text_encoder/model.safetensors",
                "'w'",
                "unknown dtype 'F99'",
            ],
        ),
        (
            |folder| {
                let mut index = flux_index();
                index["../vae"] = json!(["diffusers", "AutoencoderKL"]);
                write(&folder.join("model_index.json"), index.to_string());
            },
            &["model_index.json: component '../vae' is not a plain folder name"],
        ),
        (
            |folder| write(&folder.join("model_index.json"), r#"{"_class_name": "X"}"#),
            &["model_index.json: names no component that has weights"],
        ),
    ];
    for (damage, parts) in damages {
        let folder = pipeline();
        damage(folder.path());
        refused(folder.path(), parts);
    }
}

#[test]
fn what_is_recorded_is_of_all_files() {
    let folder = pipeline();
    let id = source::open(folder.path()).unwrap().id();
    let files = [
        "model_index.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/model-00001-of-00002.safetensors",
        "text_encoder_2/model-00002-of-00002.safetensors",
        "text_encoder_2/model.safetensors.index.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    let sizes = files.map(|file| std::fs::metadata(folder.path().join(file)).unwrap().len());
    assert_eq!(id.bytes, sizes.iter().sum::<u64>());

    // Other dtypes of the same size are another source.
    let path = folder.path().join("text_encoder/model.safetensors");
    let mut changed = std::fs::read(&path).unwrap();
    let at = changed.windows(6).position(|w| w == b"\"BF16\"").unwrap();
    changed[at..at + 6].copy_from_slice(b" \"I16\"");
    std::fs::write(&path, changed).unwrap();
    let source = source::open(folder.path()).unwrap();
    assert_eq!(source.tensors()[0].dtype, Dtype::I16);
    assert_ne!(source.id().header_hash, id.header_hash);
    assert_eq!(source.files().len(), 7);
}
