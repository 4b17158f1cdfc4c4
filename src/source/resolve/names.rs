//! Names of the tensors beside a weight, and the modules that they form.

use std::collections::HashMap;

use crate::tensor::{Dtype, TensorInfo};

/// Tensors by name.
pub(super) struct Names<'a> {
    pub(super) tensors: &'a [TensorInfo],
    index: HashMap<&'a str, usize>,
    /// Tensors of each module.
    modules: HashMap<&'a str, Vec<usize>>,
}

/// Splits a tensor's name into its module and its own name.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Joins a module and a tensor's own name.
pub(super) fn join(module: &str, leaf: &str) -> String {
    match module {
        "" => leaf.to_owned(),
        module => format!("{module}.{leaf}"),
    }
}

impl<'a> Names<'a> {
    pub(super) fn new(tensors: &'a [TensorInfo]) -> Self {
        let names = tensors.iter().map(|tensor| tensor.name.as_str());
        let mut names = Self {
            tensors,
            index: names.zip(0..).collect(),
            modules: HashMap::new(),
        };
        let mut modules: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, tensor) in tensors.iter().enumerate() {
            let module = modules.entry(names.module_of(&tensor.name));
            module.or_default().push(i);
        }
        names.modules = modules;
        names
    }

    /// Returns the tensors in the module of `weight` with names of scales, whatever they are.
    pub(super) fn scales_beside(&self, weight: &str) -> Vec<usize> {
        let own = split(weight).1;
        let members = self.modules.get(self.module_of(weight));
        let is_scale = |&&i: &&usize| {
            let name = &self.tensors[i].name;
            let leaf = split(name).1;
            let like_scale = leaf.to_ascii_lowercase().contains("scal") || is_companion_name(leaf);
            let of_weight = own == "weight" || leaf.starts_with(own);
            name != weight && like_scale && of_weight && !OTHER_SCALES.contains(&leaf)
        };
        members
            .into_iter()
            .flatten()
            .filter(is_scale)
            .copied()
            .collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Returns the tensors in the module of `weight` with a name in `leaves`. If the weight is not
    /// called `weight`, as with stacked experts, these names begin with its name:
    /// `gate_up_proj_scale` is the `weight_scale` of `gate_up_proj`.
    pub(super) fn beside(&self, weight: &str, leaves: &[&str]) -> Vec<usize> {
        let (module, own) = split(weight);
        let name = |leaf: &&str| match leaf.strip_prefix("weight") {
            Some(rest) => Some(format!("{weight}{rest}")),
            None if own == "weight" => Some(join(module, leaf)),
            None => Some(format!("{weight}_{leaf}")),
        };
        let names = leaves.iter().filter_map(name);
        let mut found = Vec::new();
        for tensor in names.filter_map(|name| self.get(&name)) {
            // If the weight is not called `weight`, two of these may have the same name.
            if !found.contains(&tensor) {
                found.push(tensor);
            }
        }
        found
    }

    /// Returns the module that a tensor belongs to: `a.b` for `a.b.qweight`, for
    /// `a.b.weight.absmax`, which belongs to the tensor `a.b.weight`, and for `a.b.weight._data`.
    pub(super) fn module_of<'n>(&self, name: &'n str) -> &'n str {
        let dots = name.match_indices('.').map(|(dot, _)| &name[..dot]);
        for ancestor in dots {
            let (module, leaf) = split(ancestor);
            if leaf == "weight" || self.index.contains_key(ancestor) {
                return module;
            }
        }
        split(name).0
    }
}

/// Names of f8 scales: beside `a.weight` there is `a.scale_weight`, `a.weight_scale` or similar.
/// All are multiplied, even those called inverse.
pub(super) const SCALES: &[&str] = &["scale_weight", "weight_scale", "weight_scale_inv", "scale"];

/// Names in [`SCALES`] that only a weight's scale has.
pub(super) const SURE_SCALES: &[&str] = &["scale_weight", "weight_scale", "weight_scale_inv"];

/// Tensors beside f8 weights that describe the f8 conversion of activations, or the format.
pub(super) const INPUTS: &[&str] = &[
    "scale_input",
    "input_scale",
    "input_scale_inv",
    "input_scale_ub",
    "scale_input_ub",
    "activation_scale",
    "activation_scale_inv",
    "act_scale",
    COMFY_QUANT,
];

/// Scales of a layer's results, which do not affect its weights.
const OTHER_SCALES: &[&str] = &["output_scale", "q_scale", "k_scale", "v_scale", "kv_scale"];

/// The format of a layer, as JSON text in bytes.
pub(super) const COMFY_QUANT: &str = "comfy_quant";

