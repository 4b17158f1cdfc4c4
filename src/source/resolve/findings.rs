//! Finds tensors of a source that are not plain weights.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::blocks::Fit;
use super::f8::{self, Meaning};
use super::names::{INPUTS, Names};
use super::packed::{self, PackedTensors};
use super::said::Said;
use super::scaled::{Scaled, TRUE};
use crate::source::Source;
use crate::tensor::{Dtype, TensorInfo};

/// The scheme name for f8 weights with an ambiguous scale.
const UNCERTAIN: &str = "f8 with an uncertain scale";

/// The findings about a source's tensors.
pub(super) struct Findings {
    pub(super) scaled: Vec<Scaled>,
    /// Tensors that are left out, because they belong to others.
    pub(super) left_out: BTreeSet<usize>,
    pub(super) packed: PackedTensors,
    /// Reasons why packed tensors cannot be read, by the first such tensor.
    uncertain: BTreeMap<usize, String>,
    pub(super) warnings: Vec<String>,
}

impl Findings {
    pub(super) fn of(source: &dyn Source) -> Self {
        let names = Names::new(source.tensors());
        let said = Said::of(source, &names);
        let mut found = Self {
            scaled: Vec::new(),
            left_out: BTreeSet::new(),
            packed: PackedTensors::new(),
            uncertain: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let plain = found.find_f8(&names, &said);
        let taken = found.scaled.iter().flat_map(|s| [s.weight, s.scale]);
        let taken: HashSet<usize> = taken.chain(found.left_out.iter().copied()).collect();
        for (tensor, scheme) in packed::find(&names, &said, &taken) {
            found.packed.entry(tensor).or_insert(scheme);
        }
        for (tensors, reason) in packed::stray_scales(&names, &taken, &found.packed) {
            found.refuse(&tensors, reason);
        }
        found.left_out.extend(found.scaled.iter().map(|s| s.scale));
        let plain = plain.into_iter().filter(|i| !found.packed.contains_key(i));
        let plain: Vec<usize> = plain.collect();
        found.warn_of_plain(&names, &plain);
        for (prefix, method) in said.methods() {
            let packed = found.packed.keys().map(|&i| &names.tensors[i].name);
            let scaled = found.scaled.iter().map(|s| &names.tensors[s.weight].name);
            if !packed.chain(scaled).any(|name| name.starts_with(prefix)) {
                let of = if prefix.is_empty() { "" } else { " of " };
                found.warnings.push(format!(
                    "the files{of}{} say that weights were packed by {method}, but none are \
                     packed here",
                    prefix.trim_end_matches('.')
                ));
            }
        }
        found
    }

    /// Whether all tensors are plain.
    pub(super) fn are_none(&self) -> bool {
        self.scaled.is_empty() && self.left_out.is_empty() && self.packed.is_empty()
    }

    /// Records that these tensors have no certain meaning, with the reason.
    fn refuse(&mut self, tensors: &[usize], reason: String) {
        for &tensor in tensors {
            self.packed.insert(tensor, UNCERTAIN.to_owned());
        }
        self.uncertain.insert(tensors[0], reason);
    }

    /// Finds f8 weights with scales. Returns f8 matrices without.
    fn find_f8(&mut self, names: &Names<'_>, said: &Said) -> Vec<usize> {
        let mut plain = Vec::new();
        let mut fits: Vec<(usize, usize, Fit)> = Vec::new();
        for (weight, info) in names.tensors.iter().enumerate() {
            match f8::meaning(names, said, weight) {
                None => {}
                Some(Meaning::Marker) => drop(self.left_out.insert(weight)),
                Some(Meaning::Plain) if info.shape.dims().len() >= 2 => plain.push(weight),
                Some(Meaning::Plain) => {}
                Some(Meaning::Scaled(scale, fit)) => fits.push((weight, scale, fit)),
                Some(Meaning::Uncertain(tensors, reason)) => self.refuse(&tensors, reason),
                Some(Meaning::Packed(scheme, tensors)) => {
                    let tensors = tensors.into_iter();
                    self.packed
                        .extend(tensors.map(|tensor| (tensor, scheme.clone())));
                }
            }
        }
        let certain = fits.iter().flat_map(|(_, _, fit)| fit.certain());
        let known: BTreeSet<usize> = certain.collect();
        for (weight, scale, fit) in fits {
            let pair = (&names.tensors[weight], &names.tensors[scale]);
            match f8::blocks(pair, &fit, said, &known) {
                Ok(blocks) => {
                    self.left_out.extend(names.beside(&pair.0.name, INPUTS));
                    self.scaled.push(Scaled {
                        weight,
                        scale,
                        blocks,
                    });
                }
                Err(reason) => self.refuse(&[weight, scale], reason),
            }
        }
        plain
    }

    fn warn_of_plain(&mut self, names: &Names<'_>, plain: &[usize]) {
        if let (Some(&first), false) = (plain.first(), self.scaled.is_empty()) {
            let name = &names.tensors[first].name;
            self.warnings.push(format!(
                "{} without a scale, although others have one, are used unchanged: {name}{}",
                count(plain.len(), "f8 matrix", "f8 matrices"),
                others(plain.len())
            ));
        }
    }

    /// Describes how the tensors were converted or combined, in sentences.
    pub(super) fn evidence(&self, tensors: &[TensorInfo]) -> Vec<String> {
        let mut evidence = Vec::new();
        let mut by_kind: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for scaled in &self.scaled {
            let names = by_kind.entry(scaled.blocks.describe()).or_default();
            names.push(&tensors[scaled.scale].name);
        }
        for (kind, names) in by_kind {
            evidence.push(format!(
                "{} multiplied by {}, {kind}, and rounded to {TRUE}: {}",
                count(names.len(), "f8 weight is", "f8 weights are"),
                if names.len() == 1 {
                    "its scale"
                } else {
                    "their scales"
                },
                names.join(", ")
            ));
        }
        let scales: HashSet<usize> = self.scaled.iter().map(|s| s.scale).collect();
        let rest = self.left_out.iter().filter(|i| !scales.contains(i));
        let rest: Vec<&str> = rest.map(|&i| tensors[i].name.as_str()).collect();
        if !rest.is_empty() {
            evidence.push(format!(
                "{} left out, because they only belong to f8 weights: {}",
                count(rest.len(), "tensor", "tensors"),
                rest.join(", ")
            ));
        }
        let f64s = tensors
            .iter()
            .filter(|tensor| tensor.dtype == Dtype::F64 && tensor.shape.dims().len() >= 2);
        let f64s: Vec<&str> = f64s.map(|tensor| tensor.name.as_str()).collect();
        if !f64s.is_empty() {
            evidence.push(format!(
                "{} f64, read as f32 where quantized: {}",
                count(f64s.len(), "tensor is", "tensors are"),
                f64s.join(", ")
            ));
        }
        let mut by_scheme: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (&i, scheme) in &self.packed {
            by_scheme.entry(scheme).or_default().push(&tensors[i].name);
        }
        for (scheme, names) in by_scheme {
            evidence.push(format!(
                "{} already quantized ({scheme}): {}",
                count(names.len(), "tensor is", "tensors are"),
                names.join(", ")
            ));
        }
        evidence
    }

    /// Returns the tensor that best shows why weights cannot be quantized, and the reason.
    pub(super) fn refusal(&self, tensors: &[TensorInfo]) -> Option<(String, String)> {
        if let Some((&tensor, reason)) = self.uncertain.iter().next() {
            return Some((tensors[tensor].name.clone(), reason.clone()));
        }
        let (&tensor, scheme) = self.packed.iter().next()?;
        let beside = match self.packed.len() - 1 {
            0 => String::new(),
            more => format!(", like {more} other tensors"),
        };
        let reason =
            format!("already quantized ({scheme}){beside}: start from the original weights");
        Some((tensors[tensor].name.clone(), reason))
    }
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Returns the text that follows the first of several names.
fn others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    }
}
