use super::*;
use crate::format::{Format, Scheme};
use crate::tensor::{Dtype, Facts, Shape};

fn tensor(name: &str, dtype: Dtype, dims: &[usize]) -> TensorInfo {
    TensorInfo {
        name: name.into(),
        dtype,
        shape: Shape::new(dims.to_vec()).unwrap(),
    }
}

fn model() -> Vec<TensorInfo> {
    vec![
        tensor("x_embedder.proj.weight", Dtype::BF16, &[256, 1, 2, 2]),
        tensor("blocks.0.attn.qkv.weight", Dtype::BF16, &[768, 256]),
        tensor("blocks.0.attn.qkv.bias", Dtype::BF16, &[768]),
        tensor("blocks.0.mlp.fc1.weight", Dtype::F32, &[5, 129]),
        tensor("pos_embed", Dtype::F32, &[1, 16, 256]),
        tensor("position_ids", Dtype::I64, &[1, 77]),
        tensor("logit_scale", Dtype::F32, &[]),
        tensor("empty.weight", Dtype::F16, &[0, 128]),
    ]
}

fn plan(config: &Config) -> Result<Plan> {
    let tensors = model();
    Plan::new(
        tensors.iter().map(|t| (t, Path::new("m.safetensors"))),
        config,
    )
}

fn with_rules(rules: &[&str]) -> Config {
    let mut config = Config::new();
    for rule in rules {
        config.push_rule(rule.parse().unwrap());
    }
    config
}

#[test]
fn built_in_rules_keep_what_must_not_be_quantized() {
    let plan = plan(&Config::new()).unwrap();
    let reasons: Vec<&str> = plan.entries.iter().map(|e| e.reason.as_str()).collect();
    let expected = [
        "default",
        "default",
        "bias",
        "default",
        "position embedding",
        "i64 is never quantized",
        "scalar",
        "empty",
    ];
    assert_eq!(reasons, expected);
    assert_eq!(plan.modality, Modality::Unknown);
}

#[test]
fn predicted_bytes_count_codes_scales_and_row_ends() {
    let mut config = Config::new();
    config.set("scheme", "affine").unwrap();
    let plan = plan(&config).unwrap();
    // 256 rows of 4 codes: 2 bytes, one f16 scale, one f16 bias.
    assert_eq!(plan.entries[0].bytes(), 256 * (2 + 2 + 2));
    // 5 rows of 129 codes: 65 bytes, 2 groups of 128.
    assert_eq!(plan.entries[3].bytes(), 5 * (65 + 4 + 4));
    assert_eq!(plan.entries[5].bytes(), 77 * 8);
    assert_eq!(plan.entries[7].bytes(), 0);
    assert_eq!(plan.entries[7].bits_per_weight(), None);
    let total: usize = plan.entries.iter().map(PlanEntry::bytes).sum();
    assert_eq!(plan.total_bytes(), total);
}

#[test]
fn rules_win_over_built_in_ones_and_later_over_earlier() {
    let plan = plan(&with_rules(&[
        "blocks.*=keep",
        "*.qkv.*=bits:8,group:64",
        "*.weight=scheme:affine",
        "pos_embed=bits:2",
        "nothing.*=keep",
    ]))
    .unwrap();
    let recipe = |i: usize| plan.entries[i].recipe;
    let qkv = recipe(1).unwrap();
    assert_eq!(
        (
            qkv.format(),
            qkv.encoding.choice().group_size.get(),
            qkv.encoding.choice().scheme
        ),
        (Format::Int8, 64, Scheme::Affine)
    );
    // A bias that a rule gives bits is quantized, though built-in rules would keep it.
    assert_eq!(
        recipe(2).unwrap().encoding.choice().scheme,
        Scheme::Symmetric
    );
    assert_eq!(recipe(3), None);
    assert_eq!(recipe(4).unwrap().format(), Format::Int2);
    assert_eq!(plan.unused_rules, ["nothing.*=keep"]);
}

