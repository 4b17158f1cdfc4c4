//! Decides what each tensor gets, before any work. Pure data and pure functions.

mod budget;
mod calibrated;
mod candidates;
mod config;
mod evolve;
mod families;
mod json;
mod layouts;
mod mixed;
mod modality;
mod profile;
mod recognition;
mod rules;
mod sensitivity;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

pub use budget::Budget;
pub use budget::{Cost, spend};
pub use calibrated::{Calibrated, CalibrationInfo, CalibrationInput};
pub use candidates::{Candidate, Candidates};
pub use config::{Compression, Config, KEYS, OnNonFinite, OnPacked};
pub use evolve::{Evolve, Generation, Genes, Individual, Population, Scored};
pub use layouts::{FoldSet, LAYOUTS, NotFolded, Writer, fold_sets};
pub use mixed::{Choices, Open, bits_bound, cosine_bound};
pub use modality::Modality;
pub use profile::Profile;
pub use recognition::Recognition;
pub use rules::{NO_MIN_COSINE, Pattern, Rule};
pub use sensitivity::{Basis, Measured, Sensitivity};

use families::{Family, built_in_keep};

use crate::error::{Error, Result};
use crate::format::{Method, Recipe};
use crate::tensor::{Facts, TensorInfo};

/// The prefix of evidence that says how the source's tensors were converted.
pub const SOURCE: &str = "source: ";

/// What one tensor gets.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// The tensor.
    pub tensor: TensorInfo,
    /// The recipe for quantizing it, or `None` when it is kept.
    pub recipe: Option<Recipe>,
    /// Cosine that it must reach when quantized; [`NO_MIN_COSINE`] for none. The cosine is of its
    /// outputs if a calibration covers them, else of its weights. If it does not reach it, it gets
    /// more bits.
    pub min_cosine: f64,
    /// The scheme by which another quantizer has packed it, or the tensor it belongs to.
    pub packed: Option<String>,
    /// The reason, in a few words.
    pub reason: String,
}

impl PlanEntry {
    /// Predicted bytes of the planes, assuming f16 scales unless f32 is forced.
    pub fn bytes(&self) -> usize {
        self.bytes_as(self.recipe.as_ref())
    }

    /// Predicted bytes of the planes with another recipe.
    pub fn bytes_as(&self, recipe: Option<&Recipe>) -> usize {
        let shape = &self.tensor.shape;
        match recipe {
            Some(recipe) => {
                let row = recipe.planned().row_bytes(shape.cols());
                shape.rows().saturating_mul(row)
            }
            None => self.source_bytes(),
        }
    }

    /// Bytes of the values in the source.
    pub fn source_bytes(&self) -> usize {
        self.tensor.bytes().unwrap_or(0)
    }

    /// Keeps the tensor, because it has non-finite weights.
    pub fn keep_non_finite(&mut self) {
        self.recipe = None;
        self.reason = "has NaN or infinite weights".to_owned();
    }

    /// Whether quantizing does not make it smaller, as with very short rows.
    pub fn is_no_smaller(&self) -> bool {
        self.recipe.is_some() && self.bytes() > 0 && self.bytes() >= self.source_bytes()
    }

    /// Returns the rule that changes this entry to `wanted`, for the same tensor.
    fn rule_to(&self, wanted: &Self) -> Result<Option<Rule>> {
        if self.recipe == wanted.recipe && self.min_cosine == wanted.min_cosine {
            return Ok(None);
        }
        let pattern = Pattern::literal(&self.tensor.name)?;
        Ok(Some(match &wanted.recipe {
            Some(recipe) => Rule {
                min_cosine: (self.min_cosine != wanted.min_cosine).then_some(wanted.min_cosine),
                ..Rule::recipe(pattern, recipe)
            },
            None => Rule::keep(pattern),
        }))
    }

    /// Predicted bits per weight, or `None` without weights.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let weights = self.tensor.shape.elements();
        (weights > 0).then(|| self.bytes() as f64 * 8.0 / weights as f64)
    }
}

