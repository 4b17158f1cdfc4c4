use super::*;
use crate::tensor::{Dtype, Shape};

fn model(tensors: &[(&str, &[usize])]) -> Vec<TensorInfo> {
    let info = |(name, dims): &(&str, &[usize])| TensorInfo {
        name: (*name).to_owned(),
        dtype: Dtype::BF16,
        shape: Shape::new(dims.to_vec()).unwrap(),
    };
    tensors.iter().map(info).collect()
}

/// A block of Dream: 4 of 28 heads have keys and values.
const DREAM: &[(&str, &[usize])] = &[
    ("model.norm.weight", &[28]),
    ("model.layers.0.self_attn.q_proj.weight", &[28, 28]),
    ("model.layers.0.self_attn.q_proj.bias", &[28]),
    ("model.layers.0.self_attn.k_proj.weight", &[4, 28]),
    ("model.layers.0.self_attn.v_proj.weight", &[4, 28]),
    ("model.layers.0.self_attn.v_proj.bias", &[4]),
    ("model.layers.0.self_attn.o_proj.weight", &[28, 28]),
    ("model.layers.0.mlp.gate_proj.weight", &[60, 28]),
    ("model.layers.0.mlp.up_proj.weight", &[60, 28]),
    ("model.layers.0.mlp.down_proj.weight", &[28, 60]),
    ("model.layers.0.input_layernorm.weight", &[28]),
    ("model.layers.0.post_attention_layernorm.weight", &[28]),
];

fn names(tensors: &[TensorInfo], indices: &[usize]) -> Vec<String> {
    let name = |&i: &usize| {
        tensors[i]
            .name
            .rsplit("layers.0.")
            .next()
            .unwrap()
            .to_owned()
    };
    indices.iter().map(name).collect()
}

#[test]
fn norms_and_products_of_llama_are_found() {
    let tensors = model(DREAM);
    let sets = fold_sets(&tensors);
    let [values, up, attention, mlp] = &sets[..] else {
        panic!("{sets:?}");
    };
    let refused = values.as_ref().unwrap_err();
    assert_eq!(refused.before, "model.layers.0.self_attn.v_proj");
    assert!(
        refused
            .reason
            .contains("shape [4, 28] does not have 28 rows")
    );
    let up = up.as_ref().unwrap();
    assert_eq!(names(&tensors, &up.readers), ["mlp.down_proj.weight"]);
    assert_eq!(up.channels, 60);
    let attention = attention.as_ref().unwrap();
    assert_eq!(
        names(&tensors, &attention.readers),
        ["q", "k", "v"].map(|x| format!("self_attn.{x}_proj.weight"))
    );
    let [norm] = &attention.writers[..] else {
        panic!("{attention:?}");
    };
    assert_eq!(names(&tensors, &[norm.tensor]), ["input_layernorm.weight"]);
    assert_eq!((norm.rows.clone(), norm.one_plus), (0..28, false));
    assert_eq!(
        names(&tensors, &mlp.as_ref().unwrap().readers),
        ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    );
}

#[test]
fn adaln_of_dit_is_found_by_its_sections() {
    let tensors = model(&[
        ("blocks.0.attn.qkv.weight", &[24, 8]),
        ("blocks.0.attn.qkv.bias", &[24]),
        ("blocks.0.attn.proj.weight", &[8, 8]),
        ("blocks.0.mlp.fc1.weight", &[32, 8]),
        ("blocks.0.mlp.fc2.weight", &[8, 32]),
        ("blocks.0.adaLN_modulation.1.weight", &[48, 5]),
        ("blocks.0.adaLN_modulation.1.bias", &[48]),
        ("final_layer.adaLN_modulation.1.weight", &[16, 5]),
    ]);
    let sets: Vec<FoldSet> = fold_sets(&tensors)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let writers = |set: &FoldSet| -> Vec<_> {
        let writer = |w: &Writer| (w.tensor, w.rows.clone(), w.one_plus);
        set.writers.iter().map(writer).collect()
    };
    assert_eq!(sets.len(), 3);
    assert_eq!(writers(&sets[0]), [(0, 16..24, false), (1, 16..24, false)]);
    assert_eq!(sets[0].readers, [2]);
    let adaln = |shift: Range<usize>, scale: Range<usize>| {
        [
            (5, shift.clone(), false),
            (6, shift, false),
            (5, scale.clone(), false),
            (6, scale, true),
        ]
    };
    assert_eq!(writers(&sets[1]), adaln(0..8, 8..16));
    assert_eq!(sets[1].readers, [0]);
    assert_eq!(writers(&sets[2]), adaln(24..32, 32..40));
    assert_eq!(sets[2].readers, [3]);
}