/// An empty or tiny tensor which indicates that f8 weights have scales.
pub(super) const MARKER: &str = "scaled_fp8";

/// Tensors that make a weight more than its values times one scale.
pub(super) const MORE: &[&str] = &[
    "weight_scale_2",
    "weight_global_scale",
    "weight_scalar",
    "weight_zero_point",
    "weight_shift",
    "zero_point",
    "svd_up",
    "svd_down",
    "scale_2",
    "pre_quant_scale",
    "act_pre_scale",
    "smooth",
    "smooth_factor",
];

/// Whether a tensor concerns activations or formats, not weights.
pub(super) fn is_input_name(name: &str) -> bool {
    INPUTS.contains(&split(name).1)
}

/// Whether a tensor may contain packed weights: integers or floats of less than 8 bits, in several
/// dimensions, that are not a table of positions.
pub(super) fn may_be_packed(tensor: &TensorInfo) -> bool {
    let integers = matches!(
        tensor.dtype,
        Dtype::I32
            | Dtype::I16
            | Dtype::I8
            | Dtype::U32
            | Dtype::U16
            | Dtype::U8
            | Dtype::F4
            | Dtype::F6E2M3
            | Dtype::F6E3M2
    );
    let (_, leaf) = split(&tensor.name);
    let others = ["index", "indices", "ids", "mask", "position", "offset"];
    integers && tensor.shape.dims().len() >= 2 && !others.iter().any(|other| leaf.contains(other))
}

/// Whether packed weights have this name.
pub(super) fn is_packed_name(leaf: &str) -> bool {
    let names = [
        "weight", "qweight", "q_weight", "_data", "W_q", "codes", "Qidxs", "trellis", "B",
    ];
    let ends = ["_packed", "_qdata", "_int_data", "_blocks", "qweight"];
    names.contains(&leaf) || ends.iter().any(|end| leaf.ends_with(end))
}

/// Whether tensors beside packed weights have this name.
pub(super) fn is_companion_name(leaf: &str) -> bool {
    let names = [
        "scales",
        "scale",
        "biases",
        "zeros",
        "zero",
        "zero_point",
        "qzeros",
        "g_idx",
        "absmax",
        "nested_absmax",
        "quant_map",
        "nested_quant_map",
        "SCB",
        "SU",
        "SV",
        "suh",
        "svh",
        "smooth",
        "smooth_orig",
        "codebook",
        "codebooks",
        "centroids",
        "proj_up",
        "proj_down",
        "lora_up",
        "lora_down",
        "svd_up",
        "svd_down",
    ];
    let ends = [
        "scale",
        "_scales",
        "_scale_inv",
        "_scale_2",
        "_zero_point",
        "_zeros",
        "_absmax",
        "_shift",
        "wscales",
        "wzeros",
        "wtscale",
        "smooth_factor",
        "smooth_factor_orig",
    ];
    names.contains(&leaf) || ends.iter().any(|end| leaf.ends_with(end))
}

/// Whether only tensors beside packed weights have this name.
pub(super) fn is_sure_companion_name(leaf: &str) -> bool {
    let names = [
        "SCB",
        "qzeros",
        "g_idx",
        "absmax",
        "nested_absmax",
        "quant_map",
        "nested_quant_map",
        "wscales",
        "wzeros",
        "wtscale",
        "wcscales",
        "smooth_orig",
        "smooth_factor_orig",
        "weight_zero_point",
        "weight_global_scale",
        "weight_scale_2",
        "_weight_scale",
        "_weight_zero_point",
    ];
    names.contains(&leaf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn companions_know_their_module() {
        let tensors: Vec<TensorInfo> = ["a.b.weight", "e.gate_up_proj", "weight"]
            .map(|name| TensorInfo {
                name: name.into(),
                dtype: Dtype::U8,
                shape: Shape::new(vec![2, 2]).unwrap(),
            })
            .to_vec();
        let names = Names::new(&tensors);
        for (name, module) in [
            ("a.b.weight", "a.b"),
            ("a.b.scales", "a.b"),
            ("a.b.weight.absmax", "a.b"),
            ("a.b.weight.quant_state.bitsandbytes__nf4", "a.b"),
            ("x.weight._data._data", "x"),
            ("x.weight._scale", "x"),
            ("e.gate_up_proj_scale", "e"),
            ("weight", ""),
            ("scale", ""),
        ] {
            assert_eq!(names.module_of(name), module, "{name}");
        }
        assert_eq!(names.beside("a.b.scale", &["weight"]), Vec::<usize>::new());
        let more = ["weight_scale", "scale"].map(|leaf| join("", leaf));
        assert_eq!(more, ["weight_scale", "scale"]);
    }
}
