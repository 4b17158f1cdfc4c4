//! What the tensors of a source mean together.
//!
//! f8 weights come with scales, and a weight is its value times its scale: whoever takes the f8
//! tensor alone is wrong by a factor of hundreds. Here they become true weights. Weights that
//! another quantizer has packed are found, so that none of its scales, zero points or codebooks
//! is taken for a weight.

mod blocks;
mod names;
mod packed;
mod said;
mod scaled;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use self::blocks::Fit;
use self::names::{INPUTS, MARKER, MORE, Names, SCALES, split};
use self::packed::{Packed, is_f8, is_input_name};
use self::said::{LAYERS, Said, without_layers};
use self::scaled::{Scaled, TRUE, is_scale};
use super::{FileState, QuantizationConfig, Source, SourceId};
use crate::error::Result;
use crate::tensor::{Dtype, Facts, TensorInfo};

/// Weights of a scale in MX formats.
const MX: usize = 32;

/// The name of the scheme of f8 weights whose scale has no certain meaning.
const UNCERTAIN: &str = "f8 with an uncertain scale";

/// Finds out what the tensors of `source` mean together. f8 weights with scales become bf16
/// weights: each value times its scale in f32, rounded half to even. Their scales are no tensors
/// any more. What the source's facts say of packed weights is for plans to act on.
pub fn resolve<'a>(source: Box<dyn Source + 'a>) -> Box<dyn Source + 'a> {
    if source.facts().is_some() {
        return source;
    }
    let found = Findings::of(source.as_ref());
    Box::new(Resolved::new(source, found))
}

/// Whether `source` has tensors that [`resolve`] would change or find packed.
pub(crate) fn needs_resolving(source: &dyn Source) -> bool {
    source.facts().is_none() && {
        let found = Findings::of(source);
        !found.scaled.is_empty() || !found.left_out.is_empty() || !found.packed.is_empty()
    }
}

/// What was found.
struct Findings {
    scaled: Vec<Scaled>,
    /// Tensors that are no tensors of their own any more.
    left_out: BTreeSet<usize>,
    packed: Packed,
    /// Why the first tensors that are packed cannot be read, where it is their own fault.
    uncertain: BTreeMap<usize, String>,
    warnings: Vec<String>,
}

