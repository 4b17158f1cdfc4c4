//! All settings by key, from a profile, YAML, the environment and flags.

use std::collections::BTreeMap;
use std::path::Path;

use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::budget::Budget;
use super::calibrated::{Calibrated, CalibrationInfo, CalibrationInput};
use super::candidates::{Candidate, Candidates, Fixed};
use super::modality::Modality;
use super::profile::Profile;
use super::rules::{
    NO_MIN_COSINE, Rule, parse_bits, parse_group_size, parse_min_cosine, parse_named,
};
use crate::calibrate::TimeWeighting;
use crate::error::{Error, Result};
use crate::format::{Choice, Format, Gain, GroupSize, Method, Recipe, ScalePolicy, Scheme};

/// Compression of the planes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// No compression: the planes can be used in place.
    None,
    /// Zstandard: smaller, but decompressed on every use.
    Zstd,
}

impl Compression {
    /// The name in settings and plans.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd => "zstd",
        }
    }
}

/// What to do with a tensor that holds NaN or infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNonFinite {
    /// Stop with an error.
    Error,
    /// Keep the tensor unquantized.
    Keep,
}

/// What to do with weights that another quantizer has packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPacked {
    /// Stop with an error.
    Error,
    /// Keep them and all tensors beside them, and quantize the rest.
    Keep,
}

/// Every key, with its allowed values.
pub const KEYS: &[(&str, &str)] = &[
    ("deployment_profile", "edge, local or cloud"),
    ("bit_width", "2, 4 or 8"),
    (
        "group_size",
        "a multiple of 16 from 16 to 1024, or 0 for the whole row",
    ),
    ("scheme", "symmetric or affine"),
    ("method", "minmax, lsq or gptq"),
    ("gain", "auto, unit or lsq"),
    ("scale_dtype", "auto, f16 or f32"),
    ("on_nonfinite", "error or keep"),
    ("packed", "error or keep"),
    ("compression", "none or zstd"),
    ("streaming_mode", "true or false"),
    ("memory_limit", "a size such as 256MB or 1GiB, or none"),
    ("fail_fast", "true or false"),
    (
        "min_cosine",
        "a cosine from 0 to 1 that every tensor must reach, or none",
    ),
    ("mixed_precision", "true or false"),
    ("max_size", "a size such as 2GB, or none"),
    ("avg_bits", "a number of bits from 1 to 64, or none"),
    (
        "candidates",
        "auto, or formats such as int2:256, int4:128:affine, int8 and keep, separated by commas",
    ),
    ("seed", "a number from 0 to 18446744073709551615"),
    ("calibration", "a calibration file, or none"),
    ("enable_time_aware", "true or false"),
    ("num_time_groups", "a number from 1 to 4096"),
    (
        "time_weighting",
        "auto, rows, equal, snr, relative, or a weight for each time group, separated by commas",
    ),
    ("enable_spatial", "true or false"),
    ("modality", "auto, text, code, image, audio or unknown"),
    (
        "num_threads",
        "a number up to 1024, or 0 for all threads of the machine",
    ),
    (
        "rules",
        "PATTERN=bits:8,group:64 and the like, separated by semicolons",
    ),
];

/// The most bytes of a YAML document: more than anyone writes.
const MAX_YAML: usize = 16 << 20;

/// The most that all patterns of a configuration may cost together (`Pattern::cost`), because each
/// is tried on each tensor. Rules for single names are looked up and cost nothing.
const MAX_PATTERNS: usize = 1000;

/// The most threads: more are a mistake.
const MAX_THREADS: usize = 1024;

