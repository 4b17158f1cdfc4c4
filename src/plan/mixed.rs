//! Plans whose tensors get different formats, as a budget allows.

use std::collections::HashSet;

use bytesize::ByteSize;

use super::budget::{Budget, Cost, spend};
use super::rules::{NO_MIN_COSINE, Pattern, Rule};
use super::sensitivity::{Basis, Sensitivity};
use super::{Config, Plan, PlanEntry, Rules};
use crate::error::{Error, Result};
use crate::format::Recipe;

/// A tensor that a budget or a search decides on.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// Index in the plan.
    pub tensor: usize,
    /// The ways to store the tensor; `None` keeps it.
    pub ways: Vec<Option<Recipe>>,
}

impl Plan {
    /// Returns the tensors that `config`, with which the plan was made, leaves open: neither
    /// keep-lists nor rules decide whether they are kept, or how many bits they get. Groups, scheme
    /// and other settings of a rule apply to all ways to store them.
    pub fn open(&self, config: &Config) -> Vec<Open> {
        let all = config.candidates();
        let mut rules = Rules::new(config, &self.families);
        let mut open = Vec::new();
        for (tensor, entry) in self.entries.iter().enumerate() {
            let changes = rules.matching(&entry.tensor.name);
            let decided = changes
                .iter()
                .any(|rule| rule.keep || rule.format.is_some());
            if entry.recipe.is_none() || decided {
                continue;
            }
            let mut ways: Vec<Option<Recipe>> = Vec::with_capacity(all.len());
            for way in &all {
                let mut way = *way;
                if let Some(recipe) = &mut way {
                    changes.iter().for_each(|rule| rule.change(recipe));
                }
                // A way that is not smaller than keeping the tensor is useless.
                let useful = way.is_none() || entry.bytes_as(way.as_ref()) < entry.source_bytes();
                if useful && !ways.contains(&way) {
                    ways.push(way);
                }
            }
            if ways.is_empty() {
                // None of the allowed ways is smaller.
                ways.push(None);
            }
            open.push(Open { tensor, ways });
        }
        open
    }

    /// Gives each open tensor one of the measured ways: the least sum of relative errors that the
    /// budget allows, or the fewest bytes if it sets no limit. All tensors count equally, whatever
    /// their size: the loss in a layer's output enters the model either way. `overhead` is the size
    /// of the file without its planes.
    ///
    /// # Errors
    /// The budget is impossible; the message has the arithmetic.
    pub fn spend(
        &mut self,
        config: &Config,
        budget: Budget,
        sensitivities: &[Sensitivity],
        overhead: u64,
    ) -> Result<()> {
        let choices = Choices::new(self, budget, sensitivities, overhead);
        let limit = choices.limit();
        let chosen = choices.solve()?;
        self.choose(config, sensitivities, &chosen, "budget")?;
        self.limit(budget, limit, sensitivities);
        Ok(())
    }

    /// Records how much of the budget the planes of open tensors leave.
    pub fn limit(&mut self, budget: Budget, limit: Option<u64>, sensitivities: &[Sensitivity]) {
        let taken = sensitivities
            .iter()
            .map(|s| self.entries[s.tensor].bytes() as u64);
        let taken = taken.fold(0, u64::saturating_add);
        self.max_size = budget.max_size;
        self.room = limit.map(|limit| limit.saturating_sub(taken));
    }

    /// Gives each open tensor one of its ways; `by` names the chooser, for the reasons. `config` is
    /// the one with which the plan was made.
    ///
    /// # Errors
    /// None are known: every name can be spelled as a pattern.
    pub fn choose(
        &mut self,
        config: &Config,
        sensitivities: &[Sensitivity],
        chosen: &[usize],
        by: &str,
    ) -> Result<()> {
        let mut config = config.clone();
        for (sensitivity, &way) in sensitivities.iter().zip(chosen) {
            let measured = &sensitivity.measured[way];
            let on = match sensitivity.basis {
                Basis::Weights => "",
                Basis::Outputs => " of outputs",
                Basis::Gaussian => " on Gaussian weights",
            };
            let reason = match measured.recipe {
                None => format!("{by}: kept"),
                Some(_) => format!("{by}: cosine{on} {:.4} on a sample", measured.cosine),
            };
            self.give(&mut config, sensitivity.tensor, measured.recipe, reason)?;
        }
        self.config = config.to_json();
        Ok(())
    }

    /// Gives a tensor a recipe, or keeps it. If the settings differ, they get a rule for the
    /// tensor, so that the file records what it was made with.
    pub(super) fn give(
        &mut self,
        config: &mut Config,
        tensor: usize,
        recipe: Option<Recipe>,
        reason: String,
    ) -> Result<()> {
        let entry = &mut self.entries[tensor];
        let wanted = PlanEntry {
            recipe,
            min_cosine: match recipe {
                Some(_) => entry.min_cosine,
                None => NO_MIN_COSINE,
            },
            reason,
            tensor: entry.tensor.clone(),
            packed: entry.packed.clone(),
        };
        if let Some(rule) = entry.rule_to(&wanted)? {
            config.push_rule(rule);
        }
        *entry = wanted;
        Ok(())
    }
}