impl Findings {
    fn of(source: &dyn Source) -> Self {
        let names = Names::new(source.tensors());
        let said = Said::of(source, &names);
        let mut found = Self {
            scaled: Vec::new(),
            left_out: BTreeSet::new(),
            packed: Packed::new(),
            uncertain: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let plain = found.find_scaled(&names, &said);
        let taken = found.scaled.iter().flat_map(|s| [s.weight, s.scale]);
        let taken: HashSet<usize> = taken.chain(found.left_out.iter().copied()).collect();
        found.packed.extend(packed::find(&names, &said, &taken));
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

    /// Notes that these tensors have no certain meaning, and why.
    fn refuse(&mut self, tensors: &[usize], reason: String) {
        for &tensor in tensors {
            self.packed.insert(tensor, UNCERTAIN.to_owned());
        }
        self.uncertain.insert(tensors[0], reason);
    }

    /// Finds f8 weights with scales. Returns f8 matrices that have none.
    fn find_scaled(&mut self, names: &Names<'_>, said: &Said) -> Vec<usize> {
        let mut plain = Vec::new();
        // Weight, scale and how they fit, where nothing is against it.
        let mut fits: Vec<(usize, usize, Fit)> = Vec::new();
        for (weight, info) in names.tensors.iter().enumerate() {
            let (module, leaf) = split(&info.name);
            if leaf == MARKER && info.shape.elements() <= 2 {
                self.left_out.insert(weight);
                continue;
            }
            if !is_f8(info.dtype) || SCALES.contains(&leaf) || is_input_name(&info.name) {
                continue;
            }
            let scales = names.beside(&info.name, SCALES);
            let more = names.beside(&info.name, MORE);
            let name = |tensor: usize| &names.tensors[tensor].name;
            let scale = match scales[..] {
                [scale] => scale,
                [] => {
                    let matrix = info.shape.dims().len() >= 2 && more.is_empty();
                    match said.says(&info.name) {
                        Some(method) if matrix && leaf == "weight" => {
                            let reason = format!(
                                "it is f8 without a scale, and the model's files say that it was \
                                 quantized by {method}: its scale, such as '{module}.weight_scale', \
                                 is not here"
                            );
                            self.refuse(&[weight], reason);
                        }
                        _ if matrix => plain.push(weight),
                        _ => {}
                    }
                    continue;
                }
                [first, second, ..] => {
                    let (first, second) = (name(first), name(second));
                    let reason = format!("it is f8 and has two scales, '{first}' and '{second}'");
                    let all: Vec<usize> = [weight].into_iter().chain(scales).collect();
                    self.refuse(&all, reason);
                    continue;
                }
            };
            let scale_info = &names.tensors[scale];
            let what = format!(
                "it is {} {} with the scale '{}', {} {}",
                info.dtype, info.shape, scale_info.name, scale_info.dtype, scale_info.shape
            );
            // The scheme is another's, whose scales may mean anything.
            let plain_scale = split(&scale_info.name).1 == "scale";
            let format = said.comfy_format(module);
            if !more.is_empty() || plain_scale && said.method(&info.name).is_some() {
                let scheme = match (format, said.method(&info.name)) {
                    (Some(format), _) => format!("ComfyUI {format}"),
                    (None, Some(method)) => method.to_owned(),
                    (None, None) if plain_scale => "SDNQ".to_owned(),
                    (None, None) => UNCERTAIN.to_owned(),
                };
                if scheme == UNCERTAIN {
                    let reason = format!("{what}, and there is '{}', too", name(more[0]));
                    self.uncertain.insert(weight, reason);
                }
                for tensor in [weight, scale].into_iter().chain(more) {
                    self.packed.insert(tensor, scheme.clone());
                }
                continue;
            }
            let fit = match Fit::new(info.shape.dims(), scale_info.shape.dims()) {
                Ok(fit) => fit,
                Err(reason) => {
                    self.refuse(&[weight, scale], format!("{what}: {reason}"));
                    continue;
                }
            };
            let against = match scale_info.dtype {
                dtype if !is_scale(dtype) => Some("of which no format is known"),
                dtype if plain_scale && dtype != Dtype::F8E8M0 => {
                    Some("which some formats multiply by and others keep for transposed weights")
                }
                _ if format.is_some() => Some("and the format of the layer is none of f8"),
                _ if said.comfy_tiles(module) && in_tiles(scale_info) => {
                    Some("which may lie row by row, or in the order of a processor's tiles")
                }
                _ => None,
            };
            match against {
                Some(against) => self.refuse(&[weight, scale], format!("{what}, {against}")),
                None => fits.push((weight, scale, fit)),
            }
        }
        self.lay(names, said, fits);
        plain
    }

    /// Finds the blocks of weights whose scales fit, with what all of them tell.
    fn lay(&mut self, names: &Names<'_>, said: &Said, fits: Vec<(usize, usize, Fit)>) {
        let certain = fits.iter().flat_map(|(_, _, fit)| fit.certain());
        let known: BTreeSet<usize> = certain.collect();
        for (weight, scale, fit) in fits {
            let (info, scale_info) = (&names.tensors[weight], &names.tensors[scale]);
            let mut block = said.block(&info.name);
            if block.is_empty() && matches!(scale_info.dtype, Dtype::F8E8M0 | Dtype::U8) {
                block.push(MX);
            }
            let blocks = fit.blocks(&block, &known);
            let blocks = blocks.and_then(|blocks| match scale_info.dtype {
                Dtype::U8 if blocks.run() != MX || blocks.sizes()[0] != 1 => {
                    Err("bytes are scales of rows in blocks of 32 only".to_owned())
                }
                _ => Ok(blocks),
            });
            match blocks {
                Ok(blocks) => {
                    self.left_out.extend(names.beside(&info.name, INPUTS));
                    self.scaled.push(Scaled {
                        weight,
                        scale,
                        blocks,
                    });
                }
                Err(reason) => {
                    let (a, b) = (info, scale_info);
                    let reason = format!(
                        "it is {} {} with the scale '{}', {} {}: {reason}",
                        a.dtype, a.shape, b.name, b.dtype, b.shape
                    );
                    self.refuse(&[weight, scale], reason);
                }
            }
        }
    }

    fn warn_of_plain(&mut self, names: &Names<'_>, plain: &[usize]) {
        if let (Some(&first), false) = (plain.first(), self.scaled.is_empty()) {
            let name = &names.tensors[first].name;
            self.warnings.push(format!(
                "{} without a scale, where others have one, are taken as they are: {name}{}",
                count(plain.len(), "f8 matrix", "f8 matrices"),
                others(plain.len())
            ));
        }
    }

    /// What was made of the tensors, in sentences.
    fn evidence(&self, tensors: &[TensorInfo]) -> Vec<String> {
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
                "{} left out, as they belong to f8 weights only: {}",
                count(rest.len(), "tensor", "tensors"),
                rest.join(", ")
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

    /// The tensor that tells best why weights cannot be quantized, and the reason.
    fn refusal(&self, tensors: &[TensorInfo]) -> Option<(String, String)> {
        if let Some((&tensor, reason)) = self.uncertain.iter().next() {
            return Some((tensors[tensor].name.clone(), reason.clone()));
        }
        let (&tensor, scheme) = self.packed.iter().next()?;
        let beside = match self.packed.len() - 1 {
            0 => String::new(),
            more => format!(", as {more} other tensors are"),
        };
        let reason =
            format!("already quantized ({scheme}){beside}: start from the original weights");
        Some((tensors[tensor].name.clone(), reason))
    }
}

/// Whether scales have a shape that whole tiles of 128 rows and 4 columns have.
fn in_tiles(scales: &TensorInfo) -> bool {
    match scales.shape.dims() {
        [rows, cols] => rows.is_multiple_of(128) && cols.is_multiple_of(4),
        _ => true,
    }
}

fn count(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// What follows the first of several names.
fn others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    }
}

/// A source with true weights.
struct Resolved<'a> {
    inner: Box<dyn Source + 'a>,
    tensors: Vec<TensorInfo>,
    origins: Vec<Origin>,
    metadata: BTreeMap<String, String>,
    facts: Facts,
}

/// Where a tensor's values come from.
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
            // Layers are called without the name of a component.
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