/// What every tensor of a model gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What the model generates.
    pub modality: Modality,
    /// The model's families, whose keep-lists apply.
    pub families: Vec<String>,
    /// Evidence for the modality, one sentence each; sentences that begin with [`SOURCE`] say how
    /// the source's tensors were converted.
    pub evidence: Vec<String>,
    /// Warnings from the source, one sentence each.
    pub source_warnings: Vec<String>,
    /// The settings that change values, as the file records them.
    pub config: Value,
    /// Compression of the file.
    pub compression: Compression,
    /// Whether to hold little in memory, even where that takes longer.
    pub streaming: bool,
    /// The memory limit of the run in bytes.
    pub memory_limit: Option<u64>,
    /// The most bytes of the file.
    pub max_size: Option<u64>,
    /// Bytes that planes may grow by if tensors do not reach their cosine: the rest of a budget.
    pub room: Option<u64>,
    /// Whether situations that the run normally handles are errors.
    pub fail_fast: bool,
    /// What to do with non-finite weights.
    pub on_nonfinite: OnNonFinite,
    /// How the calibration is used, if there is one.
    pub calibrated: Option<Calibrated>,
    /// One entry per tensor, in the order of the source.
    pub entries: Vec<PlanEntry>,
    /// Rules that matched no tensor, as text.
    pub unused_rules: Vec<String>,
}