#[test]
fn unit_gain_is_the_default_for_the_width_a_rule_gives() {
    use crate::format::Gain;
    let plan = plan(&with_rules(&["*.fc1.*=bits:8"])).unwrap();
    assert_eq!(plan.entries[1].recipe.unwrap().gain, Gain::Unit);
    assert_eq!(plan.entries[3].recipe.unwrap().gain, Gain::Lsq);
}

#[test]
fn bits_for_a_dtype_that_cannot_be_quantized_are_an_error() {
    let message = plan(&with_rules(&["position*=bits:8"]))
        .unwrap_err()
        .to_string();
    let expected = "m.safetensors: tensor 'position_ids': rule position*=bits:8 gives it bits, \
                    but it is i64: only f64, f32, f16, bf16 and f8 (e4m3, e5m2) can be quantized";
    assert_eq!(message, expected);
}

#[test]
fn a_later_keep_saves_what_bits_cannot_be_given_to() {
    let plan = plan(&with_rules(&["*=bits:8", "position*=keep"])).unwrap();
    assert_eq!(plan.entries[5].reason, "rule position*=keep");
    assert_eq!(plan.entries[6].reason, "scalar");
    assert_eq!(plan.entries[2].recipe.unwrap().format(), Format::Int8);
}

#[test]
fn an_edited_entry_is_recorded_as_a_rule() {
    let plan = plan(&Config::new()).unwrap();
    let mut json = plan.to_json();
    json["tensors"][1]["format"] = "int8".into();
    json["tensors"][3] = serde_json::json!({
        "name": "blocks.0.mlp.fc1.weight", "shape": [5, 129], "dtype": "f32", "format": "keep",
    });
    let edited = Plan::from_json(&json.to_string()).unwrap();
    assert_eq!(edited.entries[1].recipe.unwrap().format(), Format::Int8);
    assert_eq!(
        edited.entries[1].recipe.unwrap().gain,
        plan.entries[1].recipe.unwrap().gain
    );
    assert_eq!(edited.entries[3].recipe, None);
    let rules = [
        "blocks.0.attn.qkv.weight=bits:8,group:128,scheme:symmetric,method:lsq,gain:unit,scale_dtype:auto",
        "blocks.0.mlp.fc1.weight=keep",
    ];
    assert_eq!(edited.config["rules"], serde_json::json!(rules));
    // The recorded settings alone give the same plan.
    let mut config = Config::new();
    config.merge_json(&edited.config).unwrap();
    let tensors = model();
    let again = Plan::new(tensors.iter().map(|t| (t, Path::new("m"))), &config).unwrap();
    assert_eq!(again.entries, edited.entries);
}

#[test]
fn short_rows_are_said_to_become_no_smaller() {
    let tensors = [
        tensor("a.weight", Dtype::F16, &[1536, 1]),
        tensor("b.weight", Dtype::F16, &[1536, 3]),
    ];
    let plan = Plan::new(tensors.iter().map(|t| (t, Path::new("m"))), &Config::new()).unwrap();
    let no_smaller: Vec<bool> = plan.entries.iter().map(PlanEntry::is_no_smaller).collect();
    assert_eq!(no_smaller, [true, false]);
}

#[test]
fn json_gives_the_same_plan_back() {
    let mut config = with_rules(&["*.fc1.*=bits:8,gain:unit"]);
    config.set("compression", "zstd").unwrap();
    config.set("on_nonfinite", "keep").unwrap();
    let plan = plan(&config).unwrap();
    let back = Plan::from_json(&plan.to_json().to_string()).unwrap();
    assert_eq!(back, plan);
    back.check_matches(&model()).unwrap();
}

