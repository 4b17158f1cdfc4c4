//! Weights packed by another quantizer: none of the tensors beside them is mistaken for a weight.

use arrowquant::plan::{Config, Plan};
use arrowquant::run;
use arrowquant::source::{self, MemorySource, Source};
use arrowquant::tensor::Dtype;
use proptest::prelude::*;

/// The tensors of a module (leaf, dtype, dimensions), and the expected message.
struct Scheme {
    name: &'static str,
    tensors: &'static [(&'static str, Dtype, &'static [usize])],
}

use Dtype::{BF16, F8E4M3, F8E8M0, F16, F32, I8, I16, I32, U8, U32};

/// Packing schemes. Dimensions are multiples of a random number.
const SCHEMES: &[Scheme] = &[
    Scheme {
        name: "GPTQ",
        tensors: &[
            ("qweight", I32, &[4, 32]),
            ("qzeros", I32, &[2, 4]),
            ("scales", F16, &[2, 32]),
            ("g_idx", I32, &[32]),
        ],
    },
    Scheme {
        name: "AWQ",
        tensors: &[
            ("qweight", I32, &[32, 4]),
            ("qzeros", I32, &[2, 4]),
            ("scales", F16, &[2, 32]),
        ],
    },
    Scheme {
        name: "bitsandbytes 4-bit",
        tensors: &[
            ("weight", U8, &[512, 1]),
            ("weight.absmax", F32, &[16]),
            ("weight.quant_map", F32, &[16]),
            ("weight.nested_absmax", F32, &[4, 4]),
            ("weight.nested_quant_map", F32, &[4, 4]),
            ("weight.quant_state.bitsandbytes__nf4", U8, &[80]),
        ],
    },
    Scheme {
        name: "bitsandbytes int8",
        tensors: &[
            ("weight", I8, &[32, 32]),
            ("SCB", F32, &[32, 1]),
            ("weight_format", U8, &[]),
        ],
    },
    Scheme {
        name: "torchao",
        tensors: &[
            ("_weight_qdata", I8, &[32, 16]),
            ("_weight_scale", BF16, &[32, 4]),
            ("_weight_zero_point", BF16, &[32, 4]),
        ],
    },
    Scheme {
        name: "compressed-tensors",
        tensors: &[
            ("weight_packed", I32, &[32, 4]),
            ("weight_scale", BF16, &[32, 2]),
            ("weight_zero_point", I32, &[4, 2]),
            ("weight_shape", Dtype::I64, &[2]),
        ],
    },
    Scheme {
        name: "compressed-tensors",
        tensors: &[
            ("weight_packed", U8, &[32, 16]),
            ("weight_scale", F8E4M3, &[32, 2]),
            ("weight_global_scale", F32, &[1]),
        ],
    },
    Scheme {
        name: "int8 with weight_scale",
        tensors: &[("weight", I8, &[32, 32]), ("weight_scale", F32, &[32, 1])],
    },
    Scheme {
        name: "quanto",
        tensors: &[
            ("weight._data", I8, &[32, 32]),
            ("weight._scale", BF16, &[32, 1]),
            ("weight._shift", BF16, &[32, 1]),
            ("input_scale", BF16, &[]),
            ("output_scale", BF16, &[]),
        ],
    },
    Scheme {
        name: "quanto",
        tensors: &[
            ("weight._data", F8E4M3, &[32, 32]),
            ("weight._scale", BF16, &[32, 1]),
        ],
    },
    Scheme {
        name: "SDNQ",
        tensors: &[
            ("weight", U8, &[32, 16]),
            ("scale", F32, &[32, 4]),
            ("zero_point", F32, &[32, 4]),
            ("svd_up", BF16, &[32, 8]),
            ("svd_down", BF16, &[8, 32]),
        ],
    },
    Scheme {
        name: "SDNQ",
        tensors: &[
            ("weight", F8E4M3, &[32, 32]),
            ("scale", F32, &[32, 1]),
            ("svd_up", BF16, &[32, 8]),
            ("svd_down", BF16, &[8, 32]),
        ],
    },
    Scheme {
        name: "MLX",
        tensors: &[
            ("weight", U32, &[32, 4]),
            ("scales", BF16, &[32, 2]),
            ("biases", BF16, &[32, 2]),
        ],
    },
    Scheme {
        name: "SVDQuant (nunchaku)",
        tensors: &[
            ("qweight", I8, &[32, 16]),
            ("wscales", BF16, &[2, 32]),
            ("smooth", BF16, &[32]),
            ("smooth_orig", BF16, &[32]),
            ("proj_down", BF16, &[32, 8]),
            ("proj_up", BF16, &[32, 8]),
        ],
    },
    Scheme {
        name: "SVDQuant (nunchaku)",
        tensors: &[
            ("qweight", I32, &[8, 16]),
            ("wscales", BF16, &[2, 32]),
            ("wzeros", BF16, &[2, 32]),
        ],
    },
    Scheme {
        name: "nvfp4",
        tensors: &[
            ("weight", U8, &[32, 16]),
            ("weight_scale", F8E4M3, &[32, 2]),
            ("weight_scale_2", F32, &[]),
            ("input_scale", F32, &[]),
        ],
    },
    Scheme {
        name: "MXFP4",
        tensors: &[
            ("gate_up_proj_blocks", U8, &[2, 32, 2, 16]),
            ("gate_up_proj_scales", U8, &[2, 32, 2]),
            ("gate_up_proj_bias", BF16, &[2, 32]),
        ],
    },
    Scheme {
        name: "HQQ",
        tensors: &[
            ("W_q", U8, &[16, 32]),
            ("scale", F16, &[32, 1]),
            ("zero", F16, &[32, 1]),
        ],
    },
    Scheme {
        name: "codebook",
        tensors: &[
            ("codes", I16, &[32, 4, 1]),
            ("codebooks", F16, &[1, 16, 1, 8]),
            ("scales", F16, &[32, 1, 1, 1]),
        ],
    },
    Scheme {
        name: "an unknown scheme",
        tensors: &[
            ("weight", I8, &[32, 32]),
            ("something_new", F16, &[32, 4]),
            ("of_ours", F8E8M0, &[32, 1]),
        ],
    },
];

