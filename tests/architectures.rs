//! Recognition, keep-lists and sizes of models, from their tensors' names and shapes.
//! `tests/data/architectures` has lists of real models.

mod lists;
mod names;

use std::path::{Path, PathBuf};

use arrowquant::plan::{Config, Plan, Recognition};
use arrowquant::tensor::{Dtype, Shape, TensorInfo};
use arrowquant::{run, source};
use lists::{LISTS, LLAMA};
use regex::Regex;
use serde_json::{Value, json};

use crate::common::{arrowquant, arrowquant_ok};

/// Each list, and the matrices that its family keeps; 1-D tensors such as norms are not listed.
const KEPT: &[(&str, &str)] = &[
    (
        "autoencoder-kl",
        r"^((en|de)coder\.conv_(in|out)|(post_)?quant_conv)\.weight$",
    ),
    (
        "autoencoder-kl-sd15",
        r"^((en|de)coder\.conv_(in|out)|(post_)?quant_conv)\.weight$",
    ),
    (
        "bert-base",
        r"^bert\.embeddings\.(position|token_type)_embeddings\.weight$",
    ),
    (
        "dit-xl-2",
        r"^(pos_embed|x_embedder\.proj\.weight|[ty]_embedder\..*weight|final_layer\..*weight)$",
    ),
    ("dream-7b", "^$"),
    (
        "flux-dev",
        r"^(time_text_embed\..*|(x|context)_embedder|norm_out\.linear|proj_out)\.weight$",
    ),
    (
        "flux-dev-original",
        r"^(img_in|txt_in|(time|vector|guidance)_in\..*|final_layer\..*)\.weight$",
    ),
    ("llada-8b", "^$"),
    (
        "mdlm",
        r"^backbone\.(sigma_map\..*|output_layer\.adaLN_modulation)\.weight$",
    ),
    (
        "qwen-image",
        r"^(img_in|txt_in|time_text_embed\..*|norm_out\.linear|proj_out)\.weight$",
    ),
    ("resnet50", "^$"),
    (
        "sd15-unet",
        r"^(conv_in|conv_out|time_embedding\.linear_[12])\.weight$",
    ),
    (
        "sd35-medium",
        r"^(pos_embed\.pos_embed|(pos_embed\.proj|time_text_embed\..*|context_embedder|norm_out\.linear|proj_out)\.weight)$",
    ),
    (
        "sd35-medium-original",
        r"^(pos_embed|(x_embedder\.proj|[ty]_embedder\..*|context_embedder|final_layer\..*)\.weight)$",
    ),
    (
        "sdxl-unet",
        r"^(conv_in|conv_out|(time|add)_embedding\.linear_[12])\.weight$",
    ),
    (
        "stable-audio-dit",
        r"^(timestep_proj\.\d|(pre|post)process_conv|proj_in|proj_out)\.weight$",
    ),
    ("wan21-i2v-14b", WAN),
    ("wan21-i2v-14b-original", WAN_ORIGINAL),
    ("wan21-t2v-1.3b", WAN),
    ("wan21-t2v-1.3b-original", WAN_ORIGINAL),
    ("wavegrad", r"^(downsample\.0|last_conv)\.weight$"),
    (
        "z-image-turbo",
        r"^([a-z]+_pad_token|(all_x_embedder\.2-1|all_final_layer\.2-1\..*|t_embedder\..*|cap_embedder\.1|[a-z]+_refiner\..*)\.weight)$",
    ),
    (
        "z-image-turbo-original",
        r"^([a-z]+_pad_token|(x_embedder|final_layer\..*|t_embedder\..*|cap_embedder\.1|[a-z]+_refiner\..*)\.weight)$",
    ),
];

const WAN: &str = r"^((blocks\.\d+\.)?scale_shift_table|(patch_embedding|condition_embedder\..*|proj_out)\.weight)$";
const WAN_ORIGINAL: &str = r"^((blocks\.\d+|head)\.modulation|(patch_embedding|t[a-z]+_embedding\.\d|time_projection\.1|img_emb\.proj\.\d|head\.head)\.weight)$";

/// Families that keep whole blocks: Z-Image has 11.6% of its weights in refiners, which other quantizers keep.
const REFINERS: &str = r"^(noise|context)_refiner\.";

/// Tensors kept in all models are not in a family's list.
const COMMON: &str = r"(time|position)_embedding|time_text_embed|^pos_embed$|\.pos_embed$|^[ty]_embedder|time_in|guidance_in|sigma_map|time(step)?_proj|scale_shift_table|modulation$|time_embedder";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn path(name: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/architectures");
    data.join(format!("{name}.json"))
}