/// The settings of a run. Settings that were not given follow the profile.
///
/// ```
/// use arrowquant::plan::Config;
///
/// let mut config = Config::new();
/// config.merge_yaml("deployment_profile: edge\nrules: ['lm_head.*=keep']")?;
/// config.set("bit_width", "4")?;
/// assert_eq!(config.get("bit_width")?, "4");
/// assert_eq!(config.get("group_size")?, "256"); // the profile's
/// assert!(config.set("bit_width", "3").is_err());
/// # Ok::<(), arrowquant::error::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Config {
    profile: Option<Profile>,
    format: Option<Format>,
    group_size: Option<GroupSize>,
    scheme: Option<Scheme>,
    method: Option<Method>,
    gain: Option<Gain>,
    scales: Option<ScalePolicy>,
    on_nonfinite: Option<OnNonFinite>,
    packed: Option<OnPacked>,
    compression: Option<Compression>,
    streaming: Option<bool>,
    memory_limit: Option<u64>,
    fail_fast: Option<bool>,
    min_cosine: Option<f64>,
    mixed: Option<bool>,
    max_size: Option<u64>,
    avg_bits: Option<f64>,
    candidates: Candidates,
    seed: u64,
    threads: Option<usize>,
    calibration: Option<CalibrationInput>,
    /// Properties of the calibration, or of the one that a plan was made with.
    calibration_info: Option<CalibrationInfo>,
    time_aware: Option<bool>,
    time_groups: Option<u32>,
    time_weighting: Option<TimeWeighting>,
    spatial: Option<bool>,
    modality: Option<Modality>,
    rules: Vec<Rule>,
    /// The cost of the patterns read so far.
    patterns: usize,
}

impl Config {
    /// Makes a configuration with the defaults of the local profile.
    pub fn new() -> Self {
        Self::default()
    }

    /// Merges a YAML document: a mapping of keys. Rules are added after existing ones.
    ///
    /// # Errors
    /// The text is not a YAML mapping, a key is unknown, or a value is not allowed.
    pub fn merge_yaml(&mut self, text: &str) -> Result<()> {
        if text.trim().is_empty() {
            return Ok(());
        }
        if text.len() > MAX_YAML {
            let reason = format!("too long: {} bytes", text.len());
            return Err(Error::config("YAML", reason));
        }
        let options = yaml_options(text.len());
        let map: Result<BTreeMap<String, Value>, _> =
            serde_saphyr::from_str_with_options(text, options);
        let map = map.map_err(|error| {
            // The first line says what and where; the following lines draw it.
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Error::config("YAML", line.trim_start_matches("error: "))
        })?;
        self.merge_values(&map)
    }