/// The choices of a budget.
pub struct Choices<'a> {
    plan: &'a Plan,
    budget: Budget,
    sensitivities: &'a [Sensitivity],
    /// Bytes of planes that are already decided, and of the file itself.
    fixed: u64,
    overhead: u64,
    /// The ways of each tensor, with their indexes.
    ways: Vec<Vec<(usize, Cost)>>,
    /// Number of weights of all open tensors.
    weights: u64,
}

impl<'a> Choices<'a> {
    /// Collects the ways that a budget may choose for each tensor: those that reach its
    /// `min_cosine`, or the one with the highest cosine if none does.
    pub fn new(
        plan: &'a Plan,
        budget: Budget,
        sensitivities: &'a [Sensitivity],
        overhead: u64,
    ) -> Self {
        let open = sensitivities
            .iter()
            .map(|s| s.tensor)
            .collect::<HashSet<_>>();
        let others = plan.entries.iter().enumerate();
        let others = others.filter(|(i, _)| !open.contains(i));
        let fixed = others.map(|(_, entry)| entry.bytes() as u64);
        let weights = sensitivities
            .iter()
            .map(|s| plan.entries[s.tensor].tensor.shape.elements() as u64);
        let ways = |gated: bool, s: &Sensitivity| {
            let entry = &plan.entries[s.tensor];
            let least = entry.min_cosine;
            let passes = |cosine: f64| !gated || (1.0 - cosine) <= (1.0 - least) * MARGIN;
            let ways = s.measured.iter().enumerate();
            let ways = ways.filter(|(_, m)| m.recipe.is_none() || passes(m.cosine));
            ways.map(|(i, m)| {
                let cost = Cost {
                    bytes: entry.bytes_as(m.recipe.as_ref()) as u64,
                    error: m.error,
                };
                (i, cost)
            })
            .collect::<Vec<_>>()
        };
        let each = sensitivities.iter().map(|s| {
            let passing = ways(true, s);
            match passing.is_empty() {
                // Without `keep` among the candidates: the one with the highest cosine.
                true => most_alike(s, &ways(false, s)),
                false => passing,
            }
        });
        // Each tensor may get a rule in the recorded settings.
        let rules = sensitivities.iter().map(|s| {
            let name = &plan.entries[s.tensor].tensor.name;
            let recipes = s.measured.iter().filter_map(|m| m.recipe.as_ref());
            let rules = recipes.map(|recipe| recorded_bytes(name, recipe));
            rules.max().unwrap_or(0)
        });
        Self {
            budget,
            sensitivities,
            fixed: fixed.fold(0, u64::saturating_add),
            overhead: rules.fold(overhead, u64::saturating_add),
            ways: each.collect(),
            weights: weights.fold(0, u64::saturating_add),
            plan,
        }
    }

    /// Returns the ways of each open tensor: index among the measured ones, bytes and error.
    pub fn ways(&self) -> &[Vec<(usize, Cost)>] {
        &self.ways
    }

    /// Returns the bytes that the planes of open tensors may take; `None` without a limit.
    pub fn limit(&self) -> Option<u64> {
        let size = self.budget.max_size;
        let size = size.map(|size| size.saturating_sub(self.others()));
        let bits = self.budget.avg_bits;
        let bits = bits.map(|bits| self.bytes(bits));
        // Not compared as options: valgrind reports the compiled comparison as uninitialized.
        let limits = [size, bits, self.budget.planes].map(|limit| limit.unwrap_or(u64::MAX));
        let least = limits.into_iter().fold(u64::MAX, u64::min);
        (least < u64::MAX).then_some(least)
    }

    /// Returns the fewest bytes that the planes of open tensors can take.
    pub fn least(&self) -> u64 {
        let least = self.ways.iter().map(|ways| smallest(ways).1.bytes);
        least.fold(0, u64::saturating_add)
    }

    /// Returns the bytes of everything except the planes of open tensors.
    fn others(&self) -> u64 {
        self.fixed.saturating_add(self.overhead)
    }

    /// Returns the index of the chosen way for each open tensor.
    ///
    /// # Errors
    /// The budget is impossible; the message has the arithmetic.
    pub fn solve(&self) -> Result<Vec<usize>> {
        let Some(limit) = self.limit() else {
            return Ok(self.ways.iter().map(|ways| smallest(ways).0).collect());
        };
        if self
            .budget
            .max_size
            .is_some_and(|size| size < self.others())
        {
            return Err(self.refuse());
        }
        let costs = |ways: &Vec<(usize, Cost)>| ways.iter().map(|way| way.1).collect();
        let items: Vec<Vec<Cost>> = self.ways.iter().map(costs).collect();
        match spend(&items, limit) {
            Some(chosen) => {
                let index = |(ways, at): (&Vec<(usize, Cost)>, usize)| ways[at].0;
                Ok(self.ways.iter().zip(chosen).map(index).collect())
            }
            None => Err(self.refuse()),
        }
    }

