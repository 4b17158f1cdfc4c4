//! Finds weights packed by another quantizer, the tensors beside them, and the scheme.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::f8::is_f8;
use super::names::{
    MARKER, Names, SURE_SCALES, is_companion_name, is_packed_name, is_sure_companion_name, join,
    may_be_packed, split,
};
use super::said::Said;
use crate::tensor::{Dtype, TensorInfo};

/// Tensors of packed weights, by index, with the name of the scheme.
pub(super) type PackedTensors = BTreeMap<usize, String>;

/// Tensors of a module.
type Members<'a> = Vec<(usize, &'a TensorInfo)>;

/// Finds packed weights and the tensors beside them. `taken` are tensors whose meaning is known.
pub(super) fn find(names: &Names<'_>, said: &Said, taken: &HashSet<usize>) -> PackedTensors {
    let mut modules: HashMap<&str, Members<'_>> = HashMap::new();
    for (i, tensor) in names.tensors.iter().enumerate() {
        if !taken.contains(&i) {
            let module = modules.entry(names.module_of(&tensor.name)).or_default();
            module.push((i, tensor));
        }
    }
    let mut packed = PackedTensors::new();
    let mut beside: HashSet<&str> = HashSet::new();
    let mut schemes: HashMap<&str, String> = HashMap::new();
    for (module, members) in &modules {
        let Some(scheme) = scheme(module, members, said) else {
            continue;
        };
        for (i, tensor) in members {
            if is_part(tensor) {
                packed.insert(*i, scheme.clone());
                if !may_be_packed(tensor) {
                    beside.insert(split(&tensor.name).1);
                }
            }
        }
        schemes.insert(module, scheme);
    }
    // Tensors that belong to weights in another shard.
    let any = packed.values().next().cloned();
    for (module, members) in &modules {
        let weight = |(_, tensor): &(usize, &TensorInfo)| {
            split(&tensor.name).1 == "weight" && tensor.dtype.float().is_some()
        };
        if schemes.contains_key(module) {
            continue;
        }
        let has_weight = members.iter().any(weight);
        for (i, tensor) in members {
            let leaf = split(&tensor.name).1;
            if is_sure_companion_name(leaf) {
                let scheme = said.method(&tensor.name).or(any.as_deref());
                let scheme = scheme.unwrap_or("its weights are missing");
                packed.insert(*i, scheme.to_owned());
            }
            if has_weight {
                continue;
            }
            let scheme = said.method(&tensor.name).or(any.as_deref());
            if let Some(scheme) = scheme
                && is_companion_name(leaf)
                && (beside.contains(leaf) || said.method(&tensor.name).is_some())
                && !tensor.shape.dims().is_empty()
            {
                packed.insert(*i, scheme.to_owned());
            }
        }
    }
    packed
}

/// Whether a tensor of a module with packed weights belongs to them: everything except the layer's
/// bias, and a weight that is not packed.
fn is_part(tensor: &TensorInfo) -> bool {
    let leaf = split(&tensor.name).1;
    let own = leaf == "bias" || leaf.ends_with("_bias") || leaf == MARKER;
    let float_weight = leaf == "weight" && tensor.dtype.float().is_some() && !is_f8(tensor.dtype);
    !own && !float_weight
}

/// Returns the packing scheme of a module's weights; `None` if they are not packed.
fn scheme(module: &str, members: &Members<'_>, said: &Said) -> Option<String> {
    let leaf = |tensor: &TensorInfo| split(&tensor.name).1.to_owned();
    let holds_weights = |tensor: &TensorInfo| {
        let leaf = split(&tensor.name).1;
        may_be_packed(tensor) || is_f8(tensor.dtype) && leaf != "weight" && is_packed_name(leaf)
    };
    let data: Vec<&TensorInfo> = members
        .iter()
        .map(|(_, tensor)| *tensor)
        .filter(|tensor| holds_weights(tensor))
        .collect();
    let first = *data.first()?;
    let others = members.iter().map(|(_, tensor)| *tensor);
    let others = others.filter(|tensor| !holds_weights(tensor) && is_part(tensor));
    let others: Vec<&TensorInfo> = others.collect();
    let companions = others.iter().any(|tensor| is_companion_name(&leaf(tensor)));
    let plain_float = |tensor: &&&TensorInfo| tensor.dtype.float().is_some();
    let named = data.iter().any(|tensor| is_packed_name(&leaf(tensor)));
    let format = said.comfy_format(module);
    let method = said.method(&first.name);
    // MXFP4 blocks also have scales that are bytes.
    let blocks = data.iter().any(|tensor| leaf(tensor).ends_with("_blocks"));
    let all_companions = data.iter().any(|tensor| is_companion_name(&leaf(tensor)));
    let packed = format.is_some()
        || method.is_some()
        || companions
        || blocks && all_companions
        || data.len() > 1 && all_companions
        || named && others.iter().any(|tensor| plain_float(&tensor));
    if !packed {
        return None;
    }
    if let Some(format) = format {
        return Some(format!("ComfyUI {format}"));
    }
    if let Some(method) = method {
        return Some(method.to_owned());
    }
    Some(by_names(members, first).to_owned())
}

