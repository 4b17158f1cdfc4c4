//! Plans as JSON, for people and programs to read and edit.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    CalibrationInput, Modality, NO_MIN_COSINE, Plan, PlanEntry, Recognition, SOURCE,
    restore_config, rules,
};
use crate::error::{Error, Result};
use crate::format::{Choice, Format, GroupSize, Recipe, ScalePolicy};
use crate::tensor::{Dtype, MAX_TENSORS, Shape, TensorInfo, check_limits};

/// Version of the plan's JSON.
const PLAN_VERSION: u32 = 1;

impl Plan {
    /// Returns the plan as JSON, from which [`Plan::from_json`] makes the same plan.
    pub fn to_json(&self) -> Value {
        let json = PlanJson {
            arrowquant_plan: PLAN_VERSION,
            modality: self.modality.name().to_owned(),
            families: Some(self.families.clone()),
            evidence: self.evidence.clone(),
            source_warnings: self.source_warnings.clone(),
            warnings: self.warnings(),
            total_bytes: self.total_bytes(),
            source_bytes: self.source_bytes(),
            compression: self.compression.name().to_owned(),
            streaming_mode: self.streaming,
            memory_limit: self.memory_limit,
            max_size: self.max_size,
            room: self.room,
            fail_fast: self.fail_fast,
            calibration: self.calibration_file(),
            config: self.config.clone(),
            tensors: self.entries.iter().map(EntryJson::from).collect(),
        };
        serde_json::to_value(json).expect("plain data")
    }

    /// Returns the path of the calibration, if it is a file.
    fn calibration_file(&self) -> Option<String> {
        match &self.calibrated.as_ref()?.input {
            Some(CalibrationInput::File(path)) => Some(path.to_string_lossy().into_owned()),
            _ => None,
        }
    }

    /// Reads a plan, whose settings and entries may have been edited. An entry that differs from
    /// the settings becomes a rule for that tensor, so that the settings recorded in the file are
    /// those it was made with.
    ///
    /// # Errors
    /// The text is not a plan, or an entry is impossible; the message names the tensor.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: PlanJson =
            serde_json::from_str(text).map_err(|error| Error::Plan(error.to_string()))?;
        if json.arrowquant_plan != PLAN_VERSION {
            let version = json.arrowquant_plan;
            return Err(Error::Plan(format!(
                "version {version} is not supported (expected {PLAN_VERSION})"
            )));
        }
        let mut config = restore_config(&json.config, &json.compression)?;
        if json.tensors.len() > MAX_TENSORS {
            return Err(Error::Plan(format!("over {MAX_TENSORS} tensors")));
        }
        let wanted: Vec<PlanEntry> = json
            .tensors
            .into_iter()
            .map(EntryJson::into_entry)
            .collect::<Result<_>>()?;
        let mut names = HashSet::new();
        if let Some(twice) = wanted
            .iter()
            .find(|entry| !names.insert(&entry.tensor.name))
        {
            let name = &twice.tensor.name;
            return Err(Error::Plan(format!("tensor '{name}': duplicate name")));
        }
        let tensors = || {
            wanted
                .iter()
                .map(|entry| (&entry.tensor, Path::new("plan")))
        };
        let named =
            || Recognition::new(tensors().map(|(tensor, _)| tensor), &[], config.modality());
        // Classes may have given more information than names do.
        let model = match (json.families, Modality::from_name(&json.modality)) {
            (Some(families), Some(modality))
                if config.modality().is_none_or(|wanted| wanted == modality) =>
            {
                Recognition {
                    modality,
                    families,
                    evidence: json.evidence,
                }
            }
            _ => {
                let mut model = named();
                let source = json.evidence.into_iter();
                let source = source.filter(|text| text.starts_with(SOURCE));
                model.evidence.extend(source);
                model
            }
        };
        let packed = wanted.iter().filter_map(|entry| {
            let scheme = entry.packed.clone()?;
            Some((entry.tensor.name.clone(), scheme))
        });
        let packed = packed.collect();
        let unedited = Self::of_model(tensors(), model.clone(), &packed, &config)?;
        for (found, wanted) in unedited.entries.iter().zip(&wanted) {
            if let Some(rule) = found.rule_to(wanted)? {
                config.push_rule(rule);
            }
        }
        let mut plan = Self::of_model(tensors(), model, &packed, &config)?;
        plan.source_warnings = json.source_warnings;
        plan.streaming = json.streaming_mode;
        plan.memory_limit = json.memory_limit;
        plan.max_size = json.max_size;
        let (before, after) = (unedited.total_bytes() as u64, plan.total_bytes() as u64);
        plan.room = match (json.room, json.max_size) {
            (Some(room), _) => Some(room.saturating_add(before).saturating_sub(after)),
            // The room left is unknown.
            (None, Some(_)) => Some(0),
            (None, None) => None,
        };
        // Rules are only needed for edited entries.
        let same = unedited
            .entries
            .iter()
            .zip(&wanted)
            .map(|(a, b)| a.recipe == b.recipe);
        let entries = plan.entries.iter_mut().zip(&wanted).zip(same);
        for ((entry, wanted), same) in entries {
            if same && !wanted.reason.is_empty() {
                entry.reason.clone_from(&wanted.reason);
            }
        }
        plan.fail_fast = json.fail_fast;
        let input = json
            .calibration
            .map(|path| CalibrationInput::File(path.into()));
        match (&mut plan.calibrated, input) {
            (Some(calibrated), input) => calibrated.input = input,
            (None, None) => {}
            (None, Some(_)) => {
                let reason = "has a calibration, but config has no calibration_hash";
                return Err(Error::Plan(reason.to_owned()));
            }
        }
        // The rules were matched when the plan was made.
        plan.unused_rules.clear();
        Ok(plan)
    }
}