#[test]
fn an_edited_plan_is_checked() {
    let good = plan(&Config::new()).unwrap().to_json();
    let edited = |pointer: &str, value: Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        Plan::from_json(&json.to_string()).unwrap_err().to_string()
    };
    for (pointer, value, part) in [
        (
            "/tensors/1/format",
            "int3".into(),
            "'blocks.0.attn.qkv.weight': keep, or a format: 'int3'",
        ),
        ("/tensors/1/group_size", 20.into(), "20 is not a group size"),
        ("/tensors/1/scheme", Value::Null, "scheme is missing"),
        ("/tensors/1/dtype", "i64".into(), "never quantized"),
        ("/tensors/1/dtype", "f12".into(), "unknown dtype 'f12'"),
        (
            "/compression",
            "lzma".into(),
            "invalid value 'lzma' (expected none or zstd)",
        ),
        ("/arrowquant_plan", 9.into(), "version 9"),
        (
            "/tensors/1/shape",
            serde_json::json!([1u64 << 40, 1u64 << 40]),
            "too large",
        ),
    ] {
        let message = edited(pointer, value);
        assert!(message.contains(part), "{pointer}: {message}");
    }
    assert!(
        Plan::from_json("{")
            .unwrap_err()
            .to_string()
            .starts_with("plan: ")
    );
}

#[test]
fn a_plan_for_another_model_is_refused() {
    let plan = plan(&Config::new()).unwrap();
    let mut tensors = model();
    tensors[1].shape = Shape::new(vec![768, 512]).unwrap();
    let message = plan.check_matches(&tensors).unwrap_err().to_string();
    assert!(
        message.contains("'blocks.0.attn.qkv.weight' bf16 [768, 256]"),
        "{message}"
    );
    assert!(message.contains("[768, 512]"), "{message}");
    let message = plan.check_matches(&model()[..3]).unwrap_err().to_string();
    assert!(
        message.contains("has 8 tensors, but the source has 3"),
        "{message}"
    );
}