/// Returns the scheme indicated by names and types, for a module with packed weights in `data`.
fn by_names(members: &Members<'_>, data: &TensorInfo) -> &'static str {
    let find = |wanted: &str| {
        let mut found = members.iter().map(|(_, tensor)| *tensor);
        found.find(|tensor| split(&tensor.name).1 == wanted)
    };
    let has = |wanted: &[&str]| wanted.iter().any(|leaf| find(leaf).is_some());
    let ends = |wanted: &str| {
        members
            .iter()
            .any(|(_, tensor)| tensor.name.contains(wanted))
    };
    let low_rank = [
        "wscales",
        "wtscale",
        "wcscales",
        "smooth",
        "smooth_factor",
        "proj_down",
    ];
    if has(&low_rank) || has(&["lora_down"]) {
        return "SVDQuant (nunchaku)";
    }
    if ends("bitsandbytes__nf4") || ends("bitsandbytes__fp4") || has(&["absmax", "quant_map"]) {
        return "bitsandbytes 4-bit";
    }
    if has(&["SCB"]) {
        return "bitsandbytes int8";
    }
    if let Some(qweight) = find("qweight") {
        let cols = |tensor: &TensorInfo| tensor.shape.dims().last().copied().unwrap_or(0);
        let awq = find("scales").is_some_and(|scales| cols(scales) == 8 * cols(qweight));
        return match (has(&["g_idx"]), awq) {
            (false, true) => "AWQ",
            _ => "GPTQ",
        };
    }
    if has(&["weight_packed"]) {
        return "compressed-tensors";
    }
    if has(&["_data"]) {
        return "quanto";
    }
    if ends("_qdata") || ends("_int_data") {
        return "torchao";
    }
    if has(&["W_q"]) {
        return "HQQ";
    }
    if ends("_blocks") {
        return "MXFP4";
    }
    if has(&["q_weight", "trellis"]) {
        return "EXL";
    }
    if has(&["codebooks", "codes", "Qidxs"]) {
        return "a codebook";
    }
    let nvfp4 = has(&["weight_scale_2", "weight_global_scale"]);
    match (
        data.dtype,
        find("weight_scale"),
        find("scales"),
        find("scale"),
    ) {
        (Dtype::U8, Some(_), _, _) if nvfp4 => "nvfp4",
        (Dtype::I8, Some(_), _, _) => "int8 with weight_scale",
        (Dtype::U32, _, Some(_), _) => "MLX",
        (_, _, _, Some(_)) => "SDNQ",
        _ => "an unknown scheme",
    }
}

/// Finds scales without their f8 weights, the tensors beside them, and why their meaning is
/// uncertain.
pub(super) fn stray_scales(
    names: &Names<'_>,
    taken: &HashSet<usize>,
    packed: &PackedTensors,
) -> Vec<(Vec<usize>, String)> {
    let mut found = Vec::new();
    for (scale, tensor) in names.tensors.iter().enumerate() {
        let (module, leaf) = split(&tensor.name);
        if taken.contains(&scale) || packed.contains_key(&scale) || !SURE_SCALES.contains(&leaf) {
            continue;
        }
        let weight = join(module, "weight");
        let Some(index) = names.get(&weight) else {
            let reason = format!(
                "it is the scale of '{weight}', which is missing: open all files of the model, \
                 by their index"
            );
            found.push((vec![scale], reason));
            continue;
        };
        let dtype = names.tensors[index].dtype;
        let reason = format!(
            "it is the scale of '{weight}', which is {dtype} and not f8: it may already have been \
             multiplied by it"
        );
        found.push((vec![scale, index], reason));
    }
    found
}
