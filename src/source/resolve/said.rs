//! Statements in files about how their weights were quantized: `quantization_config` of a
//! `config.json`, key and value text, and the `comfy_quant` tensors of ComfyUI.

use std::collections::HashMap;

use serde_json::Value;

use super::names::{COMFY_QUANT, Names, split};
use crate::source::{QuantizationConfig, Source};

/// The key of a JSON object with the format of each layer.
pub(super) const LAYERS: &str = "_quantization_metadata";

/// The most bytes of a `comfy_quant` tensor.
const MAX_TEXT: usize = 4 << 10;

/// Methods whose weights are f8 values with scales, which are supported.
const F8_METHODS: &[&str] = &["fp8", "fbgemm_fp8", "finegrained_fp8"];

/// All statements in a model's files about its weights.
#[derive(Default)]
pub(super) struct Said {
    configs: Vec<QuantizationConfig>,
    /// Format of each module, with the size of its groups.
    comfy: HashMap<String, (String, Option<usize>)>,
}

impl Said {
    pub(super) fn of(source: &dyn Source, names: &Names<'_>) -> Self {
        let mut configs = source.quantization();
        let metadata = source.metadata();
        for key in ["quantization_config", "quantization_format", "quant_method"] {
            if let Some(text) = metadata.get(key) {
                let value = serde_json::from_str(text).unwrap_or(Value::String(text.clone()));
                configs.extend(QuantizationConfig::from_json(&value, ""));
            }
        }
        let mut comfy = HashMap::new();
        for (module, layer) in layers(metadata.get(LAYERS)) {
            comfy.extend(format_of(&layer).map(|format| (module, format)));
        }
        for (i, tensor) in names.tensors.iter().enumerate() {
            let (module, leaf) = split(&tensor.name);
            let bytes = tensor.bytes().unwrap_or(0);
            if leaf != COMFY_QUANT || bytes > MAX_TEXT || !source.has_weights() {
                continue;
            }
            let mut text = vec![0; bytes];
            let read = source.read(i, 0, &mut text).ok();
            let layer = read.and_then(|()| serde_json::from_slice(&text).ok());
            let format = layer.and_then(|layer| format_of(&layer));
            comfy.extend(format.map(|format| (module.to_owned(), format)));
        }
        Self { configs, comfy }
    }

    /// Returns the statement about a tensor: the one with the longest prefix.
    fn config(&self, name: &str) -> Option<&QuantizationConfig> {
        let configs = self.configs.iter();
        let of = configs.filter(|config| name.starts_with(&config.prefix));
        of.max_by_key(|config| config.prefix.len())
    }

    /// Returns the method that a tensor's weights were packed by, if they were.
    pub(super) fn method(&self, name: &str) -> Option<&str> {
        let config = self.config(name)?;
        let method = config.method.as_str();
        (!F8_METHODS.contains(&method)).then_some(method)
    }

    /// Returns the method that a tensor's weights were quantized by, whether or not it packs them.
    pub(super) fn says(&self, name: &str) -> Option<&str> {
        self.config(name).map(|config| config.method.as_str())
    }

    /// Returns every method that packs weights, with its prefix of names.
    pub(super) fn methods(&self) -> impl Iterator<Item = (&str, &str)> {
        let configs = self.configs.iter();
        let packs = configs.filter(|config| !F8_METHODS.contains(&config.method.as_str()));
        packs.map(|config| (config.prefix.as_str(), config.method.as_str()))
    }

    /// Returns the stated block sizes of a weight along its last dimensions.
    pub(super) fn block(&self, weight: &str) -> Vec<usize> {
        match self.comfy.get(self.comfy_module(split(weight).0)) {
            Some((_, Some(group))) => vec![*group, *group],
            _ => self.config(weight).map_or(vec![], |c| c.block.clone()),
        }
    }

    /// Returns ComfyUI's format of a module, unless it is f8 with scales.
    pub(super) fn comfy_format(&self, module: &str) -> Option<&str> {
        self.comfy(module)
            .filter(|format| !format.contains("float8") && !is_mx(format))
    }

    /// Whether the scales in ComfyUI's format of a module may be stored in the order of a
    /// processor's tiles.
    pub(super) fn comfy_tiles(&self, module: &str) -> bool {
        self.comfy(module).is_some_and(is_mx)
    }

    fn comfy(&self, module: &str) -> Option<&str> {
        let found = self.comfy.get(self.comfy_module(module));
        found.map(|(format, _)| format.as_str())
    }

    /// Returns the module's name there, which may lack the name of the component.
    fn comfy_module<'m>(&self, module: &'m str) -> &'m str {
        let mut rest = module;
        loop {
            if self.comfy.contains_key(rest) {
                return rest;
            }
            match rest.split_once('.') {
                Some((_, after)) => rest = after,
                None => return module,
            }
        }
    }
}

fn is_mx(format: &str) -> bool {
    format.contains("mxfp8")
}

/// Parses format and group size of a layer.
fn format_of(layer: &Value) -> Option<(String, Option<usize>)> {
    let format = layer["format"].as_str()?;
    let group = layer["group_size"].as_u64();
    let group = group.and_then(|group| usize::try_from(group).ok());
    Some((format.to_owned(), group))
}

/// Parses the layers in [`LAYERS`].
fn layers(text: Option<&String>) -> Vec<(String, Value)> {
    let parsed = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
    match parsed.map(|mut value| value["layers"].take()) {
        Some(Value::Object(layers)) => layers.into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Returns the text of [`LAYERS`] without layers that now have true weights, according to
/// `is_true`; `None` if none is left.
pub(super) fn without_layers(text: &str, is_true: impl Fn(&str) -> bool) -> Option<String> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    let layers = value["layers"].as_object_mut()?;
    layers.retain(|module, _| !is_true(module));
    (!layers.is_empty()).then(|| value.to_string())
}