impl Plan {
    /// Makes a plan; `tensors` come with the file that contains them, for messages.
    ///
    /// # Errors
    /// A rule gives bits to a tensor whose dtype is never quantized.
    pub fn new<'a>(
        tensors: impl Iterator<Item = (&'a TensorInfo, &'a Path)> + Clone,
        config: &Config,
    ) -> Result<Self> {
        Self::with_facts(tensors, &Facts::default(), config)
    }

    /// Makes a plan as [`Plan::new`] does, with what the source knows about the model: the classes
    /// that its files name ([`Recognition::new`]), and weights packed by another quantizer.
    ///
    /// # Errors
    /// The errors of [`Plan::new`]; or weights are packed, and the settings do not keep them.
    pub fn with_facts<'a>(
        tensors: impl Iterator<Item = (&'a TensorInfo, &'a Path)> + Clone,
        facts: &Facts,
        config: &Config,
    ) -> Result<Self> {
        if let (OnPacked::Error, Some((name, reason))) = (config.packed(), &facts.refusal) {
            let mut all = tensors.clone();
            let path = all.find(|(tensor, _)| tensor.name == *name);
            let path = path.map_or(Path::new("plan"), |(_, path)| path);
            let keep = "'packed: keep' (--packed keep) keeps such tensors";
            return Err(Error::tensor(path, name, format!("{reason}; {keep}")));
        }
        let infos = tensors.clone().map(|(tensor, _)| tensor);
        let mut model = Recognition::new(infos, &facts.classes, config.modality());
        let evidence = facts.evidence.iter().map(|text| format!("{SOURCE}{text}"));
        model.evidence.extend(evidence);
        let mut plan = Self::of_model(tensors, model, &facts.packed, config)?;
        plan.source_warnings.clone_from(&facts.warnings);
        Ok(plan)
    }

    /// Makes a plan for a model that was recognized.
    fn of_model<'a>(
        tensors: impl Iterator<Item = (&'a TensorInfo, &'a Path)>,
        model: Recognition,
        packed: &BTreeMap<String, String>,
        config: &Config,
    ) -> Result<Self> {
        let mut rules = Rules::new(config, &model.families);
        let entries = tensors
            .map(|(tensor, path)| {
                let packed = packed.get(&tensor.name).map(String::as_str);
                decide((tensor, packed), path, config, &mut rules)
            })
            .collect::<Result<Vec<_>>>()?;
        let rules = config.rules().iter().zip(rules.used);
        let calibrated = config.calibrated();
        if calibrated.is_none() {
            check_needs_none(&entries)?;
        }
        Ok(Self {
            modality: model.modality,
            families: model.families,
            evidence: model.evidence,
            source_warnings: Vec::new(),
            config: config.to_json(),
            compression: config.compression(),
            streaming: config.streaming(),
            memory_limit: config.memory_limit(),
            max_size: None,
            room: None,
            fail_fast: config.fail_fast(),
            on_nonfinite: config.on_nonfinite(),
            calibrated,
            entries,
            unused_rules: rules
                .filter(|(_, used)| !used)
                .map(|(rule, _)| rule.to_string())
                .collect(),
        })
    }

    /// Whether planes are stored compressed.
    pub fn compresses(&self) -> bool {
        self.compression == Compression::Zstd
    }

    /// Predicted bytes of all planes.
    pub fn total_bytes(&self) -> usize {
        self.sum(PlanEntry::bytes)
    }

    /// Bytes of all tensors in the source.
    pub fn source_bytes(&self) -> usize {
        self.sum(PlanEntry::source_bytes)
    }

    fn sum(&self, bytes: impl Fn(&PlanEntry) -> usize) -> usize {
        let entries = self.entries.iter();
        entries.fold(0, |sum: usize, entry| sum.saturating_add(bytes(entry)))
    }

    /// Changes what one tensor gets. `settings` are those of a rule, such as `keep` or
    /// `bits:8,group:64`, and become a rule for this tensor.
    ///
    /// # Errors
    /// There is no such tensor, a setting is not allowed, or the tensor's dtype is never quantized.
    /// The plan is then unchanged.
    pub fn set(&mut self, tensor: &str, settings: &str) -> Result<()> {
        let mut entries = self.entries.iter_mut();
        let Some(entry) = entries.find(|entry| entry.tensor.name == tensor) else {
            return Err(Error::Plan(format!("has no tensor '{tensor}'")));
        };
        let rule = Rule::new(Pattern::literal(tensor)?).with_settings(settings);
        let mut config = restore_config(&self.config, self.compression.name())?;
        config.push_rule(rule.map_err(|error| error.within(&format!("tensor '{tensor}'")))?);
        // The rule applies to this tensor only.
        let changed = decide(
            (&entry.tensor, entry.packed.as_deref()),
            Path::new("plan"),
            &config,
            &mut Rules::new(&config, &self.families),
        )?;
        if self.calibrated.is_none() {
            check_needs_none(std::slice::from_ref(&changed))?;
        }
        // The bytes it adds are no longer available for others.
        let (before, after) = (entry.bytes() as u64, changed.bytes() as u64);
        self.room = self
            .room
            .map(|room| room.saturating_add(before).saturating_sub(after));
        *entry = changed;
        self.config = config.to_json();
        Ok(())
    }

    /// Returns warnings about the plan, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let unused = self.unused_rules.iter();
        let unused = unused.map(|rule| format!("rule {rule} matches no tensor"));
        let mut warnings = self.source_warnings.clone();
        warnings.extend(unused);
        if self.max_size.is_some() && self.entries.iter().all(|entry| entry.recipe.is_none()) {
            let text = "max_size has room to keep all tensors: none is quantized";
            warnings.push(text.to_owned());
        }
        let mut no_smaller = self.entries.iter().filter(|entry| entry.is_no_smaller());
        if let Some(first) = no_smaller.next() {
            let others = match no_smaller.count() {
                0 => String::new(),
                count => format!(" and {count} others"),
            };
            let name = &first.tensor.name;
            warnings.push(format!(
                "{name}{others} would be no smaller than kept (rows too short)"
            ));
        }
        warnings
    }

    /// Checks that the plan is for these tensors, in this order.
    ///
    /// # Errors
    /// Returns the first difference, naming the tensor.
    pub fn check_matches(&self, tensors: &[TensorInfo]) -> Result<()> {
        for (entry, tensor) in self.entries.iter().zip(tensors) {
            if entry.tensor != *tensor {
                let describe = |t: &TensorInfo| format!("'{}' {} {}", t.name, t.dtype, t.shape);
                let (planned, found) = (describe(&entry.tensor), describe(tensor));
                return Err(Error::Plan(format!(
                    "has tensor {planned}, but the source has {found}"
                )));
            }
        }
        if self.entries.len() != tensors.len() {
            let (planned, found) = (self.entries.len(), tensors.len());
            return Err(Error::Plan(format!(
                "has {planned} tensors, but the source has {found}"
            )));
        }
        Ok(())
    }
}

/// Checks that no tensor has a method that requires a calibration.
fn check_needs_none(entries: &[PlanEntry]) -> Result<()> {
    let calibrated = |entry: &&PlanEntry| entry.recipe.is_some_and(|r| r.method == Method::Gptq);
    match entries.iter().find(calibrated) {
        None => Ok(()),
        Some(entry) => {
            let name = &entry.tensor.name;
            let reason = format!("gptq requires a calibration (tensor '{name}')");
            Err(Error::config("method", reason))
        }
    }
}