/// Returns the text of a list, and its tensors.
fn list(name: &str) -> (Value, Vec<TensorInfo>) {
    let text = std::fs::read_to_string(path(name)).unwrap();
    let tensors = source::open(&path(name)).unwrap().tensors().to_vec();
    (serde_json::from_str(&text).unwrap(), tensors)
}

fn plan(tensors: &[TensorInfo], settings: &[(&str, &str)]) -> Plan {
    let mut config = Config::new();
    for (key, value) in settings {
        config.set(key, value).unwrap();
    }
    let tensors = tensors.iter().map(|tensor| (tensor, Path::new("list")));
    Plan::new(tensors, &config).unwrap()
}

fn with_prefix(tensors: &[TensorInfo], prefix: &str) -> Vec<TensorInfo> {
    let rename = |tensor: &TensorInfo| TensorInfo {
        name: format!("{prefix}{}", tensor.name),
        ..tensor.clone()
    };
    tensors.iter().map(rename).collect()
}

/// Prefixes used by pipeline components, other programs, and PyTorch wrappers.
const PREFIXES: &[&str] = &[
    "",
    "transformer.",
    "transformer_2.",
    "unet.",
    "vae.",
    "model.",
    "module.",
    "_orig_mod.",
    "net.",
    "backbone.",
    "diffusion_model.",
    "model.diffusion_model.",
    "first_stage_model.",
    "pipe.transformer.",
    "model.model.",
];

#[test]
fn every_list_is_of_its_modality_under_any_prefix() {
    let files = std::fs::read_dir(path("").parent().unwrap()).unwrap();
    let lists = files.filter(|file| {
        let path = file.as_ref().unwrap().path();
        path.extension().is_some_and(|e| e == "json")
    });
    assert_eq!(lists.count(), KEPT.len());
    for (name, _) in KEPT {
        let (json, tensors) = list(name);
        let modality = json["modality"]
            .as_str()
            .unwrap()
            .replace("none", "unknown");
        let bare = plan(&tensors, &[]);
        for prefix in PREFIXES {
            let plan = plan(&with_prefix(&tensors, prefix), &[]);
            assert_eq!(plan.modality.name(), modality, "{prefix}{name}");
            assert_eq!(plan.families, bare.families, "{prefix}{name}");
            for (entry, bare) in plan.entries.iter().zip(&bare.entries) {
                assert_eq!(entry.recipe, bare.recipe, "{}", entry.tensor.name);
            }
        }
        // Beside a prompt encoder, which does not affect the modality.
        let mut pipeline = with_prefix(&tensors, "transformer.");
        for encoder in [
            "text_encoder.",
            "text_encoder_2.",
            "cond_stage_model.",
            "conditioner.",
        ] {
            pipeline.extend(with_prefix(&tensors_of(LLAMA), encoder));
        }
        let plan = plan(&pipeline, &[]);
        assert_eq!(plan.modality.name(), modality, "{name}");
        assert_eq!(plan.families, bare.families, "{name}");
    }
}

/// The evidence for each family names an existing tensor.
#[test]
fn evidence_is_of_tensors_that_are_there() {
    for (name, _) in KEPT {
        let (json, tensors) = list(name);
        let plan = plan(&tensors, &[]);
        let is_none = json["modality"] == "none";
        // One sentence per family.
        let families = plan.families.len().max(1);
        assert_eq!(plan.evidence.len(), families, "{:?}", plan.evidence);
        for sentence in &plan.evidence {
            let named = tensors.iter().any(|tensor| sentence.contains(&tensor.name));
            assert_eq!(named, !is_none, "{name}");
            assert!(sentence.starts_with(plan.modality.name()));
        }
    }
}

#[test]
fn what_is_kept_is_written_out_and_small() {
    let common = Regex::new(&format!("{COMMON}|{REFINERS}")).unwrap();
    for (name, kept) in KEPT {
        let (_, tensors) = list(name);
        let kept = Regex::new(kept).unwrap();
        let plan = plan(&tensors, &[("bit_width", "2")]);
        let (mut weights, mut of_family) = (0, 0);
        for entry in &plan.entries {
            let tensor = &entry.tensor;
            let matrix = tensor.shape.dims().len() > 1;
            let quantized = matrix && !kept.is_match(&tensor.name);
            let reason = &entry.reason;
            assert_eq!(
                entry.recipe.is_some(),
                quantized,
                "{name}: {} {reason}",
                tensor.name
            );
            weights += tensor.shape.elements();
            if matrix && !quantized && !common.is_match(&tensor.name) {
                of_family += tensor.shape.elements();
            }
        }
        let share = of_family as f64 / weights as f64;
        println!("{name}: {:.3}% kept by its family", 100.0 * share);
        assert!(share < 0.01, "{name}: {share}");
    }
}

