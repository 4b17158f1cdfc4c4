//! `manifest.json`: the contents of a folder of parts. Each part is a separate Parquet file.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{FORMAT_VERSION, key};
use crate::error::{Error, Result};

/// Name of the manifest in its folder.
pub const MANIFEST: &str = "manifest.json";

/// Version of the manifest itself.
const MANIFEST_VERSION: u32 = 1;

/// A size that no manifest reaches, even with as many tensors as a source may have.
const LARGEST: u64 = 256 << 20;

/// Returns the name of part `index`, from 0.
pub fn part_name(index: usize) -> String {
    format!("part-{index:05}.parquet")
}

/// Everything that determines the bytes of the parts: parts with different fingerprints do not
/// belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Format version of the parts.
    pub format_version: u32,
    /// Base name, size and header hash of the source.
    pub source: Value,
    /// XXH3-64 over some of the source's values, in hexadecimal; empty if they are packed.
    pub sample: String,
    /// Settings that change values.
    pub config: Value,
    /// Hash of the parts of the plan that `config` does not determine.
    #[serde(default)]
    pub tensors: String,
    /// none or zstd.
    pub compression: String,
    /// The number of shares of the work.
    pub shares: usize,
    /// Bytes of planes after which a part ends.
    pub part_bytes: usize,
}

impl Fingerprint {
    /// Describes the first difference from `there`.
    pub fn difference(&self, there: &Self) -> Option<String> {
        fn flatten(prefix: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
            match value {
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    flatten(&format!("{prefix}{dot}{key}"), value, found);
                }),
                other => drop(found.insert(prefix.to_owned(), other.clone())),
            }
        }
        let [here, there] = [self, there].map(|print| {
            let mut found = BTreeMap::new();
            flatten("", &json!(print), &mut found);
            found
        });
        let keys = here.keys().chain(there.keys());
        let differs = |key: &&String| here.get(*key) != there.get(*key);
        let text = |value: Option<&Value>| value.unwrap_or(&Value::Null).to_string();
        keys.into_iter().find(differs).map(|key| {
            let (there, here) = (text(there.get(key)), text(here.get(key)));
            format!("{key} is {there} there and {here} here")
        })
    }
}

/// A file of the source, as it was when the folder was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSource {
    /// Base name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change, in seconds since 1970 with nine digits after the point.
    pub modified: Option<String>,
}

/// A part of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPart {
    /// Base name.
    pub file: String,
    /// The share it belongs to, from 1.
    pub share: usize,
    /// Number of tensors in it.
    pub tensors: usize,
    /// Bytes of the file; none until all parts exist.
    pub bytes: Option<u64>,
}

/// The contents of a folder. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    arrowquant_manifest: u32,
    /// Whether all parts exist.
    pub complete: bool,
    /// What all parts have in common.
    pub fingerprint: Fingerprint,
    /// The files of the source.
    pub sources: Vec<ManifestSource>,
    /// text, code, image, audio or unknown.
    pub modality: String,
    /// The source's own metadata.
    pub source_metadata: BTreeMap<String, String>,
    /// Program and version that wrote it.
    pub generator: String,
    /// Parts in the order of the tensors.
    pub parts: Vec<ManifestPart>,
    /// Cosine, SQNR and bits per weight, in total and per tensor; null until all parts exist.
    pub summary: Value,
}

impl Manifest {
    /// Makes a manifest of parts that do not exist yet.
    pub fn new(fingerprint: Fingerprint, parts: Vec<ManifestPart>) -> Self {
        Self {
            arrowquant_manifest: MANIFEST_VERSION,
            complete: false,
            fingerprint,
            sources: Vec::new(),
            modality: String::new(),
            source_metadata: BTreeMap::new(),
            generator: super::GENERATOR.to_owned(),
            parts,
            summary: Value::Null,
        }
    }

