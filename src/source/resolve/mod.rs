//! Resolves tensors that belong together.
//!
//! f8 weights come with scales, and a weight is its value times its scale: the f8 tensor alone
//! would be wrong by a factor of hundreds. Here they become true weights. Weights packed by another
//! quantizer are also found, so that none of its scales, zero points or codebooks is mistaken for a
//! weight.

mod blocks;
mod f8;
mod findings;
mod names;
mod packed;
mod said;
mod scaled;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use self::findings::Findings;
use self::names::split;
use self::said::{LAYERS, without_layers};
use self::scaled::{Scaled, TRUE};
use super::{FileState, QuantizationConfig, Source, SourceId};
use crate::error::Result;
use crate::tensor::{Facts, TensorInfo};

/// Resolves the tensors of `source`. f8 weights with scales become bf16 weights: each value times
/// its scale in f32, rounded half to even. Their scales are no longer separate tensors. Packed
/// weights are recorded in the source's facts, for plans to act on.
pub fn resolve<'a>(source: Box<dyn Source + 'a>) -> Box<dyn Source + 'a> {
    if source.facts().is_some() {
        return source;
    }
    let found = Findings::of(source.as_ref());
    Box::new(Resolved::new(source, found))
}

/// Whether [`resolve`] would change tensors of `source` or find packed ones.
pub(crate) fn needs_resolving(source: &dyn Source) -> bool {
    source.facts().is_none() && !Findings::of(source).are_none()
}

/// A source with true weights.
struct Resolved<'a> {
    inner: Box<dyn Source + 'a>,
    tensors: Vec<TensorInfo>,
    origins: Vec<Origin>,
    metadata: BTreeMap<String, String>,
    facts: Facts,
}

/// The origin of a tensor's values.
enum Origin {
    /// A tensor of the inner source.
    AsIs(usize),
    Scaled(Scaled),
}

impl<'a> Resolved<'a> {
    fn new(inner: Box<dyn Source + 'a>, found: Findings) -> Self {
        let all = inner.tensors();
        let packed = found.packed.iter();
        let mut warnings = inner.warnings();
        warnings.extend(found.warnings.iter().cloned());
        let facts = Facts {
            classes: inner.classes(),
            packed: packed
                .map(|(&i, scheme)| (all[i].name.clone(), scheme.clone()))
                .collect(),
            refusal: found.refusal(all),
            evidence: found.evidence(all),
            warnings,
        };
        let mut metadata = inner.metadata().clone();
        if let Some(text) = metadata.remove(LAYERS) {
            let scaled = found.scaled.iter();
            let modules: HashSet<&str> = scaled.map(|s| split(&all[s.weight].name).0).collect();
            // Here layers are named without the component.
            let is_true = |layer: &str| {
                let is_layer = |module: &&str| {
                    module
                        .strip_suffix(layer)
                        .is_some_and(|start| start.is_empty() || start.ends_with('.'))
                };
                modules.iter().any(is_layer)
            };
            let rest = match modules.is_empty() {
                true => Some(text),
                false => without_layers(&text, is_true),
            };
            metadata.extend(rest.map(|text| (LAYERS.to_owned(), text)));
        }
        let mut scaled: BTreeMap<usize, Scaled> =
            found.scaled.into_iter().map(|s| (s.weight, s)).collect();
        let mut tensors = Vec::with_capacity(all.len());
        let mut origins = Vec::with_capacity(all.len());
        for (i, info) in all.iter().enumerate() {
            if found.left_out.contains(&i) {
                continue;
            }
            match scaled.remove(&i) {
                None => {
                    tensors.push(info.clone());
                    origins.push(Origin::AsIs(i));
                }
                Some(scaled) => {
                    tensors.push(TensorInfo {
                        dtype: TRUE,
                        ..info.clone()
                    });
                    origins.push(Origin::Scaled(scaled));
                }
            }
        }
        Self {
            inner,
            tensors,
            origins,
            metadata,
            facts,
        }
    }
}

impl Source for Resolved<'_> {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: usize, out: &mut [u8]) -> Result<()> {
        match &self.origins[index] {
            Origin::AsIs(index) => self.inner.read(*index, offset, out),
            Origin::Scaled(scaled) => scaled.read(self.inner.as_ref(), offset, out),
        }
    }

    fn path_of(&self, index: usize) -> &Path {
        self.inner.path_of(match &self.origins[index] {
            Origin::AsIs(index) => *index,
            Origin::Scaled(scaled) => scaled.weight,
        })
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn id(&self) -> SourceId {
        self.inner.id()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn classes(&self) -> Vec<String> {
        self.facts.classes.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.facts.warnings.clone()
    }

    fn quantization(&self) -> Vec<QuantizationConfig> {
        self.inner.quantization()
    }

    fn facts(&self) -> Option<&Facts> {
        Some(&self.facts)
    }

    fn has_weights(&self) -> bool {
        self.inner.has_weights()
    }

    fn files(&self) -> Vec<FileState> {
        self.inner.files()
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }

    fn held_bytes(&self) -> usize {
        self.inner.held_bytes()
    }

    fn in_turn(&self) -> bool {
        self.inner.in_turn()
    }
}