/// Returns the bytes of a tensor by the file format: rows of packed codes, an f16 scale per group.
fn bytes(tensor: &TensorInfo, bits: usize, group: usize, biases: usize) -> usize {
    let dims = tensor.shape.dims();
    let cols: usize = dims[1..].iter().product();
    dims[0] * ((cols * bits).div_ceil(8) + (1 + biases) * 2 * cols.div_ceil(group))
}

#[test]
fn predicted_sizes_are_those_of_the_shapes() {
    for (name, kept) in KEPT {
        let (json, tensors) = list(name);
        let kept = Regex::new(kept).unwrap();
        let width = if json["dtype"] == "f32" { 4 } else { 2 };
        for (bits, group, scheme) in [
            (2, 256, "symmetric"),
            (4, 128, "affine"),
            (8, 64, "symmetric"),
        ] {
            let settings = [
                ("bit_width", bits.to_string()),
                ("group_size", group.to_string()),
                ("scheme", scheme.to_owned()),
            ];
            let settings: Vec<_> = settings.iter().map(|(key, v)| (*key, v.as_str())).collect();
            let plan = plan(&tensors, &settings);
            let total: usize = tensors
                .iter()
                .map(
                    |tensor| match tensor.shape.dims().len() > 1 && !kept.is_match(&tensor.name) {
                        true => bytes(tensor, bits, group, usize::from(scheme == "affine")),
                        false => width * tensor.shape.dims().iter().product::<usize>(),
                    },
                )
                .sum();
            assert_eq!(plan.total_bytes(), total, "{name} int{bits}");
        }
    }
}

fn tensors_of(list: &[(&str, &[usize])]) -> Vec<TensorInfo> {
    let tensor = |(name, dims): &(&str, &[usize])| TensorInfo {
        name: (*name).to_owned(),
        dtype: Dtype::F16,
        shape: Shape::new(dims.to_vec()).unwrap(),
    };
    list.iter().map(tensor).collect()
}

#[test]
fn models_of_the_same_families_are_known() {
    for (name, modality, list) in LISTS {
        let tensors = tensors_of(list);
        for prefix in PREFIXES {
            let tensors = with_prefix(&tensors, prefix);
            let found = Recognition::new(tensors.iter(), &[], None);
            let evidence = found.evidence.join("; ");
            assert_eq!(
                found.modality.name(),
                *modality,
                "{prefix}{name}: {evidence}"
            );
        }
    }
}

#[test]
fn what_only_reads_is_no_model_to_be_told() {
    let tensors = with_prefix(&tensors_of(LLAMA), "text_encoder.");
    let found = Recognition::new(tensors.iter(), &[], None);
    assert_eq!(found.modality.name(), "unknown");
}

#[test]
fn a_pipeline_of_sound_with_parts_of_images_is_sound() {
    let find = |wanted: &str| LISTS.iter().find(|(name, ..)| *name == wanted).unwrap().2;
    let mut pipeline = with_prefix(&tensors_of(find("Stable Diffusion VAE")), "vae.");
    pipeline.extend(with_prefix(&tensors_of(find("AudioLDM UNet")), "unet."));
    let found = Recognition::new(pipeline.iter(), &[], None);
    assert_eq!(found.modality.name(), "audio");
    assert_eq!(
        found.evidence[0],
        "audio, which takes precedence over image and text"
    );
    // Image editing models also take 8 channels, but return 4; and a VAE's encoder returns 8.
    let mut pipeline = with_prefix(&tensors_of(find("Stable Diffusion VAE")), "vae.");
    pipeline.extend(with_prefix(
        &tensors_of(find("InstructPix2Pix UNet")),
        "unet.",
    ));
    let found = Recognition::new(pipeline.iter(), &[], None);
    assert_eq!(found.modality.name(), "image");
}

