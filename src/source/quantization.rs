//! Statements in files that weights were quantized before: the `quantization_config` of a
//! `config.json`, or of key and value text.

use std::path::Path;

use serde_json::Value;

use super::classes;

/// A statement about the tensors whose names begin with `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// Prefix of names; empty for all.
    pub prefix: String,
    /// The method, in lower case: `gptq`, `fp8`.
    pub method: String,
    /// Sizes of the blocks that share a scale, along the last dimensions; empty if not stated.
    pub block: Vec<usize>,
}

impl QuantizationConfig {
    /// Reads a `quantization_config`; `None` if it names no method.
    pub(super) fn from_json(value: &Value, prefix: &str) -> Option<Self> {
        let keys = [
            "quant_method",
            "method",
            "quant_type",
            "quantization_format",
        ];
        let named = keys.iter().find_map(|key| value[*key].as_str());
        // MLX does not state its name.
        let mlx = || value["bits"].is_u64() && value["group_size"].is_u64();
        let method = match value {
            Value::String(method) => method.as_str(),
            _ => named.or(mlx().then_some("MLX"))?,
        };
        let sizes = value["weight_block_size"].as_array().into_iter().flatten();
        let size = |size: &Value| size.as_u64().and_then(|size| usize::try_from(size).ok());
        Some(Self {
            prefix: prefix.to_owned(),
            method: shortened(method),
            block: sizes.map_while(size).collect(),
        })
    }

    /// Reads the `config.json` beside weights.
    pub(super) fn beside(weights: &Path, prefix: &str) -> Option<Self> {
        let config = classes::read(&weights.with_file_name("config.json"))?;
        let keys = ["quantization_config", "quantization", "compression_config"];
        let found = keys.iter().map(|key| &config[*key]);
        let mut found = found.filter(|value| value.is_object());
        found.find_map(|value| Self::from_json(value, prefix))
    }
}

/// Returns a method's name, shortened for messages.
fn shortened(method: &str) -> String {
    method.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_wherever_they_are_named() {
        let method = |text: &str| {
            let value = serde_json::from_str(text).unwrap();
            QuantizationConfig::from_json(&value, "").map(|config| config.method)
        };
        for (text, expected) in [
            (r#"{"quant_method": "gptq", "bits": 4}"#, Some("gptq")),
            (r#"{"method": "svdquant"}"#, Some("svdquant")),
            (r#"{"bits": 4, "group_size": 64}"#, Some("MLX")),
            (r#""quanto""#, Some("quanto")),
            (r#"{"bits": 4}"#, None),
            ("[]", None),
            ("null", None),
        ] {
            assert_eq!(method(text).as_deref(), expected, "{text}");
        }
        let value = serde_json::json!({"quant_method": "fp8", "weight_block_size": [128, 64]});
        let config = QuantizationConfig::from_json(&value, "t.").unwrap();
        assert_eq!(
            (config.prefix.as_str(), config.block),
            ("t.", vec![128, 64])
        );
    }
}
