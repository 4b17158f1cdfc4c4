//! What the files of a model call it: class and architecture names, and a modality. This is only
//! used for recognition, so files that cannot be read are ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::file::SourceFile;

/// The most bytes of a `config.json`. Published ones have a few kilobytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The most bytes of a class name.
const MAX_CLASS: usize = 200;

/// The most class names of a file.
const MAX_CLASSES: usize = 100;

/// Classes of components that have weights but say nothing about the output: they read prompts,
/// judge images, or have no weights.
const OTHERS: &[&str] = &[
    "Tokenizer",
    "Scheduler",
    "Processor",
    "Extractor",
    "TextModel",
    "TextEncoder",
    "T5",
    "CLIP",
    "SafetyChecker",
];

/// Returns the classes in key and value text.
pub(super) fn of_metadata(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let text = |key: &str| metadata.get(key).map(String::as_str);
    let architectures = ["modelspec.architecture", "general.architecture"];
    let mut classes: Vec<String> = architectures
        .iter()
        .filter_map(|key| name(text(key)?))
        .collect();
    classes.extend(text("modality").and_then(modality));
    classes
}

/// Returns a modality, in the form that plans accept as given.
pub(super) fn modality(name: &str) -> Option<String> {
    self::name(name).map(|name| format!("modality: {name}"))
}

/// Returns the classes in the `config.json` beside weights.
pub(super) fn of_config(weights: &Path) -> Vec<String> {
    let Some(config) = read(&weights.with_file_name("config.json")) else {
        return Vec::new();
    };
    let architectures = config["architectures"].as_array().into_iter().flatten();
    let named = [&config["_class_name"], &config["model_type"]];
    let classes = architectures.chain(named).filter_map(Value::as_str);
    classes.filter_map(name).take(MAX_CLASSES).collect()
}

/// Returns the classes of a pipeline and its components from its index, except some.
pub(super) fn of_index(text: &[u8], without: &[String]) -> Vec<String> {
    let Ok(Value::Object(index)) = serde_json::from_slice(text) else {
        return Vec::new();
    };
    let class = |(component, value): (&String, &Value)| match value {
        Value::String(class) if component == "_class_name" => name(class),
        Value::Array(pair) => {
            let class = pair.get(1)?.as_str()?;
            let other = OTHERS.iter().any(|part| class.contains(part));
            let reads = component.starts_with("text_encoder");
            let left_out = without.contains(component);
            name(class).filter(|_| !other && !reads && !left_out)
        }
        _ => None,
    };
    index.iter().filter_map(class).take(MAX_CLASSES).collect()
}

/// Returns a name that could be a class name.
fn name(text: &str) -> Option<String> {
    (!text.is_empty() && text.len() <= MAX_CLASS).then(|| text.to_owned())
}

/// Reads a `config.json`, if there is a readable one.
pub(super) fn read(path: &Path) -> Option<Value> {
    let file = SourceFile::open(path).ok()?;
    if file.bytes() > MAX_CONFIG {
        return None;
    }
    let mut text = vec![0; file.bytes() as usize];
    file.read_header(&mut text, 0).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_says_nothing_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        let config = folder.path().join("config.json");
        assert!(of_config(&weights).is_empty());
        let long = format!(r#"{{"model_type": "{}"}}"#, "x".repeat(201));
        let large = format!(r#"{{"model_type": "x"}}{}"#, " ".repeat(1 << 20));
        for text in ["", "{", "[]", "7", r#"{"architectures": 3}"#, &long, &large] {
            std::fs::write(&config, text).unwrap();
            assert!(of_config(&weights).is_empty(), "{text:.40}");
        }
        let text = r#"{"_class_name": "A", "architectures": ["B", 7, "C"], "model_type": "d"}"#;
        std::fs::write(&config, text).unwrap();
        assert_eq!(of_config(&weights), ["B", "C", "A", "d"]);
        std::fs::remove_file(&config).unwrap();
        std::fs::create_dir(&config).unwrap();
        assert!(of_config(&weights).is_empty());
    }

    #[test]
    fn components_that_make_nothing_are_left_out() {
        let text = br#"{"_class_name": "FluxPipeline", "_diffusers_version": "0.30",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen2ForCausalLM"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "FluxTransformer2DModel"],
            "image_encoder": [null, null], "requires_safety_checker": true}"#;
        let classes = ["FluxPipeline", "FluxTransformer2DModel"];
        assert_eq!(of_index(text, &[]), classes);
        assert_eq!(of_index(text, &["transformer".to_owned()]), classes[..1]);
        assert!(of_index(b"[", &[]).is_empty());
    }

    #[test]
    fn metadata_say_architecture_and_modality() {
        let metadata = [
            ("general.architecture", "flux"),
            ("modality", "image"),
            ("other", "x"),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let classes = of_metadata(&metadata.into_iter().collect());
        assert_eq!(classes, ["flux", "modality: image"]);
    }
}