    /// Reads the manifest of a folder, or returns `None` if there is none.
    ///
    /// # Errors
    /// The manifest cannot be read, is damaged, or has a newer version.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        let status = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            status => status.map_err(Error::io(&path, "open"))?,
        };
        if !status.is_file() || status.len() > LARGEST {
            return Err(Error::file(
                &path,
                "not a manifest: too large, or not a file",
            ));
        }
        let text = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        Self::parse(&path, &text).map(Some)
    }

    /// Reads the text of a manifest; `path` is for messages.
    ///
    /// # Errors
    /// The manifest is damaged, or has a newer version.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let damaged = |reason: String| Error::file(path, format!("not a manifest: {reason}"));
        let manifest: Self =
            serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        for (what, found, known) in [
            ("manifest", manifest.arrowquant_manifest, MANIFEST_VERSION),
            (
                "format",
                manifest.fingerprint.format_version,
                FORMAT_VERSION,
            ),
        ] {
            if found != known {
                let reason = format!("{what} version {found} is not supported (expected {known})");
                return Err(Error::file(path, reason));
            }
        }
        for (index, part) in manifest.parts.iter().enumerate() {
            if part.file != part_name(index) {
                let reason = format!("part {index} is called '{}'", part.file);
                return Err(damaged(reason));
            }
        }
        Ok(manifest)
    }

    /// Returns the metadata that the footer of a single file would have.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let entries = [
            (
                key::FORMAT_VERSION,
                self.fingerprint.format_version.to_string(),
            ),
            (key::MODALITY, self.modality.clone()),
            (key::CONFIG, self.fingerprint.config.to_string()),
            (key::SOURCE, self.fingerprint.source.to_string()),
            (
                key::SOURCE_METADATA,
                json!(self.source_metadata).to_string(),
            ),
            (key::GENERATOR, self.generator.clone()),
            (key::SUMMARY, self.summary.to_string()),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        format!("{:#}\n", json!(self))
    }
}

/// The footer entry of a part, under [`super::key::PART`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Number of this part, from 0.
    pub index: usize,
    /// How many parts there are.
    pub count: usize,
    /// The share it belongs to, from 1.
    pub share: usize,
    /// The fingerprint that all parts share.
    pub fingerprint: Fingerprint,
    /// Sums for errors over several tensors, for each quantized tensor: squares of the weights, of
    /// the decoded weights, and of their difference.
    pub sums: BTreeMap<String, [f64; 3]>,
    /// Attempts for each tensor that did not reach its cosine at first, as in reports.
    #[serde(default)]
    pub ladder: BTreeMap<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let fingerprint = Fingerprint {
            format_version: FORMAT_VERSION,
            source: json!({"name": "m.safetensors"}),
            sample: String::new(),
            config: json!({"bit_width": 4}),
            tensors: String::new(),
            compression: "none".into(),
            shares: 1,
            part_bytes: 1 << 20,
        };
        let part = ManifestPart {
            file: part_name(0),
            share: 1,
            tensors: 3,
            bytes: None,
        };
        Manifest::new(fingerprint, vec![part])
    }

    #[test]
    fn text_comes_back() {
        let manifest = manifest();
        let path = Path::new("manifest.json");
        let back = Manifest::parse(path, manifest.text().as_bytes()).unwrap();
        assert_eq!(back, manifest);
        let newer = manifest
            .text()
            .replace("\"arrowquant_manifest\": 1", "\"arrowquant_manifest\": 2");
        let message = Manifest::parse(path, newer.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(message.contains("manifest version 2"), "{message}");
        let stray = manifest.text().replace("part-00000", "../part-00000");
        assert!(Manifest::parse(path, stray.as_bytes()).is_err());
    }

    #[test]
    fn a_difference_is_named() {
        let here = manifest().fingerprint;
        assert_eq!(here.difference(&here), None);
        let mut there = here.clone();
        there.config["bit_width"] = json!(2);
        assert_eq!(
            here.difference(&there).unwrap(),
            "config.bit_width is 2 there and 4 here"
        );
        there = here.clone();
        there.shares = 4;
        assert!(
            here.difference(&there)
                .unwrap()
                .contains("shares is 4 there")
        );
    }
}