/// The configuration that a plan was made with.
fn restore_config(values: &Value, compression: &str) -> Result<Config> {
    let mut config = Config::new();
    let merged = config.merge_json(values);
    merged
        .and_then(|()| config.set("compression", compression))
        .map_err(|error| Error::Plan(error.to_string()))?;
    Ok(config)
}

/// The rules of a configuration, with rules for single names indexed by name: an edited plan has
/// one rule per tensor.
struct Rules<'a> {
    /// Families whose keep-lists apply.
    families: Vec<&'static Family>,
    rules: &'a [Rule],
    by_name: HashMap<&'a str, Vec<usize>>,
    others: Vec<usize>,
    /// Which rules have matched a tensor.
    used: Vec<bool>,
}

impl<'a> Rules<'a> {
    fn new(config: &'a Config, families: &[String]) -> Self {
        let rules = config.rules();
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut others = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            match rule.pattern.name() {
                Some(name) => by_name.entry(name).or_default().push(i),
                None => others.push(i),
            }
        }
        Self {
            families: families::families().named(families),
            rules,
            by_name,
            others,
            used: vec![false; rules.len()],
        }
    }

    /// Returns the rules that match a name, in order.
    fn matching(&mut self, name: &str) -> Vec<&'a Rule> {
        let mut found = self.by_name.get(name).cloned().unwrap_or_default();
        let others = self.others.iter().copied();
        found.extend(others.filter(|&i| self.rules[i].pattern.matches(name)));
        found.sort_unstable();
        for &i in &found {
            self.used[i] = true;
        }
        found.into_iter().map(|i| &self.rules[i]).collect()
    }
}

/// Decides for a tensor, given the scheme by which another quantizer has packed it.
fn decide(
    (tensor, packed): (&TensorInfo, Option<&str>),
    path: &Path,
    config: &Config,
    rules: &mut Rules<'_>,
) -> Result<PlanEntry> {
    let mut changes = rules.matching(&tensor.name);
    if packed.is_some() {
        // A pattern for many tensors was probably not meant for another quantizer's scales.
        changes.retain(|rule| rule.keep || rule.pattern.name().is_some());
    }
    // The last rule that keeps or gives bits decides whether the tensor is kept.
    let last = changes
        .iter()
        .rfind(|rule| rule.keep || rule.format.is_some());
    let scalar = tensor.shape.dims().is_empty();
    let kept_because = match last {
        Some(rule) if rule.keep => Some(format!("rule {rule}")),
        Some(rule) if tensor.dtype.float().is_none() => {
            let dtype = tensor.dtype;
            let only = "only f64, f32, f16, bf16 and f8 (e4m3, e5m2) can be quantized";
            let reason = format!("rule {rule} gives it bits, but it is {dtype}: {only}");
            return Err(Error::tensor(path, &tensor.name, reason));
        }
        _ if scalar => Some("scalar".to_owned()),
        _ if tensor.dtype.float().is_none() => Some(format!("{} is never quantized", tensor.dtype)),
        Some(_) => None,
        None if let Some(scheme) = packed => Some(format!("packed ({scheme})")),
        None => built_in_keep(tensor, &rules.families).map(str::to_owned),
    };
    if let Some(reason) = kept_because {
        return Ok(PlanEntry {
            tensor: tensor.clone(),
            packed: packed.map(str::to_owned),
            recipe: None,
            min_cosine: NO_MIN_COSINE,
            reason,
        });
    }
    let format = last.and_then(|rule| rule.format).unwrap_or(config.format());
    let mut recipe = config.recipe(format);
    let mut reason = "default".to_owned();
    let mut min_cosine = config.min_cosine();
    for rule in changes.iter().filter(|rule| !rule.keep) {
        rule.change(&mut recipe);
        min_cosine = rule.min_cosine.unwrap_or(min_cosine);
        reason = format!("rule {rule}");
    }
    Ok(PlanEntry {
        tensor: tensor.clone(),
        packed: packed.map(str::to_owned),
        recipe: Some(recipe),
        min_cosine,
        reason,
    })
}

#[cfg(test)]
mod tests;