#[test]
fn llada_is_known_and_its_up_proj_is_not_taken_for_another() {
    let tensors = model(&[
        ("model.transformer.ff_out.weight", &[9, 8]),
        ("model.transformer.blocks.0.attn_norm.weight", &[8]),
        ("model.transformer.blocks.0.ff_norm.weight", &[8]),
        ("model.transformer.blocks.0.q_proj.weight", &[8, 8]),
        ("model.transformer.blocks.0.k_proj.weight", &[8, 8]),
        ("model.transformer.blocks.0.v_proj.weight", &[8, 8]),
        ("model.transformer.blocks.0.attn_out.weight", &[8, 8]),
        ("model.transformer.blocks.0.ff_proj.weight", &[20, 8]),
        ("model.transformer.blocks.0.up_proj.weight", &[20, 8]),
        ("model.transformer.blocks.0.ff_out.weight", &[8, 20]),
    ]);
    let sets: Vec<FoldSet> = fold_sets(&tensors)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let readers: Vec<&[usize]> = sets.iter().map(|set| &set.readers[..]).collect();
    assert_eq!(readers, [&[6][..], &[9], &[3, 4, 5], &[7, 8]]);
}

#[test]
fn what_is_not_understood_is_left_alone() {
    let with = |more: &[(&'static str, &'static [usize])]| {
        let all: Vec<_> = DREAM.iter().chain(more).copied().collect();
        fold_sets(&model(&all))
    };
    // Another reader of the norm, and a norm before the MLP that is not its last.
    for stranger in [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.pre_feedforward_layernorm.weight",
        "model.layers.0.mlp.experts.3.up_proj.weight",
    ] {
        for set in with(&[(stranger, &[8, 28])]) {
            let reason = set.unwrap_err().reason;
            assert!(reason.contains(stranger), "{reason}");
        }
    }
    // Unknown tensors in other blocks do not matter.
    assert!(with(&[("model.layers.01.x.weight", &[8])])[1].is_ok());
    // Without a second norm, attention and MLP both read the first.
    let parallel: Vec<_> = (DREAM.iter().copied())
        .filter(|(name, _)| !name.contains("post_attention"))
        .collect();
    assert!(fold_sets(&model(&parallel)).is_empty());
    let without: Vec<_> = (DREAM.iter().copied())
        .filter(|(name, _)| !name.contains("k_proj"))
        .collect();
    let reason = fold_sets(&model(&without))[2].clone().unwrap_err().reason;
    assert!(reason.contains("k_proj' is missing"), "{reason}");
    // A DiT without the bias, or without some of the rows.
    let dit = |rows: usize, bias: &'static str| {
        let rows = [rows, 5];
        let all: &[(&str, &[usize])] = &[
            ("attn.qkv.weight", &[24, 8]),
            ("attn.proj.weight", &[8, 8]),
            ("mlp.fc1.weight", &[32, 8]),
            ("adaLN_modulation.1.weight", &rows),
            (bias, &[48]),
        ];
        fold_sets(&model(all))
    };
    assert!(dit(48, "adaLN_modulation.1.bias").iter().all(Result::is_ok));
    assert!(dit(48, "mlp.fc2.bias")[1].is_err());
    assert!(dit(40, "adaLN_modulation.1.bias")[2].is_err());
    let mut whole = model(DREAM);
    whole[7].dtype = Dtype::I8;
    let reason = fold_sets(&whole)[3].clone().unwrap_err().reason;
    assert!(reason.contains("gate_proj.weight' is i8"), "{reason}");
}