/// The JSON of a plan. Computed fields are for people and other programs, and are not read back.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanJson {
    arrowquant_plan: u32,
    #[serde(default)]
    modality: String,
    /// None in plans written before there were families.
    #[serde(default)]
    families: Option<Vec<String>>,
    #[serde(default)]
    evidence: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    source_warnings: Vec<String>,
    /// Warnings of the source, and those that follow from the rest of the plan.
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    total_bytes: usize,
    #[serde(default)]
    source_bytes: usize,
    compression: String,
    #[serde(default)]
    streaming_mode: bool,
    #[serde(default)]
    memory_limit: Option<u64>,
    #[serde(default)]
    max_size: Option<u64>,
    #[serde(default)]
    room: Option<u64>,
    #[serde(default)]
    fail_fast: bool,
    #[serde(default)]
    calibration: Option<String>,
    config: Value,
    tensors: Vec<EntryJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryJson {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    /// int2, int4, int8 or keep.
    format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_cosine: Option<f64>,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    bits_per_weight: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    packed: Option<String>,
    #[serde(default)]
    reason: String,
}

const KEEP: &str = "keep";

impl From<&PlanEntry> for EntryJson {
    fn from(entry: &PlanEntry) -> Self {
        let recipe = entry.recipe.as_ref();
        Self {
            name: entry.tensor.name.clone(),
            shape: entry.tensor.shape.dims().to_vec(),
            dtype: entry.tensor.dtype.name().to_owned(),
            format: recipe.map_or(KEEP, |r| r.format().name()).to_owned(),
            scheme: recipe.and_then(|r| Some(r.encoding.scheme()?.to_string())),
            group_size: recipe.and_then(|r| Some(u64::from(r.encoding.group_size()?.get()))),
            method: recipe.map(|r| r.method.to_string()),
            gain: recipe.map(|r| r.gain.to_string()),
            scale_dtype: recipe
                .filter(|r| r.encoding.spec().has_choices)
                .map(|r| r.scales.to_string()),
            min_cosine: Some(entry.min_cosine).filter(|c| *c != NO_MIN_COSINE),
            bytes: entry.bytes(),
            bits_per_weight: entry.bits_per_weight(),
            packed: entry.packed.clone(),
            reason: entry.reason.clone(),
        }
    }
}

impl EntryJson {
    fn into_entry(self) -> Result<PlanEntry> {
        let name = self.name.clone();
        let refuse = |reason: String| Error::Plan(format!("tensor '{name}': {reason}"));
        let field = |value: Option<String>, key: &str| {
            value.ok_or_else(|| refuse(format!("{key} is missing")))
        };
        let recipe = if self.format == KEEP {
            None
        } else {
            let read = || -> Result<Recipe> {
                let format: Format = rules::parse_named("keep, or a format", &self.format)?;
                let (mut choice, mut scales) = (Choice::DEFAULT, ScalePolicy::Auto);
                if format.spec().has_choices {
                    let size = self
                        .group_size
                        .ok_or_else(|| refuse("group_size is missing".into()))?;
                    let dtype = field(self.scale_dtype, "scale_dtype")?;
                    scales = rules::parse_named("scale_dtype", &dtype)?;
                    choice = Choice {
                        scheme: rules::parse_named("scheme", &field(self.scheme, "scheme")?)?,
                        group_size: GroupSize::new(size)
                            .ok_or_else(|| refuse(format!("{size} is not a group size")))?,
                        scale_dtype: scales.planned(),
                    };
                }
                Ok(Recipe {
                    encoding: format.encoding(choice),
                    method: rules::parse_named("method", &field(self.method, "method")?)?,
                    gain: rules::parse_named("gain", &field(self.gain, "gain")?)?,
                    scales,
                })
            };
            Some(read().map_err(|error| match error {
                Error::Config { key, reason } => refuse(format!("{key}: {reason}")),
                other => other,
            })?)
        };
        check_limits(&name, self.shape.len()).map_err(Error::Plan)?;
        let dtype = Dtype::from_name(&self.dtype)
            .ok_or_else(|| refuse(format!("unknown dtype '{}'", self.dtype)))?;
        let shape =
            Shape::new(self.shape).ok_or_else(|| refuse("its shape is too large".into()))?;
        if recipe.is_some() && (dtype.float().is_none() || shape.dims().is_empty()) {
            return Err(refuse(format!("{dtype} {shape} is never quantized")));
        }
        let tensor = TensorInfo {
            name: self.name,
            dtype,
            shape,
        };
        if tensor.bytes().is_none() {
            return Err(refuse(format!(
                "{dtype} {} does not fill whole bytes, or is too large",
                tensor.shape
            )));
        }
        let min_cosine = self.min_cosine.unwrap_or(NO_MIN_COSINE);
        if self.min_cosine.is_some_and(|c| !(0.0..=1.0).contains(&c)) {
            return Err(refuse(format!("{min_cosine} is not a cosine from 0 to 1")));
        }
        Ok(PlanEntry {
            tensor,
            recipe,
            min_cosine,
            packed: self.packed,
            reason: self.reason,
        })
    }
}