fn add(source: &mut MemorySource<'static>, name: &str, dtype: Dtype, dims: &[usize]) {
    let bytes = dims.iter().product::<usize>() * dtype.bits() / 8;
    // These values are not NaN or infinite in any type.
    let values: Vec<u8> = (0..bytes).map(|i| 0x30 + (i % 7) as u8).collect();
    source.add(name, dtype, dims, values).unwrap();
}

/// Makes a model with a packed and an unpacked layer, in random order of tensors.
fn model(scheme: &Scheme, module: &str, times: usize, reversed: bool) -> MemorySource<'static> {
    let mut source = MemorySource::new();
    let mut tensors: Vec<_> = scheme.tensors.iter().collect();
    if reversed {
        tensors.reverse();
    }
    for (leaf, dtype, dims) in tensors {
        let mut dims = dims.to_vec();
        if let Some(first) = dims.first_mut() {
            *first *= times;
        }
        add(&mut source, &format!("{module}.{leaf}"), *dtype, &dims);
    }
    add(&mut source, &format!("{module}.bias"), BF16, &[32]);
    add(&mut source, "blocks.7.mlp.weight", BF16, &[32, 64]);
    source
}

fn plan(
    source: MemorySource<'static>,
    settings: &[(&str, &str)],
) -> arrowquant::error::Result<Plan> {
    let source = source::resolve(Box::new(source));
    let mut config = Config::new();
    for (key, value) in settings {
        config.set(key, value).unwrap();
    }
    run::plan(source.as_ref(), &config)
}

fn quantized(plan: &Plan) -> Vec<&str> {
    let entries = plan.entries.iter().filter(|entry| entry.recipe.is_some());
    entries.map(|entry| entry.tensor.name.as_str()).collect()
}