#[test]
fn plan_takes_a_list_and_says_why() {
    let dream = text(&path("dream-7b"));
    let plan: Value = serde_json::from_str(&arrowquant_ok(["plan", &dream, "--json"])).unwrap();
    assert_eq!(plan["modality"], "text");
    assert_eq!(plan["families"], json!(["LLaMA"]));
    let sentence = "text, by model.embed_tokens.weight [152064, 3584] and \
                    model.layers.0.mlp.gate_proj.weight, as in LLaMA";
    assert_eq!(plan["evidence"], json!([sentence]));
    assert_eq!(plan["tensors"].as_array().unwrap().len(), 339);
    let table = arrowquant_ok(["plan", &dream]);
    let summary = format!(
        "\n\nmodality: {sentence}\n198 of 339 tensors quantized from 14.19 GiB: planes of 3927297024 bytes "
    );
    assert!(table.contains(&summary), "{table}");
    let args = ["plan", &dream, "--json", "--modality", "code"];
    let plan: Value = serde_json::from_str(&arrowquant_ok(args)).unwrap();
    assert_eq!(plan["modality"], "code");
    assert_eq!(plan["evidence"][0], "code, as set");
    assert_eq!(plan["config"]["modality"], "code");
}

#[test]
fn nothing_but_plan_takes_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.json");
    let text_of = r#"{"dtype": "bf16", "tensors": {"w.weight": [4, 64]}}"#;
    std::fs::write(&list, text_of).unwrap();
    let source = source::open(&list).unwrap();
    let plan = run::plan(source.as_ref(), &Config::new()).unwrap();
    assert_eq!(plan.entries[0].bytes(), 4 * (32 + 2));
    let list = text(&list);
    let output = folder.path().join("out.parquet");
    let outputs = [text(&output), text(&folder.path().join("parts"))];
    let reason = format!(
        "{list}: lists tensors without their weights, which can be planned but not quantized"
    );
    for output in &outputs {
        let run = arrowquant(["quantize", &list, output]);
        assert_eq!(run.status.code(), Some(1));
        let stderr = String::from_utf8(run.stderr).unwrap();
        assert!(stderr.contains(&reason), "{stderr}");
        assert!(!Path::new(output).exists());
    }
    let mut room = vec![0; 1 << 16];
    let options = || run::Options::default();
    let refused = run::quantize_into(source.as_ref(), &plan, &mut room, options());
    assert!(refused.unwrap_err().to_string().contains(&reason));
    // A model with the same tensors is not compared with it.
    let mut weights = source::MemorySource::new();
    let values = vec![0; 4 * 64 * 2];
    weights
        .add("w.weight", Dtype::BF16, &[4, 64], values)
        .unwrap();
    run::quantize(&weights, &plan, &output, options()).unwrap();
    let args = ["verify", &outputs[0], "--against", &list];
    let run = arrowquant(args);
    assert!(String::from_utf8(run.stderr).unwrap().contains(&reason));
}

#[test]
fn configs_beside_weights_say_what_names_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    let header = r#"{"w.weight":{"dtype":"F16","shape":[2,16],"data_offsets":[0,64]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 64]);
    std::fs::write(&weights, &file).unwrap();
    let config = folder.path().join("config.json");
    let modality = |path: &Path| {
        let source = source::open(path).unwrap();
        let plan = run::plan(source.as_ref(), &Config::new()).unwrap();
        (plan.modality.name(), plan.evidence[0].clone())
    };
    for (text, expected) in [
        (r#"{"_class_name": "StableAudioDiTModel"}"#, "audio"),
        (
            r#"{"architectures": ["DreamModel"], "model_type": "Dream"}"#,
            "text",
        ),
        (r#"{"_class_name": "FluxTransformer2DModel"}"#, "image"),
        (r#"{"architectures": ["BertModel"]}"#, "unknown"),
        ("{", "unknown"),
    ] {
        std::fs::write(&config, text).unwrap();
        // Opened by its own name, and by its folder.
        assert_eq!(modality(&weights).0, expected, "{text}");
        assert_eq!(modality(folder.path()).0, expected, "{text}");
    }
    let header = r#"{"__metadata__":{"modality":"code"},"w.weight":{"dtype":"F16","shape":[2,16],"data_offsets":[0,64]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 64]);
    std::fs::write(&weights, &file).unwrap();
    let sentence = "code, from the model's metadata";
    assert_eq!(modality(&weights), ("code", sentence.to_owned()));
    // The quantized file also records it, and the reason as far as names tell.
    let output = text(&folder.path().join("m.parquet"));
    arrowquant_ok(["quantize", &text(&weights), &output, "--quiet"]);
    let inspected = arrowquant_ok(["inspect", &output]);
    assert!(inspected.contains(sentence), "{inspected}");
    let args = [
        "quantize",
        &text(&weights),
        &output,
        "--quiet",
        "--modality",
        "audio",
    ];
    arrowquant_ok(args);
    let inspected = arrowquant_ok(["inspect", &output]);
    assert!(inspected.contains("audio, as set"), "{inspected}");
}