    /// Merges a YAML file.
    ///
    /// # Errors
    /// The file cannot be read, or its contents are refused as by [`Config::merge_yaml`]; the
    /// message names the file.
    pub fn merge_yaml_file(&mut self, path: &Path) -> Result<()> {
        let status = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        if !status.is_file() || status.len() > MAX_YAML as u64 {
            return Err(Error::file(
                path,
                "not a YAML file: too large, or not a file",
            ));
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let merged = self.merge_yaml(&text);
        merged.map_err(|error| error.within(&path.display().to_string()))
    }

    /// Merges the settings recorded in a file ([`Config::to_json`]).
    ///
    /// # Errors
    /// The value is not an object, a key is unknown, or a value is not allowed.
    pub fn merge_json(&mut self, value: &Value) -> Result<()> {
        let map = BTreeMap::deserialize(value)
            .map_err(|_| Error::config("config", format!("{value} is not an object")))?;
        self.merge_values(&map)
    }

    fn merge_values(&mut self, map: &BTreeMap<String, Value>) -> Result<()> {
        for (key, value) in map {
            match (key.as_str(), value) {
                // The file records which calibration was used, but not its path.
                ("calibration_hash", Value::String(hash)) => {
                    self.calibration_info = Some(CalibrationInfo {
                        hash: hash.clone(),
                        hessians: true, // or the method says so
                    });
                }
                ("rules", Value::Array(rules)) => {
                    for rule in rules {
                        self.add_rule(rule_from_yaml(rule)?)?;
                    }
                }
                (_, Value::String(text)) => self.set(key, text)?,
                (_, Value::Number(_) | Value::Bool(_)) => self.set(key, &value.to_string())?,
                _ => {
                    check_key(key)?;
                    return Err(Error::config(key, format!("{value} is not a single value")));
                }
            }
        }
        Ok(())
    }

    /// Merges the `AQ_*` variables among `variables` (`AQ_BIT_WIDTH=2`). `AQ_ISA` is not a setting
    /// of a run and is skipped.
    ///
    /// # Errors
    /// A variable names no key, or its value is not allowed.
    pub fn merge_env(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<()> {
        for (name, value) in variables {
            let Some(key) = name.strip_prefix("AQ_").filter(|&key| key != "ISA") else {
                continue;
            };
            if value.is_empty() {
                continue; // as if unset
            }
            let set = self.set(&key.to_ascii_lowercase(), &value);
            set.map_err(|error| {
                Error::config(format!("environment variable {name}"), error.to_string())
            })?;
        }
        Ok(())
    }

    /// Sets `key` from text. `rules` are added after existing ones.
    ///
    /// # Errors
    /// The key is unknown or the value is not allowed; the message names both and what is allowed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        check_key(key)?;
        let refuse = || {
            let allowed = KEYS.iter().find(|row| row.0 == key).map_or("", |row| row.1);
            Error::config(key, format!("invalid value '{value}' (expected {allowed})"))
        };
        match key {
            "deployment_profile" => {
                let profile = Profile::ALL.iter().find(|profile| profile.name() == value);
                self.profile = Some(*profile.ok_or_else(refuse)?);
            }
            "bit_width" => self.format = Some(parse_bits(key, value)?),
            "group_size" => self.group_size = Some(parse_group_size(key, value)?),
            "scheme" => self.scheme = Some(parse_named(key, value)?),
            "method" => self.method = Some(parse_named(key, value)?),
            "gain" if value == "auto" => self.gain = None,
            "gain" => self.gain = Some(value.parse().map_err(|_| refuse())?),
            "scale_dtype" => self.scales = Some(parse_named(key, value)?),
            "on_nonfinite" => {
                self.on_nonfinite = Some(match value {
                    "error" => OnNonFinite::Error,
                    "keep" => OnNonFinite::Keep,
                    _ => return Err(refuse()),
                });
            }
            "packed" => {
                self.packed = Some(match value {
                    "error" => OnPacked::Error,
                    "keep" => OnPacked::Keep,
                    _ => return Err(refuse()),
                });
            }
            "compression" => {
                self.compression = Some(match value {
                    "none" => Compression::None,
                    "zstd" => Compression::Zstd,
                    _ => return Err(refuse()),
                });
            }
            "streaming_mode" => self.streaming = Some(value.parse().map_err(|_| refuse())?),
            "memory_limit" if value == "none" => self.memory_limit = None,
            "memory_limit" => {
                let limit: ByteSize = value.parse().map_err(|_| refuse())?;
                self.memory_limit = Some(limit.as_u64());
            }
            "fail_fast" => self.fail_fast = Some(value.parse().map_err(|_| refuse())?),
            "min_cosine" => self.min_cosine = Some(parse_min_cosine(value).ok_or_else(refuse)?),
            "mixed_precision" => self.mixed = Some(value.parse().map_err(|_| refuse())?),
            "max_size" if value == "none" => self.max_size = None,
            "max_size" => {
                let size: ByteSize = value.parse().map_err(|_| refuse())?;
                self.max_size = Some(size.as_u64());
            }
            "avg_bits" if value == "none" => self.avg_bits = None,
            "avg_bits" => {
                let bits = value.parse().ok().filter(|b| (1.0..=64.0).contains(b));
                self.avg_bits = Some(bits.ok_or_else(refuse)?);
            }
            "candidates" => self.candidates = value.parse()?,
            "seed" => self.seed = value.parse().map_err(|_| refuse())?,
            "calibration" => {
                let file = (value != "none").then(|| CalibrationInput::File(value.into()));
                self.set_calibration(file);
            }
            "enable_time_aware" => self.time_aware = Some(value.parse().map_err(|_| refuse())?),
            "num_time_groups" => {
                let groups = value.parse().ok().filter(|n| (1..=4096).contains(n));
                self.time_groups = Some(groups.ok_or_else(refuse)?);
            }
            "time_weighting" if value == "auto" => self.time_weighting = None,
            "time_weighting" => {
                self.time_weighting = Some(value.parse().map_err(|()| refuse())?);
            }
            "enable_spatial" => self.spatial = Some(value.parse().map_err(|_| refuse())?),
            "modality" if value == "auto" => self.modality = None,
            "modality" => {
                self.modality = Some(Modality::from_name(value).ok_or_else(refuse)?);
            }
            "num_threads" => {
                let threads = value.parse().ok().filter(|&n| n <= MAX_THREADS);
                self.threads = Some(threads.ok_or_else(refuse)?);
            }
            _ => {
                for rule in value.split(';').filter(|rule| !rule.trim().is_empty()) {
                    self.add_rule(rule.trim().parse()?)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the current value of `key`, as text that [`Config::set`] accepts.
    ///
    /// # Errors
    /// The key is unknown.
    pub fn get(&self, key: &str) -> Result<String> {
        check_key(key)?;
        let recipe = self.recipe(self.format());
        let choice = recipe.encoding.choice();
        Ok(match key {
            "deployment_profile" => self.profile().name().to_owned(),
            "bit_width" => recipe.format().spec().setting.to_owned(),
            "group_size" => choice.group_size.to_string(),
            "scheme" => choice.scheme.to_string(),
            "method" => recipe.method.to_string(),
            "gain" => self.gain.map_or("auto", Gain::name).to_owned(),
            "scale_dtype" => recipe.scales.to_string(),
            "on_nonfinite" => match self.on_nonfinite() {
                OnNonFinite::Error => "error".to_owned(),
                OnNonFinite::Keep => "keep".to_owned(),
            },
            "packed" => match self.packed() {
                OnPacked::Error => "error".to_owned(),
                OnPacked::Keep => "keep".to_owned(),
            },
            "compression" => self.compression().name().to_owned(),
            "streaming_mode" => self.streaming().to_string(),
            "memory_limit" => self
                .memory_limit
                .map_or("none".to_owned(), |n| format!("{n}B")),
            "fail_fast" => self.fail_fast().to_string(),
            "min_cosine" => match self.min_cosine() {
                NO_MIN_COSINE => "none".to_owned(),
                cosine => cosine.to_string(),
            },
            "mixed_precision" => self.budget().is_some().to_string(),
            "max_size" => self.max_size.map_or("none".to_owned(), |n| format!("{n}B")),
            "avg_bits" => self.avg_bits.map_or("none".to_owned(), |n| n.to_string()),
            "candidates" => self.candidates.to_string(),
            "seed" => self.seed.to_string(),
            "calibration" => match &self.calibration {
                Some(CalibrationInput::File(path)) => path.display().to_string(),
                // A calibration in memory has no text.
                None | Some(CalibrationInput::Held(_)) => "none".to_owned(),
            },
            "enable_time_aware" => self.time_aware().to_string(),
            "num_time_groups" => self.time_groups().to_string(),
            "time_weighting" => {
                (self.time_weighting.as_ref()).map_or("auto".to_owned(), TimeWeighting::to_string)
            }
            "enable_spatial" => self.spatial().to_string(),
            "modality" => self.modality.map_or("auto", Modality::name).to_owned(),
            "num_threads" => self.threads().to_string(),
            _ => self.rule_texts().join(";"),
        })
    }

    /// Adds a rule that was parsed.
    fn add_rule(&mut self, rule: Rule) -> Result<()> {
        self.patterns += rule.pattern.cost();
        if self.patterns > MAX_PATTERNS {
            let reason = "over 1000 patterns (a regular expression counts as ten)";
            return Err(Error::config("rules", reason));
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Adds a rule after existing ones.
    pub fn push_rule(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Compression of the file.
    pub fn compression(&self) -> Compression {
        self.compression.unwrap_or(Compression::None)
    }

    /// What to do with non-finite weights.
    pub fn on_nonfinite(&self) -> OnNonFinite {
        self.on_nonfinite.unwrap_or(OnNonFinite::Error)
    }

    /// What to do with weights that another quantizer has packed.
    pub fn packed(&self) -> OnPacked {
        self.packed.unwrap_or(OnPacked::Error)
    }

    /// Whether to hold little in memory, even where that takes longer.
    pub fn streaming(&self) -> bool {
        self.streaming.unwrap_or(self.profile().streaming())
    }

    /// The memory limit of a run in bytes.
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    /// Whether situations that a run normally handles are errors.
    pub fn fail_fast(&self) -> bool {
        self.fail_fast.unwrap_or(false)
    }

    /// Cosine that every tensor must reach, unless a rule sets another; [`NO_MIN_COSINE`] for none.
    pub fn min_cosine(&self) -> f64 {
        self.min_cosine.unwrap_or(self.profile().min_cosine())
    }

    /// The budget that formats are chosen by; `None` if all tensors get the same format.
    pub fn budget(&self) -> Option<Budget> {
        let limited = self.max_size.is_some() || self.avg_bits.is_some();
        let mixed = self.mixed.unwrap_or(limited);
        mixed.then_some(Budget {
            max_size: self.max_size,
            avg_bits: self.avg_bits,
            planes: None,
        })
    }

    /// Checks that settings do not contradict each other.
    ///
    /// # Errors
    /// There is a size limit, but choosing formats is switched off.
    pub fn check(&self) -> Result<()> {
        let limited = self.max_size.is_some() || self.avg_bits.is_some();
        match self.mixed == Some(false) && limited {
            true => Err(Error::config(
                "mixed_precision",
                "'false' conflicts with max_size and avg_bits",
            )),
            false => Ok(()),
        }
    }

    /// The candidates of a budget, where no rule restricts them.
    pub(super) fn candidates(&self) -> Vec<Option<Recipe>> {
        let fixed = Fixed {
            format: self.format,
            group_size: self.group_size,
            scheme: self.scheme,
        };
        let recipe = |candidate: Candidate| {
            let format = candidate.format?;
            let mut recipe = self.recipe(format);
            recipe.encoding = recipe.encoding.chosen(|choice| {
                choice.group_size = candidate.group_size.unwrap_or(choice.group_size);
                choice.scheme = candidate.scheme.unwrap_or(choice.scheme);
            });
            Some(recipe)
        };
        self.candidates
            .list(fixed)
            .into_iter()
            .map(recipe)
            .collect()
    }

    /// The seed of all random choices: which rows are sampled, how a search varies plans.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Threads of the run; 0 means all threads of the machine.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or(self.profile().threads())
    }

    /// Sets or removes the calibration.
    pub fn set_calibration(&mut self, input: Option<CalibrationInput>) {
        self.calibration = input;
        self.calibration_info = None;
    }

    /// The calibration that was set.
    pub fn calibration(&self) -> Option<&CalibrationInput> {
        self.calibration.as_ref()
    }

    /// Sets the properties of the calibration, which plans depend on.
    pub fn set_calibration_info(&mut self, info: CalibrationInfo) {
        self.calibration_info = Some(info);
    }

    /// How the calibration is used; `None` without one.
    pub fn calibrated(&self) -> Option<Calibrated> {
        let info = self.calibration_info.clone()?;
        Some(Calibrated {
            input: self.calibration.clone(),
            info,
            time_aware: self.time_aware(),
            time_groups: self.time_groups(),
            time_weighting: self.time_weighting.clone(),
            spatial: self.spatial(),
        })
    }

    /// The modality, if it is not detected.
    pub fn modality(&self) -> Option<Modality> {
        self.modality
    }

    fn time_aware(&self) -> bool {
        self.time_aware.unwrap_or(true)
    }

    fn time_groups(&self) -> u32 {
        self.time_groups.unwrap_or(self.profile().time_groups())
    }

    fn spatial(&self) -> bool {
        self.spatial.unwrap_or(self.profile().spatial())
    }

    /// Returns the settings that change values, as the file records them: sorted by key.
    pub fn to_json(&self) -> Value {
        let mut json = self.values();
        if let (Some(modality), Value::Object(map)) = (self.modality, &mut json) {
            map.insert("modality".to_owned(), json!(modality.name()));
            map.sort_keys();
        }
        if let (OnPacked::Keep, Value::Object(map)) = (self.packed(), &mut json) {
            map.insert("packed".to_owned(), json!("keep"));
            map.sort_keys();
        }
        if let (Some(info), Value::Object(map)) = (&self.calibration_info, &mut json) {
            map.insert("calibration_hash".to_owned(), json!(info.hash));
            for key in [
                "enable_spatial",
                "enable_time_aware",
                "num_time_groups",
                "time_weighting",
            ] {
                map.insert(key.to_owned(), json!(self.get(key).unwrap_or_default()));
            }
            map.sort_keys();
        }
        json
    }

    /// Returns the settings that matter without a calibration.
    fn values(&self) -> Value {
        let recipe = self.recipe(self.format());
        let choice = recipe.encoding.choice();
        let setting = recipe.format().spec().setting;
        json!({
            "bit_width": setting.parse().map_or(json!(setting), |bits: u64| json!(bits)),
            "gain": self.gain.map_or("auto", Gain::name),
            "group_size": choice.group_size.get(),
            "method": recipe.method.name(),
            "min_cosine": self.get("min_cosine").unwrap_or_default(),
            "on_nonfinite": self.get("on_nonfinite").unwrap_or_default(),
            "rules": self.rule_texts(),
            "scale_dtype": recipe.scales.name(),
            "scheme": choice.scheme.name(),
        })
    }

    /// Returns all current settings as a YAML document, which [`Config::merge_yaml`] reads back.
    ///
    /// # Errors
    /// None are known: all settings are plain text and numbers.
    pub fn to_yaml(&self) -> Result<String> {
        let setting = |&(key, _): &(&str, &str)| -> Result<(String, Value)> {
            let value = match key {
                "rules" => json!(self.rule_texts()),
                _ => {
                    let text = self.get(key)?;
                    text.parse::<u64>()
                        .map_or(json!(text), |number| json!(number))
                }
            };
            Ok((key.to_owned(), value))
        };
        let map = KEYS.iter().map(setting).collect::<Result<Map<_, _>>>()?;
        serde_saphyr::to_string(&map).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Returns the recipe of a tensor with codes of `format`, before rules.
    pub(super) fn recipe(&self, format: Format) -> Recipe {
        let calibrated = self.calibration_info.as_ref();
        let method = self
            .method
            .unwrap_or(match calibrated.is_some_and(|info| info.hessians) {
                true => Method::Gptq,
                false => Method::Lsq,
            });
        let scales = self.scales.unwrap_or(ScalePolicy::Auto);
        Recipe {
            encoding: format.encoding(Choice {
                scheme: self.scheme.unwrap_or(Scheme::Symmetric),
                group_size: self.group_size.unwrap_or(self.profile().group_size()),
                scale_dtype: scales.planned(),
            }),
            method: format.method(method),
            gain: self.gain.unwrap_or(format.spec().gain),
            scales,
        }
    }

    /// Width of the codes, before rules.
    pub(super) fn format(&self) -> Format {
        self.format.unwrap_or(self.profile().format())
    }

    fn profile(&self) -> Profile {
        self.profile.unwrap_or(Profile::Local)
    }

    fn rule_texts(&self) -> Vec<String> {
        self.rules.iter().map(Rule::to_string).collect()
    }
}

/// Limits the expansion of a YAML document: aliases repeat what is anchored.
fn yaml_options(bytes: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_total_scalar_bytes: 4 * bytes + (64 << 10),
            max_recorded_anchor_events: 10_000,
            max_recorded_anchor_bytes: 1 << 20,
        },
    }
}

fn check_key(key: &str) -> Result<()> {
    if KEYS.iter().any(|row| row.0 == key) {
        return Ok(());
    }
    let names: Vec<&str> = KEYS.iter().map(|row| row.0).collect();
    Err(Error::config(
        key,
        format!("unknown key (expected one of: {})", names.join(", ")),
    ))
}

/// Parses a rule given as text, or as a mapping with `pattern` and the keys of [`Rule::set`].
fn rule_from_yaml(value: &Value) -> Result<Rule> {
    if let Value::String(text) = value {
        return text.parse();
    }
    let map = BTreeMap::<String, Value>::deserialize(value)
        .map_err(|_| Error::config("rules", format!("{value} is neither text nor a mapping")))?;
    let text_of = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let Some(pattern) = map.get("pattern") else {
        return Err(Error::config("rules", format!("{value} has no pattern")));
    };
    let read = || {
        let mut rule = Rule::new(text_of(pattern).parse()?);
        for (key, value) in map.iter().filter(|(key, _)| key.as_str() != "pattern") {
            rule.set(key, &text_of(value))?;
        }
        rule.check()?;
        Ok(rule)
    };
    read().map_err(|error: Error| error.within(&format!("rule {value}")))
}

#[cfg(test)]
mod tests;