#[test]
fn packed_weights_are_an_error_that_names_the_scheme() {
    for scheme in SCHEMES {
        let source = model(scheme, "blocks.0.attn.to_q", 1, false);
        let message = plan(source, &[]).unwrap_err().to_string();
        assert!(message.contains("already quantized"), "{message}");
        assert!(message.contains(scheme.name), "{} {message}", scheme.name);
        assert!(message.contains("original weights") && message.contains("--packed keep"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Only a rule with its full name quantizes a companion.
    #[test]
    fn no_companion_is_quantized(
        scheme in 0..SCHEMES.len(),
        module in "[a-z]{1,6}(\\.[0-9]{1,2})?(\\.(attn|ffn|experts|to_q|weights))?\\.[a-z_]{1,8}",
        times in 1usize..4,
        reversed in any::<bool>(),
        setting in prop::sample::select(vec![
            ("bit_width", "2"), ("avg_bits", "3"), ("mixed_precision", "true"),
            ("rules", "*=bits:8"), ("rules", "re:scale=bits:4,group:32"),
            ("deployment_profile", "edge"), ("modality", "text"),
        ]),
    ) {
        let scheme = &SCHEMES[scheme];
        let source = model(scheme, &module, times, reversed);
        let dtypes = source.tensors().to_vec();
        let settings = [("packed", "keep"), setting];
        let kept = plan(source.clone(), &settings).unwrap();
        for name in quantized(&kept) {
            // A rule for all tensors also gives bits to biases.
            prop_assert!(name == "blocks.7.mlp.weight" || name.ends_with("bias"), "{name}");
        }
        prop_assert!(quantized(&kept).contains(&"blocks.7.mlp.weight"));
        // Saving and loading the plan does not change it.
        let read = Plan::from_json(&kept.to_json().to_string()).unwrap();
        prop_assert_eq!(quantized(&read), quantized(&kept));
        // Each keeps its bytes.
        let resolved = source::resolve(Box::new(source.clone()));
        for (i, tensor) in dtypes.iter().enumerate() {
            let place = resolved.tensors().iter().position(|t| t == tensor).unwrap();
            let bytes = tensor.bytes().unwrap();
            let (mut raw, mut kept) = (vec![0; bytes], vec![0; bytes]);
            source.read(i, 0, &mut raw).unwrap();
            resolved.read(place, 0, &mut kept).unwrap();
            prop_assert_eq!(raw, kept);
        }
        // A rule for the tensor itself applies.
        let float = |(_, dtype, dims): &&(&str, Dtype, &[usize])| {
            dtype.float().is_some() && !dims.is_empty()
        };
        if let Some((leaf, ..)) = scheme.tensors.iter().find(float) {
            let name = format!("{module}.{leaf}");
            let rule = format!("{name}=bits:8");
            let plan = plan(source, &[("packed", "keep"), ("rules", &rule)]).unwrap();
            prop_assert!(quantized(&plan).contains(&name.as_str()));
        }
    }

    /// Tensors beside weights in another shard are recognized by name.
    #[test]
    fn companions_without_their_weights_are_refused_or_kept(
        leaf in prop::sample::select(vec![
            "SCB", "qzeros", "wscales", "absmax", "weight_zero_point", "weight_scale_2",
            "weight_global_scale", "weight_scale", "weight_scale_inv", "scale_weight",
        ]),
        float in prop::sample::select(vec![F16, BF16, F32]),
    ) {
        let mut source = MemorySource::new();
        add(&mut source, &format!("layers.0.attn.{leaf}"), float, &[16, 32]);
        add(&mut source, "layers.1.attn.weight", float, &[16, 32]);
        prop_assert!(plan(source.clone(), &[]).is_err());
        let kept = plan(source, &[("packed", "keep")]).unwrap();
        prop_assert_eq!(quantized(&kept), ["layers.1.attn.weight"]);
    }

    /// Models with ordinary integers and scales are not taken for packed ones.
    #[test]
    fn buffers_and_layer_scales_are_nobodys_packed_weights(
        leaf in prop::sample::select(vec![
            "relative_position_index", "position_ids", "attention_mask", "token_indices",
        ]),
        scale in prop::sample::select(vec!["scale", "gamma", "logit_scale", "scales", "weight"]),
        float in prop::sample::select(vec![F16, BF16, F32]),
    ) {
        let mut source = MemorySource::new();
        add(&mut source, &format!("layers.0.attn.{leaf}"), I32, &[16, 16]);
        add(&mut source, &format!("layers.0.attn.{scale}"), float, &[16, 32]);
        add(&mut source, "layers.0.ls1.scale", float, &[32]);
        let plan = plan(source, &[]).unwrap();
        let name = format!("layers.0.attn.{scale}");
        prop_assert_eq!(quantized(&plan), [name.as_str()]);
    }
}
