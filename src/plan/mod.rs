//! What each tensor gets, decided before any work. Pure data and pure functions.

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
mod rules;
mod sensitivity;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

pub use budget::{Cost, spend};
pub use calibrated::{Calibrated, CalibrationInfo, CalibrationInput};
pub use candidates::{Candidate, Candidates};
pub use config::{Compression, Config, KEYS, OnNonFinite, OnPacked};
pub use evolve::{Evolve, Generation, Genes, Individual, Population, Scored};
pub use layouts::{FoldSet, LAYOUTS, NotFolded, Writer, fold_sets};
pub use mixed::{Budget, Choices, Open, bits_bound, cosine_bound};
pub use modality::{Modality, Recognition};
pub use profile::Profile;
pub use rules::{NO_MIN_COSINE, Pattern, Rule};
pub use sensitivity::{Basis, Measured, Sensitivity};

use families::{Family, built_in_keep};

use crate::error::{Error, Result};
use crate::format::{Method, Recipe};
use crate::tensor::{Facts, TensorInfo};

/// What evidence begins with that says what was made of the source's tensors.
pub const SOURCE: &str = "source: ";

/// What one tensor gets.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanEntry {
    /// The tensor.
    pub tensor: TensorInfo,
    /// How it is quantized, or `None` when it is kept.
    pub recipe: Option<Recipe>,
    /// Cosine that it must reach when it is quantized; [`NO_MIN_COSINE`] for none. Of its outputs
    /// where a calibration tells of them, else of its weights. If it does not, it gets more bits.
    pub min_cosine: f64,
    /// The scheme by which another quantizer has packed it, or what it lies beside.
    pub packed: Option<String>,
    /// Why, in a few words.
    pub reason: String,
}

impl PlanEntry {
    /// Predicted bytes of its planes, f16 scales assumed unless f32 is forced.
    pub fn bytes(&self) -> usize {
        self.bytes_as(self.recipe.as_ref())
    }

    /// The same if the tensor were stored so.
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

    /// Bytes of its values in the source.
    pub fn source_bytes(&self) -> usize {
        self.tensor.bytes().unwrap_or(0)
    }

    /// Keeps it after all.
    pub fn keep_non_finite(&mut self) {
        self.recipe = None;
        self.reason = "has NaN or infinite weights".to_owned();
    }

    /// Whether quantizing makes it no smaller, as with very short rows.
    pub fn is_no_smaller(&self) -> bool {
        self.recipe.is_some() && self.bytes() > 0 && self.bytes() >= self.source_bytes()
    }

    /// The rule that makes this entry that one, of the same tensor.
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
    /// The families of models that it is of, whose lists of what to keep count.
    pub families: Vec<String>,
    /// What says so, a sentence each; those that begin with [`SOURCE`] say what was made of the
    /// source's tensors.
    pub evidence: Vec<String>,
    /// What the source has to tell whoever quantizes it, a sentence each.
    pub source_warnings: Vec<String>,
    /// The settings that change values, as the file records them.
    pub config: Value,
    /// Compression of the file.
    pub compression: Compression,
    /// Whether little is held in memory, even where that takes longer.
    pub streaming: bool,
    /// Bytes that the run may take in memory, all in all.
    pub memory_limit: Option<u64>,
    /// Bytes that the file may have.
    pub max_size: Option<u64>,
    /// Bytes that planes may grow by where tensors do not reach their cosine: what a budget leaves.
    pub room: Option<u64>,
    /// Whether what the run would rather mend by itself is an error.
    pub fail_fast: bool,
    /// What to do with non-finite weights.
    pub on_nonfinite: OnNonFinite,
    /// What a calibration is used for, where there is one.
    pub calibrated: Option<Calibrated>,
    /// One entry a tensor, in the order of the source.
    pub entries: Vec<PlanEntry>,
    /// Rules that matched no tensor, as text.
    pub unused_rules: Vec<String>,
}