    /// Explains, with the arithmetic, why the budget is impossible.
    fn refuse(&self) -> Error {
        let sum = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        let least = self.least();
        let any = sum(&mut self.sensitivities.iter().map(|s| self.smallest_of_all(s)));
        let others = self.others();
        let bits_of = |bytes: u64| format!("{:.3} bits", self.bits(bytes));
        let file_of = |bytes: u64| show(others.saturating_add(bytes));
        let sized = self
            .budget
            .max_size
            .map(|size| (size, size.saturating_sub(others)));
        let (key, budget, room) = match (sized, self.budget) {
            (Some((size, room)), _) if room < least || size < others => {
                ("max_size", show(size), room)
            }
            (
                _,
                Budget {
                    avg_bits, planes, ..
                },
            ) => match avg_bits {
                Some(bits) => ("avg_bits", format!("{bits} bits"), self.bytes(bits)),
                None => (
                    "candidates",
                    bits_of(planes.unwrap_or(0)),
                    planes.unwrap_or(0),
                ),
            },
        };
        let show_of = |bytes: u64| match key {
            "max_size" => file_of(bytes),
            _ => bits_of(bytes),
        };
        let mut text = format!(
            "{budget} is too small: the smallest possible with the allowed formats is {}",
            show_of(least)
        );
        if least > any {
            let without = show_of(any);
            text += &format!(" if every tensor must reach its min_cosine, {without} otherwise");
        }
        if self.weights == 0 {
            return Error::config(key, format!("{text}, because nothing is left to choose"));
        }
        text += &format!(
            " ({} weights to quantize at {} each",
            self.weights,
            bits_of(least)
        );
        if key == "max_size" {
            let (kept, own) = (show(self.fixed), show(self.overhead));
            text += &format!(", {kept} for other tensors, {own} for the file itself");
        }
        let bits = self.bits(room);
        text += &format!(
            "). The budget leaves {bits:.2} bits per weight, at which iid Gaussian weights cannot exceed \
             cosine {:.2} in any format",
            cosine_bound(bits)
        );
        let wanted = self.sensitivities.iter();
        let wanted = wanted.map(|s| self.plan.entries[s.tensor].min_cosine);
        let wanted = wanted.fold(f64::INFINITY, f64::min);
        if wanted > 0.0 && wanted < 1.0 {
            let needed = bits_bound(wanted);
            let bytes = show(self.bytes(needed));
            text += &format!("; for {wanted:.2} they need {needed:.3} bits, {bytes}");
        }
        Error::config(key, text)
    }

    /// Returns the bits per weight if all open tensors take this many bytes.
    fn bits(&self, bytes: u64) -> f64 {
        bytes as f64 * 8.0 / self.weights as f64
    }

    /// Returns the bytes of all open tensors at this many bits per weight.
    fn bytes(&self, bits: f64) -> u64 {
        (bits * self.weights as f64 / 8.0) as u64
    }

    /// Returns the bytes of the smallest way, whatever its cosine.
    fn smallest_of_all(&self, s: &Sensitivity) -> u64 {
        let entry = &self.plan.entries[s.tensor];
        let bytes = s.measured.iter().map(|m| entry.bytes_as(m.recipe.as_ref()));
        bytes.min().unwrap_or(0) as u64
    }
}

/// The part of the distance from `min_cosine` to 1 that a cosine on a sample may leave: the cosine
/// over all rows may be slightly lower.
const MARGIN: f64 = 0.97;

/// Returns the bytes of the rule that gives a tensor a recipe, as recorded in the file.
fn recorded_bytes(name: &str, recipe: &Recipe) -> u64 {
    let rule = Pattern::literal(name).map(|pattern| Rule::recipe(pattern, recipe).to_string());
    serde_json::json!(rule.unwrap_or_default())
        .to_string()
        .len() as u64
        + 1
}

/// Returns the smallest way; of equally small ones, the one with the least error.
fn smallest(ways: &[(usize, Cost)]) -> (usize, Cost) {
    let order = |a: &Cost, b: &Cost| a.bytes.cmp(&b.bytes).then(a.error.total_cmp(&b.error));
    let least = ways.iter().copied().min_by(|a, b| order(&a.1, &b.1));
    least.unwrap_or((
        0,
        Cost {
            bytes: 0,
            error: 0.0,
        },
    ))
}

fn most_alike(s: &Sensitivity, ways: &[(usize, Cost)]) -> Vec<(usize, Cost)> {
    let cosine = |way: &(usize, Cost)| s.measured[way.0].cosine;
    let most = ways
        .iter()
        .copied()
        .max_by(|a, b| cosine(a).total_cmp(&cosine(b)));
    most.into_iter().collect()
}

/// Returns the highest cosine that a code with this many bits can have on iid Gaussian weights, by
/// the rate-distortion function of Shannon (1959).
pub fn cosine_bound(bits: f64) -> f64 {
    libm::sqrt(1.0 - libm::exp2(-2.0 * bits))
}

/// Returns the fewest bits with which iid Gaussian weights can reach a cosine.
pub fn bits_bound(cosine: f64) -> f64 {
    -0.5 * libm::log2(1.0 - cosine * cosine)
}

fn show(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}
