//! Models with two sets of names, their publisher's and those of diffusers: a weight gets the same
//! under both.

use std::collections::BTreeMap;

use arrowquant::plan::{Plan, PlanEntry};
use arrowquant::tensor::{Dtype, Shape, TensorInfo};
use regex::Regex;

use super::{PREFIXES, list, plan, with_prefix};

/// Patterns of names in diffusers, and the publisher's names of the same weights. Applied in order;
/// several weights with one name are fused.
type Names = &'static [(&'static str, &'static str)];

const FLUX: Names = &[
    (r"^time_text_embed\.timestep_embedder\.", "time_in."),
    (r"^time_text_embed\.text_embedder\.", "vector_in."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance_in."),
    (r"_in\.linear_1\.", "_in.in_layer."),
    (r"_in\.linear_2\.", "_in.out_layer."),
    (r"^context_embedder\.", "txt_in."),
    (r"^x_embedder\.", "img_in."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (
        r"^(single_blocks\.\d+)\.norm\.linear\.",
        "$1.modulation.lin.",
    ),
    (
        r"^(single_blocks\.\d+)\.(attn\.to_[qkv]|proj_mlp)\.",
        "$1.linear1.",
    ),
    (r"^(single_blocks\.\d+)\.proj_out\.", "$1.linear2."),
    (
        r"^(single_blocks\.\d+)\.attn\.norm_q\.weight",
        "$1.norm.query_norm.scale",
    ),
    (
        r"^(single_blocks\.\d+)\.attn\.norm_k\.weight",
        "$1.norm.key_norm.scale",
    ),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.norm1\.linear\.", ".img_mod.lin."),
    (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
    (r"\.attn\.to_[qkv]\.", ".img_attn.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".txt_attn.qkv."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (
        r"\.attn\.norm_added_q\.weight",
        ".txt_attn.norm.query_norm.scale",
    ),
    (
        r"\.attn\.norm_added_k\.weight",
        ".txt_attn.norm.key_norm.scale",
    ),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
    (r"\.ff\.net\.2\.", ".img_mlp.2."),
    (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
    (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
];

const SD3: Names = &[
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (
        r"^time_text_embed\.timestep_embedder\.linear_1\.",
        "t_embedder.mlp.0.",
    ),
    (
        r"^time_text_embed\.timestep_embedder\.linear_2\.",
        "t_embedder.mlp.2.",
    ),
    (
        r"^time_text_embed\.text_embedder\.linear_1\.",
        "y_embedder.mlp.0.",
    ),
    (
        r"^time_text_embed\.text_embedder\.linear_2\.",
        "y_embedder.mlp.2.",
    ),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^transformer_blocks\.", "joint_blocks."),
    (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
    (
        r"\.norm1_context\.linear\.",
        ".context_block.adaLN_modulation.1.",
    ),
    (r"\.(attn2?)\.to_[qkv]\.", ".x_block.$1.qkv."),
    (r"\.attn\.add_[qkv]_proj\.", ".context_block.attn.qkv."),
    (r"\.(attn2?)\.norm_([qk])\.", ".x_block.$1.ln_$2."),
    (r"\.attn\.norm_added_([qk])\.", ".context_block.attn.ln_$1."),
    (r"\.(attn2?)\.to_out\.0\.", ".x_block.$1.proj."),
    (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
    (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
    (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
    (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
    (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
];

const WAN: Names = &[
    (
        r"^condition_embedder\.time_embedder\.linear_1\.",
        "time_embedding.0.",
    ),
    (
        r"^condition_embedder\.time_embedder\.linear_2\.",
        "time_embedding.2.",
    ),
    (
        r"^condition_embedder\.text_embedder\.linear_1\.",
        "text_embedding.0.",
    ),
    (
        r"^condition_embedder\.text_embedder\.linear_2\.",
        "text_embedding.2.",
    ),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (
        r"^condition_embedder\.image_embedder\.norm1\.",
        "img_emb.proj.0.",
    ),
    (
        r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.",
        "img_emb.proj.1.",
    ),
    (
        r"^condition_embedder\.image_embedder\.ff\.net\.2\.",
        "img_emb.proj.3.",
    ),
    (
        r"^condition_embedder\.image_embedder\.norm2\.",
        "img_emb.proj.4.",
    ),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", ".$1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.add_([kv])_proj\.", ".${1}_img."),
    (r"\.norm_added_k\.", ".norm_k_img."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"^(blocks\.\d+)\.norm2\.", "$1.norm3."),
];

const Z_IMAGE: Names = &[
    (r"^all_x_embedder\.2-1\.", "x_embedder."),
    (r"^all_final_layer\.2-1\.", "final_layer."),
    (r"\.attention\.to_[qkv]\.", ".attention.qkv."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", ".attention.${1}_norm."),
];

/// Lists with diffusers' names, with the publisher's, and the mapping between them.
const LISTS: &[(&str, &str, Names)] = &[
    ("flux-dev", "flux-dev-original", FLUX),
    ("sd35-medium", "sd35-medium-original", SD3),
    ("wan21-t2v-1.3b", "wan21-t2v-1.3b-original", WAN),
    ("wan21-i2v-14b", "wan21-i2v-14b-original", WAN),
    ("z-image-turbo", "z-image-turbo-original", Z_IMAGE),
    // Published with the names of diffusers.
    ("qwen-image", "qwen-image", &[]),
];

/// Returns the entries of a plan by their publisher's names.
fn by_name(plan: &Plan, names: Names) -> BTreeMap<String, Vec<&PlanEntry>> {
    let compile = |(pattern, name): &(&str, &'static str)| (Regex::new(pattern).unwrap(), *name);
    let names: Vec<_> = names.iter().map(compile).collect();
    let mut found: BTreeMap<String, Vec<&PlanEntry>> = BTreeMap::new();
    for entry in &plan.entries {
        let name = names
            .iter()
            .fold(entry.tensor.name.clone(), |name, (pattern, new)| {
                pattern.replace(&name, *new).into_owned()
            });
        found.entry(name).or_default().push(entry);
    }
    found
}

#[test]
fn both_names_of_a_model_get_the_same() {
    for (ours, theirs, names) in LISTS {
        let plans = [ours, theirs].map(|name| plan(&list(name).1, &[("bit_width", "4")]));
        let diffusers = by_name(&plans[0], names);
        let publisher = by_name(&plans[1], &[]);
        // The mappings cover every weight on both sides.
        let all = |names: &BTreeMap<String, _>| names.keys().cloned().collect::<Vec<_>>();
        assert_eq!(all(&diffusers), all(&publisher), "{ours}");
        let mut quantized = 0;
        for (name, parts) in &diffusers {
            let whole = publisher[name][0];
            let size = |entry: &&PlanEntry| entry.tensor.shape.elements();
            let sizes: usize = parts.iter().map(size).sum();
            assert_eq!(sizes, size(&whole), "{name}");
            for part in parts {
                let recipes = (part.recipe, whole.recipe);
                assert_eq!(
                    recipes.0, recipes.1,
                    "{ours}: {} {}",
                    part.tensor.name, part.reason
                );
            }
            quantized += usize::from(whole.recipe.is_some());
        }
        assert!(quantized > 100, "{ours}: {quantized}");
        if !names.is_empty() {
            continue;
        }
        // Other files of such a model have a prefix.
        let prefixed = with_prefix(&list(ours).1, "model.diffusion_model.");
        let prefixed = plan(&prefixed, &[("bit_width", "4")]);
        for (bare, prefixed) in plans[0].entries.iter().zip(&prefixed.entries) {
            assert_eq!(bare.recipe, prefixed.recipe, "{}", prefixed.tensor.name);
        }
    }
}

/// Parts of models, written by hand; the file explains how.
const WEIGHTS: &str = include_str!("weights.txt");

fn tensor(name: &str, dims: &[usize]) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        dtype: Dtype::BF16,
        shape: Shape::new(dims.to_vec()).unwrap(),
    }
}

#[test]
fn what_is_small_and_delicate_is_kept_under_both_names() {
    let lines = WEIGHTS.lines().filter(|line| !line.starts_with('#'));
    let mut models: Vec<(&str, Vec<[&str; 4]>)> = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let Some(weight) = line.strip_prefix("    ") else {
            models.push((line, Vec::new()));
            continue;
        };
        let fields: Vec<&str> = weight.split(' ').collect();
        models
            .last_mut()
            .unwrap()
            .1
            .push(fields.try_into().unwrap());
    }
    assert_eq!(models.len(), 10);
    for (model, weights) in models {
        let mut lists = [Vec::new(), Vec::new()];
        for [publisher, diffusers, shape, fate] in weights {
            let kept = ["quantized", "kept"].iter().position(|word| *word == fate);
            let kept = kept.unwrap() == 1;
            let mut dims: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
            lists[0].push((tensor(publisher, &dims), kept));
            let parts = match diffusers {
                "-" => vec![],
                "=" => vec![publisher],
                names => names.split(',').collect(),
            };
            dims[0] /= parts.len().max(1);
            lists[1].extend(parts.iter().map(|name| (tensor(name, &dims), kept)));
        }
        for (tensors, kept) in lists.map(|list| list.into_iter().unzip::<_, _, Vec<_>, Vec<_>>()) {
            for prefix in PREFIXES {
                let plan = plan(&with_prefix(&tensors, prefix), &[]);
                assert_eq!(plan.modality.name(), "image", "{prefix}{model}");
                for (entry, kept) in plan.entries.iter().zip(&kept) {
                    let (name, reason) = (&entry.tensor.name, &entry.reason);
                    assert_eq!(entry.recipe.is_none(), *kept, "{model}: {name}: {reason}");
                }
            }
        }
    }
}

/// An unrecognized model.
#[test]
fn bare_rows_tokens_types_and_routers_are_kept_in_any_model() {
    let kept = [
        ("x_pad_token", &[1, 3840][..], "learned tokens"),
        ("encoder.cls_token", &[1, 1, 768], "learned tokens"),
        ("register_tokens", &[8, 768], "learned tokens"),
        ("learnable_registers", &[128, 3840], "learned tokens"),
        ("head.null_condition", &[1, 120, 4096], "one row"),
        ("layers.3.gain", &[1, 4096], "one row"),
        (
            "embeddings.token_type_embeddings.weight",
            &[2, 768],
            "type embedding",
        ),
        ("model.layers.0.mlp.gate.weight", &[64, 2048], "router"),
        (
            "model.layers.0.block_sparse_moe.gate.weight",
            &[8, 4096],
            "router",
        ),
        (
            "model.layers.0.mlp.shared_expert_gate.weight",
            &[1, 2048],
            "router",
        ),
        ("model.layers.0.mlp.gate.wg.weight", &[64, 4096], "router"),
        ("blk.0.ffn_gate_inp.weight", &[64, 2048], "router"),
    ];
    let quantized = [
        // A last layer with one output, and a gated MLP.
        ("head.weight", &[1, 768][..]),
        ("conv_post.weight", &[1, 32, 7]),
        ("model.layers.0.mlp.gate.weight", &[11008, 4096]),
        ("model.layers.0.mlp.gate_proj.weight", &[11008, 4096]),
        ("blk.0.ffn_gate.weight", &[11008, 4096]),
        ("model.embed_tokens.weight", &[32000, 4096]),
        ("resampler.latents", &[64, 1024]),
        ("blocks.0.adaLN_modulation.1.weight", &[4608, 768]),
        ("blocks.0.modulation.lin.weight", &[4608, 768]),
    ];
    for (name, dims, reason) in kept {
        let entry = &plan(&[tensor(name, dims)], &[]).entries[0];
        assert!(entry.recipe.is_none(), "{name}: {}", entry.reason);
        assert_eq!(entry.reason, reason, "{name}");
    }
    for (name, dims) in quantized {
        let entry = &plan(&[tensor(name, dims)], &[]).entries[0];
        assert!(entry.recipe.is_some(), "{name}: {}", entry.reason);
    }
}