impl Plan {
    /// Decides for every tensor; `tensors` come with the file that holds them, for messages.
    ///
    /// # Errors
    /// A rule gives bits to a tensor whose dtype is never quantized.
    pub fn new<'a>(
        tensors: impl Iterator<Item = (&'a TensorInfo, &'a Path)> + Clone,
        config: &Config,
    ) -> Result<Self> {
        Self::with_facts(tensors, &Facts::default(), config)
    }

    /// As [`Plan::new`], with what the source knows of the model: the classes that its files name
    /// ([`Recognition::new`]), and weights that another quantizer has packed.
    ///
    /// # Errors
    /// As there; weights are packed, and the settings do not keep them.
    pub fn with_facts<'a>(
        tensors: impl Iterator<Item = (&'a TensorInfo, &'a Path)> + Clone,
        facts: &Facts,
        config: &Config,
    ) -> Result<Self> {
        if let (OnPacked::Error, Some((name, reason))) = (config.packed(), &facts.refusal) {
            let mut all = tensors.clone();
            let path = all.find(|(tensor, _)| tensor.name == *name);
            let path = path.map_or(Path::new("plan"), |(_, path)| path);
            let keep = "'packed: keep' (--packed keep) keeps such tensors as they are";
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

    /// Decides for every tensor of a model that was recognized.
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
    /// `bits:8,group:64`, and become one for this tensor.
    ///
    /// # Errors
    /// There is no such tensor, a setting is not allowed, or the tensor's dtype is never
    /// quantized. The plan is then as it was.
    pub fn set(&mut self, tensor: &str, settings: &str) -> Result<()> {
        let mut entries = self.entries.iter_mut();
        let Some(entry) = entries.find(|entry| entry.tensor.name == tensor) else {
            return Err(Error::Plan(format!("has no tensor '{tensor}'")));
        };
        let rule = Rule::new(Pattern::literal(tensor)?).with_settings(settings);
        let mut config = restore_config(&self.config, self.compression.name())?;
        config.push_rule(rule.map_err(|error| error.within(&format!("tensor '{tensor}'")))?);
        // The rule is for this tensor alone.
        let changed = decide(
            (&entry.tensor, entry.packed.as_deref()),
            Path::new("plan"),
            &config,
            &mut Rules::new(&config, &self.families),
        )?;
        if self.calibrated.is_none() {
            check_needs_none(std::slice::from_ref(&changed))?;
        }
        // What it takes more is not there for others.
        let (before, after) = (entry.bytes() as u64, changed.bytes() as u64);
        self.room = self
            .room
            .map(|room| room.saturating_add(before).saturating_sub(after));
        *entry = changed;
        self.config = config.to_json();
        Ok(())
    }

    /// What the plan does that was hardly meant, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let unused = self.unused_rules.iter();
        let unused = unused.map(|rule| format!("rule {rule} matches no tensor"));
        let mut warnings = self.source_warnings.clone();
        warnings.extend(unused);
        if self.max_size.is_some() && self.entries.iter().all(|entry| entry.recipe.is_none()) {
            let text = "max_size has room for all tensors as they are: none is quantized";
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

    /// Checks that the plan is one for these tensors, in this order.
    ///
    /// # Errors
    /// The first difference, naming the tensor.
    pub fn check_matches(&self, tensors: &[TensorInfo]) -> Result<()> {
        for (entry, tensor) in self.entries.iter().zip(tensors) {
            if entry.tensor != *tensor {
                let describe = |t: &TensorInfo| format!("'{}' {} {}", t.name, t.dtype, t.shape);
                let (planned, found) = (describe(&entry.tensor), describe(tensor));
                return Err(Error::Plan(format!(
                    "has tensor {planned} where the source has {found}"
                )));
            }
        }
        if self.entries.len() != tensors.len() {
            let (planned, found) = (self.entries.len(), tensors.len());
            return Err(Error::Plan(format!(
                "has {planned} tensors, the source {found}"
            )));
        }
        Ok(())
    }
}

/// Without a calibration no tensor can have a method that takes one.
fn check_needs_none(entries: &[PlanEntry]) -> Result<()> {
    let calibrated = |entry: &&PlanEntry| entry.recipe.is_some_and(|r| r.method == Method::Gptq);
    match entries.iter().find(calibrated) {
        None => Ok(()),
        Some(entry) => {
            let name = &entry.tensor.name;
            let reason = format!("tensor '{name}' is to have gptq, which takes a calibration");
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

/// The rules of a configuration, those for single names by name: a plan that was edited has one
/// a tensor.
struct Rules<'a> {
    /// Whose lists of what to keep count.
    families: Vec<&'static Family>,
    rules: &'a [Rule],
    by_name: HashMap<&'a str, Vec<usize>>,
    others: Vec<usize>,
    /// Which have matched a tensor.
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

    /// Those that match a name, in order.
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

/// Decides for a tensor, with the scheme that another quantizer has packed it by.
fn decide(
    (tensor, packed): (&TensorInfo, Option<&str>),
    path: &Path,
    config: &Config,
    rules: &mut Rules<'_>,
) -> Result<PlanEntry> {
    let mut changes = rules.matching(&tensor.name);
    if packed.is_some() {
        // A pattern for many tensors was hardly meant for the scales of another quantizer.
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