#[test]
fn what_one_tensor_gets_can_be_set() {
    let mut changed = plan(&Config::new()).unwrap();
    let name = "blocks.0.attn.qkv.weight";
    changed.set(name, "bits:8, group:64").unwrap();
    let recipe = changed.entries[1].recipe.unwrap();
    assert_eq!(
        (recipe.format(), recipe.encoding.choice().group_size.get()),
        (Format::Int8, 64)
    );
    changed.set(name, "keep").unwrap();
    assert_eq!(changed.entries[1].recipe, None);
    let before = changed.clone();
    for (tensor, settings, part) in [
        ("nobody", "keep", "no tensor 'nobody'"),
        (
            name,
            "bits:3",
            "tensor 'blocks.0.attn.qkv.weight': bits: invalid value '3'",
        ),
        (name, "", "unknown"),
        (name, "keep,bits:4", "keeps and quantizes at once"),
    ] {
        let message = changed.set(tensor, settings).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(changed, before);
    // Changes are recorded, so that the settings in the file are those it was made with.
    let back = Plan::from_json(&changed.to_json().to_string()).unwrap();
    assert_eq!(back, changed);
}

#[test]
fn yaml_gives_the_same_settings_back() {
    let mut config = with_rules(&["*.fc1.*=bits:8,gain:unit", r"re:layers\.[0-3]\..*=keep"]);
    for (key, value) in [
        ("deployment_profile", "edge"),
        ("bit_width", "8"),
        ("scheme", "affine"),
        ("gain", "auto"),
        ("compression", "zstd"),
        ("streaming_mode", "false"),
        ("num_threads", "7"),
    ] {
        config.set(key, value).unwrap();
    }
    let mut back = Config::new();
    back.merge_yaml(&config.to_yaml().unwrap()).unwrap();
    for (key, _) in KEYS {
        assert_eq!(back.get(key).unwrap(), config.get(key).unwrap(), "{key}");
    }
}

#[test]
fn a_tensor_of_any_name_can_be_set_alone() {
    let names = [
        "re:w",
        "re:(",
        "",
        "new",
        "w.w",
        "a[b]*?",
        "x=y;z,keep",
        "[r]e:w",
    ];
    let tensors = names.map(|name| tensor(name, Dtype::F16, &[4, 64]));
    let new = || Plan::new(tensors.iter().map(|t| (t, Path::new("m"))), &Config::new()).unwrap();
    for name in names {
        let mut plan = new();
        plan.set(name, "keep").unwrap();
        for entry in &plan.entries {
            assert_eq!(entry.recipe.is_none(), entry.tensor.name == name, "{name}");
        }
        let back = Plan::from_json(&plan.to_json().to_string()).unwrap();
        assert_eq!(back, plan, "{name}");
    }
}

/// Returns [`model`] with what distinguishes it from a plain ViT.
fn dit() -> Vec<TensorInfo> {
    let mut tensors = model();
    tensors.push(tensor("t_embedder.mlp.0.weight", Dtype::BF16, &[256, 256]));
    tensors
}

#[test]
fn a_family_has_a_list_of_what_it_keeps() {
    let tensors = dit();
    let plan = |config: &Config| {
        let tensors = tensors.iter().map(|t| (t, Path::new("m")));
        Plan::new(tensors, config).unwrap()
    };
    let found = plan(&Config::new());
    assert_eq!(found.modality, Modality::Image);
    assert_eq!(found.families, ["DiT"]);
    assert_eq!(found.entries[0].reason, "patch embedding");
    let json = found.to_json();
    assert_eq!(json["families"][0], "DiT");
    assert_eq!(json["evidence"][0], found.evidence[0].as_str());
    // Bits undo it, and so does another modality.
    let with_bits = plan(&with_rules(&["x_embedder*weight=bits:8"]));
    assert_eq!(with_bits.entries[0].recipe.unwrap().format(), Format::Int8);
    let with_group = plan(&with_rules(&["x_embedder*weight=group:64"]));
    assert_eq!(with_group.entries[0].recipe, None);
    for (modality, kept) in [("image", true), ("audio", false), ("unknown", false)] {
        let mut config = Config::new();
        config.set("modality", modality).unwrap();
        let plan = plan(&config);
        assert_eq!(plan.modality.name(), modality);
        assert_eq!(plan.entries[0].recipe.is_none(), kept, "{modality}");
        assert_eq!(plan.config["modality"], modality);
        assert_eq!(Plan::from_json(&plan.to_json().to_string()).unwrap(), plan);
    }
}

#[test]
fn what_classes_told_is_read_back_with_a_plan() {
    let tensors = model();
    let tensors = tensors.iter().map(|t| (t, Path::new("m")));
    let facts = Facts {
        classes: vec!["DiTTransformer2DModel".to_owned()],
        ..Facts::default()
    };
    let plan = Plan::with_facts(tensors, &facts, &Config::new()).unwrap();
    assert_eq!(plan.entries[0].reason, "patch embedding");
    let mut json = plan.to_json();
    assert_eq!(Plan::from_json(&json.to_string()).unwrap(), plan);
    // Setting something else keeps it.
    let mut changed = plan.clone();
    changed.set("x_embedder.proj.weight", "group:64").unwrap();
    assert_eq!(changed.entries[0].recipe, None);
    // A plan made before there were families is carried out unchanged.
    for key in ["families", "evidence"] {
        json.as_object_mut().unwrap().remove(key);
    }
    let old = Plan::from_json(&json.to_string()).unwrap();
    assert_eq!(old.entries[0].recipe, None);
    assert_eq!(
        old.config["rules"],
        serde_json::json!(["x_embedder.proj.weight=keep"])
    );
    assert_eq!(old.modality, Modality::Unknown);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let text = r#"{"arrowquant_plan": 1, "compression": "none", "config": {}, "tensors": [
        {"name": "w", "shape": [4000000000000000000, 1], "dtype": "f32", "format": "int8",
         "scheme": "affine", "group_size": 16, "method": "lsq", "gain": "lsq",
         "scale_dtype": "f32"}]}"#;
    let message = Plan::from_json(text).unwrap_err().to_string();
    assert!(
        message.contains("'w': f32 [4000000000000000000, 1]"),
        "{message}"
    );
}
